//! The client over real connections, against a scripted server in this process.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::rustls;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::ProstCodec;
use tonic::Status as Code;

use super::super::*;
use super::{any, resource};
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

type Responses = ReceiverStream<Result<DeltaDiscoveryResponse, Code>>;
type Answer = Result<tonic::Response<Responses>, Code>;

/// One stream as its server sees it.
struct Stream {
    path: String,
    requests: tonic::Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Code>>,
}

#[derive(Clone)]
struct Accept {
    path: String,
    streams: mpsc::Sender<Stream>,
}

impl tonic::server::StreamingService<DeltaDiscoveryRequest> for Accept {
    type Response = DeltaDiscoveryResponse;
    type ResponseStream = Responses;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn call(&mut self, request: tonic::Request<tonic::Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let accept = self.clone();
        Box::pin(async move {
            let (responses, queue) = mpsc::channel(8);
            let stream = Stream { path: accept.path, requests: request.into_inner(), responses };
            accept.streams.send(stream).await.map_err(|_| Code::unavailable("test ended"))?;
            Ok(tonic::Response::new(ReceiverStream::new(queue)))
        })
    }
}

async fn serve<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: I, streams: mpsc::Sender<Stream>) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let streams = streams.clone();
        async move {
            let path = request.uri().path().to_owned();
            let codec = ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default();
            let mut grpc = tonic::server::Grpc::new(codec);
            Ok::<Response<_>, Infallible>(grpc.streaming(Accept { path, streams }, request).await)
        }
    });
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(io), service)
        .await;
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(20), future).await.expect("in time")
}

async fn request(stream: &mut Stream) -> DeltaDiscoveryRequest {
    within(stream.requests.message()).await.unwrap().unwrap()
}

async fn update(events: &mut Events) -> Update {
    loop {
        if let Event::Update(update) = within(events.next()).await.unwrap() {
            return update;
        }
    }
}

async fn disconnected(events: &mut Events) -> String {
    loop {
        if let Event::Disconnected { reason, .. } = within(events.next()).await.unwrap() {
            return reason;
        }
    }
}

fn clusters(nonce: &str, text: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url::CLUSTER.to_owned(),
        nonce: nonce.to_owned(),
        resources: vec![resource("a", 1, Some(any(type_url::CLUSTER, "a", text)))],
        ..Default::default()
    }
}

fn quick() -> Settings {
    Settings { backoff_base: Duration::from_millis(5), ..Settings::new(Default::default()) }
}

#[tokio::test]
async fn a_stream_its_answers_and_the_next_stream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, mut streams) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::spawn(serve(io, sender.clone()));
        }
    });
    let mut endpoint = Endpoint::new(Address::Tcp("127.0.0.1".to_owned(), port));
    endpoint.max_message_size = 4096;
    let (subscriptions, mut events, run) = client::<Incremental>(endpoint, quick(), 1);
    tokio::spawn(run);
    subscriptions.subscribe_all(type_url::CLUSTER, Wildcard::Legacy);

    let mut stream = within(streams.recv()).await.unwrap();
    assert_eq!(stream.path, aggregated(Method::Delta));
    assert_eq!(request(&mut stream).await.type_url, type_url::CLUSTER);
    stream.responses.send(Ok(clusters("1", "x"))).await.unwrap();
    let got = update(&mut events).await;
    assert_eq!(got.added[0].name, "a");
    subscriptions.accept(got.id);
    assert_eq!(request(&mut stream).await.response_nonce, "1");
    let status = within(subscriptions.status()).await.unwrap();
    assert!(status.connected && status.types[0].resources == 1);

    stream.responses.send(Err(Code::unavailable("shutting down"))).await.unwrap();
    assert!(disconnected(&mut events).await.contains("shutting down"));
    let mut stream = within(streams.recv()).await.unwrap();
    assert_eq!(request(&mut stream).await.initial_resource_versions["a"], "1");

    stream.responses.send(Ok(clusters("2", &"x".repeat(5000)))).await.unwrap();
    let reason = disconnected(&mut events).await;
    assert!(reason.contains("max_message_size of 4096 bytes"), "{reason}");

    let mut stream = within(streams.recv()).await.unwrap();
    request(&mut stream).await;
    drop(subscriptions);
    assert!(within(stream.requests.message()).await.map_or(true, |message| message.is_none()));
}

#[tokio::test]
async fn unix_socket_and_the_service_of_one_type() {
    let directory = std::env::temp_dir().join(format!("outrigger-xds-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let (sender, mut streams) = mpsc::channel(1);
    tokio::spawn(async move { serve(listener.accept().await.unwrap().0, sender).await });
    let mut endpoint = Endpoint::new(Address::Unix(path));
    endpoint.single_type = Some(type_url::CLUSTER.to_owned());
    let (subscriptions, mut events, run) = client::<Incremental>(endpoint, quick(), 1);
    tokio::spawn(run);
    subscriptions.subscribe(type_url::CLUSTER, ["a"]);
    let mut stream = within(streams.recv()).await.unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(stream.path, "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters");
    assert_eq!(request(&mut stream).await.resource_names_subscribe, ["a"]);
    let response = DeltaDiscoveryResponse { type_url: String::new(), ..clusters("1", "x") };
    stream.responses.send(Ok(response)).await.unwrap();
    assert_eq!(update(&mut events).await.added.len(), 1);
}

#[tokio::test]
async fn mutual_tls() {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(["xds.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let (pem, key_pem) = (certificate.pem(), key.serialize_pem());
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, mut streams) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            if let Ok(io) = acceptor.accept(io).await {
                tokio::spawn(serve(io, sender.clone()));
            }
        }
    });
    let mut endpoint = Endpoint::new(Address::Tcp("127.0.0.1".to_owned(), port));
    let identity = (pem.as_bytes(), key_pem.as_bytes());
    endpoint.tls = Some(Tls::from_pem(pem.as_bytes(), Some(identity), "xds.test").unwrap());
    let (subscriptions, _events, run) = client::<Incremental>(endpoint.clone(), quick(), 1);
    tokio::spawn(run);
    subscriptions.subscribe(type_url::CLUSTER, ["a"]);
    let mut stream = within(streams.recv()).await.unwrap();
    assert_eq!(request(&mut stream).await.resource_names_subscribe, ["a"]);

    // A certificate for another name is refused.
    endpoint.tls = Some(Tls::from_pem(pem.as_bytes(), Some(identity), "other.test").unwrap());
    let (subscriptions, mut events, run) = client::<Incremental>(endpoint, quick(), 1);
    tokio::spawn(run);
    subscriptions.subscribe(type_url::CLUSTER, ["a"]);
    let reason = disconnected(&mut events).await;
    assert!(reason.contains("TLS handshake"), "{reason}");
}
