//! A service that takes whatever it is told over gRPC: logs, metrics. It keeps the messages as they come, and answers a
//! call when it ends.

use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::RecvStream;
use http::Request;
use prost::Message;

use super::http2;

/// A message.
#[derive(Clone, Debug)]
struct Received {
    /// The method that was called.
    path: String,
    bytes: Bytes,
}

#[derive(Clone)]
pub struct Collector {
    port: u16,
    messages: Arc<Mutex<Vec<Received>>>,
}

impl Collector {
    /// Starts one.
    pub async fn start() -> Collector {
        let messages: Arc<Mutex<Vec<Received>>> = Arc::default();
        let kept = messages.clone();
        let port = http2::serve(move |request, respond| serve(request, respond, kept.clone())).await;
        Collector { port, messages }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The messages since the last time of the method whose path ends so, decoded.
    pub fn take_of<M: Message + Default>(&self, method: &str) -> Vec<M> {
        let mut all = self.messages.lock().expect("no panic");
        let (own, others) = all.drain(..).partition(|one| one.path.ends_with(method));
        *all = others;
        let own: Vec<Received> = own;
        own.into_iter().map(|one| M::decode(one.bytes).expect("a message")).collect()
    }
}

async fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    kept: Arc<Mutex<Vec<Received>>>,
) {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let mut bytes = BytesMut::new();
    while let Some(Ok(piece)) = body.data().await {
        let _ = body.flow_control().release_capacity(piece.len());
        bytes.extend_from_slice(&piece);
        while let Some(length) = bytes.get(1..5).map(|mut length| length.get_u32() as usize) {
            if bytes.len() < 5 + length {
                break;
            }
            bytes.advance(5);
            let message = Received { path: path.clone(), bytes: bytes.split_to(length).freeze() };
            kept.lock().expect("no panic").push(message);
        }
    }
    let head = http::Response::builder().header("content-type", "application/grpc");
    let Ok(mut stream) = respond.send_response(head.body(()).expect("a head"), false) else { return };
    let _ = stream.send_data(Bytes::from_static(&[0; 5]), false);
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let _ = stream.send_trailers(trailers);
}
