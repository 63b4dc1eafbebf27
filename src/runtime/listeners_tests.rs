//! Real sockets and worker threads; the control thread is the test's own.

#[path = "listeners_rig.rs"]
mod rig;

use std::io::{Read, Write};
use std::net::Shutdown;

use outrigger_control_api::pb::envoy::config::listener::v3 as pb;
use outrigger_control_api::{load, Format};
use prost::Message as _;

use self::rig::*;
use super::*;
use crate::telemetry::metrics::snapshot;

#[test]
fn connections_in_a_tight_loop_survive_200_updates() {
    let mut rig = Rig::new(2, GRADUAL);
    assert_eq!(rig.apply(&listener("main", 0, "", &[http("0")])).unwrap(), Applied::Added);
    let port = rig.port("main");
    let (good, lost) = under_connects(port, |good| {
        for number in 1..=200 {
            let before = good();
            let (options, expected) = match number % 2 {
                0 => (another(number / 2), Applied::Replaced),
                _ => (another((number - 1) / 2), Applied::InPlace),
            };
            let options = if number == 1 { String::new() } else { options };
            let applied = rig.apply(&listener("main", 0, &options, &[http(&number.to_string())]));
            assert_eq!(applied.unwrap(), expected, "update {number}");
            eventually("requests between two updates", || good() > before);
        }
        assert!(ask(&mut connect(port).unwrap()).unwrap().ends_with("\r\n200"));
    });
    assert!(lost.is_empty(), "{} of {good} lost: {:?}", lost.len(), &lost[..lost.len().min(5)]);
    assert_eq!(rig.port("main"), port);
    rig.counts(&[
        ("listener_added", 1),
        ("listener_modified", 200),
        ("listener_in_place_updated", 100),
        ("listener_create_success", 402),
        ("listener_removed", 0),
        ("total_listeners_active", 1),
        ("total_listeners_draining", 100),
        ("total_filter_chains_draining", 100),
    ]);
}

#[test]
fn a_renamed_listener_refuses_nobody() {
    let mut rig = Rig::new(2, GRADUAL);
    let port = rig.apply_somewhere("main0", "0");
    let (good, lost) = under_connects(port, |good| {
        for number in 1..=50 {
            let before = good();
            let new = rig.compile(&listener(&format!("main{number}"), port, "", &[http("x")]));
            let results = rig.manager.update(&[&format!("main{}", number - 1)], vec![new]);
            assert!(matches!(results[..], [Ok(Applied::Added)]), "{results:?}");
            eventually("requests between two updates", || good() > before);
        }
    });
    assert!(lost.is_empty(), "{} of {good} lost: {:?}", lost.len(), &lost[..lost.len().min(5)]);
    let names: Vec<_> = rig.manager.names(Origin::Dynamic).collect();
    assert_eq!(names, ["main50".into()]);
    rig.counts(&[("listener_added", 51), ("listener_removed", 50), ("total_listeners_active", 1)]);
}

#[test]
fn an_update_in_place_keeps_unchanged_chains() {
    let mut rig = Rig::new(1, AT_ONCE);
    rig.apply(&listener("main", 0, "", &[http("old"), tcp("relay")])).unwrap();
    let port = rig.port("main");
    let mut session = connect_from_two(port);
    let mut origin = rig.relayed();
    passes(&mut session, &mut origin);
    let mut http_client = connect(port).unwrap();
    assert!(!closes(&ask(&mut http_client).unwrap()));
    let before = rig.manager.get("main").unwrap();

    // The order of chains may change too.
    let applied = rig.apply(&listener("main", 0, "", &[tcp("relay"), http("new")]));
    assert_eq!(applied.unwrap(), Applied::InPlace);
    let after = rig.manager.get("main").unwrap();
    assert!(Arc::ptr_eq(&before.chains[1], &after.chains[0]), "the unchanged chain is another one");
    assert!(before.chains[0].retirement.has_begun() && !after.chains[0].retirement.has_begun());
    rig.counts(&[("total_filter_chains_draining", 1), ("total_listeners_draining", 0)]);

    passes(&mut session, &mut origin);
    let mut other = connect_from_two(port);
    passes(&mut other, &mut rig.relayed());
    let answer = ask(&mut connect(port).unwrap()).unwrap();
    assert!(answer.ends_with("new") && !closes(&answer), "{answer}");
    // Who is there keeps what it has, and is asked to leave.
    let answer = ask(&mut http_client).unwrap();
    assert!(answer.ends_with("old") && closes(&answer), "{answer}");
    drop(http_client);

    // A session on a chain that changed has no deadline.
    assert_eq!(rig.apply(&listener("main", 0, "", &[tcp("other"), http("new")])).unwrap(), Applied::InPlace);
    drop((before, after));
    eventually("the first drain is over", || {
        rig.manager.tick(Instant::now() + Duration::from_secs(3600));
        rig.manager.draining.len() == 1
    });
    passes(&mut session, &mut origin);
    passes(&mut connect_from_two(port), &mut rig.relayed());
    rig.counts(&[("total_filter_chains_draining", 1)]);
    // Nothing drains any more once it has gone by itself.
    drop((session, origin, other));
    eventually("the end of the drain", || {
        rig.manager.tick(Instant::now() + Duration::from_secs(3600));
        rig.manager.draining.is_empty()
    });
    rig.counts(&[("total_filter_chains_draining", 0)]);
}

#[test]
fn a_drain_with_an_end_closes_what_is_left() {
    let policy = DrainPolicy { time: Duration::from_secs(45), gradual: true, ends: true };
    let mut rig = Rig::new(1, policy);
    rig.apply(&listener("main", 0, "", &[http("old"), tcp("relay")])).unwrap();
    let port = rig.port("main");
    let (mut session, mut idle) = (connect_from_two(port), connect(port).unwrap());
    let mut origin = rig.relayed();
    ask(&mut idle).unwrap();
    let begin = Instant::now();
    assert_eq!(rig.apply(&listener("main", 0, &another(1), &[http("new")])).unwrap(), Applied::Replaced);
    let mut fresh = connect(port).unwrap();
    ask(&mut fresh).unwrap();
    rig.counts(&[("total_listeners_draining", 1), ("total_filter_chains_draining", 0)]);
    rig.manager.tick(begin + Duration::from_secs(40));
    passes(&mut session, &mut origin);
    rig.counts(&[("total_listeners_draining", 1)]);

    rig.manager.tick(begin + Duration::from_secs(60));
    rig.counts(&[("total_listeners_draining", 0)]);
    let mut rest = Vec::new();
    assert_eq!(session.read_to_end(&mut rest).unwrap_or(0), 0);
    assert_eq!(idle.read_to_end(&mut rest).unwrap_or(0), 0);
    assert_eq!(origin.read_to_end(&mut rest).unwrap_or(0), 0);
    assert!(!closes(&ask(&mut fresh).unwrap()), "the new listener's connections are not concerned");
}

/// As observed of Envoy 1.40: a request that is cut counts as one that the client has reset.
#[test]
fn a_request_that_is_cut_at_the_end_of_a_drain_is_counted() {
    let policy = DrainPolicy { time: Duration::from_secs(1), gradual: true, ends: true };
    let mut rig = Rig::new(1, policy);
    let answer = "direct_response: { status: 200, body: { inline_string: 'x' } }";
    let hanging =
        http("x").replace(answer, "route: { cluster: echo }").replace("prefix: http", "prefix: hanging");
    rig.apply(&listener("main", 0, "", &[hanging])).unwrap();
    let mut client = connect(rig.port("main")).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").unwrap();
    let mut origin = rig.relayed();
    assert!(origin.read(&mut [0; 1024]).unwrap() > 0);
    // Its statistics are shown for as long as something holds them.
    let held = rig.manager.get("main");
    assert!(rig.manager.remove("main"));
    rig.manager.tick(Instant::now() + Duration::from_secs(2));
    assert_eq!(client.read(&mut [0; 1024]).unwrap_or(0), 0);
    assert_eq!(origin.read(&mut [0; 1024]).unwrap_or(0), 0);
    let number = |name: &str| snapshot().number(&format!("http.hanging.{name}")).unwrap_or(0);
    // The last of them to change.
    eventually("its statistics", || number("downstream_cx_active") == 0);
    let expected = [
        ("downstream_rq_rx_reset", 1),
        ("downstream_rq_completed", 1),
        ("downstream_cx_destroy", 1),
        ("downstream_cx_destroy_local", 1),
        ("downstream_cx_destroy_active_rq", 1),
        ("downstream_rq_active", 0),
    ];
    for (name, value) in expected {
        assert_eq!(number(name), value, "{name}");
    }
    drop(held);
}

#[test]
fn the_share_of_closes_follows_the_drain_time() {
    let mut rig = Rig::idle(1, GRADUAL);
    rig.apply(&listener("main", 0, "", &[http("old")])).unwrap();
    let old = rig.manager.get("main").unwrap();
    let before = Instant::now();
    rig.apply(&listener("main", 0, &another(1), &[http("old")])).unwrap();
    let new = rig.manager.get("main").unwrap();
    let share = |listener: &Listener, after: u64| {
        let now = before + Duration::from_secs(after);
        let retirement = &listener.chains[0].retirement;
        (0..600_000).step_by(100).filter(|draw| retirement.announces_close(now, || *draw)).count()
    };
    assert!(share(&old, 1) <= 10);
    assert!((1_400..=1_500).contains(&share(&old, 150)), "a quarter of 6000");
    assert!((4_400..=4_500).contains(&share(&old, 450)));
    assert_eq!(share(&old, 700), 6_000);
    assert_eq!(share(&new, 700), 0);
}

#[test]
fn another_address_is_bound_before_the_old_one_is_closed() {
    let mut rig = Rig::new(2, AT_ONCE);
    rig.apply(&listener("main", 0, "", &[http("old")])).unwrap();
    let old = rig.port("main");
    let mut client = connect(old).unwrap();
    ask(&mut client).unwrap();

    // Somebody else's port: nothing changes.
    let taken = rig.echo.local_addr().unwrap().port();
    let error = rig.apply(&listener("main", taken, "", &[http("new")])).unwrap_err().to_string();
    assert_eq!(error, format!("listener main: address 127.0.0.1:{taken} is in use"));
    assert!(ask(&mut connect(old).unwrap()).unwrap().ends_with("old"));
    assert!(!closes(&ask(&mut client).unwrap()));
    rig.counts(&[("listener_create_failure", 1), ("listener_modified", 0), ("total_listeners_draining", 0)]);
    let new = rig.apply_somewhere("main", "new");
    assert_eq!(rig.port("main"), new);
    assert!(ask(&mut connect(new).unwrap()).unwrap().ends_with("new"));
    let answer = ask(&mut client).unwrap();
    assert!(answer.ends_with("old") && closes(&answer), "{answer}");
    refuses(old);
    rig.counts(&[
        ("listener_modified", 1),
        ("listener_in_place_updated", 0),
        ("total_listeners_draining", 1),
    ]);
    eventually("the old sockets are closed", || {
        rig.manager.tick(Instant::now());
        rig.manager.closing.is_empty()
    });
}

#[test]
fn a_removed_listener_serves_who_waits_and_then_refuses() {
    let mut rig = Rig::idle(1, AT_ONCE);
    rig.apply(&listener("main", 0, "", &[http("old")])).unwrap();
    let port = rig.port("main");
    // In the accept queue: no worker runs yet.
    let mut waiting: Vec<_> = (0..5).map(|_| connect(port).unwrap()).collect();
    assert!(rig.manager.remove("main"));
    assert!(!rig.manager.remove("main") && !rig.manager.is_closed());
    rig.start();
    for client in &mut waiting {
        let answer = ask(client).unwrap();
        assert!(answer.ends_with("old") && closes(&answer), "{answer}");
    }
    refuses(port);
    eventually("all is closed", || rig.manager.is_closed());
    assert!(rig.manager.statuses().load().is_empty());
    rig.counts(&[("listener_removed", 1), ("total_listeners_active", 0), ("total_listeners_draining", 1)]);
}

/// The swap is there as soon as it is made, whatever the workers do.
#[test]
fn a_busy_worker_delays_no_swap() {
    let mut rig = Rig::idle(1, AT_ONCE);
    rig.apply(&listener("main", 0, "", &[http("0")])).unwrap();
    let mut client = connect(rig.port("main")).unwrap();
    for number in 1..=100 {
        let body = number.to_string();
        assert_eq!(rig.apply(&listener("main", 0, "", &[http(&body)])).unwrap(), Applied::InPlace);
        assert_eq!(rig.manager.get("main").unwrap().chains.len(), 1);
    }
    rig.start();
    // It connected under the first, and is accepted under the last.
    assert!(ask(&mut client).unwrap().ends_with("\r\n100"));
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut rig = Rig::new(1, AT_ONCE);
    let fixed = rig.compile(&listener("fixed", 0, "", &[http("static")]));
    rig.manager.start(vec![Arc::new(fixed)]).unwrap();
    let error = rig.apply(&listener("fixed", 0, "", &[http("other")])).unwrap_err();
    assert!(matches!(&error, ListenerError::Static(name) if &**name == "fixed"));
    assert_eq!(error.to_string(), "listener fixed is static: only the bootstrap can say what it is");
    assert!(!rig.manager.remove("fixed"));
    assert!(ask(&mut connect(rig.port("fixed")).unwrap()).unwrap().ends_with("static"));

    let port = rig.apply_somewhere("one", "one");
    let error = rig.apply(&listener("two", port, "", &[http("two")])).unwrap_err().to_string();
    assert_eq!(error, format!("listener two: 127.0.0.1:{port} is the address of the listener \"one\" too"));
    rig.apply(&listener("three", 0, "", &[http("three")])).unwrap();
    let error = rig.apply(&listener("three", port, "", &[http("three")])).unwrap_err();
    assert!(matches!(error, ListenerError::Duplicate { .. }));
    let error = rig.apply(&listener("one", port, ", enable_reuse_port: false", &[http("one")])).unwrap_err();
    assert_eq!(error.to_string(), "listener one: enable_reuse_port cannot be changed by an update");
    assert!(ask(&mut connect(port).unwrap()).unwrap().ends_with("one"));
    rig.counts(&[
        ("listener_added", 3),
        ("listener_modified", 0),
        ("total_listeners_active", 3),
        ("total_listeners_draining", 0),
    ]);
}

#[test]
fn an_equal_listener_changes_nothing() {
    let mut rig = Rig::idle(1, AT_ONCE);
    let yaml = listener("main", 0, "", &[http("same"), tcp("relay")]);
    rig.apply(&yaml).unwrap();
    let message = load::<pb::Listener>(&yaml, Format::Yaml).unwrap().message;
    // Encoded in another order of fields.
    let name = pb::Listener { name: "main".to_owned(), ..pb::Listener::default() };
    let rest = pb::Listener { name: String::new(), ..message };
    let bytes = [rest.encode_to_vec(), name.encode_to_vec()].concat();
    let again = rig.compile_message(&pb::Listener::decode(bytes.as_slice()).unwrap());
    assert_eq!(rig.manager.apply(again, Origin::Dynamic).unwrap(), Applied::Unchanged);
    rig.counts(&[("listener_modified", 0), ("listener_create_success", 1)]);
}

#[test]
fn a_listener_without_a_socket() {
    let mut rig = Rig::new(1, AT_ONCE);
    let unbound = |body: &str| listener("virtual", 1, ", bind_to_port: false", &[http(body)]);
    assert_eq!(rig.apply(&unbound("one")).unwrap(), Applied::Added);
    assert!(rig.manager.is_closed() && !rig.manager.handed_over());
    assert_eq!(rig.port("virtual"), 1);
    assert_eq!(rig.apply(&unbound("two")).unwrap(), Applied::InPlace);
    let error = rig.apply(&listener("other", 1, "", &[http("x")])).unwrap_err();
    assert!(matches!(error, ListenerError::Duplicate { .. }));
    // It gets sockets, and loses them again.
    assert_eq!(rig.apply(&listener("virtual", 0, "", &[http("three")])).unwrap(), Applied::Replaced);
    let port = rig.port("virtual");
    assert!(ask(&mut connect(port).unwrap()).unwrap().ends_with("three"));
    assert_eq!(rig.apply(&unbound("four")).unwrap(), Applied::Replaced);
    refuses(port);
    rig.counts(&[("total_listeners_active", 1), ("listener_create_success", 4)]);
}

#[test]
fn workers_that_share_one_queue() {
    let mut rig = Rig::new(2, AT_ONCE);
    let options = ", enable_reuse_port: false, tcp_backlog_size: 5";
    rig.apply(&listener("main", 0, options, &[http("one")])).unwrap();
    let port = rig.port("main");
    assert!(ask(&mut connect(port).unwrap()).unwrap().ends_with("one"));
    // The queue grows on the same socket.
    let options = ", enable_reuse_port: false, tcp_backlog_size: 50";
    assert_eq!(rig.apply(&listener("main", 0, options, &[http("two")])).unwrap(), Applied::Replaced);
    assert_eq!(rig.port("main"), port);
    assert!(ask(&mut connect(port).unwrap()).unwrap().ends_with("two"));
    eventually("the new backlog", || backlog(port, 50) == Some(50));
    assert!(rig.manager.remove("main"));
    refuses(port);
}

/// The length of the accept queue of a listening socket, as `ss` shows it; `expected` where it is missing.
fn backlog(port: u16, expected: usize) -> Option<usize> {
    let output = std::process::Command::new("ss").args(["-Hltn", &format!("sport = :{port}")]).output();
    let Ok(output) = output else { return Some(expected) };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_ascii_whitespace().nth(2)?.parse().ok()
}

#[test]
fn stopped_listeners_stay_stopped() {
    let mut rig = Rig::new(1, AT_ONCE);
    rig.apply(&listener("in", 0, ", traffic_direction: INBOUND", &[http("in")])).unwrap();
    rig.apply(&listener("out", 0, "", &[http("out")])).unwrap();
    let (inbound, outbound) = (rig.port("in"), rig.port("out"));
    rig.manager.stop(Stop::Inbound);
    refuses(inbound);
    assert!(ask(&mut connect(outbound).unwrap()).unwrap().ends_with("out"));
    rig.counts(&[("listener_stopped", 1), ("total_listeners_active", 2)]);
    let more = listener("more", 0, ", traffic_direction: INBOUND", &[http("more")]);
    assert_eq!(rig.apply(&more).unwrap(), Applied::Unchanged);
    assert!(rig.manager.get("more").is_none());
    rig.manager.stop(Stop::All);
    refuses(outbound);
    eventually("all is closed", || rig.manager.is_closed());
    rig.counts(&[("listener_stopped", 2)]);
}

/// As with a predecessor and a successor process, here in one: two groups of sockets on one port.
#[test]
fn a_changing_set_is_handed_over() {
    let mut first = Rig::new(2, AT_ONCE);
    first.apply(&listener("gone", 0, "", &[http("gone")])).unwrap();
    first.apply(&listener("main", 0, "", &[http("first")])).unwrap();
    let port = first.port("main");
    // Changed, removed and added since the start.
    first.apply(&listener("main", 0, &another(1), &[http("first")])).unwrap();
    first.manager.remove("gone");
    first.manager.tick(Instant::now());
    assert!(!first.manager.handed_over(), "nobody else is there");
    let mut second = Rig::new(1, AT_ONCE);
    second.apply(&listener("main", port, "", &[http("second")])).unwrap();
    assert!(first.manager.handed_over());
    for _ in 0..20 {
        assert!(ask(&mut connect(port).unwrap()).unwrap().ends_with("second"));
    }
    // The rule stays until the first is gone.
    second.manager.tick(Instant::now());
    assert!(second.manager.listeners[0].sockets.as_ref().unwrap().steered);
    first.manager.stop(Stop::All);
    eventually("the first is closed", || first.manager.is_closed());
    second.manager.tick(Instant::now());
    assert!(!second.manager.listeners[0].sockets.as_ref().unwrap().steered);
    let mut client = connect(port).unwrap();
    assert!(ask(&mut client).unwrap().ends_with("second"));
    client.shutdown(Shutdown::Both).unwrap();
}

#[test]
fn an_internal_listener_changes_under_its_connections() {
    let mut rig = Rig::new(2, AT_ONCE);
    let front = tcp("front").replace("127.0.0.2", "127.0.0.1").replace("cluster: echo", "cluster: inside");
    rig.apply(&listener("main", 0, "", &[front])).unwrap();
    let port = rig.port("main");
    assert!(ask(&mut connect(port).unwrap()).is_err(), "nobody is there yet");
    let inside = |options: &str, body: &str| {
        let chain = http(body);
        format!("{{ name: inside, internal_listener: {{}}, filter_chains: [ {chain} ] {options} }}")
    };
    assert_eq!(rig.apply(&inside("", "0")).unwrap(), Applied::Added);
    eventually("the workers know of it", || ask(&mut connect(port).unwrap()).is_ok());
    let mut kept = connect(port).unwrap();
    assert!(ask(&mut kept).unwrap().ends_with("\r\n0"));
    let (good, lost) = under_connects(port, |good| {
        for number in 1..=50 {
            let before = good();
            let options = if number % 2 == 0 { another(number) } else { another(number - 1) };
            rig.apply(&inside(&options, &number.to_string())).unwrap();
            eventually("requests between two updates", || good() > before);
        }
        assert!(ask(&mut connect(port).unwrap()).unwrap().ends_with("\r\n50"));
    });
    assert!(lost.is_empty(), "{} of {good} lost: {:?}", lost.len(), &lost[..lost.len().min(5)]);
    assert!(closes(&ask(&mut kept).unwrap()), "a connection of the first is asked to leave");
    // Those behind a stopped listener still need it.
    let mut client = connect(port).unwrap();
    rig.manager.stop(Stop::All);
    eventually("the socket is closed", || rig.manager.is_closed());
    assert!(ask(&mut client).unwrap().ends_with("\r\n50"));
    assert!(rig.manager.remove("inside"));
}
