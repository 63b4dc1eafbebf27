use std::net::SocketAddr;

use clap::Parser as _;
use outrigger_control_api::control::{Control, Settings};
use outrigger_control_api::server::ResourceType;
use serde_json::json;

use super::sidecar::Snapshot;
use super::summary::{Replica, Totals};
use super::*;

/// The files of the demonstration and the first state, seen by `look`.
fn with_files(look: impl FnOnce(&Mesh, &Origins)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let origins = Origins::start(5).await.unwrap();
        let (mesh, _sockets) = Mesh::create(&origins, STEPS[0].state).unwrap();
        look(&mesh, &origins);
    });
}

#[test]
fn the_bootstrap_compiles_without_a_warning() {
    with_files(|mesh, _| {
        let bootstrap = mesh.bootstrap().display().to_string();
        let line = crate::bootstrap::CommandLine::parse_from(["outrigger", "-c", &bootstrap]);
        let compiled =
            crate::bootstrap::compile(&line.flags).unwrap_or_else(|problems| panic!("{problems:?}"));
        assert!(compiled.warnings.is_empty(), "{:?}", compiled.warnings);
        let ports =
            std::collections::BTreeSet::from([mesh.http, mesh.tcp, mesh.admin, mesh.control, mesh.status]);
        assert_eq!(ports.len(), 5);
    });
}

#[test]
fn every_step_is_served_without_a_mistake_and_the_files_go() {
    let mut directory = None;
    with_files(|mesh, origins| {
        for step in &STEPS {
            mesh.tell(origins, step.state).unwrap();
            let control = Control::open(Settings::new(mesh.resources()), |_| ());
            assert_eq!(control.problems(), [], "{}", step.title);
            for key in [mesh::NODE, "second"] {
                let snapshot = control.cache().get(key).unwrap();
                assert_eq!(
                    snapshot.names(&ResourceType::LISTENER).collect::<Vec<_>>(),
                    ["services", "services/echo"]
                );
                assert_eq!(snapshot.count(&ResourceType::CLUSTER), 5);
            }
            let listener = |key| {
                let snapshot = control.cache().get(key).unwrap();
                snapshot.get(&ResourceType::LISTENER, "services").unwrap().encoded_any().clone()
            };
            assert_ne!(listener(mesh::NODE), listener("second"), "a second sidecar has ports of its own");
        }
        directory = Some(mesh.resources());
    });
    assert!(!directory.unwrap().exists(), "the files were left behind");
}

/// Nine hundred users, fifty pages, fifty carts, thirty retries; everything agrees.
fn good() -> Totals {
    let replica = |service, cluster, name, port, requests, failed| Replica {
        service,
        cluster,
        name,
        address: Some(SocketAddr::from(([127, 0, 0, 1], port))),
        requests,
        failed,
        seen: requests,
        seen_errors: failed,
        answers: requests - failed,
    };
    let stats = json!({"stats": [
        {"name": "http.services.downstream_rq_2xx", "value": 1000},
        {"name": "http.services.downstream_rq_total", "value": 1000},
        {"name": "cluster.web.upstream_rq_total", "value": 50},
        {"name": "cluster.checkout/stable.upstream_rq_total", "value": 45},
        {"name": "cluster.checkout/canary.upstream_rq_total", "value": 5},
        {"name": "cluster.users.upstream_rq_total", "value": 930},
        {"name": "cluster.users.upstream_rq_retry", "value": 30},
        {"name": "tcp.services/echo.downstream_cx_total", "value": 2},
        {"name": "tcp.services/echo.downstream_cx_rx_bytes_total", "value": 5000},
        {"name": "tcp.services/echo.downstream_cx_tx_bytes_total", "value": 5000},
    ]});
    Totals {
        answers: 1000,
        right: 1000,
        lost: 0,
        failed: 0,
        others: String::new(),
        replicas: vec![
            replica("web", "web", "web-1", 1, 50, 0),
            replica("checkout", "checkout/stable", "stable", 5, 45, 0),
            replica("checkout", "checkout/canary", "canary", 6, 5, 0),
            replica("users", "users", "users-steady", 2, 310, 0),
            replica("users", "users", "users-slow", 3, 310, 0),
            replica("users", "users", "users-flaky", 4, 310, 30),
        ],
        echo_sent: 5000,
        echo_back: 5000,
        echo_broken: 0,
        echo_connections: 2,
        echo_served: 5000,
        sidecar: Snapshot::new(&[stats], &json!({})),
        latencies: None,
    }
}

#[test]
fn numbers_that_agree_are_right() {
    assert_eq!(good().wrong(), Vec::<String>::new());
}

#[test]
fn each_disagreement_is_told() {
    type Spoil = fn(&mut Totals);
    let cases: [(&str, Spoil); 6] = [
        ("without an answer", |totals| totals.lost = 1),
        ("with the right body: 999, not 1000", |totals| totals.right = 999),
        ("errors of users-flaky: 29, not 30", |totals| totals.replicas[5].seen_errors = 29),
        ("bytes echoed: 4999, not 5000", |totals| totals.echo_back = 4999),
        ("the sidecar's retries: 0, not 30", |totals| totals.sidecar = Snapshot::default()),
        ("users-slow got 1% of the requests", |totals| {
            for (replica, requests) in totals.replicas[3..].iter_mut().zip([610, 10, 310]) {
                (replica.requests, replica.seen) = (requests, requests);
                replica.answers = requests - replica.failed;
            }
        }),
    ];
    for (told, spoil) in cases {
        let mut totals = good();
        spoil(&mut totals);
        let wrong = totals.wrong();
        assert!(wrong.iter().any(|line| line.contains(told)), "{told}: {wrong:?}");
    }
}

#[test]
fn answers_are_read_whole() {
    let parse = |bytes: &str| traffic::Answer::parse(bytes.as_bytes());
    let chunked = "HTTP/1.1 200 OK\r\nx-served-by: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n";
    for len in 0..chunked.len() {
        assert!(parse(&chunked[..len]).unwrap().is_none(), "{len}");
    }
    let answer = parse(chunked).unwrap().unwrap();
    assert_eq!((answer.status, answer.served_by.as_str(), answer.body.as_slice()), (200, "a", &b"hi!"[..]));
    let sized = "HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nhi";
    assert_eq!(parse(sized).unwrap().unwrap().status, 503);
    assert!(parse(&format!("{sized}more")).is_err());
    assert!(parse("HTTP/1.1 200 OK\r\n\r\n").is_err());
}

#[test]
fn endpoints_are_read_from_the_admin_port() {
    let clusters = json!({"cluster_statuses": [{"name": "users", "host_statuses": [{
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 81}},
        "stats": [{"name": "rq_total", "value": "7"}, {"name": "rq_error"}],
    }]}]});
    let snapshot = Snapshot::new(&[], &clusters);
    let host = SocketAddr::from(([127, 0, 0, 1], 81));
    assert_eq!((snapshot.host(host, "rq_total"), snapshot.host(host, "rq_error")), (7, 0));
}

#[test]
fn the_report_shows_steps_and_shares() {
    let progress = Progress::default();
    progress.done.borrow_mut().push_back(script::Done {
        title: STEPS[1].title,
        accepted: Some(Duration::from_millis(36)),
        requests: 2812,
        failed: 0,
        latencies: None,
        shares: "web-1 20 %".to_owned(),
    });
    let report = good().report(&progress);
    assert!(report.contains("1000 requests, 1000 answered 200, failed: 0\n"), "{report}");
    assert!(report.contains("36 ms") && report.contains("2812") && report.contains("web-1 20 %"), "{report}");
    assert!(report.contains("33%") && report.contains("30 retries"), "{report}");
    assert_eq!(missing_steps(&progress).unwrap(), "only 0 of 5 steps were completed");
}

#[test]
fn counts_between_two_moments() {
    let from = [("a", 1), ("b", 2)].into();
    let now = [("a", 1), ("b", 5), ("c", 1)].into();
    assert_eq!(script::since(&from, &now), [("b", 3), ("c", 1)].into());
}
