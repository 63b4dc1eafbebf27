//! Route tables compiled from JSON, asked about requests. Expectations that are not obvious were
//! observed on Envoy 1.40.

#![allow(clippy::needless_pass_by_value)] // `json!` values read best as they are.

mod compiling;
mod header_ops;
mod retrying;
mod rewriting;
mod selecting;
mod sleeping;

use std::net::SocketAddr;

use outrigger_control_api::load_value;
use serde_json::{json, Value};

use super::*;
use crate::config::headers::{HeaderMutate, HeaderView};
use crate::config::{Cluster, Directory, Problems};

/// A head: pseudo headers and fields.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request(Vec<(String, Vec<u8>)>);

impl Request {
    pub fn get(authority: &str, path: &str) -> Self {
        Self::default()
            .with(":method", "GET")
            .with(":scheme", "http")
            .with(":authority", authority)
            .with(":path", path)
            .with("x-forwarded-proto", "http")
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push((name.to_owned(), value.as_bytes().to_vec()));
        self
    }

    pub fn replace(mut self, name: &str, value: &str) -> Self {
        self.set(&HeaderKey::new(name), value.as_bytes());
        self
    }

    pub fn all(&self, name: &str) -> Vec<String> {
        let mut all = Vec::new();
        self.values(&HeaderKey::new(name), &mut |value| {
            all.push(String::from_utf8_lossy(value).into_owned());
        });
        all
    }

    fn pseudo(&self, name: &str) -> &[u8] {
        self.0.iter().find(|(field, _)| field == name).map_or(b"", |(_, value)| value)
    }
}

impl HeaderView for Request {
    fn values(&self, key: &HeaderKey, each: &mut dyn FnMut(&[u8])) {
        self.0.iter().filter(|(name, _)| name == key.name()).for_each(|(_, value)| each(value));
    }

    fn first(&self, key: &HeaderKey) -> Option<&[u8]> {
        self.0.iter().find(|(name, _)| name == key.name()).map(|(_, value)| value.as_slice())
    }

    fn byte_size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

impl HeaderMutate for Request {
    fn append(&mut self, key: &HeaderKey, value: &[u8]) {
        self.0.push((key.name().to_owned(), value.to_vec()));
    }

    fn set(&mut self, key: &HeaderKey, value: &[u8]) {
        self.remove(key);
        self.append(key, value);
    }

    fn remove(&mut self, key: &HeaderKey) -> bool {
        let before = self.0.len();
        self.0.retain(|(name, _)| name != key.name());
        self.0.len() < before
    }

    fn remove_prefix(&mut self, prefix: &str) {
        self.0.retain(|(name, _)| !name.starts_with(prefix));
    }
}

impl RequestView for Request {
    fn method(&self) -> &[u8] {
        self.pseudo(":method")
    }

    fn path(&self) -> &[u8] {
        self.pseudo(":path")
    }

    fn authority(&self) -> &[u8] {
        self.pseudo(":authority")
    }

    fn scheme(&self) -> &[u8] {
        self.pseudo(":scheme")
    }

    fn upgrade(&self) -> Option<&[u8]> {
        self.0.iter().find(|(name, _)| name == "upgrade").map(|(_, value)| value.as_slice())
    }

    fn is_grpc(&self) -> bool {
        self.pseudo("content-type").starts_with(b"application/grpc")
    }

    fn remote_address(&self) -> Option<SocketAddr> {
        None
    }
}

fn try_table(config: Value) -> (Option<RouteTable>, Vec<String>, Vec<String>) {
    let loaded = load_value(&config).unwrap();
    let mut problems = Problems::new();
    let table = compile(&loaded.message, &Arc::new(Directory::<Cluster>::default()), &mut problems);
    let texts = |list: &[crate::config::Problem]| list.iter().map(ToString::to_string).collect();
    (table, texts(problems.list()), texts(problems.notes()))
}

fn table(config: Value) -> RouteTable {
    let (table, problems, _) = try_table(config);
    assert_eq!(problems, Vec::<String>::new());
    table.unwrap()
}

/// A table whose one virtual host serves everything with `routes`.
fn table_of(routes: Value) -> RouteTable {
    table(json!({"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}))
}

/// A table of one route.
fn table_with(matched: Value, action: (&str, Value)) -> RouteTable {
    table_of(json!([{"match": matched, action.0: action.1}]))
}

/// A route that answers with its own name.
fn named(name: &str, matched: Value) -> Value {
    json!({"name": name, "match": matched, "non_forwarding_action": {}})
}

/// The name of the route that is found, `-` for none, `tls` for a redirect to TLS.
fn found(table: &RouteTable, request: &Request, random: u64) -> String {
    match table.select(request, random) {
        Selection::NotFound => "-".to_owned(),
        Selection::NoHost => "elsewhere".to_owned(),
        Selection::RequireTls(_) => "tls".to_owned(),
        Selection::Found { route, .. } => route.name.as_deref().unwrap_or("unnamed").to_owned(),
    }
}

fn the_route<'t>(table: &'t RouteTable, request: &Request) -> &'t Route {
    match table.select(request, 0) {
        Selection::Found { route, .. } => route,
        other => panic!("{other:?}"),
    }
}

fn the_forward<'t>(table: &'t RouteTable, request: &Request) -> &'t Forward {
    match &the_route(table, request).action {
        Action::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

fn text(bytes: impl AsRef<[u8]>) -> String {
    String::from_utf8_lossy(bytes.as_ref()).into_owned()
}

/// A table as a control plane sends it.
fn encoded_table(config: &Value) -> (Arc<[u8]>, Result<RouteTable, Vec<String>>) {
    use prost::Message as _;

    let message: outrigger_control_api::pb::envoy::config::route::v3::RouteConfiguration =
        load_value(config).unwrap().message;
    let body: Arc<[u8]> = message.encode_to_vec().into();
    let parts = split(&body).unwrap();
    let config = prost::Message::decode(parts.rest.as_slice()).unwrap();
    let mut problems = Problems::new();
    let clusters = Arc::new(Directory::<Cluster>::default());
    let table = compile_encoded(&config, &body, &parts.hosts, &clusters, &mut problems, &mut |_, _, _| ());
    let texts = || problems.list().iter().map(ToString::to_string).collect();
    (body, table.ok_or_else(texts))
}
