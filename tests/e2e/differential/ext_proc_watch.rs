//! `envoy.filters.http.ext_proc` with a processor that only watches.

use super::bootstrap::{endpoints, Bootstrap};
use super::case::{case, Case};
use super::ext_proc::{noting, processor, Told};
use super::ext_proc_streams::{origin, TRAILERS, TRAILERS_UPSTREAM};
use super::filters::{check_but, filter};
use super::grpc_service::{asked_by_both, HTTP2};

pub(super) const KIND: &str = "ext_proc.v3.ExternalProcessor";

#[tokio::test]
async fn processor_that_watches() {
    let told = Told::default();
    let (port, other) = (noting(told.clone()).await, processor().await);
    let options = |cluster: &str, more: &str| {
        format!("grpc_service: {{ envoy_grpc: {{ cluster_name: {cluster} }}, timeout: 5s }}, observability_mode: true, deferred_close_timeout: 0.1s{more}")
    };
    let trailers = "request_trailer_mode: SEND, response_trailer_mode: SEND";
    let pieces = "request_body_mode: STREAMED, response_body_mode: STREAMED";
    let whole = "request_body_mode: BUFFERED, response_body_mode: BUFFERED_PARTIAL";
    let routes = "[ { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: 'ten bytes!' } } }, { match: { prefix: / }, route: { cluster: a-t } } ]";
    let hosts = format!("- {{ name: all, domains: ['*'], routes: {routes} }}");
    let mut bootstrap = Bootstrap::new()
        .cluster("proc", &format!("{}\n{HTTP2}", endpoints(&[&port.to_string()])))
        .cluster("other", &format!("{}\n{HTTP2}", endpoints(&[&other.to_string()])))
        .origin("a-t", TRAILERS_UPSTREAM);
    for (name, options) in [
        ("heads", options("proc", "")),
        ("bodies", options("proc", &format!(", processing_mode: {{ {pieces}, {trailers} }}"))),
        ("whole", options("proc", &format!(", processing_mode: {{ {whole}, {trailers} }}"))),
        ("rest", options("proc", &format!(", processing_mode: {{ {pieces}, request_header_mode: SKIP, response_header_mode: SKIP }}"))),
        ("open", options("other", &format!(", failure_mode_allow: true, processing_mode: {{ {pieces}, {trailers} }}"))),
        ("lost", options("refused", ", failure_mode_allow: true")),
    ] {
        bootstrap =
            bootstrap.listener(name, TRAILERS, &hosts).filters(name, &filter("proc", KIND, &options));
    }
    let mut cases: Vec<Case> = Vec::new();
    for listener in ["heads", "bodies", "whole", "rest"] {
        for path in [
            "/x?plain",
            "/change?trailers",
            "/deny?plain",
            "/deny-response?plain",
            "/upper?trailers",
            "/slow?empty",
            "/replace?plain",
            "/direct",
        ] {
            let name = format!("{listener} {path}");
            cases.push(case(listener, name.leak()).send("POST", path, "", "ten bytes?").script(origin));
        }
        let head = "POST /upper?trailers HTTP/1.1\r\nHost: t.test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n";
        let rest = "3\r\nabc\r\n2\r\nde\r\n0\r\nx-t: old\r\nx-gone: 1\r\n\r\n";
        cases.push(case(listener, "chunks").raw(format!("{head}{rest}")).script(origin));
        cases.push(case(listener, "no body").get("/x?plain", "").script(origin));
    }
    for path in ["/x?plain", "/end?plain", "/fail?plain", "/end-body?trailers", "/fail-body?trailers"] {
        cases.push(
            case("open", format!("open {path}").leak()).send("POST", path, "", "ten bytes?").script(origin),
        );
    }
    cases.push(case("lost", "lost").get("/x?plain", "").script(origin));
    let large = "abcdefghij".repeat(100_000);
    cases.push(case("open", "large").send("POST", "/x?plain", "", &large).script(origin));
    let uncounted = [
        "server_half_closed",
        "streams_closed",
        "http.bodies.ext_proc.stream_msgs_sent",
        "http.rest.ext_proc.stream_msgs_sent",
    ];
    let rooms =
        ["http.heads.ext_proc.", "http.bodies.ext_proc.", "http.whole.ext_proc.", "http.rest.ext_proc."];
    check_but(bootstrap, cases, &rooms, &uncounted).await;
    if !crate::peers::have(&["envoy"]) || super::set("OUTRIGGER_E2E_CASE").is_some() {
        return;
    }
    let all = || told.lock().expect("nobody panics with it").clone();
    // What is told is told when the answer has long been there.
    for _ in 0..50 {
        let mut lines = all();
        lines.sort();
        if lines.len() % 2 == 0 && lines.chunks(2).all(|pair| pair[0] == pair[1]) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    asked_by_both(all());
    assert!(all().iter().any(|line| line.contains("[request body ten bytes?.]")), "{:?}", all());
}
