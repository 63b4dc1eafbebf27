//! Hosts that leave a cluster and come back.
//!
//! Endpoints flap: pods restart their readiness, control planes split a change in two. Where a host is back within
//! [`GRACE`], its new pool takes over the idle connections of the former one, so that the requests that follow do not
//! all wait for new ones. Envoy closes them as the host leaves. Who comes back is a new host in everything else: its
//! health, its outlier detection and its counters begin anew.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ConnectionPermit, HostPool, Kind, Permit};
use crate::config::Host;

/// Idle connections of a host that left are closed after this long; the sweep that does it comes about once a second,
/// so that it may be a second more.
const GRACE: Duration = Duration::from_secs(1);
/// Pools of so many hosts are kept, per cluster and worker.
const MOST: usize = 1024;

/// The pools of hosts that left not long ago, by address.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Leavers(RefCell<HashMap<Arc<str>, Left>>);

/// A pool, and when its host left.
type Left = (Rc<HostPool>, Instant);

impl Leavers {
    /// Takes the pool of a host that left. What is not worth keeping is retired.
    pub(in crate::upstream) fn take_in(&self, pool: Rc<HostPool>, now: Instant) {
        let mut pools = self.0.borrow_mut();
        if pool.open.get() == 0 || pool.has_failed() || pools.len() >= MOST {
            return pool.retire();
        }
        pool.retire_shared();
        if let Some((before, _)) = pools.insert(pool.host.address_text.clone(), (pool, now)) {
            before.retire();
        }
    }

    /// Gives `pool` the connections of a former pool of the same host.
    pub(in crate::upstream) fn pass_on(&self, pool: &Rc<HostPool>) {
        let mut pools = self.0.borrow_mut();
        if pools.is_empty() {
            return;
        }
        if let Some((former, _)) = pools.remove(&pool.host.address_text) {
            if reaches_the_same(&former.host, &pool.host) && !former.has_failed() {
                pool.inherit(&former);
            }
            former.retire();
        }
    }

    /// Retires those whose time is over.
    pub(in crate::upstream) fn sweep(&self, now: Instant) {
        self.0.borrow_mut().retain(|_, (pool, left)| {
            let stays = now.saturating_duration_since(*left) < GRACE;
            if !stays {
                pool.retire();
            }
            stays
        });
    }

    /// Retires all.
    pub(in crate::upstream) fn retire(&self) {
        for (_, (pool, _)) in self.0.borrow_mut().drain() {
            pool.retire();
        }
    }
}

/// Whether a connection to one is as good as one to the other: the same address, and TLS by the same words.
fn reaches_the_same(former: &Host, host: &Host) -> bool {
    former.address == host.address
        && former.template.hostname == host.template.hostname
        && former.template.socket_match == host.template.socket_match
}

impl HostPool {
    /// Takes over the idle connections of the pool that the host had before it left.
    fn inherit(self: &Rc<Self>, former: &HostPool) {
        self.learned_idle.set(former.learned_idle.get());
        self.speaks_http2.set(former.speaks_http2.get());
        let mut idle = former.idle.take();
        for idle in &mut idle {
            idle.connection.permit.move_to(self);
        }
        self.idle.borrow_mut().append(&mut idle);
    }
}

impl ConnectionPermit {
    /// From now on the connection is one of `pool`, which is of the same cluster.
    fn move_to(&mut self, pool: &Rc<HostPool>) {
        pool.host.shared.active_connections.fetch_add(1, Ordering::Relaxed);
        pool.open.set(pool.open.get() + 1);
        let stand = || Permit::take_anyway(&pool.cluster, 0, Kind::Pools);
        pool.standing.borrow_mut().get_or_insert_with(stand);
        let former = std::mem::replace(&mut self.pool, pool.clone());
        former.host.shared.active_connections.fetch_sub(1, Ordering::Relaxed);
        former.closed_one();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::TcpListener;

    use super::*;
    use crate::config::cluster::{Address, Discovery, HostTemplate};
    use crate::config::{fixtures, Cluster};

    /// A pool of `address` with one idle connection, and the connection's number.
    async fn with_idle(cluster: &Arc<Cluster>, address: SocketAddr) -> (Rc<HostPool>, u64) {
        let pool = HostPool::new(cluster, Host::new(Address::Ip(address), HostTemplate::default()));
        let connection = pool.connection(0).await.expect("connected");
        let id = connection.id;
        pool.give_back(connection, true, Instant::now());
        (pool, id)
    }

    #[tokio::test]
    async fn who_comes_back_at_once_has_its_connections() {
        crate::telemetry::metrics::install();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let cluster = Arc::new(fixtures::cluster("leavers", Discovery::Static));
        let again = |hostname: &str| {
            let template = HostTemplate { hostname: hostname.into(), ..HostTemplate::default() };
            HostPool::new(&cluster, Host::new(Address::Ip(address), template))
        };
        let leavers = Leavers::default();
        let left = Instant::now();

        let (former, id) = with_idle(&cluster, address).await;
        let lent = former.connection(0).await.expect("the idle one");
        leavers.take_in(former.clone(), left);
        former.give_back(lent, true, left);
        let pool = again("");
        leavers.pass_on(&pool);
        assert_eq!(pool.reuse().expect("it is idle").id, id);
        let active = |pool: &HostPool| pool.host.shared.active_connections.load(Ordering::Relaxed);
        assert_eq!([active(&former), active(&pool)], [0, 0], "the one that was dropped counts nowhere");
        assert!(!former.is_used() && !pool.is_used());

        // Who is known by another name may be asked for another certificate.
        let (former, _) = with_idle(&cluster, address).await;
        leavers.take_in(former.clone(), left);
        let pool = again("other.test");
        leavers.pass_on(&pool);
        assert!(pool.reuse().is_none() && !former.is_used());

        // Who stays away is let go.
        let (former, _) = with_idle(&cluster, address).await;
        leavers.take_in(former.clone(), left);
        leavers.sweep(left + GRACE / 2);
        assert!(former.is_used());
        leavers.sweep(left + GRACE);
        assert!(!former.is_used());

        // Who was found to have failed has no connections that are worth keeping.
        let (former, _) = with_idle(&cluster, address).await;
        former.host.shared.failures.fetch_add(1, Ordering::Relaxed);
        leavers.take_in(former.clone(), left);
        assert!(!former.is_used());
    }
}
