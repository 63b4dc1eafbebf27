//! Header changes.

use super::*;
use crate::telemetry::fixtures::stream;

fn add(key: &str, value: &str, action: &str) -> Value {
    json!({"header": {"key": key, "value": value}, "append_action": action})
}

const APPEND: &str = "APPEND_IF_EXISTS_OR_ADD";
const IF_ABSENT: &str = "ADD_IF_ABSENT";
const OVERWRITE: &str = "OVERWRITE_IF_EXISTS_OR_ADD";
const IF_EXISTS: &str = "OVERWRITE_IF_EXISTS";

fn route_with(fields: Value) -> Value {
    let mut route = named("route", json!({"prefix": "/"}));
    route.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    route
}

fn changed(table: &RouteTable, mut request: Request) -> Request {
    let before = request.clone();
    the_route(table, &before).request_headers.apply_to_request(&mut request, &stream());
    request
}

#[test]
fn append_actions() {
    let request = || Request::get("h", "/").with("old", "0");
    for (action, value_of_old, value_of_new) in [
        (APPEND, vec!["0", "1", "2"], vec!["1", "2"]),
        (IF_ABSENT, vec!["0"], vec!["1", "2"]),
        (OVERWRITE, vec!["2"], vec!["2"]),
        (IF_EXISTS, vec!["2"], vec![]),
    ] {
        let additions: Vec<_> =
            ["1", "2"].iter().flat_map(|v| [add("old", v, action), add("New", v, action)]).collect();
        let table = table_of(json!([route_with(json!({"request_headers_to_add": additions}))]));
        let head = changed(&table, request());
        assert_eq!(head.all("old"), value_of_old, "{action}");
        assert_eq!(head.all("new"), value_of_new, "{action}");
    }
}

#[test]
fn a_stage_removes_then_evaluates_then_overwrites_then_appends() {
    let table = table_of(json!([route_with(json!({
        "request_headers_to_remove": ["gone", "x"],
        "request_headers_to_add": [
            add("x", "1", APPEND),
            add("x", "2", OVERWRITE),
            add("copy-of-x", "%REQ(x)%", APPEND),
            add("copy-of-gone", "%REQ(gone)%", APPEND),
            add("copy-of-kept", "%REQ(kept)%", APPEND),
        ],
    }))]));
    let head = changed(&table, Request::get("h", "/").with("gone", "g").with("x", "0").with("kept", "k"));
    assert_eq!(head.all("x"), ["2", "1"]);
    assert!(head.all("gone").is_empty());
    assert!(head.all("copy-of-x").is_empty());
    assert!(head.all("copy-of-gone").is_empty());
    assert_eq!(head.all("copy-of-kept"), ["k"]);
}

#[test]
fn empty_values_are_left_out_unless_kept() {
    let kept = |value: &str| json!({"header": {"key": format!("kept{}", value.len()), "value": value}, "keep_empty_value": true});
    let table = table_of(json!([route_with(json!({"request_headers_to_add": [
        add("empty", "%REQ(nope)%", APPEND),
        add("literal", "", APPEND),
        kept("%REQ(nope)%"),
        kept(""),
        add("percent", "100%%", APPEND),
        add("compound", "[%REQ(nope)%]", APPEND),
        add("path", "%REQ(:path)% by %PROTOCOL%", APPEND),
        {"header": {"key": "legacy", "value": "1"}, "append": false},
    ]}))]));
    let head = changed(&table, Request::get("h", "/p?q").with("legacy", "0"));
    assert!(head.all("empty").is_empty());
    assert!(head.all("literal").is_empty());
    assert_eq!(head.all("kept11"), [""]);
    assert_eq!(head.all("kept0"), [""]);
    assert_eq!(head.all("percent"), ["100%"]);
    assert_eq!(head.all("compound"), ["[]"]);
    assert_eq!(head.all("path"), ["/p?q by HTTP/1.1"]);
    assert_eq!(head.all("legacy"), ["1"]);
}

fn levels(most_specific_wins: bool) -> RouteTable {
    let at = |level: &str| {
        json!([add("all", level, APPEND), add("last", level, OVERWRITE), add("first", level, IF_ABSENT)])
    };
    table(json!({
        "most_specific_header_mutations_wins": most_specific_wins,
        "request_headers_to_add": at("table"),
        "response_headers_to_add": at("table"),
        "virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "request_headers_to_add": at("host"),
            "response_headers_to_add": at("host"),
            "routes": [route_with(json!({
                "request_headers_to_add": at("route"), "response_headers_to_add": at("route")}))],
        }],
    }))
}

#[test]
fn levels_apply_in_envoys_order() {
    for (most_specific_wins, order) in
        [(false, ["route", "host", "table"]), (true, ["table", "host", "route"])]
    {
        let table = levels(most_specific_wins);
        let request = changed(&table, Request::get("h", "/"));
        let mut response = Request::default();
        let original = Request::get("h", "/");
        the_route(&table, &original).response_headers.apply_to_response(
            &mut response,
            &stream(),
            Some(&original),
        );
        for head in [request, response] {
            assert_eq!(head.all("all"), order);
            assert_eq!(head.all("last"), [order[2]]);
            assert_eq!(head.all("first"), [order[0]]);
        }
    }
}

#[test]
fn response_formats_see_both_heads() {
    let table = table_of(json!([route_with(json!({"response_headers_to_add": [
        add("x-path", "%REQ(:path)%", APPEND), add("x-was", "%RESP(server)%", APPEND)],
        "response_headers_to_remove": ["x-secret"]}))]));
    let request = Request::get("h", "/p");
    let mut response = Request::default().with("server", "origin").with("x-secret", "s");
    the_route(&table, &request).response_headers.apply_to_response(&mut response, &stream(), Some(&request));
    assert_eq!(response.all("x-path"), ["/p"]);
    assert_eq!(response.all("x-was"), ["origin"]);
    assert!(response.all("x-secret").is_empty());
}

#[test]
fn nothing_to_do_is_known() {
    let table = table_of(json!([named("route", json!({"prefix": "/"}))]));
    assert!(the_route(&table, &Request::get("h", "/")).request_headers.is_empty());
    assert!(!the_route(&levels(false), &Request::get("h", "/")).request_headers.is_empty());
}
