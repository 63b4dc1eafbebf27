//! Asking a service about a connection (`envoy.filters.network.ext_authz`).
//!
//! Comes in: the connection, as the service may see it. Goes out: what the service says. The question is the one that the
//! HTTP filter of this name asks, without a request.

use std::rc::Rc;
use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::service::auth::v3 as pb;

use crate::http::call;
use crate::http::filters::ext_authz::question::{peers, session};
use crate::http::worker::Worker;
use crate::policy::authz::{Answer, Asking, Counsel, NetworkAuthz};
use crate::telemetry::stream_info::{ConnectionInfo, DynamicMetadata};

const PATH: &[u8] = b"/envoy.service.auth.v3.Authorization/Check";

/// Asks services in the worker's clusters.
pub(super) struct Services(pub(super) Rc<Worker>);

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Services")
    }
}

impl Counsel for Services {
    fn ask(
        &self,
        filter: &Arc<NetworkAuthz>,
        info: &Rc<ConnectionInfo>,
        dynamic: &DynamicMetadata,
    ) -> Asking {
        let question = question(filter, info, dynamic);
        let (worker, target) = (self.0.clone(), filter.target.clone());
        Box::pin(async move {
            let answer = call::unary::<_, pb::CheckResponse>(worker, target, PATH, question).await;
            let Ok(answer) = answer else { return Answer::Lost };
            let metadata = answer.dynamic_metadata.unwrap_or_default();
            match answer.status.map_or(0, |status| status.code) {
                0 => Answer::Allowed(metadata),
                _ => Answer::Denied(metadata),
            }
        })
    }
}

fn question(filter: &NetworkAuthz, info: &ConnectionInfo, dynamic: &DynamicMetadata) -> pb::CheckRequest {
    let (source, mut destination) = peers(info, filter.peer_certificate);
    destination.service = info.server_name.as_deref().unwrap_or_default().to_owned();
    let mut seen = core::Metadata::default();
    for name in &filter.namespaces {
        if let Some(found) = dynamic.get(&**name) {
            seen.filter_metadata.insert(name.to_string(), found.clone());
        }
    }
    pb::CheckRequest {
        attributes: Some(pb::AttributeContext {
            source: Some(source),
            destination: Some(destination),
            tls_session: filter.tls_session.then(|| session(info)),
            metadata_context: Some(seen),
            ..pb::AttributeContext::default()
        }),
    }
}
