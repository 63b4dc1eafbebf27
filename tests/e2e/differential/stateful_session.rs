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
    [
        "admin: { address: { socket_address: { address: 127.0.0.1, port_value: @port:admin@ } } }\nstatic_resources:\n  listeners:\n".to_owned(),
        listener("plain", &format!("stat_prefix: own, {}", cookie("name: sid"))),
        listener("lasting", &format!("stat_prefix: own, {}", cookie("name: sid, ttl: 60s, path: /p, attributes: [ { name: SameSite, value: Lax }, { name: Secure } ]"))),
        listener("strict", &format!("stat_prefix: own, strict: true, {}", cookie("name: sid"))),
        listener("told", &format!("strict: true, status_on_strict_destination_not_found: 410, {}", cookie("name: sid"))),
        listener("header", &format!("stat_prefix: own, {}", header("x-session"))),
        listener("none", "stat_prefix: own"),
        format!(
            "  clusters:\n  - name: both\n    connect_timeout: 1s\n    load_assignment: {{ cluster_name: both, endpoints: [ {{ lb_endpoints: [ {}, {} ] }} ] }}\n",
            host(ports[0]),
            host(ports[1])
        ),
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
