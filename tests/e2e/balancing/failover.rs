//! Aggregate clusters, retries to other priorities and hosts, hosts that refuse connections.

use super::{assert_alike, Answered, Origins, Setup, Side};
use crate::harness::client::Client;
use crate::harness::http2;
use crate::harness::origin::Origin;
use crate::harness::ports::{free_port, Silent};
use crate::harness::proxy::Proxy;
use crate::harness::{eventually, DEADLINE};
use http::Response;
use serde_json::{json, Value};
use std::collections::BTreeMap;

fn aggregate(members: &[&str]) -> Value {
    json!({"lb_policy": "CLUSTER_PROVIDED", "cluster_type": {"name": "envoy.clusters.aggregate", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig", "clusters": members}}})
}

#[tokio::test]
async fn aggregates_fail_over_as_envoys() {
    let origins = Origins::start(10).await;
    let mut setup = Setup::default();
    let group = |priority: u32, range: std::ops::Range<usize>, sick: usize| {
        let endpoint = |(index, n): (usize, usize)| {
            let health = if index < sick { "UNHEALTHY" } else { "HEALTHY" };
            origins.endpoint(n, json!({"health_status": health}))
        };
        json!({"priority": priority, "lb_endpoints": range.enumerate().map(endpoint).collect::<Vec<_>>()})
    };
    let random = || json!({"lb_policy": "RANDOM"});
    setup.cluster("well", vec![group(0, 0..3, 0)], random());
    setup.cluster("half", vec![group(0, 3..5, 1), group(1, 5..7, 0)], random());
    setup.cluster("sick", vec![group(0, 7..10, 3)], random());
    setup.cluster("ring", vec![group(0, 3..7, 1)], json!({"lb_policy": "RING_HASH"}));
    setup.cluster("empty", vec![group(0, 0..0, 0)], random());
    let cases: [(&str, &[&str]); 8] = [
        ("first", &["well", "half"]),
        ("spill", &["half", "well"]),
        ("over", &["sick", "half", "well"]),
        ("missing", &["nowhere", "empty", "well"]),
        ("all-sick", &["sick"]),
        ("sick-and-empty", &["sick", "empty"]),
        ("hashed", &["ring", "well"]),
        ("nobody", &["nowhere"]),
    ];
    for (name, members) in cases {
        setup.cluster(name, vec![], aggregate(members));
        let hash = json!([{"header": {"header_name": "x-key"}}]);
        setup.route(name, json!({"cluster": name, "hash_policy": hash}));
    }
    let Some([mut envoy, mut ours]) = setup.start().await else { return };
    for (name, _) in cases {
        let (theirs, mine) = tokio::join!(envoy.shares(name, 400), ours.shares(name, 400));
        assert_alike(name, &theirs, &mine);
    }
    // What is counted where.
    let (theirs, mine) = (envoy.proxy.stats().await, ours.proxy.stats().await);
    for name in cases.map(|(name, _)| name) {
        for stat in [
            "upstream_rq_total",
            "upstream_rq_completed",
            "upstream_rq_200",
            "upstream_rq_503",
            "upstream_cx_total",
            "upstream_cx_none_healthy",
            "lb_healthy_panic",
        ] {
            let name = format!("cluster.{name}.{stat}");
            let count = |of: &BTreeMap<String, u64>| of.get(&name).copied().unwrap_or(0);
            assert_eq!(count(&theirs), count(&mine), "{name}");
        }
    }
    for (theirs, mine) in log(&envoy.proxy).await.iter().zip(&log(&ours.proxy).await) {
        assert_eq!(theirs, mine);
    }
}

async fn log(proxy: &Proxy) -> Vec<String> {
    let read = || proxy.lines("access.log", 0);
    assert!(eventually(DEADLINE, || std::future::ready(read().len() >= 3_200)).await);
    read()
}

/// A host of the first priority that nobody listens on: retries leave its priority, or the host.
#[tokio::test]
async fn retries_go_elsewhere() {
    let origins = Origins::start(4).await;
    let refused = free_port();
    let mut setup = Setup::default();
    let dead = |metadata: Value| {
        let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": refused}});
        json!({"endpoint": {"address": address}, "metadata": {"filter_metadata": {"envoy.lb": metadata}}})
    };
    let extension = |name: &str, kind: &str, more: Value| {
        let mut config = more;
        config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.retry.{kind}"));
        json!({"name": name, "typed_config": config})
    };
    let canary = json!({"canary": true});
    let levels = || {
        vec![
            json!({"lb_endpoints": [dead(json!({}))]}),
            json!({"priority": 1, "lb_endpoints": [origins.endpoint(0, json!({})), origins.endpoint(1, json!({}))]}),
        ]
    };
    // The one host of the second group that is no canary, and the one without the label.
    let canaries = || {
        vec![json!({"lb_endpoints": [
        dead(canary.clone()),
        origins.endpoint(2, json!({"metadata": {"filter_metadata": {"envoy.lb": {"canary": true, "old": "yes"}}}})),
        origins.endpoint(3, json!({}))]})]
    };
    let retry = |more: Value| {
        let mut policy = json!({"retry_on": "connect-failure", "num_retries": 2,
            "retry_back_off": {"base_interval": "0.001s"}, "host_selection_retry_max_attempts": 30});
        policy.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        policy
    };
    let priority = extension(
        "envoy.retry_priorities.previous_priorities",
        "priority.previous_priorities.v3.PreviousPrioritiesConfig",
        json!({"update_frequency": 1}),
    );
    let omit_canary = extension(
        "envoy.retry_host_predicates.omit_canary_hosts",
        "host.omit_canary_hosts.v3.OmitCanaryHostsPredicate",
        json!({}),
    );
    let omit_label = extension(
        "envoy.retry_host_predicates.omit_host_metadata",
        "host.omit_host_metadata.v3.OmitHostMetadataConfig",
        json!({"metadata_match": {"filter_metadata": {"envoy.lb": {"canary": true}}}}),
    );
    setup.cluster("levels", levels(), json!({}));
    setup.cluster("canaries", canaries(), json!({"lb_policy": "RANDOM"}));
    setup.route(
        "priority",
        json!({"cluster": "levels", "retry_policy": retry(json!({"retry_priority": priority}))}),
    );
    setup.route(
        "canary",
        json!({"cluster": "canaries", "retry_policy": retry(json!({"retry_host_predicate": [omit_canary]}))}),
    );
    setup.route(
        "label",
        json!({"cluster": "canaries", "retry_policy": retry(json!({"retry_host_predicate": [omit_label]}))}),
    );
    let Some([mut envoy, mut ours]) = setup.start().await else { return };
    for path in ["priority", "canary", "label"] {
        for side in [&mut envoy, &mut ours] {
            let shares = side.shares(path, 60).await;
            assert!(
                !shares.contains_key(&Answered::Status(503)),
                "{path} {:?}: {shares:?}",
                side.proxy.kind()
            );
        }
    }
}

/// Without outlier detection or health checks: a host that refuses connections costs no request where there is another,
/// whose own retries have no say in it.
#[tokio::test]
async fn a_host_that_refuses_is_passed_over_and_comes_back() {
    let origins = Origins::start(1).await;
    let port = free_port();
    let mut setup = Setup::default();
    let gone =
        json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}});
    setup.cluster("pair", vec![json!({"lb_endpoints": [origins.endpoint(0, json!({})), gone]})], json!({}));
    setup.route("pair", json!({"cluster": "pair"}));
    let proxy = Proxy::outrigger(&setup.render(), &[]).await;
    let client = Client::connect(proxy.port("main")).await.expect("a connection");
    let mut side = Side { proxy, client };
    let shares = side.shares("pair", 40).await;
    assert_eq!(shares.get(&Answered::By(0)), Some(&40), "{shares:?}");
    let stats = side.proxy.stats().await;
    let of = |name: &str| stats.get(&format!("cluster.pair.{name}")).copied();
    assert_eq!((of("upstream_host_suspected"), of("upstream_cx_connect_fail")), (Some(1), Some(1)));
    assert_eq!((of("upstream_rq_retry"), of("upstream_rq_503")), (Some(0), None));
    let flags = |page: String| page.lines().any(|line| line.ends_with("::suspect::true"));
    assert!(flags(side.proxy.admin("/clusters").await));
    // It listens now: requests find out with a connection that carries nothing.
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("the port");
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n7").await;
                }
            });
        }
    });
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        match side.get("pair", "").await {
            Answered::By(7) => break,
            answer => assert_eq!(answer, Answered::By(0), "no request is lost on the way back"),
        }
        assert!(tokio::time::Instant::now() < end, "the host did not come back");
    }
    assert!(!flags(side.proxy.admin("/clusters").await));
}

/// What has come of a body while a host refused the connection goes to the next one: nothing of it was sent.
#[tokio::test]
async fn a_host_that_refuses_costs_no_body() {
    let origin = Origin::start().await;
    let echo2 = http2::serve(|request, mut respond| async move {
        let (mut body, mut back) = (request.into_body(), Vec::new());
        while let Some(Ok(piece)) = body.data().await {
            let _ = body.flow_control().release_capacity(piece.len());
            back.extend_from_slice(&piece);
        }
        let head = Response::builder().header("content-length", back.len()).body(()).expect("a head");
        let mut stream = respond.send_response(head, false).expect("a stream");
        let _ = stream.send_data(back.into(), true);
    });
    let of = |port: u16| json!({"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}});
    let kind = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let speaks = json!({"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions":
        {"@type": kind, "explicit_http_config": {"http2_protocol_options": {}}}}});
    let mut setup = Setup::default();
    let mut names = Vec::new();
    for (protocol, port, options) in [("h1", origin.port(), json!({})), ("h2", echo2.await, speaks)] {
        for shape in ["length", "chunked"] {
            for size in [5, 150_000] {
                let name = format!("{protocol}-{shape}-{size}");
                let hosts = json!({"lb_endpoints": [of(port), of(free_port())]});
                setup.cluster(&name, vec![hosts], options.clone());
                setup.route(&name, json!({"cluster": name}));
                names.push((name, shape, size));
            }
        }
    }
    let proxy = Proxy::outrigger(&setup.render(), &[]).await;
    let mut client = Client::connect(proxy.port("main")).await.expect("a connection");
    for (name, shape, size) in names {
        let body: String = (0..size).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
        let (framing, sent) = match shape {
            "length" => (format!("content-length: {size}"), body.clone()),
            _ => {
                let (one, two) = body.split_at(size / 2);
                let chunk = |part: &str| format!("{:x}\r\n{part}\r\n", part.len());
                ("transfer-encoding: chunked".to_owned(), format!("{}{}0\r\n\r\n", chunk(one), chunk(two)))
            }
        };
        let request = format!("POST /{name}/ HTTP/1.1\r\nhost: t\r\n{framing}\r\n\r\n{sent}");
        for _ in 0..4 {
            let answer = client.exchange(request.as_bytes()).await.expect("an answer");
            assert_eq!(answer.status(), 200, "{name}: {}", answer.text());
            // Over HTTP/1 the origin has it, over HTTP/2 it was sent back.
            let came = origin.take().pop().map_or(answer.text(), |request| request.text());
            assert!(came == body, "{name}: another body came: {} bytes", came.len());
        }
        let failed = proxy.stats().await.get(&format!("cluster.{name}.upstream_cx_connect_fail")).copied();
        assert_eq!(failed, Some(1), "{name}: a host refused a connection, once");
    }
}

/// A host that never answers, and requests that are more impatient than `connect_timeout`: it costs one of them, and
/// the attempt to reach it goes on without it.
#[tokio::test]
async fn a_host_that_never_answers_is_passed_over() {
    let origins = Origins::start(1).await;
    let silent = Silent::start().await;
    let mut setup = Setup::default();
    let gone = json!({"endpoint": {"address": {
        "socket_address": {"address": "127.0.0.1", "port_value": silent.port}}}});
    let levels = || vec![json!({"lb_endpoints": [origins.endpoint(0, json!({})), gone.clone()]})];
    let impatient = json!({"timeout": "0.1s"});
    // The time of a try begins with its connection: here, too, the route's decides.
    let retries = json!({"timeout": "0.3s", "retry_policy": {"retry_on": "5xx", "per_try_timeout": "0.05s"}});
    for (name, action) in [("impatient", impatient), ("retries", retries)] {
        setup.cluster(name, levels(), json!({}));
        let mut action = action;
        action["cluster"] = json!(name);
        setup.route(name, action);
    }
    // Only the silent one: the attempt of the first request is waited for by the others.
    setup.cluster("alone", vec![json!({"lb_endpoints": [gone]})], json!({}));
    setup.route("alone", json!({"cluster": "alone", "timeout": "0.1s"}));
    let proxy = Proxy::outrigger(&setup.render(), &[]).await;
    let client = Client::connect(proxy.port("main")).await.expect("a connection");
    let mut side = Side { proxy, client };
    for path in ["impatient", "retries"] {
        let shares = side.shares(path, 40).await;
        assert_eq!(shares.get(&Answered::Status(504)), Some(&1), "{path}: {shares:?}");
        assert_eq!(shares.get(&Answered::By(0)), Some(&39), "{path}: {shares:?}");
        let stats = side.proxy.stats().await;
        assert_eq!(stats.get(&format!("cluster.{path}.upstream_host_suspected")), Some(&1), "{path}");
        let ended = || async {
            let stats = side.proxy.stats().await;
            stats.get(&format!("cluster.{path}.upstream_cx_connect_timeout")) == Some(&1)
        };
        assert!(eventually(DEADLINE, ended).await, "{path}: the attempt ends by connect_timeout");
    }
    let shares = side.shares("alone", 4).await;
    assert_eq!(shares.get(&Answered::Status(504)), Some(&4), "{shares:?}");
    assert_eq!(side.proxy.stats().await.get("cluster.alone.upstream_cx_total"), Some(&1));
}
