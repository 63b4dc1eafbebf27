//! From a `RouteAction` to a [`Forward`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::core::v3::{RoutingPriority, TypedExtensionConfig};
use outrigger_control_api::pb::envoy::config::route::v3 as pb;

use super::action::{
    ClusterRef, Forward, GrpcTimeout, GrpcTimeoutLimits, HashCookie, HashInput, HashPolicy, Mirror,
    MirrorHost, Target, WeightedCluster, WeightedClusters,
};
use super::compile::{header_ops, HostScope, Scope};
use super::header_ops::HeaderOps;
use super::internal_redirect::InternalRedirects;
use super::overrides::{merge, Level};
use super::retry::RetryPolicy;
use super::rewrite::{HostRewrite, PathRewrite};
use crate::config::balancing::Criteria;
use crate::config::compile::{duration, duration_or, path_rewriting};
use crate::config::headers::HeaderKey;
use crate::config::http::Upgrade;
use crate::config::matcher::{substitution, Fraction};
use crate::config::problems::Problems;
use crate::config::slot::Directory;
use crate::config::Cluster;
use crate::http::filters::header_mutation::Mutations;

/// A route's timeout unless it has its own.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// Compiles `config`. `template` is what the route's path matches, where that is one.
pub(super) fn forward(
    config: &pb::RouteAction,
    template: Option<&TypedExtensionConfig>,
    scope: &Scope,
    host: &HostScope,
    levels: &[&Level; 3],
    problems: &mut Problems,
) -> Option<Forward> {
    let before = problems.count();
    let target = target(config, scope, levels, problems);
    let retry = match &config.retry_policy {
        Some(policy) => {
            problems.at("retry_policy", |problems| RetryPolicy::compile(policy, problems)).map(Arc::new)
        }
        None => host.retry.clone(),
    };
    let own_mirrors = mirrors(&config.request_mirror_policies, &scope.clusters, problems);
    let (timeout, max_stream_duration, grpc_timeout) = timeouts(config, problems);
    let forward = Forward {
        timeout,
        idle_timeout: duration(&config.idle_timeout, "idle_timeout", problems).map(unless_zero),
        max_stream_duration,
        grpc_timeout,
        retry,
        hedge_on_per_try_timeout: (config.hedge_policy.as_ref())
            .map_or(host.hedge, |policy| policy.hedge_on_per_try_timeout),
        redirects: InternalRedirects::compile(config, problems).map(Box::new),
        priority: match config.priority() {
            RoutingPriority::Default => 0,
            RoutingPriority::High => 1,
        },
        cluster_not_found_code: not_found_code(config),
        upgrades: upgrades(config, problems),
        mirrors: if own_mirrors.is_empty() { host.mirrors.clone() } else { own_mirrors },
        metadata_match: Criteria::under(config.metadata_match.as_ref(), None),
        hash_policies: hash_policies(&config.hash_policy, problems),
        path_rewrite: path_rewrite(config, template, problems),
        host_rewrite: host_rewrite(config, problems).unwrap_or_default(),
        append_x_forwarded_host: config.append_x_forwarded_host,
        include_request_attempt_count: host.include_request_attempt_count,
        include_attempt_count_in_response: host.include_attempt_count_in_response,
        include_is_timeout_retry_header: host.include_is_timeout_retry_header,
        target: target?,
    };
    (problems.count() == before).then_some(forward)
}

fn unless_zero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

/// Route timeout, longest stream life, use of `grpc-timeout`.
#[allow(clippy::type_complexity)] // Three fields of one struct.
#[allow(deprecated)] // The older fields for grpc-timeout are still sent.
fn timeouts(
    config: &pb::RouteAction,
    problems: &mut Problems,
) -> (Option<Duration>, Option<Option<Duration>>, Option<GrpcTimeout>) {
    let timeout = duration_or(&config.timeout, DEFAULT_TIMEOUT, "timeout", problems);
    let Some(stream) = &config.max_stream_duration else {
        let offset = duration(&config.grpc_timeout_offset, "grpc_timeout_offset", problems);
        let grpc = duration(&config.max_grpc_timeout, "max_grpc_timeout", problems).map(|max| GrpcTimeout {
            limits: GrpcTimeoutLimits::Route,
            max: unless_zero(max),
            offset: offset.unwrap_or_default(),
        });
        return (unless_zero(timeout), None, grpc);
    };
    problems.at("max_stream_duration", |problems| {
        let max = duration(&stream.max_stream_duration, "max_stream_duration", problems);
        let offset = duration(&stream.grpc_timeout_header_offset, "grpc_timeout_header_offset", problems);
        let grpc = duration(&stream.grpc_timeout_header_max, "grpc_timeout_header_max", problems);
        let grpc = grpc.map(|max| GrpcTimeout {
            limits: GrpcTimeoutLimits::Stream,
            max: unless_zero(max),
            offset: offset.unwrap_or_default(),
        });
        // As Envoy: a route that limits its streams has no route timeout.
        (None, max.map(unless_zero), grpc)
    })
}

fn target(
    route: &pb::RouteAction,
    scope: &Scope,
    levels: &[&Level; 3],
    problems: &mut Problems,
) -> Option<Target> {
    use pb::route_action::ClusterSpecifier;

    // One of them is demanded by a field rule.
    match route.cluster_specifier.as_ref()? {
        ClusterSpecifier::Cluster(name) => Some(Target::Cluster(scope.clusters.slot(name))),
        ClusterSpecifier::ClusterHeader(name) => Some(Target::Header(HeaderKey::new(name))),
        ClusterSpecifier::WeightedClusters(config) => problems
            .at("weighted_clusters", |problems| {
                let outer = Criteria::under(route.metadata_match.as_ref(), None);
                weighted(config, outer.as_ref(), scope, levels, problems)
            })
            .map(|weighted| Target::Weighted(Box::new(weighted))),
        ClusterSpecifier::ClusterSpecifierPlugin(_) => {
            problems.report_at("cluster_specifier_plugin", "cluster specifier plugins are not supported");
            None
        }
        ClusterSpecifier::InlineClusterSpecifierPlugin(_) => {
            let message = "cluster specifier plugins are not supported";
            problems.report_at("inline_cluster_specifier_plugin", message);
            None
        }
    }
}

fn weighted(
    config: &pb::WeightedCluster,
    outer: Option<&Arc<Criteria>>,
    scope: &Scope,
    [route, host, table]: &[&Level; 3],
    problems: &mut Problems,
) -> Option<WeightedClusters> {
    use pb::weighted_cluster::{cluster_weight::HostRewriteSpecifier, RandomValueSpecifier};

    let before = problems.count();
    let mut clusters = Vec::with_capacity(config.clusters.len());
    for (index, config) in config.clusters.iter().enumerate() {
        problems.at_index("clusters", index, |problems| {
            let (request_headers, response_headers) = header_ops!(config, problems);
            let Some(cluster) =
                cluster_ref(&config.name, "name", &config.cluster_header, &scope.clusters, problems)
            else {
                return;
            };
            let host_rewrite = match &config.host_rewrite_specifier {
                Some(HostRewriteSpecifier::HostRewriteLiteral(host)) if !host.is_empty() => {
                    Some(host.clone().into())
                }
                _ => None,
            };
            let Some(weight) = config.weight.map(|weight| weight.value) else {
                return problems.report_at("weight", "is required");
            };
            let metadata_match = Criteria::under(config.metadata_match.as_ref(), outer);
            let own = Level::compile(&config.typed_per_filter_config, &scope.clusters, problems);
            let overrides = if own.is_empty() { None } else { merge(&[&own, route, host, table]) };
            let cluster = WeightedCluster {
                cluster,
                request_headers,
                response_headers,
                host_rewrite,
                metadata_match,
                overrides,
            };
            clusters.push((weight, cluster));
        });
    }
    if problems.count() > before {
        return None;
    }
    let (random_header, by_hash) = match &config.random_value_specifier {
        Some(RandomValueSpecifier::HeaderName(name)) => (Some(HeaderKey::new(name)), false),
        Some(RandomValueSpecifier::UseHashPolicy(by_hash)) => (None, by_hash.value),
        None => (None, false),
    };
    let weighted = WeightedClusters::new(clusters, random_header, by_hash);
    if weighted.is_none() {
        problems.report_at("clusters", "the sum of all weights must be between 1 and 4294967295");
    }
    weighted
}

/// A cluster that is named either outright or by a header.
fn cluster_ref(
    name: &str,
    name_field: &str,
    header: &str,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<ClusterRef> {
    match (name, header) {
        (name, "") if !name.is_empty() => Some(ClusterRef::Slot(clusters.slot(name))),
        ("", header) if !header.is_empty() => Some(ClusterRef::Header(HeaderKey::new(header))),
        _ => {
            problems.report(format_args!("needs either {name_field} or cluster_header"));
            None
        }
    }
}

/// Compiles `request_mirror_policies`.
pub(super) fn mirrors(
    policies: &[pb::route_action::RequestMirrorPolicy],
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Arc<[Mirror]> {
    (policies.iter().enumerate())
        .filter_map(|(index, policy)| {
            problems.at_index("request_mirror_policies", index, |problems| {
                Some(Mirror {
                    cluster: cluster_ref(
                        &policy.cluster,
                        "cluster",
                        &policy.cluster_header,
                        clusters,
                        problems,
                    )?,
                    fraction: (policy.runtime_fraction.as_ref()).map_or(Fraction::ALL, |share| {
                        Fraction::of_runtime(share, "runtime_fraction", problems)
                    }),
                    headers: (!policy.request_headers_mutations.is_empty())
                        .then(|| {
                            let list = &policy.request_headers_mutations;
                            Mutations::of_requests(list, "request_headers_mutations", problems)
                        })
                        .flatten()
                        .map(Arc::new),
                    host: match policy.host_rewrite_literal.as_str() {
                        "" if policy.disable_shadow_host_suffix_append => MirrorHost::Kept,
                        "" => MirrorHost::Suffixed,
                        host => MirrorHost::Literal(host.to_owned().into()),
                    },
                    sampled: policy.trace_sampled.map(|sampled| sampled.value),
                })
            })
        })
        .collect()
}

fn not_found_code(config: &pb::RouteAction) -> u16 {
    use pb::route_action::ClusterNotFoundResponseCode;

    match config.cluster_not_found_response_code() {
        ClusterNotFoundResponseCode::ServiceUnavailable => 503,
        ClusterNotFoundResponseCode::NotFound => 404,
        ClusterNotFoundResponseCode::InternalServerError => 500,
    }
}

fn upgrades(config: &pb::RouteAction, problems: &mut Problems) -> Box<[Upgrade]> {
    let mut kinds = HashSet::new();
    let mut upgrades = Vec::with_capacity(config.upgrade_configs.len());
    for (index, upgrade) in config.upgrade_configs.iter().enumerate() {
        let kind = upgrade.upgrade_type.to_ascii_lowercase();
        if !kinds.insert(kind.clone()) {
            problems.at_index("upgrade_configs", index, |problems| {
                problems.report_at("upgrade_type", format_args!("{kind:?} occurs twice"));
            });
        }
        let enabled = upgrade.enabled.is_none_or(|enabled| enabled.value);
        let terminate = upgrade.connect_config.is_some();
        if terminate && kind != "connect" {
            problems.at_index("upgrade_configs", index, |problems| {
                problems.report_at("connect_config", format_args!("is for CONNECT, not for {kind:?}"));
            });
        }
        upgrades.push(Upgrade { kind: kind.into(), enabled, terminate });
    }
    upgrades.into()
}

/// The list in `hash_policy`, of a route or a cluster.
pub(crate) fn hash_policies(
    list: &[pb::route_action::HashPolicy],
    problems: &mut Problems,
) -> Box<[HashPolicy]> {
    use pb::route_action::hash_policy::PolicySpecifier;

    let compile = |policy: &pb::route_action::HashPolicy, problems: &mut Problems| {
        let input = match policy.policy_specifier.as_ref()? {
            PolicySpecifier::Header(header) => {
                let rewrite = match &header.regex_rewrite {
                    Some(config) => {
                        let compiled =
                            problems.at("header.regex_rewrite", |problems| substitution(config, problems));
                        Some(Box::new(compiled?))
                    }
                    None => None,
                };
                HashInput::Header(HeaderKey::new(&header.header_name), rewrite)
            }
            PolicySpecifier::Cookie(cookie) => HashInput::Cookie(Box::new(HashCookie {
                name: cookie.name.as_str().into(),
                ttl: duration(&cookie.ttl, "cookie.ttl", problems),
                path: (!cookie.path.is_empty()).then(|| cookie.path.as_str().into()),
                attributes: (cookie.attributes.iter())
                    .map(|attribute| (attribute.name.as_str().into(), attribute.value.as_str().into()))
                    .collect(),
            })),
            PolicySpecifier::ConnectionProperties(properties) => {
                // Nothing to hash when the one property is off.
                properties.source_ip.then_some(HashInput::SourceIp)?
            }
            PolicySpecifier::QueryParameter(parameter) => {
                HashInput::QueryParameter(parameter.name.as_str().into())
            }
            PolicySpecifier::FilterState(state) => HashInput::FilterState(state.key.as_str().into()),
        };
        Some(HashPolicy { input, terminal: policy.terminal })
    };
    (list.iter().enumerate())
        .filter_map(|(index, policy)| {
            problems.at_index("hash_policy", index, |problems| compile(policy, problems))
        })
        .collect()
}

fn path_rewrite(
    config: &pb::RouteAction,
    template: Option<&TypedExtensionConfig>,
    problems: &mut Problems,
) -> Option<PathRewrite> {
    if let Some(policy) = &config.path_rewrite_policy {
        if !config.prefix_rewrite.is_empty() || config.regex_rewrite.is_some() {
            let why = "only one of prefix_rewrite, regex_rewrite and path_rewrite_policy can be set";
            problems.report_at("path_rewrite_policy", why);
        }
        let rewriting =
            problems.at("path_rewrite_policy", |problems| path_rewriting(template, policy, problems));
        return rewriting.map(|rewriting| PathRewrite::Regex(Box::new(rewriting)));
    }
    if template.is_some() && !config.prefix_rewrite.is_empty() {
        problems.report_at("prefix_rewrite", "cannot be set with path_match_policy");
    }
    let prefix = (!config.prefix_rewrite.is_empty())
        .then(|| PathRewrite::Prefix(config.prefix_rewrite.clone().into()));
    let Some(regex) = &config.regex_rewrite else { return prefix };
    if prefix.is_some() {
        problems.report_at("regex_rewrite", "prefix_rewrite and regex_rewrite cannot both be set");
    }
    problems
        .at("regex_rewrite", |problems| substitution(regex, problems))
        .map(|substitution| PathRewrite::Regex(Box::new(substitution)))
}

fn host_rewrite(config: &pb::RouteAction, problems: &mut Problems) -> Option<HostRewrite> {
    use pb::route_action::HostRewriteSpecifier;

    match config.host_rewrite_specifier.as_ref()? {
        HostRewriteSpecifier::HostRewriteLiteral(host) if host.is_empty() => None,
        HostRewriteSpecifier::HostRewriteLiteral(host) => Some(HostRewrite::Literal(host.clone().into())),
        HostRewriteSpecifier::HostRewriteHeader(name) if name.is_empty() => None,
        HostRewriteSpecifier::HostRewriteHeader(name) => Some(HostRewrite::Header(HeaderKey::new(name))),
        HostRewriteSpecifier::HostRewritePathRegex(config) => problems
            .at("host_rewrite_path_regex", |problems| substitution(config, problems))
            .map(|substitution| HostRewrite::PathRegex(Box::new(substitution))),
        HostRewriteSpecifier::AutoHostRewrite(auto) => auto.value.then_some(HostRewrite::Auto),
        // Refused by the support table.
        HostRewriteSpecifier::HostRewrite(_) => None,
    }
}
