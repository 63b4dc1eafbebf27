//! What is done to requests before all else: who the client is, by extensions, and early changes to the head. As in
//! [`super::filters`].

use super::bootstrap::Bootstrap;
use super::case::case;
use super::filters::{check, host};
use super::run_side;
use crate::harness::client::Client;
use crate::harness::http1::Message;
use crate::harness::proxy::Kind;
use crate::harness::{eventually, DEADLINE};
use crate::peers;

const TYPES: &str = "type.googleapis.com/envoy.extensions.http.";

/// Routes that tell what was found out.
fn telling() -> String {
    host(
        "  response_headers_to_add: [ { header: { key: remote, value: '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%' } } ]\n",
        "- { match: { prefix: /marked, headers: [ { name: x-mark, string_match: { exact: early } } ] }, route: { cluster: b } }\n\
         - { match: { prefix: / }, route: { cluster: a } }\n",
    )
}

#[tokio::test]
async fn clients_found_by_extensions() {
    let header = |more: &str| {
        format!("{{ name: h, typed_config: {{ '@type': {TYPES}original_ip_detection.custom_header.v3.CustomHeaderConfig, header_name: X-Ip{more} }} }}")
    };
    let forwarded = |more: &str| {
        format!(
            "{{ name: x, typed_config: {{ '@type': {TYPES}original_ip_detection.xff.v3.XffConfig{more} }} }}"
        )
    };
    let trusted = |range: &str| {
        format!(", xff_trusted_cidrs: {{ cidrs: [ {{ address_prefix: 10.0.0.0, prefix_len: 8 }}, {{ address_prefix: {range}, prefix_len: 8 }} ] }}")
    };
    let append = ", skip_xff_append: false";
    let internal = "internal_address_config: { cidr_ranges: [ { address_prefix: 127.0.0.0, prefix_len: 8 }, { address_prefix: 10.0.0.0, prefix_len: 8 } ] }";
    let listeners = [
        ("header", vec![header("")]),
        ("trusted", vec![header(", allow_extension_to_set_address_as_trusted: true")]),
        ("refusing", vec![header(", reject_with_status: { code: 422 }")]),
        ("forbidding", vec![header(", reject_with_status: { code: 200 }")]),
        ("hops", vec![forwarded(", xff_num_trusted_hops: 1")]),
        ("appending", vec![forwarded(append)]),
        ("known", vec![forwarded(&trusted("127.0.0.0"))]),
        ("known-append", vec![forwarded(&format!("{}{append}", trusted("127.0.0.0")))]),
        ("strange", vec![forwarded(&trusted("11.0.0.0"))]),
        ("both", vec![header(""), forwarded(append)]),
        ("both-known", vec![header(""), forwarded(&trusted("127.0.0.0"))]),
        ("turned", vec![forwarded(append), header("")]),
    ];
    let mut bootstrap = Bootstrap::new();
    for (name, ways) in &listeners {
        let options = format!("{internal}\noriginal_ip_detection_extensions: [ {} ]", ways.join(", "));
        bootstrap = bootstrap.listener(name, &options, &telling());
    }
    let rows = [
        ("nothing", ""),
        ("an address", "X-Ip: 10.1.1.1\r\n"),
        ("two addresses", "X-Ip: 8.8.8.8\r\nX-Ip: 9.9.9.9\r\n"),
        ("no address", "X-Ip: unknown\r\n"),
        ("an address and a port", "X-Ip: 8.8.8.8:80\r\n"),
        ("IPv6", "X-Ip: ::1\r\n"),
        ("one", "X-Forwarded-For: 1.2.3.4\r\n"),
        ("one inside", "X-Forwarded-For: 10.1.1.1\r\n"),
        ("two", "X-Forwarded-For: 1.2.3.4, 10.1.1.1\r\n"),
        ("four", "X-Forwarded-For: 1.2.3.4, 5.6.7.8, 10.1.1.1,10.2.2.2\r\n"),
        ("two inside", "X-Forwarded-For: 10.1.1.1, 10.2.2.2\r\n"),
        ("nobody", "X-Forwarded-For: unknown, 10.2.2.2\r\n"),
        ("both of them", "X-Forwarded-For: 1.2.3.4\r\nX-Ip: 10.3.3.3\r\n"),
    ];
    let get = |(listener, _): &(&'static str, _)| {
        rows.map(|(name, headers)| case(listener, name).get("/", headers))
    };
    let cases = listeners.iter().flat_map(get).collect();
    let rooms: Vec<String> = listeners
        .iter()
        .map(|(name, _)| format!("http.{name}.downstream_rq_rejected_via_ip_detection"))
        .collect();
    let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
    check(bootstrap, cases, &rooms).await;
}

#[tokio::test]
async fn schemes_upgrades_and_bodies() {
    let ignoring = "http_protocol_options: { ignore_http_11_upgrade: [ { prefix: TLS/ }, { exact: odd } ] }\nupgrade_configs: [ { upgrade_type: websocket } ]";
    let follows = "scheme_header_transformation: { match_upstream: true }";
    let direct = |path: &str, options: &str| {
        format!("- {{ match: {{ prefix: {path} }}, direct_response: {{ status: 203, {options} }} }}\n")
    };
    let routes = [
        direct("/plain", "body_format: { text_format_source: { inline_string: 'as it is' } }"),
        direct("/bytes", "body_format: { text_format_source: { inline_bytes: iVBORw0KGgo= }, content_type: image/png }"),
        direct("/format", "body_format: { text_format: '%REQ(:PATH)% %REQ(x-none)% %RESPONSE_CODE% %PROTOCOL%' }"),
        direct("/body", "body: { inline_string: inner }, body_format: { text_format: '[%LOCAL_REPLY_BODY%]', content_type: text/html }"),
        direct("/json", "body: { inline_string: inner }, body_format: { json_format: { path: '%REQ(:PATH)%', body: '%LOCAL_REPLY_BODY%' } }"),
        direct("/empty", "body_format: { text_format: '%REQ(x-none)%', omit_empty_values: true }"),
        "- { match: { prefix: / }, route: { cluster: a }, response_headers_to_add: [ { header: { key: scheme, value: '%REQ(:SCHEME)%' } } ] }\n".to_string(),
    ]
    .concat();
    let hosts = host("", &routes);
    let bootstrap =
        Bootstrap::new().listener("ignoring", ignoring, &hosts).listener("follows", follows, &hosts);
    let wish = |name: &'static str, wish: &str| {
        case("ignoring", name).get("/", &format!("Connection: Upgrade\r\nUpgrade: {wish}\r\n"))
    };
    let mut cases: Vec<_> = ["/plain", "/bytes", "/format", "/body", "/json", "/empty"]
        .into_iter()
        .flat_map(|path| {
            [
                case("follows", path).get(path, ""),
                case("follows", path).get(path, "Content-Type: application/grpc\r\n"),
            ]
        })
        .collect();
    cases.extend([
        case("follows", "the head alone").send("HEAD", "/format", "", ""),
        case("follows", "over TLS, it says").get("/", "X-Forwarded-Proto: https\r\n"),
        wish("TLS", "TLS/1.2"),
        wish("odd", "odd"),
        wish("two of them", "TLS/1.2, odd"),
    ]);
    check(bootstrap, cases, &["http.follows.downstream_rq_2", "http.ignoring.downstream_rq_2"]).await;
}

#[tokio::test]
async fn early_changes() {
    let early = |list: &str| {
        format!("{{ name: e, typed_config: {{ '@type': {TYPES}early_header_mutation.header_mutation.v3.HeaderMutation, mutations: [ {list} ] }} }}")
    };
    let first = early(
        "{ append: { header: { key: x-mark, value: early }, append_action: OVERWRITE_IF_EXISTS_OR_ADD } }, \
         { append: { header: { key: x-absent, value: added }, append_action: ADD_IF_ABSENT } }, \
         { append: { header: { key: x-list, value: '%REQ(x-list)%-%PROTOCOL%' } } }, \
         { append: { header: { key: x-empty }, append_action: OVERWRITE_IF_EXISTS_OR_ADD, keep_empty_value: true } }, \
         { remove: x-gone }, { remove_on_match: { key_matcher: { prefix: x-drop- } } }, \
         { append: { header: { key: x-forwarded-for, value: 7.7.7.7 }, append_action: OVERWRITE_IF_EXISTS_OR_ADD } }",
    );
    let second = early("{ append: { header: { key: x-second, value: '%REQ(x-mark)%' } } }");
    let extensions = format!("early_header_mutation_extensions: [ {first}, {second} ]");
    let bootstrap = Bootstrap::new().listener("main", &extensions, &telling()).listener(
        "edge",
        &format!("use_remote_address: true\n{extensions}"),
        &telling(),
    );
    let sent = "X-Gone: 1\r\nX-Drop-One: 1\r\nX-List: a\r\nX-Absent: theirs\r\nX-Mark: theirs\r\nX-Envoy-Retry-On: 5xx\r\n";
    let cases = ["main", "edge"]
        .into_iter()
        .flat_map(|listener| {
            [
                case(listener, "nothing sent").get("/", ""),
                case(listener, "sent").get("/x", sent),
                case(listener, "its route").get("/marked", sent),
                case(listener, "no path").get("nonsense", sent),
                case(listener, "no host").raw("GET / HTTP/1.1\r\n\r\n"),
            ]
        })
        .collect();
    check(bootstrap, cases, &["http.main.downstream_rq_2", "http.edge.downstream_rq_2"]).await;
}

#[tokio::test]
async fn an_old_connection_leaves_with_its_next_response() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let options = "http1_safe_max_connection_duration: true\ncommon_http_protocol_options: { max_connection_duration: 0.2s }";
    let template = Bootstrap::new().plain("main", options).render();
    for kind in [Kind::Envoy, Kind::Outrigger] {
        let side = run_side(kind, &template).await;
        let request = b"GET / HTTP/1.1\r\nHost: t.test\r\n\r\n";
        let mut client = Client::connect(side.proxy.port("main")).await.expect("a connection");
        let first = client.exchange(request).await.expect("an answer");
        let old = || async {
            side.proxy.stats().await.get("http.main.downstream_cx_max_duration_reached") == Some(&1)
        };
        assert!(eventually(DEADLINE, old).await, "{kind:?}: it does not grow old");
        let second = client.exchange(request).await.expect("it is still there");
        let said = |message: &Message| message.header("connection").map(str::to_owned);
        assert_eq!((said(&first), said(&second)), (None, Some("close".to_owned())), "{kind:?}");
        assert!(client.closed(DEADLINE).await, "{kind:?}");
        assert!(old().await, "{kind:?}: it is counted once");
    }
}
