//! JSON values to protobuf scalars and enums.
//!
//! In: one JSON value and the kind a field has. Out: the protobuf value, or a message that says what
//! was found and what is expected. Accepts what Envoy's loader accepts: numbers in quotes, whole
//! numbers written as `80.0` or `8e1`, booleans in quotes, enum names in lower case, enum numbers.

use crate::reflect::{EnumDescriptor, Kind, MapKey, Value as Field};
use prost::bytes::Bytes;
use serde_json::Value;

use crate::text::describe;

/// How many enum names an error lists.
const LISTED_NAMES: usize = 6;

/// Converts `value` to a scalar or enum of `kind`; a message kind is the caller's.
pub(crate) fn scalar(kind: &Kind, value: &Value, yaml: bool) -> Result<Field, String> {
    Ok(match kind {
        Kind::Double => Field::F64(float(value)?),
        Kind::Float => Field::F32(single(float(value)?)?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Field::I32(integer(value, "a 32-bit integer")?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Field::I64(integer(value, "a 64-bit integer")?),
        Kind::Uint32 | Kind::Fixed32 => Field::U32(integer(value, "an unsigned 32-bit integer")?),
        Kind::Uint64 | Kind::Fixed64 => Field::U64(integer(value, "an unsigned 64-bit integer")?),
        Kind::Bool => Field::Bool(boolean(value, yaml)?),
        Kind::String => Field::String(string(value)?),
        Kind::Bytes => Field::Bytes(Bytes::from(bytes(value)?)),
        Kind::Enum(descriptor) => Field::EnumNumber(enumeration(descriptor, value)?),
        Kind::Message(descriptor) => return Err(format!("expected {}", descriptor.full_name())),
    })
}

/// Converts the key of a JSON object to the key of a protobuf map.
pub(crate) fn map_key(kind: &Kind, key: &str) -> Result<MapKey, String> {
    let value = Value::String(key.to_owned());
    scalar(kind, &value, false)?.into_map_key().ok_or_else(|| format!("{key:?} cannot be a key of this map"))
}

fn integer<T: TryFrom<i128>>(value: &Value, expected: &str) -> Result<T, String> {
    let wrong = || format!("expected {expected}, found {}", describe(value));
    let whole = match value {
        Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(i), _, _) => i128::from(i),
            (_, Some(u), _) => i128::from(u),
            (_, _, Some(f)) => whole_float(f).ok_or_else(wrong)?,
            _ => return Err(wrong()),
        },
        Value::String(s) => {
            let digits = s.strip_prefix('-').unwrap_or(s);
            if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(format!("{s} is ambiguous: it starts with a zero, which YAML may read as octal"));
            }
            match s.parse::<i128>() {
                Ok(i) if !s.starts_with('+') => i,
                _ => json_number(s).and_then(whole_float).ok_or_else(wrong)?,
            }
        }
        _ => return Err(wrong()),
    };
    T::try_from(whole).map_err(|_| format!("{whole} is out of range for {expected}"))
}

/// The integer that `value` is exactly, if it is one that a double holds without loss.
#[allow(clippy::cast_possible_truncation)]
fn whole_float(value: f64) -> Option<i128> {
    (value.fract() == 0.0 && value.abs() <= 2f64.powi(64)).then_some(value as i128)
}

fn json_number(text: &str) -> Option<f64> {
    let mut characters = text.bytes();
    let first = characters.next()?;
    let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e' | b'E'));
    (plain && (first == b'-' || first.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

fn float(value: &Value) -> Result<f64, String> {
    let wrong = || format!("expected a number, found {}", describe(value));
    match value {
        Value::Number(n) => n.as_f64().ok_or_else(wrong),
        Value::String(s) => match s.as_str() {
            "NaN" => Ok(f64::NAN),
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            other => json_number(other).filter(|f| f.is_finite()).ok_or_else(wrong),
        },
        _ => Err(wrong()),
    }
}

#[allow(clippy::cast_possible_truncation)]
fn single(value: f64) -> Result<f32, String> {
    let narrowed = value as f32;
    if value.is_finite() && !narrowed.is_finite() {
        return Err(format!("{value} is out of range for a 32-bit float"));
    }
    Ok(narrowed)
}

fn boolean(value: &Value, yaml: bool) -> Result<bool, String> {
    match value {
        Value::Bool(b) => return Ok(*b),
        Value::String(s) => match s.as_str() {
            "true" => return Ok(true),
            "false" => return Ok(false),
            // YAML 1.1 spellings, which the YAML 1.2 parser below us reads as strings.
            other if yaml => match other.to_ascii_lowercase().as_str() {
                "yes" | "on" | "y" => return Ok(true),
                "no" | "off" | "n" => return Ok(false),
                _ => {}
            },
            _ => {}
        },
        _ => {}
    }
    Err(format!("expected true or false, found {}", describe(value)))
}

fn string(value: &Value) -> Result<String, String> {
    match value {
        Value::String(s) => Ok(s.clone()),
        Value::Number(_) | Value::Bool(_) => {
            Err(format!("expected a string, found {} (put it in quotes)", describe(value)))
        }
        other => Err(format!("expected a string, found {}", describe(other))),
    }
}

fn bytes(value: &Value) -> Result<Vec<u8>, String> {
    let Value::String(text) = value else {
        return Err(format!("expected base64 text, found {}", describe(value)));
    };
    from_base64(text).ok_or_else(|| "expected base64 text".to_owned())
}

/// Standard and URL-safe alphabets, with or without padding.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if text.len() - digits.len() > 2 || digits.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0u32, 0u32);
    for byte in digits.bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        // At most 6 + 6 bits are held, so nothing is lost by the shift.
        bits = (bits << 6) | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from((bits >> count) & 0xff).unwrap_or_default());
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}

pub(crate) fn to_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0u32, |group, b| (group << 8) | u32::from(*b)) << (8 * (3 - chunk.len()));
        for position in 0..4usize {
            if position > chunk.len() {
                out.push('=');
            } else {
                let digit = (group >> (18 - 6 * position)) & 0x3f;
                out.push(char::from(DIGITS.get(digit as usize).copied().unwrap_or(b'=')));
            }
        }
    }
    out
}

fn enumeration(descriptor: &EnumDescriptor, value: &Value) -> Result<i32, String> {
    let number = match value {
        // The one enum whose JSON form is null itself.
        Value::Null if descriptor.full_name() == "google.protobuf.NullValue" => Some(0),
        Value::String(name) => {
            let found = descriptor
                .get_value_by_name(name)
                .or_else(|| descriptor.values().find(|v| v.name().to_ascii_lowercase() == *name));
            match found {
                Some(found) => return Ok(found.number()),
                None => name.parse::<i32>().ok(),
            }
        }
        Value::Number(_) => Some(integer::<i32>(value, "an enum number")?),
        _ => None,
    };
    match number.filter(|n| descriptor.get_value(*n).is_some()) {
        Some(number) => Ok(number),
        None => {
            let names: Vec<String> =
                descriptor.values().take(LISTED_NAMES).map(|v| v.name().to_owned()).collect();
            let more = if descriptor.values().len() > names.len() { ", ..." } else { "" };
            Err(format!(
                "{} is no {}, expected one of {}{more}",
                describe(value),
                descriptor.full_name(),
                names.join(", "),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_goes_both_ways() {
        for text in ["", "f", "fo", "foo", "foob", "fooba", "foobar"] {
            let encoded = to_base64(text.as_bytes());
            assert_eq!(from_base64(&encoded).as_deref(), Some(text.as_bytes()), "{encoded}");
            assert_eq!(from_base64(encoded.trim_end_matches('=')).as_deref(), Some(text.as_bytes()));
        }
        assert_eq!(to_base64(&[0xfb, 0xff]), "+/8=");
        assert_eq!(from_base64("-_8").as_deref(), Some(&[0xfb, 0xff][..]));
        assert_eq!(from_base64("a"), None);
        assert_eq!(from_base64("a b="), None);
    }

    #[test]
    fn integers_are_read_as_envoy_reads_them() {
        for (text, expected) in [("80", 80), ("80.0", 80), ("1e2", 100), ("\"80\"", 80), ("\"1e2\"", 100)] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(integer::<u32>(&value, "an unsigned 32-bit integer"), Ok(expected), "{text}");
        }
        for text in ["80.5", "-1", "true", "\"\"", "4294967296", "\"010\"", "\"+1\"", "\" 1\"", "[1]", "1e30"]
        {
            let value: Value = serde_json::from_str(text).unwrap();
            assert!(integer::<u32>(&value, "an unsigned 32-bit integer").is_err(), "{text}");
        }
    }
}
