//! The generator against the origin, in one process: every protocol, every way to go wrong, and the rule that every
//! request ends in exactly one count.

#![allow(clippy::unwrap_used, reason = "a test ends with what it cannot do")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use clap::Parser as _;
use outrigger_load::cli::{Command, CommandLine};
use outrigger_load::generate::run::run;
use outrigger_load::generate::task::Stage;
use outrigger_load::report::{html, search, show, text};
use outrigger_load::result::RunResult;
use outrigger_load::serve::Server;

/// An origin with these flags, on free ports.
fn serve(flags: &str) -> Server {
    let line = ["outrigger-load", "serve"].into_iter().chain(flags.split_whitespace());
    match CommandLine::try_parse_from(line).unwrap().command {
        Command::Serve(args) => Server::start(&args.settings().unwrap()).unwrap(),
        _ => unreachable!("a serve command"),
    }
}

/// A run with these flags, their `{}` replaced by an address.
fn load(address: SocketAddr, flags: &str) -> RunResult {
    let flags = flags.replace("{}", &address.to_string());
    let line = ["outrigger-load", "run", "-q"].into_iter().chain(flags.split(' '));
    let Command::Run(args) = CommandLine::try_parse_from(line).unwrap().command else {
        unreachable!("a run")
    };
    let plan = args.plan().unwrap();
    let stage = Arc::new(Stage::default());
    let result = match args.find_p99_under {
        Some(goal) => search::search(&plan, &stage, goal, &mut show::Shown::new(true, None)).unwrap(),
        None => run(&plan, &stage, &mut |_| ()).unwrap(),
    };
    assert!(result.requests.balanced(), "{flags}: {:?}", result.requests);
    assert_eq!(result.by_status.values().sum::<u64>(), result.requests.answered, "{flags}");
    result
}

fn http() -> Server {
    serve("-l http=127.0.0.1:0")
}

#[test]
fn every_protocol_makes_its_round_trips() {
    let listen = ["http", "tls+http", "echo", "sink", "source", "tls+echo"];
    let flags: String = listen.iter().map(|kind| format!(" -l {kind}=127.0.0.1:0")).collect();
    let server = serve(&flags);
    let [http, https, echo, sink, source, tls_echo] = server.addresses[..] else {
        unreachable!("six listeners")
    };
    let runs = [
        (http, "http://{}/", "200"),
        (http, "http://{}/ --size 300k -H x-load-size:200k", "200"),
        (http, "http://{}/ -H x-load-chunked:1", "200"),
        (http, "http://{}/ -X HEAD", "200"),
        (https, "https://{}/ --insecure", "200"),
        (http, "h2c://{}/ -m 8", "200"),
        (http, "h2c://{}/ -m 3 --size 300k -H x-load-size:200k", "200"),
        (https, "h2://{}/ -m 8 --insecure", "200"),
        (http, "grpc://{} -m 4", "grpc-0"),
        (http, "grpc://{} --grpc server-stream", "grpc-0"),
        (http, "grpc://{} --grpc client-stream --size 20k", "grpc-0"),
        (http, "grpc://{} --grpc bidi -m 4", "grpc-0"),
        (https, "grpcs://{} --insecure", "grpc-0"),
        (http, "ws://{}/ -m 2 --size 70k", "ok"),
        (https, "wss://{}/ --insecure", "ok"),
        (echo, "tcp://{} -m 2", "ok"),
        (echo, "tcp://{} --size 1m", "ok"),
        (tls_echo, "tls://{} --size 100k --insecure", "ok"),
        (sink, "tcp://{} --tcp upload", "ok"),
        (source, "tcp://{} --tcp download", "ok"),
        (http, "tcp://{} --handshake", "ok"),
    ];
    for (address, flags, status) in runs {
        for schedule in ["", " -r 20000", " -t 2 -r 20000 --poisson"] {
            let flags = format!("{flags}{schedule} -c 4 -n 200");
            let result = load(address, &flags);
            assert_eq!(result.by_status.get(status), Some(&200), "{flags}: {:?}", result.requests);
            assert_eq!((result.requests.failed, result.connections.failed), (0, 0), "{flags}");
            assert_eq!(result.latency.corrected.count, 200, "{flags}");
        }
    }
}

#[test]
fn streams_carry_the_messages_that_were_asked_for() {
    let server = http();
    for (kind, sent, received) in
        [("server-stream", 1, 7), ("client-stream", 7, 1), ("bidi", 7, 7), ("unary", 1, 1)]
    {
        let result =
            load(server.addresses[0], &format!("grpc://{{}} --grpc {kind} --messages 7 -c 2 -m 2 -n 50"));
        let traffic = &result.traffic;
        assert_eq!((traffic.sent_messages, traffic.received_messages), (50 * sent, 50 * received), "{kind}");
    }
}

#[test]
fn faults_end_in_the_count_of_their_reason() {
    for (fault, http1, http2) in [
        ("reset", &["reset", "closed"][..], &["stream-reset"][..]),
        ("close", &["closed"], &["closed"]),
        ("half", &["closed"], &["stream-reset"]),
        ("stall", &["timeout"], &["timeout"]),
    ] {
        let server = serve(&format!("-l http=127.0.0.1:0 --fault-rate 0.2 --fault {fault} --size 1k"));
        for (flags, reasons) in [("http://{}/", http1), ("h2c://{}/ -m 4", http2)] {
            let result = load(server.addresses[0], &format!("{flags} -c 4 -n 60 --timeout 200ms"));
            let requests = &result.requests;
            assert_eq!(requests.sent, 60, "{fault} {flags}");
            assert!(requests.failed > 0 && requests.answered > 0, "{fault} {flags}: {requests:?}");
            let named = requests.failed_by_reason.keys().all(|reason| reasons.contains(&reason.as_str()));
            assert!(named, "{fault} {flags}: {requests:?}");
        }
    }
    let server = serve("-l http=127.0.0.1:0 --fault-rate 0.3 --fault 503");
    let result = load(server.addresses[0], "http://{}/ -c 4 -n 200");
    assert_eq!(result.requests.answered, 200);
    assert_eq!(result.by_status["200"], result.requests.successful);
    assert!(result.by_status["503"] > 0);
}

#[test]
fn what_is_no_answer_is_shown() {
    // An echo answers a request of HTTP with the request.
    let origin = serve("-l echo=127.0.0.1:0");
    let result = load(origin.addresses[0], "http://{}/x -c 1 -n 3 --timeout 2s");
    assert_eq!(result.requests.failed_by_reason, [("protocol".to_owned(), 3)].into());
    assert!(result.requests.unexpected.starts_with(r"GET /x HTTP/1.1\r\n"), "{}", result.requests.unexpected);
    assert!(text(&result).contains(r"  no answer: GET /x HTTP/1.1\r\n"), "{}", text(&result));
}

#[test]
fn requests_without_an_end_are_in_flight_or_not_sent() {
    let server = serve("-l http=127.0.0.1:0 --fault-rate 1 --fault stall");
    let result = load(server.addresses[0], "http://{}/ -c 3 -d 200ms --grace 50ms");
    let requests = &result.requests;
    assert_eq!((requests.sent, requests.in_flight, requests.answered), (3, 3, 0));
    let result = load(server.addresses[0], "h2c://{}/ -c 1 -m 5 -r 500 -d 200ms --grace 50ms");
    let requests = &result.requests;
    assert_eq!((requests.scheduled, requests.in_flight, requests.unsent), (100, 5, 95));
    // What never had an answer counts with the time it waited: here from 50 to 250 ms.
    let corrected = &result.latency.corrected;
    assert_eq!(corrected.count, 100);
    assert!(corrected.p50_us >= 100_000.0 && corrected.min_us >= 50_000.0, "{corrected:?}");
}

#[test]
fn nobody_there_is_told() {
    let gone = http().addresses[0];
    let result = load(gone, "http://{}/ -c 2 -r 100 -d 200ms --grace 10ms");
    assert_eq!((result.requests.scheduled, result.requests.unsent), (20, 20));
    assert!(result.connections.failed_by_reason["refused"] > 0);
    assert_eq!(result.connections.opened, 0);
}

#[test]
fn a_stall_of_the_origin_shows_in_the_open_loop_and_hides_in_the_closed_one() {
    // Every 500 requests everything stops for 100 ms.
    let server = serve("-l http=127.0.0.1:0 --stall 500/100ms");
    let closed = load(server.addresses[0], "http://{}/ -c 1 -n 2000");
    let open = load(server.addresses[0], "http://{}/ -c 1 -r 1000 -d 2s");
    let (closed, corrected) = (&closed.latency.uncorrected, &open.latency.corrected);
    // One request in 500 waits in the closed loop: far too few for its p99, though its maximum knows.
    assert!(closed.max_us >= 99_000.0 && closed.p99_us < 50_000.0, "{closed:?}");
    // In the open loop a hundred more are due meanwhile, and wait as well.
    assert!(corrected.p99_us >= 80_000.0, "{corrected:?}");
    assert!(open.latency.uncorrected.p99_us < corrected.p99_us / 2.0, "{:?}", open.latency.uncorrected);
}

#[test]
fn connections_end_when_either_side_wants() {
    let server = serve("-l http=127.0.0.1:0 --close-after 10");
    for flags in ["http://{}/", "h2c://{}/"] {
        let result = load(server.addresses[0], &format!("{flags} -c 2 -n 200"));
        assert_eq!(result.requests.answered, 200, "{flags}");
        assert!(result.connections.opened >= 20, "{flags}: {:?}", result.connections.opened);
    }
    let server = http();
    for flags in ["http://{}/", "h2c://{}/"] {
        let result = load(server.addresses[0], &format!("{flags} -c 1 -n 200 --requests-per-connection 20"));
        assert_eq!(result.requests.answered, 200, "{flags}");
        assert!((10..=11).contains(&result.connections.opened), "{flags}: {}", result.connections.opened);
    }
}

#[test]
fn headers_of_a_request_rule_its_answer() {
    let server = http();
    let address = server.addresses[0];
    for scheme in ["http", "h2c"] {
        let result =
            load(address, &format!("{scheme}://{{}}/ -n 20 -c 2 -H x-load-status:404 -H x-load-size:7"));
        assert_eq!((result.by_status["404"], result.requests.successful), (20, 0));
        assert_eq!(result.traffic.body_bytes, 140);
        let result = load(address, &format!("{scheme}://{{}}/ -n 20 -c 2 -H x-load-delay:uniform:20ms-30ms"));
        assert!(result.latency.uncorrected.min_us >= 20_000.0, "{scheme}");
        let slow = "-H x-load-size:40 -H x-load-slow:10/5ms";
        let result = load(address, &format!("{scheme}://{{}}/ -n 20 -c 2 {slow}"));
        assert_eq!(result.traffic.body_bytes, 800);
        assert!(result.latency.uncorrected.min_us >= 20_000.0, "{scheme}");
    }
}

/// A CA, and certificates of it for a server and a client, as files: `(ca, cert, key)`.
fn certificates(folder: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let cert = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let put = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    (put("ca.pem", ca_pem), put("cert.pem", cert.pem()), put("key.pem", key.serialize_pem()))
}

#[test]
fn tls_checks_both_sides_and_resumes_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, cert, key) = certificates(folder.path());
    let (ca, cert, key) = (ca.display(), cert.display(), key.display());
    let server = serve(&format!("-l tls+http=127.0.0.1:0 --cert {cert} --key {key} --client-ca {ca}"));
    let address = server.addresses[0];
    let result = load(address, &format!("https://{{}}/ -n 20 -c 2 --ca {ca} --cert {cert} --key {key}"));
    assert_eq!((result.requests.answered, result.work.tls.as_str()), (20, "mtls"));
    assert!(result.connections.tls.contains("X25519MLKEM768"), "{}", result.connections.tls);
    let result = load(address, &format!("https://{{}}/ -r 100 -d 100ms -c 2 --ca {ca}"));
    assert_eq!(result.requests.answered, 0);

    let server = serve("-l tls+http=127.0.0.1:0");
    let address = server.addresses[0];
    let result = load(address, &format!("https://{{}}/ -r 100 -d 100ms -c 2 --ca {ca}"));
    assert_eq!((result.requests.answered, result.connections.opened), (0, 0));
    assert!(result.connections.failed_by_reason["tls"] > 0);
    let full = load(address, "tls://{} --handshake --insecure -c 2 -n 20");
    assert_eq!((full.requests.answered, full.connections.resumed), (20, 0));
    let resumed = load(address, "tls://{} --handshake --resume --insecure -c 2 -n 20");
    assert_eq!(resumed.requests.answered, 20);
    assert!(resumed.connections.resumed >= 16, "{}", resumed.connections.resumed);
}

#[test]
fn a_run_that_is_stopped_has_a_valid_result() {
    let server = http();
    let target = format!("http://{}/", server.addresses[0]);
    let line = ["outrigger-load", "run", &target, "-d", "1h", "-r", "500", "--interval", "50ms"];
    let Command::Run(args) = CommandLine::try_parse_from(line).unwrap().command else {
        unreachable!("a run")
    };
    let stage = Arc::new(Stage::default());
    let mut intervals = 0;
    let result = run(&args.plan().unwrap(), &stage, &mut |_| {
        intervals += 1;
        stage.stop.store(intervals >= 3, Ordering::Relaxed);
    })
    .unwrap();
    assert!(result.interrupted && result.requests.balanced() && result.requests.answered > 0);
    assert!(result.measured_s < 60.0, "{}", result.measured_s);
    let rate = result.rates.offered_per_s;
    assert!((400.0..600.0).contains(&rate), "{rate}");
}

#[test]
fn the_search_finds_what_connections_and_delay_allow() {
    // Four connections with 10 ms an answer: 400 a second at most.
    let server = serve("-l http=127.0.0.1:0 --delay 10ms");
    let result = load(server.addresses[0], "http://{}/ -c 4 -r 100 -d 400ms --find-p99-under 60ms");
    let best = result.search.iter().filter(|trial| trial.kept).map(|trial| trial.rate).fold(0.0, f64::max);
    // One answer that a busy machine delays is a hundredth of a trial, so the least may be missed by a step.
    assert!((50.0..=500.0).contains(&best), "{:?}", result.search);
    assert!(result.search.iter().any(|trial| !trial.kept && trial.rate <= 800.0), "{:?}", result.search);
}

#[test]
fn results_survive_json_and_become_text_and_a_page() {
    let server = http();
    let closed = load(server.addresses[0], "http://{}/ -c 2 -d 300ms --name one<two");
    let open = load(server.addresses[0], "h2c://{}/ -c 2 -r 500 -d 300ms --warmup 50ms");
    // Nothing of the warm-up counts.
    assert_eq!(open.requests.scheduled, 150);
    let json = serde_json::to_string(&closed).unwrap();
    let back: RunResult = serde_json::from_str(&json).unwrap();
    assert_eq!(back.requests, closed.requests);
    assert!(!back.series.is_empty());
    assert_eq!(
        back.latency.corrected.buckets.iter().map(|bucket| bucket.count).sum::<u64>(),
        back.requests.answered
    );
    let page = html::page(&[back, open.clone()]).unwrap();
    assert_eq!(page.matches("<svg").count(), 3);
    assert!(page.contains("one&lt;two") && !page.contains("one<two") && !page.contains("http-equiv"));
    assert!(text::text(&open).contains("uncorrected"));
}
