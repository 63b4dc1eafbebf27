//! A message with its fields as values.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use prost::bytes::{Buf, Bytes};
use prost::{DecodeError, Message};

use super::descriptor::{FieldDescriptor, Kind, MessageDescriptor};
use super::wire;

/// A message of a type that is known at run time only.
///
/// Fields that are absent, and plain scalars with their default value, are not stored.
#[derive(Clone, PartialEq)]
pub struct DynamicMessage {
    descriptor: MessageDescriptor,
    /// By number. Messages are many and have few fields: a tree would cost ten times the memory.
    fields: Vec<(u32, Value)>,
    #[allow(clippy::box_collection)] // Nearly always absent.
    unknown: Option<Box<Vec<UnknownField>>>,
}

/// A field that the message type does not have, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownField {
    pub(super) number: u32,
    /// Key and value.
    pub(super) bytes: Bytes,
}

impl UnknownField {
    /// The number on the wire.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }
}

/// Why a value cannot be stored in a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetFieldError {
    /// The message type has no such field.
    #[error("there is no such field")]
    NotFound,
    /// The value is of another type than the field.
    #[error("the value does not fit the field {0}")]
    WrongType(String),
}

impl DynamicMessage {
    /// A message without any field set.
    #[must_use]
    pub fn new(descriptor: MessageDescriptor) -> Self {
        Self { descriptor, fields: Vec::new(), unknown: None }
    }

    /// A message without any field set, with room for `count` of them.
    pub(crate) fn with_capacity(descriptor: MessageDescriptor, count: usize) -> Self {
        Self { descriptor, fields: Vec::with_capacity(count), unknown: None }
    }

    /// Where a field is, or where it would be.
    fn position(&self, number: u32) -> Result<usize, usize> {
        self.fields.binary_search_by_key(&number, |(number, _)| *number)
    }

    fn stored(&self, number: u32) -> Option<&Value> {
        self.fields.get(self.position(number).ok()?).map(|(_, value)| value)
    }

    fn remove(&mut self, number: u32) {
        if let Ok(position) = self.position(number) {
            self.fields.remove(position);
        }
    }

    /// Decodes a message from its wire form; of a field that comes twice the values are merged, as
    /// protobuf has it.
    ///
    /// # Errors
    /// The bytes are not well formed, a known field has another type on the wire, a string is not UTF-8,
    /// or messages are nested more than 100 deep.
    pub fn decode<B: Buf>(descriptor: MessageDescriptor, mut bytes: B) -> Result<Self, DecodeError> {
        let bytes = bytes.copy_to_bytes(bytes.remaining());
        let mut message = Self::new(descriptor);
        wire::merge(&mut message, &bytes, wire::MAX_DEPTH)?;
        Ok(message)
    }

    /// The wire form. Equal messages have equal bytes: map entries go by their keys.
    #[must_use]
    pub fn encode_to_vec(&self) -> Vec<u8> {
        let mut out = Vec::new();
        wire::encode(self, &mut out);
        out
    }

    /// The typed form.
    ///
    /// # Errors
    /// `M` is not the Rust type of this message.
    pub fn transcode_to<M: Message + Default>(&self) -> Result<M, DecodeError> {
        M::decode(self.encode_to_vec().as_slice())
    }

    /// Merges the fields of a typed message into this one.
    ///
    /// # Errors
    /// `M` is not the Rust type of this message.
    pub fn transcode_from<M: Message>(&mut self, message: &M) -> Result<(), DecodeError> {
        wire::merge(self, &Bytes::from(message.encode_to_vec()), wire::MAX_DEPTH)
    }

    /// The type.
    #[must_use]
    pub fn descriptor(&self) -> MessageDescriptor {
        self.descriptor.clone()
    }

    /// Whether the field is set.
    #[must_use]
    pub fn has_field(&self, field: &FieldDescriptor) -> bool {
        self.position(field.number()).is_ok()
    }

    /// The value of a field, or its default.
    #[must_use]
    pub fn get_field(&self, field: &FieldDescriptor) -> Cow<'_, Value> {
        self.stored(field.number()).map_or_else(|| Cow::Owned(Value::default_of(field)), Cow::Borrowed)
    }

    /// The value or default of the field with this number; `None` if the type has no such field.
    #[must_use]
    pub fn get_field_by_number(&self, number: u32) -> Option<Cow<'_, Value>> {
        self.descriptor.get_field(number).map(|field| self.get_field(&field))
    }

    /// The value or default of the field with this name; `None` if the type has no such field.
    #[must_use]
    pub fn get_field_by_name(&self, name: &str) -> Option<Cow<'_, Value>> {
        self.descriptor.get_field_by_name(name).map(|field| self.get_field(&field))
    }

    /// Sets a field, and clears the other fields of its oneof.
    ///
    /// # Errors
    /// The field is of another message type, or the value of another type than the field.
    pub fn try_set_field(&mut self, field: &FieldDescriptor, value: Value) -> Result<(), SetFieldError> {
        if field.parent_message() != self.descriptor {
            return Err(SetFieldError::NotFound);
        }
        if !value.fits(field) {
            return Err(SetFieldError::WrongType(field.full_name()));
        }
        self.store(field, value);
        Ok(())
    }

    /// Sets the field with this number.
    ///
    /// # Errors
    /// There is none, or the value is of another type.
    pub fn try_set_field_by_number(&mut self, number: u32, value: Value) -> Result<(), SetFieldError> {
        let field = self.descriptor.get_field(number).ok_or(SetFieldError::NotFound)?;
        self.try_set_field(&field, value)
    }

    /// Removes a field.
    pub fn clear_field(&mut self, field: &FieldDescriptor) {
        self.remove(field.number());
    }

    /// The fields that are set, in the order of their numbers.
    pub fn fields(&self) -> impl Iterator<Item = (FieldDescriptor, &Value)> {
        self.fields.iter().filter_map(|(number, value)| Some((self.descriptor.get_field(*number)?, value)))
    }

    /// The fields that the type does not have, in the order they came.
    pub fn unknown_fields(&self) -> impl Iterator<Item = &UnknownField> {
        self.unknown.iter().flat_map(|unknown| unknown.iter())
    }

    pub(super) fn push_unknown(&mut self, field: UnknownField) {
        self.unknown.get_or_insert_default().push(field);
    }

    /// The stored value of a field, for merging into it.
    pub(super) fn stored_mut(&mut self, number: u32) -> Option<&mut Value> {
        let position = self.position(number).ok()?;
        self.fields.get_mut(position).map(|(_, value)| value)
    }

    /// Stores a value that fits, unless absence says the same.
    pub(super) fn store(&mut self, field: &FieldDescriptor, value: Value) {
        if let Some(oneof) = field.containing_oneof() {
            for other in oneof.fields() {
                self.remove(other.number());
            }
        }
        if !field.supports_presence() && value.is_default() {
            self.remove(field.number());
            return;
        }
        match self.position(field.number()) {
            Ok(position) => self.fields[position].1 = value, // Found there.
            Err(position) => self.fields.insert(position, (field.number(), value)),
        }
    }
}

impl fmt::Debug for DynamicMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct(self.descriptor.name());
        for (field, value) in self.fields() {
            shown.field(field.name(), value);
        }
        shown.finish()
    }
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // named after what they hold
pub enum Value {
    Bool(bool),
    I32(i32),
    I64(i64),
    U32(u32),
    U64(u64),
    F32(f32),
    F64(f64),
    String(String),
    Bytes(Bytes),
    /// A value of an enum, which need not be one that the enum has.
    EnumNumber(i32),
    Message(DynamicMessage),
    List(Vec<Value>),
    Map(BTreeMap<MapKey, Value>),
}

/// The key of a map entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // named after what they hold
pub enum MapKey {
    Bool(bool),
    I32(i32),
    I64(i64),
    U32(u32),
    U64(u64),
    String(String),
}

macro_rules! accessors {
    ($($name:ident, $variant:ident, $type:ty, $doc:literal;)+) => {$(
        #[doc = $doc]
        #[must_use]
        pub fn $name(&self) -> Option<$type> {
            match self {
                Self::$variant(value) => Some(value.clone()),
                _ => None,
            }
        }
    )+};
}

macro_rules! borrowing_accessors {
    ($($name:ident, $variant:ident, $type:ty, $doc:literal;)+) => {$(
        #[doc = $doc]
        #[must_use]
        pub fn $name(&self) -> Option<&$type> {
            match self {
                Self::$variant(value) => Some(value),
                _ => None,
            }
        }
    )+};
}

#[allow(clippy::clone_on_copy)] // one macro for all
impl Value {
    accessors! {
        as_bool, Bool, bool, "The boolean, if it is one.";
        as_i32, I32, i32, "The signed 32-bit integer, if it is one.";
        as_i64, I64, i64, "The signed 64-bit integer, if it is one.";
        as_u32, U32, u32, "The unsigned 32-bit integer, if it is one.";
        as_u64, U64, u64, "The unsigned 64-bit integer, if it is one.";
        as_f32, F32, f32, "The 32-bit float, if it is one.";
        as_f64, F64, f64, "The 64-bit float, if it is one.";
        as_enum_number, EnumNumber, i32, "The number of an enum value, if it is one.";
    }

    borrowing_accessors! {
        as_str, String, str, "The string, if it is one.";
        as_bytes, Bytes, Bytes, "The bytes, if it is some.";
        as_message, Message, DynamicMessage, "The message, if it is one.";
        as_list, List, [Value], "The list, if it is one.";
        as_map, Map, BTreeMap<MapKey, Value>, "The map, if it is one.";
    }

    /// The same value as the key of a map entry; `None` for types that cannot be one.
    #[must_use]
    pub fn into_map_key(self) -> Option<MapKey> {
        Some(match self {
            Self::Bool(value) => MapKey::Bool(value),
            Self::I32(value) => MapKey::I32(value),
            Self::I64(value) => MapKey::I64(value),
            Self::U32(value) => MapKey::U32(value),
            Self::U64(value) => MapKey::U64(value),
            Self::String(value) => MapKey::String(value),
            _ => return None,
        })
    }

    /// The default value of a field.
    #[must_use]
    pub fn default_of(field: &FieldDescriptor) -> Self {
        if field.is_map() {
            Self::Map(BTreeMap::new())
        } else if field.is_list() {
            Self::List(Vec::new())
        } else {
            Self::default_of_kind(&field.kind())
        }
    }

    pub(super) fn default_of_kind(kind: &Kind) -> Self {
        match kind {
            Kind::Double => Self::F64(0.0),
            Kind::Float => Self::F32(0.0),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Self::I32(0),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Self::I64(0),
            Kind::Uint32 | Kind::Fixed32 => Self::U32(0),
            Kind::Uint64 | Kind::Fixed64 => Self::U64(0),
            Kind::Bool => Self::Bool(false),
            Kind::String => Self::String(String::new()),
            Kind::Bytes => Self::Bytes(Bytes::new()),
            Kind::Message(descriptor) => Self::Message(DynamicMessage::new(descriptor.clone())),
            // Proto3 enums start with the value 0.
            Kind::Enum(_) => Self::EnumNumber(0),
        }
    }

    fn is_default(&self) -> bool {
        match self {
            Self::Bool(value) => !value,
            Self::I32(value) | Self::EnumNumber(value) => *value == 0,
            Self::I64(value) => *value == 0,
            Self::U32(value) => *value == 0,
            Self::U64(value) => *value == 0,
            // Minus zero is not the default.
            Self::F32(value) => value.to_bits() == 0,
            Self::F64(value) => value.to_bits() == 0,
            Self::String(value) => value.is_empty(),
            Self::Bytes(value) => value.is_empty(),
            Self::List(value) => value.is_empty(),
            Self::Map(value) => value.is_empty(),
            Self::Message(_) => false,
        }
    }

    fn fits(&self, field: &FieldDescriptor) -> bool {
        let kind = field.kind();
        match self {
            Self::List(items) => field.is_list() && items.iter().all(|item| item.fits_kind(&kind)),
            Self::Map(entries) if field.is_map() => kind.as_message().is_some_and(|entry| {
                let value = entry.map_entry_value_field().kind();
                entries.values().all(|item| item.fits_kind(&value))
            }),
            Self::Map(_) => false,
            single => !field.is_list() && !field.is_map() && single.fits_kind(&kind),
        }
    }

    fn fits_kind(&self, kind: &Kind) -> bool {
        match (self, kind) {
            (Self::Message(message), Kind::Message(descriptor)) => message.descriptor == *descriptor,
            (Self::Message(_), _) | (_, Kind::Message(_)) => false,
            (value, kind) => {
                std::mem::discriminant(value) == std::mem::discriminant(&Self::default_of_kind(kind))
            }
        }
    }
}

impl MapKey {
    /// The string, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(key) => Some(key),
            _ => None,
        }
    }
}

impl From<MapKey> for Value {
    fn from(key: MapKey) -> Self {
        match key {
            MapKey::Bool(value) => Self::Bool(value),
            MapKey::I32(value) => Self::I32(value),
            MapKey::I64(value) => Self::I64(value),
            MapKey::U32(value) => Self::U32(value),
            MapKey::U64(value) => Self::U64(value),
            MapKey::String(value) => Self::String(value),
        }
    }
}
