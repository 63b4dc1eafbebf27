//! The rules of each form of the protocol, one by one.

use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::server::{StreamError, Verdict};

#[test]
fn delta_sends_differences_only() {
    let now = Instant::now();
    let mut state = stream(Protocol::Delta, &mesh(&["a", "b"], 0));
    state.on_delta(delta(&CDS, &[], &[]), now).unwrap();
    let first = drain(&mut state, now);
    assert_eq!(lines(&first), ["Cluster: a b"]);
    let ack = DeltaDiscoveryRequest { response_nonce: first[0].nonce.clone(), ..delta(&CDS, &[], &[]) };
    let verdict = state.on_delta(ack, now).unwrap();
    assert_eq!(verdict, Verdict::Ack { kind: CDS, version: first[0].version.clone() });
    assert!(drain(&mut state, now).is_empty());

    let mut next = mesh(&["a", "b", "c"], 0);
    next.remove(&CDS, "a");
    next.insert(&cluster("b", 1)).unwrap();
    state.set_target(Arc::new(next));
    let second = drain(&mut state, now);
    assert_eq!(lines(&second), ["Cluster: b c"]);
    assert_eq!(state.status()[0].version_acked, first[0].version);
    let ack = DeltaDiscoveryRequest { response_nonce: second[0].nonce.clone(), ..delta(&CDS, &[], &[]) };
    state.on_delta(ack, now).unwrap();
    assert_eq!(lines(&drain(&mut state, now)), ["Cluster: -a"]);
}

#[test]
fn delta_resumes_from_what_the_client_has() {
    let now = Instant::now();
    let snapshot = mesh(&["a", "b"], 0);
    let have = |kind: &ResourceType, name: &str| snapshot.get(kind, name).unwrap().version().to_owned();
    let mut state = stream(Protocol::Delta, &snapshot);
    let versions = [("a", have(&CDS, "a")), ("b", "old".into()), ("gone", "1".into())];
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: versions.map(|(n, v)| (n.to_owned(), v)).into(),
        ..delta(&CDS, &[], &[])
    };
    state.on_delta(request, now).unwrap();
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: [("a".to_owned(), have(&EDS, "a"))].into(),
        ..delta(&EDS, &["a", "b"], &[])
    };
    state.on_delta(request, now).unwrap();
    let sent = drain(&mut state, now);
    assert_eq!(lines(&sent), ["Cluster: b", "ClusterLoadAssignment: b"], "removals wait for acks");
    for seen in sent {
        let ack = DeltaDiscoveryRequest { response_nonce: seen.nonce, ..delta(&seen.kind, &[], &[]) };
        state.on_delta(ack, now).unwrap();
    }
    assert_eq!(lines(&drain(&mut state, now)), ["Cluster: -gone"]);
}

#[test]
fn delta_answers_every_subscription() {
    let now = Instant::now();
    let mut state = stream(Protocol::Delta, &mesh(&["a"], 0));
    state.on_delta(delta(&EDS, &["a", "none"], &[]), now).unwrap();
    assert_eq!(lines(&drain(&mut state, now)), ["ClusterLoadAssignment: a -none"]);
    state.on_delta(delta(&EDS, &["a"], &[]), now).unwrap();
    assert_eq!(lines(&drain(&mut state, now)), ["ClusterLoadAssignment: a"], "asked again, sent again");
    state.on_delta(delta(&EDS, &[], &["none"]), now).unwrap();
    assert!(drain(&mut state, now).is_empty());

    state.on_delta(delta(&CDS, &["*", "a", "none"], &[]), now).unwrap();
    let follows = ["Cluster: a -none", "ClusterLoadAssignment: a"];
    assert_eq!(lines(&drain(&mut state, now)), follows, "endpoints again, to warm the cluster");
    state.on_delta(delta(&CDS, &[], &["a", "none"]), now).unwrap();
    assert_eq!(lines(&drain(&mut state, now)), ["Cluster: a -none"], "the wildcard still covers them");
    state.on_delta(delta(&CDS, &[], &["*"]), now).unwrap();
    state.set_target(Arc::new(mesh(&["x"], 0)));
    assert!(drain(&mut state, now).iter().all(|s| s.kind != CDS));
}

#[test]
fn an_empty_wildcard_is_answered() {
    let now = Instant::now();
    for protocol in [Protocol::Delta, Protocol::StateOfTheWorld] {
        let mut state = stream(protocol, &Snapshot::new());
        match protocol {
            Protocol::Delta => state.on_delta(delta(&CDS, &[], &[]), now).unwrap(),
            Protocol::StateOfTheWorld => state.on_sotw(sotw(&CDS, &[], ""), now).unwrap(),
        };
        assert_eq!(lines(&drain(&mut state, now)), ["Cluster:"]);
    }
}

#[test]
fn nothing_is_said_before_there_is_a_snapshot() {
    let now = Instant::now();
    let mut state = StreamState::new(Protocol::Delta, None, Limits::default());
    state.on_delta(delta(&CDS, &[], &[]), now).unwrap();
    state.on_delta(delta(&EDS, &["a"], &[]), now).unwrap();
    assert!(drain(&mut state, now).is_empty());
    state.set_target(Arc::new(mesh(&["a"], 0)));
    assert_eq!(lines(&drain(&mut state, now)), ["Cluster: a", "ClusterLoadAssignment: a"]);
}

#[test]
fn sotw_acknowledges_refuses_and_ignores_stale_nonces() {
    let now = Instant::now();
    let mut state = stream(Protocol::StateOfTheWorld, &mesh(&["a"], 0));
    state.on_sotw(sotw(&CDS, &[], ""), now).unwrap();
    let first = drain(&mut state, now).remove(0);
    state.on_sotw(sotw(&CDS, &[], &first.nonce), now).unwrap();
    assert!(drain(&mut state, now).is_empty(), "silence until something changes");

    let mut next = mesh(&["a"], 0);
    next.insert(&cluster("a", 1)).unwrap();
    state.set_target(Arc::new(next));
    let second = drain(&mut state, now).remove(0);
    assert_ne!(first.version, second.version);
    assert_eq!(state.on_sotw(sotw(&CDS, &["x"], &first.nonce), now), Ok(Verdict::None));
    assert!(drain(&mut state, now).is_empty(), "stale, so not even its names count");
    let nack = DiscoveryRequest { error_detail: refusal(), ..sotw(&CDS, &[], &second.nonce) };
    let verdict = state.on_sotw(nack, now).unwrap();
    assert!(matches!(&verdict, Verdict::Nack { kind, nack }
        if *kind == CDS && nack.version == second.version && nack.message == "no such thing"));
    assert!(drain(&mut state, now).is_empty(), "a refused response is not repeated");
    let status = state.status().remove(0);
    assert_eq!((status.version_acked, status.version_sent), (first.version, second.version));
    assert_eq!((status.acks, status.nacks), (1, 1));
    assert_eq!(status.last_nack.unwrap().0.code, 3);

    state.set_target(Arc::new(mesh(&["a"], 0)));
    assert_eq!(lines(&drain(&mut state, now)), ["Cluster: a"], "back to what was good");
}

#[test]
fn sotw_names_endpoints_one_by_one() {
    let now = Instant::now();
    let mut state = stream(Protocol::StateOfTheWorld, &mesh(&["a", "b"], 0));
    state.on_sotw(sotw(&EDS, &["a", "c"], ""), now).unwrap();
    let first = drain(&mut state, now).remove(0);
    assert_eq!(first.names(), ["a"]);
    state.on_sotw(sotw(&EDS, &["a", "c"], &first.nonce), now).unwrap();
    assert!(drain(&mut state, now).is_empty());
    state.on_sotw(sotw(&EDS, &["a", "b", "c"], &first.nonce), now).unwrap();
    let second = drain(&mut state, now).remove(0);
    assert_eq!(second.names(), ["b"]);
    state.on_sotw(sotw(&EDS, &["a", "b", "c"], &second.nonce), now).unwrap();
    state.on_sotw(sotw(&EDS, &["a", "b", "c"], &second.nonce), now).unwrap();
    let again = drain(&mut state, now).remove(0);
    assert_eq!(again.names(), ["a", "b"], "neither a change nor a verdict: it asks again");
    state.on_sotw(sotw(&EDS, &["c"], &again.nonce), now).unwrap();
    state.set_target(Arc::new(mesh(&["a", "b", "c"], 1)));
    assert_eq!(lines(&drain(&mut state, now)), ["ClusterLoadAssignment: c"]);
}

#[test]
fn sotw_tells_absent_clusters_by_absence() {
    let now = Instant::now();
    let mut state = stream(Protocol::StateOfTheWorld, &mesh(&["a", "b"], 0));
    state.on_sotw(sotw(&CDS, &["none"], ""), now).unwrap();
    let first = drain(&mut state, now).remove(0);
    assert_eq!(first.line(), "Cluster:");
    state.on_sotw(sotw(&CDS, &["none", "b"], &first.nonce), now).unwrap();
    let second = drain(&mut state, now).remove(0);
    assert_eq!(second.line(), "Cluster: b");
    state.on_sotw(sotw(&CDS, &[], &second.nonce), now).unwrap();
    state.set_target(Arc::new(mesh(&["b"], 0)));
    assert!(drain(&mut state, now).is_empty(), "an empty list after names is nothing, not everything");
}

#[test]
fn sotw_resumes_by_version() {
    let now = Instant::now();
    let snapshot = mesh(&["a"], 0);
    let mut state = stream(Protocol::StateOfTheWorld, &snapshot);
    let request = DiscoveryRequest { version_info: snapshot.version(&CDS), ..sotw(&CDS, &[], "") };
    state.on_sotw(request, now).unwrap();
    assert!(drain(&mut state, now).is_empty());
    state.set_target(Arc::new(mesh(&["a", "b"], 0)));
    assert_eq!(lines(&drain(&mut state, now)), ["Cluster: a b"]);
}

#[test]
fn a_stream_is_bounded() {
    let now = Instant::now();
    let limits = Limits { names: 2, types: 2, ..Limits::default() };
    let mut state = StreamState::new(Protocol::Delta, None, limits.clone());
    let error = state.on_delta(delta(&EDS, &["a", "b", "c"], &[]), now).unwrap_err();
    assert!(matches!(error, StreamError::TooManyNames { limit: 2, .. }));
    state.on_delta(delta(&CDS, &[], &[]), now).unwrap();
    let error = state.on_delta(delta(&LDS, &[], &[]), now).unwrap_err();
    assert_eq!(error, StreamError::TooManyTypes { limit: 2 });
    assert_eq!(state.on_delta(DeltaDiscoveryRequest::default(), now), Err(StreamError::NoType));

    let mut only = StreamState::new(Protocol::Delta, Some(CDS), limits);
    only.on_delta(DeltaDiscoveryRequest::default(), now).unwrap();
    assert!(matches!(only.on_delta(delta(&EDS, &[], &[]), now), Err(StreamError::WrongType { .. })));
}

#[test]
fn a_large_delta_is_split() {
    let now = Instant::now();
    let names: Vec<String> = (0..100).map(|i| format!("c{i:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let limits = Limits { response_bytes: 2000, ..Limits::default() };
    let mut state = StreamState::new(Protocol::Delta, None, limits);
    state.set_target(Arc::new(mesh(&names, 0)));
    state.on_delta(delta(&CDS, &[], &[]), now).unwrap();
    let sent = drain(&mut state, now);
    assert!(sent.len() > 2, "{} responses", sent.len());
    let all: Vec<&str> = sent.iter().flat_map(Seen::names).collect();
    assert_eq!(all, names);
}
