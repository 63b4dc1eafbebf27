//! Messages to JSON, as Envoy's admin dumps write them: field names of the `.proto` files, an `@type`
//! in every `Any`, defaults left out.

use std::collections::BTreeMap;

use crate::reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, Value as Field};
use prost::{Message, Name};
use serde_json::{Map, Number, Value};

use crate::any::{expand_any, Expanded};
use crate::load::MAX_DEPTH;
use crate::scalar::to_base64;
use crate::text::non_finite;
use crate::typed::to_dynamic;
use crate::well_known::{print_duration, structure_to_json, WellKnown};

/// The JSON form of a typed message, with its `@type` first.
#[must_use]
pub fn message_to_json<M: Message + Name>(message: &M) -> Value {
    to_dynamic(message).map_or(Value::Null, |dynamic| to_json(&dynamic))
}

/// The JSON form of a message, with its `@type` first.
#[must_use]
pub fn to_json(message: &DynamicMessage) -> Value {
    let url = format!("type.googleapis.com/{}", message.descriptor().full_name());
    with_type(&url, message, 0)
}

/// The entries of a map field in the order of their keys, with the keys as JSON writes them.
pub(crate) fn sorted(entries: &BTreeMap<MapKey, Field>) -> Vec<(String, &Field)> {
    entries.iter().map(|(key, value)| (key_text(key), value)).collect()
}

fn with_type(url: &str, message: &DynamicMessage, depth: usize) -> Value {
    let mut object = Map::new();
    object.insert("@type".to_owned(), Value::String(url.to_owned()));
    match json(message, depth) {
        Value::Object(fields) if WellKnown::of(&message.descriptor()).is_none() => object.extend(fields),
        special => {
            object.insert("value".to_owned(), special);
        }
    }
    Value::Object(object)
}

fn json(message: &DynamicMessage, depth: usize) -> Value {
    if depth > MAX_DEPTH {
        return Value::Null;
    }
    let descriptor = message.descriptor();
    match WellKnown::of(&descriptor) {
        None | Some(WellKnown::Empty) => {
            let mut object = Map::new();
            for (field, value) in message.fields() {
                object.insert(field.name().to_owned(), field_json(&field, value, depth));
            }
            Value::Object(object)
        }
        Some(WellKnown::Any) => any(message, depth),
        Some(WellKnown::Struct | WellKnown::Value | WellKnown::ListValue) => structure_to_json(message),
        Some(WellKnown::Wrapper) => descriptor
            .get_field(1)
            .map_or(Value::Null, |field| value_json(&field.kind(), &message.get_field(&field), depth)),
        Some(WellKnown::Duration) => {
            let (seconds, nanos) = seconds_and_nanos(message);
            Value::String(print_duration(seconds, nanos))
        }
        Some(WellKnown::Timestamp) => {
            let (seconds, nanos) = seconds_and_nanos(message);
            Value::String(prost_types::Timestamp { seconds, nanos }.to_string())
        }
        Some(WellKnown::FieldMask) => {
            let paths = message.get_field_by_number(1);
            let paths = paths.as_deref().and_then(Field::as_list).unwrap_or_default();
            Value::String(paths.iter().filter_map(Field::as_str).collect::<Vec<_>>().join(","))
        }
    }
}

fn any(message: &DynamicMessage, depth: usize) -> Value {
    let url = message.get_field_by_number(1);
    let url = url.as_deref().and_then(Field::as_str).unwrap_or_default();
    match expand_any(message, "") {
        Expanded::Empty => Value::Object(Map::new()),
        Expanded::Message(inner) | Expanded::Opaque { message: inner, .. } => {
            let name = inner.descriptor().full_name().to_owned();
            let url =
                if url.ends_with(&name) { url.to_owned() } else { format!("type.googleapis.com/{name}") };
            with_type(&url, &inner, depth + 1)
        }
        // What cannot be read is shown as it came.
        Expanded::Unknown(_) | Expanded::Invalid(_) => {
            let bytes = message.get_field_by_number(2);
            let bytes = bytes.as_deref().and_then(Field::as_bytes).map(AsRef::as_ref).unwrap_or_default();
            let mut object = Map::new();
            object.insert("@type".to_owned(), Value::String(url.to_owned()));
            object.insert("value".to_owned(), Value::String(to_base64(bytes)));
            Value::Object(object)
        }
    }
}

fn field_json(field: &FieldDescriptor, value: &Field, depth: usize) -> Value {
    let kind = field.kind();
    match value {
        Field::List(items) => Value::Array(items.iter().map(|item| value_json(&kind, item, depth)).collect()),
        Field::Map(entries) => {
            let kind = match &kind {
                Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
                other => other.clone(),
            };
            let entries = sorted(entries);
            Value::Object(
                entries.into_iter().map(|(key, item)| (key, value_json(&kind, item, depth))).collect(),
            )
        }
        other => value_json(&kind, other, depth),
    }
}

fn value_json(kind: &Kind, value: &Field, depth: usize) -> Value {
    match value {
        Field::Bool(b) => Value::Bool(*b),
        Field::I32(i) => Value::from(*i),
        Field::U32(u) => Value::from(*u),
        // Protobuf's JSON form writes 64-bit integers as text, since JSON readers round them.
        Field::I64(i) => Value::String(i.to_string()),
        Field::U64(u) => Value::String(u.to_string()),
        // Through text, so that 0.1 does not become 0.10000000149011612.
        Field::F32(f) => float(f.to_string().parse().unwrap_or(f64::NAN)),
        Field::F64(f) => float(*f),
        Field::String(s) => Value::String(s.clone()),
        Field::Bytes(bytes) => Value::String(to_base64(bytes)),
        Field::EnumNumber(number) => kind
            .as_enum()
            .and_then(|descriptor| descriptor.get_value(*number))
            .map_or_else(|| Value::from(*number), |value| Value::String(value.name().to_owned())),
        Field::Message(message) => json(message, depth + 1),
        // Neither lists nor maps nest in protobuf.
        Field::List(_) | Field::Map(_) => Value::Null,
    }
}

fn float(value: f64) -> Value {
    Number::from_f64(value).map_or_else(|| Value::String(non_finite(value).to_owned()), Value::Number)
}

fn seconds_and_nanos(message: &DynamicMessage) -> (i64, i32) {
    let (seconds, nanos) = (message.get_field_by_number(1), message.get_field_by_number(2));
    (
        seconds.as_deref().and_then(Field::as_i64).unwrap_or_default(),
        nanos.as_deref().and_then(Field::as_i32).unwrap_or_default(),
    )
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(b) => b.to_string(),
        MapKey::I32(i) => i.to_string(),
        MapKey::I64(i) => i.to_string(),
        MapKey::U32(u) => u.to_string(),
        MapKey::U64(u) => u.to_string(),
        MapKey::String(s) => s.clone(),
    }
}
