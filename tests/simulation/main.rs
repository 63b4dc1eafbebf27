//! A fleet of sidecars before a thousand hosts, for an hour of virtual time: hosts that fail, a zone that is lost, hosts
//! that flap, hosts that are slow.
//!
//! What hosts do depends on time alone, so sidecars do not feel each other, and each goes through its whole hour on its
//! own, request by request; nothing is sampled or scaled up but the comparisons in the table and the figure, which have
//! a twentieth of the sidecars (the table says so). What is real and what is made up is said in [`sidecar`].
//!
//! - `OUTRIGGER_SIDECARS=10000` is the whole fleet; without it there are enough to see every invariant at work.
//! - `OUTRIGGER_SEED=<seed>` plays the sidecar of that seed alone; a failure prints its line.
//! - `OUTRIGGER_FIGURE=1` draws `docs/plots/zone-outage.svg` anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, missing_docs)]

mod figure;
mod sidecar;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

use sidecar::{Means, Report, Sidecar, RECOVERY};
use world::{World, END, FAILING, FLAPPING, OUTAGE, SECOND, SLOW};

const WORLD: World = World { hosts: 1_000 };
const FIRST_SEED: u64 = 20_261_121;

const ALL: Means = Means { outliers: true, retries: true, suspects: true, checks: true };
const NOTHING: Means = Means { outliers: false, retries: false, suspects: false, checks: false };

/// What is compared, by name.
const COMPARED: [(&str, Means); 5] = [
    ("nothing", NOTHING),
    ("outlier detection", Means { outliers: true, ..NOTHING }),
    ("and retries", Means { outliers: true, retries: true, ..NOTHING }),
    ("and hosts that refuse are passed over", Means { checks: false, ..ALL }),
    ("and health checks", ALL),
];

fn set(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Tells how to repeat what fails.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("OUTRIGGER_SEED={} cargo test --test simulation whatever -- --nocapture", self.0);
        }
    }
}

fn play(seed: u64, means: Means) -> Report {
    let replay = Replay(seed);
    let report = Sidecar::new(seed, WORLD, means).run();
    drop(replay);
    report
}

/// So many sidecars, on all cores.
fn fleet(sidecars: u64, means: Means) -> Report {
    let next = AtomicU64::new(0);
    let whole = Mutex::new(Report::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut sum = Report::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= sidecars {
                        break;
                    }
                    sum.add(&play(
                        FIRST_SEED.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                        means,
                    ));
                }
                whole.lock().expect("no sidecar has failed").add(&sum);
            });
        }
    });
    whole.into_inner().expect("no sidecar has failed")
}

/// Of the requests that came within these seconds, how many were lost, in percent.
fn lost(report: &Report, (from, to): (u64, u64)) -> f64 {
    let sum = |of: &[u32]| of[from as usize..to as usize].iter().map(|count| f64::from(*count)).sum::<f64>();
    100.0 * sum(&report.lost) / sum(&report.sent).max(1.0)
}

/// The share of first tries that went to the zone, in percent.
fn zone(report: &Report, (from, to): (u64, u64)) -> f64 {
    let sum = |of: &[u32]| of[from as usize..to as usize].iter().map(|count| f64::from(*count)).sum::<f64>();
    100.0 * sum(&report.zone) / sum(&report.sent).max(1.0)
}

#[test]
fn whatever_hosts_do_limits_hold_and_load_follows_health() {
    if let Some(seed) = set("OUTRIGGER_SEED") {
        for (name, means) in COMPARED {
            let report = play(seed, means);
            println!("OUTRIGGER_SEED={seed}, {name}: {} tries, digest {:016x}", report.tries, report.digest);
        }
        return;
    }
    let sidecars = set("OUTRIGGER_SIDECARS").unwrap_or(60).max(1);
    let started = std::time::Instant::now();
    let mut reports = Vec::new();
    println!("percent of requests lost        | failing | outage: first minute | rest | flapping | slow | the hour | sidecars");
    for (name, means) in COMPARED {
        let count = if name == COMPARED[4].0 { sidecars } else { (sidecars / 20).max(10).min(sidecars) };
        let report = fleet(count, means);
        println!(
            "{name:<38} | {:.3} | {:.3} | {:.4} | {:.3} | {:.3} | {:.4} | {count}",
            lost(&report, FAILING),
            lost(&report, (OUTAGE.0, OUTAGE.0 + 60)),
            lost(&report, (OUTAGE.0 + 60, OUTAGE.1)),
            lost(&report, FLAPPING),
            lost(&report, SLOW),
            lost(&report, (0, END)),
        );
        reports.push((name, count, report));
    }
    let all = &reports[4].2;
    println!(
        "{sidecars} sidecars in {:.0} s: {} requests, {} tries, {} retries, {} refused by the budget, {} by max_requests; \
         at most {} hosts ejected, {} suspicions",
        started.elapsed().as_secs_f64(),
        all.sent.iter().map(|sent| u64::from(*sent)).sum::<u64>(),
        all.tries,
        all.retries,
        all.over_budget,
        all.overflow,
        all.ejected,
        all.suspected,
    );
    // Each of them is worth something.
    for pair in reports.windows(2) {
        let [(_, _, before), (name, _, with)] = pair else { continue };
        let during = (OUTAGE.0, OUTAGE.1);
        assert!(lost(with, during) <= lost(before, during) * 1.05 + 0.01, "{name} makes it worse");
    }
    // A minute into the outage it is over for clients; before anything happens nothing is lost.
    assert!(lost(all, (0, FAILING.0)) < 0.001, "{}", lost(all, (0, FAILING.0)));
    assert!(lost(all, (OUTAGE.0 + 60, OUTAGE.1)) < 0.01, "{}", lost(all, (OUTAGE.0 + 60, OUTAGE.1)));
    // Load follows health, there and back.
    let usual = zone(all, (FAILING.1, OUTAGE.0));
    let without = zone(all, (OUTAGE.0 + 60, OUTAGE.1));
    let back = OUTAGE.1 + RECOVERY / SECOND;
    let again = zone(all, (back, FLAPPING.0));
    println!(
        "the zone's share of first tries: {usual:.2} %, {without:.3} % while it is gone, {again:.2} % again"
    );
    assert!(without < usual / 100.0 && (again - usual).abs() < usual / 10.0);
    let window = |second: &u64| zone(all, (*second, second + 5)) > 0.9 * usual;
    let recovered = (OUTAGE.1..back).find(window).map(|second| second - OUTAGE.1);
    println!("nine tenths of it after {recovered:?} s");
    assert!(recovered.is_some_and(|after| after <= 60), "{recovered:?}");
    if std::env::var_os("OUTRIGGER_FIGURE").is_some() {
        let lines: Vec<_> =
            reports.iter().map(|(name, count, report)| (*name, *count, &report.lost)).collect();
        figure::draw(&lines, sidecars);
    }
}

#[test]
fn a_seed_repeats_a_sidecar_to_the_pick() {
    let once = play(7, ALL);
    assert_eq!(once, play(7, ALL));
    assert_ne!(once.digest, play(8, ALL).digest);
}
