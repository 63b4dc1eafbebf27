//! The network filters before the terminal one, asked when a client speaks.
//!
//! As in Envoy a connection is decided on when its first bytes (or its end) arrive, and not before: what a server says
//! first is passed on until then, and while a service is asked. In: a filter chain's filters, the connection's facts. Out:
//! whether to go on, and how to end if not.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use outrigger_control_api::pb::google::protobuf::{value::Kind, Struct, Value};
use tokio::time::timeout;

use super::authz::{Answer, Asking, Counsel, NetworkAuthz};
use super::rbac::{Facts, Filter, Verdict};
use crate::config::listener::{NetworkFilter, NetworkRbac};
use crate::runtime::Stream;
use crate::telemetry::stats::Held;
use crate::telemetry::stream_info::{
    dynamic_metadata_are_read, ConnectionInfo, DynamicMetadata, ResponseFlags,
};

/// The filters of one connection.
#[derive(Debug)]
pub struct Gate {
    filters: Arc<[NetworkFilter]>,
    info: Rc<ConnectionInfo>,
    counsel: Rc<dyn Counsel>,
    /// The filter that decides next on the first bytes.
    next: Cell<usize>,
    /// The first bytes were decided on and nobody has been told so yet.
    fresh: Cell<bool>,
    waiting: RefCell<Option<Waiting>>,
    refusal: RefCell<Option<Refusal>>,
    told: RefCell<DynamicMetadata>,
}

/// A service that was asked.
struct Waiting {
    asking: Asking,
    since: Instant,
    _active: Held,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiting")
    }
}

/// Why and how a connection is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `CONNECTION_TERMINATION_DETAILS`.
    pub termination: String,
    /// `RESPONSE_CODE_DETAILS`.
    pub details: &'static str,
    /// `RESPONSE_FLAGS`.
    pub flags: ResponseFlags,
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

/// Whose metadata they are, whatever the filters are called.
const NAMESPACE: &str = "envoy.filters.network.rbac";
const AUTHZ_NAMESPACE: &str = "envoy.filters.network.ext_authz";
/// Room for the first bytes.
const FIRST_READ: usize = 4 << 10;

impl Gate {
    /// `None` where no filter has to be asked. `counsel` asks services.
    pub fn new(
        filters: &Arc<[NetworkFilter]>,
        info: &Rc<ConnectionInfo>,
        counsel: impl FnOnce() -> Rc<dyn Counsel>,
    ) -> Option<Self> {
        let asks =
            |filter: &NetworkFilter| matches!(filter, NetworkFilter::Rbac(_) | NetworkFilter::ExtAuthz(_));
        let filters = filters.iter().any(asks).then(|| filters.clone())?;
        Some(Self {
            filters,
            info: info.clone(),
            counsel: counsel(),
            next: Cell::new(0),
            fresh: Cell::new(false),
            waiting: RefCell::default(),
            refusal: RefCell::default(),
            told: RefCell::new(info.metadata.as_deref().cloned().unwrap_or_default()),
        })
    }

    /// The client has sent bytes, or its end: ready when what all filters say of that is known. It may not be read before.
    pub fn poll_decided(&self, context: &mut Context<'_>) -> Poll<()> {
        while let Some(filter) = self.filters.get(self.next.get()) {
            if self.is_refused() {
                break;
            }
            match filter {
                NetworkFilter::Rbac(rbac) => self.judge(rbac),
                NetworkFilter::ExtAuthz(authz) => {
                    let waiting = self.waiting.take().or_else(|| self.ask(authz));
                    if let Some(mut waiting) = waiting {
                        let Poll::Ready(answer) = waiting.asking.as_mut().poll(context) else {
                            self.waiting.replace(Some(waiting));
                            return Poll::Pending;
                        };
                        self.hear(authz, answer, waiting.since);
                    }
                }
                _ => {}
            }
            self.next.set(self.next.get() + 1);
            self.fresh.set(true);
        }
        Poll::Ready(())
    }

    /// Whether filters have not decided on the first bytes yet.
    pub fn decides(&self) -> bool {
        self.next.get() < self.filters.len()
    }

    /// Whether all filters have let the connection in, will not be asked again, and have left nothing that logs show.
    pub fn is_over(&self) -> bool {
        !self.decides() && !self.watches() && !self.is_refused() && self.told.borrow().is_empty()
    }

    /// Whether what the client has sent may pass, once that is decided. Filters that decide once are asked the first time
    /// only.
    pub fn admits(&self) -> bool {
        if self.fresh.replace(false) || self.is_refused() {
            return !self.is_refused();
        }
        for filter in &*self.filters {
            match filter {
                NetworkFilter::Rbac(rbac) if rbac.continuous => self.judge(rbac),
                NetworkFilter::ExtAuthz(authz) if !self.is_meant(authz) => {
                    authz.stats.disabled.increment(1);
                }
                _ => {}
            }
            if self.is_refused() {
                return false;
            }
        }
        true
    }

    fn judge(&self, rbac: &NetworkRbac) {
        let verdict = self.verdict(&rbac.filter);
        if !verdict.allowed {
            self.refusal.replace(Some(Refusal {
                termination: verdict.details,
                details: "",
                flags: ResponseFlags::NONE,
                delay: rbac.delay,
            }));
        }
    }

    fn verdict(&self, filter: &Filter) -> Verdict {
        let mut told = self.told.borrow_mut();
        let facts = Facts { dynamic: Some(&told), ..Facts::of_connection(&self.info) };
        let mut verdict = filter.judge_own(&facts, dynamic_metadata_are_read());
        verdict.write(NAMESPACE, &mut told);
        verdict
    }

    /// Whether the filter is to decide on connections with such metadata.
    fn is_meant(&self, authz: &NetworkAuthz) -> bool {
        let told = self.told.borrow();
        authz.enabled.as_ref().is_none_or(|wanted| wanted.matches(told.get(&*wanted.filter)))
    }

    fn ask(&self, authz: &Arc<NetworkAuthz>) -> Option<Waiting> {
        if !self.is_meant(authz) {
            authz.stats.disabled.increment(1);
            return None;
        }
        authz.stats.total.increment(1);
        let asking = self.counsel.ask(authz, &self.info, &self.told.borrow());
        Some(Waiting { asking, since: Instant::now(), _active: Held::new(&authz.stats.active) })
    }

    fn hear(&self, authz: &NetworkAuthz, answer: Answer, since: Instant) {
        let mut metadata = Struct::default();
        let refused = match answer {
            Answer::Allowed(told) => {
                authz.stats.ok.increment(1);
                metadata = told;
                let millis = since.elapsed().as_millis() as f64;
                let duration = Value { kind: Some(Kind::NumberValue(millis)) };
                metadata.fields.insert("ext_authz_duration".to_owned(), duration);
                None
            }
            Answer::Denied(told) => {
                authz.stats.denied.increment(1);
                metadata = told;
                Some("ext_authz_denied")
            }
            Answer::Lost => {
                authz.stats.error.increment(1);
                if authz.fail_open && !authz.shadow {
                    authz.stats.failure_mode_allowed.increment(1);
                    None
                } else {
                    Some("ext_authz_error")
                }
            }
        };
        if !metadata.fields.is_empty() {
            let mut told = self.told.borrow_mut();
            told.entry(AUTHZ_NAMESPACE.to_owned()).or_default().fields.extend(metadata.fields);
        }
        if let Some(details) = refused.filter(|_| !authz.shadow) {
            authz.stats.cx_closed.increment(1);
            let (flags, termination) = (ResponseFlags::UAEX, String::new());
            self.refusal.replace(Some(Refusal { termination, details, flags, delay: None }));
        }
    }

    /// The dynamic metadata that filters have left; `None` if there are none.
    pub fn told(&self) -> Option<Box<DynamicMetadata>> {
        let told = self.told.borrow();
        (!told.is_empty()).then(|| Box::new(told.clone()))
    }

    /// Whether a filter wants to be asked at every read.
    pub fn watches(&self) -> bool {
        let asked =
            |filter: &&NetworkFilter| matches!(filter, NetworkFilter::Rbac(_) | NetworkFilter::ExtAuthz(_));
        self.filters.iter().filter(asked).any(|filter| !filter.decides_once())
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

    /// Waits until the first bytes, which are there, are decided on.
    pub async fn decided(&self) {
        poll_fn(|context| self.poll_decided(context)).await;
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
        self.decided().await;
        if self.admits() {
            return Passage::Open;
        }
        self.linger(stream).await;
        Passage::Refused
    }
}
