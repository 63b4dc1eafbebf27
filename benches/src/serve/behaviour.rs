//! What the origin does with a request: settings for all, and headers of a request that override them.
//!
//! | header | value |
//! |---|---|
//! | `x-load-status` | status of the answer |
//! | `x-load-size` | bytes of its body |
//! | `x-load-delay` | a delay before it, as `--delay` takes it |
//! | `x-load-fail` | `reset`, `close`, `stall` (no answer ever) or `half` (ends within the body) |
//! | `x-load-slow` | `BYTES/DURATION`: the body in pieces, a pause before each |
//! | `x-load-close` | any: the connection ends after the answer |
//! | `x-load-chunked` | any: HTTP/1.1 body in chunks |

use std::str::FromStr;

use crate::units;

/// How long an answer is held back, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Delay {
    /// Always as long: `5ms`.
    Fixed(u64),
    /// Evenly between: `uniform:1ms-5ms`.
    Uniform(u64, u64),
    /// Exponential of this mean: `exp:5ms`.
    Exponential(u64),
    /// Mean and standard deviation, never below 0: `normal:5ms,1ms`.
    Normal(u64, u64),
}

impl FromStr for Delay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let two = |text: &str, by: char| {
            let (a, b) =
                text.split_once(by).ok_or_else(|| format!("{text}: two durations with {by:?} between"))?;
            Ok::<_, String>((units::duration(a)?, units::duration(b)?))
        };
        match text.split_once(':') {
            None => Ok(Self::Fixed(units::duration(text)?)),
            Some(("uniform", rest)) => match two(rest, '-')? {
                (low, high) if low <= high => Ok(Self::Uniform(low, high)),
                _ => Err(format!("{rest}: the first duration is the longer one")),
            },
            Some(("exp", rest)) => Ok(Self::Exponential(units::duration(rest)?)),
            Some(("normal", rest)) => two(rest, ',').map(|(mean, deviation)| Self::Normal(mean, deviation)),
            Some((kind, _)) => Err(format!("{kind}: not one of uniform, exp, normal")),
        }
    }
}

impl Delay {
    fn draw(self, random: &mut fastrand::Rng) -> u64 {
        match self {
            Self::Fixed(delay) => delay,
            Self::Uniform(low, high) => random.u64(low..=high),
            Self::Exponential(mean) => (-(1.0 - random.f64()).ln() * mean as f64) as u64,
            Self::Normal(mean, deviation) => {
                let unit =
                    (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (std::f64::consts::TAU * random.f64()).cos();
                // A cast from a negative float is 0.
                (mean as f64 + unit * deviation as f64) as u64
            }
        }
    }
}

/// How an answer goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection (a stream, in HTTP/2) is reset.
    Reset,
    /// The connection is closed.
    Close,
    /// There is no answer.
    Stall,
    /// The connection is closed within the body.
    Half,
    /// The answer has this status.
    Status(u16),
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "reset" => Self::Reset,
            "close" => Self::Close,
            "stall" => Self::Stall,
            "half" => Self::Half,
            status => Self::Status(match status.parse() {
                Ok(status @ 200..=599) => status,
                _ => return Err(format!("{text}: not reset, close, stall, half or a status")),
            }),
        })
    }
}

/// Settings for all requests.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Status of answers.
    pub status: u16,
    /// Bytes of bodies, and of pieces of a source.
    pub size: usize,
    /// Before each answer.
    pub delay: Option<Delay>,
    /// The share of faults, 0 to 1, and which.
    pub faults: Option<(f64, Fault)>,
    /// Requests after which a connection is closed.
    pub close_after: Option<u64>,
    /// Bodies in pieces of so many bytes, and the pause before each.
    pub slow: Option<(usize, u64)>,
    /// The whole origin stops for so many nanoseconds at every so many requests.
    pub stall: Option<(u64, u64)>,
}

/// What a request's headers ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Controls {
    status: Option<u16>,
    size: Option<usize>,
    delay: Option<Delay>,
    fail: Option<Fault>,
    slow: Option<(usize, u64)>,
    close: bool,
    chunked: bool,
}

impl Controls {
    /// Takes a header, its name in lower case; what is no valid value is as if it were not there.
    pub fn header(&mut self, name: &[u8], value: &[u8]) {
        let Some(name) = name.strip_prefix(b"x-load-") else { return };
        let Ok(text) = std::str::from_utf8(value) else { return };
        match name {
            b"status" => self.status = text.parse().ok().filter(|status| (200..600).contains(status)),
            b"size" => self.size = units::bytes(text).ok().map(|size| size.min(1 << 30) as usize),
            b"delay" => self.delay = text.parse().ok(),
            b"fail" => self.fail = text.parse().ok(),
            b"slow" => self.slow = units::pace(text).ok(),
            b"close" => self.close = true,
            b"chunked" => self.chunked = true,
            _ => {}
        }
    }
}

/// What is done with one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Bytes of the body.
    pub size: usize,
    /// Nanoseconds before it.
    pub delay: u64,
    /// What goes wrong.
    pub fault: Option<Fault>,
    /// The body in pieces.
    pub slow: Option<(usize, u64)>,
    /// The connection ends after it.
    pub close: bool,
    /// In chunks.
    pub chunked: bool,
}

impl Behaviour {
    /// What to do with a request, the `nth` of its connection from 1.
    pub fn answer(&self, controls: &Controls, nth: u64, random: &mut fastrand::Rng) -> Answer {
        let drawn = self.faults.filter(|(share, _)| random.f64() < *share).map(|(_, fault)| fault);
        let fault = controls.fail.or(drawn);
        let status = match fault {
            Some(Fault::Status(status)) => status,
            _ => controls.status.unwrap_or(self.status),
        };
        let delay = controls.delay.or(self.delay).map_or(0, |delay| delay.draw(random));
        Answer {
            status,
            size: if status == 204 || status == 304 { 0 } else { controls.size.unwrap_or(self.size) },
            delay,
            fault: fault.filter(|fault| !matches!(fault, Fault::Status(_))),
            slow: controls.slow.or(self.slow),
            close: controls.close || self.close_after.is_some_and(|last| nth >= last),
            chunked: controls.chunked,
        }
    }
}
