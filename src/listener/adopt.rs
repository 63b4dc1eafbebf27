//! Connections that another process has accepted and relayed, and that go on here.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::sync::watch;

use super::accept::{next_id, Census};
use super::connection::{Opened, Session};
use super::dialler::Dialler;
use crate::config::listener::{Direction, FilterChain, Listener, NetworkFilter};
use crate::config::tcp::TcpProxy;
use crate::http::worker::Worker;
use crate::policy::limits::Room;
use crate::runtime::{Counted, Stream};
use crate::tcp::handover::{Passage, Position};
use crate::tcp::{Fate, Resumed};
use crate::telemetry::stream_info::ConnectionInfo;

/// A connection to go on with.
#[derive(Debug)]
pub struct Adopted {
    /// Its listener.
    pub listener: Arc<Listener>,
    /// Its filter chain.
    pub chain: Arc<FilterChain>,
    /// That which the chain ends with.
    pub proxy: Arc<TcpProxy>,
    /// The client's socket.
    pub downstream: OwnedFd,
    /// The upstream's socket.
    pub upstream: OwnedFd,
    /// What the other process knew.
    pub passage: Passage,
    /// Where it stopped.
    pub position: Position,
}

/// Goes on with it, in a task of its own.
pub fn start(worker: &Rc<Worker>, adopted: Adopted, census: &Rc<Census>, fate: &watch::Receiver<Fate>) {
    let (id, retirement) = (next_id(), adopted.chain.retirement.clone());
    let served = serve(worker.clone(), adopted, id, census.clone(), fate.clone());
    let task = tokio::task::spawn_local(Box::pin(served));
    if let Some(sessions) = &census.sessions {
        sessions.opened(id, task.abort_handle());
        sessions.chosen(id, &retirement);
    }
}

async fn serve(
    worker: Rc<Worker>,
    adopted: Adopted,
    id: u64,
    census: Rc<Census>,
    fate: watch::Receiver<Fate>,
) {
    let _session = Session { id, census: &census };
    let Adopted { listener, chain, proxy, downstream, upstream, passage, position } = adopted;
    let (Ok(downstream), Ok(upstream)) = (Stream::adopt(downstream), Stream::adopt(upstream)) else {
        tracing::warn!("a connection that was handed over cannot be used");
        return;
    };
    let _counted = Counted::new(&census.connections);
    let _relay = Counted::new(&census.relays);
    let now = Instant::now();
    let _opened = Opened::new(&listener, now);
    // It was let in, and counts among those that were.
    let rooms = chain.filters.iter().filter_map(|filter| match filter {
        NetworkFilter::ConnectionLimit(limit) => limit.take(&worker.runtime).ok().flatten(),
        _ => None,
    });
    let _rooms: SmallVec<[Room; 1]> = rooms.collect();
    let info = ConnectionInfo {
        id,
        remote: passage.remote,
        direct_remote: passage.direct_remote,
        local: passage.local,
        direct_local: passage.direct_local,
        tls: None,
        server_name: passage.server_name.as_deref().map(Into::into),
        listener: listener.name.clone(),
        filter_chain: chain.name.clone(),
        start: now.checked_sub(Duration::from_millis(passage.age_ms)).unwrap_or(now),
        inbound: listener.direction == Direction::Inbound,
        retirement: chain.retirement.clone(),
        objects: None,
        is_restored: passage.is_restored,
        source: passage.source,
        metadata: None,
    };
    let dialler = Dialler { worker: &worker };
    let Some((cluster, upstream)) =
        passage.host.and_then(|host| dialler.adopt(&passage.cluster, host, upstream))
    else {
        tracing::warn!("a connection that was handed over has no cluster any more: {:?}", passage.cluster);
        return;
    };
    let buffer_limit = listener.per_connection_buffer_limit;
    drop(listener);
    let info = Rc::new(info);
    let resumed = Resumed { downstream, upstream, cluster, buffer_limit, info, passage, position };
    Box::pin(crate::tcp::resume(proxy, resumed, fate)).await;
}
