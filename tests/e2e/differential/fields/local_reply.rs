//! `local_reply_config`: which of our own answers are changed, and how.

use super::BUT;
use crate::differential::bootstrap::Bootstrap;
use crate::differential::case::{case, Case};
use crate::differential::filters::{check_but, filter};
use crate::harness::origin::Answer;

const CONFIG: &str = r#"local_reply_config:
  body_format: { text_format_source: { inline_string: "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% [%LOCAL_REPLY_BODY%]\n" }, content_type: text/x-general }
  mappers:
  - filter: { status_code_filter: { comparison: { op: EQ, value: { default_value: 404, runtime_key: none } } } }
    status_code: 410
    headers_to_add: [ { header: { key: x-mapped, value: "gone %REQ(:PATH)%" } }, { header: { key: content-type, value: text/x-of-header }, append_action: OVERWRITE_IF_EXISTS_OR_ADD } ]
  - filter: { and_filter: { filters: [ { header_filter: { header: { name: x-see, present_match: true } } }, { response_flag_filter: { flags: [ UF, NR ] } } ] } }
    body: { inline_string: seen }
    body_format_override: { json_format: { code: "%RESPONSE_CODE%", text: "%LOCAL_REPLY_BODY%", path: "%REQ(:PATH)%", none: "%REQ(x-none)%" } }
  - filter: { response_flag_filter: { flags: [ UF ] } }
    body: { inline_string: refused }
    headers_to_add: [ { header: { key: x-flags, value: "%RESPONSE_FLAGS%" } }, { header: { key: server, value: other }, append_action: APPEND_IF_EXISTS_OR_ADD } ]
  - filter: { status_code_filter: { comparison: { op: GE, value: { default_value: 500, runtime_key: none } } } }
    status_code: 500
"#;

const ONLY_MAPPERS: &str = r#"local_reply_config:
  mappers:
  - filter: { status_code_filter: { comparison: { op: LE, value: { default_value: 404, runtime_key: none } } } }
    status_code: 200
    body: { inline_string: "" }
  - filter: { or_filter: { filters: [ { status_code_filter: { comparison: { op: EQ, value: { default_value: 418, runtime_key: none } } } }, { response_flag_filter: { flags: [ UH ] } } ] } }
    body: { inline_string: "a %RESPONSE_CODE%" }
"#;

const ONLY_FORMAT: &str = r#"local_reply_config:
  body_format: { json_format: { status: "%RESPONSE_CODE%", message: "%LOCAL_REPLY_BODY%", deep: { flags: "%RESPONSE_FLAGS%" } } }
"#;

const HOSTS: &str = "- name: all
  domains: ['*']
  routes:
  - { match: { prefix: /refused }, route: { cluster: refused } }
  - { match: { prefix: /empty }, route: { cluster: empty } }
  - { match: { prefix: /direct }, direct_response: { status: 418, body: { inline_string: short } } }
  - { match: { prefix: /moved }, redirect: { path_redirect: /x } }
  - { match: { prefix: /upstream }, route: { cluster: a } }
  - { match: { prefix: /slow }, route: { cluster: a, timeout: 0.3s } }
";

#[tokio::test]
async fn local_reply() {
    let fault = "abort: { header_abort: {}, percentage: { numerator: 100 } }";
    let mut bootstrap = Bootstrap::new();
    let mut cases: Vec<Case> = Vec::new();
    for (name, options) in [("all", CONFIG), ("mappers", ONLY_MAPPERS), ("format", ONLY_FORMAT)] {
        bootstrap = bootstrap
            .listener(name, options, HOSTS)
            .filters(name, &filter("fault", "fault.v3.HTTPFault", fault));
        let get = |what: &'static str, path: &str, headers: &str| {
            case(name, format!("{name}: {what}").leak()).get(path, headers)
        };
        let grpc = "Content-Type: application/grpc\r\n";
        cases.extend([
            get("no route", "/none", ""),
            get("no route, seen", "/none", "X-See: 1\r\n"),
            get("refused", "/refused", ""),
            get("refused, seen", "/refused", "X-See: 1\r\n"),
            get("no host", "/empty", ""),
            get("direct", "/direct", ""),
            get("redirect", "/moved", ""),
            get("aborted", "/upstream", "X-Envoy-Fault-Abort-Request: 429\r\n"),
            get("an upstream's own", "/upstream", "").answers(Answer::status(503, "Down", "theirs")),
            get("gRPC", "/refused", grpc),
            get("gRPC, no route", "/none", grpc),
            case(name, format!("{name}: HEAD").leak()).send("HEAD", "/refused", "", "").answers_head(),
            case(name, format!("{name}: no host").leak()).raw("GET / HTTP/1.1\r\n\r\n"),
        ]);
    }
    check_but(
        bootstrap,
        cases,
        &["http.all.downstream_rq_", "http.mappers.downstream_rq_", "http.format.downstream_rq_"],
        BUT,
    )
    .await;
}
