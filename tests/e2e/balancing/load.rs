//! Weights by load: origins that report how busy they are.

use super::{assert_alike, Origins, Setup, Side};
use crate::harness::{eventually, DEADLINE};
use serde_json::{json, Value};

/// Reports in every form; the last two origins say nothing that could be read. With trailers, the one before the last
/// reports there.
const REPORTS: [&str; 6] = [
    "endpoint-load-metrics: TEXT rps_fractional=100,cpu_utilization=0.5,eps=10\r\n",
    "endpoint-load-metrics: JSON {\"rps_fractional\": 100, \"application_utilization\": 0.25}\r\n",
    // rps_fractional 300, cpu_utilization 0.5
    "endpoint-load-metrics: BIN CQAAAAAAAOA/MQAAAAAAwHJA\r\n",
    // rps_fractional 100, cpu_utilization 0.5, named_metrics q 0.1; without padding
    "endpoint-load-metrics-bin: CQAAAAAAAOA/MQAAAAAAAFlAQgwKAXERmpmZmZmZuT8\r\n",
    "",
    "endpoint-load-metrics: TEXT rps_fractional=100,cpu_utilization=0.5,nonsense=1\r\n",
];

fn policy(more: &Value) -> Value {
    let name = "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin";
    let mut config = json!({"@type": format!("type.googleapis.com/envoy.extensions.load_balancing_policies.{name}"),
        "blackout_period": "0s", "weight_update_period": "0.1s"});
    config.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    json!({"load_balancing_policy": {"policies": [{"typed_extension_config": {"name": name, "typed_config": config}}]}})
}

/// The weights of a cluster's hosts, by origin.
async fn weights(side: &Side, cluster: &str, origins: &Origins) -> Vec<u64> {
    let text = side.proxy.admin("/clusters?format=json").await;
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let statuses = all["cluster_statuses"].as_array().expect("a list");
    let status = statuses.iter().find(|status| status["name"] == cluster).expect("the cluster");
    let hosts = status["host_statuses"].as_array().expect("hosts");
    let weight = |port: &u16| {
        let host = hosts.iter().find(|host| host["address"]["socket_address"]["port_value"] == *port);
        host.and_then(|host| host["weight"].as_u64()).expect("a weight")
    };
    origins.ports.iter().map(weight).collect()
}

#[tokio::test]
async fn hosts_weigh_as_they_report_as_in_envoy() {
    let answer = |number: usize| {
        let trailers = number == 4;
        let body = match trailers {
            true => format!(
                "transfer-encoding: chunked\r\ntrailer: endpoint-load-metrics\r\n\r\n1\r\n{number}\r\n0\r\n\
                 endpoint-load-metrics: TEXT rps_fractional:100,mem_utilization:1,cpu_utilization:0.125\r\n\r\n"
            ),
            false => format!("content-length: 1\r\n\r\n{number}"),
        };
        format!("HTTP/1.1 200 OK\r\n{}{body}", REPORTS[number])
    };
    let origins = Origins::answering((0..6).map(answer).collect()).await;
    let mut setup = Setup::default();
    let group = || {
        let endpoints: Vec<_> =
            (0..6).map(|n| origins.endpoint(n, json!({"load_balancing_weight": 3}))).collect();
        vec![json!({"lb_endpoints": endpoints})]
    };
    let trailers = |mut options: Value| {
        let kind = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        options["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": kind,
                "explicit_http_config": {"http_protocol_options": {"enable_trailers": true}}}});
        options
    };
    let named = json!(["named_metrics.q", "mem_utilization"]);
    let cases = [
        // The last has the median of the others: 200, 400, 600, 200, and 800 by its trailers.
        ("plain", trailers(policy(&json!({}))), [200, 400, 600, 200, 800, 400]),
        (
            "named",
            trailers(policy(&json!({"metric_names_for_computing_utilization": named}))),
            [200, 400, 600, 1000, 100, 400],
        ),
        (
            "penalty",
            trailers(policy(&json!({"error_utilization_penalty": 5.0}))),
            [100, 400, 600, 200, 800, 400],
        ),
        ("blackout", policy(&json!({"blackout_period": "1000s"})), [1; 6]),
    ];
    for (name, options, _) in &cases {
        setup.cluster(name, group(), options.clone());
        setup.route(name, json!({"cluster": name}));
    }
    let Some(mut sides) = setup.start().await else { return };
    for (name, _, expected) in &cases {
        let expected: Vec<u64> = expected.iter().map(|weight| *weight as u64).collect();
        for side in &mut sides {
            let kind = side.proxy.kind();
            let mut reached = Vec::new();
            // Every host reports at its turn.
            for _ in 0..200 {
                for _ in 0..24 {
                    side.get(name, "").await;
                }
                reached = weights(side, name, &origins).await;
                if reached == expected {
                    break;
                }
            }
            assert_eq!(reached, expected, "{kind:?} {name}");
        }
        let [envoy, ours] = &mut sides;
        let (theirs, mine) = tokio::join!(envoy.shares(name, 900), ours.shares(name, 900));
        assert_alike(name, &theirs, &mine);
        let sum: u64 = expected.iter().sum();
        for (number, weight) in expected.iter().enumerate() {
            let share = mine.get(&super::Answered::By(number)).copied().unwrap_or(0) as f64;
            let wanted = 900.0 * *weight as f64 / sum as f64;
            assert!((share - wanted).abs() <= 12.0, "{name}: {share} of {number} for {wanted}: {mine:?}");
        }
    }
}

/// With a bound on a host's load, requests for one key go to others in Envoy's order.
#[tokio::test]
async fn bounded_loads_overflow_as_envoys() {
    use crate::harness::client::Client;
    use crate::harness::origin::{Answer, Origin};
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    const HOSTS: usize = 6;
    const REQUESTS: usize = 14;
    let gate = Arc::new(Semaphore::new(0));
    let mut origins = Vec::new();
    for _ in 0..HOSTS {
        let answer = Answer::ok("late").gated(&gate);
        origins.push(Origin::with(false, move |_| answer.clone()).await);
    }
    let mut setup = Setup::default();
    let weights = [1, 2, 1, 4, 1, 1];
    let endpoints: Vec<Value> = origins
        .iter()
        .zip(weights)
        .map(|(origin, weight)| {
            json!({"load_balancing_weight": weight, "endpoint": {"address":
                {"socket_address": {"address": "127.0.0.1", "port_value": origin.port()}}}})
        })
        .collect();
    let bound = |policy: &str, factor: u32| {
        json!({"lb_policy": policy,
               "common_lb_config": {"consistent_hashing_lb_config": {"hash_balance_factor": factor}}})
    };
    let cases = [
        ("ring-100", "RING_HASH", 100),
        ("ring-150", "RING_HASH", 150),
        ("maglev-100", "MAGLEV", 100),
        ("maglev-200", "MAGLEV", 200),
    ];
    for (name, policy, factor) in cases {
        setup.cluster(name, vec![json!({"lb_endpoints": endpoints})], bound(policy, factor));
        setup.route(name, json!({"cluster": name, "hash_policy": [{"header": {"header_name": "x-key"}}]}));
    }
    let Some(sides) = setup.start().await else { return };
    for (name, ..) in cases {
        for key in ["user-1", "user-23"] {
            let mut chosen = Vec::new();
            for side in &sides {
                let mut held = Vec::new();
                let mut hosts = Vec::new();
                for _ in 0..REQUESTS {
                    let before: Vec<usize> = origins.iter().map(Origin::requests).collect();
                    let mut client = Client::connect(side.proxy.port("main")).await.expect("a connection");
                    let request = format!("GET /{name}/ HTTP/1.1\r\nhost: t.test\r\nx-key: {key}\r\n\r\n");
                    client.send(request.as_bytes()).await.expect("sent");
                    held.push(client);
                    let reached = || {
                        origins.iter().zip(&before).position(|(origin, before)| origin.requests() > *before)
                    };
                    assert!(eventually(DEADLINE, || async { reached().is_some() }).await, "{name}");
                    hosts.push(reached().expect("just seen"));
                }
                gate.add_permits(REQUESTS);
                for client in &mut held {
                    assert_eq!(client.response().await.status(), 200);
                }
                chosen.push(hosts);
            }
            assert_eq!(chosen[0], chosen[1], "{name} {key}: left Envoy, right Outrigger");
            let distinct: std::collections::BTreeSet<_> = chosen[0].iter().collect();
            assert!(distinct.len() > 1, "{name} {key}: {chosen:?}");
        }
    }
}

/// Hosts that are asked for their load beside requests, beside Envoy.
#[tokio::test]
async fn hosts_report_out_of_band_as_to_envoy() {
    use crate::harness::http2;
    use bytes::Bytes;
    use http::Response;
    use std::time::Duration;

    // rps_fractional 100, and cpu_utilization 0.5, 0.25 and none.
    const REPORTS: [&[u8]; 3] = [
        b"\x09\0\0\0\0\0\0\xe0\x3f\x31\0\0\0\0\0\0\x59\x40",
        b"\x09\0\0\0\0\0\0\xd0\x3f\x31\0\0\0\0\0\0\x59\x40",
        b"\x31\0\0\0\0\0\0\x59\x40",
    ];
    let mut ports = Vec::new();
    for (number, report) in REPORTS.into_iter().enumerate() {
        ports.push(
            http2::serve(move |request, mut respond| async move {
                let response = Response::builder().status(200);
                if request.uri().path() != "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics" {
                    let head = response.body(()).expect("a head");
                    let mut stream = respond.send_response(head, false).expect("sent");
                    let _ = stream.send_data(number.to_string().into(), true);
                    return;
                }
                // Every tenth of a second is asked for.
                let mut asked = request.into_body();
                let message = asked.data().await.expect("a request").expect("whole");
                assert_eq!(&message[..], b"\0\0\0\0\x07\x0a\x05\x10\x80\xc2\xd7\x2f", "{message:?}");
                let head = response.header("content-type", "application/grpc").body(()).expect("a head");
                let mut stream = respond.send_response(head, false).expect("sent");
                let mut framed = vec![0, 0, 0, 0, report.len() as u8];
                framed.extend_from_slice(report);
                while stream.send_data(Bytes::from(framed.clone()), false).is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            })
            .await,
        );
    }
    let origins = Origins { ports, _stop: Vec::new() };
    let mut setup = Setup::default();
    let mut options = policy(&json!({"enable_oob_load_report": true, "oob_reporting_period": "0.1s"}));
    let kind = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    options["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": kind, "explicit_http_config": {"http2_protocol_options": {}}}});
    let endpoints: Vec<_> = (0..3).map(|n| origins.endpoint(n, json!({}))).collect();
    setup.cluster("asked", vec![json!({"lb_endpoints": endpoints})], options);
    setup.route("asked", json!({"cluster": "asked"}));
    let Some(mut sides) = setup.start().await else { return };
    let stats = ["active_sessions", "stream_failures", "stream_terminated"];
    let mut counted = Vec::new();
    for side in &mut sides {
        // The one that says too little has the median of the others.
        let wanted = [200, 400, 200];
        let mut reached = Vec::new();
        for _ in 0..400 {
            side.get("asked", "").await;
            reached = weights(side, "asked", &origins).await;
            if reached[..2] == wanted[..2] {
                break;
            }
        }
        assert_eq!(reached[..2], wanted[..2], "{:?}", side.proxy.kind());
        let all = side.proxy.stats().await;
        let of = |name: &str| all.get(&format!("cluster.asked.lb_orca_oob.{name}")).copied();
        assert!(of("reports_received") > Some(2) && of("report_errors").is_some(), "{:?}", side.proxy.kind());
        counted.push(stats.map(of));
    }
    assert_eq!(counted[0], counted[1], "{stats:?}: left Envoy, right Outrigger");
    let [envoy, ours] = &mut sides;
    let (theirs, mine) = tokio::join!(envoy.shares("asked", 400), ours.shares("asked", 400));
    assert_alike("asked", &theirs, &mine);
}
