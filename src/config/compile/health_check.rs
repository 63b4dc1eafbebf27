//! What concerns the health of a cluster's hosts: `health_checks`, `outlier_detection` and `health_check_config` in,
//! a [`ClusterHealth`] out.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::config::core::v3::health_check as pb;
use outrigger_control_api::pb::envoy::config::{cluster::v3 as cluster, endpoint::v3 as endpoint};
use outrigger_control_api::pb::envoy::extensions::health_check::event_sinks::file::v3::HealthCheckEventFileSink;
use outrigger_control_api::pb::envoy::r#type::v3::{CodecClientType, Int64Range};
use outrigger_control_api::type_of;

use super::cluster::Kind;
use super::{bool_or, cluster_tls, duration, endpoints, extension, outlier, u32_or, Environment};
use crate::config::cluster::{UpstreamHttp, UpstreamProtocol};
use crate::config::matcher::StringMatcher;
use crate::config::problems::Problems;
use crate::config::route::HeaderOps;
use crate::telemetry::access_log::LineFile;
use crate::upstream::health::options::{GrpcProbe, HttpProbe, Options, Probe, TcpProbe};
use crate::upstream::health::{CheckPolicy, Checks, ClusterHealth, HostCheck};
use crate::upstream::outlier::OutlierDetection;

/// Most bytes of an answer that a check looks at, unless config says otherwise.
const RESPONSE_BUFFER: u64 = 1024;

/// Compiles outlier detection and health checks of `config`; `None` where it has neither. `hosts` is how many hosts it
/// lists itself.
pub(super) fn health(
    config: &cluster::Cluster,
    kind: Kind,
    http: &UpstreamHttp,
    hosts: usize,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<ClusterHealth> {
    if kind == Kind::OriginalDst {
        if config.outlier_detection.is_some() {
            problems.note("outlier_detection", "requests go to their original destination, ejected or not");
        }
        if !config.health_checks.is_empty() {
            problems.report_at("health_checks", "an ORIGINAL_DST cluster has no hosts that could be checked");
        }
        return None;
    }
    let known = (kind == Kind::Static).then_some(hosts);
    let outlier = config.outlier_detection.as_ref().map(|config| {
        let options = problems
            .at("outlier_detection", |problems| outlier::options(config, known, environment, problems));
        OutlierDetection::new(options, environment.compiler.outliers.clone())
    });
    let checks = match config.health_checks.as_slice() {
        [] => None,
        [only] => problems
            .at_index("health_checks", 0, |problems| options(only, config, http, environment, problems)),
        _ => {
            problems.report_at("health_checks", "multiple health checks are not supported");
            None
        }
    };
    (outlier.is_some() || checks.is_some())
        .then(|| ClusterHealth { outlier, checks: checks.map(Checks::new) })
}

/// What health checks of `config` want done with hosts that come and go; `None` without checks.
pub(super) fn policy(config: &cluster::Cluster, kind: Kind) -> Option<CheckPolicy> {
    let ignore_new =
        config.common_lb_config.as_ref().is_some_and(|common| common.ignore_new_hosts_until_first_hc);
    (!config.health_checks.is_empty()).then(|| CheckPolicy {
        ignore_new,
        remove_healthy: config.ignore_health_on_host_removal,
        logical: kind == Kind::LogicalDns,
        ..CheckPolicy::default()
    })
}

/// How one endpoint is checked, where it is not as the others.
pub(super) fn host_check(
    config: Option<&endpoint::endpoint::HealthCheckConfig>,
    problems: &mut Problems,
) -> Option<Arc<HostCheck>> {
    let config = config?;
    problems.at("health_check_config", |problems| {
        let address = config.address.as_ref().and_then(|address| {
            problems.at("address", |problems| endpoints::fixed_address(address.address.as_ref(), problems))
        });
        let check = HostCheck {
            address,
            // A field rule bounds it.
            port: u16::try_from(config.port_value).ok().filter(|port| *port != 0),
            hostname: config.hostname.as_str().into(),
            disabled: config.disable_active_health_check,
        };
        (check != HostCheck::default()).then(|| Arc::new(check))
    })
}

fn options(
    config: &core::HealthCheck,
    cluster: &cluster::Cluster,
    http: &UpstreamHttp,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Options> {
    let mut time = |value: &Option<_>, field: &str| duration(value, field, problems);
    // These two are demanded by field rules.
    let timeout = time(&config.timeout, "timeout").unwrap_or_default();
    let interval = time(&config.interval, "interval").unwrap_or_default();
    let initial_jitter = time(&config.initial_jitter, "initial_jitter").unwrap_or_default();
    let interval_jitter = time(&config.interval_jitter, "interval_jitter").unwrap_or_default();
    let minute = Duration::from_secs(60);
    let no_traffic_interval = time(&config.no_traffic_interval, "no_traffic_interval").unwrap_or(minute);
    let no_traffic_healthy_interval =
        time(&config.no_traffic_healthy_interval, "no_traffic_healthy_interval")
            .unwrap_or(no_traffic_interval);
    let unhealthy_interval = time(&config.unhealthy_interval, "unhealthy_interval").unwrap_or(interval);
    let unhealthy_edge_interval =
        time(&config.unhealthy_edge_interval, "unhealthy_edge_interval").unwrap_or(unhealthy_interval);
    let healthy_edge_interval =
        time(&config.healthy_edge_interval, "healthy_edge_interval").unwrap_or(interval);
    let runtime = environment.compiler.runtime.load();
    let bound = |key: &str| {
        let millis = runtime.number(&format!("health_check.{key}"))?;
        Some(Duration::from_millis(millis.max(0.0) as u64))
    };
    let bounds =
        (bound("min_interval").unwrap_or(Duration::ZERO), bound("max_interval").unwrap_or(Duration::MAX));
    let logs = logs(config, problems);
    let probe = match config.health_checker.as_ref()? {
        pb::HealthChecker::HttpHealthCheck(config) => {
            let probe = problems.at("http_health_check", |problems| http_probe(config, problems))?;
            Probe::Http(Box::new(probe))
        }
        pb::HealthChecker::GrpcHealthCheck(config) => {
            if http.protocol != UpstreamProtocol::Http2 {
                problems.report_at(
                    "grpc_health_check",
                    format!("{} cluster must support HTTP/2 for gRPC healthchecking", cluster.name),
                );
            }
            let probe = problems.at("grpc_health_check", |problems| grpc_probe(config, problems))?;
            Probe::Grpc(Box::new(probe))
        }
        pb::HealthChecker::TcpHealthCheck(config) => {
            Probe::Tcp(problems.at("tcp_health_check", |problems| tcp_probe(config, problems)))
        }
        // Refused by the support table.
        pb::HealthChecker::CustomHealthCheck(_) => return None,
    };
    Some(Options {
        timeout,
        interval,
        initial_jitter,
        interval_jitter,
        interval_jitter_percent: config.interval_jitter_percent,
        unhealthy_threshold: u32_or(config.unhealthy_threshold, 1),
        healthy_threshold: u32_or(config.healthy_threshold, 1),
        no_traffic_interval,
        no_traffic_healthy_interval,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        bounds,
        alpn: (config.tls_options.iter().flat_map(|tls| &tls.alpn_protocols))
            .map(|protocol| protocol.as_bytes().into())
            .collect(),
        socket_match: config.transport_socket_match_criteria.as_ref().map(cluster_tls::socket_criteria),
        reuse_connection: bool_or(config.reuse_connection, true),
        always_log_failures: config.always_log_health_check_failures,
        always_log_success: config.always_log_health_check_success,
        logs,
        probe,
    })
}

/// The files that events are logged to.
fn logs(config: &core::HealthCheck, problems: &mut Problems) -> Vec<LineFile> {
    let mut files = Vec::new();
    let mut open = |path: &str, field: &str, problems: &mut Problems| match LineFile::open(path) {
        Ok(file) => files.push(file),
        Err(error) => problems.report_at(field, format!("cannot open {path}: {error}")),
    };
    if !config.event_log_path.is_empty() {
        open(&config.event_log_path, "event_log_path", problems);
    }
    for (index, logger) in config.event_logger.iter().enumerate() {
        problems.at_index("event_logger", index, |problems| {
            let Some(any) = &logger.typed_config else { return };
            // Other types are refused by the support table.
            if type_of(any) != "envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink" {
                return;
            }
            let Some(sink) = extension::<HealthCheckEventFileSink>(any, "typed_config", problems) else {
                return;
            };
            open(&sink.event_log_path, "typed_config.event_log_path", problems);
        });
    }
    files
}

fn http_probe(config: &pb::HttpHealthCheck, problems: &mut Problems) -> Option<HttpProbe> {
    let method = match config.method() {
        core::RequestMethod::MethodUnspecified | core::RequestMethod::Get => "GET",
        core::RequestMethod::Head => "HEAD",
        core::RequestMethod::Post => "POST",
        core::RequestMethod::Put => "PUT",
        core::RequestMethod::Delete => "DELETE",
        core::RequestMethod::Options => "OPTIONS",
        core::RequestMethod::Trace => "TRACE",
        core::RequestMethod::Patch => "PATCH",
        // Refused by a field rule.
        core::RequestMethod::Connect => return None,
    };
    let send = config.send.as_ref().map(|send| payload(send, "send", problems));
    if send.is_some() && matches!(method, "GET" | "HEAD" | "DELETE" | "TRACE") {
        problems.report_at("send", format!("a check by {method} has no body"));
    }
    let receive = payloads(&config.receive, problems);
    let response_buffer = config.response_buffer_size.map_or(RESPONSE_BUFFER, |size| size.value);
    let total: usize = receive.iter().map(Vec::len).sum();
    if response_buffer != 0 && total as u64 > response_buffer {
        problems.report_at(
            "receive",
            format!("has {total} bytes, and response_buffer_size is {response_buffer}"),
        );
    }
    let mut expected = ranges(&config.expected_statuses, "expected_statuses", problems);
    if expected.is_empty() {
        expected.push(200..201);
    }
    let headers = HeaderOps::compile(
        &config.request_headers_to_add,
        "request_headers_to_add",
        &config.request_headers_to_remove,
        "request_headers_to_remove",
        problems,
    );
    let service_name = config.service_name_matcher.as_ref().and_then(|matcher| {
        problems.at("service_name_matcher", |problems| StringMatcher::compile(matcher, problems))
    });
    Some(HttpProbe {
        http2: config.codec_client_type() == CodecClientType::Http2,
        method,
        path: config.path.as_str().into(),
        host: config.host.as_str().into(),
        headers: headers.unwrap_or_default(),
        send: send.unwrap_or_default(),
        receive,
        response_buffer: usize::try_from(response_buffer).unwrap_or(usize::MAX),
        expected,
        retriable: ranges(&config.retriable_statuses, "retriable_statuses", problems),
        service_name,
    })
}

fn grpc_probe(config: &pb::GrpcHealthCheck, problems: &mut Problems) -> Option<GrpcProbe> {
    let metadata = HeaderOps::compile(&config.initial_metadata, "initial_metadata", &[], "", problems)?;
    Some(GrpcProbe {
        service: config.service_name.as_str().into(),
        authority: config.authority.as_str().into(),
        metadata,
    })
}

fn tcp_probe(config: &pb::TcpHealthCheck, problems: &mut Problems) -> TcpProbe {
    TcpProbe {
        send: config.send.as_ref().map(|send| payload(send, "send", problems)).unwrap_or_default(),
        receive: payloads(&config.receive, problems),
    }
}

fn payloads(list: &[pb::Payload], problems: &mut Problems) -> Vec<Vec<u8>> {
    let each = |(index, config)| payload(config, &format!("receive[{index}]"), problems);
    list.iter().enumerate().map(each).collect()
}

/// The bytes of a payload: of a text, those that its hexadecimal digits say.
fn payload(config: &pb::Payload, field: &str, problems: &mut Problems) -> Vec<u8> {
    match &config.payload {
        Some(pb::payload::Payload::Binary(bytes)) => bytes.clone(),
        Some(pb::payload::Payload::Text(text)) => hex(text).unwrap_or_else(|| {
            problems.report_at(format!("{field}.text"), format!("invalid hex string {text:?}"));
            Vec::new()
        }),
        None => Vec::new(),
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| (*byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> = pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect();
    bytes.filter(|bytes| !bytes.is_empty())
}

fn ranges(list: &[Int64Range], field: &str, problems: &mut Problems) -> Vec<Range<u16>> {
    let mut ranges = Vec::new();
    for (index, range) in list.iter().enumerate() {
        let Int64Range { start, end } = *range;
        let fits = 100 <= start && start < end && end <= 600;
        match (u16::try_from(start), u16::try_from(end)) {
            (Ok(start), Ok(end)) if fits => ranges.push(start..end),
            _ => problems.at_index(field, index, |problems| {
                problems.report(format!("{start} to {end} is no range of statuses within 100 and 600"));
            }),
        }
    }
    ranges
}
