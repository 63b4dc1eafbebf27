//! The small endpoints.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::http::StatusCode;
use serde_json::{json, Map, Value};

use super::{command, AdminCommand, AdminState, Answer, Params, ENDPOINTS};
use crate::bootstrap::flags::HOT_RESTART_VERSION;
use crate::config::discovery::SanKind;
use crate::discovery::view::View;
use crate::listener::permissive::{listeners, Peer, Permissive};
use crate::telemetry::log::{LogControl, LogError};
use crate::telemetry::process::{Memory, ServerState, VERSION};
use crate::telemetry::{access_log, metrics};
use crate::tls::expiry::{days_between, held, Held};
use crate::tls::peer::Facts;

/// A list of links, and a button for each action. Everything on it is a constant of this program.
pub(super) fn home() -> Answer {
    let mut out = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Outrigger admin</title>\n\
         <style>body{font-family:sans-serif;margin:2em}td{padding:.2em .8em}form{margin:0}</style></head>\n\
         <body><h1>Outrigger admin</h1>\n<table>\n",
    );
    for endpoint in ENDPOINTS.iter().filter(|endpoint| endpoint.path != "/") {
        // Relative, so that the page works behind a path of somebody else's.
        let target = endpoint.path.trim_start_matches('/');
        let link = match endpoint.mutates {
            true => format!("<form method=\"post\" action=\"{target}\"><button>{target}</button></form>"),
            false => format!("<a href=\"{target}\">{target}</a>"),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "<tr><td>{link}</td><td>{}</td></tr>", endpoint.help);
    }
    out += "</table></body></html>\n";
    Answer { content_type: "text/html; charset=UTF-8", ..Answer::text(out) }
}

pub(super) fn ready(state: &AdminState, params: &Params) -> Answer {
    let now = state.server.state();
    let status = match now {
        ServerState::Live => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut text = format!("{}\n", now.name());
    if let Some(discovery) = state.discovery.as_ref().filter(|_| params.has("verbose")) {
        for line in discovery.readiness() {
            text += &line;
            text.push('\n');
        }
    }
    Answer { status, ..Answer::text(text) }
}

pub(super) fn server_info(state: &AdminState, _: &Params) -> Answer {
    let uptime = format!("{}s", state.server.uptime().as_secs());
    let mut node = (*state.node).clone();
    if let Value::Object(node) = &mut node {
        node.entry("user_agent_name").or_insert_with(|| "outrigger".into());
    }
    Answer::json(&json!({
        "version": format!("outrigger/{VERSION}"),
        "state": state.server.state().name(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": HOT_RESTART_VERSION,
        "hot_restart_initializing": false,
        "command_line_options": *state.options,
        "node": node,
    }))
}

/// The certificates of all contexts.
pub(super) fn certs() -> Answer {
    let now = SystemTime::now();
    let contexts = held().into_iter().filter(|held| !held.own.is_empty() || !held.trusted.is_empty());
    let one = |held: Held| {
        let trusted = held.trusted.iter().flat_map(|trusted| {
            trusted.trusted().map(|(path, certificate)| certificate_json(&path, &Facts::of(certificate), now))
        });
        let own = held.own.iter().map(|own| certificate_json(&own.path, own.facts(), now));
        json!({"ca_cert": trusted.collect::<Vec<_>>(), "cert_chain": own.collect::<Vec<_>>()})
    };
    Answer::json(&json!({"certificates": contexts.map(one).collect::<Vec<_>>()}))
}

/// What listeners that take both mTLS and plain text would refuse if they took only mTLS.
pub(super) fn strict_mtls() -> Answer {
    let one = |listener: Arc<Permissive>| {
        let peers = listener.peers();
        let total: u64 = peers.iter().map(|(_, peer)| peer.connections).sum();
        let peer = |(address, peer): &(Option<IpAddr>, Peer)| {
            json!({
                "address": address.map_or_else(|| "other".to_owned(), |address| address.to_string()),
                "connections": peer.connections,
                "last": time(Some(peer.last)),
            })
        };
        json!({
            "name": listener.name(),
            "would_refuse": total,
            "peers": peers.iter().map(peer).collect::<Vec<_>>(),
        })
    };
    Answer::json(&json!({"listeners": listeners().into_iter().map(one).collect::<Vec<_>>()}))
}

fn time(time: Option<SystemTime>) -> String {
    let time = time.and_then(|time| jiff::Timestamp::try_from(time).ok());
    time.map(|time| time.to_string()).unwrap_or_default()
}

fn certificate_json(path: &str, facts: &Facts, now: SystemTime) -> Value {
    let kinds = [(SanKind::Dns, "dns"), (SanKind::Uri, "uri"), (SanKind::Ip, "ip_address")];
    let names =
        kinds.iter().flat_map(|(kind, key)| facts.of_kind(*kind).map(move |name| json!({*key: name})));
    json!({
        "path": path,
        "serial_number": facts.serial,
        "subject_alt_names": names.collect::<Vec<_>>(),
        "days_until_expiration": facts.not_after.map_or(0, |end| days_between(now, end)).to_string(),
        "valid_from": time(facts.not_before),
        "expiration_time": time(facts.not_after),
    })
}

pub(super) fn memory() -> Answer {
    let memory = Memory::read();
    Answer::json(&json!({
        "allocated": memory.allocated.to_string(),
        "heap_size": memory.heap.to_string(),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": memory.physical.to_string(),
    }))
}

pub(super) fn health(state: &AdminState, fail: bool) -> Answer {
    state.server.fail_health(fail);
    command(state, AdminCommand::HealthFail(fail))
}

pub(super) fn drain_listeners(state: &AdminState, params: &Params) -> Answer {
    let drain = AdminCommand::DrainListeners {
        graceful: params.has("graceful"),
        inbound_only: params.has("inboundonly"),
        skip_exit: params.has("skip_exit"),
    };
    command(state, drain)
}

pub(super) fn reset_counters() -> Answer {
    metrics::reset_counters();
    Answer::text("OK\n")
}

pub(super) fn reopen_logs() -> Answer {
    access_log::reopen_all();
    Answer::text("OK\n")
}

const LOGGING_USAGE: &str = "usage: /logging?<name>=<level> (change single level)\n\
    usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
    usage: /logging?level=<level> (change all levels)\n\
    levels: trace debug info warning error critical off\n";

pub(super) fn logging(state: &AdminState, params: &Params) -> Answer {
    let levels = || {
        let mut out = String::from("active loggers:\n");
        for (name, level) in state.log.levels() {
            out += &format!("  {name}: {}\n", level.name());
        }
        out
    };
    match change_levels(&state.log, params) {
        Ok(()) => Answer::text(levels()),
        Err(error) => Answer::bad_request(format!("error: {error}\n\n{LOGGING_USAGE}{}", levels())),
    }
}

fn change_levels(log: &LogControl, params: &Params) -> Result<(), LogError> {
    for (name, value) in &params.0 {
        match name.as_str() {
            "level" => log.set_all(value.parse()?),
            "paths" => log.set(value)?,
            name => log.set(&format!("{name}:{value}"))?,
        }
    }
    Ok(())
}

/// The layers of the bootstrap: static ones, and those that a control plane fills.
pub(super) fn runtime(state: &AdminState, _: &Params) -> Answer {
    let bootstrap = state.bootstrap.json();
    let layers = bootstrap.pointer("/layered_runtime/layers").and_then(Value::as_array);
    let layers: &[Value] = layers.map_or(&[], Vec::as_slice);
    let discovered = state.discovery.as_ref().map(View::runtime).unwrap_or_default();
    let mut entries: Map<String, Value> = Map::new();
    for (index, layer) in layers.iter().enumerate() {
        let mut values = Vec::new();
        let name = layer.get("name").and_then(Value::as_str).unwrap_or_default();
        let found = discovered.iter().find(|(discovered, _)| **discovered == *name);
        if let Some(layer) = layer.get("static_layer").or(found.map(|(_, values)| values)) {
            flatten("", layer, &mut values);
        }
        for (key, value) in values {
            let fresh = || json!({"final_value": "", "layer_values": vec![""; layers.len()]});
            let entry = entries.entry(key).or_insert_with(fresh);
            if let Some(place) = entry.get_mut("layer_values").and_then(|values| values.get_mut(index)) {
                *place = value.clone().into();
            }
            if let Some(place) = entry.get_mut("final_value") {
                *place = value.into();
            }
        }
    }
    entries.sort_keys();
    let names: Vec<&Value> = layers.iter().filter_map(|layer| layer.get("name")).collect();
    Answer::json(&json!({"layers": names, "entries": entries}))
}

fn flatten(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
    let Value::Object(fields) = value else {
        let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        return out.push((prefix.to_owned(), text));
    };
    if fields.contains_key("numerator") {
        return out.push((prefix.to_owned(), value.to_string()));
    }
    for (name, value) in fields {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        flatten(&key, value, out);
    }
}
