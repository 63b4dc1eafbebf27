//! From a `RouteConfiguration` to a [`RouteTable`]. Every problem is reported, with its field path.
//!
//! A table of a control plane comes in as its bytes. Each of its virtual hosts is compiled once, to see
//! that it can be; when there are many, only their bytes stay, and a host is compiled again when the
//! first request wants it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::core::v3::data_source::Specifier;
use outrigger_control_api::pb::envoy::config::core::v3::substitution_format_string::Format as Source;
use outrigger_control_api::pb::envoy::config::route::v3 as pb;
use outrigger_control_api::pb::google::protobuf::Any;
use prost::Message;

use super::action::{DirectResponse, Mirror};
use super::beyond::Beyond;
use super::counted::{CountedBy, VirtualClusters};
use super::domains::Domains;
use super::header_ops::HeaderOps;
use super::limits::{LimitsOf, RateLimits, RouteLimits};
use super::overrides::{merge, Level, Overrides};
use super::path::{Conditions, PathMatch, PathText};
use super::redirect::{Redirect, RedirectPath};
use super::retry::RetryPolicy;
use super::rewrite::PathRewrite;
use super::sleeping::{HostCell, Sleeping};
use super::{compile_action, Action, RequireTls, Route, RouteTable, VirtualHost};
use crate::config::compile::local_reply::of_format;
use crate::config::compile::{bool_or, data_source, on_demand, path_template, tracing, u32_or};
use crate::config::demand::RouteOnDemand;
use crate::config::headers::{HeaderKey, Known};
use crate::config::matcher::{
    regex, substitution, CookieMatcher, Fraction, HeaderMatcher, QueryParameterMatcher,
};
use crate::config::problems::Problems;
use crate::config::slot::Directory;
use crate::config::Cluster;

/// The header changes of a message that has the usual four fields.
macro_rules! header_ops {
    ($config:expr, $problems:expr) => {
        (
            HeaderOps::compile(
                &$config.request_headers_to_add,
                "request_headers_to_add",
                &$config.request_headers_to_remove,
                "request_headers_to_remove",
                $problems,
            )
            .unwrap_or_default(),
            HeaderOps::compile(
                &$config.response_headers_to_add,
                "response_headers_to_add",
                &$config.response_headers_to_remove,
                "response_headers_to_remove",
                $problems,
            )
            .unwrap_or_default(),
        )
    };
}
pub(super) use header_ops;

/// Longest body of a direct response in bytes, unless the table says otherwise.
const MAX_DIRECT_RESPONSE_BODY: u32 = 4096;

/// A table of no more virtual hosts keeps all of them compiled.
const KEPT: usize = 16;

/// What routes inherit.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) clusters: Arc<Directory<Cluster>>,
    /// `most_specific_header_mutations_wins`.
    most_specific_wins: bool,
    max_direct_response_body: u32,
    table_request: HeaderOps,
    table_response: HeaderOps,
    table_mirrors: Arc<[Mirror]>,
    on_demand: Option<Arc<RouteOnDemand>>,
    /// What the table says to filters.
    level: Level,
}

/// What the routes of one virtual host inherit from it.
pub(super) struct HostScope {
    request: HeaderOps,
    response: HeaderOps,
    pub(super) mirrors: Arc<[Mirror]>,
    pub(super) retry: Option<Arc<RetryPolicy>>,
    /// `hedge_on_per_try_timeout`.
    pub(super) hedge: bool,
    buffer_limit: Option<u32>,
    on_demand: Option<Arc<RouteOnDemand>>,
    level: Level,
    /// What it and the table say to filters.
    overrides: Option<Arc<Overrides>>,
    pub(super) include_request_attempt_count: bool,
    pub(super) include_attempt_count_in_response: bool,
    pub(super) include_is_timeout_retry_header: bool,
    limits: Option<Arc<RateLimits>>,
    name: Box<str>,
    virtual_clusters: Option<Arc<VirtualClusters>>,
}

/// Compiles `config`; clusters it names get a slot in `clusters`, whether they exist or not. `None` if
/// anything was reported.
pub fn compile(
    config: &pb::RouteConfiguration,
    clusters: &Arc<Directory<Cluster>>,
    problems: &mut Problems,
) -> Option<RouteTable> {
    let before = problems.count();
    let scope = scope(config, clusters, problems);
    let mut domains = Domains::default();
    let mut hosts = Vec::with_capacity(config.virtual_hosts.len());
    for (index, host) in config.virtual_hosts.iter().enumerate() {
        problems.at_index("virtual_hosts", index, |problems| {
            add_domains(host, index, &mut domains, problems);
            hosts.extend(virtual_host(host, &scope, problems).map(HostCell::awake));
        });
    }
    (problems.count() == before).then(|| table(config, hosts, domains, None))
}

/// Looks at a virtual host before it is compiled: its bytes, and what they say.
pub type Look<'a> = dyn FnMut(&[u8], &pb::VirtualHost, &mut Problems) + 'a;

/// Compiles the table encoded in `body`, of which `config` has everything but the virtual hosts; these
/// are at `hosts`. They are compiled for good when they are first wanted, unless they are few. `None`
/// if anything was reported.
pub fn compile_encoded(
    config: &pb::RouteConfiguration,
    body: &Arc<[u8]>,
    hosts: &[Range<usize>],
    clusters: &Arc<Directory<Cluster>>,
    problems: &mut Problems,
    look: &mut Look<'_>,
) -> Option<RouteTable> {
    let before = problems.count();
    let scope = scope(config, clusters, problems);
    let mut domains = Domains::default();
    let mut cells = Vec::with_capacity(hosts.len());
    let (mut named, mut seen) = (Vec::new(), HashSet::new());
    for (index, place) in hosts.iter().enumerate() {
        problems.at_index("virtual_hosts", index, |problems| {
            let bytes = body.get(place.clone()).unwrap_or_default();
            let host = match pb::VirtualHost::decode(bytes) {
                Ok(host) => host,
                Err(error) => return problems.report(format_args!("is no virtual host: {error}")),
            };
            look(bytes, &host, problems);
            add_domains(&host, index, &mut domains, problems);
            let wanted = problems.wanted();
            let Some(compiled) = virtual_host(&host, &scope, problems) else { return };
            // Secrets are asked for only now.
            let wants = problems.wanted() > wanted;
            if wants || hosts.len() <= KEPT || needs_files(&host) || has_state(&host) {
                cells.push(HostCell::awake(compiled));
            } else {
                for slot in compiled.clusters() {
                    if seen.insert(Arc::as_ptr(slot)) {
                        named.push(slot.clone());
                    }
                }
                cells.push(HostCell::asleep(place.clone()));
            }
        });
    }
    let sleeping = Sleeping { body: body.clone(), scope, _clusters: named.into() };
    (problems.count() == before).then(|| table(config, cells, domains, Some(sleeping)))
}

/// Compiles the virtual host at `place` of a table that was compiled before. `None` where a problem is
/// found all the same.
pub(super) fn again(sleeping: &Sleeping, place: Range<usize>) -> Option<VirtualHost> {
    let host = pb::VirtualHost::decode(sleeping.body.get(place)?).ok()?;
    let mut problems = Problems::new();
    let compiled = virtual_host(&host, &sleeping.scope, &mut problems);
    compiled.filter(|_| problems.is_empty())
}

fn scope(
    config: &pb::RouteConfiguration,
    clusters: &Arc<Directory<Cluster>>,
    problems: &mut Problems,
) -> Scope {
    let (request, response) = header_ops!(config, problems);
    Scope {
        clusters: clusters.clone(),
        most_specific_wins: config.most_specific_header_mutations_wins,
        max_direct_response_body: u32_or(
            config.max_direct_response_body_size_bytes,
            MAX_DIRECT_RESPONSE_BODY,
        ),
        table_request: request,
        table_response: response,
        table_mirrors: compile_action::mirrors(&config.request_mirror_policies, clusters, problems),
        on_demand: on_demand::of_route(&config.typed_per_filter_config),
        level: Level::compile(&config.typed_per_filter_config, clusters, problems),
    }
}

fn add_domains(host: &pb::VirtualHost, index: usize, domains: &mut Domains, problems: &mut Problems) {
    for (position, domain) in host.domains.iter().enumerate() {
        // A table has fewer than 2^32 virtual hosts: its message is smaller than 4 GiB.
        if let Err(duplicate) = domains.insert(domain, index as u32) {
            problems.at_index("domains", position, |problems| problems.report(duplicate));
        }
    }
}

fn table(
    config: &pb::RouteConfiguration,
    hosts: Vec<HostCell>,
    mut domains: Domains,
    sleeping: Option<Sleeping>,
) -> RouteTable {
    domains.shrink();
    RouteTable {
        name: config.name.as_str().into(),
        internal_only_headers: config.internal_only_headers.iter().map(|name| HeaderKey::new(name)).collect(),
        virtual_hosts: hosts.into(),
        domains: Arc::new(domains),
        sleeping: sleeping.map(Arc::new),
        vhost_header: (!config.vhost_header.is_empty()).then(|| HeaderKey::new(&config.vhost_header)),
        ignore_port: config.ignore_port_in_host_matching,
        ignore_path_parameters: config.ignore_path_parameters_in_path_matching,
        has_more: config.vhds.is_some(),
    }
}

/// Whether the host has content from elsewhere, which may be another by the time it is wanted.
fn needs_files(host: &pb::VirtualHost) -> bool {
    host.routes.iter().any(|route| {
        let Some(pb::route::Action::DirectResponse(direct)) = &route.action else { return false };
        let content = direct.body.as_ref().and_then(|body| body.specifier.as_ref());
        matches!(content, Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)))
    })
}

/// Whether the host has what must not be made anew: token buckets and counters.
fn has_state(host: &pb::VirtualHost) -> bool {
    let of = |options: &HashMap<String, Any>| {
        let counts =
            |any: &Any| any.type_url.ends_with(".LocalRateLimit") || any.type_url.ends_with(".FilterConfig");
        options.values().any(counts)
    };
    !host.virtual_clusters.is_empty()
        || of(&host.typed_per_filter_config)
        || host.routes.iter().any(|route| {
            let weighted = match &route.action {
                Some(pb::route::Action::Route(action)) => match &action.cluster_specifier {
                    Some(pb::route_action::ClusterSpecifier::WeightedClusters(weighted)) => {
                        &*weighted.clusters
                    }
                    _ => &[],
                },
                _ => &[],
            };
            !route.stat_prefix.is_empty()
                || of(&route.typed_per_filter_config)
                || weighted.iter().any(|cluster| of(&cluster.typed_per_filter_config))
        })
}

fn virtual_host(config: &pb::VirtualHost, scope: &Scope, problems: &mut Problems) -> Option<VirtualHost> {
    use pb::virtual_host::TlsRequirementType;

    let (request, response) = header_ops!(config, problems);
    let own_mirrors = compile_action::mirrors(&config.request_mirror_policies, &scope.clusters, problems);
    #[allow(deprecated)] // The field is still sent.
    let level = Level::compile(&config.typed_per_filter_config, &scope.clusters, problems)
        .with_cors(config.cors.as_ref(), problems);
    let host = HostScope {
        request,
        response,
        mirrors: if own_mirrors.is_empty() { scope.table_mirrors.clone() } else { own_mirrors },
        retry: config.retry_policy.as_ref().and_then(|policy| {
            problems.at("retry_policy", |problems| RetryPolicy::compile(policy, problems)).map(Arc::new)
        }),
        hedge: config.hedge_policy.as_ref().is_some_and(|policy| policy.hedge_on_per_try_timeout),
        buffer_limit: config.per_request_buffer_limit_bytes.map(|limit| limit.value),
        on_demand: on_demand::of_route(&config.typed_per_filter_config).or_else(|| scope.on_demand.clone()),
        overrides: merge(&[&level, &scope.level]),
        level,
        include_request_attempt_count: config.include_request_attempt_count,
        include_attempt_count_in_response: config.include_attempt_count_in_response,
        include_is_timeout_retry_header: config.include_is_timeout_retry_header,
        limits: RateLimits::compile(&config.rate_limits, LimitsOf::Route, problems),
        name: config.name.as_str().into(),
        virtual_clusters: VirtualClusters::compile(config, problems),
    };
    let routes = (config.routes.iter().enumerate())
        .filter_map(|(index, config)| {
            problems.at_index("routes", index, |problems| route(config, scope, &host, problems))
        })
        .map(Arc::new)
        .collect();
    Some(VirtualHost {
        name: config.name.as_str().into(),
        require_tls: match config.require_tls() {
            TlsRequirementType::None => RequireTls::None,
            TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
            TlsRequirementType::All => RequireTls::All,
        },
        routes,
    })
}

fn route(config: &pb::Route, scope: &Scope, host: &HostScope, problems: &mut Problems) -> Option<Route> {
    use pb::route::Action as Proto;
    use pb::route_match::PathSpecifier;

    let name = (!config.name.is_empty()).then(|| Arc::from(config.name.as_str()));
    let (request, response) = header_ops!(config, problems);
    // Both parts are compiled whatever becomes of the other, to report the problems of both.
    let matched = config
        .r#match
        .as_ref()
        .and_then(|config| problems.at("match", |problems| route_match(config, problems)));
    let mut level = Level::compile(&config.typed_per_filter_config, &scope.clusters, problems);
    if let Some(Proto::Route(action)) = &config.action {
        #[allow(deprecated)] // As above.
        let with_cors =
            |level: Level, problems: &mut Problems| level.with_cors(action.cors.as_ref(), problems);
        level = problems.at("route", |problems| with_cors(level, problems));
    }
    let levels = [&level, &host.level, &scope.level];
    let template = match config.r#match.as_ref().and_then(|config| config.path_specifier.as_ref()) {
        Some(PathSpecifier::PathMatchPolicy(template)) => Some(template),
        _ => None,
    };
    let action = match config.action.as_ref() {
        Some(Proto::Route(config)) => problems
            .at("route", |problems| compile_action::forward(config, template, scope, host, &levels, problems))
            .map(|forward| Action::Forward(Box::new(forward))),
        Some(Proto::Redirect(config)) => problems
            .at("redirect", |problems| redirect(config, template.is_some(), problems))
            .map(|redirect| Action::Redirect(Box::new(redirect))),
        Some(Proto::DirectResponse(config)) => problems
            .at("direct_response", |problems| direct_response(config, scope, problems))
            .map(Action::Direct),
        Some(Proto::NonForwardingAction(_)) => Some(Action::NonForwarding),
        Some(Proto::FilterAction(_)) => {
            problems.report_at("filter_action", "filter actions are not supported");
            None
        }
        // Demanded by a field rule.
        None => None,
    };
    let limits = match config.action.as_ref() {
        Some(Proto::Route(action)) => {
            let own = problems
                .at("route", |problems| RateLimits::compile(&action.rate_limits, LimitsOf::Route, problems));
            #[allow(deprecated)] // As above.
            let both = bool_or(action.include_vh_rate_limits, false);
            let host = host.limits.clone();
            (own.is_some() || host.is_some()).then(|| Box::new(RouteLimits { own, host, both }))
        }
        _ => None,
    };
    let (matched, conditions) = matched?;
    let order = |route: &HeaderOps, host: &HeaderOps, table: &HeaderOps| {
        if scope.most_specific_wins {
            HeaderOps::sequence(&[table, host, route])
        } else {
            HeaderOps::sequence(&[route, host, table])
        }
    };
    let tracing = tracing::of_route(config, problems);
    Some(Route {
        tracing,
        decorator: tracing::decorator(config.decorator.as_ref()),
        name,
        matched,
        conditions,
        action: action?,
        request_headers: order(&request, &host.request, &scope.table_request),
        response_headers: order(&response, &host.response, &scope.table_response),
        buffer_limit: (config.per_request_buffer_limit_bytes.map(|limit| limit.value)).or(host.buffer_limit),
        overrides: if level.is_empty() { host.overrides.clone() } else { merge(&levels) },
        metadata: crate::config::compile::metadata::noted(config.metadata.as_ref()),
        on_demand: on_demand::of_route(&config.typed_per_filter_config).or_else(|| host.on_demand.clone()),
        counted: CountedBy::new(&host.name, &config.stat_prefix, host.virtual_clusters.as_ref()),
        limits,
    })
}

pub(super) fn route_match(
    config: &pb::RouteMatch,
    problems: &mut Problems,
) -> Option<(PathMatch, Conditions)> {
    use pb::route_match::PathSpecifier;

    let case_sensitive = bool_or(config.case_sensitive, true);
    let text = |text: &str| PathText { text: text.as_bytes().into(), case_sensitive };
    let path = match config.path_specifier.as_ref() {
        Some(PathSpecifier::Prefix(prefix)) => Some(PathMatch::Prefix(text(prefix))),
        Some(PathSpecifier::Path(path)) => Some(PathMatch::Exact(text(path))),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => Some(PathMatch::SeparatedPrefix(text(prefix))),
        Some(PathSpecifier::SafeRegex(config)) => {
            problems.at("safe_regex", |problems| regex(config, problems)).map(PathMatch::Regex)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => Some(PathMatch::Connect),
        Some(PathSpecifier::PathMatchPolicy(config)) => {
            problems.at("path_match_policy", |problems| path_template(config, problems)).map(PathMatch::Regex)
        }
        // Demanded by a field rule.
        None => None,
    };
    let headers = HeaderMatcher::compile_all(&config.headers, "headers", problems);
    let query: Vec<_> = (config.query_parameters.iter().enumerate())
        .map(|(index, config)| {
            problems.at_index("query_parameters", index, |problems| {
                QueryParameterMatcher::compile(config, problems)
            })
        })
        .collect();
    let cookies: Vec<_> = (config.cookies.iter().enumerate())
        .map(|(index, config)| {
            problems.at_index("cookies", index, |problems| CookieMatcher::compile(config, problems))
        })
        .collect();
    let cookies = cookies.into_iter().collect::<Option<Box<[_]>>>()?;
    let conditions = Conditions {
        headers: headers?,
        query: query.into_iter().collect::<Option<_>>()?,
        cookies: (!cookies.is_empty()).then(|| (Known::Cookie.into(), cookies)),
        grpc: config.grpc.is_some(),
        fraction: (config.runtime_fraction.as_ref())
            .map(|share| Fraction::of_runtime(share, "runtime_fraction", problems)),
        beyond: Beyond::compile(config, problems).ok()?.map(Arc::new),
    };
    Some((path?, conditions))
}

/// Compiles `config`; `template` says that the route's path matches one.
pub(crate) fn redirect(
    config: &pb::RedirectAction,
    template: bool,
    problems: &mut Problems,
) -> Option<Redirect> {
    use pb::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};

    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned().into());
    let path = match &config.path_rewrite_specifier {
        Some(PathRewriteSpecifier::PathRedirect(path)) => {
            some(path).map_or(RedirectPath::Keep, RedirectPath::Replace)
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) if template && !prefix.is_empty() => {
            problems.report_at("prefix_rewrite", "cannot be set with path_match_policy");
            return None;
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => some(prefix)
            .map_or(RedirectPath::Keep, |prefix| RedirectPath::Rewrite(PathRewrite::Prefix(prefix))),
        Some(PathRewriteSpecifier::RegexRewrite(config)) => {
            let substitution = problems.at("regex_rewrite", |problems| substitution(config, problems))?;
            RedirectPath::Rewrite(PathRewrite::Regex(Box::new(substitution)))
        }
        // Refused by the support table.
        Some(PathRewriteSpecifier::PathRewrite(_)) | None => RedirectPath::Keep,
    };
    let port = match u16::try_from(config.port_redirect) {
        Ok(0) => None,
        Ok(port) => Some(port),
        Err(_) => {
            let message = format_args!("{} is no port, the highest is 65535", config.port_redirect);
            problems.report_at("port_redirect", message);
            return None;
        }
    };
    Some(Redirect {
        status: match config.response_code() {
            RedirectResponseCode::MovedPermanently => 301,
            RedirectResponseCode::Found => 302,
            RedirectResponseCode::SeeOther => 303,
            RedirectResponseCode::TemporaryRedirect => 307,
            RedirectResponseCode::PermanentRedirect => 308,
        },
        scheme: match &config.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => some("https"),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => some(scheme),
            Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
        },
        host: some(&config.host_redirect),
        port,
        path,
        strip_query: config.strip_query,
    })
}

fn direct_response(
    config: &pb::DirectResponseAction,
    scope: &Scope,
    problems: &mut Problems,
) -> Option<DirectResponse> {
    let body = match &config.body {
        None => bytes::Bytes::new(),
        Some(source) => problems.at("body", |problems| data_source(source, problems))?,
    };
    let limit = scope.max_direct_response_body;
    if body.len() > limit as usize {
        let message = format_args!(
            "the body has {} bytes, max_direct_response_body_size_bytes allows {limit}",
            body.len()
        );
        problems.report_at("body", message);
        return None;
    }
    // Bounded by a field rule.
    let status = u16::try_from(config.status).ok()?;
    let Some(formatted) = &config.body_format else {
        return Some(DirectResponse { status, body, format: None, content_type: None });
    };
    problems.at("body_format", |problems| {
        let content_type = Some(formatted.content_type.as_str()).filter(|kind| !kind.is_empty());
        let content_type = content_type.map(|kind| bytes::Bytes::copy_from_slice(kind.as_bytes()));
        if let Some(Source::TextFormatSource(source)) = &formatted.format {
            // Bytes of any kind, as long as they are no format.
            let body = problems.at("text_format_source", |problems| data_source(source, problems))?;
            if !body.contains(&b'%') {
                return Some(DirectResponse { status, body, format: None, content_type });
            }
        }
        let format = of_format(formatted, problems)?;
        let content_type = Some(format.content_type.clone());
        Some(DirectResponse { status, body, format: Some(Arc::new(format)), content_type })
    })
}
