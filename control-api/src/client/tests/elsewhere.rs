//! Resources from files and over REST.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;

use super::super::*;
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::DiscoveryResponse;
use crate::server::{Server, Snapshot, SnapshotCache};

async fn next(events: &mut Events) -> Event {
    timeout(Duration::from_secs(20), events.next()).await.expect("in time").expect("a client")
}

async fn update(events: &mut Events) -> Update {
    loop {
        match next(events).await {
            Event::Update(update) => return update,
            Event::Connected => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn refusal(events: &mut Events) -> String {
    loop {
        if let Event::Refused { message, .. } = next(events).await {
            return message;
        }
    }
}

fn names(update: &Update) -> Vec<&str> {
    update.added.iter().map(|resource| resource.name.as_str()).collect()
}

fn clusters(version: &str, names: &[&str]) -> String {
    let one = |name: &&str| format!("- {{'@type': {}, name: {name}}}\n", type_url::CLUSTER);
    let all: String = names.iter().map(one).collect();
    format!("version_info: '{version}'\nresources:\n{all}")
}

/// As a mounted ConfigMap changes: a directory beside the old one, and a link that is swapped.
fn swap(dir: &Path, number: u32, text: &str) {
    fs::create_dir(dir.join(format!("..{number}"))).unwrap();
    fs::write(dir.join(format!("..{number}/cds.yaml")), text).unwrap();
    std::os::unix::fs::symlink(format!("..{number}"), dir.join("..fresh")).unwrap();
    fs::rename(dir.join("..fresh"), dir.join("..data")).unwrap();
}

#[tokio::test]
async fn a_file_behind_a_link_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    swap(dir.path(), 1, &clusters("1", &["a", "b"]));
    let file = File {
        path: dir.path().join("..data/cds.yaml"),
        watched_directory: Some(dir.path().to_owned()),
        type_url: type_url::CLUSTER.to_owned(),
    };
    let (subscriptions, mut events, run) = file_client(file, Settings::new(Node::default()));
    tokio::spawn(run);
    subscriptions.subscribe_all(type_url::CLUSTER, Wildcard::Legacy);
    let got = update(&mut events).await;
    assert_eq!((names(&got), got.version.as_str()), (vec!["a", "b"], "1"));
    subscriptions.accept(got.id);

    swap(dir.path(), 2, &clusters("2", &["b", "c"]).replace("name: c", "nmae: c"));
    let message = refusal(&mut events).await;
    assert!(message.contains("cds.yaml: resources[1].nmae"), "{message}");
    let status = subscriptions.status().await.unwrap();
    assert_eq!((status.types[0].resources, status.types[0].rejected_total), (2, 1));

    swap(dir.path(), 3, &clusters("3", &["b", "c"]));
    let got = update(&mut events).await;
    assert_eq!((names(&got), got.removed.clone()), (vec!["b", "c"], vec!["a".to_owned()]));
    subscriptions.accept(got.id);
    fs::remove_dir_all(dir.path().join("..3")).unwrap();
    fs::write(dir.path().join("touched"), "").unwrap();
    assert!(refusal(&mut events).await.contains("No such file"));
    assert_eq!(subscriptions.status().await.unwrap().types[0].resources, 2, "what was there remains");
}

#[tokio::test]
async fn a_file_that_comes_late_and_names_that_come_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("eds.pb");
    let url = type_url::ENDPOINTS;
    let file = File { path: path.clone(), watched_directory: None, type_url: url.to_owned() };
    let (subscriptions, mut events, run) = file_client(file, Settings::new(Node::default()));
    tokio::spawn(run);
    subscriptions.subscribe(url, ["a"]);
    assert!(refusal(&mut events).await.contains("No such file"));
    let resources = ["a", "b"].map(|name| crate::pb::google::protobuf::Any {
        type_url: url.to_owned(),
        value: prost::Message::encode_to_vec(
            &crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment {
                cluster_name: name.to_owned(),
                ..Default::default()
            },
        ),
    });
    let response = DiscoveryResponse { resources: resources.to_vec(), ..Default::default() };
    fs::write(dir.path().join("fresh"), prost::Message::encode_to_vec(&response)).unwrap();
    fs::rename(dir.path().join("fresh"), &path).unwrap();
    let got = update(&mut events).await;
    assert_eq!(names(&got), ["a"]);
    subscriptions.accept(got.id);
    subscriptions.subscribe(url, ["b"]);
    let got = update(&mut events).await;
    assert_eq!(names(&got), ["a", "b"]);
}

#[tokio::test]
async fn a_control_plane_is_polled() {
    let cache = SnapshotCache::by_node_id();
    let mesh = |names: &[&str]| {
        let mut snapshot = Snapshot::new();
        for name in names {
            let cluster =
                crate::pb::envoy::config::cluster::v3::Cluster { name: (*name).into(), ..Default::default() };
            snapshot.insert(&cluster).unwrap();
        }
        snapshot
    };
    cache.set("n", mesh(&["a"]));
    let server = Server::new(cache.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move { server.serve(listener).await });
    let endpoint = Endpoint::new(Address::Tcp("127.0.0.1".to_owned(), port));
    let mut rest = Rest::new(endpoint, type_url::CLUSTER, Duration::from_millis(5));
    rest.request_timeout = Duration::from_secs(10);
    let mut settings = Settings::new(Node { id: "n".into(), ..Default::default() });
    settings.backoff_base = Duration::from_millis(5);
    let (subscriptions, mut events, run) = rest_client(rest, settings, 1);
    tokio::spawn(run);
    subscriptions.subscribe_all(type_url::CLUSTER, Wildcard::Legacy);
    let got = update(&mut events).await;
    assert_eq!(names(&got), ["a"]);
    subscriptions.accept(got.id);
    cache.set("n", mesh(&["b"]));
    let got = update(&mut events).await;
    assert_eq!((names(&got), got.removed.clone()), (vec!["b"], vec!["a".to_owned()]));
    subscriptions.accept(got.id);
    // The same content is not news, however often it is asked for.
    let quiet = timeout(Duration::from_millis(100), events.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    serving.abort();
    assert!(matches!(next(&mut events).await, Event::Disconnected { .. }));
}

#[tokio::test]
async fn types_without_rest_are_refused() {
    let endpoint = Endpoint::new(Address::Tcp("127.0.0.1".to_owned(), 1));
    let rest = Rest::new(endpoint, type_url::VIRTUAL_HOST, Duration::from_secs(1));
    let (subscriptions, mut events, run) = rest_client(rest, Settings::new(Node::default()), 1);
    tokio::spawn(run);
    subscriptions.subscribe(type_url::VIRTUAL_HOST, ["t/a"]);
    match next(&mut events).await {
        Event::Disconnected { reason, .. } => assert!(reason.contains("no discovery service"), "{reason}"),
        other => panic!("{other:?}"),
    }
}
