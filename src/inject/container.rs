//! The containers that a pod gets.

use serde_json::{json, Map, Value};

use super::pod::{list, BOOTSTRAP, INIT, PROXY, STATE};
use super::probes::{self, Table};
use super::settings::{Capture, Form, Interception, Resources};
use super::Settings;

/// Where the program is in the image.
const BINARY: &str = "/outrigger";
const BOOTSTRAP_DIRECTORY: &str = "/etc/outrigger";
const STATE_DIRECTORY: &str = "/var/lib/outrigger";
/// The sidecar's own ports, as in Istio: kubelet's probes, health, and Prometheus.
const OWN_PORTS: [u16; 3] = [probes::PORT, 15021, 15090];
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
/// How long the other containers wait for a classic sidecar, in seconds.
const HOLD: u32 = 60;

/// The container that leads traffic to the sidecar.
pub(super) fn init(settings: &Settings, excluded: &[u16]) -> Value {
    let mut args = vec!["init".to_owned()];
    args.extend(capture_flags(settings, excluded));
    let mut container = Map::new();
    let mut put = |key: &str, value: Value| container.insert(key.to_owned(), value);
    put("name", json!(INIT));
    put("args", json!(args));
    put("resources", resources(&settings.resources));
    put("securityContext", security(0, 0, &["NET_ADMIN", "NET_RAW"]));
    image(&mut container, settings);
    Value::Object(container)
}

/// What of the pod matters to its sidecar.
pub(super) struct Beside {
    /// How long it may take to end, in seconds.
    pub(super) grace: u64,
    /// It is over when its containers have ended, and a container of ours would keep it alive.
    pub(super) kept_alive: bool,
    /// Ports that are not captured besides those that the settings name.
    pub(super) excluded: Vec<u16>,
}

/// The sidecar.
pub(super) fn proxy(settings: &Settings, table: &Table, pod: &Beside) -> Value {
    let drain = pod.grace.saturating_sub(u64::from(settings.drain_margin_seconds)).max(1).to_string();
    let bootstrap = format!("{BOOTSTRAP_DIRECTORY}/{}", settings.bootstrap_key);
    let node = "sidecar~$(POD_IP)~$(POD_NAME).$(POD_NAMESPACE)~$(POD_NAMESPACE).svc.cluster.local";
    let mut args: Vec<String> = ["run", "--config-path", &bootstrap, "--state-dir", STATE_DIRECTORY]
        .into_iter()
        .chain(["--service-node", node, "--log-level", &settings.log_level, "--drain-time-s", &drain])
        .map(str::to_owned)
        .collect();
    args.push("--outlive-application".to_owned());
    if pod.kept_alive {
        args.push("--exit-with-application".to_owned());
    }
    if !table.is_empty() {
        args.extend(["--probe-port".to_owned(), probes::PORT.to_string()]);
    }
    if settings.capture == Capture::Proxy {
        args.push(format!("--capture={}", capture_flags(settings, &pod.excluded).join(" ")));
    }
    args.extend(settings.args.iter().cloned());
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
    ];
    if !table.is_empty() {
        env.push(probes_variable(table));
    }
    env.extend(settings.env.iter().map(|(name, value)| json!({"name": name, "value": value})));
    let ready = json!([BINARY, "ready"]);
    let user = user(settings);
    let mut container = Map::new();
    let mut put = |key: &str, value: Value| container.insert(key.to_owned(), value);
    put("name", json!(PROXY));
    put("args", json!(args));
    put("env", json!(env));
    put("ports", json!([{"name": "outrigger-prom", "containerPort": 15090, "protocol": "TCP"}]));
    put("resources", resources(&settings.resources));
    put("securityContext", security(user, settings.uid, if user == 0 { &["NET_ADMIN"] } else { &[] }));
    put(
        "readinessProbe",
        json!({"exec": {"command": ready}, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 3}),
    );
    match settings.form {
        Form::Native => {
            put("restartPolicy", json!("Always"));
            // The containers after it start when this has succeeded.
            put(
                "startupProbe",
                json!({"exec": {"command": ready}, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 600}),
            );
        }
        Form::Classic => {
            // Kubelet starts the next container when this has ended.
            let wait = json!([BINARY, "wait", "--timeout-s", HOLD.to_string()]);
            put("lifecycle", json!({"postStart": {"exec": {"command": wait}}}));
        }
    }
    put(
        "volumeMounts",
        json!([
            {"name": BOOTSTRAP, "mountPath": BOOTSTRAP_DIRECTORY, "readOnly": true},
            {"name": STATE, "mountPath": STATE_DIRECTORY},
        ]),
    );
    image(&mut container, settings);
    Value::Object(container)
}

/// Adds to the probes that a sidecar answers.
pub(super) fn add_probes(proxy: &mut Map<String, Value>, more: Table) {
    let env = list(proxy, "env");
    let is_ours = |entry: &&mut Value| entry.get("name").and_then(Value::as_str) == Some(probes::VARIABLE);
    let Some(entry) = env.iter_mut().find(is_ours) else {
        env.push(probes_variable(&more));
        list(proxy, "args").extend([json!("--probe-port"), json!(probes::PORT.to_string())]);
        return;
    };
    let known = entry.get("value").and_then(Value::as_str);
    let mut table: Table = known.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    table.extend(more);
    *entry = probes_variable(&table);
}

fn probes_variable(table: &Table) -> Value {
    // There is nothing in it that JSON has no form for.
    json!({"name": probes::VARIABLE, "value": serde_json::to_string(table).unwrap_or_default()})
}

/// The user that the sidecar is: who must change the network or use transparent sockets is root, in a group by which it
/// is known.
fn user(settings: &Settings) -> u32 {
    let root = settings.capture == Capture::Proxy || settings.interception == Interception::Tproxy;
    if root {
        0
    } else {
        settings.uid
    }
}

/// The flags by which the pod's traffic is captured, those of `outrigger init`.
fn capture_flags(settings: &Settings, excluded: &[u16]) -> Vec<String> {
    let numbers = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    let mut inbound: Vec<u16> = OWN_PORTS.to_vec();
    inbound.extend(&settings.exclude_inbound_ports);
    inbound.extend(excluded);
    inbound.sort_unstable();
    inbound.dedup();
    let all = |list: String| if list.is_empty() { "*".to_owned() } else { list };
    let mode = match settings.interception {
        Interception::Redirect => "REDIRECT",
        Interception::Tproxy => "TPROXY",
    };
    let mut flags: Vec<String> = Vec::new();
    let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
    flag("--envoy-port", OUTBOUND.to_string());
    flag("--inbound-capture-port", INBOUND.to_string());
    let by = if user(settings) == 0 { "--proxy-gid" } else { "--proxy-uid" };
    flag(by, settings.uid.to_string());
    flag("--istio-inbound-interception-mode", mode.to_owned());
    flag("--istio-inbound-ports", all(numbers(&settings.include_inbound_ports)));
    flag("--istio-local-exclude-ports", numbers(&inbound));
    flag("--istio-service-cidr", all(settings.include_outbound_ranges.join(",")));
    if !settings.exclude_outbound_ranges.is_empty() {
        flag("--istio-service-exclude-cidr", settings.exclude_outbound_ranges.join(","));
    }
    if !settings.exclude_outbound_ports.is_empty() {
        flag("--istio-local-outbound-ports-exclude", numbers(&settings.exclude_outbound_ports));
    }
    flags
}

fn image(container: &mut Map<String, Value>, settings: &Settings) {
    container.insert("image".to_owned(), json!(settings.image));
    if !settings.image_pull_policy.is_empty() {
        container.insert("imagePullPolicy".to_owned(), json!(settings.image_pull_policy));
    }
}

/// No more rights than `rights`, and nothing to write to but volumes.
fn security(user: u32, group: u32, rights: &[&str]) -> Value {
    let mut capabilities = json!({"drop": ["ALL"]});
    if !rights.is_empty() {
        capabilities["add"] = json!(rights);
    }
    json!({
        "runAsUser": user, "runAsGroup": group, "runAsNonRoot": user != 0,
        "privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": capabilities,
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

fn resources(wanted: &Resources) -> Value {
    let part = |cpu: &str, memory: &str| {
        let both = [("cpu", cpu), ("memory", memory)];
        let set = both.into_iter().filter(|(_, quantity)| !quantity.is_empty());
        set.map(|(name, quantity)| (name.to_owned(), json!(quantity))).collect::<Map<String, Value>>()
    };
    let parts = [
        ("requests", part(&wanted.cpu_request, &wanted.memory_request)),
        ("limits", part(&wanted.cpu_limit, &wanted.memory_limit)),
    ];
    let set = parts.into_iter().filter(|(_, part)| !part.is_empty());
    Value::Object(set.map(|(name, part)| (name.to_owned(), Value::Object(part))).collect())
}
