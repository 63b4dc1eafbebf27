//! `envoy.filters.http.stateful_session`: which host a session is with, what the client is told of it, and what is
//! counted, beside Envoy.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::prelude::{Engine as _, BASE64_STANDARD as BASE64};
use prost::Message as _;

use crate::discovery::clients::named;
use crate::harness::client::Client;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::peers;

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";
const SESSIONS: &str = "type.googleapis.com/envoy.extensions.http.stateful_session";

/// What a cookie holds.
#[derive(Clone, PartialEq, prost::Message)]
struct Held {
    #[prost(string, tag = "1")]
    address: String,
    #[prost(int64, tag = "2")]
    expires: i64,
}

fn cookie(fields: &str) -> String {
    format!("session_state: {{ name: envoy.http.stateful_session.cookie, typed_config: {{ \"@type\": {SESSIONS}.cookie.v3.CookieBasedSessionState, cookie: {{ {fields} }} }} }}")
}

fn header(name: &str) -> String {
    format!("session_state: {{ name: envoy.http.stateful_session.header, typed_config: {{ \"@type\": {SESSIONS}.header.v3.HeaderBasedSessionState, name: {name} }} }}")
}

fn listener(name: &str, options: &str) -> String {
    let kind = format!("{FILTERS}.http.stateful_session.v3.StatefulSession");
    let own = format!("stateful_session: {{ stat_prefix: of-route, {} }}", header("x-own"));
    let says = |path: &str, what: &str| {
        format!("{{ match: {{ prefix: {path} }}, route: {{ cluster: both }}, typed_per_filter_config: {{ sessions: {{ \"@type\": {kind}PerRoute, {what} }} }} }}")
    };
    let routes = [
        says("/off", "disabled: true"),
        says("/own", &own),
        "{ match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: none } } }"
            .to_owned(),
        "{ match: { prefix: /full }, route: { cluster: full } }".to_owned(),
        "{ match: { prefix: / }, route: { cluster: both, retry_policy: { retry_on: 5xx } } }".to_owned(),
    ];
    format!(
        "  - name: {name}\n    address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:{name}@ }} }}\n    filter_chains:\n    - filters:\n      - name: http\n        typed_config:\n          \"@type\": {FILTERS}.network.http_connection_manager.v3.HttpConnectionManager\n          stat_prefix: {name}\n          route_config: {{ virtual_hosts: [ {{ name: all, domains: [ \"*\" ], routes: [ {} ] }} ] }}\n          http_filters:\n          - {{ name: sessions, typed_config: {{ \"@type\": {kind}, {options} }} }}\n          - {{ name: router, typed_config: {{ \"@type\": {FILTERS}.http.router.v3.Router }} }}\n",
        routes.join(", ")
    )
}

fn template(ports: [u16; 2]) -> String {
    let host = |port: u16| {
        format!("{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}")
    };
    let cluster = |name: &str, options: &str| {
        let hosts = ports.map(host).join(", ");
        format!("  - name: {name}\n    connect_timeout: 1s\n    load_assignment: {{ cluster_name: {name}, endpoints: [ {{ lb_endpoints: [ {hosts} ] }} ] }}\n    {options}\n")
    };
    [
        "admin: { address: { socket_address: { address: 127.0.0.1, port_value: @port:admin@ } } }\nstatic_resources:\n  listeners:\n".to_owned(),
        listener("plain", &format!("stat_prefix: own, {}", cookie("name: sid"))),
        listener("lasting", &format!("stat_prefix: own, {}", cookie("name: sid, ttl: 60s, path: /p, attributes: [ { name: SameSite, value: Lax }, { name: Secure } ]"))),
        listener("strict", &format!("stat_prefix: own, strict: true, {}", cookie("name: sid"))),
        listener("told", &format!("strict: true, status_on_strict_destination_not_found: 410, {}", cookie("name: sid"))),
        listener("header", &format!("stat_prefix: own, {}", header("x-session"))),
        listener("none", "stat_prefix: own"),
        format!("  clusters:\n{}{}", cluster("both", ""), cluster("full", "circuit_breakers: { thresholds: [ { max_requests: 0 } ] }")),
    ]
    .concat()
}

/// What a client sees, in words that are the same for each proxy. A request that asks for the host called `asked` says
/// whether it got that one; the others may get either.
async fn outcome(proxy: &Proxy, hosts: &BTreeMap<&str, String>, ask: &(&str, String, &str)) -> String {
    let (listener, head, asked) = ask;
    let mut client = Client::connect(proxy.port(listener)).await.expect("connected");
    let answer = client.exchange(format!("GET {head}\r\n\r\n").as_bytes()).await.expect("an answer");
    let body = answer.text();
    let own = hosts.get(body.as_str());
    let mut text = format!("{listener} {head:?}: {} ", answer.status());
    text += match own {
        Some(_) if asked.is_empty() => "a host",
        Some(_) => &body,
        None => &body,
    };
    let names =
        |address: &[u8]| if own.is_some_and(|own| own.as_bytes() == address) { "it" } else { "another" };
    for value in answer.all("set-cookie") {
        let (name, rest) = value.split_once("=\"").expect("a value in quotes");
        let (value, rest) = rest.split_once('"').expect("a value in quotes");
        let held = Held::decode(BASE64.decode(value).expect("base64").as_slice()).expect("a message");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
        let lasts = match held.expires {
            0 => "",
            end if (55..=61).contains(&(end - now)) => " for a minute",
            _ => " for another time",
        };
        text += &format!(", cookie {name} of {}{lasts}{rest}", names(held.address.as_bytes()));
    }
    for name in ["x-session", "x-own"] {
        if let Some(value) = answer.header(name) {
            text += &format!(", {name} of {}", names(&BASE64.decode(value).expect("base64")));
        }
    }
    text
}

async fn transcript(kind: Kind, template: &str, hosts: &BTreeMap<&str, String>) -> Vec<String> {
    let proxy = Proxy::start(Plan::new(kind, template, &[])).await;
    let two = hosts["two"].as_str();
    let held =
        |address: &str, expires| BASE64.encode(Held { address: address.to_owned(), expires }.encode_to_vec());
    let sid =
        |path: &str, value: &str| format!("{path} HTTP/1.1\r\nhost: a.test\r\ncookie: a=1; sid={value}");
    let with =
        |path: &str, name: &str, value: &str| format!("{path} HTTP/1.1\r\nhost: a.test\r\n{name}: {value}");
    let bare = |path: &str| format!("{path} HTTP/1.1\r\nhost: a.test");
    let (is_two, gone) = (held(two, 0), held("127.0.0.1:9", 0));
    let mut asks: Vec<(&str, String, &str)> = Vec::new();
    for listener in ["plain", "lasting", "strict", "told"] {
        asks.extend([
            (listener, bare("/p"), ""),
            (listener, bare("/p/q?r"), ""),
            (listener, bare("/other"), ""),
        ]);
        asks.extend([(); 3].map(|()| (listener, sid("/p", &is_two), "two")));
        asks.push((listener, sid("/p", &format!("\"{is_two}\"")), "two"));
        asks.push((listener, sid("/p", &gone), ""));
        asks.push((listener, sid("/p", &held(two, 1)), ""));
        asks.extend([(); 2].map(|()| (listener, sid("/p", &held(two, i64::MAX)), "two")));
        asks.extend([(); 2].map(|()| (listener, sid("/p", &BASE64.encode(two)), "two")));
        // Nobody is asked there.
        asks.extend([(); 3].map(|()| (listener, sid("/full", &is_two), "")));
        asks.extend([(listener, sid("/full", &gone), ""), (listener, bare("/full"), "")]);
        asks.push((listener, sid("/p", "!!"), ""));
        asks.push((listener, sid("/p", ""), ""));
        asks.push((listener, sid("/off", &is_two), ""));
        asks.push((listener, sid("/direct", &gone), ""));
        asks.push((listener, bare("/own"), ""));
        asks.extend([(); 2].map(|()| (listener, with("/own", "x-own", &BASE64.encode(two)), "two")));
        asks.push((listener, with("/own", "x-own", &BASE64.encode("127.0.0.1:9")), ""));
    }
    asks.push(("header", bare("/"), ""));
    asks.extend([(); 3].map(|()| ("header", with("/", "x-session", &BASE64.encode(two)), "two")));
    asks.push(("header", with("/", "x-session", "!!"), ""));
    asks.extend([("none", bare("/"), ""), ("none", bare("/own"), "")]);
    let mut lines = Vec::new();
    for ask in &asks {
        lines.push(outcome(&proxy, hosts, ask).await);
    }
    let stats = proxy.stats().await;
    let counted = stats.iter().filter(|(name, _)| name.contains("stateful_session."));
    lines.extend(counted.map(|(name, value)| format!("{name}: {value}")));
    lines
}

#[tokio::test]
async fn sessions_stay_with_their_hosts() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (one, two) = (named("one").await, named("two").await);
    let template = template([one.port(), two.port()]);
    let hosts = BTreeMap::from(
        [("one", one.port()), ("two", two.port())].map(|(name, port)| (name, format!("127.0.0.1:{port}"))),
    );
    let theirs = transcript(Kind::Envoy, &template, &hosts).await;
    let ours = transcript(Kind::Outrigger, &template, &hosts).await;
    let differ = |(theirs, ours): &(&String, &String)| theirs != ours;
    let wrong: Vec<_> = theirs.iter().zip(&ours).filter(differ).collect();
    assert!(wrong.is_empty() && theirs.len() == ours.len(), "{wrong:#?}\n{theirs:#?}");
    assert!(
        theirs.iter().any(|line| line.ends_with("failed_closed: 1") || line.contains("410")),
        "{theirs:#?}"
    );
}

/// What an endpoint's health is said to be, and which may be asked for.
const STATUSES: [&str; 6] = ["UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED"];
/// What Istio sets for sessions that last.
const ISTIO: &str = "UNKNOWN, HEALTHY, DRAINING, DEGRADED";

/// The hosts that may be asked for, as the names of clusters say it.
fn askable() -> Vec<(String, String)> {
    let only = |set: &str| format!("common_lb_config: {{ override_host_status: {{ statuses: [ {set} ] }} }}");
    let mut all = vec![("unset".to_owned(), String::new()), ("none".to_owned(), only(""))];
    all.push(("istio".to_owned(), only(ISTIO)));
    all.extend(STATUSES.map(|status| (status.to_owned(), only(status))));
    all
}

/// Clusters with two hosts, the second of which is in a state, by name.
fn states(ports: [u16; 2]) -> Vec<(String, String)> {
    let [one, two] = ports
        .map(|port| format!("address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}"));
    let hosts = |other: String| {
        format!("endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ {one} }} }}, {{ {other} }} ] }} ]")
    };
    let named =
        |status: &str| (status.to_owned(), hosts(format!("health_status: {status}, endpoint: {{ {two} }}")));
    let mut all: Vec<_> = STATUSES.iter().map(|status| named(status)).collect();
    let failing =
        hosts(format!("endpoint: {{ {two}, health_check_config: {{ port_value: @port:closed@ }} }}"));
    all.push(("failing".to_owned(), failing));
    all
}

fn health_template(ports: [u16; 2]) -> String {
    let kind = format!("{FILTERS}.http.stateful_session.v3.StatefulSession");
    let policies = "type.googleapis.com/envoy.extensions.load_balancing_policies";
    let asked = format!("load_balancing_policy: {{ policies: [ {{ typed_extension_config: {{ name: asked, typed_config: {{ \"@type\": {policies}.override_host.v3.OverrideHost, override_host_sources: [ {{ header: x-host }} ], fallback_policy: {{ policies: [ {{ typed_extension_config: {{ name: random, typed_config: {{ \"@type\": {policies}.random.v3.Random }} }} }} ] }} }} }} }} ] }}");
    let checks = "health_checks: [ { timeout: 1s, interval: 60s, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {} } ]";
    let mut clusters = String::new();
    for (state, hosts) in states(ports) {
        let checks = if state == "failing" { checks } else { "" };
        let mut add = |name: String, options: &str| {
            clusters += &format!("  - name: {name}\n    connect_timeout: 1s\n    load_assignment: {{ cluster_name: {name}, {hosts} }}\n    {checks}\n    {options}\n");
        };
        askable().iter().for_each(|(which, options)| add(format!("{state}-{which}"), options));
        add(format!("{state}-asked"), &asked);
    }
    format!(
        "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }} }}\nstatic_resources:\n  listeners:\n  - name: proxy\n    address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:proxy@ }} }}\n    filter_chains:\n    - filters:\n      - name: http\n        typed_config:\n          \"@type\": {FILTERS}.network.http_connection_manager.v3.HttpConnectionManager\n          stat_prefix: proxy\n          route_config: {{ virtual_hosts: [ {{ name: all, domains: [ \"*\" ], routes: [ {{ match: {{ prefix: / }}, route: {{ cluster_header: x-cluster }} }} ] }} ] }}\n          http_filters:\n          - {{ name: sessions, typed_config: {{ \"@type\": {kind}, strict: true, {} }} }}\n          - {{ name: router, typed_config: {{ \"@type\": {FILTERS}.http.router.v3.Router }} }}\n  clusters:\n{clusters}",
        header("x-session")
    )
}

/// Which hosts of which health serve those who ask for them, and what the admin port says of that health.
async fn asked_for(kind: Kind, template: &str, two: &str) -> Vec<String> {
    let proxy = Proxy::start(Plan::new(kind, template, &[])).await;
    let mut lines = Vec::new();
    let mut client = Client::connect(proxy.port("proxy")).await.expect("connected");
    for (state, _) in states([1, 2]) {
        for (which, _) in askable() {
            let session = BASE64.encode(two);
            let request = format!("GET / HTTP/1.1\r\nhost: a.test\r\nx-cluster: {state}-{which}\r\nx-session: {session}\r\n\r\n");
            let answer = client.exchange(request.as_bytes()).await.expect("an answer");
            lines.push(format!("{state} {which}: {} {}", answer.status(), answer.text()));
        }
        // Others are chosen at random.
        let mut got = std::collections::BTreeSet::new();
        for _ in 0..8 {
            let request = format!(
                "GET / HTTP/1.1\r\nhost: a.test\r\nx-cluster: {state}-asked\r\nx-host: {two}\r\n\r\n"
            );
            got.insert(client.exchange(request.as_bytes()).await.expect("an answer").text());
        }
        lines.push(format!("{state} asked: {got:?}"));
    }
    let shown: serde_json::Value =
        serde_json::from_str(&proxy.admin("/clusters?format=json").await).expect("JSON");
    for cluster in shown["cluster_statuses"].as_array().into_iter().flatten() {
        lines.push(format!("{}: {}", cluster["name"], cluster["host_statuses"][1]["health_status"]));
    }
    let text = proxy.admin("/clusters").await;
    let flags = text.lines().filter(|line| line.contains("::health_flags::"));
    lines.extend(flags.map(|line| line.replace(two, "two")).filter(|line| line.contains("two")));
    lines.sort();
    lines
}

#[tokio::test]
async fn hosts_are_asked_for_by_their_health_as_in_envoy() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (one, two) = (named("one").await, named("two").await);
    let (template, address) =
        (health_template([one.port(), two.port()]), format!("127.0.0.1:{}", two.port()));
    let theirs = asked_for(Kind::Envoy, &template, &address).await;
    let ours = asked_for(Kind::Outrigger, &template, &address).await;
    let differ = |(theirs, ours): &(&String, &String)| theirs != ours;
    let wrong: Vec<_> = theirs.iter().zip(&ours).filter(differ).collect();
    assert!(wrong.is_empty() && theirs.len() == ours.len(), "{wrong:#?}\n{theirs:#?}");
}
