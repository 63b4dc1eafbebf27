//! Make before break.

use std::sync::Arc;
use std::time::Instant;

use super::*;

/// A client that has subscribed to clusters, their endpoints, listeners and a route table, and has
/// acknowledged everything.
fn settled(protocol: Protocol, snapshot: &Snapshot, now: Instant) -> StreamState {
    let mut state = stream(protocol, snapshot);
    let names: Vec<&str> = snapshot.names(&CDS).collect();
    for (kind, names) in [(CDS, vec![]), (EDS, names), (LDS, vec![]), (RDS, vec!["r"])] {
        match protocol {
            Protocol::Delta => state.on_delta(delta(&kind, &names, &[]), now).unwrap(),
            Protocol::StateOfTheWorld => state.on_sotw(sotw(&kind, &names, ""), now).unwrap(),
        };
    }
    let sent = drain(&mut state, now);
    assert_eq!(sent.len(), 4);
    for seen in &sent {
        ack(&mut state, seen, now);
    }
    assert!(drain(&mut state, now).is_empty());
    state
}

/// Acknowledges with the names that the client has subscribed to.
fn ack(state: &mut StreamState, seen: &Seen, now: Instant) {
    if state.protocol() == Protocol::Delta {
        let request =
            DeltaDiscoveryRequest { response_nonce: seen.nonce.clone(), ..delta(&seen.kind, &[], &[]) };
        state.on_delta(request, now).unwrap();
        return;
    }
    let names: Vec<String> = state.types[&seen.kind].names.iter().map(ToString::to_string).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    state.on_sotw(sotw(&seen.kind, &names, &seen.nonce), now).unwrap();
}

fn one(state: &mut StreamState, now: Instant) -> Seen {
    let mut sent = drain(state, now);
    assert_eq!(sent.len(), 1, "{:?}", lines(&sent));
    sent.remove(0)
}

#[test]
fn delta_makes_before_it_breaks() {
    let now = Instant::now();
    let mut state = settled(Protocol::Delta, &mesh(&["a"], 0), now);
    state.set_target(Arc::new(mesh(&["b"], 0)));
    let clusters = one(&mut state, now);
    assert_eq!(clusters.line(), "Cluster: b");
    ack(&mut state, &clusters, now);
    assert!(drain(&mut state, now).is_empty(), "the client has not asked for the endpoints of b yet");
    state.on_delta(delta(&EDS, &["b"], &[]), now).unwrap();
    let endpoints = one(&mut state, now);
    assert_eq!(endpoints.line(), "ClusterLoadAssignment: b");
    ack(&mut state, &endpoints, now);
    let routes = one(&mut state, now);
    assert_eq!(routes.line(), "RouteConfiguration: r");
    ack(&mut state, &routes, now);
    let removal = one(&mut state, now);
    assert_eq!(removal.line(), "Cluster: -a");
    ack(&mut state, &removal, now);
    assert_eq!(one(&mut state, now).line(), "ClusterLoadAssignment: -a");
}

#[test]
fn sotw_keeps_what_goes_until_routes_have_changed() {
    let now = Instant::now();
    let mut state = settled(Protocol::StateOfTheWorld, &mesh(&["a"], 0), now);
    state.set_target(Arc::new(mesh(&["b"], 0)));
    let clusters = one(&mut state, now);
    assert_eq!(clusters.line(), "Cluster: b a");
    // The endpoints are asked for before the clusters are acknowledged, as Envoy does while warming.
    let nonce = state.types[&EDS].last_nonce.clone();
    state.on_sotw(sotw(&EDS, &["a", "b"], &nonce), now).unwrap();
    let endpoints = one(&mut state, now);
    assert_eq!(endpoints.line(), "ClusterLoadAssignment: b");
    ack(&mut state, &endpoints, now);
    assert!(drain(&mut state, now).is_empty(), "the clusters are not acknowledged");
    ack(&mut state, &clusters, now);
    let routes = one(&mut state, now);
    assert_eq!(routes.line(), "RouteConfiguration: r");
    ack(&mut state, &routes, now);
    let last = one(&mut state, now);
    assert_eq!(last.line(), "Cluster: b");
    assert_ne!(last.version, clusters.version);
    assert_eq!(last.version, mesh(&["b"], 0).version(&CDS));
}

#[test]
fn a_changed_cluster_is_followed_by_its_endpoints() {
    let now = Instant::now();
    for protocol in [Protocol::Delta, Protocol::StateOfTheWorld] {
        let mut state = settled(protocol, &mesh(&["a", "b"], 0), now);
        let mut next = mesh(&["a", "b"], 0);
        next.insert(&cluster("b", 1)).unwrap();
        state.set_target(Arc::new(next));
        let sent = drain(&mut state, now);
        assert_eq!(sent[0].kind, CDS);
        assert_eq!(lines(&sent[1..]), ["ClusterLoadAssignment: b"]);
    }
}

#[test]
fn a_refusal_does_not_hold_up_the_rest() {
    let now = Instant::now();
    let mut state = settled(Protocol::Delta, &mesh(&["a"], 0), now);
    let mut next = mesh(&["a"], 0);
    next.insert(&cluster("a", 1)).unwrap();
    next.insert(&listener("l", 1)).unwrap();
    state.set_target(Arc::new(next));
    let sent = drain(&mut state, now);
    assert_eq!(lines(&sent), ["Cluster: a", "ClusterLoadAssignment: a"]);
    let nack = DeltaDiscoveryRequest {
        response_nonce: sent[0].nonce.clone(),
        error_detail: refusal(),
        ..delta(&CDS, &[], &[])
    };
    state.on_delta(nack, now).unwrap();
    assert!(drain(&mut state, now).is_empty());
    ack(&mut state, &sent[1], now);
    assert_eq!(one(&mut state, now).line(), "Listener: l");
}

#[test]
fn patience_ends() {
    let now = Instant::now();
    for protocol in [Protocol::Delta, Protocol::StateOfTheWorld] {
        let mut state = settled(protocol, &mesh(&["a"], 0), now);
        state.set_target(Arc::new(mesh(&["b"], 1)));
        assert_eq!(one(&mut state, now).kind, CDS);
        let deadline = state.deadline().unwrap();
        assert!(drain(&mut state, deadline - std::time::Duration::from_millis(1)).is_empty());
        let sent = drain(&mut state, deadline);
        assert_eq!(sent[0].line(), "RouteConfiguration: r");
        assert!(sent[1..].iter().any(|s| s.kind == CDS), "then the removal of a");
        assert_eq!(state.deadline(), None);
    }
}

#[test]
fn changes_are_coalesced_while_a_response_is_under_way() {
    let now = Instant::now();
    let mut state = settled(Protocol::Delta, &mesh(&["a", "b"], 0), now);
    state.set_target(Arc::new(mesh(&["a", "b"], 1)));
    let first = one(&mut state, now);
    for edition in 2..500 {
        state.set_target(Arc::new(mesh(&["a", "b"], edition)));
        assert!(drain(&mut state, now).is_empty());
    }
    assert_eq!(state.status()[1].pending, 2);
    ack(&mut state, &first, now);
    let last = one(&mut state, now);
    let want = mesh(&["a", "b"], 499).get(&EDS, "a").unwrap().version().to_owned();
    assert_eq!(last.resources[0], ("a".to_owned(), want));
}
