//! A directory of resource files as a snapshot.
//!
//! In: files with Envoy's resources in YAML or JSON, each with its `@type`: one, or an object
//! with a list `resources` of them. Out: a snapshot, or every problem with its file, resource and field.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::snapshot::Snapshot;
use crate::load::load_resource;
use crate::problem::Problem;
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
    let files = files_of(directory).map_err(|e| vec![whole(directory, e.to_string())])?;
    let mut snapshot = Snapshot::new();
    let mut problems = Vec::new();
    for file in files {
        if let Err(found) = load_file(&file, &mut snapshot) {
            problems.extend(found);
        }
    }
    if problems.is_empty() {
        Ok(snapshot)
    } else {
        Err(problems)
    }
}

fn files_of(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        let known = path.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|k| e == *k));
        if known && !hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn load_file(file: &Path, snapshot: &mut Snapshot) -> Result<(), Vec<FileProblem>> {
    let text = fs::read(file).map_err(|e| vec![whole(file, e.to_string())])?;
    let value = text::parse(&text, Format::Auto)
        .map_err(|problem| vec![FileProblem { file: file.into(), resource: String::new(), problem }])?;
    let resources: Vec<(String, &Value)> = match &value {
        Value::Null => Vec::new(),
        Value::Object(object) if !object.contains_key("@type") => match object.get("resources") {
            Some(Value::Array(list)) => {
                list.iter().enumerate().map(|(i, v)| (format!("resources[{i}]"), v)).collect()
            }
            _ => {
                let message = "neither `@type` nor a list `resources`";
                return Err(vec![whole(file, message.to_owned())]);
            }
        },
        other => vec![(String::new(), other)],
    };
    let mut problems = Vec::new();
    for (place, value) in resources {
        let resource = label(place, value);
        let found = add(value, snapshot).err().unwrap_or_default();
        problems.extend(found.into_iter().map(|problem| FileProblem {
            file: file.into(),
            resource: resource.clone(),
            problem,
        }));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

fn add(value: &Value, snapshot: &mut Snapshot) -> Result<(), Vec<Problem>> {
    let any = load_resource(value)?.any;
    let kind = super::ResourceType::from_url(&any.type_url);
    let before = snapshot.count(&kind);
    snapshot.insert_any(any).map_err(|e| vec![Problem::new("", e.to_string())])?;
    if snapshot.count(&kind) == before {
        return Err(vec![Problem::new("name", "another resource of this type has the same name")]);
    }
    Ok(())
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

fn whole(file: &Path, message: String) -> FileProblem {
    FileProblem { file: file.into(), resource: String::new(), problem: Problem::new("", message) }
}
