//! After an upgrade or CONNECT: bytes of another protocol, both ways, until both sides have closed.

use std::borrow::Cow;
use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use h2::Reason;

use super::deadlines::Expired;
use super::fail::timeout_details;
use super::lent::Lent;
use super::{Attempts, End};
use crate::http::exchange::Exchange;
use crate::http::h1::Framing;
use crate::http::h2::StreamError;
use crate::http::pump::{Out, Pump, PumpError};
use crate::telemetry::stats::Held;
use crate::telemetry::stream_info::ResponseFlags;

/// How long a client may take what an upstream said before it broke off.
const CUT_PATIENCE: Duration = Duration::from_secs(1);

/// Relays until both directions have ended. The response head already waits in the output.
pub(super) async fn run(
    ex: &mut Exchange<'_>,
    attempts: &mut Attempts<'_>,
    mut connection: Lent,
    mut out: Out,
) -> End {
    let stats = &ex.manager.stats;
    stats.downstream_cx_upgrades_total.increment(1);
    let _active = Held::new(&stats.downstream_cx_upgrades_active);
    ex.close = true;
    let mut up = Pump::new(Framing::Tunnel, false, false, 0);
    let mut back = Pump::new(Framing::Tunnel, false, false, 0);
    let limit = ex.down.buffer_limit.min(attempts.upstream().per_connection_buffer_limit);
    up.limit(limit);
    back.limit(limit);
    let deadlines = &mut attempts.deadlines;
    let (mut up_done, mut back_done) = (false, false);
    let mut end = End::Done;
    let mut late = false;
    // How the upstream broke it off.
    let mut broken = None;
    poll_fn(|context| {
        let down = &mut *ex.down;
        if !up_done {
            let polled = match connection.sink(&mut out) {
                Some(sink) => up.poll(down.client.source(), sink, |_| {}, context),
                None => Poll::Ready(Err(PumpError::SourceClosed)),
            };
            if let Poll::Ready(result) = polled {
                up_done = true;
                // The client ended it; what the upstream still says is passed on, but over HTTP/1, which knows no
                // end of one side, it is logged as the client's disconnect.
                let orderly = result.is_ok() && down.client.is_http2();
                if !back_done && !orderly && !matches!(result, Err(PumpError::SinkIo(_))) {
                    end = End::Gone;
                }
                back_done |= result.is_err();
                // The end is passed on at once; a stream that is broken off is one there too.
                if result.is_ok() || !connection.is_http2() {
                    connection.end(&mut out, context);
                }
            }
        }
        if !back_done {
            if let Poll::Ready(result) = back.poll(connection.source(), down.client.sink(), |_| {}, context) {
                back_done = true;
                broken = match &result {
                    Ok(()) if up_done || attempts.terminate || connection.is_http2() => None,
                    Err(PumpError::SinkIo(_)) => None,
                    Err(PumpError::SourceReset(StreamError::Reset(_) | StreamError::Refused)) => {
                        Some((ResponseFlags::UR, "remote_reset"))
                    }
                    _ => Some((ResponseFlags::UC, "connection_termination")),
                };
                if result.is_ok() {
                    down.client.end(context);
                } else {
                    if end == End::Done && broken.is_some() {
                        end = End::Cut;
                    }
                    up_done = true;
                }
            }
        }
        if std::mem::take(&mut up.progress) | std::mem::take(&mut back.progress) {
            deadlines.touch();
        }
        if up_done && back_done {
            return Poll::Ready(());
        }
        let timer = down.timer.poll(deadlines.nearest(), context);
        late |= timer.is_ready();
        timer
    })
    .await;
    ex.now = Instant::now();
    if late {
        let stats = &ex.manager.stats;
        match deadlines.expired(ex.now) {
            Expired::Duration => {
                stats.downstream_rq_max_duration_reached.increment(1);
                ex.info.details = Cow::Borrowed(timeout_details(Expired::Duration));
            }
            expired => {
                stats.downstream_rq_idle_timeout.increment(1);
                ex.info.flags.insert(ResponseFlags::SI);
                ex.info.details = Cow::Borrowed(timeout_details(expired));
            }
        }
        end = End::Cut;
    }
    if let Some((flag, details)) = broken.filter(|_| end != End::Gone) {
        if flag == ResponseFlags::UR {
            attempts.count_stream(StreamError::Reset(Reason::INTERNAL_ERROR));
        }
        ex.info.flags.insert(flag);
        ex.info.details = Cow::Owned(format!("upstream_reset_after_response_started{{{details}}}"));
        if end == End::Cut {
            // What came before it, as far as the client takes it at once.
            let _ = ex.flush_within(Some(CUT_PATIENCE)).await;
            let reason =
                if flag == ResponseFlags::UC { Reason::CONNECT_ERROR } else { Reason::INTERNAL_ERROR };
            ex.down.client.break_off(reason);
        }
    }
    ex.upload.bytes += up.bytes;
    ex.info.bytes_sent += back.bytes;
    ex.info.upstream_wire_received += back.bytes;
    end
}
