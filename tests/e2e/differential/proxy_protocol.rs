//! The PROXY protocol on both sides, and what a restored destination decides, beside Envoy: which listener and chain a
//! connection gets, where an ORIGINAL_DST cluster goes, what is logged and counted.

use super::beside::Beside;
use super::set;
use crate::harness::client::Client;
use crate::harness::http1::ReadError;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::tcp_origin::TcpOrigin;
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use std::collections::BTreeMap;
use std::time::Duration;

const LOG: &str = "peer=%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%\\tremote=%DOWNSTREAM_REMOTE_ADDRESS%\\tlocal=%DOWNSTREAM_LOCAL_ADDRESS%\\tnoted=%DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol:note)%\\tcoded=%DYNAMIC_METADATA(own:coded)%\\tupstream=%UPSTREAM_HOST%\\tflags=%RESPONSE_FLAGS%\\tchain=%FILTER_CHAIN_NAME%\\n";

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";

/// A filter chain whose terminal filter is this.
fn chain(matcher: &str, filter: &str) -> String {
    let name = matcher.replace(['"', '[', ']', '{', '}'], "");
    format!("    - name: \"{name}\"\n      filter_chain_match: {{ {matcher} }}\n      filters:\n      - {filter}\n")
}

fn says(text: &str) -> String {
    format!(
        "{{ name: d, typed_config: {{ \"@type\": {FILTERS}.network.direct_response.v3.Config, response: {{ inline_string: \"{text}\" }} }} }}"
    )
}

fn relays(cluster: &str) -> String {
    format!(
        "{{ name: t, typed_config: {{ \"@type\": {FILTERS}.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: {cluster}, \
         access_log: [ {{ name: f, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, \
         path: \"@dir@/access.log\", log_format: {{ text_format_source: {{ inline_string: \"{LOG}\" }} }} }} }} ] }} }}"
    )
}

fn listener(name: &str, options: &str, chains: &[String]) -> String {
    listener_at(name, &format!("127.0.0.1, port_value: @port:{name}@"), options, chains)
}

fn listener_at(name: &str, address: &str, options: &str, chains: &[String]) -> String {
    format!(
        "  - name: \"{name}\"\n    address: {{ socket_address: {{ address: {address} }} }}\n{options}    filter_chains:\n{}",
        chains.concat()
    )
}

fn template() -> String {
    let proxy = |options: &str| {
        format!(
            "    - {{ name: p, typed_config: {{ \"@type\": {FILTERS}.listener.proxy_protocol.v3.ProxyProtocol{options} }} }}\n"
        )
    };
    let only = |options: &str| format!("    listener_filters:\n{}", proxy(options));
    let inspector = |kind: &str, message: &str| {
        format!("    - {{ name: {kind}, typed_config: {{ \"@type\": {FILTERS}.listener.{kind}.v3.{message} }} }}\n")
    };
    let inspectors =
        [inspector("tls_inspector", "TlsInspector"), inspector("http_inspector", "HttpInspector")].concat();
    let rules = ", rules: [ { tlv_type: 0xEA, on_tlv_present: { key: note } }, { tlv_type: 0xEB, on_tlv_present: { metadata_namespace: own, key: coded, value_string_encoding: BASE64 } } ]";
    let virtual_ = "    bind_to_port: false\n";
    let ranges = |field: &str, prefix: &str, length: u8| {
        format!("{field}: [ {{ address_prefix: \"{prefix}\", prefix_len: {length} }} ]")
    };
    let listeners = [
        listener("strict", &only(""), &[chain("", &relays("good"))]),
        listener(
            "optional",
            &(only(", allow_requests_without_proxy_protocol: true") + &inspectors),
            &[
                chain("application_protocols: [http/1.1]", &relays("good")),
                chain("transport_protocol: tls", &relays("good")),
                chain("", &relays("good")),
            ],
        ),
        listener(
            "second",
            &only(", disallowed_versions: [V1], stat_prefix: two"),
            &[chain("", &relays("good"))],
        ),
        listener("fields", &only(rules), &[chain("", &relays("good"))]),
        listener(
            "handing",
            &format!("    use_original_dst: true\n{}", only("")),
            &[chain("", &says("handing's own"))],
        ),
        listener_at("exact", "10.1.2.3, port_value: 80", virtual_, &[chain("", &says("exact"))]),
        listener_at("any", "0.0.0.0, port_value: 80", virtual_, &[chain("", &says("any"))]),
        listener_at("any six", "\"::\", port_value: 80", virtual_, &[chain("", &says("any six"))]),
        listener_at(
            "both",
            "\"::\", port_value: 81, ipv4_compat: true",
            virtual_,
            &[chain("", &says("both"))],
        ),
        listener_at(
            "looks",
            "0.0.0.0, port_value: 82",
            &format!("{virtual_}    listener_filters:\n{inspectors}"),
            &[chain("application_protocols: [http/1.1]", &relays("good")), chain("", &relays("good"))],
        ),
        listener_at(
            "skips",
            "0.0.0.0, port_value: 83",
            &format!(
                "{virtual_}    listener_filters:\n    - {{ name: http_inspector, typed_config: {{ \"@type\": {FILTERS}.listener.http_inspector.v3.HttpInspector }}, filter_disabled: {{ or_match: {{ rules: [ {{ destination_port_range: {{ start: 80, end: 83 }} }}, {{ not_match: {{ destination_port_range: {{ start: 84, end: 90 }} }} }} ] }} }} }}\n"
            ),
            &[chain("application_protocols: [http/1.1]", &relays("good")), chain("", &relays("good"))],
        ),
        listener(
            "ranges",
            &only(""),
            &[
                chain("destination_port: 80", &says("port 80")),
                chain(&ranges("prefix_ranges", "10.9.0.0", 16), &says("to 10.9")),
                chain(&ranges("source_prefix_ranges", "10.8.0.0", 16), &says("from 10.8")),
                chain(&ranges("direct_source_prefix_ranges", "127.0.0.0", 8), &says("direct")),
            ],
        ),
        listener("own", &only(""), &[chain("", &relays("original"))]),
        listener("tells-1", &only(", allow_requests_without_proxy_protocol: true"), &[chain(
            "",
            &relays("told-1"),
        )]),
        listener("tells-2", &only(", allow_requests_without_proxy_protocol: true"), &[chain(
            "",
            &relays("told-2"),
        )]),
        listener("tells-some", &only(""), &[chain("", &relays("matched"))]),
        listener("tells-others", &only(""), &[chain("", &relays("unmatched"))]),
    ];
    let cluster = |name: &str, socket: &str| {
        format!("  - name: {name}\n    connect_timeout: 1s\n    type: STATIC\n    load_assignment: {{ cluster_name: {name}, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @origin@ }} }} }} }} ] }} ] }}\n{socket}")
    };
    let told = |version: &str| {
        format!("transport_socket: {{ name: p, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, config: {{ version: {version} }}, transport_socket: {{ name: envoy.transport_sockets.raw_buffer, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer }} }} }} }}\n")
    };
    // The endpoint says which it wants.
    let matches = format!(
        "    transport_socket_matches:\n    - name: one\n      match: {{ says: one }}\n      {}    - name: two\n      match: {{ says: two }}\n      {}",
        told("V1"),
        told("V2"),
    );
    let metadata =
        "metadata: { filter_metadata: { envoy.transport_socket_match: { says: two } } }, endpoint: {";
    let matched = cluster("matched", &matches).replace("endpoint: {", metadata);
    let told = |version: &str| format!("    {}", told(version));
    format!(
        "admin:\n  address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }}\nstatic_resources:\n  listeners:\n{}  clusters:\n{}  - name: original\n    connect_timeout: 1s\n    type: ORIGINAL_DST\n    lb_policy: CLUSTER_PROVIDED\n",
        listeners.concat(),
        cluster("good", "") + &cluster("told-1", &told("V1")) + &cluster("told-2", &told("V2")) + &matched + &cluster("unmatched", &matches),
    )
}

/// A header of version 2: version and command, family and transport, what follows.
fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, family]);
    header.extend((body.len() as u16).to_be_bytes());
    header.extend(body);
    header
}

/// 10.8.0.1:4444 to 10.9.0.1:99 with these fields.
fn v2_fields(fields: &[u8]) -> Vec<u8> {
    v2(0x21, 0x11, &[&[10, 8, 0, 1, 10, 9, 0, 1, 0x11, 0x5c, 0, 99], fields].concat())
}

/// Name, listener, what is sent (`@origin@` is the origin's port).
fn cases() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let text = |text: &str| text.as_bytes().to_vec();
    let to = |address: &str, port: u16, rest: &str| {
        let family = if address.contains(':') { ("TCP6", "::5") } else { ("TCP4", "10.8.0.5") };
        text(&format!("PROXY {} {} {address} 5555 {port}\r\n{rest}", family.0, family.1))
    };
    let six = [[0x20, 1].as_slice(), &[0; 13], &[9], &[0; 15], &[1], &[1, 0, 2, 0], b"six"].concat();
    vec![
        ("a line", "strict", to("10.9.0.1", 99, "hello\n")),
        ("a line of IPv6", "strict", to("2001:db8::1", 99, "hello\n")),
        ("an unknown line", "strict", text("PROXY UNKNOWN\r\nhello\n")),
        ("an unknown line with more", "strict", text("PROXY UNKNOWN ::1 ::2 3 4\r\nhello\n")),
        ("no header", "strict", text("hello and more than a header\r\n")),
        ("HTTP in place of a header", "strict", text("GET / HTTP/1.1\r\nhost: a\r\n\r\n")),
        ("a line of something else", "strict", text("PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\nhello\n")),
        ("a line with a port too many", "strict", text("PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\nhello\n")),
        ("a line with a large port", "strict", text("PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\nhello\n")),
        ("a line of the wrong family", "strict", text("PROXY TCP4 ::1 ::2 1 2\r\nhello\n")),
        ("an endless line", "strict", text(&format!("PROXY TCP4 {}", "1".repeat(200)))),
        ("binary", "strict", [v2_fields(&[]), text("hello\n")].concat()),
        ("binary IPv6", "strict", v2(0x21, 0x21, &six[..36]).into_iter().chain(six[36..].to_vec()).collect()),
        ("binary, the sender's own", "strict", [v2(0x20, 0, &[]), text("hello\n")].concat()),
        (
            "binary, the sender's own with addresses",
            "strict",
            [v2(0x20, 0x11, &[7; 12]), text("hello\n")].concat(),
        ),
        ("binary of datagrams", "strict", [v2(0x21, 0x12, &[1; 12]), text("hello\n")].concat()),
        ("binary of another version", "strict", [v2(0x11, 0x11, &[1; 12]), text("hello\n")].concat()),
        ("binary with another command", "strict", [v2(0x22, 0x11, &[1; 12]), text("hello\n")].concat()),
        ("binary of no family", "strict", [v2(0x21, 0, &[]), text("hello\n")].concat()),
        ("binary of a Unix socket", "strict", [v2(0x21, 0x31, &[1; 216]), text("hello\n")].concat()),
        ("binary that is too short", "strict", [v2(0x21, 0x11, &[1; 11]), text("hello\n")].concat()),
        ("optional and there", "optional", to("10.9.0.1", 99, "hello\r\n")),
        ("optional and not there", "optional", text("hello\r\n")),
        ("optional and there, HTTP", "optional", to("10.9.0.1", 99, "GET /hello HTTP/1.1\r\n\r\n")),
        ("optional and not there, HTTP", "optional", text("GET /hello HTTP/1.1\r\n\r\n")),
        ("a version that is refused", "second", to("10.9.0.1", 99, "hello\n")),
        ("a version that is not refused", "second", [v2_fields(&[]), text("hello\n")].concat()),
        (
            "fields",
            "fields",
            [v2_fields(&[0xea, 0, 2, b'h', b'i', 0xeb, 0, 2, 1, 2]), text("hello\n")].concat(),
        ),
        (
            "a field that is no text",
            "fields",
            [v2_fields(&[0xea, 0, 2, b'h', 0xff]), text("hello\n")].concat(),
        ),
        ("a field that is cut off", "fields", [v2_fields(&[0xea, 0, 9, b'h']), text("hello\n")].concat()),
        ("to a listener", "handing", to("10.1.2.3", 80, "")),
        ("to a listener's port", "handing", to("10.1.2.4", 80, "")),
        ("to nobody's port", "handing", to("10.1.2.3", 79, "")),
        ("to a listener's port of IPv6", "handing", to("2001:db8::1", 80, "")),
        ("to a listener of both families", "handing", to("10.1.2.3", 81, "")),
        ("without a destination", "handing", text("PROXY UNKNOWN\r\n")),
        ("to a listener that looks", "handing", to("10.1.2.3", 82, "GET /hello HTTP/1.1\r\n\r\n")),
        (
            "to a listener that does not look there",
            "handing",
            to("10.1.2.3", 83, "GET /hello HTTP/1.1\r\n\r\n"),
        ),
        ("chain of a port", "ranges", to("10.9.0.1", 80, "")),
        ("chain of a range", "ranges", to("10.9.0.1", 81, "")),
        ("chain of a source", "ranges", to("10.7.0.1", 81, "")),
        ("chain of the socket's own peer", "ranges", text("PROXY TCP4 10.7.0.1 10.7.0.1 5555 81\r\n")),
        (
            "to the original destination",
            "own",
            text("PROXY TCP4 10.8.0.5 127.0.0.1 5555 @origin@\r\nhello\n"),
        ),
        ("without an original destination", "own", text("PROXY UNKNOWN\r\nhello\n")),
        ("told of the socket's peer", "tells-1", text("hello\n")),
        ("told of a client", "tells-1", to("10.9.0.1", 99, "hello\n")),
        ("told of a client of IPv6", "tells-1", to("2001:db8::1", 99, "hello\n")),
        ("told in binary", "tells-2", to("10.9.0.1", 99, "hello\n")),
        ("told in binary of IPv6", "tells-2", to("2001:db8::1", 99, "hello\n")),
        ("told in binary of the socket's peer", "tells-2", text("hello\n")),
        ("told as the endpoint matches", "tells-some", to("10.9.0.1", 99, "hello\n")),
        ("not told, as nothing matches", "tells-others", to("10.9.0.1", 99, "hello\n")),
    ]
}

struct Side {
    proxy: Proxy,
    origin: TcpOrigin,
}

async fn side(kind: Kind, template: &str) -> Side {
    let origin = TcpOrigin::start().await;
    let values = [("origin", origin.port.to_string())];
    let proxy = Proxy::start(Plan::new(kind, template, &values)).await;
    Side { proxy, origin }
}

/// What a client gets that sends `bytes`, and what is logged of it.
async fn observe(side: &Side, listener: &str, bytes: &[u8]) -> String {
    let port = side.proxy.port(listener);
    let mut client = Client::connect(port).await.expect("a connection");
    let own = client.local().port();
    let bytes = match std::str::from_utf8(bytes) {
        Ok(text) => text.replace("@origin@", &side.origin.port.to_string()).into_bytes(),
        Err(_) => bytes.to_vec(),
    };
    let _ = client.send(&bytes).await;
    // Envoy drops a client that ends its side before its chain is chosen.
    let _ = tokio::time::timeout(Duration::from_secs(2), client.reader.fill()).await;
    let _ = client.finish().await;
    let wait = async {
        loop {
            match client.reader.fill().await {
                Ok(true) => {}
                // Which of both it is depends on what was not read.
                Ok(false) | Err(ReadError::Reset) => return "the end",
                Err(_) => return "an error",
            }
        }
    };
    let end = tokio::time::timeout(Duration::from_secs(4), wait).await.unwrap_or("still open");
    let mut got = client.reader.buffered.clone();
    // Ports in a binary header.
    if let Some(ports) = got.starts_with(b"\r\n\r\n\0\r\nQUIT\n").then(|| got.get_mut(24..28)).flatten() {
        if ports[..2] == own.to_be_bytes() {
            ports.copy_from_slice(b"PORT");
        }
    }
    let numbered = |text: &str| {
        let text = text.replace(&own.to_string(), "<client>").replace(&port.to_string(), "<listener>");
        text.replace(&side.origin.port.to_string(), "<origin>")
    };
    let got: String = got.iter().flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect();
    let mut text = format!("got {}, then {end}\n", numbered(&got));
    drop(client);
    let peer = format!("peer=127.0.0.1:{own}\t");
    let line = || side.proxy.lines("access.log", 0).into_iter().find(|line| line.starts_with(&peer));
    if got.contains("hello") {
        eventually(DEADLINE / 3, || std::future::ready(line().is_some())).await;
    }
    text += &numbered(&line().unwrap_or_default());
    text
}

async fn counted(side: &Side) -> BTreeMap<String, u64> {
    let all = side.proxy.stats().await;
    let wanted = |name: &String| {
        name.starts_with("proxy_proto.")
            || name.ends_with("original_dst_host_invalid")
            || name == "listener.10.1.2.3_80.downstream_cx_total"
    };
    all.into_iter().filter(|(name, _)| wanted(name)).collect()
}

#[tokio::test]
async fn proxy_protocol() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let template = template();
    let only = set("OUTRIGGER_E2E_CASE").unwrap_or_default();
    let envoy = side(Kind::Envoy, &template).await;
    let ours = side(Kind::Outrigger, &template).await;
    let mut beside = Beside::default();
    for (name, listener, bytes) in cases().iter().filter(|case| case.0.contains(&only)) {
        let (theirs, mine) = tokio::join!(observe(&envoy, listener, bytes), observe(&ours, listener, bytes));
        beside.texts(&format!("{name} [{listener}]"), &theirs, &mine);
    }
    beside.end();
    if only.is_empty() {
        let (theirs, mine) = (counted(&envoy).await, counted(&ours).await);
        assert!(theirs.get("proxy_proto.versions.v1.found").is_some_and(|found| *found > 10), "{theirs:?}");
        assert_eq!(theirs, mine, "left: Envoy");
    }
}
