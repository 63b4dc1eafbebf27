//! Names of the gRPC methods that serve each type.

use super::types::type_url;

/// The two variants of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// State of the world.
    Stream,
    /// Incremental.
    Delta,
}

/// The path of the aggregated stream.
#[must_use]
pub fn aggregated(method: Method) -> &'static str {
    match method {
        Method::Stream => "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
        Method::Delta => "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
    }
}

/// The path of a type over REST, or `None` where there is none.
pub(super) fn rest(url: &str) -> Option<&'static str> {
    Some(match url {
        type_url::LISTENER => "/v3/discovery:listeners",
        type_url::ROUTE => "/v3/discovery:routes",
        type_url::SCOPED_ROUTE => "/v3/discovery:scoped-routes",
        type_url::CLUSTER => "/v3/discovery:clusters",
        type_url::ENDPOINTS => "/v3/discovery:endpoints",
        type_url::SECRET => "/v3/discovery:secrets",
        type_url::RUNTIME => "/v3/discovery:runtime",
        type_url::EXTENSION => "/v3/discovery:extension_configs",
        _ => return None,
    })
}

/// The path of the stream for one type alone, or `None` where the type has no service of its own, as
/// virtual hosts have none in state of the world.
#[must_use]
pub fn of_type(url: &str, method: Method) -> Option<String> {
    let (service, noun) = match url {
        type_url::LISTENER => ("listener.v3.ListenerDiscoveryService", "Listeners"),
        type_url::ROUTE => ("route.v3.RouteDiscoveryService", "Routes"),
        type_url::SCOPED_ROUTE => ("route.v3.ScopedRoutesDiscoveryService", "ScopedRoutes"),
        type_url::VIRTUAL_HOST if method == Method::Delta => {
            ("route.v3.VirtualHostDiscoveryService", "VirtualHosts")
        }
        type_url::CLUSTER => ("cluster.v3.ClusterDiscoveryService", "Clusters"),
        type_url::ENDPOINTS => ("endpoint.v3.EndpointDiscoveryService", "Endpoints"),
        type_url::SECRET => ("secret.v3.SecretDiscoveryService", "Secrets"),
        type_url::RUNTIME => ("runtime.v3.RuntimeDiscoveryService", "Runtime"),
        type_url::EXTENSION => ("extension.v3.ExtensionConfigDiscoveryService", "ExtensionConfigs"),
        _ => return None,
    };
    let verb = match method {
        Method::Stream => "Stream",
        Method::Delta => "Delta",
    };
    Some(format!("/envoy.service.{service}/{verb}{noun}"))
}
