//! The descriptors of every message type this build knows.

use std::collections::HashSet;
use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, MessageDescriptor};

/// Written by the build script from its own compiler's output.
static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    // The bytes are fixed at build time, so this either always works or never; a unit test decides.
    #[allow(clippy::expect_used)]
    DescriptorPool::decode(DESCRIPTORS).expect("the embedded descriptor set is complete")
});

/// Descriptors of every known message: those with Rust types in [`crate::pb`] and those that are only
/// recognised, so that an error can tell "known but not supported" from "unknown".
#[must_use]
pub fn pool() -> &'static DescriptorPool {
    &POOL
}

/// `MESSAGE FIELD`, one a line.
static NEWER: LazyLock<HashSet<&'static str>> =
    LazyLock::new(|| include_str!(concat!(env!("OUT_DIR"), "/newer.txt")).lines().collect());

/// Whether `field` is newer than the Rust type of its message: it is read, checked and dumped, but only
/// the reflective form of the message holds it.
#[must_use]
pub fn is_newer(field: &FieldDescriptor) -> bool {
    NEWER.contains(format!("{} {}", field.parent_message().full_name(), field.name()).as_str())
}

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
