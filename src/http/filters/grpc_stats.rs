//! Statistics of gRPC calls (`envoy.filters.http.grpc_stats`): how many there were and how they ended, of all calls of a
//! cluster together or by service and method, `cluster.<name>.grpc.[<service>.<method>.]`.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram};

use crate::config::{Known, RequestView};
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead};
use crate::telemetry::metrics::{Scope, Unit};

/// `envoy.extensions.filters.http.grpc_stats.v3.FilterConfig`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which calls are counted by service and method.
    pub by_method: ByMethod,
    /// The time of calls too (`enable_upstream_stats`).
    pub times: bool,
    /// Dots in names of services become underscores.
    pub replace_dots: bool,
}

/// Which calls are counted by service and method; the others are counted together.
#[derive(Debug, Clone)]
pub enum ByMethod {
    /// None.
    None,
    /// All. Clients choose the names, so there is a limit, see [`MOST_METHODS`].
    All,
    /// These, as `/service/method`.
    These(Arc<HashSet<Box<[u8]>>>),
}

/// A worker counts so many methods apart; those that come later are counted together.
pub const MOST_METHODS: usize = 1000;

/// The statistics of one method.
#[derive(Debug)]
pub struct MethodStats {
    scope: Scope,
    /// By status, made when one is first seen.
    codes: [OnceCell<Counter>; 17],
    total: Counter,
    success: Counter,
    failure: Counter,
    /// Messages of requests.
    pub request_messages: Counter,
    /// Messages of responses.
    pub response_messages: Counter,
    time: Histogram,
}

impl MethodStats {
    fn new(cluster: &str, method: Option<(&str, &str)>) -> Self {
        let grpc = Scope::cluster(cluster).sub("grpc");
        let scope = match method {
            Some((service, method)) => {
                grpc.named("envoy_grpc_bridge_service", service).named("envoy_grpc_bridge_method", method)
            }
            None => grpc,
        };
        Self {
            total: scope.counter("total"),
            success: scope.counter("success"),
            failure: scope.counter("failure"),
            request_messages: scope.counter("request_message_count"),
            response_messages: scope.counter("response_message_count"),
            time: scope.histogram("upstream_rq_time", Unit::Milliseconds),
            codes: std::array::from_fn(|_| OnceCell::new()),
            scope,
        }
    }
}

type Key = (Box<str>, Box<[u8]>);

/// The statistics that a worker has resolved.
#[derive(Debug, Default)]
pub struct Methods(RefCell<HashMap<Key, Rc<MethodStats>>>);

impl Methods {
    fn get(&self, cluster: &str, method: Option<(&str, &str)>, path: &[u8]) -> Rc<MethodStats> {
        let key: Key = (cluster.into(), if method.is_some() { path.into() } else { Box::default() });
        let mut map = self.0.borrow_mut();
        if let Some(stats) = map.get(&key) {
            return stats.clone();
        }
        if map.len() >= MOST_METHODS && method.is_some() {
            drop(map);
            return self.get(cluster, None, b"");
        }
        let stats = Rc::new(MethodStats::new(cluster, method));
        map.insert(key, stats.clone());
        stats
    }
}

/// A call that is counted.
#[derive(Debug)]
pub struct Call {
    apart: bool,
    replace_dots: bool,
    times: bool,
    stats: Option<Rc<MethodStats>>,
    /// The status, where the response's head has it.
    status: Option<Box<[u8]>>,
    /// Messages of the request and of the response, where somebody wants to know of this call's own.
    seen: Option<Rc<[Cell<u64>; 2]>>,
}

impl Call {
    /// A call that begins.
    pub(super) fn of(config: &Config, request: &RequestHead, wanted: bool) -> Self {
        let apart = match &config.by_method {
            ByMethod::None => false,
            ByMethod::All => true,
            ByMethod::These(these) => these.contains(request.path()),
        };
        let (replace_dots, times) = (config.replace_dots, config.times);
        Self { apart, replace_dots, times, stats: None, status: None, seen: wanted.then(Rc::default) }
    }

    /// Where messages of the request (0) or of the response (1) are counted for this call alone.
    pub(super) fn seen(&self, side: usize) -> Option<(Rc<[Cell<u64>; 2]>, usize)> {
        self.seen.clone().map(|seen| (seen, side))
    }

    /// Its messages in the request and in the response.
    pub(super) fn messages(&self) -> Option<[u64; 2]> {
        let [sent, answered] = &**self.seen.as_ref()?;
        Some([sent.get(), answered.get()])
    }

    /// Its cluster is known.
    pub(super) fn begin(&mut self, methods: &Methods, cluster: &str, request: &RequestHead) {
        if self.stats.is_some() {
            return;
        }
        let path = request.path();
        let name = std::str::from_utf8(path).ok().and_then(|path| path.strip_prefix('/')?.split_once('/'));
        let name = name.filter(|(service, method)| {
            self.apart && !service.is_empty() && !method.is_empty() && !method.contains('/')
        });
        self.stats = Some(match name {
            Some((service, method)) if self.replace_dots => {
                methods.get(cluster, Some((&service.replace('.', "_"), method)), path)
            }
            name => methods.get(cluster, name, path),
        });
    }

    /// Where it is counted.
    pub(super) fn stats(&self) -> Option<&MethodStats> {
        self.stats.as_deref()
    }

    /// A response's head.
    pub(super) fn answered(&mut self, head: &ResponseHead) {
        self.status = head.fields.get(Known::GrpcStatus).map(Into::into);
    }

    /// It is over.
    pub(super) fn end(self, trailers: Option<&Fields>, code: u16, took: Duration) {
        let Some(stats) = self.stats else { return };
        let status = trailers.and_then(|trailers| trailers.get(Known::GrpcStatus)).or(self.status.as_deref());
        stats.total.increment(1);
        let number = status.and_then(|status| std::str::from_utf8(status).ok()?.parse::<usize>().ok());
        match number {
            Some(0) => stats.success.increment(1),
            _ => stats.failure.increment(1),
        }
        if let Some(code) = number.and_then(|number| stats.codes.get(number)) {
            let name = number.unwrap_or_default().to_string();
            code.get_or_init(|| stats.scope.counter(&name)).increment(1);
        }
        if self.times && code == 200 {
            stats.time.record(took.as_secs_f64() * 1000.0);
        }
    }
}
