//! Outrigger and the real Envoy beside each other on one control plane: what warms, what is refused, what is counted.

use std::collections::BTreeMap;

use outrigger_control_api::server::ResourceType;

use super::clients::named;
use super::mesh::{bootstrap, snapshot, ControlPlane, Mesh, NODE};
use crate::harness::client::{get, Client};
use crate::harness::origin::Origin;
use crate::harness::ports::free_port;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;

/// One of the two.
pub(super) struct Side {
    pub(super) proxy: Proxy,
    pub(super) node: &'static str,
    pub(super) port: u16,
}

pub(super) struct Both {
    pub(super) control: ControlPlane,
    pub(super) sides: [Side; 2],
}

impl Both {
    /// Starts both; `resources` are made for the port of a side's listener.
    pub(super) async fn start(delta: bool, resources: impl Fn(u16) -> Vec<String>) -> Both {
        let control = ControlPlane::start(&Mesh::default()).await;
        let mut sides = Vec::new();
        for (kind, node) in [(Kind::Envoy, "envoy"), (Kind::Outrigger, NODE)] {
            let port = free_port();
            control.cache.set(node, snapshot(&resources(port)));
            let own = bootstrap(delta).replace("id: sidecar", &format!("id: {node}"));
            let proxy = Proxy::start(Plan::new(kind, &own, &[("control", control.port.to_string())])).await;
            sides.push(Side { proxy, node, port });
        }
        let sides = sides.try_into().unwrap_or_else(|_| unreachable!("there are two"));
        Both { control, sides }
    }

    /// New resources for both; done when both have accepted or refused them.
    pub(super) async fn set(&self, resources: impl Fn(u16) -> Vec<String>) {
        for side in &self.sides {
            self.control.cache.set(side.node, snapshot(&resources(side.port)));
        }
        for side in &self.sides {
            let judged = || std::future::ready(self.is_judged(side));
            assert!(eventually(DEADLINE * 2, judged).await, "{:?} gives no verdict", side.proxy.kind());
        }
    }

    /// Whether a side has accepted or refused what there is. Endpoints and tables may not be asked for.
    fn is_judged(&self, side: &Side) -> bool {
        let Some(snapshot) = self.control.cache.get(side.node) else { return false };
        let streams = self.control.cache.streams();
        let own = streams.iter().find(|stream| stream.node_id == side.node);
        own.is_some_and(|stream| {
            stream.types.iter().all(|t| {
                let version = match t.wildcard {
                    true => snapshot.version(&t.kind),
                    false => t.version_sent.clone(),
                };
                let refused = t.last_nack.as_ref().is_some_and(|(nack, _)| nack.version == version);
                t.pending == 0 && (version == t.version_acked || refused)
            })
        })
    }

    /// What each side says of the present version of a type: accepted, or why not.
    pub(super) async fn verdicts(&self, kind: &ResourceType) -> [Result<(), String>; 2] {
        let mut verdicts = [Ok(()), Ok(())];
        for (side, verdict) in self.sides.iter().zip(&mut verdicts) {
            let look = || {
                let version = self.control.cache.get(side.node)?.version(kind);
                let streams = self.control.cache.streams();
                let own = streams.iter().find(|stream| stream.node_id == side.node)?;
                let status = own.types.iter().find(|t| t.kind == *kind)?;
                let refused = status.last_nack.as_ref().filter(|(nack, _)| nack.version == version);
                match refused {
                    Some((nack, _)) => Some(Err(nack.message.clone())),
                    None => (status.version_acked == version).then_some(Ok(())),
                }
            };
            let said = || std::future::ready(look().is_some());
            assert!(eventually(DEADLINE * 2, said).await, "{:?} gives no verdict", side.proxy.kind());
            *verdict = look().expect("there is one");
        }
        verdicts
    }

    /// Waits until both answer this.
    async fn answer(&self, what: &str, path: &str, expected: &str) {
        for side in &self.sides {
            let same = || async { answer(side.port, path).await == expected };
            let same = eventually(DEADLINE * 2, same).await;
            let last = if same { String::new() } else { answer(side.port, path).await };
            assert!(same, "{what}: {:?} answers {last:?}, not {expected:?}", side.proxy.kind());
        }
    }

    /// Waits until the statistics that `wanted` takes are equal.
    pub(super) async fn same(&self, wanted: impl Fn(&str) -> bool + Copy, when: &str) {
        let same = || async { self.differing(wanted).await.is_empty() };
        let same = eventually(DEADLINE, same).await;
        assert!(same, "{when}: {:?}", self.differing(wanted).await);
    }

    /// Statistics that differ, of those whose name `wanted` takes.
    pub(super) async fn differing(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let [envoy, ours] = [self.sides[0].proxy.stats().await, self.sides[1].proxy.stats().await];
        let names: std::collections::BTreeSet<&String> =
            envoy.keys().chain(ours.keys()).filter(|name| wanted(name)).collect();
        let differs = |name: &&&String| envoy.get(**name).unwrap_or(&0) != ours.get(**name).unwrap_or(&0);
        let text = |name: &String| format!("{name}: Envoy {:?}, here {:?}", envoy.get(name), ours.get(name));
        names.iter().filter(differs).map(|name| text(name)).collect()
    }
}

/// Status and body of one answer.
async fn answer(port: u16, path: &str) -> String {
    match get(port, path).await {
        Ok(answer) => format!("{} {}", answer.status(), answer.text()),
        Err(_) => "no connection".to_owned(),
    }
}

/// Which origins answer so many requests, and how often.
async fn spread(port: u16, requests: usize) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..requests {
        *seen.entry(answer(port, "/").await).or_default() += 1;
    }
    seen
}

fn simple(port: u16, endpoints: &[u16]) -> Mesh {
    Mesh::simple(port, endpoints)
}

/// What counts the same here as in Envoy.
fn counted(name: &str) -> bool {
    let whole = [
        "cluster_manager.cluster_added",
        "cluster_manager.cluster_modified",
        "cluster_manager.cluster_removed",
        "cluster_manager.active_clusters",
        "cluster_manager.warming_clusters",
        "listener_manager.listener_added",
        "listener_manager.listener_modified",
        "listener_manager.listener_removed",
        "listener_manager.listener_create_success",
        "listener_manager.total_listeners_active",
        "listener_manager.total_listeners_warming",
    ];
    let ends =
        ["update_success", "update_rejected", "update_failure", "update_attempt", "init_fetch_timeout"];
    let of_type = name.starts_with("cluster_manager.cds.") || name.starts_with("listener_manager.lds.");
    let of_table = name.contains(".rds.");
    let more = ["config_reload", "update_empty"];
    let of_cluster = name.starts_with("cluster.web.");
    whole.contains(&name)
        || of_type && ends.iter().any(|end| name.ends_with(end))
        || of_table && ends[..3].iter().chain(&more).any(|end| name.ends_with(end))
        || of_cluster && name.contains(".membership_") && !name.ends_with("membership_change")
}

async fn updates(delta: bool) {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (one, two) = (named("one").await, named("two").await);
    let (a, b) = (one.port(), two.port());
    let both = Both::start(delta, |port| simple(port, &[a]).resources()).await;
    both.answer("at first", "/", "200 one").await;
    both.same(counted, "at first").await;
    // Endpoints.
    both.set(|port| simple(port, &[b]).resources()).await;
    both.answer("other endpoints", "/", "200 two").await;
    both.set(|port| simple(port, &[]).resources()).await;
    both.answer("no endpoints", "/", "503 no healthy upstream").await;
    both.set(|port| simple(port, &[a, b]).resources()).await;
    both.answer("endpoints again", "/", "200 one").await;
    both.same(counted, "after changes of endpoints").await;
    // Clusters.
    let with_extra = |port: u16, extra: &str| {
        let mut mesh = simple(port, &[b]);
        mesh.cluster_extra.insert("web".into(), extra.into());
        mesh
    };
    both.set(|port| with_extra(port, "per_connection_buffer_limit_bytes: 32768").resources()).await;
    both.answer("a changed cluster", "/", "200 two").await;
    let with_more = |port: u16| {
        let mut mesh = simple(port, &[b]);
        mesh.services.insert("more".into(), vec![a]);
        mesh.tables.insert(
            "main".into(),
            vec![
                ("/more".into(), vec![("more".into(), 1)]),
                ("/gone".into(), vec![("gone".into(), 1)]),
                ("/".into(), vec![("web".into(), 1)]),
            ],
        );
        mesh
    };
    both.set(|port| with_more(port).resources()).await;
    both.answer("a new cluster", "/more", "200 one").await;
    both.answer("a cluster that is not there", "/gone", "503 ").await;
    both.same(counted, "after changes of clusters").await;
    // The cluster goes while a route still names it. Here that takes a while.
    let without = |port: u16| {
        let mut mesh = with_more(port);
        mesh.services.remove("more");
        mesh
    };
    both.set(|port| without(port).resources()).await;
    both.answer("a removed cluster", "/more", "503 ").await;
    both.same(counted, "after a cluster went").await;
    both.set(|port| with_more(port).resources()).await;
    both.answer("a cluster that came back", "/more", "200 one").await;
    both.same(counted, "after a cluster came back").await;
    // Routes.
    let routed = |port: u16, prefix: &str| {
        let mut mesh = simple(port, &[a]);
        mesh.tables.insert("main".into(), vec![(prefix.into(), vec![("web".into(), 1)])]);
        mesh
    };
    both.set(|port| routed(port, "/only").resources()).await;
    both.answer("a route that went", "/", "404 ").await;
    both.answer("a route that came", "/only", "200 one").await;
    // The table goes, and stays in force.
    both.set(|port| {
        let mut resources = routed(port, "/only").resources();
        resources.retain(|text| !text.contains("RouteConfiguration"));
        resources
    })
    .await;
    both.answer("a table that went", "/only", "200 one").await;
    // Listeners.
    both.set(|port| {
        let mut mesh = routed(port, "/");
        mesh.manager_extra = "      server_name: changed".into();
        mesh.resources()
    })
    .await;
    for side in &both.sides {
        let named = || async {
            get(side.port, "/").await.is_ok_and(|answer| answer.all("server").any(|name| name == "changed"))
        };
        assert!(eventually(DEADLINE, named).await, "{:?}", side.proxy.kind());
    }
    both.set(|port| {
        let mut mesh = simple(port, &[a]);
        mesh.listeners.clear();
        mesh.resources()
    })
    .await;
    both.answer("a listener that went", "/", "no connection").await;
    both.set(|port| simple(port, &[a]).resources()).await;
    both.answer("a listener that came back", "/", "200 one").await;
    // The counters of a table begin anew with its first listener; in Envoy the old one is still there, draining.
    both.same(|name| counted(name) && !name.contains(".rds."), "after changes of listeners").await;
}

#[tokio::test]
async fn updates_have_the_same_effect_and_counters_as_in_envoy_delta() {
    updates(true).await;
}

#[tokio::test]
async fn updates_have_the_same_effect_and_counters_as_in_envoy_state_of_the_world() {
    updates(false).await;
}

#[tokio::test]
async fn what_is_missing_is_waited_for_as_long_as_in_envoy() {
    missing(true).await;
    missing(false).await;
}

async fn missing(delta: bool) {
    if !peers::have(&["envoy"]) {
        return;
    }
    let one = named("one").await;
    let a = one.port();
    let both = Both::start(delta, |port| simple(port, &[a]).resources()).await;
    both.answer("at first", "/", "200 one").await;
    // A cluster whose endpoints do not come: it is not there until the time is over, then it is empty.
    let late = |port: u16, with: bool| {
        let mut mesh = simple(port, &[a]);
        mesh.services.insert("late".into(), vec![a]);
        mesh.tables.insert(
            "main".into(),
            vec![("/late".into(), vec![("late".into(), 1)]), ("/".into(), vec![("web".into(), 1)])],
        );
        let mut resources = mesh.resources();
        for text in &mut resources {
            if text.contains("name: late\ntype: EDS") {
                *text = text
                    .replace(
                        "resource_api_version: V3, ads: {}",
                        "resource_api_version: V3, initial_fetch_timeout: 1.5s, ads: {}",
                    )
                    .replace("eds_config:", "service_name: late-endpoints, eds_config:");
            }
        }
        resources.retain(|text| !text.contains("cluster_name: late"));
        if with {
            resources.push(Mesh::endpoints("late-endpoints", &[a]));
        }
        resources
    };
    both.set(|port| late(port, false)).await;
    for side in &both.sides {
        let missing = || async { answer(side.port, "/late").await.starts_with("503 ") };
        assert!(eventually(DEADLINE, missing).await, "{:?}", side.proxy.kind());
    }
    both.answer("a cluster without endpoints", "/late", "503 no healthy upstream").await;
    both.answer("the others", "/", "200 one").await;
    both.set(|port| late(port, true)).await;
    both.answer("endpoints that come late", "/late", "200 one").await;
    // A listener whose table does not come: bound when the time is over.
    let listener = |port: u16, timeout: &str, with: bool| {
        let mut mesh = simple(port, &[a]);
        mesh.tables.clear();
        let mut resources: Vec<String> = mesh
            .resources()
            .iter()
            .map(|text| {
                text.replace(
                    "route_config_name: main, config_source: { resource_api_version: V3,",
                    &format!("route_config_name: other, config_source: {{ initial_fetch_timeout: {timeout}, resource_api_version: V3,"),
                )
            })
            .collect();
        if with {
            resources.push(Mesh::table("other", &[("/".into(), vec![("web".into(), 1)])]));
        }
        resources
    };
    // The old version serves meanwhile.
    both.set(|port| listener(port, "300s", false)).await;
    for side in &both.sides {
        assert_eq!(answer(side.port, "/").await, "200 one", "{:?}", side.proxy.kind());
        let warming = || async { side.proxy.stats().await["listener_manager.total_listeners_warming"] == 1 };
        assert!(eventually(DEADLINE, warming).await, "{:?}", side.proxy.kind());
    }
    // The control plane says that there is no such table: that ends no wait.
    both.set(|port| listener(port, "1s", false)).await;
    both.answer("a listener without a table", "/", "200 one").await;
    both.set(|port| listener(port, "1s", true)).await;
    both.answer("a table that comes late", "/", "200 one").await;
}

#[tokio::test]
async fn names_weights_health_and_priorities_are_used_as_in_envoy() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let origins = [named("one").await, named("two").await, named("three").await];
    let ports: Vec<u16> = origins.iter().map(Origin::port).collect();
    let both = Both::start(true, |port| simple(port, &ports[..1]).resources()).await;
    // Clusters of names.
    for kind in ["STRICT_DNS", "LOGICAL_DNS"] {
        both.set(|port| {
            let mut resources = simple(port, &ports[..1]).resources();
            resources[0] = format!(
                "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: web\ntype: {kind}\nconnect_timeout: 1s\n\
                 dns_lookup_family: V4_ONLY\nload_assignment:\n  cluster_name: web\n  endpoints:\n  - lb_endpoints:\n    \
                 - endpoint: {{ address: {{ socket_address: {{ address: localhost, port_value: {} }} }} }}\n",
                ports[1]
            );
            resources.remove(1);
            resources
        })
        .await;
        both.answer(kind, "/", "200 two").await;
        both.set(|port| simple(port, &ports[..1]).resources()).await;
        both.answer("back to endpoints", "/", "200 one").await;
    }
    let assigned = |port: u16, endpoints: &str| {
        let mut resources = simple(port, &ports[..1]).resources();
        let mut text = String::from(
            "\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\ncluster_name: web\n",
        );
        text += endpoints;
        resources[1] = text;
        resources
    };
    let endpoint = |index: usize, extra: &str| {
        format!(
            "  - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }}\n{extra}",
            ports[index]
        )
    };
    // Weights, and connections that stay when they change.
    let weighted = |first: u32, second: u32| {
        let weight = |weight: u32| format!("    load_balancing_weight: {weight}\n");
        format!(
            "endpoints:\n- lb_endpoints:\n{}{}",
            endpoint(0, &weight(first)),
            endpoint(1, &weight(second))
        )
    };
    both.set(|port| assigned(port, &weighted(3, 1))).await;
    for side in &both.sides {
        let seen = || async { spread(side.port, 8).await.len() == 2 };
        assert!(eventually(DEADLINE, seen).await, "{:?}", side.proxy.kind());
        let seen = spread(side.port, 200).await;
        let first = seen.get("200 one").copied().unwrap_or(0);
        assert!((140..=160).contains(&first), "{:?}: {seen:?}", side.proxy.kind());
    }
    let before = [connections(&both.sides[0]).await, connections(&both.sides[1]).await];
    both.set(|port| assigned(port, &weighted(1, 3))).await;
    for (side, before) in both.sides.iter().zip(before) {
        let changed =
            || async { spread(side.port, 40).await.get("200 one").is_some_and(|count| *count <= 15) };
        assert!(eventually(DEADLINE, changed).await, "{:?}", side.proxy.kind());
        assert_eq!(connections(side).await, before, "{:?} opened connections anew", side.proxy.kind());
    }
    // Health.
    let sick = format!(
        "endpoints:\n- lb_endpoints:\n{}{}",
        endpoint(0, "    health_status: UNHEALTHY\n"),
        endpoint(1, "")
    );
    both.set(|port| assigned(port, &sick)).await;
    both.answer("the healthy one", "/", "200 two").await;
    for side in &both.sides {
        assert_eq!(
            spread(side.port, 20).await.keys().collect::<Vec<_>>(),
            ["200 two"],
            "{:?}",
            side.proxy.kind()
        );
    }
    both.same(counted, "with a sick endpoint").await;
    // Priorities and localities.
    let priorities = |health: &str| {
        let first = format!("    health_status: {health}\n");
        format!(
            "endpoints:\n- locality: {{ zone: near }}\n  lb_endpoints:\n{}- locality: {{ zone: far }}\n  priority: 1\n  lb_endpoints:\n{}{}",
            endpoint(0, &first),
            endpoint(1, ""),
            endpoint(2, ""),
        )
    };
    both.set(|port| assigned(port, &priorities("HEALTHY"))).await;
    both.answer("the first priority", "/", "200 one").await;
    for side in &both.sides {
        let only = || async { spread(side.port, 20).await.keys().eq(["200 one"]) };
        assert!(eventually(DEADLINE, only).await, "{:?}", side.proxy.kind());
    }
    both.set(|port| assigned(port, &priorities("UNHEALTHY"))).await;
    for side in &both.sides {
        let only = || async { spread(side.port, 20).await.keys().eq(["200 three", "200 two"]) };
        assert!(
            eventually(DEADLINE, only).await,
            "{:?}: {:?}",
            side.proxy.kind(),
            spread(side.port, 20).await
        );
    }
    both.same(counted, "with priorities").await;
}

/// Connections to origins so far.
async fn connections(side: &Side) -> u64 {
    side.proxy.stats().await["cluster.web.upstream_cx_total"]
}

/// A change to one resource of the simple mesh, and whether it is refused: the place (0 cluster, 1 endpoints, 2 table,
/// 3 listener), what is replaced by what.
const BAD: &[(&str, usize, &str, &str)] = &[
    ("a negative timeout", 0, "connect_timeout: 1s", "connect_timeout: -1s"),
    ("a cluster of EDS without its source", 0, "eds_cluster_config:", "metadata: {}\n#"),
    ("a load assignment for EDS", 0, "type: EDS", "type: EDS\nload_assignment: { cluster_name: web }"),
    ("endpoints of another cluster", 1, "lb_endpoints:", "priority: 200\n  lb_endpoints:"),
    ("a gap in priorities", 1, "lb_endpoints:", "priority: 2\n  lb_endpoints:"),
    ("an endpoint's weight of zero", 1, "- endpoint:", "- load_balancing_weight: 0\n    endpoint:"),
    ("a name where an address belongs", 1, "address: 127.0.0.1", "address: not.an.address"),
    ("the same domain twice", 2, "domains: [\"*\"]", "domains: [\"*\", \"*\"]"),
    ("a regex that is none", 2, "prefix: \"/\"", "safe_regex: { regex: \"(\" }"),
    ("a host without domains", 2, "domains: [\"*\"]", "domains: []"),
    ("weights of zero", 2, "weight: 1", "weight: 0"),
    ("an unknown cluster where that is checked", 2, "name: main\n", "name: main\nvalidate_clusters: true\n"),
    ("no stat prefix", 3, "stat_prefix: main", "server_name: x"),
    (
        "two filter chains with the same match",
        3,
        "filter_chains:",
        "filter_chains:\n- filter_chain_match: {}\n  filters: []",
    ),
    ("another kind of socket", 3, "filter_chains:", "enable_reuse_port: false\nfilter_chains:"),
    (
        "another kind of socket and another address",
        3,
        "address: { socket_address: { address: 127.0.0.1",
        "enable_reuse_port: false\naddress: { socket_address: { address: 127.0.0.2",
    ),
    ("an address that is none", 3, "address: 127.0.0.1", "address: 300.1.1.1"),
];

#[tokio::test]
async fn what_envoy_refuses_is_refused() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let one = named("one").await;
    let a = one.port();
    let both = Both::start(true, |port| simple(port, &[a]).resources()).await;
    let kinds = [ResourceType::CLUSTER, ResourceType::ENDPOINTS, ResourceType::ROUTE, ResourceType::LISTENER];
    let mut wrong = Vec::new();
    for (what, place, from, to) in BAD {
        let mut possible = true;
        let changed = |port: u16| {
            let mut resources = simple(port, &[a]).resources();
            assert!(resources[*place].contains(from), "{what}: {}", resources[*place]);
            resources[*place] = resources[*place].replacen(from, to, 1);
            if *what == "an unknown cluster where that is checked" {
                resources[*place] = resources[*place].replace("name: web", "name: unknown");
            }
            resources
        };
        for text in changed(1) {
            let value: serde_json::Value = serde_yaml_ng::from_str(&text).expect("YAML");
            if let Err(error) = outrigger_control_api::load_resource(&value) {
                wrong.push(format!("{what}: the control plane itself refuses it: {error:?}"));
                possible = false;
            }
        }
        if !possible {
            continue;
        }
        both.set(changed).await;
        let [envoy, ours] = both.verdicts(&kinds[*place]).await;
        if envoy.is_ok() != ours.is_ok() {
            wrong.push(format!("{what}: Envoy {envoy:?}, here {ours:?}"));
        }
        both.set(|port| simple(port, &[a]).resources()).await;
        both.answer(what, "/", "200 one").await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let refused = |name: &str| name.ends_with("ds.update_rejected");
    both.same(refused, "after refusals").await;
    let mut client = Client::connect(both.sides[1].port).await.expect("a connection");
    assert_eq!(client.exchange(super::clients::GET).await.expect("an answer").status(), 200);
}
