//! The state-of-the-world variant: each request names everything wanted, each response of listeners,
//! clusters and scoped routes holds everything there is.

use bytes::{Buf, Bytes};
use prost::encoding::{decode_key, decode_varint, skip_field, DecodeContext, WireType};
use prost::Message as _;

use super::machine::{to_duration, Machine, Variant};
use super::services::Method;
use super::topic::{Answer, Incoming, Item, Topic, STAR};
use super::types::{absence_deletes, type_url, Wildcard};
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse, Resource};
use crate::pb::google::protobuf::Any;

/// The client's state for a state-of-the-world stream.
///
/// A wildcard by naming nothing cannot be taken back while nothing was named: the protocol has no
/// words for it. What comes then is passed over. [`Change::Refresh`] takes the name out of one request
/// and back into the next.
///
/// [`Change::Refresh`]: super::Change::Refresh
pub type Sotw = Machine<StateOfTheWorld>;

/// Marks the state-of-the-world variant.
#[derive(Debug)]
pub struct StateOfTheWorld;

impl Variant for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    const FULL_STATE: bool = true;
    const METHOD: Method = Method::Stream;

    fn read(response: DiscoveryResponse) -> Incoming {
        let mut incoming = Incoming {
            type_url: response.type_url,
            nonce: response.nonce,
            version: response.version_info,
            ..Incoming::default()
        };
        incoming.note_errors(response.resource_errors);
        let count = response.resources.len();
        for (index, any) in response.resources.into_iter().enumerate() {
            match item(any, &incoming.version) {
                Ok(item) => incoming.items.push(item),
                Err(error) => {
                    incoming.problems.push(format!("resource {index} of {count} cannot be read: {error}"));
                }
            }
        }
        incoming
    }

    fn due(topic: &Topic) -> bool {
        if !topic.told {
            return topic.wants_any();
        }
        // With a response unanswered the server would take this request for a stale one.
        let unanswered = topic.in_flight.is_some() || !topic.waiting.is_empty();
        // Naming nothing would still mean everything.
        let inexpressible = !topic.wants_any() && !topic.told_named;
        topic.dirty && !unanswered && !inexpressible
    }

    fn request(topic: &mut Topic, node: Option<Node>, answer: Option<Answer>) -> DiscoveryRequest {
        let mut request = DiscoveryRequest { node, type_url: topic.url.clone(), ..Default::default() };
        // What the stream knows and is asked for again is left out once.
        let mut again = std::mem::take(&mut topic.fresh);
        again.retain(|name| topic.names.get(name) == Some(&true));
        if !again.is_empty() && absence_deletes(&topic.url) {
            // Left out, it would seem deleted.
            again.clear();
            topic.forgot_all = true;
        }
        for (name, announced) in &mut topic.names {
            *announced = !again.contains(name);
            if *announced {
                request.resource_names.push(name.clone());
            }
        }
        let silent = topic.wildcard == Some(Wildcard::Legacy) && topic.names.is_empty() && !topic.told_named;
        if topic.wildcard.is_some() && !silent {
            request.resource_names.push(STAR.to_owned());
        }
        match answer {
            Some(answer) => {
                topic.last_nonce.clone_from(&answer.nonce);
                request.version_info = answer.version;
                request.error_detail = answer.error.map(super::machine::to_status);
            }
            None => request.version_info.clone_from(&topic.accepted_version),
        }
        // With the version held the server might see no reason to send what is missing.
        let missing = topic.forgot_all || (!topic.told && incomplete(topic));
        let postponed = missing && request.error_detail.is_some();
        if missing && !postponed {
            request.version_info.clear();
        }
        topic.forgot_all = postponed;
        request.response_nonce.clone_from(&topic.last_nonce);
        topic.told = true;
        topic.told_wildcard = topic.wildcard.is_some();
        topic.told_named |= !request.resource_names.is_empty();
        topic.dirty = postponed || !again.is_empty();
        topic.fresh = again;
        topic.gone.clear();
        request
    }
}

/// Whether something is wanted that no response accepted so far can have held.
fn incomplete(topic: &Topic) -> bool {
    topic.wildcard_new || topic.names.keys().any(|name| !topic.known.contains_key(name))
}

fn item(any: Any, version: &str) -> Result<Item, prost::DecodeError> {
    if any.type_url == type_url::WRAPPER {
        let resource = Resource::decode(any.value.as_slice())?;
        let body = resource.resource.map(|any| (any.type_url, Bytes::from(any.value)));
        let name = match &body {
            Some((_, body)) if resource.name.is_empty() => first_string(body.clone())?,
            _ => resource.name,
        };
        let version = if resource.version.is_empty() { version.to_owned() } else { resource.version };
        let ttl = resource.ttl.and_then(|ttl| to_duration(&ttl));
        return Ok(Item { name, aliases: resource.aliases, version, body, ttl });
    }
    let body = Bytes::from(any.value);
    let name = first_string(body.clone())?;
    Ok(Item { name, version: version.to_owned(), body: Some((any.type_url, body)), ..Item::default() })
}

/// The value of field 1, where every type of resource has its name, without decoding the rest.
fn first_string(mut body: Bytes) -> Result<String, prost::DecodeError> {
    let mut found = Bytes::new();
    while body.has_remaining() {
        let (tag, wire_type) = decode_key(&mut body)?;
        if tag == 1 && wire_type == WireType::LengthDelimited {
            let length = decode_varint(&mut body)?;
            match usize::try_from(length) {
                Ok(length) if length <= body.len() => found = body.split_to(length),
                _ => {
                    let message = format!("name of {length} bytes, {} are left", body.len());
                    return Err(prost::DecodeError::new(message));
                }
            }
        } else {
            skip_field(wire_type, tag, &mut body, DecodeContext::default())?;
        }
    }
    String::from_utf8(found.to_vec()).map_err(|_| prost::DecodeError::new("name is not UTF-8"))
}
