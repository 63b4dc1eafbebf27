//! One check of one host: what is asked, and what its answer means. Has no timeout of its own.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::options::{
    address_of, authority_of, contains_in_order, GrpcProbe, HttpProbe, Options, Probe, TcpProbe,
};
use super::session::Failure;
use crate::config::route::HeaderOps;
use crate::config::{Cluster, HeaderKey, HeaderMutate, HeaderView, Host, Known};
use crate::http::h1::{parse_response, BodyDecoder, BodyEvent, Framing, ResponseLimits};
use crate::runtime::socket;
use crate::runtime::Stream;
use crate::telemetry::stream_info::{ConnectionInfo, Protocol, StreamInfo, WallClock};
use crate::tls::upstream::Purpose;

/// Largest head of an answer, in bytes.
const MAX_HEAD: usize = 60 << 10;
/// Most fields of an answer.
const MAX_FIELDS: usize = 100;
/// Most bytes of an answer that are kept to be compared, whatever config says.
const MAX_KEPT: usize = 1 << 20;
/// Heads before the final one that an answer may have.
const MAX_INTERIM: usize = 10;

/// What a check found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Healthy, and whether degraded; or why not.
    pub result: Result<bool, Failure>,
    /// The host wants to be left out of all counts.
    pub exclude: bool,
    /// The name of the host's service was compared.
    pub verified: bool,
}

impl From<Result<bool, Failure>> for Reply {
    fn from(result: Result<bool, Failure>) -> Self {
        Self { result, exclude: false, verified: false }
    }
}

/// A byte stream, whatever it is.
trait Io: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Io for T {}

/// Asks one host, again and again.
pub struct Prober {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    connection: Option<Connection>,
}

enum Connection {
    Bytes { io: Box<dyn Io>, input: BytesMut },
    Http2 { send: h2::client::SendRequest<Bytes>, _driver: Driver },
}

/// The task that drives a connection; ends with its owner.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The answer to a request.
struct Answer {
    status: u16,
    headers: Vec<(Box<[u8]>, Vec<u8>)>,
    body: Vec<u8>,
}

/// Anything that went wrong on the way.
struct Broken;

impl<E: std::error::Error> From<E> for Broken {
    fn from(_: E) -> Self {
        Broken
    }
}

impl Prober {
    /// Nothing is connected before the first check.
    pub fn new(cluster: Arc<Cluster>, host: Arc<Host>) -> Self {
        Self { cluster, host, connection: None }
    }

    /// Checks the host once. Dropped half-way, the next check begins anew.
    pub async fn check(&mut self, options: &Options) -> Reply {
        let connection = self.connection.take();
        let network = Reply::from(Err(Failure::Network));
        match &options.probe {
            Probe::Tcp(probe) => self.tcp(probe, connection, options).await.unwrap_or(network),
            Probe::Http(probe) => match self.http(probe, connection, options).await {
                Ok(answer) => judge(probe, &answer),
                Err(Broken) => network,
            },
            Probe::Grpc(probe) => match self.grpc(probe, connection, options).await {
                Ok(answer) => judge_grpc(&answer).into(),
                Err(Broken) => network,
            },
        }
    }

    /// Waits until a connection kept between checks is of no use any more; for ever where that does not matter.
    pub async fn broken(&mut self, options: &Options) {
        if let (Probe::Tcp(_), Some(Connection::Bytes { io, .. })) = (&options.probe, &mut self.connection) {
            let mut unasked = [0; 512];
            while let Ok(1..) = io.read(&mut unasked).await {}
            self.connection = None;
        } else {
            std::future::pending::<()>().await;
        }
    }

    /// Connects, with TLS where requests to the host have it.
    async fn connect(&self, purpose: Purpose, options: &Options) -> Result<Box<dyn Io>, Broken> {
        let address = address_of(&self.host);
        let io: Box<dyn Io> = match socket::connect(&address, &self.cluster.socket_to(&self.host)).await? {
            Stream::Tcp(stream) => Box::new(stream),
            Stream::Unix(stream) => Box::new(stream),
            // Nobody has shaken hands yet.
            Stream::Tls(_) | Stream::Virtual(_) => return Err(Broken),
        };
        let own = self.host.template.socket_match.as_deref();
        let metadata = options.socket_match.as_deref().or(own);
        let Some(tls) = self.cluster.tls.as_ref().and_then(|tls| tls.for_metadata(metadata)) else {
            return Ok(io);
        };
        let (mut config, name) = tls.client(&self.host, purpose).ok_or(Broken)?;
        if !options.alpn.is_empty() {
            let mut own = (*config).clone();
            own.alpn_protocols = options.alpn.iter().map(|protocol| protocol.to_vec()).collect();
            config = Arc::new(own);
        }
        Ok(Box::new(tokio_rustls::TlsConnector::from(config).connect(name, io).await?))
    }

    async fn tcp(
        &mut self,
        probe: &TcpProbe,
        connection: Option<Connection>,
        options: &Options,
    ) -> Result<Reply, Broken> {
        let (mut io, mut input) = match connection {
            Some(Connection::Bytes { io, input }) => (io, input),
            _ => (self.connect(Purpose::Tcp, options).await?, BytesMut::new()),
        };
        if probe.receive.is_empty() {
            // As in Envoy, what is to be sent is not.
            return Ok(Reply::from(Ok(false)));
        }
        io.write_all(&probe.send).await?;
        while !contains_in_order(&input, &probe.receive) {
            if input.len() >= MAX_KEPT || io.read_buf(&mut input).await? == 0 {
                return Err(Broken);
            }
        }
        input.clear();
        if options.reuse_connection {
            self.connection = Some(Connection::Bytes { io, input });
        }
        Ok(Reply::from(Ok(false)))
    }

    async fn http(
        &mut self,
        probe: &HttpProbe,
        connection: Option<Connection>,
        options: &Options,
    ) -> Result<Answer, Broken> {
        let authority = authority_of(&self.host, &probe.host, &self.cluster.name);
        let mut head = Head::new(probe.method, &probe.path, &authority);
        head.change(&probe.headers, &self.host, if probe.http2 { Protocol::Http2 } else { Protocol::Http11 });
        if !probe.send.is_empty() {
            head.set(&Known::ContentLength.into(), probe.send.len().to_string().as_bytes());
        }
        let kept = match (probe.receive.is_empty(), probe.response_buffer) {
            (true, _) => 0,
            (false, 0) => MAX_KEPT,
            (false, limit) => limit.min(MAX_KEPT),
        };
        if probe.http2 {
            return self.exchange_http2(&head, &probe.send, kept, connection, options).await;
        }
        let kept_connection = match connection {
            Some(Connection::Bytes { mut io, input }) => is_quiet(&mut *io).await.then_some((io, input)),
            _ => None,
        };
        let (mut io, mut input) = match kept_connection {
            Some(kept) => kept,
            None => (self.connect(Purpose::Http1, options).await?, BytesMut::new()),
        };
        let mut wire = head.http1();
        wire.extend_from_slice(&probe.send);
        io.write_all(&wire).await?;
        let limits = ResponseLimits { max_head: MAX_HEAD, max_fields: MAX_FIELDS, ..ResponseLimits::UNSET };
        let mut interim = 0;
        let parsed = loop {
            match parse_response(&input, &limits, probe.method == "HEAD", false)? {
                Some(parsed) if parsed.head.status < 200 => {
                    bytes::Buf::advance(&mut input, parsed.consumed);
                    interim += 1;
                    if interim > MAX_INTERIM {
                        return Err(Broken);
                    }
                }
                Some(parsed) => break parsed,
                None if io.read_buf(&mut input).await? == 0 => return Err(Broken),
                None => {}
            }
        };
        bytes::Buf::advance(&mut input, parsed.consumed);
        let mut body = Vec::new();
        let mut decoder = BodyDecoder::new(parsed.framing, MAX_HEAD);
        loop {
            match decoder.next(&mut input)? {
                BodyEvent::Data(count) => {
                    let piece = input.split_to(count);
                    let room = kept.saturating_sub(body.len()).min(piece.len());
                    body.extend_from_slice(piece.get(..room).unwrap_or_default());
                }
                BodyEvent::End(_) => break,
                BodyEvent::More if io.read_buf(&mut input).await? > 0 => {}
                BodyEvent::More if decoder.ends_at_close() => break,
                BodyEvent::More => return Err(Broken),
            }
        }
        let reusable = parsed.keep_alive && parsed.framing != Framing::UntilClose && input.is_empty();
        if options.reuse_connection && reusable {
            self.connection = Some(Connection::Bytes { io, input });
        }
        let headers =
            parsed.head.fields.iter().map(|(_, name, value)| (name.into(), value.to_vec())).collect();
        Ok(Answer { status: parsed.head.status, headers, body })
    }

    async fn grpc(
        &mut self,
        probe: &GrpcProbe,
        connection: Option<Connection>,
        options: &Options,
    ) -> Result<Answer, Broken> {
        let authority = authority_of(&self.host, &probe.authority, &self.cluster.name);
        let mut head = Head::new("POST", "/grpc.health.v1.Health/Check", &authority);
        head.set(&Known::ContentType.into(), b"application/grpc");
        head.set(&Known::Te.into(), b"trailers");
        head.change(&probe.metadata, &self.host, Protocol::Http2);
        let timeout = options.timeout.as_millis().min(99_999_999);
        head.set(&Known::GrpcTimeout.into(), format!("{timeout}m").as_bytes());
        let request = HealthCheckRequest { service: probe.service.to_string() };
        let message = prost::Message::encode_to_vec(&request);
        let mut body = vec![0];
        // A service's name comes from config, which is far shorter than 4 GiB.
        body.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
        body.extend_from_slice(&message);
        self.exchange_http2(&head, &body, MAX_HEAD, connection, options).await
    }

    /// Sends a request by HTTP/2 and takes its answer, trailers among the headers.
    async fn exchange_http2(
        &mut self,
        head: &Head,
        body: &[u8],
        kept: usize,
        connection: Option<Connection>,
        options: &Options,
    ) -> Result<Answer, Broken> {
        let reused = match connection {
            Some(Connection::Http2 { send, _driver }) => send.ready().await.ok().map(|send| (send, _driver)),
            _ => None,
        };
        let (mut send, driver) = match reused {
            Some(reused) => reused,
            None => {
                let mut builder = h2::client::Builder::new();
                builder.enable_push(false).max_header_list_size(MAX_HEAD as u32);
                let (send, driver) =
                    builder.handshake::<_, Bytes>(self.connect(Purpose::Http2, options).await?).await?;
                let driver = Driver(tokio::spawn(async move {
                    // How it ends shows in the requests on it.
                    let _ = driver.await;
                }));
                (send.ready().await?, driver)
            }
        };
        let (response, mut stream) = send.send_request(head.http2()?, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(Bytes::copy_from_slice(body), true)?;
        }
        let (parts, mut incoming) = response.await?.into_parts();
        let pair = |(name, value): (&http::HeaderName, &http::HeaderValue)| -> (Box<[u8]>, Vec<u8>) {
            (name.as_str().as_bytes().into(), value.as_bytes().to_vec())
        };
        let mut headers: Vec<_> = parts.headers.iter().map(pair).collect();
        let mut content = Vec::new();
        while let Some(piece) = incoming.data().await {
            let piece = piece?;
            let _ = incoming.flow_control().release_capacity(piece.len());
            let room = kept.saturating_sub(content.len()).min(piece.len());
            content.extend_from_slice(piece.get(..room).unwrap_or_default());
        }
        if let Some(trailers) = incoming.trailers().await? {
            headers.extend(trailers.iter().map(pair));
        }
        if options.reuse_connection {
            self.connection = Some(Connection::Http2 { send, _driver: driver });
        }
        Ok(Answer { status: parts.status.as_u16(), headers, body: content })
    }
}

/// Whether a connection kept since the last check is still good: neither closed nor has it sent anything.
async fn is_quiet(io: &mut dyn Io) -> bool {
    let mut unasked = [0; 1];
    let read = std::pin::pin!(io.read(&mut unasked));
    futures_poll_once(read).await.is_none()
}

/// Polls once: what is there now, if anything is.
async fn futures_poll_once<F: std::future::Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

impl Answer {
    fn header(&self, known: Known) -> Option<&[u8]> {
        let name = known.name().as_bytes();
        self.headers
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_slice())
    }

    fn named(&self, name: &str) -> &[u8] {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes()));
        found.map(|(_, value)| value.as_slice()).unwrap_or_default()
    }
}

/// What the answer to a request says of its host.
fn judge(probe: &HttpProbe, answer: &Answer) -> Reply {
    let status = answer.status;
    let failed = |retriable| Err(Failure::Active { retriable, status });
    let exclude = answer.header(Known::XEnvoyImmediateHealthCheckFail).is_some();
    if !probe.receive.is_empty() && !contains_in_order(&answer.body, &probe.receive) {
        return Reply { result: failed(false), exclude, verified: false };
    }
    if !probe.expected.iter().any(|range| range.contains(&status)) {
        let retriable = probe.retriable.iter().any(|range| range.contains(&status));
        return Reply { result: failed(retriable), exclude, verified: false };
    }
    let degraded = answer.header(Known::XEnvoyDegraded).is_some();
    let Some(name) = &probe.service_name else { return Reply::from(Ok(degraded)) };
    let known = name.matches(answer.named("x-envoy-upstream-healthchecked-cluster"));
    Reply { result: if known { Ok(degraded) } else { failed(false) }, exclude: false, verified: true }
}

/// What the answer of a gRPC health service says.
fn judge_grpc(answer: &Answer) -> Result<bool, Failure> {
    const SERVING: i32 = 1;
    let failed = Err(Failure::Active { retriable: false, status: 0 });
    let grpc = answer.header(Known::ContentType).is_some_and(|kind| kind.starts_with(b"application/grpc"));
    let ok = answer.header(Known::GrpcStatus) == Some(b"0");
    if answer.status != 200 || !grpc || !ok {
        return failed;
    }
    let [0, a, b, c, d, message @ ..] = answer.body.as_slice() else { return failed };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    let Some(message) = message.get(..length).filter(|_| message.len() == length) else { return failed };
    match <HealthCheckResponse as prost::Message>::decode(message) {
        Ok(response) if response.status == SERVING => Ok(false),
        _ => failed,
    }
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The head of a check's request.
struct Head {
    method: Vec<u8>,
    path: Vec<u8>,
    authority: Vec<u8>,
    fields: Vec<(Box<str>, Vec<u8>)>,
}

impl Head {
    fn new(method: &str, path: &str, authority: &str) -> Self {
        Self {
            method: method.into(),
            path: path.into(),
            authority: authority.into(),
            // Origins know health checks by this name.
            fields: vec![("user-agent".into(), b"Envoy/HC".to_vec())],
        }
    }

    /// Makes the changes that config asks for. Formats see the host, and no client.
    fn change(&mut self, headers: &HeaderOps, host: &Arc<Host>, protocol: Protocol) {
        if headers.is_empty() {
            return;
        }
        let loopback = Some(([127, 0, 0, 1], 0).into());
        let start = Instant::now();
        let connection = ConnectionInfo {
            id: 0,
            remote: loopback,
            direct_remote: loopback,
            local: loopback,
            direct_local: loopback,
            server_name: None,
            listener: "".into(),
            filter_chain: "".into(),
            start,
            inbound: false,
            retirement: Arc::default(),
            tls: None,
            objects: None,
            is_restored: false,
            source: None,
            metadata: None,
        };
        let mut info = StreamInfo::new(Rc::new(connection), start, WallClock::now());
        info.host = Some(host.clone());
        info.protocol = Some(protocol);
        headers.apply_to_request(self, &info);
    }

    fn http1(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for part in [&self.method[..], b" ", &self.path, b" HTTP/1.1\r\nhost: ", &self.authority, b"\r\n"] {
            out.extend_from_slice(part);
        }
        for (name, value) in &self.fields {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        let bodiless = matches!(&self.method[..], b"GET" | b"HEAD" | b"DELETE" | b"TRACE");
        if !bodiless && self.first(&Known::ContentLength.into()).is_none() {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out
    }

    fn http2(&self) -> Result<http::Request<()>, Broken> {
        let uri = http::Uri::builder()
            .scheme("http")
            .authority(self.authority.as_slice())
            .path_and_query(self.path.as_slice())
            .build()?;
        let mut request = http::Request::builder().method(self.method.as_slice()).uri(uri);
        for (name, value) in &self.fields {
            request = request.header(&**name, value.as_slice());
        }
        Ok(request.body(())?)
    }

    fn pseudo(&mut self, name: &str) -> Option<&mut Vec<u8>> {
        match name {
            ":method" => Some(&mut self.method),
            ":path" => Some(&mut self.path),
            ":authority" => Some(&mut self.authority),
            _ => None,
        }
    }
}

impl HeaderView for Head {
    fn values(&self, key: &HeaderKey, each: &mut dyn FnMut(&[u8])) {
        match key.name() {
            ":method" => each(&self.method),
            ":path" => each(&self.path),
            ":authority" => each(&self.authority),
            name => {
                let of_name = self.fields.iter().filter(|(other, _)| **other == *name);
                of_name.for_each(|(_, value)| each(value));
            }
        }
    }

    fn first(&self, key: &HeaderKey) -> Option<&[u8]> {
        match key.name() {
            ":method" => Some(&self.method),
            ":path" => Some(&self.path),
            ":authority" => Some(&self.authority),
            name => self.fields.iter().find(|(other, _)| **other == *name).map(|(_, value)| value.as_slice()),
        }
    }

    fn byte_size(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

impl HeaderMutate for Head {
    fn append(&mut self, key: &HeaderKey, value: &[u8]) {
        if let Some(place) = self.pseudo(key.name()) {
            *place = value.to_vec();
            return;
        }
        let user_agent = self.fields.iter_mut().find(|(name, _)| **name == *"user-agent");
        match user_agent.filter(|_| key.name() == "user-agent") {
            // One field of which there is no more than one.
            Some((_, agents)) => {
                agents.push(b',');
                agents.extend_from_slice(value);
            }
            None => self.fields.push((key.name().into(), value.to_vec())),
        }
    }

    fn set(&mut self, key: &HeaderKey, value: &[u8]) {
        self.remove(key);
        self.append(key, value);
    }

    fn remove(&mut self, key: &HeaderKey) -> bool {
        let before = self.fields.len();
        self.fields.retain(|(name, _)| **name != *key.name());
        self.fields.len() < before
    }

    fn remove_prefix(&mut self, prefix: &str) {
        self.fields.retain(|(name, _)| !name.starts_with(prefix));
    }
}
