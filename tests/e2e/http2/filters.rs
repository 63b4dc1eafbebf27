//! gRPC for clients that cannot read trailers, and its statistics: `grpc_web`, `grpc_http1_bridge` and `grpc_stats`,
//! each case beside the real Envoy.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::harness::client::Client;
use crate::harness::http2;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::peers;

const LISTENER: &str = r#"
  - name: @name@
    address: { socket_address: { address: 127.0.0.1, port_value: @port:@name@@ } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: @name@
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - { match: { prefix: /t.Gone/ }, route: { cluster: gone } }
              - { match: { prefix: /t. }, route: { cluster: origin } }
          http_filters:
          - name: @name@
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.@filter@ }
          - name: stats
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig
              individual_method_stats_allowlist: { services: [{ name: t.Echo, method_names: [Say, Web] }] }
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }"#;

fn template() -> String {
    let listener = |name, filter| LISTENER.replace("@name@", name).replace("@filter@", filter);
    format!(
        "admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }} }}\n\
         static_resources:\n  listeners:{}{}{}\n  clusters:\n{}  - name: gone\n    type: STATIC\n    \
         connect_timeout: 1s\n    load_assignment: {{ cluster_name: gone }}\n",
        listener("web", "grpc_web.v3.GrpcWeb"),
        listener("bridge", "grpc_http1_bridge.v3.Config"),
        listener(
            "protobuf",
            "grpc_http1_bridge.v3.Config, upgrade_protobuf_to_grpc: true, ignore_query_parameters: true"
        ),
        http2::cluster("origin", "@origin@")
    )
}

/// A gRPC server that sends back what it is sent. `x-status` is the call's status, `x-only` asks for one without a body.
async fn answer(request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let mut all = Vec::new();
    while let Some(Ok(piece)) = body.data().await {
        let _ = body.flow_control().release_capacity(piece.len());
        all.extend_from_slice(&piece);
    }
    let status = parts.headers.get("x-status").cloned().unwrap_or(http::HeaderValue::from_static("0"));
    let seen = parts.headers.get("content-type").cloned().expect("a type");
    let head = http::Response::builder().header("content-type", "application/grpc").header("x-seen", seen);
    let head = head.header("x-path", parts.uri.path_and_query().map_or("", |path| path.as_str()));
    if parts.headers.contains_key("x-only") {
        let head = head.header("grpc-status", status).header("grpc-message", "only");
        let _ = respond.send_response(head.body(()).expect("a head"), true);
        return;
    }
    let Ok(mut back) = respond.send_response(head.body(()).expect("a head"), false) else { return };
    back.send_data(Bytes::from(all), false).expect("the body is taken");
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", status);
    trailers.insert("grpc-message", http::HeaderValue::from_static("said"));
    let _ = back.send_trailers(trailers);
}

struct Case {
    name: &'static str,
    listener: &'static str,
    path: &'static str,
    headers: &'static str,
    body: &'static [u8],
}

const CASES: &[Case] = &[
    Case {
        name: "web",
        listener: "web",
        path: "/t.Echo/Web",
        headers: "content-type: application/grpc-web+proto\r\n",
        body: b"\0\0\0\0\x03abc\0\0\0\0\0",
    },
    Case {
        name: "web that fails",
        listener: "web",
        path: "/t.Echo/Web",
        headers: "content-type: application/grpc-web\r\nx-status: 7\r\n",
        body: b"\0\0\0\0\x03abc",
    },
    Case {
        name: "web as text, both ways",
        listener: "web",
        path: "/t.Echo/Web",
        headers: "content-type: application/grpc-web-text\r\naccept: application/grpc-web-text\r\n",
        body: b"AAAAAANhYmM=",
    },
    Case {
        name: "web as text, one way",
        listener: "web",
        path: "/t.Echo/Web",
        headers: "content-type: application/grpc-web-text+proto\r\n",
        body: b"AAAAAANhYmM=",
    },
    Case {
        name: "web without a body in its answer",
        listener: "web",
        path: "/t.Echo/Web",
        headers: "content-type: application/grpc-web+proto\r\nx-only: 1\r\nx-status: 5\r\n",
        body: b"\0\0\0\0\0",
    },
    Case {
        name: "web without an upstream",
        listener: "web",
        path: "/t.Gone/Web",
        headers: "content-type: application/grpc-web+proto\r\n",
        body: b"\0\0\0\0\0",
    },
    Case {
        name: "bridge",
        listener: "bridge",
        path: "/t.Echo/Say",
        headers: "content-type: application/grpc\r\n",
        body: b"\0\0\0\0\x03abc",
    },
    Case {
        name: "bridge to a call that fails",
        listener: "bridge",
        path: "/t.Echo/Say",
        headers: "content-type: application/grpc\r\nx-status: 13\r\n",
        body: b"\0\0\0\0\x03abc",
    },
    Case {
        name: "bridge to a method that is not named",
        listener: "bridge",
        path: "/t.Echo/Other",
        headers: "content-type: application/grpc+proto\r\n",
        body: b"\0\0\0\0\x01a\0\0\0\0\x01b",
    },
    Case {
        name: "web that is none",
        listener: "web",
        path: "/t.Echo/Say",
        headers: "content-type: text/plain\r\n",
        body: b"hello",
    },
    Case {
        name: "protobuf",
        listener: "protobuf",
        path: "/t.Echo/Say?a=b",
        headers: "content-type: application/x-protobuf\r\n",
        body: b"abc",
    },
    Case {
        name: "protobuf for a call that fails",
        listener: "protobuf",
        path: "/t.Echo/Say",
        headers: "content-type: application/x-protobuf\r\nx-status: 13\r\n",
        body: b"abc",
    },
    Case {
        name: "protobuf for a call that fails at once",
        listener: "protobuf",
        path: "/t.Echo/Say",
        headers: "content-type: application/x-protobuf\r\nx-status: 13\r\nx-only: 1\r\n",
        body: b"abc",
    },
    Case {
        name: "protobuf for nobody",
        listener: "protobuf",
        path: "/t.Gone/Say",
        headers: "content-type: application/x-protobuf\r\n",
        body: b"abc",
    },
    Case {
        name: "gRPC where protobuf may come",
        listener: "protobuf",
        path: "/t.Echo/Say?a=b",
        headers: "content-type: application/grpc\r\n",
        body: b"\0\0\0\0\x03abc",
    },
    Case {
        name: "neither",
        listener: "protobuf",
        path: "/t.Echo/Say?a=b",
        headers: "content-type: application/json\r\n",
        body: b"abc",
    },
    Case {
        name: "bridge that is none",
        listener: "bridge",
        path: "/t.Echo/Say",
        headers: "content-type: text/plain\r\n",
        body: b"hello",
    },
];

/// What a client sees: status, fields and body.
async fn observe(proxy: &Proxy) -> Vec<String> {
    let mut seen = Vec::new();
    for case in CASES {
        let mut client = Client::connect(proxy.port(case.listener)).await.expect("a connection");
        let mut request = format!(
            "POST {} HTTP/1.1\r\nhost: t.test\r\n{}content-length: {}\r\n\r\n",
            case.path,
            case.headers,
            case.body.len()
        )
        .into_bytes();
        request.extend_from_slice(case.body);
        let answer = client.exchange(&request).await.expect("an answer");
        let fields: BTreeMap<&str, Option<&str>> = [
            "content-type",
            "grpc-status",
            "grpc-message",
            "content-length",
            "transfer-encoding",
            "x-seen",
            "x-path",
        ]
        .into_iter()
        .map(|name| (name, answer.header(name)))
        .filter(|(_, value)| value.is_some())
        .collect();
        seen.push(format!("{}: {} {fields:?} {:?}", case.name, answer.status(), answer.text()));
    }
    seen
}

#[tokio::test]
async fn clients_without_trailers_get_what_envoy_gives_them() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let template = template();
    let values = [("origin", http2::serve(answer).await.to_string())];
    let ours = Proxy::outrigger(&template, &values).await;
    let theirs = Proxy::start(Plan::new(Kind::Envoy, &template, &values)).await;
    let (seen, expected) = (observe(&ours).await, observe(&theirs).await);
    assert_eq!(seen.join("\n"), expected.join("\n"), "ours, then Envoy's");
    let grpc = |stats: BTreeMap<String, u64>| -> BTreeMap<String, u64> {
        stats
            .into_iter()
            .filter(|(name, value)| name.starts_with("cluster.origin.grpc.") && *value > 0)
            .collect()
    };
    assert_eq!(grpc(ours.stats().await), grpc(theirs.stats().await));
}
