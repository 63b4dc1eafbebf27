//! Filters that matchers skip, and matchers with fields that few set.

use super::BUT;
use crate::differential::bootstrap::Bootstrap;
use crate::differential::case::{case, Case};
use crate::differential::filters::check_but;

fn conditional(matcher: &str) -> String {
    format!(
        "- name: conditional\n  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher\n    extension_config: {{ name: set, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {{ http_status: 418, percentage: {{ numerator: 100 }} }} }} }}\n    xds_matcher:\n{matcher}"
    )
}

const SKIP: &str = "{ action: { name: skip, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.common.matcher.action.v3.SkipFilter } } }";

fn header(name: &str) -> String {
    format!("input: {{ name: request-headers, typed_config: {{ \"@type\": type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: {name} }} }}")
}

#[tokio::test]
async fn filters_under_conditions() {
    let exact = format!(
        "      matcher_tree: {{ {}, exact_match_map: {{ map: {{ skip: {SKIP} }} }} }}\n",
        header("x-what")
    );
    let prefix = format!(
        "      matcher_tree: {{ {}, prefix_match_map: {{ map: {{ sk: {SKIP} }} }} }}\n",
        header("x-what")
    );
    let predicate =
        |name: &str, value: &str| format!("single_predicate: {{ {}, value_match: {value} }}", header(name));
    let one = predicate("x-what", "{ exact: skip }");
    let other = predicate("x-other", "{ prefix: s }");
    let list = |predicate: &str| {
        format!(
            "      matcher_list: {{ matchers: [ {{ predicate: {{ {predicate} }}, on_match: {SKIP} }} ] }}\n"
        )
    };
    let kinds = [
        ("exact", exact),
        ("prefix", prefix),
        ("single", list(&one)),
        ("and", list(&format!("and_matcher: {{ predicate: [ {{ {one} }}, {{ {other} }} ] }}"))),
        ("or", list(&format!("or_matcher: {{ predicate: [ {{ {one} }}, {{ {other} }} ] }}"))),
        ("not", list(&format!("not_matcher: {{ {one} }}"))),
        (
            "otherwise",
            format!("{}      on_no_match: {SKIP}\n", list(&predicate("x-what", "{ exact: never }"))),
        ),
        ("regex", list(&predicate("x-what", "{ safe_regex: { google_re2: {}, regex: 's.+p' } }"))),
        ("folded", list(&predicate("x-what", "{ exact: SKIP, ignore_case: true }"))),
    ];
    let mut bootstrap = Bootstrap::new();
    let mut cases: Vec<Case> = Vec::new();
    for (name, matcher) in kinds {
        bootstrap = bootstrap.plain(name, "").filters(name, &conditional(&matcher));
        for (what, headers) in [
            ("nothing", ""),
            ("skip", "X-What: skip\r\n"),
            ("skipped", "X-What: skipped\r\n"),
            ("other", "X-Other: some\r\n"),
            ("both", "X-What: skip\r\nX-Other: some\r\n"),
            ("two", "X-What: skip\r\nX-What: x\r\n"),
        ] {
            cases.push(case(name, format!("{name}: {what}").leak()).get("/", headers));
        }
    }
    check_but(bootstrap, cases, &["http.exact.fault.", "http.and.fault."], BUT).await;
}
