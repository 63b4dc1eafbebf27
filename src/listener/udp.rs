//! UDP: datagrams of a client go to one upstream for as long as they come, and its answers back.
//!
//! Comes in: a listening socket. A session is what one client sends to one of our addresses; it has a socket of its own
//! to its upstream, and ends when nothing was heard for the idle timeout. Statistics are those of Envoy's UDP proxy.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use xxhash_rust::xxh64::xxh64;

use super::accept::Census;
use super::live::Share;
use crate::config::cluster::{Address, Health, SocketTuning};
use crate::config::udp::UdpProxy;
use crate::config::{Cluster, Host};
use crate::http::worker::Worker;
use crate::runtime::{socket, Counted};
use crate::tcp::Fate;
use crate::telemetry::metrics::Scope;
use crate::telemetry::stats::{ClusterUdpStats, Held};
use crate::upstream::permit::SessionPermit;
use crate::upstream::PickContext;

/// Most datagrams that are taken from an upstream before others have their turn.
const TURN: usize = 64;
/// How many buffers the kernel fills at a time.
const BATCH: usize = 8;
/// The longest datagram there is; as much the kernel may put together from short ones.
const ROOM: usize = 1 << 16;
/// Pause after an error that says nothing of a single datagram.
const PAUSE: Duration = Duration::from_millis(50);
/// How long is waited for more answers when another process has taken the socket over.
const LINGER: Duration = Duration::from_secs(2);

/// A client, and the address of ours that it sends to.
type Key = (SocketAddr, Option<IpAddr>);

/// What a worker forwards for one listener.
struct Relay {
    worker: Rc<Worker>,
    socket: UdpSocket,
    state: UdpSocketState,
    sessions: RefCell<HashMap<Key, Rc<Session>>>,
    clusters: RefCell<HashMap<Arc<str>, Rc<ClusterUdpStats>>>,
    /// Where answers are received, one after the other.
    room: RefCell<Vec<u8>>,
}

struct Session {
    key: Key,
    proxy: Arc<UdpProxy>,
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    upstream: UdpSocket,
    stats: Rc<ClusterUdpStats>,
    heard: Cell<Instant>,
    /// Its drop ends the task that listens to the upstream.
    ends: RefCell<Option<oneshot::Sender<()>>>,
    _permit: SessionPermit,
    _active: Held,
}

impl Drop for Relay {
    fn drop(&mut self) {
        for session in self.sessions.borrow().values() {
            session.ends.take();
        }
    }
}

/// Serves datagrams until the listener is stopped, or the worker ends.
pub async fn run(
    worker: Rc<Worker>,
    share: Share,
    socket: std::net::UdpSocket,
    mut fate: watch::Receiver<Fate>,
    census: Rc<Census>,
) {
    let relay = match Relay::new(worker, socket) {
        Ok(relay) => Rc::new(relay),
        Err(error) => {
            tracing::error!("a worker cannot use a UDP socket: {error}");
            return;
        }
    };
    let mut orders = share.orders();
    let mut room = vec![vec![0; ROOM]; BATCH];
    loop {
        tokio::select! {
            biased;
            _ = fate.wait_for(|fate| matches!(fate, Fate::End)) => return,
            changed = orders.changed() => {
                let orders = *orders.borrow_and_update();
                if orders.leave {
                    break;
                }
                if changed.is_err() || orders.stop {
                    return;
                }
                continue;
            }
            ready = relay.socket.readable() => {
                if ready.is_err() {
                    return;
                }
            }
        }
        match relay.receive(&share, &mut room) {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    // Another process reads from this socket now; answers to what came before still arrive here.
    drop(share);
    let _counted = Counted::new(&census.connections);
    while relay.heard_within(LINGER) {
        tokio::select! {
            _ = fate.wait_for(|fate| matches!(fate, Fate::End)) => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

impl Relay {
    fn new(worker: Rc<Worker>, socket: std::net::UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        // Long datagrams may be cut up on their way, as their senders expect.
        socket::allow_fragments(&socket)?;
        Ok(Self {
            worker,
            socket: UdpSocket::from_std(socket)?,
            state,
            sessions: RefCell::default(),
            clusters: RefCell::default(),
            room: RefCell::new(vec![0; ROOM]),
        })
    }

    /// Whether anything was heard in any session for so long.
    fn heard_within(&self, time: Duration) -> bool {
        let now = Instant::now();
        self.sessions.borrow().values().any(|session| now.duration_since(session.heard.get()) < time)
    }

    /// Forwards what is there.
    fn receive(self: &Rc<Self>, share: &Share, room: &mut [Vec<u8>]) -> io::Result<()> {
        let listener = share.get();
        let Some(proxy) = &listener.udp else { return Ok(()) };
        let mut metas = [RecvMeta::default(); BATCH];
        let count = {
            let mut slices: Vec<_> = room.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            self.socket.try_io(Interest::READABLE, || {
                self.state.recv((&self.socket).into(), &mut slices, &mut metas)
            })?
        };
        for (meta, buffer) in metas.iter().take(count).zip(room) {
            let bytes = buffer.get(..meta.len).unwrap_or_default();
            // The kernel may give several at once, all of a length but the last.
            let empty = bytes.is_empty().then_some(bytes);
            for datagram in bytes.chunks(meta.stride.max(1)).chain(empty) {
                if datagram.len() > proxy.max_datagram {
                    proxy.listener.downstream_rx_datagram_dropped.increment(1);
                } else {
                    self.forward(proxy, (meta.addr, meta.dst_ip), datagram);
                }
            }
        }
        Ok(())
    }

    fn forward(self: &Rc<Self>, proxy: &Arc<UdpProxy>, key: Key, datagram: &[u8]) {
        let known = self.sessions.borrow().get(&key).cloned();
        let stays = |session: &Rc<Session>| {
            Arc::ptr_eq(&session.proxy, proxy) && session.host.health() != Health::Unhealthy
        };
        let session = match known {
            Some(session) if stays(&session) => Some(session),
            // Another host, if there is a better one; else it goes on.
            Some(session) => self.open(proxy, key, Some(&session)).or(Some(session)),
            None => self.open(proxy, key, None),
        };
        let Some(session) = session else { return };
        let length = datagram.len() as u64;
        session.heard.set(Instant::now());
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

    /// A session with a host that is picked now; `None` when there is none, or none but that of `old`.
    fn open(
        self: &Rc<Self>,
        proxy: &Arc<UdpProxy>,
        key: Key,
        old: Option<&Rc<Session>>,
    ) -> Option<Rc<Session>> {
        let Some(local) = self.worker.upstreams.cluster(&proxy.cluster) else {
            proxy.stats.downstream_sess_no_route.increment(1);
            return None;
        };
        let client = SocketAddr::new(key.0.ip().to_canonical(), key.0.port());
        let hash = match proxy.hash_source_ip {
            true => Some(xxh64(client.ip().to_string().as_bytes(), 0)),
            false => proxy.hash_key,
        };
        let host = local.pick(&PickContext { hash, ..PickContext::default() }).ok()?.host.clone();
        if old
            .is_some_and(|old| Arc::ptr_eq(&old.host.shared, &host.shared) && Arc::ptr_eq(&old.proxy, proxy))
        {
            return None;
        }
        let cluster = local.cluster.clone();
        let Some(permit) = SessionPermit::take(&cluster) else {
            cluster.stats().upstream_cx_overflow.increment(1);
            return None;
        };
        let Address::Ip(address) = host.address else { return None };
        let source = proxy.use_original_src_ip.then(|| SocketAddr::new(client.ip(), 0));
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
            host,
            upstream,
            cluster,
            stats: stats.clone(),
            heard: Cell::new(Instant::now()),
            ends: RefCell::new(Some(ends)),
            _permit: permit,
            _active: Held::new(&proxy.stats.downstream_sess_active),
            proxy: proxy.clone(),
        });
        if let Some(replaced) = self.sessions.borrow_mut().insert(key, session.clone()) {
            replaced.ends.take();
        }
        tokio::task::spawn_local(listen(Rc::downgrade(self), session.clone(), ended));
        Some(session)
    }

    /// Passes an answer on.
    fn answer(&self, session: &Session, datagram: &[u8]) {
        let (stats, length) = (&session.proxy.stats, datagram.len() as u64);
        session.heard.set(Instant::now());
        session.stats.sess_rx_datagrams.increment(1);
        session.cluster.stats().upstream_cx_rx_bytes_total.increment(length);
        let (client, own) = session.key;
        let transmit =
            Transmit { destination: client, ecn: None, contents: datagram, segment_size: None, src_ip: own };
        match self.state.try_send((&self.socket).into(), &transmit) {
            Ok(()) => {
                stats.downstream_sess_tx_bytes.increment(length);
                stats.downstream_sess_tx_datagrams.increment(1);
            }
            Err(_) => stats.downstream_sess_tx_errors.increment(1),
        }
    }
}

/// Passes on what the upstream of a session says, until nobody has said anything for the idle timeout.
async fn listen(relay: Weak<Relay>, session: Rc<Session>, mut ended: oneshot::Receiver<()>) {
    let idle = session.proxy.idle_timeout;
    let mut until = Instant::now() + idle;
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
            () = tokio::time::sleep_until(until) => {
                until = session.heard.get() + idle;
                until <= Instant::now()
            }
        };
        let Some(relay) = relay.upgrade() else { return };
        if over {
            session.proxy.stats.idle_timeout.increment(1);
            let mut sessions = relay.sessions.borrow_mut();
            if sessions.get(&session.key).is_some_and(|known| Rc::ptr_eq(known, &session)) {
                sessions.remove(&session.key);
            }
            return;
        }
        let mut room = relay.room.borrow_mut();
        for _ in 0..TURN {
            match session.upstream.try_recv(&mut room) {
                Ok(count) if count > session.proxy.max_upstream_datagram => {
                    session.stats.sess_rx_datagrams_dropped.increment(1);
                }
                Ok(count) => relay.answer(&session, room.get(..count).unwrap_or_default()),
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
