//! JSON values to reflective messages, with every problem on the way.
//!
//! In: a JSON value and the descriptor it should fit. Out: a `DynamicMessage` and the problems, each at
//! its path. The walk goes on after a problem, so that one run lists them all.

use std::collections::BTreeMap;

use crate::reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value as Field};
use serde_json::{Map, Value};

use crate::load::MAX_DEPTH;
use crate::problem::{Path, Problem};
use crate::reflect::pool;
use crate::scalar::{map_key, scalar};
use crate::text::describe;
use crate::well_known::{self, WellKnown};

/// Both packages in which control planes send an opaque, named structure.
pub(crate) const TYPED_STRUCTS: [&str; 2] = ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"];

/// What an `Any` holds.
pub(crate) struct Content {
    pub(crate) type_url: String,
    pub(crate) message: DynamicMessage,
}

pub(crate) struct Walk {
    path: Path,
    problems: Vec<Problem>,
    depth: usize,
    /// YAML 1.1 booleans are understood.
    yaml: bool,
    /// Where unknown fields go when they are tolerated; else they are problems.
    unknown: Option<Vec<Problem>>,
}

impl Walk {
    pub(crate) fn new(root: &str, yaml: bool) -> Self {
        Self { path: Path::new(root), problems: Vec::new(), depth: 0, yaml, unknown: None }
    }

    /// The result, or the problems if there were any.
    pub(crate) fn finish<T>(mut self, result: Option<T>) -> Result<T, Vec<Problem>> {
        match result {
            Some(result) if self.problems.is_empty() => Ok(result),
            _ => {
                if self.problems.is_empty() {
                    self.problem("cannot be read");
                }
                Err(self.problems)
            }
        }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// From here on, unknown fields are kept apart and are no problems.
    pub(crate) fn tolerate_unknown(&mut self) {
        self.unknown = Some(Vec::new());
    }

    /// The unknown fields that were tolerated.
    pub(crate) fn take_unknown(&mut self) -> Vec<Problem> {
        self.unknown.take().unwrap_or_default()
    }

    fn unknown(&mut self, message: String) {
        let problem = Problem::new(self.path.as_str(), message);
        self.unknown.as_mut().unwrap_or(&mut self.problems).push(problem);
    }

    pub(crate) fn problem(&mut self, message: impl Into<String>) {
        self.problems.push(Problem::new(self.path.as_str(), message));
    }

    /// A message at the top of a document, where an `@type` may stand but must not contradict.
    pub(crate) fn root(
        &mut self,
        descriptor: &MessageDescriptor,
        value: &mut Value,
    ) -> Option<DynamicMessage> {
        let Some(named) = value.get("@type") else {
            return self.message(descriptor, value);
        };
        let full_name = descriptor.full_name();
        if named.as_str().is_none_or(|url| last_segment(url) != full_name) {
            self.problem(format!("expected the type {full_name}, found {}", describe(named)));
            return None;
        }
        self.content(descriptor, value)
    }

    fn message(&mut self, descriptor: &MessageDescriptor, value: &mut Value) -> Option<DynamicMessage> {
        if self.depth >= MAX_DEPTH {
            self.problem(format!("nested deeper than {MAX_DEPTH} levels"));
            return None;
        }
        self.depth += 1;
        let message = match WellKnown::of(descriptor) {
            Some(WellKnown::Any) => self.any(descriptor, value),
            Some(known) => self.well_known(known, descriptor, value),
            None => self.fields(descriptor, value),
        };
        self.depth -= 1;
        message
    }

    fn fields(&mut self, descriptor: &MessageDescriptor, value: &mut Value) -> Option<DynamicMessage> {
        let Value::Object(object) = value else {
            self.problem(format!(
                "expected an object ({}), found {}",
                descriptor.full_name(),
                describe(value)
            ));
            return None;
        };
        Some(self.object(descriptor, object, &[]))
    }

    /// Reads the fields of a message; `skipped` names keys that are not fields.
    fn object(
        &mut self,
        descriptor: &MessageDescriptor,
        object: &mut Map<String, Value>,
        skipped: &[&str],
    ) -> DynamicMessage {
        let mut message = DynamicMessage::with_capacity(descriptor.clone(), object.len());
        // Field numbers and the spellings that set them.
        let mut seen: Vec<(u32, &str)> = Vec::with_capacity(object.len());
        for (key, value) in object.iter_mut() {
            if skipped.contains(&key.as_str()) {
                continue;
            }
            let Some(field) =
                descriptor.get_field_by_name(key).or_else(|| descriptor.get_field_by_json_name(key))
            else {
                let back = self.path.field(key);
                self.unknown(unknown_field(descriptor, key));
                self.path.back(back);
                continue;
            };
            if value.is_null() && !null_is_a_value(&field) {
                continue;
            }
            let back = self.path.field(field.name());
            if let Some((_, other)) = seen.iter().find(|(number, _)| *number == field.number()) {
                self.problem(format!("is set twice, as {other} and as {key}"));
            } else {
                seen.push((field.number(), key));
                self.check_oneof(&field, &message);
                if let Some(value) = self.field(&field, value) {
                    self.store(&mut message, &field, value);
                }
            }
            self.path.back(back);
        }
        message
    }

    fn store(&mut self, message: &mut DynamicMessage, field: &FieldDescriptor, value: Field) {
        if let Err(error) = message.try_set_field(field, value) {
            self.problem(format!("cannot be set: {error}"));
        }
    }

    fn check_oneof(&mut self, field: &FieldDescriptor, message: &DynamicMessage) {
        let Some(oneof) = field.containing_oneof() else {
            return;
        };
        let other = oneof.fields().find(|f| f.number() != field.number() && message.has_field(f));
        if let Some(other) = other {
            self.problem(format!("cannot be set together with {} (only one {})", other.name(), oneof.name()));
        }
    }

    fn field(&mut self, field: &FieldDescriptor, value: &mut Value) -> Option<Field> {
        let kind = field.kind();
        if field.is_map() {
            return self.map(&kind, value);
        }
        if !field.is_list() {
            return self.single(&kind, value);
        }
        let Value::Array(items) = value else {
            // One value where a list is expected is a list of one.
            return self.single(&kind, value).map(|value| Field::List(vec![value]));
        };
        let mut list = Vec::with_capacity(items.len());
        for (index, item) in items.iter_mut().enumerate() {
            let back = self.path.index(index);
            // What has been read is let go: of a large configuration only one form is held whole.
            list.extend(self.single(&kind, &mut item.take()));
            self.path.back(back);
        }
        Some(Field::List(list))
    }

    fn map(&mut self, kind: &Kind, value: &mut Value) -> Option<Field> {
        let entry = kind.as_message()?;
        let (key_kind, value_kind) =
            (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
        let Value::Object(object) = value else {
            self.problem(format!("expected an object, found {}", describe(value)));
            return None;
        };
        let mut map = BTreeMap::new();
        for (key, value) in object.iter_mut() {
            let back = self.path.key(key);
            match map_key(&key_kind, key) {
                Ok(key) => {
                    if let Some(value) = self.single(&value_kind, value) {
                        map.insert(key, value);
                    }
                }
                Err(error) => self.problem(error),
            }
            self.path.back(back);
        }
        Some(Field::Map(map))
    }

    fn single(&mut self, kind: &Kind, value: &mut Value) -> Option<Field> {
        if let Kind::Message(descriptor) = kind {
            // A null element of a list is an empty message, as Envoy reads it.
            if value.is_null() && WellKnown::of(descriptor).is_none() {
                *value = Value::Object(Map::new());
            }
            return self.message(descriptor, value).map(Field::Message);
        }
        match scalar(kind, value, self.yaml) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(error);
                None
            }
        }
    }

    fn well_known(
        &mut self,
        known: WellKnown,
        descriptor: &MessageDescriptor,
        value: &mut Value,
    ) -> Option<DynamicMessage> {
        let result = match (known, &*value) {
            (WellKnown::Duration, Value::String(text)) => {
                well_known::parse_duration(text).map(|(s, n)| well_known::time(descriptor, s, n))
            }
            (WellKnown::Duration, Value::Number(n)) => {
                Err(format!("a duration needs its unit: expected {:?}, found {n}", format!("{n}s")))
            }
            (WellKnown::Timestamp, Value::String(text)) => {
                well_known::parse_timestamp(text).map(|(s, n)| well_known::time(descriptor, s, n))
            }
            (WellKnown::FieldMask, Value::String(text)) => Ok(well_known::field_mask(descriptor, text)),
            (WellKnown::Struct | WellKnown::Value | WellKnown::ListValue, value) => {
                well_known::structure(descriptor, value, MAX_DEPTH - self.depth)
            }
            // Envoy reads these from an object of their fields too.
            (_, Value::Object(_)) => return self.fields(descriptor, value),
            (WellKnown::Wrapper, value) => {
                let field = descriptor.get_field(1)?;
                scalar(&field.kind(), value, self.yaml).map(|value| {
                    let mut message = DynamicMessage::new(descriptor.clone());
                    well_known::set(&mut message, 1, value);
                    message
                })
            }
            (WellKnown::Duration, other) => {
                Err(format!("expected a duration such as 0.25s, found {}", describe(other)))
            }
            (WellKnown::Timestamp, other) => {
                Err(format!("expected a time such as 2030-01-31T23:59:59Z, found {}", describe(other)))
            }
            (_, other) => Err(format!("expected {}, found {}", descriptor.full_name(), describe(other))),
        };
        result.map_err(|error| self.problem(error)).ok()
    }

    fn any(&mut self, descriptor: &MessageDescriptor, value: &mut Value) -> Option<DynamicMessage> {
        let mut any = DynamicMessage::new(descriptor.clone());
        if value.as_object().is_some_and(is_empty_any) {
            return Some(any);
        }
        let content = self.any_content(value)?;
        well_known::set(&mut any, 1, Field::String(content.type_url));
        well_known::set(&mut any, 2, Field::Bytes(content.message.encode_to_vec().into()));
        Some(any)
    }

    /// What the JSON form of an `Any` holds. A `TypedStruct` of a known type becomes that type.
    pub(crate) fn any_content(&mut self, value: &mut Value) -> Option<Content> {
        let Value::Object(object) = value else {
            self.problem(format!("expected an object with an `@type`, found {}", describe(value)));
            return None;
        };
        let Some(type_url) = object.get("@type").cloned() else {
            self.problem("an `@type` is missing");
            return None;
        };
        let back = self.path.field("@type");
        let descriptor = self.resolve(&type_url);
        self.path.back(back);
        let (type_url, descriptor) = descriptor?;
        if TYPED_STRUCTS.contains(&descriptor.full_name()) {
            return self.typed_struct(type_url, &descriptor, object);
        }
        let message = self.content(&descriptor, value)?;
        Some(Content { type_url: type_url.to_owned(), message })
    }

    fn resolve<'v>(&mut self, type_url: &'v Value) -> Option<(&'v str, MessageDescriptor)> {
        let Some(url) = type_url.as_str() else {
            self.problem(format!("expected a type URL, found {}", describe(type_url)));
            return None;
        };
        let name = match url.rsplit_once('/') {
            Some((host, name)) if !host.is_empty() => name,
            _ => {
                self.problem(format!("{url:?} is no type URL, expected type.googleapis.com/NAME"));
                return None;
            }
        };
        let Some(descriptor) = pool().get_message_by_name(name) else {
            self.problem(format!("unknown type {name}"));
            return None;
        };
        Some((url, descriptor))
    }

    /// The message beside an `@type`: its fields, or its special form under `value`.
    fn content(&mut self, descriptor: &MessageDescriptor, value: &mut Value) -> Option<DynamicMessage> {
        let object = value.as_object_mut()?;
        if self.depth >= MAX_DEPTH {
            self.problem(format!("nested deeper than {MAX_DEPTH} levels"));
            return None;
        }
        self.depth += 1;
        let message = if WellKnown::of(descriptor).is_some_and(|known| known != WellKnown::Empty) {
            let extra = object.keys().find(|key| *key != "@type" && *key != "value");
            if let Some(extra) = extra {
                let back = self.path.field(extra);
                self.problem(format!("{} is given under `value` only", descriptor.full_name()));
                self.path.back(back);
            }
            let back = self.path.field("value");
            let message = match object.get_mut("value") {
                Some(value) => self.message(descriptor, value),
                None => Some(DynamicMessage::new(descriptor.clone())),
            };
            self.path.back(back);
            message
        } else {
            Some(self.object(descriptor, object, &["@type"]))
        };
        self.depth -= 1;
        message
    }

    fn typed_struct(
        &mut self,
        type_url: &str,
        descriptor: &MessageDescriptor,
        object: &mut Map<String, Value>,
    ) -> Option<Content> {
        let inner = ["type_url", "typeUrl"].iter().find_map(|key| object.get(*key)?.as_str());
        let inner = inner.map(ToOwned::to_owned);
        let inner_descriptor = inner.as_deref().and_then(|url| pool().get_message_by_name(last_segment(url)));
        let (Some(inner), Some(inner_descriptor)) = (inner, inner_descriptor) else {
            let message = self.object(descriptor, object, &["@type"]);
            return Some(Content { type_url: type_url.to_owned(), message });
        };
        // The wrapper's own keys are checked; its content is read as the type it names.
        let _ = self.object(descriptor, object, &["@type", "value"]);
        let mut empty = Value::Object(Map::new());
        let value = object.get_mut("value").filter(|v| !v.is_null()).unwrap_or(&mut empty);
        let back = self.path.field("value");
        let message = self.message(&inner_descriptor, value);
        self.path.back(back);
        let type_url =
            if inner.contains('/') { inner.to_owned() } else { format!("type.googleapis.com/{inner}") };
        Some(Content { type_url, message: message? })
    }
}

/// The message name in a type URL.
pub(crate) fn last_segment(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

/// Converts the structure in a `TypedStruct` to the message it names. `None`: the type is unknown.
pub(crate) fn convert_typed_struct(
    message: &DynamicMessage,
    root: &str,
) -> Option<Result<DynamicMessage, Vec<Problem>>> {
    let url = message.get_field_by_number(1)?;
    let descriptor = pool().get_message_by_name(last_segment(url.as_str()?))?;
    let value = message.get_field_by_number(2)?;
    let mut json = value.as_message().map_or(Value::Null, well_known::structure_to_json);
    let mut walk = Walk::new(root, false);
    walk.path.field("value");
    let inner = walk.message(&descriptor, &mut json);
    Some(walk.finish(inner))
}

/// `{}` and `{"@type": ""}`, which real route configurations hold.
fn is_empty_any(object: &Map<String, Value>) -> bool {
    object.iter().all(|(key, value)| key == "@type" && value.as_str().is_some_and(str::is_empty))
}

fn null_is_a_value(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(descriptor) => {
            !field.is_list() && !field.is_map() && WellKnown::of(&descriptor) == Some(WellKnown::Value)
        }
        Kind::Enum(descriptor) => descriptor.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

fn unknown_field(descriptor: &MessageDescriptor, key: &str) -> String {
    let near = descriptor
        .fields()
        .map(|field| (distance(field.name(), key), field.name().to_owned()))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len().min(key.len()) / 6);
    match near {
        Some((_, name)) => format!("unknown field of {}, did you mean {name}?", descriptor.full_name()),
        None => format!("unknown field of {}", descriptor.full_name()),
    }
}

/// Levenshtein distance, for suggestions.
fn distance(a: &str, b: &str) -> usize {
    // Far apart in length is far apart; this also bounds the work for an absurd key.
    if a.len().abs_diff(b.len()) > 8 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX - 1);
            let replaced = at(&row, j) + usize::from(from != *to);
            next.push(replaced.min(at(&row, j + 1) + 1).min(at(&next, j) + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}
