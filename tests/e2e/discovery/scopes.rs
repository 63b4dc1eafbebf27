//! Scoped routes beside Envoy: which table serves a request, what is waited for, what is refused.

use outrigger_control_api::server::ResourceType;

use super::beside::{Both, Side};
use super::clients::named;
use super::mesh::Mesh;
use crate::harness::client::Client;
use crate::harness::{eventually, DEADLINE};
use crate::peers;

/// The resources of a listener whose routes are scoped by the first element of `x-scope`, and on demand by a filter.
fn resources(port: u16, origins: &[(&str, u16)], scopes: &[String], tables: &[(&str, &str)]) -> Vec<String> {
    let mut mesh = Mesh::default();
    mesh.listeners.insert("main".into(), port);
    for (name, origin) in origins {
        mesh.services.insert((*name).into(), vec![*origin]);
    }
    for (table, cluster) in tables {
        mesh.tables.insert((*table).into(), vec![("/".into(), vec![((*cluster).into(), 1)])]);
    }
    let mut all = mesh.resources();
    let listener = all.last_mut().expect("the listener");
    let rds = "rds: { route_config_name: main, config_source: { resource_api_version: V3, ads: {} } }";
    assert!(listener.contains(rds));
    *listener = listener
        .replace(
            rds,
            r#"scoped_routes:
        name: scopes
        rds_config_source: { resource_api_version: V3, initial_fetch_timeout: 2s, ads: {} }
        scoped_rds: { scoped_rds_config_source: { resource_api_version: V3, ads: {} } }
        scope_key_builder:
          fragments:
          - header_value_extractor: { name: x-scope, element_separator: ";", element: { key: tenant, separator: "=" } }
          - header_value_extractor: { name: x-scope, element_separator: ";", index: 0 }"#,
        )
        .replace(
            "      - name: router",
            r#"      - name: envoy.filters.http.on_demand
        typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand }
      - name: router"#,
        );
    all.extend(scopes.iter().cloned());
    all
}

/// A scope for requests with `x-scope: FIRST;...tenant=TENANT`.
fn scope(name: &str, tenant: &str, first: &str, table: &str, on_demand: bool) -> String {
    format!(
        r#"
"@type": type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration
name: {name}
route_configuration_name: {table}
on_demand: {on_demand}
key: {{ fragments: [{{ string_key: {tenant} }}, {{ string_key: {first} }}] }}
"#
    )
}

async fn answer(side: &Side, value: &str) -> String {
    let request = match value {
        "" => "GET / HTTP/1.1\r\nHost: t.test\r\n\r\n".to_owned(),
        value => format!("GET / HTTP/1.1\r\nHost: t.test\r\nx-scope: {value}\r\n\r\n"),
    };
    let Ok(mut client) = Client::connect(side.port).await else { return "no connection".to_owned() };
    match client.exchange(request.as_bytes()).await {
        Ok(answer) => format!("{} {}", answer.status(), answer.text()),
        Err(error) => error.to_string(),
    }
}

/// Waits until both answer this to requests of the scope.
async fn same(both: &Both, value: &str, expected: &str) {
    for side in &both.sides {
        let same = || async { answer(side, value).await == expected };
        let same = eventually(DEADLINE * 2, same).await;
        let last = if same { String::new() } else { answer(side, value).await };
        assert!(same, "{value:?}: {:?} answers {last:?}, not {expected:?}", side.proxy.kind());
    }
}

fn counted(name: &str) -> bool {
    let ends = [
        "config_reload",
        "update_success",
        "update_rejected",
        "update_attempt",
        "all_scopes",
        "active_scopes",
        "on_demand_scopes",
    ];
    name.starts_with("http.main.scoped_rds.scopes.") && ends.iter().any(|end| name.ends_with(end))
}

async fn scoped(delta: bool) {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (one, two) = (named("one").await, named("two").await);
    let origins = [("one", one.port()), ("two", two.port())];
    let set = |scopes: Vec<String>, tables: Vec<(&'static str, &'static str)>| {
        move |port: u16| resources(port, &origins, &scopes, &tables)
    };
    let a = |table: &str| scope("a", "x", "p", table, false);
    let b = scope("b", "y", "p", "two", false);
    let tables = vec![("one", "one"), ("two", "two")];
    let both = Both::start(delta, set(vec![a("one"), b.clone()], tables.clone())).await;
    same(&both, "p;tenant=x", "200 one").await;
    same(&both, "p;tenant=y;tenant=x", "200 two").await;
    for missing in ["", "p", "p;tenant=z", "q;tenant=x", "tenant=x", "p;tenant"] {
        same(&both, missing, "404 ").await;
    }
    both.same(counted, "at first").await;
    // Another table, and one scope less.
    both.set(set(vec![a("two")], tables.clone())).await;
    same(&both, "p;tenant=x", "200 two").await;
    same(&both, "p;tenant=y", "404 ").await;
    both.same(counted, "after changes").await;
    // Two with one key.
    let other = scope("other", "x", "p", "one", false);
    both.set(set(vec![a("two"), other], tables.clone())).await;
    let [envoy, ours] = both.verdicts(&ResourceType::SCOPED_ROUTES).await;
    let (envoy, ours) = (envoy.expect_err("Envoy refuses"), ours.expect_err("refused"));
    for text in [&envoy, &ours] {
        assert!(text.contains("scope key conflict") && text.contains("other"), "{text}");
    }
    same(&both, "p;tenant=x", "200 two").await;
    // On demand: nobody asks before a request does.
    let lazy = scope("lazy", "z", "p", "late", true);
    let missing = scope("missing", "m", "p", "missing", true);
    let mut with_late = tables.clone();
    with_late.push(("late", "one"));
    both.set(set(vec![a("two"), lazy, missing], with_late)).await;
    same(&both, "p;tenant=x", "200 two").await;
    let asked = || {
        let streams = both.control.cache.streams();
        let types = streams.iter().flat_map(|stream| &stream.types);
        types.filter(|t| t.kind == ResourceType::ROUTE).map(|t| t.subscribed).sum::<usize>()
    };
    assert_eq!(asked(), 2, "each asks for one table");
    // A refused response and its successor come in one piece or two.
    let gauges = |name: &str| counted(name) && name.ends_with("_scopes");
    both.same(gauges, "with scopes on demand").await;
    for side in &both.sides {
        assert_eq!(
            answer(side, "p;tenant=z").await,
            "200 one",
            "{:?}: at the first request",
            side.proxy.kind()
        );
    }
    assert_eq!(asked(), 4);
    both.same(gauges, "after a request").await;
    // In Envoy such a request waits for as long as its client does.
    assert_eq!(answer(&both.sides[1], "p;tenant=m").await, "404 ", "no such table");
}

#[tokio::test]
async fn requests_are_routed_by_scope_as_in_envoy_delta() {
    scoped(true).await;
}

#[tokio::test]
async fn requests_are_routed_by_scope_as_in_envoy_state_of_the_world() {
    scoped(false).await;
}
