//! Configuration text, or one resource as JSON, to messages.
//!
//! In: YAML or JSON. Out: the typed message and its reflective form, or every problem at once. As
//! lenient as Envoy's loader where real configurations need it (both spellings of field names,
//! lower-case enum names, one object where a list is expected, numbers in quotes), strict otherwise.

use crate::reflect::DynamicMessage;
use prost::{Message, Name};
use serde_json::Value;

use crate::any::{check_message, Finding};
use crate::pb::google::protobuf::Any;
use crate::problem::Problem;
use crate::text::{self, Format};
use crate::typed::descriptor;
use crate::walk::Walk;

/// The longest configuration text that is read, in bytes.
pub const MAX_TEXT_BYTES: usize = 64 * 1024 * 1024;

/// The deepest nesting of messages, lists and extension configurations that is followed.
pub const MAX_DEPTH: usize = 128;

/// A configuration that was read without a problem.
#[derive(Debug, Clone)]
pub struct Loaded<M> {
    /// The typed message.
    pub message: M,
    /// The same message for reflection: support checks, dumps.
    pub dynamic: DynamicMessage,
}

/// One resource that was read without a problem.
#[derive(Debug, Clone)]
pub struct Resource {
    /// The resource as a control plane would have sent it.
    pub any: Any,
    /// Its content.
    pub dynamic: DynamicMessage,
}

/// Reads a whole configuration, such as a bootstrap.
///
/// # Errors
/// Every problem found. Text that is too long, not UTF-8, not YAML or JSON at all gives exactly one,
/// with an empty path.
pub fn load<M: Message + Name + Default>(
    text: impl AsRef<[u8]>,
    format: Format,
) -> Result<Loaded<M>, Vec<Problem>> {
    let value = text::parse(text.as_ref(), format).map_err(|problem| vec![problem])?;
    load_as(value, format != Format::Json)
}

/// Like [`load`], for a value that is parsed already. A top-level `@type` may be absent.
///
/// # Errors
/// Every problem found.
pub fn load_value<M: Message + Name + Default>(value: &Value) -> Result<Loaded<M>, Vec<Problem>> {
    load_as(value.clone(), false)
}

/// Like [`load`], but unknown fields are skipped and returned beside the message.
///
/// # Errors
/// Every other problem found.
pub fn load_tolerant<M: Message + Name + Default>(
    text: impl AsRef<[u8]>,
    format: Format,
) -> Result<(Loaded<M>, Vec<Problem>), Vec<Problem>> {
    let value = text::parse(text.as_ref(), format).map_err(|problem| vec![problem])?;
    let mut walk = Walk::new("", format != Format::Json);
    walk.tolerate_unknown();
    load_with(walk, value)
}

fn load_as<M: Message + Name + Default>(value: Value, yaml: bool) -> Result<Loaded<M>, Vec<Problem>> {
    load_with(Walk::new("", yaml), value).map(|(loaded, _)| loaded)
}

fn load_with<M: Message + Name + Default>(
    mut walk: Walk,
    mut value: Value,
) -> Result<(Loaded<M>, Vec<Problem>), Vec<Problem>> {
    let Some(descriptor) = descriptor::<M>() else {
        return Err(vec![Problem::new("", format!("unknown type {}", M::full_name()))]);
    };
    let dynamic = walk.root(&descriptor, &mut value);
    drop(value);
    let unknown = walk.take_unknown();
    let dynamic = walk.finish(dynamic)?;
    let message = dynamic
        .transcode_to()
        .map_err(|e| vec![Problem::new("", format!("cannot be read as {}: {e}", M::full_name()))])?;
    Ok((Loaded { message, dynamic }, unknown))
}

/// Reads a whole configuration in its binary form. Unknown fields are problems, or with `tolerate` are
/// returned beside the message; protobuf names them by number only.
///
/// # Errors
/// Every problem found: unknown types and enum values too. Bytes that are no `M` give exactly one.
pub fn load_binary<M: Message + Name + Default>(
    bytes: &[u8],
    tolerate: bool,
) -> Result<(Loaded<M>, Vec<Problem>), Vec<Problem>> {
    let Some(descriptor) = descriptor::<M>() else {
        return Err(vec![Problem::new("", format!("unknown type {}", M::full_name()))]);
    };
    let unreadable = |e| vec![Problem::new("", format!("the bytes are no valid {}: {e}", M::full_name()))];
    let dynamic = DynamicMessage::decode(descriptor, bytes).map_err(unreadable)?;
    let found = check_message(&dynamic);
    let bad = found.iter().any(|(finding, _)| !tolerate || *finding != Finding::UnknownField);
    let found = found.into_iter().map(|(_, problem)| problem).collect();
    if bad {
        return Err(found);
    }
    Ok((Loaded { message: M::decode(bytes).map_err(unreadable)?, dynamic }, found))
}

/// Reads one resource whose `@type` says what it is.
///
/// # Errors
/// Every problem found, a missing or unknown `@type` included.
pub fn load_resource(value: &Value) -> Result<Resource, Vec<Problem>> {
    let mut walk = Walk::new("", false);
    let content = walk.any_content(&mut value.clone()).filter(|c| !c.type_url.is_empty());
    if content.is_none() && walk.is_clean() {
        walk.problem("an `@type` is missing");
    }
    let content = walk.finish(content)?;
    let value = content.message.encode_to_vec();
    debug_assert!(content.type_url.ends_with(content.message.descriptor().full_name()));
    Ok(Resource { any: Any { type_url: content.type_url, value }, dynamic: content.message })
}
