//! The same hosts for the same requests: Outrigger and the real Envoy choose among equal origins. Where chance decides,
//! the shares are compared; where a hash does, every single choice.

mod failover;
mod hashing;
mod load;
mod preconnect;
mod shares;
mod subsets;

use crate::harness::client::Client;
use crate::harness::json;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::peers;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Servers that answer every request with their number.
struct Origins {
    ports: Vec<u16>,
    _stop: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Origins {
    fn drop(&mut self) {
        self._stop.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Origins {
    async fn start(count: usize) -> Origins {
        let answer = |number: usize| {
            let body = number.to_string();
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        };
        Origins::answering((0..count).map(answer).collect()).await
    }

    /// Each of them answers with one of these.
    async fn answering(answers: Vec<String>) -> Origins {
        let mut origins = Origins { ports: Vec::new(), _stop: Vec::new() };
        for answer in answers {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            origins.ports.push(listener.local_addr().expect("its address").port());
            let task = async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let answer = answer.clone();
                    tokio::spawn(async move {
                        let mut input = Vec::new();
                        let mut buffer = [0; 4096];
                        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                            input.extend_from_slice(&buffer[..read]);
                            while let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
                                input.drain(..end + 4);
                                if stream.write_all(answer.as_bytes()).await.is_err() {
                                    return;
                                }
                            }
                        }
                    });
                }
            };
            origins._stop.push(tokio::spawn(task));
        }
        origins
    }

    /// An endpoint; `more` are fields beside its address.
    fn endpoint(&self, number: usize, more: Value) -> Value {
        let mut endpoint = more;
        let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": self.ports[number]}});
        endpoint["endpoint"]["address"] = address;
        endpoint
    }
}

/// Clusters, and a route with the cluster's name for each.
#[derive(Default)]
struct Setup {
    clusters: Vec<Value>,
    routes: Vec<Value>,
    /// Listeners beside the one for HTTP.
    listeners: Vec<Value>,
    /// More fields of the bootstrap.
    more: Value,
}

// Values are made where they are passed.
#[allow(clippy::needless_pass_by_value)]
impl Setup {
    /// A cluster with these groups of endpoints and options.
    fn cluster(&mut self, name: &str, groups: Vec<Value>, options: Value) -> &mut Self {
        let mut cluster = options;
        cluster["name"] = json!(name);
        cluster["connect_timeout"] = json!("1s");
        if !groups.is_empty() {
            cluster["load_assignment"] = json!({"cluster_name": name, "endpoints": groups});
        }
        if cluster.get("policy").is_some() {
            let policy = cluster["policy"].take();
            cluster["load_assignment"]["policy"] = policy;
            cluster.as_object_mut().expect("an object").remove("policy");
        }
        self.clusters.push(cluster);
        self
    }

    /// A listener of this name for bytes, which go to the cluster of this name.
    fn tcp(&mut self, name: &str, more: Value) -> &mut Self {
        let mut proxy = more;
        proxy["@type"] = json!("type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy");
        proxy["stat_prefix"] = json!(name);
        proxy["cluster"] = json!(name);
        self.listeners.push(json!({"name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": format!("@port:{name}@")}},
            "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}]}));
        self
    }

    /// A route `/<path>/` with these fields of its action.
    fn route(&mut self, path: &str, action: Value) -> &mut Self {
        self.routes.push(json!({"match": {"prefix": format!("/{path}/")}, "route": action}));
        self
    }

    fn render(&self) -> String {
        let manager = json::manager(
            "%RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_CLUSTER% %UPSTREAM_REQUEST_ATTEMPT_COUNT%\n",
            &self.routes,
        );
        let mut bootstrap = json::bootstrap("balancing", &manager, &self.clusters);
        bootstrap["node"]["locality"] = json!({"zone": "a"});
        let listeners = bootstrap["static_resources"]["listeners"].as_array_mut().expect("a list");
        listeners.extend(self.listeners.iter().cloned());
        if let Value::Object(more) = &self.more {
            bootstrap.as_object_mut().expect("an object").extend(more.clone());
        }
        json::template(&bootstrap)
    }

    /// Envoy and Outrigger; `None` when the test is skipped.
    async fn start(&self) -> Option<[Side; 2]> {
        if !peers::have(&["envoy"]) {
            return None;
        }
        let template = self.render();
        let mut sides = Vec::new();
        for kind in [Kind::Envoy, Kind::Outrigger] {
            let proxy = Proxy::start(Plan::new(kind, &template, &[])).await;
            let client = Client::connect(proxy.port("main")).await.expect("a connection");
            sides.push(Side { proxy, client });
        }
        sides.try_into().ok()
    }
}

/// A proxy and a connection to it.
struct Side {
    proxy: Proxy,
    client: Client,
}

/// What answered: an origin, or the proxy itself with this status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Answered {
    By(usize),
    Status(u16),
}

impl Side {
    async fn get(&mut self, path: &str, headers: &str) -> Answered {
        let request = format!("GET /{path}/ HTTP/1.1\r\nhost: t.test\r\n{headers}\r\n");
        let message = self.client.exchange(request.as_bytes()).await.expect("an answer");
        match message.status() {
            200 => Answered::By(message.text().parse().expect("the number of an origin")),
            status => Answered::Status(status),
        }
    }

    /// The answer for each key.
    async fn keys(&mut self, path: &str, count: usize) -> Vec<Answered> {
        let mut answers = Vec::with_capacity(count);
        for key in 0..count {
            answers.push(self.get(path, &format!("x-key: user-{key}\r\n")).await);
        }
        answers
    }

    /// How often each answers.
    async fn shares(&mut self, path: &str, count: usize) -> BTreeMap<Answered, usize> {
        let mut shares = BTreeMap::new();
        for _ in 0..count {
            *shares.entry(self.get(path, "").await).or_insert(0) += 1;
        }
        shares
    }
}

/// Asserts that both sides' answers may come from one distribution: chi-squared of two samples of equal size.
fn assert_alike(what: &str, one: &BTreeMap<Answered, usize>, other: &BTreeMap<Answered, usize>) {
    let all: std::collections::BTreeSet<_> = one.keys().chain(other.keys()).collect();
    let count = |of: &BTreeMap<Answered, usize>, key| of.get(key).copied().unwrap_or(0) as f64;
    let statistic: f64 = all
        .iter()
        .map(|key| (count(one, key) - count(other, key), count(one, key) + count(other, key)))
        .map(|(difference, sum)| difference * difference / sum)
        .sum();
    let freedom = (all.len() - 1) as f64;
    // Exceeded by chance once in far more than a million runs.
    let limit = freedom + 6.0 * (2.0 * freedom).sqrt() + 18.0;
    assert!(
        statistic <= limit,
        "{what}: {statistic:.1} is over {limit:.1}\nEnvoy     {one:?}\nOutrigger {other:?}"
    );
}
