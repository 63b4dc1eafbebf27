//! After an upgrade or CONNECT: bytes of another protocol, both ways, until both sides have closed.

use std::borrow::Cow;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Instant;

use super::deadlines::Expired;
use super::fail::timeout_details;
use super::lent::Lent;
use super::{Attempts, End};
use crate::http::exchange::Exchange;
use crate::http::h1::Framing;
use crate::http::pump::{Out, Pump, PumpError};
use crate::telemetry::stats::Held;
use crate::telemetry::stream_info::ResponseFlags;

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
    let limit = ex.down.buffer_limit.min(attempts.cluster.cluster.per_connection_buffer_limit);
    up.limit(limit);
    back.limit(limit);
    let deadlines = &mut attempts.deadlines;
    let (mut up_done, mut back_done) = (false, false);
    let mut end = End::Done;
    let mut late = false;
    poll_fn(|context| {
        let down = &mut *ex.down;
        if !up_done {
            let polled = match connection.sink(&mut out) {
                Some(sink) => up.poll(down.client.source(), sink, |_| {}, context),
                None => Poll::Ready(Err(PumpError::SourceClosed)),
            };
            if let Poll::Ready(result) = polled {
                up_done = true;
                if !back_done && !matches!(result, Err(PumpError::SinkIo(_))) {
                    // The client ended it; what the upstream still says is passed on, but it is logged
                    // as the client's disconnect.
                    end = End::Gone;
                }
                back_done |= result.is_err();
                // The close is passed on at once.
                connection.end(&mut out, context);
            }
        }
        if !back_done {
            if let Poll::Ready(result) = back.poll(connection.source(), down.client.sink(), |_| {}, context) {
                back_done = true;
                up_done |= result.is_err();
                down.client.end(context);
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
    ex.upload.bytes += up.bytes;
    ex.info.bytes_sent += back.bytes;
    end
}
