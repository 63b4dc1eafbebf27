//! Access logs of both proxies for the same requests, byte for byte but for times, ports and random ids: the default
//! line, a long text format, and JSON.

use super::bootstrap::Bootstrap;
use super::{always, both_sides, Side};
use crate::harness::client::Client;
use crate::harness::origin::{Answer, Then};
use crate::harness::{eventually, DEADLINE};

/// Operators whose values must be equal on both sides (after masking).
const OPERATORS: &[&str] = &[
    "%START_TIME%",
    "%START_TIME(%Y/%m/%dT%H:%M:%S)%",
    "%START_TIME(%s)%",
    "%REQ(:METHOD)%",
    "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "%REQ(:AUTHORITY)%",
    "%REQ(USER-AGENT)%",
    "%REQ(user-agent):4%",
    "%REQ(x-missing?user-agent)%",
    "%REQ(x-two)%",
    "%RESP(content-type)%",
    "%RESP(x-origin)%",
    "%PROTOCOL%",
    "%RESPONSE_CODE%",
    "%RESPONSE_FLAGS%",
    "%RESPONSE_FLAGS_LONG%",
    "%RESPONSE_CODE_DETAILS%",
    "%CONNECTION_TERMINATION_DETAILS%",
    "%BYTES_RECEIVED%",
    "%BYTES_SENT%",
    "%DURATION%",
    "%REQUEST_DURATION%",
    "%RESPONSE_DURATION%",
    "%RESPONSE_TX_DURATION%",
    "%UPSTREAM_HOST%",
    "%UPSTREAM_CLUSTER%",
    "%UPSTREAM_CLUSTER_RAW%",
    "%UPSTREAM_REMOTE_ADDRESS%",
    "%UPSTREAM_REMOTE_PORT%",
    "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "%UPSTREAM_PROTOCOL%",
    "%DOWNSTREAM_REMOTE_ADDRESS%",
    "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
    "%DOWNSTREAM_LOCAL_ADDRESS%",
    "%DOWNSTREAM_LOCAL_PORT%",
    "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%",
    "%REQUESTED_SERVER_NAME%",
    "%ROUTE_NAME%",
    "%VIRTUAL_CLUSTER_NAME%",
    "%FILTER_CHAIN_NAME%",
    "%ACCESS_LOG_TYPE%",
    "%HOSTNAME%",
    "%PATH(NQ)%",
    "%QUERY_PARAM(a)%",
    "%GRPC_STATUS%",
    "%DYNAMIC_METADATA(none)%",
    "%START_TIME_LOCAL(%Y %Z %z)%",
    "%LISTENER_NAME%",
    "%QUERY_PARAMS%",
    "%QUERY_PARAMS(DECODED)%",
    "%QUERY_PARAMS(ORIG)%",
    "%REQUEST_HEADER(x-none?x-two):1%",
    "%RESPONSE_HEADER(x-origin)%",
    "%RESPONSE_TRAILER(x-none)%",
    "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(16)%",
    "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(0)%",
    "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT(200)%",
    "%DOWNSTREAM_TLS_GROUP%",
    "%UPSTREAM_TLS_GROUP%",
    "%METADATA(ROUTE:some.ns:key)%",
    "%METADATA(ROUTE:some.ns)%",
    "%METADATA(CLUSTER:some.ns:key)%",
    "%METADATA(UPSTREAM_HOST:some.ns:deep:key)%",
    "%METADATA(DYNAMIC:some.ns:key)%",
    "%CLUSTER_METADATA(some.ns:key)%",
    "%CLUSTER_METADATA(other.ns)%",
    "%UPSTREAM_METADATA(some.ns:deep)%",
    "%CEL(request.path)%",
    "%CEL(response.code + 1)%",
    "%CEL(request.headers['x-none'])%",
    "%CEL(request.headers['x-two'] == '1,2')%",
    "%CEL(xds.route_metadata.filter_metadata['some.ns']['key'])%",
    "%CEL(xds.cluster_metadata.filter_metadata['some.ns']['key'])%",
    "%CEL(xds.upstream_host_metadata.filter_metadata['some.ns']['deep']['key'])%",
    "%COALESCE({\"operators\": [{\"command\": \"REQ\", \"param\": \"x-none\"}, \"PROTOCOL\"]})%",
    "%COALESCE({\"operators\": [{\"command\": \"REQ\", \"param\": \"x-two\", \"max_length\": 2}, \"RESPONSE_CODE\"]})%",
    "%COALESCE({\"operators\": [\"REQUESTED_SERVER_NAME\"]}):3%",
    "%%",
];

/// A cluster with metadata, and a host with metadata.
const NOTED: &str = "type: STATIC
metadata: { filter_metadata: { some.ns: { key: of a cluster, more: 1 }, other.ns: { list: [ 1, true, null ], text: \"quoted\" } } }
load_assignment:
  cluster_name: noted
  endpoints:
  - lb_endpoints:
    - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @origin:a@ } } }
      metadata: { filter_metadata: { some.ns: { deep: { key: of a host } } } }";

fn bootstrap() -> Bootstrap {
    // In YAML's single quotes.
    let quoted = |operator: &str| operator.replace('\'', "''");
    let text: String = OPERATORS.iter().map(|o| format!("{};;", quoted(o))).collect();
    let json: String = OPERATORS
        .iter()
        .enumerate()
        .map(|(i, o)| format!("\n        field{i:02}: '{}'", quoted(o)))
        .collect();
    let sink = |file: &str, format: &str| {
        format!(
            "- name: envoy.access_loggers.file\n  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog\n    path: \"@dir@/{file}.log\"\n{format}"
        )
    };
    let logs = [
        sink("default", ""),
        sink("text", &format!("    log_format: {{ text_format_source: {{ inline_string: '{text}\n\n      ' }} }}\n")),
        sink(
            "json",
            &format!(
                "    log_format:\n      json_format:\n        nested: {{ list: ['%RESPONSE_CODE%', plain], text: 'code %RESPONSE_CODE% at %REQ(:METHOD)%' }}\n        number: 17\n        yes_no: true{json}\n"
            ),
        ),
        sink(
            "omit",
            "    log_format: { omit_empty_values: true, json_format: { missing: '%REQ(x-missing)%', code: '%RESPONSE_CODE%' } }\n",
        ),
    ]
    .concat();
    let hosts = "- name: all
  domains: ['*']
  routes:
  - { match: { prefix: /direct }, name: straight, direct_response: { status: 200, body: { inline_string: hi } } }
  - { match: { prefix: /refused }, name: closed, route: { cluster: refused } }
  - { match: { prefix: /rewritten }, route: { cluster: a, prefix_rewrite: /new } }
  - { match: { prefix: /apart }, route: { cluster: a-apart } }
  - { match: { prefix: /noted }, route: { cluster: noted }, metadata: { filter_metadata: { some.ns: { key: of a route } } } }
  - { match: { prefix: /a }, name: open, route: { cluster: a } }";
    let with_logs = |base: Bootstrap| base.access_logs("main", &logs);
    with_logs(
        Bootstrap::new()
            .origin("a-apart", "alt_stat_name: counted_apart")
            .cluster("noted", NOTED)
            .listener("main", "", hosts),
    )
}

/// Runs the requests and returns each log as masked lines.
async fn lines(side: &Side) -> Vec<(&'static str, Vec<String>)> {
    let requests: [&[u8]; 11] = [
        b"GET /noted?x=1&y=%20z%41 HTTP/1.1\r\nHost: t.test\r\nUser-Agent:\r\n\r\n",
        b"GET /apart HTTP/1.1\r\nHost: t.test\r\n\r\n",
        b"GET /a?a=1&b=2 HTTP/1.1\r\nHost: t.test\r\nUser-Agent: tests/1\r\nX-Two: 1\r\nX-Two: 2\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /rewritten/x HTTP/1.1\r\nHost: t.test\r\n\r\n",
        b"GET /direct HTTP/1.1\r\nHost: t.test\r\n\r\n",
        b"GET /none HTTP/1.1\r\nHost: t.test\r\n\r\n",
        b"GET /refused HTTP/1.1\r\nHost: t.test\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: t.test\r\nUser-Agent: with \"quotes\" and \\ and \xc3\xa9\r\n\r\n",
        b"GET /a-reset HTTP/1.1\r\nHost: t.test\r\n\r\n",
        b"GET /bad HTTP/1.1\r\nHost: t.test\r\nnonsense\r\n\r\n",
    ];
    for (_, origin) in &side.origins {
        let good = always(Answer::raw(
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nx-origin: yes\r\ncontent-length: 2\r\n\r\nok",
        ));
        origin.answer(move |request| match request.target() {
            "/a-reset" => Answer::raw("").then(Then::Reset),
            _ => good(request),
        });
    }
    let mut mask = super::observe::Mask::new(side, 0);
    for request in requests {
        let mut client = Client::connect(side.proxy.port("main")).await.unwrap();
        mask.also(&format!(":{}", client.local().port()), ":<client>");
        client.exchange(request).await.unwrap();
    }
    let mut all = Vec::new();
    for name in ["default", "text", "json", "omit"] {
        let file = format!("{name}.log");
        let read = || side.proxy.lines(&file, 0);
        eventually(DEADLINE, || async { read().len() >= requests.len() }).await;
        let json = name == "json" || name == "omit";
        let line = |line: &String| if json { masked_json(&mask, line) } else { masked(&mask.text(line)) };
        all.push((name, read().iter().map(line).collect()));
    }
    all
}

/// Replaces times, durations and random ids.
fn masked(line: &str) -> String {
    let patterns = [
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<time>"),
        (r"\d{4}/\d\d/\d\dT\d\d:\d\d:\d\d", "<local time>"),
        (r"\b1[789]\d{8}\b", "<seconds>"),
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>"),
    ];
    let mut line = line.to_string();
    for (pattern, kind) in patterns {
        line = regex::Regex::new(pattern).expect("a pattern").replace_all(&line, kind).into_owned();
    }
    line
}

/// The same inside the strings of a line of JSON.
fn masked_json(mask: &super::observe::Mask, line: &str) -> String {
    fn walk(mask: &super::observe::Mask, value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => *text = masked(&mask.text(text)),
            serde_json::Value::Array(list) => list.iter_mut().for_each(|v| walk(mask, v)),
            serde_json::Value::Object(map) => map.values_mut().for_each(|v| walk(mask, v)),
            _ => {}
        }
    }
    let Ok(mut value) = serde_json::from_str::<serde_json::Value>(line) else {
        return format!("no JSON: {line}");
    };
    walk(mask, &mut value);
    value.to_string()
}

/// Operators that print a number which is each run's own.
fn is_duration(operator: &str) -> bool {
    operator.contains("DURATION") || operator.contains("_PORT%")
}

#[tokio::test]
async fn access_logs() {
    let Some((theirs, mine)) = both_sides(&bootstrap().render(), lines).await else { return };
    let mut wrong = Vec::new();
    for ((name, theirs), (_, mine)) in theirs.iter().zip(&mine) {
        if theirs.len() != mine.len() {
            wrong.push(format!(
                "{name}: Envoy wrote {} lines, Outrigger {}: {mine:#?}",
                theirs.len(),
                mine.len()
            ));
        }
        for (a, b) in theirs.iter().zip(mine) {
            let complaint = match *name {
                "text" => compare_text(a, b),
                "json" | "omit" => compare_json(a, b),
                _ => compare_default(a, b),
            };
            if let Some(complaint) = complaint {
                wrong.push(format!("{name}: {complaint}\n  Envoy     {a}\n  Outrigger {b}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn compare_text(a: &str, b: &str) -> Option<String> {
    let (a, b): (Vec<_>, Vec<_>) = (a.split(";;").collect(), b.split(";;").collect());
    for (i, operator) in OPERATORS.iter().enumerate() {
        let (a, b) = (a.get(i).copied().unwrap_or("nothing"), b.get(i).copied().unwrap_or("nothing"));
        if a != b && !(is_duration(operator) && number(a) && number(b)) {
            return Some(format!("{operator} is {a:?} with Envoy, {b:?} with Outrigger"));
        }
    }
    None
}

fn compare_json(a: &str, b: &str) -> Option<String> {
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    let (Some(a), Some(b)) = (parse(a), parse(b)) else {
        return Some("one is not JSON".to_string());
    };
    let keys = |v: &serde_json::Value| {
        v.as_object().map(|m| m.keys().cloned().collect::<Vec<_>>()).unwrap_or_default()
    };
    if keys(&a) != keys(&b) {
        return Some(format!("keys {:?} and {:?}", keys(&a), keys(&b)));
    }
    for key in keys(&a) {
        let operator = key.strip_prefix("field").and_then(|n| OPERATORS.get(n.parse::<usize>().ok()?));
        let (x, y) = (&a[&key], &b[&key]);
        let durations = operator.is_some_and(|o| is_duration(o)) && x.is_number() && y.is_number();
        if x != y && !durations {
            return Some(format!(
                "{key} ({}) is {x} with Envoy, {y} with Outrigger",
                operator.unwrap_or(&"")
            ));
        }
    }
    None
}

/// Entries of `docs/differences.md` that these comparisons rely on.
pub const DIFFERENCES: &[&str] = &["log-quotes"];

/// The default line: DURATION and the service time, two numbers in a row, differ.
fn compare_default(a: &str, b: &str) -> Option<String> {
    let fixed =
        regex::Regex::new(r"^(\[[^\]]*\] .* \d+ \S+ \d+ \d+) (\d+) (\d+|-) (.*)$").expect("a pattern");
    let parts = |line: &str| {
        fixed
            .captures(line)
            .map(|c| (c[1].to_string(), number(&c[3]), c[4].to_string()))
            .ok_or(line.to_string())
    };
    // Between quotes of the format, quotes and backslashes of a value are escaped here.
    let unescaped = b.replace("\\x22", "\"").replace("\\x5c", "\\");
    if a.contains("with \"quotes\"") && b == unescaped {
        return Some("a value ends the quotes that the format puts around it".to_string());
    }
    (parts(a) != parts(&unescaped)).then(|| "the default line differs".to_string())
}
