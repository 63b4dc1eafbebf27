//! gRPC-Web (`envoy.filters.http.grpc_web`; gRPC's PROTOCOL-WEB): for clients that cannot read trailers, which then come
//! as the last message of the body, and for those that can only have text, for which the body is base64.

use base64::alphabet;
use base64::engine::{Engine as _, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

use crate::config::{HeaderKey, HeaderView, Known};
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead};

/// A request of gRPC-Web.
#[derive(Debug, Clone)]
pub struct Web {
    text_request: bool,
    text_response: bool,
}

const WEB: &[u8] = b"application/grpc-web";
const TEXT: &[u8] = b"-text";

/// Whether a type is one of gRPC-Web, and then whether it is text, and what follows (`+proto`).
fn kind(value: &[u8]) -> Option<(bool, &[u8])> {
    let rest = value.strip_prefix(WEB)?;
    let (text, rest) = match rest.strip_prefix(TEXT) {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    (rest.is_empty() || rest == b"+proto").then_some((text, rest))
}

impl Web {
    /// Turns a request of gRPC-Web into one of gRPC. `None` when it is none.
    pub(super) fn of(request: &mut RequestHead) -> Option<Self> {
        let (text_request, _) = kind(request.fields.get(Known::ContentType)?)?;
        let accept = request.first(&HeaderKey::new("accept")).and_then(kind);
        let web = Self { text_request, text_response: accept.is_some_and(|(text, _)| text) };
        request.fields.remove_known(Known::ContentLength);
        request.set_grpc_type(b"application/grpc");
        request.fields.set_known(Known::Te, b"trailers");
        crate::config::HeaderMutate::set(
            request,
            &HeaderKey::new("grpc-accept-encoding"),
            b"identity,deflate,gzip",
        );
        Some(web)
    }

    pub(super) fn request_transform(&self) -> Option<Transform> {
        self.text_request.then(|| Transform::Decode(Vec::new()))
    }

    pub(super) fn response_transform(&self) -> Option<Transform> {
        Some(Transform::Web { text: self.text_response })
    }

    pub(super) fn response_type(&self) -> &'static [u8] {
        if self.text_response {
            b"application/grpc-web-text+proto"
        } else {
            b"application/grpc-web+proto"
        }
    }

    pub(super) fn response_head(&self, head: &mut ResponseHead) {
        if head.fields.get(Known::ContentType).is_some_and(|kind| kind.starts_with(b"application/grpc")) {
            head.fields.set_known(Known::ContentType, self.response_type());
            head.fields.remove_known(Known::ContentLength);
        }
    }
}

/// What becomes of a body on its way.
#[derive(Debug)]
pub enum Transform {
    /// Base64 becomes bytes. Holds what is no whole group yet.
    Decode(Vec<u8>),
    /// All of it becomes one message of gRPC, of at most so many bytes.
    Message(Vec<u8>, usize),
    /// Trailers become the last message, and if `text`, everything base64.
    Web {
        /// Everything is base64.
        text: bool,
    },
}

/// The flag of a message that holds trailers.
const TRAILERS: u8 = 0x80;

impl Transform {
    /// The next piece. `None` when what should be base64 is not.
    pub fn piece(&mut self, piece: &[u8]) -> Option<Bytes> {
        match self {
            Transform::Web { text: false } => Some(Bytes::copy_from_slice(piece)),
            Transform::Web { text: true } => Some(LENIENT.encode(piece).into()),
            Transform::Message(message, limit) => {
                message.extend_from_slice(piece);
                (message.len() <= *limit).then(Bytes::new)
            }
            Transform::Decode(rest) => {
                rest.extend_from_slice(piece);
                let whole = rest.len() / 4 * 4;
                let mut out = Vec::with_capacity(whole / 4 * 3);
                let (groups, _) = rest.get(..whole)?.as_chunks::<4>();
                for group in groups {
                    decode(*group, &mut out)?;
                }
                rest.drain(..whole);
                Some(out.into())
            }
        }
    }

    /// What the end of the body becomes: the last piece, and the trailers that are left.
    pub fn end(&mut self, trailers: Option<Fields>) -> Option<(Bytes, Option<Fields>)> {
        match self {
            Transform::Decode(rest) => rest.is_empty().then_some((Bytes::new(), trailers)),
            Transform::Message(message, _) => {
                let length = u32::try_from(message.len()).ok()?;
                let framed = [&[0], &length.to_be_bytes()[..], message].concat();
                Some((framed.into(), trailers))
            }
            Transform::Web { text } => {
                let Some(trailers) = trailers else { return Some((Bytes::new(), None)) };
                let mut message = vec![TRAILERS, 0, 0, 0, 0];
                for (_, name, value) in trailers.iter() {
                    message.extend_from_slice(name);
                    message.push(b':');
                    message.extend_from_slice(value);
                    message.extend_from_slice(b"\r\n");
                }
                let length = u32::try_from(message.len() - 5).unwrap_or(u32::MAX).to_be_bytes();
                // The message begins with five bytes.
                message[1..5].copy_from_slice(&length);
                Some((if *text { LENIENT.encode(&message).into() } else { message.into() }, None))
            }
        }
    }
}

/// What clients send may have bits after its end (RFC 4648 §3.5).
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Appends the bytes of one group, which may be padded: texts that were encoded apart follow one another.
fn decode(group: [u8; 4], out: &mut Vec<u8>) -> Option<()> {
    let mut bytes = [0; 3];
    let count = LENIENT.decode_slice_unchecked(group, &mut bytes).ok()?;
    out.extend_from_slice(bytes.get(..count)?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_both_ways_whatever_the_cuts() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for length in [0, 1, 2, 3, 4, 255, 1000] {
            let text = LENIENT.encode(&bytes[..length]).into_bytes();
            assert_eq!(text.len() % 4, 0);
            for cut in [1, 3, 4, 7, 1400] {
                let mut transform = Transform::Decode(Vec::new());
                let mut out = Vec::new();
                for piece in text.chunks(cut) {
                    out.extend_from_slice(&transform.piece(piece).unwrap());
                }
                assert!(transform.end(None).is_some());
                assert_eq!(out, &bytes[..length], "{length} {cut}");
            }
        }
        assert_eq!(LENIENT.encode(b"light work."), "bGlnaHQgd29yay4=");
        let mut transform = Transform::Decode(Vec::new());
        assert_eq!(transform.piece(b"YQ==Yg==").as_deref(), Some(&b"ab"[..]), "texts one after the other");
        assert!(transform.piece(b"Y*==").is_none());
        let mut transform = Transform::Decode(Vec::new());
        assert!(transform.piece(b"YQ").is_some() && transform.end(None).is_none());
    }

    #[test]
    fn trailers_are_the_last_message() {
        let mut trailers = Fields::recycled();
        trailers.push_known(Known::GrpcStatus, b"0");
        trailers.push(b"x-a", b"b");
        let (message, left) = Transform::Web { text: false }.end(Some(trailers)).unwrap();
        assert_eq!(&message[..], b"\x80\0\0\0\x16grpc-status:0\r\nx-a:b\r\n");
        assert!(left.is_none());
    }

    #[test]
    fn types() {
        assert_eq!(kind(b"application/grpc-web"), Some((false, &b""[..])));
        assert_eq!(kind(b"application/grpc-web-text+proto"), Some((true, &b"+proto"[..])));
        assert_eq!(kind(b"application/grpc-web+json"), None);
        assert_eq!(kind(b"application/grpc"), None);
    }
}
