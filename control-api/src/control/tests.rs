//! A directory that is served: what counts, what is refused, what follows.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::server::ResourceType;

const SERVICES: &str = "services:\n  web: {endpoints: ['127.0.0.1:1']}\n";

fn put(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // Beside, then moved in, as one should.
    let fresh = dir.join(".fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, path).unwrap();
}

fn cluster(name: &str, more: &str) -> String {
    let url = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    format!("'@type': {url}\nname: {name}\n{more}\n")
}

fn open(dir: &Path) -> (Control, mpsc::Receiver<String>) {
    let (lines, received) = mpsc::channel();
    let mut settings = Settings::new(dir);
    settings.client_clusters = vec!["own".to_owned()];
    let control = Control::open(settings, move |line| drop(lines.send(line.to_owned())));
    (control, received)
}

fn names(control: &Control, key: &str) -> Vec<String> {
    let snapshot = control.cache().get(key);
    snapshot
        .iter()
        .flat_map(|s| s.names(&ResourceType::CLUSTER).map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

#[test]
fn the_last_good_state_stays() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "services.yaml", SERVICES);
    let (control, lines) = open(dir.path());
    assert!(control.problems().is_empty(), "{:?}", control.problems());
    assert_eq!(names(&control, "anybody"), ["web"]);
    let line = lines.try_recv().unwrap();
    assert!(line.contains("for everybody: 1 Cluster, 1 ClusterLoadAssignment, 1 Listener"), "{line}");

    put(dir.path(), "bad.yaml", &cluster("b", "lb_polcy: RANDOM"));
    control.reload();
    let line = lines.try_recv().unwrap();
    assert!(line.contains("MISTAKE") && line.contains("bad.yaml: Cluster \"b\": lb_polcy: "), "{line}");
    assert!(lines.try_recv().unwrap().contains("the last good state stays"));
    assert_eq!(names(&control, "anybody"), ["web"]);
    assert_eq!(control.status()["snapshots"][0]["problems"][0]["field"], "lb_polcy");

    control.reload();
    assert!(lines.try_recv().is_err(), "the same mistake is not told twice");
    put(dir.path(), "bad.yaml", &cluster("b", ""));
    control.reload();
    assert_eq!(names(&control, "anybody"), ["b", "web"]);
    assert!(control.problems().is_empty());
}

#[test]
fn names_are_unique_and_references_exist() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "1.yaml", &cluster("a", ""));
    put(dir.path(), "2.yaml", &cluster("a", "lb_policy: RANDOM"));
    let (control, _lines) = open(dir.path());
    let problem = control.problems().remove(0).to_string();
    assert!(
        problem.contains("2.yaml") && problem.contains("1.yaml has a resource of the same type"),
        "{problem}"
    );
    assert!(control.cache().get("n").is_none());

    let eds = "type: EDS\neds_cluster_config: {eds_config: {ads: {}}}";
    put(dir.path(), "2.yaml", &cluster("b", eds));
    let route = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    let to = |cluster: &str| format!("{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}");
    let hosts = format!("{{name: h, domains: ['*'], routes: [{}, {}, {}]}}", to("a"), to("own"), to("c"));
    put(dir.path(), "3.yaml", &format!("'@type': {route}\nname: r\nvirtual_hosts: [{hosts}]\n"));
    control.reload();
    let problems: Vec<String> = control.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    let endpoints = "Cluster \"b\": eds_cluster_config: there is no ClusterLoadAssignment \"b\"";
    assert!(problems[0].contains(endpoints), "{problems:?}");
    assert!(
        problems[1].contains("virtual_hosts[0].routes[2].route.cluster: there is no Cluster \"c\""),
        "{problems:?}"
    );
}

#[test]
fn subdirectories_are_for_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "all.yaml", &cluster("a", ""));
    put(dir.path(), "special/own.yaml", &cluster("b", ""));
    put(dir.path(), "special/other.yaml", &cluster("a", "lb_policy: RANDOM"));
    put(dir.path(), ".hidden/no.yaml", "not even read");
    let (control, _lines) = open(dir.path());
    assert_eq!(
        (names(&control, "x"), names(&control, "special")),
        (vec!["a".into()], vec!["a".into(), "b".into()])
    );
    let version = |key: &str| control.cache().get(key).unwrap().version(&ResourceType::CLUSTER);
    assert_ne!(version("x"), version("special"));

    // A mistake for everybody does not stop a key, nor the other way round.
    put(dir.path(), "all.yaml", "nonsense");
    put(dir.path(), "special/third.yaml", &cluster("c", ""));
    control.reload();
    assert_eq!((names(&control, "x").len(), names(&control, "special").len()), (1, 3));
    put(dir.path(), "all.yaml", &cluster("d", ""));
    put(dir.path(), "special/third.yaml", "nonsense");
    control.reload();
    assert_eq!((names(&control, "x"), names(&control, "special").len()), (vec!["d".into()], 3));

    fs::remove_dir_all(dir.path().join("special")).unwrap();
    control.reload();
    assert_eq!(names(&control, "special"), ["d"]);
    assert_eq!(control.cache().keys(), Vec::<String>::new());
}

#[tokio::test]
async fn config_maps_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let version = |number: u32, text: &str| {
        fs::create_dir(dir.path().join(format!("..v{number}"))).unwrap();
        fs::write(dir.path().join(format!("..v{number}/services.yaml")), text).unwrap();
        std::os::unix::fs::symlink(format!("..v{number}"), dir.path().join("..fresh")).unwrap();
        fs::rename(dir.path().join("..fresh"), dir.path().join("..data")).unwrap();
    };
    version(1, SERVICES);
    std::os::unix::fs::symlink("..data/services.yaml", dir.path().join("services.yaml")).unwrap();
    let (control, _lines) = open(dir.path());
    let mut snapshots = control.cache().watch("n");
    let follow = control.follow();
    let change = async {
        snapshots.next().await;
        version(2, &SERVICES.replace("web", "shop"));
        snapshots.next().await
    };
    let snapshot = tokio::select! {
        () = follow => unreachable!("it follows for ever"),
        snapshot = tokio::time::timeout(Duration::from_secs(20), change) => snapshot.expect("in time"),
    };
    assert_eq!(snapshot.names(&ResourceType::CLUSTER).collect::<Vec<_>>(), ["shop"]);
}
