//! The folder of real resources: which bundles there are, and what this build says of each file alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use base64::prelude::{Engine as _, BASE64_STANDARD as BASE64};
use outrigger::bootstrap::xds_dir::{self, Verdict};
use outrigger_control_api::{pool, to_json, DynamicMessage};
use serde_json::Value;

use crate::tls::certs::Certs;

/// What one proxy receives together.
#[derive(Debug)]
pub struct Bundle {
    pub name: String,
    pub role: String,
    pub files: Vec<String>,
}

/// A resource of the folder.
struct Content {
    value: Value,
    refusals: Vec<String>,
    observes: bool,
    loaded: bool,
}

pub struct Corpus {
    root: PathBuf,
    files: HashMap<String, Content>,
    invalid: BTreeSet<String>,
    _certs: Certs,
}

/// What a proxy is sent by ADS.
const SENT: [&str; 6] = ["listeners", "routes", "clusters", "endpoints", "secrets", "ecds"];

impl Corpus {
    /// `None` if there is none.
    pub fn open() -> Option<Corpus> {
        let root = PathBuf::from(std::env::var_os("OUTRIGGER_CORPUS")?);
        let invalid = rows(&root.join("index.tsv"))
            .into_iter()
            .filter(|row| !row["invalid_because"].is_empty())
            .map(|row| row["file"].clone())
            .collect();
        let mut files = HashMap::new();
        let certs = Certs::new();
        let copy = tempfile::tempdir().expect("a directory");
        for source in std::fs::read_dir(&root).expect("the corpus").flatten().filter(|e| e.path().is_dir()) {
            let name = source.file_name().into_string().expect("UTF-8");
            prepare(&source.path(), &copy.path().join(&name), &certs);
            for checked in xds_dir::check(&copy.path().join(&name), None).expect("it can be read") {
                let path = copy.path().join(&name).join(&checked.file);
                let file = format!("{name}/{}", checked.file.display());
                let (refusals, observes) = match &checked.verdict {
                    Verdict::Accepted(observed) => (Vec::new(), !observed.is_empty()),
                    Verdict::Refused(problems) => {
                        let shown =
                            problems.iter().map(|p| format!("{}: {}: {}", checked.kind, p.path, p.message));
                        (shown.collect(), false)
                    }
                };
                let value: Value =
                    serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
                let loaded = outrigger_control_api::load_resource(&value).is_ok();
                files.insert(file, Content { value, refusals, observes, loaded });
            }
        }
        Some(Corpus { root, files, invalid, _certs: certs })
    }

    /// The bundles of each source; those that Envoy itself refuses are left out, and what is no resource too.
    pub fn sources(&self) -> BTreeMap<String, Vec<Bundle>> {
        let mut sources: BTreeMap<String, Vec<Bundle>> = BTreeMap::new();
        for row in rows(&self.root.join("bundles.tsv")) {
            let files: Vec<String> = row["files"].split(',').map(|file| file.trim().to_owned()).collect();
            if files.iter().any(|file| self.invalid.contains(file)) {
                continue;
            }
            let of_kind = |file: &String| SENT.contains(&file.split('/').nth(1).unwrap_or_default());
            let mut files: Vec<String> = files.into_iter().filter(of_kind).collect();
            let named: Vec<bool> = files.iter().map(|file| self.is_asked_for(file, &files)).collect();
            let mut named = named.into_iter();
            files.retain(|_| named.next().unwrap_or_default());
            if !files.is_empty() {
                let bundle = Bundle { name: row["bundle"].clone(), role: row["role"].clone(), files };
                sources.entry(row["source"].clone()).or_default().push(bundle);
            }
        }
        sources
    }

    /// Whether a proxy would ask for it: secrets are those that other resources name, and nobody ever sees others.
    fn is_asked_for(&self, file: &str, bundle: &[String]) -> bool {
        let is_secret = |file: &str| file.contains("/secrets/");
        let name = &self.value(file)["name"];
        bundle.iter().all(|file| is_secret(file))
            || !is_secret(file)
            || bundle.iter().any(|other| !is_secret(other) && holds(self.value(other), name))
    }

    pub fn value(&self, file: &str) -> &Value {
        &self.files[file].value
    }

    /// Why this build refuses the file, if it does.
    pub fn refusals(&self, file: &str) -> &[String] {
        &self.files[file].refusals
    }

    /// Whether the file is accepted with fields that have no effect.
    pub fn observes(&self, file: &str) -> bool {
        self.files[file].observes
    }

    pub fn is_loaded(&self, file: &str) -> bool {
        self.files[file].loaded
    }

    /// The resource as it is served: no listener takes a port, and each has an address of its own: some were made each
    /// for itself, and those of one bundle are there until those of the next are.
    pub fn sent(&self, file: &str, place: usize, number: usize) -> Value {
        let mut value = self.value(file).clone();
        if file.contains("/listeners/") {
            let fields = value.as_object_mut().expect("an object");
            if let Some(socket) = fields.get_mut("address").and_then(|address| {
                let name =
                    if address.get("socketAddress").is_some() { "socketAddress" } else { "socket_address" };
                address.get_mut(name)?.as_object_mut()
            }) {
                socket.shift_remove("portValue");
                socket.insert("port_value".to_owned(), (1_000 + (number * 97 + place) % 60_000).into());
            }
            fields.shift_remove("bindToPort");
            fields.insert("bind_to_port".to_owned(), false.into());
        }
        // Examples of single resources may have none.
        let fields = value.as_object_mut().expect("an object");
        if !["name", "clusterName", "cluster_name"].iter().any(|field| fields.contains_key(*field)) {
            fields.insert("name".to_owned(), file.into());
        }
        value
    }

    /// Stand-ins for clusters that listeners' own routes name and that are in no file of the bundle: some bundles are
    /// single resources, which Envoy would refuse without.
    pub fn missing_clusters(&self, bundle: &Bundle) -> Vec<Value> {
        let mut names = BTreeSet::new();
        for file in bundle.files.iter().filter(|file| file.contains("/listeners/")) {
            routed(self.value(file), false, &mut names);
        }
        names.retain(|name| !self.sends_cluster(std::slice::from_ref(bundle), name));
        let kind = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
        names
            .into_iter()
            .map(|name| serde_json::json!({"@type": kind, "name": name, "type": "STATIC"}))
            .collect()
    }

    /// Whether a bundle holds the cluster `name`.
    pub fn sends_cluster(&self, bundles: &[Bundle], name: &str) -> bool {
        let clusters =
            bundles.iter().flat_map(|bundle| &bundle.files).filter(|file| file.contains("/clusters/"));
        clusters.into_iter().any(|file| self.value(file)["name"] == name)
    }
}

/// What Envoy 1.40 refuses for the same reason (`envoy --mode validate`).
const OF_ENVOY: &[&str] = &[
    "an ORIGINAL_DST cluster takes no endpoints",
    "an ORIGINAL_DST cluster needs CLUSTER_PROVIDED",
    "multiple filter chains with overlapping matching rules are defined",
    "repetition operator missing expression",
    "ipv4_compat: is only for the address :: or an IPv4-mapped one",
    "is not an IP address",
    "typed_config: is required",
    "is required for an EDS cluster",
    "occurs twice in this route configuration",
    "has neither a certificate nor a validation context nor ticket keys",
];

/// Whether Envoy refuses it too.
pub fn is_of_envoy(reason: &str) -> bool {
    OF_ENVOY.iter().any(|said| reason.contains(said))
}

/// Whether `wanted` stands somewhere in `value`.
fn holds(value: &Value, wanted: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.values().any(|value| holds(value, wanted)),
        Value::Array(list) => list.iter().any(|value| holds(value, wanted)),
        value => value == wanted,
    }
}

/// The clusters that inline routes name.
fn routed(value: &Value, inside: bool, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let inside = inside || matches!(key.as_str(), "routeConfig" | "route_config");
                match (key.as_str(), value) {
                    ("cluster", Value::String(name)) if inside => drop(names.insert(name.clone())),
                    ("clusters", Value::Array(list)) if inside => {
                        let each = list.iter().filter_map(|one| one.get("name")?.as_str());
                        names.extend(each.map(str::to_owned));
                    }
                    _ => {}
                }
                routed(value, inside, names);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| routed(value, inside, names)),
        _ => {}
    }
}

/// Copies the resources of a source. Certificates and keys that were taken out before publishing, or that are in files
/// of another machine, become real ones; logs go nowhere.
fn prepare(from: &Path, to: &Path, certs: &Certs) {
    for kind in SENT {
        let Ok(files) = std::fs::read_dir(from.join(kind)) else { continue };
        std::fs::create_dir_all(to.join(kind)).expect("a directory");
        for file in files.flatten() {
            let mut value: Value =
                serde_json::from_slice(&std::fs::read(file.path()).expect("a file")).expect("JSON");
            spell_out(&mut value);
            replace(&mut value, certs);
            std::fs::write(to.join(kind).join(file.file_name()), value.to_string()).expect("written");
        }
    }
}

fn replace(value: &mut Value, certs: &Certs) {
    match value {
        Value::Object(fields) => {
            let log = fields
                .get("@type")
                .is_some_and(|kind| kind.as_str().is_some_and(|k| k.ends_with(".FileAccessLog")));
            for (key, value) in fields.iter_mut() {
                let file = match key.as_str() {
                    "certificateChain" | "certificate_chain" => "server.pem",
                    "privateKey" | "private_key" => "server.key",
                    "trustedCa" | "trusted_ca" | "trustBundle" | "trust_bundle" => "ca.pem",
                    "path" if log => {
                        *value = "/dev/null".into();
                        continue;
                    }
                    _ => {
                        replace(value, certs);
                        continue;
                    }
                };
                *value = serde_json::json!({"filename": certs.file(file).display().to_string()});
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| replace(value, certs)),
        _ => {}
    }
}

/// Writes messages out of which whoever took the resources down knew only the bytes.
fn spell_out(value: &mut Value) {
    if let Some(message) = of_bytes(value) {
        *value = message;
    }
    match value {
        Value::Object(fields) => fields.values_mut().for_each(spell_out),
        Value::Array(list) => list.iter_mut().for_each(spell_out),
        _ => {}
    }
}

fn of_bytes(value: &Value) -> Option<Value> {
    let bytes = BASE64.decode(value.get("value_b64")?.as_str()?).ok()?;
    let name = value.get("@type")?.as_str()?.rsplit('/').next()?;
    let message = DynamicMessage::decode(pool().get_message_by_name(name)?, bytes.as_slice()).ok()?;
    Some(to_json(&message))
}

/// A reason without the place in the resource and the names that differ from one to the next.
pub fn without_place(reason: &str) -> String {
    let (kind, rest) = reason.split_once(": ").unwrap_or(("", reason));
    let (path, message) = rest.split_once(": ").unwrap_or(("", rest));
    let field = path.rsplit('.').next().unwrap_or_default();
    let field = field.split('[').next().unwrap_or_default();
    let message: String = message.chars().take(160).collect();
    format!("{kind}: {field}: {message}")
}

/// The rows of a table whose first line names its columns.
fn rows(path: &Path) -> Vec<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).expect("a table of the corpus");
    let mut lines = text.lines();
    let columns: Vec<&str> = lines.next().expect("names of columns").split('\t').collect();
    let row = |line: &str| {
        let cells = line.split('\t').map(str::to_owned).chain(std::iter::repeat(String::new()));
        columns.iter().map(|name| (*name).to_owned()).zip(cells).collect()
    };
    lines.map(row).collect()
}
