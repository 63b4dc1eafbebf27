//! The comparison with what is always there: no proxy and the bare relays, a few tenths of a second each.

#![allow(clippy::unwrap_used, reason = "a test ends with what it cannot do")]

use clap::Parser as _;
use outrigger_load::cli::{Command, CommandLine};
use outrigger_load::compare::result::{Comparison, ScenarioResult, Status};
use outrigger_load::compare::{page, text};
use outrigger_load::generate::task::Stage;

fn compare(flags: &str) -> Comparison {
    let line = ["outrigger-load", "compare", "--cores", "any"].into_iter().chain(flags.split_whitespace());
    let Command::Compare(args) = CommandLine::try_parse_from(line).unwrap().command else {
        unreachable!("a comparison")
    };
    args.compare(env!("CARGO_BIN_EXE_outrigger-load").into(), &Stage::default(), &mut |_| ()).unwrap()
}

fn samples<'a>(scenario: &'a ScenarioResult, peer: &str, key: &str) -> &'a [f64] {
    let peer = scenario.peers.iter().find(|one| one.peer == peer).unwrap();
    peer.samples.get(key).map_or(&[], Vec::as_slice)
}

#[test]
fn every_round_of_everybody_is_accounted_for() {
    let comparison = compare("h1 tcp-bulk --peers none,relay,splice --rounds 2 --seconds 0.2");
    let names: Vec<_> = comparison.scenarios.iter().map(|scenario| scenario.name.as_str()).collect();
    assert_eq!(names, ["h1", "tcp-bulk"]);
    for scenario in &comparison.scenarios {
        // In the order of tables, whatever that of the flag.
        let peers: Vec<_> = scenario.peers.iter().map(|peer| peer.peer.as_str()).collect();
        assert_eq!(peers, ["splice", "relay", "none"]);
        for peer in &scenario.peers {
            assert_eq!(peer.status, Status::Measured, "{}", peer.peer);
            assert_eq!(peer.notes, [""; 0], "{}", peer.peer);
            let run = peer.run.as_ref().unwrap();
            assert!(run.requests.balanced() && run.requests.answered > 0, "{:?}", run.requests);
            assert_eq!(run.requests.answered, run.requests.successful);
            assert_eq!(samples(scenario, &peer.peer, "rate").len(), 2);
            // A relay has used CPU, but no more than a core; who is not there has used none.
            let (cpu, busy) = (samples(scenario, &peer.peer, "cpu"), samples(scenario, &peer.peer, "busy"));
            if peer.peer == "none" {
                assert!(cpu.is_empty() && busy.is_empty());
            } else {
                assert!(cpu.len() == 2 && cpu.iter().all(|us| *us > 0.0), "{cpu:?}");
                assert!(busy.iter().all(|percent| *percent > 0.0 && *percent < 150.0), "{busy:?}");
                assert!(samples(scenario, &peer.peer, "rss").iter().all(|mib| (0.5..500.0).contains(mib)));
            }
        }
    }
    let shown = text(&comparison);
    for row in ["| splice |", "| relay  |", "| none   |"] {
        assert_eq!(shown.lines().filter(|line| line.starts_with(row)).count(), 2, "{shown}");
    }
    assert!(page(&comparison).unwrap().contains("<svg"));
    let json = serde_json::to_string(&comparison).unwrap();
    let read: Comparison = serde_json::from_str(&json).unwrap();
    assert_eq!(text(&read), shown);
}

#[test]
fn who_cannot_do_it_has_no_number() {
    let nobody = "--outrigger /nonexistent/outrigger --rounds 1 --seconds 0.1";
    let comparison = compare(&format!("h1+mtls churn --peers outrigger,nginx,relay,none {nobody}"));
    let state = |scenario: usize, peer: usize| {
        let peer = &comparison.scenarios[scenario].peers[peer];
        (peer.status.clone(), peer.samples.is_empty())
    };
    assert!(matches!(state(0, 0), (Status::Failed { .. }, true)), "{:?}", state(0, 0));
    assert!(matches!(state(0, 2), (Status::NotSupported { .. }, true)), "{:?}", state(0, 2));
    // The way without a proxy is there: mTLS right to the origin.
    assert!(matches!(state(0, 3), (Status::Measured, false)), "{:?}", state(0, 3));
    assert!(matches!(state(1, 0), (Status::Failed { .. }, true)), "{:?}", state(1, 0));
    assert!(matches!(state(1, 1), (Status::NotSupported { .. }, true)), "{:?}", state(1, 1));
}
