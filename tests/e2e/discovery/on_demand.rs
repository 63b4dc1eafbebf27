//! Virtual hosts and clusters that requests ask for, beside Envoy.

use outrigger_control_api::server::ResourceType;

use super::beside::{Both, Side};
use super::clients::named;
use super::mesh::{bootstrap, snapshot, Mesh};
use super::scripted::Scripted;
use crate::harness::client::Client;
use crate::harness::ports::free_port;
use crate::harness::proxy::Proxy;
use crate::harness::{eventually, DEADLINE};
use crate::peers;

const RDS: &str = "rds: { route_config_name: main, config_source: { resource_api_version: V3, ads: {} } }";

/// The listener `main` with the on-demand filter, which has these options.
fn listener(port: u16, options: &str) -> String {
    let mesh = Mesh::simple(port, &[]);
    let filter = format!(
        r#"      - name: envoy.filters.http.on_demand
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand
{options}
      - name: router"#
    );
    let listener = mesh.listener("main", port);
    assert!(listener.contains(RDS));
    listener.replace("      - name: router", &filter)
}

fn clusters(origins: &[(&str, u16)]) -> Vec<String> {
    let mut mesh = Mesh::default();
    mesh.services.extend(origins.iter().map(|(name, port)| ((*name).to_owned(), vec![*port])));
    mesh.resources()
}

/// Serves these to both; those of `kind` called `named` only to who names them.
fn serve(both: &Both, resources: impl Fn(u16) -> Vec<String>, kind: &ResourceType, named: &[&str]) {
    for side in &both.sides {
        let mut snapshot = snapshot(&resources(side.port));
        for name in named {
            assert!(snapshot.serve_by_name_only(kind, name), "{name}");
        }
        both.control.cache.set(side.node, snapshot);
    }
}

async fn send(port: u16, request: &str) -> String {
    let Ok(mut client) = Client::connect(port).await else { return "no connection".to_owned() };
    match client.exchange(request.as_bytes()).await {
        Ok(answer) => format!("{} {}", answer.status(), answer.text()),
        Err(error) => error.to_string(),
    }
}

async fn host(side: &Side, host: &str) -> String {
    send(side.port, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await
}

/// The answer of each at its first request.
async fn first(both: &Both, name: &str, expected: &str) {
    for side in &both.sides {
        assert_eq!(host(side, name).await, expected, "{name}: {:?}", side.proxy.kind());
    }
}

async fn soon(both: &Both, name: &str, expected: &str) {
    for side in &both.sides {
        let same = || async { host(side, name).await == expected };
        let same = eventually(DEADLINE, same).await;
        assert!(same, "{name}: {:?} answers {}", side.proxy.kind(), host(side, name).await);
    }
}

fn virtual_host(name: &str, domain: &str, cluster: &str) -> String {
    format!(
        r#"
"@type": type.googleapis.com/envoy.config.route.v3.VirtualHost
name: {name}
domains: ["{domain}"]
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: {cluster} }} }}]
"#
    )
}

fn table() -> String {
    let table = Mesh::table("main", &[("/".into(), vec![("one".into(), 1)])]);
    table.replace("\"*\"", "own.test")
        + "vhds: { config_source: { resource_api_version: V3, initial_fetch_timeout: 2s, ads: {} } }\n"
}

#[tokio::test]
async fn virtual_hosts_come_when_they_are_asked_for_as_in_envoy() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (one, two) = (named("one").await, named("two").await);
    let origins = [("one", one.port()), ("two", two.port())];
    let resources = |hosts: Vec<String>| {
        move |port: u16| {
            let mut all = clusters(&origins);
            all.extend([table(), listener(port, "")]);
            all.extend(hosts.iter().cloned());
            all
        }
    };
    let both = Both::start(true, resources(Vec::new())).await;
    let kind = ResourceType::VIRTUAL_HOST;
    soon(&both, "own.test", "200 one").await;
    let web = |cluster: &str| virtual_host("main/web.test", "web.test", cluster);
    let wild = virtual_host("main/wild", "*.wild.test", "two");
    let all = |cluster: &str| resources(vec![web(cluster), wild.clone()]);
    serve(&both, all("two"), &kind, &["main/web.test", "main/wild"]);
    first(&both, "own.test", "200 one").await;
    first(&both, "WEB.test", "200 two").await;
    first(&both, "web.test", "200 two").await;
    first(&both, "a.wild.test", "200 two").await;
    first(&both, "none.test", "404 ").await;
    first(&both, "none.test", "404 ").await;
    // What was asked for follows its changes.
    serve(&both, all("one"), &kind, &["main/web.test", "main/wild"]);
    soon(&both, "web.test", "200 one").await;
    serve(&both, resources(vec![wild.clone()]), &kind, &["main/wild"]);
    for side in &both.sides {
        let gone = || async { host(side, "web.test").await == "404 " };
        assert!(eventually(DEADLINE, gone).await, "{:?}", side.proxy.kind());
    }
    // What is pushed needs no asking.
    serve(&both, all("two"), &kind, &[]);
    soon(&both, "web.test", "200 two").await;
    // A request with a body waits too.
    let late = virtual_host("main/late.test", "late.test", "two");
    serve(&both, resources(vec![late]), &kind, &["main/late.test"]);
    let request = "POST / HTTP/1.1\r\nHost: late.test\r\nContent-Length: 4\r\n\r\nbody";
    for side in &both.sides {
        assert_eq!(send(side.port, request).await, "200 two", "{:?}", side.proxy.kind());
    }
}

const ODCDS: &str = "          odcds: { source: { resource_api_version: V3, ads: {} }, timeout: 2s }";

fn by_header(extra: &str) -> String {
    format!(
        r#"
"@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
name: main
virtual_hosts:
- name: all
  domains: ["*"]
  routes:
  - match: {{ prefix: /fixed }}
    route: {{ cluster: fixed }}
  - match: {{ prefix: /never }}
    route: {{ cluster_header: x-cluster }}
    typed_per_filter_config:
      envoy.filters.http.on_demand:
        "@type": type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.PerRouteConfig
  - match: {{ prefix: / }}
    route: {{ cluster_header: x-cluster }}
{extra}
"#
    )
}

async fn cluster(side: &Side, path: &str, cluster: &str) -> String {
    send(side.port, &format!("GET {path} HTTP/1.1\r\nHost: t.test\r\nx-cluster: {cluster}\r\n\r\n")).await
}

#[tokio::test]
async fn clusters_come_when_they_are_asked_for_as_in_envoy() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let origin = named("one").await;
    let port_of = origin.port();
    let names = ["lazy", "later", "fixed"];
    let resources = |names: Vec<&'static str>, options: &'static str, extra: &'static str| {
        move |port: u16| {
            let origins: Vec<_> = names.iter().map(|name| (*name, port_of)).collect();
            let mut all = clusters(&origins);
            all.extend([by_header(extra), listener(port, options)]);
            all
        }
    };
    let kind = ResourceType::CLUSTER;
    let both = Both::start(true, resources(Vec::new(), ODCDS, "")).await;
    serve(&both, resources(names.to_vec(), ODCDS, ""), &kind, &names);
    let [_, ours] = &both.sides;
    for side in &both.sides {
        let what = side.proxy.kind();
        assert_eq!(cluster(side, "/never", "lazy").await, "503 ", "{what:?}: the route says no");
        assert_eq!(cluster(side, "/", "lazy").await, "200 one", "{what:?}");
        assert_eq!(cluster(side, "/never", "lazy").await, "200 one", "{what:?}: it is there now");
        assert_eq!(cluster(side, "/fixed", "").await, "200 one", "{what:?}: not only names in headers");
        assert_eq!(cluster(side, "/", "none").await, "503 ", "{what:?}: there is none");
    }
    // Many wait for one.
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let request = "GET / HTTP/1.1\r\nHost: t.test\r\nx-cluster: later\r\n\r\n";
        all.spawn(send(ours.port, request));
    }
    for answer in all.join_all().await {
        assert_eq!(answer, "200 one");
    }
    let asked = both.control.cache.streams();
    let asked = asked.iter().filter(|stream| stream.node_id == ours.node).flat_map(|stream| &stream.types);
    // One name each; the one that does not exist was given up.
    assert_eq!(asked.filter(|t| t.kind == kind).map(|t| t.subscribed).sum::<usize>(), 3);
    assert_eq!(ours.proxy.stats().await["http.main.no_cluster"], 2);
    // A route's own source, where the filter has none.
    const OWN: &str = r#"typed_per_filter_config:
  envoy.filters.http.on_demand:
    "@type": type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.PerRouteConfig
    odcds: { source: { resource_api_version: V3, ads: {} } }"#;
    let both = Both::start(true, resources(Vec::new(), "", OWN)).await;
    serve(&both, resources(names.to_vec(), "", OWN), &kind, &names);
    for side in &both.sides {
        let what = side.proxy.kind();
        let same = || async { cluster(side, "/", "lazy").await == "200 one" };
        assert!(eventually(DEADLINE, same).await, "{what:?}: {}", cluster(side, "/", "lazy").await);
        assert_eq!(cluster(side, "/never", "later").await, "503 ", "{what:?}: the route says no");
    }
}

#[tokio::test]
async fn a_cluster_that_nobody_answers_for_is_waited_for_no_longer_than_the_filter_says() {
    let origin = named("one").await;
    let port = free_port();
    let resources = |names: &[&str]| {
        let origins: Vec<_> = names.iter().map(|name| (*name, origin.port())).collect();
        let mut all = clusters(&origins);
        all.extend([by_header(""), listener(port, &ODCDS.replace("2s", "0.5s"))]);
        all
    };
    let control = Scripted::start(true, &Mesh::default()).await;
    control.set_all(&resources(&["web"]));
    let _proxy = Proxy::outrigger(&bootstrap(true), &[("control", control.port.to_string())]).await;
    let ask = |name: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: t.test\r\nx-cluster: {name}\r\n\r\n");
        async move { send(port, &request).await }
    };
    assert_eq!(ask("web").await, "200 one");
    // It says nothing at all of names that it does not know.
    let began = std::time::Instant::now();
    assert_eq!(ask("silent").await, "503 ");
    assert!(began.elapsed() >= std::time::Duration::from_millis(500), "{:?}", began.elapsed());
    // A client that goes away does not matter, and what comes late is there for the next.
    let mut gone = Client::connect(port).await.expect("a connection");
    gone.send(b"GET / HTTP/1.1\r\nHost: t.test\r\nx-cluster: silent\r\n\r\n").await.expect("sent");
    drop(gone);
    control.set_all(&resources(&["web", "silent"]));
    let there = || async { ask("silent").await == "200 one" };
    assert!(eventually(DEADLINE, there).await, "{}", ask("silent").await);
}
