//! Consistent hashing: every key goes to the host that Envoy sends it to.

use super::{Answered, Origins, Setup};
use serde_json::{json, Value};

/// Keys of the plain tables.
const ALL: usize = 10_000;
/// Keys of the other clusters that matter most.
const MANY: usize = 2_000;
/// Keys of the others.
const SOME: usize = 300;

fn by_key() -> Value {
    json!([{"header": {"header_name": "x-key"}}])
}

#[tokio::test]
async fn every_key_goes_where_envoy_sends_it() {
    let origins = Origins::start(12).await;
    let mut setup = Setup::default();
    let weights = [1, 2, 3, 5, 1, 8, 2, 2, 1, 1, 4, 3];
    let endpoint =
        |number: usize| origins.endpoint(number, json!({"load_balancing_weight": weights[number]}));
    let flat = || vec![json!({"lb_endpoints": (0..12).map(endpoint).collect::<Vec<_>>()})];
    // Half of the first level is down, so that the second gets a share.
    let levels = || {
        let first: Vec<Value> = (0..6)
            .map(|number| {
                let health = if number % 2 == 0 { "UNHEALTHY" } else { "HEALTHY" };
                let mut endpoint = endpoint(number);
                endpoint["health_status"] = json!(health);
                endpoint
            })
            .collect();
        vec![
            json!({"lb_endpoints": first}),
            json!({"priority": 1, "lb_endpoints": (6..12).map(endpoint).collect::<Vec<_>>()}),
        ]
    };
    let zones = || {
        let zone = |zone: &str, weight: u32, range: std::ops::Range<usize>| {
            json!({"locality": {"zone": zone}, "load_balancing_weight": weight,
                   "lb_endpoints": range.map(endpoint).collect::<Vec<_>>()})
        };
        vec![zone("a", 1, 0..4), zone("b", 5, 4..8), zone("c", 2, 8..12)]
    };
    let named = || {
        let endpoint = |number: usize| {
            origins.endpoint(
                number,
                json!({
                "endpoint": {"hostname": format!("host-{number}")},
                "metadata": {"filter_metadata": {"envoy.lb": if number.is_multiple_of(3) {
                    json!({"hash_key": format!("key-{number}")})
                } else {
                    json!({})
                }}}}),
            )
        };
        vec![json!({"lb_endpoints": (0..12).map(endpoint).collect::<Vec<_>>()})]
    };
    let hostnames = json!({"consistent_hashing_lb_config": {"use_hostname_for_hashing": true}});
    let ring = |more: Value| json!({"lb_policy": "RING_HASH", "ring_hash_lb_config": more});
    let maglev = |more: Value| json!({"lb_policy": "MAGLEV", "maglev_lb_config": more});
    let dns = |mut options: Value| {
        options["type"] = json!("STRICT_DNS");
        options
    };
    let with = |mut options: Value, common: &Value| {
        options["common_lb_config"] = common.clone();
        options
    };
    let weighted = json!({"locality_weighted_lb_config": {}});
    let panic = |threshold: u32| json!({"healthy_panic_threshold": {"value": threshold}});
    let cases = [
        ("ring", flat(), ring(json!({})), ALL),
        ("maglev", flat(), maglev(json!({})), ALL),
        ("ring-levels", levels(), ring(json!({})), MANY),
        ("maglev-levels", levels(), maglev(json!({})), MANY),
        ("murmur", flat(), ring(json!({"hash_function": "MURMUR_HASH_2"})), SOME),
        ("ring-small", flat(), ring(json!({"minimum_ring_size": 16, "maximum_ring_size": 50})), SOME),
        ("maglev-small", flat(), maglev(json!({"table_size": 251})), SOME),
        ("ring-zones", zones(), with(ring(json!({})), &weighted), SOME),
        ("maglev-zones", zones(), with(maglev(json!({})), &weighted), SOME),
        ("ring-names", named(), dns(with(ring(json!({})), &hostnames)), SOME),
        ("maglev-names", named(), dns(with(maglev(json!({})), &hostnames)), SOME),
        ("maglev-panic", levels().drain(..1).collect(), with(maglev(json!({})), &panic(80)), SOME),
        ("ring-no-panic", levels().drain(..1).collect(), with(ring(json!({})), &panic(0)), SOME),
    ];
    for (name, groups, options, _) in &cases {
        setup.cluster(name, groups.clone(), options.clone());
        setup.route(name, json!({"cluster": name, "hash_policy": by_key()}));
    }
    let Some([mut envoy, mut ours]) = setup.start().await else { return };
    for (name, _, _, count) in cases {
        let (theirs, mine) = tokio::join!(envoy.keys(name, count), ours.keys(name, count));
        assert!(theirs.iter().all(|answer| matches!(answer, Answered::By(_))), "{name}: {theirs:?}");
        let different = theirs.iter().zip(&mine).filter(|(theirs, mine)| theirs != mine).count();
        assert_eq!(different, 0, "{name}: of {count} keys");
        let distinct: std::collections::BTreeSet<_> = mine.iter().collect();
        assert!(distinct.len() >= 3, "{name}: {distinct:?}");
    }
    let theirs = envoy.proxy.stats().await;
    let mine = ours.proxy.stats().await;
    for name in [
        "ring.ring_hash_lb.size",
        "ring.ring_hash_lb.min_hashes_per_host",
        "ring.ring_hash_lb.max_hashes_per_host",
        "maglev.maglev_lb.min_entries_per_host",
        "maglev.maglev_lb.max_entries_per_host",
    ] {
        let name = format!("cluster.{name}");
        assert_eq!(theirs.get(&name), mine.get(&name), "{name}");
    }
}

/// What is hashed, and how hashes of several policies are joined.
#[tokio::test]
async fn requests_hash_as_envoys() {
    let origins = Origins::start(10).await;
    let mut setup = Setup::default();
    let endpoints: Vec<Value> = (0..10).map(|number| origins.endpoint(number, json!({}))).collect();
    setup.cluster("ring", vec![json!({"lb_endpoints": endpoints})], json!({"lb_policy": "RING_HASH"}));
    let header = json!({"header": {"header_name": "x-key"}});
    let rewritten = json!({"header": {"header_name": "x-key", "regex_rewrite": {
        "pattern": {"regex": "^user-(\\d).*$"}, "substitution": "\\1"}}});
    let query = json!({"query_parameter": {"name": "k"}});
    let cookie = json!({"cookie": {"name": "c"}});
    let source = json!({"connection_properties": {"source_ip": true}});
    let terminal = |policy: &Value| {
        let mut policy = policy.clone();
        policy["terminal"] = json!(true);
        policy
    };
    let routes = [
        ("header", json!([header])),
        ("rewritten", json!([rewritten])),
        ("query", json!([query])),
        ("cookie", json!([cookie])),
        ("source", json!([source])),
        ("all", json!([header, query, cookie, source])),
        ("twice", json!([header, header])),
        ("terminal", json!([terminal(&query), header])),
    ];
    for (name, policies) in &routes {
        setup.route(name, json!({"cluster": "ring", "hash_policy": policies}));
    }
    let generated = json!([{"cookie": {"name": "sticky", "ttl": "30s", "path": "/p",
        "attributes": [{"name": "SameSite", "value": "Strict"}, {"name": "Secure"}]}}]);
    setup.route("generated", json!({"cluster": "ring", "hash_policy": generated}));
    setup.route(
        "session",
        json!({"cluster": "ring", "hash_policy": [{"cookie": {"name": "sticky", "ttl": "0s"}}]}),
    );
    let Some([mut envoy, mut ours]) = setup.start().await else { return };
    let heads = |key: usize| {
        [
            (String::new(), format!("x-key: user-{key}\r\n")),
            (String::new(), format!("x-key: b{key}\r\nx-key: a{key}\r\n")),
            (format!("?k=v{key}&k=w"), String::new()),
            (format!("?a=b&k=%41{key}"), format!("cookie: a=b; c=\"quoted{key}\"\r\nx-key: {key}\r\n")),
            ("?k".to_owned(), format!("cookie: c=plain{key}\r\ncookie: c=other\r\n")),
        ]
    };
    for (name, _) in &routes {
        for (target, headers) in (0..12).flat_map(heads) {
            // Nothing to hash: chance decides.
            let by_chance = match *name {
                "header" | "rewritten" | "twice" => !headers.contains("x-key"),
                "query" => target.is_empty(),
                "cookie" => !headers.contains("cookie"),
                "terminal" => target.is_empty() && !headers.contains("x-key"),
                _ => false,
            };
            let path = format!("{name}/{target}");
            let (theirs, mine) =
                (get(&mut envoy, &path, &headers).await, get(&mut ours, &path, &headers).await);
            assert!(by_chance || theirs.0 == mine.0, "{path} {headers:?}: {theirs:?} {mine:?}");
        }
    }
    for name in ["generated", "session"] {
        let path = format!("{name}/");
        let (theirs, mine) = (get(&mut envoy, &path, "").await, get(&mut ours, &path, "").await);
        let (their_cookie, my_cookie) = (theirs.1.expect("a cookie"), mine.1.expect("a cookie"));
        assert_eq!(without_value(&their_cookie), without_value(&my_cookie), "{name}");
        // The same for the whole connection, and by it to the same host on both.
        assert_eq!(get(&mut ours, &path, "").await, (mine.0.clone(), Some(my_cookie.clone())));
        let value = my_cookie.split('"').nth(1).expect("a value").to_owned();
        let headers = format!("cookie: sticky=\"{value}\"\r\n");
        assert_eq!(
            get(&mut ours, &path, &headers).await,
            (mine.0.clone(), None),
            "{name}: a cookie too many"
        );
        assert_eq!(get(&mut envoy, &path, &headers).await.0, mine.0, "{name}: another host");
    }
}

/// The origin and the cookie that a request gets.
async fn get(side: &mut super::Side, path: &str, headers: &str) -> (String, Option<String>) {
    let request = format!("GET /{path} HTTP/1.1\r\nhost: t.test\r\n{headers}\r\n");
    let message = side.client.exchange(request.as_bytes()).await.expect("an answer");
    (message.text(), message.header("set-cookie").map(str::to_owned))
}

fn without_value(cookie: &str) -> String {
    let mut parts: Vec<&str> = cookie.split('"').collect();
    assert_eq!(parts.get(1).map(|value| value.len()), Some(16), "{cookie}");
    parts[1] = "";
    parts.join("\"")
}

/// A hash that chooses a host may choose among clusters too.
#[tokio::test]
async fn clusters_are_chosen_by_hash_as_envoys() {
    let origins = Origins::start(6).await;
    let mut setup = Setup::default();
    for number in 0..6 {
        let group = json!({"lb_endpoints": [origins.endpoint(number, json!({}))]});
        setup.cluster(&format!("c{number}"), vec![group], json!({}));
    }
    let clusters: Vec<Value> =
        (0..6).map(|number| json!({"name": format!("c{number}"), "weight": number + 1})).collect();
    let by_hash = |policies: Value| json!({"weighted_clusters": {"clusters": clusters, "use_hash_policy": true}, "hash_policy": policies});
    let header = json!({"header": {"header_name": "x-key"}});
    let cookie = json!({"cookie": {"name": "c", "ttl": "5s"}});
    let source = json!({"connection_properties": {"source_ip": true}});
    setup.route("header", by_hash(json!([header])));
    setup.route("both", by_hash(json!([header, source])));
    setup.route("cookie", by_hash(json!([cookie, header])));
    let Some([mut envoy, mut ours]) = setup.start().await else { return };
    for name in ["header", "both", "cookie"] {
        let (theirs, mine) = tokio::join!(envoy.keys(name, SOME), ours.keys(name, SOME));
        assert_eq!(theirs, mine, "{name}");
        let distinct: std::collections::BTreeSet<_> = mine.iter().collect();
        assert!(distinct.len() >= 5, "{name}: {distinct:?}");
    }
    // Nothing to hash: chance decides.
    let (theirs, mine) = tokio::join!(envoy.shares("header", 900), ours.shares("header", 900));
    super::assert_alike("without a key", &theirs, &mine);
}

/// Connections hash by the address of their client.
#[tokio::test]
async fn connections_hash_as_envoys() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let origins = Origins::start(8).await;
    let mut setup = Setup::default();
    let endpoints: Vec<Value> =
        (0..8).map(|number| origins.endpoint(number, json!({"load_balancing_weight": number + 1}))).collect();
    let by_source = json!({"hash_policy": [{"source_ip": {}}]});
    for (name, policy) in [("tcp-ring", "RING_HASH"), ("tcp-maglev", "MAGLEV")] {
        setup.cluster(name, vec![json!({"lb_endpoints": endpoints})], json!({"lb_policy": policy}));
        setup.tcp(name, by_source.clone());
    }
    setup.route("unused", json!({"cluster": "tcp-ring"}));
    let Some(sides) = setup.start().await else { return };
    for name in ["tcp-ring", "tcp-maglev"] {
        let mut chosen = Vec::new();
        for side in &sides {
            let mut answers = String::new();
            for client in 1..=120u8 {
                let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
                socket.bind(([127, 0, 0, client], 0).into()).expect("an address of this machine");
                let to = ([127, 0, 0, 1], side.proxy.port(name)).into();
                let mut stream = socket.connect(to).await.expect("a connection");
                stream.write_all(b"GET / HTTP/1.1\r\nhost: t.test\r\n\r\n").await.expect("sent");
                let mut answer = Vec::new();
                while !answer.windows(4).any(|four| four == b"\r\n\r\n") || answer.ends_with(b"\r\n\r\n") {
                    assert!(stream.read_buf(&mut answer).await.expect("an answer") > 0, "{name}");
                }
                answers.push(char::from(*answer.last().expect("a number")));
            }
            chosen.push(answers);
        }
        assert_eq!(chosen[0], chosen[1], "{name}: left Envoy, right Outrigger");
        let distinct: std::collections::BTreeSet<char> = chosen[0].chars().collect();
        assert!(distinct.len() >= 4, "{name}: {distinct:?}");
    }
}
