//! `envoy.filters.http.ext_proc` with a processor that is asked over HTTP, in JSON: what it is asked is compared too.

use super::bootstrap::{endpoints, Bootstrap};
use super::case::{case, After, Case};
use super::filters::{check, filter, host, route, says};
use super::grpc_service::asked_by_both;
use crate::harness::http1::{Message, Reader};
use crate::harness::origin::Answer;
use serde_json::{json, Value};
use std::sync::{Arc, Mutex};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

/// What the processor was asked.
type Asked = Arc<Mutex<Vec<String>>>;

/// Starts a processor; it ends with the runtime.
async fn processor(asked: Asked) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(process(socket, asked.clone()));
        }
    });
    port
}

async fn process(socket: TcpStream, asked: Asked) {
    let (read, mut write) = socket.into_split();
    let mut reader = Reader::new(read);
    while let Ok(mut request) = reader.head().await {
        request.framing = Reader::<tokio::net::tcp::OwnedReadHalf>::request_framing(&request);
        if reader.body(&mut request).await.is_err() {
            return;
        }
        let question: Value = serde_json::from_slice(&request.body).expect("JSON");
        asked.lock().expect("nobody panics with it").push(shown(&request, &question));
        let Some((status, body)) = answer(&question) else { std::future::pending().await };
        let text = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if write.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// All of a question that does not change from run to run, but for how its body comes.
fn shown(request: &Message, question: &Value) -> String {
    let mut lines: Vec<String> = (request.headers.iter())
        .filter(|(name, _)| !matches!(&**name, "content-length" | "transfer-encoding"))
        .map(|(name, value)| match value.parse::<u64>() {
            Ok(_) if name == "x-request-id" => format!("{name}=number"),
            _ => format!("{name}={value}"),
        })
        .collect();
    lines.sort();
    let mut question = question.clone();
    for side in ["request_headers", "response_headers"] {
        if let Some(list) =
            question.pointer_mut(&format!("/{side}/headers/headers")).and_then(Value::as_array_mut)
        {
            list.retain(|header| {
                !matches!(header["key"].as_str(), Some("x-envoy-upstream-service-time" | "date"))
            });
            list.sort_by_key(|header| header["key"].to_string());
        }
    }
    format!("{} {} {}", request.start_line, lines.join(" "), canonical(&question))
}

/// JSON in which equal values are equal texts: 4 is 4.0, and fields are in order of their names.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut all: Vec<String> =
                fields.iter().map(|(name, value)| format!("{name}:{}", canonical(value))).collect();
            all.sort();
            format!("{{{}}}", all.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        Value::Number(number) => format!("{:?}", number.as_f64()),
        other => other.to_string(),
    }
}

/// What it answers: the value of a header tells, which requests send and responses bring back. `None` = nothing.
fn answer(question: &Value) -> Option<(u16, String)> {
    let (side, of_response) = match question.get("request_headers") {
        Some(_) => ("request_headers", false),
        None => ("response_headers", true),
    };
    let list = question[side]["headers"]["headers"].as_array().cloned().unwrap_or_default();
    let word =
        list.iter().find(|header| header["key"] == "x-word").and_then(|header| header["raw_value"].as_str());
    let set = json!([{ "header": { "key": "x-seen", "raw_value": word.unwrap_or("LQ==") } }]);
    let common =
        json!({ "response": { "header_mutation": { "set_headers": set, "remove_headers": ["x-gone"] } } });
    // Values are in base64.
    let answer = match (word.unwrap_or_default(), of_response) {
        ("ZGVueQ==", false) => {
            json!({ "immediate_response": { "status": { "code": 403 }, "body": "bm8=", "details": "why not" } })
        }
        ("Y2FtZWw=", false) => {
            json!({ "requestHeaders": { "response": { "headerMutation": { "setHeaders": [{ "header": { "key": "x-seen", "rawValue": "eA==" } }] } } } })
        }
        ("dW5rbm93bg==", false) => json!({ "request_headers": {}, "unknown_field": 1 }),
        ("d3Jvbmc=", false) => json!({ "response_headers": {} }),
        ("ZW1wdHk=", false) => json!({}),
        ("YmFk", false) => return Some((200, "no JSON".to_owned())),
        ("c3RhdHVz", false) => return Some((404, "{}".to_owned())),
        ("dHlwZQ==", false) => json!({ "request_headers": 1 }),
        ("c2xvdw==", false) => return None,
        ("cmVwbGFjZQ==", false) => {
            json!({ "request_headers": { "response": { "status": "CONTINUE_AND_REPLACE", "body_mutation": { "body": "aW5zdGVhZA==" } } } })
        }
        ("bGF0ZS1zdGF0dXM=", true) => return Some((500, "{}".to_owned())),
        ("bGF0ZS1kZW55", true) => {
            json!({ "immediate_response": { "status": { "code": 418 }, "body": "bm8=", "details": "late" } })
        }
        ("bGF0ZS1zbG93", true) => return None,
        _ => json!({ side: common }),
    };
    Some((200, answer.to_string()))
}

#[tokio::test]
async fn processor_over_http() {
    const PER_ROUTE: &str = "extensions.filters.http.ext_proc.v3.ExtProcPerRoute";
    let asked = Asked::default();
    let port = processor(asked.clone()).await;
    let service = "http_service: { http_service: { http_uri: { uri: 'http://proc.test/process?x=1', cluster: proc, timeout: 5s }, request_headers_to_add: [ { header: { key: x-added, value: added } } ] } }";
    let lost = "http_service: { http_service: { http_uri: { uri: 'http://proc.test/process', cluster: refused, timeout: 1s } } }";
    let routes = [
        route("/off", &[says("proc", PER_ROUTE, "disabled: true")]),
        route(
            "/requests",
            &[says("proc", PER_ROUTE, "overrides: { processing_mode: { response_header_mode: SKIP } }")],
        ),
        "- { match: { prefix: /meta }, route: { cluster: a-meta } }\n".to_string(),
        "- { match: { prefix: / }, route: { cluster: a } }\n".to_string(),
    ]
    .concat();
    let hosts = host("", &routes);
    let mut bootstrap = Bootstrap::new()
        .origin(
            "a-meta",
            "metadata: { filter_metadata: { mesh: { a: 1 }, both: { of: cluster }, hidden: { b: 2 } } }",
        )
        .cluster("proc", &endpoints(&[&port.to_string()]));
    let set = filter("set", "set_metadata.v3.Config", "metadata: [ { metadata_namespace: one, value: { a: b } }, { metadata_namespace: two, typed_value: { '@type': type.googleapis.com/google.protobuf.StringValue, value: text } }, { metadata_namespace: two, typed_value: { '@type': type.googleapis.com/google.protobuf.StringValue, value: denied } }, { metadata_namespace: three, typed_value: { '@type': type.googleapis.com/google.protobuf.Int32Value, value: 3 } }, { metadata_namespace: three, allow_overwrite: true, typed_value: { '@type': type.googleapis.com/envoy.type.v3.Percent, value: 4 } }, { metadata_namespace: both, value: { c: d }, typed_value: { '@type': type.googleapis.com/google.protobuf.BoolValue, value: true } } ]");
    for (name, options) in [
        ("main", service.to_string()),
        ("told", format!("{service}, request_attributes: [ request.path, request.size ], response_attributes: [ response.code ], metadata_options: {{ forwarding_namespaces: {{ untyped: [ one, both ], typed: [ two, three, both, none ] }} }}")),
        ("clustered", format!("{service}, metadata_options: {{ forwarding_namespaces: {{ untyped: [ one, both ] }}, cluster_metadata_forwarding_namespaces: {{ untyped: [ mesh, both, none ] }} }}")),
        ("open", format!("{service}, failure_mode_allow: true")),
        ("lost", lost.to_string()),
        ("lost-open", format!("{lost}, failure_mode_allow: true, status_on_error: {{ code: 503 }}")),
    ] {
        bootstrap = bootstrap
            .listener(name, "generate_request_id: false", &hosts)
            .filters(name, &(set.clone() + &filter("proc", super::ext_proc_watch::KIND, &options)));
    }
    let origin = |request: &Message| {
        let word = request.header("x-word").unwrap_or_default().to_owned();
        Answer::raw(format!(
            "HTTP/1.1 200 OK\r\nx-word: {word}\r\nx-gone: 1\r\ncontent-length: 10\r\n\r\nten bytes!"
        ))
    };
    let get = |listener: &'static str, word: &str, path: &str| {
        let headers = format!("X-Gone: 1\r\nX-Word: {word}\r\n");
        case(listener, format!("{listener} {word} {path}").leak()).get(path, &headers).script(origin)
    };
    let mut cases: Vec<Case> = Vec::new();
    for listener in ["main", "open"] {
        for word in [
            "x",
            "deny",
            "camel",
            "unknown",
            "wrong",
            "empty",
            "bad",
            "status",
            "type",
            "slow",
            "replace",
            "late-status",
            "late-deny",
            "late-slow",
        ] {
            cases.push(get(listener, word, "/x"));
        }
        for path in ["/off", "/requests"] {
            cases.push(get(listener, "x", path));
        }
        cases.push(case(listener, "a body").send("POST", "/x", "", "ten bytes?").script(origin));
        cases.push(
            case(listener, "a body, replaced")
                .send("POST", "/x", "X-Word: replace\r\n", "ten bytes?")
                .script(origin),
        );
    }
    cases.push(get("told", "x", "/x"));
    for path in ["/x", "/meta"] {
        cases.push(get("clustered", "x", path));
    }
    cases.push(get("lost", "x", "/x"));
    cases.push(get("lost-open", "x", "/x"));
    // Envoy hears nothing that is said of answers of its own, such as the probe's.
    let cases = cases.into_iter().map(|case| case.after(After::Nothing)).collect();
    let rooms = [
        "http.main.ext_proc.",
        "http.told.ext_proc.",
        "http.told.set_metadata.",
        "http.open.ext_proc.",
        "http.lost.ext_proc.",
        "http.lost-open.ext_proc.",
    ];
    check(bootstrap, cases, &rooms).await;
    if crate::peers::have(&["envoy"]) && super::set("OUTRIGGER_E2E_CASE").is_none() {
        asked_by_both(asked.lock().expect("nobody panics with it").clone());
    }
}
