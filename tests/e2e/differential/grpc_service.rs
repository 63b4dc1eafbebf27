//! A gRPC service for filters to ask: it keeps the questions and answers by a function.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// How a question is answered.
pub enum Said<A> {
    /// With this message.
    Message(A),
    /// With a gRPC status.
    Status(u32),
    /// Never.
    Nothing,
}

pub struct GrpcService<Q> {
    port: u16,
    questions: Arc<Mutex<Vec<Q>>>,
    task: JoinHandle<()>,
}

impl<Q> Drop for GrpcService<Q> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<Q: Message + Default + Clone + 'static> GrpcService<Q> {
    /// Starts one.
    pub async fn start<A: Message + 'static>(
        answer: impl Fn(&Q) -> Said<A> + Send + Sync + 'static,
    ) -> GrpcService<Q> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let questions = Arc::new(Mutex::new(Vec::new()));
        let (kept, answer) = (questions.clone(), Arc::new(answer));
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (kept, answer) = (kept.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(serve(request, respond, kept.clone(), answer.clone()));
                    }
                });
            }
        });
        GrpcService { port, questions, task }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// All questions so far; they are kept.
    pub fn questions(&self) -> Vec<Q> {
        self.questions.lock().expect("no panic").clone()
    }

    /// All questions so far.
    pub fn take(&self) -> Vec<Q> {
        std::mem::take(&mut self.questions.lock().expect("no panic"))
    }
}

/// Panics with the questions, as texts, that came an odd number of times: of two proxies with equal requests only one has
/// asked them.
pub fn asked_by_both(questions: impl IntoIterator<Item = String>) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for question in questions {
        *counts.entry(question).or_default() += 1;
    }
    let odd: Vec<_> = counts.iter().filter(|(_, count)| *count % 2 != 0).map(|(text, _)| text).collect();
    assert!(odd.is_empty(), "questions that only one has asked:\n{odd:#?}");
}

async fn serve<Q: Message + Default + Clone, A: Message>(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    kept: Arc<Mutex<Vec<Q>>>,
    answer: Arc<impl Fn(&Q) -> Said<A>>,
) {
    let mut body = request.into_body();
    let mut bytes = BytesMut::new();
    while let Some(Ok(piece)) = body.data().await {
        let _ = body.flow_control().release_capacity(piece.len());
        bytes.extend_from_slice(&piece);
    }
    let question = Q::decode(bytes.get(5..).unwrap_or_default()).expect("a question");
    kept.lock().expect("no panic").push(question.clone());
    let head = || http::Response::builder().header("content-type", "application/grpc");
    match answer(&question) {
        Said::Message(message) => {
            let mut framed = BytesMut::new();
            framed.put_u8(0);
            framed.put_u32(message.encoded_len() as u32);
            message.encode(&mut framed).expect("room");
            let Ok(mut stream) = respond.send_response(head().body(()).expect("a head"), false) else {
                return;
            };
            let _ = stream.send_data(framed.freeze(), false);
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            let _ = stream.send_trailers(trailers);
        }
        Said::Status(status) => {
            let _ =
                respond.send_response(head().header("grpc-status", status).body(()).expect("a head"), true);
        }
        Said::Nothing => std::future::pending().await,
    }
}

/// The options of a cluster that speaks HTTP/2.
pub const HTTP2: &str = "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: { http2_protocol_options: {} } } }";
