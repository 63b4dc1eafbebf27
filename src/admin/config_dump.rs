//! `/config_dump`: the configuration in force, in the shape of `envoy.admin.v3.ConfigDump`.

use axum::http::StatusCode;
use jiff::Timestamp;
use serde_json::{json, Map, Value};

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
    let mut routes = Vec::new();
    listeners.iter().for_each(|listener| inline_routes(listener, &mut routes));

    let mut dump = vec![message(
        "BootstrapConfigDump",
        [("bootstrap", bootstrap.clone()), ("last_updated", updated.clone().into())],
    )];
    let endpoints: Vec<Value> =
        clusters.iter().filter_map(|cluster| cluster.get("load_assignment").cloned()).collect();
    let listed = |kind: &str, field: &'static str, entries: Vec<Value>| {
        let field = (!entries.is_empty()).then_some((field, entries.into()));
        message(kind, field)
    };
    let discovery = state.discovery.as_ref();
    let (version, dynamic) = discovery.map(View::clusters).unwrap_or_default();
    dump.push(extended(
        listed(
            "ClustersConfigDump",
            "static_clusters",
            entries(clusters, "cluster", "envoy.config.cluster.v3.Cluster"),
        ),
        version,
        dynamic,
    ));
    if include_eds {
        let kind = "envoy.config.endpoint.v3.ClusterLoadAssignment";
        let endpoints = entries(endpoints, "endpoint_config", kind);
        let endpoints = listed("EndpointsConfigDump", "static_endpoint_configs", endpoints);
        let dynamic = discovery.map(View::endpoints).unwrap_or_default();
        dump.push(extended(endpoints, String::new(), dynamic));
    }
    let (version, dynamic) = discovery.map(View::listeners).unwrap_or_default();
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
    dump.push(extended(message("ScopedRoutesConfigDump", []), String::new(), scopes));
    let dynamic = discovery.map(View::routes).unwrap_or_default();
    dump.push(extended(
        listed(
            "RoutesConfigDump",
            "static_route_configs",
            entries(routes, "route_config", "envoy.config.route.v3.RouteConfiguration"),
        ),
        String::new(),
        dynamic,
    ));
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
fn typed(type_name: &str, value: Value) -> Value {
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

/// Every `route_config` in a listener's connection managers.
fn inline_routes(value: &Value, routes: &mut Vec<Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == "route_config" {
                    routes.push(value.clone());
                } else {
                    inline_routes(value, routes);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| inline_routes(item, routes)),
        _ => {}
    }
}

/// Keeps the resources whose names match. The bootstrap stays as it is, as in Envoy.
fn retain_named(config: &mut Map<String, Value>, names: &regex::Regex) {
    for (_, field, _) in RESOURCES {
        let Some(Value::Array(entries)) = config.get_mut(*field) else { continue };
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
