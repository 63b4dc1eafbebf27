//! The xDS v3 surface that both ends speak: messages, their JSON and YAML form, and checks that name
//! the field at fault.
//!
//! In: configuration text, or resources as protobuf or JSON. Out: typed messages ([`pb`]) together with
//! their reflective form, or every problem found, each with its path. Nothing here decides what a
//! configuration *means*; that is the work of whoever compiles it.

mod pool;

pub use pool::pool;

/// The generated message types, in modules named after their protobuf packages.
///
/// One tree holds both the types of the `xds-api` crate and the ones compiled from this crate's
/// `proto/` folder.
#[allow(missing_docs, unused_imports, rustdoc::all, clippy::all, clippy::pedantic)]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/pb.rs"));
}
