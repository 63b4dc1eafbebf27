//! Config sources: `ConfigSource`, `ApiConfigSource` and `GrpcService` in, [`ConfigSource`] with
//! everything needed to reach the control plane out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::core::v3 as core;

use super::resource::Compiler;
use super::{duration, duration_or, u32_or};
use crate::config::cluster::{Address, DnsFamily};
use crate::config::discovery::{
    ApiKind, ApiSource, ConfigSource, ControlIdentity, ControlTls, GrpcTarget, Material, RateLimit, Roots,
    Source, TargetAddress, Trust, INITIAL_FETCH_TIMEOUT,
};
use crate::config::problems::Problems;

/// What a control plane may take to accept a connection, where no cluster says it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Control planes for one source: the main one and one to fall back to.
const MAX_TARGETS: usize = 2;

/// Compiles `source`; `parent` is where the resource around it comes from, if that is known. `None` when
/// a problem was reported.
pub(super) fn config_source(
    source: &core::ConfigSource,
    parent: Option<&Source>,
    compiler: &Compiler,
    problems: &mut Problems,
) -> Option<ConfigSource> {
    use core::config_source::ConfigSourceSpecifier as Specifier;
    let before = problems.count();
    version(source.resource_api_version, "resource_api_version", problems);
    let initial_fetch_timeout = match duration_or(
        &source.initial_fetch_timeout,
        INITIAL_FETCH_TIMEOUT,
        "initial_fetch_timeout",
        problems,
    ) {
        Duration::ZERO => None,
        timeout => Some(timeout),
    };
    let compiled = match &source.config_source_specifier {
        // Demanded by a field rule.
        None => None,
        Some(Specifier::Ads(_)) => {
            if !compiler.has_ads {
                problems.note("ads", "the bootstrap has no ads_config, so nothing ever comes");
            }
            Some(Source::Ads)
        }
        Some(Specifier::Self_(_)) => {
            if parent.is_none() {
                problems.report_at("self", "has no meaning in the bootstrap");
            }
            parent.cloned()
        }
        Some(Specifier::Path(path)) => path_source(path, None, "path", problems),
        Some(Specifier::PathConfigSource(config)) => problems.at("path_config_source", |problems| {
            path_source(&config.path, config.watched_directory.as_ref(), "path", problems)
        }),
        Some(Specifier::ApiConfigSource(api)) => problems
            .at("api_config_source", |problems| api_source(api, compiler, problems))
            .map(|api| Source::Own(Arc::new(api))),
    };
    if problems.count() > before {
        return None;
    }
    Some(ConfigSource { source: compiled?, initial_fetch_timeout })
}

fn path_source(
    path: &str,
    watched: Option<&core::WatchedDirectory>,
    field: &str,
    problems: &mut Problems,
) -> Option<Source> {
    if path.is_empty() {
        problems.report_at(field, "is empty");
        return None;
    }
    let watched_directory = watched.map(|watched| watched.path.as_str().into());
    Some(Source::Path { path: path.into(), watched_directory })
}

/// Resources and transport are of version 3; unset means that too, as in Envoy.
fn version(number: i32, field: &str, problems: &mut Problems) {
    let name = match core::ApiVersion::try_from(number) {
        Ok(core::ApiVersion::V3 | core::ApiVersion::Auto) => return,
        Ok(version) => version.as_str_name(),
        // Breaks a field rule.
        Err(_) => return,
    };
    problems.report_at(field, format!("is {name}, only V3 is supported: set {field}: V3"));
}

/// Whether a control plane is asked in the delta variant.
pub(super) fn names_delta(api: &core::ApiConfigSource) -> bool {
    use core::api_config_source::ApiType;
    matches!(api.api_type(), ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc)
}

/// Compiles a control plane. `None` when a problem was reported.
pub(super) fn api_source(
    api: &core::ApiConfigSource,
    compiler: &Compiler,
    problems: &mut Problems,
) -> Option<ApiSource> {
    use core::api_config_source::ApiType;
    let before = problems.count();
    version(api.transport_api_version, "transport_api_version", problems);
    let api_type = match ApiType::try_from(api.api_type) {
        Ok(ApiType::DeprecatedAndUnavailableDoNotUse) => {
            problems.report_at("api_type", "is required");
            return None;
        }
        // Breaks a field rule.
        Err(_) => return None,
        Ok(api_type) => api_type,
    };
    let mut targets = Vec::new();
    let kind = if api_type == ApiType::Rest {
        if api.cluster_names.len() != 1 || !api.grpc_services.is_empty() {
            problems.report_at("cluster_names", "REST needs exactly one cluster, and no gRPC service");
        }
        for (index, name) in api.cluster_names.iter().enumerate() {
            let target = problems
                .at_index("cluster_names", index, |problems| cluster_target(name, "", compiler, problems));
            targets.extend(target);
        }
        let refresh_delay = duration(&api.refresh_delay, "refresh_delay", problems);
        if api.refresh_delay.is_none() {
            problems.report_at("refresh_delay", "is required for REST");
        }
        ApiKind::Rest {
            refresh_delay: refresh_delay.unwrap_or_default(),
            request_timeout: duration_or(
                &api.request_timeout,
                Duration::from_secs(1),
                "request_timeout",
                problems,
            ),
        }
    } else {
        if !api.cluster_names.is_empty() {
            problems.report_at("cluster_names", "gRPC names its cluster in grpc_services");
        }
        match api.grpc_services.len() {
            0 => problems.report_at("grpc_services", "is empty"),
            1..=MAX_TARGETS => {}
            count => problems
                .report_at("grpc_services", format!("has {count} entries, may have at most {MAX_TARGETS}")),
        }
        for (index, service) in api.grpc_services.iter().enumerate() {
            let target = problems
                .at_index("grpc_services", index, |problems| grpc_target(service, compiler, problems));
            targets.extend(target);
            if index > 0 {
                let why = "is not tried: the addresses of the first service are";
                problems.note(format_args!("grpc_services[{index}]"), why);
            }
        }
        ApiKind::Grpc
    };
    let rate_limit = api.rate_limit_settings.map(|settings| {
        let rate = settings.fill_rate.map_or(10.0, |rate| rate.value);
        // A rate that is not above 0 breaks a field rule.
        let fill_interval = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX);
        RateLimit { max_tokens: u32_or(settings.max_tokens, 100), fill_interval }
    });
    (problems.count() == before).then_some(ApiSource {
        delta: names_delta(api),
        aggregated: matches!(api_type, ApiType::AggregatedGrpc | ApiType::AggregatedDeltaGrpc),
        kind,
        targets,
        rate_limit,
        set_node_on_first_message_only: api.set_node_on_first_message_only,
    })
}

/// The way to the static cluster `name`.
fn cluster_target(
    name: &str,
    authority: &str,
    compiler: &Compiler,
    problems: &mut Problems,
) -> Option<GrpcTarget> {
    let Some(cluster) = compiler.control.get(name) else {
        match compiler.refused_control.get(name) {
            None => problems.report(format!(
                "there is no cluster {name:?} for discovery: it must be in the bootstrap, and not of type EDS"
            )),
            Some(Some(why)) => problems.report(format!("the cluster {name:?} cannot serve discovery: {why}")),
            Some(None) => {}
        }
        return None;
    };
    let mut target = cluster.clone();
    if !authority.is_empty() {
        target.authority = authority.into();
    }
    Some(target)
}

const AGAIN: &str = "a control plane is asked again with a back-off, whatever failed";

fn grpc_target(
    service: &core::GrpcService,
    compiler: &Compiler,
    problems: &mut Problems,
) -> Option<GrpcTarget> {
    use core::grpc_service::TargetSpecifier;
    let before = problems.count();
    let timeout = duration(&service.timeout, "timeout", problems).filter(|timeout| !timeout.is_zero());
    if service.retry_policy.is_some() {
        problems.note("retry_policy", AGAIN);
    }
    let mut initial_metadata = Vec::with_capacity(service.initial_metadata.len());
    for (index, header) in service.initial_metadata.iter().enumerate() {
        if header.value.contains('%') {
            problems.at_index("initial_metadata", index, |problems| {
                problems.report_at("value", "command operators (%) are not supported here");
            });
        }
        let key = header.key.to_ascii_lowercase();
        initial_metadata.push((key.as_str().into(), header.value.as_str().into()));
    }
    let target = match service.target_specifier.as_ref()? {
        TargetSpecifier::EnvoyGrpc(envoy) => problems.at("envoy_grpc", |problems| {
            if envoy.retry_policy.as_ref().is_some_and(|policy| !policy.retry_on.is_empty()) {
                problems.note("retry_policy.retry_on", AGAIN);
            }
            let mut target = problems.at("cluster_name", |problems| {
                cluster_target(&envoy.cluster_name, &envoy.authority, compiler, problems)
            })?;
            target.back_off = back_off(envoy.retry_policy.as_ref(), problems);
            target.max_receive_message_length =
                envoy.max_receive_message_length.map(|length| length.value).filter(|length| *length > 0);
            Some(target)
        }),
        TargetSpecifier::GoogleGrpc(google) => {
            problems.at("google_grpc", |problems| google_target(google, problems))
        }
    };
    if problems.count() > before {
        return None;
    }
    Some(GrpcTarget { timeout, initial_metadata, ..target? })
}

fn back_off(policy: Option<&core::RetryPolicy>, problems: &mut Problems) -> Option<(Duration, Duration)> {
    let back_off = policy?.retry_back_off.as_ref()?;
    problems.at("retry_policy.retry_back_off", |problems| {
        let base = duration(&back_off.base_interval, "base_interval", problems)?;
        let max = duration(&back_off.max_interval, "max_interval", problems)
            .unwrap_or_else(|| base.saturating_mul(10));
        if max < base {
            let message = format!("is {max:?}, must not be less than base_interval ({base:?})");
            problems.report_at("max_interval", message);
        }
        Some((base, max))
    })
}

fn google_target(google: &core::grpc_service::GoogleGrpc, problems: &mut Problems) -> Option<GrpcTarget> {
    use core::grpc_service::google_grpc::channel_credentials::CredentialSpecifier;
    let uri = google.target_uri.as_str();
    let (address, host) = problems.at("target_uri", |problems| {
        let parsed = target_uri(uri);
        if let Err(message) = &parsed {
            problems.report(format!("{uri:?} {message}"));
        }
        parsed.ok()
    })?;
    let credentials =
        google.channel_credentials.as_ref().and_then(|channel| channel.credential_specifier.as_ref());
    let tls = match credentials {
        Some(CredentialSpecifier::SslCredentials(ssl)) => {
            problems.at("channel_credentials.ssl_credentials", |problems| {
                let identity = match (&ssl.cert_chain, &ssl.private_key) {
                    (Some(chain), Some(key)) => Material::of(chain, "cert_chain", problems)
                        .zip(Material::of(key, "private_key", problems)),
                    (None, None) => None,
                    _ => {
                        problems.report("cert_chain and private_key go together");
                        None
                    }
                };
                Some(ControlTls {
                    trust: Trust {
                        roots: match &ssl.root_certs {
                            Some(roots) => Roots::Pem(Material::of(roots, "root_certs", problems)?),
                            None => Roots::System,
                        },
                        names: Vec::new(),
                    },
                    trust_secret: None,
                    identity: identity.map(|(chain, key)| ControlIdentity::Given { chain, key }),
                    sni: Some(host.as_str().into()),
                    verify_sni: true,
                    versions: (12, 13),
                })
            })
        }
        // Local credentials are plain text over the loopback device or a Unix socket; the default
        // credentials of Google are refused by the support table.
        _ => None,
    };
    let authority = match &address {
        TargetAddress::Name { host, port, .. } => format!("{host}:{port}"),
        TargetAddress::Fixed(Address::Ip(address)) => address.to_string(),
        TargetAddress::Fixed(Address::Pipe(_) | Address::Internal(_)) => "localhost".to_owned(),
    };
    Some(GrpcTarget {
        name: uri.into(),
        addresses: vec![address],
        authority: authority.into(),
        tls,
        connect_timeout: CONNECT_TIMEOUT,
        timeout: None,
        initial_metadata: Vec::new(),
        back_off: None,
        max_receive_message_length: None,
        http2_keepalive: None,
        tcp_keepalive: None,
        source_address: None,
    })
}

/// A gRPC target: `host:port`, `dns:`, `ipv4:`, `ipv6:` or `unix:`. The address, and the host for TLS.
fn target_uri(uri: &str) -> Result<(TargetAddress, String), &'static str> {
    if let Some(path) = uri.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() {
            return Err("names no socket");
        }
        return Ok((TargetAddress::Fixed(Address::Pipe(path.into())), "localhost".to_owned()));
    }
    if let Some(name) = uri.strip_prefix("unix-abstract:") {
        let address = Address::Pipe(format!("@{name}").into());
        return Ok((TargetAddress::Fixed(address), "localhost".to_owned()));
    }
    if let Some(address) = uri.strip_prefix("ipv4:").or_else(|| uri.strip_prefix("ipv6:")) {
        let address: SocketAddr = address.parse().map_err(|_| "is not an IP address with a port")?;
        return Ok((TargetAddress::Fixed(Address::Ip(address)), address.ip().to_string()));
    }
    let name = match uri.strip_prefix("dns:") {
        Some(rest) => match rest.strip_prefix("//") {
            Some(rest) => rest.strip_prefix('/').ok_or("names a DNS server, which is not supported here")?,
            None => rest,
        },
        None if uri.contains("://") => return Err("has a scheme that is not supported"),
        None => uri,
    };
    if let Ok(address) = name.parse::<SocketAddr>() {
        return Ok((TargetAddress::Fixed(Address::Ip(address)), address.ip().to_string()));
    }
    /// The port of gRPC where none is given.
    const HTTPS: u16 = 443;
    let (host, port) = match name.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, port.parse().map_err(|_| "has no valid port")?),
        _ => (name, HTTPS),
    };
    if host.is_empty() {
        return Err("names no host");
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok((TargetAddress::Fixed(Address::Ip(SocketAddr::new(ip, port))), host.to_owned()));
    }
    let address =
        TargetAddress::Name { host: host.into(), port, family: DnsFamily::Auto, resolvers: Vec::new() };
    Ok((address, host.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_uris_of_grpc() {
        let ip = |text: &str| TargetAddress::Fixed(Address::Ip(text.parse().unwrap()));
        let pipe = |text: &str| TargetAddress::Fixed(Address::Pipe(text.into()));
        let name = |host: &str, port| TargetAddress::Name {
            host: host.into(),
            port,
            family: DnsFamily::Auto,
            resolvers: Vec::new(),
        };
        for (uri, wanted) in [
            ("a.test:18000", name("a.test", 18000)),
            ("dns:///a.test:1", name("a.test", 1)),
            ("dns:a.test", name("a.test", 443)),
            ("ipv4:1.2.3.4:5", ip("1.2.3.4:5")),
            ("ipv6:[::1]:5", ip("[::1]:5")),
            ("127.0.0.1:5", ip("127.0.0.1:5")),
            ("unix:/run/xds", pipe("/run/xds")),
            ("unix:///run/xds", pipe("/run/xds")),
            ("unix:run/xds", pipe("run/xds")),
            ("unix-abstract:xds", pipe("@xds")),
        ] {
            assert_eq!(target_uri(uri).unwrap().0, wanted, "{uri}");
        }
        for uri in ["dns://8.8.8.8/a.test:1", "xds:///a", "", ":1", "a:b", "ipv4:a:1", "unix:"] {
            assert!(target_uri(uri).is_err(), "{uri}");
        }
    }
}
