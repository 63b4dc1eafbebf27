//! `envoy.filters.http.ext_proc` with bodies that pass while they are looked at, and with trailers. How a body comes in
//! pieces is nobody's promise: what the processor makes of them does not depend on that, and messages are not counted.

use super::bootstrap::{endpoints, Bootstrap};
use super::case::{case, Case};
use super::ext_proc::processor;
use super::filters::{check_but, filter};
use super::grpc_service::HTTP2;
use crate::harness::http1::Message;
use crate::harness::origin::Answer;

pub(super) const TRAILERS: &str = "http_protocol_options: { enable_trailers: true }";
pub(super) const TRAILERS_UPSTREAM: &str = r#"typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config:
      http_protocol_options: { enable_trailers: true }"#;

pub(super) fn origin(request: &Message) -> Answer {
    if request.target().contains("plain") {
        return Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nten bytes!");
    }
    if request.target().contains("empty") {
        return Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    }
    Answer::raw(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx-t: old\r\nx-gone: 1\r\n\r\n",
    )
}

#[tokio::test]
async fn processor_of_pieces_and_trailers() {
    let port = processor().await;
    let options =
        |more: &str| format!("grpc_service: {{ envoy_grpc: {{ cluster_name: proc }}, timeout: 5s }}{more}");
    let pieces = "request_body_mode: STREAMED, response_body_mode: STREAMED";
    let trailers = "request_trailer_mode: SEND, response_trailer_mode: SEND";
    let hosts =
        "- { name: all, domains: ['*'], routes: [ { match: { prefix: / }, route: { cluster: a-t } } ] }";
    let mut bootstrap = Bootstrap::new()
        .cluster("proc", &format!("{}\n{HTTP2}", endpoints(&[&port.to_string()])))
        .origin("a-t", TRAILERS_UPSTREAM);
    for (name, more) in [
        ("pieces", format!(", processing_mode: {{ {pieces} }}")),
        ("both", format!(", processing_mode: {{ {pieces}, {trailers} }}")),
        ("open", format!(", failure_mode_allow: true, processing_mode: {{ {pieces}, {trailers} }}")),
        ("ends", format!(", processing_mode: {{ {trailers} }}")),
        ("whole", format!(", processing_mode: {{ request_body_mode: BUFFERED, response_body_mode: BUFFERED, {trailers} }}")),
        ("partial", format!(", processing_mode: {{ request_body_mode: BUFFERED_PARTIAL, response_body_mode: BUFFERED_PARTIAL, {trailers} }}")),
        ("override", ", allow_mode_override: true".to_string()),
    ] {
        bootstrap = bootstrap
            .listener(name, TRAILERS, hosts)
            .filters(name, &filter("proc", "ext_proc.v3.ExternalProcessor", &options(&more)));
    }
    // Without its head, nothing of a request has come when its pieces are first looked at.
    let late = ", message_timeout: 5s, processing_mode: { request_header_mode: SKIP, response_header_mode: SKIP, request_body_mode: STREAMED }";
    bootstrap = bootstrap
        .listener("late", "request_timeout: 0.4s", hosts)
        .filters("late", &filter("proc", "ext_proc.v3.ExternalProcessor", &options(late)));
    let mut cases: Vec<Case> = Vec::new();
    let post = |listener: &'static str, name: &'static str, path: &str| {
        case(listener, name).send("POST", path, "", "ten bytes?").script(origin)
    };
    let chunks = |listener: &'static str, name: &'static str, path: &str| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: t.test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let rest = "3\r\nabc\r\n2\r\nde\r\n0\r\nx-t: old\r\nx-gone: 1\r\n\r\n";
        case(listener, name).raw(format!("{head}{rest}")).script(origin)
    };
    for listener in ["pieces", "both", "open", "ends", "whole", "partial"] {
        for (name, path) in [
            ("length", "/x?plain-pieces"),
            ("length, upper", "/upper?plain-pieces"),
            ("length, cleared", "/clear?plain-pieces"),
            ("length, no response body", "/upper?empty-pieces"),
            ("length, response in chunks", "/upper?pieces"),
            ("length, trailers", "/trail?pieces"),
        ] {
            cases.push(post(listener, name, path));
        }
        for (name, path) in [
            ("chunks", "/x?pieces"),
            ("chunks, upper", "/upper?pieces"),
            ("chunks, response of known length", "/upper?plain-pieces"),
            ("chunks, trailers", "/trail?pieces"),
        ] {
            cases.push(chunks(listener, name, path));
        }
        cases.push(case(listener, "no body").get("/upper?plain-pieces", "").script(origin));
    }
    // The client's time is over when it has sent all.
    cases.push(case("late", "late").send("POST", "/x?plain-pieces", "", "late").script(origin));
    // More than is held at a time.
    let large = "abcdefghij".repeat(30_000);
    cases.push(case("pieces", "large").send("POST", "/upper?plain-pieces", "", &large).script(origin));
    // With a length, Envoy keeps it, whatever becomes of the body.
    cases.push(chunks("override", "override", "/override?pieces"));
    for (name, path) in [
        ("denied", "/deny-body?plain-pieces"),
        ("slow", "/slow-body?plain-pieces"),
        ("failed", "/fail-body?plain-pieces"),
        ("ended", "/end-body?plain-pieces"),
        ("out of turn", "/early-body?plain-pieces"),
    ] {
        cases.push(post("both", name, path));
        cases.push(post("open", name, path));
    }
    let rooms = [
        "http.pieces.ext_proc.",
        "http.both.ext_proc.",
        "http.open.ext_proc.",
        "http.ends.ext_proc.",
        "http.whole.ext_proc.",
        "http.partial.ext_proc.",
        "http.override.ext_proc.",
    ];
    let uncounted = ["server_half_closed", "streams_closed", "stream_msgs_sent", "stream_msgs_received"];
    check_but(bootstrap, cases, &rooms, &uncounted).await;
}
