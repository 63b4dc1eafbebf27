//! Connections opened before a request needs them (`preconnect_policy`).
//!
//! As in Envoy, a host should have room for so many times the requests that it has, those that wait included; with
//! each request at most three connections are opened ahead. A host that is not healthy gets none.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use super::HostPool;
use crate::config::cluster::Health;
use crate::tls::upstream::Purpose;
use crate::upstream::permit::{Kind, Permit};

/// Most connections that one request makes us open ahead.
pub(in crate::upstream) const MOST: u32 = 3;

/// Connections on their way that no request has asked for.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Their tasks have not begun: they are not in [`HostPool::open`] yet.
    planned: Cell<u32>,
    /// They are in it.
    opening: Cell<u32>,
}

/// Requests, those that wait included, and for how many there is a connection or one on its way.
#[derive(Debug, Clone, Copy)]
pub(in crate::upstream) struct Load {
    pub(in crate::upstream) streams: usize,
    pub(in crate::upstream) room: usize,
}

/// Counted in `0` while it lives.
struct Counted<'a>(&'a Cell<u32>);

impl<'a> Counted<'a> {
    fn new(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Whether room for `streams`, those that wait included, is to be made where there is room for `provided`.
pub(in crate::upstream) fn wants(streams: usize, ratio: f64, provided: usize) -> bool {
    streams as f64 * ratio > provided as f64
}

impl HostPool {
    #[cfg(test)]
    pub(super) fn ahead_of_all(&self) -> u32 {
        self.ahead.planned.get() + self.ahead.opening.get()
    }

    /// How many times the requests that it has a host should have room for; `None` = nothing is opened ahead.
    #[inline]
    pub(in crate::upstream) fn preconnects(&self) -> Option<f64> {
        self.cluster.preconnect_ratio
    }

    fn may_preconnect(&self) -> bool {
        !self.retired.get() && self.host.health() == Health::Healthy && !self.has_failed()
    }

    fn permit_ahead(&self, priority: usize) -> Option<Permit> {
        self.stand(priority).ok()?;
        let permit =
            (!self.is_full(priority)).then(|| Permit::take(&self.cluster, priority, Kind::Connections));
        let permit = permit.flatten();
        if permit.is_none() {
            self.cluster.stats().upstream_cx_overflow.increment(1);
        }
        permit
    }

    /// What the host has and could have.
    pub(in crate::upstream) fn load(&self, http2: bool) -> Load {
        if http2 {
            let (waiting, active, free) = self.connections().load();
            let coming = match self.connections().is_connecting() {
                true => usize::try_from(self.cluster.http.http2.max_concurrent_streams).unwrap_or(usize::MAX),
                false => 0,
            };
            return Load { streams: waiting + active, room: (free + active).saturating_add(coming) };
        }
        let open = self.open.get() as usize;
        let unused = self.idle.borrow().len() + self.ahead.opening.get() as usize;
        Load {
            streams: open.saturating_sub(unused) + self.waiting.borrow().len(),
            room: open + self.ahead.planned.get() as usize,
        }
    }

    /// After a request has a connection, or when `begins` of them are about to open one: connections for the next.
    #[cold]
    pub(in crate::upstream) fn preconnect(self: &Rc<Self>, ratio: f64, priority: usize, begins: usize) {
        for _ in 0..MOST {
            let Load { streams, room } = self.load(false);
            if !wants(streams + begins, ratio, room + begins) || !self.open_ahead(priority) {
                return;
            }
        }
    }

    /// The same for connections that carry several requests: one is opened ahead at a time.
    #[cold]
    pub(in crate::upstream) fn preconnect_multiplexed(self: &Rc<Self>, ratio: f64, priority: usize) {
        let Load { streams, room } = self.load(true);
        if wants(streams, ratio, room) {
            self.open_multiplexed_ahead(priority);
        }
    }

    /// For the request after those that the host has: whether a connection is on its way now.
    pub(in crate::upstream) fn foresee(self: &Rc<Self>, ratio: f64, priority: usize, http2: bool) -> bool {
        let Load { streams, room } = self.load(http2);
        if !wants(streams + 1, ratio, room) {
            return false;
        }
        match http2 {
            true => self.open_multiplexed_ahead(priority),
            false => self.open_ahead(priority),
        }
    }

    fn open_multiplexed_ahead(self: &Rc<Self>, priority: usize) -> bool {
        if self.connections().is_connecting() || !self.may_preconnect() {
            return false;
        }
        let Some(permit) = self.permit_ahead(priority) else { return false };
        self.connect_ahead(permit);
        true
    }

    fn open_ahead(self: &Rc<Self>, priority: usize) -> bool {
        if !self.may_preconnect() {
            return false;
        }
        let Some(permit) = self.permit_ahead(priority) else { return false };
        self.ahead.planned.set(self.ahead.planned.get() + 1);
        let pool = self.clone();
        tokio::task::spawn_local(async move {
            pool.ahead.planned.set(pool.ahead.planned.get().saturating_sub(1));
            let opening = Counted::new(&pool.ahead.opening);
            let connected = pool.connect(permit, Purpose::Http1).await;
            drop(opening);
            // Why there is none is counted; nobody waits for it.
            if let Ok(connection) = connected {
                pool.offer(connection, Instant::now());
            }
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::wants;

    /// The examples of Envoy's documentation of `per_upstream_preconnect_ratio`.
    #[test]
    fn as_envoy_counts() {
        let opened = |streams: usize, ratio: f64, mut provided: usize| {
            let before = provided;
            while wants(streams, ratio, provided) {
                provided += 1;
            }
            provided - before
        };
        assert_eq!(opened(1, 1.5, 1), 1);
        assert_eq!(opened(2, 1.5, 2), 1);
        assert_eq!(opened(10, 1.5, 10), 5);
        assert_eq!(opened(100, 1.1, 100), 11, "the remainder counts");
        assert_eq!(opened(100, 1.0, 100), 0);
        assert_eq!(opened(0, 3.0, 0), 0);
    }
}
