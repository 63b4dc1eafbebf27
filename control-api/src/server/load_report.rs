//! The load reporting service (LRS): asks proxies how many requests they send to each cluster.
//!
//! In: what to ask ([`LoadQuery`]), which may change at any time, and the streams of proxies. Out: each report to a
//! callback, and the last one of each stream for whoever looks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::body::Body;
use hyper::http;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::BoxBody;
use tonic::codec::ProstCodec;
use tonic::{Status, Streaming};

use super::transport::MAX_REQUEST_BYTES;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::config::endpoint::v3::ClusterStats;
use crate::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use crate::pb::google::protobuf;

/// The path of the service's one method.
pub(super) const METHOD: &str = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats";

/// What proxies are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadQuery {
    /// Of which clusters to report; `None` = all that the proxy has.
    pub clusters: Option<Vec<String>>,
    /// Between two reports.
    pub interval: Duration,
    /// Each endpoint's share as well.
    pub endpoints: bool,
}

impl LoadQuery {
    /// All clusters, by locality.
    #[must_use]
    pub fn all(interval: Duration) -> Self {
        Self { clusters: None, interval, endpoints: false }
    }

    fn response(&self) -> LoadStatsResponse {
        let seconds = i64::try_from(self.interval.as_secs()).unwrap_or(i64::MAX);
        // Less than 10^9.
        let nanos = i32::try_from(self.interval.subsec_nanos()).unwrap_or_default();
        LoadStatsResponse {
            clusters: self.clusters.clone().unwrap_or_default(),
            send_all_clusters: self.clusters.is_none(),
            load_reporting_interval: Some(protobuf::Duration { seconds, nanos }),
            report_endpoint_granularity: self.endpoints,
        }
    }
}

/// One message of a proxy. The first of a stream usually has no clusters.
#[derive(Debug, Clone)]
pub struct LoadReport {
    /// The stream, numbered from 1 in the order of arrival.
    pub stream: u64,
    /// Who reports.
    pub node: Arc<Node>,
    /// Of each cluster what happened since its last report.
    pub clusters: Vec<ClusterStats>,
}

/// The last report of an open stream.
#[derive(Debug, Clone)]
pub struct LatestLoads {
    /// The stream, numbered from 1 in the order of arrival.
    pub stream: u64,
    /// Who reports.
    pub node: Arc<Node>,
    /// When the stream began.
    pub since: SystemTime,
    /// Reports taken.
    pub reports: u64,
    /// When the last report with clusters came.
    pub at: Option<SystemTime>,
    /// What it says.
    pub clusters: Vec<ClusterStats>,
}

type OnReport = dyn Fn(&LoadReport) + Send + Sync;

/// The service. Clones are the same one.
#[derive(Clone)]
pub struct LoadReports {
    shared: Arc<Shared>,
}

struct Shared {
    query: watch::Sender<LoadQuery>,
    on_report: Box<OnReport>,
    streams: Mutex<Streams>,
}

#[derive(Default)]
struct Streams {
    last: u64,
    open: BTreeMap<u64, LatestLoads>,
}

impl LoadReports {
    /// Asks every proxy this.
    #[must_use]
    pub fn new(query: LoadQuery) -> Self {
        Self::with_callback(query, |_| ())
    }

    /// Asks every proxy this, and calls `on_report` for each message. It must not block.
    #[must_use]
    pub fn with_callback(query: LoadQuery, on_report: impl Fn(&LoadReport) + Send + Sync + 'static) -> Self {
        let (query, _) = watch::channel(query);
        let shared = Shared { query, on_report: Box::new(on_report), streams: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Asks this from now on, also on streams that are open.
    pub fn ask(&self, query: LoadQuery) {
        self.shared.query.send_if_modified(|asked| {
            let news = *asked != query;
            *asked = query;
            news
        });
    }

    /// The last report of each open stream.
    #[must_use]
    pub fn latest(&self) -> Vec<LatestLoads> {
        self.streams().open.values().cloned().collect()
    }

    /// Answers the request that opens a stream.
    pub(super) async fn call<B>(&self, request: http::Request<B>) -> http::Response<BoxBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let codec = ProstCodec::<LoadStatsResponse, LoadStatsRequest>::default();
        let mut grpc = tonic::server::Grpc::new(codec).max_decoding_message_size(MAX_REQUEST_BYTES);
        grpc.streaming(Service(self.clone()), request).await
    }

    /// Runs one stream to its end.
    async fn follow(&self, mut requests: Streaming<LoadStatsRequest>, responses: &mpsc::Sender<Outgoing>) {
        let Ok(Some(mut first)) = requests.message().await else { return };
        let Some(node) = first.node.take() else {
            let status = Status::invalid_argument("the first request of a stream has no node");
            let _ = responses.send(Err(status)).await;
            return;
        };
        let entry = self.enter(Arc::new(node));
        let mut query = self.shared.query.subscribe();
        entry.take(first.cluster_stats);
        loop {
            let response = query.borrow_and_update().response();
            if responses.send(Ok(response)).await.is_err() {
                return;
            }
            loop {
                tokio::select! {
                    next = requests.message() => match next {
                        Ok(Some(next)) => entry.take(next.cluster_stats),
                        Ok(None) | Err(_) => return,
                    },
                    // Whoever asks is part of what is borrowed here, so it does not end.
                    _ = query.changed() => break,
                }
            }
        }
    }

    fn enter(&self, node: Arc<Node>) -> Entry<'_> {
        let mut streams = self.streams();
        streams.last += 1;
        let stream = streams.last;
        let since = SystemTime::now();
        let loads =
            LatestLoads { stream, node: node.clone(), since, reports: 0, at: None, clusters: Vec::new() };
        streams.open.insert(stream, loads);
        Entry { loads: self, stream, node }
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for LoadReports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadReports").field("query", &*self.shared.query.borrow()).finish_non_exhaustive()
    }
}

/// An open stream, which is listed until it ends.
struct Entry<'a> {
    loads: &'a LoadReports,
    stream: u64,
    node: Arc<Node>,
}

impl Entry<'_> {
    fn take(&self, clusters: Vec<ClusterStats>) {
        let report = LoadReport { stream: self.stream, node: self.node.clone(), clusters };
        (self.loads.shared.on_report)(&report);
        if let Some(latest) = self.loads.streams().open.get_mut(&self.stream) {
            latest.reports += 1;
            if !report.clusters.is_empty() {
                latest.at = Some(SystemTime::now());
                latest.clusters = report.clusters;
            }
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.loads.streams().open.remove(&self.stream);
    }
}

type Outgoing = Result<LoadStatsResponse, Status>;

struct Service(LoadReports);

impl tonic::server::StreamingService<LoadStatsRequest> for Service {
    type Response = LoadStatsResponse;
    type ResponseStream = ReceiverStream<Outgoing>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<LoadStatsRequest>>) -> Self::Future {
        let (sender, receiver) = mpsc::channel(1);
        let loads = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = sender.closed() => {}
                () = loads.follow(request.into_inner(), &sender) => {}
            }
        });
        std::future::ready(Ok(tonic::Response::new(ReceiverStream::new(receiver))))
    }
}
