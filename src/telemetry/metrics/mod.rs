//! The recorder behind the `metrics` facade, and scopes that name statistics as Envoy does.
//!
//! Comes in: names, when config is compiled. Goes out: handles whose increments are one relaxed
//! atomic operation, and [`snapshot`]s of every living series for the admin port. A series lives as
//! long as a handle to it does: when a removed cluster's statistics are dropped, its series are
//! gone from the next scrape, and a scope without series leaves the registry.

mod cell;
mod extracted;
mod histogram;
mod labelled;
mod prometheus;
mod render;
mod shown;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString};

use cell::{CounterCell, GaugeCell};
use histogram::HistogramCell;
pub use histogram::{HistogramSnapshot, BOUNDS, QUANTILES};
pub use prometheus::prometheus;
pub(super) use render::general;
pub use render::{json, text, HistogramView, Query};
pub use shown::{show, Shown};

/// Series that may live at one time. Beyond it new handles count nothing and `stats.overflow` says
/// so: a control plane that invents names must not make memory grow without end.
const MAX_SERIES: usize = 4 << 20;

/// Unit of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Unit {
    Milliseconds,
    Microseconds,
    Bytes,
    #[default]
    Unspecified,
}

/// A prefix of statistic names, with the tags that Prometheus shows instead of its variable parts.
/// Cheap to clone. Two scopes of the same name are the same scope.
#[derive(Clone)]
pub struct Scope(Arc<Node>);

struct Node {
    /// `cluster.foo.`: what Envoy's own names start with; empty or ending in a dot.
    prefix: Box<str>,
    /// `cluster.`: the prefix without the parts that became tags.
    family: Box<str>,
    /// Label names and values, the innermost first.
    tags: Vec<(Cow<'static, str>, Box<str>)>,
    /// Its names are not Envoy's: see [`Scope::labelled`].
    labelled: bool,
    /// Sorted by name and kind.
    series: Mutex<Vec<Series>>,
}

struct Series {
    name: Arc<str>,
    cell: WeakCell,
}

enum WeakCell {
    Counter(Weak<CounterCell>),
    Gauge(Weak<GaugeCell>),
    Histogram(Weak<HistogramCell>),
}

/// Type of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl WeakCell {
    fn kind(&self) -> Kind {
        match self {
            WeakCell::Counter(_) => Kind::Counter,
            WeakCell::Gauge(_) => Kind::Gauge,
            WeakCell::Histogram(_) => Kind::Histogram,
        }
    }

    fn is_dead(&self) -> bool {
        match self {
            WeakCell::Counter(cell) => cell.strong_count() == 0,
            WeakCell::Gauge(cell) => cell.strong_count() == 0,
            WeakCell::Histogram(cell) => cell.strong_count() == 0,
        }
    }
}

static REGISTRY: LazyLock<Mutex<HashMap<Box<str>, Weak<Node>>>> = LazyLock::new(Mutex::default);
static NAMES: LazyLock<Mutex<HashSet<Arc<str>>>> = LazyLock::new(Mutex::default);
static SERIES: AtomicUsize = AtomicUsize::new(0);
static OVERFLOW: LazyLock<Counter> = LazyLock::new(|| {
    let scope = Scope::raw("stats");
    let (cell, _) = scope.cell("overflow", Kind::Counter, |node| {
        let cell = Arc::new(CounterCell::new(node));
        (WeakCell::Counter(Arc::downgrade(&cell)), AnyCell::Counter(cell))
    });
    cell.into_counter()
});

impl Scope {
    /// `cluster.<name>.`, tag `envoy_cluster_name`. The tag is the whole name, dots included, where
    /// Envoy's pattern stops at the first dot.
    pub fn cluster(name: &str) -> Self {
        Self::root().tagged("cluster", "envoy_cluster_name", name)
    }

    /// `http.<stat_prefix>.`, tag `envoy_http_conn_manager_prefix`.
    pub fn http(stat_prefix: &str) -> Self {
        Self::root().tagged("http", "envoy_http_conn_manager_prefix", stat_prefix)
    }

    /// `listener.<address>.`, tag `envoy_listener_address`. Colons become underscores.
    pub fn listener(address: &str) -> Self {
        Self::root().tagged("listener", "envoy_listener_address", address)
    }

    /// `tcp.<stat_prefix>.`, tag `envoy_tcp_prefix`.
    pub fn tcp(stat_prefix: &str) -> Self {
        Self::root().tagged("tcp", "envoy_tcp_prefix", stat_prefix)
    }

    /// `udp.<stat_prefix>.`, tag `envoy_udp_prefix`.
    pub fn udp(stat_prefix: &str) -> Self {
        Self::root().tagged("udp", "envoy_udp_prefix", stat_prefix)
    }

    /// `dns_filter.<stat_prefix>.`, tag `envoy_dns_filter_prefix`.
    pub fn dns_filter(stat_prefix: &str) -> Self {
        Self::root().tagged("dns_filter", "envoy_dns_filter_prefix", stat_prefix)
    }

    /// `http.<stat_prefix>.rds.<route_config>.`, tags of both.
    pub fn http_route(stat_prefix: &str, route_config: &str) -> Self {
        Self::http(stat_prefix).tagged("rds", "envoy_rds_route_config", route_config)
    }

    /// `http.<stat_prefix>.<part>.<name>.`, with `tag` for the name.
    pub fn http_part(stat_prefix: &str, part: &str, tag: &'static str, name: &str) -> Self {
        Self::http(stat_prefix).tagged(part, tag, name)
    }

    /// `vhost.<virtual_host>.vcluster.<virtual_cluster>.`, tags of both.
    pub fn virtual_cluster(virtual_host: &str, virtual_cluster: &str) -> Self {
        let host = Self::root().tagged_plain("vhost", "envoy_virtual_host", virtual_host);
        host.tagged_plain("vcluster", "envoy_virtual_cluster", virtual_cluster)
    }

    /// `vhost.<virtual_host>.route.<stat_prefix>.`, tags of both.
    pub fn route(virtual_host: &str, stat_prefix: &str) -> Self {
        let host = Self::root().tagged_plain("vhost", "envoy_virtual_host", virtual_host);
        host.tagged_plain("route", "envoy_route", stat_prefix)
    }

    /// `server.`
    pub fn server() -> Self {
        Self::raw("server")
    }

    /// `cluster_manager.`
    pub fn cluster_manager() -> Self {
        Self::raw("cluster_manager")
    }

    /// `listener_manager.`
    pub fn listener_manager() -> Self {
        Self::raw("listener_manager")
    }

    /// `<prefix>.`, or the root when it is empty. No tags.
    pub fn raw(prefix: &str) -> Self {
        Self::root().sub(prefix)
    }

    fn root() -> Self {
        Self::open(String::new(), String::new(), Vec::new())
    }

    /// The scope `<part>.` below this one.
    pub fn sub(&self, part: &str) -> Self {
        if part.is_empty() {
            return self.clone();
        }
        let part = sanitized(part);
        let node = &*self.0;
        Self::open(format!("{}{part}.", node.prefix), format!("{}{part}.", node.family), node.tags.clone())
    }

    /// The scope `<part>.<value>.` below this one, shown to Prometheus as `<part>_...{tag="value"}`.
    pub fn tagged(&self, part: &str, tag: &'static str, value: &str) -> Self {
        self.tagged_plain(part, tag, &sanitized(value))
    }

    /// As [`Scope::tagged`], with colons as they are.
    fn tagged_plain(&self, part: &str, tag: &'static str, value: &str) -> Self {
        let node = &*self.0;
        let value = value.replace(|c: char| c < ' ', "_");
        let mut tags = vec![(Cow::Borrowed(tag), value.as_str().into())];
        tags.extend(node.tags.iter().cloned());
        Self::open(format!("{}{part}.{value}.", node.prefix), format!("{}{part}.", node.family), tags)
    }

    /// The scope `<value>.` below this one, shown to Prometheus as a tag alone.
    pub fn named(&self, tag: &'static str, value: &str) -> Self {
        let node = &*self.0;
        let value = sanitized(value);
        let mut tags = vec![(Cow::Borrowed(tag), value.as_ref().into())];
        tags.extend(node.tags.iter().cloned());
        Self::open(format!("{}{value}.", node.prefix), node.family.to_string(), tags)
    }

    /// The scope `<value>.<part>.` below this one, shown to Prometheus as `<part>_...{tag="value"}`.
    pub fn leading(&self, tag: &'static str, value: &str, part: &str) -> Self {
        let node = &*self.0;
        let value = sanitized(value);
        let mut tags = vec![(Cow::Borrowed(tag), value.as_ref().into())];
        tags.extend(node.tags.iter().cloned());
        Self::open(format!("{}{value}.{part}.", node.prefix), format!("{}{part}.", node.family), tags)
    }

    /// `worker_<id>.` below this one (listeners), tag `envoy_worker_id`.
    pub fn worker(&self, id: usize) -> Self {
        let node = &*self.0;
        let mut tags = vec![(Cow::Borrowed("envoy_worker_id"), id.to_string().into())];
        tags.extend(node.tags.iter().cloned());
        Self::open(format!("{}worker_{id}.", node.prefix), format!("{}worker.", node.family), tags)
    }

    fn open(prefix: String, family: String, tags: Vec<(Cow<'static, str>, Box<str>)>) -> Self {
        Self::open_as(prefix, family, tags, false)
    }

    fn open_as(
        prefix: String,
        family: String,
        tags: Vec<(Cow<'static, str>, Box<str>)>,
        labelled: bool,
    ) -> Self {
        let mut registry = locked(&REGISTRY);
        if let Some(node) = registry.get(prefix.as_str()).and_then(Weak::upgrade) {
            return Scope(node);
        }
        let node = Arc::new(Node {
            prefix: prefix.into(),
            family: family.into(),
            tags,
            labelled,
            series: Mutex::new(Vec::new()),
        });
        registry.insert(node.prefix.clone(), Arc::downgrade(&node));
        Scope(node)
    }

    /// Envoy's prefix, ending in a dot unless empty.
    pub fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// The counter `name` of this scope.
    pub fn counter(&self, name: &str) -> Counter {
        if full() {
            return Counter::noop();
        }
        let (cell, _) = self.cell(name, Kind::Counter, |node| {
            let cell = Arc::new(CounterCell::new(node));
            (WeakCell::Counter(Arc::downgrade(&cell)), AnyCell::Counter(cell))
        });
        cell.into_counter()
    }

    /// The gauge `name` of this scope. Gauges hold whole numbers.
    pub fn gauge(&self, name: &str) -> Gauge {
        if full() {
            return Gauge::noop();
        }
        let (cell, _) = self.cell(name, Kind::Gauge, |node| {
            let cell = Arc::new(GaugeCell::new(node));
            (WeakCell::Gauge(Arc::downgrade(&cell)), AnyCell::Gauge(cell))
        });
        cell.into_gauge()
    }

    /// The histogram `name` of this scope. Values are recorded in `unit`; as in Envoy the unit does
    /// not change how the series is shown.
    pub fn histogram(&self, name: &str, unit: Unit) -> Histogram {
        if full() {
            return Histogram::noop();
        }
        let (cell, _) = self.cell(name, Kind::Histogram, |node| {
            let cell = Arc::new(HistogramCell::new(node, unit));
            (WeakCell::Histogram(Arc::downgrade(&cell)), AnyCell::Histogram(cell))
        });
        cell.into_histogram()
    }

    /// The living cell of that name and kind, else the one that `make` makes; and whether it was
    /// made.
    fn cell(
        &self,
        name: &str,
        kind: Kind,
        make: impl FnOnce(Scope) -> (WeakCell, AnyCell),
    ) -> (AnyCell, bool) {
        let mut series = locked(&self.0.series);
        let place = series.binary_search_by(|s| (&*s.name, s.cell.kind()).cmp(&(name, kind)));
        if let Ok(at) = place {
            if let Some(cell) = series.get(at).and_then(|s| AnyCell::upgrade(&s.cell)) {
                return (cell, false);
            }
        }
        let (weak, cell) = make(self.clone());
        match place {
            Ok(at) => {
                if let Some(dead) = series.get_mut(at) {
                    dead.cell = weak;
                }
            }
            Err(at) if series.len() < series.capacity() => {
                series.insert(at, Series { name: interned(name), cell: weak });
            }
            Err(_) => {
                // About to grow: forget dead series first, so that names which come and go in a
                // long-lived scope do not pile up.
                series.retain(|s| !s.cell.is_dead());
                let at = series.partition_point(|s| (&*s.name, s.cell.kind()) < (name, kind));
                series.insert(at, Series { name: interned(name), cell: weak });
            }
        }
        SERIES.fetch_add(1, Ordering::Relaxed);
        (cell, true)
    }
}

impl std::fmt::Debug for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Scope").field(&self.0.prefix).finish()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut registry = locked(&REGISTRY);
        // The place may already belong to a successor of the same name.
        if registry.get(&self.prefix).is_some_and(|node| std::ptr::eq(node.as_ptr(), self)) {
            registry.remove(&self.prefix);
        }
    }
}

enum AnyCell {
    Counter(Arc<CounterCell>),
    Gauge(Arc<GaugeCell>),
    Histogram(Arc<HistogramCell>),
}

impl AnyCell {
    fn upgrade(weak: &WeakCell) -> Option<AnyCell> {
        match weak {
            WeakCell::Counter(cell) => cell.upgrade().map(AnyCell::Counter),
            WeakCell::Gauge(cell) => cell.upgrade().map(AnyCell::Gauge),
            WeakCell::Histogram(cell) => cell.upgrade().map(AnyCell::Histogram),
        }
    }

    // `Scope::cell` looks cells up by kind, so the other arms of these three are never taken.
    fn into_counter(self) -> Counter {
        match self {
            AnyCell::Counter(cell) => Counter::from_arc(cell),
            _ => Counter::noop(),
        }
    }

    fn into_gauge(self) -> Gauge {
        match self {
            AnyCell::Gauge(cell) => Gauge::from_arc(cell),
            _ => Gauge::noop(),
        }
    }

    fn into_histogram(self) -> Histogram {
        match self {
            AnyCell::Histogram(cell) => Histogram::from_arc(cell),
            _ => Histogram::noop(),
        }
    }
}

/// A cell was dropped.
fn forget_series() {
    SERIES.fetch_sub(1, Ordering::Relaxed);
}

fn full() -> bool {
    let full = SERIES.load(Ordering::Relaxed) >= MAX_SERIES;
    if full {
        OVERFLOW.increment(1);
    }
    full
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One shared copy of each series name: ten thousand clusters have the same hundred names.
fn interned(name: &str) -> Arc<str> {
    let mut names = locked(&NAMES);
    if let Some(name) = names.get(name) {
        return name.clone();
    }
    if names.len() == names.capacity() {
        names.retain(|name| Arc::strong_count(name) > 1);
    }
    let name: Arc<str> = name.into();
    names.insert(name.clone());
    name
}

/// Envoy's own replacements in scope names, and control bytes, which would break the line format.
fn sanitized(part: &str) -> Cow<'_, str> {
    let part = part.trim_matches('.');
    if !part.bytes().any(|b| b == b':' || b < b' ') {
        return Cow::Borrowed(part);
    }
    part.replace("://", "_").replace(":/", "_").replace(|c: char| c == ':' || c < ' ', "_").into()
}

/// The value of one series at one moment.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    Counter(u64),
    Gauge(i64),
    Histogram(HistogramSnapshot),
}

/// One series at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Envoy's full dotted name.
    pub name: String,
    /// Its value.
    pub value: Value,
    /// Whether it was ever written.
    pub used: bool,
    scope: Scope,
    leaf: Arc<str>,
}

impl Sample {
    fn kind(&self) -> Kind {
        match self.value {
            Value::Counter(_) => Kind::Counter,
            Value::Gauge(_) => Kind::Gauge,
            Value::Histogram(_) => Kind::Histogram,
        }
    }
}

/// Every living series, sorted by name.
#[derive(Clone, Debug, Default)]
pub struct Snapshot(pub Vec<Sample>);

impl Snapshot {
    /// The value of the counter or gauge called `name`.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.find(name).and_then(|sample| match &sample.value {
            Value::Counter(value) => i64::try_from(*value).ok(),
            Value::Gauge(value) => Some(*value),
            Value::Histogram(_) => None,
        })
    }

    /// The histogram called `name`.
    pub fn histogram(&self, name: &str) -> Option<&HistogramSnapshot> {
        self.find(name).and_then(|sample| match &sample.value {
            Value::Histogram(histogram) => Some(histogram),
            _ => None,
        })
    }

    fn find(&self, name: &str) -> Option<&Sample> {
        let at = self.0.binary_search_by(|sample| sample.name.as_str().cmp(name)).ok()?;
        self.0.get(at)
    }
}

/// Reads every living series that is shown. Locks are held for one scope at a time, and only against the making
/// of handles: counting goes on.
pub fn snapshot() -> Snapshot {
    let mut samples = Vec::with_capacity(SERIES.load(Ordering::Relaxed));
    each_cell(|scope, leaf, cell| {
        let name = scope.full_name(leaf);
        if !shown::is_shown(&name) {
            return;
        }
        let (value, used) = match cell {
            AnyCell::Counter(cell) => (Value::Counter(cell.get()), cell.get() != 0),
            AnyCell::Gauge(cell) => (Value::Gauge(cell.get()), cell.is_used()),
            AnyCell::Histogram(cell) => {
                let histogram = cell.snapshot();
                let used = histogram.count != 0;
                (Value::Histogram(histogram), used)
            }
        };
        samples.push(Sample { name, value, used, scope: scope.clone(), leaf: leaf.clone() });
    });
    samples.sort_by(|a, b| a.name.cmp(&b.name));
    Snapshot(samples)
}

/// Sets every counter to zero (`POST /reset_counters`).
pub fn reset_counters() {
    each_cell(|_, _, cell| {
        if let AnyCell::Counter(cell) = cell {
            cell.reset();
        }
    });
}

fn each_cell(mut each: impl FnMut(&Scope, &Arc<str>, &AnyCell)) {
    // Strong references are taken under the locks and given back outside of them: the last one
    // takes its scope out of the registry, which locks it.
    let scopes: Vec<Scope> = locked(&REGISTRY).values().filter_map(Weak::upgrade).map(Scope).collect();
    for scope in scopes {
        let cells: Vec<(Arc<str>, AnyCell)> = locked(&scope.0.series)
            .iter()
            .filter_map(|s| AnyCell::upgrade(&s.cell).map(|cell| (s.name.clone(), cell)))
            .collect();
        for (name, cell) in &cells {
            each(&scope, name, cell);
        }
    }
}

/// Makes this registry the one behind the `metrics` facade's macros, so that libraries which count
/// through the facade are seen too. Does nothing when a recorder is already installed.
pub fn install() {
    // The error says only that there is a recorder, and that is the state wanted.
    let _ = metrics::set_global_recorder(FacadeRecorder::default());
}

/// Series made by the facade's macros, whose handles are temporaries: kept for ever.
#[derive(Default)]
struct FacadeRecorder {
    counters: Mutex<HashMap<Key, Counter>>,
    gauges: Mutex<HashMap<Key, Gauge>>,
    histograms: Mutex<HashMap<Key, Histogram>>,
}

impl FacadeRecorder {
    fn scope(key: &Key) -> Scope {
        let mut scope = Scope::root();
        for label in key.labels() {
            let node = &*scope.0;
            let value = sanitized(label.value()).into_owned();
            let mut tags = node.tags.clone();
            tags.push((label.key().to_owned().into(), value.as_str().into()));
            scope = Scope::open(
                format!("{}{}.{value}.", node.prefix, sanitized(label.key())),
                node.family.to_string(),
                tags,
            );
        }
        scope
    }
}

impl Recorder for FacadeRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<metrics::Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<metrics::Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<metrics::Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let make = || Self::scope(key).counter(key.name());
        locked(&self.counters).entry(key.clone()).or_insert_with(make).clone()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let make = || Self::scope(key).gauge(key.name());
        locked(&self.gauges).entry(key.clone()).or_insert_with(make).clone()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let make = || Self::scope(key).histogram(key.name(), Unit::Unspecified);
        locked(&self.histograms).entry(key.clone()).or_insert_with(make).clone()
    }
}
