//! One downstream HTTP/1 connection: requests one after the other until somebody closes it.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::exchange::{Exchange, Next};
use super::io::{poll_read, OutBuf, FIRST_READ};
use super::timer::LazyTimer;
use super::worker::Worker;
use crate::config::http::HttpConnectionManager;
use crate::runtime::stream::Stream;
use crate::telemetry::stats::Held;
use crate::telemetry::stream_info::ConnectionInfo;

/// What an HTTP/1 connection holds between and during requests.
#[derive(Debug)]
pub struct Downstream {
    /// The socket.
    pub stream: Stream,
    /// Bytes read and not used yet.
    pub input: BytesMut,
    /// Bytes waiting to be written.
    pub output: OutBuf,
    /// The connection's one timer.
    pub timer: LazyTimer,
    /// Facts for logs.
    pub info: Rc<ConnectionInfo>,
    /// Requests begun.
    pub requests: u32,
}

/// Serves a connection until it ends. `prefix` was read while the filter chain was chosen.
pub async fn serve(
    worker: Rc<Worker>,
    manager: Arc<HttpConnectionManager>,
    stream: Stream,
    prefix: BytesMut,
    info: Rc<ConnectionInfo>,
) {
    let stats = &manager.stats;
    stats.downstream_cx_total.increment(1);
    stats.downstream_cx_http1_total.increment(1);
    let _active = Held::new(&stats.downstream_cx_active);
    let _http1 = Held::new(&stats.downstream_cx_http1_active);
    let start = info.start;
    let mut down = Downstream {
        stream,
        input: prefix,
        output: OutBuf::default(),
        timer: LazyTimer::default(),
        info,
        requests: 0,
    };
    let mut remote_closed = false;
    loop {
        if down.input.is_empty() && !wait_for_request(&mut down, &manager, start, &mut remote_closed).await {
            break;
        }
        // Boxed so that an idle connection does not carry the space of a request.
        let exchange = Exchange::new(&worker, &manager, &mut down);
        match Box::pin(exchange.run()).await {
            Next::Keep => {}
            Next::Close => {
                linger(&mut down, manager.delayed_close_timeout).await;
                break;
            }
            Next::Abort => {
                remote_closed = true;
                break;
            }
            Next::Reset => {
                down.stream.set_linger_zero();
                break;
            }
        }
    }
    stats.downstream_cx_destroy.increment(1);
    if remote_closed {
        stats.downstream_cx_destroy_remote.increment(1);
    } else {
        stats.downstream_cx_destroy_local.increment(1);
    }
    stats.downstream_cx_length_ms.record(start.elapsed().as_secs_f64() * 1000.0);
}

/// Waits for the first byte of a request. False when the connection is over.
async fn wait_for_request(
    down: &mut Downstream,
    manager: &HttpConnectionManager,
    start: Instant,
    remote_closed: &mut bool,
) -> bool {
    // An idle connection holds no buffer.
    down.input = BytesMut::new();
    let idle = manager.timeouts.idle.map(|idle| Instant::now() + idle);
    let oldest = manager.timeouts.max_connection_duration.map(|max| start + max);
    let deadline = match (idle, oldest) {
        (Some(idle), Some(oldest)) => Some(idle.min(oldest)),
        (one, other) => one.or(other),
    };
    let Downstream { stream, input, timer, .. } = down;
    let event = poll_fn(|context| {
        // Readiness first, so that no buffer is held while nothing comes.
        match stream.poll_read_ready(context) {
            Poll::Ready(_) => {
                if let Poll::Ready(read) = poll_read(stream, input, FIRST_READ, context) {
                    return Poll::Ready(Some(read));
                }
                *input = BytesMut::new();
            }
            Poll::Pending => {}
        }
        timer.poll(deadline, context).map(|()| None)
    })
    .await;
    match event {
        Some(Ok(count)) if count > 0 => true,
        Some(_) => {
            *remote_closed = true;
            false
        }
        None if oldest.is_some_and(|oldest| Instant::now() >= oldest) => {
            manager.stats.downstream_cx_max_duration_reached.increment(1);
            false
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
    if down.stream.shutdown_write().is_err() || patience.is_zero() {
        return;
    }
    let deadline = Instant::now() + patience;
    let mut left: usize = 1 << 20;
    let Downstream { stream, input, timer, .. } = down;
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
