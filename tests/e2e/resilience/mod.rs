//! What a proxy is for when things go wrong: origins that die, freeze, crawl and break off under load; circuit breakers
//! at their limits; and what all of it costs and counts beside the real Envoy.

mod breakers;
mod chaos;
mod counts;
pub mod load;
pub mod origin;
mod pools;

use crate::harness::json;
use crate::harness::proxy::{Kind, Plan, Proxy};
use serde_json::{json, Value};

/// Clusters, and a route `/<name>` to each.
#[derive(Default)]
struct Setup {
    clusters: Vec<Value>,
    routes: Vec<Value>,
    /// Nothing is logged.
    quiet: bool,
}

impl Setup {
    /// A cluster of hosts on these ports by priority, and its route with these fields of its action.
    fn cluster(&mut self, name: &str, priorities: &[&[u16]], options: &Value, action: &Value) -> &mut Self {
        let group = |(priority, ports): (usize, &&[u16])| {
            let endpoint = |port: &u16| {
                let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
                json!({"endpoint": {"address": address}})
            };
            json!({"priority": priority, "lb_endpoints": ports.iter().map(endpoint).collect::<Vec<_>>()})
        };
        let groups: Vec<Value> = priorities.iter().enumerate().map(group).collect();
        let mut cluster = json!({"name": name, "connect_timeout": "0.25s",
            // Workers of Envoy would follow a change of health up to a second later.
            "common_lb_config": {"update_merge_window": "0s"},
            "load_assignment": {"cluster_name": name, "endpoints": groups}});
        extend(&mut cluster, options);
        let mut route = json!({"cluster": name});
        extend(&mut route, action);
        self.clusters.push(cluster);
        self.routes.push(json!({"match": {"prefix": format!("/{name}")}, "route": route}));
        self
    }

    fn render(&self) -> String {
        let mut manager = json::manager(
            "%START_TIME(%s%3f)% %UPSTREAM_CLUSTER% %UPSTREAM_HOST% %RESPONSE_CODE% %RESPONSE_FLAGS% %REQ(:PATH)%\n",
            &self.routes,
        );
        match self.quiet {
            true => manager["access_log"] = json!([]),
            // Those that failed.
            false => manager["access_log"][0]["filter"] = json!({"response_flag_filter": {}}),
        }
        json::template(&json::bootstrap("resilience", &manager, &self.clusters))
    }

    async fn start(&self, kind: Kind, workers: &str) -> Proxy {
        let template = self.render();
        let mut plan = Plan::new(kind, &template, &[]);
        let arguments = ["--concurrency", workers];
        plan.arguments = &arguments;
        Proxy::start(plan).await
    }
}

fn extend(value: &mut Value, more: &Value) {
    if let (Some(value), Some(more)) = (value.as_object_mut(), more.as_object()) {
        value.extend(more.clone());
    }
}

/// A line of the access log: when the request came (milliseconds since 1970), the host of its last try, its flags.
struct Failure {
    at: u128,
    cluster: String,
    host: String,
    status: String,
    flags: String,
}

/// The requests that the proxy says have failed.
fn failures(proxy: &Proxy) -> Vec<Failure> {
    let parse = |line: String| {
        let mut fields = line.split(' ').map(str::to_owned);
        let mut next = || fields.next();
        let at = next()?.parse().ok()?;
        Some(Failure { at, cluster: next()?, host: next()?, status: next()?, flags: next()? })
    };
    proxy.lines("access.log", 0).into_iter().filter_map(parse).collect()
}
