//! Fields of connection managers.

use super::BUT;
use crate::differential::bootstrap::{Bootstrap, ALL_TO_A};
use crate::differential::case::{case, Case};
use crate::differential::filters::{check_but, filter};
use crate::harness::origin::Answer;

const ID: &str = "X-Request-Id: 5b1f9e5e-1111-4222-8333-444455556666\r\n";

#[tokio::test]
async fn request_ids() {
    let uuid = |options: &str| {
        format!("request_id_extension: {{ typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig{options} }} }}\n")
    };
    let listeners = [
        ("plain", String::new()),
        ("preserve", "preserve_external_request_id: true\n".to_string()),
        ("edge", "use_remote_address: true\n".to_string()),
        ("edge-preserve", "use_remote_address: true\npreserve_external_request_id: true\n".to_string()),
        ("set", "always_set_request_id_in_response: true\n".to_string()),
        ("none", "generate_request_id: false\nalways_set_request_id_in_response: true\n".to_string()),
        ("unpacked", uuid(", pack_trace_reason: false")),
        ("unsampled", uuid(", use_request_id_for_trace_sampling: false")),
    ];
    let mut bootstrap = Bootstrap::new();
    let mut cases: Vec<Case> = Vec::new();
    for (name, options) in listeners {
        bootstrap = bootstrap.plain(name, &options);
        let get = |what: &str, headers: &str| case(name, format!("{name}: {what}").leak()).get("/", headers);
        // An address from outside makes a request external at an edge.
        let outside = "X-Forwarded-For: 8.8.8.8\r\n";
        cases.extend([
            get("no id", ""),
            get("an id", ID),
            get("an id from outside", &format!("{ID}{outside}")),
            get("no id from outside", outside),
            get("an empty id", "X-Request-Id:\r\n"),
            get("no UUID", "X-Request-Id: mine\r\n"),
            get("an id in the answer", ID)
                .answers(Answer::raw("HTTP/1.1 200 OK\r\nx-request-id: theirs\r\ncontent-length: 0\r\n\r\n")),
        ]);
    }
    check_but(bootstrap, cases, &["http.plain.downstream_rq_"], BUT).await;
}

#[tokio::test]
async fn paths() {
    let listeners = [
        ("asis", ""),
        ("merge", "merge_slashes: true\n"),
        ("normal", "normalize_path: true\n"),
        ("both", "normalize_path: true\nmerge_slashes: true\n"),
        ("reject", "normalize_path: true\npath_with_escaped_slashes_action: REJECT_REQUEST\n"),
        ("redirect", "normalize_path: true\npath_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT\n"),
        ("unescape", "merge_slashes: true\nnormalize_path: true\npath_with_escaped_slashes_action: UNESCAPE_AND_FORWARD\n"),
        ("keep", "normalize_path: true\npath_with_escaped_slashes_action: KEEP_UNCHANGED\n"),
    ];
    let targets = [
        "//",
        "//a//b",
        "/a//b?c//d",
        "/a/./b",
        "/a/../b",
        "/../a",
        "/a/%2e%2e/b",
        "/a/%2E/b",
        "/a%2Fb",
        "/a%5cb",
        "/a%2f%2Fb",
        "/a\\b",
        "/a/b/..",
        "/a/b/.",
        "/a;x/../b",
        "/%61",
        "/%7Ea%41",
        "/a#frag",
        "/a%00b",
        "/a%zz",
        "http://t.test//x//y",
        "/a/..;/b",
        "/%2e%2e/a",
        "/a/%252e%252e/b",
        "/x%2f..%2fy",
    ];
    let mut bootstrap = Bootstrap::new();
    let mut cases: Vec<Case> = Vec::new();
    for (name, options) in listeners {
        bootstrap = bootstrap.plain(name, options);
        cases.extend(
            targets.iter().map(|target| case(name, format!("{name}: {target}").leak()).get(target, "")),
        );
    }
    check_but(bootstrap, cases, &["http.reject.downstream_rq_", "http.redirect.downstream_rq_"], BUT).await;
}

#[tokio::test]
async fn spelling_of_names() {
    let proper = "http_protocol_options: { header_key_format: { proper_case_words: {} } }\n";
    let kept = |more: &str| {
        format!("http_protocol_options: {{ header_key_format: {{ stateful_formatter: {{ name: kept, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig{more} }} }} }} }}\n")
    };
    let upstream = |options: &str| {
        format!("typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {{ {} }} }}\n", options.trim_end())
    };
    let listeners = [
        ("proper", proper.to_string()),
        ("kept", kept("")),
        ("default", kept(", formatter_type_on_envoy_headers: DEFAULT")),
        ("mixed", kept(", formatter_type_on_envoy_headers: PROPER_CASE")),
        ("reason", kept(", forward_reason_phrase: true, formatter_type_on_envoy_headers: PROPER_CASE")),
    ];
    let mut bootstrap = Bootstrap::new();
    let mut cases: Vec<Case> = Vec::new();
    for (name, options) in listeners {
        let cluster = format!("a-{name}");
        let routes = format!("- name: all\n  domains: ['*']\n  routes:\n  - {{ match: {{ prefix: /gone }}, direct_response: {{ status: 410, body: {{ inline_string: gone }} }} }}\n  - {{ match: {{ prefix: /plain }}, route: {{ cluster: a }} }}\n  - match: {{ prefix: / }}\n    route: {{ cluster: {cluster} }}\n    request_headers_to_add: [ {{ header: {{ key: X-Added-HERE, value: '1' }} }} ]\n    response_headers_to_add: [ {{ header: {{ key: x-ADDED-back, value: '1' }} }} ]\n");
        bootstrap = bootstrap.origin(&cluster, &upstream(&options)).listener(name, &options, &routes);
        let get = |what: &str, headers: &str| case(name, format!("{name}: {what}").leak()).get("/", headers);
        cases.extend([
            get("lower", "x-lower: 1\r\n"),
            get("odd", "X-oDD-naMe: 1\r\nx_under-SCORE: 2\r\nCOOKIE: a=b\r\n"),
            get("an answer", "").answers(Answer::raw(
                "HTTP/1.1 218 Such Is Life\r\nX-oDD: 1\r\nCONTENT-length: 2\r\nEtag: x\r\n\r\nok",
            )),
            get("an answer without a reason", "")
                .answers(Answer::raw("HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok")),
            get("an answer with another reason", "")
                .answers(Answer::raw("HTTP/1.1 200 Fine\r\nContent-Length: 2\r\n\r\nok")),
            get("an answer in chunks", "").answers(Answer::raw(
                "HTTP/1.1 200 OK\r\nTransfer-ENCODING: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            )),
            case(name, format!("{name}: a body in chunks").leak()).raw(
                "POST / HTTP/1.1\r\nHost: t.test\r\nTransfer-ENCODING: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            ),
            get("our own answer", "X-Envoy-Upstream-RQ-Timeout-MS: 200\r\n"),
            case(name, format!("{name}: an answer of ours").leak()).get("/gone", ""),
            case(name, format!("{name}: the other side has no rule").leak())
                .get("/plain", "X-oDD: 1\r\n")
                .answers(Answer::raw("HTTP/1.1 218 Such Is Life\r\nX-oDD: 1\r\nCONTENT-length: 2\r\n\r\nok")),
        ]);
    }
    let all = cases.into_iter().map(Case::spelled).collect();
    check_but(bootstrap, all, &["http.proper.downstream_rq_"], BUT).await;
}

#[tokio::test]
async fn where_clients_are() {
    let header = |options: &str| {
        format!("original_ip_detection_extensions:\n- name: h\n  typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig, header_name: x-client{options} }}\n")
    };
    let xff = |options: &str| {
        format!("original_ip_detection_extensions:\n- name: x\n  typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.http.original_ip_detection.xff.v3.XffConfig{options} }}\n")
    };
    let trusted = header(", allow_extension_to_set_address_as_trusted: true");
    let listeners = [
        ("header", header("")),
        ("trusted", trusted.clone()),
        ("reject", header(", reject_with_status: { code: Unauthorized }")),
        ("odd-reject", header(", reject_with_status: { code: OK }")),
        ("hops", xff(", xff_num_trusted_hops: 1")),
        ("ranges", xff(", xff_trusted_cidrs: { cidrs: [ { address_prefix: 127.0.0.0, prefix_len: 8 }, { address_prefix: 10.0.0.0, prefix_len: 8 } ] }")),
        ("skip", xff(", xff_num_trusted_hops: 0, skip_xff_append: false")),
    ];
    let mut bootstrap = Bootstrap::new();
    let mut cases: Vec<Case> = Vec::new();
    for (name, options) in listeners {
        let options = format!("use_remote_address: false\n{options}");
        let hosts = "- name: all\n  domains: ['*']\n  routes:\n  - match: { prefix: / }\n    route: { cluster: a }\n    request_headers_to_add: [ { header: { key: x-remote, value: '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%' } } ]\n";
        bootstrap = bootstrap.listener(name, &options, hosts);
        let get = |what: &str, headers: &str| case(name, format!("{name}: {what}").leak()).get("/", headers);
        let internal = "X-Envoy-Retry-On: 5xx\r\nX-Envoy-Upstream-Alt-Stat-Name: x\r\n";
        cases.extend([
            get("nothing", internal),
            get("an address", &format!("X-Client: 9.8.7.6\r\n{internal}")),
            get("an inner address", &format!("X-Client: 10.0.0.1\r\n{internal}")),
            get("IPv6", "X-Client: 2001:db8::1\r\n"),
            get("IPv6 in brackets", "X-Client: [2001:db8::1]\r\n"),
            get("with a port", "X-Client: 9.8.7.6:80\r\n"),
            get("no address", "X-Client: somebody\r\n"),
            get("two", "X-Client: 9.8.7.6\r\nX-Client: 9.8.7.5\r\n"),
            get("forwarded", &format!("X-Forwarded-For: 9.8.7.6\r\n{internal}")),
            get("forwarded twice", "X-Forwarded-For: 9.8.7.6, 10.0.0.2\r\n"),
            get("forwarded thrice", "X-Forwarded-For: 9.8.7.6, 5.6.7.8, 10.0.0.2\r\n"),
            get("forwarded oddly", "X-Forwarded-For: 9.8.7.6, what\r\n"),
            get("all inner", "X-Forwarded-For: 10.1.1.1, 127.0.0.2\r\n"),
        ]);
    }
    check_but(bootstrap, cases, &["http.reject.downstream_rq_", "http.odd-reject.downstream_rq_"], BUT).await;
}

#[tokio::test]
async fn methods_and_optional_filters() {
    let optional = "- name: unknown\n  is_optional: true\n  typed_config: { \"@type\": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/some.unknown.Filter, value: { a: b } }\n- name: idle\n  disabled: true\n  typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer, max_request_bytes: 1 }\n";
    let bootstrap = Bootstrap::new()
        .plain("usual", "")
        .plain("custom", "http_protocol_options: { allow_custom_methods: true }\n")
        .plain("optional", "")
        .filters("optional", optional)
        .listener("limited", "", &format!("{ALL_TO_A}\n    typed_per_filter_config: {{ unknown: {{ \"@type\": type.googleapis.com/envoy.config.route.v3.FilterConfig, is_optional: true, config: {{ \"@type\": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/some.unknown.Route, value: {{}} }} }} }}\n"))
        .filters("limited", &filter("set", "set_metadata.v3.Config", "metadata: []"));
    let mut cases: Vec<Case> = Vec::new();
    for listener in ["usual", "custom"] {
        for method in [
            "get",
            "FOO",
            "PURGE",
            "PRI",
            "PATCH",
            "UNSUBSCRIBE",
            "G E",
            "GET,",
            "LONGMETHODNAMETHATNOBODYHASEVERSEEN",
            "TRACE",
        ] {
            let name: &str = format!("{listener}: {method}").leak();
            cases.push(case(listener, name).send(method, "/", "", ""));
        }
    }
    cases.push(case("optional", "optional").send("POST", "/", "", "a body"));
    cases.push(case("limited", "limited").send("POST", "/", "", "a body"));
    check_but(bootstrap, cases, &["http.usual.downstream_rq_", "http.custom.downstream_rq_"], BUT).await;
}
