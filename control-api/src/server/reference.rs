//! Which names a resource takes from the control plane: the endpoints of a cluster, the route tables of a
//! listener. Names that come from a file or from another server are not ours to know.

use std::sync::Arc;

use prost::{DecodeError, Message, Name};

use super::kind::ResourceType;
use crate::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use crate::pb::envoy::config::core::v3::ConfigSource;
use crate::pb::envoy::config::listener::v3::{filter, Listener};
use crate::pb::envoy::config::route::v3::{ScopedRouteConfiguration, VirtualHost};
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use crate::pb::google::protobuf::Any;

/// What a resource says about others.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub needs: Vec<Arc<str>>,
    /// The domains of a virtual host.
    pub domains: Vec<Arc<str>>,
}

/// Reads the names out of an encoded resource.
pub(super) fn of(kind: &ResourceType, value: &[u8]) -> Result<Facts, DecodeError> {
    let needs = if *kind == ResourceType::CLUSTER {
        endpoints_of(&Cluster::decode(value)?).into_iter().collect()
    } else if *kind == ResourceType::LISTENER {
        routes_of(&Listener::decode(value)?)?
    } else if *kind == ResourceType::SCOPED_ROUTES {
        let name = ScopedRouteConfiguration::decode(value)?.route_configuration_name;
        Some(name).filter(|n| !n.is_empty()).map(Into::into).into_iter().collect()
    } else if *kind == ResourceType::VIRTUAL_HOST {
        let domains = VirtualHost::decode(value)?.domains;
        return Ok(Facts { needs: Vec::new(), domains: domains.into_iter().map(Into::into).collect() });
    } else {
        Vec::new()
    };
    Ok(Facts { needs, domains: Vec::new() })
}

fn endpoints_of(cluster: &Cluster) -> Option<Arc<str>> {
    let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
    if cluster.cluster_discovery_type.as_ref() != Some(&eds) {
        return None;
    }
    let config = cluster.eds_cluster_config.as_ref()?;
    if !is_ours(config.eds_config.as_ref()) {
        return None;
    }
    let own = config.service_name.is_empty();
    Some(if own { cluster.name.as_str() } else { config.service_name.as_str() }.into())
}

fn routes_of(listener: &Listener) -> Result<Vec<Arc<str>>, DecodeError> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let filters = chains.flat_map(|chain| &chain.filters).filter_map(|f| match &f.config_type {
        Some(filter::ConfigType::TypedConfig(any)) => Some(any),
        _ => None,
    });
    let api = listener.api_listener.iter().filter_map(|a| a.api_listener.as_ref());
    let mut names = Vec::new();
    for any in filters.chain(api) {
        names.extend(route_of(any)?);
    }
    Ok(names)
}

fn route_of(any: &Any) -> Result<Option<Arc<str>>, DecodeError> {
    if any.type_url != HttpConnectionManager::type_url() {
        return Ok(None);
    }
    let manager = HttpConnectionManager::decode(any.value.as_slice())?;
    Ok(match manager.route_specifier {
        Some(RouteSpecifier::Rds(rds)) if is_ours(rds.config_source.as_ref()) => {
            Some(rds.route_config_name.into())
        }
        _ => None,
    })
}

fn is_ours(source: Option<&ConfigSource>) -> bool {
    let specifier = source.and_then(|s| s.config_source_specifier.as_ref());
    matches!(specifier, Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)))
}
