//! One gRPC stream to the control plane: requests in, responses out, until it ends with a reason.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use std::time::Duration;

use hyper::client::conn::http2;
use hyper::http::uri::PathAndQuery;
use hyper::http::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{timeout, Instant};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::BoxBody;
use tonic::client::{Grpc, GrpcService};
use tonic::codec::ProstCodec;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};

use super::addresses::Addresses;
use super::guard::{Guarded, Halted};
use super::services::{self, Method};
use super::Tls;

/// Why a stream could not be opened, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// No connection.
    #[error("cannot connect to control plane {address}: {error}")]
    Connect {
        /// Where to.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// Connection, TLS and HTTP/2 were not ready in time.
    #[error("control plane {address} not connected within {limit:?}")]
    ConnectTimeout {
        /// Where to.
        address: String,
        /// [`Endpoint::connect_timeout`].
        limit: Duration,
    },
    /// None of several addresses could be reached.
    #[error("none of {count} addresses of the control plane can be reached: {errors}")]
    Unreachable {
        /// How many there are.
        count: usize,
        /// What is wrong with each.
        errors: String,
    },
    /// The TLS handshake failed.
    #[error("TLS handshake with control plane {address} failed: {error}")]
    Tls {
        /// Where to.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// HTTP/2 failed: the connection broke, or a keepalive went unanswered.
    #[error("HTTP/2 connection to control plane {address} failed: {error}")]
    Http2 {
        /// Where to.
        address: String,
        /// Why.
        error: String,
    },
    /// The control plane ended the stream with an error.
    #[error("control plane {address} ended the stream: {code:?}, {message}")]
    Rpc {
        /// Where to.
        address: String,
        /// The gRPC status.
        code: tonic::Code,
        /// Its text.
        message: String,
    },
    /// A response passes the limit. It was not read.
    #[error("response of control plane {address} exceeds max_message_size of {limit} bytes: {message}")]
    TooLarge {
        /// Where to.
        address: String,
        /// [`Endpoint::max_message_size`].
        limit: usize,
        /// With the size found.
        message: String,
    },
    /// A response began and did not go on.
    #[error("stream of control plane {address} given up: {halt}")]
    Halted {
        /// Where to.
        address: String,
        /// How far it came.
        halt: String,
    },
    /// The control plane ended the stream without an error.
    #[error("control plane {address} closed the stream")]
    Ended {
        /// Where to.
        address: String,
    },
    /// A poll over REST failed.
    #[error("control plane {address}: {message}")]
    Rest {
        /// Where to.
        address: String,
        /// Why.
        message: String,
    },
    /// The type has no service of its own.
    #[error("{type_url} has no discovery service of its own in this variant")]
    NoService {
        /// The type.
        type_url: String,
    },
    /// The authority is none, or a metadata entry no ASCII header.
    #[error("{what} {value:?} cannot be sent in a request")]
    Unsendable {
        /// Which setting.
        what: &'static str,
        /// Its value, or its name where the value may be secret.
        value: String,
    },
    /// Not a name that a certificate can prove.
    #[error("server name {name:?} is neither a DNS name nor an IP address")]
    ServerName {
        /// The name.
        name: String,
    },
    /// Certificates or key are unusable.
    #[error("{what} for the control plane: {error}")]
    Material {
        /// Which.
        what: &'static str,
        /// Why.
        error: String,
    },
}

/// Where the control plane listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// Host, resolved at each attempt, and port.
    Tcp(String, u16),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// HTTP/2 PINGs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Between two of them. gRPC servers close connections that ask more often than they allow, by
    /// default every 5 minutes.
    pub interval: Duration,
    /// How long to wait for the answer before the connection counts as broken.
    pub timeout: Duration,
}

impl Default for Keepalive {
    /// Just above 5 minutes, and 20 s.
    fn default() -> Self {
        Self { interval: Duration::from_secs(305), timeout: Duration::from_secs(20) }
    }
}

/// How to reach the control plane.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where.
    pub address: Address,
    /// Where else: more addresses of the same control plane. All of them, and all that their names resolve to,
    /// are tried in an order of this client's own; the one that is reached is kept while it works.
    pub others: Vec<Address>,
    /// TLS, if any.
    pub tls: Option<Tls>,
    /// The `:authority` of requests.
    pub authority: String,
    /// For connection, TLS and HTTP/2 together.
    pub connect_timeout: Duration,
    /// HTTP/2 PINGs. TCP's own keepalive is always on.
    pub keepalive: Option<Keepalive>,
    /// The largest response that is read, in bytes. A larger one ends the stream.
    pub max_message_size: usize,
    /// A response that has begun and of which nearly nothing comes for this long ends the stream.
    pub halt_after: Option<Duration>,
    /// Sent with the request that opens the stream (`initial_metadata`).
    pub metadata: Vec<(String, String)>,
    /// Uses the service of this type alone, not the aggregated one.
    pub single_type: Option<String>,
}

impl Endpoint {
    /// Plaintext, 5 s to connect, default keepalive, responses of up to 64 MiB that do not halt for
    /// more than a minute, aggregated.
    #[must_use]
    pub fn new(address: Address) -> Self {
        let authority = match &address {
            Address::Tcp(host, port) if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp(host, port) => format!("{host}:{port}"),
            Address::Unix(_) => "localhost".to_owned(),
        };
        Self {
            address,
            others: Vec::new(),
            tls: None,
            authority,
            connect_timeout: Duration::from_secs(5),
            keepalive: Some(Keepalive::default()),
            max_message_size: 64 << 20,
            halt_after: Some(Duration::from_secs(60)),
            metadata: Vec::new(),
            single_type: None,
        }
    }
}

impl Endpoint {
    /// The method that serves its types.
    pub(super) fn method(&self, method: Method) -> Result<PathAndQuery, TransportError> {
        match &self.single_type {
            None => Ok(PathAndQuery::from_static(services::aggregated(method))),
            Some(url) => services::of_type(url, method)
                .and_then(|path| PathAndQuery::try_from(path).ok())
                .ok_or_else(|| TransportError::NoService { type_url: url.clone() }),
        }
    }
}

/// What comes from the stream.
pub(super) enum Inbound<R> {
    Opened,
    Response(R),
    /// There is something, but it is no response.
    Unreadable {
        type_url: String,
        message: String,
    },
}

/// Opens a stream of the method at `path` and serves it to its end.
pub(super) async fn serve<Q, R>(
    endpoint: Endpoint,
    addresses: Arc<Addresses>,
    path: PathAndQuery,
    heard: Heard,
    requests: mpsc::Receiver<Q>,
    inbound: mpsc::Sender<Inbound<R>>,
) -> TransportError
where
    Q: Message + Send + Sync + 'static,
    R: Message + Default + Send + Sync + 'static,
{
    let limit = endpoint.connect_timeout;
    let reached = reach(&endpoint, &addresses, limit, |endpoint| {
        let heard = heard.clone();
        async move { connect(&endpoint, heard).await }
    });
    let (endpoint, (sender, connection)) = match reached.await {
        Ok(reached) => reached,
        Err(error) => return error,
    };
    let address = endpoint.address.to_string();
    let mut brought = false;
    let talk = talk(&endpoint, path, sender, requests, inbound, &mut brought);
    let error = tokio::select! {
        biased;
        error = talk => error.err().unwrap_or(TransportError::Ended { address }),
        result = connection => TransportError::Http2 {
            error: result.err().map_or_else(|| "closed".to_owned(), |e| with_sources(&e)),
            address,
        },
    };
    if !brought {
        // Another may do better.
        addresses.leave(&endpoint.address);
    }
    error
}

/// Opens a connection to the first address that can be reached, beginning with the one that was last. What was
/// opened comes with the endpoint at that address.
pub(super) async fn reach<T, F>(
    endpoint: &Endpoint,
    addresses: &Addresses,
    limit: Duration,
    mut open: impl FnMut(Endpoint) -> F,
) -> Result<(Endpoint, T), TransportError>
where
    F: Future<Output = Result<T, TransportError>>,
{
    let mut errors = Vec::new();
    let mut round = addresses.round(limit).await;
    errors.append(&mut round.errors);
    for candidate in round.addresses {
        // Who is dropped while it waits goes on with the next.
        addresses.leave(&candidate);
        let at = Endpoint { address: candidate.clone(), others: Vec::new(), ..endpoint.clone() };
        match timeout(limit, open(at.clone())).await {
            Ok(Ok(opened)) => {
                addresses.stay(&candidate);
                return Ok((at, opened));
            }
            Ok(Err(error)) => errors.push(error),
            Err(_) => {
                errors.push(TransportError::ConnectTimeout { address: candidate.to_string(), limit });
            }
        }
    }
    let count = errors.len();
    match errors.pop() {
        Some(only) if count == 1 => Err(only),
        last => {
            let texts = errors.iter().chain(&last).map(ToString::to_string);
            Err(TransportError::Unreachable { count, errors: texts.collect::<Vec<_>>().join("; ") })
        }
    }
}

type Connection = http2::Connection<TokioIo<Watched>, BoxBody, TokioExecutor>;

/// Connects, with TLS if wanted, to speak `protocol`.
pub(super) async fn dial(
    endpoint: &Endpoint,
    heard: Heard,
    protocol: &[u8],
) -> Result<Watched, TransportError> {
    let address = || endpoint.address.to_string();
    let failed = |error| TransportError::Connect { address: address(), error };
    let plain: Box<dyn Io> = match &endpoint.address {
        Address::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            let keepalive = socket2::TcpKeepalive::new()
                .with_time(Duration::from_secs(30))
                .with_interval(Duration::from_secs(10))
                .with_retries(3);
            socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(failed)?;
            Box::new(stream)
        }
        Address::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(failed)?),
    };
    let io: Box<dyn Io> = match &endpoint.tls {
        None => plain,
        Some(tls) => {
            let mut config = Arc::clone(&tls.config);
            if config.alpn_protocols != [protocol] {
                Arc::make_mut(&mut config).alpn_protocols = vec![protocol.to_vec()];
            }
            let connector = TlsConnector::from(config);
            let stream = connector.connect(tls.server_name.clone(), plain).await;
            Box::new(stream.map_err(|error| TransportError::Tls { address: address(), error })?)
        }
    };
    Ok(Watched { io, heard })
}

async fn connect(endpoint: &Endpoint, heard: Heard) -> Result<(Sender, Connection), TransportError> {
    let io = dial(endpoint, heard, b"h2").await?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new());
    if let Some(keepalive) = endpoint.keepalive {
        builder.keep_alive_interval(keepalive.interval).keep_alive_timeout(keepalive.timeout);
        builder.keep_alive_while_idle(true);
    }
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(|error| {
        TransportError::Http2 { address: endpoint.address.to_string(), error: with_sources(&error) }
    })?;
    Ok((Sender { sender, halt_after: endpoint.halt_after }, connection))
}

async fn talk<Q, R>(
    endpoint: &Endpoint,
    path: PathAndQuery,
    sender: Sender,
    requests: mpsc::Receiver<Q>,
    inbound: mpsc::Sender<Inbound<R>>,
    brought: &mut bool,
) -> Result<(), TransportError>
where
    Q: Message + Send + Sync + 'static,
    R: Message + Default + Send + Sync + 'static,
{
    let scheme = if endpoint.tls.is_some() { "https" } else { "http" };
    let origin = Uri::try_from(format!("{scheme}://{}", endpoint.authority))
        .map_err(|_| TransportError::Unsendable { what: "authority", value: endpoint.authority.clone() })?;
    let mut request = tonic::Request::new(ReceiverStream::new(requests));
    for (name, value) in &endpoint.metadata {
        let unsendable = || TransportError::Unsendable { what: "initial metadata", value: name.clone() };
        let key: AsciiMetadataKey = name.parse().map_err(|_| unsendable())?;
        let value: AsciiMetadataValue = value.parse().map_err(|_| unsendable())?;
        request.metadata_mut().append(key, value);
    }
    let mut grpc = Grpc::with_origin(sender, origin).max_decoding_message_size(endpoint.max_message_size);
    let http2 = |error: hyper::Error| TransportError::Http2 {
        address: endpoint.address.to_string(),
        error: with_sources(&error),
    };
    grpc.ready().await.map_err(http2)?;
    // Some servers send no headers before their first response: requests have to flow already.
    if inbound.send(Inbound::Opened).await.is_err() {
        return Ok(());
    }
    let codec = ProstCodec::<Q, R>::default();
    let refused = |status| ended(endpoint, &status);
    let mut responses = grpc.streaming(request, path, codec).await.map_err(refused)?.into_inner();
    while let Some(response) = responses.message().await.map_err(refused)? {
        *brought = true;
        if inbound.send(Inbound::Response(response)).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn ended(endpoint: &Endpoint, status: &tonic::Status) -> TransportError {
    let address = endpoint.address.to_string();
    // Where the connection broke, only the source says why: that our certificate was refused, for one.
    let source = std::error::Error::source(status).map(with_sources);
    let message = match source {
        Some(source) if source.starts_with(status.message()) => source,
        Some(source) => format!("{}: {source}", status.message()),
        None => status.message().to_owned(),
    };
    // The code of this limit; a server has no use for it.
    if status.code() == tonic::Code::OutOfRange && message.contains("too large") {
        return TransportError::TooLarge { address, limit: endpoint.max_message_size, message };
    }
    let mut source = std::error::Error::source(status);
    let mut message = message;
    while let Some(error) = source {
        let text = error.to_string();
        if error.is::<Halted>() {
            return TransportError::Halted { address, halt: text };
        }
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = error.source();
    }
    TransportError::Rpc { address, code: status.code(), message }
}

pub(super) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The sending half of one HTTP/2 connection.
struct Sender {
    sender: http2::SendRequest<BoxBody>,
    halt_after: Option<Duration>,
}

impl GrpcService<BoxBody> for Sender {
    type ResponseBody = Guarded<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::ResponseBody>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: Request<BoxBody>) -> Self::Future {
        let (response, halt_after) = (self.sender.send_request(request), self.halt_after);
        Box::pin(async move { Ok(response.await?.map(|body| Guarded::new(body, halt_after))) })
    }
}

/// When bytes last came from the control plane: any, so that answers to PINGs count.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    base: Instant,
    millis: Arc<AtomicU64>,
}

impl Heard {
    pub fn new() -> Self {
        Self { base: Instant::now(), millis: Arc::default() }
    }

    pub fn at(&self) -> std::time::Instant {
        (self.base + Duration::from_millis(self.millis.load(Ordering::Relaxed))).into_std()
    }

    fn mark(&self) {
        let millis = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that notes when it was last read from.
pub(super) struct Watched {
    io: Box<dyn Io>,
    heard: Heard,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.heard.mark();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
