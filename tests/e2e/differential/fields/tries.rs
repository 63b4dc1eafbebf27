//! What logs are told of single tries.

use super::BUT;
use crate::differential::bootstrap::Bootstrap;
use crate::differential::case::{case, Case};
use crate::differential::filters::check_but;
use crate::harness::http1::Message;
use crate::harness::origin::{Answer, Then};

const HOSTS: &str = r#"- name: all
  domains: ['*']
  include_request_attempt_count: true
  routes:
  - { match: { prefix: /again }, name: again, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: '5xx,reset', num_retries: 2, retry_back_off: { base_interval: 0.001s } } } }
  - { match: { prefix: /late }, route: { cluster: a, timeout: 0.2s } }
  - { match: { prefix: /try-late }, route: { cluster: a, timeout: 0s, retry_policy: { retry_on: 5xx, per_try_timeout: 0.2s } } }
  - { match: { prefix: /idle }, route: { cluster: a, timeout: 0s, idle_timeout: 0.2s } }
  - { match: { prefix: /refused }, route: { cluster: refused, timeout: 0s, retry_policy: { retry_on: connect-failure, num_retries: 1 } } }
  - { match: { prefix: /empty }, route: { cluster: empty } }
  - { match: { prefix: /full }, route: { cluster: a-full } }
  - { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } } }
  - { match: { prefix: / }, name: plain, route: { cluster: a, prefix_rewrite: /new }, request_headers_to_add: [ { header: { key: x-added, value: here } } ] }
"#;

/// A log of tries in the format of the suite's, and more.
fn log(options: &str) -> String {
    let format = "peer=%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%\\ttype=%ACCESS_LOG_TYPE%\\tcode=%RESPONSE_CODE%\\tflags=%RESPONSE_FLAGS%\
        \\tdetails=%RESPONSE_CODE_DETAILS%\\tprotocol=%PROTOCOL%\\tupstream-protocol=%UPSTREAM_PROTOCOL%\\tmethod=%REQ(:METHOD)%\
        \\tpath=%REQ(X-ENVOY-ORIGINAL-PATH)% %REQ(:PATH)%\\tadded=%REQ(x-added)% %REQ(x-envoy-attempt-count)%\
        \\treceived=%BYTES_RECEIVED%\\tsent=%BYTES_SENT%\\tcluster=%UPSTREAM_CLUSTER%\\troute=%ROUTE_NAME%\
        \\tupstream=%UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS%\\tfailure=%UPSTREAM_TRANSPORT_FAILURE_REASON%\
        \\tanswer=%RESP(x-answer)% %RESP(server)% %RESP(x-envoy-upstream-service-time)% %TRAILER(x-end)%\
        \\tattempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT%\\tlocal=%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%\\tend=%CONNECTION_TERMINATION_DETAILS%\\n";
    format!(
        "upstream_log: [ {{ name: tries, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, \
         path: \"@dir@/access.log\", log_format: {{ text_format_source: {{ inline_string: \"{format}\" }} }} }} }} ]{options}"
    )
}

/// The first try is answered so, later ones `200 ok`.
fn first(answer: Answer) -> impl Fn(&Message) -> Answer + Clone + Send + Sync + 'static {
    move |request| match request.header("x-envoy-attempt-count") {
        Some("1") => answer.clone(),
        _ => Answer::ok("ok"),
    }
}

fn cases(listener: &'static str, ready: usize) -> Vec<Case> {
    let named = |what: &str| -> &'static str { format!("{listener}: {what}").leak() };
    let get = |what: &str, path: &str, tries: usize, connected: usize| {
        case(listener, named(what)).get(path, "").lines(1 + tries + connected * ready)
    };
    let busy = || Answer::raw("HTTP/1.1 503 Busy\r\nx-answer: busy\r\ncontent-length: 4\r\n\r\nbusy");
    let hangs = || Answer::raw("").then(Then::Hang);
    vec![
        get("plain", "/x", 1, 1)
            .answers(Answer::raw("HTTP/1.1 200 OK\r\nx-answer: yes\r\ncontent-length: 2\r\n\r\nok")),
        case(listener, named("bodies")).send("POST", "/x", "", "hello").lines(2 + ready).answers(
            Answer::raw(
                "HTTP/1.1 201 Made\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
            ),
        ),
        get("tried again", "/again", 2, 2).script(first(busy())),
        case(listener, named("a body, tried again"))
            .send("POST", "/again", "", "hello")
            .lines(3 + 2 * ready)
            .script(first(busy())),
        get("tried in vain", "/again", 3, 3).answers(busy()),
        case(listener, named("reset, tried again"))
            .send("POST", "/again", "", "hello")
            .lines(3 + 2 * ready)
            .script(first(Answer::raw("").then(Then::Close))),
        get("late", "/late", 1, 1).answers(hangs()),
        get("too slow for a try", "/try-late", 2, 2).script(first(hangs())),
        get("idle", "/idle", 1, 1).answers(hangs()),
        get("refused", "/refused", 2, 0),
        get("nobody there", "/empty", 0, 0),
        get("full", "/full", 1, 0),
        get("not forwarded", "/direct", 0, 0),
        get("cut off", "/x", 1, 1).answers(
            Answer::raw("HTTP/1.1 200 OK\r\nx-answer: half\r\ncontent-length: 9\r\n\r\nhalf")
                .then(Then::Close),
        ),
        get("no HTTP", "/x", 1, 1).answers(Answer::raw("nonsense\r\n\r\n").then(Then::Close)),
        case(listener, named("closed"))
            .send("POST", "/x", "", "hello")
            .lines(2 + ready)
            .answers(Answer::raw("").then(Then::Close)),
    ]
}

#[tokio::test]
async fn told_of_each() {
    let bootstrap = Bootstrap::new()
        .origin("a-full", "circuit_breakers: { thresholds: [ { max_requests: 0 } ] }")
        .listener("main", "", HOSTS)
        .router("main", &log(""))
        .listener("ready", "", HOSTS)
        .router("ready", &log(", upstream_log_options: { flush_upstream_log_on_upstream_stream: true }"));
    let all = cases("main", 0).into_iter().chain(cases("ready", 1)).collect();
    check_but(bootstrap, all, &["http.main.downstream_rq_"], BUT).await;
}
