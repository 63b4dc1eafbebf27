//! Fields of listeners and TCP proxies that only statistics and the choice of hosts tell.

use super::table::{at, group, stats, Table};
use crate::differential::beside::Beside;
use crate::differential::observe::{Mask, Side};
use crate::harness::client::Client;
use crate::harness::{eventually, DEADLINE};

fn listener(name: &str, options: &str, matcher: &str, cluster: &str) -> String {
    format!("  - name: {name}\n    stat_prefix: {name}\n    address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:{name}@ }} }}\n{options}    filter_chains:\n    - filter_chain_match: {{ {matcher} }}\n      filters: [ {{ name: tcp, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: {name}, cluster: {cluster} }} }} ]\n")
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: t.test\r\n\r\n";

/// So many sessions on a listener that stay open; each has had an answer.
async fn sessions(side: &Side, listener: &str, count: usize) -> Vec<Client> {
    let mut all = Vec::new();
    for _ in 0..count {
        let mut client = Client::connect(side.proxy.port(listener)).await.expect("a connection");
        client.exchange(REQUEST).await.expect("an answer");
        all.push(client);
    }
    all
}

async fn least(side: &Side) -> Vec<String> {
    let held = sessions(side, "relay", 12).await;
    let parts = ["upstream_rq_total", "upstream_rq_active", "upstream_cx_active"];
    let mut lines = stats(side, &parts).await;
    let mask = Mask::new(side, 0);
    let page = mask.text(&side.proxy.admin("/clusters").await);
    let counted = |line: &&str| ["rq_active", "rq_total", "rq_success"].iter().any(|of| line.contains(of));
    lines.extend(page.lines().filter(|line| line.starts_with("least::")).filter(counted).map(str::to_owned));
    drop(held);
    let idle = || async { side.proxy.stats().await.get("cluster.least.upstream_rq_active") == Some(&0) };
    assert!(eventually(DEADLINE, idle).await, "{:?}", side.proxy.kind());
    lines
}

/// Sessions are requests to whoever balances by them.
#[tokio::test]
async fn the_least_loaded_host_gets_the_next_session() {
    let options = "load_balancing_policy: { policies: [ { typed_extension_config: { name: it, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest, selection_method: FULL_SCAN } } } ] }";
    let table = Table::default()
        .named(&["a", "b", "c"])
        .cluster("least", options, &[group("", &[at("a", ""), at("b", ""), at("c", "")])])
        .listener(&listener("relay", "", "", "least"));
    let Some([envoy, ours]) = table.sides().await else { return };
    let (theirs, mine) = tokio::join!(least(&envoy), least(&ours));
    let mut beside = Beside::default();
    beside.lines("least", &theirs, &mine);
    beside.end();
}

async fn silent(side: &Side) -> Vec<String> {
    let names = ["waits", "goes-on", "nobody"];
    for name in names {
        let _served = if name == "nobody" { Vec::new() } else { sessions(side, name, 2).await };
        let mut silent = Client::connect(side.proxy.port(name)).await.expect("a connection");
        if name == "goes-on" {
            let late = || async {
                let stats = side.proxy.stats().await;
                stats.get("listener.goes-on.downstream_cx_total") == Some(&3)
            };
            assert!(eventually(DEADLINE, late).await, "{:?}", side.proxy.kind());
        } else {
            if name == "nobody" {
                silent.send(REQUEST).await.expect("sent");
            }
            assert!(silent.closed(DEADLINE).await, "{name} with {:?}", side.proxy.kind());
        }
    }
    let wanted = |name: &str| {
        !name.contains(".worker_")
            && ["downstream_cx_total", "downstream_pre_cx_timeout", "no_filter_chain_match"]
                .iter()
                .any(|counter| name.ends_with(counter))
    };
    let all = side.proxy.stats().await.into_iter();
    let own = all.filter(|(name, _)| {
        wanted(name) && names.iter().any(|own| name.starts_with(&format!("listener.{own}.")))
    });
    own.map(|(name, value)| format!("{name}: {value}")).collect()
}

#[tokio::test]
async fn who_says_nothing_is_no_connection_yet() {
    let inspector = "    listener_filters: [ { name: i, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector } } ]\n    listener_filters_timeout: 0.2s\n";
    let goes_on = format!("{inspector}    continue_on_listener_filters_timeout: true\n");
    let table = Table::default()
        .named(&["a"])
        .cluster("a", "", &[group("", &[at("a", "")])])
        .listener(&listener("waits", inspector, "", "a"))
        .listener(&listener("goes-on", &goes_on, "", "a"))
        .listener(&listener("nobody", inspector, "server_names: [ else.test ]", "a"));
    let Some([envoy, ours]) = table.sides().await else { return };
    let (theirs, mine) = tokio::join!(silent(&envoy), silent(&ours));
    let mut beside = Beside::default();
    beside.lines("listeners", &theirs, &mine);
    beside.end();
}
