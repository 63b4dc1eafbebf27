//! Hosts that could not be reached a moment ago.
//!
//! A connection that cannot be made marks its host for all workers. Pickers pass a marked host over while another
//! one will do. When its pause is over, the next pick that would have had it asks for a connection that carries
//! nothing; one that succeeds, or any other, clears the mark. Pauses double from 1 s to 30 s until a request's own
//! connection has succeeded.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::config::cluster::HealthFlags;
use crate::config::Host;

/// The first pause, in milliseconds.
const FIRST_PAUSE: u64 = 1_000;
/// The longest.
const LONGEST_PAUSE: u64 = 30_000;

/// When a host may be asked again, and how often it failed.
#[derive(Debug, Default)]
pub struct Suspicion {
    until: AtomicU64,
    failures: AtomicU32,
}

/// The host could not be reached at `now` ([`super::clock`]). True when it was not suspect before. Failures
/// during one pause count once: requests that were on their way say nothing new.
pub fn failed(host: &Host, now: u64) -> bool {
    let Suspicion { until, failures } = &host.shared.suspicion;
    let flags = &host.shared.health;
    if flags.has(HealthFlags::SUSPECT) && now < until.load(Ordering::Relaxed) {
        return false;
    }
    let before = failures.fetch_add(1, Ordering::Relaxed).min(16);
    until.store(now + pause(before), Ordering::Relaxed);
    flags.set(HealthFlags::SUSPECT)
}

/// A request's connection to the host was made. True when it was suspect.
pub fn reached(host: &Host) -> bool {
    let suspicion = &host.shared.suspicion;
    if suspicion.failures.load(Ordering::Relaxed) == 0 {
        return false;
    }
    suspicion.failures.store(0, Ordering::Relaxed);
    host.shared.health.clear(HealthFlags::SUSPECT)
}

/// A connection that carried nothing was made: the host gets requests again, and is suspect for longer if those
/// fail.
pub fn answered(host: &Host) -> bool {
    host.shared.health.clear(HealthFlags::SUSPECT)
}

/// Whether the host's pause is over and the caller is the one to ask it; the next pause begins.
pub fn may_ask(host: &Host, now: u64) -> bool {
    let Suspicion { until, failures } = &host.shared.suspicion;
    let end = until.load(Ordering::Relaxed);
    let next = now + pause(failures.load(Ordering::Relaxed).min(16));
    now >= end && until.compare_exchange(end, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

fn pause(failures: u32) -> u64 {
    (FIRST_PAUSE << failures).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cluster::{Address, HostTemplate};

    #[test]
    fn pauses_double_until_a_request_gets_through() {
        let host = Host::new(Address::Ip(([127, 0, 0, 1], 1).into()), HostTemplate::default());
        let suspect = || host.shared.health.has(HealthFlags::SUSPECT);
        assert!(!reached(&host));
        assert!(failed(&host, 1));
        assert!(!failed(&host, 900) && suspect(), "within the pause");
        assert!(!may_ask(&host, 1_000));
        assert!(may_ask(&host, 1_001));
        assert!(!may_ask(&host, 1_001), "one asks");
        assert!(!failed(&host, 1_002) && !may_ask(&host, 3_000), "two seconds now");
        assert!(may_ask(&host, 3_001));
        assert!(answered(&host) && !suspect());
        assert!(failed(&host, 3_100), "it still does not work");
        assert!(!may_ask(&host, 5_099));
        assert!(reached(&host) && !suspect());
        assert!(failed(&host, 10_000));
        assert!(may_ask(&host, 11_000), "from the beginning");
        for _ in 0..40 {
            host.shared.health.clear(HealthFlags::SUSPECT);
            failed(&host, 20_000);
        }
        assert!(may_ask(&host, 50_000), "never longer than half a minute");
    }
}
