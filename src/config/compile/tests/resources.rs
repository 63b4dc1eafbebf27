//! Single resources, as a control plane sends them.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use outrigger_control_api::load_resource;

use super::*;
use crate::config::cluster::Health;
use crate::config::compile::{Compiled, Compiler};
use crate::config::discovery::{Source, INITIAL_FETCH_TIMEOUT};
use crate::config::http::Routes;
use crate::config::listener::Listener;
use crate::config::problems::Problem;
use crate::config::Host;

pub(super) fn encoded(kind: &str, mut resource: Value) -> Vec<u8> {
    let fields = resource.as_object_mut().unwrap();
    fields.insert("@type".to_owned(), format!("type.googleapis.com/envoy.config.{kind}").into());
    load_resource(&resource).unwrap().any.value
}

fn text(problems: Vec<Problem>) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

fn eds_cluster(changes: &Value) -> Result<Compiled<Cluster>, Vec<String>> {
    let mut cluster = json!({
        "name": "c", "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
    });
    for (pointer, value) in changes.as_object().unwrap() {
        set(&mut cluster, pointer, value.clone());
    }
    let compiler = Compiler { has_ads: true, ..Compiler::default() };
    compiler.cluster(&encoded("cluster.v3.Cluster", cluster)).map_err(text)
}

#[test]
fn an_eds_cluster_names_its_source() {
    let compiled = eds_cluster(&json!({})).unwrap();
    assert_eq!((&*compiled.name, compiled.value.added_via_api), ("c", true));
    assert_eq!(
        compiled.value.discovery,
        Discovery::Eds {
            service_name: "c".into(),
            named: false,
            source: Source::Ads,
            initial_fetch_timeout: Some(INITIAL_FETCH_TIMEOUT)
        }
    );
    assert!(compiled.warnings.is_empty(), "{:?}", compiled.warnings);
    let compiled = eds_cluster(&json!({
        "/eds_cluster_config/service_name": "s",
        "/eds_cluster_config/eds_config": {
            "path_config_source": {"path": "/a", "watched_directory": {"path": "/b"}},
            "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
    }))
    .unwrap();
    assert_eq!(
        compiled.value.discovery,
        Discovery::Eds {
            service_name: "s".into(),
            named: true,
            source: Source::Path { path: "/a".into(), watched_directory: Some("/b".into()) },
            initial_fetch_timeout: None
        }
    );
}

#[test]
fn wrong_eds_clusters_are_refused() {
    for (changes, expected) in [
        (
            json!({"/eds_cluster_config/eds_config/resource_api_version": "V2"}),
            "eds_cluster_config.eds_config.resource_api_version: is V2, only V3 is supported: set \
             resource_api_version: V3",
        ),
        (json!({"/eds_cluster_config": null}), "eds_cluster_config.eds_config: is required for an EDS cluster"),
        (json!({"/type": "STATIC"}), "eds_cluster_config: is only for clusters of type EDS"),
        (json!({"/outlier_detection": {"base_ejection_time": "9s", "max_ejection_time": "8s"}}),
            "outlier_detection.max_ejection_time: must not be less than base_ejection_time"),
        (json!({"/connect_timeout": "0s"}), "connect_timeout: is 0s, must be greater than 0s"),
        (
            json!({"/eds_cluster_config/eds_config": {"resource_api_version": "V3", "api_config_source": {
                "api_type": "GRPC", "grpc_services": [{"envoy_grpc": {"cluster_name": "x"}}]}}}),
            "eds_cluster_config.eds_config.api_config_source.grpc_services[0].envoy_grpc.cluster_name: there is \
             no cluster \"x\" for discovery: it must be in the bootstrap, and not of type EDS",
        ),
    ] {
        assert_eq!(eds_cluster(&changes).unwrap_err(), [expected]);
    }
    let truncated = Compiler::default().cluster(&[10, 5, b'a']).unwrap_err();
    assert!(truncated[0].message.starts_with("the bytes are no valid envoy.config.cluster.v3.Cluster"));
}

fn load_assignment(endpoints: &[Value]) -> Vec<u8> {
    encoded("endpoint.v3.ClusterLoadAssignment", assignment(endpoints))
}

fn hosts(assignment: &[u8], previous: &[Arc<Host>]) -> Vec<Arc<Host>> {
    let compiler = Compiler { has_ads: true, ..Compiler::default() };
    let cluster = eds_cluster(&json!({})).unwrap().value;
    compiler.check_assignment(assignment).unwrap();
    compiler.hosts(&cluster, assignment, previous).unwrap().all
}

#[test]
fn hosts_that_stay_keep_what_is_counted_of_them() {
    let mut weighted = endpoint("127.0.0.1", 2);
    let first = hosts(&load_assignment(&[endpoint("127.0.0.1", 1), weighted.clone()]), &[]);
    first[1].shared.counters.cx_total.store(7, Ordering::Relaxed);
    weighted["load_balancing_weight"] = 5.into();
    weighted["health_status"] = "UNHEALTHY".into();
    let second = hosts(&load_assignment(&[weighted.clone(), endpoint("127.0.0.1", 1)]), &first);
    assert!(Arc::ptr_eq(&second[1], &first[0]), "an unchanged host is the same");
    assert!(!Arc::ptr_eq(&second[0], &first[1]) && Arc::ptr_eq(&second[0].shared, &first[1].shared));
    assert_eq!(second[0].shared.counters.cx_total.load(Ordering::Relaxed), 7);
    assert_eq!((second[0].template.weight, second[0].health()), (5, Health::Unhealthy));
    weighted["endpoint"]["hostname"] = "other".into();
    let third = hosts(&load_assignment(&[weighted]), &second);
    assert!(!Arc::ptr_eq(&third[0].shared, &second[0].shared), "another name is another endpoint");
}

#[test]
fn assignments_are_checked_without_a_cluster() {
    let check = |value: Value| {
        let bytes = encoded("endpoint.v3.ClusterLoadAssignment", value);
        Compiler::default().check_assignment(&bytes).map_err(text)
    };
    let mut value = assignment(&[endpoint("127.0.0.1", 1), endpoint("127.0.0.1", 1)]);
    value["policy"] = json!({"endpoint_stale_after": "3s", "overprovisioning_factor": 100});
    let checked = check(value).unwrap();
    assert_eq!((&*checked.cluster_name, checked.endpoints), ("origin", 2));
    assert_eq!(checked.endpoint_stale_after, Some(Duration::from_secs(3)));
    assert!(checked.warnings.is_empty(), "{:?}", checked.warnings);
    let place = "endpoints[0].lb_endpoints[0].endpoint.address";
    assert_eq!(
        check(assignment(&[endpoint("name.test", 1)])).unwrap_err(),
        [format!(
            "{place}.socket_address.address: \"name.test\" is not an IP address; a cluster with host names \
             needs type STRICT_DNS or LOGICAL_DNS"
        )]
    );
    let mut far = assignment(&[endpoint("127.0.0.1", 1)]);
    far["endpoints"][0]["priority"] = 200.into();
    assert_eq!(check(far).unwrap_err(), ["endpoints[0].priority: is 200, must be at most 128"]);
    assert_eq!(check(json!({})).unwrap_err(), ["cluster_name: is empty"]);
}

#[test]
fn an_endpoint_that_is_listed_twice_is_one_host() {
    let mut again = endpoint("127.0.0.1", 1);
    again["load_balancing_weight"] = 9.into();
    let hosts = hosts(&load_assignment(&[endpoint("127.0.0.1", 1), again, endpoint("127.0.0.1", 2)]), &[]);
    assert_eq!(hosts.iter().map(|host| host.template.weight).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn a_priority_that_was_never_checked_is_refused() {
    let mut far = assignment(&[endpoint("127.0.0.1", 1)]);
    far["endpoints"][0]["priority"] = u32::MAX.into();
    let bytes = encoded("endpoint.v3.ClusterLoadAssignment", far);
    let cluster = eds_cluster(&json!({})).unwrap().value;
    assert!(Compiler::default().hosts(&cluster, &bytes, &[]).is_err());
}

fn table(changes: Value) -> Value {
    let mut table = base().pointer(&format!("{HCM}/route_config")).unwrap().clone();
    table.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    table
}

#[test]
fn a_route_table_may_name_clusters_that_are_not_there() {
    let compiler = Compiler::default();
    let bytes: Arc<[u8]> = encoded("route.v3.RouteConfiguration", table(json!({}))).into();
    let compiled = compiler.route_table(&bytes, &|_| false).unwrap();
    assert_eq!((&*compiled.name, compiled.value.len()), ("routes", 1));
    assert!(compiler.clusters.find("origin").is_some_and(|slot| slot.get().is_none()));
    let bytes: Arc<[u8]> =
        encoded("route.v3.RouteConfiguration", table(json!({"validate_clusters": true}))).into();
    assert_eq!(
        text(compiler.route_table(&bytes, &|_| false).unwrap_err()),
        ["virtual_hosts[0].routes[0].route.cluster: there is no cluster \"origin\""]
    );
    assert!(compiler.route_table(&bytes, &|name| name == "origin").is_ok());
}

fn listener(compiler: &Compiler, hcm: Value) -> Result<Compiled<Listener>, Vec<String>> {
    let listener = with(&[(HCM, hcm)]).pointer("/static_resources/listeners/0").unwrap().clone();
    let bytes = encoded("listener.v3.Listener", listener);
    compiler.listener(&bytes, &|name| name == "origin").map_err(text)
}

fn hcm_with(changes: &[(&str, Value)]) -> Value {
    let mut hcm = base().pointer(HCM).unwrap().clone();
    for (pointer, value) in changes {
        set(&mut hcm, pointer, value.clone());
    }
    hcm
}

fn routes_of(listener: &Listener) -> Arc<crate::config::Slot<crate::config::route::RouteTable>> {
    match &listener.chains[0].terminal {
        Terminal::Http(hcm) => match &hcm.routes {
            Routes::Table(slot) => slot.clone(),
            Routes::Scoped(_) => panic!("scopes"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_listener_needs_the_table_that_it_names() {
    let compiler = Compiler { has_ads: true, ..Compiler::default() };
    let rds = json!({"route_config_name": "r", "config_source": {"self": {}, "resource_api_version": "V3"}});
    let hcm = hcm_with(&[("/route_config", Value::Null), ("/rds", rds.clone())]);
    let by_itself = listener(&compiler, hcm.clone()).unwrap();
    assert_eq!(by_itself.needs.route_tables[0].source.source, Source::SameAsParent);
    let compiler = Compiler { has_ads: true, lds: Some(Source::Ads), ..Compiler::default() };
    let first = listener(&compiler, hcm.clone()).unwrap();
    let need = &first.needs.route_tables[0];
    assert_eq!((&*need.name, &need.source.source), ("r", &Source::Ads));
    assert!(Arc::ptr_eq(&need.slot, &routes_of(&first.value)));
    assert!(Arc::ptr_eq(&need.slot, &compiler.route_slot(&Source::Ads, "r")), "the key is stable");
    let again = listener(&compiler, hcm).unwrap();
    assert!(Arc::ptr_eq(&routes_of(&again.value), &need.slot));
    assert_eq!(compiler.routes.all().len(), 1);
}

#[test]
fn inline_tables_of_listeners_that_come_again_leave_no_slots() {
    let compiler = Compiler::default();
    for _ in 0..3 {
        let compiled = listener(&compiler, hcm_with(&[])).unwrap();
        assert_eq!(&*routes_of(&compiled.value).get().unwrap().name, "routes");
        assert!(compiled.needs.route_tables.is_empty());
    }
    assert!(compiler.routes.all().is_empty());
    let other = hcm_with(&[("/route_config/virtual_hosts/0/routes/0/route/cluster", "gone".into())]);
    let place = "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].route";
    assert_eq!(
        listener(&compiler, other).unwrap_err(),
        [format!("{place}.cluster: there is no cluster \"gone\"")]
    );
}
