//! `envoy.filters.http.bandwidth_limit`, as in [`super::filters`]. How long bodies take depends on the moments at which
//! their pieces come; compared is that they take their time, and what is counted of them.

use super::bootstrap::Bootstrap;
use super::case::case;
use super::filters::{check_but, filter, host, says};
use super::{run_side, Side};
use crate::harness::client::Client;
use crate::harness::http1::Message;
use crate::harness::origin::Answer;
use crate::harness::proxy::Kind;
use crate::peers;
use std::time::{Duration, Instant};

const TYPE: &str = "bandwidth_limit.v3.BandwidthLimit";

fn bootstrap() -> Bootstrap {
    let own = "stat_prefix: own, enable_mode: RESPONSE, limit_kbps: 4";
    let routes = [
        "- { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } } }\n"
            .to_owned(),
        format!(
            "- {{ match: {{ prefix: /own }}, route: {{ cluster: a }}, typed_per_filter_config: {{ {} }} }}\n",
            says("bandwidth", &format!("extensions.filters.http.{TYPE}"), own)
        ),
        format!(
            "- {{ match: {{ prefix: /off }}, route: {{ cluster: a }}, typed_per_filter_config: {{ {} }} }}\n",
            says("bandwidth", "config.route.v3.FilterConfig", "disabled: true")
        ),
        "- { match: { prefix: / }, route: { cluster: a } }\n".to_owned(),
    ]
    .concat();
    let mut bootstrap = Bootstrap::new();
    for (name, options) in [
        ("main", "enable_mode: REQUEST_AND_RESPONSE, limit_kbps: 10, fill_interval: 0.1s"),
        ("request", "enable_mode: REQUEST, limit_kbps: 4"),
        ("response", "enable_mode: RESPONSE, limit_kbps: 4"),
        ("told", "enable_mode: RESPONSE, limit_kbps: 4, enable_response_trailers: true, response_trailer_prefix: my"),
        ("none", "limit_kbps: 1"),
        ("switched", "enable_mode: RESPONSE, limit_kbps: 1, runtime_enabled: { default_value: false, runtime_key: bandwidth.on }"),
    ] {
        let filter = filter("bandwidth", TYPE, &format!("stat_prefix: b-{name}, {options}"));
        let trailers = "http_protocol_options: { enable_trailers: true }";
        bootstrap = bootstrap.listener(name, trailers, &host("", &routes)).filters(name, &filter);
    }
    bootstrap
}

#[tokio::test]
async fn bodies_are_counted() {
    let post = |listener: &'static str, name: &'static str, path: &str| {
        case(listener, name).send("POST", path, "", "hello")
    };
    let chunked =
        Answer::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n");
    let cases = vec![
        case("main", "no body").get("/x", ""),
        case("main", "no body at all").get("/x", "").answers(Answer::status(204, "No Content", "")),
        case("main", "to HEAD").send("HEAD", "/x", "", "").answers_head(),
        post("main", "both", "/x"),
        case("main", "chunks")
            .raw("POST /x HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
            .answers(chunked.clone()),
        post("request", "requests", "/x"),
        post("response", "responses", "/x"),
        case("response", "trailers").get("/x", "").answers(chunked),
        post("main", "of a route", "/own"),
        post("main", "off", "/off"),
        post("none", "not limited", "/x"),
        post("none", "not limited but by the route", "/own"),
        post("switched", "off for now", "/x"),
    ];
    let rooms = ["b-main.", "b-request.", "b-response.", "b-none.", "b-switched.", "own."];
    // What the last piece was is a matter of luck.
    check_but(bootstrap(), cases, &rooms, &["incoming_size", "allowed_size", "duration"]).await;
}

async fn timed(side: &Side, listener: &str, request: &[u8]) -> (Duration, Message) {
    let mut client = Client::connect(side.proxy.port(listener)).await.unwrap();
    let start = Instant::now();
    let answer = client.exchange(request).await.unwrap();
    (start.elapsed(), answer)
}

/// The bucket holds what passes in a second; the rest takes its time.
#[tokio::test]
async fn bodies_take_their_time() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let template = bootstrap().render();
    for kind in [Kind::Envoy, Kind::Outrigger] {
        let side = run_side(kind, &template).await;
        let body = "x".repeat(6 << 10);
        let long = body.clone();
        side.origins[0].1.answer(move |request| match request.target() {
            "/long" => Answer::raw(format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
                long.len()
            )),
            _ => Answer::ok("ok"),
        });
        let post =
            format!("POST /x HTTP/1.1\r\nHost: t.test\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let (up, down) = tokio::join!(
            timed(&side, "request", post.as_bytes()),
            timed(&side, "told", b"GET /long HTTP/1.1\r\nHost: t.test\r\n\r\n"),
        );
        let enough = Duration::from_millis(350)..Duration::from_millis(2500);
        assert!(enough.contains(&up.0) && up.1.status() == 200, "{kind:?}: {:?}", up.0);
        assert!(enough.contains(&down.0) && down.1.text() == body, "{kind:?}: {:?}", down.0);
        let trailers: Vec<&str> = down.1.trailers.iter().map(|(name, _)| name.as_str()).collect();
        let told = ["my-bandwidth-response-delay-ms", "my-bandwidth-response-filter-delay-ms"];
        assert_eq!(trailers, told, "{kind:?}");
        let stats = side.proxy.stats().await;
        for name in [
            "b-request.http_bandwidth_limit.request_enforced",
            "b-told.http_bandwidth_limit.response_enforced",
        ] {
            assert!(stats.get(name).is_some_and(|count| *count > 0), "{kind:?}: {name}");
        }
    }
}
