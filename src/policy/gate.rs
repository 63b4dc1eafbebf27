//! The network filters before the terminal one, asked when a client speaks.
//!
//! As in Envoy a connection is decided on when its first bytes (or its end) arrive, and not before: what a server says
//! first is passed on until then. In: a filter chain's filters, the connection's facts. Out: whether to go on, and how
//! to end if not.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::timeout;

use super::rbac::{Facts, Filter, Verdict};
use crate::config::listener::NetworkFilter;
use crate::runtime::Stream;
use crate::telemetry::stream_info::{dynamic_metadata_are_read, ConnectionInfo, DynamicMetadata};

/// The filters of one connection.
#[derive(Debug)]
pub struct Gate {
    filters: Arc<[NetworkFilter]>,
    info: Rc<ConnectionInfo>,
    asked: Cell<bool>,
    refusal: RefCell<Option<Refusal>>,
    told: RefCell<DynamicMetadata>,
}

/// Why and how a connection is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `CONNECTION_TERMINATION_DETAILS`.
    pub details: String,
    /// How long it stays open, unread, before it is closed.
    pub delay: Option<Duration>,
}

/// What became of a connection that waited for its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// They are there, and nothing is against them.
    Open,
    /// The client went away.
    Gone,
    /// None came in time.
    Idle,
    /// A filter refused them.
    Refused,
}

/// Whose metadata they are, whatever the filter is called.
const NAMESPACE: &str = "envoy.filters.network.rbac";
/// Room for the first bytes.
const FIRST_READ: usize = 4 << 10;

impl Gate {
    /// `None` where no filter has to be asked.
    pub fn new(filters: &Arc<[NetworkFilter]>, info: &Rc<ConnectionInfo>) -> Option<Self> {
        let asks = filters.iter().any(|filter| matches!(filter, NetworkFilter::Rbac(_)));
        let filters = asks.then(|| filters.clone())?;
        Some(Self {
            filters,
            info: info.clone(),
            asked: Cell::new(false),
            refusal: RefCell::default(),
            told: RefCell::new(info.metadata.as_deref().cloned().unwrap_or_default()),
        })
    }

    /// The client has sent bytes, or its end: whether they may pass. Filters that decide once are asked the first
    /// time only.
    pub fn admits(&self) -> bool {
        let first = !self.asked.replace(true);
        if self.is_refused() {
            return false;
        }
        for filter in &*self.filters {
            let NetworkFilter::Rbac(rbac) = filter else { continue };
            if first || rbac.continuous {
                let verdict = self.judge(&rbac.filter);
                if !verdict.allowed {
                    let refusal = Refusal { details: verdict.details, delay: rbac.delay };
                    self.refusal.replace(Some(refusal));
                    return false;
                }
            }
        }
        true
    }

    fn judge(&self, filter: &Filter) -> Verdict {
        let mut told = self.told.borrow_mut();
        let facts = Facts { dynamic: Some(&told), ..Facts::of_connection(&self.info) };
        let mut verdict = filter.judge_own(&facts, dynamic_metadata_are_read());
        verdict.write(NAMESPACE, &mut told);
        verdict
    }

    /// The dynamic metadata that filters have left; `None` if there are none.
    pub fn told(&self) -> Option<Box<DynamicMetadata>> {
        let told = self.told.borrow();
        (!told.is_empty()).then(|| Box::new(told.clone()))
    }

    /// Whether a filter wants to be asked at every read.
    pub fn watches(&self) -> bool {
        self.filters.iter().any(|filter| matches!(filter, NetworkFilter::Rbac(rbac) if rbac.continuous))
    }

    /// Whether it has refused.
    pub fn is_refused(&self) -> bool {
        self.refusal.borrow().is_some()
    }

    /// Why it has refused.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusal.borrow().clone()
    }

    /// Keeps a refused connection open for as long as that is wanted and the client is there.
    pub async fn linger(&self, stream: &Stream) {
        if let Some(delay) = self.refusal().and_then(|refusal| refusal.delay) {
            let _ = timeout(delay, stream.failed()).await;
        }
    }

    /// Waits for the client's first bytes, which are put into `input`, and asks about them.
    pub async fn open(&self, stream: &Stream, input: &mut BytesMut, idle: Option<Duration>) -> Passage {
        if input.is_empty() {
            input.reserve(FIRST_READ);
            let read = stream.read_buf(input);
            let read = match idle {
                None => Ok(read.await),
                Some(idle) => timeout(idle, read).await,
            };
            match read {
                Ok(Ok(count)) if count > 0 => {}
                Ok(_) => return Passage::Gone,
                Err(_) => return Passage::Idle,
            }
        }
        if self.admits() {
            return Passage::Open;
        }
        self.linger(stream).await;
        Passage::Refused
    }
}
