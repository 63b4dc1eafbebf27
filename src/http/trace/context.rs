//! The context of a trace, as proxies and applications tell it each other: W3C Trace Context, and B3.

use std::sync::LazyLock;

use crate::config::{HeaderKey, HeaderView};
use crate::http::head::RequestHead;
use crate::http::worker::Worker;

static PARENT: LazyLock<HeaderKey> = LazyLock::new(|| HeaderKey::new("traceparent"));
static STATE: LazyLock<HeaderKey> = LazyLock::new(|| HeaderKey::new("tracestate"));
static B3: LazyLock<HeaderKey> = LazyLock::new(|| HeaderKey::new("b3"));
static B3_TRACE: LazyLock<HeaderKey> = LazyLock::new(|| HeaderKey::new("x-b3-traceid"));
static B3_SPAN: LazyLock<HeaderKey> = LazyLock::new(|| HeaderKey::new("x-b3-spanid"));
static B3_PARENT: LazyLock<HeaderKey> = LazyLock::new(|| HeaderKey::new("x-b3-parentspanid"));
static B3_SAMPLED: LazyLock<HeaderKey> = LazyLock::new(|| HeaderKey::new("x-b3-sampled"));
static B3_FLAGS: LazyLock<HeaderKey> = LazyLock::new(|| HeaderKey::new("x-b3-flags"));

/// A span among others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace: u128,
    /// The trace's number has 64 bits.
    pub short: bool,
    /// The span.
    pub span: u64,
    /// The span that it is part of; 0 = none.
    pub parent: u64,
    /// Whether it is told of.
    pub sampled: bool,
    /// It is also the caller's: both ends tell of one span.
    pub shared: bool,
    /// It was told in one field, and is told on in one (B3).
    pub single: bool,
    /// What others want to be passed on.
    pub state: Box<str>,
}

/// How a context is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// `traceparent`, `tracestate`.
    W3c,
    /// `x-b3-*`.
    B3 {
        /// New traces have numbers of 128 bits.
        long: bool,
        /// A server's span is the one that its client began.
        shares: bool,
    },
}

impl Propagation {
    /// The context of a new span for `request`: sampled if `sampled` says so and, with W3C's, those before do not say
    /// that it is not; with B3 those before decide. `None` where it cannot be read: such a request has no span.
    pub(super) fn begin(self, request: &RequestHead, sampled: bool, worker: &Worker) -> Option<Context> {
        match self {
            Propagation::W3c => {
                let Some(told) = request.first(&PARENT) else {
                    let trace = u128::from(worker.random()) << 64 | u128::from(worker.random());
                    return Some(Context::new(trace.max(1), sampled, worker));
                };
                let mut state = Vec::new();
                request.values(&STATE, &mut |value| {
                    if !state.is_empty() {
                        state.push(b',');
                    }
                    state.extend_from_slice(value);
                });
                let (trace, parent, told) = parse_parent(told)?;
                let sampled = told && sampled;
                let state = String::from_utf8_lossy(&state).into();
                Some(Context { parent, state, ..Context::new(trace, sampled, worker) })
            }
            Propagation::B3 { long, shares } => {
                let fresh = |sampled| {
                    let high = if long { u128::from(worker.random()) << 64 } else { 0 };
                    let trace = high | u128::from(worker.random().max(1));
                    Some(Context { short: !long, ..Context::new(trace, sampled, worker) })
                };
                let Some(told) = B3Told::read(request)? else { return fresh(sampled) };
                let sampled = told.sampled.unwrap_or(sampled);
                let Some((trace, short, span, parent)) = told.place else { return fresh(sampled) };
                let single = request.first(&B3).is_some();
                let context = Context { short, single, ..Context::new(trace, sampled, worker) };
                Some(if shares {
                    Context { span, parent, shared: true, ..context }
                } else {
                    Context { parent: span, ..context }
                })
            }
        }
    }
}

impl Context {
    fn new(trace: u128, sampled: bool, worker: &Worker) -> Self {
        let span = worker.random().max(1);
        Self {
            trace,
            short: false,
            span,
            parent: 0,
            sampled,
            shared: false,
            single: false,
            state: Box::default(),
        }
    }

    /// That of nothing: it is told to nobody.
    pub(super) fn null() -> Self {
        let state = Box::default();
        Self {
            trace: 0,
            short: false,
            span: 0,
            parent: 0,
            sampled: false,
            shared: false,
            single: false,
            state,
        }
    }

    /// Of a span that is part of it.
    pub(super) fn child(&self, worker: &Worker) -> Self {
        Self { span: worker.random().max(1), parent: self.span, shared: false, ..self.clone() }
    }

    /// The trace's number in hexadecimal digits.
    pub fn trace_text(&self) -> String {
        let trace = self.trace;
        if self.short {
            format!("{trace:016x}")
        } else {
            format!("{trace:032x}")
        }
    }

    /// Tells the upstream.
    pub(super) fn put(&self, propagation: Propagation, request: &mut RequestHead) {
        match propagation {
            _ if self.trace == 0 => {}
            Propagation::W3c => {
                let parent =
                    format!("00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled));
                super::set(request, &PARENT, parent.as_bytes());
                super::set(request, &STATE, self.state.as_bytes());
            }
            Propagation::B3 { .. } if self.single => {
                let mut text = format!("{}-{:016x}-{}", self.trace_text(), self.span, u8::from(self.sampled));
                if self.parent != 0 {
                    text.push_str(&format!("-{:016x}", self.parent));
                }
                super::set(request, &B3, text.as_bytes());
            }
            Propagation::B3 { .. } => {
                super::set(request, &B3_TRACE, self.trace_text().as_bytes());
                super::set(request, &B3_SPAN, format!("{:016x}", self.span).as_bytes());
                if self.parent != 0 {
                    super::set(request, &B3_PARENT, format!("{:016x}", self.parent).as_bytes());
                }
                super::set(request, &B3_SAMPLED, if self.sampled { b"1" } else { b"0" });
            }
        }
    }
}

/// What `traceparent` says: the trace, the caller's span, and whether it is sampled. Version 00 only, as in Envoy.
fn parse_parent(told: &[u8]) -> Option<(u128, u64, bool)> {
    let text = std::str::from_utf8(told).ok()?;
    if text.len() != 55 {
        return None;
    }
    let mut parts = text.split('-');
    let mut digits = |length: usize| {
        let part = parts.next()?;
        (part.len() == length && part.bytes().all(|digit| digit.is_ascii_hexdigit())).then_some(part)
    };
    digits(2)?;
    let (trace, span, flags) = (digits(32)?, digits(16)?, digits(2)?);
    let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
    let span = u64::from_str_radix(span, 16).ok().filter(|span| *span != 0)?;
    Some((trace, span, u8::from_str_radix(flags, 16).ok()? & 1 == 1))
}

/// What B3 fields say.
struct B3Told {
    sampled: Option<bool>,
    /// The trace, whether its number is short, the caller's span, and that one's parent.
    place: Option<(u128, bool, u64, u64)>,
}

impl B3Told {
    /// `Some(None)` without any, `None` where they cannot be read.
    fn read(request: &RequestHead) -> Option<Option<Self>> {
        if let Some(single) = request.first(&B3) {
            return Self::single(std::str::from_utf8(single).ok()?).map(Some);
        }
        let text =
            |key: &HeaderKey| request.first(key).map(|value| std::str::from_utf8(value).unwrap_or("?"));
        let sampled = match (text(&B3_FLAGS), text(&B3_SAMPLED)) {
            (Some("1"), _) => Some(true),
            (_, Some(sampled)) => Some(matches!(sampled, "1" | "true")),
            _ => None,
        };
        let place = match (text(&B3_TRACE), text(&B3_SPAN)) {
            (Some(trace), Some(span)) => {
                let (trace, short) = trace_of(trace)?;
                let parent = text(&B3_PARENT).filter(|parent| !parent.is_empty()).map(span_of);
                Some((trace, short, span_of(span)?, parent.unwrap_or(Some(0))?))
            }
            _ => None,
        };
        if sampled.is_none() && place.is_none() {
            return Some(None);
        }
        Some(Some(Self { sampled, place }))
    }

    fn single(text: &str) -> Option<Self> {
        let decided = |text: &str| match text {
            "0" => Some(false),
            "1" | "d" => Some(true),
            _ => None,
        };
        let parts: Vec<&str> = text.split('-').collect();
        let (trace, span, rest) = match parts[..] {
            [sampled] => return Some(Self { sampled: Some(decided(sampled)?), place: None }),
            [trace, span, ref rest @ ..] if rest.len() <= 2 => (trace, span, rest),
            _ => return None,
        };
        let sampled = rest.first().map(|sampled| decided(sampled));
        let parent = rest.get(1).map_or(Some(0), |parent| span_of(parent))?;
        let (trace, short) = trace_of(trace)?;
        let sampled = match sampled {
            Some(decided) => Some(decided?),
            None => None,
        };
        Some(Self { sampled, place: Some((trace, short, span_of(span)?, parent)) })
    }
}

fn trace_of(text: &str) -> Option<(u128, bool)> {
    let trace = u128::from_str_radix(text, 16).ok()?;
    matches!(text.len(), 16 | 32).then_some((trace, text.len() == 16))
}

fn span_of(text: &str) -> Option<u64> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_as_the_standard_has_them() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let good = format!("00-{trace}-b7ad6b7169203331-01");
        let (number, span, sampled) = parse_parent(good.as_bytes()).expect("a parent");
        assert_eq!(format!("{number:032x}"), trace);
        assert_eq!((span, sampled), (0xb7ad_6b71_6920_3331, true));
        for bad in [
            "",
            "00",
            &good[1..],
            &good.replace("01", "0g"),
            &good.replace(trace, &"0".repeat(32)),
            &good.replace("b7ad6b7169203331", "0000000000000000"),
            &good.replace('-', "_"),
            &format!("{good}-"),
            &good.replacen("00-", "+0-", 1),
        ] {
            assert_eq!(parse_parent(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn one_field_of_b3_says_it_all() {
        let place = |text| B3Told::single(text).and_then(|told| told.place);
        assert_eq!(B3Told::single("0").and_then(|told| told.sampled), Some(false));
        assert_eq!(B3Told::single("d").and_then(|told| told.sampled), Some(true));
        assert_eq!(
            place("463ac35c9f6413ad-a2fb4a1d1a96d312-1"),
            Some((0x463a_c35c_9f64_13ad, true, 0xa2fb_4a1d_1a96_d312, 0))
        );
        let long = "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-0-0020000000000001";
        assert_eq!(
            place(long).map(|(_, short, _, parent)| (short, parent)),
            Some((false, 0x0020_0000_0000_0001))
        );
        for bad in [
            "",
            "2",
            "x",
            "463ac35c9f6413ad",
            "463ac35c9f6413ad-1",
            "-",
            "463ac35c9f6413ad-a2fb4a1d1a96d312-x",
        ] {
            assert!(B3Told::single(bad).is_none(), "{bad}");
        }
    }
}
