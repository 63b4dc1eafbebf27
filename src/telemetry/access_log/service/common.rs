//! What entries for HTTP and TCP have in common (`envoy.data.accesslog.v3.AccessLogCommon`).

use std::sync::LazyLock;

use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::data::accesslog::v3 as pb;
use outrigger_control_api::pb::envoy::data::accesslog::v3::response_flags::{
    unauthorized::Reason, Unauthorized,
};
use outrigger_control_api::pb::envoy::data::accesslog::v3::tls_properties::certificate_properties::{
    subject_alt_name::San, SubjectAltName,
};
use outrigger_control_api::pb::envoy::data::accesslog::v3::tls_properties::{
    CertificateProperties, TlsVersion,
};
use outrigger_control_api::pb::google::protobuf as wkt;
use xxhash_rust::xxh64::xxh64;

use super::entry::KEYS;
use crate::config::discovery::SanKind;
use crate::telemetry::format::{FormatContext, LogType};
use crate::telemetry::stream_info::{ResponseFlags, StreamInfo};
use crate::telemetry::tag::CustomTag;
use crate::telemetry::told::{address, duration, socket, timestamp, utf8};
use crate::tls::params::suite_number;
use crate::tls::peer::Facts;
use crate::tls::TlsInfo;

/// What config adds to entries.
#[derive(Debug, Default)]
pub(super) struct Common {
    /// Names of objects of filter state.
    pub objects: Box<[Box<str>]>,
    /// Tags.
    pub tags: Vec<CustomTag>,
}

impl Common {
    /// What all entries tell of a stream.
    #[allow(deprecated)] // `intermediate_log_entry` is still told, as by Envoy.
    pub fn of(&self, context: &FormatContext<'_>) -> pb::AccessLogCommon {
        let info = context.info;
        let times = &info.times;
        let after = |point| info.after_start(point).map(duration);
        // A session that goes on has no duration yet.
        let over = !matches!(
            context.log_type,
            LogType::TcpUpstreamConnected | LogType::TcpPeriodic | LogType::TcpConnectionStart
        );
        let stream_id = context.request.and_then(|request| request.first(&KEYS.request_id));
        pb::AccessLogCommon {
            downstream_remote_address: info.remote().map(socket),
            downstream_direct_remote_address: info.connection.direct_remote.map(socket),
            downstream_local_address: info.connection.local.map(socket),
            tls_properties: info.connection.tls.as_ref().map(|tls| tls_properties(tls, info)),
            start_time: Some(timestamp(info.start_time())),
            time_to_last_rx_byte: after(times.request_complete),
            time_to_first_upstream_tx_byte: after(times.first_upstream_tx),
            time_to_last_upstream_tx_byte: after(times.upstream_tx_end()),
            time_to_first_upstream_rx_byte: after(times.first_upstream_rx),
            time_to_last_upstream_rx_byte: after(times.last_upstream_rx),
            time_to_first_downstream_tx_byte: after(times.first_downstream_tx),
            time_to_last_downstream_tx_byte: after(times.last_downstream_tx),
            duration: after(times.end.filter(|_| over)),
            upstream_remote_address: info.host.as_ref().map(|host| address(&host.address)),
            upstream_local_address: info.upstream_local.map(socket),
            upstream_cluster: text(info.cluster.as_ref().map(|names| &*names.stat_name)),
            response_flags: flags(info.flags),
            metadata: metadata(info),
            upstream_transport_failure_reason: text(info.upstream_failure.as_deref()),
            downstream_transport_failure_reason: text(info.downstream_failure.as_deref()),
            route_name: text(info.route_name.as_deref()),
            filter_state_objects: self.objects(info),
            custom_tags: self.tags(context).collect(),
            upstream_request_attempt_count: info.attempts,
            connection_termination_details: info.termination_details.to_string(),
            stream_id: match info.protocol {
                None => connection_id(info.connection.id),
                Some(_) => stream_id.map(utf8).unwrap_or_default(),
            },
            intermediate_log_entry: !over,
            downstream_wire_bytes_sent: info.response_headers_bytes.saturating_add(info.bytes_sent),
            downstream_wire_bytes_received: info.request_headers_bytes.saturating_add(info.bytes_received),
            // What waited for a connection that did not come to be has not left.
            upstream_wire_bytes_sent: info.upstream_local.map_or(0, |_| info.upstream_wire_sent),
            upstream_wire_bytes_received: info.upstream_wire_received,
            access_log_type: i32::from(context.log_type as u8),
            ..pb::AccessLogCommon::default()
        }
    }

    /// The tags that the stream has.
    pub fn tags<'a>(&'a self, context: &'a FormatContext<'_>) -> impl Iterator<Item = (String, String)> + 'a {
        let tag = |tag: &CustomTag| Some((tag.name.to_string(), tag.value.of(context)?));
        self.tags.iter().filter_map(tag)
    }

    fn objects(&self, info: &StreamInfo) -> std::collections::HashMap<String, wkt::Any> {
        let each = |name: &str| Some((name.to_owned(), info.object(name)?.message()?));
        self.objects.iter().filter_map(|name| each(name)).collect()
    }
}

/// What filters noted, if anything.
fn metadata(info: &StreamInfo) -> Option<core::Metadata> {
    let (noted, typed) = (info.metadata.as_deref(), info.typed_metadata.as_deref());
    let noted = noted.into_iter().flatten().map(|(name, fields)| (name.clone(), fields.clone()));
    let typed = typed.into_iter().flatten().map(|(name, message)| (name.clone(), message.clone()));
    let all = core::Metadata { filter_metadata: noted.collect(), typed_filter_metadata: typed.collect() };
    (!all.filter_metadata.is_empty() || !all.typed_filter_metadata.is_empty()).then_some(all)
}

/// What tells a connection apart from all others, in the form of a UUID: all entries of one have the same.
fn connection_id(number: u64) -> String {
    static PROCESS: LazyLock<[u64; 2]> = LazyLock::new(|| [fastrand::u64(..), fastrand::u64(..)]);
    let [high, low] = PROCESS.map(|seed| u128::from(xxh64(&number.to_be_bytes(), seed)));
    let bits = (high << 64 | low) & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    // All places are between digits.
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn text(value: Option<&str>) -> String {
    value.unwrap_or_default().to_owned()
}

fn tls_properties(tls: &TlsInfo, info: &StreamInfo) -> pb::TlsProperties {
    let certificate = |facts: Option<&Facts>, issuer: bool| {
        let facts = facts.map_or_else(CertificateProperties::default, |facts| CertificateProperties {
            subject_alt_name: names(facts, SanKind::Uri)
                .map(San::Uri)
                .chain(names(facts, SanKind::Dns).map(San::Dns))
                .map(|san| SubjectAltName { san: Some(san) })
                .collect(),
            subject: facts.subject.clone(),
            issuer: if issuer { facts.issuer.clone() } else { String::new() },
        });
        Some(facts)
    };
    pb::TlsProperties {
        tls_version: match tls.version {
            "TLSv1.2" => TlsVersion::TlSv12,
            "TLSv1.3" => TlsVersion::TlSv13,
            _ => TlsVersion::VersionUnspecified,
        }
        .into(),
        tls_cipher_suite: suite_number(tls.cipher).map(|suite| wkt::UInt32Value { value: suite.into() }),
        tls_sni_hostname: text(info.connection.server_name.as_deref()),
        local_certificate_properties: certificate(tls.local_facts(), false),
        peer_certificate_properties: certificate(tls.peer_facts(), true),
        ..pb::TlsProperties::default()
    }
}

fn names(facts: &Facts, kind: SanKind) -> impl Iterator<Item = String> + '_ {
    facts.of_kind(kind).map(str::to_owned)
}

fn flags(flags: ResponseFlags) -> Option<pb::ResponseFlags> {
    if flags.is_empty() {
        return None;
    }
    let has = |flag| flags.contains(flag);
    Some(pb::ResponseFlags {
        failed_local_healthcheck: has(ResponseFlags::LH),
        no_healthy_upstream: has(ResponseFlags::UH),
        upstream_request_timeout: has(ResponseFlags::UT),
        local_reset: has(ResponseFlags::LR),
        upstream_remote_reset: has(ResponseFlags::UR),
        upstream_connection_failure: has(ResponseFlags::UF),
        upstream_connection_termination: has(ResponseFlags::UC),
        upstream_overflow: has(ResponseFlags::UO),
        no_route_found: has(ResponseFlags::NR),
        delay_injected: has(ResponseFlags::DI),
        fault_injected: has(ResponseFlags::FI),
        rate_limited: has(ResponseFlags::RL),
        unauthorized_details: has(ResponseFlags::UAEX)
            .then(|| Unauthorized { reason: Reason::ExternalService.into() }),
        rate_limit_service_error: has(ResponseFlags::RLSE),
        downstream_connection_termination: has(ResponseFlags::DC),
        upstream_retry_limit_exceeded: has(ResponseFlags::URX),
        stream_idle_timeout: has(ResponseFlags::SI),
        invalid_envoy_request_headers: has(ResponseFlags::IH),
        downstream_protocol_error: has(ResponseFlags::DPE),
        upstream_max_stream_duration_reached: has(ResponseFlags::UMSDR),
        response_from_cache_filter: has(ResponseFlags::RFCF),
        no_filter_config_found: has(ResponseFlags::NFCF),
        duration_timeout: has(ResponseFlags::DT),
        upstream_protocol_error: has(ResponseFlags::UPE),
        no_cluster_found: has(ResponseFlags::NC),
        overload_manager: has(ResponseFlags::OM),
        dns_resolution_failure: has(ResponseFlags::DF),
        downstream_remote_reset: has(ResponseFlags::DR),
    })
}
