//! What connections to internal listeners bring with them (`InternalUpstreamTransport`).

use std::sync::Arc;

use super::Host;
use crate::runtime::internal::Passed;
use crate::telemetry::filter_state::Objects;
use crate::telemetry::stream_info::DynamicMetadata;

/// A compiled `envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport`.
#[derive(Debug, Default)]
pub struct Passing {
    /// Namespaces of the host's metadata.
    pub of_host: Vec<Box<str>>,
    /// The namespaces of the cluster's metadata that were asked for.
    pub of_cluster: DynamicMetadata,
}

impl Passing {
    /// What a connection to `host` brings with it; `shared` are its client's objects.
    pub fn passed(&self, host: &Host, shared: Option<&Arc<Objects>>) -> Passed {
        let mut metadata = self.of_cluster.clone();
        if let Some(all) = &host.template.noted {
            let named = self.of_host.iter().filter_map(|name| all.get_key_value(&**name));
            metadata.extend(named.map(|(name, fields)| (name.clone(), fields.clone())));
        }
        Passed {
            metadata: (!metadata.is_empty()).then(|| Box::new(metadata)),
            objects: shared.map(|objects| Box::new(objects.onward())),
        }
    }
}
