//! Filters and forms of access logs.

use crate::differential::bootstrap::Bootstrap;
use crate::differential::observe::Mask;
use crate::differential::{always, beside::Beside, both_sides, Side};
use crate::harness::client::Client;
use crate::harness::origin::Answer;
use crate::harness::{eventually, DEADLINE};

const FORMAT: &str =
    "log_format: { text_format_source: { inline_string: \"%REQ(:PATH)% %RESPONSE_CODE%\\n\" } }";

/// Filters of logs by the names of their files.
const FILTERS: &[(&str, &str)] = &[
    ("all", ""),
    ("metadata", "metadata_filter: { matcher: { filter: ns, path: [ { key: a } ], value: { string_match: { exact: x } } } }"),
    ("metadata-known", "metadata_filter: { matcher: { filter: ns, path: [ { key: a } ], value: { string_match: { exact: x } } }, match_if_key_not_found: false }"),
    ("metadata-invert", "metadata_filter: { matcher: { filter: ns, path: [ { key: a } ], value: { string_match: { exact: x } }, invert: true } }"),
    ("metadata-number", "metadata_filter: { matcher: { filter: ns, path: [ { key: num } ], value: { double_match: { range: { start: 1, end: 5 } } } }, match_if_key_not_found: false }"),
    ("metadata-or", "metadata_filter: { matcher: { filter: ns, path: [ { key: a } ], value: { or_match: { value_matchers: [ { string_match: { exact: 'y' } }, { string_match: { prefix: x } } ] } } }, match_if_key_not_found: false }"),
    ("metadata-list", "metadata_filter: { matcher: { filter: ns, path: [ { key: l } ], value: { list_match: { one_of: { bool_match: true } } } }, match_if_key_not_found: false }"),
    ("metadata-there", "metadata_filter: { matcher: { filter: ns, path: [ { key: a } ], value: { present_match: true } }, match_if_key_not_found: false }"),
    ("metadata-null", "metadata_filter: { matcher: { filter: ns, path: [ { key: z } ], value: { null_match: {} } }, match_if_key_not_found: false }"),
    ("runtime", "runtime_filter: { runtime_key: log.on, percent_sampled: { numerator: 0 }, use_independent_randomness: true }"),
    ("runtime-off", "runtime_filter: { runtime_key: log.off, percent_sampled: { numerator: 100 }, use_independent_randomness: true }"),
    ("runtime-id", "runtime_filter: { runtime_key: log.none, percent_sampled: { numerator: 50 } }"),
    ("status", "status_code_filter: { comparison: { op: GE, value: { default_value: 400, runtime_key: log.status } } }"),
    ("duration", "duration_filter: { comparison: { op: GE, value: { default_value: 0, runtime_key: log.none } } }"),
    ("header-missing", "header_filter: { header: { name: x-a, string_match: { exact: '1' }, treat_missing_header_as_empty: true, invert_match: true } }"),
    ("flags", "response_flag_filter: {}"),
    ("grpc", "grpc_status_filter: { statuses: [ OK, UNKNOWN ], exclude: true }"),
    ("type", "log_type_filter: { types: [ DownstreamEnd ], exclude: true }"),
    ("cel", "extension_filter: { name: cel, typed_config: { '@type': type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter, expression: \"response.code >= 400 || request.path == '/md'\" } }"),
];

/// Forms of lines by the names of their files.
const FORMS: &[(&str, &str)] = &[
    ("typed", "typed_json_format: { code: '%RESPONSE_CODE%', text: 'is %RESPONSE_CODE%', none: '%REQ(x-none)%', flag: true, number: 15, deep: { list: [ 1, '%REQ(:METHOD)%', null ] } }"),
    ("sorted", "log_format: { json_format: { b: 1, a: '%RESPONSE_CODE%', c: { z: 1, y: '%PROTOCOL%' } }, json_format_options: { sort_properties: true } }"),
    ("omitted", "log_format: { omit_empty_values: true, text_format_source: { inline_string: \"[%REQ(x-none)%] %RESPONSE_CODE%\\n\" } }"),
    ("plain", "format: \"%REQ(:METHOD)% %REQ(x-none)%\\n\""),
    ("json", "json_format: { code: '%RESPONSE_CODE%', none: '%REQ(x-none)%' }"),
];

fn bootstrap() -> Bootstrap {
    let log = |name: &str, filter: &str, form: &str| {
        let filter = if filter.is_empty() { String::new() } else { format!("  filter: {{ {filter} }}\n") };
        format!("- name: file\n{filter}  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog\n    path: \"@dir@/{name}.log\"\n    {form}\n")
    };
    let filters: String = FILTERS.iter().map(|(name, filter)| log(name, filter, FORMAT)).collect();
    let forms: String = FORMS.iter().map(|(name, form)| log(name, "", form)).collect();
    let hosts = "- name: all\n  domains: ['*']\n  routes:\n  - { match: { prefix: /refused }, route: { cluster: refused } }\n  - { match: { prefix: /teapot }, direct_response: { status: 418 } }\n  - { match: { prefix: / }, route: { cluster: a } }\n";
    let noted = "- name: set\n  typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config, request_rules: [ { header: x-md, on_header_present: { metadata_namespace: ns, key: a } }, { header: x-number, on_header_present: { metadata_namespace: ns, key: num, type: NUMBER } } ] }\n";
    Bootstrap::new()
        .listener("main", "", hosts)
        .filters("main", noted)
        .access_logs("main", &(filters + &forms))
        .more("layered_runtime: { layers: [ { name: one, static_layer: { log: { on: 100, off: 0, status: 418 } } } ] }")
}

async fn lines(side: &Side) -> Vec<(&'static str, Vec<String>)> {
    let requests = [
        ("/plain", ""),
        ("/md", "X-Md: x\r\n"),
        ("/other", "X-Md: y\r\nX-A: 1\r\n"),
        ("/number", "X-Number: 3\r\nX-Request-Id: 00000000-0000-4000-8000-000000000001\r\n"),
        ("/large", "X-Number: 7\r\nX-Request-Id: ffffffff-0000-4000-8000-000000000000\r\n"),
        ("/refused", "X-Request-Id: 00000001-0000-4000-8000-000000000063\r\n"),
        ("/teapot", "X-Md: xx\r\n"),
        ("/grpc", "Content-Type: application/grpc\r\n"),
        ("/grpc/refused", "Content-Type: application/grpc\r\nX-A: 2\r\n"),
        ("/last", ""),
    ];
    for (_, origin) in &side.origins {
        origin.answer(always(Answer::ok("ok")));
    }
    for (path, headers) in requests {
        let mut client = Client::connect(side.proxy.port("main")).await.expect("a connection");
        // What is drawn by a request's id is the same for both.
        let id = if headers.contains("Id") {
            ""
        } else {
            "X-Request-Id: 00000000-0000-4000-8000-00000000002a\r\n"
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: t.test\r\n{id}{headers}\r\n");
        client.exchange(request.as_bytes()).await.expect("an answer");
        // In order: the next is sent when this one is in the log.
        let read = || side.proxy.lines("all.log", 0);
        eventually(DEADLINE, || async { read().iter().any(|line| line.contains(path)) }).await;
    }
    let typed = || side.proxy.lines("typed.log", 0);
    eventually(DEADLINE, || async { typed().len() == requests.len() }).await;
    let mask = Mask::new(side, 0);
    let names = FILTERS.iter().chain(FORMS).map(|(name, _)| *name);
    names
        .map(|name| {
            let found = side.proxy.lines(&format!("{name}.log"), 0);
            (name, found.iter().map(|line| mask.text(&ordered(line))).collect())
        })
        .collect()
}

/// A line of JSON with its keys in order, but for logs whose order was asked for.
fn ordered(line: &str) -> String {
    match serde_json::from_str::<serde_json::Value>(line) {
        Ok(value) if value.is_object() && !line.starts_with("{\"a\"") => value.to_string(),
        _ => line.to_string(),
    }
}

#[tokio::test]
async fn filters_and_forms() {
    let Some((theirs, mine)) = both_sides(&bootstrap().render(), lines).await else { return };
    let mut beside = Beside::default();
    for ((name, theirs), (_, mine)) in theirs.iter().zip(mine) {
        beside.texts(name, &theirs.join("\n"), &mine.join("\n"));
    }
    beside.end();
}
