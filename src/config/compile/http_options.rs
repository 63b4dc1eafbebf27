//! HTTP/1 codec options, shared by both sides.

use outrigger_control_api::pb::envoy::config::core::v3 as core;

use crate::config::http::{HeaderCase, Http1Options};

/// `Http1ProtocolOptions`, absent or not, with Envoy's defaults.
pub(super) fn http1_options(options: Option<&core::Http1ProtocolOptions>) -> Http1Options {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    let default = core::Http1ProtocolOptions::default();
    let options = options.unwrap_or(&default);
    let format = options.header_key_format.as_ref().and_then(|format| format.header_format.as_ref());
    Http1Options {
        enable_trailers: options.enable_trailers,
        allow_chunked_length: options.allow_chunked_length,
        header_case: match format {
            None => HeaderCase::Lower,
            Some(HeaderFormat::ProperCaseWords(_)) => HeaderCase::Proper,
            // `preserve_case` is the only formatter that the support table lets through.
            Some(HeaderFormat::StatefulFormatter(_)) => HeaderCase::Preserve,
        },
    }
}
