//! Outlier detection and active health checks, beside the real Envoy: the same origins that do the same to the same
//! requests or checks. Compared are which hosts are out, counters, gauges, and the lines of event logs.

pub mod checks;
mod outliers;

use crate::harness::client::get;
use crate::harness::http1::Message;
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::future::Future;

/// One proxy and its origins.
pub struct Bed {
    pub proxy: Proxy,
    pub origins: Vec<Origin>,
    /// Ports by host of cluster `c`.
    ports: Vec<u16>,
}

/// What both proxies are started with.
#[derive(Clone, Default)]
pub struct Setup {
    /// Options of cluster `c`, YAML without indentation.
    pub options: String,
    /// How many origins cluster `c` has.
    pub origins: usize,
    /// Ports of more hosts, the same for both proxies.
    pub more: Vec<u16>,
    /// How many more hosts nobody listens for.
    pub refused: usize,
    /// Another body of `lb_endpoints` than one endpoint for each host; `@host:N@` is a port.
    pub endpoints: Option<String>,
    /// What the origins answer from the start.
    pub script: Option<fn(&Message) -> Answer>,
    /// The listener relays TCP.
    pub tcp: bool,
    /// Options of the route to `c`, in braces.
    pub route: Option<&'static str>,
}

impl Setup {
    pub fn new(origins: usize, options: &str) -> Setup {
        Setup { options: options.to_owned(), origins, ..Setup::default() }
    }

    fn template(&self) -> String {
        let hosts = self.origins + self.more.len() + self.refused;
        let endpoint = |host: usize| {
            format!("          - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @host:{host}@ }} }} }}\n")
        };
        let endpoints = self.endpoints.clone().unwrap_or_else(|| (0..hosts).map(endpoint).collect());
        let options: String = self.options.lines().map(|line| format!("    {line}\n")).collect();
        let route = self.route.unwrap_or("");
        let filter = if self.tcp {
            "      - name: envoy.filters.network.tcp_proxy
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: t
          cluster: c
"
            .to_owned()
        } else {
            format!(
                "      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: h
          route_config:
            virtual_hosts:
            - name: all
              domains: ['*']
              routes: [ {{ match: {{ prefix: / }}, route: {{ cluster: c {route} }} }} ]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
"
            )
        };
        format!(
            "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }} }}
node: {{ id: health, cluster: tests }}
layered_runtime:
  layers:
  # Failures reach the detectors only if picks do not avoid them first.
  - {{ name: tests, static_layer: {{ outrigger.upstream.pass_over_suspect_hosts: 0 }} }}
cluster_manager: {{ outlier_detection: {{ event_log_path: \"@dir@/outliers.log\" }} }}
static_resources:
  listeners:
  - name: main
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:main@ }} }}
    filter_chains:
    - filters:
{filter}  clusters:
  - name: c
    type: STATIC
    connect_timeout: 0.5s
    # Workers of Envoy would follow a change of health up to a second later.
    common_lb_config: {{ update_merge_window: 0s }}
{options}    load_assignment:
      cluster_name: c
      endpoints:
      - lb_endpoints:
{endpoints}"
        )
    }

    async fn bed(&self, kind: Kind) -> Bed {
        let mut origins = Vec::new();
        for _ in 0..self.origins {
            let origin = Origin::start().await;
            if let Some(script) = self.script {
                origin.answer(script);
            }
            origins.push(origin);
        }
        let mut ports: Vec<u16> = origins.iter().map(Origin::port).collect();
        ports.extend(&self.more);
        ports.extend((0..self.refused).map(|_| crate::harness::ports::free_port()));
        let mut template = self.template();
        for (host, port) in ports.iter().enumerate() {
            template = template.replace(&format!("@host:{host}@"), &port.to_string());
        }
        let proxy = Proxy::start(Plan::new(kind, &template, &[])).await;
        Bed { proxy, origins, ports }
    }
}

/// Plays a story with both proxies; what it returns must be equal.
pub async fn beside<F, Fut>(setup: Setup, story: F)
where
    F: Fn(Bed) -> Fut,
    Fut: Future<Output = String>,
{
    if !peers::have(&["envoy"]) {
        return;
    }
    let side = |kind| {
        let (setup, story) = (&setup, &story);
        async move { story(setup.bed(kind).await).await }
    };
    let (theirs, ours) = tokio::join!(side(Kind::Envoy), side(Kind::Outrigger));
    if std::env::var_os("OUTRIGGER_E2E_SHOW").is_some() {
        println!("--- Envoy\n{theirs}--- Outrigger\n{ours}");
    }
    assert!(theirs == ours, "they differ\n--- Envoy\n{theirs}--- Outrigger\n{ours}");
}

impl Bed {
    /// So many requests, each on a connection of its own; the statuses in order.
    pub async fn requests(&self, count: usize) -> Vec<u16> {
        let mut statuses = Vec::new();
        for _ in 0..count {
            let answer = get(self.proxy.port("main"), "/").await;
            statuses.push(answer.map_or(0, |answer| answer.status()));
        }
        statuses
    }

    /// Makes a host answer requests (not checks at `/hc`) so.
    pub fn answers(&self, host: usize, answer: Answer) {
        self.origins[host].answer(move |request| match request.target() {
            "/hc" => Answer::ok("ok"),
            _ => answer.clone(),
        });
    }

    /// The health flags of each host.
    pub async fn flags(&self) -> Vec<String> {
        let page = self.proxy.admin("/clusters").await;
        let of = |port: &u16| {
            let prefix = format!("c::127.0.0.1:{port}::health_flags::");
            page.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or("(not there)").to_owned()
        };
        self.ports.iter().map(of).collect()
    }

    /// Waits until the hosts have these flags, and says so.
    pub async fn until_flags(&self, wanted: &[&str]) -> String {
        let mut last = Vec::new();
        let there = eventually(DEADLINE, || async { self.flags().await == wanted }).await;
        if !there {
            last = self.flags().await;
        }
        format!("flags {wanted:?} came: {there} {last:?}\n")
    }

    /// The value of a statistic of `c`; 0 if it is not there.
    pub async fn stat(&self, name: &str) -> u64 {
        let stats = self.proxy.stats().await;
        stats.get(&format!("cluster.c.{name}")).copied().unwrap_or(0)
    }

    /// Waits until a statistic of `c` has this value or more.
    pub async fn until_stat(&self, name: &str, value: u64) -> String {
        let there = eventually(DEADLINE, || async { self.stat(name).await >= value }).await;
        format!("{name} reached {value}: {there}\n")
    }

    /// Statistics of `c` whose names begin so, without those that are zero.
    pub async fn stats(&self, prefixes: &[&str]) -> String {
        let mut text = String::new();
        for (name, value) in self.proxy.stats().await {
            let Some(name) = name.strip_prefix("cluster.c.") else { continue };
            if value > 0 && prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                let _ = writeln!(text, "{name}: {value}");
            }
        }
        text
    }

    /// What `/clusters` says of outliers and hosts, ports as numbers of hosts.
    pub async fn page(&self) -> String {
        let page = self.named(&self.proxy.admin("/clusters").await);
        // How often was connected depends on how connections were kept.
        let wanted = |line: &&str| {
            ["::outlier::", "health_flags", "success_rate", "::weight::", "::priority::"]
                .iter()
                .any(|part| line.contains(part))
        };
        page.lines().filter(wanted).map(|line| format!("{line}\n")).collect()
    }

    /// The health of each host in the JSON of `/clusters`.
    pub async fn statuses(&self) -> String {
        let page = self.proxy.admin("/clusters?format=json").await;
        let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
        let clusters = page["cluster_statuses"].as_array().expect("clusters");
        let mut text = String::new();
        for host in clusters.iter().filter_map(|cluster| cluster["host_statuses"].as_array()).flatten() {
            let names: Vec<_> =
                host["stats"].as_array().into_iter().flatten().map(|s| s["name"].clone()).collect();
            let _ = writeln!(text, "{} {names:?}", host["health_status"]);
        }
        text
    }

    fn named(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (host, port) in self.ports.iter().enumerate() {
            text = text.replace(&format!("127.0.0.1:{port}"), &format!("host{host}"));
            text = text.replace(&format!("\"port_value\":{port}"), &format!("\"port_value\":\"host{host}\""));
        }
        text
    }

    /// The lines of an event log by host, without times, after at least so many came.
    pub async fn events(&self, file: &str, at_least: usize) -> String {
        let read = || std::fs::read_to_string(self.proxy.file(file)).unwrap_or_default();
        eventually(DEADLINE, || std::future::ready(read().lines().count() >= at_least)).await;
        let mut by_host: BTreeMap<String, String> = BTreeMap::new();
        for line in self.named(&read()).lines() {
            let mut line: serde_json::Value = serde_json::from_str(line).expect("an event");
            let time = line["timestamp"].take();
            assert!(
                time.as_str().is_some_and(|time| time.ends_with('Z') && time.starts_with("20")),
                "{line}"
            );
            if line.get("secs_since_last_action").is_some() {
                line["secs_since_last_action"] = "some".into();
            }
            let host = format!("{} {}", line["upstream_url"], line["host"]);
            let _ = writeln!(by_host.entry(host).or_default(), "{line}");
        }
        by_host.into_values().collect()
    }
}
