//! The manager alone, with many clusters: who is awake, and what a change touches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_control_api::client::{Cause, Resource, Update};
use outrigger_control_api::load_resource;
use outrigger_control_api::pb::envoy::config::core::v3::Node;
use serde_json::{json, Value};

use super::effects::{CDS, EDS};
use super::manager::Manager;
use super::sources::StreamId;
use super::Serving;
use crate::config::cluster::Address;
use crate::config::compile::resource::Compiler;
use crate::config::discovery::{ConfigSource, DiscoveryConfig, Source};
use crate::config::drops::Refusal;
use crate::config::listener::Listener;
use crate::config::Host;

struct Nobody;

impl Serving for Nobody {
    fn update(&mut self, _removed: &[&str], added: Vec<Listener>) -> Vec<Result<(), String>> {
        added.iter().map(|_| Ok(())).collect()
    }

    fn set_warming(&mut self, _listeners: usize) {}
}

fn resource(name: &str, version: &str, kind: &str, mut value: Value) -> Resource {
    value["@type"] = format!("type.googleapis.com/envoy.config.{kind}").into();
    let body = load_resource(&value).unwrap().any.value.into();
    Resource { name: name.to_owned(), version: version.to_owned(), aliases: Vec::new(), body }
}

fn cluster(nth: usize) -> Resource {
    let name = format!("c{nth}");
    let eds = json!({"eds_config": {"ads": {}, "resource_api_version": "V3"}});
    resource(
        &name,
        "1",
        "cluster.v3.Cluster",
        json!({"name": name, "type": "EDS", "eds_cluster_config": eds}),
    )
}

fn endpoints(nth: usize, version: &str, port: u16) -> Resource {
    endpoints_with(nth, version, port, &json!({}))
}

fn endpoints_with(nth: usize, version: &str, port: u16, policy: &Value) -> Resource {
    let name = format!("c{nth}");
    let endpoint =
        json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}});
    let value = json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}], "policy": policy});
    resource(&name, version, "endpoint.v3.ClusterLoadAssignment", value)
}

fn update(type_url: &str, version: &str, added: &[Resource], removed: &[String]) -> Update {
    Update {
        id: 0,
        type_url: type_url.to_owned(),
        version: version.to_owned(),
        cause: Cause::Response,
        added: added.to_vec(),
        removed: removed.to_vec(),
        flawed: false,
        received: None,
    }
}

#[allow(clippy::field_reassign_with_default)] // It has private fields.
fn many(count: usize) -> (Arc<Compiler>, Manager, StreamId) {
    let mut compiler = Compiler::default();
    compiler.has_ads = true;
    let compiler = Arc::new(compiler);
    let cds = ConfigSource { source: Source::Ads, initial_fetch_timeout: None };
    let config = DiscoveryConfig {
        node: Node::default(),
        ads: None,
        lds: None,
        cds: Some(cds),
        rtds: Vec::new(),
        load_stats: None,
    };
    let mut manager = Manager::new(&compiler, &config, &[]);
    let stream = manager.cds.as_ref().unwrap().stream;
    let clusters: Vec<_> = (0..count).map(cluster).collect();
    assert!(manager.update(stream, &update(CDS, "1", &clusters, &[]), &mut Nobody).is_empty());
    let all: Vec<_> = (0..count).map(|nth| endpoints(nth, "1", 1)).collect();
    assert!(manager.update(stream, &update(EDS, "1", &all, &[]), &mut Nobody).is_empty());
    (compiler, manager, stream)
}

fn awake(compiler: &Compiler) -> Vec<String> {
    let all = compiler.clusters.all();
    all.iter().filter(|slot| slot.get().is_some()).map(|slot| slot.name().to_string()).collect()
}

fn ports(compiler: &Compiler, name: &str) -> Vec<u16> {
    let cluster = compiler.clusters.find(name).unwrap().wake().unwrap();
    let hosts = cluster.hosts.load();
    hosts.all.iter().map(|host| port(host)).collect()
}

fn port(host: &Host) -> u16 {
    match &host.address {
        Address::Ip(address) => address.port(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn clusters_sleep_until_they_are_called_and_again_when_nobody_does() {
    let (compiler, mut manager, stream) = many(200);
    assert_eq!(awake(&compiler), Vec::<String>::new());
    let in_use = compiler.clusters.find("c7").unwrap().wake().unwrap();
    assert_eq!(ports(&compiler, "c8"), [1]);
    assert_eq!(awake(&compiler), ["c7", "c8"]);
    manager.doze();
    assert_eq!(awake(&compiler), ["c7"], "the one that is in use stays");
    // Endpoints of the one that is awake change in place, and those of one that sleeps when it wakes.
    let changed = [endpoints(7, "2", 2), endpoints(8, "2", 3)];
    assert!(manager.update(stream, &update(EDS, "2", &changed, &[]), &mut Nobody).is_empty());
    assert_eq!(port(&in_use.hosts.load().all[0]), 2);
    assert_eq!(awake(&compiler), ["c7"]);
    assert_eq!((ports(&compiler, "c8"), ports(&compiler, "c9")), (vec![3], vec![1]));
    drop(in_use);
    manager.doze();
    assert_eq!(awake(&compiler), Vec::<String>::new());
}

/// An update that changes nothing but the policy of an assignment changes how it is used.
#[test]
fn the_policy_of_endpoints_changes_without_them() {
    let (compiler, mut manager, stream) = many(1);
    let cluster = compiler.clusters.find("c0").unwrap().wake().unwrap();
    let host = cluster.hosts.load().all[0].clone();
    assert_eq!((cluster.hosts.load().options.overprovisioning, cluster.drops.refuses(|| 0)), (140, None));
    let policy = json!({
        "overprovisioning_factor": 200,
        "drop_overloads": [{"category": "busy", "drop_percentage": {"numerator": 30}}],
    });
    let changed = [endpoints_with(0, "2", 1, &policy)];
    assert!(manager.update(stream, &update(EDS, "2", &changed, &[]), &mut Nobody).is_empty());
    let hosts = cluster.hosts.load();
    assert_eq!(hosts.options.overprovisioning, 200);
    assert!(Arc::ptr_eq(&hosts.all[0], &host));
    assert_eq!(cluster.drops.refuses(|| 299_999), Some(Refusal::Overload(300_000)));
    assert_eq!(cluster.drops.refuses(|| 300_000), None);
    assert_eq!(cluster.drops.policy().map(|policy| policy.category.to_string()), Some("busy".to_owned()));
    let two = json!([{"category": "a"}, {"category": "b"}]);
    let refused = [endpoints_with(0, "3", 1, &json!({ "drop_overloads": two }))];
    let rejections = manager.update(stream, &update(EDS, "3", &refused, &[]), &mut Nobody);
    assert!(format!("{rejections:?}").contains("policy.drop_overloads"), "{rejections:?}");
    assert!(cluster.drops.refuses(|| 0).is_some(), "the last good one holds");
}

#[test]
fn removed_clusters_go_at_once_when_nothing_refers_to_them_and_soon_otherwise() {
    let (compiler, mut manager, stream) = many(200);
    let referred = compiler.clusters.slot("c1");
    let names: Vec<String> = (0..100).map(|nth| format!("c{nth}")).collect();
    manager.update(stream, &update(CDS, "2", &[], &names), &mut Nobody);
    assert!(!manager.clusters.knows("c0") && manager.clusters.knows("c1") && manager.clusters.knows("c100"));
    assert!(referred.is_filled());
    // One that comes back does not go.
    manager.update(stream, &update(CDS, "3", &[], &["c150".to_owned()]), &mut Nobody);
    manager.update(stream, &update(CDS, "4", &[cluster(150)], &[]), &mut Nobody);
    manager.tick(Instant::now() + Duration::from_secs(60), &mut Nobody);
    assert!(!manager.clusters.knows("c1") && !referred.is_filled());
    assert!(manager.clusters.knows("c150"));
}
