//! Fields about hosts that are checked and then leave: who is a member still.

use super::table::{at, group, stats, Table};
use crate::differential::beside::Beside;
use crate::harness::origin::Origin;
use crate::harness::proxy::Kind;
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use std::path::Path;

const CHECK: &str = "health_checks: [ { timeout: 1s, interval: 0.1s, no_traffic_interval: 0.1s, unhealthy_threshold: 1, healthy_threshold: 1, http_health_check: { path: /hc } } ]";

fn assignment(name: &str, hosts: &[u16]) -> String {
    let hosts: Vec<_> = hosts.iter().map(|port| format!("{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}")).collect();
    format!("resources: [ {{ \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, cluster_name: {name}, endpoints: [ {{ lb_endpoints: [ {} ] }} ] }} ]\n", hosts.join(", "))
}

/// Writes the assignments of each cluster anew.
fn assign(dir: &Path, origins: &[(&'static str, Origin)], clusters: &[(&str, &str)], count: usize) {
    let ports: Vec<u16> = origins.iter().take(count).map(|(_, origin)| origin.port()).collect();
    for (name, _) in clusters {
        let (file, new) = (dir.join(format!("{name}.yaml")), dir.join("new"));
        std::fs::write(&new, assignment(name, &ports)).expect("a file");
        std::fs::rename(&new, &file).expect("a file");
    }
}

#[tokio::test]
async fn hosts_that_leave() {
    let ignoring = format!("{CHECK}\nignore_health_on_host_removal: true");
    let waiting = format!("{CHECK}\ncommon_lb_config: {{ ignore_new_hosts_until_first_hc: true }}");
    let clusters = [
        ("unchecked", ""),
        ("checked", CHECK),
        ("ignoring", ignoring.as_str()),
        ("waiting", waiting.as_str()),
    ];
    let mut table =
        Table::default().named(&["a", "b", "c"]).cluster("static", "", &[group("", &[at("a", "")])]);
    for (name, options) in clusters {
        table = table.discovered(name, options);
    }
    if !peers::have(&["envoy"]) {
        return;
    }
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let side = |kind, dir: &Path| {
        let dir = dir.to_owned();
        table.side_with(kind, move |origins| {
            assign(&dir, origins, &clusters, 2);
            vec![("endpoints", dir.display().to_string())]
        })
    };
    let envoy = side(Kind::Envoy, dirs[0].path()).await;
    let ours = side(Kind::Outrigger, dirs[1].path()).await;
    let mut beside = Beside::default();
    for (step, count, healthy) in
        [("begin", 2, [2, 2, 2, 2]), ("more", 3, [3, 3, 3, 3]), ("fewer", 1, [1, 3, 1, 3])]
    {
        for (side, dir) in [&envoy, &ours].into_iter().zip(&dirs) {
            assign(dir.path(), &side.origins, &clusters, count);
            let there = || async {
                let stats = side.proxy.stats().await;
                clusters.iter().zip(healthy).all(|((name, _), healthy)| {
                    stats.get(&format!("cluster.{name}.membership_healthy")) == Some(&healthy)
                })
            };
            assert!(eventually(DEADLINE, there).await, "{step}: {:?}", side.proxy.kind());
        }
        let parts = ["membership_"];
        beside.lines(step, &stats(&envoy, &parts).await, &stats(&ours, &parts).await);
    }
    beside.end();
}
