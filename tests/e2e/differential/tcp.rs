//! The TCP proxy and the choice of filter chains beside Envoy's: what the client sees, how the origin's connection ends,
//! what the access log says.

use super::beside::Beside;
use super::set;
use crate::harness::client::Client;
use crate::harness::http1::ReadError;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::tcp_origin::TcpOrigin;
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use std::time::Duration;

const LOG: &str = "peer=%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%\\tflags=%RESPONSE_FLAGS%\\tcode=%RESPONSE_CODE%\\tdetails=%RESPONSE_CODE_DETAILS%\\tprotocol=%PROTOCOL%\\treceived=%BYTES_RECEIVED%\\tsent=%BYTES_SENT%\\tcluster=%UPSTREAM_CLUSTER%\\tupstream=%UPSTREAM_HOST%\\tfailure=%UPSTREAM_TRANSPORT_FAILURE_REASON%\\tend=%CONNECTION_TERMINATION_DETAILS%\\tname=%REQUESTED_SERVER_NAME%\\tchain=%FILTER_CHAIN_NAME%\\n";

/// A filter chain with a tcp proxy.
pub(crate) fn chain(name: &str, matcher: &str, options: &str) -> String {
    chain_with(name, matcher, "", options)
}

/// The same, with other filters before it.
pub(crate) fn chain_with(name: &str, matcher: &str, before: &str, options: &str) -> String {
    format!(
        r#"    - name: {name}
      filter_chain_match: {{ {matcher} }}
      filters:
{before}      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: {name}
          {options}
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: "@dir@/access.log"
              log_format: {{ text_format_source: {{ inline_string: "{LOG}" }} }}
"#
    )
}

pub(crate) fn listener(name: &str, options: &str, chains: &[String]) -> String {
    format!(
        "  - name: {name}\n    address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:{name}@ }} }}\n{options}    filter_chains:\n{}",
        chains.concat()
    )
}

fn template() -> String {
    let inspector = "    listener_filters:\n    - name: envoy.filters.listener.tls_inspector\n      typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector }\n";
    let short = format!("{inspector}    listener_filters_timeout: 0.3s\n");
    let go_on = format!("{short}    continue_on_listener_filters_timeout: true\n");
    let to = |cluster: &str| format!("cluster: {cluster}");
    let listeners = [
        listener("plain", "", &[chain("plain", "", &to("good"))]),
        listener("refused", "", &[chain("refused", "", &to("refused"))]),
        listener("empty", "", &[chain("empty", "", &to("empty"))]),
        listener("missing", "", &[chain("missing", "", &to("nowhere"))]),
        listener("idle", "", &[chain("idle", "", "cluster: good\n          idle_timeout: 0.3s")]),
        listener(
            "longest",
            "",
            &[chain("longest", "", "cluster: good\n          max_downstream_connection_duration: 0.3s")],
        ),
        listener(
            "weighted",
            "",
            &[chain(
                "weighted",
                "",
                "weighted_clusters: { clusters: [ { name: good, weight: 1 }, { name: good, weight: 3 } ] }",
            )],
        ),
        listener(
            "names",
            inspector,
            &[
                chain("exact", "server_names: [a.test]", &to("good")),
                chain("wild", "server_names: ['*.a.test']", &to("good")),
                chain("wilder", "server_names: ['*.test']", &to("good")),
                chain("alpn", "server_names: [b.test], application_protocols: [h2]", &to("good")),
                chain("tls", "transport_protocol: tls", &to("good")),
            ],
        ),
        listener(
            "fallback",
            &format!(
                "{inspector}    default_filter_chain:\n{}",
                chain("default", "", &to("good")).replacen("    - name", "      name", 1)
            ),
            &[chain("only", "server_names: [a.test]", &to("good"))],
        ),
        listener("short", &short, &[chain("short", "", &to("good"))]),
        listener("go-on", &go_on, &[chain("go-on", "", &to("good"))]),
        listener(
            "sources",
            "",
            &[
                chain(
                    "near",
                    "source_prefix_ranges: [ { address_prefix: 127.0.0.0, prefix_len: 8 } ]",
                    &to("good"),
                ),
                chain(
                    "far",
                    "source_prefix_ranges: [ { address_prefix: 10.0.0.0, prefix_len: 8 } ]",
                    &to("refused"),
                ),
            ],
        ),
    ];
    rendered(&listeners)
}

/// The configuration with these listeners.
pub(crate) fn rendered(listeners: &[String]) -> String {
    format!(
        "admin:\n  address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }}\nstatic_resources:\n  listeners:\n{}  clusters:\n{}",
        listeners.concat(),
        "  - name: good
    connect_timeout: 1s
    type: STATIC
    load_assignment: { cluster_name: good, endpoints: [ { lb_endpoints: [ { endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @origin@ } } } } ] } ] }
  - name: refused
    connect_timeout: 1s
    type: STATIC
    load_assignment: { cluster_name: refused, endpoints: [ { lb_endpoints: [ { endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @port:refused-port@ } } } } ] } ] }
  - name: empty
    connect_timeout: 1s
    type: STATIC
    load_assignment: { cluster_name: empty }
"
    )
}

/// What a client does.
#[derive(Clone)]
pub(crate) enum Act {
    Send(Vec<u8>),
    /// Reads this many bytes.
    Read(usize),
    /// Ends the sending direction.
    Finish,
    /// Reads to the end of the connection.
    End,
    /// Resets the connection.
    Reset,
}

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) listener: &'static str,
    pub(crate) acts: Vec<Act>,
    /// Whether the origin gets a connection.
    pub(crate) reaches: bool,
    /// Whether a line is logged.
    pub(crate) logged: bool,
    /// Access-log fields, or `origin` for the end of its connection, that are not compared.
    pub(crate) ignore: &'static [&'static str],
}

impl Case {
    /// Its name and where it goes.
    pub(crate) fn title(&self) -> String {
        format!("{} [{}]", self.name, self.listener)
    }
}

pub(crate) fn case(name: &'static str, listener: &'static str, acts: Vec<Act>) -> Case {
    Case { name, listener, acts, reaches: true, logged: true, ignore: &[] }
}

pub(crate) fn send(text: &str) -> Act {
    Act::Send(text.as_bytes().to_vec())
}

/// A ClientHello with a server name and ALPN protocols, enough for an inspector.
pub(crate) fn hello(name: &str, protocols: &[&str]) -> Vec<u8> {
    let u16 = |n: usize| (n as u16).to_be_bytes().to_vec();
    let sized = |body: Vec<u8>| [u16(body.len()), body].concat();
    let mut extensions = Vec::new();
    if !name.is_empty() {
        let entry = [vec![0], sized(name.as_bytes().to_vec())].concat();
        extensions.extend([u16(0), sized(sized(entry))].concat());
    }
    if !protocols.is_empty() {
        let list: Vec<u8> =
            protocols.iter().flat_map(|p| [vec![p.len() as u8], p.as_bytes().to_vec()].concat()).collect();
        extensions.extend([u16(16), sized(sized(list))].concat());
    }
    // supported_versions: TLS 1.3 and 1.2; supported_groups: x25519.
    extensions.extend([u16(43), sized(vec![4, 3, 4, 3, 3])].concat());
    extensions.extend([u16(10), sized(sized(u16(29)))].concat());
    let body = [
        vec![3, 3],
        vec![7; 32],
        vec![0],
        sized(vec![0x13, 0x01, 0xc0, 0x2f]),
        vec![1, 0],
        sized(extensions),
    ]
    .concat();
    let handshake = [vec![1, 0], u16(body.len()), body].concat();
    [vec![0x16, 3, 1], sized(handshake)].concat()
}

fn cases() -> Vec<Case> {
    use Act::{End, Finish, Read, Reset, Send};
    let named = |name: &'static str, listener, server: &str, protocols: &[&str]| {
        let bytes = hello(server, protocols);
        let n = bytes.len();
        case(name, listener, vec![Send(bytes), Read(n), Finish, End])
    };
    let unreached = |mut case: Case| {
        case.reaches = false;
        case
    };
    let unlogged = |mut case: Case| {
        case.logged = false;
        case
    };
    let ignoring = |keys, mut case: Case| {
        case.ignore = keys;
        case
    };
    let split: Vec<Act> = hello("a.test", &[]).iter().map(|b| Send(vec![*b])).collect();
    let whole = split.len();
    vec![
        case("echo", "plain", vec![send("echo\nhello"), Read(5), Finish, End]),
        case(
            "the client ends first and still gets its answer",
            "plain",
            vec![send("count\n0123456789"), Finish, End],
        ),
        case(
            "the origin ends first and still gets the rest",
            "plain",
            vec![send("early\n"), Read(3), send("more from the client"), Finish, End],
        ),
        case("the origin resets", "plain", vec![send("reset\n"), End]),
        // The reset is passed on; Envoy makes an orderly end of it.
        ignoring(
            &["origin", "flags"],
            case("the client resets", "plain", vec![send("echo\nx"), Read(1), Reset]),
        ),
        case("the client ends without a word", "plain", vec![Finish, End]),
        case("a mebibyte back", "plain", vec![send("source 1048576\n"), Read(1 << 20), Finish, End]),
        case("sixteen mebibytes back", "plain", vec![send("source 16777216\n"), Read(16 << 20), Finish, End]),
        case("four mebibytes there", "plain", vec![send("count\n"), Send(vec![b'x'; 4 << 20]), Finish, End]),
        // Closed at once: a reset where the client's bytes came first, else an end.
        ignoring(&["reset"], unreached(case("connection refused", "refused", vec![send("echo\n"), End]))),
        ignoring(&["reset"], unreached(case("no endpoint", "empty", vec![send("echo\n"), End]))),
        ignoring(&["reset"], unreached(case("no cluster", "missing", vec![send("echo\n"), End]))),
        case("idle timeout", "idle", vec![send("echo\nx"), Read(1), End]),
        case("idle timeout of a connection that never speaks", "idle", vec![End]),
        case("longest duration", "longest", vec![send("echo\nx"), Read(1), End]),
        case("weighted", "weighted", vec![send("echo\nx"), Read(1), Finish, End]),
        named("name, exact", "names", "a.test", &[]),
        named("name in another case", "names", "A.Test", &[]),
        named("name by wildcard", "names", "x.a.test", &[]),
        named("name by the wider wildcard", "names", "x.y.test", &[]),
        named("name and protocol", "names", "b.test", &["h2", "http/1.1"]),
        named("name without its protocol falls to the transport", "names", "other.example", &["http/1.1"]),
        named("no name", "names", "", &[]),
        unreached(unlogged(case("no TLS where every chain wants it", "names", vec![send("echo\n"), End]))),
        named("name, others have a default", "fallback", "a.test", &[]),
        named("another name falls to the default", "fallback", "z.test", &[]),
        case("no TLS falls to the default", "fallback", vec![send("echo\nx"), Read(1), Finish, End]),
        case(
            "a hello in single bytes",
            "names",
            split.into_iter().chain([Read(whole), Finish, End]).collect(),
        ),
        unreached(unlogged(case("silence while the inspector waits", "short", vec![End]))),
        case(
            "silence where it goes on after the inspector",
            "go-on",
            vec![send("\x16"), Read(1), Finish, End],
        ),
        case("chain by source", "sources", vec![send("echo\nx"), Read(1), Finish, End]),
    ]
}

pub(crate) struct Side {
    pub proxy: Proxy,
    pub origin: TcpOrigin,
}

pub(crate) async fn side(kind: Kind, template: &str) -> Side {
    let origin = TcpOrigin::start().await;
    let values = [("origin", origin.port.to_string())];
    let proxy = Proxy::start(Plan::new(kind, template, &values)).await;
    Side { proxy, origin }
}

/// Runs a case and says what happened.
pub(crate) async fn observe(side: &Side, case: &Case) -> String {
    let before = side.proxy.length("access.log");
    let mut text = String::new();
    let mut client = match Client::connect(side.proxy.port(case.listener)).await {
        Ok(client) => client,
        Err(e) => return format!("cannot connect: {e}"),
    };
    let local = client.local().port();
    for act in &case.acts {
        match act {
            Act::Send(bytes) => {
                let _ = client.send(bytes).await;
            }
            Act::Finish => drop(client.finish().await),
            Act::Read(n) => {
                let wait = async {
                    while client.reader.buffered.len() < *n {
                        match client.reader.fill().await {
                            Ok(true) => {}
                            _ => return,
                        }
                    }
                };
                let _ = tokio::time::timeout(DEADLINE, wait).await;
                let take = (*n).min(client.reader.buffered.len());
                let got: Vec<u8> = client.reader.buffered.drain(..take).collect();
                let sum: u64 = got.iter().map(|b| u64::from(*b)).sum();
                text += &format!("read {} bytes, sum {sum}\n", got.len());
            }
            Act::End => {
                let wait = async {
                    loop {
                        match client.reader.fill().await {
                            Ok(true) => {}
                            Ok(false) => return "the end",
                            Err(ReadError::Reset) => return "a reset",
                            Err(_) => return "an error",
                        }
                    }
                };
                let mut end =
                    tokio::time::timeout(Duration::from_secs(4), wait).await.unwrap_or("still open");
                if case.ignore.contains(&"reset") && ["the end", "a reset"].contains(&end) {
                    end = "the end or a reset";
                }
                text += &format!("read {:?}, then {end}\n", String::from_utf8_lossy(&client.reader.buffered));
            }
            Act::Reset => client.reset(),
        }
    }
    drop(client);
    if case.reaches {
        let end = side.origin.end().await;
        if !case.ignore.contains(&"origin") {
            text += &format!("origin: {end}\n");
        }
    }
    if case.logged {
        let peer = format!("peer=127.0.0.1:{local}\t");
        let fresh = || side.proxy.lines("access.log", before).into_iter();
        let line = || fresh().find(|line| line.starts_with(&peer));
        eventually(DEADLINE / 3, || std::future::ready(line().is_some())).await;
        let refused = format!(":{}", side.proxy.port("refused-port"));
        for field in line().unwrap_or("\tno access-log line".to_string()).split('\t').skip(1) {
            let key = field.split('=').next().unwrap_or("");
            if !case.ignore.contains(&key) {
                let field = field
                    .replace(&format!(":{}", side.origin.port), ":<origin>")
                    .replace(&refused, ":<refused>");
                text += &format!("log {field}\n");
            }
        }
    }
    text
}

#[tokio::test]
async fn tcp() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let template = template();
    let only = set("OUTRIGGER_E2E_CASE").unwrap_or_default();
    let envoy = side(Kind::Envoy, &template).await;
    let ours = match set("OUTRIGGER_E2E_ENVOY_ONLY") {
        Some(_) => None,
        None => Some(side(Kind::Outrigger, &template).await),
    };
    let mut beside = Beside::default();
    for case in cases().iter().filter(|c| c.name.contains(&only)) {
        let theirs = observe(&envoy, case).await;
        let Some(ours) = &ours else {
            println!("=== {}\n{theirs}", case.title());
            continue;
        };
        beside.texts(&case.title(), &theirs, &observe(ours, case).await);
    }
    beside.end();
}
