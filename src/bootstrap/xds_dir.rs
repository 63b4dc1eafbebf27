//! `outrigger validate --xds-dir`: whether this build takes what a control plane sends.
//!
//! In: a directory with files of xDS resources in JSON or YAML, or with bundles of them: lists, discovery responses,
//! `/config_dump`s of an Envoy. Out: for each resource whether it is accepted, accepted with fields that have no effect,
//! or refused, with the fields' paths and the reasons. Nothing is opened or connected but what compiling opens (files of
//! certificates and of access logs).

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::bootstrap::v3::Bootstrap;
use outrigger_control_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrigger_control_api::{load_resource, load_value, parse_value, type_of, Format, Problem};
use prost::Message;
use serde_json::{json, Value};

use super::problem_line;
use crate::config::compile::bootstrap::{bootstrap, NodeOptions};
use crate::config::compile::Compiler;

/// What was found about one resource.
#[derive(Debug)]
pub struct Checked {
    /// Its file, below the directory.
    pub file: PathBuf,
    /// The short name of its type, such as `Listener`; empty where the file itself is at fault.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What this build makes of it.
    pub verdict: Verdict,
}

/// What this build makes of a resource.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is accepted; these of its fields have no effect.
    Accepted(Vec<Problem>),
    /// It is refused for these reasons.
    Refused(Vec<Problem>),
}

impl Checked {
    /// Whether it is accepted.
    pub fn is_accepted(&self) -> bool {
        matches!(self.verdict, Verdict::Accepted(_))
    }
}

impl fmt::Display for Checked {
    /// A line for the resource, and one for each field that is worth a word.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, fields) = match &self.verdict {
            Verdict::Accepted(observed) if observed.is_empty() => ("accepted", observed),
            Verdict::Accepted(observed) => ("accepted, with fields that have no effect", observed),
            Verdict::Refused(problems) => ("refused", problems),
        };
        write!(f, "{}: ", self.file.display())?;
        if !self.kind.is_empty() {
            write!(f, "{} {:?}: ", self.kind, self.name)?;
        }
        f.write_str(word)?;
        fields.iter().try_for_each(|problem| write!(f, "\n    {}", problem_line(problem, "the whole")))
    }
}

/// Checks every `.json`, `.yaml` and `.yml` file in `directory` and below, in the order of their names; hidden ones are
/// passed over. They are compiled against the bootstrap that `compiler` is of; without one, against a bootstrap that has
/// whatever clusters they name as sources of more.
///
/// # Errors
/// A directory cannot be read.
pub fn check(directory: &Path, compiler: Option<Arc<Compiler>>) -> io::Result<Vec<Checked>> {
    let mut files = Vec::new();
    list(directory, &mut files)?;
    files.sort();
    let read = |path: &PathBuf| {
        let format = if path.extension().is_some_and(|e| e == "json") { Format::Json } else { Format::Yaml };
        let text = fs::read(path).map_err(|error| Problem::new("", format!("cannot be read: {error}")));
        text.and_then(|text| parse_value(&text, format))
    };
    let compiler = compiler.unwrap_or_else(|| {
        let mut sources = BTreeSet::new();
        for value in files.iter().filter_map(|path| read(path).ok()) {
            sources_in(&value, false, &mut sources);
        }
        stand_in(&sources)
    });
    let mut all = Vec::new();
    for path in files {
        let file = path.strip_prefix(directory).unwrap_or(&path).to_owned();
        let refused = |problem| Checked {
            file: file.clone(),
            kind: String::new(),
            name: String::new(),
            verdict: Verdict::Refused(vec![problem]),
        };
        match read(&path) {
            Ok(value) => {
                let before = all.len();
                resources(&value, &mut |value| all.push(checked(&file, value, &compiler)));
                if all.len() == before {
                    all.push(refused(Problem::new("", "holds no resource with an `@type` of xDS")));
                }
            }
            Err(problem) => all.push(refused(problem)),
        }
    }
    Ok(all)
}

/// The clusters that `value` names as sources of configuration.
pub fn sources_in(value: &Value, in_source: bool, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let cluster = matches!(key.as_str(), "cluster_name" | "clusterName");
                if let (true, true, Some(name)) = (in_source, cluster, value.as_str()) {
                    names.insert(name.to_owned());
                }
                let source = matches!(key.as_str(), "api_config_source" | "apiConfigSource");
                sources_in(value, in_source || source, names);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| sources_in(value, in_source, names)),
        _ => {}
    }
}

/// A bootstrap in which a control plane of these names could stand, as text in JSON; `ads` is a cluster too, and the
/// source of everything. `port` is where all of them are on this machine.
pub fn stand_in_bootstrap(names: &BTreeSet<String>, ads: &str, port: u16) -> Value {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let cluster = |name: &str| {
        let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {
                options: {
                    "@type": format!("type.googleapis.com/{options}"),
                    "explicit_http_config": {"http2_protocol_options": {}}
                }
            },
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
            }
        })
    };
    let others = names.iter().map(String::as_str).filter(|name| *name != ads);
    let clusters: Vec<Value> = std::iter::once(ads).chain(others).map(cluster).collect();
    json!({
        "node": {"id": "xds-dir", "cluster": "xds-dir"},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": ads}}]
            },
            "cds_config": {"resource_api_version": "V3", "ads": {}},
            "lds_config": {"resource_api_version": "V3", "ads": {}}
        },
        "static_resources": {"clusters": clusters}
    })
}

fn stand_in(names: &BTreeSet<String>) -> Arc<Compiler> {
    let value = stand_in_bootstrap(names, "outrigger-xds-dir", 1);
    let compiled = load_value::<Bootstrap>(&value).and_then(|it| bootstrap(it, &NodeOptions::default()));
    // Where a name is none that a cluster may have, what takes more from anywhere is refused.
    compiled.map(|compiled| compiled.compiler).unwrap_or_default()
}

fn list(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", directory.display()));
    for entry in fs::read_dir(directory).map_err(named)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        if path.is_dir() {
            list(&path, files)?;
        } else if path.extension().is_some_and(|e| ["json", "yaml", "yml"].iter().any(|known| e == *known)) {
            files.push(path);
        }
    }
    Ok(())
}

/// Types that a control plane sends, and the bootstrap.
const TYPES: &[&str] = &[
    "envoy.config.bootstrap.v3.Bootstrap",
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.core.v3.TypedExtensionConfig",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
    "envoy.config.route.v3.ScopedRouteConfiguration",
    "envoy.extensions.transport_sockets.tls.v3.Secret",
];

/// Calls `each` with the resources in `value`, wherever they are.
fn resources(value: &Value, each: &mut impl FnMut(&Value)) {
    match value {
        Value::Object(fields) => {
            let kind = fields.get("@type").and_then(Value::as_str).unwrap_or_default();
            if TYPES.contains(&short(kind)) {
                each(value);
            } else {
                fields.values().for_each(|value| resources(value, each));
            }
        }
        Value::Array(list) => list.iter().for_each(|value| resources(value, each)),
        _ => {}
    }
}

fn short(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}

fn checked(file: &Path, value: &Value, compiler: &Compiler) -> Checked {
    let kind = value.get("@type").and_then(Value::as_str).map(short).unwrap_or_default();
    let text = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    let name = text("name").or_else(|| text("cluster_name")).or_else(|| text("clusterName"));
    let verdict = match kind {
        "envoy.config.bootstrap.v3.Bootstrap" => load_value::<Bootstrap>(value)
            .and_then(|loaded| bootstrap(loaded, &NodeOptions::default()))
            .map(|compiled| compiled.warnings),
        _ => load_resource(value).and_then(|resource| compile(kind, &resource.any.value, compiler)),
    };
    Checked {
        file: file.to_owned(),
        kind: kind.rsplit('.').next().unwrap_or_default().to_owned(),
        name: name.unwrap_or_default(),
        verdict: match verdict {
            Ok(observed) => Verdict::Accepted(observed),
            Err(problems) => Verdict::Refused(problems),
        },
    }
}

/// Compiles a resource of type `kind`; what of it has no effect.
fn compile(kind: &str, body: &[u8], compiler: &Compiler) -> Result<Vec<Problem>, Vec<Problem>> {
    match kind {
        "envoy.config.cluster.v3.Cluster" => compiler.cluster(body).map(|done| done.warnings),
        "envoy.config.listener.v3.Listener" => compiler.listener(body, &|_| true).map(|done| done.warnings),
        "envoy.config.route.v3.RouteConfiguration" => {
            compiler.route_table(&Arc::from(body), &|_| true).map(|done| done.warnings)
        }
        "envoy.config.route.v3.ScopedRouteConfiguration" => compiler.scope(body).map(|done| done.warnings),
        "envoy.config.endpoint.v3.ClusterLoadAssignment" => {
            compiler.check_assignment(body).map(|done| done.warnings)
        }
        "envoy.extensions.transport_sockets.tls.v3.Secret" => compiler.secret(body).map(|done| done.warnings),
        // A filter that listeners take by its name.
        _ => {
            let config = TypedExtensionConfig::decode(body).unwrap_or_default();
            let types: Vec<Box<str>> = config.typed_config.iter().map(|any| type_of(any).into()).collect();
            compiler.http_filter(body, &types, "xds_dir").map(|done| done.warnings)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_found_wherever_they_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("written");
        let cluster = |name: &str, more: &str| {
            format!(
                "{{\"@type\": \"type.googleapis.com/envoy.config.cluster.v3.Cluster\", \"name\": \"{name}\"{more}}}"
            )
        };
        fs::create_dir(directory.path().join("inner")).expect("a directory");
        write("a.json", &cluster("one", ""));
        let dump = cluster("two", ", \"wait_for_warm_on_init\": true");
        write(
            "b.json",
            &format!("{{\"configs\": [{{\"dynamic_active_clusters\": [{{\"cluster\": {dump}}}]}}]}}"),
        );
        let wrong = cluster("three", ", \"connection_pool_per_downstream_connection\": true");
        write("inner/c.yaml", &format!("resources: [{wrong}]"));
        write("d.json", "{\"a\": 1}");
        write("e.json", "{");
        write(".hidden.json", "{");
        let found = check(directory.path(), None).expect("it can be read");
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(shown[0], "a.json: Cluster \"one\": accepted");
        assert!(shown[1].starts_with("b.json: Cluster \"two\": accepted, with fields that have no effect\n"));
        assert!(shown[1].contains("    wait_for_warm_on_init: "), "{}", shown[1]);
        assert_eq!(shown[2], "d.json: refused\n    the whole: holds no resource with an `@type` of xDS");
        assert!(shown[3].starts_with("e.json: refused\n    the whole: "), "{}", shown[3]);
        assert!(shown[4].starts_with("inner/c.yaml: Cluster \"three\": refused\n"), "{}", shown[4]);
        assert!(shown[4].contains("connection_pool_per_downstream_connection: "), "{}", shown[4]);
        assert_eq!(found.iter().filter(|checked| checked.is_accepted()).count(), 2);
    }
}
