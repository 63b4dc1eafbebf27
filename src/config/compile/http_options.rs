//! Codec options, shared by both sides.

use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::extensions::http::header_formatters::preserve_case::v3::preserve_case_formatter_config::FormatterTypeOnEnvoyHeaders;
use outrigger_control_api::pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig as Preserve;
use prost::Message;

use super::{duration, u32_or};
use crate::config::http::{HeaderCase, Http1Options};
use crate::config::problems::Problems;
use crate::http::h2;

/// `Http1ProtocolOptions`, absent or not, with Envoy's defaults.
pub(super) fn http1_options(options: Option<&core::Http1ProtocolOptions>) -> Http1Options {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    let default = core::Http1ProtocolOptions::default();
    let options = options.unwrap_or(&default);
    let format = options.header_key_format.as_ref().and_then(|format| format.header_format.as_ref());
    let kept = match format {
        Some(HeaderFormat::StatefulFormatter(formatter)) => {
            // `preserve_case` is the only formatter that the support table lets through, with bytes that it has read.
            let config = formatter.typed_config.as_ref();
            config.and_then(|config| Preserve::decode(&*config.value).ok()).unwrap_or_default()
        }
        _ => Preserve::default(),
    };
    Http1Options {
        enable_trailers: options.enable_trailers,
        allow_chunked_length: options.allow_chunked_length,
        header_case: match format {
            None => HeaderCase::Lower,
            Some(HeaderFormat::ProperCaseWords(_)) => HeaderCase::Proper,
            Some(HeaderFormat::StatefulFormatter(_)) => HeaderCase::Preserve,
        },
        proper_added: kept.formatter_type_on_envoy_headers() == FormatterTypeOnEnvoyHeaders::ProperCase,
        forward_reason: kept.forward_reason_phrase,
    }
}

/// The options of HTTP/2. Field rules of Envoy (ranges) have been checked by reflection.
pub(super) fn http2_options(
    options: Option<&core::Http2ProtocolOptions>,
    problems: &mut Problems,
) -> h2::Options {
    let default = h2::Options::default();
    let Some(options) = options else { return default };
    let limits = h2::Limits::default();
    let keepalive = options.connection_keepalive.as_ref().and_then(|keepalive| {
        problems.at("connection_keepalive", |problems| {
            let timeout = duration(&keepalive.timeout, "timeout", problems)?;
            let interval = duration(&keepalive.interval, "interval", problems);
            let idle_interval =
                duration(&keepalive.connection_idle_interval, "connection_idle_interval", problems);
            let jitter_percent = keepalive.interval_jitter.map_or(15.0, |jitter| jitter.value);
            Some(h2::Keepalive { interval, idle_interval, timeout, jitter_percent })
        })
    });
    h2::Options {
        header_table_size: u32_or(options.hpack_table_size, default.header_table_size),
        max_concurrent_streams: u32_or(options.max_concurrent_streams, default.max_concurrent_streams),
        initial_stream_window: u32_or(options.initial_stream_window_size, default.initial_stream_window),
        initial_connection_window: u32_or(
            options.initial_connection_window_size,
            default.initial_connection_window,
        ),
        allow_connect: options.allow_connect,
        keepalive,
        limits: h2::Limits {
            empty: u32_or(options.max_consecutive_inbound_frames_with_empty_payload, limits.empty),
            priority: options
                .max_inbound_priority_frames_per_stream
                .map_or(limits.priority, |most| most.value.into()),
            window_update: options
                .max_inbound_window_update_frames_per_data_frame_sent
                .map_or(limits.window_update, |most| most.value.into()),
            control: u32_or(options.max_outbound_control_frames, limits.control),
        },
    }
}
