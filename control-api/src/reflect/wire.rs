//! The wire form of reflective messages.
//!
//! In: bytes of a peer or a file, none of it trusted. Out: fields as values, and back. The format is
//! protobuf's; equal messages give equal bytes.

use prost::bytes::{Buf, BufMut, Bytes};
use prost::encoding::{
    decode_key, decode_varint, encode_key, encode_varint, skip_field, DecodeContext, WireType,
};
use prost::DecodeError;

use super::descriptor::{FieldDescriptor, Kind};
use super::message::{DynamicMessage, UnknownField, Value};

/// How deeply messages may nest, as prost has it.
pub(super) const MAX_DEPTH: usize = 100;

/// Reads the fields in `bytes` into `message`.
pub(super) fn merge(message: &mut DynamicMessage, bytes: &Bytes, depth: usize) -> Result<(), DecodeError> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(malformed("messages are nested too deeply"));
    };
    let descriptor = message.descriptor();
    let mut rest = bytes.clone();
    while rest.has_remaining() {
        let start = rest.clone();
        let (number, wire_type) = decode_key(&mut rest)?;
        match descriptor.get_field(number) {
            Some(field) => merge_field(message, &field, wire_type, &mut rest, depth)?,
            None => {
                skip_field(wire_type, number, &mut rest, DecodeContext::default())?;
                let length = start.len() - rest.len();
                message.push_unknown(UnknownField { number, bytes: start.slice(..length) });
            }
        }
    }
    Ok(())
}

fn merge_field(
    message: &mut DynamicMessage,
    field: &FieldDescriptor,
    wire_type: WireType,
    rest: &mut Bytes,
    depth: usize,
) -> Result<(), DecodeError> {
    let kind = field.kind();
    if field.is_map() {
        return merge_entry(message, field, &kind, wire_type, rest, depth);
    }
    let expected = wire_type_of(&kind);
    if field.is_list() {
        let mut items = Vec::new();
        if wire_type == WireType::LengthDelimited && expected != WireType::LengthDelimited {
            let mut packed = length_delimited(rest)?;
            while packed.has_remaining() {
                items.push(decode_value(&kind, &mut packed, depth)?);
            }
        } else {
            same_wire_type(wire_type, expected, field)?;
            items.push(decode_value(&kind, rest, depth)?);
        }
        match message.stored_mut(field.number()) {
            Some(Value::List(list)) => list.append(&mut items),
            _ => message.store(field, Value::List(items)),
        }
        return Ok(());
    }
    same_wire_type(wire_type, expected, field)?;
    // A message that comes again is merged into the first.
    if let Some(Value::Message(stored)) = message.stored_mut(field.number()) {
        return merge(stored, &length_delimited(rest)?, depth);
    }
    let value = decode_value(&kind, rest, depth)?;
    message.store(field, value);
    Ok(())
}

fn merge_entry(
    message: &mut DynamicMessage,
    field: &FieldDescriptor,
    kind: &Kind,
    wire_type: WireType,
    rest: &mut Bytes,
    depth: usize,
) -> Result<(), DecodeError> {
    same_wire_type(wire_type, WireType::LengthDelimited, field)?;
    let Some(descriptor) = kind.as_message() else {
        return Err(malformed("a map without entries"));
    };
    let mut entry = DynamicMessage::new(descriptor.clone());
    merge(&mut entry, &length_delimited(rest)?, depth)?;
    let key = entry.get_field(&descriptor.map_entry_key_field()).into_owned();
    let Some(key) = key.into_map_key() else {
        return Err(malformed("a map with a key of a type that cannot be one"));
    };
    let value = entry.get_field(&descriptor.map_entry_value_field()).into_owned();
    if let Some(Value::Map(map)) = message.stored_mut(field.number()) {
        map.insert(key, value);
    } else {
        message.store(field, Value::Map([(key, value)].into()));
    }
    Ok(())
}

fn decode_value(kind: &Kind, rest: &mut Bytes, depth: usize) -> Result<Value, DecodeError> {
    let short = |_| malformed("the bytes end within a number");
    // Protobuf truncates integers to the size of the field.
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
    Ok(match kind {
        Kind::Double => Value::F64(rest.try_get_f64_le().map_err(short)?),
        Kind::Float => Value::F32(rest.try_get_f32_le().map_err(short)?),
        Kind::Int32 => Value::I32(decode_varint(rest)? as i32),
        Kind::Int64 => Value::I64(decode_varint(rest)? as i64),
        Kind::Uint32 => Value::U32(decode_varint(rest)? as u32),
        Kind::Uint64 => Value::U64(decode_varint(rest)?),
        Kind::Sint32 => {
            let coded = decode_varint(rest)? as u32;
            Value::I32((coded >> 1) as i32 ^ -((coded & 1) as i32))
        }
        Kind::Sint64 => {
            let coded = decode_varint(rest)?;
            Value::I64((coded >> 1) as i64 ^ -((coded & 1) as i64))
        }
        Kind::Fixed32 => Value::U32(rest.try_get_u32_le().map_err(short)?),
        Kind::Fixed64 => Value::U64(rest.try_get_u64_le().map_err(short)?),
        Kind::Sfixed32 => Value::I32(rest.try_get_i32_le().map_err(short)?),
        Kind::Sfixed64 => Value::I64(rest.try_get_i64_le().map_err(short)?),
        Kind::Bool => Value::Bool(decode_varint(rest)? != 0),
        Kind::Enum(_) => Value::EnumNumber(decode_varint(rest)? as i32),
        Kind::String => {
            let bytes = length_delimited(rest)?;
            let text = std::str::from_utf8(&bytes).map_err(|_| malformed("a string is not UTF-8"))?;
            Value::String(text.to_owned())
        }
        Kind::Bytes => Value::Bytes(length_delimited(rest)?),
        Kind::Message(descriptor) => {
            let mut message = DynamicMessage::new(descriptor.clone());
            merge(&mut message, &length_delimited(rest)?, depth)?;
            Value::Message(message)
        }
    })
}

fn length_delimited(rest: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = decode_varint(rest)?;
    match usize::try_from(length) {
        Ok(length) if length <= rest.len() => Ok(rest.split_to(length)),
        _ => Err(malformed("the bytes end within a field")),
    }
}

fn same_wire_type(found: WireType, expected: WireType, field: &FieldDescriptor) -> Result<(), DecodeError> {
    if found == expected {
        return Ok(());
    }
    Err(DecodeError::new(format!(
        "the field {} has the wire type {found:?} instead of {expected:?}",
        field.full_name()
    )))
}

fn malformed(what: &'static str) -> DecodeError {
    DecodeError::new(what)
}

fn wire_type_of(kind: &Kind) -> WireType {
    match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => WireType::SixtyFourBit,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => WireType::ThirtyTwoBit,
        Kind::String | Kind::Bytes | Kind::Message(_) => WireType::LengthDelimited,
        _ => WireType::Varint,
    }
}

/// Writes the fields of `message`.
pub(super) fn encode(message: &DynamicMessage, out: &mut Vec<u8>) {
    for (field, value) in message.fields() {
        encode_field(&field, value, out);
    }
    for unknown in message.unknown_fields() {
        out.extend_from_slice(&unknown.bytes);
    }
}

fn encode_field(field: &FieldDescriptor, value: &Value, out: &mut Vec<u8>) {
    let (number, kind) = (field.number(), field.kind());
    match value {
        Value::Map(entries) => {
            let Some(entry) = kind.as_message() else {
                return;
            };
            let (key_field, value_field) = (entry.map_entry_key_field(), entry.map_entry_value_field());
            for (key, value) in entries {
                let mut bytes = Vec::new();
                encode_single(1, &key_field.kind(), &Value::from(key.clone()), &mut bytes);
                encode_single(2, &value_field.kind(), value, &mut bytes);
                encode_bytes(number, &bytes, out);
            }
        }
        Value::List(items) if wire_type_of(&kind) == WireType::LengthDelimited => {
            for item in items {
                encode_single(number, &kind, item, out);
            }
        }
        // Lists of numbers are packed, as proto3 has it.
        Value::List(items) => {
            let mut packed = Vec::new();
            for item in items {
                encode_value(&kind, item, &mut packed);
            }
            encode_bytes(number, &packed, out);
        }
        single => encode_single(number, &kind, single, out),
    }
}

fn encode_single(number: u32, kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    encode_key(number, wire_type_of(kind), out);
    encode_value(kind, value, out);
}

fn encode_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn encode_value(kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    let counted = |bytes: &[u8], out: &mut Vec<u8>| {
        encode_varint(bytes.len() as u64, out);
        out.extend_from_slice(bytes);
    };
    // Protobuf writes negative integers as their two's complement.
    #[allow(clippy::cast_sign_loss)]
    match (value, kind) {
        (Value::Bool(value), _) => encode_varint(u64::from(*value), out),
        (Value::I32(value), Kind::Sint32) => {
            encode_varint(u64::from(((value << 1) ^ (value >> 31)) as u32), out);
        }
        (Value::I32(value), Kind::Sfixed32) => out.put_i32_le(*value),
        (Value::I32(value) | Value::EnumNumber(value), _) => encode_varint(i64::from(*value) as u64, out),
        (Value::I64(value), Kind::Sint64) => encode_varint(((value << 1) ^ (value >> 63)) as u64, out),
        (Value::I64(value), Kind::Sfixed64) => out.put_i64_le(*value),
        (Value::I64(value), _) => encode_varint(*value as u64, out),
        (Value::U32(value), Kind::Fixed32) => out.put_u32_le(*value),
        (Value::U32(value), _) => encode_varint(u64::from(*value), out),
        (Value::U64(value), Kind::Fixed64) => out.put_u64_le(*value),
        (Value::U64(value), _) => encode_varint(*value, out),
        (Value::F32(value), _) => out.put_f32_le(*value),
        (Value::F64(value), _) => out.put_f64_le(*value),
        (Value::String(value), _) => counted(value.as_bytes(), out),
        (Value::Bytes(value), _) => counted(value, out),
        (Value::Message(value), _) => counted(&value.encode_to_vec(), out),
        // Neither lists nor maps nest in protobuf.
        (Value::List(_) | Value::Map(_), _) => {}
    }
}
