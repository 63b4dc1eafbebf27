//! A gRPC server of one unary method, as small as it gets.

use std::error::Error;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::net::TcpListener;

/// Most bytes of a question.
const MAX_QUESTION: usize = 1 << 20;

/// Answers every question that comes to `address` with `answer`, for ever.
pub async fn serve<Q, A, F>(address: &str, answer: F) -> Result<(), Box<dyn Error>>
where
    Q: Message + Default,
    A: Message,
    F: Fn(Q) -> A + Send + Sync + 'static,
{
    let listener = TcpListener::bind(address).await?;
    let answer = Arc::new(answer);
    loop {
        let (socket, _) = listener.accept().await?;
        let answer = answer.clone();
        tokio::spawn(async move {
            let Ok(mut connection) = h2::server::handshake(socket).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    // A client that went away needs no answer.
                    let _ = one(request.into_body(), respond, &*answer).await;
                });
            }
        });
    }
}

async fn one<Q: Message + Default, A: Message>(
    mut body: h2::RecvStream,
    mut respond: h2::server::SendResponse<Bytes>,
    answer: impl Fn(Q) -> A,
) -> Result<(), Box<dyn Error>> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_QUESTION {
            return Err("the question is too long".into());
        }
    }
    // One byte says whether it is compressed, four how long it is.
    let question = Q::decode(bytes.get(5..).unwrap_or_default())?;
    let message = answer(question).encode_to_vec();
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len())?);
    framed.extend_from_slice(&message);
    let head = http::Response::builder().header("content-type", "application/grpc").body(())?;
    let mut stream = respond.send_response(head, false)?;
    stream.send_data(framed.freeze(), false)?;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    stream.send_trailers(trailers)?;
    Ok(())
}
