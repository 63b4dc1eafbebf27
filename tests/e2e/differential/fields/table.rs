//! Clusters that differ in a few options, over the same origins. A request for `/name` goes to the cluster `name`.

use crate::differential::observe::Side;
use crate::differential::set;
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::peers;
use std::collections::BTreeMap;

/// The clusters and their origins.
#[derive(Default)]
pub struct Table {
    origins: Vec<(&'static str, Answer)>,
    clusters: String,
    routes: Vec<String>,
    listeners: String,
    more: String,
}

/// An endpoint at an origin; `more` are fields beside it in YAML's flow style, each with a comma behind.
pub fn at(origin: &str, more: &str) -> String {
    format!("{{ {more} endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @origin:{origin}@ }} }} }} }}")
}

/// A locality's endpoints; `more` are its other fields, each with a comma behind.
pub fn group(more: &str, endpoints: &[String]) -> String {
    format!("{{ {more} lb_endpoints: [ {} ] }}", endpoints.join(", "))
}

impl Table {
    /// An origin that always answers so. A name without one in an endpoint is a port where nobody listens.
    pub fn origin(mut self, name: &'static str, answer: Answer) -> Table {
        self.origins.push((name, answer));
        self
    }

    /// Origins that answer with their names.
    pub fn named(self, names: &[&'static str]) -> Table {
        names.iter().fold(self, |table, name| table.origin(name, Answer::ok(name)))
    }

    /// A cluster with these options, a line each, and these groups of endpoints.
    pub fn cluster(mut self, name: &str, options: &str, groups: &[String]) -> Table {
        let options: String = options.lines().map(|line| format!("    {line}\n")).collect();
        let groups = groups.join(", ");
        self.clusters += &format!("  - name: {name}\n    connect_timeout: 0.5s\n{options}    load_assignment: {{ cluster_name: {name}, endpoints: [ {groups} ] }}\n");
        self.route(&format!("/{name}"), name, "")
    }

    /// A cluster whose endpoints are in the file of its name, in the directory that is the value `endpoints`.
    pub fn discovered(mut self, name: &str, options: &str) -> Table {
        let options: String = options.lines().map(|line| format!("    {line}\n")).collect();
        self.clusters += &format!("  - name: {name}\n    type: EDS\n    connect_timeout: 0.5s\n    eds_cluster_config: {{ eds_config: {{ initial_fetch_timeout: 0.1s, resource_api_version: V3, path_config_source: {{ path: \"@endpoints@/{name}.yaml\" }} }} }}\n{options}");
        self
    }

    /// A route of this path to a cluster, with more fields of its action, each with a comma before.
    pub fn route(mut self, path: &str, cluster: &str, more: &str) -> Table {
        self.routes.push(format!("{{ match: {{ path: {path} }}, route: {{ cluster: {cluster}{more} }} }}"));
        self
    }

    /// A route of this path to a cluster that adds a header to the request first.
    pub fn telling(mut self, path: &str, cluster: &str, headers: &[(&str, &str)]) -> Table {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{{ header: {{ key: {name}, value: '{value}' }} }}"))
            .collect();
        let added = format!("request_headers_to_add: [ {} ]", headers.join(", "));
        self.routes
            .push(format!("{{ match: {{ path: {path} }}, route: {{ cluster: {cluster} }}, {added} }}"));
        self
    }

    /// Another listener, a list's entry of YAML.
    pub fn listener(mut self, yaml: &str) -> Table {
        self.listeners += yaml;
        self
    }

    /// Any other part of the bootstrap.
    pub fn more(mut self, yaml: &str) -> Table {
        self.more += &format!("{yaml}\n");
        self
    }

    fn render(&self) -> String {
        format!(
            "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }} }}
node: {{ id: table, cluster: tests, locality: {{ region: here, zone: near }} }}
layered_runtime: {{ layers: [ {{ name: tests, static_layer: {{ outrigger.upstream.pass_over_suspect_hosts: 0 }} }} ] }}
{}static_resources:
  listeners:
  - name: main
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:main@ }} }}
    filter_chains:
    - filters:
      - name: manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          http_filters:
          - name: router
            typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
          route_config: {{ virtual_hosts: [ {{ name: all, domains: ['*'], routes: [ {} ] }} ] }}
{}  clusters:
{}",
            self.more,
            self.routes.join(", "),
            self.listeners,
            self.clusters
        )
    }

    async fn side(&self, kind: Kind) -> Side {
        self.side_with(kind, |_| Vec::new()).await
    }

    /// A proxy with these clusters; `prepare` sees its origins first, and gives values of the template.
    pub async fn side_with(
        &self,
        kind: Kind,
        prepare: impl FnOnce(&[(&'static str, Origin)]) -> Vec<(&'static str, String)>,
    ) -> Side {
        let mut origins = Vec::new();
        for (name, answer) in &self.origins {
            let origin = Origin::start().await;
            let answer = answer.clone();
            origin.answer(move |_| answer.clone());
            origins.push((*name, origin));
        }
        let template = origins.iter().fold(self.render(), |text, (name, origin)| {
            text.replace(&format!("@origin:{name}@"), &origin.port().to_string())
        });
        // Whoever is left has no origin.
        let template = template.replace("@origin:", "@port:");
        let values = prepare(&origins);
        Side { proxy: Proxy::start(Plan::new(kind, &template, &values)).await, origins }
    }

    /// Envoy and Outrigger with these clusters; `None` where there is no Envoy.
    pub async fn sides(&self) -> Option<[Side; 2]> {
        if !peers::have(&["envoy"]) {
            return None;
        }
        Some([self.side(Kind::Envoy).await, self.side(Kind::Outrigger).await])
    }
}

/// What so many requests for `path` on one connection were answered with: bodies, or statuses of failures.
pub async fn answers(side: &Side, path: &str, count: usize) -> BTreeMap<String, usize> {
    let mut client = Client::connect(side.proxy.port("main")).await.expect("a connection");
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        let request = format!("GET {path} HTTP/1.1\r\nHost: t.test\r\n\r\n");
        let answer = client.exchange(request.as_bytes()).await.expect("an answer");
        let said = match answer.status() {
            200 => answer.text(),
            status => format!("{status} {}", answer.text()),
        };
        *seen.entry(said).or_default() += 1;
    }
    seen
}

/// Statistics of clusters whose names have one of these in them, without those that are zero. Where a request came from
/// is not told apart here.
pub async fn stats(side: &Side, parts: &[&str]) -> Vec<String> {
    let wanted = |(name, value): &(String, u64)| {
        *value > 0
            && name.starts_with("cluster.")
            && !name.contains(".external.")
            && parts.iter().any(|part| name.contains(part))
    };
    let lines = side.proxy.stats().await.into_iter().filter(wanted);
    let lines = lines.map(|(name, value)| format!("{name}: {value}")).collect();
    if set("OUTRIGGER_E2E_SHOW").is_some() {
        println!("{:?} {lines:#?}", side.proxy.kind());
    }
    lines
}
