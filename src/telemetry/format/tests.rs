use std::sync::Arc;

use outrigger_control_api::pb::google::protobuf::value::Kind;
use outrigger_control_api::pb::google::protobuf::{Struct, Value};

use super::*;
use crate::telemetry::fixtures::{failed_stream, stream, Head};

fn request() -> Head {
    Head::new(&[
        (":method", "POST"),
        (":path", "/new?a=hello%20x&b="),
        (":authority", "shop.example:8080"),
        ("x-envoy-original-path", "/abc?a=hello"),
        ("user-agent", "curl/7.88.1"),
        ("x-request-id", "3d39d85d-2257-4edf-b491-2f98aee5c115"),
        ("x-h", "h\u{e9}llo"),
    ])
}

fn render_as(format: &str, style: Style, ctx: &FormatContext<'_>) -> String {
    let mut out = b"<".to_vec();
    Format::parse_as(format, style).unwrap().render(&mut out, ctx);
    String::from_utf8(out).unwrap().split_off(1)
}

fn render(format: &str) -> String {
    let (info, request) = (stream(), request());
    let response = Head::new(&[("x-envoy-upstream-service-time", "8")]);
    let ctx = FormatContext::new(&info).with_request(&request).with_response(&response);
    render_as(format, Style::Log, &ctx)
}

#[test]
fn default_line_is_envoys() {
    assert!(Format::parse(DEFAULT_LOG_FORMAT).is_ok());
    assert_eq!(
        render(DEFAULT_LOG_FORMAT),
        "[2026-11-21T04:28:49.739Z] \"POST /abc?a=hello HTTP/1.1\" 200 - 4 83 12 8 \"-\" \"curl/7.88.1\" \
         \"3d39d85d-2257-4edf-b491-2f98aee5c115\" \"shop.example:8080\" \"10.1.1.1:80\"\n"
    );
}

#[test]
fn operators() {
    let cases = [
        ("%REQ(X-H):3%", "h\u{e9}"),
        ("%REQ(missing)% %REQ(missing?x-h):1%", "- h"),
        ("100%% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%", "100% - via_upstream"),
        ("%UPSTREAM_HOST% %UPSTREAM_HOST_NAME% %UPSTREAM_CLUSTER%", "10.1.1.1:80 h.example web"),
        ("%UPSTREAM_LOCAL_PORT% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "5555 10.1.1.1"),
        ("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_PORT%", "10.0.0.9:4444 8080"),
        ("%REQUEST_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%", "1 9 2"),
        ("%COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)% %COMMON_DURATION(US_TX_BEG:DS_TX_END)%", "2500 8"),
        ("%COMMON_DURATION(US_CX_BEG:US_CX_END:ns)%", "-"),
        ("%REQ_WITHOUT_QUERY(:path):3% %REQ_WITHOUT_QUERY(x?:path)%", "/ne /new"),
        ("%PATH(NQ)% %PATH(WQ:PATH)% %PATH(NQ:ORIG)%", "/abc /new?a=hello%20x&b= /abc"),
        ("%QUERY_PARAM(a)% %QUERY_PARAM(a):3% %QUERY_PARAM(b)%", "hello x hel -"),
        ("%REQUESTED_SERVER_NAME% %REQUESTED_SERVER_NAME(HOST_FIRST)%", "sni.example shop.example"),
        ("%PROTOCOL% %UPSTREAM_PROTOCOL% %CONNECTION_ID%", "HTTP/1.1 HTTP/2 7"),
        ("%DOWNSTREAM_PEER_SUBJECT%%DYNAMIC_METADATA(a:b)%%ROUNDTRIP_DURATION%", "---"),
        ("[%CUSTOM_FLAGS%]%RESPONSE_TRAILERS_BYTES%", "[]0"),
        ("%GRPC_STATUS%", "-"),
        ("%START_TIME(%Y/%m/%dT%H:%M:%S.%3f%z %s)%", "2026/11/21T04:28:49.739+0000 1795235329"),
        ("%START_TIME(%s.%6f|%f|%1f|%E4S|%j)%", "1795235329.739000|739000000|7|49.7390|325"),
        ("%START_TIME((%H))%", "(04)"),
        ("%STREAM_ID%", "3d39d85d-2257-4edf-b491-2f98aee5c115"),
    ];
    for (format, want) in cases {
        assert_eq!(render(format), want, "{format}");
    }
    assert_eq!(render("%UNIQUE_ID%").len(), 36);
    assert_ne!(render("%UNIQUE_ID%"), render("%UNIQUE_ID%"));
}

#[test]
fn errors_name_the_operator() {
    let cases = [
        ("%FOO%", "unknown operator %FOO%"),
        ("100% ok", "position 3"),
        ("%", "position 0"),
        ("%%%", "position 2"),
        ("%req(a)%", "position 0"),
        ("%REQ(a)", "position 0"),
        ("%REQ(a):x%", "position 0"),
        ("%REQ%", "%REQ% needs an argument"),
        ("%REQ()%", "%REQ% needs an argument"),
        ("%REQ(a?b?c)%", "at most one alternative"),
        ("%REQ(a b)%", "not a header name"),
        ("%DURATION:3%", "%DURATION% takes no length"),
        ("%HOSTNAME:3%", "%HOSTNAME% takes no length"),
        ("%PROTOCOL(x)%", "%PROTOCOL% takes no argument"),
        ("%GRPC_STATUS(foo)%", "CAMEL_STRING"),
        ("%PATH(X)%", "WQ or NQ"),
        ("%COMMON_DURATION(a:b:x)%", "ms, us or ns"),
        ("%START_TIME(%!)%", "START_TIME"),
        ("%DYNAMIC_METADATA%", "needs an argument"),
        ("%METADATA(SOME:a:b)%", "must be DYNAMIC, CLUSTER"),
        ("%CEL(1 +)%", "CEL"),
        ("%QUERY_PARAMS(x)%", "ORIG or DECODED"),
        ("%COALESCE(x)%", "COALESCE"),
        ("%COALESCE({\"operators\": []})%", "at least one"),
        ("%COALESCE({\"operators\": [{\"param\": \"a\"}]})%", "\"command\""),
        (
            "%COALESCE({\"operators\": [{\"command\": \"REQ\", \"param\": \"a\", \"max_length\": 0}]})%",
            "positive",
        ),
        ("%COALESCE({\"operators\": [\"FOO\"]})%", "unknown operator %FOO%"),
    ];
    for (format, want) in cases {
        let error = Format::parse(format).expect_err(format).to_string();
        assert!(error.contains(want), "{format}: {error}");
    }
}

#[test]
fn literals_are_known_beforehand() {
    assert_eq!(Format::parse("100%%").unwrap().literal(), Some(&b"100%"[..]));
    assert_eq!(Format::parse("").unwrap().literal(), Some(&b""[..]));
    assert!(Format::parse("%PROTOCOL%").unwrap().literal().is_none());
    let path = std::env::var("PATH").unwrap();
    assert_eq!(
        Format::parse("x%ENVIRONMENT(PATH):3%").unwrap().literal(),
        Some(format!("x{}", &path[..3]).as_bytes())
    );
    assert_eq!(render("%ENVIRONMENT(OUTRIGGER_NOT_SET)%"), "-");
    let format =
        Format::parse("%ROUNDTRIP_DURATION% %PROTOCOL% %UPSTREAM_TLS_VERSION% %UPSTREAM_SERVER_NAME%")
            .unwrap();
    assert_eq!(format.never_filled(), [Box::from("ROUNDTRIP_DURATION"), Box::from("UPSTREAM_SERVER_NAME")]);
    let format = r#"%COALESCE({"operators": ["UPSTREAM_SERVER_NAME", "PROTOCOL"]})% %METADATA(LISTENER:a)%"#;
    let format = Format::parse(format).unwrap();
    assert_eq!(format.never_filled(), [Box::from("UPSTREAM_SERVER_NAME"), Box::from("METADATA(LISTENER:a)")]);
}

#[test]
fn addresses_can_be_cut_to_networks() {
    let mut info = stream();
    for (address, length, want) in [
        ("10.1.2.3:4", "16", "10.1.0.0/16"),
        ("10.1.2.3:4", "0", "0.0.0.0/0"),
        ("10.1.2.3:4", "200", "10.1.2.3/32"),
        ("10.1.2.3:4", "some", "10.1.2.3"),
        ("[2001:db8:1:2::3]:4", "47", "2001:db8::/47"),
        ("[2001:db8:1:2::3]:4", "128", "2001:db8:1:2::3/128"),
    ] {
        info.client = Some(address.parse().unwrap());
        let format = format!("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT({length})%");
        assert_eq!(render_as(&format, Style::Log, &FormatContext::new(&info)), want, "{address} {length}");
    }
}

#[test]
fn metadata_are_those_of_the_route_that_was_taken_last() {
    let value = Value { kind: Some(Kind::StringValue("one's".into())) };
    let fields = Struct { fields: [("key".to_owned(), value)].into() };
    let metadata = Arc::new([("ns".to_owned(), fields)].into());
    // Reading them is noted where a format is compiled.
    assert!(Format::parse("%METADATA(ROUTE:ns:key)%").unwrap().never_filled().is_empty());
    let mut info = stream();
    for (name, metadata, want) in
        [("one", Some(&metadata), "one one's"), ("two", None, "two -"), ("one", Some(&metadata), "one one's")]
    {
        info.taken(Some(&name.into()), metadata);
        let format = "%ROUTE_NAME% %METADATA(ROUTE:ns:key)%";
        assert_eq!(render_as(format, Style::Log, &FormatContext::new(&info)), want);
    }
}

#[test]
fn a_missing_value_depends_on_the_style() {
    let info = stream();
    let ctx = FormatContext::new(&info);
    for (style, want) in [
        (Style::Log, "a-b -"),
        (Style::Body, "a-b -"),
        (Style::Header, "ab -"),
        (Style::LogOmitEmpty, "ab -"),
    ] {
        // The empty set of flags is a dash of its own.
        assert_eq!(render_as("a%REQ(x)%b %RESPONSE_FLAGS%", style, &ctx), want, "{style:?}");
    }
}

#[test]
fn hostile_values_stay_in_their_line() {
    let mut info = failed_stream();
    info.details = "bad thing\r\nhappened".into();
    let mut request =
        Head::new(&[(":path", "/x\r\n[fake] \"GET\" \0\x1b[31m"), ("user-agent", "\" \"-\" \\")]);
    request.0.push(("x-raw", vec![b'a', 0xff, b'\n', 0x7f]));
    let ctx = FormatContext::new(&info).with_request(&request);

    let line = render_as(DEFAULT_LOG_FORMAT, Style::Log, &ctx);
    assert_eq!(line.matches('\n').count(), 1, "{line}");
    assert!(line.contains("- /x\\x0d\\x0a[fake] \\x22GET\\x22 \\x00\\x1b[31m "), "{line}");
    assert!(line.contains(" \"\\x22 \\x22-\\x22 \\x5c\" "), "{line}");

    // Outside of quotes, quotes do no harm; a line break would.
    let mut out = Vec::new();
    Format::parse("%REQ(x-raw)% %REQ(user-agent)%").unwrap().render(&mut out, &ctx);
    assert_eq!(out, b"a\xff\\x0a\\x7f \" \"-\" \\");
    assert_eq!(render_as("%REQ(:path)%", Style::Header, &ctx), "/x\\x0d\\x0a[fake] \"GET\" \\x00\\x1b[31m");
    assert!(render_as("%REQ(:path)%", Style::Body, &ctx).contains("\r\n"));

    let tree = serde_json::json!({"p": "%REQ(:path)%", "u": "<%REQ(user-agent)%>", "r": "%REQ(x-raw)%"});
    let mut out = Vec::new();
    Format::json(&tree, false).unwrap().render(&mut out, &ctx);
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text.matches('\n').count(), 1);
    let back: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(back["p"], "/x\r\n[fake] \"GET\" \0\x1b[31m");
    assert_eq!(back["u"], "<\" \"-\" \\>");
    assert_eq!(back["r"], "a\u{fffd}\n\x7f");
}

#[test]
fn json_is_typed_and_sorted() {
    let tree = serde_json::json!({
        "zeta": "%START_TIME%", "alpha": "%RESPONSE_CODE%", "n": 12.0, "b": true, "nul": null,
        "beta": {"d": "%DURATION%", "c": "x %RESPONSE_CODE% y", "e": ["%PROTOCOL%", "lit", "%REQ(nope)%"]},
        "missing": "%REQ(nope)%", "mix": "%REQ(nope)%-%REQ(nope)%", "flags": "%RESPONSE_FLAGS%",
        "port": "%DOWNSTREAM_LOCAL_PORT%", "time": "%START_TIME(%s)%", "lit": "100%%", "q": "a\"b",
    });
    let (info, request) = (stream(), request());
    let ctx = FormatContext::new(&info).with_request(&request);
    let text = |omit| {
        let mut out = Vec::new();
        Format::json(&tree, omit).unwrap().render(&mut out, &ctx);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        text(false),
        concat!(
            r#"{"alpha":200,"b":true,"beta":{"c":"x 200 y","d":12,"e":["HTTP/1.1","lit",null]},"flags":"-","#,
            r#""lit":"100%","missing":null,"mix":"---","n":12,"nul":null,"port":8080,"q":"a\"b","#,
            r#""time":"1795235329","zeta":"2026-11-21T04:28:49.739Z"}"#,
            "\n"
        )
    );
    let omitted = text(true);
    assert!(!omitted.contains("missing") && omitted.contains(r#""e":["HTTP/1.1","lit"]"#), "{omitted}");
    assert!(omitted.contains(r#""mix":"-""#), "{omitted}");

    let empty = serde_json::json!({"a": {"b": "%REQ(nope)%"}});
    let mut out = Vec::new();
    Format::json(&empty, true).unwrap().render(&mut out, &ctx);
    assert_eq!(out, b"{}\n");
    assert_eq!(Format::json(&serde_json::json!("x"), false).err(), Some(FormatError::NotAnObject));
}

#[test]
fn flags_and_grpc() {
    let mut info = failed_stream();
    let request = Head::new(&[("content-type", "application/grpc+proto")]);
    let response = Head::new(&[("grpc-status", "14")]);
    let trailers = Head::new(&[("grpc-status", "5")]);
    let ctx = FormatContext::new(&info).with_request(&request);
    assert_eq!(
        render_as("%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%", Style::Log, &ctx),
        "URX,UF UpstreamRetryLimitExceeded,UpstreamConnectionFailure"
    );
    let format = "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%";
    assert_eq!(render_as(format, Style::Log, &ctx), "Unavailable UNAVAILABLE 14");
    let mut ctx = ctx.with_response(&response);
    ctx.trailers = Some(&trailers);
    assert_eq!(render_as(format, Style::Log, &ctx), "NotFound NOT_FOUND 5");
    info.upstream_failure = Some("connect error: Connection refused".into());
    let ctx = FormatContext::new(&info);
    let reason = render_as("%UPSTREAM_TRANSPORT_FAILURE_REASON%", Style::Log, &ctx);
    assert_eq!(reason, "connect_error:_Connection_refused");
}
