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
    /// There is no next one by the clock.
    Resting,
    /// The next PING goes out then.
    Next(Instant),
    /// It goes out at once.
    Due,
    /// The answer must be here by then.
    Asked(Instant),
}

impl Pinger {
    /// Nothing is asked without `settings` that have an interval. `seed` spreads the PINGs of connections.
    pub fn new(settings: Option<Keepalive>, ping_pong: Option<PingPong>, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let active = settings.zip(ping_pong).and_then(|(settings, ping_pong)| {
            let next = pause(&settings, &mut random);
            let state = match next {
                Some(pause) => State::Next(Instant::now() + pause),
                None if settings.idle_interval.is_some() => State::Resting,
                None => return None,
            };
            Some(Active { settings, ping_pong, timer: LazyTimer::default(), state, random })
        });
        Self { active }
    }

    /// Asks now, unless an answer is awaited.
    pub fn ask(&mut self) {
        if let Some(active) = self.active.as_mut().filter(|active| !matches!(active.state, State::Asked(_))) {
            active.state = State::Due;
        }
    }

    /// Ready when the peer is dead.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(active) = &mut self.active else { return Poll::Pending };
        loop {
            match active.state {
                State::Resting => return Poll::Pending,
                State::Next(at) => {
                    std::task::ready!(active.timer.poll(Some(at), context));
                    active.state = State::Due;
                }
                State::Due => {
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
                            active.state = match pause(&active.settings, &mut active.random) {
                                Some(pause) => State::Next(Instant::now() + pause),
                                None => State::Resting,
                            };
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
