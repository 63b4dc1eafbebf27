//! The DNS filter beside Envoy's: responses, what is counted and what is logged, for a table of queries; forwarded names,
//! with a name server that knows, refuses, or is silent.

use crate::harness::dns::{ask, described, query, NameServer, Says};
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::{eventually, DEADLINE};
use crate::peers;
use hickory_resolver::proto::rr::RecordType;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};

const TABLE: &str = r#"{ external_retry_count: 1, virtual_domains: [
  { name: a.example.com, endpoint: { address_list: { address: [ 10.0.0.1 ] } } },
  { name: a.example.com, endpoint: { address_list: { address: [ 10.0.0.11, "fd00::1" ] } } },
  { name: Mixed.Example.com, endpoint: { address_list: { address: [ 10.0.0.3 ] } } },
  { name: "*.wild.example.com", answer_ttl: 60s, endpoint: { address_list: { address: [ 10.0.0.2, "fd00::2" ] } } },
  { name: "*.deep.wild.example.com", endpoint: { address_list: { address: [ 10.0.0.22 ] } } },
  { name: fixed.deep.wild.example.com, answer_ttl: 30s, endpoint: { address_list: { address: [ 10.0.0.23 ] } } },
  { name: six.example.com, endpoint: { address_list: { address: [ "fd00::6" ] } } },
  { name: c.example.com, answer_ttl: 60s, endpoint: { cluster_name: two } },
  { name: c.example.com, endpoint: { cluster_name: good } },
  { name: good.cluster.example.com, endpoint: { cluster_name: good } },
  { name: none.example.com, endpoint: { cluster_name: empty } },
  { name: lost.example.com, endpoint: { cluster_name: nowhere } },
  { name: many.example.com, endpoint: { address_list: { address: [ 10.1.0.1, 10.1.0.2, 10.1.0.3, 10.1.0.4, 10.1.0.5, 10.1.0.6, 10.1.0.7, 10.1.0.8, 10.1.0.9, 10.1.0.10 ] } } },
  { name: many.a-label-that-takes-room.a-label-that-takes-room.a-label-that-takes-room.a-label-that-takes-room.example.com, endpoint: { address_list: { address: [ 10.1.0.1, 10.1.0.2, 10.1.0.3, 10.1.0.4, 10.1.0.5, 10.1.0.6 ] } } },
  { name: srv.example.com, endpoint: { service_list: { services: [
    { service_name: web, protocol: { name: tcp }, ttl: 90s, targets: [ { host_name: a.example.com, priority: 1, weight: 2, port: 80 } ] },
    { service_name: _api, protocol: { name: _tcp }, ttl: 5s, targets: [ { host_name: x.deep.wild.example.com, port: 81 }, { host_name: six.example.com, port: 82, weight: 3 }, { host_name: unknown.example.com, port: 83 } ] },
    { service_name: num, protocol: { number: 17 }, ttl: 90s, targets: [ { cluster_name: good, priority: 4, weight: 5, port: 99 } ] },
    { service_name: own, protocol: { number: 6 }, ttl: 90s, targets: [ { cluster_name: good } ] },
    { service_name: odd, protocol: { number: 132 }, ttl: 90s, targets: [ { host_name: a.example.com } ] },
    { service_name: gone, protocol: { name: tcp }, ttl: 90s, targets: [ { cluster_name: nowhere } ] } ] } } } ] }"#;

const LOG: &str = "%QUERY_NAME% %QUERY_TYPE% %QUERY_CLASS% %ANSWER_COUNT% %RESPONSE_CODE% %PARSE_STATUS%";

fn listener(name: &str, config: &str) -> String {
    format!(
        "  - name: {name}\n    address: {{ socket_address: {{ protocol: UDP, address: 127.0.0.1, port_value: @port:{name}@ }} }}\n    listener_filters:\n    - name: envoy.filters.udp.dns_filter\n      typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig, stat_prefix: {name}, {config} }}\n"
    )
}

fn cluster(name: &str, addresses: &[&str]) -> String {
    let endpoint = |address: &&str| {
        format!("{{ endpoint: {{ address: {{ socket_address: {{ address: \"{address}\", port_value: 99 }} }} }} }}")
    };
    let endpoints = addresses.iter().map(endpoint).collect::<Vec<_>>().join(", ");
    format!("  - name: {name}\n    type: STATIC\n    load_assignment: {{ cluster_name: {name}, endpoints: [ {{ lb_endpoints: [ {endpoints} ] }} ] }}\n")
}

fn template() -> String {
    let inline = format!("server_config: {{ inline_dns_table: {TABLE} }}");
    let file = |name: &str| format!("server_config: {{ external_dns_table: {{ filename: \"{name}\" }} }}");
    let log = |kind: &str, format: &str| {
        format!("access_log: [ {{ name: log, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: \"@dir@/{kind}.log\", log_format: {{ {format} }} }} }} ]")
    };
    let text = log("text", &format!("text_format_source: {{ inline_string: \"{LOG}\\n\" }}"));
    let json = log(
        "json",
        "json_format: { name: \"%QUERY_NAME%\", code: \"%RESPONSE_CODE%\", both: \"%QUERY_TYPE%/%ANSWER_COUNT%\" }",
    );
    let resolver = "typed_dns_resolver_config: { name: envoy.network.dns_resolver.cares, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, resolvers: [ { socket_address: { address: 127.0.0.1, port_value: @resolver@ } } ], dns_resolver_options: { no_default_search_domain: true } } }";
    let client = |most: u32| {
        format!("client_config: {{ resolver_timeout: 1s, max_pending_lookups: {most}, {resolver} }}")
    };
    format!(
        "admin:\n  address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }}\nstatic_resources:\n  listeners:\n{}  clusters:\n{}",
        [
            listener("table", &format!("{inline}, {text}")),
            listener("fold", &format!("{inline}, case_insensitive: true, {json}")),
            listener("file", &file("@tables@/table.yaml")),
            listener("missing", &file("@tables@/missing.yaml")),
            listener("forward", &format!("{inline}, {}", client(10))),
            listener("few", &client(1)),
            listener("mute", "client_config: { max_pending_lookups: 1 }, server_config: { inline_dns_table: { virtual_domains: [ { name: x.example.com, endpoint: { cluster_name: good } } ] } }"),
        ]
        .concat(),
        [
            cluster("good", &["10.2.0.1"]),
            cluster("two", &["10.2.0.1", "10.2.0.2", "fd00::9"]),
            cluster("empty", &[]),
            cluster("xn--cluster.example.com", &["10.2.0.3"]),
        ]
        .concat()
    )
}

/// Names that are asked for, and types.
const NAMES: &[(&str, u16)] = &[
    ("a.example.com", 1),
    ("a.example.com", 28),
    ("a.example.com", 33),
    ("a.example.com", 16),
    ("a.example.com", 255),
    ("A.eXample.com", 1),
    ("mixed.example.com", 1),
    ("Mixed.Example.com", 1),
    ("x.wild.example.com", 1),
    ("x.wild.example.com", 28),
    ("x.y.wild.example.com", 1),
    ("wild.example.com", 1),
    ("*.wild.example.com", 1),
    ("x.deep.wild.example.com", 1),
    ("x.deep.wild.example.com", 28),
    ("deep.wild.example.com", 1),
    ("fixed.deep.wild.example.com", 1),
    ("six.example.com", 1),
    ("six.example.com", 28),
    ("c.example.com", 1),
    ("c.example.com", 28),
    ("c.example.com", 33),
    ("good.cluster.example.com", 1),
    ("good.cluster.example.com", 28),
    ("none.example.com", 1),
    ("lost.example.com", 1),
    ("good", 1),
    ("two", 28),
    ("xn--cluster.example.com", 1),
    ("XN--cluster.example.com", 1),
    ("many.example.com", 1),
    (
        "many.a-label-that-takes-room.a-label-that-takes-room.a-label-that-takes-room.a-label-that-takes-room.example.com",
        1,
    ),
    ("_web._tcp.srv.example.com", 33),
    ("_WEB._tcp.srv.example.com", 33),
    ("_web._tcp.srv.example.com", 1),
    ("_api._tcp.srv.example.com", 33),
    ("_num._udp.srv.example.com", 33),
    ("_own._tcp.srv.example.com", 33),
    ("_odd._sctp.srv.example.com", 33),
    ("_gone._tcp.srv.example.com", 33),
    ("srv.example.com", 1),
    ("nothing.example.com", 1),
    ("other.org", 1),
    ("known.example.net", 1),
    ("known.example.net", 28),
    ("known.example.net", 33),
    ("known.example.net", 16),
    ("refused.example.net", 1),
    ("refused.example.com", 28),
];

/// Datagrams that are no ordinary queries.
fn datagrams() -> Vec<(String, Vec<u8>)> {
    let plain = query(7, "a.example.com", RecordType::A);
    let changed = |at: usize, with: &[u8]| {
        let mut bytes = plain.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    let mut list: Vec<(String, Vec<u8>)> =
        (0..plain.len()).map(|length| (format!("{length} bytes"), plain[..length].to_vec())).collect();
    let mut more = |name: &str, bytes: Vec<u8>| list.push((name.to_owned(), bytes));
    more("number 0", changed(0, &[0, 0]));
    more("an update", changed(2, &[0x29, 0]));
    more("no recursion", changed(2, &[0, 0]));
    more("all flags", changed(2, &[0x7f, 0xff]));
    more("no questions", changed(4, &[0, 0]));
    more("two questions", changed(4, &[0, 2]));
    more("an answer", changed(6, &[0, 1]));
    more("an authority", changed(8, &[0, 1]));
    more("options", [changed(10, &[0, 1]), vec![0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]].concat());
    more("options that are missing", changed(10, &[0, 1]));
    more("more behind it", [plain.clone(), vec![1, 2, 3]].concat());
    more("another class", changed(plain.len() - 2, &[0, 3]));
    more("any class", changed(plain.len() - 2, &[0, 255]));
    let header = &plain[..12];
    let tail = [0, 1, 0, 1];
    for (name, label) in [
        ("the root", &b"\0"[..]),
        ("a loop", b"\xc0\x0c"),
        ("a loop behind a label", b"\x01a\xc0\x0c"),
        ("beyond the end", b"\xc0\xff"),
        ("a label type that is not used", b"\x41a\0"),
        ("a label that is too long", b"\x40aaaa\0"),
        ("no end", b"\x01a\x01b\x01c"),
    ] {
        more(name, [header, label, &tail].concat());
    }
    let long: Vec<u8> = (0..3).flat_map(|_| [vec![60], vec![b'x'; 60]].concat()).collect();
    more("a long name", [header, &long, b"\x07example\x03com\0", &tail].concat());
    let longer: Vec<u8> = (0..5).flat_map(|_| [vec![60], vec![b'x'; 60]].concat()).collect();
    more("a name that is too long", [header, &longer, b"\0", &tail].concat());
    list
}

/// Answers that are drawn from many are only counted.
fn masked(response: Option<Vec<u8>>) -> String {
    let text = response.map_or_else(|| "nothing".to_owned(), |bytes| described(&bytes));
    match text.contains("\"many.") {
        true => {
            format!("{} of {}", text.matches("10.1.0.").count(), text.rsplit_once(',').map_or("", |(_, l)| l))
        }
        false => text,
    }
}

/// What says that it is a response is not answered: two who answer each other do not end.
#[tokio::test]
async fn responses_are_not_answered() {
    let listener = listener("table", &format!("server_config: {{ inline_dns_table: {TABLE} }}"));
    let template = format!(
        "admin:\n  address: {{ socket_address: {{ address: 127.0.0.1, port_value: @port:admin@ }} }}\nstatic_resources:\n  listeners:\n{listener}  clusters:\n{}",
        ["good", "two", "empty"].map(|name| cluster(name, &[])).concat()
    );
    let proxy = Proxy::outrigger(&template, &[]).await;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    socket.connect((Ipv4Addr::LOCALHOST, proxy.port("table"))).expect("connected");
    let mut response = query(7, "a.example.com", RecordType::A);
    response[2] |= 0x80;
    for length in [4, 11, 12, response.len()] {
        socket.send(&response[..length]).expect("sent");
    }
    let said = ask(&socket, &query(8, "a.example.com", RecordType::A), DEADLINE).expect("a response");
    assert_eq!(said[..2], [0, 8], "{}", described(&said));
    let stats = proxy.stats().await;
    assert_eq!(stats.get("dns_filter.table.downstream_rx_invalid_queries"), Some(&4));
    assert_eq!(stats.get("dns_filter.table.downstream_tx_responses"), Some(&1));
}

/// Nobody answers.
async fn in_vain(proxy: &Proxy, socket: &impl Fn(&str) -> UdpSocket) {
    // A try and one more, of a second each.
    let late = query(5, "late.example.net", RecordType::A);
    let said = masked(ask(&socket("forward"), &late, DEADLINE));
    assert!(said.starts_with("[00, 05, 81, 83] "), "{said}");
    // Two may wait; the third is told at once.
    let waiting: Vec<UdpSocket> = (0..2).map(|_| socket("few")).collect();
    for socket in &waiting {
        socket.send(&late).expect("sent");
    }
    let said = masked(ask(&socket("few"), &late, DEADLINE));
    assert!(said.starts_with("[00, 05, 81, 83] "), "{said}");
    let answered = || async { proxy.stats().await.get("dns_filter.few.downstream_tx_responses").copied() };
    assert_eq!(answered().await, Some(1));
    assert!(eventually(DEADLINE, || async { answered().await == Some(3) }).await);
}

type Seen = (Vec<String>, BTreeMap<String, u64>, Vec<String>);

async fn observe(kind: Kind) -> Seen {
    let tables = tempfile::tempdir().expect("a directory");
    std::fs::write(tables.path().join("table.yaml"), TABLE).expect("written");
    let server = NameServer::start(|name| match name {
        "known.example.net" => {
            Says::Addresses(vec!["192.0.2.1".parse().unwrap(), "fd00::7".parse().unwrap()])
        }
        "late.example.net" => Says::Nothing,
        _ => Says::NoSuchName,
    });
    let values = [("resolver", server.port.to_string()), ("tables", tables.path().display().to_string())];
    let template = template();
    let mut plan = Plan::new(kind, &template, &values);
    plan.arguments = &["--concurrency", "1", "--file-flush-interval-msec", "50"];
    let proxy = Proxy::start(plan).await;
    let socket = |name: &str| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        socket.connect((Ipv4Addr::LOCALHOST, proxy.port(name))).expect("connected");
        socket
    };
    let mut said = Vec::new();
    for name in ["table", "fold", "file", "missing", "forward"] {
        let socket = socket(name);
        for (number, (asked, kind)) in (1_u16..).zip(NAMES) {
            let response = ask(&socket, &query(number, asked, RecordType::from(*kind)), DEADLINE);
            said.push(format!("{name} {asked} {kind}: {}", masked(response)));
        }
        for (what, datagram) in datagrams() {
            said.push(format!("{name} {what}: {}", masked(ask(&socket, &datagram, DEADLINE))));
        }
    }
    let stats = proxy.stats().await.into_iter().filter(|(name, _)| name.starts_with("dns_filter.")).collect();
    // Envoy may miss the end of a second, and waits for its resolver then.
    if kind == Kind::Outrigger {
        in_vain(&proxy, &socket).await;
    }
    let mut lines = Vec::new();
    for (name, count) in
        [("text", NAMES.len() + datagrams().len()), ("json", NAMES.len() + datagrams().len())]
    {
        let read = || proxy.lines(&format!("{name}.log"), 0);
        let whole = || async { read().len() >= count };
        assert!(eventually(DEADLINE, whole).await, "{name}: {} of {count} lines", read().len());
        lines.extend(read());
    }
    (said, stats, lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn dns() {
    if !peers::have(&["envoy"]) {
        return;
    }
    let (theirs, mine) =
        tokio::join!(tokio::spawn(observe(Kind::Envoy)), tokio::spawn(observe(Kind::Outrigger)));
    let (theirs, mine) = (theirs.expect("no panic"), mine.expect("no panic"));
    let differ = |(left, right): &(&String, &String)| left != right;
    let said: Vec<_> = theirs.0.iter().zip(&mine.0).filter(differ).collect();
    let lines: Vec<_> = theirs.2.iter().zip(&mine.2).filter(differ).collect();
    assert!(said.is_empty(), "left: Envoy\n{said:#?}");
    assert!(lines.is_empty(), "left: Envoy\n{lines:#?}");
    assert_eq!(theirs.1, mine.1, "left: Envoy");
    assert_eq!((theirs.0.len(), theirs.2.len()), (mine.0.len(), mine.2.len()));
}
