//! Messages by descriptor instead of by Rust type.
//!
//! In: tables that the build script writes from the `.proto` definitions, and messages as bytes or as
//! JSON. Out: messages whose fields can be walked, checked and set by name or number. The tables are
//! constants: knowing a thousand message types costs no memory until one is used, and no time at start.

mod descriptor;
mod message;
mod table;
mod wire;

pub use descriptor::{EnumDescriptor, EnumValue, FieldDescriptor, Kind, MessageDescriptor, OneofDescriptor};
pub use message::{DynamicMessage, MapKey, SetFieldError, UnknownField, Value};

/// Every message type this build knows.
#[derive(Debug)]
pub struct Pool(());

static POOL: Pool = Pool(());

/// Descriptors of every known message: those with Rust types in [`crate::pb`] and those that are only
/// recognised, so that an error can tell "known but not supported" from "unknown".
#[must_use]
pub fn pool() -> &'static Pool {
    &POOL
}

impl Pool {
    /// The message type of this full name, without a leading dot.
    #[must_use]
    pub fn get_message_by_name(&self, full_name: &str) -> Option<MessageDescriptor> {
        let index = table::MESSAGES.binary_search_by(|m| m.name.cmp(full_name)).ok()?;
        table::MESSAGES.get(index).map(MessageDescriptor)
    }

    /// All message types in the order of their names, entries of maps included.
    pub fn all_messages(&self) -> impl ExactSizeIterator<Item = MessageDescriptor> {
        table::MESSAGES.iter().map(MessageDescriptor)
    }
}
