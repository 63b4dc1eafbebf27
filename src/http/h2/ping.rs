//! Signs of life: PINGs at an interval, and how long their answers may take (`connection_keepalive`).

use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use h2::{Ping, PingPong};

use super::Keepalive;
use crate::http::timer::LazyTimer;

/// Asks the peer for signs of life.
#[derive(Debug)]
pub struct Pinger {
    active: Option<Active>,
}

struct Active {
    settings: Keepalive,
    ping_pong: PingPong,
    timer: LazyTimer,
    state: State,
    random: fastrand::Rng,
}

impl std::fmt::Debug for Active {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Active").field("settings", &self.settings).field("state", &self.state).finish()
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// The next PING goes out then.
    Next(Instant),
    /// The answer must be here by then.
    Asked(Instant),
}

impl Pinger {
    /// Nothing is asked without `settings` that have an interval. `seed` spreads the PINGs of connections.
    pub fn new(settings: Option<Keepalive>, ping_pong: Option<PingPong>, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let active = settings.zip(ping_pong).and_then(|(settings, ping_pong)| {
            let state = State::Next(Instant::now() + pause(&settings, &mut random)?);
            Some(Active { settings, ping_pong, timer: LazyTimer::default(), state, random })
        });
        Self { active }
    }

    /// Ready when the peer is dead.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(active) = &mut self.active else { return Poll::Pending };
        loop {
            match active.state {
                State::Next(at) => {
                    std::task::ready!(active.timer.poll(Some(at), context));
                    if active.ping_pong.send_ping(Ping::opaque()).is_err() {
                        // The connection is ending, which says enough.
                        self.active = None;
                        return Poll::Pending;
                    }
                    active.state = State::Asked(Instant::now() + active.settings.timeout);
                }
                State::Asked(until) => {
                    match active.ping_pong.poll_pong(context) {
                        Poll::Ready(Ok(_)) => {
                            let Some(pause) = pause(&active.settings, &mut active.random) else {
                                self.active = None;
                                return Poll::Pending;
                            };
                            active.state = State::Next(Instant::now() + pause);
                            continue;
                        }
                        Poll::Ready(Err(_)) => {
                            self.active = None;
                            return Poll::Pending;
                        }
                        Poll::Pending => {}
                    }
                    return active.timer.poll(Some(until), context);
                }
            }
        }
    }
}

/// The interval and its random part.
fn pause(settings: &Keepalive, random: &mut fastrand::Rng) -> Option<Duration> {
    let interval = settings.interval.filter(|interval| !interval.is_zero())?;
    let most = interval.mul_f64((settings.jitter_percent / 100.0).clamp(0.0, 1.0));
    Some(interval + most.mul_f64(random.f64()))
}
