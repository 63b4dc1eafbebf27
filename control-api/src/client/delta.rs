//! The incremental variant: requests name what changes, responses carry what changed.

use bytes::Bytes;

use super::machine::{to_duration, Machine, Variant};
use super::services::Method;
use super::topic::{Answer, Incoming, Item, Topic, STAR};
use super::types::Wildcard;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// The client's state for an incremental stream.
pub type Delta = Machine<Incremental>;

/// Marks the incremental variant.
#[derive(Debug)]
pub struct Incremental;

impl Variant for Incremental {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    const FULL_STATE: bool = false;
    const METHOD: Method = Method::Delta;

    fn read(response: DeltaDiscoveryResponse) -> Incoming {
        let items = response.resources.into_iter().map(|resource| Item {
            name: resource.name,
            aliases: resource.aliases,
            version: resource.version,
            body: resource.resource.map(|any| (any.type_url, Bytes::from(any.value))),
            ttl: resource.ttl.and_then(|ttl| to_duration(&ttl)),
        });
        let mut incoming = Incoming {
            items: items.collect(),
            type_url: response.type_url,
            nonce: response.nonce,
            version: response.system_version_info,
            removed: response.removed_resources,
            problems: Vec::new(),
            errors: Vec::new(),
        };
        incoming.note_errors(response.resource_errors);
        incoming
    }

    fn due(topic: &Topic) -> bool {
        if !topic.told {
            return topic.wants_any();
        }
        !topic.fresh.is_empty()
            || !topic.gone.is_empty()
            || topic.wildcard.is_some() != topic.told_wildcard
            || topic.forgot_all
    }

    fn request(topic: &mut Topic, node: Option<Node>, answer: Option<Answer>) -> DeltaDiscoveryRequest {
        let mut request = DeltaDiscoveryRequest { node, type_url: topic.url.clone(), ..Default::default() };
        let first = !topic.told;
        let fresh = std::mem::take(&mut topic.fresh);
        for name in &fresh {
            if let Some(announced) = topic.names.get_mut(name) {
                *announced = true;
            }
        }
        request.resource_names_subscribe = fresh.into_iter().collect();
        request.resource_names_unsubscribe = std::mem::take(&mut topic.gone).into_iter().collect();
        let forgot_all = std::mem::take(&mut topic.forgot_all);
        match (topic.wildcard, topic.told_wildcard) {
            // Given up now, and asked for with the next request.
            (Some(_), true) if forgot_all => request.resource_names_unsubscribe.push(STAR.to_owned()),
            // Saying nothing at all asks for everything.
            (Some(Wildcard::Legacy), false) if first && topic.names.is_empty() => {}
            (Some(_), false) => request.resource_names_subscribe.push(STAR.to_owned()),
            (None, true) => request.resource_names_unsubscribe.push(STAR.to_owned()),
            _ => {}
        }
        if first {
            request.initial_resource_versions = topic.known.clone().into_iter().collect();
        }
        if let Some(answer) = answer {
            request.response_nonce = answer.nonce;
            request.error_detail = answer.error.map(super::machine::to_status);
        }
        topic.told = true;
        let given_up = request.resource_names_unsubscribe.last().is_some_and(|name| name == STAR);
        topic.told_wildcard = topic.wildcard.is_some() && !given_up;
        topic.dirty = false;
        request
    }
}
