//! One worker's state for one cluster: its load balancer and one pool per host.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pick::{PickContext, Picker};
use super::pool::HostPool;
use super::UpstreamError;
use crate::config::cluster::{Address, HostShared, HostTemplate};
use crate::config::{Cluster, Host, HostSet};

/// A cluster as one worker uses it.
#[derive(Debug)]
pub struct ClusterLocal {
    /// The compiled cluster.
    pub cluster: Arc<Cluster>,
    view: RefCell<View>,
    /// Pools of hosts that no host set lists (original destinations).
    dynamic: RefCell<HashMap<SocketAddr, Destination>>,
    /// Whether anybody asked for it since the last sweep, and when a sweep last found so.
    used: Cell<bool>,
    last_used: Cell<Instant>,
}

/// An original destination.
#[derive(Debug)]
struct Destination {
    pool: Rc<HostPool>,
    /// When it was last asked for or seen to have a connection.
    used: Instant,
}

/// A cluster without requests and connections for this long is let go.
const IDLE: Duration = Duration::from_secs(60);
/// Pools of hosts that stay, whatever is said of them now.
type Kept = HashMap<*const HostShared, Rc<HostPool>>;

/// The host set that the picker and the pools were made for.
#[derive(Debug)]
struct View {
    set: Arc<HostSet>,
    picker: Picker,
    pools: Vec<Rc<HostPool>>,
    rng: fastrand::Rng,
}

impl ClusterLocal {
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        let set = cluster.hosts.load_full();
        let view = View::new(&cluster, set, HashMap::new());
        Self {
            cluster,
            view: RefCell::new(view),
            dynamic: RefCell::default(),
            used: Cell::new(true),
            last_used: Cell::new(Instant::now()),
        }
    }

    /// Notes that it is in use.
    pub(super) fn touch(&self) {
        self.used.set(true);
    }

    /// Whether nobody asked for it for long and it has no connections. Only [`ClusterLocal::sweep`]
    /// makes it so.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_used.get()) >= IDLE
            && self.dynamic.borrow().is_empty()
            && !self.view.borrow().pools.iter().any(|pool| pool.is_used())
    }

    /// Chooses a host.
    ///
    /// # Errors
    /// [`UpstreamError::NoHealthyHost`] when none may be used.
    pub fn pick(&self, context: &PickContext<'_>) -> Result<Rc<HostPool>, UpstreamError> {
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(&view.set, &self.cluster.hosts.load()) {
            self.rebuild(&mut view);
        }
        let View { set, picker, pools, rng } = &mut *view;
        let chosen = picker.pick(set, context, rng).and_then(|index| pools.get(index)).cloned();
        if picker.panicked() {
            self.cluster.stats().lb_healthy_panic.increment(1);
        }
        chosen.ok_or_else(|| {
            self.cluster.stats().upstream_cx_none_healthy.increment(1);
            UpstreamError::NoHealthyHost
        })
    }

    /// The pool of an original destination, made on demand.
    pub fn original_destination(&self, address: SocketAddr) -> Rc<HostPool> {
        let mut dynamic = self.dynamic.borrow_mut();
        let used = Instant::now();
        let destination = dynamic.entry(address).or_insert_with(|| {
            let host = Host::new(Address::Ip(address), HostTemplate::default());
            Destination { pool: HostPool::new(&self.cluster, host), used }
        });
        destination.used = used;
        destination.pool.clone()
    }

    pub(super) fn sweep(&self, now: Instant) {
        if self.used.replace(false) {
            self.last_used.set(now);
        }
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(&view.set, &self.cluster.hosts.load()) {
            self.rebuild(&mut view);
        }
        for pool in &view.pools {
            pool.sweep(now);
        }
        self.dynamic.borrow_mut().retain(|_, Destination { pool, used }| {
            pool.sweep(now);
            if pool.is_used() {
                *used = now;
            }
            now.saturating_duration_since(*used) < self.cluster.cleanup_interval
        });
    }

    /// Follows a new host set: hosts that stayed keep their pools, the others' pools are retired.
    fn rebuild(&self, view: &mut View) {
        let mut kept: Kept =
            view.pools.drain(..).map(|pool| (Arc::as_ptr(&pool.host.shared), pool)).collect();
        let set = self.cluster.hosts.load_full();
        let keep = set
            .all
            .iter()
            .filter_map(|host| kept.remove_entry(&Arc::as_ptr(&host.shared)))
            .filter(|(_, pool)| {
                let fit = !pool.has_failed();
                if !fit {
                    // Its connections are not used on: if one of them leads astray, others may not.
                    pool.retire();
                }
                fit
            })
            .collect();
        for pool in kept.into_values() {
            pool.retire();
        }
        *view = View::new(&self.cluster, set, keep);
    }
}

impl Drop for ClusterLocal {
    fn drop(&mut self) {
        for pool in &self.view.borrow().pools {
            pool.retire();
        }
        for destination in self.dynamic.borrow().values() {
            destination.pool.retire();
        }
    }
}

impl View {
    fn new(cluster: &Arc<Cluster>, set: Arc<HostSet>, mut kept: Kept) -> Self {
        let mut rng = fastrand::Rng::new();
        let picker = Picker::new(&cluster.lb_policy, &set, cluster.fail_traffic_on_panic, &mut rng);
        let pools = set
            .all
            .iter()
            .map(|host| {
                kept.remove(&Arc::as_ptr(&host.shared))
                    .unwrap_or_else(|| HostPool::new(cluster, host.clone()))
            })
            .collect();
        Self { set, picker, pools, rng }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::cluster::Discovery;
    use crate::config::fixtures;

    #[test]
    fn an_original_destination_is_kept_for_the_cleanup_interval() {
        let discovery = Discovery::OriginalDst { header: None, port_override: None };
        let cleanup_interval = Duration::from_secs(9);
        let cluster = Cluster { cleanup_interval, ..fixtures::cluster("destinations", discovery) };
        let local = ClusterLocal::new(Arc::new(cluster));
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let before = local.original_destination(address);
        let start = Instant::now();
        local.sweep(start + cleanup_interval / 2);
        assert!(Rc::ptr_eq(&before, &local.original_destination(address)));
        local.sweep(start + cleanup_interval * 2);
        assert!(!Rc::ptr_eq(&before, &local.original_destination(address)));
    }
}
