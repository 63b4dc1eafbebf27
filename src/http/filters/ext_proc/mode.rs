//! What of a message is looked at (`ProcessingMode`).

use outrigger_control_api::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::{
    BodySendMode, HeaderSendMode,
};
use outrigger_control_api::pb::envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::ProtocolConfiguration;

/// How a body is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Body {
    None,
    /// Piece after piece.
    Pieces,
    Whole,
    /// As much of it as may be held.
    Beginning,
    /// As it comes; what goes on is what the service says, when it says it.
    Duplex,
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Mode {
    pub request_head: bool,
    pub response_head: bool,
    pub request_body: Body,
    pub response_body: Body,
    pub request_trailers: bool,
    pub response_trailers: bool,
}

impl Body {
    /// `None` if it is not supported.
    fn of(value: i32) -> Option<Self> {
        match BodySendMode::try_from(value) {
            Ok(BodySendMode::None) => Some(Body::None),
            Ok(BodySendMode::Streamed) => Some(Body::Pieces),
            Ok(BodySendMode::Buffered) => Some(Body::Whole),
            Ok(BodySendMode::BufferedPartial) => Some(Body::Beginning),
            Ok(BodySendMode::FullDuplexStreamed) => Some(Body::Duplex),
            Ok(BodySendMode::Grpc) | Err(_) => None,
        }
    }

    fn code(self) -> i32 {
        match self {
            Body::None => BodySendMode::None,
            Body::Pieces => BodySendMode::Streamed,
            Body::Whole => BodySendMode::Buffered,
            Body::Beginning => BodySendMode::BufferedPartial,
            Body::Duplex => BodySendMode::FullDuplexStreamed,
        }
        .into()
    }

    /// Whether the length of what goes on is not known before it does.
    pub(in crate::http) fn unsizes(self) -> bool {
        matches!(self, Body::Pieces | Body::Beginning | Body::Duplex)
    }
}

impl Mode {
    /// What `mode` says; `None` if it wants what is not supported.
    pub(crate) fn of(mode: &ProcessingMode) -> Option<Self> {
        let sends = |value: i32| HeaderSendMode::try_from(value) == Ok(HeaderSendMode::Send);
        let skips = |value: i32| HeaderSendMode::try_from(value) == Ok(HeaderSendMode::Skip);
        Some(Self {
            request_head: !skips(mode.request_header_mode),
            response_head: !skips(mode.response_header_mode),
            request_body: Body::of(mode.request_body_mode)?,
            response_body: Body::of(mode.response_body_mode)?,
            request_trailers: sends(mode.request_trailer_mode),
            response_trailers: sends(mode.response_trailer_mode),
        })
    }

    /// This mode with what a service says of it: of heads and trailers it may say nothing. `None` if it wants what is not
    /// supported.
    pub(super) fn overridden(self, mode: &ProcessingMode) -> Option<Self> {
        let or = |value: i32, unset: bool| match HeaderSendMode::try_from(value) {
            Ok(HeaderSendMode::Send) => true,
            Ok(HeaderSendMode::Skip) => false,
            _ => unset,
        };
        Some(Self {
            request_head: self.request_head,
            response_head: or(mode.response_header_mode, self.response_head),
            request_body: Body::of(mode.request_body_mode)?,
            response_body: Body::of(mode.response_body_mode)?,
            request_trailers: or(mode.request_trailer_mode, self.request_trailers),
            response_trailers: or(mode.response_trailer_mode, self.response_trailers),
        })
    }

    /// The same, of heads alone.
    pub(super) fn of_heads(self) -> Self {
        Self {
            request_body: Body::None,
            response_body: Body::None,
            request_trailers: false,
            response_trailers: false,
            ..self
        }
    }

    /// Whether a service takes and gives one of the bodies as it likes.
    pub(super) fn is_duplex(&self) -> bool {
        self.request_body == Body::Duplex || self.response_body == Body::Duplex
    }

    /// How bodies come, as the service is told with the first message.
    pub(super) fn protocol(&self) -> ProtocolConfiguration {
        ProtocolConfiguration {
            request_body_mode: self.request_body.code(),
            response_body_mode: self.response_body.code(),
            send_body_without_waiting_for_header_response: false,
        }
    }
}
