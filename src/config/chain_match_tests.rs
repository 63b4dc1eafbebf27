use serde_json::{json, Value};

use super::*;

/// Chains from JSON matches, named c0, c1, ...
fn compile(matches: &[Value]) -> (ChainIndex, Vec<String>) {
    let mut chains = Vec::new();
    for (number, value) in matches.iter().enumerate() {
        let filter_chain_match = (!value.is_null()).then(|| {
            let loaded = outrigger_control_api::load_value::<FilterChainMatch>(value);
            loaded.expect("a test's own JSON").message
        });
        chains.push(FilterChain { name: format!("c{number}"), filter_chain_match, ..FilterChain::default() });
    }
    let mut problems = Problems::default();
    let index = ChainIndex::compile(&chains, &mut problems);
    (index, problems.list().iter().map(ToString::to_string).collect())
}

fn index(matches: &[Value]) -> ChainIndex {
    let (index, problems) = compile(matches);
    assert_eq!(problems, Vec::<String>::new());
    index
}

#[derive(Clone)]
struct Conn {
    local: &'static str,
    remote: &'static str,
    sni: &'static str,
    transport: &'static str,
    alpn: Vec<Box<str>>,
}

const PLAIN: Conn =
    Conn { local: "127.0.0.1:80", remote: "127.0.0.1:5000", sni: "", transport: "", alpn: Vec::new() };

fn tls(sni: &'static str, alpn: &[&str]) -> Conn {
    Conn { sni, transport: "tls", alpn: alpn.iter().map(|p| (*p).into()).collect(), ..PLAIN }
}

fn from(remote: &'static str) -> Conn {
    Conn { remote, ..PLAIN }
}

fn find(index: &ChainIndex, conn: &Conn) -> Option<usize> {
    let remote = conn.remote.parse().ok();
    index.find(&ConnectionFacts {
        local: conn.local.parse().ok(),
        remote,
        direct_remote: remote,
        server_name: conn.sni,
        transport: conn.transport,
        alpn: &conn.alpn,
    })
}

// The expectations of the next tests are what Envoy 1.40 answered to the same rules.

#[test]
fn no_step_goes_back() {
    let by_port = index(&[json!({"destination_port": 80, "server_names": ["a.test"]}), Value::Null]);
    assert_eq!(find(&by_port, &PLAIN), None);
    assert_eq!(find(&by_port, &Conn { local: "127.0.0.1:81", ..PLAIN }), Some(1));
    let by_source_type = index(&[json!({"source_type": 1, "source_ports": [1]}), Value::Null]);
    assert_eq!(find(&by_source_type, &PLAIN), None);
    let by_source = index(&[
        json!({"source_prefix_ranges": [{"address_prefix": "127.0.0.2", "prefix_len": 32}], "source_ports": [1]}),
        json!({"source_prefix_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]}),
    ]);
    assert_eq!(find(&by_source, &from("127.0.0.2:9")), None);
    assert_eq!(find(&by_source, &from("127.0.0.2:1")), Some(0));
    assert_eq!(find(&by_source, &from("127.0.0.3:9")), Some(1));
    assert_eq!(find(&by_source, &from("10.0.0.1:9")), None);
}

#[test]
fn server_names() {
    let index = index(&[
        json!({"server_names": ["A.test"], "application_protocols": ["h2"]}),
        json!({"server_names": ["*.test"]}),
        json!({"server_names": ["*.b.test"]}),
        Value::Null,
    ]);
    assert_eq!(find(&index, &tls("a.test", &[])), None);
    assert_eq!(find(&index, &tls("a.test", &["h2"])), Some(0));
    assert_eq!(find(&index, &tls("b.test", &[])), Some(1));
    assert_eq!(find(&index, &tls("x.y.test", &[])), Some(1));
    assert_eq!(find(&index, &tls("x.b.test", &[])), Some(2));
    assert_eq!(find(&index, &tls("test", &[])), Some(3));
    assert_eq!(find(&index, &tls(".test", &[])), Some(1), "as Envoy stores wildcards");
    assert_eq!(find(&index, &tls("test.", &[])), Some(3));
    assert_eq!(find(&index, &PLAIN), Some(3));
}

#[test]
fn application_protocols_in_the_clients_order() {
    let index = index(&[
        json!({"application_protocols": ["h2"]}),
        json!({"application_protocols": ["http/1.1", "http/1.0"]}),
        Value::Null,
    ]);
    assert_eq!(find(&index, &tls("a", &["http/1.1", "h2"])), Some(1));
    assert_eq!(find(&index, &tls("a", &["h2", "http/1.1"])), Some(0));
    assert_eq!(find(&index, &tls("a", &["zz", "h2"])), Some(0));
    assert_eq!(find(&index, &tls("a", &["zz"])), Some(2));
    assert_eq!(find(&index, &tls("a", &[])), Some(2));
}

#[test]
fn transport_protocol_defaults_to_raw_buffer() {
    let index = index(&[json!({"transport_protocol": "raw_buffer"}), json!({"transport_protocol": "tls"})]);
    assert_eq!(find(&index, &PLAIN), Some(0));
    assert_eq!(find(&index, &tls("", &[])), Some(1));
    assert_eq!(find(&index, &Conn { transport: "quic", ..PLAIN }), None);
}

#[test]
fn what_a_hello_may_find() {
    let index = index(&[
        json!({"destination_port": 1, "transport_protocol": "tls", "application_protocols": ["mesh"]}),
        json!({"destination_port": 1}),
        json!({"destination_port": 2, "transport_protocol": "raw_buffer"}),
        json!({"destination_port": 2, "transport_protocol": "tls", "server_names": ["*.a"],
               "source_prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}),
        json!({"transport_protocol": "tls"}),
    ]);
    let may = |local, remote: &str, wanted: usize| {
        let facts = ConnectionFacts {
            local: Some(SocketAddr::from(([10, 0, 0, 1], local))),
            remote: remote.parse().ok(),
            direct_remote: remote.parse().ok(),
            server_name: "",
            transport: "",
            alpn: &[],
        };
        index.may_find(&facts, |found| found == wanted)
    };
    assert!(may(1, "10.0.0.2:1", 0) && may(1, "10.0.0.2:1", 1));
    assert!(may(2, "10.0.0.2:1", 3) && !may(2, "11.0.0.2:1", 3) && !may(2, "10.0.0.2:1", 2));
    assert!(may(3, "10.0.0.2:1", 4) && !may(1, "10.0.0.2:1", 4));
}

#[test]
fn source_types() {
    let index = index(&[json!({"source_type": "SAME_IP_OR_LOOPBACK"}), json!({"source_type": "EXTERNAL"})]);
    assert_eq!(find(&index, &PLAIN), Some(0));
    assert_eq!(find(&index, &from("127.0.0.3:1")), Some(1), "only 127.0.0.1 itself is loopback to Envoy");
    assert_eq!(find(&index, &from("[::1]:1")), Some(0));
    assert_eq!(find(&index, &from("unix")), Some(0));
    assert_eq!(find(&index, &Conn { local: "10.0.0.1:80", ..from("10.0.0.1:7") }), Some(0));
    assert_eq!(find(&index, &Conn { local: "10.0.0.1:80", ..from("10.0.0.2:7") }), Some(1));
}

#[test]
fn longest_prefix_wins_and_a_zero_prefix_is_last() {
    let nets = |list: &[(&str, u32)]| {
        let list: Vec<_> =
            list.iter().map(|(ip, len)| json!({"address_prefix": ip, "prefix_len": len})).collect();
        json!({"prefix_ranges": list})
    };
    let local = |local| Conn { local, ..PLAIN };
    let index = index(&[
        nets(&[("10.0.0.0", 8), ("fd00::", 8)]),
        nets(&[("10.1.2.3", 16)]),
        nets(&[("10.1.2.3", 99), ("fd00::1", 128)]),
        nets(&[("0.0.0.0", 0)]),
        Value::Null,
    ]);
    assert_eq!(find(&index, &local("10.2.0.1:80")), Some(0));
    assert_eq!(find(&index, &local("10.1.0.1:80")), Some(1));
    assert_eq!(find(&index, &local("10.1.2.3:80")), Some(2));
    assert_eq!(find(&index, &local("[fd00::1]:80")), Some(2));
    assert_eq!(find(&index, &local("[fd00::2]:80")), Some(0));
    assert_eq!(find(&index, &local("8.8.8.8:80")), Some(4));
    assert_eq!(find(&index, &local("unix")), Some(4));
    let zero = self::index(&[nets(&[("0.0.0.0", 0)]), nets(&[("10.0.0.0", 8)])]);
    assert_eq!(find(&zero, &local("8.8.8.8:80")), Some(0));
    assert_eq!(find(&zero, &local("[fd00::1]:80")), None);
}

#[test]
fn what_envoy_rejects_is_rejected() {
    let overlap = "multiple filter chains with overlapping matching rules";
    let cases: Vec<(Vec<Value>, &str)> = vec![
        (vec![Value::Null, json!({})], overlap),
        (vec![json!({"server_names": ["a", "b"]}), json!({"server_names": ["b", "a"]})], overlap),
        (vec![json!({"server_names": ["a"]}), json!({"server_names": ["A"]})], overlap),
        (vec![json!({"server_names": ["a", "a"]})], overlap),
        (vec![json!({"server_names": [""]}), Value::Null], overlap),
        (vec![json!({"server_names": ["*.a"]}), json!({"server_names": [".a"]})], overlap),
        (vec![json!({"source_ports": [5, 5]})], overlap),
        (
            vec![
                json!({"prefix_ranges": [{"address_prefix": "10.0.0.1", "prefix_len": 8}]}),
                json!({"prefix_ranges": [{"address_prefix": "10.9.0.2", "prefix_len": 8}]}),
            ],
            overlap,
        ),
        (vec![json!({"server_names": ["*"]})], "server_names[0]: partial wildcards are not supported"),
        (vec![json!({"server_names": ["x", "*w.a"]})], "server_names[1]: partial wildcards"),
        (vec![json!({"server_names": ["a.*.b"]})], "partial wildcards"),
        (vec![json!({"address_suffix": "1.2.3.4"})], "address_suffix: is not implemented"),
        (vec![json!({"suffix_len": 3})], "suffix_len: is not implemented"),
        (vec![json!({"prefix_ranges": [{"address_prefix": "10.0.0"}]})], "malformed IP address: 10.0.0"),
        (vec![json!({"destination_port": 0})], "destination_port: 0 is not a port"),
        (vec![json!({"destination_port": 70000})], "destination_port: 70000 is not a port"),
        (vec![json!({"source_ports": [7, 0]})], "source_ports[1]: 0 is not a port"),
    ];
    for (matches, expected) in cases {
        let (_, problems) = compile(&matches);
        assert_eq!(problems.len(), 1, "{matches:?}: {problems:?}");
        assert!(problems[0].contains(expected), "{matches:?}: {problems:?}");
        assert!(problems[0].starts_with("filter_chains["), "{problems:?}");
    }
    let names: Vec<_> = (0..2000).map(|n| n.to_string()).collect();
    let ports: Vec<_> = (1..1000).collect();
    let (_, problems) = compile(&[json!({"server_names": names, "source_ports": ports})]);
    assert!(problems[0].contains("more than 1000000 entries"), "{problems:?}");
}

#[test]
fn many_chains_stay_quick_to_search() {
    let matches: Vec<_> =
        (0..5000).map(|n| json!({"server_names": [format!("s{n}.test"), format!("*.w{n}.test")]})).collect();
    let index = index(&matches);
    assert_eq!(find(&index, &tls("s4999.test", &[])), Some(4999));
    assert_eq!(find(&index, &tls("x.y.w17.test", &[])), Some(17));
    assert_eq!(find(&index, &tls("s5000.test", &[])), None);
}
