//! What annotations of a pod say, by our names and by those that Istio's users know.

use serde_json::{Map, Value};

use super::settings::{Capture, Form, Interception, Probes};
use super::{InjectError, Settings};

/// Before all annotations of ours.
const OURS: &str = "outrigger.dev/";
/// On pods that have a sidecar.
pub const STATUS: &str = "outrigger.dev/status";

/// Whether a pod asks for a sidecar itself, by an annotation or a label.
///
/// # Errors
/// It says neither yes nor no.
pub fn asked(metadata: &Value) -> Result<Option<bool>, InjectError> {
    for part in ["annotations", "labels"] {
        for key in ["outrigger.dev/inject", "sidecar.istio.io/inject"] {
            let Some(value) = metadata.get(part).and_then(|part| part.get(key)) else { continue };
            let text = text(key, value)?;
            return flag(key, text).map(Some);
        }
    }
    Ok(None)
}

/// `settings` as the annotations change them.
///
/// # Errors
/// One of them says what cannot be, or has a name of ours that nobody knows.
pub fn apply(settings: &Settings, annotations: Option<&Map<String, Value>>) -> Result<Settings, InjectError> {
    let mut own = settings.clone();
    for (key, value) in annotations.into_iter().flatten() {
        let ours = key.strip_prefix(OURS);
        let name = match (ours, key.as_str()) {
            (Some(name), _) => name,
            (None, "sidecar.istio.io/proxyImage") => "image",
            (None, "sidecar.istio.io/proxyCPU") => "cpu-request",
            (None, "sidecar.istio.io/proxyCPULimit") => "cpu-limit",
            (None, "sidecar.istio.io/proxyMemory") => "memory-request",
            (None, "sidecar.istio.io/proxyMemoryLimit") => "memory-limit",
            (None, "sidecar.istio.io/logLevel") => "log-level",
            (None, "sidecar.istio.io/nativeSidecar") => "native",
            (None, "sidecar.istio.io/rewriteAppHTTPProbers") => "rewrite-probes",
            (None, "sidecar.istio.io/interceptionMode") => "interception",
            (None, "traffic.sidecar.istio.io/excludeInboundPorts") => "exclude-inbound-ports",
            (None, "traffic.sidecar.istio.io/excludeOutboundPorts") => "exclude-outbound-ports",
            (None, "traffic.sidecar.istio.io/includeInboundPorts") => "include-inbound-ports",
            (None, "traffic.sidecar.istio.io/includeOutboundIPRanges") => "include-outbound-ranges",
            (None, "traffic.sidecar.istio.io/excludeOutboundIPRanges") => "exclude-outbound-ranges",
            _ => continue,
        };
        set(&mut own, key, name, text(key, value)?)?;
    }
    Ok(own)
}

fn set(own: &mut Settings, key: &str, name: &str, value: &str) -> Result<(), InjectError> {
    let resources = &mut own.resources;
    match name {
        "inject" | "status" => {}
        "image" => value.clone_into(&mut own.image),
        "bootstrap-config-map" => value.clone_into(&mut own.bootstrap_config_map),
        "log-level" => value.clone_into(&mut own.log_level),
        "cpu-request" => value.clone_into(&mut resources.cpu_request),
        "cpu-limit" => value.clone_into(&mut resources.cpu_limit),
        "memory-request" => value.clone_into(&mut resources.memory_request),
        "memory-limit" => value.clone_into(&mut resources.memory_limit),
        "native" => own.form = if flag(key, value)? { Form::Native } else { Form::Classic },
        "rewrite-probes" => own.probes = if flag(key, value)? { Probes::Rewrite } else { Probes::Keep },
        "form" => {
            own.form = one_of(key, value, &[("native", Form::Native), ("classic", Form::Classic)])?;
        }
        "capture" => {
            let known = [("init", Capture::Init), ("proxy", Capture::Proxy), ("none", Capture::None)];
            own.capture = one_of(key, value, &known)?;
        }
        "interception" => {
            let known = [
                ("REDIRECT", Some(Interception::Redirect)),
                ("TPROXY", Some(Interception::Tproxy)),
                ("NONE", None),
            ];
            match one_of(key, value, &known)? {
                Some(interception) => own.interception = interception,
                None => own.capture = Capture::None,
            }
        }
        "probes" => {
            let known = [("rewrite", Probes::Rewrite), ("exclude", Probes::Exclude), ("keep", Probes::Keep)];
            own.probes = one_of(key, value, &known)?;
        }
        "exclude-inbound-ports" => own.exclude_inbound_ports = ports(key, value)?,
        "exclude-outbound-ports" => own.exclude_outbound_ports = ports(key, value)?,
        // Istio's `*` is all, which here is none named.
        "include-inbound-ports" => {
            own.include_inbound_ports = if value.trim() == "*" { Vec::new() } else { ports(key, value)? };
        }
        "include-outbound-ranges" => {
            own.include_outbound_ranges = if value.trim() == "*" { Vec::new() } else { list(value) };
        }
        "exclude-outbound-ranges" => own.exclude_outbound_ranges = list(value),
        _ => return Err(wrong(key, value, "there is no such annotation")),
    }
    Ok(())
}

fn wrong(key: &str, value: &str, reason: impl Into<String>) -> InjectError {
    InjectError::Annotation(key.to_owned(), value.to_owned(), reason.into())
}

fn text<'v>(key: &str, value: &'v Value) -> Result<&'v str, InjectError> {
    value.as_str().ok_or_else(|| wrong(key, &value.to_string(), "is no text"))
}

fn flag(key: &str, value: &str) -> Result<bool, InjectError> {
    one_of(key, value, &[("true", true), ("enabled", true), ("false", false), ("disabled", false)])
}

fn one_of<T: Copy>(key: &str, value: &str, known: &[(&str, T)]) -> Result<T, InjectError> {
    let found = known.iter().find(|(name, _)| *name == value).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        wrong(key, value, format!("must be one of {}", names.join(", ")))
    })
}

fn list(value: &str) -> Vec<String> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn ports(key: &str, value: &str) -> Result<Vec<u16>, InjectError> {
    let port = |item: String| match item.parse() {
        Ok(0) | Err(_) => Err(wrong(key, value, format!("{item:?} is no port (1 to 65535)"))),
        Ok(port) => Ok(port),
    };
    list(value).into_iter().map(port).collect()
}
