//! From a request and its peer to a decision.

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion};
use outrigger::policy::rbac::{
    Action, Condition, Engine, Facts, Networks, Policy, TextInput, TextSet, Whose,
};
use outrigger::telemetry::stream_info::ConnectionInfo;
use outrigger::tls::{Peer, TlsInfo};

use crate::heads::request;

/// A peer with this name.
fn peer(name: &str) -> ConnectionInfo {
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(name.try_into().expect("ASCII"))];
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    let peer = Peer::of(&[certificate.der().clone()]);
    let address = "10.0.0.9:4444".parse().ok();
    ConnectionInfo {
        id: 1,
        remote: address,
        direct_remote: address,
        local: address,
        direct_local: address,
        tls: Some(Rc::new(TlsInfo { version: "", cipher: "", group: "", peer, local: None, lenient: false })),
        server_name: None,
        listener: "".into(),
        filter_chain: "".into(),
        start: Instant::now(),
        inbound: true,
        retirement: Arc::default(),
        objects: None,
        is_restored: false,
        source: None,
        metadata: None,
    }
}

fn name(number: usize) -> String {
    format!("spiffe://cluster.local/ns/team-{number}/sa/service")
}

/// Policies as meshes write them: who may do what, in this many teams.
fn by_name(number: usize) -> Condition {
    let paths = Condition::any(vec![
        Condition::Text(TextInput::Path, TextSet::prefix(&format!("/team-{number}/"))),
        Condition::Text(TextInput::Path, TextSet::exact("/health")),
    ]);
    let names = Condition::any(vec![
        Condition::Text(TextInput::Peer, TextSet::exact(&name(number))),
        Condition::Text(TextInput::Peer, TextSet::exact(&format!("{}-canary", name(number)))),
    ]);
    Condition::all(vec![paths, names])
}

/// Policies by network.
fn by_network(number: usize) -> Condition {
    let third = u8::try_from(number % 256).unwrap_or(0);
    let second = u8::try_from(number / 256).unwrap_or(0);
    Condition::all(vec![
        Condition::Ip(Whose::Remote, Networks::one([11, second, third, 0].into(), 24)),
        Condition::Text(TextInput::Path, TextSet::suffix(".json")),
    ])
}

/// Policies that no index helps: nobody but.
fn by_exclusion(number: usize) -> Condition {
    let who = Condition::Text(TextInput::Peer, TextSet::prefix("spiffe://cluster.local/")).negated();
    Condition::all(vec![
        who,
        Condition::Text(TextInput::Path, TextSet::prefix(&format!("/{number}"))).negated(),
    ])
}

/// The last policy decides, or none does, among more and more of them.
pub fn deciding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rbac");
    let head = request(b"GET /health HTTP/1.1\r\nHost: shop.test\r\nx-user: alice\r\n\r\n").head;
    type Make = fn(usize) -> Condition;
    for (kind, make) in [("name", by_name as Make), ("network", by_network), ("exclusion", by_exclusion)] {
        for count in [10, 100, 1000] {
            let policies = (0..count)
                .map(|number| Policy { name: format!("policy-{number:04}").into(), condition: make(number) });
            let engine = Engine::new(Action::Allow, policies.collect());
            for (case, who) in [("last", name(count - 1)), ("none", name(count))] {
                let connection = peer(&who);
                let facts = Facts { request: Some(&head), ..Facts::of_connection(&connection) };
                assert_eq!(engine.decide(&facts).allowed, case == "last" && kind == "name");
                let id = BenchmarkId::new(format!("{kind}/{case}"), count);
                group.bench_function(id, |bencher| bencher.iter(|| engine.decide(black_box(&facts)).allowed));
            }
        }
    }
    group.finish();
}
