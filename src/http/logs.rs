//! Brings access logs to services.
//!
//! Comes in: batches of entries that wait in this worker ([`outbox`]). Goes out: calls of the services' clusters, one
//! batch after the other, over one stream where the service has streams. What cannot be brought is dropped and counted;
//! a service that is gone is tried again after a pause, and what is logged meanwhile waits as long as there is room.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use outrigger_control_api::pb::opentelemetry::proto::collector::logs::v1::ExportLogsServiceResponse;
use prost::Message;

use super::call::{self, Call};
use super::call_stream::GrpcStream;
use super::worker::Worker;
use crate::config::services::HttpTarget;
use crate::config::{HeaderKey, HeaderMutate, Known};
use crate::telemetry::access_log::service::outbox::{self, Batch, Courier, Installed, Queue};
use crate::telemetry::access_log::service::{Service, Target};

const STREAM: &[u8] = b"/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
const EXPORT: &[u8] = b"/opentelemetry.proto.collector.logs.v1.LogsService/Export";
/// The pause after a failure is the service's interval, within these bounds.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// How often it is looked whether a service that gets nothing is still configured.
const IDLE: Duration = Duration::from_secs(60);
/// How long a worker that ends waits for what is still to be brought.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long a collector over HTTP may take if config does not say.
const TIMEOUT: Duration = Duration::from_secs(5);

struct WorkerCourier(std::rc::Weak<Worker>);

/// What is logged in this worker is brought to services as long as the value lives.
pub fn install(worker: &Rc<Worker>) -> Installed {
    outbox::install(Rc::new(WorkerCourier(Rc::downgrade(worker))))
}

impl Courier for WorkerCourier {
    fn tend(&self, service: &Arc<Service>, queue: &Rc<Queue>) {
        let Some(worker) = self.0.upgrade() else { return };
        tokio::task::spawn_local(tend(worker, Arc::downgrade(service), service.id(), queue.clone()));
    }
}

/// The worker ends: waits a little for what is still to be brought.
pub async fn finish() {
    let brought = async {
        // Sessions that end now are logged first.
        tokio::task::yield_now().await;
        while !outbox::is_empty() {
            outbox::hurry();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(FAREWELL, brought).await.is_err() {
        tracing::warn!("some access logs did not reach their service before the end");
    }
}

/// What has come of a batch.
enum Fate {
    Taken,
    /// So many entries of it were not taken.
    Refused(u64),
    Lost,
}

/// Brings what is in `queue` until its service is no more.
async fn tend(worker: Rc<Worker>, service: Weak<Service>, id: u64, queue: Rc<Queue>) {
    let mut stream = None;
    loop {
        if queue.is_empty() {
            let news = with_stream(&mut stream, queue.news.notified());
            let idle = tokio::time::timeout(IDLE, news).await.is_err();
            if idle && service.strong_count() == 0 {
                outbox::forget(id);
                return;
            }
            continue;
        }
        let Some(service) = service.upgrade() else {
            // Nobody is left who could log more.
            outbox::forget(id);
            return;
        };
        if !queue.is_full() {
            let full = async {
                while !queue.is_full() && !queue.is_hurried() {
                    queue.news.notified().await;
                }
            };
            let _ = tokio::time::timeout(service.interval, with_stream(&mut stream, full)).await;
        }
        let Some(batch) = queue.take() else { continue };
        let count = batch.count;
        queue.set_carried(true);
        let fate = match &service.target {
            Target::Stream(_) => streamed(&worker, &service, &mut stream, batch).await,
            Target::Calls(_) => called(&worker, &service, batch).await,
            Target::Http(target, fields) => posted(&worker, &service, target, fields, batch).await,
        };
        queue.set_carried(false);
        match fate {
            Fate::Taken => service.taken(count),
            Fate::Refused(refused) => {
                let refused = refused.min(count);
                service.lost(refused);
                service.taken(count - refused);
            }
            Fate::Lost => {
                service.lost(count);
                tokio::time::sleep(service.interval.clamp(PAUSES[0], PAUSES[1])).await;
            }
        }
    }
}

/// Waits for `what`, and meanwhile notes that the stream has ended.
async fn with_stream<R>(stream: &mut Option<GrpcStream>, what: impl std::future::Future<Output = R>) -> R {
    let mut what = std::pin::pin!(what);
    poll_fn(|context| {
        while let Some(open) = stream {
            match open.poll_next(context) {
                // The service has nothing to say.
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => *stream = None,
                Poll::Pending => break,
            }
        }
        what.as_mut().poll(context)
    })
    .await
}

/// Sends a batch on the stream, which is begun if there is none.
async fn streamed(
    worker: &Rc<Worker>,
    service: &Service,
    stream: &mut Option<GrpcStream>,
    batch: Batch,
) -> Fate {
    let Target::Stream(target) = &service.target else { return Fate::Lost };
    let first = stream.is_none();
    let open = stream.get_or_insert_with(|| GrpcStream::new(worker, target, STREAM));
    open.send(&service.message(&batch.bytes, first));
    drop(batch);
    // One that takes nothing any more may be none.
    if tokio::time::timeout(IDLE, open.flushed()).await == Ok(true) {
        return Fate::Taken;
    }
    *stream = None;
    Fate::Lost
}

/// Calls OTLP's service with a batch.
async fn called(worker: &Rc<Worker>, service: &Service, batch: Batch) -> Fate {
    let Target::Calls(target) = &service.target else { return Fate::Lost };
    let message = service.message(&batch.bytes, true);
    match call::unary_encoded::<ExportLogsServiceResponse>(worker.clone(), target.clone(), EXPORT, &message)
        .await
    {
        Ok(answer) => fate_of(&answer),
        Err(_) => Fate::Lost,
    }
}

/// Posts a batch to a collector over HTTP.
async fn posted(
    worker: &Rc<Worker>,
    service: &Service,
    target: &HttpTarget,
    fields: &[(HeaderKey, Box<str>)],
    batch: Batch,
) -> Fate {
    let body = Bytes::from(service.message(&batch.bytes, true));
    match post_protobuf(worker, target, fields, body).await {
        Some(answer) => {
            ExportLogsServiceResponse::decode(answer).map_or(Fate::Taken, |answer| fate_of(&answer))
        }
        None => Fate::Lost,
    }
}

fn fate_of(answer: &ExportLogsServiceResponse) -> Fate {
    let refused = answer.partial_success.as_ref().map_or(0, |partial| partial.rejected_log_records);
    match u64::try_from(refused) {
        Ok(0) | Err(_) => Fate::Taken,
        Ok(refused) => Fate::Refused(refused),
    }
}

/// Posts a message of OTLP; the body of the answer, or `None` if it was not taken.
pub async fn post_protobuf(
    worker: &Rc<Worker>,
    target: &HttpTarget,
    fields: &[(HeaderKey, Box<str>)],
    body: Bytes,
) -> Option<Bytes> {
    let mut request = call::head(b"POST", &target.authority, &target.path, b"http");
    request.fields.push_known(Known::ContentType, b"application/x-protobuf");
    let mut digits = itoa::Buffer::new();
    request.fields.push_known(Known::ContentLength, digits.format(body.len()).as_bytes());
    for (key, value) in fields {
        request.append(key, value.as_bytes());
    }
    call::sign(&mut request, worker, None);
    let call =
        Call { request, body, timeout: target.timeout.or(Some(TIMEOUT)), most: 64 * 1024, retries: None };
    let answer = call.send(worker.clone(), target.cluster.clone()).await.ok()?;
    (200..300).contains(&answer.head.status).then_some(answer.body)
}
