//! Which route a request finds.

use super::*;

#[test]
fn the_first_route_that_matches_wins() {
    let table = table_of(json!([
        named("exact", json!({"path": "/a"})),
        named("separated", json!({"path_separated_prefix": "/sep"})),
        named("regex", json!({"safe_regex": {"regex": "/v[0-9]+/.*"}})),
        named("caseless", json!({"prefix": "/CASE", "case_sensitive": false})),
        named("prefix", json!({"prefix": "/a"})),
        named("never", json!({"prefix": "/a/b"})),
    ]));
    for (path, wanted) in [
        ("/a", "exact"),
        ("/a?x=1", "exact"),
        ("/a#x", "exact"),
        ("/a;x", "prefix"),
        ("/ab", "prefix"),
        ("/a/b", "prefix"),
        ("/A", "-"),
        ("/sep", "separated"),
        ("/sep/", "separated"),
        ("/sep/x", "separated"),
        ("/sep?x", "separated"),
        ("/sepx", "-"),
        ("/sep;x", "-"),
        ("/v1/x?q=/", "regex"),
        ("/v1", "-"),
        ("x/v1/x", "-"),
        ("/caseX", "caseless"),
        ("", "-"),
    ] {
        assert_eq!(found(&table, &Request::get("h", path), 0), wanted, "{path}");
    }
}

#[test]
fn path_parameters_can_be_ignored() {
    let table = table(json!({
        "ignore_path_parameters_in_path_matching": true,
        "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [named("exact", json!({"path": "/a"}))]}],
    }));
    assert_eq!(found(&table, &Request::get("h", "/a;x=1?y"), 0), "exact");
}

#[test]
fn connect_requests() {
    let table = table_of(json!([
        named("connect", json!({"connect_matcher": {}})),
        named("prefix", json!({"prefix": "/"})),
    ]));
    let connect = Request::get("h:443", "").replace(":method", "CONNECT");
    assert_eq!(found(&table, &connect, 0), "connect");
    assert_eq!(found(&table, &Request::get("h", "/"), 0), "prefix");
    let websocket = Request::get("h", "/").replace(":method", "CONNECT").with("upgrade", "websocket");
    assert_eq!(found(&table, &websocket, 0), "prefix");
    let udp = Request::get("h", "/").with("upgrade", "connect-udp");
    assert_eq!(found(&table, &udp, 0), "connect");
}

#[test]
fn headers_query_grpc_and_fraction_must_all_hold() {
    let table = table_of(json!([
        named(
            "header",
            json!({"prefix": "/", "headers": [
            {"name": "x-a", "string_match": {"exact": "1"}}, {"name": ":method", "string_match": {"exact": "GET"}}]})
        ),
        named(
            "query",
            json!({"prefix": "/", "query_parameters": [{"name": "q", "string_match": {"prefix": "v"}}]})
        ),
        named("grpc", json!({"prefix": "/", "grpc": {}})),
        named(
            "tenth",
            json!({"prefix": "/", "runtime_fraction": {
            "default_value": {"numerator": 100, "denominator": "TEN_THOUSAND"}, "runtime_key": "k"}})
        ),
    ]));
    let request = Request::get("h", "/");
    assert_eq!(found(&table, &request.clone().with("x-a", "1"), 5000), "header");
    assert_eq!(found(&table, &request.clone().with("x-a", "1").replace(":method", "PUT"), 5000), "-");
    assert_eq!(found(&table, &Request::get("h", "/?a&q=v1"), 5000), "query");
    assert_eq!(found(&table, &Request::get("h", "/?a&q=x&q=v"), 5000), "-");
    assert_eq!(found(&table, &request.clone().with("content-type", "application/grpc"), 5000), "grpc");
    assert_eq!(found(&table, &request, 10_099), "tenth");
    assert_eq!(found(&table, &request, 10_100), "-");
}

#[test]
fn tls_may_be_required() {
    let host = |name: &str, tls: &str| json!({"name": name, "domains": [name], "require_tls": tls, "routes": [named("route", json!({"prefix": "/"}))]});
    let table = table(json!({"virtual_hosts": [
        host("none", "NONE"), host("external", "EXTERNAL_ONLY"), host("all", "ALL")]}));
    let ask = |host: &str, internal: bool, proto: &str| {
        let mut request = Request::get(host, "/p?q").replace("x-forwarded-proto", proto);
        if internal {
            request = request.with("x-envoy-internal", "true");
        }
        found(&table, &request, 0)
    };
    assert_eq!(ask("none", false, "http"), "route");
    assert_eq!(ask("external", false, "http"), "tls");
    assert_eq!(ask("external", true, "http"), "route");
    assert_eq!(ask("external", false, "https"), "route");
    assert_eq!(ask("all", true, "http"), "tls");
    assert_eq!(ask("all", false, "https"), "route");
    assert_eq!(text(tls_location(&Request::get("all:8080", "/p?q"))), "https://all:8080/p?q");
}

#[test]
fn ports_count_unless_ignored() {
    let config = |ignore: bool| {
        table(json!({"ignore_port_in_host_matching": ignore, "virtual_hosts": [
            {"name": "a", "domains": ["foo.com", "[::1]"], "routes": [named("exact", json!({"prefix": "/"}))]},
            {"name": "b", "domains": ["*.foo.com"], "routes": [named("suffix", json!({"prefix": "/"}))]},
            {"name": "c", "domains": ["*"], "routes": [named("any", json!({"prefix": "/"}))]},
        ]}))
    };
    let (strict, lax) = (config(false), config(true));
    for (host, with_port, without) in [
        ("FOO.com", "exact", "exact"),
        ("foo.com:81", "any", "exact"),
        ("a.foo.com:80", "any", "suffix"),
        ("[::1]:80", "any", "exact"),
        ("[::1]", "exact", "exact"),
        ("other", "any", "any"),
    ] {
        let request = Request::get(host, "/");
        assert_eq!(found(&strict, &request, 0), with_port, "{host}");
        assert_eq!(found(&lax, &request, 0), without, "{host}");
    }
}

#[test]
fn weights_divide_the_requests() {
    let weighted = |extra: Value| {
        let mut config = json!({"clusters": [
            {"name": "none", "weight": 0}, {"name": "a", "weight": 1}, {"cluster_header": "x-c", "weight": 3}]});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        table_with(json!({"prefix": "/"}), ("route", json!({"weighted_clusters": config})))
    };
    let chosen = |table: &RouteTable, request: &Request, random: u64| {
        let (chosen, weighted) = the_forward(table, request).target.choose(request, random);
        assert!(weighted.is_some());
        match chosen {
            Chosen::Slot(slot) => slot.name().to_string(),
            Chosen::Named(name) => format!("header {}", text(name.unwrap_or(b"absent"))),
        }
    };
    let table = weighted(json!({}));
    let request = Request::get("h", "/").with("x-c", "named").with("x-c", "second");
    let picks: Vec<_> = (0..5).map(|random| chosen(&table, &request, random)).collect();
    assert_eq!(picks, ["a", "header named", "header named", "header named", "a"]);
    assert_eq!(chosen(&table, &Request::get("h", "/"), 1), "header absent");

    let table = weighted(json!({"header_name": "x-random"}));
    let request = Request::get("h", "/");
    assert_eq!(chosen(&table, &request.clone().with("x-random", "8"), 1), "a");
    assert_eq!(chosen(&table, &request.clone().with("x-random", "x"), 0), "a");
    assert_eq!(chosen(&table, &request.with("x-random", "8").with("x-random", "8"), 1), "header absent");
}

#[test]
fn ten_thousand_virtual_hosts() {
    let hosts: Vec<_> = (0..10_000)
        .map(|index| {
            json!({"name": format!("h{index}"), "domains": [format!("s{index}.local"), format!("*.s{index}.local")],
                "routes": [named(&format!("r{index}"), json!({"prefix": "/"}))]})
        })
        .collect();
    let table = table(json!({"virtual_hosts": hosts}));
    assert_eq!(found(&table, &Request::get("S9999.local", "/"), 0), "r9999");
    assert_eq!(found(&table, &Request::get("x.s17.local", "/"), 0), "r17");
    assert_eq!(found(&table, &Request::get("elsewhere", "/"), 0), "-");
}
