//! Extension configurations: what an `Any` holds, and whether it is well formed.
//!
//! In: an `Any` from a file or a control plane. Out: the typed or reflective message in it. Both
//! `TypedStruct` packages are looked through: an `Any` of a `TypedStruct` of type X counts as an X.

use crate::reflect::{DynamicMessage, Kind, Value as Field};
use prost::encoding::{decode_key, decode_varint, skip_field, DecodeContext, WireType};
use prost::{Message, Name};

use crate::load::MAX_DEPTH;
use crate::pb::google::protobuf::Any;
use crate::problem::{Path, Problem};
use crate::reflect::pool;
use crate::support::numbers;
use crate::walk::{convert_typed_struct, last_segment, TYPED_STRUCTS};
use crate::well_known::WellKnown;

/// Why an `Any` does not hold the message that was asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UnpackError {
    /// It holds another type, or none (`found` is empty).
    #[error("expected the type {expected}, found {}", if found.is_empty() { "none" } else { found })]
    WrongType {
        /// The full name of the type asked for.
        expected: String,
        /// The full name of the type in the `Any`.
        found: String,
    },
    /// Its bytes are not a message of the type it names.
    #[error("the bytes are no valid {type_name}: {source}")]
    Malformed {
        /// The full name of the type.
        type_name: String,
        /// What the decoder says.
        source: prost::DecodeError,
    },
    /// It is a `TypedStruct` whose content does not fit the type it names.
    #[error("the structure is no valid {type_name}: {}", list(problems))]
    Unfit {
        /// The full name of the type.
        type_name: String,
        /// Every problem, with paths that start at the `TypedStruct`.
        problems: Vec<Problem>,
    },
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The message of type `M` that `any` holds.
///
/// # Errors
/// The `Any` holds another type, or bytes or a structure that is no valid `M`.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, UnpackError> {
    let expected = M::full_name();
    let found = type_of(any);
    if found != expected {
        return Err(UnpackError::WrongType { expected, found: found.to_owned() });
    }
    let malformed = |source| UnpackError::Malformed { type_name: expected.clone(), source };
    if last_segment(&any.type_url) == expected {
        return M::decode(any.value.as_slice()).map_err(malformed);
    }
    match expand(&any.type_url, &any.value, "") {
        Expanded::Message(message) => message.transcode_to().map_err(malformed),
        Expanded::Invalid(problems) => Err(UnpackError::Unfit { type_name: expected, problems }),
        _ => Err(UnpackError::WrongType { found: found.to_owned(), expected }),
    }
}

/// The full name of the type in `any`: the last segment of its type URL, or, for a `TypedStruct`, of
/// the type URL inside. Empty for an empty `Any`.
#[must_use]
pub fn type_of(any: &Any) -> &str {
    inner_type(last_segment(&any.type_url), &any.value)
}

fn inner_type<'a>(name: &'a str, value: &'a [u8]) -> &'a str {
    if !TYPED_STRUCTS.contains(&name) {
        return name;
    }
    match string_field(value, 1) {
        Some(url) if !url.is_empty() => last_segment(url),
        _ => name,
    }
}

/// A string field of an encoded message, without decoding the rest.
fn string_field(mut bytes: &[u8], number: u32) -> Option<&str> {
    let mut found = None;
    while !bytes.is_empty() {
        let (tag, wire_type) = decode_key(&mut bytes).ok()?;
        if tag == number && wire_type == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
            let (text, rest) = bytes.split_at_checked(length)?;
            found = Some(std::str::from_utf8(text).ok()?);
            bytes = rest;
        } else {
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).ok()?;
        }
    }
    found
}

/// What an `Any` holds, in reflective form.
#[derive(Debug, Clone)]
pub enum Expanded {
    /// Nothing: no type URL.
    Empty,
    /// A message of a known type. A `TypedStruct` of a known type has become that type.
    Message(DynamicMessage),
    /// A type that this build does not know; its full name.
    Unknown(String),
    /// A `TypedStruct` that names a type which this build does not know, or none.
    Opaque {
        /// The full name of the type it names, empty if none.
        type_name: String,
        /// The `TypedStruct` itself.
        message: DynamicMessage,
    },
    /// Bytes or a structure that do not fit the type named.
    Invalid(Vec<Problem>),
}

/// What the `google.protobuf.Any` in `any` holds; paths of problems start with `root_path`.
#[must_use]
pub fn expand_any(any: &DynamicMessage, root_path: &str) -> Expanded {
    let (url, value) = (any.get_field_by_number(1), any.get_field_by_number(2));
    let url = url.as_deref().and_then(Field::as_str).unwrap_or_default();
    let value = value.as_deref().and_then(Field::as_bytes);
    expand(url, value.map(AsRef::as_ref).unwrap_or_default(), root_path)
}

fn expand(type_url: &str, value: &[u8], root_path: &str) -> Expanded {
    let name = last_segment(type_url);
    if name.is_empty() {
        return Expanded::Empty;
    }
    let Some(descriptor) = pool().get_message_by_name(name) else {
        return Expanded::Unknown(name.to_owned());
    };
    let message = match DynamicMessage::decode(descriptor, value) {
        Ok(message) => message,
        Err(error) => {
            let problem = Problem::new(root_path, format!("the bytes are no valid {name}: {error}"));
            return Expanded::Invalid(vec![problem]);
        }
    };
    if !TYPED_STRUCTS.contains(&name) {
        return Expanded::Message(message);
    }
    match convert_typed_struct(&message, root_path) {
        Some(Ok(inner)) => Expanded::Message(inner),
        Some(Err(problems)) => Expanded::Invalid(problems),
        None => {
            let named = string_field(value, 1).map(last_segment).unwrap_or_default();
            Expanded::Opaque { type_name: named.to_owned(), message }
        }
    }
}

/// Decodes a resource that arrived as protobuf and looks through all of it, extensions included.
///
/// # Errors
/// Every unknown type, unknown field (by number, since protobuf has no names for them) and undecodable
/// part, with paths that start with `root_path`.
pub fn check_any(any: &Any, root_path: &str) -> Result<DynamicMessage, Vec<Problem>> {
    let mut check = Check::new(root_path);
    let message = check.expanded(expand(&any.type_url, &any.value, root_path), 0);
    match message {
        Some(message) if check.found.is_empty() => Ok(message),
        None if check.found.is_empty() => Err(vec![Problem::new(root_path, "a type URL is missing")]),
        _ => Err(check.found.into_iter().map(|(_, problem)| problem).collect()),
    }
}

/// What is wrong in a part that a [`check_message`] looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// A field that its message does not have.
    UnknownField,
    Other,
}

/// Looks through a whole message that was decoded, extensions included; everything found, in order.
pub(crate) fn check_message(message: &DynamicMessage) -> Vec<(Finding, Problem)> {
    let mut check = Check::new("");
    check.message(message, 0);
    check.found
}

struct Check {
    path: Path,
    found: Vec<(Finding, Problem)>,
}

impl Check {
    fn new(root_path: &str) -> Self {
        Self { path: Path::new(root_path), found: Vec::new() }
    }

    fn problem(&mut self, message: String) {
        self.found.push((Finding::Other, Problem::new(self.path.as_str(), message)));
    }

    fn expanded(&mut self, expanded: Expanded, depth: usize) -> Option<DynamicMessage> {
        match expanded {
            Expanded::Empty => None,
            // What a structure means is up to whoever knows the type it names.
            Expanded::Message(message) | Expanded::Opaque { message, .. } => {
                self.message(&message, depth);
                Some(message)
            }
            Expanded::Unknown(name) => {
                self.problem(format!("unknown type {name}"));
                None
            }
            Expanded::Invalid(problems) => {
                self.found.extend(problems.into_iter().map(|problem| (Finding::Other, problem)));
                None
            }
        }
    }

    fn message(&mut self, message: &DynamicMessage, depth: usize) {
        if depth >= MAX_DEPTH {
            self.problem(format!("nested deeper than {MAX_DEPTH} levels"));
            return;
        }
        let descriptor = message.descriptor();
        if WellKnown::of(&descriptor) == Some(WellKnown::Any) {
            let expanded = expand_any(message, self.path.as_str());
            self.expanded(expanded, depth + 1);
            return;
        }
        for unknown in message.unknown_fields() {
            let text = format!("unknown field number {} of {}", unknown.number(), descriptor.full_name());
            self.found.push((Finding::UnknownField, Problem::new(self.path.as_str(), text)));
        }
        for (field, value) in message.fields() {
            if let Kind::Enum(descriptor) = field.kind() {
                for number in numbers(value).into_iter().filter(|n| descriptor.get_value(*n).is_none()) {
                    let back = self.path.field(field.name());
                    self.problem(format!("{number} is no {}", descriptor.full_name()));
                    self.path.back(back);
                }
            }
            let is_message = match field.kind() {
                Kind::Message(inner) if field.is_map() => {
                    matches!(inner.map_entry_value_field().kind(), Kind::Message(_))
                }
                Kind::Message(_) => true,
                _ => false,
            };
            if is_message {
                let back = self.path.field(field.name());
                self.value(value, depth + 1);
                self.path.back(back);
            }
        }
    }

    fn value(&mut self, value: &Field, depth: usize) {
        match value {
            Field::Message(message) => self.message(message, depth),
            Field::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let back = self.path.index(index);
                    self.value(item, depth);
                    self.path.back(back);
                }
            }
            Field::Map(entries) => {
                for (key, item) in crate::json::sorted(entries) {
                    let back = self.path.key(&key);
                    self.value(item, depth);
                    self.path.back(back);
                }
            }
            _ => {}
        }
    }
}
