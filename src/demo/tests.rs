use std::net::SocketAddr;

use clap::Parser as _;
use serde_json::json;

use super::sidecar::Snapshot;
use super::summary::{Replica, Totals};
use super::*;

#[test]
fn the_bootstrap_compiles_without_a_warning() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bootstrap = LocalSet::new().block_on(&runtime, async {
        let origins = Origins::start().await.unwrap();
        Bootstrap::new(&origins).unwrap()
    });
    let line = crate::bootstrap::CommandLine::parse_from(["outrigger", "--config-yaml", bootstrap.yaml()]);
    let compiled = crate::bootstrap::compile(&line.flags).unwrap_or_else(|problems| panic!("{problems:?}"));
    assert!(compiled.warnings.is_empty(), "{:?}", compiled.warnings);
    assert_ne!(bootstrap.http, bootstrap.tcp);
    assert_ne!(bootstrap.tcp, bootstrap.admin);
}

/// Nine hundred users, one hundred orders, thirty retries; everything agrees.
fn good() -> Totals {
    let replica = |service, name, port, requests, failed| Replica {
        service,
        name,
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        requests,
        failed,
        seen: requests,
        seen_errors: failed,
        answers: requests - failed,
    };
    let stats = json!({"stats": [
        {"name": "http.demo.downstream_rq_2xx", "value": 1000},
        {"name": "http.demo.downstream_rq_total", "value": 1000},
        {"name": "cluster.orders.upstream_rq_total", "value": 100},
        {"name": "cluster.users.upstream_rq_total", "value": 930},
        {"name": "cluster.users.upstream_rq_retry", "value": 30},
        {"name": "tcp.echo.downstream_cx_total", "value": 2},
        {"name": "tcp.echo.downstream_cx_rx_bytes_total", "value": 5000},
        {"name": "tcp.echo.downstream_cx_tx_bytes_total", "value": 5000},
    ]});
    Totals {
        answers: 1000,
        right: 1000,
        lost: 0,
        others: String::new(),
        replicas: vec![
            replica("orders", "orders", 1, 100, 0),
            replica("users", "users-steady", 2, 310, 0),
            replica("users", "users-slow", 3, 310, 0),
            replica("users", "users-flaky", 4, 310, 30),
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
        ("errors of users-flaky: 29, not 30", |totals| totals.replicas[3].seen_errors = 29),
        ("bytes echoed: 4999, not 5000", |totals| totals.echo_back = 4999),
        ("the sidecar's retries: 0, not 30", |totals| totals.sidecar = Snapshot::default()),
        ("users-slow got 1% of the requests", |totals| {
            for (replica, requests) in totals.replicas[1..].iter_mut().zip([610, 10, 310]) {
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
fn the_report_shows_shares_and_breakers() {
    let report = good().report();
    assert!(report.contains("1000 requests, 1000 answered 200"), "{report}");
    assert!(report.contains("33%"), "{report}");
    assert!(report.contains("users closed"), "{report}");
}
