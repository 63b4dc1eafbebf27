//! The descriptors of every message type this build knows.

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

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
