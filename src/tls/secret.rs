//! Secrets: certificates, trust and ticket keys, each in a slot of its own that may be filled later and changed at
//! any time.
//!
//! Comes in: secrets that config holds, files that may change, and what a control plane sends
//! ([`Slot::put`]). Goes out: the current value. Contexts hold slots; they look at them before each handshake, and
//! are made anew when one has another value.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwapOption, Guard};
use zeroize::Zeroizing;

use super::identity::Identity;
use super::renewal::{Renewal, Validity};
use super::sessions::TicketKeys;
use super::validation::Validation;

/// A secret's content.
#[derive(Clone)]
pub enum Content {
    /// `tls_certificate`.
    Certificate(Arc<Identity>),
    /// `validation_context`.
    Validation(Arc<Validation>),
    /// `session_ticket_keys`.
    TicketKeys(Arc<TicketKeys>),
    /// `generic_secret`.
    Generic(Arc<Zeroizing<Vec<u8>>>),
}

// What is in it is no business of logs.
impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Content::Certificate(identity) => f.debug_tuple("Certificate").field(identity).finish(),
            Content::Validation(validation) => f.debug_tuple("Validation").field(validation).finish(),
            Content::TicketKeys(keys) => f.debug_tuple("TicketKeys").field(keys).finish(),
            Content::Generic(_) => f.write_str("Generic"),
        }
    }
}

/// A secret.
#[derive(Debug)]
pub struct Secret {
    /// What it holds.
    pub content: Content,
    /// Unique to this value in this process.
    pub id: u64,
    /// Where it is read anew from when that changes.
    files: Option<Arc<Files>>,
}

impl Content {
    /// From when until when a certificate is valid.
    fn validity(&self) -> Option<Validity> {
        match self {
            Content::Certificate(identity) => identity.validity(),
            Content::Validation(_) | Content::TicketKeys(_) | Content::Generic(_) => None,
        }
    }
}

/// Files that a secret is made of, and how.
pub struct Files {
    /// A change in one of these (a file moved into it, as an atomic update does) has the files read again. So does the
    /// end of a certificate when it is near.
    directories: Vec<PathBuf>,
    /// The files.
    paths: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<Content, String> + Send + Sync>,
    seen: Mutex<Seen>,
}

struct Seen {
    looked: Instant,
    renewal: Renewal,
    state: Vec<Option<SystemTime>>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.paths).finish()
    }
}

/// The directories are looked at no more often than this.
const LOOK: Duration = Duration::from_millis(100);

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Secret {
    /// A secret that stays as it is.
    pub fn new(content: Content) -> Arc<Self> {
        Self::of(content, None)
    }

    /// A secret that `read` has just made `content` of, and makes anew when a file is moved into one of the
    /// directories, or when a certificate in it is near its end. `paths` are its files.
    pub fn from_files(
        content: Content,
        paths: Vec<PathBuf>,
        directories: Vec<PathBuf>,
        read: Box<dyn Fn() -> Result<Content, String> + Send + Sync>,
    ) -> Arc<Self> {
        let seen = Seen { looked: Instant::now(), renewal: Renewal::default(), state: state(&directories) };
        Self::of(content, Some(Arc::new(Files { paths, directories, read, seen: Mutex::new(seen) })))
    }

    fn of(content: Content, files: Option<Arc<Files>>) -> Arc<Self> {
        Arc::new(Self { content, id: NEXT.fetch_add(1, Ordering::Relaxed), files })
    }

    /// From when until when the certificate in it is valid, if it is one.
    pub fn validity(&self) -> Option<Validity> {
        self.content.validity()
    }

    /// The secret made anew, if its files have changed. What cannot be read is told in the log, once for each
    /// change.
    fn renewed(&self) -> Option<Arc<Self>> {
        let files = self.files.as_ref()?;
        // Somebody else is looking.
        let mut seen = files.seen.try_lock().ok()?;
        if seen.looked.elapsed() < LOOK {
            return None;
        }
        seen.looked = Instant::now();
        let valid = self.content.validity();
        let due = seen.renewal.is_due(valid, SystemTime::now(), fastrand::f64());
        let state = state(&files.directories);
        let changed = state != seen.state;
        if !changed && !due {
            return None;
        }
        seen.state = state;
        match (files.read)() {
            Ok(content) if !changed && content.validity() == valid => {
                tracing::warn!("a certificate is near its end, and its files have no other: {files:?}");
                None
            }
            Ok(content) => Some(Self::of(content, Some(files.clone()))),
            Err(error) => {
                let what = if changed { "has changed" } else { "is near its end" };
                tracing::error!("a TLS secret {what} and cannot be used, the last one stays: {error}");
                None
            }
        }
    }
}

fn state(directories: &[PathBuf]) -> Vec<Option<SystemTime>> {
    let modified = |path: &PathBuf| std::fs::metadata(path).and_then(|found| found.modified()).ok();
    directories.iter().map(modified).collect()
}

/// The place of a secret. Empty until the secret arrives.
#[derive(Debug, Default)]
pub struct Slot {
    name: Box<str>,
    /// The secret's own name; empty = it has none.
    secret: Box<str>,
    value: ArcSwapOption<Secret>,
}

impl Slot {
    /// A slot that nobody else knows.
    pub fn anonymous(secret: Arc<Secret>) -> Arc<Self> {
        Arc::new(Self { value: ArcSwapOption::from(Some(secret)), ..Self::default() })
    }

    /// The slot's name: the secret's, and where it is from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The secret's own name; empty = it has none.
    pub fn secret_name(&self) -> &str {
        &self.secret
    }

    /// The current secret.
    pub fn load(&self) -> Guard<Option<Arc<Secret>>> {
        let value = self.value.load();
        if let Some(new) = value.as_ref().and_then(|secret| secret.renewed()) {
            // Unless a control plane was faster.
            self.value.compare_and_swap(&*value, Some(new));
            return self.value.load();
        }
        value
    }

    /// Puts a secret in, or takes it away. Handshakes from now on use it; this is what discovery calls.
    pub fn put(&self, secret: Option<Arc<Secret>>) {
        self.value.store(secret);
    }
}

/// All slots by name.
#[derive(Debug, Default)]
pub struct Secrets(Mutex<HashMap<Box<str>, Arc<Slot>>>);

impl Secrets {
    /// The slot `name` of the secret `secret`: the same each time while somebody holds it.
    pub fn slot(&self, name: &str, secret: &str) -> Arc<Slot> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(name) {
            return slot.clone();
        }
        let slot = Arc::new(Slot { name: name.into(), secret: secret.into(), value: ArcSwapOption::empty() });
        slots.insert(name.into(), slot.clone());
        slot
    }

    /// The slot of a secret that is there.
    pub fn get(&self, name: &str) -> Option<Arc<Slot>> {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(name).filter(|slot| slot.value.load().is_some()).cloned()
    }

    /// Forgets slots that nothing refers to; returns their names. For discovery, after resources have changed.
    pub fn sweep(&self) -> Vec<Box<str>> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unused: Vec<_> = slots
            .iter()
            .filter(|(_, slot)| Arc::strong_count(slot) == 1)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &unused {
            slots.remove(name);
        }
        unused
    }
}
