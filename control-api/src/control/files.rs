//! Files of resources as a snapshot.
//!
//! In: files with Envoy's resources in YAML or JSON, each with its `@type`: one, or an object with a list
//! `resources` of them; or services in their short form (see [`super::services`]). Out: a snapshot, or
//! every problem with its file, resource and field.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::references::{self, Reference};
use super::services;
use crate::load::{load_resource, MAX_TEXT_BYTES};
use crate::problem::Problem;
use crate::server::{ResourceType, Snapshot};
use crate::text::{self, Format};

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProblem {
    /// The file, or the directory that cannot be read.
    pub file: PathBuf,
    /// The resource, such as `resources[2] (Cluster "web")`; empty when the file as a whole is at fault.
    pub resource: String,
    /// The field and what is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        if !self.resource.is_empty() {
            write!(f, "{}: ", self.resource)?;
        }
        self.problem.fmt(f)
    }
}

impl std::error::Error for FileProblem {}

/// Reads every `.yaml`, `.yml` and `.json` file of `directory`, in the order of their names, without
/// following subdirectories or hidden files. Names may not repeat; references are not checked, see
/// [`Snapshot::validate`].
///
/// # Errors
/// Every problem found.
pub fn load_directory(directory: &Path) -> Result<Snapshot, Vec<FileProblem>> {
    let files = list(directory).and_then(|files| files.iter().map(|file| read(file)).collect());
    let files: Vec<File> = files.map_err(|e: io::Error| vec![whole(directory, e.to_string())])?;
    Ok(Content::of(&files)?.snapshot)
}

/// A file as it was read.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub path: PathBuf,
    pub text: Vec<u8>,
}

/// The resource files of a directory.
pub(super) fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let known = path.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|k| e == *k));
        if known && !is_hidden(&path) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

pub(super) fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Reads one; the error names it.
pub(super) fn read(path: &Path) -> io::Result<File> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let length = fs::metadata(path).map_err(named)?.len();
    if usize::try_from(length).is_ok_and(|length| length <= MAX_TEXT_BYTES) {
        return Ok(File { path: path.into(), text: fs::read(path).map_err(named)? });
    }
    let message = format!("has {length} bytes, more than the limit of {MAX_TEXT_BYTES}");
    Err(named(io::Error::new(io::ErrorKind::InvalidData, message)))
}

/// Where a resource comes from.
#[derive(Debug, Clone)]
struct Origin {
    file: PathBuf,
    label: String,
    uses: Vec<Reference>,
}

/// What files hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pub snapshot: Snapshot,
    origins: BTreeMap<(ResourceType, String), Origin>,
}

impl Content {
    /// The resources of all files together.
    pub(super) fn of(files: &[File]) -> Result<Self, Vec<FileProblem>> {
        let mut content = Self::default();
        let mut problems = Vec::new();
        for file in files {
            if let Err(found) = content.add_file(file) {
                problems.extend(found);
            }
        }
        if problems.is_empty() {
            Ok(content)
        } else {
            Err(problems)
        }
    }

    /// Takes over all of `other`, which replaces what has the same type and name.
    pub(super) fn merge(&mut self, other: &Self) {
        self.snapshot.merge(&other.snapshot);
        self.origins.extend(other.origins.iter().map(|(key, origin)| (key.clone(), origin.clone())));
    }

    /// Every name that nothing here has. `elsewhere` are clusters that clients have from their bootstrap.
    pub(super) fn dangling(&self, elsewhere: &[String]) -> Vec<FileProblem> {
        let mut problems = Vec::new();
        for origin in self.origins.values() {
            for Reference { path, to, name } in &origin.uses {
                let is_cluster = *to == ResourceType::CLUSTER;
                if self.snapshot.get(to, name).is_some() || (is_cluster && elsewhere.contains(name)) {
                    continue;
                }
                let kind = to.to_string();
                let kind = kind.rsplit('.').next().unwrap_or(&kind);
                let hint = if is_cluster { "; clusters of the clients' own have to be declared" } else { "" };
                problems.push(FileProblem {
                    file: origin.file.clone(),
                    resource: origin.label.clone(),
                    problem: Problem::new(path, format!("there is no {kind} {name:?}{hint}")),
                });
            }
        }
        problems
    }

    fn add_file(&mut self, file: &File) -> Result<(), Vec<FileProblem>> {
        let at = |resource: String, problem| FileProblem { file: file.path.clone(), resource, problem };
        let value =
            text::parse(&file.text, Format::Auto).map_err(|problem| vec![at(String::new(), problem)])?;
        let expanded;
        let list = |list: &'_ [Value]| (0..list.len()).map(|i| format!("resources[{i}]")).collect::<Vec<_>>();
        let (places, values): (Vec<String>, &[Value]) = match (value.get("@type"), value.get("resources")) {
            (None, Some(Value::Array(values))) => (list(values), values),
            (None, _) if value.get("services").is_some() => {
                let expand = services::expand(&value).map_err(|found| {
                    found.into_iter().map(|(label, problem)| at(label, problem)).collect::<Vec<_>>()
                })?;
                expanded = expand.resources;
                (expand.labels, &expanded)
            }
            (None, _) => {
                let message = "neither `@type` nor a list `resources` nor `services`";
                return Err(vec![whole(&file.path, message.to_owned())]);
            }
            (Some(_), _) => (vec![String::new()], std::slice::from_ref(&value)),
        };
        let mut problems = Vec::new();
        for (place, value) in places.into_iter().zip(values) {
            let label = label(place, value);
            let found = self.add(value, &file.path, &label).err().unwrap_or_default();
            problems.extend(found.into_iter().map(|problem| at(label.clone(), problem)));
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    fn add(&mut self, value: &Value, file: &Path, label: &str) -> Result<(), Vec<Problem>> {
        let resource = load_resource(value)?;
        let kind = ResourceType::from_url(&resource.any.type_url);
        let name_field = if kind == ResourceType::ENDPOINTS { "cluster_name" } else { "name" };
        let name = resource.dynamic.get_field_by_name(name_field);
        let name = name.as_deref().and_then(crate::reflect::Value::as_str).unwrap_or_default().to_owned();
        let key = (kind.clone(), name.clone());
        if let Some(other) = self.origins.get(&key) {
            let message = format!("{} has a resource of the same type and name", other.file.display());
            return Err(vec![Problem::new(name_field, message)]);
        }
        self.snapshot.insert_any(resource.any).map_err(|e| vec![Problem::new("", e.to_string())])?;
        // Only gRPC asks for such listeners, and by their names.
        if kind == ResourceType::LISTENER && is_for_grpc(&resource.dynamic) {
            self.snapshot.serve_by_name_only(&kind, &name);
        }
        let uses = references::of(&resource.dynamic);
        self.origins.insert(key, Origin { file: file.into(), label: label.to_owned(), uses });
        Ok(())
    }
}

/// True for a listener without a socket.
fn is_for_grpc(listener: &crate::reflect::DynamicMessage) -> bool {
    let set = |name: &str| listener.fields().any(|(field, _)| field.name() == name);
    set("api_listener") && !set("address")
}

/// The place of a resource in its file, with its type and name as far as they can be told.
fn label(place: String, value: &Value) -> String {
    let text = |field: &str| value.get(field).and_then(Value::as_str);
    let kind = text("@type").map(|url| url.rsplit(['.', '/']).next().unwrap_or(url));
    let name = ["name", "cluster_name", "clusterName"].into_iter().find_map(text);
    let what = match (kind, name) {
        (Some(kind), Some(name)) => format!("{kind} {name:?}"),
        (Some(kind), None) => kind.to_owned(),
        _ => return place,
    };
    if place.is_empty() {
        what
    } else {
        format!("{place} ({what})")
    }
}

pub(super) fn whole(file: &Path, message: String) -> FileProblem {
    FileProblem { file: file.into(), resource: String::new(), problem: Problem::new("", message) }
}
