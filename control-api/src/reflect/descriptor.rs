//! Handles on the tables: what a message, field, oneof or enum is called and consists of.

use std::fmt;

use super::table::{self, Shape, Type};

macro_rules! identity {
    ($type:ident, |$self:ident| $key:expr) => {
        impl PartialEq for $type {
            fn eq(&self, other: &Self) -> bool {
                let key = |$self: &Self| $key;
                key(self) == key(other)
            }
        }

        impl Eq for $type {}

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($type)).field(&self.full_name()).finish()
            }
        }
    };
}

/// A message type.
#[derive(Clone)]
pub struct MessageDescriptor(pub(super) &'static table::Message);

identity!(MessageDescriptor, |m| std::ptr::from_ref(m.0));

impl MessageDescriptor {
    /// The name with its package, such as `envoy.config.cluster.v3.Cluster`.
    #[must_use]
    pub fn full_name(&self) -> &'static str {
        self.0.name
    }

    /// The name without its package or the message around it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        last_part(self.0.name)
    }

    /// The fields, in the order of their numbers.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = FieldDescriptor> {
        let message = self.0;
        message.fields.iter().map(move |field| FieldDescriptor { message, field })
    }

    /// The oneofs, in the order of their declaration.
    pub fn oneofs(&self) -> impl ExactSizeIterator<Item = OneofDescriptor> {
        let message = self.0;
        message
            .oneofs
            .iter()
            .zip(0u8..)
            .map(move |(_, index)| OneofDescriptor { message, index })
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// The field of this number.
    #[must_use]
    pub fn get_field(&self, number: u32) -> Option<FieldDescriptor> {
        let index = self.0.fields.binary_search_by_key(&number, |f| f.number).ok()?;
        self.0.fields.get(index).map(|field| FieldDescriptor { message: self.0, field })
    }

    /// The field of this name, as in the `.proto` definition.
    #[must_use]
    pub fn get_field_by_name(&self, name: &str) -> Option<FieldDescriptor> {
        self.0.fields.iter().find(|f| f.name == name).map(|field| FieldDescriptor { message: self.0, field })
    }

    /// The field of this lower camel case name.
    #[must_use]
    pub fn get_field_by_json_name(&self, name: &str) -> Option<FieldDescriptor> {
        self.0
            .fields
            .iter()
            .find(|f| f.json_name == name)
            .map(|field| FieldDescriptor { message: self.0, field })
    }

    /// Whether this is an entry of a map field, made up by the protobuf compiler.
    #[must_use]
    pub fn is_map_entry(&self) -> bool {
        self.0.map_entry
    }

    /// The key of a map entry; field 1 of any message.
    ///
    /// # Panics
    /// If the message has no such field; every map entry has.
    #[must_use]
    pub fn map_entry_key_field(&self) -> FieldDescriptor {
        FieldDescriptor { message: self.0, field: &self.0.fields[0] }
    }

    /// The value of a map entry; the second field of any message.
    ///
    /// # Panics
    /// If the message has no such field; every map entry has.
    #[must_use]
    pub fn map_entry_value_field(&self) -> FieldDescriptor {
        FieldDescriptor { message: self.0, field: &self.0.fields[1] }
    }
}

/// A field of a message type.
#[derive(Clone)]
pub struct FieldDescriptor {
    message: &'static table::Message,
    field: &'static table::Field,
}

identity!(FieldDescriptor, |f| std::ptr::from_ref(f.field));

impl FieldDescriptor {
    /// The name of the message, a dot, and the name of the field.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.message.name, self.field.name)
    }

    /// The name as in the `.proto` definition.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.field.name
    }

    /// The name in lower camel case.
    #[must_use]
    pub fn json_name(&self) -> &'static str {
        self.field.json_name
    }

    /// The number on the wire.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.field.number
    }

    /// The message that has this field.
    #[must_use]
    pub fn parent_message(&self) -> MessageDescriptor {
        MessageDescriptor(self.message)
    }

    /// The type of its value, of each of its values, or, for a map, of its entries.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::of(self.field.kind)
    }

    /// Whether it holds a list.
    #[must_use]
    pub fn is_list(&self) -> bool {
        self.field.shape == Shape::Repeated && !self.is_map()
    }

    /// Whether it holds a map.
    #[must_use]
    pub fn is_map(&self) -> bool {
        self.field.shape == Shape::Repeated && matches!(self.kind(), Kind::Message(m) if m.is_map_entry())
    }

    /// Whether being absent differs from having the default value.
    #[must_use]
    pub fn supports_presence(&self) -> bool {
        self.field.shape == Shape::Present
    }

    /// The oneof it belongs to.
    #[must_use]
    pub fn containing_oneof(&self) -> Option<OneofDescriptor> {
        self.field.oneof.map(|index| OneofDescriptor { message: self.message, index })
    }

    /// Whether its message has gained it since the `xds-api` crate was made: code that takes a message
    /// as a whole may not know of it.
    #[must_use]
    pub fn is_newer(&self) -> bool {
        self.field.newer
    }
}

/// A group of fields of which at most one is set.
#[derive(Clone)]
pub struct OneofDescriptor {
    message: &'static table::Message,
    index: u8,
}

identity!(OneofDescriptor, |o| (std::ptr::from_ref(o.message), o.index));

impl OneofDescriptor {
    /// The name of the message, a dot, and the name of the oneof.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.message.name, self.name())
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.message.oneofs.get(usize::from(self.index)).copied().unwrap_or_default()
    }

    /// Its fields, in the order of their numbers.
    pub fn fields(&self) -> impl Iterator<Item = FieldDescriptor> {
        let (message, index) = (self.message, self.index);
        message
            .fields
            .iter()
            .filter(move |field| field.oneof == Some(index))
            .map(move |field| FieldDescriptor { message, field })
    }
}

/// An enum type.
#[derive(Clone)]
pub struct EnumDescriptor(&'static table::Enum);

identity!(EnumDescriptor, |e| std::ptr::from_ref(e.0));

impl EnumDescriptor {
    /// The name with its package.
    #[must_use]
    pub fn full_name(&self) -> &'static str {
        self.0.name
    }

    /// The values, in the order of their declaration.
    pub fn values(&self) -> impl ExactSizeIterator<Item = EnumValue> {
        self.0.values.iter().map(|(name, number)| EnumValue { name, number: *number })
    }

    /// The first value of this number.
    #[must_use]
    pub fn get_value(&self, number: i32) -> Option<EnumValue> {
        self.values().find(|value| value.number == number)
    }

    /// The value of this name.
    #[must_use]
    pub fn get_value_by_name(&self, name: &str) -> Option<EnumValue> {
        self.values().find(|value| value.name == name)
    }
}

/// One value of an enum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnumValue {
    name: &'static str,
    number: i32,
}

impl EnumValue {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The number on the wire.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.number
    }
}

/// The type of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // named as in protobuf
pub enum Kind {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    String,
    Bytes,
    Message(MessageDescriptor),
    Enum(EnumDescriptor),
}

impl Kind {
    fn of(kind: Type) -> Self {
        match kind {
            Type::Double => Self::Double,
            Type::Float => Self::Float,
            Type::Int32 => Self::Int32,
            Type::Int64 => Self::Int64,
            Type::Uint32 => Self::Uint32,
            Type::Uint64 => Self::Uint64,
            Type::Sint32 => Self::Sint32,
            Type::Sint64 => Self::Sint64,
            Type::Fixed32 => Self::Fixed32,
            Type::Fixed64 => Self::Fixed64,
            Type::Sfixed32 => Self::Sfixed32,
            Type::Sfixed64 => Self::Sfixed64,
            Type::Bool => Self::Bool,
            Type::String => Self::String,
            Type::Bytes => Self::Bytes,
            // The build script writes positions of the tables that it writes; a unit test visits them all.
            Type::Message(index) => Self::Message(MessageDescriptor(&table::MESSAGES[usize::from(index)])),
            Type::Enum(index) => Self::Enum(EnumDescriptor(&table::ENUMS[usize::from(index)])),
        }
    }

    /// The message type, if it is one.
    #[must_use]
    pub fn as_message(&self) -> Option<&MessageDescriptor> {
        match self {
            Self::Message(descriptor) => Some(descriptor),
            _ => None,
        }
    }

    /// The enum type, if it is one.
    #[must_use]
    pub fn as_enum(&self) -> Option<&EnumDescriptor> {
        match self {
            Self::Enum(descriptor) => Some(descriptor),
            _ => None,
        }
    }
}

fn last_part(name: &'static str) -> &'static str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}
