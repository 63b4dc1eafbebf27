//! The `google.protobuf` messages whose JSON form is not an object of their fields.

use crate::reflect::{DynamicMessage, Kind, MapKey, MessageDescriptor, Value as Field};
use serde_json::Value;

use crate::text::describe;

/// The most seconds that a `google.protobuf.Duration` may hold, either side of zero: 10,000 years.
const MAX_DURATION_SECONDS: i64 = 315_576_000_000;

/// A message that JSON writes in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WellKnown {
    Any,
    Duration,
    Timestamp,
    /// A wrapper such as `UInt32Value`: written as the bare value.
    Wrapper,
    Struct,
    Value,
    ListValue,
    FieldMask,
    /// Written `{}`, but in an `Any` it stands under `value` like the others.
    Empty,
}

impl WellKnown {
    pub(crate) fn of(descriptor: &MessageDescriptor) -> Option<Self> {
        Some(match descriptor.full_name().strip_prefix("google.protobuf.")? {
            "Any" => Self::Any,
            "Duration" => Self::Duration,
            "Timestamp" => Self::Timestamp,
            "Struct" => Self::Struct,
            "Value" => Self::Value,
            "ListValue" => Self::ListValue,
            "FieldMask" => Self::FieldMask,
            "Empty" => Self::Empty,
            "BoolValue" | "BytesValue" | "DoubleValue" | "FloatValue" | "Int32Value" | "Int64Value"
            | "StringValue" | "UInt32Value" | "UInt64Value" => Self::Wrapper,
            _ => return None,
        })
    }
}

/// Seconds and nanoseconds of a duration such as `0.25s`.
pub(crate) fn parse_duration(text: &str) -> Result<(i64, i32), String> {
    let invalid = || format!("invalid duration {text:?}, expected seconds such as 0.25s or 10s");
    let number = text.strip_suffix('s').ok_or_else(invalid)?;
    let (negative, number) = number.strip_prefix('-').map_or((false, number), |rest| (true, rest));
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(w, f)| (w, Some(f)));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || fraction.is_some_and(|f| !digits(f) || f.len() > 9) {
        return Err(invalid());
    }
    let seconds = whole.parse::<i64>().ok().filter(|s| *s <= MAX_DURATION_SECONDS).ok_or_else(|| {
        format!("the duration {text} is out of range, the limit is {MAX_DURATION_SECONDS}s")
    })?;
    let nanos = fraction.map_or(Ok(0), |f| format!("{f:0<9}").parse::<i32>()).map_err(|_| invalid())?;
    Ok(if negative { (-seconds, -nanos) } else { (seconds, nanos) })
}

/// The text of a duration, with 0, 3, 6 or 9 digits after the point.
pub(crate) fn print_duration(seconds: i64, nanos: i32) -> String {
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    let (seconds, nanos) = (seconds.unsigned_abs(), nanos.unsigned_abs());
    match nanos {
        0 => format!("{sign}{seconds}s"),
        n if n % 1_000_000 == 0 => format!("{sign}{seconds}.{:03}s", n / 1_000_000),
        n if n % 1_000 == 0 => format!("{sign}{seconds}.{:06}s", n / 1_000),
        n => format!("{sign}{seconds}.{n:09}s"),
    }
}

/// A message with the fields `seconds` and `nanos`.
pub(crate) fn time(descriptor: &MessageDescriptor, seconds: i64, nanos: i32) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    set(&mut message, 1, Field::I64(seconds));
    set(&mut message, 2, Field::I32(nanos));
    message
}

/// Seconds since 1970 and nanoseconds of an RFC 3339 time.
pub(crate) fn parse_timestamp(text: &str) -> Result<(i64, i32), String> {
    text.parse::<prost_types::Timestamp>()
        .map(|t| (t.seconds, t.nanos))
        .map_err(|_| format!("invalid time {text:?}, expected one such as 2030-01-31T23:59:59Z"))
}

/// A `FieldMask` from its text, in which paths are in lower camel case.
pub(crate) fn field_mask(descriptor: &MessageDescriptor, text: &str) -> DynamicMessage {
    let snake = |path: &str| {
        path.chars().fold(String::with_capacity(path.len() + 4), |mut out, c| {
            if c.is_ascii_uppercase() {
                out.push('_');
            }
            out.push(c.to_ascii_lowercase());
            out
        })
    };
    let paths = text.split(',').filter(|p| !p.is_empty()).map(|p| Field::String(snake(p))).collect();
    let mut message = DynamicMessage::new(descriptor.clone());
    set(&mut message, 1, Field::List(paths));
    message
}

/// A `Struct`, `Value` or `ListValue`, as `descriptor` says. `depth` is how much deeper it may go.
pub(crate) fn structure(
    descriptor: &MessageDescriptor,
    value: &Value,
    depth: usize,
) -> Result<DynamicMessage, String> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err("nested too deeply".to_owned());
    };
    let mut message = DynamicMessage::new(descriptor.clone());
    let wrong = |expected: &str| format!("expected {expected}, found {}", describe(value));
    match WellKnown::of(descriptor) {
        Some(WellKnown::Struct) => {
            let object = value.as_object().ok_or_else(|| wrong("an object"))?;
            // The descriptor set is fixed: field 1 is a map of strings to values.
            let inner = message_kind(descriptor, 1, |kind| {
                kind.as_message().map(MessageDescriptor::map_entry_value_field).map(|f| f.kind())
            })?;
            let mut fields = std::collections::BTreeMap::new();
            for (key, value) in object {
                let value = structure(&inner, value, depth)?;
                fields.insert(MapKey::String(key.clone()), Field::Message(value));
            }
            set(&mut message, 1, Field::Map(fields));
        }
        Some(WellKnown::ListValue) => {
            let items = value.as_array().ok_or_else(|| wrong("a list"))?;
            let inner = message_kind(descriptor, 1, Some)?;
            let items = items
                .iter()
                .map(|v| structure(&inner, v, depth).map(Field::Message))
                .collect::<Result<Vec<_>, _>>()?;
            set(&mut message, 1, Field::List(items));
        }
        _ => match value {
            Value::Null => set(&mut message, 1, Field::EnumNumber(0)),
            Value::Number(n) => set(&mut message, 2, Field::F64(n.as_f64().unwrap_or(f64::NAN))),
            Value::String(s) => set(&mut message, 3, Field::String(s.clone())),
            Value::Bool(b) => set(&mut message, 4, Field::Bool(*b)),
            Value::Object(_) | Value::Array(_) => {
                let number = if value.is_object() { 5 } else { 6 };
                let inner = message_kind(descriptor, number, Some)?;
                set(&mut message, number, Field::Message(structure(&inner, value, depth)?));
            }
        },
    }
    Ok(message)
}

/// The JSON value that a `Struct`, `Value` or `ListValue` holds.
pub(crate) fn structure_to_json(message: &DynamicMessage) -> Value {
    let descriptor = message.descriptor();
    let nested = |field: &Field| field.as_message().map_or(Value::Null, structure_to_json);
    match WellKnown::of(&descriptor) {
        Some(WellKnown::Struct) => {
            let field = message.get_field_by_number(1);
            let mut entries: Vec<(String, Value)> = field
                .as_deref()
                .and_then(Field::as_map)
                .into_iter()
                .flatten()
                .filter_map(|(key, value)| Some((key.as_str()?.to_owned(), nested(value))))
                .collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Some(WellKnown::ListValue) => {
            let field = message.get_field_by_number(1);
            Value::Array(
                field.as_deref().and_then(Field::as_list).unwrap_or_default().iter().map(nested).collect(),
            )
        }
        _ => message.fields().next().map_or(Value::Null, |(_, field)| match field {
            Field::F64(f) => serde_json::Number::from_f64(*f).map_or(Value::Null, Value::Number),
            Field::String(s) => Value::String(s.clone()),
            Field::Bool(b) => Value::Bool(*b),
            other => nested(other),
        }),
    }
}

/// Sets a field that the embedded descriptors are known to have.
pub(crate) fn set(message: &mut DynamicMessage, number: u32, value: Field) {
    let set = message.try_set_field_by_number(number, value);
    debug_assert!(set.is_ok(), "{set:?}");
}

fn message_kind(
    descriptor: &MessageDescriptor,
    number: u32,
    pick: impl FnOnce(Kind) -> Option<Kind>,
) -> Result<MessageDescriptor, String> {
    descriptor
        .get_field(number)
        .and_then(|field| pick(field.kind()))
        .and_then(|kind| kind.as_message().cloned())
        .ok_or_else(|| format!("{} is not as expected", descriptor.full_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_go_both_ways() {
        for (text, parsed, printed) in [
            ("5s", (5, 0), "5s"),
            ("0.25s", (0, 250_000_000), "0.250s"),
            ("-1.5s", (-1, -500_000_000), "-1.500s"),
            ("-0.000001s", (0, -1_000), "-0.000001s"),
            ("0.000000001s", (0, 1), "0.000000001s"),
            ("315576000000s", (315_576_000_000, 0), "315576000000s"),
        ] {
            assert_eq!(parse_duration(text), Ok(parsed), "{text}");
            assert_eq!(print_duration(parsed.0, parsed.1), printed);
        }
        for text in [
            "5",
            "5 s",
            "250ms",
            "+5s",
            ".5s",
            "5.s",
            "",
            "s",
            "-s",
            "1e3s",
            "0.1234567890s",
            "315576000001s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_duration("5 s").unwrap_err().contains("0.25s"));
    }
}
