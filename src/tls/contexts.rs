//! TLS contexts that follow their secrets: looked at before each handshake, made anew when a secret has changed.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;

/// What is made of secrets.
pub(super) trait Made {
    /// The secrets that it was made of, in order.
    fn secrets(&self) -> &[u64];
}

/// The context of the moment.
#[derive(Debug)]
pub(super) struct Contexts<C> {
    made: ArcSwapOption<C>,
    making: Mutex<()>,
}

impl<C> Default for Contexts<C> {
    fn default() -> Self {
        Self { made: ArcSwapOption::empty(), making: Mutex::default() }
    }
}

impl<C: Made> Contexts<C> {
    /// The context of `secrets`, from `make` if there is none yet; `renewed` is told when it takes the place of another.
    /// Where it cannot be made the last one stays, if there is one.
    pub(super) fn of<I: Iterator<Item = u64>>(
        &self,
        secrets: impl Fn() -> I,
        renewed: impl FnOnce(),
        make: impl FnOnce() -> Result<C, String>,
    ) -> Option<Arc<C>> {
        let fits = |made: &&Arc<C>| secrets().eq(made.secrets().iter().copied());
        if let Some(made) = self.made.load().as_ref().filter(fits) {
            return Some(made.clone());
        }
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.made.load_full();
        if let Some(made) = before.as_ref().filter(fits) {
            return Some(made.clone());
        }
        if before.is_some() {
            renewed();
        }
        match make() {
            Ok(made) => {
                let made = Arc::new(made);
                self.made.store(Some(made.clone()));
                Some(made)
            }
            Err(error) => {
                tracing::error!("a TLS context cannot be made: {error}");
                before
            }
        }
    }
}
