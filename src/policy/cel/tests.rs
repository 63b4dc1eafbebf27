use super::*;
use crate::telemetry::fixtures::{self, Head};

fn is_true(text: &str, request: &Head, info: &StreamInfo) -> bool {
    let expression = Expression::of_text(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let mut context = FormatContext::new(info).with_request(request);
    let response = Head::new(&[("x-kind", "test")]);
    context.response = Some(&response);
    expression.is_true(&Subject::from(&context))
}

#[test]
fn attributes_and_operators() {
    let info = fixtures::stream();
    let request = Head::new(&[
        (":path", "/shop/cart?item=1&n=2#top"),
        (":method", "POST"),
        (":authority", "shop.example"),
        ("x-user", "ann"),
        ("x-group", "a"),
        ("x-group", "b"),
    ]);
    for (text, expected) in [
        ("true", true),
        ("1", false),
        ("request.path == '/shop/cart?item=1&n=2#top'", true),
        ("request.url_path == '/shop/cart' && request.query == 'item=1&n=2'", true),
        ("request['method'] in ['GET', 'POST']", true),
        ("request.headers['x-user'] == 'ann' && request.headers['x-group'] == 'a,b'", true),
        ("'x-user' in request.headers", true),
        ("'x-other' in request.headers", false),
        ("has(request.headers.cookie)", false),
        ("has(request.path) && !has(request.referer)", true),
        ("request.host.startsWith('shop') && request.host.endsWith('example')", true),
        ("request.host.contains('.')", true),
        ("request.path.matches('/ca.t')", true),
        ("request.path.matches('^ca.t')", false),
        ("response.code >= 200 && response.code < 300", true),
        ("response.code == 200.0", true),
        ("response.code == '200'", false),
        ("response.headers['x-kind'] == 'test'", true),
        ("size(request.headers['x-user']) == 3", true),
        ("source.address == '10.0.0.9:4444' && source.port == 4444", true),
        ("destination.port == 8080", true),
        ("upstream.address == '10.1.1.1:80' && upstream.port == 80", true),
        ("connection.requested_server_name == 'sni.example' && !connection.mtls", true),
        ("xds.cluster_name == 'web'", true),
        ("request.duration > duration('10ms') && request.duration < duration('0.1s')", true),
        ("request.time > timestamp('2026-01-01T00:00:00Z')", true),
        ("response.code == 200 ? request.method == 'POST' : false", true),
        ("{'a': 1, 'b': 2}['b'] == 2 && [1, 2, 3][1] == 2", true),
        ("(1 + 2 * 3 - 4) % 2 == 1", true),
        ("-response.code < 0", true),
    ] {
        assert_eq!(is_true(text, &request, &info), expected, "{text}");
    }
}

/// What fails is false, unless the other side of an operator decides already.
#[test]
fn failures() {
    let info = fixtures::stream();
    let request = Head::new(&[(":path", "/")]);
    for (text, expected) in [
        ("request.headers['x'] == 'a'", false),
        ("!(request.headers['x'] == 'a')", false),
        ("request.headers['x'] == 'a' || true", true),
        ("true || request.headers['x'] == 'a'", true),
        ("request.headers['x'] == 'a' && false", false),
        ("!(request.headers['x'] == 'a' && false)", true),
        ("nothing.known == 1", false),
        ("1 / 0 == 1", false),
        ("9223372036854775807 + 1 > 0", false),
        ("'a' + 'b' == 'ab'", false),
        ("request.path < 3", false),
        ("[1, 2][5] == 1", false),
        ("metadata.filter_metadata['a']['b'] == 'c'", false),
    ] {
        assert_eq!(is_true(text, &request, &info), expected, "{text}");
    }
}

#[test]
fn metadata_and_filter_state_are_looked_into() {
    use outrigger_control_api::pb::google::protobuf::value::Kind;
    use outrigger_control_api::pb::google::protobuf::{Struct, Value};
    let mut info = fixtures::stream();
    let fields = [("user".to_owned(), Value { kind: Some(Kind::StringValue("ann".to_owned())) })];
    let noted = Struct { fields: fields.into_iter().collect() };
    info.metadata = Some(Box::new([("my.filter".to_owned(), noted)].into_iter().collect()));
    let request = Head::new(&[]);
    assert!(is_true("metadata.filter_metadata['my.filter']['user'] == 'ann'", &request, &info));
    assert!(is_true("has(metadata.filter_metadata['my.filter'].user)", &request, &info));
    assert!(!is_true("metadata.filter_metadata['my.filter']['other'] == 'ann'", &request, &info));
    let reads = |text| Expression::of_text(text).expect("it parses").reads_metadata();
    assert!(reads("!has(metadata.filter_metadata)") && !reads("request.path == '/'"));
}

#[test]
fn what_is_refused() {
    for (text, said) in [
        ("request.path ==", "yntax"),
        ("[1, 2].all(x, x > 0)", "switched off"),
        ("request.path.upperAscii() == 'A'", "upperAscii() with 1 arguments"),
        ("request.path.matches('(')", "regular expression"),
        ("request.path.matches(request.host)", "written out"),
        ("xds.node.id == 'a'", "xds.node"),
        ("string(1) == '1'", "string() with 1 arguments"),
    ] {
        let error = Expression::of_text(text).map(|_| ()).expect_err(text).to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
    for deep in
        ["(".repeat(5000), "!".repeat(5000), "-".repeat(5000) + "1", "a.".repeat(9000), "[".repeat(9000)]
    {
        assert!(Expression::of_text(&deep).is_err());
    }
}
