//! Mirrored requests: sent like others, their answers read and forgotten.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{ready, Poll};
use std::time::{Duration, Instant};

use bytes::Buf;

use crate::config::RequestView;
use crate::http::h1::{self, BodyDecoder, BodyEvent, ResponseLimits};
use crate::http::head::RequestHead;
use crate::http::io::{poll_read, OutBuf, FIRST_READ};
use crate::http::worker::Worker;
use crate::upstream::{ClusterLocal, PickContext, RequestPermit};

/// A mirror that answers slower than this is given up.
const PATIENCE: Duration = Duration::from_secs(15);

/// Sends `request` to a host of `cluster`. `None` when that failed, which nobody is told.
pub(super) async fn send(
    worker: &Rc<Worker>,
    cluster: &Rc<ClusterLocal>,
    request: RequestHead,
) -> Option<()> {
    tokio::time::timeout(PATIENCE, exchange(worker, cluster, request)).await.ok()?
}

async fn exchange(worker: &Rc<Worker>, cluster: &Rc<ClusterLocal>, request: RequestHead) -> Option<()> {
    let pool = cluster.pick(&PickContext::default()).ok()?;
    let mut connection = pool.connection(0).await.ok()?;
    let _permit = RequestPermit::take(&cluster.cluster, 0, &pool.host)?;
    let http = &cluster.cluster.http;
    let mut out = OutBuf::default();
    h1::write::request_head(out.flat(), &request, http.http1.header_case, b"");
    poll_fn(|context| out.poll_flush(&connection.stream, context)).await.ok()?;
    let limits = ResponseLimits {
        max_head: http.max_response_headers,
        max_fields: http.max_headers_count as usize,
        preserve_case: false,
        chunked_length: http.http1.allow_chunked_length,
    };
    let to_head = request.method() == b"HEAD";
    let parsed = loop {
        if let Some(parsed) = h1::parse_response(&connection.input, &limits, to_head, false).ok()? {
            connection.input.advance(parsed.consumed);
            if parsed.head.status >= 200 {
                break parsed;
            }
            continue;
        }
        let count =
            poll_fn(|context| poll_read(&connection.stream, &mut connection.input, FIRST_READ, context))
                .await;
        if !matches!(count, Ok(count) if count > 0) {
            return None;
        }
    };
    let stats = cluster.cluster.stats();
    stats.responses.count(parsed.head.status);
    stats.upstream_rq_completed.increment(1);
    let mut decoder = BodyDecoder::new(parsed.framing, http.max_response_headers);
    let complete = poll_fn(|context| loop {
        match decoder.next(&mut connection.input) {
            Ok(BodyEvent::Data(length)) => connection.input.advance(length),
            Ok(BodyEvent::End(_)) => return Poll::Ready(true),
            Ok(BodyEvent::More) => {
                let read = ready!(poll_read(&connection.stream, &mut connection.input, FIRST_READ, context));
                if !matches!(read, Ok(count) if count > 0) {
                    return Poll::Ready(false);
                }
            }
            Err(_) => return Poll::Ready(false),
        }
    })
    .await;
    worker.last_request.set(Instant::now());
    pool.give_back(connection, complete && parsed.keep_alive, Instant::now());
    Some(())
}
