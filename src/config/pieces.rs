//! Resources that are a part of another one: the configuration of an extension (ECDS).
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

/// The place of a piece.
pub trait Piece: Debug + Send + Sync {
    /// The type URL to ask for.
    fn type_url(&self) -> &'static str;

    /// Where its subscription counts, as a prefix of names.
    fn scope(&self) -> String;

    /// Takes an encoded resource called `name`. Says what was accepted without effect.
    ///
    /// # Errors
    /// Every problem found; then what was there before stays.
    fn take(&self, name: &str, body: &[u8], compiler: &Compiler) -> Result<Vec<Problem>, Vec<Problem>>;

    /// The control plane took it away, or does not have it in time.
    fn lose(&self);
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
    current: ArcSwapOption<HttpFilter>,
}

impl DiscoveredFilter {
    /// Nothing has come yet.
    pub fn new(name: Arc<str>, types: Vec<Box<str>>, default: Option<HttpFilter>) -> Self {
        let default = default.map(Arc::new);
        Self { name, types, current: ArcSwapOption::new(default.clone()), default }
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

    fn take(&self, name: &str, body: &[u8], compiler: &Compiler) -> Result<Vec<Problem>, Vec<Problem>> {
        let compiled = compiler.http_filter(body, &self.types)?;
        if *compiled.name != *name {
            let message = format!("the resource is called {name:?} and the extension {:?}", compiled.name);
            return Err(vec![Problem::new("name", message)]);
        }
        self.current.store(Some(Arc::new(compiled.value)));
        Ok(compiled.warnings)
    }

    fn lose(&self) {
        self.current.store(self.default.clone());
    }
}
