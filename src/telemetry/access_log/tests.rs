use std::time::Duration;

use outrigger_control_api::load_value;
use outrigger_control_api::pb::envoy::config::accesslog::v3 as pb;
use serde_json::json;

use super::*;
use crate::config::problems::Problems;
use crate::config::Directory;
use crate::telemetry::fixtures::{failed_stream, stream, Head};
use crate::telemetry::format::LogType;

const TYPES: &str = "type.googleapis.com/envoy.extensions.access_loggers";

fn parse<M: prost::Message + prost::Name + Default>(config: &serde_json::Value) -> M {
    load_value::<M>(config).unwrap().message
}

fn file(path: &std::path::Path, format: &serde_json::Value) -> serde_json::Value {
    json!({"name": "envoy.access_loggers.file", "typed_config": {
        "@type": format!("{TYPES}.file.v3.FileAccessLog"), "path": path, "log_format": format}})
}

fn compile(config: &serde_json::Value) -> (Option<AccessLog>, Problems) {
    let config: pb::AccessLog = parse(config);
    let mut problems = Problems::new();
    let runtime = |key: &str| (key == "known").then_some(404.0);
    (AccessLog::compile(&config, &runtime, &Directory::default(), &mut problems), problems)
}

fn errors(config: &serde_json::Value) -> String {
    let (log, problems) = compile(config);
    assert!(log.is_none());
    problems.to_string()
}

#[test]
fn lines_reach_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let text = json!({"text_format_source": {"inline_string": "%RESPONSE_CODE% %REQ(x)%\n"}});
    let tree = json!({"json_format": {"code": "%RESPONSE_CODE%", "x": "%REQ(x)%"}});
    let (one, other) = (compile(&file(&path, &text)).0.unwrap(), compile(&file(&path, &tree)).0.unwrap());
    assert!(path.exists(), "the file is there before the first line");

    let info = stream();
    let request = Head::new(&[("x", "a\r\n\"b\"")]);
    let ctx = FormatContext::new(&info).with_request(&request);
    one.write(&ctx);
    other.write(&ctx);
    assert!(one.flush(Duration::from_secs(10)));
    let lines = "200 a\\x0d\\x0a\"b\"\n{\"code\":200,\"x\":\"a\\r\\n\\\"b\\\"\"}\n";
    assert_eq!(std::fs::read_to_string(&path).unwrap(), lines);

    // Log rotation.
    let old = folder.path().join("access.log.1");
    std::fs::rename(&path, &old).unwrap();
    reopen_all();
    assert!(one.flush(Duration::from_secs(10)));
    one.write(&ctx);
    assert!(one.flush(Duration::from_secs(10)));
    assert_eq!(std::fs::read_to_string(&old).unwrap(), lines);
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
}

#[test]
fn the_last_logger_writes_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rest.log");
    let log = compile(&file(&path, &json!({"text_format_source": {"inline_string": "x\n"}}))).0.unwrap();
    let info = stream();
    for _ in 0..100 {
        log.write(&FormatContext::new(&info));
    }
    drop(log);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&path).unwrap().len() < 200 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
}

#[test]
fn a_stalled_file_loses_lines_not_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stalled");
    // A pipe that nobody reads takes 64 KiB and then blocks its writer.
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let reader = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let format = json!({"text_format_source": {"inline_string": format!("{}\n", "x".repeat(9_999))}});
    let log = compile(&file(&path, &format)).0.unwrap();
    let dropped = || crate::telemetry::metrics::snapshot().number("filesystem.write_dropped").unwrap_or(0);
    let before = dropped();
    let info = stream();
    for _ in 0..1000 {
        log.write(&FormatContext::new(&info));
    }
    // 10 MB were written; two buffers of 2 MiB and the pipe hold the rest.
    assert!(dropped() - before > 500, "{}", dropped());
    // Let the writer go on, into nothing.
    drop(log);
    drop(reader);
}

#[test]
fn mistakes_are_named() {
    let path = std::path::Path::new("/nonexistent/folder/x.log");
    let good = json!({"text_format_source": {"inline_string": "x"}});
    assert!(errors(&file(path, &good))
        .starts_with("typed_config.path: unable to open /nonexistent/folder/x.log: No such"));
    let stdout = |format| json!({"name": "x", "typed_config": {"@type": format!("{TYPES}.stream.v3.StdoutAccessLog"), "log_format": format}});
    let bad = stdout(json!({"text_format_source": {"inline_string": "%NOPE%"}}));
    assert_eq!(errors(&bad), "typed_config.log_format.text_format_source: unknown operator %NOPE%");
    let bad = stdout(json!({"json_format": {"a": {"b": "%REQ%"}}}));
    assert_eq!(errors(&bad), "typed_config.log_format.json_format: %REQ% needs an argument in parentheses");
    let bad = stdout(json!({"text_format_source": {"filename": "/nonexistent"}}));
    assert!(errors(&bad).starts_with("typed_config.log_format.text_format_source: cannot read /nonexistent"));
    let mut bad = stdout(json!({"text_format": "x"}));
    bad["filter"] = json!({"and_filter": {"filters": [
        {"extension_filter": {"name": "cel", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
            "expression": "string(1)"}}}, {"response_flag_filter": {"flags": ["UF", "XX"]}}]}});
    assert_eq!(
        errors(&bad),
        "filter.and_filter.filters[0].extension_filter.typed_config.expression: the function string() with 1 arguments \
         is not supported\n\
         filter.and_filter.filters[1].response_flag_filter.flags[1]: unknown response flag \"XX\""
    );
    assert_eq!(errors(&json!({"name": "x"})), "typed_config: an access log needs a logger");

    let (log, problems) = compile(&stdout(json!({"text_format": "%ROUNDTRIP_DURATION%"})));
    assert!(log.is_some());
    assert_eq!(problems.notes()[0].path, "typed_config.log_format.text_format");
}

#[test]
fn filters() {
    let filter = |config: serde_json::Value| {
        let config: pb::AccessLogFilter = parse(&config);
        let mut problems = Problems::new();
        let runtime = |key: &str| (key == "known").then_some(404.0);
        let filter = LogFilter::compile(&config, &runtime, &mut problems);
        assert_eq!(problems.to_string(), "");
        filter.unwrap()
    };
    let (good, bad) = (stream(), failed_stream());
    let head = Head::new(&[("x-request-id", "3d39d85d-2257-4edf-b491-2f98aee5c115")]);
    let traced = Head::new(&[("x-request-id", "00000001-2257-9edf-b491-2f98aee5c115")]);
    let trailers = Head::new(&[("grpc-status", "5")]);
    let good = FormatContext::new(&good).with_request(&head);
    let mut bad = FormatContext::new(&bad).with_request(&traced);
    bad.trailers = Some(&trailers);
    bad.log_type = LogType::DownstreamEnd;
    bad.health_check = true;

    let code = |op, value| json!({"status_code_filter": {"comparison": {"op": op, "value": {"default_value": value, "runtime_key": "none"}}}});
    let cases = [
        (code("GE", 500), false, true),
        (code("LE", 499), true, false),
        (code("EQ", 200), true, false),
        (
            json!({"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 1, "runtime_key": "known"}}}}),
            false,
            true,
        ),
        (
            json!({"duration_filter": {"comparison": {"op": "GE", "value": {"default_value": 13, "runtime_key": "none"}}}}),
            false,
            false,
        ),
        (
            json!({"duration_filter": {"comparison": {"op": "EQ", "value": {"default_value": 12, "runtime_key": "none"}}}}),
            true,
            true,
        ),
        (json!({"not_health_check_filter": {}}), true, false),
        (json!({"traceable_filter": {}}), false, true),
        (json!({"response_flag_filter": {}}), false, true),
        (json!({"response_flag_filter": {"flags": ["URX"]}}), false, true),
        (json!({"response_flag_filter": {"flags": ["NR"]}}), false, false),
        (json!({"grpc_status_filter": {"statuses": ["NOT_FOUND"]}}), false, true),
        (json!({"grpc_status_filter": {"statuses": ["NOT_FOUND"], "exclude": true}}), true, false),
        (json!({"log_type_filter": {"types": ["DownstreamEnd"]}}), false, true),
        (json!({"log_type_filter": {"types": ["DownstreamEnd"], "exclude": true}}), true, false),
        (json!({"log_type_filter": {}}), false, false),
        (
            json!({"header_filter": {"header": {"name": "X-Request-Id", "string_match": {"prefix": "3d"}}}}),
            true,
            false,
        ),
        (
            json!({"header_filter": {"header": {"name": "x-none", "present_match": true, "invert_match": true}}}),
            true,
            true,
        ),
        (json!({"and_filter": {"filters": [code("GE", 200), code("LE", 300)]}}), true, false),
        (json!({"or_filter": {"filters": [code("EQ", 200), code("EQ", 503)]}}), true, true),
        (
            json!({"runtime_filter": {"runtime_key": "none", "percent_sampled": {"numerator": 100}}}),
            true,
            true,
        ),
        (
            json!({"runtime_filter": {"runtime_key": "none", "percent_sampled": {"numerator": 0}}}),
            false,
            false,
        ),
        // The ids' first eight digits are 1,027,201,117 and 1.
        (
            json!({"runtime_filter": {"runtime_key": "none", "percent_sampled": {"numerator": 17}}}),
            false,
            true,
        ),
        (
            json!({"runtime_filter": {"runtime_key": "none", "percent_sampled": {"numerator": 18}}}),
            true,
            true,
        ),
    ];
    for (config, for_good, for_bad) in cases {
        let filter = filter(config.clone());
        assert_eq!((filter.matches(&good), filter.matches(&bad)), (for_good, for_bad), "{config}");
    }
    // Without a request every header is missing.
    let info = stream();
    let bare = FormatContext::new(&info);
    for (present, expected) in [(true, false), (false, true)] {
        let config = json!({"header_filter": {"header": {"name": "x-request-id", "present_match": present}}});
        assert_eq!(filter(config).matches(&bare), expected);
    }
}
