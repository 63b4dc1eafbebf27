//! One downstream connection: which protocol it speaks, and over HTTP/1 its requests, one after the other
//! until somebody closes it.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::client::{Client, Wire};
use super::exchange::{Exchange, Next};
use super::h2;
use super::io::{poll_read, OutBuf, FIRST_READ};
use super::timer::LazyTimer;
use super::worker::Worker;
use crate::config::http::{Codec, HttpConnectionManager};
use crate::policy::gate::{Gate, Passage};
use crate::runtime::stream::Stream;
use crate::telemetry::stats::{HcmStats, Held};
use crate::telemetry::stream_info::ConnectionInfo;

/// What an HTTP/1 connection holds between and during requests, or an HTTP/2 stream during its one.
#[derive(Debug)]
pub struct Downstream {
    /// The client's end.
    pub client: Client,
    /// The one timer.
    pub timer: LazyTimer,
    /// Facts for logs.
    pub info: Rc<ConnectionInfo>,
    /// Most bytes held for the client or from it (`per_connection_buffer_limit_bytes`), soft.
    pub buffer_limit: usize,
    /// Requests begun.
    pub requests: u32,
    /// When the last request ended, or the connection began.
    pub idle_since: Instant,
    /// It has reached its age, and the next response says so (HTTP/1).
    pub aged: bool,
}

/// Serves a connection until it ends. `prefix` was read while the filter chain was chosen;
/// `buffer_limit` is the listener's; `gate` is asked about the first bytes.
pub async fn serve(
    worker: Rc<Worker>,
    manager: Arc<HttpConnectionManager>,
    stream: Stream,
    mut prefix: BytesMut,
    buffer_limit: usize,
    info: Rc<ConnectionInfo>,
    gate: Option<Gate>,
) {
    let stats = &manager.stats;
    stats.downstream_cx_total.increment(1);
    let _active = Held::new(&stats.downstream_cx_active);
    let _ssl = stream.tls().map(|_| {
        stats.downstream_cx_ssl_total.increment(1);
        Held::new(&stats.downstream_cx_ssl_active)
    });
    // What ALPN says is not looked for in the first bytes.
    let agreed = |name: &[u8]| stream.tls().is_some_and(|tls| tls.speaks(name));
    let (http1, http2) = (agreed(b"http/1.1"), agreed(b"h2"));
    // Counts the end of the connection when it goes, even if that is while the connection waits.
    let mut ended = Ended { stats, start: info.start, remotely: false };
    if let Some(gate) = gate {
        match Box::pin(gate.open(&stream, &mut prefix, manager.timeouts.idle)).await {
            Passage::Open => {}
            Passage::Gone => {
                ended.remotely = true;
                return;
            }
            Passage::Idle => return stats.downstream_cx_idle_timeout.increment(1),
            Passage::Refused => return,
        }
    }
    if manager.codec == Codec::Http2 || (manager.codec == Codec::Auto && http2) {
        let served = h2::server::serve(worker, manager.clone(), stream, prefix, buffer_limit, info);
        ended.remotely = Box::pin(served).await;
        return;
    }
    let start = info.start;
    let mut down = Downstream {
        client: Client::Http1(Wire { stream, input: prefix, output: OutBuf::default() }),
        timer: LazyTimer::default(),
        info,
        buffer_limit,
        requests: 0,
        idle_since: start,
        aged: false,
    };
    if manager.codec == Codec::Auto && !http1 {
        match detect(&mut down, &manager, &mut ended.remotely).await {
            Some(Detected::Http1) => {}
            Some(Detected::Http2) => {
                let Downstream { client: Client::Http1(wire), info, .. } = down else { return };
                let Wire { stream, input, .. } = wire;
                let served = h2::server::serve(worker, manager.clone(), stream, input, buffer_limit, info);
                ended.remotely = Box::pin(served).await;
                return;
            }
            None => return,
        }
    }
    stats.downstream_cx_http1_total.increment(1);
    let _http1 = Held::new(&stats.downstream_cx_http1_active);
    loop {
        if down.is_quiet() && !wait_for_request(&mut down, &manager, &mut ended.remotely).await {
            break;
        }
        // Boxed so that an idle connection does not carry the space of a request.
        match Box::pin(serve_requests(&worker, &manager, &mut down)).await {
            Next::Keep => {}
            Next::Close => {
                linger(&mut down, manager.delayed_close_timeout).await;
                break;
            }
            Next::Abort => {
                ended.remotely = true;
                break;
            }
            Next::Reset => {
                if let Client::Http1(wire) = &down.client {
                    wire.stream.set_linger_zero();
                }
                break;
            }
        }
    }
}

/// What the first bytes of a connection say.
enum Detected {
    Http1,
    Http2,
}

/// Finds out the protocol by the client's first bytes: HTTP/2 begins with a preface that no HTTP/1 request can
/// begin with (RFC 9113 §3.4). `None` when the connection is over.
async fn detect(
    down: &mut Downstream,
    manager: &HttpConnectionManager,
    remote_closed: &mut bool,
) -> Option<Detected> {
    loop {
        if let Client::Http1(wire) = &down.client {
            let seen = wire.input.len().min(h2::PREFACE.len());
            if wire.input.get(..seen) != h2::PREFACE.get(..seen) {
                return Some(Detected::Http1);
            }
            if seen == h2::PREFACE.len() {
                return Some(Detected::Http2);
            }
        }
        if !wait_for_request(down, manager, remote_closed).await {
            return None;
        }
    }
}

/// Its drop is the end of the connection.
struct Ended<'a> {
    stats: &'a HcmStats,
    start: Instant,
    remotely: bool,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.stats.downstream_cx_destroy.increment(1);
        if self.remotely {
            self.stats.downstream_cx_destroy_remote.increment(1);
        } else {
            self.stats.downstream_cx_destroy_local.increment(1);
        }
        self.stats.downstream_cx_length_ms.record(self.start.elapsed().as_secs_f64() * 1000.0);
    }
}

/// The state of a request is kept this long for the next one, so that a busy connection does not make
/// it anew each time.
const BUSY: Duration = Duration::from_secs(1);

/// Serves requests for as long as they come close together. [`Next::Keep`] when the connection falls
/// idle, or has news that is no request.
async fn serve_requests(
    worker: &Rc<Worker>,
    manager: &Arc<HttpConnectionManager>,
    down: &mut Downstream,
) -> Next {
    // One request makes no busy connection: many that ask once and stay must not all hold their state.
    let mut busy = Instant::now().saturating_duration_since(down.idle_since) < BUSY && down.requests > 0;
    loop {
        let next = {
            let mut exchange = Exchange::new(worker, manager, down, Instant::now());
            exchange.run().await
        };
        if next != Next::Keep || (down.is_quiet() && !(busy && comes_soon(down, manager).await)) {
            return next;
        }
        busy = true;
    }
}

/// Whether the first bytes of another request come before the connection counts as idle.
async fn comes_soon(down: &mut Downstream, manager: &HttpConnectionManager) -> bool {
    let soon = down.idle_since + BUSY;
    let deadline = down.idle_deadline(manager).map_or(soon, |deadline| deadline.min(soon));
    let Downstream { client: Client::Http1(Wire { stream, input, .. }), timer, .. } = down else {
        return false;
    };
    poll_fn(|context| match poll_read(stream, input, FIRST_READ, context) {
        Poll::Ready(read) => Poll::Ready(matches!(read, Ok(count) if count > 0)),
        Poll::Pending => timer.poll(Some(deadline), context).map(|()| false),
    })
    .await
}

impl Downstream {
    /// Whether nothing of a next request is here.
    fn is_quiet(&self) -> bool {
        match &self.client {
            Client::Http1(wire) => wire.input.is_empty(),
            Client::Http2(_) => true,
        }
    }

    /// When the connection ends if no request comes.
    fn idle_deadline(&self, manager: &HttpConnectionManager) -> Option<Instant> {
        let idle = manager.timeouts.idle.map(|idle| self.idle_since + idle);
        let oldest = manager.timeouts.max_connection_duration.map(|max| self.info.start + max);
        match (idle, oldest.filter(|_| !self.aged)) {
            (Some(idle), Some(oldest)) => Some(idle.min(oldest)),
            (one, other) => one.or(other),
        }
    }
}

/// Waits for the first byte of a request. False when the connection is over.
async fn wait_for_request(
    down: &mut Downstream,
    manager: &HttpConnectionManager,
    remote_closed: &mut bool,
) -> bool {
    let deadline = down.idle_deadline(manager);
    let oldest = manager.timeouts.max_connection_duration.map(|max| down.info.start + max);
    let Downstream { client: Client::Http1(Wire { stream, input, .. }), timer, .. } = down else {
        return false;
    };
    let event = poll_fn(|context| match poll_read(stream, input, FIRST_READ, context) {
        Poll::Ready(read) => Poll::Ready(Some(read)),
        Poll::Pending => timer.poll(deadline, context).map(|()| None),
    })
    .await;
    match event {
        Some(Ok(count)) if count > 0 => true,
        Some(_) => {
            *remote_closed = true;
            false
        }
        None if oldest.is_some_and(|oldest| !down.aged && Instant::now() >= oldest) => {
            manager.stats.downstream_cx_max_duration_reached.increment(1);
            down.aged = true;
            manager.timeouts.http1_safe && Box::pin(wait_for_request(down, manager, remote_closed)).await
        }
        None => {
            manager.stats.downstream_cx_idle_timeout.increment(1);
            false
        }
    }
}

/// Closes in an order that lets the client read the last answer: our end first, then what it still
/// sends is taken off for a while, so that the kernel does not answer it with a reset.
async fn linger(down: &mut Downstream, patience: Duration) {
    let Downstream { client: Client::Http1(Wire { stream, input, .. }), timer, .. } = down else { return };
    if stream.shutdown_write().is_err() || patience.is_zero() {
        return;
    }
    let deadline = Instant::now() + patience;
    let mut left: usize = 1 << 20;
    poll_fn(|context| {
        if timer.poll(Some(deadline), context).is_ready() {
            return Poll::Ready(());
        }
        loop {
            input.clear();
            match poll_read(stream, input, FIRST_READ, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(count)) if count > 0 && left > count => left -= count,
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::config::compile::tests::hcm;
    use crate::telemetry::fixtures::connection;

    #[tokio::test]
    async fn a_connection_that_is_cut_leaves_no_request_counted() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let body = "x".repeat(4000);
        let manager = hcm(
            json!({"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": body}}}]}]}}),
        );
        let worker = Rc::new(Worker::new(Arc::default(), Arc::default()));
        let info = Rc::new(connection(None, None));
        let served =
            serve(worker.clone(), manager, Stream::Unix(server), BytesMut::new(), 1 << 20, info, None);
        let mut served = Box::pin(served);
        // The client asks and never reads, until an answer finds no room.
        tokio::time::timeout(Duration::from_secs(30), async {
            while worker.active_requests.get() == 0 {
                tokio::select! {
                    biased;
                    () = served.as_mut() => panic!("the connection is over"),
                    sent = client.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n") => sent.unwrap(),
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        drop(served);
        assert_eq!(worker.active_requests.get(), 0);
    }
}
