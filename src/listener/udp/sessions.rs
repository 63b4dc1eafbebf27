//! Datagrams of a client go to one upstream for as long as they come, and its answers back.
//!
//! A session is what one client sends to one of our addresses; it has a socket of its own to its upstream, and ends when
//! nothing was heard for the idle timeout, or its upstream is no longer one of its cluster's. Where each datagram goes
//! to an upstream of its own, a client has a session with each of them. Statistics are those of Envoy's UDP proxy.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::time::Instant;
use xxhash_rust::xxh64::xxh64;

use super::log::{Served, Tally};
use super::{record, Key, Port, ROOM};
use crate::config::cluster::{Address, Health, SocketTuning};
use crate::config::udp::UdpProxy;
use crate::config::{Cluster, Host, HostSet, Slot};
use crate::policy::rbac::Facts;
use crate::runtime::socket;
use crate::telemetry::format::LogType;
use crate::telemetry::metrics::Scope;
use crate::telemetry::stats::{ClusterUdpStats, Held};
use crate::upstream::permit::SessionPermit;
use crate::upstream::{ClusterLocal, PickContext};

/// Most datagrams that are taken from an upstream before others have their turn.
const TURN: usize = 64;

/// A session's client; the upstream too where each datagram has its own, by the place of what its host shares.
type SessionKey = (Key, Option<usize>);

/// What a worker forwards for one listener.
pub(super) struct Sessions {
    port: Rc<Port>,
    by_client: RefCell<HashMap<SessionKey, Rc<Session>>>,
    clusters: RefCell<HashMap<Arc<str>, Rc<ClusterUdpStats>>>,
    /// Where answers are received, one after the other.
    room: RefCell<Vec<u8>>,
    /// What datagrams are forwarded by, as a log has it.
    served: RefCell<Option<Rc<Served>>>,
}

pub(super) struct Session {
    pub(super) key: SessionKey,
    pub(super) id: u64,
    pub(super) start: Instant,
    pub(super) proxy: Arc<UdpProxy>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) host: Arc<Host>,
    pub(super) upstream: UdpSocket,
    pub(super) tally: Tally,
    slot: Arc<Slot<Cluster>>,
    served: Rc<Served>,
    /// The cluster's hosts when its own was last seen among them.
    members: RefCell<std::sync::Weak<HostSet>>,
    stats: Rc<ClusterUdpStats>,
    heard: Cell<Instant>,
    /// Its drop ends the task that listens to the upstream.
    ends: RefCell<Option<oneshot::Sender<()>>>,
    _permit: SessionPermit,
    _active: Held,
}

impl Drop for Sessions {
    fn drop(&mut self) {
        for session in self.by_client.borrow().values() {
            session.end(&self.port);
        }
        if let Some(served) = self.served.take() {
            served.log(&self.port);
        }
    }
}

impl Session {
    /// It is over: its task ends, and it is logged, once.
    fn end(&self, port: &Port) {
        if self.ends.take().is_some() {
            self.log(port, LogType::UdpSessionEnd);
        }
    }

    /// Whether its host still is one of its cluster's.
    fn is_member(&self, local: &ClusterLocal) -> bool {
        let hosts = local.cluster.hosts.load_full();
        if self.members.borrow().as_ptr() == Arc::as_ptr(&hosts) {
            return true;
        }
        let found = hosts.all.iter().any(|host| Arc::ptr_eq(&host.shared, &self.host.shared));
        if found {
            self.members.replace(Arc::downgrade(&hosts));
        }
        found
    }
}

impl Sessions {
    pub(super) fn new(port: Rc<Port>) -> Rc<Self> {
        Rc::new(Self {
            port,
            by_client: RefCell::default(),
            clusters: RefCell::default(),
            room: RefCell::new(vec![0; ROOM]),
            served: RefCell::default(),
        })
    }

    /// Whether anything was heard in any session for so long.
    pub(super) fn heard_within(&self, time: Duration) -> bool {
        let now = Instant::now();
        self.by_client.borrow().values().any(|session| now.duration_since(session.heard.get()) < time)
    }

    /// Datagrams are forwarded by this from now on.
    pub(super) fn serve(&self, proxy: &Arc<UdpProxy>) -> Rc<Served> {
        let mut current = self.served.borrow_mut();
        match &*current {
            Some(served) if Arc::ptr_eq(&served.proxy, proxy) => served.clone(),
            _ => {
                let served = Rc::new(Served::new(proxy));
                if let Some(old) = current.replace(served.clone()) {
                    old.log(&self.port);
                }
                served
            }
        }
    }

    /// Forwards one datagram.
    pub(super) fn forward(self: &Rc<Self>, proxy: &Arc<UdpProxy>, key: Key, datagram: &[u8]) {
        let served = self.serve(proxy);
        let length = datagram.len() as u64;
        served.tally.received(length);
        let Some(session) = self.session(&served, key) else { return };
        session.heard.set(Instant::now());
        session.tally.received(length);
        proxy.stats.downstream_sess_rx_bytes.increment(length);
        proxy.stats.downstream_sess_rx_datagrams.increment(1);
        // Not by way of the runtime, which has not heard of a new socket yet.
        match rustix::net::send(&session.upstream, datagram, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => {
                session.stats.sess_tx_datagrams.increment(1);
                session.cluster.stats().upstream_cx_tx_bytes_total.increment(length);
            }
            Err(_) => session.stats.sess_tx_errors.increment(1),
        }
    }

    /// The session that a client's datagram belongs to, begun if need be.
    fn session(self: &Rc<Self>, served: &Rc<Served>, key: Key) -> Option<Rc<Session>> {
        let proxy = &served.proxy;
        let known = self.by_client.borrow().get(&(key, None)).cloned();
        let known = known.filter(|session| Arc::ptr_eq(&session.proxy, proxy) && !proxy.per_packet);
        let slot = match &known {
            Some(session) => Some(session.slot.clone()),
            None => self.route(proxy, key),
        };
        let Some((slot, local)) = slot
            .and_then(|slot| Some((self.port.worker.upstreams.cluster(&slot)?, slot)))
            .map(|(l, s)| (s, l))
        else {
            proxy.stats.downstream_sess_no_route.increment(1);
            if known.is_some() {
                self.remove((key, None));
            }
            return None;
        };
        if proxy.per_packet {
            let host = self.pick(proxy, key, &local)?;
            let key = (key, Some(Arc::as_ptr(&host.shared) as usize));
            let known = self.by_client.borrow().get(&key).cloned();
            let known = known.filter(|session| Arc::ptr_eq(&session.proxy, proxy));
            return known.or_else(|| self.open(served, key, slot, &local, host));
        }
        let key = (key, None);
        match known {
            Some(session) if !session.is_member(&local) => {
                self.remove(key);
                let host = self.pick(proxy, key.0, &local)?;
                self.open(served, key, slot, &local, host)
            }
            // Another host, if there is a better one; else it goes on.
            Some(session) if session.host.health() == Health::Unhealthy => {
                let better = self.pick(proxy, key.0, &local).filter(|host| {
                    host.health() != Health::Unhealthy && !Arc::ptr_eq(&host.shared, &session.host.shared)
                });
                better.and_then(|host| self.open(served, key, slot, &local, host)).or(Some(session))
            }
            Some(session) => Some(session),
            None => {
                let host = self.pick(proxy, key.0, &local)?;
                self.open(served, key, slot, &local, host)
            }
        }
    }

    /// Where a client's datagrams go. What no matcher finds goes nowhere.
    fn route(&self, proxy: &UdpProxy, key: Key) -> Option<Arc<Slot<Cluster>>> {
        let Some(matcher) = &proxy.matcher else { return proxy.clusters.first().cloned() };
        let info = record(&self.port, Some(key), Instant::now().into_std());
        let name = matcher.name(&Facts::of_connection(&info.connection))?;
        proxy.clusters.iter().find(|slot| **slot.name() == *name).cloned()
    }

    fn pick(&self, proxy: &UdpProxy, key: Key, local: &ClusterLocal) -> Option<Arc<Host>> {
        let hash = match proxy.hash_source_ip {
            true => Some(xxh64(key.0.ip().to_canonical().to_string().as_bytes(), 0)),
            false => proxy.hash_key,
        };
        Some(local.pick(&PickContext { hash, ..PickContext::default() }).ok()?.host.clone())
    }

    /// A session with a host.
    fn open(
        self: &Rc<Self>,
        served: &Rc<Served>,
        key: SessionKey,
        slot: Arc<Slot<Cluster>>,
        local: &ClusterLocal,
        host: Arc<Host>,
    ) -> Option<Rc<Session>> {
        let (proxy, cluster) = (&served.proxy, local.cluster.clone());
        let Some(permit) = SessionPermit::take(&cluster) else {
            cluster.stats().upstream_cx_overflow.increment(1);
            return None;
        };
        let Address::Ip(address) = host.address else { return None };
        let client = key.0 .0.ip().to_canonical();
        let source = proxy.use_original_src_ip.then(|| SocketAddr::new(client, 0));
        let tuning = SocketTuning {
            source_address: source.or(cluster.socket.source_address),
            transparent: source.is_some(),
            ..cluster.socket.clone()
        };
        let upstream = UdpSocket::from_std(socket::connect_udp(address, &tuning).ok()?).ok()?;
        let mut clusters = self.clusters.borrow_mut();
        let stats = clusters
            .entry(cluster.stat_name.clone())
            .or_insert_with_key(|name| Rc::new(ClusterUdpStats::new(&Scope::cluster(name).sub("udp"))));
        proxy.stats.downstream_sess_total.increment(1);
        let (ends, ended) = oneshot::channel();
        let session = Rc::new(Session {
            key,
            id: super::log::next_id(),
            start: Instant::now(),
            host,
            upstream,
            members: RefCell::new(Arc::downgrade(&cluster.hosts.load_full())),
            cluster,
            slot,
            tally: Tally::default(),
            served: served.clone(),
            stats: stats.clone(),
            heard: Cell::new(Instant::now()),
            ends: RefCell::new(Some(ends)),
            _permit: permit,
            _active: Held::new(&proxy.stats.downstream_sess_active),
            proxy: proxy.clone(),
        });
        if let Some(replaced) = self.by_client.borrow_mut().insert(key, session.clone()) {
            replaced.end(&self.port);
        }
        tokio::task::spawn_local(listen(Rc::downgrade(self), session.clone(), ended));
        Some(session)
    }

    fn remove(&self, key: SessionKey) {
        let removed = self.by_client.borrow_mut().remove(&key);
        if let Some(session) = removed {
            session.end(&self.port);
        }
    }

    /// Passes an answer on.
    fn answer(&self, session: &Session, datagram: &[u8]) {
        let (stats, length) = (&session.proxy.stats, datagram.len() as u64);
        session.heard.set(Instant::now());
        session.stats.sess_rx_datagrams.increment(1);
        session.cluster.stats().upstream_cx_rx_bytes_total.increment(length);
        match self.port.send(session.key.0, datagram) {
            Ok(()) => {
                stats.downstream_sess_tx_bytes.increment(length);
                stats.downstream_sess_tx_datagrams.increment(1);
                session.tally.sent(length);
                session.served.tally.sent(length);
            }
            Err(_) => {
                stats.downstream_sess_tx_errors.increment(1);
                session.tally.not_sent();
            }
        }
    }
}

/// Passes on what the upstream of a session says, until nobody has said anything for the idle timeout.
async fn listen(sessions: Weak<Sessions>, session: Rc<Session>, mut ended: oneshot::Receiver<()>) {
    let idle = session.proxy.idle_timeout;
    let mut until = Instant::now() + idle;
    let interval = session.proxy.log_interval;
    // Far off where nothing is logged meanwhile.
    let mut log_at = Instant::now() + interval.unwrap_or(idle);
    loop {
        let over = tokio::select! {
            biased;
            _ = &mut ended => return,
            ready = session.upstream.readable() => {
                if ready.is_err() {
                    return;
                }
                false
            }
            () = tokio::time::sleep_until(log_at), if interval.is_some() => {
                log_at += interval.unwrap_or(idle);
                let Some(sessions) = sessions.upgrade() else { return };
                session.log(&sessions.port, LogType::UdpPeriodic);
                continue;
            }
            () = tokio::time::sleep_until(until) => {
                until = session.heard.get() + idle;
                until <= Instant::now()
            }
        };
        let Some(sessions) = sessions.upgrade() else { return };
        if over {
            session.proxy.stats.idle_timeout.increment(1);
            let known = sessions.by_client.borrow().get(&session.key).cloned();
            if known.is_some_and(|known| Rc::ptr_eq(&known, &session)) {
                sessions.remove(session.key);
            }
            return;
        }
        let mut room = sessions.room.borrow_mut();
        for _ in 0..TURN {
            match session.upstream.try_recv(&mut room) {
                Ok(count) if count > session.proxy.max_upstream_datagram => {
                    session.stats.sess_rx_datagrams_dropped.increment(1);
                }
                Ok(count) => sessions.answer(&session, room.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Told by the network, as of a port that nobody listens on.
                Err(_) => {
                    session.stats.sess_rx_errors.increment(1);
                    break;
                }
            }
        }
    }
}
