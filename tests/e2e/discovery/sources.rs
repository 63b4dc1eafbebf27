//! Resources from files and over REST.

use std::fs;

use super::clients::{ask, named};
use super::mesh::{ControlPlane, Mesh, NODE};
use crate::harness::ports::free_port;
use crate::harness::proxy::Proxy;
use crate::harness::{eventually, DEADLINE};

/// A file with a `DiscoveryResponse`, moved into place as a mounted ConfigMap is.
fn put(directory: &std::path::Path, name: &str, version: &str, resources: &[String]) {
    let list: Vec<serde_json::Value> =
        resources.iter().map(|text| serde_yaml_ng::from_str(text).expect("valid YAML")).collect();
    let response = serde_json::json!({ "version_info": version, "resources": list });
    let aside = directory.join("aside");
    fs::write(&aside, response.to_string()).expect("written");
    fs::rename(&aside, directory.join(name)).expect("moved");
}

/// Text of a resource that takes what it needs from the same kind of source as itself.
fn elsewhere(text: &str, source: &str) -> String {
    text.replace("{ resource_api_version: V3, ads: {} }", source)
}

#[tokio::test]
async fn files_are_read_again_when_they_are_replaced() {
    let (one, two) = (named("one").await, named("two").await);
    let files = tempfile::tempdir().expect("a directory");
    let directory = files.path();
    let port = free_port();
    let source = |name: &str| {
        let path = directory.join(name).display().to_string();
        format!("{{ resource_api_version: V3, path_config_source: {{ path: \"{path}\" }} }}")
    };
    let mesh = Mesh::simple(port, &[one.port()]);
    put(directory, "cds.json", "1", &[elsewhere(&mesh.cluster("web"), &source("eds.json"))]);
    put(directory, "eds.json", "1", &[Mesh::endpoints("web", &[one.port()])]);
    put(directory, "rds.json", "1", &[Mesh::table("main", &mesh.tables["main"])]);
    put(directory, "lds.json", "1", &[elsewhere(&mesh.listener("main", port), &source("rds.json"))]);
    let bootstrap = format!(
        "node: {{ id: {NODE}, cluster: test }}\n\
         admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }} }}\n\
         dynamic_resources:\n  cds_config: {}\n  lds_config: {}\n",
        source("cds.json"),
        source("lds.json")
    );
    let proxy = Proxy::outrigger(&bootstrap, &[]).await;
    assert_eq!(ask(port).await.as_deref(), Ok("one"), "{}", proxy.output());
    put(directory, "eds.json", "2", &[Mesh::endpoints("web", &[two.port()])]);
    assert!(eventually(DEADLINE, || async { ask(port).await.as_deref() == Ok("two") }).await);
    // What is broken changes nothing.
    fs::write(directory.join("aside"), "{ not json").expect("written");
    fs::rename(directory.join("aside"), directory.join("eds.json")).expect("moved");
    let told = || std::future::ready(proxy.output().contains("eds.json"));
    assert!(eventually(DEADLINE, told).await, "{}", proxy.output());
    assert_eq!(ask(port).await.as_deref(), Ok("two"));
    put(directory, "eds.json", "3", &[Mesh::endpoints("web", &[one.port()])]);
    assert!(eventually(DEADLINE, || async { ask(port).await.as_deref() == Ok("one") }).await);
}

#[tokio::test]
async fn each_type_may_have_a_stream_of_its_own() {
    for delta in [true, false] {
        let (one, two) = (named("one").await, named("two").await);
        let port = free_port();
        let kind = if delta { "DELTA_GRPC" } else { "GRPC" };
        let source = format!(
            "{{ resource_api_version: V3, api_config_source: {{ api_type: {kind}, transport_api_version: V3, \
             grpc_services: [{{ envoy_grpc: {{ cluster_name: control }} }}] }} }}"
        );
        let mut mesh = Mesh::simple(port, &[one.port()]);
        let resources = |mesh: &Mesh| -> Vec<String> {
            mesh.resources().iter().map(|text| elsewhere(text, &source)).collect()
        };
        let control = ControlPlane::on(0, super::mesh::snapshot(&resources(&mesh))).await;
        let bootstrap = super::mesh::bootstrap(delta);
        let (before, rest) = bootstrap.split_once("  ads_config:").expect("a bootstrap over ADS");
        let (_, after) = rest.split_once("static_resources:").expect("static resources");
        let bootstrap =
            format!("{before}  cds_config: {source}\n  lds_config: {source}\nstatic_resources:{after}");
        let proxy = Proxy::outrigger(&bootstrap, &[("control", control.port.to_string())]).await;
        assert_eq!(ask(port).await.as_deref(), Ok("one"), "{}", proxy.output());
        mesh.services.insert("web".into(), vec![two.port()]);
        control.cache.set(NODE, super::mesh::snapshot(&resources(&mesh)));
        assert!(eventually(DEADLINE, || async { ask(port).await.as_deref() == Ok("two") }).await);
        assert_eq!(control.refused(), []);
    }
}
