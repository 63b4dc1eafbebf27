//! Times to live, virtual hosts on demand, resources by name only, REST.

use std::time::Duration;

use super::*;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::config::route::v3::VirtualHost;
use crate::pb::envoy::service::discovery::v3::Resource;
use crate::server::{FetchError, Server, SnapshotCache};

const VHDS: ResourceType = ResourceType::VIRTUAL_HOST;

fn with_ttl(protocol: Protocol, snapshot: &Snapshot) -> StreamState {
    let mut state = stream(protocol, snapshot);
    let features = ["xds.config.supports-resource-ttl", "xds.config.supports-resource-in-sotw"];
    state.set_client_features(&features.map(str::to_owned));
    state
}

fn next_delta(state: &mut StreamState, now: Instant) -> DeltaDiscoveryResponse {
    let response = state.poll(now).expect("a response");
    DeltaDiscoveryResponse::decode(response.encode().as_slice()).unwrap()
}

fn accept(state: &mut StreamState, kind: &ResourceType, nonce: &str, now: Instant) {
    let ack = DeltaDiscoveryRequest { response_nonce: nonce.into(), ..delta(kind, &[], &[]) };
    state.on_delta(ack, now).unwrap();
}

#[test]
fn resources_with_a_time_to_live_are_kept_alive() {
    let mut snapshot = mesh(&["a", "b"], 0);
    assert!(snapshot.set_ttl(&CDS, "a", Some(Duration::from_secs(10))));
    assert!(!snapshot.set_ttl(&CDS, "none", None));
    let mut state = with_ttl(Protocol::Delta, &snapshot);
    let start = Instant::now();
    state.on_delta(delta(&CDS, &[], &[]), start).unwrap();
    let first = next_delta(&mut state, start);
    let ttls: Vec<_> = first.resources.iter().map(|r| r.ttl.map(|ttl| ttl.seconds)).collect();
    assert_eq!(ttls, [Some(10), None]);
    assert!(state.poll(start).is_none());
    assert!(state.deadline().is_none(), "nothing is due before the client has answered");
    accept(&mut state, &CDS, &first.nonce, start);
    assert!(state.poll(start).is_none());
    let due = state.deadline().unwrap();
    assert_eq!(due, start + Duration::from_secs(5));
    let beat = next_delta(&mut state, due);
    assert_eq!(beat.resources.len(), 1);
    let alive = &beat.resources[0];
    assert_eq!((alive.name.as_str(), &alive.version), ("a", &first.resources[0].version));
    assert!(alive.resource.is_none() && alive.ttl.is_some());
    accept(&mut state, &CDS, &beat.nonce, due);
    assert_eq!(state.poll(due).map(|_| ()), None);

    // No time to live any more: said once.
    snapshot.set_ttl(&CDS, "a", None);
    state.set_target(Arc::new(snapshot));
    let later = state.deadline().unwrap();
    let last = next_delta(&mut state, later);
    assert!(last.resources[0].ttl.is_none() && last.resources[0].resource.is_none());
    accept(&mut state, &CDS, &last.nonce, later);
    assert!(state.poll(later + Duration::from_secs(60)).is_none());
}

#[test]
fn the_state_of_the_world_wraps_what_has_a_time_to_live() {
    let mut snapshot = mesh(&["a"], 0);
    snapshot.set_ttl(&EDS, "a", Some(Duration::from_millis(1500)));
    let start = Instant::now();
    let first = |mut state: StreamState| {
        state.on_sotw(sotw(&EDS, &["a"], ""), start).unwrap();
        let response = state.poll(start).unwrap();
        (DiscoveryResponse::decode(response.encode().as_slice()).unwrap(), state)
    };
    let (plain, _) = first(stream(Protocol::StateOfTheWorld, &snapshot));
    assert_eq!(plain.resources[0].type_url, EDS.url(), "for a client that does not know of it");
    let (response, mut state) = first(with_ttl(Protocol::StateOfTheWorld, &snapshot));
    let unwrap = |any: &crate::pb::google::protobuf::Any| {
        assert!(any.type_url.ends_with("discovery.v3.Resource"), "{}", any.type_url);
        Resource::decode(any.value.as_slice()).unwrap()
    };
    let resource = unwrap(&response.resources[0]);
    assert_eq!((resource.name.as_str(), resource.ttl.unwrap().nanos), ("a", 500_000_000));
    assert_eq!(resource.resource.unwrap(), plain.resources[0]);
    state.on_sotw(sotw(&EDS, &["a"], &response.nonce), start).unwrap();
    assert!(state.poll(start).is_none());
    let beat = state.poll(state.deadline().unwrap()).unwrap();
    let beat = DiscoveryResponse::decode(beat.encode().as_slice()).unwrap();
    let alive = unwrap(&beat.resources[0]);
    assert_eq!((alive.version, beat.version_info), (resource.version, response.version_info));
    assert!(alive.resource.is_none());
}

fn host(name: &str, domains: &[&str]) -> VirtualHost {
    let domains = domains.iter().map(ToString::to_string).collect();
    VirtualHost { name: name.into(), domains, ..VirtualHost::default() }
}

#[test]
fn virtual_hosts_are_found_by_host_name() {
    let mut snapshot = Snapshot::new();
    for (name, domains) in [
        ("t/exact", &["api.example", "www.example"][..]),
        ("t/suffix", &["*.example"]),
        ("t/prefix", &["shop.*"]),
        ("t/deeper/all", &["*"]),
        ("other/all", &["*"]),
    ] {
        snapshot.insert(&host(name, domains)).unwrap();
    }
    let mut state = stream(Protocol::Delta, &snapshot);
    let now = Instant::now();
    let ask = delta(
        &VHDS,
        &["t/api.example", "t/www.example", "t/x.example", "t/shop.net", "t/nobody", "other/any"],
        &[],
    );
    state.on_delta(ask, now).unwrap();
    let response = next_delta(&mut state, now);
    let lines: Vec<_> = response
        .resources
        .iter()
        .map(|r| {
            format!("{} {} {}", r.name, r.aliases.join("+"), if r.resource.is_some() { "yes" } else { "no" })
        })
        .collect();
    assert_eq!(
        lines,
        [
            "other/all other/any yes",
            "t/exact t/api.example+t/www.example yes",
            "t/prefix t/shop.net yes",
            "t/suffix t/x.example yes",
            "t/nobody t/nobody no",
        ]
    );
    assert!(response.removed_resources.is_empty());
    accept(&mut state, &VHDS, &response.nonce, now);

    // A change comes under its own name, a host that appears under the name it was asked for by.
    snapshot.insert(&host("t/suffix", &["*.example", "x.test"])).unwrap();
    snapshot.insert(&host("t/late", &["nobody"])).unwrap();
    state.set_target(Arc::new(snapshot.clone()));
    let response = next_delta(&mut state, now);
    let names: Vec<_> = response.resources.iter().map(|r| (r.name.as_str(), r.aliases[0].as_str())).collect();
    assert_eq!(names, [("t/late", "t/nobody"), ("t/suffix", "t/x.example")]);
    accept(&mut state, &VHDS, &response.nonce, now);

    // One that no longer answers is sent with what it has become; one that is gone is removed by its name.
    snapshot.insert(&host("t/exact", &["elsewhere"])).unwrap();
    snapshot.remove(&VHDS, "t/prefix");
    state.set_target(Arc::new(snapshot));
    let response = next_delta(&mut state, now);
    let names: Vec<_> = response.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["t/exact", "t/suffix"], "another answers for its names now");
    accept(&mut state, &VHDS, &response.nonce, now);
    assert_eq!(next_delta(&mut state, now).removed_resources, ["t/prefix"]);
}

#[test]
fn some_resources_are_for_those_who_name_them() {
    let mut snapshot = mesh(&["a"], 0);
    snapshot.insert(&listener("grpc", 0)).unwrap();
    assert!(snapshot.serve_by_name_only(&LDS, "grpc"));
    let now = Instant::now();
    for protocol in [Protocol::Delta, Protocol::StateOfTheWorld] {
        let asked = |names: &[&str]| {
            let mut state = stream(protocol, &snapshot);
            match protocol {
                Protocol::Delta => drop(state.on_delta(delta(&LDS, names, &[]), now).unwrap()),
                Protocol::StateOfTheWorld => drop(state.on_sotw(sotw(&LDS, names, ""), now).unwrap()),
            }
            let first = lines(&drain(&mut state, now));
            let mut changed = snapshot.clone();
            changed.insert(&listener("grpc", 1)).unwrap();
            changed.serve_by_name_only(&LDS, "grpc");
            state.set_target(Arc::new(changed));
            (first, drain(&mut state, now).len())
        };
        assert_eq!(asked(&[]), (vec!["Listener: l".to_owned()], 0), "{protocol:?}");
        assert_eq!(asked(&["grpc"]).0, ["Listener: grpc"], "{protocol:?}");
        assert_eq!(asked(&["*", "grpc"]).0, ["Listener: grpc l"], "{protocol:?}");
    }
}

#[test]
fn a_common_snapshot_is_for_those_without_their_own() {
    let cache = SnapshotCache::by_node_id();
    cache.set("a", mesh(&["a"], 0));
    let clusters = |key: &str| cache.get(key).map(|s| s.names(&CDS).map(str::to_owned).collect::<Vec<_>>());
    assert_eq!(clusters("b"), None);
    let watch = cache.watch("b");
    cache.set_common(Some(Arc::new(mesh(&["c"], 0))));
    assert_eq!(
        (clusters("a"), clusters("b"), clusters("d")),
        (Some(vec!["a".into()]), Some(vec!["c".into()]), Some(vec!["c".into()]))
    );
    cache.clear("a");
    assert_eq!(clusters("a"), Some(vec!["c".into()]));
    cache.set_common(None);
    drop(watch);
    assert_eq!((clusters("a"), clusters("b")), (None, None));
}

#[test]
fn one_request_is_answered_with_the_state_of_the_world() {
    let cache = SnapshotCache::by_node_id();
    let snapshot = mesh(&["a", "b"], 0);
    cache.set("n", snapshot.clone());
    let server = Server::new(cache);
    let node = |id: &str| Some(Node { id: id.into(), ..Node::default() });
    let ask = |kind: &ResourceType, names: &[&str], version: &str, id: &str| {
        let request =
            DiscoveryRequest { node: node(id), version_info: version.into(), ..sotw(kind, names, "5") };
        server.fetch(kind, request)
    };
    let all = ask(&CDS, &[], "", "n").unwrap().unwrap();
    assert_eq!((all.resources.len(), &all.version_info), (2, &snapshot.version(&CDS)));
    assert_eq!(ask(&CDS, &[], &all.version_info, "n"), Ok(None));
    let some = ask(&EDS, &["b", "none"], &snapshot.version(&EDS), "n").unwrap().unwrap();
    assert_eq!(some.resources.len(), 1, "names may be new though the version is not");
    let none = ask(&RDS, &["none"], "", "n").unwrap().unwrap();
    assert_eq!((none.resources.len(), none.type_url.as_str()), (0, RDS.url()));
    assert!(matches!(ask(&CDS, &[], "", "stranger"), Err(FetchError::NoSnapshot { .. })));
    let nameless = server.fetch(&CDS, sotw(&CDS, &[], ""));
    assert_eq!(nameless, Err(FetchError::Invalid("the request has no node".into())));
}
