//! `DYNAMIC_METADATA(namespace:key...)`, `METADATA(kind:namespace:key...)`: what filters noted on a request, and what
//! its route, its cluster and its host say of themselves.

use std::io::Write as _;

use outrigger_control_api::pb::google::protobuf::value::Kind;
use outrigger_control_api::pb::google::protobuf::{Struct, Value};

use crate::telemetry::stream_info::{read_dynamic_metadata, read_route_metadata, StreamInfo};

/// Whose metadata.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose {
    /// What filters noted.
    Request,
    Route,
    Cluster,
    Host,
}

/// A namespace, and the way to a value in it.
#[derive(Debug)]
pub(super) struct Way {
    whose: Whose,
    namespace: Box<str>,
    keys: Box<[Box<str>]>,
}

impl Way {
    pub(super) fn parse(whose: Whose, argument: &str) -> Self {
        match whose {
            Whose::Request => read_dynamic_metadata(),
            Whose::Route => read_route_metadata(),
            Whose::Cluster | Whose::Host => {}
        }
        let mut parts = argument.split(':');
        let namespace = parts.next().unwrap_or_default().into();
        Self { whose, namespace, keys: parts.map(Into::into).collect() }
    }

    /// `kind:namespace:key...`; `None` if this proxy does not tell metadata of that kind.
    pub(super) fn of_kind(argument: &str) -> Result<Option<Self>, &'static str> {
        let (kind, rest) = argument.split_once(':').unwrap_or((argument, ""));
        let whose = match kind {
            "DYNAMIC" => Whose::Request,
            "ROUTE" => Whose::Route,
            "CLUSTER" => Whose::Cluster,
            "UPSTREAM_HOST" => Whose::Host,
            "LISTENER" | "VIRTUAL_HOST" | "LISTENER_FILTER_CHAIN" => return Ok(None),
            _ => return Err(
                "the first part must be DYNAMIC, CLUSTER, ROUTE, UPSTREAM_HOST, LISTENER, VIRTUAL_HOST or \
                            LISTENER_FILTER_CHAIN",
            ),
        };
        Ok(Some(Self::parse(whose, rest)))
    }

    /// Appends the value: text as it is, everything else as JSON. False when there is none.
    pub(super) fn write(&self, out: &mut Vec<u8>, info: &StreamInfo) -> bool {
        match self.find(info) {
            None => false,
            Some(Found::All(fields)) => {
                object(fields, out);
                true
            }
            Some(Found::One(Kind::StringValue(text))) => {
                out.extend_from_slice(text.as_bytes());
                true
            }
            Some(Found::One(kind)) => {
                json(kind, out);
                true
            }
        }
    }

    /// Whether the value is text, rather than one that is JSON by itself.
    pub(super) fn is_text(&self, info: &StreamInfo) -> bool {
        matches!(self.find(info), Some(Found::One(Kind::StringValue(_))))
    }

    fn find<'i>(&self, info: &'i StreamInfo) -> Option<Found<'i>> {
        let all = match self.whose {
            Whose::Request => info.metadata.as_deref(),
            Whose::Route => info.route_metadata.as_deref(),
            Whose::Cluster => info.cluster.as_ref().and_then(|names| names.metadata.as_deref()),
            Whose::Host => info.host.as_ref().and_then(|host| host.template.noted.as_deref()),
        };
        let mut fields = all?.get(&*self.namespace)?;
        let Some((last, way)) = self.keys.split_last() else { return Some(Found::All(fields)) };
        for key in way {
            match fields.fields.get(&**key)?.kind.as_ref()? {
                Kind::StructValue(inner) => fields = inner,
                _ => return None,
            }
        }
        match fields.fields.get(&**last)?.kind.as_ref()? {
            Kind::NullValue(_) => None,
            kind => Some(Found::One(kind)),
        }
    }
}

/// What stands at the end of a way.
enum Found<'i> {
    /// The whole namespace.
    All(&'i Struct),
    One(&'i Kind),
}

fn object(fields: &Struct, out: &mut Vec<u8>) {
    let mut sorted: Vec<_> = fields.fields.iter().collect();
    sorted.sort_by_key(|(key, _)| *key);
    out.push(b'{');
    for (index, (key, value)) in sorted.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        text(key, out);
        out.push(b':');
        element(value, out);
    }
    out.push(b'}');
}

fn element(value: &Value, out: &mut Vec<u8>) {
    match &value.kind {
        Some(kind) => json(kind, out),
        None => out.extend_from_slice(b"null"),
    }
}

fn json(kind: &Kind, out: &mut Vec<u8>) {
    match kind {
        Kind::NullValue(_) => out.extend_from_slice(b"null"),
        // Writing to a vector does not fail.
        Kind::NumberValue(number) => drop(write!(out, "{number}")),
        Kind::BoolValue(on) => drop(write!(out, "{on}")),
        Kind::StringValue(value) => text(value, out),
        Kind::StructValue(fields) => object(fields, out),
        Kind::ListValue(list) => {
            out.push(b'[');
            for (index, value) in list.values.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                element(value, out);
            }
            out.push(b']');
        }
    }
}

fn text(value: &str, out: &mut Vec<u8>) {
    // Text is always valid JSON.
    let _ = serde_json::to_writer(out, value);
}
