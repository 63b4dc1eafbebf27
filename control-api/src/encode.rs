//! Messages to bytes that depend on the content alone.
//!
//! Protobuf leaves the order of map entries open and a hash map's order changes from run to run. The
//! bytes in an `Any` are compared, to see whether a resource has changed, so here maps go by their keys.

use prost::encoding::{encode_key, encode_varint, WireType};
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _, Value};

use crate::json::sorted_entries;

/// The encoded message: equal bytes for equal content.
///
/// Bytes inside an `Any` are taken as they are; the loaders of this crate write those the same way.
#[must_use]
pub fn canonical_bytes(message: &DynamicMessage) -> Vec<u8> {
    let mut out = Vec::new();
    for (field, value) in message.fields() {
        encode_field(&field, value, &mut out);
    }
    for unknown in message.unknown_fields() {
        unknown.encode(&mut out);
    }
    out
}

fn encode_field(field: &FieldDescriptor, value: &Value, out: &mut Vec<u8>) {
    match (field.kind(), value) {
        (Kind::Message(entry), Value::Map(entries)) => {
            let (key_field, value_field) = (entry.map_entry_key_field(), entry.map_entry_value_field());
            for (key, value) in sorted_entries(entries) {
                let mut bytes = Vec::new();
                encode_alone(&entry, &key_field, key.clone().into(), &mut bytes);
                encode_field(&value_field, value, &mut bytes);
                length_delimited(field.number(), &bytes, out);
            }
        }
        (Kind::Message(_), Value::List(items)) => {
            for item in items {
                encode_field(field, item, out);
            }
        }
        (Kind::Message(_), Value::Message(message)) => {
            length_delimited(field.number(), &canonical_bytes(message), out);
        }
        (_, value) => encode_alone(field.parent_message(), field, value.clone(), out),
    }
}

/// Scalars have one encoding each: the ordinary encoder writes it, from a message with this one field.
fn encode_alone(parent: &MessageDescriptor, field: &FieldDescriptor, value: Value, out: &mut Vec<u8>) {
    let mut message = DynamicMessage::new(parent.clone());
    if message.try_set_field(field, value).is_ok() {
        debug_assert_eq!(message.descriptor(), *parent);
        out.extend(message.encode_to_vec());
    }
}

fn length_delimited(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}
