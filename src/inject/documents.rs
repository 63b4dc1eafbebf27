//! Files of Kubernetes objects: their documents, and where in each object the pods are.

use serde_json::Value;

use super::pod::{self, Outcome};
use super::{InjectError, Settings};

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its kind and name, as `Deployment/shop`.
    pub object: String,
    /// What was done.
    pub outcome: Outcome,
}

/// The documents of a file of YAML or JSON; empty ones are left out.
///
/// # Errors
/// It is neither.
pub fn parse(source: &str, text: &str) -> Result<Vec<Value>, InjectError> {
    let syntax = |error: serde_yaml_ng::Error| {
        InjectError::Syntax(source.to_owned(), format!("invalid YAML: {error}"))
    };
    let mut documents = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let mut value: Value = serde::Deserialize::deserialize(document).map_err(syntax)?;
        read_as_kubernetes(&mut value);
        if !value.is_null() {
            documents.push(value);
        }
    }
    Ok(documents)
}

/// Fields of pods that are true or false.
const FLAGS: [&str; 20] = [
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostUsers",
    "immutable",
    "optional",
    "paused",
    "privileged",
    "readOnly",
    "readOnlyRootFilesystem",
    "runAsNonRoot",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "stdin",
    "stdinOnce",
    "suspend",
    "tty",
];

/// Kubernetes reads YAML 1.1, where `0644` is a number to the base of eight and `yes` is true. Our parser reads 1.2, where
/// they are texts, which Kubernetes would refuse when they come back as such.
fn read_as_kubernetes(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(read_as_kubernetes),
        Value::Object(fields) => {
            for (key, value) in fields {
                let number = || value.as_str().filter(|text| text.len() > 1 && text.starts_with('0'));
                let read = match key.as_str() {
                    "mode" | "defaultMode" => {
                        number().and_then(|text| u32::from_str_radix(text, 8).ok()).map(Value::from)
                    }
                    key if FLAGS.contains(&key) => match value.as_str() {
                        Some("yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y") => {
                            Some(Value::Bool(true))
                        }
                        Some("no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N") => {
                            Some(Value::Bool(false))
                        }
                        _ => None,
                    },
                    _ => None,
                };
                match read {
                    Some(read) => *value = read,
                    None => read_as_kubernetes(value),
                }
            }
        }
        _ => {}
    }
}

/// The documents as YAML.
///
/// # Errors
/// One of them cannot be written as such.
pub fn render(documents: &[Value]) -> Result<String, InjectError> {
    let mut text = String::new();
    for (index, document) in documents.iter().enumerate() {
        if index > 0 {
            text.push_str("---\n");
        }
        let yaml = serde_yaml_ng::to_string(document);
        let yaml = yaml.map_err(|error| InjectError::Syntax("output".to_owned(), error.to_string()))?;
        text += &write_for_kubernetes(&yaml);
    }
    Ok(text)
}

/// The same with texts in quotes that Kubernetes would read as something else (see [`read_as_kubernetes`]). What is
/// written here has a value on a line of its own, or a text of several lines that are indented.
fn write_for_kubernetes(yaml: &str) -> String {
    let mut out = String::with_capacity(yaml.len());
    let mut block: Option<usize> = None;
    for line in yaml.lines() {
        let indent = line.len() - line.trim_start().len();
        let inside = block.is_some_and(|outer| line.trim().is_empty() || indent > outer);
        if inside {
            out += line;
            out.push('\n');
            continue;
        }
        block = None;
        let mut rest = line.trim_start();
        let mut start = indent;
        while let Some(item) = rest.strip_prefix("- ") {
            start += 2;
            rest = item;
        }
        let (key, value) = match rest.split_once(": ") {
            Some((key, value)) if !rest.starts_with(['\'', '"']) => (Some(key), value),
            _ => (None, rest),
        };
        if value.starts_with(['|', '>']) {
            // A text in a list is indented further than its dash, one with a key further than that.
            block = Some(if key.is_some() { start } else { start.saturating_sub(2) });
        }
        let quoted =
            |text: &str| if is_other_to_kubernetes(text) { format!("'{text}'") } else { text.to_owned() };
        out += line.get(..start).unwrap_or_default();
        match key {
            Some(key) => out += &format!("{}: {}", quoted(key), quoted(value)),
            None => match value.strip_suffix(':') {
                Some(key) => out += &format!("{}:", quoted(key)),
                None => out += &quoted(value),
            },
        }
        out.push('\n');
    }
    out
}

/// Whether YAML 1.1 has another meaning than a text for a plain scalar that YAML 1.2 takes for one.
fn is_other_to_kubernetes(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let is_flag = ["y", "n", "yes", "no", "on", "off"].contains(&lower.as_str());
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    // To the base of eight, with separators, and to the base of sixty.
    let is_number = digits.starts_with(|first: char| first.is_ascii_digit())
        && digits.bytes().all(|byte| byte.is_ascii_digit() || b"_:.".contains(&byte))
        && (digits.starts_with('0') && digits.len() > 1 || digits.contains(['_', ':']));
    is_flag || is_number
}

/// Injects every pod in an object, and in a list of them.
///
/// # Errors
/// One of them cannot be.
pub fn inject(document: &mut Value, settings: &Settings) -> Result<Vec<Line>, InjectError> {
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    if kind == "List" || kind.ends_with("List") && document.get("items").is_some() {
        let items = document.get_mut("items").and_then(Value::as_array_mut);
        let mut lines = Vec::new();
        for item in items.into_iter().flatten() {
            lines.extend(inject(item, settings)?);
        }
        return Ok(lines);
    }
    let metadata = document.get("metadata");
    let named = |key: &str| metadata.and_then(|metadata| metadata.get(key)?.as_str()).map(str::to_owned);
    let object = format!("{kind}/{}", named("name").or_else(|| named("generateName")).unwrap_or_default());
    let namespace = named("namespace").unwrap_or_default();
    // Where the pod is in each kind that has one (kubernetes.io: API reference, workload resources).
    let path = match kind.as_str() {
        "Pod" => "",
        "PodTemplate" => "/template",
        "Deployment" | "ReplicaSet" | "ReplicationController" | "StatefulSet" | "DaemonSet" | "Job" => {
            "/spec/template"
        }
        "CronJob" => "/spec/jobTemplate/spec/template",
        _ => return Ok(Vec::new()),
    };
    let Some(template) = document.pointer_mut(path) else {
        return Err(InjectError::Shape(object, path.to_owned(), "a pod template"));
    };
    let outcome = pod::inject(template, &object, &namespace, settings)?;
    Ok(vec![Line { object, outcome }])
}
