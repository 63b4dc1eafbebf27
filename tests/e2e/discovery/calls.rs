//! Calls of gRPC's form that stay open, and what answers them.

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::harness::DEADLINE;

/// A server of gRPC's form: its calls get back each message as it comes.
pub async fn echo(request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let head = http::Response::builder().header("content-type", "application/grpc").body(()).expect("a head");
    let mut back = respond.send_response(head, false).expect("the head is taken");
    let mut body = request.into_body();
    while let Some(Ok(piece)) = body.data().await {
        let _ = body.flow_control().release_capacity(piece.len());
        back.send_data(piece, false).expect("the piece is taken");
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let _ = back.send_trailers(trailers);
}

/// A call of gRPC's form that stays open.
pub struct Call {
    send: h2::SendStream<Bytes>,
    body: h2::RecvStream,
}

impl Call {
    pub async fn open(port: u16) -> Call {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let request = http::Request::builder()
            .method("POST")
            .uri("http://t.test/test.Echo/Both")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let request = request.body(()).expect("a head");
        let (response, send) = client.send_request(request, false).expect("a stream");
        let response = tokio::time::timeout(DEADLINE, response).await.expect("in time").expect("a response");
        assert_eq!(response.status(), 200);
        Call { send, body: response.into_body() }
    }

    pub async fn echo(&mut self, text: &[u8]) {
        let mut message = vec![0];
        message.extend_from_slice(&u32::try_from(text.len()).expect("a short text").to_be_bytes());
        message.extend_from_slice(text);
        self.send.send_data(Bytes::from(message.clone()), false).expect("the stream is open");
        let mut back = Vec::new();
        while back.len() < message.len() {
            let piece = tokio::time::timeout(DEADLINE, self.body.data()).await.expect("in time");
            let piece = piece.expect("the stream is open").expect("the stream is whole");
            let _ = self.body.flow_control().release_capacity(piece.len());
            back.extend_from_slice(&piece);
        }
        assert_eq!(back, message);
    }

    pub async fn end(mut self) {
        self.send.send_data(Bytes::new(), true).expect("the stream is open");
        while let Some(piece) = self.body.data().await {
            piece.expect("the stream is whole");
        }
        let trailers = self.body.trailers().await.expect("the stream is whole").expect("trailers");
        assert_eq!(trailers["grpc-status"], "0");
    }
}
