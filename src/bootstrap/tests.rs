use std::io::Write as _;

use super::*;

fn flags(line: &[&str]) -> Flags {
    use clap::Parser as _;
    CommandLine::try_parse_from(std::iter::once("outrigger").chain(line.iter().copied())).unwrap().flags
}

fn file(extension: &str, content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(extension).tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

const YAML: &str = "
node: {id: file, cluster: c}
static_resources:
  clusters:
  - name: one
    load_assignment: {cluster_name: one, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: \
     {address: 127.0.0.1, port_value: 80}}}}]}]}
";

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

#[test]
fn yaml_json_and_binary_give_the_same() {
    let yaml = file(".yaml", YAML.as_bytes());
    let (from_yaml, _) = read(&flags(&["-c", path(&yaml)])).unwrap();
    let json = outrigger_control_api::to_json(&from_yaml.dynamic).to_string();
    for (extension, content) in [
        (".json", json.as_bytes().to_vec()),
        (".conf", json.as_bytes().to_vec()),
        (".conf", YAML.as_bytes().to_vec()),
        (".pb", from_yaml.message.encode_to_vec()),
    ] {
        let file = file(extension, &content);
        let (loaded, _) = read(&flags(&["-c", path(&file)])).unwrap();
        assert_eq!(loaded.message, from_yaml.message, "{extension}");
        assert!(compile(&flags(&["-c", path(&file)])).is_ok());
    }
}

#[test]
fn config_yaml_is_merged_over_the_file() {
    let yaml = file(".yaml", YAML.as_bytes());
    let over = "{node: {id: text}, static_resources: {clusters: [{name: two}]}}";
    let (loaded, _) = read(&flags(&["-c", path(&yaml), "--config-yaml", over])).unwrap();
    let node = loaded.message.node.clone().unwrap();
    assert_eq!((node.id.as_str(), node.cluster.as_str()), ("text", "c"));
    let clusters = loaded.message.static_resources.unwrap().clusters;
    assert_eq!(clusters.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
}

#[test]
fn flags_override_the_node() {
    let yaml = file(".yaml", YAML.as_bytes());
    let line = ["-c", path(&yaml), "--service-node", "n", "--service-cluster", "k", "--service-zone", "z"];
    let compiled = compile(&flags(&line)).unwrap();
    let dump = compiled.dump.to_json();
    assert_eq!((&dump["node"]["id"], &dump["node"]["locality"]["zone"]), (&"n".into(), &"z".into()));
    let node = compiled.node;
    assert_eq!((node.id.as_str(), node.cluster.as_str(), &*node.locality.zone), ("n", "k", "z"));
}

#[test]
fn unknown_fields_are_problems_unless_tolerated() {
    let yaml = file(".yaml", format!("{YAML}    colour: red\n").as_bytes());
    let problems = compile(&flags(&["-c", path(&yaml)])).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].path, "static_resources.clusters[0].colour");
    let compiled = compile(&flags(&["-c", path(&yaml), "--allow-unknown-static-fields"])).unwrap();
    assert_eq!(compiled.warnings[0].path, "static_resources.clusters[0].colour");
}

#[test]
fn binary_files_are_looked_through_as_well() {
    use outrigger_control_api::pb::envoy::config::{
        bootstrap::v3::bootstrap::StaticResources, cluster::v3 as pb,
    };
    use outrigger_control_api::pb::google::protobuf::Any;
    let kind = |type_url: &str| {
        let typed_config = Some(Any { type_url: type_url.to_owned(), value: Vec::new() });
        let custom = pb::cluster::CustomClusterType { name: "x".to_owned(), typed_config };
        Some(pb::cluster::ClusterDiscoveryType::ClusterType(custom))
    };
    let cluster = |name: &str, cluster_discovery_type| pb::Cluster {
        name: name.to_owned(),
        cluster_discovery_type,
        ..pb::Cluster::default()
    };
    // A field of a cluster that no version has: number 1000, a varint.
    let mut stray = cluster("one", None).encode_to_vec();
    stray.extend([0xc0, 0x3e, 1]);
    let mut bytes = vec![0x12, stray.len() as u8 + 2, 0x12, stray.len() as u8];
    bytes.extend(&stray);
    assert!(Bootstrap::decode(bytes.as_slice()).is_ok());
    let pb = file(".pb", &bytes);
    let expected =
        "static_resources.clusters[0]: unknown field number 1000 of envoy.config.cluster.v3.Cluster";
    assert_eq!(read(&flags(&["-c", path(&pb)])).unwrap_err()[0].to_string(), expected);
    let (_, tolerated) = read(&flags(&["-c", path(&pb), "--allow-unknown-static-fields"])).unwrap();
    assert_eq!(tolerated[0].to_string(), expected);

    let clusters = vec![cluster("two", kind("type.googleapis.com/no.such.Type"))];
    let resources = StaticResources { clusters, ..StaticResources::default() };
    let message = Bootstrap { static_resources: Some(resources), ..Bootstrap::default() };
    let pb = file(".pb", &message.encode_to_vec());
    let problems = read(&flags(&["-c", path(&pb), "--allow-unknown-static-fields"])).unwrap_err();
    assert_eq!(
        problems[0].to_string(),
        "static_resources.clusters[0].cluster_type.typed_config: unknown type no.such.Type"
    );
}

#[test]
fn hopeless_files_are_one_clear_problem() {
    let mut rng = fastrand::Rng::with_seed(7);
    let random: Vec<u8> = (0..4096).map(|_| rng.u8(..)).collect();
    let nonsense = "lorem ipsum ".repeat(900_000).into_bytes();
    let deep = "[".repeat(200_000).into_bytes();
    for content in [random, nonsense, deep, Vec::new(), b"42".to_vec(), b"- a\n- b\n".to_vec(), b"{".to_vec()]
    {
        for extension in [".yaml", ".json", ".conf", ".pb"] {
            let file = file(extension, &content);
            if content.is_empty() && extension != ".json" {
                continue; // An empty document is an empty bootstrap.
            }
            let problems = read(&flags(&["-c", path(&file)])).unwrap_err();
            assert_eq!(problems.len(), 1, "{extension}: {problems:?}");
            let line = problem_line(&problems[0], "x");
            assert!(!line.contains('\n') && line.len() < 2100, "{line}");
        }
    }
    let problems = read(&flags(&["-c", "/no/such/file.yaml"])).unwrap_err();
    assert!(
        problem_line(&problems[0], "/no/such/file.yaml").starts_with("/no/such/file.yaml: cannot be read")
    );
    assert!(read(&flags(&[])).is_err());
}
