use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::config::cluster::{Discovery, HostTemplate, Hosts, Locality};
use crate::config::fixtures;
use crate::config::{Host, HostSet};
use crate::telemetry::log::LogLevel;
use crate::telemetry::metrics::Scope;
use crate::telemetry::process::ServerState;

fn cluster(name: &str) -> Cluster {
    let locality = Locality { region: "r1".into(), zone: "z1".into(), sub_zone: "".into() };
    let template = HostTemplate {
        hostname: "h.example".into(),
        weight: 1,
        locality: locality.into(),
        ..Default::default()
    };
    let host = Host::new(Address::Ip("127.0.0.1:18083".parse().unwrap()), template);
    host.shared.counters.cx_total.fetch_add(2, std::sync::atomic::Ordering::Relaxed);
    let hosts = Hosts::new(HostSet { all: vec![host], ..HostSet::default() });
    Cluster { hosts, ..fixtures::cluster(name, Discovery::Static) }
}

fn bootstrap() -> serde_json::Value {
    let route = json!({"name": "local_route", "virtual_hosts": []});
    json!({
        "@type": "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap",
        "node": {"id": "n1", "cluster": "c1"},
        "static_resources": {
            "clusters": [{"name": "foo"}, {"name": "dead", "connect_timeout": "0.500s"}],
            "listeners": [{"name": "web", "filter_chains": [{"filters": [{"typed_config": {
                "@type": "type.googleapis.com/x.HttpConnectionManager", "stat_prefix": "in", "route_config": route, "http_filters": [{"name": "auth",
                    "typed_config": {"@type": "y", "users": {"inline_string": "joe:KEY"},
                        "credentials": [{"key": "KEY", "client": "joe"}]}}]}}]}]}],
            "secrets": [{"name": "s", "tls_certificate": {
                "private_key": {"inline_string": "KEY"}, "certificate_chain": {"inline_string": "CERT"}}}],
        },
        "layered_runtime": {"layers": [
            {"name": "a", "static_layer": {"x": {"y": 1, "z": "on"}}},
            {"name": "b", "static_layer": {"x.y": 2}},
        ]},
    })
}

fn state() -> (AdminState, mpsc::Receiver<AdminCommand>) {
    let (commands, received) = mpsc::channel(4);
    let clusters: Directory<Cluster> = Directory::default();
    clusters.slot("foo").set(Some(Arc::new(cluster("foo"))));
    clusters.slot("only-mentioned");
    let listeners = vec![
        ListenerStatus {
            name: "web".into(),
            addresses: vec![Address::Ip("127.0.0.1:18080".parse().unwrap())],
        },
        ListenerStatus { name: "bad\nname".into(), addresses: vec![Address::Pipe("/tmp/x".into())] },
    ];
    let state = AdminState {
        server: Arc::new(Server::new(2)),
        clusters: Arc::new(clusters),
        listeners: Arc::new(ArcSwap::from_pointee(listeners)),
        bootstrap: BootstrapSource(Arc::new(bootstrap)),
        node: Arc::new(bootstrap()["node"].clone()),
        loaded: SystemTime::UNIX_EPOCH,
        options: Arc::new(json!({"concurrency": 2})),
        log: LogControl::detached(LogLevel::Info),
        discovery: None,
        commands,
    };
    (state, received)
}

fn ask(state: &AdminState, method: &Method, target: &str) -> (u16, String) {
    let answer = answer(state, method, &target.parse().unwrap());
    (answer.status.as_u16(), answer.body)
}

fn get(state: &AdminState, target: &str) -> (u16, String) {
    ask(state, &Method::GET, target)
}

fn get_json(state: &AdminState, target: &str) -> serde_json::Value {
    let (status, body) = get(state, target);
    assert_eq!(status, 200, "{target}: {body}");
    serde_json::from_str(&body).unwrap()
}

#[test]
fn readiness_follows_the_server() {
    let (state, mut commands) = state();
    assert_eq!(get(&state, "/ready"), (503, "PRE_INITIALIZING\n".into()));
    state.server.set_state(ServerState::Live);
    assert_eq!(get(&state, "/ready"), (200, "LIVE\n".into()));
    assert_eq!(ask(&state, &Method::POST, "/healthcheck/fail"), (200, "OK\n".into()));
    assert_eq!(get(&state, "/ready"), (503, "DRAINING\n".into()));
    assert_eq!(commands.try_recv(), Ok(AdminCommand::HealthFail(true)));
    ask(&state, &Method::POST, "/healthcheck/ok");
    assert_eq!(get(&state, "/ready").0, 200);
    let info = get_json(&state, "/server_info");
    assert_eq!((&info["state"], &info["node"]["id"]), (&json!("LIVE"), &json!("n1")));
    assert_eq!(info["command_line_options"]["concurrency"], 2);
}

#[test]
fn actions_are_post_only() {
    let (state, mut commands) = state();
    for endpoint in ENDPOINTS.iter().filter(|endpoint| endpoint.mutates) {
        let refused = (405, "Method GET not allowed, POST required.".to_owned());
        assert_eq!(get(&state, endpoint.path), refused, "{}", endpoint.path);
    }
    assert!(commands.try_recv().is_err());
    assert_eq!(ask(&state, &Method::DELETE, "/stats").0, 405);
    assert_eq!(ask(&state, &Method::POST, "/quitquitquit"), (200, "OK\n".into()));
    ask(&state, &Method::POST, "/drain_listeners?graceful&inboundonly");
    assert_eq!(commands.try_recv(), Ok(AdminCommand::Quit));
    let drain = AdminCommand::DrainListeners { graceful: true, inbound_only: true, skip_exit: false };
    assert_eq!(commands.try_recv(), Ok(drain));
    // Nobody takes commands: the queue is bounded and says so.
    let answers: Vec<u16> = (0..5).map(|_| ask(&state, &Method::POST, "/quitquitquit").0).collect();
    assert_eq!(answers, [200, 200, 200, 200, 503]);
}

#[test]
fn every_endpoint_answers_and_is_in_the_help() {
    let (state, _commands) = state();
    state.server.set_state(ServerState::Live);
    let (_, home) = get(&state, "/");
    let (_, help) = get(&state, "/help");
    assert!(ENDPOINTS.is_sorted_by_key(|endpoint| endpoint.path));
    for endpoint in ENDPOINTS.iter().filter(|endpoint| endpoint.path != "/") {
        assert!(help.contains(endpoint.path) && home.contains(&endpoint.path[1..]), "{}", endpoint.path);
        if !endpoint.mutates {
            assert_eq!(get(&state, endpoint.path).0, 200, "{}", endpoint.path);
        }
    }
    assert!(!home.contains("<script"));
    let (status, body) = get(&state, "/no/such?%3Cscript%3E");
    assert_eq!(status, 404);
    assert!(body.starts_with("invalid path. admin commands are:\n") && !body.contains("<script"));
}

#[test]
fn clusters_and_listeners() {
    let (state, _commands) = state();
    let (_, text) = get(&state, "/clusters");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 29, "{text}");
    assert_eq!(lines[..2], ["foo::observability_name::foo", "foo::default_priority::max_connections::1024"]);
    for line in [
        "foo::high_priority::max_retries::3",
        "foo::added_via_api::false",
        "foo::127.0.0.1:18083::cx_total::2",
        "foo::127.0.0.1:18083::health_flags::healthy",
        "foo::127.0.0.1:18083::zone::z1",
        "foo::127.0.0.1:18083::success_rate::-1",
    ] {
        assert!(lines.contains(&line), "{line}");
    }
    let statuses = &get_json(&state, "/clusters?format=json")["cluster_statuses"];
    assert_eq!(statuses[0]["host_statuses"][0]["address"]["socket_address"]["port_value"], 18083);
    assert_eq!(statuses[0]["host_statuses"][0]["stats"][1], json!({"value": "2", "name": "cx_total"}));
    assert_eq!(statuses[0]["circuit_breakers"]["thresholds"][1]["priority"], "HIGH");
    assert_eq!(get(&state, "/clusters?filter=nothing"), (200, String::new()));
    assert_eq!(get(&state, "/clusters?filter=(").0, 400);

    assert_eq!(get(&state, "/listeners").1, "web::127.0.0.1:18080\nbad_name::/tmp/x\n");
    let statuses = &get_json(&state, "/listeners?format=json")["listener_statuses"];
    assert_eq!(statuses[0]["local_address"]["socket_address"]["address"], "127.0.0.1");
    assert_eq!(statuses[1]["local_address"]["pipe"]["path"], "/tmp/x");
}

#[test]
fn config_dump_has_envoys_shape() {
    let (state, _commands) = state();
    let whole = get_json(&state, "/config_dump");
    let kinds: Vec<&str> = whole["configs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|config| config["@type"].as_str().unwrap().rsplit('.').next().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "BootstrapConfigDump",
            "ClustersConfigDump",
            "ListenersConfigDump",
            "ScopedRoutesConfigDump",
            "RoutesConfigDump",
            "SecretsConfigDump"
        ]
    );
    let clusters = &whole["configs"][1]["static_clusters"];
    assert_eq!(clusters[0]["cluster"]["name"], "dead");
    assert_eq!(clusters[0]["last_updated"], "1970-01-01T00:00:00.000Z");
    assert_eq!(whole["configs"][4]["static_route_configs"][0]["route_config"]["name"], "local_route");
    let text = whole.to_string();
    assert!(!text.contains("KEY") && text.contains("[redacted]") && text.contains("CERT"));

    let one = get_json(&state, "/config_dump?resource=static_clusters&mask=cluster.name");
    assert_eq!(
        one["configs"][1],
        json!({"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster",
            "cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "foo"}})
    );
    let node = get_json(&state, "/config_dump?mask=bootstrap.node");
    assert_eq!(node["configs"].as_array().unwrap().len(), 1);
    assert_eq!(node["configs"][0]["bootstrap"]["node"]["id"], "n1");
    let named = get_json(&state, "/config_dump?name_regex=dea");
    assert_eq!(named["configs"][1]["static_clusters"].as_array().unwrap().len(), 1);
    assert!(named["configs"][2].get("static_listeners").is_none());
    assert_eq!(get_json(&state, "/config_dump?include_eds")["configs"].as_array().unwrap().len(), 7);
    assert_eq!(get_json(&state, "/config_dump?resource=dynamic_listeners"), json!({"configs": []}));
    let missing = (404, "nosuch not found in config dump".to_owned());
    assert_eq!(get(&state, "/config_dump?resource=nosuch"), missing);
    assert_eq!(get(&state, "/config_dump?mask=nosuch").0, 400);
    assert_eq!(get(&state, "/config_dump?resource=bootstrap").0, 400);
}

#[test]
fn stats_in_every_format() {
    let (state, _commands) = state();
    let counter = Scope::cluster("admin-test").counter("upstream_rq_total");
    counter.increment(3);
    let name = "cluster.admin-test.upstream_rq_total";
    let filter = "filter=%5Ecluster%5C.admin-test";
    assert_eq!(get(&state, &format!("/stats?{filter}")).1, format!("{name}: 3\n"));
    let stats = get_json(&state, &format!("/stats?format=json&{filter}"));
    assert_eq!(stats, json!({"stats": [{"name": name, "value": 3}]}));
    let lines = "# TYPE envoy_cluster_upstream_rq_total counter\n\
        envoy_cluster_upstream_rq_total{envoy_cluster_name=\"admin-test\"} 3\n";
    assert_eq!(get(&state, &format!("/stats/prometheus?{filter}")).1, lines);
    assert_eq!(get(&state, &format!("/stats?format=prometheus&{filter}")).1, lines);
    assert_eq!(get(&state, &format!("/stats?type=Gauges&{filter}")).1, "");
    assert!(get(&state, "/stats?filter=server.conc").1.starts_with("server.concurrency: "));
    for bad in ["type=foo", "format=foo", "filter=(", "histogram_buckets=foo"] {
        assert_eq!(get(&state, &format!("/stats?{bad}")).0, 400, "{bad}");
    }
    assert_eq!(get(&state, "/stats?type=TextReadouts"), (200, "\n".into()));
}

#[test]
fn log_levels_and_runtime() {
    let (state, _commands) = state();
    let (status, levels) = ask(&state, &Method::POST, "/logging?http=trace");
    assert!(status == 200 && levels.starts_with("active loggers:\n  admin: info\n"), "{levels}");
    assert!(levels.contains("\n  http: trace\n"));
    ask(&state, &Method::POST, "/logging?level=warning");
    ask(&state, &Method::POST, "/logging?paths=http:debug,upstream:error");
    let (_, levels) = ask(&state, &Method::POST, "/logging");
    assert!(levels.contains("  http: debug\n") && levels.contains("  main: warning\n"), "{levels}");
    let (status, body) = ask(&state, &Method::POST, "/logging?level=loud");
    assert!(status == 400 && body.starts_with("error: unknown log level \"loud\""), "{body}");

    assert_eq!(
        get_json(&state, "/runtime"),
        json!({"layers": ["a", "b"], "entries": {
            "x.y": {"final_value": "2", "layer_values": ["1", "2"]},
            "x.z": {"final_value": "on", "layer_values": ["on", ""]}}})
    );
}

async fn exchange(address: std::net::SocketAddr, head: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn it_serves_over_tcp_until_told_to_stop() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (state, mut commands) = state();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, state, async { drop(stopped.await) }));

    let text = exchange(address, "GET /ready HTTP/1.1\r\nhost: x").await;
    assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{text}");
    assert!(text.contains("x-content-type-options: nosniff\r\n") && text.ends_with("PRE_INITIALIZING\n"));
    let quit = "POST /quitquitquit HTTP/1.1\r\nhost: x:1\r\norigin: ";
    for origin in ["http://evil.example", "null", "http://x"] {
        let text = exchange(address, &format!("{quit}{origin}")).await;
        assert!(text.starts_with("HTTP/1.1 403 "), "{origin}: {text}");
    }
    assert!(commands.try_recv().is_err());
    assert!(exchange(address, &format!("{quit}http://x:1")).await.ends_with("OK\n"));
    assert_eq!(commands.try_recv(), Ok(AdminCommand::Quit));

    drop(stop);
    server.await.unwrap().unwrap();
}
