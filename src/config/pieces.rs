//! Resources that are a part of another one: the configuration of an extension (ECDS), and secrets (SDS).
//!
//! Comes in: an encoded resource, whenever the control plane sends one. Goes out: what of it the data path uses, in the
//! place where the resource around it has it. That resource waits for its pieces before it serves.

use std::fmt::Debug;
use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};

use super::compile::resource::Compiler;
use super::discovery::ConfigSource;
use super::http::HttpFilter;
use super::problems::Problem;
use crate::tls;
use crate::tls::renewal::Validity;

/// The place of a piece.
pub trait Piece: Debug + Send + Sync {
    /// The type URL to ask for.
    fn type_url(&self) -> &'static str;

    /// Where its subscription counts, as a prefix of names.
    fn scope(&self) -> String;

    /// The same for two that are one place.
    fn place(&self) -> usize;

    /// Takes an encoded resource called `name`.
    ///
    /// # Errors
    /// Every problem found; then what was there before stays.
    fn take(&self, name: &str, body: &[u8], compiler: &Compiler) -> Result<Taken, Vec<Problem>>;

    /// The control plane took it away, or does not have it in time.
    fn lose(&self);

    /// From when until when what is there is valid, where it is not so for ever.
    fn validity(&self) -> Option<Validity> {
        None
    }
}

/// What is to be known of a piece that was taken.
#[derive(Debug, Default)]
pub struct Taken {
    /// What was accepted without effect.
    pub warnings: Vec<Problem>,
    /// Pieces of its own.
    pub needs: Vec<PieceNeed>,
}

impl From<Vec<Problem>> for Taken {
    fn from(warnings: Vec<Problem>) -> Self {
        Self { warnings, needs: Vec::new() }
    }
}

/// A piece to ask for.
#[derive(Debug, Clone)]
pub struct PieceNeed {
    /// Whom to ask, and how long to wait.
    pub source: ConfigSource,
    /// The name to ask for.
    pub name: Arc<str>,
    /// Where it goes.
    pub piece: Arc<dyn Piece>,
    /// Whether what needs it serves without it for now.
    pub optional: bool,
}

/// An HTTP filter whose configuration a control plane sends (`envoy.config.core.v3.ExtensionConfigSource`).
#[derive(Debug)]
pub struct DiscoveredFilter {
    /// The filter's name.
    pub name: Arc<str>,
    /// The types that its configuration may be of.
    pub types: Vec<Box<str>>,
    /// What it does until one comes, and after it was taken away.
    pub default: Option<Arc<HttpFilter>>,
    /// Where it counts: the connection manager's prefix.
    stat_prefix: Box<str>,
    current: ArcSwapOption<HttpFilter>,
}

impl DiscoveredFilter {
    /// Nothing has come yet.
    pub fn new(name: Arc<str>, types: Vec<Box<str>>, default: Option<HttpFilter>, stat_prefix: &str) -> Self {
        let default = default.map(Arc::new);
        let current = ArcSwapOption::new(default.clone());
        Self { name, types, current, default, stat_prefix: stat_prefix.into() }
    }

    /// What it does now; `None` when it was told nothing.
    pub fn current(&self) -> Guard<Option<Arc<HttpFilter>>> {
        self.current.load()
    }
}

impl Piece for DiscoveredFilter {
    fn type_url(&self) -> &'static str {
        outrigger_control_api::client::type_url::EXTENSION
    }

    fn scope(&self) -> String {
        format!("extension_config_discovery.http_filter.{}", self.name)
    }

    fn place(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    fn take(&self, name: &str, body: &[u8], compiler: &Compiler) -> Result<Taken, Vec<Problem>> {
        let compiled = compiler.http_filter(body, &self.types, &self.stat_prefix)?;
        check_name(name, &compiled.name)?;
        self.current.store(Some(Arc::new(compiled.value)));
        Ok(Taken { warnings: compiled.warnings, needs: compiled.needs.pieces })
    }

    fn lose(&self) {
        self.current.store(self.default.clone());
    }
}

/// Where a secret goes that a control plane sends: a slot that everything shares that has it from the same source.
#[derive(Debug)]
pub struct SecretPlace {
    /// The secret's name.
    pub name: Arc<str>,
    /// Its slot.
    pub slot: Arc<tls::Slot>,
}

impl Piece for SecretPlace {
    fn type_url(&self) -> &'static str {
        outrigger_control_api::client::type_url::SECRET
    }

    fn scope(&self) -> String {
        format!("sds.{}", self.name)
    }

    fn place(&self) -> usize {
        Arc::as_ptr(&self.slot) as usize
    }

    fn take(&self, name: &str, body: &[u8], compiler: &Compiler) -> Result<Taken, Vec<Problem>> {
        let compiled = compiler.secret(body)?;
        check_name(name, &compiled.name)?;
        self.slot.put(Some(compiled.value));
        Ok(compiled.warnings.into())
    }

    /// The last one serves on.
    fn lose(&self) {}

    fn validity(&self) -> Option<Validity> {
        self.slot.load().as_ref()?.validity()
    }
}

pub(super) fn check_name(asked: &str, found: &str) -> Result<(), Vec<Problem>> {
    if asked == found {
        return Ok(());
    }
    let message = format!("the resource is called {asked:?} and what is in it {found:?}");
    Err(vec![Problem::new("name", message)])
}
