//! The bridge from HTTP/1 to gRPC (`envoy.filters.http.grpc_http1_bridge`): a client that cannot read trailers gets
//! gRPC's status in the head of a response that is complete before it begins.

use crate::config::Known;
use crate::config::RequestView;
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead};
use crate::telemetry::stream_info::Protocol;

/// `envoy.extensions.filters.http.grpc_http1_bridge.v3.Config`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Config {
    /// `upgrade_protobuf_to_grpc`: a Protobuf message without gRPC's framing is one of gRPC.
    pub protobuf: bool,
    /// `ignore_query_parameters`: the path of a request that is bridged ends before its query.
    pub drop_query: bool,
}

/// How a request of HTTP/1 is one of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Bridged {
    /// It says so.
    Grpc,
    /// It is a message without framing, and so is its response.
    Protobuf,
}

const PROTOBUF: &[u8] = b"application/x-protobuf";
/// A message begins with whether it is compressed, and its length.
const FRAME: usize = 5;

impl Bridged {
    /// Makes a message without framing one of gRPC. `None` when the request is none.
    pub(super) fn of(config: &Config, request: &mut RequestHead) -> Option<Self> {
        if !matches!(request.protocol, Protocol::Http10 | Protocol::Http11) {
            return None;
        }
        let bridged = if request.is_grpc() {
            Bridged::Grpc
        } else if config.protobuf && request.fields.get(Known::ContentType) == Some(PROTOBUF) {
            Bridged::Protobuf
        } else {
            return None;
        };
        if bridged == Bridged::Protobuf {
            // The client does not speak gRPC: an answer of our own is none of gRPC.
            request.fields.set_known(Known::ContentType, b"application/grpc");
            request.fields.remove_known(Known::ContentLength);
        }
        if config.drop_query {
            let path = request.path();
            if let Some(end) = path.iter().position(|byte| *byte == b'?') {
                let path = path.get(..end).unwrap_or_default().to_vec();
                request.set_path(&path);
            }
        }
        Some(bridged)
    }
}

/// A response without body and trailers: the status stands in its head already.
pub(super) fn head_only(head: &mut ResponseHead) {
    if let Some(status) = head.fields.get(Known::GrpcStatus) {
        if status != b"0" {
            head.set_status(503);
        }
    }
}

/// Puts what `trailers` say into the head; a call that failed is a 503, as clients of HTTP/1 expect.
pub(in crate::http) fn complete(
    head: &mut ResponseHead,
    trailers: Option<&Fields>,
    body: &mut Vec<u8>,
    bridged: Option<Bridged>,
) {
    if bridged == Some(Bridged::Protobuf) {
        body.drain(..FRAME.min(body.len()));
    }
    let length = body.len();
    if let Some(trailers) = trailers {
        if let Some(status) = trailers.get(Known::GrpcStatus) {
            if status != b"0" {
                head.set_status(503);
            }
            head.fields.set_known(Known::GrpcStatus, status);
        }
        if let Some(message) = trailers.get(Known::GrpcMessage) {
            head.fields.set_known(Known::GrpcMessage, message);
        }
    }
    let mut digits = itoa::Buffer::new();
    head.fields.set_known(Known::ContentLength, digits.format(length).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> ResponseHead {
        ResponseHead::new(Fields::recycled(), 200, Protocol::Http2)
    }

    #[test]
    fn trailers_become_fields() {
        for (status, expected) in [("0", 200), ("5", 503), ("x", 503)] {
            let mut trailers = Fields::recycled();
            trailers.push_known(Known::GrpcStatus, status.as_bytes());
            trailers.push_known(Known::GrpcMessage, b"why");
            trailers.push(b"x-other", b"1");
            let mut head = head();
            complete(&mut head, Some(&trailers), &mut vec![0; 12], Some(Bridged::Grpc));
            assert_eq!(
                (head.status, head.fields.get(Known::GrpcStatus)),
                (expected, Some(status.as_bytes()))
            );
            assert_eq!(head.fields.get(Known::GrpcMessage), Some(&b"why"[..]));
            assert_eq!((head.fields.get(Known::ContentLength), head.fields.len()), (Some(&b"12"[..]), 3));
        }
    }
}
