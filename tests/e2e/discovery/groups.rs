//! The cases of the differential suite with everything from one control plane, for Outrigger and Envoy at once, and
//! again after each kind of change.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{json, Value};

use super::mesh::{bootstrap, snapshot_of, ControlPlane, Mesh, NODE};
use crate::differential::{bootstrap::origins, differing, groups, Group, Side};
use crate::harness::origin::Origin;
use crate::harness::proxy::{fill, Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;

const TYPE: &str = "type.googleapis.com/envoy";

/// The resources of a bootstrap's listeners and clusters: route tables by RDS, endpoints by EDS.
fn resources(template: &str) -> Vec<Value> {
    let bootstrap: Value = serde_yaml_ng::from_str(template).expect("YAML");
    let ads = json!({ "resource_api_version": "V3", "ads": {} });
    let list = |field: &str| bootstrap["static_resources"][field].as_array().cloned().unwrap_or_default();
    let mut all = Vec::new();
    for mut cluster in list("clusters") {
        cluster["@type"] = format!("{TYPE}.config.cluster.v3.Cluster").into();
        if cluster["type"] == "STATIC" {
            cluster["type"] = "EDS".into();
            cluster["eds_cluster_config"] = json!({ "eds_config": ads });
            let name = cluster["name"].clone();
            let fields = cluster.as_object_mut().expect("a cluster");
            if let Some(mut endpoints) = fields.remove("load_assignment") {
                endpoints["@type"] = format!("{TYPE}.config.endpoint.v3.ClusterLoadAssignment").into();
                endpoints["cluster_name"] = name;
                all.push(endpoints);
            }
        }
        all.push(cluster);
    }
    for mut listener in list("listeners") {
        listener["@type"] = format!("{TYPE}.config.listener.v3.Listener").into();
        for chain in listener["filter_chains"].as_array_mut().expect("chains") {
            for filter in chain["filters"].as_array_mut().expect("filters") {
                let config = filter["typed_config"].as_object_mut().expect("a configuration");
                if let Some(mut table) = config.remove("route_config") {
                    let rds = json!({ "route_config_name": table["name"], "config_source": ads });
                    config.insert("rds".into(), rds);
                    table["@type"] = format!("{TYPE}.config.route.v3.RouteConfiguration").into();
                    all.push(table);
                }
            }
        }
        all.push(listener);
    }
    all
}

struct Both {
    control: ControlPlane,
    /// Each with its node and what it is to have.
    sides: Vec<(Side, &'static str, Vec<Value>)>,
}

impl Both {
    async fn start(group: &Group, delta: bool) -> Both {
        let control = ControlPlane::start(&Mesh::default()).await;
        let mut sides = Vec::new();
        for (kind, node) in [(Kind::Envoy, "envoy"), (Kind::Outrigger, NODE)] {
            let (a, b) = (Origin::start().await, Origin::start().await);
            let values = origins(a.port(), b.port());
            let template = group.bootstrap.render();
            let mut ports = BTreeMap::new();
            fill(&template, &values, Path::new("/"), &mut ports);
            let own = bootstrap(delta).replace("id: sidecar", &format!("id: {node}"));
            let control_port = [("control", control.port.to_string())];
            let mut plan = Plan::new(kind, &own, &control_port);
            plan.ports = ports.clone();
            let mut proxy = Proxy::spawn(&plan);
            let resources = resources(&fill(&template, &values, &proxy.file(""), &mut ports));
            control.cache.set(node, snapshot_of(&resources));
            assert!(proxy.ready().await, "{kind:?}: {:?}\n{}", control.refused(), proxy.output());
            sides.push((Side { proxy, origins: vec![("a", a), ("b", b)] }, node, resources));
        }
        Both { control, sides }
    }

    /// Changes the resources of a type for both, and waits until both have taken them.
    async fn change(&mut self, type_name: &str, change: impl Fn(&mut Value)) {
        for (side, node, resources) in &mut self.sides {
            let url = format!("{TYPE}.{type_name}");
            resources.iter_mut().filter(|resource| resource["@type"] == url).for_each(&change);
            self.control.cache.set(node, snapshot_of(resources));
            let control = &self.control;
            let settled = || {
                let streams = control.cache.streams();
                let own = streams.iter().find(|stream| stream.node_id == *node);
                std::future::ready(own.is_some_and(outrigger_control_api::server::StreamStatus::is_in_sync))
            };
            assert!(eventually(DEADLINE * 2, settled).await, "{:?}", side.proxy.kind());
        }
        // What was accepted is in force a moment later; listeners in place of others first of all.
        for (side, ..) in &self.sides {
            let warm = || async {
                let stats = side.proxy.stats().await;
                let count = |name: &str| stats.get(name).copied().unwrap_or(0);
                count("listener_manager.total_listeners_warming") == 0
                    && count("cluster_manager.warming_clusters") == 0
            };
            assert!(eventually(DEADLINE * 2, warm).await, "{:?} does not become warm", side.proxy.kind());
        }
        assert_eq!(self.control.refused(), []);
    }

    async fn same(&self, group: &Group, when: &str) {
        let failures = differing(&group.cases, &self.sides[0].0, Some(&self.sides[1].0)).await;
        assert!(failures.is_empty(), "{when}: {} cases differ\n{}", failures.len(), failures.join("\n"));
    }
}

async fn through_updates(name: &str, delta: bool) {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (_, group) = groups().into_iter().find(|(own, _)| *own == name).expect("a group");
    let mut both = Both::start(&group, delta).await;
    both.same(&group, "at first").await;
    both.change("config.endpoint.v3.ClusterLoadAssignment", |endpoints| {
        for locality in endpoints["endpoints"].as_array_mut().into_iter().flatten() {
            for endpoint in locality["lb_endpoints"].as_array_mut().into_iter().flatten() {
                endpoint["load_balancing_weight"] = 3.into();
            }
        }
    })
    .await;
    both.change("config.cluster.v3.Cluster", |cluster| {
        cluster["connect_timeout"] = "1.5s".into();
    })
    .await;
    both.same(&group, "after endpoints and clusters changed").await;
    both.change("config.route.v3.RouteConfiguration", |table| {
        let more = json!({ "name": "more", "domains": ["more.test"], "routes": [
            { "match": { "prefix": "/" }, "redirect": { "host_redirect": "elsewhere.test" } },
        ] });
        table["virtual_hosts"].as_array_mut().expect("hosts").push(more);
    })
    .await;
    both.change("config.listener.v3.Listener", |listener| {
        listener["per_connection_buffer_limit_bytes"] = 1_000_000.into();
    })
    .await;
    both.same(&group, "after route tables and listeners changed").await;
}

#[tokio::test]
async fn routing_through_updates_is_as_in_envoy() {
    through_updates("routing", true).await;
}

#[tokio::test]
async fn clusters_through_updates_are_as_in_envoy() {
    through_updates("clusters", false).await;
}

#[tokio::test]
async fn mutation_through_updates_is_as_in_envoy() {
    through_updates("mutation", true).await;
}

#[tokio::test]
async fn retries_through_updates_are_as_in_envoy() {
    through_updates("retries", false).await;
}
