//! Rules of the protocol, one test for each.

use std::time::{Duration, Instant};

use super::super::*;
use super::{any, resource};
use crate::pb::envoy::service::discovery::v3 as pb;
use crate::pb::google::protobuf;

fn settings() -> Settings {
    Settings::new(crate::pb::envoy::config::core::v3::Node { id: "n".to_owned(), ..Default::default() })
}

fn drain<V: Variant>(client: &mut Machine<V>) -> Vec<Event> {
    std::iter::from_fn(|| client.event()).collect()
}

fn updates<V: Variant>(client: &mut Machine<V>) -> Vec<Update> {
    let update = |event| if let Event::Update(update) = event { Some(update) } else { None };
    drain(client).into_iter().filter_map(update).collect()
}

fn subscribe(url: &str, names: &[&str]) -> Change {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Change::Subscribe { type_url: url.to_owned(), names, fetch_timeout: None }
}

fn all(url: &str, wildcard: Wildcard) -> Change {
    Change::SubscribeAll { type_url: url.to_owned(), wildcard, fetch_timeout: None }
}

fn open<V: Variant>(change: Change) -> (Machine<V>, Instant) {
    let now = Instant::now();
    let mut client = Machine::new(settings(), now, 1);
    client.change(now, change);
    assert_eq!(drain(&mut client), [Event::Connect]);
    client.opened(now);
    assert_eq!(drain(&mut client), [Event::Connected]);
    (client, now)
}

fn delta(
    url: &str,
    nonce: &str,
    resources: Vec<pb::Resource>,
    removed: &[&str],
) -> pb::DeltaDiscoveryResponse {
    pb::DeltaDiscoveryResponse {
        type_url: url.to_owned(),
        nonce: nonce.to_owned(),
        system_version_info: format!("v{nonce}"),
        resources,
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

fn cluster(name: &str, version: u64) -> pb::Resource {
    resource(name, version, Some(any(type_url::CLUSTER, name, "x")))
}

fn sotw(url: &str, nonce: &str, resources: Vec<protobuf::Any>) -> pb::DiscoveryResponse {
    pb::DiscoveryResponse {
        type_url: url.to_owned(),
        nonce: nonce.to_owned(),
        version_info: format!("v{nonce}"),
        resources,
        ..Default::default()
    }
}

#[test]
fn delta_answers_and_resumes() {
    let (mut client, now) = open::<Incremental>(all(type_url::CLUSTER, Wildcard::Legacy));
    let first = client.request(now).unwrap();
    assert!(first.resource_names_subscribe.is_empty() && first.response_nonce.is_empty());
    assert_eq!(first.node.unwrap().id, "n");
    assert_eq!(client.request(now), None);

    client.response(now, delta(type_url::CLUSTER, "1", vec![cluster("a", 1), cluster("b", 1)], &[]));
    let update = updates(&mut client).remove(0);
    assert_eq!(update.added.len(), 2);
    assert_eq!(client.request(now), None, "no answer before the verdict");
    client.verdict(now, update.id, Verdict::Accepted);
    let ack = client.request(now).unwrap();
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("1", None));

    // One is bad, its sibling is taken.
    client.response(now, delta(type_url::CLUSTER, "2", vec![cluster("a", 2), cluster("c", 2)], &["b", "x"]));
    let update = updates(&mut client).remove(0);
    assert_eq!(update.removed, ["b", "x"]);
    let bad = Rejection { name: "a".to_owned(), message: "lb_policy: no such".to_owned() };
    client.verdict(now, update.id, Verdict::Rejected(vec![bad]));
    let nack = client.request(now).unwrap();
    assert_eq!(nack.response_nonce, "2");
    assert_eq!(nack.error_detail.unwrap().message, "a: lb_policy: no such");
    let status = client.status().types.remove(0);
    assert_eq!((status.version.as_str(), status.rejected_total), ("v1", 1));

    client.closed(now, "reset");
    assert_eq!(client.request(now), None);
    let later = client.deadline().unwrap();
    assert!(later <= now + Duration::from_millis(500));
    client.tick(later);
    assert!(drain(&mut client).contains(&Event::Connect));
    client.opened(later);
    let again = client.request(later).unwrap();
    let mut versions: Vec<_> = again.initial_resource_versions.into_iter().collect();
    versions.sort();
    assert_eq!(versions, [("a".to_owned(), "1".to_owned()), ("c".to_owned(), "2".to_owned())]);
    assert!(again.response_nonce.is_empty());
}

#[test]
fn delta_names_and_wildcard_together() {
    let (mut client, now) = open::<Incremental>(all(type_url::CLUSTER, Wildcard::Legacy));
    client.change(now, subscribe(type_url::CLUSTER, &["a"]));
    assert_eq!(client.request(now).unwrap().resource_names_subscribe, ["a", "*"]);
    client.change(now, subscribe(type_url::CLUSTER, &["a", "b"]));
    let request = client.request(now).unwrap();
    assert_eq!(request.resource_names_subscribe, ["b"]);
    client.change(now, Change::UnsubscribeAll { type_url: type_url::CLUSTER.to_owned() });
    client
        .change(now, Change::Refresh { type_url: type_url::CLUSTER.to_owned(), names: vec!["b".to_owned()] });
    let request = client.request(now).unwrap();
    assert_eq!(request.resource_names_unsubscribe, ["*"]);
    assert_eq!(request.resource_names_subscribe, ["b"]);
    // What nobody asked for is acknowledged and goes no further.
    client.response(now, delta(type_url::CLUSTER, "1", vec![cluster("z", 1)], &[]));
    assert!(updates(&mut client).is_empty());
    assert_eq!(client.request(now).unwrap().response_nonce, "1");
}

#[test]
fn what_cannot_be_right_is_refused() {
    let (mut client, now) = open::<Incremental>(all(type_url::CLUSTER, Wildcard::Star));
    client.request(now).unwrap();
    client.response(now, delta(type_url::CLUSTER, "1", vec![cluster("a", 1), cluster("a", 2)], &[]));
    let message = client.request(now).unwrap().error_detail.unwrap().message;
    assert!(message.contains("duplicate resource name \"a\""), "{message}");

    let foreign = resource("b", 1, Some(any(type_url::LISTENER, "b", "x")));
    client.response(now, delta(type_url::CLUSTER, "2", vec![foreign, cluster("c", 1)], &[]));
    let update = updates(&mut client).remove(0);
    assert_eq!(update.added[0].name, "c");
    client.verdict(now, update.id, Verdict::Accepted);
    let nack = client.request(now).unwrap();
    assert!(nack.error_detail.unwrap().message.starts_with("b: is of type"));

    drain(&mut client);
    client.response(now, delta(type_url::SECRET, "3", vec![], &[]));
    assert!(
        matches!(&drain(&mut client)[0], Event::Ignored { type_url, .. } if type_url == type_url::SECRET)
    );
    assert_eq!(client.request(now), None);
}

#[test]
fn updates_of_a_type_wait_for_each_other() {
    let (mut client, now) = open::<Incremental>(all(type_url::CLUSTER, Wildcard::Star));
    client.change(now, subscribe(type_url::ENDPOINTS, &["e"]));
    client.change(now, all(type_url::LISTENER, Wildcard::Star));
    let order: Vec<_> = std::iter::from_fn(|| client.request(now)).map(|request| request.type_url).collect();
    assert_eq!(order, [type_url::CLUSTER, type_url::ENDPOINTS, type_url::LISTENER]);
    client.response(now, delta(type_url::CLUSTER, "1", vec![cluster("a", 1)], &[]));
    client.response(now, delta(type_url::CLUSTER, "2", vec![cluster("a", 2)], &[]));
    client.response(now, delta(type_url::LISTENER, "3", vec![], &[]));
    let got = updates(&mut client);
    assert_eq!(got.len(), 2, "the second of the clusters is held back, the listeners are not");
    assert_eq!(client.backlog(), 1);
    // A new stream has to wait for the verdict, to say what is held.
    client.closed(now, "reset");
    let later = client.deadline().unwrap();
    client.tick(later);
    client.opened(later);
    assert_eq!(client.request(later).unwrap().type_url, type_url::ENDPOINTS);
    assert_eq!(client.request(later), None);
    client.verdict(later, got[0].id, Verdict::Accepted);
    let request = client.request(later).unwrap();
    assert_eq!(request.initial_resource_versions["a"], "1");
    assert!(request.response_nonce.is_empty(), "the nonce belonged to the old stream");
}

#[test]
fn time_to_live_and_heartbeats() {
    let (mut client, now) = open::<Incremental>(subscribe(type_url::CLUSTER, &["a"]));
    client.request(now).unwrap();
    let ttl = Some(protobuf::Duration { seconds: 10, nanos: 0 });
    let with_ttl = |body| pb::Resource { ttl, ..resource("a", 1, body) };
    let body = any(type_url::CLUSTER, "a", "x");
    client.response(now, delta(type_url::CLUSTER, "1", vec![with_ttl(Some(body))], &[]));
    let update = updates(&mut client).remove(0);
    client.verdict(now, update.id, Verdict::Accepted);
    assert_eq!(client.deadline(), Some(now + Duration::from_secs(10)));

    let beat = now + Duration::from_secs(9);
    client.response(beat, delta(type_url::CLUSTER, "2", vec![with_ttl(None)], &[]));
    assert!(updates(&mut client).is_empty(), "a heartbeat is no update");
    client.tick(now + Duration::from_secs(11));
    assert!(updates(&mut client).is_empty());
    client.tick(beat + Duration::from_secs(10));
    let expired = updates(&mut client).remove(0);
    assert_eq!((expired.cause, expired.removed.as_slice()), (Cause::Expired, &["a".to_owned()][..]));
    client.verdict(beat, expired.id, Verdict::Accepted);
    assert_eq!(client.status().types[0].resources, 0);
    // Of another version than the one held, no body is an error.
    client.response(beat, delta(type_url::CLUSTER, "3", vec![with_ttl(None)], &[]));
    let nack = std::iter::from_fn(|| client.request(beat)).last().unwrap();
    assert!(nack.error_detail.unwrap().message.contains("no body"));
}

#[test]
fn sotw_versions_nonces_and_absence() {
    let (mut client, now) = open::<StateOfTheWorld>(all(type_url::CLUSTER, Wildcard::Legacy));
    let first = client.request(now).unwrap();
    assert!(first.resource_names.is_empty() && first.version_info.is_empty());
    let two = vec![any(type_url::CLUSTER, "a", "1"), any(type_url::CLUSTER, "b", "1")];
    client.response(now, sotw(type_url::CLUSTER, "1", two));
    let update = updates(&mut client).remove(0);
    assert_eq!(update.added[1].name, "b");
    client.verdict(now, update.id, Verdict::Accepted);
    let ack = client.request(now).unwrap();
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("v1", "1"));

    // Refused: the last accepted version, the new nonce; absence still deletes.
    client.response(now, sotw(type_url::CLUSTER, "2", vec![any(type_url::CLUSTER, "a", "2")]));
    let update = updates(&mut client).remove(0);
    assert_eq!(update.removed, ["b"]);
    let bad = Rejection { name: "a".to_owned(), message: "bad".to_owned() };
    client.change(now, subscribe(type_url::CLUSTER, &["c"]));
    assert_eq!(client.request(now), None, "a request with nonce 1 would be stale");
    client.verdict(now, update.id, Verdict::Rejected(vec![bad]));
    let nack = client.request(now).unwrap();
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("v1", "2"));
    assert_eq!(nack.resource_names, ["c", "*"]);
    assert!(nack.error_detail.is_some());

    // One that cannot be read may be any of those that seem to be absent.
    let truncated = protobuf::Any { type_url: type_url::CLUSTER.to_owned(), value: vec![0x0a, 0x7f, b'x'] };
    client.response(now, sotw(type_url::CLUSTER, "3", vec![truncated]));
    assert!(updates(&mut client).is_empty());
    let nack = client.request(now).unwrap();
    assert!(nack.error_detail.unwrap().message.contains("resource 0 of 1 cannot be read"));
}

#[test]
fn sotw_says_its_version_on_a_new_stream() {
    let (mut client, now) = open::<StateOfTheWorld>(subscribe(type_url::ENDPOINTS, &["e"]));
    client.request(now).unwrap();
    client.response(now, sotw(type_url::ENDPOINTS, "1", vec![any(type_url::ENDPOINTS, "e", "1")]));
    let update = updates(&mut client).remove(0);
    client.verdict(now, update.id, Verdict::Accepted);
    client.request(now).unwrap();
    client.response(now, sotw(type_url::ENDPOINTS, "2", vec![]));
    assert!(updates(&mut client).is_empty(), "absence deletes no endpoints");
    client.closed(now, "reset");
    client.opened(now);
    let request = client.request(now).unwrap();
    assert_eq!((request.version_info.as_str(), request.response_nonce.as_str()), ("v2", ""));
}

#[test]
fn fetch_timeouts_count_for_each_name() {
    let (mut client, now) = open::<Incremental>(subscribe(type_url::ENDPOINTS, &["here", "late"]));
    client.request(now).unwrap();
    let here = resource("here", 1, Some(any(type_url::ENDPOINTS, "here", "x")));
    client.response(now, delta(type_url::ENDPOINTS, "1", vec![here], &[]));
    updates(&mut client);
    client.tick(now + Duration::from_secs(15));
    let late =
        Event::FetchTimeout { type_url: type_url::ENDPOINTS.to_owned(), name: Some("late".to_owned()) };
    assert_eq!(drain(&mut client), [late]);
}

#[test]
fn requests_keep_to_their_rate() {
    let now = Instant::now();
    let limit = RateLimit { max_tokens: 2, fill_rate: 1.0 };
    let settings = Settings { rate_limit: Some(limit), set_node_on_first_message_only: true, ..settings() };
    let mut client = Delta::new(settings, now, 1);
    for url in [type_url::CLUSTER, type_url::LISTENER, type_url::SECRET] {
        client.change(now, all(url, Wildcard::Star));
    }
    client.opened(now);
    assert!(client.request(now).unwrap().node.is_some());
    assert!(client.request(now).unwrap().node.is_none());
    assert_eq!(client.request(now), None);
    assert!(drain(&mut client).contains(&Event::RateLimited));
    let later = client.deadline().unwrap();
    assert!(later > now + Duration::from_millis(999) && later < now + Duration::from_millis(1001));
    assert!(client.request(later).is_some());
}

#[test]
fn silence_is_doubted() {
    let (mut client, now) = open::<Incremental>(all(type_url::CLUSTER, Wildcard::Star));
    client.request(now).unwrap();
    client.response(now, delta(type_url::CLUSTER, "1", vec![], &[]));
    updates(&mut client);
    let minutes = |n: u64| now + Duration::from_secs(60 * n);
    client.alive(minutes(5));
    client.tick(minutes(15));
    client.tick(minutes(16));
    let events = drain(&mut client);
    assert!(matches!(&events[0], Event::Abandon { reason } if reason.contains("660 s")), "{events:?}");
    client.closed(minutes(16), "doubt");
    assert!(client.deadline().unwrap() <= minutes(16) + Duration::from_millis(500));
}

#[test]
fn restored_resources_need_not_come_again() {
    let now = Instant::now();
    let mut client = Delta::new(settings(), now, 1);
    let resources = vec![("a".to_owned(), "7".to_owned())];
    let type_url = type_url::CLUSTER.to_owned();
    client.change(now, Change::Restore { type_url, version: String::new(), resources });
    client.change(now, all(type_url::CLUSTER, Wildcard::Legacy));
    client.opened(now);
    assert_eq!(client.request(now).unwrap().initial_resource_versions["a"], "7");
}

#[test]
fn waits_between_streams_grow_up_to_their_cap() {
    let half = Duration::from_millis(500);
    let mut backoff = Backoff::new(half, Duration::from_secs(30), fastrand::Rng::with_seed(3));
    let waits: Vec<_> = (0..200).map(|_| backoff.next_wait()).collect();
    assert!(waits[0] < half && waits[1] < half * 2);
    assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(30)));
    assert!(waits.iter().any(|wait| *wait > Duration::from_secs(25)));
    backoff.reset();
    assert!(backoff.next_wait() < half);
}

#[test]
fn errors_of_single_resources_are_passed_on() {
    let (mut client, now) = open::<Incremental>(subscribe(type_url::ENDPOINTS, &["a", "b"]));
    client.request(now).unwrap();
    let error = |name: &str| pb::ResourceError {
        resource_name: Some(pb::ResourceName { name: name.to_owned(), ..Default::default() }),
        error_detail: Some(crate::pb::google::rpc::Status {
            code: 7,
            message: "not for you".to_owned(),
            ..Default::default()
        }),
    };
    let mut response = delta(type_url::ENDPOINTS, "1", Vec::new(), &[]);
    response.resource_errors = vec![error("a"), error("")];
    client.response(now, response);
    let (type_url, name) = (type_url::ENDPOINTS.to_owned(), "a".to_owned());
    let expected =
        Event::ResourceError { type_url: type_url.clone(), name, code: 7, message: "not for you".into() };
    assert_eq!(drain(&mut client), [expected]);
    assert_eq!(client.request(now).unwrap().response_nonce, "1", "the response itself is in order");
    // Who was answered is not waited for.
    let late = now + Duration::from_secs(20);
    client.tick(late);
    let timeouts: Vec<Event> =
        drain(&mut client).into_iter().filter(|e| matches!(e, Event::FetchTimeout { .. })).collect();
    assert_eq!(timeouts, [Event::FetchTimeout { type_url, name: Some("b".to_owned()) }]);
}

#[test]
fn globs_are_not_asked_for() {
    let glob = "xdstp://cp/envoy.config.cluster.v3.Cluster/all/*?env=x";
    let mut client = Machine::<Incremental>::new(settings(), Instant::now(), 1);
    client.change(Instant::now(), subscribe(type_url::CLUSTER, &[glob]));
    let events = drain(&mut client);
    assert!(matches!(&events[..], [Event::Unsupported { name, .. }] if name == glob), "{events:?}");
}

#[test]
fn a_host_without_a_virtual_host_does_not_exist() {
    let (mut client, now) = open::<Incremental>(subscribe(type_url::VIRTUAL_HOST, &["t/nobody"]));
    client.request(now).unwrap();
    let mut nothing = resource("t/nobody", 0, None);
    nothing.version.clear();
    nothing.aliases = vec!["t/nobody".to_owned()];
    client.response(now, delta(type_url::VIRTUAL_HOST, "1", vec![nothing], &[]));
    let update = updates(&mut client).remove(0);
    assert_eq!((update.added.len(), update.removed), (0, vec!["t/nobody".to_owned()]));
    client.verdict(now, update.id, Verdict::Accepted);
    assert!(client.request(now).unwrap().error_detail.is_none());
}
