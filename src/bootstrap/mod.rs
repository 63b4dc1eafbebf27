//! What the process is told at start: the command line and the bootstrap file.
//!
//! In: arguments, a file, text on the command line. Out: [`Flags`] and a compiled bootstrap, or every
//! problem at once. It knows nothing of what the configuration means.

pub mod flags;
pub mod ready;
pub mod xds_dir;

use std::path::Path;

use outrigger_control_api::pb::envoy::config::bootstrap::v3::Bootstrap;
use outrigger_control_api::DynamicMessage;
use outrigger_control_api::{descriptor, load, load_binary, load_tolerant, Format, Loaded, Problem};
use prost::Message as _;

pub use flags::{Command, CommandLine, Flags, Mode};

use crate::config::compile::bootstrap::{CompiledBootstrap, NodeOptions};

/// Reads and compiles what the flags name.
///
/// # Errors
/// Every problem found; one with an empty path concerns the file as a whole.
pub fn compile(flags: &Flags) -> Result<CompiledBootstrap, Vec<Problem>> {
    let (loaded, unknown) = read(flags)?;
    let node = NodeOptions {
        id: flags.service_node.clone(),
        cluster: flags.service_cluster.clone(),
        zone: flags.service_zone.clone(),
        workload_api: flags.spiffe_endpoint_socket.clone().filter(|endpoint| !endpoint.is_empty()),
    };
    let mut compiled = crate::config::compile::bootstrap(loaded, &node)?;
    compiled.warnings.splice(0..0, unknown);
    Ok(compiled)
}

/// The bootstrap file with `--config-yaml` merged over it, and the unknown fields that were tolerated.
///
/// # Errors
/// Every problem found.
pub fn read(flags: &Flags) -> Result<(Loaded<Bootstrap>, Vec<Problem>), Vec<Problem>> {
    let tolerant = flags.tolerates_unknown_fields();
    let file = flags.config_path.as_deref().map(|path| read_file(path, tolerant)).transpose()?;
    let text = flags
        .config_yaml
        .as_deref()
        .map(|text| parse(text.as_bytes(), Format::Yaml, tolerant))
        .transpose()?;
    match (file, text) {
        (Some(one), None) | (None, Some(one)) => Ok(one),
        (Some(file), Some(text)) => merge(file, text),
        (None, None) => {
            Err(whole("no configuration: give a file with -c or text with --config-yaml, or try the demo"))
        }
    }
}

type Read = (Loaded<Bootstrap>, Vec<Problem>);

fn read_file(path: &Path, tolerant: bool) -> Result<Read, Vec<Problem>> {
    let content = std::fs::read(path).map_err(|error| whole(format!("cannot be read: {error}")))?;
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("pb") => load_binary(&content, tolerant),
        Some("pb_text" | "textproto" | "txtpb" | "pb_length_delimited") => {
            Err(whole("this form of protobuf is not supported; use YAML, JSON or binary protobuf (.pb)"))
        }
        Some("json") => parse(&content, Format::Json, tolerant),
        Some("yaml" | "yml") => parse(&content, Format::Yaml, tolerant),
        _ => parse(&content, Format::Auto, tolerant),
    }
}

fn parse(text: &[u8], format: Format, tolerant: bool) -> Result<Read, Vec<Problem>> {
    if tolerant {
        load_tolerant(text, format)
    } else {
        load(text, format).map(|loaded| (loaded, Vec::new()))
    }
}

/// Protobuf's own merge, as Envoy does it: lists are appended, single fields replaced.
fn merge(base: Read, over: Read) -> Result<Read, Vec<Problem>> {
    let ((base, mut unknown), (over, more)) = (base, over);
    unknown.extend(more);
    // Encoded messages one after the other decode as their merge.
    let mut bytes = base.dynamic.encode_to_vec();
    bytes.extend(over.dynamic.encode_to_vec());
    let failed = |error| whole(format!("--config-yaml cannot be merged: {error}"));
    let message = Bootstrap::decode(bytes.as_slice()).map_err(failed)?;
    let descriptor = descriptor::<Bootstrap>().ok_or_else(|| whole("the bootstrap type is unknown"))?;
    let dynamic = DynamicMessage::decode(descriptor, bytes.as_slice()).map_err(failed)?;
    Ok((Loaded { message, dynamic }, unknown))
}

fn whole(message: impl Into<String>) -> Vec<Problem> {
    vec![Problem::new("", message)]
}

/// What to call the configuration in messages: the file's name, or the flag's.
pub fn source_name(flags: &Flags) -> String {
    match (&flags.config_path, &flags.config_yaml) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(_)) => "--config-yaml".to_owned(),
        (None, None) => "outrigger".to_owned(),
    }
}

/// One line for a problem: control characters are escaped, what concerns the whole file names it, and
/// nothing is longer than a screen.
pub fn problem_line(problem: &Problem, source: &str) -> String {
    const LONGEST: usize = 2000;
    let place = if problem.path.is_empty() { source } else { &problem.path };
    let mut line = String::new();
    for character in format!("{place}: {}", problem.message).chars().take(LONGEST) {
        match character {
            '\n' => line.push_str("; "),
            character if character.is_control() => line.extend(character.escape_default()),
            character => line.push(character),
        }
    }
    line
}

/// Writes the admin port's address where `--admin-address-path` says.
///
/// # Errors
/// The file cannot be written.
pub fn write_admin_address(flags: &Flags, address: &str) -> std::io::Result<()> {
    flags.admin_address_path.as_ref().map_or(Ok(()), |path| std::fs::write(path, address))
}

#[cfg(test)]
mod tests;
