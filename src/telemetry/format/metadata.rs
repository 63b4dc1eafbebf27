//! `DYNAMIC_METADATA(namespace:key...)`: what filters noted on a request.

use std::io::Write as _;

use outrigger_control_api::pb::google::protobuf::value::Kind;
use outrigger_control_api::pb::google::protobuf::{Struct, Value};

use crate::telemetry::stream_info::{read_dynamic_metadata, StreamInfo};

/// A namespace, and the way to a value in it.
#[derive(Debug)]
pub(super) struct Way {
    namespace: Box<str>,
    keys: Box<[Box<str>]>,
}

impl Way {
    pub(super) fn parse(argument: &str) -> Self {
        read_dynamic_metadata();
        let mut parts = argument.split(':');
        let namespace = parts.next().unwrap_or_default().into();
        Self { namespace, keys: parts.map(Into::into).collect() }
    }

    /// Appends the value: text as it is, everything else as JSON. False when there is none.
    pub(super) fn write(&self, out: &mut Vec<u8>, info: &StreamInfo) -> bool {
        let Some(mut fields) = info.metadata.as_ref().and_then(|all| all.get(&*self.namespace)) else {
            return false;
        };
        let Some((last, way)) = self.keys.split_last() else {
            object(fields, out);
            return true;
        };
        for key in way {
            match fields.fields.get(&**key).and_then(|value| value.kind.as_ref()) {
                Some(Kind::StructValue(inner)) => fields = inner,
                _ => return false,
            }
        }
        match fields.fields.get(&**last).and_then(|value| value.kind.as_ref()) {
            Some(Kind::StringValue(text)) => {
                out.extend_from_slice(text.as_bytes());
                true
            }
            Some(Kind::NullValue(_)) | None => false,
            Some(kind) => {
                json(kind, out);
                true
            }
        }
    }
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
