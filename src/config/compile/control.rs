//! Clusters of control planes: what a `GrpcService` of the bootstrap needs of the static cluster that
//! it names. In: the cluster. Out: the way to the control plane.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::{cluster::v3 as pb, core::v3 as core};
use outrigger_control_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use outrigger_control_api::pb::envoy::extensions::upstreams::http::v3::{
    http_protocol_options::{explicit_http_config::ProtocolConfig, UpstreamProtocolOptions},
    HttpProtocolOptions,
};
use outrigger_control_api::pb::envoy::r#type::matcher::v3::{string_matcher::MatchPattern, StringMatcher};
use outrigger_control_api::reflect::{DynamicMessage, Value};
use outrigger_control_api::{expand_any, type_of, unpack, Expanded};

use super::cluster::{kind, source_address, Kind};
use super::dns::dns;
use super::endpoints::static_hosts;
use super::{data_source, duration, duration_or, extension, keepalive, Environment};
use crate::config::discovery::{
    ControlTls, GrpcTarget, Material, Roots, SanKind, SanName, SanPattern, TargetAddress,
};
use crate::config::problems::Problems;

/// Deepest nesting of messages that is searched for names of control planes.
const MAX_DEPTH: usize = 64;

/// The clusters that gRPC services and REST sources in `message` name.
pub(super) fn named_in(message: &DynamicMessage) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    search(message, 0, &mut names);
    names
}

fn search(message: &DynamicMessage, depth: usize, names: &mut BTreeSet<String>) {
    if depth > MAX_DEPTH {
        return;
    }
    match message.descriptor().full_name() {
        "envoy.config.core.v3.GrpcService.EnvoyGrpc" => {
            let name = message.get_field_by_name("cluster_name");
            names.extend(name.as_deref().and_then(Value::as_str).map(str::to_owned));
            return;
        }
        "envoy.config.core.v3.ApiConfigSource" => {
            let list = message.get_field_by_name("cluster_names");
            let list = list.as_deref().and_then(Value::as_list).unwrap_or_default();
            names.extend(list.iter().filter_map(Value::as_str).map(str::to_owned));
        }
        "google.protobuf.Any" => {
            if let Expanded::Message(inner) = expand_any(message, "") {
                search(&inner, depth + 1, names);
            }
            return;
        }
        // Whole messages of configuration that name no control plane.
        "envoy.config.route.v3.RouteConfiguration" | "envoy.config.endpoint.v3.ClusterLoadAssignment" => {
            return
        }
        _ => {}
    }
    for (_, value) in message.fields() {
        match value {
            Value::Message(inner) => search(inner, depth + 1, names),
            Value::List(list) => {
                list.iter().filter_map(Value::as_message).for_each(|m| search(m, depth + 1, names));
            }
            Value::Map(map) => {
                map.values().filter_map(Value::as_message).for_each(|m| search(m, depth + 1, names));
            }
            _ => {}
        }
    }
}

/// The way to the control plane that is the static cluster `cluster`. `None` when a problem was reported.
pub(super) fn target(
    cluster: &pb::Cluster,
    secrets: &[tls::Secret],
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<GrpcTarget> {
    let before = problems.count();
    let assignment = cluster.load_assignment.as_ref();
    let addresses = match kind(cluster, problems)? {
        Kind::Aggregate => {
            problems.report_at("cluster_type", "an aggregate cluster cannot serve discovery");
            return None;
        }
        Kind::Static => {
            let hosts = problems.at("load_assignment", |problems| static_hosts(assignment, problems));
            hosts.iter().map(|host| TargetAddress::Fixed(host.address.clone())).collect()
        }
        Kind::StrictDns | Kind::LogicalDns => {
            let dns = dns(cluster, environment, problems)?;
            let name = |name: crate::config::cluster::DnsName| TargetAddress::Name {
                host: name.host,
                port: name.port,
                family: dns.family,
                resolvers: dns.resolvers.clone(),
            };
            dns.names.into_iter().map(name).collect::<Vec<_>>()
        }
        Kind::OriginalDst | Kind::Eds => {
            let message = "serves discovery, which needs a cluster of type STATIC, STRICT_DNS or LOGICAL_DNS";
            problems.report_at("type", message);
            return None;
        }
    };
    if addresses.is_empty() && problems.count() == before {
        problems.report_at("load_assignment", "has no endpoint, but serves discovery");
    }
    let tls = cluster.transport_socket.as_ref().and_then(|socket| {
        problems.at("transport_socket", |problems| transport_socket(socket, secrets, problems))
    });
    let connect_timeout =
        duration_or(&cluster.connect_timeout, Duration::from_secs(5), "connect_timeout", problems);
    let http2 = http2_options(cluster);
    let http2_keepalive = http2.and_then(|http2| http2.connection_keepalive).and_then(|keepalive| {
        let interval =
            duration(&keepalive.interval, "http2_protocol_options.connection_keepalive", problems)?;
        let timeout = duration(&keepalive.timeout, "http2_protocol_options.connection_keepalive", problems)?;
        Some((interval, timeout))
    });
    let tcp_keepalive = cluster
        .upstream_connection_options
        .as_ref()
        .and_then(|options| keepalive(options.tcp_keepalive.as_ref()));
    let source_address = source_address(cluster.upstream_bind_config.as_ref(), environment, problems);
    (problems.count() == before).then(|| GrpcTarget {
        name: cluster.name.as_str().into(),
        addresses,
        authority: cluster.name.as_str().into(),
        tls,
        connect_timeout,
        timeout: None,
        initial_metadata: Vec::new(),
        back_off: None,
        max_receive_message_length: None,
        http2_keepalive,
        tcp_keepalive,
        source_address,
    })
}

/// The HTTP/2 options of a cluster, from whichever place sets them.
fn http2_options(cluster: &pb::Cluster) -> Option<core::Http2ProtocolOptions> {
    // What does not unpack was reported when the support table was consulted.
    let typed = cluster
        .typed_extension_protocol_options
        .values()
        .find_map(|any| unpack::<HttpProtocolOptions>(any).ok());
    match typed.and_then(|options| options.upstream_protocol_options) {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(http2)) => Some(http2),
            _ => None,
        },
        Some(_) => None,
        None => cluster.http2_protocol_options.clone(),
    }
}

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const UPSTREAM_TLS: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";

fn transport_socket(
    socket: &core::TransportSocket,
    secrets: &[tls::Secret],
    problems: &mut Problems,
) -> Option<ControlTls> {
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        if socket.name != "envoy.transport_sockets.raw_buffer" {
            problems.report_at("typed_config", "is required");
        }
        return None;
    };
    problems.at("typed_config", |problems| match type_of(any) {
        RAW_BUFFER => None,
        UPSTREAM_TLS => {
            let context: tls::UpstreamTlsContext = extension(any, "", problems)?;
            let default = tls::CommonTlsContext::default();
            let common = context.common_tls_context.as_ref().unwrap_or(&default);
            problems.at("common_tls_context", |problems| {
                let (roots, names) = validation(common, secrets, problems)?;
                if context.auto_sni_san_validation && roots == Roots::Unverified {
                    let message = "is needed for auto_sni_san_validation";
                    problems.report_at("validation_context.trusted_ca", message);
                }
                Some(ControlTls {
                    roots,
                    identity: identity(common, secrets, problems),
                    sni: (!context.sni.is_empty()).then(|| context.sni.as_str().into()),
                    verify_sni: context.auto_sni_san_validation,
                    names,
                    versions: versions(common.tls_params.as_ref(), problems),
                })
            })
        }
        found => {
            problems.report(format!("the transport socket {} ({found}) is not supported", socket.name));
            None
        }
    })
}

fn versions(params: Option<&tls::TlsParameters>, problems: &mut Problems) -> (u8, u8) {
    use tls::tls_parameters::TlsProtocol;
    let Some(params) = params else { return (12, 13) };
    let low = match params.tls_minimum_protocol_version() {
        TlsProtocol::TlSv13 => 13,
        // Older versions than 1.2 are never spoken.
        _ => 12,
    };
    let high = match params.tls_maximum_protocol_version() {
        TlsProtocol::TlsAuto | TlsProtocol::TlSv13 => 13,
        TlsProtocol::TlSv12 => 12,
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
            problems.report_at("tls_params.tls_maximum_protocol_version", "TLS before 1.2 is not supported");
            12
        }
    };
    if low > high {
        problems.report_at("tls_params", "the lowest TLS version is above the highest");
    }
    (low, high)
}

/// The static secret that `config` names.
fn secret<'s>(
    config: &tls::SdsSecretConfig,
    secrets: &'s [tls::Secret],
    problems: &mut Problems,
) -> Option<&'s tls::secret::Type> {
    if config.sds_config.is_some() {
        problems.report_at("sds_config", "secrets for control planes must be in the bootstrap");
        return None;
    }
    let found = secrets.iter().find(|secret| secret.name == config.name);
    if found.is_none() {
        problems.report_at("name", format!("there is no static secret {:?}", config.name));
    }
    found?.r#type.as_ref()
}

fn identity(
    common: &tls::CommonTlsContext,
    secrets: &[tls::Secret],
    problems: &mut Problems,
) -> Option<(Material, Material)> {
    let count = common.tls_certificates.len() + common.tls_certificate_sds_secret_configs.len();
    if count > 1 {
        problems.report_at("tls_certificates", "one certificate is enough for a control plane");
    }
    if let Some(certificate) = common.tls_certificates.first() {
        return problems.at_index("tls_certificates", 0, |problems| key_pair(certificate, problems));
    }
    let config = common.tls_certificate_sds_secret_configs.first()?;
    problems.at_index("tls_certificate_sds_secret_configs", 0, |problems| {
        match secret(config, secrets, problems)? {
            tls::secret::Type::TlsCertificate(certificate) => key_pair(certificate, problems),
            _ => {
                problems.report_at("name", format!("the secret {:?} is no certificate", config.name));
                None
            }
        }
    })
}

fn key_pair(certificate: &tls::TlsCertificate, problems: &mut Problems) -> Option<(Material, Material)> {
    let known = tls::TlsCertificate {
        certificate_chain: certificate.certificate_chain.clone(),
        private_key: certificate.private_key.clone(),
        watched_directory: certificate.watched_directory.clone(),
        ..Default::default()
    };
    if *certificate != known {
        problems.report("only certificate_chain and private_key are supported");
    }
    let (Some(chain), Some(key)) = (&certificate.certificate_chain, &certificate.private_key) else {
        problems.report("needs certificate_chain and private_key");
        return None;
    };
    let chain = Material::of(chain, "certificate_chain", problems);
    chain.zip(Material::of(key, "private_key", problems))
}

fn validation(
    common: &tls::CommonTlsContext,
    secrets: &[tls::Secret],
    problems: &mut Problems,
) -> Option<(Roots, Vec<SanName>)> {
    use tls::common_tls_context::ValidationContextType as Kind;
    let of_secret =
        |config: &tls::SdsSecretConfig, problems: &mut Problems| match secret(config, secrets, problems)? {
            tls::secret::Type::ValidationContext(context) => validation_context(context, problems),
            _ => {
                problems.report_at("name", format!("the secret {:?} is no validation context", config.name));
                None
            }
        };
    match &common.validation_context_type {
        None => Some((Roots::Unverified, Vec::new())),
        Some(Kind::ValidationContext(context)) => {
            problems.at("validation_context", |problems| validation_context(context, problems))
        }
        Some(Kind::ValidationContextSdsSecretConfig(config)) => {
            problems.at("validation_context_sds_secret_config", |problems| of_secret(config, problems))
        }
        Some(Kind::CombinedValidationContext(combined)) => {
            problems.at("combined_validation_context", |problems| {
                let (mut roots, mut names) = match &combined.default_validation_context {
                    Some(context) => problems
                        .at("default_validation_context", |problems| validation_context(context, problems))?,
                    None => (Roots::Unverified, Vec::new()),
                };
                if let Some(config) = &combined.validation_context_sds_secret_config {
                    let (more, also) = problems
                        .at("validation_context_sds_secret_config", |problems| of_secret(config, problems))?;
                    // The messages are merged: what the secret sets counts.
                    if more != Roots::Unverified {
                        roots = more;
                    }
                    names.extend(also);
                }
                Some((roots, names))
            })
        }
        // Refused by the support table.
        Some(_) => None,
    }
}

fn validation_context(
    context: &tls::CertificateValidationContext,
    problems: &mut Problems,
) -> Option<(Roots, Vec<SanName>)> {
    let known = tls::CertificateValidationContext {
        trusted_ca: context.trusted_ca.clone(),
        system_root_certs: context.system_root_certs,
        watched_directory: context.watched_directory.clone(),
        match_typed_subject_alt_names: context.match_typed_subject_alt_names.clone(),
        match_subject_alt_names: context.match_subject_alt_names.clone(),
        ..Default::default()
    };
    if *context != known {
        problems.report("only trusted_ca, system_root_certs and subject alternative names are supported");
    }
    let roots = match (&context.trusted_ca, &context.system_root_certs) {
        (Some(ca), _) => Roots::Pem(Material::of(ca, "trusted_ca", problems)?),
        (None, Some(_)) => Roots::System,
        (None, None) => Roots::Unverified,
    };
    let mut names = Vec::new();
    for (index, matcher) in context.match_typed_subject_alt_names.iter().enumerate() {
        problems.at_index("match_typed_subject_alt_names", index, |problems| {
            use tls::subject_alt_name_matcher::SanType;
            let kind = match matcher.san_type() {
                SanType::Dns => Some(SanKind::Dns),
                SanType::Uri => Some(SanKind::Uri),
                SanType::Email => Some(SanKind::Email),
                SanType::IpAddress => Some(SanKind::Ip),
                SanType::Unspecified => {
                    return problems.report_at("san_type", "is not supported");
                }
            };
            let Some(matcher) = &matcher.matcher else { return };
            let pattern = problems.at("matcher", |problems| san_pattern(matcher, problems));
            names.extend(pattern.map(|pattern| SanName { kind, pattern }));
        });
    }
    for (index, matcher) in context.match_subject_alt_names.iter().enumerate() {
        let pattern =
            problems.at_index("match_subject_alt_names", index, |problems| san_pattern(matcher, problems));
        names.extend(pattern.map(|pattern| SanName { kind: None, pattern }));
    }
    if !names.is_empty() && roots == Roots::Unverified {
        problems.report_at("trusted_ca", "is required to match subject alternative names");
    }
    Some((roots, names))
}

fn san_pattern(matcher: &StringMatcher, problems: &mut Problems) -> Option<SanPattern> {
    if matcher.ignore_case {
        problems.report_at("ignore_case", "is not supported here");
    }
    match matcher.match_pattern.as_ref()? {
        MatchPattern::Exact(text) => Some(SanPattern::Exact(text.as_str().into())),
        MatchPattern::Prefix(text) => Some(SanPattern::Prefix(text.as_str().into())),
        MatchPattern::Suffix(text) => Some(SanPattern::Suffix(text.as_str().into())),
        MatchPattern::Contains(text) => Some(SanPattern::Contains(text.as_str().into())),
        MatchPattern::SafeRegex(_) | MatchPattern::Custom(_) => {
            problems.report("only exact, prefix, suffix and contains are supported here");
            None
        }
    }
}

impl Material {
    /// The bytes or the file that `source`, which stands in `field`, names.
    pub(super) fn of(source: &core::DataSource, field: &str, problems: &mut Problems) -> Option<Self> {
        use core::data_source::Specifier;
        match source.specifier.as_ref()? {
            Specifier::Filename(path) => Some(Material::File(path.into())),
            Specifier::InlineBytes(bytes) => Some(Material::Inline(Bytes::copy_from_slice(bytes))),
            Specifier::InlineString(_) | Specifier::EnvironmentVariable(_) => {
                problems.at(field, |problems| data_source(source, problems)).map(Material::Inline)
            }
        }
    }
}
