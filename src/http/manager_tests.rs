//! What heads look like after the connection manager, by option and by who the client is.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{json, Value};

use super::*;
use crate::config::compile::tests::hcm;
use crate::http::fields::Fields;
use crate::http::h1::{parse_request, RequestLimits};
use crate::telemetry::stream_info::Protocol;

/// This machine, as these tests have it.
const OWN: &str = "192.0.2.7";

fn manager(changes: &Value) -> Arc<HttpConnectionManager> {
    let mut options = json!({"generate_request_id": false,
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}});
    for (key, value) in changes.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    hcm(options)
}

fn worker() -> Worker {
    let mut worker = Worker::new(Arc::default(), Arc::default());
    worker.own_address = OWN.into();
    worker
}

fn connection(peer: &str) -> ConnectionInfo {
    let remote = SocketAddr::new(peer.parse().expect("an address"), 4444);
    crate::telemetry::fixtures::connection(Some(remote), "127.0.0.1:8080".parse().ok())
}

fn stream(connection: ConnectionInfo) -> StreamInfo {
    StreamInfo { connection: Rc::new(connection), ..crate::telemetry::fixtures::stream() }
}

fn head(lines: &str) -> RequestHead {
    let input = format!("GET / HTTP/1.1\r\nHost: t.test\r\n{lines}\r\n");
    parse_request(input.as_bytes(), &RequestLimits::default()).expect("good").expect("complete").head
}

#[test]
fn a_peer_on_a_unix_socket_is_internal_if_config_says_so() {
    let unix = crate::telemetry::fixtures::connection(None, None);
    let gone = crate::telemetry::fixtures::connection(None, "127.0.0.1:8080".parse().ok());
    for (connection, says_so, internal) in [(&unix, true, true), (&unix, false, false), (&gone, true, false)]
    {
        let config =
            json!({"use_remote_address": true, "internal_address_config": {"unix_sockets": says_so}});
        let mut head = head("x-envoy-retry-on: 5xx\r\n");
        assert!(prepare_request(&manager(&config), &mut head, &stream(connection.clone()), &worker()).is_ok());
        assert_eq!(head.fields.has(Known::XEnvoyRetryOn), internal, "{connection:?}, {says_so}");
    }
}

fn prepared(options: &Value, peer: &str, lines: &str) -> Result<RequestHead, Stop> {
    let mut head = head(lines);
    prepare_request(&manager(options), &mut head, &stream(connection(peer)), &worker())?;
    Ok(head)
}

/// The fields after preparation, sorted lines.
fn fields(options: &Value, peer: &str, lines: &str) -> Vec<String> {
    let head = prepared(options, peer, lines).expect("routed");
    let mut lines: Vec<String> = (head.fields.iter())
        .map(|(_, name, value)| format!("{}: {}", name.escape_ascii(), value.escape_ascii()))
        .collect();
    lines.sort();
    lines
}

#[test]
fn the_client_s_address_at_the_edge() {
    let edge = json!({"use_remote_address": true});
    let proto = "x-forwarded-proto: http";
    for (peer, sent, forwarded, external) in [
        ("1.2.3.4", "", "1.2.3.4", "1.2.3.4"),
        ("1.2.3.4", "X-Forwarded-For: 9.9.9.9, 8.8.8.8\r\n", "9.9.9.9, 8.8.8.8,1.2.3.4", "1.2.3.4"),
        ("1.2.3.4", "X-Forwarded-For: a\r\nX-Forwarded-For: b\r\n", "a,b,1.2.3.4", "1.2.3.4"),
        ("1.2.3.4", "X-Forwarded-For:\r\n", "1.2.3.4", "1.2.3.4"),
        // A claim makes an internal peer external.
        ("10.1.1.1", "X-Forwarded-For: 10.9.9.9\r\n", "10.9.9.9,10.1.1.1", "10.1.1.1"),
        // Loopback says nothing elsewhere, but only the canonical one.
        ("127.0.0.1", "", OWN, "127.0.0.1"),
        ("::1", "X-Forwarded-For: a\r\n", "a,192.0.2.7", "::1"),
        ("127.0.0.6", "", "127.0.0.6", "127.0.0.6"),
    ] {
        let wanted = [
            format!("x-envoy-external-address: {external}"),
            format!("x-forwarded-for: {forwarded}"),
            proto.to_owned(),
        ];
        assert_eq!(fields(&edge, peer, sent), wanted, "{peer} {sent:?}");
    }
    let inside = fields(&edge, "10.1.1.1", "X-Envoy-External-Address: 9.9.9.9\r\n");
    assert!(inside.contains(&"x-envoy-internal: true".to_owned()), "{inside:?}");
    let silent = json!({"use_remote_address": true, "skip_xff_append": true});
    assert_eq!(fields(&silent, "1.2.3.4", ""), ["x-envoy-external-address: 1.2.3.4", proto]);
}

#[test]
fn port_and_proto_are_ours_at_the_edge_and_believed_elsewhere() {
    let sent = "X-Forwarded-Port: 9\r\nX-Forwarded-Proto: https\r\n";
    for (remote, hops, port, proto) in
        [(true, 0, "8080", "http"), (true, 1, "9", "https"), (false, 0, "9", "https")]
    {
        let options = json!({"append_x_forwarded_port": true, "use_remote_address": remote,
            "xff_num_trusted_hops": hops});
        let found = prepared(&options, "1.2.3.4", sent).expect("routed").fields;
        let both = (found.get(Known::XForwardedPort), found.get(Known::XForwardedProto));
        assert_eq!(both, (Some(port.as_bytes()), Some(proto.as_bytes())), "{options}");
        let added = prepared(&options, "1.2.3.4", "").expect("routed").fields;
        assert_eq!(added.get(Known::XForwardedPort), Some(&b"8080"[..]), "{options}");
    }
    let scheme = json!({"scheme_header_transformation": {"scheme_to_overwrite": "https"}});
    let head = prepared(&scheme, "1.2.3.4", "X-Forwarded-Proto: http\r\n").expect("routed");
    assert_eq!(
        (head.scheme(), head.fields.get(Known::XForwardedProto)),
        (&b"https"[..], Some(&b"https"[..]))
    );
}

#[test]
fn connection_cannot_take_away_what_others_rely_on() {
    for name in ["x-forwarded-for", "Authorization", "cookie", "x-envoy-anything", ":path", "host"] {
        let lines = format!("Connection: close, {name}\r\n");
        let stopped = prepared(&json!({}), "1.2.3.4", &lines).err();
        assert_eq!(stopped, Some(Stop::Refuse(Refusal::CONNECTION)), "{name}");
    }
    let head =
        prepared(&json!({}), "1.2.3.4", "Connection: X-Hop, te\r\nX-Hop: 1\r\nTE: trailers\r\nx-a: 1\r\n");
    let head = head.expect("routed");
    let names: Vec<&[u8]> = head.fields.iter().map(|(_, name, _)| name).collect();
    assert_eq!(names, [&b"x-a"[..], b"te", b"x-forwarded-proto"]);
}

#[test]
fn controls_belong_to_internal_clients_and_a_forced_trace_shows_its_id() {
    let controls =
        "X-Envoy-Force-Trace: 1\r\nX-Envoy-Max-Retries: 3\r\nX-Envoy-Upstream-Alt-Stat-Name: x\r\n\
                    X-Request-Id: mine\r\n";
    for (forwarded, internal) in [("10.1.1.1", true), ("1.2.3.4", false)] {
        let lines = format!("X-Forwarded-For: {forwarded}\r\n{controls}");
        let request = prepared(&json!({}), "9.9.9.9", &lines).expect("routed");
        assert_eq!(request.fields.has(Known::XEnvoyMaxRetries), internal);
        assert!(!request.fields.has(Known::XEnvoyUpstreamAltStatName));
        let mut response = ResponseHead::new(Fields::recycled(), 200, Protocol::Http11);
        let worker = worker();
        finish_response(&manager(&json!({})), &mut response, Some(&request), true, &worker, Instant::now());
        assert_eq!(response.fields.get(Known::XRequestId), internal.then_some(&b"mine"[..]));
    }
}
