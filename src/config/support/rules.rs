//! The validation rules of Envoy's own .proto files, checked by reflection.
//!
//! In: a message in reflective form. Out: one problem for each field whose value Envoy's API forbids
//! (missing, too long, out of range), with its path; packed `Any` messages included. The rules come
//! from the descriptors, by way of the build script; for messages whose descriptors carry none,
//! `EXTRA` states Envoy's rules by hand.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use outrigger_control_api::reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, OneofDescriptor, Value};
use outrigger_control_api::{pool, Problem};

use crate::config::token::is_field_name;

/// A rule of one field, by its number, or of a group of alternatives.
pub(super) enum FieldRule {
    Field(u32, &'static [Check]),
    OneOf(&'static str),
}

/// What a value must fulfil. Bounds of durations are in seconds.
#[derive(Debug)]
#[allow(dead_code)] // The build script may produce any of these.
pub(super) enum Check {
    Required,
    Above(f64),
    AtLeast(f64),
    Below(f64),
    AtMost(f64),
    NumberIn(&'static [f64]),
    Bool(bool),
    MinChars(u64),
    MaxChars(u64),
    MinBytes(u64),
    MaxBytes(u64),
    Pattern(&'static str),
    Prefix(&'static str),
    Suffix(&'static str),
    TextIn(&'static [&'static str]),
    TextNotIn(&'static [&'static str]),
    HeaderName { strict: bool },
    HeaderValue { strict: bool },
    Ip,
    Uri,
    DefinedOnly,
    EnumIn(&'static [i32]),
    EnumNotIn(&'static [i32]),
    MinItems(u64),
    MaxItems(u64),
    Unique,
    Each(&'static [Check]),
    Keys(&'static [Check]),
    Values(&'static [Check]),
    UnlessEmpty(&'static [Check]),
}

use super::extra_rules::EXTRA;
use super::filter_rules::FILTERS;
use super::udp_rules::UDP;

include!(concat!(env!("OUT_DIR"), "/rules.rs"));

pub(super) static BY_NAME: LazyLock<HashMap<&'static str, &'static [FieldRule]>> =
    LazyLock::new(|| RULES.iter().chain(EXTRA).chain(FILTERS).chain(UDP).copied().collect());

/// Checks `message` and everything in it; `path` is where it stands, without a trailing dot. Only the
/// first failed rule of a field is reported.
pub fn check(message: &DynamicMessage, path: &str, problems: &mut Vec<Problem>) {
    let mut walk = Walk { path: path.to_owned(), problems };
    walk.message(message);
}

struct Walk<'a> {
    path: String,
    problems: &'a mut Vec<Problem>,
}

impl Walk<'_> {
    fn message(&mut self, message: &DynamicMessage) {
        let descriptor = message.descriptor();
        if let Some(rules) = BY_NAME.get(descriptor.full_name()) {
            for rule in *rules {
                match rule {
                    FieldRule::Field(number, checks) => {
                        if let Some(field) = descriptor.get_field(*number) {
                            self.field(message, &field, checks);
                        }
                    }
                    FieldRule::OneOf(name) => {
                        let oneof = descriptor.oneofs().find(|oneof| oneof.name() == *name);
                        let set =
                            |oneof: &OneofDescriptor| oneof.fields().any(|field| message.has_field(&field));
                        if let Some(oneof) = oneof.filter(|oneof| !set(oneof)) {
                            let names: Vec<_> = oneof.fields().map(|field| field.name().to_owned()).collect();
                            self.report(name, &format!("is required: one of {}", names.join(", ")));
                        }
                    }
                }
            }
        }
        if descriptor.full_name() == "google.protobuf.Any" {
            return self.any(message);
        }
        for (field, value) in message.fields() {
            if holds_messages(&field) {
                self.within(&field, value);
            }
        }
    }

    /// Descends into a field that holds messages.
    fn within(&mut self, field: &FieldDescriptor, value: &Value) {
        let length = self.path.len();
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(field.name());
        match value {
            Value::Message(inner) => self.message(inner),
            Value::List(list) => {
                for (index, inner) in list.iter().enumerate() {
                    let length = self.path.len();
                    self.path.push_str(&format!("[{index}]"));
                    if let Value::Message(inner) = inner {
                        self.message(inner);
                    }
                    self.path.truncate(length);
                }
            }
            Value::Map(map) => {
                for (key, inner) in map {
                    let length = self.path.len();
                    self.path.push_str(&key_path(key));
                    if let Value::Message(inner) = inner {
                        self.message(inner);
                    }
                    self.path.truncate(length);
                }
            }
            _ => {}
        }
        self.path.truncate(length);
    }

    fn any(&mut self, any: &DynamicMessage) {
        let url = any.get_field_by_name("type_url");
        let name = url.as_deref().and_then(Value::as_str).and_then(|url| url.rsplit('/').next());
        let Some(descriptor) = name.and_then(|name| pool().get_message_by_name(name)) else { return };
        let value = any.get_field_by_name("value");
        let bytes = value.as_deref().and_then(Value::as_bytes).cloned().unwrap_or_default();
        // What does not decode is reported by whoever unpacks it.
        if let Ok(inner) = DynamicMessage::decode(descriptor, bytes) {
            self.message(&inner);
        }
    }

    fn field(&mut self, message: &DynamicMessage, field: &FieldDescriptor, checks: &[Check]) {
        let set = message.has_field(field);
        // Rules of a field with presence apply when it is there; those of a plain scalar always.
        if !set && field.supports_presence() {
            // An alternative that was not chosen is not missing.
            let alternative = field.containing_oneof().is_some();
            if !alternative && checks.iter().any(|check| matches!(check, Check::Required)) {
                self.report(field.name(), "is required");
            }
            return;
        }
        let value = message.get_field(field);
        if let Some(wrong) = checks.iter().find_map(|check| wrong(check, &value, field)) {
            self.report(field.name(), &wrong);
        }
    }

    fn report(&mut self, field: &str, message: &str) {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.problems
            .push(Problem { path: format!("{}{dot}{field}", self.path), message: message.to_owned() });
    }
}

fn holds_messages(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            matches!(entry.map_entry_value_field().kind(), Kind::Message(_))
        }
        Kind::Message(_) => true,
        _ => false,
    }
}

fn key_path(key: &MapKey) -> String {
    match key {
        MapKey::String(key) => format!("[{key:?}]"),
        MapKey::Bool(key) => format!("[{key}]"),
        MapKey::I32(key) => format!("[{key}]"),
        MapKey::I64(key) => format!("[{key}]"),
        MapKey::U32(key) => format!("[{key}]"),
        MapKey::U64(key) => format!("[{key}]"),
    }
}

/// What is wrong with `value` under `check`, if anything.
pub(super) fn wrong(check: &Check, value: &Value, field: &FieldDescriptor) -> Option<String> {
    let unless = |fine: bool, message: &dyn Fn() -> String| (!fine).then(message);
    let items = |value: &Value| match value {
        Value::List(list) => list.len() as u64,
        Value::Map(map) => map.len() as u64,
        _ => 0,
    };
    let plural =
        |count: u64, what: &str| if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") };
    match check {
        Check::Required => None,
        Check::Above(low) => {
            let number = number(value)?;
            unless(number.value > *low, &|| {
                format!("is {number}, must be greater than {}", number.like(*low))
            })
        }
        Check::AtLeast(low) => {
            let number = number(value)?;
            unless(number.value >= *low, &|| format!("is {number}, must be at least {}", number.like(*low)))
        }
        Check::Below(high) => {
            let number = number(value)?;
            unless(number.value < *high, &|| format!("is {number}, must be less than {}", number.like(*high)))
        }
        Check::AtMost(high) => {
            let number = number(value)?;
            unless(number.value <= *high, &|| format!("is {number}, must be at most {}", number.like(*high)))
        }
        Check::NumberIn(list) => {
            let number = number(value)?;
            unless(list.contains(&number.value), &|| format!("is {number}, must be one of {list:?}"))
        }
        Check::Bool(wanted) => {
            let is = inner(value).as_bool()?;
            unless(is == *wanted, &|| format!("must be {wanted}"))
        }
        Check::MinChars(min) => {
            let text = text(value)?;
            unless(text.chars().count() as u64 >= *min, &|| match text.is_empty() {
                true => "is empty".to_owned(),
                false => format!("must have at least {}", plural(*min, "character")),
            })
        }
        Check::MaxChars(max) => {
            let text = text(value)?;
            unless(text.chars().count() as u64 <= *max, &|| {
                format!("must have at most {}", plural(*max, "character"))
            })
        }
        Check::MinBytes(min) => {
            let length = bytes(value)?;
            unless(length >= *min, &|| match length {
                0 => "is empty".to_owned(),
                _ => format!("must have at least {}", plural(*min, "byte")),
            })
        }
        Check::MaxBytes(max) => {
            let length = bytes(value)?;
            unless(length <= *max, &|| format!("has {length} bytes, may have at most {max}"))
        }
        Check::Pattern(pattern) => {
            let text = text(value)?;
            let fine = matches_pattern(pattern, text);
            unless(fine, &|| format!("{text:?} does not match the pattern {pattern:?}"))
        }
        Check::Prefix(prefix) => {
            let text = text(value)?;
            unless(text.starts_with(prefix), &|| format!("{text:?} must start with {prefix:?}"))
        }
        Check::Suffix(suffix) => {
            let text = text(value)?;
            unless(text.ends_with(suffix), &|| format!("{text:?} must end with {suffix:?}"))
        }
        Check::TextIn(list) => {
            let text = text(value)?;
            unless(list.contains(&text), &|| format!("is {text:?}, must be one of {list:?}"))
        }
        Check::TextNotIn(list) => {
            let text = text(value)?;
            unless(!list.contains(&text), &|| format!("must not be {text:?}"))
        }
        Check::HeaderName { strict } => {
            let text = text(value)?;
            unless(is_header_name(text, *strict), &|| format!("{text:?} is not a header name"))
        }
        Check::HeaderValue { strict } => {
            let text = text(value)?;
            unless(is_header_value(text, *strict), &|| format!("{text:?} is not a header value"))
        }
        Check::Ip => {
            let text = text(value)?;
            unless(text.parse::<std::net::IpAddr>().is_ok(), &|| format!("{text:?} is not an IP address"))
        }
        Check::Uri => {
            let text = text(value)?;
            unless(text.contains(':'), &|| format!("{text:?} is not a URI"))
        }
        Check::DefinedOnly => {
            let (number, known) = enumerator(value, field)?;
            unless(known, &|| format!("{number} is not a value of this enum"))
        }
        Check::EnumIn(list) => {
            let (number, _) = enumerator(value, field)?;
            unless(list.contains(&number), &|| format!("{number} is not allowed here"))
        }
        Check::EnumNotIn(list) => {
            let (number, _) = enumerator(value, field)?;
            unless(!list.contains(&number), &|| format!("{} is not allowed here", enum_name(number, field)))
        }
        Check::MinItems(min) => unless(items(value) >= *min, &|| match items(value) {
            0 => "is empty".to_owned(),
            _ => format!("must have at least {}", plural(*min, "entry").replace("entrys", "entries")),
        }),
        Check::MaxItems(max) => unless(items(value) <= *max, &|| {
            let most = plural(*max, "entry").replace("entrys", "entries");
            format!("has {} entries, may have at most {most}", items(value))
        }),
        Check::Unique => {
            let list = value.as_list()?;
            let twice =
                list.iter().enumerate().find(|(index, item)| list.iter().take(*index).any(|i| i == *item));
            twice.map(|(index, _)| format!("entry {index} repeats an earlier one"))
        }
        Check::Each(checks) => {
            let find = |item: &Value| checks.iter().find_map(|check| wrong(check, item, field));
            value
                .as_list()?
                .iter()
                .enumerate()
                .find_map(|(index, item)| find(item).map(|wrong| format!("entry {index}: {wrong}")))
        }
        Check::Keys(checks) => value.as_map()?.keys().find_map(|key| {
            let MapKey::String(key) = key else { return None };
            let wrong = checks.iter().find_map(|check| wrong(check, &Value::String(key.clone()), field))?;
            Some(format!("key {key:?}: {wrong}"))
        }),
        Check::Values(checks) => value.as_map()?.iter().find_map(|(key, item)| {
            let wrong = checks.iter().find_map(|check| wrong(check, item, field))?;
            Some(format!("{}: {wrong}", key_path(key)))
        }),
        Check::UnlessEmpty(checks) => {
            if is_empty(&inner(value)) {
                return None;
            }
            checks.iter().find_map(|check| wrong(check, value, field))
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.is_empty(),
        other => number_of(other) == Some(0.0),
    }
}

/// The value of a wrapper message (`google.protobuf.UInt32Value` and the like), or the value itself.
fn inner(value: &Value) -> Value {
    if let Value::Message(message) = value {
        let name = message.descriptor().full_name().to_owned();
        if name.starts_with("google.protobuf.") && name.ends_with("Value") {
            if let Some(inner) = message.get_field_by_number(1) {
                return inner.into_owned();
            }
        }
    }
    value.clone()
}

struct Number {
    value: f64,
    unit: &'static str,
}

impl Number {
    fn like(&self, value: f64) -> Number {
        Number { value, unit: self.unit }
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.value, self.unit)
    }
}

/// A number or a duration in seconds.
fn number(value: &Value) -> Option<Number> {
    if let Value::Message(message) = value {
        if message.descriptor().full_name() == "google.protobuf.Duration" {
            let part = |number| message.get_field_by_number(number).and_then(|v| number_of(&v));
            return Some(Number { value: part(1)? + part(2)? / 1e9, unit: "s" });
        }
    }
    number_of(&inner(value)).map(|value| Number { value, unit: "" })
}

fn number_of(value: &Value) -> Option<f64> {
    match value {
        Value::I32(v) => Some(f64::from(*v)),
        Value::U32(v) => Some(f64::from(*v)),
        Value::I64(v) => Some(*v as f64),
        Value::U64(v) => Some(*v as f64),
        Value::F32(v) => Some(f64::from(*v)),
        Value::F64(v) => Some(*v),
        _ => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn bytes(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => Some(text.len() as u64),
        Value::Bytes(bytes) => Some(bytes.len() as u64),
        _ => None,
    }
}

fn enumerator(value: &Value, field: &FieldDescriptor) -> Option<(i32, bool)> {
    let number = value.as_enum_number()?;
    let Kind::Enum(kind) = field.kind() else { return None };
    Some((number, kind.get_value(number).is_some()))
}

fn enum_name(number: i32, field: &FieldDescriptor) -> String {
    let Kind::Enum(kind) = field.kind() else { return number.to_string() };
    kind.get_value(number).map_or_else(|| number.to_string(), |value| value.name().to_owned())
}

fn matches_pattern(pattern: &'static str, text: &str) -> bool {
    static COMPILED: Mutex<Option<HashMap<&'static str, Option<regex::Regex>>>> = Mutex::new(None);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let regex =
        compiled.get_or_insert_default().entry(pattern).or_insert_with(|| regex::Regex::new(pattern).ok());
    // Every pattern of the table compiles; a test decides.
    regex.as_ref().is_none_or(|regex| regex.is_match(text))
}

fn is_header_name(text: &str, strict: bool) -> bool {
    if !strict {
        return is_header_value(text, false);
    }
    is_field_name(text.as_bytes())
}

fn is_header_value(text: &str, strict: bool) -> bool {
    let fine = |byte: u8| match strict {
        true => byte == b'\t' || (byte >= 0x20 && byte != 0x7f),
        false => !matches!(byte, 0 | b'\r' | b'\n'),
    };
    text.bytes().all(fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_names_a_field_and_every_pattern_compiles() {
        for (name, rules) in RULES.iter().chain(EXTRA).chain(FILTERS) {
            let Some(message) = pool().get_message_by_name(name) else {
                // The pool leaves out messages that no configuration holds.
                assert!(!EXTRA.iter().chain(FILTERS).any(|(extra, _)| extra == name), "{name}");
                continue;
            };
            for rule in *rules {
                match rule {
                    FieldRule::OneOf(oneof) => {
                        assert!(message.oneofs().any(|o| o.name() == *oneof), "{name}.{oneof}");
                    }
                    FieldRule::Field(number, checks) => {
                        assert!(message.get_field(*number).is_some(), "{name} has no field {number}");
                        for check in *checks {
                            if let Check::Pattern(pattern) = check {
                                assert!(regex::Regex::new(pattern).is_ok(), "{name}: {pattern}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn header_names_and_values() {
        assert!(is_header_name("x-a", true) && is_header_name(":path", true) && is_header_name("a b", false));
        assert!(!is_header_name("a b", true) && !is_header_name("a\n", false));
        assert!(
            is_header_value("a\tb", true)
                && !is_header_value("a\x01", true)
                && !is_header_value("a\0", false)
        );
    }
}
