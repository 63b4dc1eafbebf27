//! Endpoints that are checked: what warms with them, and when they may go.

use super::beside::Both;
use super::clients::named;
use super::mesh::Mesh;
use crate::harness::client::get;
use crate::harness::origin::Answer;
use crate::harness::{eventually, DEADLINE};
use crate::peers;

fn checked(port: u16, endpoints: &[u16], more: &str) -> Vec<String> {
    let mut mesh = Mesh::simple(port, endpoints);
    let checks = format!(
        "common_lb_config: {{ update_merge_window: 0s }}\nhealth_checks: [ {{ timeout: 1s, interval: 0.1s, \
         no_traffic_interval: 0.1s, unhealthy_threshold: 2, healthy_threshold: 1, http_health_check: {{ path: /hc }} }} ]\n{more}"
    );
    mesh.cluster_extra.insert("web".into(), checks);
    mesh.resources()
}

/// Waits until both show these flags of the hosts at these ports, all that there are.
async fn until(both: &Both, what: &str, wanted: &[(u16, &str)]) {
    let mut wanted: Vec<String> =
        wanted.iter().map(|(port, flags)| format!("web::127.0.0.1:{port}::health_flags::{flags}")).collect();
    wanted.sort();
    for side in &both.sides {
        let flags = || async {
            let page = side.proxy.admin("/clusters").await;
            let mut lines: Vec<String> = page
                .lines()
                .filter(|line| line.starts_with("web::") && line.contains("::health_flags::"))
                .map(str::to_owned)
                .collect();
            lines.sort();
            lines
        };
        let same = eventually(DEADLINE, || async { flags().await == wanted }).await;
        assert!(same, "{what}: {:?} shows {:?}, not {wanted:?}", side.proxy.kind(), flags().await);
    }
    let gauges = |name: &str| {
        name.starts_with("cluster.web.membership_") && !name.ends_with("_change")
            || name == "cluster.web.health_check.healthy"
    };
    both.same(gauges, what).await;
}

#[tokio::test]
async fn checked_endpoints_come_and_go_as_in_envoy() {
    if !peers::have(&["envoy"]) {
        return;
    }
    for delta in [true, false] {
        let (one, two) = (named("one").await, named("two").await);
        let (a, b) = (one.port(), two.port());
        let both = Both::start(delta, |port| checked(port, &[a], "")).await;
        until(&both, "at first", &[(a, "healthy")]).await;
        for side in &both.sides {
            let answer = get(side.port, "/").await.expect("an answer");
            assert_eq!(answer.text(), "one");
        }
        both.set(|port| checked(port, &[a, b], "")).await;
        until(&both, "a second one", &[(a, "healthy"), (b, "healthy")]).await;
        both.set(|port| checked(port, &[a], "")).await;
        until(&both, "taken away while it is well", &[(a, "healthy"), (b, "/pending_dynamic_removal")]).await;
        both.set(|port| checked(port, &[a, b], "")).await;
        until(&both, "there again", &[(a, "healthy"), (b, "healthy")]).await;
        both.set(|port| checked(port, &[a], "")).await;
        two.answer(|_| Answer::status(503, "X", "x"));
        until(&both, "not well any more", &[(a, "healthy")]).await;
        // A cluster that changes begins anew; where health is ignored, endpoints go at once.
        two.answer(|_| Answer::ok("two"));
        both.set(|port| checked(port, &[a, b], "ignore_health_on_host_removal: true")).await;
        until(&both, "another version", &[(a, "healthy"), (b, "healthy")]).await;
        both.set(|port| checked(port, &[a], "ignore_health_on_host_removal: true")).await;
        until(&both, "taken away whatever its health", &[(a, "healthy")]).await;
        one.answer(|_| Answer::status(500, "X", "x"));
        until(&both, "the last one fails", &[(a, "/failed_active_hc")]).await;
    }
}
