//! The shape of the tables, and the tables themselves.

/// One message type.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) name: &'static str,
    pub(super) map_entry: bool,
    /// In the order of their numbers.
    pub(super) fields: &'static [Field],
    pub(super) oneofs: &'static [&'static str],
}

/// One field.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) json_name: &'static str,
    pub(super) number: u32,
    pub(super) kind: Type,
    pub(super) shape: Shape,
    /// Position in the message's `oneofs`.
    pub(super) oneof: Option<u8>,
    /// Comes from `proto/newer/`.
    pub(super) newer: bool,
}

/// How many values a field has, and whether absence differs from the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Plain,
    Present,
    Repeated,
}

/// The type of a value; positions are those in [`MESSAGES`] and [`ENUMS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code)] // complete, though no definition uses every number format at present
pub(super) enum Type {
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
    Message(u16),
    Enum(u16),
}

/// One enum type.
#[derive(Debug)]
pub(super) struct Enum {
    pub(super) name: &'static str,
    /// In the order of their declaration.
    pub(super) values: &'static [(&'static str, i32)],
}

include!(concat!(env!("OUT_DIR"), "/tables.rs"));
