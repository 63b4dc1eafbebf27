//! What Istio's control plane configures beside Envoy's own extensions.

use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::cluster::v3 as cluster;
use outrigger_control_api::pb::envoy::config::core::v3::{async_data_source, data_source, Metadata};
use outrigger_control_api::pb::envoy::extensions::filters::network::mongo_proxy::v3::MongoProxy;
use outrigger_control_api::pb::envoy::extensions::wasm::v3::{plugin_config, PluginConfig};
use outrigger_control_api::pb::google::protobuf::value::Kind;
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::pb::stats;
use outrigger_control_api::{load_tolerant, type_of, Format};
use prost::Message;

use super::extension;
use crate::config::cluster::IstioCluster;
use crate::config::problems::Problems;
use crate::telemetry::istio::{Service, StandardMetrics};

/// Statistics of requests and connections.
pub(super) const STATS: &str = "stats.PluginConfig";
/// Metadata of TCP peers.
pub(super) const EXCHANGE: &str = "envoy.tcp.metadataexchange.config.MetadataExchange";
/// Protocols that TLS offers.
pub(super) const ALPN: &str = "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig";
/// Who peers and users are.
pub(super) const AUTHN: &str = "istio.envoy.config.filter.http.authn.v2alpha1.FilterConfig";
/// Metadata of HTTP peers.
pub(super) const PEERS: &str = "io.istio.http.peer_metadata.Config";
/// A plug-in, as an HTTP filter.
pub(super) const WASM: &str = "envoy.extensions.filters.http.wasm.v3.Wasm";
/// A plug-in, as a network filter.
pub(super) const NETWORK_WASM: &str = "envoy.extensions.filters.network.wasm.v3.Wasm";
/// Statistics of MongoDB's protocol.
pub(super) const MONGO: &str = "envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy";
/// The protocol by which TCP peers exchange metadata: agreed on, it would be expected of us.
pub(super) const PEER_EXCHANGE: &str = "istio-peer-exchange";

/// Plug-ins that earlier releases of Istio's proxy have built in.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum BuiltIn {
    Stats(stats::PluginConfig),
    MetadataExchange,
}

/// The built-in plug-in that `config` is. `None` when a problem was reported.
pub(super) fn plugin(config: Option<&PluginConfig>, problems: &mut Problems) -> Option<BuiltIn> {
    let Some(plugin_config::Vm::VmConfig(vm)) = config.and_then(|config| config.vm.as_ref()) else {
        problems.report_at("config.vm_config", "is required");
        return None;
    };
    let code = vm.code.as_ref().and_then(|code| match code.specifier.as_ref()? {
        async_data_source::Specifier::Local(source) => match source.specifier.as_ref()? {
            data_source::Specifier::InlineString(name) => Some(name.as_str()),
            _ => None,
        },
        async_data_source::Specifier::Remote(_) => None,
    });
    match (vm.runtime.as_str(), code) {
        ("envoy.wasm.runtime.null", Some("envoy.wasm.stats")) => {
            let given = config.and_then(|config| config.configuration.as_ref());
            problems.at("config.configuration", |problems| stats_options(given, problems)).map(BuiltIn::Stats)
        }
        ("envoy.wasm.runtime.null", Some("envoy.wasm.metadata_exchange")) => Some(BuiltIn::MetadataExchange),
        (runtime, _) => {
            let name = config.map(|config| config.name.as_str()).unwrap_or_default();
            let message = format!("the plug-in {name:?} has code for {runtime}, which cannot be run here");
            problems.report_at("config.vm_config", message);
            None
        }
    }
}

/// What the built-in plug-in for statistics is told, in JSON: the options of the filter that followed it, and some that
/// are about the plug-in itself.
fn stats_options(config: Option<&Any>, problems: &mut Problems) -> Option<stats::PluginConfig> {
    let Some(config) = config else { return Some(stats::PluginConfig::default()) };
    let text = problems.take(String::decode(config.value.as_slice()))?;
    if text.trim().is_empty() {
        return Some(stats::PluginConfig::default());
    }
    match load_tolerant::<stats::PluginConfig>(&text, Format::Json) {
        Ok((loaded, unknown)) => {
            for problem in unknown {
                problems.note(problem.path, problem.message);
            }
            Some(loaded.message)
        }
        Err(found) => {
            for problem in found {
                problems.report_at(problem.path, problem.message);
            }
            None
        }
    }
}

/// What a network filter that changes no traffic is for.
#[derive(Debug)]
pub(super) enum Passive {
    /// Nothing that takes effect here.
    Nothing,
    /// It counts connections.
    Metrics(Arc<StandardMetrics>),
}

/// A network filter that changes no traffic. `Ok(None)` is any other, an error one of which a problem was reported.
pub(super) fn passive(any: &Any, problems: &mut Problems) -> Result<Option<Passive>, Reported> {
    match type_of(any) {
        EXCHANGE => Ok(Some(Passive::Nothing)),
        STATS => {
            let config = extension(any, "", problems).ok_or(Reported)?;
            metrics(&config, problems)
        }
        MONGO => {
            let config: MongoProxy = extension(any, "", problems).ok_or(Reported)?;
            if config.delay.is_some() {
                problems.report_at("delay", "messages of MongoDB are not held up");
                return Err(Reported);
            }
            Ok(Some(Passive::Nothing))
        }
        NETWORK_WASM => {
            use outrigger_control_api::pb::envoy::extensions::filters::network::wasm::v3::Wasm;
            let config: Wasm = extension(any, "", problems).ok_or(Reported)?;
            match plugin(config.config.as_ref(), problems).ok_or(Reported)? {
                BuiltIn::Stats(config) => metrics(&config, problems),
                BuiltIn::MetadataExchange => Ok(Some(Passive::Nothing)),
            }
        }
        _ => Ok(None),
    }
}

/// A problem was reported.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reported;

fn metrics(config: &stats::PluginConfig, problems: &mut Problems) -> Result<Option<Passive>, Reported> {
    let metrics = StandardMetrics::compile(config, problems).ok_or(Reported)?;
    Ok(Some(Passive::Metrics(Arc::new(metrics))))
}

/// Looks at the filters of a cluster: those that change nothing are left out, all others refused.
pub(super) fn cluster_filters(filters: &[cluster::Filter], problems: &mut Problems) {
    for (index, filter) in filters.iter().enumerate() {
        problems.at_index("filters", index, |problems| {
            let Some(any) = &filter.typed_config else {
                return problems.report_at("typed_config", "is required");
            };
            problems.at("typed_config", |problems| {
                if matches!(passive(any, problems), Ok(None)) {
                    problems.report(format!("the upstream network filter {} is not supported", type_of(any)));
                }
            });
        });
    }
}

/// What a cluster's metadata tell Istio's filters.
pub(super) fn of_cluster(name: &str, metadata: Option<&Metadata>) -> IstioCluster {
    let own = metadata.and_then(|metadata| metadata.filter_metadata.get("istio"));
    let kind = |key: &str| own.and_then(|own| own.fields.get(key)?.kind.as_ref());
    IstioCluster {
        keeps_alpn: matches!(kind("alpn_override"), Some(Kind::StringValue(text)) if text == "false"),
        external: matches!(kind("external"), Some(Kind::BoolValue(true))),
        service: Service::of_cluster(name, metadata),
    }
}
