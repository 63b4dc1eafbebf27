//! The HTTP connection manager: `HttpConnectionManager` in, [`HttpConnectionManager`] out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::extensions::filters::http::router::v3::Router;
use outrigger_control_api::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use outrigger_control_api::type_of;

use super::discovery::config_source;
use super::http_options::{http1_options, http2_options};
use super::resource::RouteNeed;
use super::rooms;
use super::{
    bool_or, cidr, duration_or, extension, first_look, http_filters, idle, local_reply, on_demand, scoped,
    tracing, u32_or, Environment,
};
use crate::config::demand::OnDemand;
use crate::config::http::{
    CertDetails, ClientCert, Codec, EscapedSlashes, HcmTimeouts, HeaderCase, Http1Options,
    HttpConnectionManager, HttpFilter, InstalledFilter, RequestLimits, RouterOptions, Routes, ServerHeader,
    StripPort, Underscores, Upgrade, UpstreamLogs, MAX_FILTERS,
};
use crate::config::matcher::StringMatcher;
use crate::config::problems::Problems;
use crate::config::route::{FilterName, RouteTable};
use crate::config::{HeaderKey, Slot};
use crate::telemetry::metrics::Scope;
use crate::telemetry::stats::{HcmStats, Http2Stats};

/// Time to the end of a request's head unless config says otherwise: a bound of our own, where Envoy
/// has none and a silent client holds its connection for ever.
const REQUEST_HEADERS_TIMEOUT: Duration = Duration::from_secs(10);

/// Compiles `config`. `owner` names the listener, by which requests leave the service if it is `outbound`; an inline
/// route table without a name is called after it.
/// `None` when a problem was reported.
pub fn compile(
    config: &pb::HttpConnectionManager,
    (owner, outbound): (&str, bool),
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<HttpConnectionManager> {
    let before = problems.count();
    let Filters { filters, on_demand, router } = filters(config, environment, problems);
    environment.needs.borrow_mut().on_demand |= on_demand.is_some();
    let routes = routes(config, owner, environment, problems);
    let access_logs = rooms::access_logs(&config.access_log, "access_log", environment, problems);
    let (internal_networks, internal_unix) = internal(config, problems);
    let (trusted_hops, detections) = first_look::detections(config, problems);
    let tracing = tracing::compile(config, outbound, environment, problems);
    let local_reply = problems.at("local_reply_config", |problems| {
        local_reply::compile(config.local_reply_config.as_ref(), environment, problems)
    });
    let common = config.common_http_protocol_options.unwrap_or_default();
    let timeouts = timeouts(config, &common, problems);
    let upgrades = upgrades(config, problems);
    let http1 = config.http_protocol_options.clone().unwrap_or_default();
    let http1_options = http1_options(Some(&http1));
    let http2 = problems.at("http2_protocol_options", |problems| {
        http2_options(config.http2_protocol_options.as_ref(), problems)
    });
    let drain_timeout = duration_or(&config.drain_timeout, Duration::from_secs(5), "drain_timeout", problems);
    let strip_port = strip_port(config, problems);
    let delayed_close_timeout =
        duration_or(&config.delayed_close_timeout, Duration::from_secs(1), "delayed_close_timeout", problems);
    if problems.count() > before {
        return None;
    }
    Some(HttpConnectionManager {
        stats: HcmStats::new(&Scope::http(&config.stat_prefix)),
        codec: match config.codec_type() {
            pb::http_connection_manager::CodecType::Auto => Codec::Auto,
            pb::http_connection_manager::CodecType::Http1 => Codec::Http1,
            // HTTP/3 is refused by the support table.
            pb::http_connection_manager::CodecType::Http2 | pb::http_connection_manager::CodecType::Http3 => {
                Codec::Http2
            }
        },
        routes: routes?,
        on_demand: on_demand.map(Box::new),
        filters,
        router: router?,
        access_logs,
        server_name: text_or(&config.server_name, "envoy"),
        server_header: match config.server_header_transformation() {
            pb::http_connection_manager::ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
            pb::http_connection_manager::ServerHeaderTransformation::AppendIfAbsent => {
                ServerHeader::AppendIfAbsent
            }
            pb::http_connection_manager::ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
        },
        use_remote_address: bool_or(config.use_remote_address, false),
        skip_xff_append: config.skip_xff_append,
        xff_num_trusted_hops: trusted_hops,
        detections,
        early: first_look::early(config, problems),
        internal_networks,
        internal_unix,
        via: optional(&config.via),
        add_user_agent: bool_or(config.add_user_agent, false),
        service: environment.compiler.service.clone(),
        generate_request_id: bool_or(config.generate_request_id, true),
        preserve_external_request_id: config.preserve_external_request_id,
        always_set_request_id_in_response: config.always_set_request_id_in_response,
        scheme_follows: config
            .scheme_header_transformation
            .as_ref()
            .is_some_and(|scheme| scheme.match_upstream),
        scheme_overwrite: config.scheme_header_transformation.as_ref().and_then(|scheme| {
            let core::scheme_header_transformation::Transformation::SchemeToOverwrite(scheme) =
                scheme.transformation.as_ref()?;
            Some(Bytes::copy_from_slice(scheme.as_bytes()))
        }),
        normalize_path: bool_or(config.normalize_path, false),
        merge_slashes: config.merge_slashes,
        escaped_slashes: escaped_slashes(config),
        strip_port,
        strip_trailing_host_dot: config.strip_trailing_host_dot,
        proxy_100_continue: config.proxy_100_continue,
        append_x_forwarded_port: config.append_x_forwarded_port,
        timeouts,
        limits: request_limits(config, &common, &http1, &http1_options, problems),
        max_requests_per_connection: u32_or(common.max_requests_per_connection, 0),
        http1: http1_options,
        http2,
        http2_stats: Http2Stats::new(&Scope::raw("http2")),
        drain_timeout,
        upgrades,
        delayed_close_timeout,
        local_reply,
        tracing: tracing.map(Box::new),
        client_cert: client_cert(config),
    })
}

fn client_cert(config: &pb::HttpConnectionManager) -> ClientCert {
    use pb::http_connection_manager::ForwardClientCertDetails as Mode;
    let set = config.set_current_client_cert_details.as_ref();
    let details = set.map_or_else(CertDetails::default, |set| CertDetails {
        subject: super::bool_or(set.subject, false),
        cert: set.cert,
        chain: set.chain,
        dns: set.dns,
        uri: set.uri,
    });
    match config.forward_client_cert_details() {
        Mode::Sanitize => ClientCert::Sanitize,
        Mode::ForwardOnly => ClientCert::ForwardOnly,
        Mode::AppendForward => ClientCert::AppendForward(details),
        Mode::SanitizeSet => ClientCert::SanitizeSet(details),
        Mode::AlwaysForwardOnly => ClientCert::AlwaysForwardOnly,
    }
}

fn request_limits(
    config: &pb::HttpConnectionManager,
    common: &core::HttpProtocolOptions,
    http1: &core::Http1ProtocolOptions,
    options: &Http1Options,
    problems: &mut Problems,
) -> RequestLimits {
    RequestLimits {
        // The field's rule bounds it to 8192.
        max_head: u32_or(config.max_request_headers_kb, 60).saturating_mul(1024) as usize,
        max_fields: u32_or(common.max_headers_count, 100) as usize,
        http_10: http1.accept_http_10,
        default_host: optional(&http1.default_host_for_http_10),
        absolute_url: bool_or(http1.allow_absolute_url, true),
        chunked_length: options.allow_chunked_length,
        custom_methods: http1.allow_custom_methods,
        preserve_case: options.header_case == HeaderCase::Preserve,
        proper_added: options.proper_added,
        underscores: match common.headers_with_underscores_action() {
            core::http_protocol_options::HeadersWithUnderscoresAction::Allow => Underscores::Allow,
            core::http_protocol_options::HeadersWithUnderscoresAction::RejectRequest => Underscores::Reject,
            core::http_protocol_options::HeadersWithUnderscoresAction::DropHeader => Underscores::Drop,
        },
        ignored_upgrades: problems.at("http_protocol_options", |problems| {
            let field = "ignore_http_11_upgrade";
            let all = StringMatcher::compile_all(&http1.ignore_http_11_upgrade, field, problems);
            all.map(Vec::from).unwrap_or_default()
        }),
    }
}

fn optional(text: &str) -> Option<Bytes> {
    (!text.is_empty()).then(|| Bytes::copy_from_slice(text.as_bytes()))
}

fn text_or(text: &str, default: &'static str) -> Bytes {
    optional(text).unwrap_or(Bytes::from_static(default.as_bytes()))
}

fn routes(
    config: &pb::HttpConnectionManager,
    owner: &str,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Routes> {
    use pb::http_connection_manager::RouteSpecifier;
    match config.route_specifier.as_ref()? {
        RouteSpecifier::RouteConfig(routes) => {
            let table = problems
                .at("route_config", |problems| rooms::route_table(routes, true, environment, problems))?;
            // A listener that comes again has a table of its own each time.
            if environment.dynamic {
                return Some(Routes::Table(Slot::anonymous(Arc::new(table))));
            }
            // Several connection managers may use the same name for different tables, so the listener and
            // a number are part of the slot's name.
            let slot = (0..)
                .map(|number| match number {
                    0 => format!("{owner}/{}", routes.name),
                    _ => format!("{owner}/{}#{number}", routes.name),
                })
                .find(|name| environment.compiler.routes.find(name).is_none())
                .map(|name| environment.compiler.routes.slot(&name))?;
            slot.set(Some(Arc::new(table)));
            Some(Routes::Table(slot))
        }
        RouteSpecifier::Rds(rds) => {
            let slot = problems
                .at("rds", |problems| route_discovery(rds, &config.stat_prefix, environment, problems));
            slot.map(Routes::Table)
        }
        RouteSpecifier::ScopedRoutes(scoped) => {
            let scoped = problems.at("scoped_routes", |problems| {
                scoped::routes(scoped, &config.stat_prefix, environment, problems)
            });
            scoped.map(|scoped| Routes::Scoped(Box::new(scoped)))
        }
    }
}

/// The slot of a table that a control plane sends; the environment learns that it is needed.
fn route_discovery(
    rds: &pb::Rds,
    stat_prefix: &str,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Arc<Slot<RouteTable>>> {
    let name = rds.route_config_name.as_str();
    if name.is_empty() || name.starts_with("xdstp:") {
        let message = if name.is_empty() { "is required" } else { "xdstp names are not supported" };
        problems.report_at("route_config_name", message);
    }
    let compiler = environment.compiler;
    let parent = environment.parent();
    let source = problems.at("config_source", |problems| {
        config_source(rds.config_source.as_ref()?, parent.as_ref(), compiler, problems)
    })?;
    let slot = compiler.route_slot(&source.source, name);
    let mut needs = environment.needs.borrow_mut();
    let stat_prefix: Arc<str> = stat_prefix.into();
    match needs.route_tables.iter_mut().find(|need| Arc::ptr_eq(&need.slot, &slot)) {
        Some(need) => need.stat_prefixes.push(stat_prefix),
        None => needs.route_tables.push(RouteNeed {
            source,
            name: name.into(),
            slot: slot.clone(),
            stat_prefixes: vec![stat_prefix],
        }),
    }
    Some(slot)
}

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// What a list of filters becomes.
struct Filters {
    /// Those before the router.
    filters: Vec<InstalledFilter>,
    /// The one that makes requests wait, which is no step of its own.
    on_demand: Option<OnDemand>,
    /// The router's options.
    router: Option<RouterOptions>,
}

fn filters(
    config: &pb::HttpConnectionManager,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Filters {
    use pb::http_filter::ConfigType;
    let list = &config.http_filters;
    let stats = Scope::http(&config.stat_prefix);
    let mut filters = Vec::new();
    let mut on_demand = None;
    let mut router = None;
    let mut unsupported = false;
    for (index, filter) in list.iter().enumerate() {
        let mut install = |compiled: Option<HttpFilter>| {
            filters.extend(compiled.map(|compiled| InstalledFilter {
                name: FilterName::new(&filter.name),
                disabled: filter.disabled,
                filter: compiled,
            }));
        };
        problems.at_index("http_filters", index, |problems| {
            let any = match &filter.config_type {
                Some(ConfigType::TypedConfig(any)) if !type_of(any).is_empty() => any,
                Some(ConfigType::ConfigDiscovery(discovery)) => {
                    let compiled = problems.at("config_discovery", |problems| {
                        http_filters::config_discovery(
                            &filter.name,
                            discovery,
                            &config.stat_prefix,
                            environment,
                            problems,
                        )
                    });
                    unsupported |= compiled.is_none();
                    return install(compiled);
                }
                _ => {
                    unsupported = true;
                    return problems.report_at("typed_config", "is required");
                }
            };
            match type_of(any) {
                ROUTER => {
                    if index + 1 < list.len() {
                        problems.report(format!("the router ({}) must be the last filter", filter.name));
                    }
                    if filter.disabled {
                        problems.report_at("disabled", "the router cannot be disabled");
                    }
                    router =
                        problems.at("typed_config", |problems| router_options(any, environment, problems));
                    unsupported |= router.is_none();
                }
                found if http_filters::knows(found) => {
                    let compiled = problems.at("typed_config", |problems| {
                        http_filters::compile(any, &stats, &environment.compiler.clusters, problems)
                    });
                    unsupported |= compiled.is_none();
                    install(compiled);
                }
                on_demand::TYPE => {
                    if on_demand.is_some() {
                        problems.report(format!("there are two filters of type {}", on_demand::TYPE));
                    }
                    let compiled = problems.at("typed_config", |problems| {
                        on_demand::filter(&filter.name, any, environment, problems)
                    });
                    unsupported |= compiled.is_none();
                    if !filter.disabled {
                        on_demand = compiled;
                    }
                }
                // The support table has said so.
                _ if filter.is_optional => {}
                found => {
                    unsupported = true;
                    let message = format!("the HTTP filter {} ({found}) is not supported yet", filter.name);
                    problems.report_at("typed_config", message);
                }
            }
        });
    }
    if filters.len() > MAX_FILTERS {
        problems.report_at("http_filters", format!("more than {MAX_FILTERS} filters are not supported"));
    }
    let ends_with_router = list.last().is_some_and(
        |last| matches!(&last.config_type, Some(ConfigType::TypedConfig(any)) if type_of(any) == ROUTER),
    );
    if !ends_with_router && !unsupported && router.is_none() {
        problems.report_at("http_filters", "must end with the router (envoy.filters.http.router)");
    }
    Filters { filters, on_demand, router }
}

fn router_options(
    any: &outrigger_control_api::pb::google::protobuf::Any,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<RouterOptions> {
    let config: Router = extension(any, "", problems)?;
    for (index, filter) in config.upstream_http_filters.iter().enumerate() {
        let found = match &filter.config_type {
            Some(pb::http_filter::ConfigType::TypedConfig(any)) => type_of(any),
            _ => "",
        };
        if found != "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec" {
            problems.at_index("upstream_http_filters", index, |problems| {
                problems.report_at(
                    "typed_config",
                    format!("the upstream HTTP filter {} is not supported yet", filter.name),
                );
            });
        }
    }
    let logs = rooms::access_logs(&config.upstream_log, "upstream_log", environment, problems);
    Some(RouterOptions {
        suppress_envoy_headers: config.suppress_envoy_headers,
        strict_check_headers: config.strict_check_headers.iter().map(|name| HeaderKey::new(name)).collect(),
        respect_expected_rq_timeout: config.respect_expected_rq_timeout,
        upstream_logs: (!logs.is_empty()).then(|| UpstreamLogs {
            list: logs.into(),
            when_connected: (config.upstream_log_options.as_ref())
                .is_some_and(|options| options.flush_upstream_log_on_upstream_stream),
        }),
    })
}

fn internal(config: &pb::HttpConnectionManager, problems: &mut Problems) -> (Vec<(IpAddr, u8)>, bool) {
    let Some(internal) = &config.internal_address_config else { return (Vec::new(), false) };
    let mut networks = Vec::new();
    problems.at("internal_address_config", |problems| {
        for (index, range) in internal.cidr_ranges.iter().enumerate() {
            networks.extend(problems.at_index("cidr_ranges", index, |problems| cidr(range, problems)));
        }
    });
    (networks, internal.unix_sockets)
}

fn timeouts(
    config: &pb::HttpConnectionManager,
    common: &core::HttpProtocolOptions,
    problems: &mut Problems,
) -> HcmTimeouts {
    const COMMON: &str = "common_http_protocol_options";
    let hour = Some(Duration::from_secs(3600));
    HcmTimeouts {
        idle: problems.at(COMMON, |problems| idle(&common.idle_timeout, hour, "idle_timeout", problems)),
        stream_idle: idle(
            &config.stream_idle_timeout,
            Some(Duration::from_secs(300)),
            "stream_idle_timeout",
            problems,
        ),
        request: idle(&config.request_timeout, None, "request_timeout", problems),
        request_headers: idle(
            &config.request_headers_timeout,
            Some(REQUEST_HEADERS_TIMEOUT),
            "request_headers_timeout",
            problems,
        ),
        max_connection_duration: problems.at(COMMON, |problems| {
            idle(&common.max_connection_duration, None, "max_connection_duration", problems)
        }),
        http1_safe: config.http1_safe_max_connection_duration,
        max_stream_duration: problems
            .at(COMMON, |problems| idle(&common.max_stream_duration, None, "max_stream_duration", problems)),
    }
}

fn upgrades(config: &pb::HttpConnectionManager, problems: &mut Problems) -> Vec<Upgrade> {
    let mut upgrades: Vec<Upgrade> = Vec::new();
    for (index, upgrade) in config.upgrade_configs.iter().enumerate() {
        problems.at_index("upgrade_configs", index, |problems| {
            let kind = upgrade.upgrade_type.to_ascii_lowercase();
            if upgrades.iter().any(|other| *other.kind == *kind) {
                problems.report_at("upgrade_type", format!("the upgrade {kind:?} is configured twice"));
            }
            upgrades.push(Upgrade {
                kind: kind.into(),
                enabled: bool_or(upgrade.enabled, true),
                terminate: false,
            });
        });
    }
    upgrades
}

fn strip_port(config: &pb::HttpConnectionManager, problems: &mut Problems) -> StripPort {
    use pb::http_connection_manager::StripPortMode;
    let any = matches!(config.strip_port_mode, Some(StripPortMode::StripAnyHostPort(true)));
    match (config.strip_matching_host_port, any) {
        (true, true) => {
            problems.report_at("strip_any_host_port", "cannot be combined with strip_matching_host_port");
            StripPort::Any
        }
        (_, true) => StripPort::Any,
        (true, _) => StripPort::Matching,
        _ => StripPort::None,
    }
}

fn escaped_slashes(config: &pb::HttpConnectionManager) -> EscapedSlashes {
    use pb::http_connection_manager::PathWithEscapedSlashesAction as Action;
    match config.path_with_escaped_slashes_action() {
        Action::ImplementationSpecificDefault | Action::KeepUnchanged => EscapedSlashes::Keep,
        Action::RejectRequest => EscapedSlashes::Reject,
        Action::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
        Action::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
    }
}
