//! Redirects of upstreams that the proxy follows itself, as in [`super::filters`].

use super::bootstrap::Bootstrap;
use super::case::{case, Case};
use super::filters::{check_but, filter, host, route};
use crate::harness::http1::Message;
use crate::harness::origin::{Answer, Then};

fn row(path: &str, name: &str, policy: &str) -> String {
    format!("- {{ match: {{ prefix: {path} }}, name: {name}, route: {{ cluster: a, {policy} }} }}\n")
}

fn policy(options: &str) -> String {
    format!("internal_redirect_policy: {{ {options} }}")
}

fn predicate(name: &str, config: &str, options: &str) -> String {
    format!("{{ name: {name}, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.internal_redirect.{name}.v3.{config}{options} }} }}")
}

fn hosts() -> String {
    let previous = predicate("previous_routes", "PreviousRoutesConfig", "");
    let allowed =
        predicate("allow_listed_routes", "AllowListedRoutesConfig", ", allowed_route_names: [ plain ]");
    let safe = predicate("safe_cross_scheme", "SafeCrossSchemeConfig", "");
    let rows = [
        row("/many", "many", &policy(&format!("max_internal_redirects: 3, redirect_response_codes: [301, 302, 303, 307, 418], predicates: [ {previous} ]"))),
        row("/twice", "twice", &policy("max_internal_redirects: 2")),
        row("/none", "none", &policy("max_internal_redirects: 0")),
        row("/listed", "listed", &policy(&format!("predicates: [ {allowed} ]"))),
        row("/safe", "safe", &policy(&format!("allow_cross_scheme_redirect: true, predicates: [ {safe} ]"))),
        row("/cross", "cross", &policy("allow_cross_scheme_redirect: true")),
        row("/copies", "copies", &policy("response_headers_to_copy: [x-a, x-b, x-c]")),
        row("/rewrites", "rewrites", &format!("prefix_rewrite: /new, host_rewrite_literal: other.test, {}", policy(""))),
        row("/older", "older", "internal_redirect_action: HANDLE_INTERNAL_REDIRECT, max_internal_redirects: 2"),
        row("/left", "left", "internal_redirect_action: PASS_THROUGH_INTERNAL_REDIRECT"),
        row("/retried", "retried", &format!("timeout: 0s, retry_policy: {{ retry_on: retriable-status-codes, retriable_status_codes: [302], retry_back_off: {{ base_interval: 0.001s }} }}, {}", policy(""))),
        row("/redirects", "redirects", &policy("")),
        format!(
            "- {{ match: {{ prefix: /small }}, name: small, per_request_buffer_limit_bytes: 4, route: {{ cluster: a, {} }} }}\n",
            policy("")
        ),
        "- { match: { prefix: /direct }, name: direct, direct_response: { status: 200, body: { inline_string: hi } } }\n".into(),
        "- { match: { prefix: /b }, name: other, route: { cluster: b } }\n".into(),
        "- { match: { prefix: /plain }, name: plain, route: { cluster: a } }\n".into(),
    ];
    let tls = "- name: tls\n  domains: [tls.test]\n  require_tls: ALL\n  routes:\n  - { match: { prefix: / }, route: { cluster: a } }\n";
    host("  include_request_attempt_count: true\n", &rows.concat()) + tls
}

/// The request whose `x-step` is `n` is told to go to the `n`th of `steps`.
fn moves(
    steps: &'static [(u16, &'static str)],
) -> impl Fn(&Message) -> Answer + Clone + Send + Sync + 'static {
    move |request| {
        let step = steps.iter().find(|(_, url)| {
            // A location is not asked for twice.
            !url.ends_with(request.target()) && at(steps, request).is_some_and(|next| next == *url)
        });
        match step {
            Some((status, url)) => moved(*status, url),
            None => Answer::ok("ok"),
        }
    }
}

/// Where the request for one of `steps` is to go.
fn at(steps: &[(u16, &'static str)], request: &Message) -> Option<&'static str> {
    let here = steps.iter().rposition(|(_, url)| {
        let path = url.splitn(4, '/').nth(3).unwrap_or_default();
        request.target().strip_prefix('/').is_some_and(|target| target == path)
    });
    steps.get(here.map_or(0, |here| here + 1)).map(|(_, url)| *url)
}

fn moved(status: u16, location: &str) -> Answer {
    Answer::raw(format!(
        "HTTP/1.1 {status} Moved\r\nlocation: {location}\r\nx-a: 1\r\nx-a: 2\r\nx-b: theirs\r\ncontent-length: 5\r\n\r\nmoved"
    ))
}

const STATS: &[&str] = &[
    "http.main.passthrough_internal_redirect",
    "http.main.downstream_rq_",
    "http.main.rq_",
    "cluster.a.upstream_internal_redirect",
    "cluster.a.upstream_rq_",
    "cluster.b.upstream_rq_",
    "cluster.a.upstream_cx_destroy",
    "cluster.a.retry_or_shadow",
];

/// Statistics that there are not.
const OTHERS: &[&str] = &["rx_reset_no_error", "http3"];

fn main() -> Bootstrap {
    let seen = "mutations: { request_mutations: [ { append: { header: { key: x-seen, value: q }, append_action: APPEND_IF_EXISTS_OR_ADD } } ], \
        response_mutations: [ { append: { header: { key: x-seen, value: r } } } ] }";
    Bootstrap::new()
        .listener("main", "", &hosts())
        .filters("main", &filter("seen", "header_mutation.v3.HeaderMutation", seen))
}

fn get(name: &'static str, path: &str, steps: &'static [(u16, &'static str)], lines: usize) -> Case {
    case("main", name).get(path, "").script(moves(steps)).lines(lines)
}

fn post(name: &'static str, path: &str, steps: &'static [(u16, &'static str)], lines: usize) -> Case {
    case("main", name).send("POST", path, "", "hello").script(moves(steps)).lines(lines)
}

#[tokio::test]
async fn redirects_that_are_followed() {
    let cases = vec![
        get("one", "/redirects?a=b", &[(302, "http://b.test/plain/x?y=1#frag")], 2),
        get("to another cluster", "/redirects", &[(302, "http://b.test/b")], 2),
        get("with a port", "/redirects", &[(302, "http://u:p@b.test:81/plain")], 2),
        get("in capitals", "/redirects", &[(302, "HTTP://b.test/plain")], 2),
        get("to an answer of ours", "/redirects", &[(302, "http://b.test/direct")], 2),
        get("to where TLS is asked for", "/redirects", &[(302, "http://tls.test/x")], 2),
        get("of the older kind", "/older", &[(302, "http://b.test/plain")], 2),
        get("to another scheme", "/cross", &[(302, "https://b.test/plain")], 2),
        get("to a strange scheme", "/cross", &[(302, "ftp://b.test/plain")], 2),
        get("with copied fields", "/copies", &[(302, "http://b.test/plain")], 2),
        case("main", "with copied fields in place of others")
            .get("/copies", "x-b: ours\r\nx-c: ours\r\n")
            .script(moves(&[(302, "http://b.test/plain")]))
            .lines(2),
        get("after rewrites", "/rewrites/x", &[(302, "http://b.test/plain")], 2)
            .script(|request| match request.target() {
                "/new/x" => moved(302, "http://b.test/plain"),
                _ => Answer::ok("ok"),
            }),
        get("twice", "/twice", &[(302, "http://b.test/twice/b"), (302, "http://c.test/plain")], 3),
        get("after retries", "/retried", &[(302, "http://b.test/plain")], 2),
        get("see other", "/many", &[(303, "http://b.test/plain")], 2),
        post("see other after POST", "/many", &[(303, "http://b.test/plain")], 2),
        case("main", "see other after HEAD")
            .send("HEAD", "/many", "", "")
            .answers_head()
            .script(|request| match request.target() {
                "/many" => Answer::raw("HTTP/1.1 303 Other\r\nlocation: http://b.test/plain\r\n\r\n"),
                _ => Answer::raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"),
            })
            .lines(2),
        post("with a body", "/many", &[(307, "http://b.test/plain")], 2),
        post("with a body, twice", "/twice", &[(302, "http://b.test/twice/b"), (302, "http://b.test/plain")], 3),
        case("main", "with chunks")
            .raw("POST /many HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n")
            .script(moves(&[(307, "http://b.test/plain")]))
            .lines(2),
        case("main", "without a body, on the same connection")
            .get("/redirects", "")
            .script(|request| match request.target() {
                "/redirects" => Answer::raw("HTTP/1.1 302 Moved\r\nlocation: http://b.test/plain\r\ncontent-length: 0\r\n\r\n"),
                _ => Answer::ok("ok"),
            })
            .lines(2),
        case("main", "to a host that hangs up")
            .get("/redirects", "")
            .script(|request| match request.target() {
                "/redirects" => moved(302, "http://b.test/plain"),
                _ => Answer::raw("").then(Then::Close),
            })
            .lines(2),
    ];
    check_but(main(), cases, STATS, OTHERS).await;
}

#[tokio::test]
async fn redirects_that_are_passed_on() {
    let to = |name: &'static str, location: &'static str| {
        case("main", name).get("/redirects", "").answers(moved(302, location))
    };
    let cases = vec![
        to("relative", "/plain"),
        to("without a host", "http:///plain"),
        to("a relative name", "plain"),
        to("relative to the scheme", "//b.test/plain"),
        to("empty", ""),
        to("no address", "http://[/plain"),
        to("no such port", "http://b.test:99999/plain"),
        to("an empty port", "http://b.test:/plain"),
        to("a strange host", "http://b_c.test/plain"),
        to("an escaped host", "http://b%41.test/plain"),
        to("a space", "http://b.test/a b"),
        to("no route", "http://b.test/nothing"),
        to("no path", "http://b.test"),
        to("no path, but a query", "http://b.test?x=1"),
        to("another scheme", "https://b.test/plain"),
        to("a strange scheme", "ftp://b.test/plain"),
        case("main", "no location")
            .get("/redirects", "")
            .answers(Answer::raw("HTTP/1.1 302 Moved\r\ncontent-length: 0\r\n\r\n")),
        case("main", "another status").get("/redirects", "").answers(moved(301, "http://b.test/plain")),
        case("main", "no redirect").get("/many", "").answers(moved(418, "http://b.test/plain")),
        case("main", "none may be followed").get("/none", "").answers(moved(302, "http://b.test/plain")),
        case("main", "none is followed").get("/left", "").answers(moved(302, "http://b.test/plain")),
        case("main", "not to safety").get("/safe", "").answers(moved(302, "https://b.test/plain")),
        case("main", "not listed").get("/listed", "").answers(moved(302, "http://b.test/direct")),
        case("main", "a body that was not kept")
            .send("POST", "/small", "", "hello")
            .answers(moved(302, "http://b.test/plain")),
        case("main", "heads as they were rewritten")
            .get("/rewrites/x", "")
            .answers(moved(302, "https://b.test/plain")),
        get(
            "the second",
            "/redirects",
            &[(302, "http://b.test/redirects/b"), (302, "http://b.test/plain")],
            2,
        ),
        get(
            "the same again",
            "/many",
            &[(302, "http://b.test/many/b"), (302, "http://b.test/many/c"), (302, "http://b.test/plain")],
            2,
        ),
    ];
    check_but(main(), cases, STATS, OTHERS).await;
}

/// The second time the connection manager looks at the path as at any other, and filters see the body again.
#[tokio::test]
async fn a_redirected_request_is_seen_as_another() {
    let rows = [
        row("/redirects", "redirects", &policy("max_internal_redirects: 2")),
        route("/buffered", &[]),
        row("/plain", "plain", ""),
    ];
    let options =
        "normalize_path: true\nmerge_slashes: true\nstrip_any_host_port: true\nuse_remote_address: true";
    let bootstrap = Bootstrap::new()
        .listener("main", options, &host("", &rows.concat()))
        .filters("main", &filter("buffer", "buffer.v3.Buffer", "max_request_bytes: 100"));
    let cases = vec![
        get("dots", "/redirects", &[(302, "http://b.test:81/plain/../plain//x")], 2)
            .script(|request| match request.target() {
                "/redirects" => moved(302, "http://b.test:81/plain/../plain//x"),
                _ => Answer::ok("ok"),
            }),
        get("dots that lead nowhere", "/redirects", &[(302, "http://b.test/plain/%2e%2e/x")], 2),
        post("a body that was waited for", "/redirects", &[(302, "http://b.test/buffered")], 2),
        case("main", "chunks that were waited for")
            .raw("POST /redirects HTTP/1.1\r\nHost: t.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n")
            .script(moves(&[(302, "http://b.test/buffered")]))
            .lines(2),
        post("an empty body that was waited for", "/redirects", &[(302, "http://b.test/buffered")], 2),
    ];
    check_but(bootstrap, cases, STATS, OTHERS).await;
}
