//! Traces: the same requests through Envoy and Outrigger, and what the origin, the client and the collector see of them.

use std::collections::BTreeMap;

use outrigger_control_api::pb::opentelemetry::proto::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use outrigger_control_api::pb::opentelemetry::proto::common::v1::{any_value, KeyValue};
use outrigger_control_api::pb::opentelemetry::proto::trace::v1::Span;
use serde_json::{json, Value};

use super::beside::Beside;
use super::grpc_service::{GrpcService, Said};
use crate::harness::client::Client;
use crate::harness::http1::Message;
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};

const PARENT: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn typed(kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/{kind}").into();
    config
}

fn otlp() -> Value {
    json!({"name": "otlp", "typed_config": typed("envoy.config.trace.v3.OpenTelemetryConfig",
        json!({"service_name": "web", "grpc_service": {"envoy_grpc": {"cluster_name": "collector"}, "timeout": "2s"}}))})
}

fn zipkin() -> Value {
    json!({"name": "zipkin", "typed_config": typed("envoy.config.trace.v3.ZipkinConfig", json!({
        "collector_cluster": "zipkin", "collector_endpoint": "/api/v2/spans", "trace_id_128bit": true,
        "shared_span_context": false, "collector_endpoint_version": "HTTP_JSON"}))})
}

fn listener(name: &str, direction: &str, tracing: &Value, route: &Value) -> Value {
    let mut all = json!({"match": {"prefix": "/"}, "route": {"cluster": "origin"}});
    if let (Value::Object(all), Value::Object(more)) = (&mut all, route.clone()) {
        all.extend(more);
    }
    let gone = json!({"match": {"prefix": "/gone"}, "route": {"cluster": "gone"}});
    let retry = json!({"match": {"prefix": "/retry"}, "route": {"cluster": "origin", "retry_policy": {"retry_on": "5xx", "num_retries": 1}}});
    let copies = |more: &Value| {
        let mut copy = json!({"cluster": "origin", "disable_shadow_host_suffix_append": true});
        if let (Value::Object(copy), Value::Object(more)) = (&mut copy, more.clone()) {
            copy.extend(more);
        }
        json!({"cluster": "origin", "request_mirror_policies": [copy]})
    };
    let unsampled =
        json!({"match": {"prefix": "/mirror/not"}, "route": copies(&json!({"trace_sampled": false}))});
    let sampled =
        json!({"match": {"prefix": "/mirror/too"}, "route": copies(&json!({"trace_sampled": true}))});
    let mirror = json!({"match": {"prefix": "/mirror"}, "route": copies(&json!({}))});
    let router = json!({"name": "router", "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({}))});
    let manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({"stat_prefix": name, "tracing": tracing, "http_filters": [router], "generate_request_id": true,
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [gone, retry, unsampled, sampled, mirror, all]}]}}),
    );
    json!({"name": name, "traffic_direction": direction,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": format!("@port:{name}@")}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]})
}

fn cluster(name: &str, port: &str, http2: bool) -> Value {
    let options = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        json!({"explicit_http_config": {"http2_protocol_options": {}}}))});
    let mut cluster = json!({"name": name, "type": "STATIC", "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
            "socket_address": {"address": "127.0.0.1", "port_value": format!("@{port}@")}}}}]}]}});
    if http2 {
        cluster["typed_extension_protocol_options"] = options;
    }
    cluster
}

fn bootstrap() -> String {
    let percent = |value: u32| json!({"value": value});
    let decorator = json!({"decorator": {"operation": "books"}});
    let quiet = json!({"decorator": {"operation": "quiet", "propagate": false}});
    let tags = json!([
        {"tag": "fixed", "literal": {"value": "text"}},
        {"tag": "agent", "request_header": {"name": "user-agent", "default_value": "nobody"}},
        {"tag": "nothing", "request_header": {"name": "x-nothing"}},
        {"tag": "no.env", "environment": {"name": "OUTRIGGER_NO_SUCH", "default_value": "unset"}},
        {"tag": "noted", "metadata": {"kind": {"request": {}}, "metadata_key": {"key": "a", "path": [{"key": "b"}]}}},
    ]);
    let route = json!({"tracing": {"random_sampling": {"numerator": 0}, "custom_tags": [{"tag": "by.route", "literal": {"value": "yes"}}]}});
    let listeners = [
        listener("ingress", "INBOUND", &json!({"provider": otlp(), "custom_tags": tags}), &decorator),
        listener("egress", "OUTBOUND", &json!({"provider": otlp()}), &decorator),
        listener("quiet", "OUTBOUND", &json!({"provider": otlp(), "max_path_tag_length": 8}), &quiet),
        listener("plain", "OUTBOUND", &json!({"provider": otlp()}), &json!({})),
        listener("rare", "INBOUND", &json!({"provider": otlp(), "random_sampling": percent(0)}), &json!({})),
        listener("route", "INBOUND", &json!({"provider": otlp()}), &route),
        listener("off", "INBOUND", &json!({"provider": otlp(), "overall_sampling": percent(0)}), &json!({})),
        listener("marks", "INBOUND", &json!({}), &json!({})),
        listener("told-in", "INBOUND", &json!({}), &decorator),
        listener("told-out", "OUTBOUND", &json!({}), &decorator),
        listener("spawn", "OUTBOUND", &json!({"provider": otlp(), "spawn_upstream_span": true}), &decorator),
        listener("zipkin", "INBOUND", &json!({"provider": zipkin()}), &json!({})),
    ];
    let soon = json!({"tracing.opentelemetry.min_flush_spans": 1, "tracing.zipkin.min_flush_spans": 1});
    json!({"node": {"id": "node", "cluster": "web", "locality": {"zone": "here"}},
        "layered_runtime": {"layers": [{"name": "soon", "static_layer": soon}]},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "@port:admin@"}}},
        "static_resources": {"listeners": listeners, "clusters": [cluster("origin", "origin", false),
            cluster("gone", "gone", false), cluster("collector", "collector", true), cluster("zipkin", "zipkin", false)]}})
    .to_string()
}

/// A request: the listener, its path, and more of its head.
const REQUESTS: &[(&str, &str, &str)] = &[
    ("ingress", "/plain?x=1", ""),
    ("ingress", "/agent", "user-agent: test\r\n"),
    ("ingress", "/error", ""),
    ("ingress", "/gone", ""),
    ("ingress", "/retry", ""),
    ("ingress", "/decorated", "x-envoy-decorator-operation: theirs\r\n"),
    ("ingress", "/sampled", "traceparent: 00-@trace@-@caller@-01\r\ntracestate: a=1\r\ntracestate: b=2\r\n"),
    ("ingress", "/unsampled", "traceparent: 00-@trace@-@caller@-00\r\n"),
    ("ingress", "/broken", "traceparent: 00-@trace@-0000000000000000-01\r\n"),
    ("ingress", "/mirror", ""),
    ("ingress", "/mirror/not", ""),
    ("rare", "/mirror", ""),
    ("zipkin", "/mirror", ""),
    ("ingress", "/grpc", "content-type: application/grpc\r\ngrpc-timeout: 1S\r\n"),
    ("egress", "/plain", ""),
    ("egress", "/answered", ""),
    ("quiet", "/long/path/that/is/cut", ""),
    ("plain", "/plain", ""),
    ("rare", "/plain", ""),
    ("rare", "/client", "x-client-trace-id: mine\r\n"),
    ("rare", "/forced", "x-envoy-force-trace: 1\r\nx-request-id: 0aaaaaaa-1111-4111-8111-111111111111\r\n"),
    ("rare", "/marked", "x-request-id: 0aaaaaaa-1111-9111-8111-111111111111\r\n"),
    ("rare", "/odd", "x-request-id: odd\r\n"),
    ("rare", "/parent", "traceparent: 00-@trace@-@caller@-01\r\n"),
    ("route", "/plain", ""),
    ("route", "/marked", "x-request-id: 0aaaaaaa-1111-9111-8111-111111111111\r\n"),
    ("off", "/plain", "x-client-trace-id: mine\r\n"),
    ("marks", "/plain", ""),
    ("told-in", "/plain", ""),
    ("told-in", "/decorated", "x-envoy-decorator-operation: theirs\r\n"),
    ("told-out", "/plain", ""),
    ("told-out", "/answered", "x-envoy-decorator-operation: theirs\r\n"),
    ("spawn", "/plain", ""),
    ("spawn", "/gone", ""),
    ("spawn", "/retry", ""),
    ("spawn", "/parent", "traceparent: 00-@trace@-@caller@-01\r\n"),
    ("zipkin", "/plain", ""),
    ("zipkin", "/b3", "x-b3-traceid: @trace@\r\nx-b3-spanid: @caller@\r\nx-b3-sampled: 1\r\n"),
    ("zipkin", "/short", "x-b3-traceid: 8448eb211c80319c\r\nx-b3-spanid: @caller@\r\nx-b3-sampled: 1\r\n"),
    ("zipkin", "/single", "b3: @trace@-@caller@-1\r\n"),
    ("zipkin", "/not", "x-b3-sampled: 0\r\n"),
];

/// What is random in a text, by its kind; `known` are numbers whose place in the trace is known.
struct Names(BTreeMap<String, String>);

impl Names {
    fn name(&mut self, digits: &str, kind: &str) -> String {
        if digits.is_empty() {
            return "none".to_owned();
        }
        let count = self.0.len();
        self.0.entry(digits.to_owned()).or_insert_with(|| format!("{kind}{count}")).clone()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shown(attributes: &[KeyValue], masks: &[(String, &str)]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => mask(text, masks),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}

fn mask(text: &str, masks: &[(String, &str)]) -> String {
    masks.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// A request id, but for what is random in it.
fn id(text: &str) -> String {
    match text.len() {
        36 => format!("id with {}", &text[14..15]),
        _ => text.to_owned(),
    }
}

fn context(seen: &Message, names: &mut Names) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(parent) = seen.header("traceparent") {
        let parts: Vec<&str> = parent.split('-').collect();
        let (trace, span) = (names.name(parts[1], "trace"), names.name(parts[2], "span"));
        lines.push(format!("traceparent {}-{trace}-{span}-{}", parts[0], parts[3]));
    }
    for (name, kind) in [("x-b3-traceid", "trace"), ("x-b3-spanid", "span"), ("x-b3-parentspanid", "span")] {
        if let Some(value) = seen.header(name) {
            lines.push(format!("{name} {} of {} digits", names.name(value, kind), value.len()));
        }
    }
    if let Some(single) = seen.header("b3") {
        let parts =
            single
                .split('-')
                .map(|part| if part.len() < 16 { part.to_owned() } else { names.name(part, "number") });
        lines.push(format!("b3 {}", parts.collect::<Vec<_>>().join("-")));
    }
    for name in ["tracestate", "x-b3-sampled", "x-envoy-decorator-operation"] {
        if let Some(value) = seen.header(name) {
            lines.push(format!("{name} {value:?}"));
        }
    }
    lines.push(format!("request id: {}", seen.header("x-request-id").map(id).unwrap_or_default()));
    lines
}

/// What is seen of each request.
async fn observe(kind: Kind) -> Vec<(String, Vec<String>)> {
    let origin = Origin::start().await;
    let zipkin = Origin::start().await;
    zipkin.answer(|_| Answer::status(202, "Accepted", ""));
    let collector: GrpcService<ExportTraceServiceRequest> =
        GrpcService::start(|_| Said::Message(ExportTraceServiceResponse::default())).await;
    let gone = crate::harness::ports::free_port();
    let values = [
        ("origin", origin.port().to_string()),
        ("zipkin", zipkin.port().to_string()),
        ("collector", collector.port().to_string()),
        ("gone", gone.to_string()),
    ];
    let template = bootstrap();
    let proxy = Proxy::start(Plan::new(kind, &template, &values)).await;
    let mut all = Vec::new();
    let mut spans: Vec<Span> = Vec::new();
    let mut reported: Vec<Value> = Vec::new();
    origin.answer(|request| match request.target() {
        "/error" => Answer::status(500, "Oops", "no"),
        "/retry" => Answer::status(503, "Later", "no"),
        "/grpc" => Answer::raw("HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 7\r\ngrpc-message: no\r\ncontent-length: 0\r\n\r\n"),
        "/answered" => Answer::raw("HTTP/1.1 200 OK\r\nx-envoy-decorator-operation: theirs\r\ncontent-length: 2\r\n\r\nok"),
        _ => Answer::ok("ok"),
    });
    let mut expected = 0;
    for (listener, path, head) in REQUESTS {
        let head = head.replace("@trace@", PARENT).replace("@caller@", CALLER);
        let method = if *path == "/grpc" { "POST" } else { "GET" };
        let request = format!("{method} {path} HTTP/1.1\r\nhost: t.test\r\n{head}\r\n");
        let mut client = Client::connect(proxy.port(listener)).await.expect("connected");
        let port = client.local().port();
        let answer = client.exchange(request.as_bytes()).await.expect("an answer");
        let mut names = Names(BTreeMap::new());
        names.0.insert(PARENT.to_owned(), "their trace".to_owned());
        names.0.insert(CALLER.to_owned(), "their span".to_owned());
        let copied = path.starts_with("/mirror");
        if copied {
            assert!(origin.wait_for(2).await, "{kind:?}, {listener} {path}: no copy came");
        }
        let mut seen = origin.take();
        // A copy may come first; it says that it comes from here.
        seen.sort_by_key(|seen| seen.header("x-envoy-internal").is_some());
        let mut lines: Vec<String> = seen.iter().flat_map(|seen| context(seen, &mut names)).collect();
        for name in ["x-envoy-decorator-operation", "x-request-id"] {
            lines.extend(answer.header(name).map(|value| format!("the client sees {name} {}", id(value))));
        }
        // Both know by now which spans there are to be: as many as Envoy sends.
        let sampled = lines
            .iter()
            .any(|line| line.ends_with("-01") || line == "x-b3-sampled \"1\"" || line.starts_with("b3 "));
        // That one passes with what it had.
        let sampled = sampled && *path != "/broken";
        let unseen = path.starts_with("/gone");
        expected += usize::from(sampled || unseen);
        let id = seen.first().and_then(|seen| seen.header("x-request-id")).unwrap_or("?").to_owned();
        let masks = [
            (format!(":{}", origin.port()), ":<origin>"),
            (format!(":{gone}"), ":<gone>"),
            (format!(":{port}"), ":<client>"),
            (id, "<id>"),
        ];
        let copies = usize::from(copied && *path != "/mirror/not");
        if sampled || unseen {
            let whole =
                |spans: &[Span]| spans.iter().any(|span| span.kind == 2 || !listener.starts_with("spawn"));
            let came = eventually(DEADLINE / 4, || {
                for question in collector.take() {
                    let scopes = question.resource_spans.into_iter().flat_map(|one| one.scope_spans);
                    spans.extend(scopes.flat_map(|scope| scope.spans));
                }
                for message in zipkin.take() {
                    let body: Vec<Value> = serde_json::from_str(&message.text()).expect("JSON");
                    reported.extend(body);
                }
                std::future::ready(reported.len() > copies || spans.len() > copies && whole(&spans))
            })
            .await;
            assert!(came, "{kind:?}, {listener} {path}: no span came");
        }
        spans.sort_by_key(|span| (span.kind, span.start_time_unix_nano));
        for span in spans.drain(..) {
            let trace = names.name(&hex(&span.trace_id), "trace");
            let (own, parent) =
                (names.name(&hex(&span.span_id), "span"), names.name(&hex(&span.parent_span_id), "span"));
            lines.push(format!(
                "span {:?}, kind {}, {own} in {trace} of {parent}, state {:?}, status {:?}",
                span.name,
                span.kind,
                span.trace_state,
                span.status.map(|status| status.code)
            ));
            lines.extend(shown(&span.attributes, &masks).into_iter().map(|(k, v)| {
                let value = if k == "guid:x-request-id" { "an id".to_owned() } else { v };
                format!("  {k}: {value}")
            }));
        }
        for span in reported.drain(..) {
            let text = |name: &str| span[name].as_str().unwrap_or_default().to_owned();
            let trace = names.name(&text("traceId"), "trace");
            let (own, parent) = (names.name(&text("id"), "span"), names.name(&text("parentId"), "span"));
            let (name, kind, service) = (text("name"), text("kind"), &span["localEndpoint"]["serviceName"]);
            lines.push(format!(
                "zipkin {name:?} {kind} of {service}: {own} in {trace} of {parent}, shared {}",
                span["shared"]
            ));
            let tags = span["tags"].as_object().cloned().unwrap_or_default();
            let tags: BTreeMap<_, _> = tags.into_iter().collect();
            for (name, value) in tags {
                let value = mask(value.as_str().unwrap_or("?"), &masks);
                let value = if name == "guid:x-request-id" { "an id".to_owned() } else { value };
                lines.push(format!("  {name}: {value}"));
            }
        }
        lines.sort();
        all.push((format!("{listener} {path}"), lines));
    }
    assert!(expected > 10, "most requests are sampled");
    all
}

/// What is sampled, told on and told to the collector is what Envoy samples and tells.
#[tokio::test]
async fn traces_are_those_of_envoy() {
    let (theirs, ours) = tokio::join!(observe(Kind::Envoy), observe(Kind::Outrigger));
    let mut beside = Beside::default();
    for ((name, theirs), (_, ours)) in theirs.iter().zip(&ours) {
        // Why a try got no answer is not told, but how much of an answer the client had (docs/differences.md).
        let excepted = |line: &&String| {
            line.starts_with("  error.reason: ")
                || name.starts_with("spawn") && line.starts_with("  response_size: ")
        };
        let [theirs, ours] = [theirs, ours]
            .map(|lines| lines.iter().filter(|line| !excepted(line)).cloned().collect::<Vec<_>>());
        beside.lines(name, &theirs, &ours);
    }
    beside.end();
}

/// A collector that never answers costs no request any time, and of the spans only some are kept.
#[tokio::test]
async fn a_silent_collector_holds_nobody_up() {
    let origin = Origin::start().await;
    let collector: GrpcService<ExportTraceServiceRequest> =
        GrpcService::start(|_| Said::<ExportTraceServiceResponse>::Nothing).await;
    let mut provider = otlp();
    provider["typed_config"]["max_cache_size"] = 20.into();
    let template = json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "@port:admin@"}}},
        "static_resources": {
            "listeners": [listener("ingress", "INBOUND", &json!({"provider": provider}), &json!({}))],
            "clusters": [cluster("origin", "origin", false), cluster("gone", "origin", false),
                cluster("collector", "collector", true)]}})
    .to_string();
    let values = [("origin", origin.port().to_string()), ("collector", collector.port().to_string())];
    let proxy = Proxy::start(Plan {
        arguments: &["--concurrency", "1"],
        ..Plan::new(Kind::Outrigger, &template, &values)
    })
    .await;
    let mut client = Client::connect(proxy.port("ingress")).await.expect("connected");
    for number in 0..100 {
        let answer = client.exchange(b"GET / HTTP/1.1\r\nhost: t.test\r\n\r\n").await.expect("an answer");
        assert_eq!(answer.status(), 200, "request {number}");
    }
    let dropped = proxy.stats().await.get("tracing.opentelemetry.spans_dropped").copied().unwrap_or_default();
    assert!((60..100).contains(&dropped), "{dropped} of 100 were dropped");
}
