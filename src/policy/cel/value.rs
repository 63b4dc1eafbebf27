//! Values while an expression is evaluated.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::time::Duration;

use outrigger_control_api::pb::google::protobuf::value::Kind;
use outrigger_control_api::pb::google::protobuf::{self as wire, Struct};

use crate::config::{HeaderKey, HeaderView};
use crate::telemetry::stream_info::{DynamicMetadata, StreamInfo};

/// The value does not exist, or cannot be had this way. It spreads to whatever needs the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed;

pub(super) type Outcome<'a> = Result<Value<'a>, Failed>;

/// A value; what is large is borrowed.
#[derive(Clone)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    /// In nanoseconds.
    Duration(i64),
    /// In nanoseconds since 1970.
    Time(i64),
    List(Vec<Value<'a>>),
    Map(Vec<(Value<'a>, Value<'a>)>),
    /// Fields of a head; several values with commas between.
    Headers(&'a dyn HeaderView),
    Struct(&'a Struct),
    Values(&'a [wire::Value]),
    Namespaces(&'a DynamicMetadata),
    State(&'a StreamInfo),
}

impl<'a> Value<'a> {
    /// Bytes of a peer as text.
    pub(super) fn of_bytes(bytes: &'a [u8]) -> Self {
        Value::Text(String::from_utf8_lossy(bytes))
    }

    pub(super) fn of_duration(duration: Duration) -> Self {
        Value::Duration(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }

    /// A number that counts something.
    pub(super) fn of_count(number: u64) -> Self {
        Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }

    pub(super) fn of_wire(value: &'a wire::Value) -> Self {
        match &value.kind {
            None | Some(Kind::NullValue(_)) => Value::Null,
            Some(Kind::BoolValue(is)) => Value::Bool(*is),
            Some(Kind::NumberValue(number)) => Value::Double(*number),
            Some(Kind::StringValue(text)) => Value::Text(Cow::Borrowed(text)),
            Some(Kind::StructValue(fields)) => Value::Struct(fields),
            Some(Kind::ListValue(list)) => Value::Values(&list.values),
        }
    }

    /// As Envoy tells it to other services.
    pub(super) fn to_message(&self) -> wire::Value {
        let kind = match self {
            Value::Null => Kind::NullValue(0),
            Value::Bool(is) => Kind::BoolValue(*is),
            Value::Double(number) => Kind::NumberValue(*number),
            Value::Int(number) => Kind::NumberValue(*number as f64),
            Value::Uint(number) => Kind::NumberValue(*number as f64),
            Value::Text(text) => Kind::StringValue(text.to_string()),
            Value::Bytes(bytes) => Kind::StringValue(String::from_utf8_lossy(bytes).into_owned()),
            Value::Duration(nanos) => Kind::StringValue(duration_text(*nanos)),
            Value::Time(nanos) => Kind::StringValue(time_text(*nanos)),
            Value::List(_) | Value::Values(_) => Kind::StringValue("CelList value".to_owned()),
            Value::Map(_) | Value::Headers(_) | Value::Struct(_) | Value::Namespaces(_) | Value::State(_) => {
                Kind::StringValue("CelMap value".to_owned())
            }
        };
        wire::Value { kind: Some(kind) }
    }

    /// The entry of a map, or of a list, at `key`.
    pub(super) fn entry(&self, key: &Value<'_>) -> Outcome<'a> {
        match (self, key) {
            (Value::Map(entries), key) => {
                entries.iter().find(|(own, _)| own.equals(key)).map(|(_, value)| value.clone()).ok_or(Failed)
            }
            (Value::List(list), key) => list.get(key.index()?).cloned().ok_or(Failed),
            (Value::Values(list), key) => list.get(key.index()?).map(Value::of_wire).ok_or(Failed),
            (whole, Value::Text(name)) => whole.field(name),
            _ => Err(Failed),
        }
    }

    /// The entry called `name` of a map.
    pub(super) fn field(&self, name: &str) -> Outcome<'a> {
        match self {
            Value::Map(_) => self.entry(&Value::Text(Cow::Borrowed(name))),
            Value::Headers(head) => header(*head, &HeaderKey::new(name)),
            Value::Struct(fields) => fields.fields.get(name).map(Value::of_wire).ok_or(Failed),
            Value::Namespaces(all) => all.get(name).map(Value::Struct).ok_or(Failed),
            Value::State(info) => {
                let object = info.object(name).ok_or(Failed)?;
                Ok(Value::Bytes(Cow::Borrowed(object.text().as_bytes())))
            }
            _ => Err(Failed),
        }
    }

    /// Whether it is a map.
    pub(super) fn is_map(&self) -> bool {
        use Value::{Headers, Map, Namespaces, State, Struct};
        matches!(self, Map(_) | Headers(_) | Struct(_) | Namespaces(_) | State(_))
    }

    fn index(&self) -> Result<usize, Failed> {
        match self {
            Value::Int(number) => usize::try_from(*number).map_err(|_| Failed),
            Value::Uint(number) => usize::try_from(*number).map_err(|_| Failed),
            Value::Double(number) if number.fract() == 0.0 && (0.0..1e9).contains(number) => {
                Ok(*number as usize)
            }
            _ => Err(Failed),
        }
    }

    /// How many characters, bytes, elements or entries it has.
    pub(super) fn size(&self) -> Result<usize, Failed> {
        Ok(match self {
            Value::Text(text) => text.chars().count(),
            Value::Bytes(bytes) => bytes.len(),
            Value::List(list) => list.len(),
            Value::Values(list) => list.len(),
            Value::Map(entries) => entries.len(),
            Value::Struct(fields) => fields.fields.len(),
            Value::Namespaces(all) => all.len(),
            _ => return Err(Failed),
        })
    }

    fn elements(&self) -> Option<Cow<'_, [Value<'a>]>> {
        match self {
            Value::List(list) => Some(Cow::Borrowed(list)),
            Value::Values(list) => Some(list.iter().map(Value::of_wire).collect()),
            _ => None,
        }
    }

    /// Whether a list has this element, or a map this key.
    pub(super) fn contains(&self, wanted: &Value<'_>) -> Result<bool, Failed> {
        if let Some(elements) = self.elements() {
            return Ok(elements.iter().any(|element| element.equals(wanted)));
        }
        if self.is_map() {
            return Ok(self.entry(wanted).is_ok());
        }
        Err(Failed)
    }

    /// Values of different kinds differ, but numbers are compared whatever their kind.
    pub(super) fn equals(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Text(a), Value::Text(b)) => a == b,
            (Value::Bytes(a), Value::Bytes(b)) => a == b,
            (Value::Duration(a), Value::Duration(b)) | (Value::Time(a), Value::Time(b)) => a == b,
            (Value::Map(a), Value::Map(b)) => {
                let same = |(key, value): &(Value<'_>, Value<'_>)| {
                    b.iter().any(|(own, there)| own.equals(key) && value.equals(there))
                };
                a.len() == b.len() && a.iter().all(same)
            }
            (Value::Struct(a), Value::Struct(b)) => a == b,
            _ => match (self.elements(), other.elements()) {
                (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b)),
                _ => numbers(self, other) == Some(Ordering::Equal),
            },
        }
    }

    /// As text, in Envoy's form.
    pub(super) fn text(&self) -> Box<str> {
        match self {
            Value::Int(number) => number.to_string().into(),
            Value::Uint(number) => number.to_string().into(),
            other => match other.to_message().kind {
                Some(Kind::StringValue(text)) => text.into(),
                Some(Kind::BoolValue(is)) => is.to_string().into(),
                Some(Kind::NumberValue(number)) => number.to_string().into(),
                _ => "null".into(),
            },
        }
    }

    /// Which is less.
    pub(super) fn order(&self, other: &Value<'_>) -> Result<Ordering, Failed> {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => Ok(a.cmp(b)),
            (Value::Text(a), Value::Text(b)) => Ok(a.as_bytes().cmp(b.as_bytes())),
            (Value::Bytes(a), Value::Bytes(b)) => Ok(a.cmp(b)),
            (Value::Duration(a), Value::Duration(b)) | (Value::Time(a), Value::Time(b)) => Ok(a.cmp(b)),
            _ => numbers(self, other).ok_or(Failed),
        }
    }
}

/// The values of a field.
pub(super) fn header<'a>(head: &'a dyn HeaderView, key: &HeaderKey) -> Outcome<'a> {
    let mut count = 0u32;
    let mut joined = Vec::new();
    head.values(key, &mut |value| {
        count += 1;
        if count == 2 {
            joined = head.first(key).unwrap_or_default().to_vec();
        }
        if count > 1 {
            joined.push(b',');
            joined.extend_from_slice(value);
        }
    });
    match count {
        0 => Err(Failed),
        1 => head.first(key).map(Value::of_bytes).ok_or(Failed),
        _ => Ok(Value::Text(Cow::Owned(String::from_utf8_lossy(&joined).into_owned()))),
    }
}

fn numbers(one: &Value<'_>, other: &Value<'_>) -> Option<Ordering> {
    let whole = |value: &Value<'_>| match value {
        Value::Int(number) => Some(i128::from(*number)),
        Value::Uint(number) => Some(i128::from(*number)),
        _ => None,
    };
    let broken = |value: &Value<'_>| match value {
        Value::Double(number) => Some(*number),
        _ => whole(value).map(|number| number as f64),
    };
    match (whole(one), whole(other)) {
        (Some(one), Some(other)) => Some(one.cmp(&other)),
        _ => broken(one)?.partial_cmp(&broken(other)?),
    }
}

/// A duration with units: `1h2m3.5s`, or of less than a second in the largest unit of which it has one.
fn duration_text(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let part = |unit: u64| {
        let text = format!("{}.{:0width$}", nanos / unit, nanos % unit, width = unit.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanos {
        0 => "0".to_owned(),
        1..1_000 => format!("{sign}{nanos}ns"),
        1_000..1_000_000 => format!("{sign}{}us", part(1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", part(1_000_000)),
        _ => {
            let (minutes, left) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
            let mut text = sign.to_owned();
            if minutes >= 60 {
                text += &format!("{}h", minutes / 60);
            }
            if minutes % 60 > 0 {
                text += &format!("{}m", minutes % 60);
            }
            if left > 0 {
                let seconds = format!("{}.{:09}", left / 1_000_000_000, left % 1_000_000_000);
                text += seconds.trim_end_matches('0').trim_end_matches('.');
                text.push('s');
            }
            text
        }
    }
}

/// A time by RFC 3339, with as much of the second as counts.
fn time_text(nanos: i64) -> String {
    // Every number of nanoseconds that fits is a time that jiff knows.
    let time = jiff::Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{}+00:00", time.to_string().trim_end_matches('Z'))
}
