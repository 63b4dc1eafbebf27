//! UDP: datagrams of a client are forwarded to one upstream ([`sessions`]), or are queries for names ([`names`]).
//!
//! Comes in: a listening socket. Each worker reads from its own; what is answered leaves from the address that the
//! client sent to.

mod log;
mod message;
mod names;
mod sessions;

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_control_api::pb::google::protobuf::{value::Kind, Struct, Value};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::accept::Census;
use super::live::Share;
use crate::config::udp::{UdpFilter, UdpService};
use crate::http::worker::Worker;
use crate::runtime::{socket, Counted};
use crate::tcp::Fate;
use crate::telemetry::stream_info::{ConnectionInfo, DynamicMetadata, StreamInfo};
use names::Names;
use sessions::Sessions;

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

/// A worker's socket.
struct Port {
    worker: Rc<Worker>,
    socket: UdpSocket,
    state: UdpSocketState,
    /// Where it is bound.
    address: Option<SocketAddr>,
    /// The listener's.
    name: Arc<str>,
}

/// What a worker does with the datagrams of one listener.
struct Service {
    port: Rc<Port>,
    sessions: Rc<Sessions>,
    /// Made by the first query.
    names: Option<Rc<Names>>,
}

/// Serves datagrams until the listener is stopped, or the worker ends.
pub async fn run(
    worker: Rc<Worker>,
    share: Share,
    socket: std::net::UdpSocket,
    mut fate: watch::Receiver<Fate>,
    census: Rc<Census>,
) {
    let mut service = match Port::new(worker, &share, socket) {
        Ok(port) => Service::new(port),
        Err(error) => {
            tracing::error!("a worker cannot use a UDP socket: {error}");
            return;
        }
    };
    service.begin(&share);
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
            ready = service.port.socket.readable() => {
                if ready.is_err() {
                    return;
                }
            }
        }
        match service.receive(&share, &mut room) {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    // Another process reads from this socket now; answers to what came before still arrive here.
    drop(share);
    let _counted = Counted::new(&census.connections);
    while service.sessions.heard_within(LINGER) {
        tokio::select! {
            _ = fate.wait_for(|fate| matches!(fate, Fate::End)) => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

impl Port {
    fn new(worker: Rc<Worker>, share: &Share, socket: std::net::UdpSocket) -> io::Result<Rc<Self>> {
        let state = UdpSocketState::new((&socket).into())?;
        // Long datagrams may be cut up on their way, as their senders expect.
        socket::allow_fragments(&socket)?;
        let address = socket.local_addr().ok();
        let name = share.get().name.clone();
        Ok(Rc::new(Self { worker, socket: UdpSocket::from_std(socket)?, state, address, name }))
    }

    /// Sends to a client, from the address that it has sent to.
    fn send(&self, (client, own): Key, datagram: &[u8]) -> io::Result<()> {
        let transmit =
            Transmit { destination: client, ecn: None, contents: datagram, segment_size: None, src_ip: own };
        self.state.try_send((&self.socket).into(), &transmit)
    }
}

impl Service {
    fn new(port: Rc<Port>) -> Self {
        Self { sessions: Sessions::new(port.clone()), port, names: None }
    }

    /// Before the first datagram: what forwards none is logged too.
    fn begin(&self, share: &Share) {
        if let Some(UdpFilter::Proxy(proxy)) = share.get().udp.as_ref().map(|service| &service.filter) {
            self.sessions.serve(proxy);
        }
    }

    /// Takes what is there.
    fn receive(&mut self, share: &Share, room: &mut [Vec<u8>]) -> io::Result<()> {
        let listener = share.get();
        let Some(service) = &listener.udp else { return Ok(()) };
        let mut metas = [RecvMeta::default(); BATCH];
        let received = {
            let port = &self.port;
            let mut slices: Vec<_> = room.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            port.socket.try_io(Interest::READABLE, || {
                port.state.recv((&port.socket).into(), &mut slices, &mut metas)
            })
        };
        let count = match received {
            Ok(count) => count,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    count_error(service);
                }
                return Err(error);
            }
        };
        for (meta, buffer) in metas.iter().take(count).zip(room) {
            let bytes = buffer.get(..meta.len).unwrap_or_default();
            // The kernel may give several at once, all of a length but the last.
            let empty = bytes.is_empty().then_some(bytes);
            for datagram in bytes.chunks(meta.stride.max(1)).chain(empty) {
                if datagram.len() > service.max_datagram {
                    service.stats.downstream_rx_datagram_dropped.increment(1);
                } else {
                    self.take(service, (meta.addr, meta.dst_ip), datagram);
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, service: &UdpService, key: Key, datagram: &[u8]) {
        match &service.filter {
            UdpFilter::Proxy(proxy) => self.sessions.forward(proxy, key, datagram),
            UdpFilter::Dns(filter) => {
                if self.names.as_ref().is_none_or(|names| !names.is_of(filter)) {
                    self.names = None;
                }
                let names = self.names.get_or_insert_with(|| Names::new(filter, self.port.clone()));
                names.answer(key, datagram);
            }
        }
    }
}

fn count_error(service: &UdpService) {
    match &service.filter {
        UdpFilter::Proxy(proxy) => proxy.stats.downstream_sess_rx_errors.increment(1),
        UdpFilter::Dns(filter) => filter.stats.downstream_rx_errors.increment(1),
    }
}

/// What logs read of a client, or of all of them, from `start` on.
fn record(port: &Port, key: Option<Key>, start: Instant) -> StreamInfo {
    let client = key.map(|(client, _)| SocketAddr::new(client.ip().to_canonical(), client.port()));
    let local = port.address.zip(key).map(|(bound, (_, own))| {
        let ip = own.unwrap_or(bound.ip()).to_canonical();
        SocketAddr::new(ip, bound.port())
    });
    let connection = ConnectionInfo {
        id: 0,
        remote: client,
        direct_remote: client,
        local,
        direct_local: local,
        tls: None,
        server_name: None,
        listener: port.name.clone(),
        filter_chain: "".into(),
        start,
        inbound: false,
        retirement: Default::default(),
        objects: None,
        is_restored: false,
        source: None,
        metadata: None,
    };
    let mut info = StreamInfo::new(Rc::new(connection), start, port.worker.clock.wall());
    info.times.end = Some(Instant::now());
    info
}

/// Dynamic metadata of one namespace.
fn metadata(namespace: &str, fields: Vec<(&str, Kind)>) -> Box<DynamicMetadata> {
    let value = |(key, kind): (&str, Kind)| (key.to_owned(), Value { kind: Some(kind) });
    let fields = fields.into_iter().map(value).collect();
    Box::new(DynamicMetadata::from([(namespace.to_owned(), Struct { fields })]))
}
