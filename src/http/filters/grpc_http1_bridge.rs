//! The bridge from HTTP/1 to gRPC (`envoy.filters.http.grpc_http1_bridge`): a client that cannot read trailers gets
//! gRPC's status in the head of a response that is complete before it begins.

use crate::config::Known;
use crate::config::RequestView;
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead};
use crate::telemetry::stream_info::Protocol;

/// Whether the request is one of gRPC over HTTP/1.
pub(super) fn concerns(request: &RequestHead) -> bool {
    matches!(request.protocol, Protocol::Http10 | Protocol::Http11) && request.is_grpc()
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
pub(in crate::http) fn complete(head: &mut ResponseHead, trailers: Option<&Fields>, length: usize) {
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
            complete(&mut head, Some(&trailers), 12);
            assert_eq!(
                (head.status, head.fields.get(Known::GrpcStatus)),
                (expected, Some(status.as_bytes()))
            );
            assert_eq!(head.fields.get(Known::GrpcMessage), Some(&b"why"[..]));
            assert_eq!((head.fields.get(Known::ContentLength), head.fields.len()), (Some(&b"12"[..]), 3));
        }
    }
}
