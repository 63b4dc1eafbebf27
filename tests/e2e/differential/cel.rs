//! Conditions in CEL beside Envoy's: filters of access logs, which see all of a stream, and RBAC policies.

use super::rbac::{ask, connect, http, http_rbac, listener, ok, per_route, side, template, typed, Side};
use crate::harness::proxy::Kind;
use crate::peers;
use crate::tls::certs::Certs;
use serde_json::{json, Value};

/// Each is the filter of a log.
const EXPRESSIONS: &[&str] = &[
    "response.code >= 400",
    "response.code == 200.0 || response.code == 404u",
    "request.path == '/a?x=1'",
    "request.url_path == '/a' && request.query == 'x=1'",
    "request.method in ['POST', 'PUT']",
    "request.headers['x-user'] == 'ann'",
    "!(request.headers['x-user'] == 'ann')",
    "request.headers['x-user'] == 'ann' || true",
    "false && request.headers['x-user'] == 'ann'",
    "has(request.unknown)",
    "has(request.headers.cookie)",
    "'x-user' in request.headers",
    "request.host.startsWith('t.') && request.host.endsWith('test')",
    "request.path.contains('b')",
    "request.path.matches('^/[ab]')",
    "request.useragent == 'curl'",
    "request.referer == ''",
    "size(request.headers['x-user']) == 3",
    "request.size == 3",
    "request.total_size > 10",
    "request.protocol == 'HTTP/1.1'",
    "request.scheme == 'http'",
    "request.duration < duration('10s')",
    "request.time > timestamp('2020-01-01T00:00:00Z')",
    "response.flags == 0",
    "response.size == 2",
    "response.code_details == 'direct_response'",
    "response.headers['content-type'] == 'text/plain'",
    "response.grpc_status == 12",
    "connection.mtls",
    "connection.requested_server_name == ''",
    "connection.uri_san_peer_certificate == ''",
    "connection.tls_version == ''",
    "source.address.startsWith('127.0.0.1:')",
    "destination.port > 0",
    "upstream.address == 'none'",
    "xds.route_name == 'named'",
    "request.headers",
    "1 / 0 == 1",
    "'1' == 1",
    "'a' < 1",
    "[1, 2, 3][1] == 2",
    "{'a': true}.a",
    "int('7') + 1 == 8",
    "9223372036854775807 + 1 > 0",
    "double(3) / 2.0 == 1.5",
    "unknown.thing == 1",
    "request.unknown == 1",
    "response.code == 200 ? request.method == 'GET' : true",
    "metadata.filter_metadata['envoy.filters.http.rbac']['shadow_engine_result'] == 'allowed'",
];

/// Requests: the line, then more header lines and a body.
const REQUESTS: &[(&str, &str)] = &[
    ("GET /a?x=1", "\r\n"),
    ("GET /a", "x-user: ann\r\n\r\n"),
    ("POST /b", "x-user: bob\r\nx-user: ann\r\nuser-agent: curl\r\ncontent-length: 3\r\n\r\nabc"),
    ("GET /missing", "cookie: a=b\r\n\r\n"),
    ("GET /rbac/header", "x-user: ann\r\n\r\n"),
    ("GET /rbac/header", "x-user: bob\r\n\r\n"),
    ("GET /rbac/header", "\r\n"),
    ("GET /rbac/method", "\r\n"),
    ("POST /rbac/method", "content-length: 0\r\n\r\n"),
];

/// A call as config holds one that is parsed.
fn call(function: &str, arguments: &[Value]) -> Value {
    json!({"call_expr": {"function": function, "args": arguments}})
}

fn text(text: &str) -> Value {
    json!({"const_expr": {"string_value": text}})
}

fn request(field: &str) -> Value {
    json!({"select_expr": {"operand": {"ident_expr": {"name": "request"}}, "field": field}})
}

fn policy(condition: &Value) -> Value {
    per_route(json!({"rbac": {"rules": {"policies": {"p": {
        "permissions": [{"any": true}], "principals": [{"any": true}], "condition": condition}}}}}))
}

fn config() -> String {
    let log = |number: usize, expression: Option<&str>| {
        let line = format!("{number} %REQ(X-NUMBER)%\n");
        let file = json!({"path": "@dir@/access.log", "log_format": {"text_format_source": {"inline_string": line}}});
        let mut log = json!({"name": "file",
            "typed_config": typed("extensions.access_loggers.file.v3.FileAccessLog", file)});
        if let Some(expression) = expression {
            let kind = "extensions.access_loggers.filters.cel.v3.ExpressionFilter";
            log["filter"] = json!({"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel",
                "typed_config": typed(kind, json!({"expression": expression}))}});
        }
        log
    };
    let mut logs: Vec<Value> =
        EXPRESSIONS.iter().enumerate().map(|(number, expression)| log(number, Some(expression))).collect();
    logs.push(log(EXPRESSIONS.len(), None));
    let user = call("_==_", &[call("_[_]", &[request("headers"), text("x-user")]), text("ann")]);
    let method = call("!_", &[call("_==_", &[request("method"), text("GET")])]);
    let mut named = ok("/a", &json!({}));
    named["name"] = "named".into();
    let routes = json!([
        named,
        ok("/b", &json!({})),
        ok("/rbac/header", &policy(&user)),
        ok("/rbac/method", &policy(&method)),
    ]);
    let shadow = json!({"shadow_rules": {"policies": {"all": {"permissions": [{"any": true}], "principals": [{"any": true}]}}}});
    let mut manager = http("cel", &[http_rbac(shadow)], &routes);
    manager["typed_config"]["access_log"] = logs.into();
    template(&[listener("cel", &json!([manager]), false)])
}

/// The status of each answer, then what each log has of it.
async fn requests(side: &Side, certs: &Certs) -> Vec<String> {
    let mut seen = Vec::new();
    for (number, (line, rest)) in REQUESTS.iter().enumerate() {
        let mut stream = connect(side.proxy.port("cel"), None, certs).await;
        let request = format!("{line} HTTP/1.1\r\nhost: t.test\r\nx-number: {number}\r\n{rest}");
        let answer = ask(&mut stream, &request).await;
        seen.push(format!("{line} {rest:?}: {}", answer.lines().next().unwrap_or_default()));
        // The last log has every request, and comes after the others.
        let last = format!("{} {number}", EXPRESSIONS.len());
        let written = |lines: &[String]| lines.contains(&last);
        let mut lines = side.lines(1).await;
        let begin = tokio::time::Instant::now();
        while !written(&lines) && begin.elapsed() < crate::harness::DEADLINE {
            lines = side.lines(lines.len() + 1).await;
        }
        for (place, expression) in EXPRESSIONS.iter().enumerate() {
            let logged = lines.contains(&format!("{place} {number}"));
            seen.push(format!("{line} {rest:?}: {expression}: {logged}"));
        }
    }
    seen
}

#[tokio::test]
async fn conditions_in_cel() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let certs = Certs::new();
    let template = config();
    let (envoy, ours) = tokio::join!(
        side(Kind::Envoy, &template, certs.path()),
        side(Kind::Outrigger, &template, certs.path())
    );
    let (theirs, mine) = tokio::join!(requests(&envoy, &certs), requests(&ours, &certs));
    let different: Vec<_> = theirs.iter().zip(&mine).filter(|(theirs, mine)| theirs != mine).collect();
    assert!(different.is_empty(), "Envoy, then Outrigger: {different:#?}");
    assert!(mine.iter().any(|line| line.ends_with(": true")) && mine.iter().any(|line| line.contains("403")));
}
