use outrigger_control_api::load_value;
use outrigger_control_api::pb::envoy::config::accesslog::v3 as pb;
use outrigger_control_api::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use outrigger_control_api::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use outrigger_control_api::pb::opentelemetry::proto::collector::logs::v1::ExportLogsServiceRequest;
use prost::Message;
use serde_json::{json, Value};

use super::*;
use crate::config::problems::Problems;
use crate::config::Directory;
use crate::telemetry::access_log::{AccessLog, Output};
use crate::telemetry::fixtures::{failed_stream, stream, Head};

const TYPES: &str = "type.googleapis.com/envoy.extensions.access_loggers";

fn compile(kind: &str, mut config: Value) -> (Option<ServiceLog>, Problems) {
    config["@type"] = format!("{TYPES}.{kind}").into();
    let config = json!({"name": "log", "typed_config": config});
    let config: pb::AccessLog = load_value(&config).unwrap().message;
    let mut problems = Problems::new();
    let log = AccessLog::compile(&config, &|_| None, &Directory::default(), &mut problems);
    let log = log.map(|log| match log.output {
        Output::Service(log) => log,
        Output::Lines(..) => panic!("not of a service"),
    });
    (log, problems)
}

fn http(name: &str) -> Value {
    json!({"common_config": {"log_name": name, "grpc_service": {"envoy_grpc": {"cluster_name": "als"}}},
        "additional_request_headers_to_log": ["X-Twice"]})
}

/// The message that a service gets of what `write` appends.
fn sent(log: &ServiceLog, first: bool, contexts: &[FormatContext<'_>]) -> Vec<u8> {
    let mut entries = Vec::new();
    for context in contexts {
        match &log.what {
            What::Http(common, more) => message_of(1, &entry::http(common, more, context), &mut entries),
            What::Tcp(common) => message_of(1, &entry::tcp(common, context), &mut entries),
            What::Otlp(record) => message_of(2, &record.of(context), &mut entries),
        }
    }
    log.service.message(&entries, first)
}

#[test]
fn entries_of_a_stream_stand_in_its_messages() {
    let (log, problems) = compile("grpc.v3.HttpGrpcAccessLogConfig", http("one"));
    assert_eq!(problems.to_string(), "");
    let log = log.unwrap();
    let (good, bad) = (stream(), failed_stream());
    let head = Head::new(&[(":method", "GET"), ("x-twice", "a"), ("x-twice", "b")]);
    let contexts = [FormatContext::new(&good).with_request(&head), FormatContext::new(&bad)];
    for first in [true, false] {
        let message = StreamAccessLogsMessage::decode(sent(&log, first, &contexts).as_slice()).unwrap();
        let name = message.identifier.map(|identifier| identifier.log_name);
        assert_eq!(name.as_deref(), first.then_some("one"));
        let Some(LogEntries::HttpLogs(logs)) = message.log_entries else { panic!("no entries") };
        let [one, other] = logs.log_entry.as_slice() else { panic!("{logs:?}") };
        let request = one.request.as_ref().unwrap();
        assert_eq!((request.request_method, &*request.request_headers["x-twice"]), (1, "a,b"));
        let common = one.common_properties.as_ref().unwrap();
        assert_eq!(common.response_flags, None);
        assert_eq!(common.duration.map(|duration| duration.nanos), Some(12_000_000));
        assert_eq!(common.start_time.map(|time| time.seconds), Some(1_795_235_329));
        let flags = other.common_properties.as_ref().unwrap().response_flags.unwrap();
        assert!(flags.upstream_connection_failure && flags.upstream_retry_limit_exceeded);
        assert!(!flags.no_route_found);
    }
}

#[test]
fn sessions_have_entries_of_their_own() {
    let config = json!({"common_config": http("tcp")["common_config"]});
    let log = compile("grpc.v3.TcpGrpcAccessLogConfig", config).0.unwrap();
    let mut info = stream();
    info.protocol = None;
    let message =
        StreamAccessLogsMessage::decode(sent(&log, true, &[FormatContext::new(&info)]).as_slice()).unwrap();
    let Some(LogEntries::TcpLogs(logs)) = message.log_entries else { panic!("no entries") };
    let carried = logs.log_entry[0].connection_properties.unwrap();
    assert_eq!((carried.received_bytes, carried.sent_bytes), (4, 83));
    assert_eq!(logs.log_entry[0].common_properties.as_ref().unwrap().stream_id.len(), 36);
}

#[test]
fn records_have_the_resource_around_them() {
    let config = json!({"grpc_service": {"envoy_grpc": {"cluster_name": "otel"}}, "log_name": "otel",
        "resource_attributes": {"values": [{"key": "a", "value": {"string_value": "b"}}]},
        "body": {"string_value": "%RESPONSE_CODE% \"%REQ(x-quoted)%\"\n"}});
    let log = compile("open_telemetry.v3.OpenTelemetryAccessLogConfig", config).0.unwrap();
    let info = stream();
    let head = Head(vec![("x-quoted", b"a \"b\" \xff".to_vec())]);
    let context = FormatContext::new(&info).with_request(&head);
    let request = ExportLogsServiceRequest::decode(sent(&log, true, &[context, context]).as_slice()).unwrap();
    let [logs] = request.resource_logs.as_slice() else { panic!("{request:?}") };
    let keys: Vec<_> = logs.resource.as_ref().unwrap().attributes.iter().map(|pair| &*pair.key).collect();
    assert_eq!(keys, ["log_name", "zone_name", "cluster_name", "node_name", "a"]);
    assert_eq!(logs.scope_logs[0].log_records.len(), 2);
    let body = format!("{:?}", logs.scope_logs[0].log_records[1].body);
    assert!(body.contains(r#"200 \"a \"b\" !\"\n"#), "{body}");
}

#[test]
fn equal_loggers_share_a_service() {
    let one = || compile("grpc.v3.HttpGrpcAccessLogConfig", http("shared")).0.unwrap();
    let (a, b) = (one(), one());
    // Each was compiled with slots of its own.
    assert_ne!(a.service.id, b.service.id);
    let config = http("shared");
    let any = |config: &Value| {
        let mut config = config.clone();
        config["@type"] = format!("{TYPES}.grpc.v3.HttpGrpcAccessLogConfig").into();
        let config = json!({"name": "log", "typed_config": config});
        load_value::<pb::AccessLog>(&config).unwrap().message.config_type
    };
    let clusters = Directory::default();
    let log = |config: &Value| {
        let Some(pb::access_log::ConfigType::TypedConfig(any)) = any(config) else { panic!("no logger") };
        compile::service_log(&any, &clusters, &mut Problems::new()).unwrap()
    };
    let (first, second) = (log(&config), log(&config));
    assert_eq!(first.service.id, second.service.id);
    assert_ne!(first.service.id, log(&http("another")).service.id);
}

#[test]
fn what_cannot_be_is_refused() {
    let errors = |kind: &str, config: Value| {
        let (log, problems) = compile(kind, config);
        assert!(log.is_none());
        problems.to_string()
    };
    let mut old = http("old");
    old["common_config"]["transport_api_version"] = "V2".into();
    assert_eq!(
        errors("grpc.v3.HttpGrpcAccessLogConfig", old),
        "typed_config.common_config.transport_api_version: only V3 is spoken"
    );
    let otlp = "open_telemetry.v3.OpenTelemetryAccessLogConfig";
    assert_eq!(
        errors(otlp, json!({"log_name": "x"})),
        "typed_config: needs grpc_service, http_service or common_config.grpc_service"
    );
    let number = json!({"grpc_service": {"envoy_grpc": {"cluster_name": "otel"}}, "attributes": {"values": [
        {"key": "n", "value": {"int_value": 1}}]}});
    assert_eq!(
        errors(otlp, number),
        "typed_config.attributes.values[0].value: only texts, lists and maps of them are values here"
    );
}

#[test]
fn without_a_courier_entries_are_dropped() {
    let log = compile("grpc.v3.HttpGrpcAccessLogConfig", http("nobody")).0.unwrap();
    let dropped = || {
        crate::telemetry::metrics::snapshot().number("access_logs.grpc_access_log.logs_dropped").unwrap_or(0)
    };
    let before = dropped();
    log.write(&FormatContext::new(&stream()));
    assert!(dropped() > before);
}
