//! Secrets for connections to control planes that are not in the bootstrap: in a file, or from another control plane,
//! an agent on the same machine for instance.
//!
//! In: where a secret is; what an agent sends. Out: what it holds now, which each connection looks at anew.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use outrigger_control_api::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::compile::control_tls;
use super::compile::resource::Compiler;
use super::pieces::{check_name, Piece, Taken};
use super::problems::Problem;

/// A secret that is not in the bootstrap. It is read at each connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ControlSecret {
    /// Its name.
    pub name: Arc<str>,
    /// Where it is.
    pub source: SecretSource,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretSource {
    /// In a file: a `DiscoveryResponse` (`SdsSecretConfig` with a path).
    File(PathBuf),
    /// Sent by a control plane of its own.
    Sent(SentSecret),
}

/// The place of a secret that a control plane sends.
#[derive(Clone)]
pub struct SentSecret(Arc<Cell>);

struct Cell {
    name: Arc<str>,
    /// How long a first connection waits for it; `None` = for ever.
    patience: Option<Duration>,
    current: ArcSwapOption<Type>,
    came: Notify,
}

impl SentSecret {
    /// Nothing has come yet; the first connection waits so long for it.
    pub fn new(name: Arc<str>, patience: Option<Duration>) -> Self {
        let (current, came) = (ArcSwapOption::empty(), Notify::new());
        Self(Arc::new(Cell { name, patience, current, came }))
    }

    /// What came last.
    pub fn current(&self) -> Option<Arc<Type>> {
        self.0.current.load_full()
    }

    /// Waits until something has come, or patience ends.
    pub async fn came(&self) {
        let came = async {
            loop {
                // Before looking, so that nothing comes between.
                let next = self.0.came.notified();
                if self.0.current.load().is_some() {
                    return;
                }
                next.await;
            }
        };
        match self.0.patience {
            None => came.await,
            Some(patience) => drop(timeout(patience, came).await),
        }
    }
}

impl Piece for SentSecret {
    fn type_url(&self) -> &'static str {
        outrigger_control_api::client::type_url::SECRET
    }

    fn scope(&self) -> String {
        format!("sds.{}", self.0.name)
    }

    fn place(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    fn take(&self, name: &str, body: &[u8], _compiler: &Compiler) -> Result<Taken, Vec<Problem>> {
        let secret = control_tls::sent(body)?;
        check_name(name, &secret.name)?;
        self.0.current.store(secret.r#type.map(Arc::new));
        self.0.came.notify_waiters();
        Ok(Taken::default())
    }

    /// The last one serves on.
    fn lose(&self) {}
}

impl fmt::Debug for SentSecret {
    /// Without what it holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SentSecret({})", self.0.name)
    }
}

impl PartialEq for SentSecret {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for SentSecret {}

impl Hash for SentSecret {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (Arc::as_ptr(&self.0) as usize).hash(state);
    }
}
