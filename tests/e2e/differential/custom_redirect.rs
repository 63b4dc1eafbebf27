//! Answers from elsewhere in place of others (`RedirectPolicy` of `envoy.filters.http.custom_response`), as in
//! [`super::filters`].

use super::bootstrap::Bootstrap;
use super::case::{case, Case};
use super::filters::{check_but, filter, host};
use super::run_side;
use crate::harness::client::Client;
use crate::harness::http1::Message;
use crate::harness::origin::Answer;
use crate::harness::proxy::Kind;

fn rule(status: u16, policy: &str) -> String {
    format!("{{ predicate: {{ single_predicate: {{ input: {{ name: i, typed_config: {{ '@type': type.googleapis.com/envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput }} }}, value_match: {{ exact: '{status}' }} }} }}, on_match: {{ action: {{ name: a, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.http.custom_response.redirect_policy.v3.RedirectPolicy, {policy} }} }} }} }}")
}

/// Paths that begin with a status have an answer of that status.
fn script(request: &Message) -> Answer {
    match request.target().get(1..4).and_then(|status| status.parse().ok()) {
        Some(302) => {
            Answer::raw("HTTP/1.1 302 Found\r\nlocation: http://b.test/after\r\ncontent-length: 0\r\n\r\n")
        }
        Some(status) => {
            Answer::raw(format!("HTTP/1.1 {status} Some\r\nx-a: orig\r\ncontent-length: 4\r\n\r\nbody"))
        }
        None => Answer::raw("HTTP/1.1 200 OK\r\nx-a: other\r\ncontent-length: 5\r\n\r\nother"),
    }
}

#[tokio::test]
async fn answers_from_elsewhere() {
    let rules = [
        rule(500, "uri: 'http://b.test/error?x=1'"),
        rule(501, "uri: 'http://b.test/error', status_code: 299, response_headers_to_add: [ { header: { key: x-was, value: '%RESPONSE_CODE%' } } ], \
            request_headers_to_add: [ { header: { key: x-for, value: '%RESPONSE_CODE% %REQ(:path)%' } } ]"),
        rule(502, "redirect_action: { host_redirect: c.test, path_redirect: /moved, port_redirect: 8443, scheme_redirect: https }"),
        rule(503, "uri: 'http://b.test/nothing/there'"),
        rule(504, "uri: 'http://b.test/direct', status_code: 210"),
        rule(404, "redirect_action: { path_redirect: '/missing?a=b', strip_query: true }"),
        rule(405, "redirect_action: { path_redirect: /missing }"),
        rule(429, "uri: 'http://b.test/302', status_code: 222"),
        rule(505, "uri: 'http://b.test/501', status_code: 233"),
    ];
    let options =
        format!("custom_response_matcher: {{ matcher_list: {{ matchers: [ {} ] }} }}", rules.join(", "));
    let routes = [
        "- { match: { path: /direct }, name: direct, direct_response: { status: 200, body: { inline_string: hi } } }\n",
        "- { match: { path: /302 }, name: moves, route: { cluster: a, internal_redirect_policy: {} } }\n",
        "- { match: { path: /refused }, name: refused, direct_response: { status: 500, body: { inline_string: nope } } }\n",
        "- { match: { safe_regex: { regex: '/[a-z0-9]*' } }, name: all, route: { cluster: a }, response_headers_to_add: [ { header: { key: x-route, value: here } } ] }\n",
    ]
    .concat();
    let mark = |name: &str| {
        let add = format!("{{ append: {{ header: {{ key: x-seen, value: {name} }}, append_action: APPEND_IF_EXISTS_OR_ADD }} }}");
        filter(
            name,
            "header_mutation.v3.HeaderMutation",
            &format!("mutations: {{ request_mutations: [ {add} ], response_mutations: [ {add} ] }}"),
        )
    };
    let chain =
        [mark("last"), filter("cr", "custom_response.v3.CustomResponse", &options), mark("first")].concat();
    let bootstrap = Bootstrap::new().listener("main", "", &host("", &routes)).filters("main", &chain);
    let get = |name: &'static str, path: &str, lines: usize| -> Case {
        case("main", name).get(path, "").script(script).lines(lines)
    };
    let cases = vec![
        get("nothing matches", "/200", 1),
        get("by a URL", "/500", 2),
        get("changed", "/501", 2),
        case("main", "in place of a POST's").send("POST", "/501", "", "hello").script(script).lines(2),
        get("by an action", "/502?q=1", 2),
        get("no route", "/503", 1),
        get("an answer of ours", "/504", 2),
        get("without the query", "/404?q=1", 2),
        get("with the query", "/405?q=1", 2),
        get("in place of one of ours", "/refused", 2),
        get("no route at first", "/nothing/here", 2),
        get("of one that is redirected", "/429", 3),
        get("that is no better", "/505", 2),
    ];
    let rooms = [
        "http.main.downstream_rq_",
        "http.main.custom_response",
        "cluster.a.upstream_rq_",
        "cluster.a.upstream_internal",
    ];
    check_but(bootstrap, cases, &rooms, &["rx_reset_no_error", "http3"]).await;
}

/// The request for another answer asks as the client did, and the client's connection goes on.
#[tokio::test]
async fn what_is_asked_for_head_has_no_body() {
    let rule = rule(500, "uri: 'http://b.test/error'");
    let options = format!("custom_response_matcher: {{ matcher_list: {{ matchers: [ {rule} ] }} }}");
    let bootstrap = Bootstrap::new()
        .listener("main", "", &host("", "- { match: { prefix: / }, route: { cluster: a } }\n"))
        .filters("main", &filter("cr", "custom_response.v3.CustomResponse", &options));
    let side = run_side(Kind::Outrigger, &bootstrap.render()).await;
    side.origins[0].1.answer(|request| match request.start_line.starts_with("HEAD /500 ") {
        true => Answer::raw("HTTP/1.1 500 Some\r\ncontent-length: 4\r\n\r\n"),
        false if request.start_line.starts_with("HEAD ") => {
            Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        }
        false => Answer::ok("other"),
    });
    let mut client = Client::connect(side.proxy.port("main")).await.unwrap();
    let head = client.exchange(b"HEAD /500 HTTP/1.1\r\nHost: t.test\r\n\r\n").await.unwrap();
    assert_eq!((head.status(), head.header("content-length")), (500, Some("5")));
    let get = client.exchange(b"GET /x HTTP/1.1\r\nHost: t.test\r\n\r\n").await.unwrap();
    assert_eq!((get.status(), get.text().as_str()), (200, "other"));
    let asked: Vec<String> = side.origins[0].1.take().into_iter().map(|request| request.start_line).collect();
    assert_eq!(asked, ["HEAD /500 HTTP/1.1", "HEAD /error HTTP/1.1", "GET /x HTTP/1.1"]);
}
