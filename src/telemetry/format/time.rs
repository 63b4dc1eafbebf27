//! `START_TIME(...)`: strftime formats with Envoy's fractions of a second.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::fmt::strtime::{BrokenDownTime, Config};
use jiff::tz::TimeZone;
use jiff::Timestamp;

/// A compiled time format.
#[derive(Debug)]
pub(super) enum TimeFormat {
    /// `2026-01-31T23:59:59.123Z`.
    Default,
    /// As configured, in UTC or in the zone of this machine.
    Custom(Vec<Chunk>, Zone),
}

/// Which clock is told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Zone {
    Utc,
    Local,
}

#[derive(Debug)]
pub(super) enum Chunk {
    /// Text and directives for strftime.
    Strftime(Box<str>),
    /// The first digits of the second's fraction.
    Fraction(usize),
    /// Seconds with that many digits of fraction (`%E3S`).
    Seconds(usize),
}

impl TimeFormat {
    /// Compiles `format`; an empty one is the default. The error says what is wrong.
    pub fn parse(format: &str) -> Result<Self, String> {
        if format.is_empty() {
            return Ok(TimeFormat::Default);
        }
        let mut chunks = Vec::new();
        let mut plain = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            let (text, from) = rest.split_at(at);
            plain.push_str(text);
            let Some((chunk, after)) = fraction(from) else {
                // `%` and the character after it, whatever it is, stay together.
                let end = from.char_indices().nth(2).map_or(from.len(), |(end, _)| end);
                plain.push_str(&from[..end]);
                rest = &from[end..];
                continue;
            };
            rest = after;
            flush(&mut plain, &mut chunks);
            chunks.push(chunk);
        }
        plain.push_str(rest);
        flush(&mut plain, &mut chunks);
        let format = TimeFormat::Custom(chunks, Zone::Utc);
        format.write_checked(&mut Vec::new(), UNIX_EPOCH)?;
        Ok(format)
    }

    /// The same by this machine's own clock.
    pub fn local(self) -> Self {
        let chunks = match self {
            TimeFormat::Custom(chunks, _) => chunks,
            TimeFormat::Default => {
                vec![
                    Chunk::Strftime("%Y-%m-%dT%H:%M:%S.".into()),
                    Chunk::Fraction(3),
                    Chunk::Strftime("%z".into()),
                ]
            }
        };
        TimeFormat::Custom(chunks, Zone::Local)
    }

    /// Appends `time`.
    pub fn write(&self, out: &mut Vec<u8>, time: SystemTime) {
        match self {
            TimeFormat::Default => write_default(out, time),
            // Directives were checked when the format was parsed.
            TimeFormat::Custom(..) => drop(self.write_checked(out, time)),
        }
    }

    fn write_checked(&self, out: &mut Vec<u8>, time: SystemTime) -> Result<(), String> {
        let TimeFormat::Custom(chunks, zone) = self else { return Ok(()) };
        let time = timestamp(time);
        let nanos = u32::try_from(time.subsec_nanosecond()).unwrap_or(0);
        let zone = match zone {
            Zone::Utc => TimeZone::UTC,
            Zone::Local => TimeZone::system(),
        };
        let parts = BrokenDownTime::from(&time.to_zoned(zone));
        for chunk in chunks {
            match chunk {
                Chunk::Strftime(format) => {
                    let config = Config::new();
                    let text = parts.to_string_with_config(&config, &**format).map_err(|e| e.to_string())?;
                    out.extend_from_slice(text.as_bytes());
                }
                Chunk::Fraction(digits) => write_fraction(out, nanos, *digits),
                Chunk::Seconds(digits) => {
                    let second = time.as_second().rem_euclid(60);
                    out.extend_from_slice(format!("{second:02}.").as_bytes());
                    write_fraction(out, nanos, *digits);
                }
            }
        }
        Ok(())
    }
}

fn flush(plain: &mut String, chunks: &mut Vec<Chunk>) {
    if !plain.is_empty() {
        chunks.push(Chunk::Strftime(std::mem::take(plain).into()));
    }
}

/// `%f`, `%3f`, `%E3S` at the start of `from`, and what follows.
fn fraction(from: &str) -> Option<(Chunk, &str)> {
    let mut chars = from.strip_prefix('%')?.chars();
    let (digits, letter) = match chars.next()? {
        'f' => (9, 'f'),
        c @ '1'..='9' => (usize::try_from(c.to_digit(10)?).ok()?, chars.next()?),
        'E' => {
            let digits = usize::try_from(chars.next()?.to_digit(10)?).ok()?;
            return match chars.next()? {
                'S' if digits > 0 => Some((Chunk::Seconds(digits), chars.as_str())),
                _ => None,
            };
        }
        _ => return None,
    };
    (letter == 'f').then_some((Chunk::Fraction(digits), chars.as_str()))
}

fn write_fraction(out: &mut Vec<u8>, nanos: u32, digits: usize) {
    let text = format!("{nanos:09}");
    out.extend_from_slice(text.as_bytes().get(..digits.min(9)).unwrap_or_default());
}

/// Times before 1970 or beyond year 9999 are shown as 1970.
fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// `2026-01-31T23:59:59.`
type Second = [u8; 20];

thread_local! {
    /// The last second written and its text: a busy proxy writes thousands of lines in each.
    static LAST: Cell<(u64, Second)> = const { Cell::new((0, *b"1970-01-01T00:00:00.")) };
}

fn write_default(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut second, mut text) = LAST.get();
    if second != since.as_secs() {
        second = since.as_secs();
        let time = timestamp(time).to_zoned(TimeZone::UTC).datetime();
        let fresh = format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.",
            time.year(),
            time.month(),
            time.day(),
            time.hour(),
            time.minute(),
            time.second()
        );
        if let Ok(fresh) = Second::try_from(fresh.as_bytes()) {
            text = fresh;
            LAST.set((second, text));
        }
    }
    let millis = since.subsec_millis();
    out.extend_from_slice(&text);
    write_fraction(out, millis * 1_000_000, 3);
    out.push(b'Z');
}
