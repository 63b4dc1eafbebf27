//! Answers that come before their request is complete, and responses that are not the last: what becomes of the
//! connection, and what is counted.

use super::BUT;
use crate::differential::bootstrap::Bootstrap;
use crate::differential::case::{case, Case, Step};
use crate::differential::filters::{check_but, filter, host, route, says};
use crate::harness::origin::Answer;

const ROUTES: &str = "- { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } } }\n\
     - { match: { prefix: /again }, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: 5xx, num_retries: 1 } } }\n\
     - { match: { prefix: /refused }, route: { cluster: refused } }\n\
     - { match: { prefix: /x }, route: { cluster: a } }\n";

fn post(listener: &'static str, name: &'static str, path: &str, headers: &str, body: &str) -> Case {
    case(listener, name).raw(format!("POST {path} HTTP/1.1\r\nHost: t.test\r\n{headers}\r\n{body}"))
}

#[tokio::test]
async fn requests_that_are_too_large() {
    const PER_ROUTE: &str = "extensions.filters.http.buffer.v3.BufferPerRoute";
    let routes = route("/small", &[says("buffer", PER_ROUTE, "buffer: { max_request_bytes: 4 }")]) + ROUTES;
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host("", &routes))
        .filters("main", &filter("buffer", "buffer.v3.Buffer", "max_request_bytes: 100000"));
    let chunked = "Transfer-Encoding: chunked\r\n";
    let cases = vec![
        post("main", "at once", "/small", "Content-Length: 5\r\n", "hello"),
        post("main", "in pieces", "/small", "Content-Length: 8\r\n", "four")
            .step(Step::Send(b"more".to_vec())),
        post("main", "the rest does not come", "/small", "Content-Length: 80\r\n", "hello"),
        post("main", "chunks", "/small", chunked, "5\r\nhello\r\n0\r\n\r\n"),
        post("main", "two chunks", "/small", chunked, "3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"),
        post("main", "chunks without an end", "/small", chunked, "5\r\nhello\r\n"),
        post("main", "it fits", "/small", "Content-Length: 4\r\n", "four"),
    ];
    let rooms = ["http.main.downstream_rq_", "http.main.downstream_cx_destroy"];
    check_but(bootstrap, cases, &rooms, BUT).await;
}

#[tokio::test]
async fn answers_before_the_end() {
    let bootstrap = Bootstrap::new().listener("main", "", &host("", ROUTES));
    let cases = vec![
        post("main", "direct, all is there", "/direct", "Content-Length: 5\r\n", "hello"),
        post("main", "direct, nothing is there", "/direct", "Content-Length: 5\r\n", ""),
        post(
            "main",
            "direct, chunks",
            "/direct",
            "Transfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        post("main", "direct, no body", "/direct", "Content-Length: 0\r\n", ""),
        post("main", "no route", "/none", "Content-Length: 5\r\n", "hello"),
        post("main", "the origin is quick", "/x", "Content-Length: 5\r\n", "he")
            .answers(Answer::ok("quick").at_head())
            .partial(),
        post("main", "no length", "/x", "Content-Length: five\r\n", "hello"),
        post("main", "no chunk", "/x", "Transfer-Encoding: chunked\r\n", "zz\r\n").partial(),
        post("main", "it is all there", "/x", "Content-Length: 5\r\n", "hello"),
    ];
    check_but(bootstrap, cases, &["http.main.downstream_rq_"], BUT).await;
}

#[tokio::test]
async fn responses_that_are_not_the_last() {
    let bootstrap = Bootstrap::new().listener("main", "", &host("", ROUTES)).listener(
        "passing",
        "proxy_100_continue: true\n",
        &host("", ROUTES),
    );
    let expect = "Content-Length: 5\r\nExpect: 100-continue\r\n";
    let granted = || Answer::ok("ok").interim("HTTP/1.1 100 Continue\r\n\r\n");
    let then_hello = |case: Case| case.step(Step::Read).step(Step::Send(b"hello".to_vec()));
    let mut cases = vec![
        then_hello(post("main", "expected", "/x", expect, "")),
        post("main", "expected and sent", "/x", expect, "hello"),
        then_hello(post("passing", "passed on", "/x", expect, "").answers(granted())),
        post("passing", "refused", "/x", expect, "")
            .answers(Answer::status(417, "Expectation Failed", "").at_head()),
    ];
    for listener in ["main", "passing"] {
        for status in [100, 102, 103, 104, 105, 199] {
            let interim = format!("HTTP/1.1 {status} Some\r\nx-early: 1\r\n\r\n");
            let name = format!("{listener}: {status} unasked").leak();
            cases.push(case(listener, name).get("/x", "").answers(Answer::ok("ok").interim(&interim)));
        }
        let early = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
        let busy = || Answer::status(503, "Busy", "busy").interim(early);
        let name = |what| -> &'static str { format!("{listener}: {what}").leak() };
        cases.extend([
            case(listener, name("no retry after one")).get("/again", "").answers(busy()),
            case(listener, name("direct")).get("/direct", "Expect: 100-continue\r\n"),
        ]);
    }
    let rooms = ["http.main.downstream_rq_", "http.passing.downstream_rq_", "cluster.a.upstream_rq_"];
    check_but(bootstrap, cases, &rooms, BUT).await;
}
