//! Istio's peer metadata over HTTP: sidecars tell each other who they are in two headers.
//!
//! What a peer has said is taken out, so that no application sees it; what this proxy says of itself is put in. The
//! `metadata_exchange` plug-in of Istio's earlier releases is the same, but it says nothing to applications on its own
//! side.

use std::sync::{Arc, LazyLock};

use outrigger_control_api::pb::io::istio::http::peer_metadata as pb;
use pb::config::{discovery_method, propagation_method, DiscoveryMethod, PropagationMethod};

use crate::config::local_node::LocalNode;
use crate::config::{HeaderKey, HeaderMutate, HeaderView};
use crate::http::exchange::Exchange;
use crate::http::filters::chain::{At, Step};
use crate::http::filters::Encoder;
use crate::http::head::ResponseHead;
use crate::telemetry::istio::{Peers, Workload};

static ID: LazyLock<HeaderKey> = LazyLock::new(|| HeaderKey::new("x-envoy-peer-metadata-id"));
static WORKLOAD: LazyLock<HeaderKey> = LazyLock::new(|| HeaderKey::new("x-envoy-peer-metadata"));

/// The filter.
#[derive(Debug)]
pub struct Config {
    node: Arc<LocalNode>,
    take_request: bool,
    take_response: bool,
    tell_upstream: Option<Tell>,
    tell_downstream: Option<Tell>,
    /// An inbound listener tells upstreams nothing, an outbound one clients nothing.
    not_to_applications: bool,
}

/// How somebody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tell {
    /// Not where the cluster is outside of the mesh.
    inside: bool,
}

impl Config {
    /// Compiles `config`.
    pub fn compile(config: &pb::Config) -> Self {
        let takes = |list: &[DiscoveryMethod]| {
            use discovery_method::MethodSpecifier::IstioHeaders;
            list.iter().any(|method| matches!(method.method_specifier, Some(IstioHeaders(_))))
        };
        let tells = |list: &[PropagationMethod]| {
            list.iter().find_map(|method| {
                let propagation_method::MethodSpecifier::IstioHeaders(headers) =
                    method.method_specifier.as_ref()?;
                Some(Tell { inside: headers.skip_external_clusters })
            })
        };
        Self {
            node: LocalNode::current(),
            take_request: takes(&config.downstream_discovery),
            take_response: takes(&config.upstream_discovery),
            tell_upstream: tells(&config.upstream_propagation),
            tell_downstream: tells(&config.downstream_propagation),
            not_to_applications: false,
        }
    }

    /// The plug-in of earlier releases.
    pub fn exchange() -> Self {
        let tell = Some(Tell { inside: false });
        Self {
            node: LocalNode::current(),
            take_request: true,
            take_response: true,
            tell_upstream: tell,
            tell_downstream: tell,
            not_to_applications: true,
        }
    }

    pub(in crate::http::filters) fn on_request(self: &Arc<Self>, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let inbound = ex.info.connection.inbound;
        let outside = || at.course.cluster(ex).is_some_and(|cluster| cluster.istio.external);
        let may = |tell: Option<Tell>| tell.is_some_and(|tell| !tell.inside || !outside());
        let tell_upstream = may(self.tell_upstream) && !(self.not_to_applications && inbound);
        let tell_downstream = (inbound || !self.not_to_applications) && may(self.tell_downstream);
        let Some(request) = &mut ex.request else { return Step::Continue };
        let said = |key: &HeaderKey| request.first(key).is_some_and(|value| !value.is_empty());
        // Only who has introduced itself is told.
        let told = [said(&ID), said(&WORKLOAD)].map(|said| said && tell_downstream);
        if self.take_request {
            let header = request.first(&WORKLOAD);
            ex.info.peers.downstream = header.and_then(Workload::told);
            request.remove(&ID);
            request.remove(&WORKLOAD);
        }
        if tell_upstream {
            self.tell([true; 2], request);
        }
        if self.take_response || told != [false; 2] {
            at.encode(ex, Encoder::PeerMetadata(self.clone(), told));
        }
        Step::Continue
    }

    pub(in crate::http::filters) fn on_response(
        &self,
        told: [bool; 2],
        peers: &mut Peers,
        head: &mut ResponseHead,
    ) {
        if self.take_response {
            peers.upstream = head.first(&WORKLOAD).and_then(Workload::told);
            head.remove(&ID);
            head.remove(&WORKLOAD);
        }
        self.tell(told, head);
    }

    fn tell(&self, [id, workload]: [bool; 2], head: &mut dyn HeaderMutate) {
        for (tell, key, value) in [(id, &ID, &self.node.id), (workload, &WORKLOAD, &self.node.workload)] {
            if tell && !value.is_empty() {
                head.set(key, value.as_bytes());
            }
        }
    }
}
