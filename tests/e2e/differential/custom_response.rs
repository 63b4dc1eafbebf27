//! `envoy.filters.http.custom_response`, as in [`super::filters`].

use super::bootstrap::Bootstrap;
use super::case::{case, Case};
use super::filters::{check, filter, host, says};
use crate::harness::origin::Answer;

const TYPE: &str = "custom_response.v3.CustomResponse";

fn looks(input: &str, value: &str) -> String {
    format!("{{ single_predicate: {{ input: {{ name: i, typed_config: {{ '@type': type.googleapis.com/envoy.type.matcher.v3.{input} }} }}, value_match: {{ {value} }} }} }}")
}

fn status(status: &str) -> String {
    looks("HttpResponseStatusCodeMatchInput", &format!("exact: '{status}'"))
}

fn own(own: &str) -> String {
    looks("HttpResponseLocalReplyMatchInput", &format!("exact: '{own}'"))
}

fn header(value: &str) -> String {
    looks("HttpResponseHeaderMatchInput, header_name: X-Kind", value)
}

fn all(tests: &[String]) -> String {
    format!("{{ and_matcher: {{ predicate: [ {} ] }} }}", tests.join(", "))
}

fn rules(rows: &[(String, &str)]) -> String {
    let action = |policy: &str| {
        format!("{{ action: {{ name: a, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy, {policy} }} }} }}")
    };
    // Details that are empty stand in Envoy's log as nothing, in Outrigger's as a dash.
    let told = |policy: &str| match policy.contains("response_code_details") {
        true => policy.to_owned(),
        false => format!("{policy}, response_code_details: changed"),
    };
    let rows: Vec<_> = rows
        .iter()
        .map(|(test, policy)| format!("{{ predicate: {test}, on_match: {} }}", action(&told(policy))))
        .collect();
    format!("custom_response_matcher: {{ matcher_list: {{ matchers: [ {} ] }} }}", rows.join(", "))
}

#[tokio::test]
async fn answers_in_place_of_others() {
    let options = rules(&[
        (status("404"), "body_format: { text_format: 'gone %RESPONSE_CODE% %REQ(:PATH)% %LOCAL_REPLY_BODY% %RESP(x-a)%' }, \
            response_headers_to_add: [ { append_action: OVERWRITE_IF_EXISTS_OR_ADD, header: { key: Content-Type, value: text/html } }, \
            { header: { key: x-was, value: '%RESP(x-a)% %RESPONSE_CODE%' } } ]"),
        (status("403"), "status_code: 410"),
        (status("500"), "body: { inline_string: inner }, body_format: { text_format: '[%LOCAL_REPLY_BODY%]' }, status_code: 200"),
        (all(&[status("503"), own("true")]), "body: { inline_string: ours }"),
        (all(&[status("503"), own("false")]), "body: { inline_string: theirs }"),
        (header("exact: odd"), "body_format: { json_format: { a: '%RESPONSE_CODE%' } }, preserve_response_code_details: true"),
        (header("prefix: ev"), "body: { inline_string: even }, response_code_details: mine"),
        (header("suffix: typed"), "body_format: { text_format: '%PROTOCOL%', content_type: text/css }"),
        (looks("HttpResponseStatusCodeClassMatchInput", "exact: 5xx"), "body: { inline_string: class }"),
        (looks("HttpRequestHeaderMatchInput, header_name: x-ask", "exact: please"), "body: { inline_string: asked }"),
        (format!("{{ not_matcher: {} }}", looks("HttpResponseStatusCodeClassMatchInput", "safe_regex: { google_re2: {}, regex: '[2-5]xx' }")), "body: { inline_string: never }"),
    ]);
    let other = rules(&[(status("404"), "body: { inline_string: of the route }")]);
    let routes = [
        "- { match: { prefix: /dead }, route: { cluster: empty } }\n".to_string(),
        "- { match: { prefix: /refused }, direct_response: { status: 403, body: { inline_string: denied } } }\n".to_string(),
        "- { match: { prefix: /gone }, direct_response: { status: 404, body: { inline_string: denied } } }\n".to_string(),
        format!("- {{ match: {{ prefix: /other }}, route: {{ cluster: a }}, typed_per_filter_config: {{ {} }} }}\n", says("cr", &format!("extensions.filters.http.{TYPE}"), &other)),
        format!("- {{ match: {{ prefix: /off }}, route: {{ cluster: a }}, typed_per_filter_config: {{ {} }} }}\n", says("cr", "config.route.v3.FilterConfig", "disabled: true")),
        "- { match: { prefix: /up }, route: { cluster: a }, response_headers_to_add: [ { header: { key: x-route, value: here } } ] }\n".to_string(),
    ]
    .concat();
    let mark = |name: &str| {
        let add = format!("{{ append: {{ header: {{ key: x-seen, value: {name} }} }} }}");
        filter(
            name,
            "header_mutation.v3.HeaderMutation",
            &format!("mutations: {{ response_mutations: [ {add} ] }}"),
        )
    };
    let chain = [mark("last"), filter("cr", TYPE, &options), mark("first")].concat();
    let bootstrap = Bootstrap::new().listener("main", "", &host("", &routes)).filters("main", &chain);
    let up = |name: &'static str, status: u16, kind: &str| -> Case {
        case("main", name).get("/up", "").answers(Answer::raw(format!(
            "HTTP/1.1 {status} Some\r\nx-a: orig\r\nx-kind: {kind}\r\ncontent-type: a/b\r\ncontent-length: 4\r\n\r\nbody"
        )))
    };
    let plain = |name: &'static str, path: &str, headers: &str| case("main", name).get(path, headers);
    let gone = || Answer::raw("HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\nno");
    let cases = vec![
        up("nothing matches", 200, "none"),
        up("formatted", 404, "none"),
        up("another status", 403, "none"),
        up("a format with a body", 500, "none"),
        up("not ours", 503, "none"),
        up("another of its class", 502, "none"),
        up("by a header, JSON", 200, "odd"),
        up("by a header", 201, "even"),
        up("by a header, with a type", 200, "typed"),
        plain("ours", "/dead", ""),
        plain("no route", "/nothing", ""),
        plain("a direct response", "/refused", ""),
        plain("a direct response, formatted", "/gone", ""),
        plain("gRPC", "/dead", "Content-Type: application/grpc\r\n"),
        plain("by the request", "/up", "X-Ask: please\r\n"),
        plain("of the route", "/other", "").answers(gone()),
        plain("off", "/off", "").answers(gone()),
        case("main", "to HEAD").send("HEAD", "/gone", "", ""),
        case("main", "a body is left").send("POST", "/up", "X-Ask: please\r\n", "hello"),
    ];
    check(
        bootstrap,
        cases,
        &["http.main.downstream_rq_2", "http.main.downstream_rq_4", "http.main.downstream_rq_5"],
    )
    .await;
}

#[tokio::test]
async fn rules_lead_to_other_rules() {
    let answer = |text: &str| {
        format!("action: {{ name: a, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy, body: {{ inline_string: {text} }}, response_code_details: changed }} }}")
    };
    let list = |rows: &[(String, String)]| {
        let rows: Vec<_> = rows
            .iter()
            .map(|(test, then)| format!("{{ predicate: {test}, on_match: {{ {then} }} }}"))
            .collect();
        format!("matcher_list: {{ matchers: [ {} ] }}", rows.join(", "))
    };
    let inner = |rows: &[(String, String)], more: &str| format!("matcher: {{ {}{more} }}", list(rows));
    let class = |class: &str| looks("HttpResponseStatusCodeClassMatchInput", &format!("exact: {class}"));
    let otherwise = |text: &str| format!(", on_no_match: {{ {} }}", answer(text));
    let kind = |kind: &str, text: &str| (header(&format!("exact: {kind}")), answer(text));
    let options = format!(
        "custom_response_matcher: {{ {}, on_no_match: {{ {} }} }}",
        list(&[
            (
                class("4xx"),
                inner(&[(status("404"), inner(&[kind("odd", "deep")], "")), kind("even", "shallow")], "")
            ),
            (status("404"), answer("after")),
            (class("5xx"), inner(&[kind("odd", "odd")], &otherwise("inner"))),
            (status("503"), answer("never")),
        ]),
        inner(&[kind("odd", "left")], ""),
    );
    let bootstrap = Bootstrap::new().listener(
        "main",
        "",
        &host("", "- { match: { prefix: / }, route: { cluster: a } }\n"),
    );
    let bootstrap = bootstrap.filters("main", &filter("cr", TYPE, &options));
    let up = |name: &'static str, status: u16, kind: &str| -> Case {
        case("main", name).get("/up", "").answers(Answer::raw(format!(
            "HTTP/1.1 {status} Some\r\nx-kind: {kind}\r\ncontent-length: 4\r\n\r\nbody"
        )))
    };
    let cases = vec![
        up("two levels", 404, "odd"),
        up("one level", 403, "even"),
        up("the other rule of a level", 404, "even"),
        up("nothing in a level", 404, "none"),
        up("nothing in a level and after it", 403, "odd"),
        up("nothing anywhere", 403, "none"),
        up("a level", 503, "odd"),
        up("what a level has for the rest", 503, "none"),
        up("rules for the rest", 200, "odd"),
        up("rules for the rest that lead nowhere", 200, "none"),
    ];
    check(
        bootstrap,
        cases,
        &["http.main.downstream_rq_2", "http.main.downstream_rq_4", "http.main.downstream_rq_5"],
    )
    .await;
}
