//! Counters, gauges and admin pages of both proxies after the same traffic.

use super::bootstrap::Bootstrap;
use super::{run_side, set, Side};
use crate::harness::client::{get, Client};
use crate::harness::origin::{Answer, Then};
use crate::harness::proxy::Kind;
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use std::collections::BTreeMap;

/// What a user of a sidecar reads; all of them must be there (`{}` is `main`, `a` or the listener's address).
const REQUIRED: &[&str] = &[
    "http.main.downstream_cx_total",
    "http.main.downstream_cx_active",
    "http.main.downstream_cx_http1_total",
    "http.main.downstream_cx_http1_active",
    "http.main.downstream_cx_destroy",
    "http.main.downstream_cx_destroy_remote",
    "http.main.downstream_cx_protocol_error",
    "http.main.downstream_cx_rx_bytes_total",
    "http.main.downstream_cx_tx_bytes_total",
    "http.main.downstream_rq_total",
    "http.main.downstream_rq_active",
    "http.main.downstream_rq_completed",
    "http.main.downstream_rq_2xx",
    "http.main.downstream_rq_4xx",
    "http.main.downstream_rq_5xx",
    "http.main.no_route",
    "http.main.no_cluster",
    "http.main.rq_total",
    "http.main.rq_direct_response",
    "cluster.a.upstream_cx_total",
    "cluster.a.upstream_cx_active",
    "cluster.a.upstream_cx_rx_bytes_total",
    "cluster.a.upstream_cx_tx_bytes_total",
    "cluster.a.upstream_cx_http1_total",
    "cluster.a.upstream_rq_total",
    "cluster.a.upstream_rq_active",
    "cluster.a.upstream_rq_completed",
    "cluster.a.upstream_rq_2xx",
    "cluster.a.upstream_rq_200",
    "cluster.a.upstream_rq_404",
    "cluster.a.upstream_rq_pending_total",
    "cluster.a.upstream_rq_timeout",
    "cluster.a.membership_total",
    "cluster.a.membership_healthy",
    "cluster.refused.upstream_cx_connect_fail",
    "cluster.refused.upstream_rq_503",
    "cluster.empty.upstream_cx_none_healthy",
    "cluster_manager.active_clusters",
    "listener_manager.total_listeners_active",
    "listener_manager.listener_added",
    "server.live",
    "server.state",
    "server.concurrency",
    "server.uptime",
];

const ROOMS: &[&str] =
    &["http.main.", "cluster.a.", "cluster.refused.", "cluster.empty.", "listener.<main>."];

/// Names in one of `rooms` under which the same traffic gives the same number.
pub fn comparable(name: &str, rooms: &[&str]) -> bool {
    let differs = [
        // Bytes depend on the spelling of heads, times on the clock.
        "bytes", "_ms", "_time", "length", "memory", "version",
    ];
    rooms.iter().any(|r| name.starts_with(r)) && !differs.iter().any(|d| name.contains(d))
}

async fn stats(side: &Side) -> BTreeMap<String, u64> {
    let address = format!("listener.127.0.0.1_{}.", side.proxy.port("main"));
    let stats = side.proxy.stats().await;
    stats.into_iter().map(|(name, value)| (name.replace(&address, "listener.<main>."), value)).collect()
}

fn bootstrap() -> Bootstrap {
    let hosts = "- name: all
  domains: ['*']
  routes:
  - { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } } }
  - { match: { prefix: /redirect }, redirect: { path_redirect: /x } }
  - { match: { prefix: /refused }, route: { cluster: refused } }
  - { match: { prefix: /empty }, route: { cluster: empty } }
  - { match: { prefix: /missing }, route: { cluster_header: x-none } }
  - { match: { prefix: /slow }, route: { cluster: a, timeout: 0.1s } }
  - { match: { prefix: /a }, route: { cluster: a } }";
    Bootstrap::new().listener("main", "", hosts)
}

async fn traffic(side: &Side) {
    for (_, origin) in &side.origins {
        origin.answer(|request| match request.target() {
            "/a/404" => Answer::status(404, "Not Found", "gone"),
            "/a/500" => Answer::status(500, "Oops", "bad"),
            "/slow" => Answer::raw("").then(Then::Hang),
            "/a/close" => Answer::raw("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
                .then(Then::Close),
            _ => Answer::ok("ok"),
        });
    }
    let mut client = Client::connect(side.proxy.port("main")).await.unwrap();
    let targets = "/a /a /a /a/404 /a/404 /a/500 /a/close /a /direct /redirect /refused /refused /empty /missing /none /slow /a";
    for target in targets.split(' ') {
        let request = format!("GET {target} HTTP/1.1\r\nHost: t.test\r\n\r\n");
        client.exchange(request.as_bytes()).await.unwrap_or_else(|e| panic!("{target}: {e}"));
    }
    client.exchange(b"POST /a HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\n\r\nhello").await.unwrap();
    drop(client);
    let mut closing = Client::connect(side.proxy.port("main")).await.unwrap();
    closing.exchange(b"GET /a HTTP/1.1\r\nHost: t.test\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(closing.closed(DEADLINE).await);
    let mut bad = Client::connect(side.proxy.port("main")).await.unwrap();
    bad.exchange(b"nonsense\r\n\r\n").await.unwrap();
    assert!(bad.closed(DEADLINE).await);
    drop((closing, bad));
    let quiet = || async {
        let stats = side.proxy.stats().await;
        stats.get("http.main.downstream_cx_active") == Some(&0)
            && stats.get("cluster.a.upstream_rq_active") == Some(&0)
    };
    assert!(eventually(DEADLINE, quiet).await, "{:?} is not quiet", side.proxy.kind());
}

/// What Outrigger counts and shows of its own: hosts that refused a connection, and requests sent again.
const OWN_STATS: [&str; 2] = [".upstream_host_suspected", ".upstream_rq_replay"];
const OWN_LINE: &str = "::suspect::true";

fn without_own(page: &str) -> String {
    let lines: Vec<_> = page.split('\n').filter(|line| !line.ends_with(OWN_LINE)).collect();
    lines.join("\n")
}

#[tokio::test]
async fn counters_after_the_same_traffic() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let template = bootstrap().render();
    let envoy = run_side(Kind::Envoy, &template).await;
    traffic(&envoy).await;
    let theirs = stats(&envoy).await;
    let missing: Vec<_> = REQUIRED.iter().filter(|name| !theirs.contains_key(**name)).collect();
    assert!(missing.is_empty(), "the test asks for names that Envoy does not have: {missing:?}");
    if set("OUTRIGGER_E2E_ENVOY_ONLY").is_some() {
        println!("{:#?}", theirs.iter().filter(|(n, v)| comparable(n, ROOMS) && **v > 0).collect::<Vec<_>>());
        return;
    }
    let ours = run_side(Kind::Outrigger, &template).await;
    traffic(&ours).await;
    let mine = stats(&ours).await;
    let mut wrong: Vec<String> = REQUIRED
        .iter()
        .filter(|name| !mine.contains_key(**name))
        .map(|name| format!("{name} is missing"))
        .collect();
    for (name, value) in mine.iter().filter(|(name, _)| comparable(name, ROOMS)) {
        match theirs.get(name) {
            Some(expected) if expected != value => {
                wrong.push(format!("{name}: {expected} with Envoy, {value} with Outrigger"));
            }
            Some(_) => {}
            None if OWN_STATS.iter().any(|own| name.ends_with(own)) => {}
            None => wrong.push(format!("{name} is no name of Envoy's")),
        }
    }
    // Heads are spelled in other ways, so bytes agree only roughly.
    for name in REQUIRED.iter().filter(|name| name.contains("bytes_total")) {
        let (theirs, mine) = (theirs[*name], mine.get(*name).copied().unwrap_or(0));
        if mine.abs_diff(theirs) * 4 > theirs {
            wrong.push(format!("{name}: {theirs} with Envoy, {mine} with Outrigger"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The shape of a JSON value: keys and kinds, lists by their first element.
fn shape(value: &serde_json::Value, depth: usize) -> String {
    match value {
        serde_json::Value::Object(map) if depth > 0 => {
            let mut parts: Vec<String> =
                map.iter().map(|(k, v)| format!("{k}: {}", shape(v, depth - 1))).collect();
            parts.sort();
            format!("{{{}}}", parts.join(", "))
        }
        serde_json::Value::Array(list) if depth > 0 => {
            format!("[{}]", list.first().map(|v| shape(v, depth - 1)).unwrap_or_default())
        }
        serde_json::Value::Object(_) => "{}".to_string(),
        serde_json::Value::Array(_) => "[]".to_string(),
        serde_json::Value::String(_) => "text".to_string(),
        serde_json::Value::Number(_) => "number".to_string(),
        serde_json::Value::Bool(_) => "bool".to_string(),
        serde_json::Value::Null => "null".to_string(),
    }
}

async fn post(side: &Side, path: &str) -> (u16, String) {
    let mut client = Client::connect(side.proxy.port("admin")).await.unwrap();
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: admin\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let page = client.exchange(request.as_bytes()).await.unwrap_or_else(|e| panic!("POST {path}: {e}"));
    (page.status(), page.text())
}

/// What the admin port says, in a form that two proxies can share.
async fn admin_pages(side: &Side) -> Vec<(String, String)> {
    let mut pages = Vec::new();
    let port = side.proxy.port("admin");
    let masked = |text: &str| {
        let mut text = super::observe::Mask::new(side, 0).text(text);
        text =
            regex::Regex::new(r"::(cx|rq)_\w+::\d+").expect("a pattern").replace_all(&text, "").into_owned();
        regex::Regex::new("\"port_value\": [0-9]+").expect("a pattern").replace_all(&text, "").into_owned()
    };
    let ready = get(port, "/ready").await.unwrap();
    pages.push(("/ready".to_string(), format!("{} {}", ready.status(), ready.text())));
    for path in ["/nothing", "/quitquitquit", "/drain_listeners", "/logging", "/healthcheck/fail", "/"] {
        let page = get(port, path).await.unwrap();
        pages.push((format!("GET {path}"), page.status().to_string()));
    }
    for path in ["/listeners", "/listeners?format=json", "/clusters"] {
        let page = get(port, path).await.unwrap().text();
        let mut lines: Vec<String> = masked(&page).lines().map(str::to_string).collect();
        if path == "/clusters" {
            lines.retain(|l| {
                !l.ends_with("::127.0.0.1:<origin-a>")
                    && (l.contains("::added_via_api")
                        || l.contains("max_")
                        || l.contains("::health_flags")
                        || l.contains("::weight")
                        || l.contains("::hostname")
                        || l.contains("::priority"))
            });
        }
        lines.sort();
        pages.push((path.to_string(), lines.join("\n")));
    }
    let json = |path: &'static str| async move {
        let page = get(port, path).await.unwrap();
        let value = serde_json::from_str(&page.text()).unwrap_or(serde_json::Value::Null);
        (page.header("content-type").unwrap_or("").to_string(), value)
    };
    let (kind, info) = json("/server_info").await;
    pages.push(("/server_info type".to_string(), kind));
    let mut keys: Vec<_> = info.as_object().map(|m| m.keys().cloned().collect()).unwrap_or_default();
    keys.retain(|k| k != "hot_restart_version");
    keys.sort();
    pages.push(("/server_info keys".to_string(), keys.join(" ")));
    pages.push(("/server_info state".to_string(), info["state"].to_string()));
    pages.push((
        "/server_info node".to_string(),
        format!("{} {}", info["node"]["id"], info["node"]["cluster"]),
    ));
    let (_, dump) = json("/config_dump").await;
    let kinds = dump["configs"].as_array().cloned().unwrap_or_default();
    let kinds: Vec<String> = kinds.iter().map(|c| c["@type"].to_string()).collect();
    pages.push(("/config_dump kinds".to_string(), kinds.join("\n")));
    for config in dump["configs"].as_array().into_iter().flatten() {
        let name = config["@type"].as_str().unwrap_or("").rsplit('.').next().unwrap_or("").to_string();
        if ["ClustersConfigDump", "ListenersConfigDump", "RoutesConfigDump"].contains(&name.as_str()) {
            pages.push((format!("/config_dump {name}"), shape(config, 3)));
        }
    }
    let (_, stats) = json("/stats?format=json&filter=^http.main.downstream_rq_total$").await;
    pages.push(("/stats json".to_string(), stats.to_string()));
    let filtered = get(port, "/stats?filter=^cluster.a.upstream_rq_total$").await.unwrap();
    pages.push(("/stats filtered".to_string(), filtered.text()));
    let used = get(port, "/stats?usedonly&filter=^cluster.b.upstream_rq").await.unwrap();
    pages.push(("/stats usedonly".to_string(), used.text()));
    let metrics = get(port, "/stats/prometheus").await.unwrap();
    pages.push((
        "/stats/prometheus type".to_string(),
        metrics.header("content-type").unwrap_or("").to_string(),
    ));
    for wanted in [
        "envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix=\"main\"}",
        "envoy_http_downstream_rq_xx{envoy_response_code_class=\"2\",envoy_http_conn_manager_prefix=\"main\"}",
        "envoy_cluster_upstream_rq_total{envoy_cluster_name=\"a\"}",
        "envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"a\"}",
        "envoy_cluster_upstream_rq{envoy_response_code=\"404\",envoy_cluster_name=\"a\"}",
        "envoy_cluster_upstream_cx_active{envoy_cluster_name=\"a\"}",
        "envoy_cluster_membership_healthy{envoy_cluster_name=\"a\"}",
        "# TYPE envoy_http_downstream_rq_total counter",
        "# TYPE envoy_cluster_upstream_cx_active gauge",
        "# TYPE envoy_cluster_upstream_rq_time histogram",
        "envoy_server_live{}",
    ] {
        let line = metrics.text().lines().find(|l| l.starts_with(wanted)).unwrap_or("missing").to_string();
        pages.push((format!("/stats/prometheus {wanted}"), line));
    }
    for path in [
        "/logging?level=warning",
        "/logging?level=nonsense",
        "/healthcheck/fail",
        "/healthcheck/ok",
        "/reset_counters",
    ] {
        let (status, text) = post(side, path).await;
        // Names of loggers are each program's own.
        let text = if path.starts_with("/logging") { String::new() } else { text };
        pages.push((format!("POST {path}"), format!("{status} {text}")));
        if path == "/healthcheck/fail" {
            let page = get(port, "/ready").await.unwrap();
            pages.push((
                "/ready after healthcheck/fail".to_string(),
                format!("{} {}", page.status(), page.text()),
            ));
        }
    }
    pages
}

#[tokio::test]
async fn admin_pages_after_the_same_traffic() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let template = bootstrap().render();
    let envoy = run_side(Kind::Envoy, &template).await;
    traffic(&envoy).await;
    let theirs = admin_pages(&envoy).await;
    if set("OUTRIGGER_E2E_ENVOY_ONLY").is_some() {
        for (name, page) in theirs {
            println!("--- {name}\n{page}");
        }
        return;
    }
    let ours = run_side(Kind::Outrigger, &template).await;
    traffic(&ours).await;
    let mine: BTreeMap<String, String> = admin_pages(&ours).await.into_iter().collect();
    let wrong: Vec<String> = theirs
        .iter()
        .filter(|(name, page)| mine.get(name).map(|page| without_own(page)).as_ref() != Some(page))
        .map(|(name, page)| {
            format!(
                "--- {name}\nEnvoy: {page}\nOutrigger: {}",
                mine.get(name).map_or("nothing", String::as_str)
            )
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn quitquitquit_ends_the_process() {
    let template = bootstrap().render();
    let mut side = run_side(Kind::Outrigger, &template).await;
    let (status, text) = post(&side, "/quitquitquit").await;
    assert_eq!((status, text.as_str()), (200, "OK\n"));
    let status = side.proxy.exit(DEADLINE).await;
    assert!(status.is_some_and(|s| s.success()), "{status:?}");
}

#[tokio::test]
async fn drain_listeners_closes_the_listening_ports() {
    let template = bootstrap().render();
    let side = run_side(Kind::Outrigger, &template).await;
    // A listener without a direction is not one of the inbound ones.
    assert_eq!(post(&side, "/drain_listeners?inboundonly").await.0, 200);
    let request = b"GET /direct HTTP/1.1\r\nHost: t.test\r\n\r\n";
    let mut client = Client::connect(side.proxy.port("main")).await.unwrap();
    assert_eq!(client.exchange(request).await.unwrap().status(), 200);
    let (status, text) = post(&side, "/drain_listeners").await;
    assert_eq!((status, text.as_str()), (200, "OK\n"));
    let refused = || async { Client::connect(side.proxy.port("main")).await.is_err() };
    assert!(eventually(DEADLINE, refused).await, "still accepting");
    assert_eq!(side.proxy.stats().await.get("listener_manager.listener_stopped"), Some(&1));
    // Open connections are not told.
    let answer = client.exchange(request).await.unwrap();
    assert_eq!((answer.status(), answer.header("connection")), (200, None));
    assert_eq!(get(side.proxy.port("admin"), "/ready").await.unwrap().status(), 200);
}
