//! `envoy.filters.http.ext_proc` with bodies that the processor takes and gives as it likes, beside other filters, and in
//! front of hosts that cannot be reached: what it makes of a body is what goes on.

use super::bootstrap::{endpoints, Bootstrap};
use super::case::{case, Case};
use super::ext_proc::processor;
use super::ext_proc_streams::{origin, TRAILERS};
use super::filters::{check_but, filter};
use super::grpc_service::HTTP2;
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Origin};
use crate::harness::ports::Silent;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;

const KIND: &str = "ext_proc.v3.ExternalProcessor";
const ALL: &str =
    "- { name: all, domains: ['*'], routes: [ { match: { prefix: / }, route: { cluster: CLUSTER } } ] }";
const RESPONSE: &str = "response_body_mode: FULL_DUPLEX_STREAMED, response_trailer_mode: SEND";

/// A processor whose processing mode is this.
fn looks(name: &str, mode: &str) -> String {
    let options =
        format!("grpc_service: {{ envoy_grpc: {{ cluster_name: proc }} }}, processing_mode: {{ {mode} }}");
    filter(name, KIND, &options)
}

fn cluster(port: u16) -> String {
    format!("{}\n{HTTP2}", endpoints(&[&port.to_string()]))
}

/// A response passes the last processor first: what that has made of it is what the other is given, even if it was known
/// before the other began.
#[tokio::test]
async fn processors_in_a_row() {
    let port = processor().await;
    let mut bootstrap = Bootstrap::new().cluster("proc", &cluster(port));
    for (name, nearer) in [
        ("two", RESPONSE),
        ("pieces", "response_body_mode: STREAMED, response_header_mode: SKIP"),
        ("whole", "response_body_mode: BUFFERED, response_header_mode: SKIP"),
        ("told", "response_body_mode: STREAMED"),
    ] {
        let filters = looks("one", nearer) + &looks("other", RESPONSE);
        let hosts = ALL.replace("CLUSTER", "a");
        bootstrap = bootstrap.listener(name, TRAILERS, &hosts).filters(name, &filters);
    }
    // An HTTP/1 upstream's trailers are nobody's where nothing says otherwise.
    bootstrap = bootstrap
        .listener("one", TRAILERS, &ALL.replace("CLUSTER", "a"))
        .filters("one", &looks("one", RESPONSE));
    let mut cases: Vec<Case> = Vec::new();
    for listener in ["two", "pieces", "whole", "told", "one"] {
        // Whether a head goes on before more is said of it is a matter of time: nothing is, of pieces.
        for path in ["/x?plain", "/x?", "/rewrite?plain", "/rewrite?", "/upper?plain", "/split?plain"] {
            let path = &format!("{path}-pieces");
            cases.push(case(listener, format!("{listener}, {path}").leak()).get(path, "").script(origin));
        }
    }
    let rooms = ["http.two.ext_proc.", "http.pieces.ext_proc.", "http.whole.ext_proc.", "http.one.ext_proc."];
    let uncounted = ["server_half_closed", "streams_closed", "stream_msgs_sent", "stream_msgs_received"];
    check_but(bootstrap, cases, &rooms, &uncounted).await;
}

/// The same before a compressor.
#[tokio::test]
async fn what_it_gives_is_compressed() {
    let port = processor().await;
    let gzip = "compressor_library: { name: gzip, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip } }";
    let filters = filter("compressor", "compressor.v3.Compressor", gzip) + &looks("proc", RESPONSE);
    let template = Bootstrap::new()
        .cluster("proc", &cluster(port))
        .listener("main", "", &ALL.replace("CLUSTER", "a"))
        .filters("main", &filters)
        .render();
    let origin = Origin::with(true, |_| {
        let text = "0123456789".repeat(20);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n";
        Answer::raw(format!("{head}c8\r\n{text}\r\n0\r\n\r\n"))
    })
    .await;
    let mut kinds = vec![Kind::Outrigger];
    kinds.extend(peers::have(&["envoy"]).then_some(Kind::Envoy));
    for kind in kinds {
        let values = super::bootstrap::origins(origin.port(), origin.port());
        let proxy = Proxy::start(Plan::new(kind, &template, &values)).await;
        let mut client = Client::connect(proxy.port("main")).await.expect("a connection");
        let get = "GET /x HTTP/1.1\r\nHost: t.test\r\nAccept-Encoding: gzip\r\n\r\n";
        let answer = client.exchange(get.as_bytes()).await.expect("an answer");
        assert_eq!(answer.header("content-encoding"), Some("gzip"), "{kind:?}");
        assert!(answer.body.starts_with(&[0x1f, 0x8b]), "{kind:?}: {}", answer.body.escape_ascii());
    }
}

/// What it makes of an answer of our own is held until that is whole, and no more of it than may be.
#[tokio::test]
async fn an_answer_of_ours_does_not_grow_without_end() {
    let port = processor().await;
    let hosts = "- { name: all, domains: ['*'], routes: [ { match: { prefix: / }, direct_response: { status: 200, body: { inline_string: 'ten bytes!' } } } ] }";
    let template = Bootstrap::new()
        .cluster("proc", &cluster(port))
        .listener("main", "", hosts)
        .filters("main", &looks("proc", RESPONSE))
        .render();
    let proxy = Proxy::outrigger(&template, &super::bootstrap::origins(1, 1)).await;
    let mut client = Client::connect(proxy.port("main")).await.expect("a connection");
    for (path, status, body) in
        [("/rewrite", 200, "10 bytes, rewritten"), ("/swarm", 500, "Internal Server Error")]
    {
        let request = format!("GET {path} HTTP/1.1\r\nHost: t.test\r\n\r\n");
        let answer = client.exchange(request.as_bytes()).await.expect("an answer");
        assert_eq!((answer.status(), answer.text().as_str()), (status, body), "{path}");
    }
}

/// What a processor has given of a body, of which nothing has come from the client, is not lost with a host that cannot
/// be reached.
#[tokio::test]
async fn what_it_gives_goes_to_the_next_host() {
    let (port, silent) = (processor().await, Silent::start().await);
    let origin = Origin::start().await;
    let hosts = endpoints(&[&origin.port().to_string(), &silent.port.to_string()]);
    let mode =
        "request_body_mode: FULL_DUPLEX_STREAMED, request_trailer_mode: SEND, response_header_mode: SKIP";
    let template = Bootstrap::new()
        .cluster("proc", &cluster(port))
        .cluster("pair", &hosts)
        .listener("main", "", &ALL.replace("CLUSTER", "pair"))
        .filters("main", &looks("proc", mode))
        .render();
    let proxy = Proxy::outrigger(&template, &super::bootstrap::origins(1, 1)).await;
    let mut client = Client::connect(proxy.port("main")).await.expect("a connection");
    let stat = |name: &'static str| {
        let proxy = &proxy;
        async move { proxy.stats().await.get(name).copied().unwrap_or(0) }
    };
    for count in 1..=4 {
        client
            .send(b"POST /rewrite HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await
            .expect("sent");
        // It has said its word about each head, and three about each request.
        let asked = || async { stat("http.main.ext_proc.stream_msgs_received").await == 3 * count - 2 };
        assert!(eventually(DEADLINE, asked).await, "the head is on its way");
        client.send(b"0\r\n\r\n").await.expect("sent");
        let answer = client.response_within(false, DEADLINE).await.expect("in time").expect("an answer");
        assert_eq!(answer.status(), 200);
        let came = origin.take().pop().expect("a request").text();
        assert_eq!(came, "0 bytes, rewritten");
    }
    assert_eq!(stat("cluster.pair.upstream_cx_connect_timeout").await, 1, "a host did not answer, once");
}
