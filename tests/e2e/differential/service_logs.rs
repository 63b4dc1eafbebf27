//! Access logs that go to services: what Envoy and Outrigger tell of the same requests and connections.

use std::collections::BTreeMap;

use outrigger_control_api::pb::envoy::config::core::v3::address::Address;
use outrigger_control_api::pb::envoy::data::accesslog::v3 as data;
use outrigger_control_api::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    Identifier, LogEntries,
};
use outrigger_control_api::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use outrigger_control_api::pb::google::protobuf::{Duration, UInt32Value};
use outrigger_control_api::pb::opentelemetry::proto::collector::logs::v1::ExportLogsServiceRequest;
use outrigger_control_api::pb::opentelemetry::proto::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use serde_json::{json, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::beside::Beside;
use crate::harness::client::Client;
use crate::harness::collector::Collector;
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::tcp_origin::TcpOrigin;
use crate::harness::{eventually, DEADLINE};
use crate::peers;

const ALS: &str = "StreamAccessLogs";
const OTLP: &str = "LogsService/Export";

fn typed(kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/{kind}").into();
    json!({"name": kind, "typed_config": config})
}

fn grpc(cluster: &str) -> Value {
    json!({"envoy_grpc": {"cluster_name": cluster}})
}

fn common(name: &str, size: u32) -> Value {
    json!({"log_name": name, "grpc_service": grpc("collector"), "transport_api_version": "V3", "buffer_size_bytes": size,
        "buffer_flush_interval": "0.1s",
        "filter_state_objects_to_log": ["left", "number", "missing"],
        "custom_tags": [
            {"tag": "fixed", "literal": {"value": "text"}},
            {"tag": "agent", "request_header": {"name": "user-agent", "default_value": "nobody"}},
            {"tag": "nothing", "request_header": {"name": "x-nothing"}},
            {"tag": "noted", "metadata": {"kind": {"request": {}}, "metadata_key": {"key": "room", "path": [{"key": "door"}]}}}]})
}

fn http_log(name: &str, size: u32) -> Value {
    typed(
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        json!({"common_config": common(name, size),
            "additional_request_headers_to_log": ["x-twice", "X-One", "x-none"],
            "additional_response_headers_to_log": ["x-origin", "content-type"],
            "additional_response_trailers_to_log": ["x-trailer"]}),
    )
}

fn tcp_log(name: &str) -> Value {
    typed(
        "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig",
        json!({"common_config": {"log_name": name, "grpc_service": grpc("collector"), "transport_api_version": "V3",
            "buffer_size_bytes": 1}}),
    )
}

fn otlp_log(mut more: Value) -> Value {
    let base = json!({
        "common_config": {"log_name": "otel", "grpc_service": grpc("collector"), "transport_api_version": "V3",
            "buffer_size_bytes": 1},
        "filter_state_objects_to_log": common("", 1)["filter_state_objects_to_log"],
        "custom_tags": common("", 1)["custom_tags"],
        "body": {"kvlist_value": {"values": [
            {"key": "line", "value": {"string_value": "%REQ(:METHOD)% \"%REQ(x-one)%\" %RESPONSE_CODE% %REQ(x-none)%\n"}},
            {"key": "list", "value": {"array_value": {"values": [{"string_value": "%PROTOCOL%"}, {"string_value": "plain"}]}}}]}},
        "attributes": {"values": [
            {"key": "code", "value": {"string_value": "%RESPONSE_CODE%"}},
            {"key": "missing", "value": {"string_value": "%REQ(x-none)%"}},
            {"key": "odd", "value": {"string_value": "%REQ(x-odd)%"}},
            {"key": "empty", "value": {"string_value": ""}}]},
        "resource_attributes": {"values": [{"key": "region", "value": {"string_value": "here"}}]},
    });
    if let (Value::Object(more), Value::Object(base)) = (&mut more, base) {
        for (key, value) in base {
            more.entry(key).or_insert(value);
        }
    }
    typed("envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig", more)
}

fn manager(name: &str, logs: &[Value], more: Value) -> Value {
    let state = |key: &str, factory: &str, text: &str| {
        json!({"object_key": key, "factory_key": factory,
            "format_string": {"text_format_source": {"inline_string": text}}})
    };
    let filters = [
        typed(
            "envoy.extensions.filters.http.set_filter_state.v3.Config",
            json!({"on_request_headers": [
            state("left", "envoy.string", "by %REQ(:METHOD)%"),
            state("number", "envoy.tcp_proxy.per_connection_idle_timeout_ms", "17")]}),
        ),
        typed(
            "envoy.extensions.filters.http.set_metadata.v3.Config",
            json!({"metadata": [
            {"metadata_namespace": "room", "value": {"door": "open", "windows": 2}}]}),
        ),
        typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
    ];
    let routes = json!([
        {"match": {"prefix": "/direct"}, "name": "straight", "direct_response": {"status": 418, "body": {"inline_string": "no"}}},
        {"match": {"prefix": "/refused"}, "name": "closed", "route": {"cluster": "refused"}},
        {"match": {"prefix": "/retried"}, "route": {"cluster": "origin", "retry_policy": {"retry_on": "5xx", "num_retries": 2,
            "retry_back_off": {"base_interval": "0.001s"}}}},
        {"match": {"prefix": "/rewritten"}, "route": {"cluster": "origin", "prefix_rewrite": "/new"}},
        {"match": {"prefix": "/a"}, "name": "open", "route": {"cluster": "origin"}}]);
    let mut manager = json!({"stat_prefix": name, "http_filters": filters, "access_log": logs,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}});
    if let (Value::Object(manager), Value::Object(more)) = (&mut manager, more) {
        manager.extend(more);
    }
    typed("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", manager)
}

fn listener(name: &str, filter: &Value) -> Value {
    json!({"name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": format!("@port:{name}@")}},
        "filter_chains": [{"filters": [filter]}]})
}

fn cluster(name: &str, port: &str, http2: bool) -> Value {
    let mut cluster = json!({"name": name, "type": "STATIC", "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
            "socket_address": {"address": "127.0.0.1", "port_value": port}}}}]}]}});
    if http2 {
        cluster["http2_protocol_options"] = json!({});
    }
    cluster
}

pub fn bootstrap(listeners: &[Value]) -> String {
    json!({"node": {"id": "node", "cluster": "web", "locality": {"region": "r", "zone": "here"}, "metadata": {"a": "b"}},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "@port:admin@"}}},
        "static_resources": {"listeners": listeners, "clusters": [
            cluster("origin", "@origin@", false), cluster("tcp", "@tcp@", false), cluster("refused", "@port:refused@", false),
            cluster("collector", "@collector@", true), cluster("web", "@web@", false)]}})
    .to_string()
}

struct Rig {
    proxy: Proxy,
    origin: Origin,
    web: Origin,
    tcp: TcpOrigin,
    collector: Collector,
}

impl Rig {
    async fn start(kind: Kind, listeners: &[Value]) -> Rig {
        let (origin, web, tcp) = (Origin::start().await, Origin::start().await, TcpOrigin::start().await);
        let collector = Collector::start().await;
        origin.answer(|request| match request.target() {
            "/retried" => Answer::status(503, "Later", "later"),
            _ => Answer::raw(
                "HTTP/1.1 200 OK\r\nx-origin: yes\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok",
            ),
        });
        let values = [
            ("origin", origin.port().to_string()),
            ("web", web.port().to_string()),
            ("tcp", tcp.port.to_string()),
            ("collector", collector.port().to_string()),
        ];
        let template = bootstrap(listeners);
        let plan = Plan { arguments: &["--concurrency", "1"], ..Plan::new(kind, &template, &values) };
        Rig { proxy: Proxy::start(plan).await, origin, web, tcp, collector }
    }

    /// The ports, by what they are.
    fn names(&self, client: u16) -> BTreeMap<u32, String> {
        let mut names: BTreeMap<u32, String> =
            self.proxy.ports().iter().map(|(name, port)| (u32::from(*port), name.clone())).collect();
        names.insert(client.into(), "client".into());
        names.insert(self.origin.port().into(), "origin".into());
        names.insert(self.tcp.port.into(), "tcp".into());
        names
    }

    async fn messages<M: prost::Message + Default>(
        &self,
        method: &str,
        count: usize,
        of: impl Fn(&M) -> usize,
    ) -> Vec<M> {
        let mut all: Vec<M> = Vec::new();
        let came = eventually(DEADLINE, || {
            all.extend(self.collector.take_of(method));
            std::future::ready(all.iter().map(&of).sum::<usize>() >= count)
        })
        .await;
        assert!(came, "{:?}: {} of {count} entries of {method}", self.proxy.kind(), all.len());
        all
    }
}

fn entries_of(message: &StreamAccessLogsMessage) -> usize {
    match &message.log_entries {
        Some(LogEntries::HttpLogs(logs)) => logs.log_entry.len(),
        Some(LogEntries::TcpLogs(logs)) => logs.log_entry.len(),
        None => 0,
    }
}

fn records_of(request: &ExportLogsServiceRequest) -> usize {
    request.resource_logs.iter().flat_map(|one| &one.scope_logs).map(|scope| scope.log_records.len()).sum()
}

/// The common part without what is never the same: of times only whether they are told, of ports what they are.
fn shown(mut common: data::AccessLogCommon, names: &BTreeMap<u32, String>) -> Vec<String> {
    let told = |time: &mut Option<Duration>| {
        if let Some(time) = time {
            assert!(time.seconds >= 0 && time.seconds < 60 && time.nanos >= 0, "{time:?}");
            *time = Duration::default();
        }
    };
    for time in [
        &mut common.time_to_last_rx_byte,
        &mut common.time_to_first_upstream_tx_byte,
        &mut common.time_to_last_upstream_tx_byte,
        &mut common.time_to_first_upstream_rx_byte,
        &mut common.time_to_last_upstream_rx_byte,
        &mut common.time_to_first_downstream_tx_byte,
        &mut common.time_to_last_downstream_tx_byte,
        &mut common.duration,
    ] {
        told(time);
    }
    let start = common.start_time.take().expect("a start");
    assert!(start.seconds > 1_700_000_000, "{start:?}");
    // That port may be the client's too: they are of different connections.
    let local = common.upstream_local_address.as_mut().and_then(|address| address.address.as_mut());
    if let Some(Address::SocketAddress(socket)) = local {
        socket.port_specifier = None;
    }
    // Framing is not counted (docs/differences.md).
    for bytes in [
        &mut common.downstream_wire_bytes_sent,
        &mut common.downstream_wire_bytes_received,
        &mut common.upstream_wire_bytes_sent,
        &mut common.upstream_wire_bytes_received,
    ] {
        *bytes = u64::from(*bytes > 0);
    }
    if common.stream_id.len() == 36 {
        common.stream_id = "an id".into();
    }
    let tags: BTreeMap<_, _> = common.custom_tags.drain().collect();
    let objects: BTreeMap<_, _> = common.filter_state_objects.drain().collect();
    let metadata: BTreeMap<_, _> = common
        .metadata
        .take()
        .into_iter()
        .flat_map(|all| all.filter_metadata)
        .map(|(name, fields)| (name, fields.fields.into_iter().collect::<BTreeMap<_, _>>()))
        .collect();
    let mut lines: Vec<String> = format!("{common:#?}").lines().map(str::to_owned).collect();
    lines.extend([format!("{tags:?}"), format!("{objects:?}"), format!("{metadata:?}")]);
    for line in &mut lines {
        let digits = line.trim().trim_end_matches(',').parse::<u32>();
        if let Ok(port @ 1024..) = digits {
            *line = format!("port of {}", names.get(&port).map_or("nobody in particular", String::as_str));
        }
    }
    lines
}

fn http_lines(mut entry: data::HttpAccessLogEntry, names: &BTreeMap<u32, String>) -> Vec<String> {
    let mut lines = vec![format!("version {}", entry.protocol_version)];
    let mut request = entry.request.take().unwrap_or_default();
    let mut response = entry.response.take().unwrap_or_default();
    let maps = [
        std::mem::take(&mut request.request_headers),
        std::mem::take(&mut response.response_headers),
        std::mem::take(&mut response.response_trailers),
    ];
    lines.extend(maps.map(|map| format!("{:?}", map.into_iter().collect::<BTreeMap<_, _>>())));
    if request.request_id.len() == 36 {
        request.request_id = "an id".into();
    }
    for bytes in [
        &mut request.downstream_header_bytes_received,
        &mut response.downstream_header_bytes_sent,
        // Who adds which headers when is not the same.
        &mut request.request_headers_bytes,
        &mut response.response_headers_bytes,
    ] {
        *bytes = u64::from(*bytes > 0);
    }
    // Heads are not counted apart from bodies on that side (docs/differences.md).
    (request.upstream_header_bytes_sent, response.upstream_header_bytes_received) = (0, 0);
    // Nor are those that are refused.
    if matches!(response.response_code, Some(UInt32Value { value: 400 | 426 })) {
        request.downstream_header_bytes_received = 0;
        if let Some(common) = &mut entry.common_properties {
            common.downstream_wire_bytes_received = 0;
        }
    }
    if request.forwarded_for.contains('.') {
        request.forwarded_for = "an address".into();
    }
    lines.extend(format!("{request:#?}").lines().map(str::to_owned));
    lines.extend(format!("{response:#?}").lines().map(str::to_owned));
    lines.extend(shown(entry.common_properties.unwrap_or_default(), names));
    lines
}

const REQUESTS: &[&[u8]] = &[
    b"GET /a?x=1 HTTP/1.1\r\nHost: t.test\r\nUser-Agent: tests/1\r\nReferer: http://r.test/\r\nX-Twice: 1\r\nX-Twice: 2\r\nX-One: one\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: t.test\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /rewritten/x HTTP/1.1\r\nHost: t.test\r\n\r\n",
    b"GET /direct HTTP/1.1\r\nHost: t.test\r\n\r\n",
    b"GET /none HTTP/1.1\r\nHost: t.test\r\n\r\n",
    b"GET /refused HTTP/1.1\r\nHost: t.test\r\n\r\n",
    b"GET /retried HTTP/1.1\r\nHost: t.test\r\n\r\n",
    b"PURGE /a HTTP/1.1\r\nHost: t.test\r\nX-Odd: a\xc3\xa9\r\n\r\n",
    b"GET /a HTTP/1.0\r\nHost: t.test\r\n\r\n",
    b"GET /bad HTTP/1.1\r\nHost: t.test\r\nnonsense\r\n\r\n",
];

/// Panics with what only one of them has told.
#[track_caller]
fn same(theirs: &[(String, Vec<String>)], ours: &[(String, Vec<String>)]) {
    assert_eq!(theirs.len(), ours.len(), "{theirs:#?}\n{ours:#?}");
    let mut beside = Beside::default();
    for ((name, theirs), (_, ours)) in theirs.iter().zip(ours) {
        beside.lines(name, theirs, ours);
    }
    beside.end();
}

async fn requests(kind: Kind) -> Vec<(String, Vec<String>)> {
    let tracer = typed(
        "envoy.config.trace.v3.OpenTelemetryConfig",
        json!({"service_name": "web",
        "http_service": {"http_uri": {"uri": "http://collector.test/v1/traces", "cluster": "web", "timeout": "1s"}}}),
    );
    let logs = [http_log("als", 1), otlp_log(json!({}))];
    let traced = manager("http", &logs, json!({"tracing": {"provider": tracer}}));
    let rig = Rig::start(kind, &[listener("http", &traced)]).await;
    let mut all = Vec::new();
    for request in REQUESTS {
        let mut client = Client::connect(rig.proxy.port("http")).await.expect("connected");
        let names = rig.names(client.local().port());
        client.exchange(request).await.expect("an answer");
        let name = String::from_utf8_lossy(request).lines().next().unwrap_or_default().to_owned();
        let mut lines = Vec::new();
        for message in rig.messages::<StreamAccessLogsMessage>(ALS, 1, entries_of).await {
            lines.extend(message.identifier.as_ref().map(identified));
            let Some(LogEntries::HttpLogs(logs)) = message.log_entries else { panic!("no entries for HTTP") };
            lines.extend(logs.log_entry.into_iter().flat_map(|entry| http_lines(entry, &names)));
        }
        for request in rig.messages::<ExportLogsServiceRequest>(OTLP, 1, records_of).await {
            lines.extend(otlp_lines(request));
        }
        all.push((name, lines));
    }
    // Spans, too, go over HTTP.
    assert!(rig.web.wait_for(1).await, "{kind:?} tells of spans");
    let mut lines = Vec::new();
    for request in rig.web.take() {
        lines = vec![request.start_line.clone()];
        lines.extend(["host", "content-type"].map(|name| format!("{name}: {:?}", request.header(name))));
        let spans = ExportTraceServiceRequest::decode(request.body.as_slice()).expect("spans");
        assert!(!spans.resource_spans.is_empty());
    }
    all.push(("spans".to_owned(), lines));
    all
}

fn otlp_lines(request: ExportLogsServiceRequest) -> Vec<String> {
    let mut lines = Vec::new();
    for one in request.resource_logs {
        lines.extend(format!("{:#?}", one.resource).lines().map(str::to_owned));
        for scope in one.scope_logs {
            lines.push(format!("scope {:?}", scope.scope));
            for mut record in scope.log_records {
                assert!(record.time_unix_nano > 1_700_000_000_000_000_000);
                record.time_unix_nano = 0;
                // Random.
                for number in [&mut record.trace_id, &mut record.span_id] {
                    *number = vec![number.len() as u8];
                }
                record.observed_time_unix_nano = record.observed_time_unix_nano.min(1);
                record.attributes.sort_by(|a, b| a.key.cmp(&b.key));
                lines.extend(format!("{record:#?}").lines().map(str::to_owned));
            }
        }
    }
    lines
}

fn identified(identifier: &Identifier) -> String {
    let node = identifier.node.as_ref().expect("a node");
    format!(
        "{} of {} in {}, {:?}, {:?}",
        identifier.log_name, node.id, node.cluster, node.locality, node.metadata
    )
}

/// What a log service and OpenTelemetry's are told of requests is what Envoy tells them.
#[tokio::test]
async fn requests_are_logged_to_services_as_by_envoy() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (theirs, ours) = tokio::join!(requests(Kind::Envoy), requests(Kind::Outrigger));
    same(&theirs, &ours);
}

async fn sessions(kind: Kind) -> Vec<(String, Vec<String>)> {
    let proxy = |name: &str, cluster: &str| {
        let mut filter = typed(
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            json!({"stat_prefix": name,
            "cluster": cluster, "access_log": [tcp_log("tcp")], "access_log_options": {"flush_access_log_on_connected": true,
            "flush_access_log_on_start": true}}),
        );
        filter["name"] = "tcp".into();
        listener(name, &filter)
    };
    let rig = Rig::start(kind, &[proxy("good", "tcp"), proxy("closed", "refused")]).await;
    let mut all = Vec::new();
    for (name, count) in [("good", 3), ("closed", 2)] {
        let mut stream =
            tokio::net::TcpStream::connect(("127.0.0.1", rig.proxy.port(name))).await.expect("connected");
        let names = rig.names(stream.local_addr().expect("an address").port());
        let _ = stream.write_all(b"echo\nhello").await;
        let mut echoed = [0; 5];
        let _ = stream.read_exact(&mut echoed).await;
        drop(stream);
        let mut lines = Vec::new();
        for message in rig.messages::<StreamAccessLogsMessage>(ALS, count, entries_of).await {
            lines.extend(message.identifier.as_ref().map(identified));
            let Some(LogEntries::TcpLogs(logs)) = message.log_entries else { panic!("no entries for TCP") };
            for entry in logs.log_entry {
                lines.push(format!("{:?}", entry.connection_properties));
                lines.extend(shown(entry.common_properties.unwrap_or_default(), &names));
            }
        }
        all.push((name.to_owned(), lines));
    }
    all
}

/// And of TCP sessions.
#[tokio::test]
async fn sessions_are_logged_to_services_as_by_envoy() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (theirs, ours) = tokio::join!(sessions(Kind::Envoy), sessions(Kind::Outrigger));
    same(&theirs, &ours);
}

/// Entries wait for each other, and the service is told once a stream who tells them.
async fn batches(kind: Kind) -> Vec<String> {
    let rig =
        Rig::start(kind, &[listener("http", &manager("http", &[http_log("als", 16384)], json!({})))]).await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(rig.proxy.port("http")).await.expect("connected");
        for _ in 0..5 {
            client.exchange(b"GET /direct HTTP/1.1\r\nhost: t.test\r\n\r\n").await.expect("an answer");
        }
        let messages = rig.messages::<StreamAccessLogsMessage>(ALS, 5, entries_of).await;
        let named = messages.iter().filter(|message| message.identifier.is_some()).count();
        seen.push(format!("fewer messages than entries: {}, named: {named}", messages.len() < 5));
    }
    let stats = rig.proxy.stats().await;
    for name in ["logs_written", "logs_dropped"] {
        seen.push(format!("{name} {:?}", stats.get(&format!("access_logs.grpc_access_log.{name}"))));
    }
    seen
}

#[tokio::test]
async fn entries_go_in_batches_on_one_stream() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (theirs, ours) = tokio::join!(batches(Kind::Envoy), batches(Kind::Outrigger));
    assert_eq!(theirs, ours);
}

/// OpenTelemetry's collector over HTTP, and what it and the statistics are told.
async fn over_http(kind: Kind) -> Vec<String> {
    let uri = json!({"http_uri": {"uri": "http://collector.test/v1/logs", "cluster": "web", "timeout": "1s"},
        "request_headers_to_add": [{"header": {"key": "x-token", "value": "secret"}}]});
    let log = otlp_log(
        json!({"http_service": uri, "common_config": null, "log_name": "posted", "buffer_size_bytes": 1,
        "disable_builtin_labels": true, "stat_prefix": "mine"}),
    );
    let rig = Rig::start(kind, &[listener("http", &manager("http", &[log], json!({})))]).await;
    let mut client = Client::connect(rig.proxy.port("http")).await.expect("connected");
    client.exchange(b"GET /direct HTTP/1.1\r\nhost: t.test\r\n\r\n").await.expect("an answer");
    assert!(rig.web.wait_for(1).await, "{kind:?}");
    let mut seen = Vec::new();
    for request in rig.web.take() {
        seen.push(request.start_line.clone());
        for name in ["host", "content-type", "x-token"] {
            seen.push(format!("{name}: {:?}", request.header(name)));
        }
        let body = ExportLogsServiceRequest::decode(request.body.as_slice()).expect("a request");
        seen.extend(otlp_lines(body));
    }
    let name = "access_logs.open_telemetry_access_log.mine.logs_written";
    let counted = eventually(DEADLINE, || async { rig.proxy.stats().await.get(name) == Some(&1) }).await;
    seen.push(format!("counted: {counted}"));
    seen
}

#[tokio::test]
async fn opentelemetry_logs_go_over_http() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (theirs, ours) = tokio::join!(over_http(Kind::Envoy), over_http(Kind::Outrigger));
    assert_eq!(theirs, ours);
}

/// A service that is away costs no request any time, and what is logged meanwhile a bounded amount of memory.
#[tokio::test]
async fn a_log_service_that_is_away_holds_nobody_up() {
    let mut log = http_log("als", 1024);
    log["typed_config"]["common_config"]["grpc_service"] = grpc("refused");
    let rig = Rig::start(Kind::Outrigger, &[listener("http", &manager("http", &[log], json!({})))]).await;
    let mut client = Client::connect(rig.proxy.port("http")).await.expect("connected");
    let long = "x".repeat(20_000);
    let request = format!("GET /direct HTTP/1.1\r\nhost: t.test\r\nx-one: {long}\r\n\r\n");
    for number in 0..200 {
        let answer = client.exchange(request.as_bytes()).await.expect("an answer");
        assert_eq!(answer.status(), 418, "request {number}");
    }
    let dropped = "access_logs.grpc_access_log.logs_dropped";
    let counted = eventually(DEADLINE, || async {
        rig.proxy.stats().await.get(dropped).copied().unwrap_or_default() > 100
    })
    .await;
    assert!(counted, "what does not fit is counted");
}
