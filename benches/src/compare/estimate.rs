//! How long a comparison takes, from what it is to do. Who cannot do a scenario takes no time, so it is an upper limit.

use std::time::Duration;

use super::peer::Peer;
use super::scenario::{Kind, Scenario, Security};
use super::special::{FIRST_ANSWERS, LEVELS, STARTS};

/// Starting one and asking it, in seconds.
const START: f64 = 0.2;
/// A new process, its memory settled with none, some and many connections and after them, and those opened.
const IDLE: f64 = 9.0;
/// Ten thousand handshakes.
const HANDSHAKES: f64 = 25.0;
/// Being ready and settled, and for each cluster.
const SCALE: (f64, f64) = (1.6, 0.0004);

/// The time for all of them.
pub fn of(scenarios: &[Scenario], peers: &[Peer], rounds: u32, seconds: f64) -> Duration {
    let rounds = f64::from(rounds);
    let starts = rounds.min(f64::from(STARTS));
    let count = |is: &dyn Fn(&Peer) -> bool| peers.iter().filter(|peer| is(peer)).count() as f64;
    let (everybody, proxies) = (count(&|_| true), count(&|peer| peer.is_proxy()));
    let processes = count(&|peer| *peer != Peer::None);
    let one = |scenario: &Scenario| match &scenario.kind {
        Kind::Load(load) => {
            let able = if load.security == Security::Plain {
                everybody
            } else {
                everybody - count(&|peer| matches!(peer, Peer::Splice | Peer::Relay))
            };
            able * (START + super::load::dropped(seconds) + rounds * seconds)
        }
        Kind::Latency => {
            let long = seconds * super::special::LONGER;
            2.0 * seconds + everybody * (START + LEVELS.len() as f64 * (seconds + rounds * long))
        }
        Kind::Idle(Security::Plain) => processes * starts * IDLE,
        Kind::Idle(_) => proxies * starts * (IDLE + HANDSHAKES),
        Kind::Start => processes * f64::from(FIRST_ANSWERS) * START,
        Kind::Scale(clusters) => proxies * starts * (SCALE.0 + SCALE.1 * (*clusters as f64) + 0.3 + seconds),
        Kind::Transparent => {
            let able = count(&|peer| peer.follows_control_planes());
            able * 2.0 * (START + 2.0 * (super::load::dropped(seconds) + rounds * seconds))
        }
        Kind::Churn(clusters) => {
            let able = count(&|peer| peer.follows_control_planes());
            able * (SCALE.0 + SCALE.1 * (*clusters as f64) + (rounds + 1.0) * 2.0 * seconds)
        }
    };
    Duration::from_secs_f64(scenarios.iter().map(one).sum::<f64>().max(0.0))
}

/// In words.
pub fn text(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..90 => format!("about {seconds} s"),
        seconds => format!("about {} minutes", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario;
    use super::*;

    #[test]
    fn the_usual_comparison_takes_less_than_half_an_hour() {
        use Peer::{Envoy, Haproxy, Nginx, None, Outrigger, Relay, Splice};
        let everybody = [Outrigger, Envoy, Haproxy, Nginx, Splice, Relay, None];
        let usual = scenario::chosen(&[]).unwrap_or_default();
        let time = |rounds, seconds| of(&usual, &everybody, rounds, seconds).as_secs();
        assert!((600..1800).contains(&time(5, 2.0)), "{}", time(5, 2.0));
        assert!(time(2, 0.5) < time(5, 2.0) / 2);
        assert_eq!(text(Duration::from_secs(1501)), "about 26 minutes");
    }
}
