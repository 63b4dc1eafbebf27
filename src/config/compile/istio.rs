//! What Istio's control plane configures beside Envoy's own extensions.

use outrigger_control_api::pb::envoy::config::cluster::v3 as cluster;
use outrigger_control_api::pb::envoy::config::core::v3::{async_data_source, data_source, Metadata};
use outrigger_control_api::pb::envoy::extensions::filters::network::mongo_proxy::v3::MongoProxy;
use outrigger_control_api::pb::envoy::extensions::wasm::v3::{plugin_config, PluginConfig};
use outrigger_control_api::pb::google::protobuf::value::Kind;
use outrigger_control_api::pb::google::protobuf::Any;
use outrigger_control_api::type_of;

use super::extension;
use crate::config::cluster::IstioCluster;
use crate::config::problems::Problems;

/// Statistics of requests and connections.
pub(super) const STATS: &str = "stats.PluginConfig";
/// Metadata of TCP peers.
pub(super) const EXCHANGE: &str = "envoy.tcp.metadataexchange.config.MetadataExchange";
/// Protocols that TLS offers.
pub(super) const ALPN: &str = "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig";
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BuiltIn {
    Stats,
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
        ("envoy.wasm.runtime.null", Some("envoy.wasm.stats")) => Some(BuiltIn::Stats),
        ("envoy.wasm.runtime.null", Some("envoy.wasm.metadata_exchange")) => Some(BuiltIn::MetadataExchange),
        (runtime, _) => {
            let name = config.map(|config| config.name.as_str()).unwrap_or_default();
            let message = format!("the plug-in {name:?} has code for {runtime}, which cannot be run here");
            problems.report_at("config.vm_config", message);
            None
        }
    }
}

/// Whether a network filter changes no traffic and is left out; `None` when a problem was reported.
pub(super) fn is_passive(any: &Any, problems: &mut Problems) -> Option<bool> {
    match type_of(any) {
        STATS | EXCHANGE => Some(true),
        MONGO => {
            let config: MongoProxy = extension(any, "", problems)?;
            if config.delay.is_some() {
                problems.report_at("delay", "messages of MongoDB are not held up");
                return None;
            }
            Some(true)
        }
        NETWORK_WASM => {
            use outrigger_control_api::pb::envoy::extensions::filters::network::wasm::v3::Wasm;
            let config: Wasm = extension(any, "", problems)?;
            plugin(config.config.as_ref(), problems).map(|_| true)
        }
        _ => Some(false),
    }
}

/// Looks at the filters of a cluster: those that change nothing are left out, all others refused.
pub(super) fn cluster_filters(filters: &[cluster::Filter], problems: &mut Problems) {
    for (index, filter) in filters.iter().enumerate() {
        problems.at_index("filters", index, |problems| {
            let Some(any) = &filter.typed_config else {
                return problems.report_at("typed_config", "is required");
            };
            problems.at("typed_config", |problems| {
                if is_passive(any, problems) == Some(false) {
                    problems.report(format!("the upstream network filter {} is not supported", type_of(any)));
                }
            });
        });
    }
}

/// What a cluster's metadata tell Istio's filters.
pub(super) fn of_cluster(metadata: Option<&Metadata>) -> IstioCluster {
    let own = metadata.and_then(|metadata| metadata.filter_metadata.get("istio"));
    let kind = |key: &str| own.and_then(|own| own.fields.get(key)?.kind.as_ref());
    IstioCluster {
        keeps_alpn: matches!(kind("alpn_override"), Some(Kind::StringValue(text)) if text == "false"),
        external: matches!(kind("external"), Some(Kind::BoolValue(true))),
    }
}
