//! Istio's `alpn` filter: which protocols TLS offers to the upstream, by the HTTP version spoken there, so that a sidecar
//! on the other side finds the filter chain for it.

use std::sync::Arc;

use outrigger_control_api::pb::istio::envoy::config::filter::http::alpn::v2alpha1 as pb;
use pb::filter_config::Protocol as Version;

use crate::config::cluster::UpstreamProtocol;
use crate::config::Cluster;
use crate::http::exchange::Exchange;
use crate::http::filters::chain::{At, Step};
use crate::telemetry::stream_info::Protocol;

/// The filter.
#[derive(Debug)]
pub struct Config {
    /// What is offered, by HTTP version (1.0, 1.1, 2): names with commas between.
    offers: [Option<Arc<str>>; 3],
}

impl Config {
    /// Compiles `config`. Of several entries for a version the first counts.
    pub fn compile(config: &pb::FilterConfig) -> Self {
        let offer = |version: Version| {
            let entry = config.alpn_override.iter().find(|entry| entry.upstream_protocol() == version)?;
            Some(entry.alpn_override.join(",")).filter(|joined| !joined.is_empty()).map(Arc::from)
        };
        Self { offers: [Version::Http10, Version::Http11, Version::Http2].map(offer) }
    }

    pub(in crate::http::filters) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let concerns = |cluster: &Arc<Cluster>| cluster.tls.is_some() && !cluster.istio.keeps_alpn;
        let Some(cluster) = at.course.cluster(ex).filter(concerns) else { return Step::Continue };
        let place = match (cluster.http.protocol, ex.info.protocol) {
            (UpstreamProtocol::Http1, _) => 1,
            (UpstreamProtocol::Http2, _) => 2,
            // What the host speaks is found out by ALPN: nothing but that may be offered.
            (UpstreamProtocol::Auto, _) => return Step::Continue,
            (UpstreamProtocol::Downstream, Some(Protocol::Http2)) => 2,
            (UpstreamProtocol::Downstream, Some(Protocol::Http10)) => 0,
            (UpstreamProtocol::Downstream, _) => 1,
        };
        if let Some(Some(offer)) = self.offers.get(place) {
            ex.info.offer_protocols(offer);
        }
        Step::Continue
    }
}
