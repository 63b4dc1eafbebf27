//! Snapshots, the cache and directories.

use super::*;
use crate::control::load_directory;
use crate::pb::envoy::config::listener::v3::{filter, Filter, FilterChain};
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use crate::pb::google::protobuf::Any;
use crate::server::{ResourceError, SnapshotCache};
use prost::Name as _;

#[test]
fn versions_follow_content() {
    let mut snapshot = mesh(&["a", "b"], 0);
    let before = snapshot.version(&CDS);
    let copy = snapshot.clone();
    assert!(snapshot.remove(&CDS, "a"));
    assert!(!snapshot.remove(&CDS, "a"));
    assert_ne!(snapshot.version(&CDS), before);
    assert_eq!((copy.count(&CDS), copy.version(&CDS)), (2, before.clone()), "a copy is not touched");
    snapshot.insert(&cluster("a", 0)).unwrap();
    assert_eq!(snapshot.version(&CDS), before, "whatever the order of changes");
    let body = cluster("a", 0).encode_to_vec();
    snapshot.insert_encoded(CDS.url(), "a", body.into(), Some("7")).unwrap();
    assert_eq!(snapshot.get(&CDS, "a").unwrap().version(), "7");
}

#[test]
fn bad_resources_are_refused() {
    let mut snapshot = Snapshot::new();
    let error = snapshot.insert(&Cluster::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("a resource of type {} has no name", CDS.url()));
    let any = Any { type_url: CDS.url().into(), value: vec![0xff] };
    assert!(matches!(snapshot.insert_any(any), Err(ResourceError::Invalid { .. })));
    let any = Any { type_url: "type.googleapis.com/x.Y".into(), value: vec![] };
    assert!(matches!(snapshot.insert_any(any.clone()), Err(ResourceError::UnknownType { .. })));
    snapshot.insert_encoded(&any.type_url, "y", any.value.into(), None).unwrap();
    assert_eq!(snapshot.count(&ResourceType::from_url("type.googleapis.com/x.Y")), 1);
}

#[test]
fn dangling_names_are_found() {
    let mut snapshot = mesh(&["a", "b"], 0);
    snapshot.validate().unwrap();
    snapshot.remove(&EDS, "b");
    let rds = hcm::Rds { config_source: ads(), route_config_name: "none".into() };
    let manager = hcm::HttpConnectionManager {
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(rds)),
        ..hcm::HttpConnectionManager::default()
    };
    let any = Any { type_url: hcm::HttpConnectionManager::type_url(), value: manager.encode_to_vec() };
    let filter = Filter { config_type: Some(filter::ConfigType::TypedConfig(any)), ..Filter::default() };
    let chain = FilterChain { filters: vec![filter], ..FilterChain::default() };
    snapshot.insert(&Listener { filter_chains: vec![chain], ..listener("l", 0) }).unwrap();
    let missing: Vec<_> = snapshot.validate().unwrap_err().into_iter().map(|d| (d.from, d.to)).collect();
    assert_eq!(missing, [("b".to_owned(), "b".to_owned()), ("l".to_owned(), "none".to_owned())]);
}

#[test]
fn the_cache_forgets_nodes_that_only_asked() {
    let cache = SnapshotCache::by_node_id();
    drop(cache.watch("stranger"));
    cache.set("a", mesh(&["a"], 0));
    drop(cache.watch("a"));
    assert_eq!(cache.keys(), ["a"]);
    assert!(cache.get("stranger").is_none());
    cache.clear("a");
    assert!(cache.keys().is_empty() && cache.get("a").is_none());
}

#[test]
fn directories_are_read_with_all_their_problems() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "1.yaml",
        "resources:\n- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: a\n",
    );
    let eds = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    write("2.json", &format!(r#"{{"@type": "{eds}", "cluster_name": "a"}}"#));
    write("notes.txt", "not read");
    let snapshot = load_directory(dir.path()).unwrap();
    assert_eq!((snapshot.count(&CDS), snapshot.count(&EDS)), (1, 1));

    write(
        "3.yaml",
        "resources:\n- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: b\n  nmae: x\n",
    );
    write(
        "4.yaml",
        "resources:\n- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  name: a\n",
    );
    write("5.yaml", "just text");
    let problems = load_directory(dir.path()).unwrap_err();
    let files: Vec<_> = problems.iter().map(|p| p.file.file_name().unwrap().to_string_lossy()).collect();
    assert_eq!(files, ["3.yaml", "4.yaml", "5.yaml"]);
    let first = problems[0].to_string();
    assert!(first.contains("resources[0] (Cluster \"b\")") && first.contains("nmae"), "{first}");
    assert_eq!(problems[1].problem.path, "name");
}
