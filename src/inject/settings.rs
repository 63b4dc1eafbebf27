//! What is injected, for all pods; annotations change it for one.

use std::collections::BTreeMap;

use serde::Deserialize;

/// How the sidecar is part of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// An init container with `restartPolicy: Always`, started before and stopped after all others (Kubernetes 1.29 and
    /// later; kubernetes.io: Sidecar Containers).
    Native,
    /// The first of the containers; the others wait until it is ready.
    Classic,
}

/// Who leads the pod's traffic to the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capture {
    /// An init container, which alone may change the pod's network.
    Init,
    /// The sidecar itself, as soon as it listens; it may change the pod's network as long as it lives.
    Proxy,
    /// Something else, such as a CNI plugin.
    None,
}

/// How inbound connections reach the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Interception {
    /// Their destination is changed; the application sees the sidecar as the source.
    Redirect,
    /// Nothing is changed; the source can be preserved. The sidecar needs more rights.
    Tproxy,
}

/// What becomes of the application's HTTP, TCP and gRPC probes, which a sidecar that wants mutual TLS would refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probes {
    /// They ask the sidecar, and that asks the application.
    Rewrite,
    /// Their ports are not captured. That is so for all traffic to these ports.
    Exclude,
    /// They stay.
    Keep,
}

/// CPU and memory, in Kubernetes' units; empty is none.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Resources {
    /// CPU that is set aside.
    pub cpu_request: String,
    /// CPU at most; none by default, because a throttled sidecar throttles everybody.
    pub cpu_limit: String,
    /// Memory that is set aside.
    pub memory_request: String,
    /// Memory at most.
    pub memory_limit: String,
}

impl Default for Resources {
    fn default() -> Self {
        let text = str::to_owned;
        Self {
            cpu_request: text("10m"),
            cpu_limit: String::new(),
            memory_request: text("32Mi"),
            memory_limit: text("256Mi"),
        }
    }
}

/// Everything that can be said of injection; a file of `outrigger inject --settings`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    /// The image, whose entry point is Outrigger.
    pub image: String,
    /// Kubernetes' `imagePullPolicy`; empty is Kubernetes' default.
    pub image_pull_policy: String,
    /// How the sidecar is part of the pod.
    pub form: Form,
    /// Who leads traffic to it.
    pub capture: Capture,
    /// How inbound connections reach it.
    pub interception: Interception,
    /// What becomes of probes.
    pub probes: Probes,
    /// The user and the group of the sidecar, by which its own traffic is known.
    pub uid: u32,
    /// The config map with the bootstrap.
    pub bootstrap_config_map: String,
    /// The key in it.
    pub bootstrap_key: String,
    /// The sidecar's log level.
    pub log_level: String,
    /// Seconds between SIGTERM and the end that the sidecar leaves for others; the rest of the pod's
    /// `terminationGracePeriodSeconds` it may drain.
    pub drain_margin_seconds: u32,
    /// What it takes.
    pub resources: Resources,
    /// Ports of the pod that are not captured.
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports elsewhere that are not captured.
    pub exclude_outbound_ports: Vec<u16>,
    /// Ports of the pod that are captured; empty is all.
    pub include_inbound_ports: Vec<u16>,
    /// Networks elsewhere, as CIDR, that are captured; empty is all.
    pub include_outbound_ranges: Vec<String>,
    /// Networks elsewhere that are not captured.
    pub exclude_outbound_ranges: Vec<String>,
    /// More arguments of the sidecar.
    pub args: Vec<String>,
    /// More of its environment.
    pub env: BTreeMap<String, String>,
    /// Namespaces whose pods are left alone.
    pub ignored_namespaces: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let text = str::to_owned;
        Self {
            image: format!("outrigger:{}", env!("CARGO_PKG_VERSION")),
            image_pull_policy: String::new(),
            form: Form::Native,
            capture: Capture::Init,
            interception: Interception::Redirect,
            probes: Probes::Rewrite,
            uid: 1337,
            bootstrap_config_map: text("outrigger-bootstrap"),
            bootstrap_key: text("bootstrap.yaml"),
            log_level: text("warning"),
            drain_margin_seconds: 5,
            resources: Resources::default(),
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            include_inbound_ports: Vec::new(),
            include_outbound_ranges: Vec::new(),
            exclude_outbound_ranges: Vec::new(),
            args: Vec::new(),
            env: BTreeMap::new(),
            ignored_namespaces: vec![text("kube-system"), text("kube-public"), text("kube-node-lease")],
        }
    }
}
