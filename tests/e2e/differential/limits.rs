//! Network filters that decide on a connection as it comes: `connection_limit`, `local_ratelimit`, `sni_cluster`.

use super::tcp::{case, chain_with, hello, listener, observe, rendered, send, side, Act, Case, Side};
use crate::harness::client::Client;
use crate::harness::proxy::Kind;
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use std::time::{Duration, Instant};

fn filter(kind: &str, options: &str) -> String {
    format!(
        "      - name: before\n        typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.network.{kind}{options} }}\n"
    )
}

fn template() -> String {
    let inspector = "    listener_filters:\n    - name: envoy.filters.listener.tls_inspector\n      typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector }\n";
    let limit = |more: &str| {
        filter("connection_limit.v3.ConnectionLimit", &format!(", stat_prefix: l{more}, max_connections: 1"))
    };
    let rate = |options: &str| {
        let bucket = "token_bucket: { max_tokens: 2, fill_interval: 3600s }";
        filter("local_ratelimit.v3.LocalRateLimit", &format!(", stat_prefix: r, {bucket}{options}"))
    };
    let switch = ", runtime_enabled: { default_value: false, runtime_key: some.key }";
    let with =
        |name: &str, before: &str| listener(name, "", &[chain_with(name, "", before, "cluster: good")]);
    let sni = chain_with("sni", "", &filter("sni_cluster.v3.SniCluster", ""), "cluster: refused");
    rendered(&[
        with("limit", &limit("")),
        with("late", &limit("ate, delay: 0.4s")),
        with("unlimited", &limit(&format!("x{switch}"))),
        with("rate", &rate("")),
        with("unrated", &rate(switch)),
        listener("sni", inspector, &[sni]),
    ])
}

/// A client that holds a connection.
async fn held(side: &Side, listener: &str) -> Client {
    let mut client = Client::connect(side.proxy.port(listener)).await.expect("a connection");
    client.send(b"echo\nx").await.expect("sent");
    assert!(matches!(tokio::time::timeout(DEADLINE, client.reader.fill()).await, Ok(Ok(true))), "an echo");
    client.reader.buffered.clear();
    client
}

/// Everything that happens to connections of a proxy.
async fn told(side: &Side) -> String {
    let passes =
        |name, listener| case(name, listener, vec![send("echo\nx"), Act::Read(1), Act::Finish, Act::End]);
    let refused = |name, listener| {
        let mut case: Case = case(name, listener, vec![Act::End]);
        (case.reaches, case.ignore) = (false, &["reset"]);
        case
    };
    let named = |name| {
        let bytes = hello(name, &[]);
        let count = bytes.len();
        case("by name", "sni", vec![Act::Send(bytes), Act::Read(count), Act::Finish, Act::End])
    };
    let mut text = String::new();
    for listener in ["limit", "late", "unlimited"] {
        let first = held(side, listener).await;
        let begun = Instant::now();
        let second =
            if listener == "unlimited" { passes("second", listener) } else { refused("second", listener) };
        text += &format!("--- {listener}, a second one\n{}", observe(side, &second).await);
        if listener == "late" {
            text += &format!("late: {}\n", begun.elapsed() > Duration::from_millis(300));
        }
        drop(first);
        assert_ne!(side.origin.end().await, "");
        if listener != "unlimited" {
            let prefix = if listener == "late" { "late" } else { "l" };
            let gauge = format!("connection_limit.{prefix}.active_connections");
            let free = || async { side.proxy.stats().await.get(&gauge).is_some_and(|active| *active == 0) };
            assert!(eventually(DEADLINE, free).await, "{listener} is not free again");
        }
        text += &format!("--- {listener}, a third one\n{}", observe(side, &passes("third", listener)).await);
    }
    for listener in ["rate", "unrated"] {
        for nth in ["first", "second", "third"] {
            let beyond = (listener, nth) == ("rate", "third");
            let case = if beyond { refused(nth, listener) } else { passes(nth, listener) };
            text += &format!("--- {listener}, the {nth} one\n{}", observe(side, &case).await);
        }
    }
    text += &format!("--- a cluster\n{}", observe(side, &named("good")).await);
    for name in ["nowhere", ""] {
        let mut case = named(name);
        (case.reaches, case.ignore) = (false, &["reset"]);
        text += &format!("--- {name:?}\n{}", observe(side, &case).await);
    }
    for (name, value) in side.proxy.stats().await {
        let counted = name.starts_with("connection_limit.")
            || name.starts_with("local_rate_limit.")
            || name.starts_with("tcp.") && name.ends_with(".downstream_cx_total");
        // While its limit is off, Envoy takes connections away that it has not added.
        let odd = name.starts_with("connection_limit.lx.");
        if counted && !odd {
            text += &format!("{name}: {value}\n");
        }
    }
    text
}

#[tokio::test]
async fn connections_beyond_a_limit_are_closed() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let template = template();
    let theirs = told(&side(Kind::Envoy, &template).await).await;
    let ours = told(&side(Kind::Outrigger, &template).await).await;
    assert_eq!(theirs, ours, "\n--- Envoy\n{theirs}\n--- Outrigger\n{ours}");
}
