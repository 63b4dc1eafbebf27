//! `/config_dump`: the configuration in force, in the shape of `envoy.admin.v3.ConfigDump`.

use std::collections::HashMap;

use axum::http::StatusCode;
use jiff::Timestamp;
use serde_json::{json, Map, Value};

use super::endpoints_dump::endpoints;
use super::{AdminState, Answer, Params};
use crate::discovery::view::{Parts, View};

const ADMIN: &str = "type.googleapis.com/envoy.admin.v3";

/// The repeated fields of the dump's messages, and the type of their elements.
const RESOURCES: &[(&str, &str, &str)] = &[
    ("ClustersConfigDump", "static_clusters", "ClustersConfigDump.StaticCluster"),
    ("ClustersConfigDump", "dynamic_active_clusters", "ClustersConfigDump.DynamicCluster"),
    ("ClustersConfigDump", "dynamic_warming_clusters", "ClustersConfigDump.DynamicCluster"),
    ("EndpointsConfigDump", "static_endpoint_configs", "EndpointsConfigDump.StaticEndpointConfig"),
    ("EndpointsConfigDump", "dynamic_endpoint_configs", "EndpointsConfigDump.DynamicEndpointConfig"),
    ("ListenersConfigDump", "static_listeners", "ListenersConfigDump.StaticListener"),
    ("ListenersConfigDump", "dynamic_listeners", "ListenersConfigDump.DynamicListener"),
    (
        "ScopedRoutesConfigDump",
        "inline_scoped_route_configs",
        "ScopedRoutesConfigDump.InlineScopedRouteConfigs",
    ),
    (
        "ScopedRoutesConfigDump",
        "dynamic_scoped_route_configs",
        "ScopedRoutesConfigDump.DynamicScopedRouteConfigs",
    ),
    ("RoutesConfigDump", "static_route_configs", "RoutesConfigDump.StaticRouteConfig"),
    ("RoutesConfigDump", "dynamic_route_configs", "RoutesConfigDump.DynamicRouteConfig"),
    ("EcdsConfigDump", "ecds_filters", "EcdsConfigDump.EcdsFilterConfig"),
    ("SecretsConfigDump", "static_secrets", "SecretsConfigDump.StaticSecret"),
    ("SecretsConfigDump", "dynamic_active_secrets", "SecretsConfigDump.DynamicSecret"),
    ("SecretsConfigDump", "dynamic_warming_secrets", "SecretsConfigDump.DynamicSecret"),
];

pub(super) fn config_dump(state: &AdminState, params: &Params) -> Answer {
    let names = match params.regex("name_regex") {
        Ok(names) => names,
        Err(answer) => return answer,
    };
    let mut dump = dump(state, params.has("include_eds"));
    for config in &mut dump {
        redact(config);
        if let (Some(names), Value::Object(config)) = (&names, config) {
            retain_named(config, names);
        }
    }
    let configs = match (params.get("resource"), params.get("mask").filter(|mask| !mask.is_empty())) {
        (Some(resource), mask) => match one_resource(dump, resource) {
            Ok(found) => match mask {
                Some(mask) => found.iter().map(|each| masked(each, mask)).collect(),
                None => found,
            },
            Err(answer) => return answer,
        },
        (None, Some(mask)) => {
            let kept: Vec<Value> =
                dump.iter().map(|config| masked(config, mask)).filter(has_fields).collect();
            if kept.is_empty() {
                return Answer::bad_request(format!(
                    "FieldMask {mask} could not be successfully applied to any configs."
                ));
            }
            kept
        }
        (None, None) => dump,
    };
    Answer::json(&json!({ "configs": configs }))
}

/// Every message of the dump, in Envoy's order.
fn dump(state: &AdminState, include_eds: bool) -> Vec<Value> {
    let updated = Timestamp::try_from(state.loaded).unwrap_or(Timestamp::UNIX_EPOCH);
    let updated = updated.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
    let mut bootstrap = state.bootstrap.json();
    if let Value::Object(fields) = &mut bootstrap {
        fields.shift_remove("@type");
    }
    let statics = |field: &str| -> Vec<Value> {
        let found = bootstrap.pointer(&format!("/static_resources/{field}")).and_then(Value::as_array);
        found.cloned().unwrap_or_default()
    };
    let entries = |values: Vec<Value>, key: &str, type_name: &str| -> Vec<Value> {
        let entry = |value| json!({key: typed(type_name, value), "last_updated": updated});
        values.into_iter().map(entry).collect()
    };
    let mut clusters = statics("clusters");
    clusters.sort_by(|a, b| name_of(a).cmp(name_of(b)));
    let listeners = statics("listeners");
    let mut inline = Inline::default();
    listeners.iter().for_each(|listener| inline.add(listener, &updated));

    let mut dump = vec![message(
        "BootstrapConfigDump",
        [("bootstrap", bootstrap.clone()), ("last_updated", updated.clone().into())],
    )];
    let listed = |kind: &str, field: &'static str, entries: Vec<Value>| {
        let field = (!entries.is_empty()).then_some((field, entries.into()));
        message(kind, field)
    };
    let discovery = state.discovery.as_ref();
    let (version, dynamic) = discovery.map(View::clusters).unwrap_or_default();
    let endpoints = include_eds.then(|| {
        let discovered = discovery.map(View::endpoints).unwrap_or_default();
        endpoints(state, &assignments(&clusters, &dynamic), &discovered)
    });
    dump.push(extended(
        listed(
            "ClustersConfigDump",
            "static_clusters",
            entries(clusters, "cluster", "envoy.config.cluster.v3.Cluster"),
        ),
        version,
        dynamic,
    ));
    if let Some(endpoints) = endpoints {
        dump.push(extended(message("EndpointsConfigDump", []), String::new(), endpoints));
    }
    let (version, dynamic) = discovery.map(View::listeners).unwrap_or_default();
    dynamic.iter().flat_map(|(_, listeners)| listeners).for_each(|listener| inline.add_dynamic(listener));
    dump.push(extended(
        listed(
            "ListenersConfigDump",
            "static_listeners",
            entries(listeners, "listener", "envoy.config.listener.v3.Listener"),
        ),
        version,
        dynamic,
    ));
    let scopes = discovery.map(View::scopes).unwrap_or_default();
    let inline_scopes = ("inline_scoped_route_configs", inline.scopes);
    let scopes = std::iter::once(inline_scopes).chain(scopes).collect();
    dump.push(extended(message("ScopedRoutesConfigDump", []), String::new(), scopes));
    let dynamic = discovery.map(View::routes).unwrap_or_default();
    let dynamic = std::iter::once(("static_route_configs", inline.routes)).chain(dynamic).collect();
    dump.push(extended(message("RoutesConfigDump", []), String::new(), dynamic));
    let extensions = discovery.map(View::extensions).unwrap_or_default();
    if extensions.iter().any(|(_, filters)| !filters.is_empty()) {
        dump.push(extended(message("EcdsConfigDump", []), String::new(), extensions));
    }
    let dynamic = discovery.map(View::secrets).unwrap_or_default();
    let secrets = listed("SecretsConfigDump", "static_secrets", secrets(statics("secrets"), &updated));
    dump.push(extended(secrets, String::new(), dynamic));
    dump
}

/// A message of the dump with what discovery adds to it.
fn extended(mut message: Value, version: String, parts: Parts) -> Value {
    if let Value::Object(fields) = &mut message {
        if !version.is_empty() {
            fields.insert("version_info".to_owned(), version.into());
        }
        for (field, values) in parts.into_iter().filter(|(_, values)| !values.is_empty()) {
            fields.insert(field.to_owned(), values.into());
        }
    }
    message
}

fn secrets(secrets: Vec<Value>, updated: &str) -> Vec<Value> {
    let entry = |secret: Value| {
        let name = name_of(&secret).to_owned();
        let secret = typed("envoy.extensions.transport_sockets.tls.v3.Secret", secret);
        json!({"name": name, "last_updated": updated, "secret": secret})
    };
    secrets.into_iter().map(entry).collect()
}

fn message(kind: &str, fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let mut message = Map::new();
    message.insert("@type".into(), format!("{ADMIN}.{kind}").into());
    message.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
    message.into()
}

/// `value` with its `@type` first.
pub(super) fn typed(type_name: &str, value: Value) -> Value {
    let mut message = Map::new();
    message.insert("@type".into(), format!("type.googleapis.com/{type_name}").into());
    if let Value::Object(fields) = value {
        message.extend(fields.into_iter().filter(|(name, _)| name != "@type"));
    }
    message.into()
}

fn name_of(resource: &Value) -> &str {
    let field = |name| resource.get(name).and_then(Value::as_str);
    field("name").or_else(|| field("cluster_name")).unwrap_or_default()
}

/// The endpoints that stand in clusters, by the clusters' names.
fn assignments(fixed: &[Value], dynamic: &Parts) -> HashMap<String, Value> {
    let dynamic = dynamic.iter().filter(|(field, _)| *field == "dynamic_active_clusters");
    let dynamic = dynamic.flat_map(|(_, states)| states).filter_map(|state| state.get("cluster"));
    let of = |cluster: &Value| Some((name_of(cluster).to_owned(), cluster.get("load_assignment")?.clone()));
    fixed.iter().chain(dynamic).filter_map(of).collect()
}

/// Route tables and scopes that stand in listeners: Envoy shows them also by themselves, as static ones whoever gave
/// the listener.
#[derive(Default)]
struct Inline {
    routes: Vec<Value>,
    scopes: Vec<Value>,
}

impl Inline {
    /// The states of an element of `dynamic_listeners`.
    fn add_dynamic(&mut self, listener: &Value) {
        for state in ["active_state", "warming_state"].iter().filter_map(|state| listener.get(*state)) {
            let updated = state.get("last_updated").and_then(Value::as_str).unwrap_or_default();
            if let Some(listener) = state.get("listener") {
                self.add(listener, updated);
            }
        }
    }

    /// What stands in the connection managers of a listener.
    fn add(&mut self, value: &Value, updated: &str) {
        match value {
            Value::Object(fields) => {
                let kind = fields.get("@type").and_then(Value::as_str).unwrap_or_default();
                if kind.ends_with(".HttpConnectionManager") {
                    self.add_manager(fields, updated);
                } else {
                    fields.values().for_each(|value| self.add(value, updated));
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.add(item, updated)),
            _ => {}
        }
    }

    fn add_manager(&mut self, manager: &Map<String, Value>, updated: &str) {
        if let Some(table) = manager.get("route_config") {
            let table = typed("envoy.config.route.v3.RouteConfiguration", table.clone());
            self.routes.push(json!({"route_config": table, "last_updated": updated}));
        }
        let scoped = manager.get("scoped_routes");
        let list = scoped.and_then(|scoped| {
            scoped.pointer("/scoped_route_configurations_list/scoped_route_configurations")
        });
        if let (Some(scoped), Some(Value::Array(list))) = (scoped, list) {
            let scope =
                |scope: &Value| typed("envoy.config.route.v3.ScopedRouteConfiguration", scope.clone());
            self.scopes.push(json!({
                "name": name_of(scoped),
                "scoped_route_configs": list.iter().map(scope).collect::<Vec<_>>(),
                "last_updated": updated,
            }));
        }
    }
}

/// Keeps the resources whose names match. The bootstrap stays as it is, as in Envoy.
fn retain_named(config: &mut Map<String, Value>, names: &regex::Regex) {
    for (_, field, _) in RESOURCES {
        let Some(Value::Array(entries)) = config.get_mut(*field) else { continue };
        // Lists of scopes stay, as in Envoy, with those of their scopes whose names match.
        if field.ends_with("scoped_route_configs") {
            entries.iter_mut().filter_map(Value::as_object_mut).for_each(|list| retain_scopes(list, names));
            continue;
        }
        entries.retain(|entry| {
            let Value::Object(entry) = entry else { return false };
            // A dynamic listener is named beside its states.
            let own = entry.get("name").and_then(Value::as_str).is_some_and(|name| names.is_match(name));
            own || entry.values().any(|resource| resource.is_object() && names.is_match(name_of(resource)))
        });
        if entries.is_empty() {
            config.shift_remove(*field);
        }
    }
}

fn retain_scopes(list: &mut Map<String, Value>, names: &regex::Regex) {
    const SCOPES: &str = "scoped_route_configs";
    let Some(Value::Array(scopes)) = list.get_mut(SCOPES) else { return };
    scopes.retain(|scope| names.is_match(name_of(scope)));
    if scopes.is_empty() {
        list.shift_remove(SCOPES);
    }
}

/// The elements of one repeated field, each with its type.
fn one_resource(dump: Vec<Value>, resource: &str) -> Result<Vec<Value>, Answer> {
    if resource == "bootstrap" {
        let message = "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field";
        return Err(Answer::bad_request(message));
    }
    let Some((_, _, kind)) = RESOURCES.iter().find(|(_, field, _)| *field == resource) else {
        let message = format!("{resource} not found in config dump");
        return Err(Answer { status: StatusCode::NOT_FOUND, ..Answer::text(message) });
    };
    let entries = dump.into_iter().find_map(|mut config| match config.get_mut(resource).map(Value::take) {
        Some(Value::Array(entries)) => Some(entries),
        _ => None,
    });
    let element = |entry: Value| typed(&format!("envoy.admin.v3.{kind}"), entry);
    Ok(entries.unwrap_or_default().into_iter().map(element).collect())
}

/// Keeps the fields that the comma-separated paths of `mask` name, and every `@type` on the way.
fn masked(value: &Value, mask: &str) -> Value {
    let mut kept = Value::Object(Map::new());
    for path in mask.split(',').map(str::trim).filter(|path| !path.is_empty()) {
        keep(value, path, &mut kept);
    }
    if let (Some(kind), Value::Object(kept)) = (value.get("@type"), &mut kept) {
        kept.shift_insert(0, "@type".into(), kind.clone());
    }
    kept
}

/// Copies what `path` names from `value` into `kept`; says whether there was anything.
fn keep(value: &Value, path: &str, kept: &mut Value) -> bool {
    let (field, rest) = path.split_once('.').map_or((path, None), |(field, rest)| (field, Some(rest)));
    let (Some(inner), Value::Object(kept)) = (value.get(field), kept) else { return false };
    let Some(rest) = rest else {
        kept.insert(field.into(), inner.clone());
        return true;
    };
    let mut below = kept.get(field).cloned().unwrap_or_else(|| Value::Object(Map::new()));
    if !keep(inner, rest, &mut below) {
        return false;
    }
    if let (Some(kind), Value::Object(below)) = (inner.get("@type"), &mut below) {
        if !below.contains_key("@type") {
            below.shift_insert(0, "@type".into(), kind.clone());
        }
    }
    kept.insert(field.into(), below);
    true
}

fn has_fields(config: &Value) -> bool {
    config.as_object().is_some_and(|fields| fields.keys().any(|name| name != "@type"))
}

/// Fields that Envoy marks as sensitive: their values are not shown to whoever reaches the port.
const SENSITIVE: &[&str] = &[
    "private_key",
    "password",
    "session_ticket_keys",
    "secret",
    "hmac_secret",
    "token_secret",
    "client_secret",
    "shared_secret",
    "access_token",
    "secret_access_key",
    "session_token",
    // Names and digests of passwords.
    "users",
];

fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                // The dump's own `secret` is a typed resource with such fields in it.
                // Those of OAuth2 have secrets in them, those of `api_key_auth` are a list of keys.
                let keys = name == "credentials" && value.is_array();
                if keys || SENSITIVE.contains(&name.as_str()) && value.get("@type").is_none() {
                    blank(value);
                } else {
                    redact(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

/// Replaces what is written in the configuration itself; names of files and of other resources are
/// no secrets.
fn blank(value: &mut Value) {
    match value {
        Value::String(text) => *text = "[redacted]".into(),
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "filename"
                    | "environment_variable"
                    | "name"
                    | "@type"
                    | "path"
                    | "watched_directory"
                    | "sds_config" => {}
                    // The word above in base64.
                    "inline_bytes" => *value = "W3JlZGFjdGVkXQ==".into(),
                    _ => blank(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(blank),
        _ => {}
    }
}
