//! Spans as Zipkin has them: its JSON, version 2.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{json, Map, Value as Json};

use super::export::ZipkinTarget;
use super::{Finished, Kind};
use crate::config::Known;
use crate::http::call::{self, Call};
use crate::http::worker::Worker;

/// How long a collector may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A span.
pub(super) fn span(finished: &Finished<'_>, target: &ZipkinTarget) -> Json {
    let context = finished.context;
    let start = finished.start.duration_since(UNIX_EPOCH).unwrap_or_default();
    let took = finished.end.duration_since(finished.start).unwrap_or_default();
    let tags: Map<String, Json> =
        finished.tags.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())).collect();
    let mut span = json!({
        "traceId": context.trace_text(),
        "id": format!("{:016x}", context.span),
        "name": finished.name,
        "kind": if finished.kind == Kind::Client { "CLIENT" } else { "SERVER" },
        "timestamp": u64::try_from(start.as_micros()).unwrap_or(u64::MAX),
        "duration": u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1),
        "localEndpoint": {"serviceName": &*target.service},
        "tags": tags,
    });
    if context.parent != 0 {
        span["parentId"] = format!("{:016x}", context.parent).into();
    }
    if context.shared {
        span["shared"] = true.into();
    }
    span
}

/// Sends spans; whether they were taken.
pub(super) async fn send(worker: &Rc<Worker>, target: &Arc<ZipkinTarget>, spans: Vec<Json>) -> bool {
    let mut request = call::head(b"POST", &target.authority, &target.path, b"http");
    request.fields.push_known(Known::ContentType, b"application/json");
    let body = Bytes::from(Json::Array(spans).to_string());
    let mut digits = itoa::Buffer::new();
    request.fields.push_known(Known::ContentLength, digits.format(body.len()).as_bytes());
    call::sign(&mut request, worker, None);
    let call = Call { request, body, timeout: Some(TIMEOUT), most: 64 * 1024, retries: None };
    let answer = call.send(worker.clone(), target.cluster.clone()).await;
    answer.is_ok_and(|answer| (200..300).contains(&answer.head.status))
}
