//! What a request lacks and a control plane may have: asked for while the request waits.
//!
//! In: from workers, what is wanted. Out: to the control thread, one [`Ask`] for each request that
//! waits; it is answered when there is something to look at anew, or when it is known that nothing
//! comes. Requests that find their route and cluster never come here.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use outrigger_control_api::pb::envoy::extensions::filters::http::on_demand::v3 as pb;

use super::discovery::ConfigSource;
use super::route::RouteTable;
use super::Slot;
use crate::telemetry::metrics::Scope;

/// Requests that may wait at a time, in the whole process; one more is answered as if nothing came.
pub const MAX_WAITING: usize = 1024;

/// How long a request waits for a route table or a virtual host, whatever the control plane does. That is
/// `initial_fetch_timeout` where nothing is set.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// `OnDemandCds.timeout` where it is not set.
pub const CLUSTER_PATIENCE: Duration = Duration::from_secs(5);

crate::stats! {
    /// `control_plane.on_demand.`.
    pub struct DemandStats {
        counters { asked, overflow, timeout }
        gauges { waiting }
        histograms {}
    }
}

/// `envoy.extensions.filters.http.on_demand.v3.OnDemand`: requests of this connection manager wait for
/// what is not there yet.
#[derive(Debug)]
pub struct OnDemand {
    /// The filter's name: options of routes are for the filter of that name.
    pub name: Arc<str>,
    /// Where unknown clusters are asked for; `None` = nowhere.
    pub clusters: Option<Arc<OnDemandClusters>>,
    /// Where to ask.
    pub demand: Arc<Demand>,
}

/// `OnDemandCds`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDemandClusters {
    /// Whom to ask.
    pub source: ConfigSource,
    /// How long a request waits. Default 5 s.
    pub timeout: Duration,
}

/// `PerRouteConfig`: what a route says instead of the filter of that name.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteOnDemand {
    /// The filter's name.
    pub filter: Box<str>,
    /// Where to ask for clusters, as it was written and checked; `None` = nowhere. The source is made of
    /// it when it is first asked.
    pub clusters: Option<pb::OnDemandCds>,
    /// How long a request waits. Default 5 s.
    pub timeout: Duration,
}

/// Where a cluster is asked for.
#[derive(Debug, Clone)]
pub enum ClusterSource {
    /// Where the filter says.
    Filter(Arc<OnDemandClusters>),
    /// Where the route says.
    Route(Arc<RouteOnDemand>),
}

/// What a request lacks.
#[derive(Debug)]
pub enum Want {
    /// The route table of a scope.
    Table(Arc<Slot<RouteTable>>),
    /// The virtual host for an authority (in lower case).
    VirtualHost {
        /// The table that lacks it.
        table: Arc<Slot<RouteTable>>,
        /// The authority.
        host: Box<str>,
    },
    /// A cluster.
    Cluster {
        /// Whom to ask.
        from: ClusterSource,
        /// Its name.
        name: Box<str>,
    },
}

/// One request that waits.
#[derive(Debug)]
pub struct Ask {
    /// What for.
    pub want: Want,
    answer: oneshot::Sender<()>,
    _place: Place,
}

impl Ask {
    /// Whether the request does not wait any more.
    pub fn is_over(&self) -> bool {
        self.answer.is_closed()
    }

    /// There is something to look at, or nothing will come.
    pub fn answer(self) {
        // The request may be gone.
        let _ = self.answer.send(());
    }
}

/// The way from requests to the control thread.
pub struct Demand {
    sender: mpsc::UnboundedSender<Ask>,
    /// Until the control thread takes it.
    receiver: Mutex<Option<mpsc::UnboundedReceiver<Ask>>>,
    /// Bounds what is in the channel and what waits behind it.
    waiting: Arc<AtomicUsize>,
    stats: OnceLock<DemandStats>,
}

impl Demand {
    /// Asks. What comes back is ready when the request should look again; `None` if too many wait.
    pub fn ask(&self, want: Want) -> Option<oneshot::Receiver<()>> {
        let stats = self.stats();
        let Some(place) = Place::take(&self.waiting) else {
            stats.overflow.increment(1);
            return None;
        };
        stats.asked.increment(1);
        stats.waiting.set(self.waiting.load(Ordering::Relaxed) as f64);
        let (answer, answered) = oneshot::channel();
        // Nobody listens where there is no discovery: then the answer fails at once.
        let _ = self.sender.send(Ask { want, answer, _place: place });
        Some(answered)
    }

    /// The other end, for the control thread; `None` if it was taken before.
    pub fn take_asks(&self) -> Option<mpsc::UnboundedReceiver<Ask>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What is counted of requests that wait.
    pub fn stats(&self) -> &DemandStats {
        self.stats.get_or_init(|| DemandStats::new(&Scope::raw("control_plane.on_demand")))
    }

    /// Sets the gauge, once anything was asked for.
    pub fn publish(&self) {
        if let Some(stats) = self.stats.get() {
            stats.waiting.set(self.waiting.load(Ordering::Relaxed) as f64);
        }
    }
}

impl Default for Demand {
    fn default() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver: Mutex::new(Some(receiver)), waiting: Arc::default(), stats: OnceLock::new() }
    }
}

impl fmt::Debug for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Demand").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

/// A place among those who wait, given back when dropped.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(waiting: &Arc<AtomicUsize>) -> Option<Self> {
        let more = |count: usize| (count < MAX_WAITING).then_some(count + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(waiting.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Directory, Slot};

    fn want(slot: &Arc<Slot<RouteTable>>) -> Want {
        Want::Table(slot.clone())
    }

    #[tokio::test]
    async fn who_asks_is_answered_and_no_more_than_so_many_wait() {
        let demand = Demand::default();
        let slot = Directory::default().slot("t");
        let mut asks = demand.take_asks().expect("the first time");
        assert!(demand.take_asks().is_none());
        let waiting: Vec<_> = (0..MAX_WAITING).map(|_| demand.ask(want(&slot)).expect("a place")).collect();
        assert!(demand.ask(want(&slot)).is_none(), "one too many");
        let mut held = Vec::new();
        while let Ok(ask) = asks.try_recv() {
            held.push(ask);
        }
        assert_eq!(held.len(), MAX_WAITING);
        // A request that went away gives its place back when the control thread lets go of it.
        let mut waiting = waiting.into_iter();
        drop(waiting.next());
        assert!(held[0].is_over() && !held[1].is_over());
        assert!(demand.ask(want(&slot)).is_none());
        held.remove(0);
        let again = demand.ask(want(&slot)).expect("a place again");
        held.into_iter().for_each(Ask::answer);
        for answered in waiting {
            answered.await.expect("answered");
        }
        // Nobody is there any more.
        drop(asks);
        assert!(again.await.is_err());
        assert!(demand.ask(want(&slot)).expect("a place").await.is_err());
    }
}
