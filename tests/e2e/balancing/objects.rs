//! What filters leave on connections and requests by name: where that leads, beside Envoy.

use super::{Answered, Origins, Setup, Side};
use crate::harness::client::Client;
use crate::harness::{eventually, DEADLINE};
use serde_json::{json, Value};

fn object(name: &str, factory: &str, text: &str) -> Value {
    json!({"object_key": name, "factory_key": factory,
        "format_string": {"text_format_source": {"inline_string": text}, "omit_empty_values": true}})
}

fn network(objects: &[Value]) -> Value {
    json!({"name": "envoy.filters.network.set_filter_state", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config",
        "on_new_connection": objects}})
}

fn http(objects: &[Value]) -> Value {
    json!({"name": "envoy.filters.http.set_filter_state", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config",
        "on_request_headers": objects}})
}

const ORIGINAL_DST: &str = "envoy.network.transport_socket.original_dst_address";

/// The number of the origin that a connection of bytes leads to; nothing where it is closed.
async fn reached(side: &Side, listener: &str) -> Option<String> {
    let mut client = Client::connect(side.proxy.port(listener)).await.expect("a connection");
    let answer = client.exchange(b"GET / HTTP/1.1\r\nhost: t.test\r\n\r\n").await;
    answer.ok().map(|answer| answer.text())
}

#[tokio::test]
async fn objects_lead_where_envoys_lead() {
    let origins = Origins::start(7).await;
    let mut setup = Setup::default();
    let all =
        || vec![json!({"lb_endpoints": (0..5).map(|n| origins.endpoint(n, json!({}))).collect::<Vec<_>>()})];
    let one = |n: usize| vec![json!({"lb_endpoints": [origins.endpoint(n, json!({}))]})];
    setup.cluster("hashed", all(), json!({"lb_policy": "RING_HASH"}));
    setup.cluster("other", one(5), json!({}));
    setup.cluster("restored", vec![], json!({"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}));
    // What a request has.
    setup.filters.push(http(&[
        object("key", "envoy.hashable_string", "%REQ(x-key)%"),
        object("text", "envoy.string", "%REQ(x-key)%"),
        object(ORIGINAL_DST, "", &format!("127.0.0.1:{}", origins.ports[6])),
    ]));
    setup.log = "%FILTER_STATE(key:PLAIN)% %FILTER_STATE(text)% %FILTER_STATE(text:PLAIN):3% \
        %FILTER_STATE(envoy.network.transport_socket.original_dst_address:PLAIN)% %FILTER_STATE(none:PLAIN)%";
    let policy = |key: &str| json!({"cluster": "hashed", "hash_policy": [{"filter_state": {"key": key}}]});
    setup.route("hashed", policy("key"));
    setup.route("restored", json!({"cluster": "restored"}));
    // What a connection has.
    for key in 0..6 {
        let name = format!("hashed-{key}");
        let before = [network(&[object("key", "envoy.hashable_string", &format!("value {key}"))])];
        let policy = json!([{"filter_state": {"key": "key"}}]);
        setup.tcp(&name, json!({"before": before, "to": "hashed", "hash_policy": policy}));
    }
    let cluster = |name: &str| network(&[object("envoy.tcp_proxy.cluster", "", name)]);
    setup.tcp("named", json!({"before": [cluster("other")], "to": "hashed"}));
    setup.tcp("nowhere", json!({"before": [cluster("nowhere")], "to": "hashed"}));
    setup.tcp("anew", json!({"before": [cluster("nowhere"), cluster("other")], "to": "hashed"}));
    let there = network(&[object(ORIGINAL_DST, "", &format!("127.0.0.1:{}", origins.ports[4]))]);
    setup.tcp("restored", json!({"before": [there]}));
    let Some([mut envoy, mut ours]) = setup.start().await else { return };
    for path in ["hashed", "restored"] {
        let (theirs, mine) = tokio::join!(envoy.keys(path, 40), ours.keys(path, 40));
        assert_eq!(theirs, mine, "{path}");
        if path == "restored" {
            assert_eq!(mine, [Answered::By(6); 40]);
        }
    }
    for key in 0..6 {
        let name = format!("hashed-{key}");
        let (theirs, mine) = tokio::join!(reached(&envoy, &name), reached(&ours, &name));
        assert!(mine.is_some());
        assert_eq!(theirs, mine, "{name}");
    }
    for (name, leads) in
        [("named", Some("5")), ("nowhere", None), ("anew", Some("5")), ("restored", Some("4"))]
    {
        let (theirs, mine) = tokio::join!(reached(&envoy, name), reached(&ours, name));
        assert_eq!(mine.as_deref(), leads, "{name}");
        assert_eq!(theirs, mine, "{name}");
    }
    let mut lines = Vec::new();
    for side in [&envoy, &ours] {
        let read = || side.proxy.lines("access.log", 0);
        assert!(eventually(DEADLINE, || std::future::ready(read().len() >= 80)).await);
        lines.push(read());
    }
    assert_eq!(lines[0], lines[1], "the access logs");
}
