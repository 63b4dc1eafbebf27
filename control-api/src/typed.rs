//! Between typed and reflective messages.

use prost::{Message, Name};

use crate::reflect::{pool, DynamicMessage, MessageDescriptor};

/// The descriptor of a typed message, or `None` for a type that no xDS package holds.
#[must_use]
pub fn descriptor<M: Name>() -> Option<MessageDescriptor> {
    pool().get_message_by_name(&M::full_name())
}

/// The reflective form of a typed message, or `None` for a type that no xDS package holds.
#[must_use]
pub fn to_dynamic<M: Message + Name>(message: &M) -> Option<DynamicMessage> {
    let mut dynamic = DynamicMessage::new(descriptor::<M>()?);
    dynamic.transcode_from(message).ok()?;
    Some(dynamic)
}
