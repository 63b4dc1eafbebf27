//! One downstream HTTP/2 connection: its streams, each a request of its own, until it is drained, idle or cut.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{ready, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::Request;

use super::guard::{Account, Broken, Flood, Guarded};
use super::ping::Pinger;
use super::{HeadLimits, Options, ERROR_RESETS, PENDING_RESETS, RESETS_KEPT, SEND_BUFFER};
use crate::config::http::HttpConnectionManager;
use crate::http::timer::LazyTimer;
use crate::http::worker::Worker;
use crate::runtime::stream::Stream;
use crate::telemetry::stats::Held;
use crate::telemetry::stream_info::ConnectionInfo;

mod connections;
mod seats;
mod stream;

use connections::Connection;
pub use connections::Registry;
use seats::Job;
pub use seats::Seats;
pub use stream::ServerStream;

/// A connection's first frames, and its last ones, may take so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// What comes next on a connection.
#[allow(clippy::large_enum_variant)] // Most are requests.
enum Event {
    Request(Request<RecvStream>, SendResponse<Bytes>),
    /// The peer or the socket ended it.
    Ended(Option<h2::Error>),
    Flood(Flood),
    /// Frames that are wrong in themselves.
    Broken(Broken),
    /// Streams opened only to be reset.
    Abuse,
    Idle,
    TooOld,
    /// The time to leave is over.
    Late,
    /// A head that does not come to its end.
    Half,
    /// No answer to a PING.
    Dead,
}

fn builder(options: &Options, manager: &HttpConnectionManager) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .header_table_size(options.header_table_size)
        .max_concurrent_streams(options.max_concurrent_streams)
        .initial_window_size(options.initial_stream_window)
        .initial_connection_window_size(options.initial_connection_window)
        .max_header_list_size(u32::try_from(manager.limits.max_head).unwrap_or(u32::MAX))
        .max_concurrent_reset_streams(RESETS_KEPT)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(Some(ERROR_RESETS))
        .max_send_buffer_size(SEND_BUFFER);
    if options.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

/// Serves a connection whose protocol is known. `prefix` was read before; `buffer_limit` is the listener's. Says
/// whether it was the client that ended it.
pub async fn serve(
    worker: Rc<Worker>,
    manager: Arc<HttpConnectionManager>,
    stream: Stream,
    prefix: BytesMut,
    buffer_limit: usize,
    info: Rc<ConnectionInfo>,
) -> bool {
    let stats = &manager.stats;
    stats.downstream_cx_http2_total.increment(1);
    let _http2 = Held::new(&stats.downstream_cx_http2_active);
    let account: Rc<Account> = Rc::default();
    let options = &manager.http2;
    let heads = HeadLimits { bytes: manager.limits.max_head, fields: manager.limits.max_fields };
    let table = options.header_table_size;
    let socket = Guarded::server(stream, prefix, options.limits, table, heads, account.clone());
    let handshake = builder(options, &manager).handshake::<_, Bytes>(socket);
    let mut connection = match tokio::time::timeout(PATIENCE, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            if !error.is_io() {
                stats.downstream_cx_protocol_error.increment(1);
            }
            return error.is_io();
        }
        Err(_) => return false,
    };
    let shared = Rc::new(Connection::new(account, info.clone()));
    worker.multiplexed.add(&shared);
    let mut timer = LazyTimer::default();
    let mut pinger = Pinger::new(options.keepalive, connection.ping_pong(), worker.random());
    let mut requests = 0u32;
    // When it is cut, once it was told to leave and has no streams.
    let mut leaving: Option<Instant> = None;
    let mut told = false;
    // When the head must be complete whose first bytes are here.
    let mut half: Option<Instant> = None;
    let head_patience = manager.timeouts.request_headers.unwrap_or(PATIENCE);
    let codec = &manager.http2_stats;
    loop {
        let idle = manager.timeouts.idle;
        let oldest = manager.timeouts.max_connection_duration.map(|age| info.start + age);
        let event = poll_fn(|context| {
            shared.watch(context);
            if shared.drain.get() && !told {
                told = true;
                codec.goaway_sent.increment(1);
                connection.graceful_shutdown();
            }
            if shared.is_abused() {
                return Poll::Ready(Event::Abuse);
            }
            let accepted = connection.poll_accept(context);
            count_refused(&shared.account, &manager);
            if let Some(flood) = shared.account.flood.get() {
                return Poll::Ready(Event::Flood(flood));
            }
            if let Some(broken) = shared.account.broken.get() {
                return Poll::Ready(Event::Broken(broken));
            }
            match accepted {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    return Poll::Ready(Event::Request(request, respond))
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Event::Ended(Some(error))),
                Poll::Ready(None) => return Poll::Ready(Event::Ended(None)),
                Poll::Pending => shared.account.fresh.set(0),
            }
            if pinger.poll(context).is_ready() {
                return Poll::Ready(Event::Dead);
            }
            half = shared.account.half.get().then(|| half.unwrap_or_else(|| Instant::now() + head_patience));
            let quiet = shared.active.get() == 0;
            let idle_end = idle.filter(|_| quiet && !told).map(|idle| shared.idle_since.get() + idle);
            let old = oldest.filter(|_| !told);
            let late = leaving.filter(|_| quiet);
            let nearest = [idle_end, old, late, half].into_iter().flatten().min();
            ready!(timer.poll(nearest, context));
            let now = Instant::now();
            Poll::Ready(match (half, late, old) {
                (Some(half), ..) if half <= now => Event::Half,
                (_, Some(late), _) if late <= now => Event::Late,
                (_, _, Some(old)) if old <= now => Event::TooOld,
                _ => Event::Idle,
            })
        })
        .await;
        match event {
            Event::Request(request, respond) => {
                shared.account.accepted.set(respond.stream_id().as_u32());
                requests = requests.saturating_add(1);
                let limit = manager.max_requests_per_connection;
                if limit != 0 && requests >= limit && !shared.drain.replace(true) {
                    stats.downstream_cx_max_requests_reached.increment(1);
                }
                shared.active.set(shared.active.get() + 1);
                if let Some(arrived) = stream::arrive(&worker, &manager, &shared, request, respond) {
                    let (of, manager) = (worker.clone(), manager.clone());
                    worker.seats.serve(Job { worker: of, manager, arrived, buffer_limit, requests });
                }
            }
            Event::Idle => {
                stats.downstream_cx_idle_timeout.increment(1);
                shared.drain.set(true);
                leaving = Some(Instant::now() + manager.drain_timeout);
            }
            Event::TooOld => {
                stats.downstream_cx_max_duration_reached.increment(1);
                shared.drain.set(true);
                leaving = Some(Instant::now() + manager.drain_timeout);
            }
            Event::Late => {
                connection.abrupt_shutdown(Reason::NO_ERROR);
                finish(&mut connection, &shared).await;
                break;
            }
            Event::Half => {
                stats.downstream_rq_header_timeout.increment(1);
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                finish(&mut connection, &shared).await;
                break;
            }
            Event::Dead => {
                codec.keepalive_timeout.increment(1);
                break;
            }
            Event::Flood(flood) => {
                match flood {
                    Flood::Empty => codec.inbound_empty_frames_flood.increment(1),
                    Flood::Priority => codec.inbound_priority_frames_flood.increment(1),
                    Flood::WindowUpdate => codec.inbound_window_update_frames_flood.increment(1),
                    Flood::Control => codec.outbound_control_flood.increment(1),
                }
                stats.downstream_cx_protocol_error.increment(1);
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                finish(&mut connection, &shared).await;
                break;
            }
            Event::Broken(broken) => {
                if broken.overflow {
                    codec.header_overflow.increment(1);
                }
                stats.downstream_cx_protocol_error.increment(1);
                connection.abrupt_shutdown(broken.reason);
                finish(&mut connection, &shared).await;
                break;
            }
            Event::Abuse => {
                manager.stats.downstream_rq_too_many_premature_resets.increment(1);
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                finish(&mut connection, &shared).await;
                break;
            }
            Event::Ended(error) => {
                let ours = error.as_ref().filter(|error| !error.is_io() && !error.is_remote());
                if let Some(error) = ours {
                    stats.downstream_cx_protocol_error.increment(1);
                    count_ended(error, &shared.account, &manager);
                }
                return ours.is_none();
            }
        }
    }
    false
}

/// Counts what the crate answered by itself.
fn count_refused(account: &Account, manager: &HttpConnectionManager) {
    if account.malformed.get() + account.overflows.get() + account.refused.get() == 0 {
        return;
    }
    let codec = &manager.http2_stats;
    let (malformed, overflows, refused) =
        (account.malformed.take(), account.overflows.take(), account.refused.take());
    codec.rx_messaging_error.increment(malformed);
    codec.header_overflow.increment(overflows);
    codec.tx_reset.increment(refused);
    manager.stats.downstream_rq_tx_reset.increment(refused);
}

/// Counts why the crate ended a connection. It says so in words only, and to the client only.
fn count_ended(error: &h2::Error, account: &Account, manager: &HttpConnectionManager) {
    if error.reason() != Some(Reason::ENHANCE_YOUR_CALM) {
        return;
    }
    let codec = &manager.http2_stats;
    let farewell = account.farewell.borrow();
    let words = String::from_utf8_lossy(&farewell);
    if words.contains("resets") {
        manager.stats.downstream_rq_too_many_premature_resets.increment(1);
    } else if words.contains("data_frames") {
        codec.inbound_empty_frames_flood.increment(1);
    } else {
        codec.header_overflow.increment(1);
    }
}

/// Lets the last frames go.
async fn finish(connection: &mut h2::server::Connection<Guarded, Bytes>, shared: &Connection) {
    shared.account.closing.set(true);
    let closed = poll_fn(|context| connection.poll_closed(context));
    let _ = tokio::time::timeout(Duration::from_secs(1), closed).await;
}
