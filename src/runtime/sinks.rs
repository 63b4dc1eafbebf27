//! The thread that tells sinks of statistics: one for all of them, and none where there are no sinks.
//!
//! Comes in: compiled [`Sinks`]. Goes out: datagrams, and calls of clusters, for which the thread has pools of its own.
//! A sink that does not answer holds up neither requests nor the other sinks for longer than an interval.

use std::future::poll_fn;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use outrigger_control_api::pb::opentelemetry::proto::collector::metrics::v1::ExportMetricsServiceResponse;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;

use crate::config::compile::runtime::Runtime;
use crate::config::services::GrpcTarget;
use crate::config::{Cluster, Directory, Slot};
use crate::http::call;
use crate::http::call_stream::GrpcStream;
use crate::http::io::OutBuf;
use crate::http::logs::post_protobuf;
use crate::http::worker::Worker;
use crate::telemetry::metrics;
use crate::telemetry::sinks::{
    datagrams, families, messages, requests, Before, MetricsService, Sink, Sinks, Statsd, Told,
};
use crate::upstream::{PickContext, UpstreamConnection};

const STREAM: &[u8] = b"/envoy.service.metrics.v3.MetricsService/StreamMetrics";
const EXPORT: &[u8] = b"/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
/// Longest time that a sink may take, however long the interval is.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest time that all of them may take after the process has been told to end.
const FAREWELL: Duration = Duration::from_millis(300);

/// The thread.
#[derive(Debug)]
pub struct Flusher {
    thread: JoinHandle<()>,
    end: watch::Sender<bool>,
}

impl Flusher {
    /// Tells the sinks one last time, and ends the thread.
    pub fn end(self) {
        let _ = self.end.send(true);
        if self.thread.join().is_err() {
            tracing::error!("the thread of the statistics' sinks has failed");
        }
    }
}

/// Starts telling sinks.
///
/// # Errors
/// The thread cannot be started.
pub fn start(
    sinks: Sinks,
    clusters: Arc<Directory<Cluster>>,
    runtime: Arc<ArcSwap<Runtime>>,
) -> std::io::Result<Flusher> {
    let (end, ends) = watch::channel(false);
    let thread = std::thread::Builder::new().name("stats_flush".to_owned()).spawn(move || {
        let local = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        match local {
            Ok(local) => local.block_on(run(sinks, clusters, runtime, ends)),
            Err(error) => tracing::error!("statistics are not sent: {error}"),
        }
    })?;
    Ok(Flusher { thread, end })
}

/// What is kept of a sink between two intervals.
enum Line {
    Udp(Option<UdpSocket>),
    Tcp(Option<Box<UpstreamConnection>>),
    Stream(Option<Box<GrpcStream>>),
    Calls,
}

async fn run(
    sinks: Sinks,
    clusters: Arc<Directory<Cluster>>,
    runtime: Arc<ArcSwap<Runtime>>,
    mut ends: watch::Receiver<bool>,
) {
    let mut worker = Worker::new(clusters, Arc::default());
    worker.runtime = runtime;
    let worker = Rc::new(worker);
    let mut lines: Vec<Line> = sinks.list.iter().map(line).collect();
    let mut before = Before::new(SystemTime::now());
    loop {
        let over = tokio::select! {
            _ = ends.wait_for(|over| *over) => true,
            () = tokio::time::sleep(sinks.interval) => false,
        };
        let patience = PATIENCE.min(sinks.interval);
        let snapshot = metrics::snapshot();
        let now = SystemTime::now();
        let told = before.advance(&snapshot);
        let round = async {
            for (sink, line) in sinks.list.iter().zip(&mut lines) {
                let telling = tell(&worker, sink, line, &told, &before, now);
                if tokio::time::timeout(patience, telling).await.is_err() {
                    // Half of something may have been said.
                    *line = self::line(sink);
                }
            }
        };
        let farewell = async {
            let _ = ends.wait_for(|over| *over).await;
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            () = round => {}
            () = farewell => return,
        }
        before.at = now;
        worker.clock.tick();
        worker.upstreams.sweep(Instant::now());
        if over {
            return;
        }
    }
}

fn line(sink: &Sink) -> Line {
    match sink {
        Sink::Udp(address, _) => Line::Udp(udp(*address)),
        Sink::Tcp(..) => Line::Tcp(None),
        Sink::Metrics(..) => Line::Stream(None),
        Sink::OtlpGrpc(..) | Sink::OtlpHttp(..) => Line::Calls,
    }
}

fn udp(address: SocketAddr) -> Option<UdpSocket> {
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(address)?;
        // What does not fit into the socket's buffer is lost, as datagrams are.
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    socket.map_err(|error| tracing::warn!("statsd at {address}: {error}")).ok()
}

async fn tell(
    worker: &Rc<Worker>,
    sink: &Sink,
    line: &mut Line,
    told: &[Told<'_>],
    before: &Before,
    now: SystemTime,
) {
    match (sink, line) {
        (Sink::Udp(address, statsd), Line::Udp(socket)) => {
            if socket.is_none() {
                *socket = udp(*address);
            }
            let Some(socket) = socket else { return };
            for datagram in datagrams(statsd, told) {
                let _ = socket.send(datagram.as_bytes());
            }
        }
        (Sink::Tcp(slot, statsd), Line::Tcp(connection)) => {
            if !write_lines(worker, slot, statsd, connection, told).await {
                *connection = None;
            }
        }
        (Sink::Metrics(target, options), Line::Stream(stream)) => {
            let sent = stream_metrics(worker, target, options, stream, told, now).await;
            if !sent {
                *stream = None;
            }
        }
        (Sink::OtlpGrpc(target, options), _) => {
            for request in requests(options, told, before, now) {
                let answer: Result<ExportMetricsServiceResponse, _> =
                    call::unary_encoded(worker.clone(), target.clone(), EXPORT, &request).await;
                if answer.is_err() {
                    return;
                }
            }
        }
        (Sink::OtlpHttp(target, fields, options), _) => {
            for request in requests(options, told, before, now) {
                if post_protobuf(worker, target, fields, Bytes::from(request)).await.is_none() {
                    return;
                }
            }
        }
        // Lines are made for their sinks.
        (Sink::Udp(..) | Sink::Tcp(..) | Sink::Metrics(..), _) => {}
    }
}

/// Whether all lines were written.
async fn write_lines(
    worker: &Rc<Worker>,
    slot: &Arc<Slot<Cluster>>,
    statsd: &Statsd,
    connection: &mut Option<Box<UpstreamConnection>>,
    told: &[Told<'_>],
) -> bool {
    if connection.is_none() {
        let Some(cluster) = worker.upstreams.cluster(slot) else { return false };
        let Ok(pool) = cluster.pick(&PickContext::default()) else { return false };
        *connection = pool.connection(0).await.ok();
    }
    let Some(connection) = connection else { return false };
    let mut text = datagrams(statsd, told).join("\n");
    text.push('\n');
    let mut out = OutBuf::default();
    out.push(Bytes::from(text));
    poll_fn(|context| out.poll_flush(&connection.stream, context)).await.is_ok()
}

/// Whether all of it was sent.
async fn stream_metrics(
    worker: &Rc<Worker>,
    target: &GrpcTarget,
    options: &MetricsService,
    stream: &mut Option<Box<GrpcStream>>,
    told: &[Told<'_>],
    now: SystemTime,
) -> bool {
    // What became of the stream meanwhile shows now.
    if let Some(open) = stream {
        if open.has_ended().await {
            *stream = None;
        }
    }
    let first = stream.is_none();
    let open = stream.get_or_insert_with(|| Box::new(GrpcStream::new(worker, target, STREAM)));
    for message in messages(options, &families(options, told, now), first) {
        open.send(&message);
    }
    open.flushed().await
}
