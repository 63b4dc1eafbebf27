//! The discovery services over gRPC.
//!
//! In: connections, or HTTP/2 requests of a server that the caller runs. Out: a [`StreamState`] for each
//! stream, fed with what arrives. The only thing that is buffered for a client is one response.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hyper::body::Body;
use hyper::http;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::StreamExt as _;
use tonic::body::{empty_body, BoxBody};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status, Streaming};
use tracing::debug;

use super::cache::{Entry, SnapshotCache};
use super::kind::ResourceType;
use super::load_report::{self, LoadReports};
use super::response::Response;
use super::rest;
use super::status::{Event, StreamStatus};
use super::stream::{Limits, Protocol, StreamError, StreamState, Verdict};
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

/// The longest request that is read, in bytes: a reconnecting client names all that it has.
pub(super) const MAX_REQUEST_BYTES: usize = 64 * 1024 * 1024;

/// How long accepting pauses after it failed, for want of file descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Listener = dyn Fn(&StreamStatus, &Event) + Send + Sync;

/// Serves a [`SnapshotCache`]. Clones serve the same one.
#[derive(Clone)]
pub struct Server {
    cache: SnapshotCache,
    limits: Limits,
    on_event: Arc<Listener>,
    connections: Arc<Semaphore>,
    loads: Option<LoadReports>,
}

impl Server {
    /// A server with the default [`Limits`].
    #[must_use]
    pub fn new(cache: SnapshotCache) -> Self {
        let limits = Limits::default();
        let connections = Arc::new(Semaphore::new(limits.connections));
        Self { cache, limits, on_event: Arc::new(|_, _| ()), connections, loads: None }
    }

    /// The snapshots that it serves.
    #[must_use]
    pub fn cache(&self) -> &SnapshotCache {
        &self.cache
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Bounds connections and streams. Connections that are open count no more.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.connections = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
        self.limits = limits;
        self
    }

    /// Calls `listener` for what happens on each stream. It must not block.
    #[must_use]
    pub fn on_event(mut self, listener: impl Fn(&StreamStatus, &Event) + Send + Sync + 'static) -> Self {
        self.on_event = Arc::new(listener);
        self
    }

    /// Takes load reports as well (LRS).
    #[must_use]
    pub fn with_load_reports(mut self, loads: LoadReports) -> Self {
        self.loads = Some(loads);
        self
    }

    /// Accepts connections until the future is dropped, which closes them all.
    pub async fn serve(&self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        // Nobody closes the semaphore.
        while let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await {
            let accepted = listener.accept().await.and_then(|(stream, _)| {
                stream.set_nodelay(true)?;
                Ok(stream)
            });
            self.take(&mut connections, accepted, permit).await;
        }
    }

    /// Like [`serve`](Self::serve), on a Unix socket.
    pub async fn serve_unix(&self, listener: UnixListener) {
        let mut connections = JoinSet::new();
        while let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            self.take(&mut connections, accepted, permit).await;
        }
    }

    async fn take<I>(
        &self,
        connections: &mut JoinSet<()>,
        accepted: io::Result<I>,
        permit: OwnedSemaphorePermit,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok(stream) => {
                let server = self.clone();
                connections.spawn(async move {
                    if let Err(error) = server.serve_connection(stream).await {
                        debug!(error, "connection of a discovery client");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                debug!(%error, "accepting a discovery client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    /// Serves one connection that speaks HTTP from its first byte: TCP, a Unix socket, TLS. HTTP/2 for gRPC,
    /// either version for REST.
    ///
    /// # Errors
    /// The connection broke, or the peer does not speak HTTP.
    pub async fn serve_connection<I>(&self, io: I) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = self.clone();
        let service = hyper::service::service_fn(move |request| {
            let server = server.clone();
            async move { Ok::<_, std::convert::Infallible>(server.call(request).await) }
        });
        let mut http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
        // A client that is gone without a word is noticed, so that the status page does not list it.
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(30))
            .max_concurrent_streams(self.limits.streams);
        http.serve_connection(TokioIo::new(io), service).await
    }

    /// Answers one HTTP/2 request, for callers that run an HTTP server of their own. Must be called on a
    /// tokio runtime.
    pub async fn call<B>(&self, request: http::Request<B>) -> http::Response<BoxBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        if let Some(what) = request.uri().path().strip_prefix("/v3/discovery:") {
            let what = what.to_owned();
            return self.rest(&what, request).await;
        }
        if request.version() != http::Version::HTTP_2 {
            let message = "gRPC needs HTTP/2; there is also POST /v3/discovery:clusters and the like\n";
            return rest::answer(http::StatusCode::NOT_FOUND, message.to_owned());
        }
        if let Some(loads) = self.loads.as_ref().filter(|_| request.uri().path() == load_report::METHOD) {
            return loads.call(request).await;
        }
        match method(request.uri().path()) {
            Some((Protocol::Delta, only)) => self.run::<DeltaDiscoveryRequest, B>(only, request).await,
            Some((Protocol::StateOfTheWorld, only)) => self.run::<DiscoveryRequest, B>(only, request).await,
            None => {
                let mut response = http::Response::new(empty_body());
                let headers = response.headers_mut();
                headers.insert("content-type", http::HeaderValue::from_static("application/grpc"));
                headers.insert("grpc-status", http::HeaderValue::from(Code::Unimplemented as i32));
                response
            }
        }
    }

    async fn run<R, B>(
        &self,
        only: Option<ResourceType>,
        request: http::Request<B>,
    ) -> http::Response<BoxBody>
    where
        R: Request,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let codec = ResponseCodec::<R>(std::marker::PhantomData);
        let mut grpc = tonic::server::Grpc::new(codec)
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(usize::MAX);
        grpc.streaming(Service::<R>(self.clone(), only, std::marker::PhantomData), request).await
    }
}

/// What a path asks for.
fn method(path: &str) -> Option<(Protocol, Option<ResourceType>)> {
    let (service, method) = path.strip_prefix("/envoy.service.")?.split_once('/')?;
    let (protocol, what) = match (method.strip_prefix("Delta"), method.strip_prefix("Stream")) {
        (Some(what), _) => (Protocol::Delta, what),
        (_, Some(what)) => (Protocol::StateOfTheWorld, what),
        _ => return None,
    };
    let only = match (service, what) {
        ("discovery.v3.AggregatedDiscoveryService", "AggregatedResources") => None,
        ("cluster.v3.ClusterDiscoveryService", "Clusters") => Some(ResourceType::CLUSTER),
        ("endpoint.v3.EndpointDiscoveryService", "Endpoints") => Some(ResourceType::ENDPOINTS),
        ("listener.v3.ListenerDiscoveryService", "Listeners") => Some(ResourceType::LISTENER),
        ("route.v3.RouteDiscoveryService", "Routes") => Some(ResourceType::ROUTE),
        ("route.v3.ScopedRoutesDiscoveryService", "ScopedRoutes") => Some(ResourceType::SCOPED_ROUTES),
        ("route.v3.VirtualHostDiscoveryService", "VirtualHosts") => Some(ResourceType::VIRTUAL_HOST),
        ("secret.v3.SecretDiscoveryService", "Secrets") => Some(ResourceType::SECRET),
        ("runtime.v3.RuntimeDiscoveryService", "Runtime") => Some(ResourceType::RUNTIME),
        ("extension.v3.ExtensionConfigDiscoveryService", "ExtensionConfigs") => Some(ResourceType::EXTENSION),
        _ => return None,
    };
    Some((protocol, only))
}

/// A request of either form of the protocol.
trait Request: Message + Default + Send + 'static {
    const PROTOCOL: Protocol;
    fn take_node(&mut self) -> Option<Node>;
    fn apply(self, state: &mut StreamState, now: Instant) -> Result<Verdict, StreamError>;
}

impl Request for DiscoveryRequest {
    const PROTOCOL: Protocol = Protocol::StateOfTheWorld;
    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }
    fn apply(self, state: &mut StreamState, now: Instant) -> Result<Verdict, StreamError> {
        state.on_sotw(self, now)
    }
}

impl Request for DeltaDiscoveryRequest {
    const PROTOCOL: Protocol = Protocol::Delta;
    fn take_node(&mut self) -> Option<Node> {
        self.node.take()
    }
    fn apply(self, state: &mut StreamState, now: Instant) -> Result<Verdict, StreamError> {
        state.on_delta(self, now)
    }
}

type Outgoing = Result<Response, Status>;

/// One method of one service.
struct Service<R>(Server, Option<ResourceType>, std::marker::PhantomData<fn(R)>);

impl<R: Request> tonic::server::StreamingService<R> for Service<R> {
    type Response = Response;
    type ResponseStream = ReceiverStream<Outgoing>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<R>>) -> Self::Future {
        let (sender, receiver) = mpsc::channel(1);
        let (server, only) = (self.0.clone(), self.1.clone());
        tokio::spawn(async move {
            // A client that is gone ends the stream wherever it is, also while a response waits for room.
            tokio::select! {
                () = sender.closed() => {}
                () = follow(server, only, request.into_inner(), &sender) => {}
            }
        });
        std::future::ready(Ok(tonic::Response::new(ReceiverStream::new(receiver))))
    }
}

/// A listed stream, which says so when it ends.
struct Listed<'a> {
    entry: Entry,
    status: StreamStatus,
    server: &'a Server,
    error: Option<String>,
}

impl Listed<'_> {
    fn tell(&self, event: &Event) {
        (self.server.on_event)(&self.status, event);
    }

    fn refresh(&mut self, state: &StreamState) {
        self.status.types = state.status();
        let types = self.status.types.clone();
        self.entry.update(|status| status.types = types);
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let error = self.error.take();
        self.tell(&Event::Disconnected(error));
    }
}

/// Runs one stream to its end.
async fn follow<R: Request>(
    server: Server,
    only: Option<ResourceType>,
    mut requests: Streaming<R>,
    sender: &mpsc::Sender<Outgoing>,
) {
    let Ok(Some(mut first)) = requests.message().await else {
        return;
    };
    let Some(node) = first.take_node() else {
        let status = Status::invalid_argument("the first request of a stream has no node");
        let _ = sender.send(Err(status)).await;
        return;
    };
    let key = server.cache.key_of(&node);
    let features = node.client_features;
    let mut watch = server.cache.watch(&key);
    let mut status = StreamStatus {
        id: 0,
        node_id: node.id,
        node_cluster: node.cluster,
        key,
        protocol: R::PROTOCOL,
        only: only.clone(),
        since: SystemTime::now(),
        types: Vec::new(),
    };
    let entry = server.cache.enter(status.clone());
    status.id = entry.id;
    let mut listed = Listed { entry, status, server: &server, error: None };
    listed.tell(&Event::Connected);
    let mut state = StreamState::new(R::PROTOCOL, only, server.limits.clone());
    state.set_client_features(&features);
    let mut request = Some(first);
    loop {
        if let Some(request) = request.take() {
            let verdict = request.apply(&mut state, Instant::now());
            listed.refresh(&state);
            match verdict {
                Ok(Verdict::None) => {}
                Ok(Verdict::Ack { kind, version }) => listed.tell(&Event::Ack { kind, version }),
                Ok(Verdict::Nack { kind, nack }) => listed.tell(&Event::Nack { kind, nack }),
                Err(error) => {
                    listed.error = Some(error.to_string());
                    let _ = sender.send(Err(status_of(&error))).await;
                    return;
                }
            }
        }
        while let Some(response) = state.poll(Instant::now()) {
            listed.refresh(&state);
            if sender.send(Ok(response)).await.is_err() {
                return;
            }
        }
        listed.refresh(&state);
        tokio::select! {
            next = requests.next() => match next {
                Some(Ok(next)) => request = Some(next),
                Some(Err(error)) => {
                    listed.error = Some(error.to_string());
                    return;
                }
                None => return,
            },
            snapshot = watch.next() => state.set_target(snapshot),
            () = until(state.deadline()) => {}
        }
    }
}

fn status_of(error: &StreamError) -> Status {
    let code = match error {
        StreamError::NoType | StreamError::WrongType { .. } => Code::InvalidArgument,
        StreamError::TooManyTypes { .. } | StreamError::TooManyNames { .. } => Code::ResourceExhausted,
    };
    Status::new(code, error.to_string())
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Requests decoded, responses encoded from shared bytes.
struct ResponseCodec<R>(std::marker::PhantomData<fn(R)>);

impl<R: Request> Codec for ResponseCodec<R> {
    type Encode = Response;
    type Decode = R;
    type Encoder = ResponseEncoder;
    type Decoder = RequestDecoder<R>;

    fn encoder(&mut self) -> ResponseEncoder {
        ResponseEncoder
    }

    fn decoder(&mut self) -> RequestDecoder<R> {
        RequestDecoder(std::marker::PhantomData)
    }
}

struct ResponseEncoder;

impl Encoder for ResponseEncoder {
    type Item = Response;
    type Error = Status;

    fn encode(&mut self, item: Response, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode_to(buffer).map_err(|e| Status::internal(e.to_string()))
    }
}

struct RequestDecoder<R>(std::marker::PhantomData<fn(R)>);

impl<R: Request> Decoder for RequestDecoder<R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        R::decode(buffer).map(Some).map_err(|e| Status::invalid_argument(e.to_string()))
    }
}
