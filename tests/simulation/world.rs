//! What happens to the hosts within the hour: a function of time and of nothing else, the same for every sidecar.

/// Microseconds of virtual time.
pub type Time = u64;

/// A second.
pub const SECOND: Time = 1_000_000;
/// A millisecond.
pub const MILLI: Time = 1_000;

/// What somebody who asks a host finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It answers.
    Well,
    /// It answers every request with a failure.
    Fails,
    /// Nothing comes back, neither to a connection that is opened nor on one that is.
    Gone,
    /// Its process is dead: connections are refused, and those that were open are closed.
    Refuses,
    /// It answers after two seconds.
    Slow,
}

/// When what happens, in seconds.
pub const FAILING: (u64, u64) = (300, 900);
/// Zone `a` of the first priority is gone.
pub const OUTAGE: (u64, u64) = (1_200, 1_800);
/// Hosts that come and go every 15 s.
pub const FLAPPING: (u64, u64) = (2_200, 2_700);
/// Hosts that are slow.
pub const SLOW: (u64, u64) = (2_850, 3_250);
/// The end.
pub const END: u64 = 3_600;
const FLAP: Time = 15 * SECOND;

/// The hosts: the first seven tenths are of priority 0, in three zones by turns; the others of priority 1.
#[derive(Debug, Clone, Copy)]
pub struct World {
    /// How many.
    pub hosts: usize,
}

impl World {
    /// The priority of a host.
    pub fn priority(self, host: usize) -> u32 {
        u32::from(host >= self.hosts * 7 / 10)
    }

    /// Its zone.
    pub fn zone(self, host: usize) -> usize {
        host % 3
    }

    /// Whether the outage is about it.
    pub fn is_hit(self, host: usize) -> bool {
        self.priority(host) == 0 && self.zone(host) == 0
    }

    /// How it does.
    pub fn state(self, host: usize, now: Time) -> State {
        let during = |(from, to): (u64, u64)| (from * SECOND..to * SECOND).contains(&now);
        // One host in fifty each; none of them in the zone that is lost.
        let is_one = |which: usize| self.zone(host) == 1 && (host / 3) % 17 == which;
        if during(OUTAGE) && self.is_hit(host) {
            State::Gone
        } else if during(FAILING) && is_one(0) {
            State::Fails
        } else if during(FLAPPING) && is_one(1) {
            let phase = host as Time * 7_919 * MILLI;
            if ((now + phase) / FLAP).is_multiple_of(2) {
                State::Refuses
            } else {
                State::Well
            }
        } else if during(SLOW) && is_one(2) {
            State::Slow
        } else {
            State::Well
        }
    }

    /// The next moment after `now` at which its state may change; `None` when it stays as it is.
    pub fn next_change(self, host: usize, now: Time) -> Option<Time> {
        let mut next: Option<Time> = None;
        let mut consider = |time: Time| {
            if time > now && next.is_none_or(|next| time < next) {
                next = Some(time);
            }
        };
        for (from, to) in [FAILING, OUTAGE, FLAPPING, SLOW] {
            consider(from * SECOND);
            consider(to * SECOND);
        }
        if (FLAPPING.0 * SECOND..FLAPPING.1 * SECOND).contains(&now) {
            let phase = host as Time * 7_919 * MILLI;
            consider(((now + phase) / FLAP + 1) * FLAP - phase);
        }
        next
    }
}
