//! HTTP filters whose configuration a control plane sends (ECDS), beside the real Envoy.

use outrigger_control_api::server::ResourceType;

use super::beside::Both;
use super::mesh::Mesh;
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin};
use crate::harness::{eventually, DEADLINE};
use crate::peers;

const BRIDGE: &str = "envoy.extensions.filters.http.grpc_http1_bridge.v3.Config";

/// A mesh whose listener takes the filter `bridge` from the control plane.
fn resources(port: u16, origin: u16, more: &str, extension: Option<String>) -> Vec<String> {
    let mut mesh = Mesh::simple(port, &[origin]);
    mesh.services.insert("spare".into(), vec![origin]);
    let filter = format!(
        "      http_filters:\n      - name: bridge\n        config_discovery:\n          config_source: {{ \
         resource_api_version: V3, ads: {{}}, initial_fetch_timeout: 1s }}\n          \
         type_urls: [type.googleapis.com/{BRIDGE}]\n{more}"
    );
    let mut resources = mesh.resources();
    for text in resources.iter_mut().filter(|text| text.contains("v3.Listener")) {
        *text = text.replace("      http_filters:\n", &filter);
    }
    resources.extend(extension);
    resources
}

fn extension(kind: &str, fields: &str) -> Option<String> {
    Some(format!(
        "\"@type\": type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig\nname: bridge\n\
         typed_config: {{ \"@type\": type.googleapis.com/{kind}, {fields} }}\n"
    ))
}

/// What becomes of a call with a query: an empty body is an answer of the proxy's own.
async fn call(port: u16) -> String {
    let request = b"POST /t.A/B?q=1 HTTP/1.1\r\nhost: t.test\r\ncontent-type: application/grpc\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0";
    let Ok(mut client) = Client::connect(port).await else { return "no connection".to_owned() };
    match client.exchange(request).await {
        Ok(answer) => format!("{} {} {:?}", answer.status(), answer.text(), answer.header("grpc-status")),
        Err(_) => "no answer".to_owned(),
    }
}

/// The answer where a filter has no configuration.
const UNTOLD: &str = "200  Some(\"2\")";

async fn all_answer(both: &Both, what: &str, expected: &str) {
    for side in &both.sides {
        let same = || async { call(side.port).await == expected };
        let same = eventually(DEADLINE * 2, same).await;
        let last = if same { String::new() } else { call(side.port).await };
        assert!(same, "{what}: {:?} answers {last:?}, not {expected:?}", side.proxy.kind());
    }
}

fn counted(name: &str) -> bool {
    let ends = ["config_reload", "config_fail", "update_success", "update_rejected", "init_fetch_timeout"];
    name.starts_with("extension_config_discovery.") && ends.iter().any(|end| name.ends_with(end))
}

async fn filters_come_and_go(delta: bool) {
    if !peers::have(&["envoy"]) {
        return;
    }
    let origin = Origin::with(false, |request| Answer::ok(request.target())).await;
    let set = |more: &'static str, extension: Option<String>| {
        let origin = origin.port();
        move |port| resources(port, origin, more, extension.clone())
    };
    let first = extension(BRIDGE, "ignore_query_parameters: true");
    // Envoy never serves at all where a delta stream says that there is none.
    let both = Both::start(delta, set("", first.clone().filter(|_| delta))).await;
    if !delta {
        all_answer(&both, "without any", UNTOLD).await;
    }
    both.set(set("", first)).await;
    all_answer(&both, "the first", "200 /t.A/B None").await;
    both.set(set("", extension(BRIDGE, "ignore_query_parameters: false"))).await;
    all_answer(&both, "the second", "200 /t.A/B?q=1 None").await;
    both.same(counted, "after two").await;
    // Of another type than the listener allows.
    both.set(set("", extension("envoy.extensions.filters.http.grpc_web.v3.GrpcWeb", ""))).await;
    for verdict in both.verdicts(&ResourceType::EXTENSION).await {
        let refused = verdict.expect_err("it is taken");
        assert!(refused.contains("grpc_web") && refused.contains("grpc_http1_bridge"), "{refused}");
    }
    all_answer(&both, "one that was refused", "200 /t.A/B?q=1 None").await;
    // A listener that changes goes on with what is known.
    both.set(set("      - { name: stats, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig } }\n",
        extension(BRIDGE, "ignore_query_parameters: true"))).await;
    all_answer(&both, "another listener", "200 /t.A/B None").await;
    if delta {
        both.set(set("", None)).await;
        all_answer(&both, "one that was taken away", UNTOLD).await;
    }
}

#[tokio::test]
async fn filters_come_and_go_delta() {
    filters_come_and_go(true).await;
}

#[tokio::test]
async fn filters_come_and_go_state_of_the_world() {
    filters_come_and_go(false).await;
}

#[tokio::test]
async fn a_default_serves_until_one_comes() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let origin = Origin::with(false, |request| Answer::ok(request.target())).await;
    let port = origin.port();
    let default = "          default_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.http.grpc_http1_bridge.v3.Config, ignore_query_parameters: true }\n          apply_default_config_without_warming: true\n";
    let set = |extension: Option<String>| move |own| resources(own, port, default, extension.clone());
    let both = Both::start(true, set(None)).await;
    all_answer(&both, "the default", "200 /t.A/B None").await;
    both.set(set(extension(BRIDGE, ""))).await;
    all_answer(&both, "one that came", "200 /t.A/B?q=1 None").await;
    both.set(set(None)).await;
    all_answer(&both, "the default again", "200 /t.A/B None").await;
}

/// Rules of RBAC come and go; what is counted goes on.
#[tokio::test]
async fn rbac_rules_are_discovered() {
    if !peers::have(&["envoy"]) {
        return;
    }
    const RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
    let origin = Origin::with(false, |request| Answer::ok(request.target())).await;
    let set = |action: &'static str| {
        let origin = origin.port();
        move |port| {
            let policy = "permissions: [{any: true}], principals: [{any: true}]";
            let rules = format!("rules: {{ action: {action}, policies: {{ all: {{ {policy} }} }} }}");
            let mut all = resources(port, origin, "", None);
            all.iter_mut().for_each(|text| *text = text.replace(BRIDGE, RBAC));
            all.extend(extension(RBAC, &rules));
            all
        }
    };
    let both = Both::start(false, set("DENY")).await;
    all_answer(&both, "denied", "200  Some(\"7\")").await;
    both.set(set("ALLOW")).await;
    all_answer(&both, "allowed", "200 /t.A/B?q=1 None").await;
    for side in &both.sides {
        let stats = side.proxy.stats().await;
        let count = |end: &str| stats.iter().find(|(name, _)| name.ends_with(end)).map(|(_, value)| *value);
        assert!(count(".rbac.denied") >= Some(1) && count(".rbac.allowed") >= Some(1), "{stats:?}");
    }
}
