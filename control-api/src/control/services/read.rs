//! The short form, read and checked.

use std::collections::BTreeMap;

use serde_json::Value;

use super::reader::Fields;
use super::resources::domains;
use super::{Endpoint, HealthCheck, Mesh, Protocol, Retries, Service, Version, LISTEN};
use crate::problem::Problem;
use crate::text::describe;

const LB_POLICIES: [&str; 5] = ["round_robin", "least_request", "random", "ring_hash", "maglev"];

const HEALTH: [&str; 3] = ["healthy", "draining", "unhealthy"];

pub(super) fn mesh(file: &Value) -> Result<Mesh, Vec<(String, Problem)>> {
    let mut own = Vec::new();
    let mut problems = Vec::new();
    let mut services = Vec::new();
    let listen = Fields::read("", file, &mut own, |fields| {
        let listen = fields.socket("listen");
        for (path, name, value) in fields.named("services") {
            let mut found = Vec::new();
            let read = Fields::read(&path, value, &mut found, |fields| service(name, fields));
            services.extend(read);
            problems.extend(found.into_iter().map(|problem| (format!("service {name:?}"), problem)));
        }
        listen
    });
    problems.extend(own.into_iter().map(|problem| (String::new(), problem)));
    let listen = listen.flatten().unwrap_or(LISTEN);
    let mesh = Mesh { listen, services };
    clashes(&mesh, &mut problems);
    if problems.is_empty() {
        Ok(mesh)
    } else {
        Err(problems)
    }
}

/// Host names and addresses that more than one service claims.
fn clashes(mesh: &Mesh, problems: &mut Vec<(String, Problem)>) {
    let mut hosts = BTreeMap::new();
    let mut sockets = BTreeMap::new();
    if mesh.services.iter().any(|service| service.protocol != Protocol::Tcp) {
        sockets.insert(mesh.listen, "the listener of all services");
    }
    for service in &mesh.services {
        let mut problem = |field: &str, message: String| {
            let path = format!("services[{:?}].{field}", service.name);
            problems.push((format!("service {:?}", service.name), Problem::new(path, message)));
        };
        let names = if service.protocol == Protocol::Tcp { Vec::new() } else { domains(service) };
        for host in names {
            if let Some(other) = hosts.insert(host.clone(), service.name.as_str()) {
                problem("hosts", format!("{other:?} has the host name {host:?} too"));
            }
        }
        if let Some(address) = service.listen {
            if let Some(other) = sockets.insert(address, service.name.as_str()) {
                problem("listen", format!("{other} listens on {address} too"));
            }
        }
    }
}

fn service(name: &str, fields: &mut Fields<'_>) -> Service {
    if name.is_empty() || name.contains(['/', '*', ':']) || name.contains(char::is_whitespace) {
        fields.problem("", "the name of a service is a host name: without spaces, `/`, `*` and `:`");
    }
    let protocol = match fields.choice("protocol", &["http", "http2", "grpc", "tcp"]) {
        Some("http2") => Protocol::Http2,
        Some("grpc") => Protocol::Grpc,
        Some("tcp") => Protocol::Tcp,
        _ => Protocol::Http,
    };
    let listen = fields.socket("listen");
    let service = Service {
        name: name.to_owned(),
        port: fields.number("port", 1, 65_535),
        hosts: fields.texts("hosts"),
        protocol,
        listen,
        versions: versions(name, fields),
        lb_policy: fields.choice("lb_policy", &LB_POLICIES).unwrap_or("round_robin"),
        timeout: fields.time("timeout"),
        connect_timeout: fields.time("connect_timeout"),
        idle_timeout: fields.time("idle_timeout"),
        retries: fields.object("retries", retries),
        circuit_breakers: fields.object("circuit_breakers", circuit_breakers),
        outlier_detection: fields.object("outlier_detection", outlier_detection),
        health_check: fields.object("health_check", health_check),
    };
    if protocol == Protocol::Tcp {
        if service.listen.is_none() {
            fields.problem("listen", "is needed for tcp, which knows no host names");
        }
        let only_http: [(&str, bool); 3] = [
            ("hosts", !service.hosts.is_empty()),
            ("timeout", service.timeout.is_some()),
            ("retries", service.retries.is_some()),
        ];
        for (field, _) in only_http.iter().filter(|(_, set)| *set) {
            fields.problem(field, "has no meaning for tcp");
        }
        if service.versions.iter().any(|version| !version.headers.is_empty()) {
            fields.problem("versions", "headers have no meaning for tcp");
        }
    }
    service
}

fn versions(service: &str, fields: &mut Fields<'_>) -> Vec<Version> {
    let named = fields.named("versions");
    let plain = fields.items("endpoints");
    if named.is_empty() {
        if plain.is_empty() {
            fields.problem("endpoints", "there are none, and no `versions` either");
        }
        let endpoints = endpoints(plain, fields.problems());
        return vec![Version { cluster: service.to_owned(), weight: 1, headers: Vec::new(), endpoints }];
    }
    if !plain.is_empty() {
        fields.problem("endpoints", "stand in each of the `versions`, not beside them");
    }
    let mut versions = Vec::new();
    for (path, name, value) in named {
        versions.extend(Fields::read(&path, value, fields.problems(), |fields| Version {
            cluster: format!("{service}/{name}"),
            weight: fields.number("weight", 0, 1_000_000).unwrap_or(1),
            headers: headers(fields),
            endpoints: {
                let items = fields.items("endpoints");
                endpoints(items, fields.problems())
            },
        }));
    }
    if versions.iter().all(|version| version.weight == 0) {
        fields.problem("versions", "at least one weight must be above 0");
    }
    versions
}

fn headers(fields: &mut Fields<'_>) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    for (path, name, value) in fields.named("headers") {
        match value {
            Value::String(text) => headers.push((name.to_ascii_lowercase(), text.clone())),
            other => {
                let message = format!("must be text (in quotes), found {}", describe(other));
                fields.problems().push(Problem::new(path, message));
            }
        }
    }
    headers
}

fn endpoints(items: Vec<(String, &Value)>, problems: &mut Vec<Problem>) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for (path, item) in items {
        let plain;
        let value = match item {
            Value::String(address) => {
                plain = serde_json::json!({ "address": address });
                &plain
            }
            other => other,
        };
        let read = Fields::read(&path, value, problems, |fields| {
            let address = fields.text("address");
            let split = address.as_deref().and_then(host_and_port);
            if split.is_none() {
                let found = address.unwrap_or_default();
                fields
                    .problem("address", format!("{found:?} is no address with a port, such as 10.0.0.1:80"));
            }
            let weight = fields.number("weight", 1, 1_000).unwrap_or(1);
            let zone = fields.text("zone").unwrap_or_default();
            let priority = fields.number("priority", 0, 127).unwrap_or(0);
            let health = fields.choice("health", &HEALTH).unwrap_or("healthy");
            split.map(|(host, port)| Endpoint { host, port, weight, zone, priority, health })
        });
        endpoints.extend(read.flatten());
    }
    endpoints
}

fn host_and_port(address: &str) -> Option<(String, u16)> {
    if let Ok(socket) = address.parse::<std::net::SocketAddr>() {
        return Some((socket.ip().to_string(), socket.port())).filter(|(_, port)| *port != 0);
    }
    let (host, port) = address.rsplit_once(':')?;
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    // Digits and dots alone would be an IP address with a mistake.
    let name = host.bytes().all(letter) && host.bytes().any(|b| b.is_ascii_alphabetic());
    let port = port.parse().ok().filter(|port| *port != 0)?;
    name.then(|| (host.to_owned(), port))
}

fn retries(fields: &mut Fields<'_>) -> Retries {
    let attempts = fields.number("attempts", 1, 100).unwrap_or(1);
    let mut on = fields.texts("on");
    if on.is_empty() {
        on = ["connect-failure", "refused-stream", "reset"].map(str::to_owned).to_vec();
    }
    Retries { attempts, on, per_try_timeout: fields.time("per_try_timeout") }
}

fn circuit_breakers(fields: &mut Fields<'_>) -> Vec<(&'static str, u64)> {
    let most = u64::from(u32::MAX);
    let names = ["max_connections", "max_pending_requests", "max_requests", "max_retries"];
    names.into_iter().filter_map(|name| Some((name, fields.number(name, 0, most)?))).collect()
}

fn outlier_detection(fields: &mut Fields<'_>) -> Vec<(&'static str, Value)> {
    let mut set = Vec::new();
    let most = u64::from(u32::MAX);
    set.extend(fields.number("consecutive_5xx", 1, most).map(|n| ("consecutive_5xx", n.into())));
    set.extend(fields.time("interval").map(|time| ("interval", time.into())));
    set.extend(fields.time("base_ejection_time").map(|time| ("base_ejection_time", time.into())));
    let percent = fields.number("max_ejection_percent", 0, 100);
    set.extend(percent.map(|n| ("max_ejection_percent", n.into())));
    set
}

fn health_check(fields: &mut Fields<'_>) -> HealthCheck {
    HealthCheck {
        path: fields.text("path"),
        interval: fields.time("interval").unwrap_or_else(|| "5s".to_owned()),
        timeout: fields.time("timeout").unwrap_or_else(|| "1s".to_owned()),
    }
}
