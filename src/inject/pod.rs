//! One pod: what its sidecar needs is added.

use serde_json::{json, Map, Value};

use super::container::{self, Beside};
use super::overrides::{apply, asked, STATUS};
use super::probes::{self, Table};
use super::settings::{Capture, Form, Probes};
use super::{InjectError, Settings};

/// The sidecar's container.
pub const PROXY: &str = "outrigger-proxy";
/// The container that leads traffic to it.
pub const INIT: &str = "outrigger-init";
/// The volume with its bootstrap.
pub const BOOTSTRAP: &str = "outrigger-bootstrap";
/// The volume that it writes to.
pub const STATE: &str = "outrigger-state";
/// Kubernetes' default, in seconds.
const GRACE: u64 = 30;

/// What became of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has a sidecar now.
    Injected,
    /// It had one; probes that were not led through it before are now.
    Already,
    /// It is left alone, for this reason.
    Skipped(&'static str),
}

/// Adds a sidecar to a pod, or a pod's template. `object` names it in errors; `namespace` is where it is if it does not
/// say.
///
/// # Errors
/// It is no pod, or its annotations say what cannot be.
pub fn inject(
    pod: &mut Value,
    object: &str,
    namespace: &str,
    settings: &Settings,
) -> Result<Outcome, InjectError> {
    let shape = |field: &str, wanted| InjectError::Shape(object.to_owned(), field.to_owned(), wanted);
    let pod = pod.as_object_mut().ok_or_else(|| shape("the pod", "an object"))?;
    let metadata = pod.get("metadata").cloned().unwrap_or_else(|| json!({}));
    if !metadata.is_object() {
        return Err(shape("metadata", "an object"));
    }
    let annotations = metadata.get("annotations").and_then(Value::as_object);
    if asked(&metadata)? == Some(false) {
        return Ok(Outcome::Skipped("it asks for no sidecar"));
    }
    let settings = apply(settings, annotations)?;
    let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
    if settings.ignored_namespaces.iter().any(|ignored| ignored == namespace) {
        return Ok(Outcome::Skipped("its namespace is left alone"));
    }
    let spec =
        pod.get_mut("spec").and_then(Value::as_object_mut).ok_or_else(|| shape("spec", "an object"))?;
    if spec.get("hostNetwork").and_then(Value::as_bool) == Some(true) {
        return Ok(Outcome::Skipped("it is in the network of its node"));
    }
    for key in ["containers", "initContainers", "volumes"] {
        if spec.get(key).is_some_and(|list| !list.is_array() && !list.is_null()) {
            return Err(shape(&format!("spec.{key}"), "a list"));
        }
    }
    if annotations.is_some_and(|annotations| annotations.contains_key(STATUS)) {
        lead_new_probes(spec, &settings);
        return Ok(Outcome::Already);
    }
    if let Some(taken) = names(spec).find(|name| [PROXY, INIT].contains(name)) {
        return Err(InjectError::Name(object.to_owned(), taken.to_owned()));
    }
    let table = take_probes(spec, &settings);
    let excluded: Vec<u16> = match settings.probes {
        Probes::Exclude => containers(spec).flat_map(probes::ports).collect(),
        Probes::Rewrite | Probes::Keep => Vec::new(),
    };
    let grace = spec.get("terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(GRACE);
    let ends = matches!(spec.get("restartPolicy").and_then(Value::as_str), Some("Never" | "OnFailure"));
    let beside = Beside { grace, kept_alive: ends && settings.form == Form::Classic, excluded };
    let proxy = container::proxy(&settings, &table, &beside);
    let init = (settings.capture == Capture::Init).then(|| container::init(&settings, &beside.excluded));
    if beside.kept_alive {
        // It sees the end of the others then.
        spec.insert("shareProcessNamespace".to_owned(), json!(true));
    }
    // A native sidecar comes before all that the pod itself starts, which then has a network; before a classic one,
    // init containers would have none, so that traffic is led to it after they have run.
    match settings.form {
        Form::Native => {
            list(spec, "initContainers").splice(0..0, init.into_iter().chain([proxy]));
        }
        Form::Classic => {
            if let Some(init) = init {
                list(spec, "initContainers").push(init);
            }
            list(spec, "containers").insert(0, proxy);
        }
    }
    list(spec, "volumes").extend([
        json!({"name": BOOTSTRAP, "configMap": {"name": settings.bootstrap_config_map}}),
        json!({"name": STATE, "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}),
    ]);
    note(pod.entry("metadata").or_insert_with(|| json!({})), &settings);
    Ok(Outcome::Injected)
}

/// The array `key`, made where there is none.
pub(super) fn list<'s>(object: &'s mut Map<String, Value>, key: &str) -> &'s mut Vec<Value> {
    let value = object.entry(key).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("it was just made a list"),
    }
}

const LISTS: [&str; 2] = ["initContainers", "containers"];

fn containers(spec: &Map<String, Value>) -> impl Iterator<Item = &Map<String, Value>> {
    let all = LISTS.into_iter().filter_map(|list| spec.get(list)?.as_array()).flatten();
    all.filter_map(Value::as_object)
}

fn names(spec: &Map<String, Value>) -> impl Iterator<Item = &str> {
    containers(spec).filter_map(|container| container.get("name")?.as_str())
}

/// Leads the containers' probes to the sidecar.
fn take_probes(spec: &mut Map<String, Value>, settings: &Settings) -> Table {
    let mut table = Table::new();
    if settings.probes == Probes::Rewrite {
        for key in LISTS {
            let all = spec.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten();
            for container in all.filter_map(Value::as_object_mut) {
                probes::rewrite(container, &mut table);
            }
        }
    }
    table
}

/// Containers that came after the sidecar, from another webhook, have probes too.
fn lead_new_probes(spec: &mut Map<String, Value>, settings: &Settings) {
    let more = take_probes(spec, settings);
    if more.is_empty() {
        return;
    }
    for key in LISTS {
        let mut all = spec.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten();
        let proxy = all.find(|one| one.get("name").and_then(Value::as_str) == Some(PROXY));
        let Some(proxy) = proxy.and_then(Value::as_object_mut) else { continue };
        container::add_probes(proxy, more);
        return;
    }
}

/// Marks the pod.
fn note(metadata: &mut Value, settings: &Settings) {
    let form = match settings.form {
        Form::Native => "native",
        Form::Classic => "classic",
    };
    let status = json!({"version": env!("CARGO_PKG_VERSION"), "form": form}).to_string();
    let Some(metadata) = metadata.as_object_mut() else { return };
    for (part, key, value) in
        [("annotations", STATUS, status.as_str()), ("labels", "outrigger.dev/injected", "true")]
    {
        let part = metadata.entry(part).or_insert_with(|| json!({}));
        if !part.is_object() {
            *part = json!({});
        }
        part[key] = json!(value);
    }
}
