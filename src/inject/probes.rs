//! Probes of the application that go through the sidecar's own port, because kubelet has no certificate of the mesh.
//!
//! On injection, each HTTP, TCP and gRPC probe of a container is replaced by one that asks the sidecar at
//! `/app-health/<container>/<probe>`, and the original goes to the sidecar in its environment. There, [`serve`] asks
//! the application itself, on the loopback interface, and answers with what it said.

mod ask;
mod serve;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};

pub use self::serve::{listen, serve, ServeError};

/// The environment variable that has the probes, as JSON of a [`Table`].
pub const VARIABLE: &str = "OUTRIGGER_APP_PROBES";
/// The sidecar's port for kubelet.
pub const PORT: u16 = 15020;
const PREFIX: &str = "/app-health/";
/// The probes of a container, and what they are called in paths.
const KINDS: [(&str, &str); 3] =
    [("livenessProbe", "livez"), ("readinessProbe", "readyz"), ("startupProbe", "startupz")];
/// Kubernetes' default.
const TIMEOUT: u64 = 1;

/// How to ask the application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Original {
    /// The handler, as Kubernetes has it, with ports as numbers: `httpGet`, `tcpSocket` or `grpc`.
    #[serde(flatten)]
    pub handler: Handler,
    /// In seconds.
    pub timeout_seconds: u64,
}

/// One of Kubernetes' kinds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Handler {
    /// A GET that is answered with 200 to 399.
    HttpGet(HttpGet),
    /// A connection.
    TcpSocket(TcpSocket),
    /// gRPC's health check.
    Grpc(Grpc),
}

/// `HTTPGetAction`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpGet {
    /// With its query.
    pub path: String,
    /// Where it listens.
    pub port: u16,
    /// `HTTP` or `HTTPS`, whose certificate is not verified, as kubelet does not.
    pub scheme: String,
    /// More of the request.
    pub http_headers: Vec<Header>,
}

/// A field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// `TCPSocketAction`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TcpSocket {
    /// Where it listens.
    pub port: u16,
}

/// `GRPCAction`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Grpc {
    /// Where it listens.
    pub port: u16,
    /// Which service; empty is the server as a whole.
    pub service: String,
}

/// Probes by `<container>/<livez, readyz or startupz>`.
pub type Table = BTreeMap<String, Original>;

/// Replaces the probes of `container`; the originals go to `table`.
pub(super) fn rewrite(container: &mut Map<String, Value>, table: &mut Table) {
    let Some(name) = container.get("name").and_then(Value::as_str).map(str::to_owned) else { return };
    for (field, short) in KINDS {
        let key = format!("{name}/{short}");
        let Some(original) = original(container, field) else { continue };
        let Some(Value::Object(probe)) = container.get_mut(field) else { continue };
        for handler in ["httpGet", "tcpSocket", "grpc"] {
            probe.remove(handler);
        }
        // The sidecar needs a moment of its own on top.
        probe.insert("timeoutSeconds".to_owned(), json!(original.timeout_seconds + 1));
        let mut ordered = Map::new();
        ordered.insert("httpGet".to_owned(), json!({"path": format!("{PREFIX}{key}"), "port": PORT}));
        ordered.append(probe);
        *probe = ordered;
        table.insert(key, original);
    }
}

/// The ports that probes of `container` use.
pub(super) fn ports(container: &Map<String, Value>) -> Vec<u16> {
    let originals = KINDS.iter().filter_map(|(field, _)| original(container, field));
    let port = |original: Original| match original.handler {
        Handler::HttpGet(HttpGet { port, .. })
        | Handler::TcpSocket(TcpSocket { port })
        | Handler::Grpc(Grpc { port, .. }) => port,
    };
    originals.map(port).collect()
}

/// What a probe asks; `None` if there is none, if it runs a command, asks another host, or asks the sidecar already.
fn original(container: &Map<String, Value>, field: &str) -> Option<Original> {
    let probe = container.get(field)?.as_object()?;
    let number = |handler: &Map<String, Value>| match handler.get("port")? {
        Value::Number(number) => u16::try_from(number.as_u64()?).ok(),
        Value::String(name) => name.parse().ok().or_else(|| named_port(container, name)),
        _ => None,
    };
    let text = |handler: &Map<String, Value>, key: &str| {
        handler.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let object = |key: &str| probe.get(key).and_then(Value::as_object);
    let is_elsewhere = |handler: &Map<String, Value>| !text(handler, "host").is_empty();
    let handler = if let Some(get) = object("httpGet") {
        let (port, path) = (number(get)?, text(get, "path"));
        if is_elsewhere(get) || port == PORT && path.starts_with(PREFIX) {
            return None;
        }
        let headers = get.get("httpHeaders").cloned().unwrap_or_else(|| json!([]));
        Handler::HttpGet(HttpGet {
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            port,
            scheme: text(get, "scheme"),
            http_headers: serde_json::from_value(headers).ok()?,
        })
    } else if let Some(tcp) = object("tcpSocket").filter(|tcp| !is_elsewhere(tcp)) {
        Handler::TcpSocket(TcpSocket { port: number(tcp)? })
    } else {
        let grpc = object("grpc")?;
        Handler::Grpc(Grpc { port: number(grpc)?, service: text(grpc, "service") })
    };
    let timeout_seconds = probe.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(TIMEOUT).max(1);
    Some(Original { handler, timeout_seconds })
}

fn named_port(container: &Map<String, Value>, name: &str) -> Option<u16> {
    let ports = container.get("ports")?.as_array()?;
    let port = ports.iter().find(|port| port.get("name").and_then(Value::as_str) == Some(name))?;
    u16::try_from(port.get("containerPort")?.as_u64()?).ok()
}
