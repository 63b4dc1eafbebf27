//! A real connection: gRPC over TCP on the loopback.

use std::time::Duration;

use hyper::http::uri::PathAndQuery;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::BoxBody;
use tonic::codec::ProstCodec;
use tonic::Streaming;

use super::*;
use crate::pb::envoy::config::core::v3::Node;
use crate::server::{Event, Server, SnapshotCache};

/// The client's half of a stream.
struct Requests<T>(mpsc::UnboundedReceiver<T>);

impl<T> Stream for Requests<T> {
    type Item = T;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        self.0.poll_recv(cx)
    }
}

async fn within<T>(what: &str, future: impl std::future::Future<Output = T>) -> T {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("no {what} within {limit:?}"))
}

/// Opens one stream of the service at `path`.
async fn open<Q, A>(
    address: std::net::SocketAddr,
    path: &'static str,
    first: Q,
) -> (mpsc::UnboundedSender<Q>, Result<Streaming<A>, tonic::Status>)
where
    Q: prost::Message + Send + 'static,
    A: prost::Message + Default + Send + 'static,
{
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake::<_, _, BoxBody>;
    let (mut http, connection) = handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection);
    let service = tower_of(move |request| http.send_request(request));
    let origin = hyper::Uri::try_from(format!("http://{address}")).unwrap();
    let mut grpc = tonic::client::Grpc::with_origin(service, origin);
    let (sender, receiver) = mpsc::unbounded_channel();
    sender.send(first).unwrap();
    let codec = ProstCodec::<Q, A>::default();
    let path = PathAndQuery::from_static(path);
    let answer = grpc.streaming(tonic::Request::new(Requests(receiver)), path, codec).await;
    (sender, answer.map(tonic::Response::into_inner))
}

struct Tower<F>(F);

fn tower_of<F>(call: F) -> Tower<F> {
    Tower(call)
}

impl<F, R> tonic::client::GrpcService<BoxBody> for Tower<F>
where
    F: FnMut(hyper::Request<BoxBody>) -> R,
    R: std::future::Future<Output = Result<hyper::Response<hyper::body::Incoming>, hyper::Error>>,
{
    type ResponseBody = hyper::body::Incoming;
    type Error = hyper::Error;
    type Future = R;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: hyper::Request<BoxBody>) -> R {
        (self.0)(request)
    }
}

async fn post(address: std::net::SocketAddr, path: &str, body: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    tcp.write_all((head + body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("answer", tcp.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn rest_is_served_on_the_same_port() {
    let cache = SnapshotCache::by_node_id();
    let snapshot = mesh(&["a"], 0);
    cache.set("n", snapshot.clone());
    let server = Server::new(cache);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { server.serve(listener).await });
    let clusters = "/v3/discovery:clusters";
    let answer = post(address, clusters, r#"{"node": {"id": "n"}}"#).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["resources"][0]["@type"], CDS.url());
    let version = snapshot.version(&CDS);
    let again = format!(r#"{{"node": {{"id": "n"}}, "version_info": "{version}"}}"#);
    assert!(post(address, clusters, &again).await.starts_with("HTTP/1.1 304"));
    for (path, body, status) in [
        (clusters, r#"{"node": {"id": "x"}}"#, "503"),
        (clusters, r#"{"nude": {}}"#, "400"),
        ("/v3/discovery:nonsense", "{}", "404"),
        ("/anything", "{}", "404"),
    ] {
        let answer = post(address, path, body).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path} {body}: {answer}");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let cache = SnapshotCache::by_node_id();
    cache.set("n", mesh(&["a"], 0));
    let limits = crate::server::Limits { connections: 1, ..Default::default() };
    let server = Server::new(cache).with_limits(limits);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { server.serve(listener).await });
    let node = Some(Node { id: "n".into(), ..Node::default() });
    let first = DeltaDiscoveryRequest { node, ..delta(&CDS, &[], &[]) };
    let (holding, answers) =
        within("stream", open::<_, DeltaDiscoveryResponse>(address, ADS_DELTA, first)).await;
    let mut answers = answers.unwrap();
    within("response", answers.next()).await.unwrap().unwrap();
    let request = r#"{"node": {"id": "n"}}"#;
    let mut waiting = Box::pin(post(address, "/v3/discovery:clusters", request));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "a second connection was served");
    drop((holding, answers));
    assert!(within("turn", waiting).await.starts_with("HTTP/1.1 200"));
}

const ADS_DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

#[tokio::test]
async fn a_client_follows_its_snapshot() {
    let cache = SnapshotCache::by_node_id();
    cache.set("n", mesh(&["a"], 0));
    let (told, mut events) = mpsc::unbounded_channel();
    let server = Server::new(cache.clone()).on_event(move |_, event| {
        let _ = told.send(event.clone());
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { server.serve(listener).await });

    let node = Some(Node { id: "n".into(), cluster: "c".into(), ..Node::default() });
    let first = DeltaDiscoveryRequest { node: node.clone(), ..delta(&CDS, &[], &[]) };
    let (sender, answers) =
        within("stream", open::<_, DeltaDiscoveryResponse>(address, ADS_DELTA, first)).await;
    let mut answers = answers.unwrap();
    let response = within("response", answers.next()).await.unwrap().unwrap();
    assert_eq!(response.resources[0].name, "a");
    let refused = DeltaDiscoveryRequest {
        response_nonce: response.nonce,
        error_detail: refusal(),
        ..delta(&CDS, &[], &[])
    };
    sender.send(refused).unwrap();
    assert!(matches!(within("event", events.recv()).await, Some(Event::Connected)));
    match within("event", events.recv()).await {
        Some(Event::Nack { kind, nack }) => assert_eq!((kind, nack.message.as_str()), (CDS, "no such thing")),
        other => panic!("{other:?}"),
    }
    let status = cache.streams().remove(0);
    assert_eq!((status.node_id.as_str(), status.node_cluster.as_str()), ("n", "c"));
    assert!(!status.is_in_sync());

    cache.set("n", mesh(&["a", "b"], 0));
    let response = within("update", answers.next()).await.unwrap().unwrap();
    assert_eq!(response.resources[0].name, "b");

    // A separate stream of one type, state of the world, at the same time.
    let path = "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints";
    let first = DiscoveryRequest { node, type_url: String::new(), ..sotw(&EDS, &["b"], "") };
    let (_sender, answers) = within("stream", open::<_, DiscoveryResponse>(address, path, first)).await;
    let response = within("endpoints", answers.unwrap().next()).await.unwrap().unwrap();
    assert_eq!((response.type_url.as_str(), response.resources.len()), (EDS.url(), 1));

    drop(sender);
    while !matches!(within("event", events.recv()).await, Some(Event::Disconnected(_))) {}
}

#[tokio::test]
async fn wrong_calls_get_a_status() {
    let server = Server::new(SnapshotCache::by_node_id());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { server.serve(listener).await });
    let first = delta(&CDS, &[], &[]);
    let (_s, answers) = within("stream", open::<_, DeltaDiscoveryResponse>(address, ADS_DELTA, first)).await;
    let status = within("status", answers.unwrap().next()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/Other";
    let (_s, answers) =
        within("stream", open::<_, DeltaDiscoveryResponse>(address, path, delta(&CDS, &[], &[]))).await;
    assert_eq!(answers.unwrap_err().code(), tonic::Code::Unimplemented);
}
