//! The xDS v3 surface that both ends speak: messages, their JSON and YAML form, and checks that name
//! the field at fault.
//!
//! In: configuration text, or resources as protobuf or JSON. Out: typed messages ([`pb`]) together with
//! their reflective form, or every problem found, each with its path. Nothing here decides what a
//! configuration *means*; that is the work of whoever compiles it.

mod any;
pub mod client;
pub mod control;
mod json;
mod load;
mod problem;
pub mod reflect;
mod scalar;
pub mod server;
pub mod support;
mod text;
mod typed;
mod walk;
mod watch;
mod well_known;

pub use any::{check_any, expand_any, type_of, unpack, Expanded, UnpackError};
pub use json::{message_to_json, to_json};
pub use load::{
    load, load_binary, load_resource, load_tolerant, load_value, Loaded, Resource, MAX_DEPTH, MAX_TEXT_BYTES,
};
pub use problem::Problem;
pub use reflect::{pool, DynamicMessage};
pub use text::{parse as parse_value, Format};
pub use typed::{descriptor, to_dynamic};

/// The generated message types, in modules named after their protobuf packages.
///
/// The definitions are those of the `xds-api` crate, joined with this crate's `proto/` folder.
#[allow(missing_docs, unused_imports, rustdoc::all, clippy::all, clippy::pedantic)]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/pb.rs"));
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value)] // test values are written where they are passed
mod tests;
