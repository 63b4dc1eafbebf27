//! Listener filters: what is asked and looked at before a filter chain is chosen.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::core::v3::proxy_protocol_config::Version;
use outrigger_control_api::pb::envoy::config::listener::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::filters::listener::{
    original_src::v3 as original_src, proxy_protocol::v3 as proxy_protocol,
};
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::type_of;

use super::extension;
use crate::config::listener::{
    FieldRule, Inspect, ListenerFilter, OriginalSrc, PortPredicate, ProxyProtocol,
};
use crate::config::problems::Problems;
use crate::telemetry::stats::ProxyProtocolStats;
use crate::telemetry::stream_info::read_dynamic_metadata;

/// The filters of a listener.
#[derive(Default)]
pub(super) struct Filters {
    pub(super) inspect: Inspect,
    pub(super) proxy_protocol: Option<Arc<ProxyProtocol>>,
    pub(super) original_src: Option<OriginalSrc>,
    pub(super) disabled: Vec<(ListenerFilter, PortPredicate)>,
}

/// What metadata of the PROXY protocol are noted under, unless config says.
const NAMESPACE: &str = "envoy.filters.listener.proxy_protocol";

/// Compiles the `listener_filters` of `listener`.
pub(super) fn compile(listener: &pb::Listener, problems: &mut Problems) -> Filters {
    let mut filters = Filters::default();
    if listener.use_original_dst.is_some_and(|wanted| wanted.value) {
        // As in Envoy, this implies the filter.
        filters.inspect.original_dst = true;
    }
    for (index, filter) in listener.listener_filters.iter().enumerate() {
        problems.at_index("listener_filters", index, |problems| {
            if let Some(kind) = one(filter, &mut filters, problems) {
                if let Some(ports) = &filter.filter_disabled {
                    let ports = problems.at("filter_disabled", |problems| predicate(ports, problems));
                    filters.disabled.extend(ports.map(|ports| (kind, ports)));
                }
            }
        });
    }
    filters
}

fn one(
    filter: &pb::ListenerFilter,
    filters: &mut Filters,
    problems: &mut Problems,
) -> Option<ListenerFilter> {
    use pb::listener_filter::ConfigType;
    let any = match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) if !type_of(any).is_empty() => any,
        // Refused by the support table.
        Some(ConfigType::ConfigDiscovery(_)) => return None,
        _ => {
            problems.report_at("typed_config", "is required");
            return None;
        }
    };
    match type_of(any) {
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
            filters.inspect.tls = true;
            Some(ListenerFilter::Tls)
        }
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
            filters.inspect.http = true;
            Some(ListenerFilter::Http)
        }
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => {
            filters.inspect.original_dst = true;
            Some(ListenerFilter::OriginalDst)
        }
        "envoy.extensions.filters.listener.original_src.v3.OriginalSrc" => {
            let config: original_src::OriginalSrc = extension(any, "typed_config", problems)?;
            filters.original_src = Some(OriginalSrc { bind_port: config.bind_port, mark: config.mark });
            Some(ListenerFilter::OriginalSrc)
        }
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
            if filters.inspect.tls || filters.inspect.http {
                problems.report("must stand before the inspectors, which would look at its header");
            }
            if filters.proxy_protocol.is_some() {
                problems.report("stands there twice: a connection has one header");
            }
            let compiled = problems.at("typed_config", |problems| proxy(any, problems))?;
            filters.proxy_protocol = Some(Arc::new(compiled));
            Some(ListenerFilter::ProxyProtocol)
        }
        found => {
            let message = format!("the listener filter {} ({found}) is not supported", filter.name);
            problems.report_at("typed_config", message);
            None
        }
    }
}

fn proxy(any: &Any, problems: &mut Problems) -> Option<ProxyProtocol> {
    use proxy_protocol::proxy_protocol::key_value_pair::ValueStringEncoding;
    let config: proxy_protocol::ProxyProtocol = extension(any, "", problems)?;
    let refuses = |version: Version| config.disallowed_versions().any(|refused| refused == version);
    let mut rules = Vec::with_capacity(config.rules.len());
    for (index, rule) in config.rules.iter().enumerate() {
        let Some(place) = &rule.on_tlv_present else { continue };
        let Ok(kind) = u8::try_from(rule.tlv_type) else {
            problems.at_index("rules", index, |problems| {
                problems.report_at("tlv_type", "must be less than 256");
            });
            continue;
        };
        let namespace =
            if place.metadata_namespace.is_empty() { NAMESPACE } else { place.metadata_namespace.as_str() };
        let base64 = place.value_string_encoding() == ValueStringEncoding::Base64;
        rules.push(FieldRule { kind, namespace: namespace.into(), key: place.key.as_str().into(), base64 });
    }
    if !rules.is_empty() {
        read_dynamic_metadata();
    }
    Some(ProxyProtocol {
        optional: config.allow_requests_without_proxy_protocol,
        refuses_v1: refuses(Version::V1),
        refuses_v2: refuses(Version::V2),
        rules: rules.into(),
        stats: ProxyProtocolStats::new(&config.stat_prefix),
    })
}

fn predicate(
    config: &pb::ListenerFilterChainMatchPredicate,
    problems: &mut Problems,
) -> Option<PortPredicate> {
    use pb::listener_filter_chain_match_predicate::Rule;
    let mut all = |field: &str, set: &[pb::ListenerFilterChainMatchPredicate]| {
        problems.at(field, |problems| {
            let mut found = Vec::with_capacity(set.len());
            for (index, rule) in set.iter().enumerate() {
                found.push(problems.at_index("rules", index, |problems| predicate(rule, problems))?);
            }
            Some(found.into_boxed_slice())
        })
    };
    Some(match config.rule.as_ref() {
        Some(Rule::OrMatch(set)) => PortPredicate::Or(all("or_match", &set.rules)?),
        Some(Rule::AndMatch(set)) => PortPredicate::And(all("and_match", &set.rules)?),
        Some(Rule::NotMatch(rule)) => {
            PortPredicate::Not(Box::new(problems.at("not_match", |problems| predicate(rule, problems))?))
        }
        Some(Rule::AnyMatch(_)) => PortPredicate::Any,
        Some(Rule::DestinationPortRange(range)) => PortPredicate::Range(range.start, range.end),
        // Breaks a field rule.
        None => return None,
    })
}
