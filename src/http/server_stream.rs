//! A gRPC call with one request and any number of responses, on a connection of its own.
//!
//! Comes in: a connected byte stream, whom to call and with what. Goes out: each message as it comes, and how the stream
//! ended. For the control thread: nothing here is fast.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request, Uri};
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream, whatever it is.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What is called.
#[derive(Debug, Clone, Copy)]
pub struct Call<'c> {
    /// Whom the request is for.
    pub authority: &'c str,
    /// `/package.Service/Method`.
    pub method: &'c str,
    /// More of the request's head.
    pub metadata: &'c [(&'c str, &'c str)],
    /// The encoded request.
    pub message: &'c [u8],
    /// Largest response that is taken in, in bytes.
    pub most: usize,
}

/// How a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The service said so.
    #[error("gRPC status {0}: {1}")]
    Status(u32, String),
    /// It broke.
    #[error("{0}")]
    Broken(String),
}

impl End {
    /// Whether the service is not there (`UNIMPLEMENTED`).
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, End::Status(12, _))
    }

    fn of(error: impl std::fmt::Display) -> Self {
        End::Broken(error.to_string())
    }
}

/// Calls, and tells `each` the messages that come. `Ok` when the service ended the stream well.
///
/// # Errors
/// It ended otherwise.
pub async fn call(io: Box<dyn Io>, call: Call<'_>, each: &mut (dyn FnMut(Bytes) + Send)) -> Result<(), End> {
    let mut builder = h2::client::Builder::new();
    builder.enable_push(false).max_header_list_size(16 << 10);
    let (send, driver) = builder.handshake::<_, Bytes>(io).await.map_err(End::of)?;
    let exchange = async {
        let mut send = send.ready().await.map_err(End::of)?;
        let (response, mut body) = send.send_request(head(&call)?, false).map_err(End::of)?;
        body.send_data(framed(call.message), true).map_err(End::of)?;
        let (head, mut incoming) = response.await.map_err(End::of)?.into_parts();
        status(&head.headers)?;
        if head.status != 200 {
            return Err(End::Broken(format!("HTTP status {}", head.status)));
        }
        let mut input = BytesMut::new();
        while let Some(piece) = incoming.data().await {
            let piece = piece.map_err(End::of)?;
            let _ = incoming.flow_control().release_capacity(piece.len());
            input.extend_from_slice(&piece);
            while let Some(message) = take(&mut input, call.most)? {
                each(message);
            }
        }
        match incoming.trailers().await.map_err(End::of)? {
            Some(trailers) => status(&trailers),
            None => Ok(()),
        }
    };
    tokio::select! {
        // What has come counts before what became of the connection.
        biased;
        end = exchange => end,
        end = driver => Err(End::Broken(end.err().map_or("closed".to_owned(), |error| error.to_string()))),
    }
}

fn head(call: &Call<'_>) -> Result<Request<()>, End> {
    let uri = Uri::builder().scheme("http").authority(call.authority).path_and_query(call.method);
    let mut request = Request::builder()
        .method("POST")
        .uri(uri.build().map_err(End::of)?)
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in call.metadata {
        request = request.header(*name, *value);
    }
    request.body(()).map_err(End::of)
}

/// A message with its prefix.
fn framed(message: &[u8]) -> Bytes {
    let mut framed = Vec::with_capacity(5 + message.len());
    framed.push(0);
    // Requests are made here, and short.
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(message);
    framed.into()
}

/// The next message of `input`, if all of it is there.
fn take(input: &mut BytesMut, most: usize) -> Result<Option<Bytes>, End> {
    let Some([compressed, a, b, c, d]) = input.first_chunk() else { return Ok(None) };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    if *compressed != 0 {
        return Err(End::Broken("a compressed message, which was not asked for".to_owned()));
    }
    if length > most {
        return Err(End::Broken(format!("a message of {length} bytes, {most} may come")));
    }
    if input.len() < 5 + length {
        return Ok(None);
    }
    input.advance(5);
    Ok(Some(input.split_to(length).freeze()))
}

/// What `grpc-status` says, if it is there.
fn status(headers: &HeaderMap) -> Result<(), End> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").map(|status| status.parse().unwrap_or(2)) {
        None | Some(0) => Ok(()),
        Some(other) => Err(End::Status(other, text("grpc-message").unwrap_or_default().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_whole() {
        let mut input = BytesMut::from(&framed(b"one")[..]);
        input.extend_from_slice(&framed(b""));
        input.extend_from_slice(&framed(b"three")[..7]);
        assert_eq!(take(&mut input, 9).unwrap().unwrap(), "one");
        assert_eq!(take(&mut input, 9).unwrap().unwrap(), "");
        assert!(take(&mut input, 9).unwrap().is_none());
        input.extend_from_slice(b"ree");
        assert!(take(&mut input.clone(), 4).is_err(), "longer than may come");
        assert_eq!(take(&mut input, 5).unwrap().unwrap(), "three");
        assert!(take(&mut BytesMut::from(&b"\x01\0\0\0\0"[..]), 9).is_err(), "compressed");
    }
}
