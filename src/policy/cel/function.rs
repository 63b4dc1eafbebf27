//! Functions.

use super::compile::Node;
use super::value::{Failed, Outcome, Value};
use super::Subject;

/// A function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Int,
    Uint,
    Double,
    Duration,
    Timestamp,
    /// The value as it is.
    Dyn,
    /// Whole hours, minutes, seconds and milliseconds of a duration.
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

const NANOS: i64 = 1_000_000_000;

impl Function {
    /// The function `name` with so many arguments, the one before the dot among them.
    pub(super) fn find(name: &str, arguments: usize) -> Option<Self> {
        Some(match (name, arguments) {
            ("size", 1) => Self::Size,
            ("contains", 2) => Self::Contains,
            ("startsWith", 2) => Self::StartsWith,
            ("endsWith", 2) => Self::EndsWith,
            ("int", 1) => Self::Int,
            ("uint", 1) => Self::Uint,
            ("double", 1) => Self::Double,
            ("duration", 1) => Self::Duration,
            ("timestamp", 1) => Self::Timestamp,
            ("dyn", 1) => Self::Dyn,
            ("getHours", 1) => Self::Hours,
            ("getMinutes", 1) => Self::Minutes,
            ("getSeconds", 1) => Self::Seconds,
            ("getMilliseconds", 1) => Self::Milliseconds,
            _ => return None,
        })
    }

    /// Its result.
    pub(super) fn call<'a>(self, arguments: &'a [Node], subject: &Subject<'a>) -> Outcome<'a> {
        // There is at least one argument, and a second where the function takes it.
        let argument = |index: usize| arguments.get(index).ok_or(Failed)?.evaluate(subject);
        let first = argument(0)?;
        match self {
            Self::Size => Ok(Value::of_count(first.size()? as u64)),
            Self::Contains | Self::StartsWith | Self::EndsWith => match (first, argument(1)?) {
                (Value::Text(text), Value::Text(part)) => Ok(Value::Bool(match self {
                    Self::Contains => text.contains(&*part),
                    Self::StartsWith => text.starts_with(&*part),
                    _ => text.ends_with(&*part),
                })),
                _ => Err(Failed),
            },
            Self::Dyn => Ok(first),
            Self::Int => int(&first).map(Value::Int).ok_or(Failed),
            Self::Uint => uint(&first).map(Value::Uint).ok_or(Failed),
            Self::Double => double(&first).map(Value::Double).ok_or(Failed),
            Self::Duration => match first {
                Value::Duration(nanos) => Ok(Value::Duration(nanos)),
                Value::Text(text) => duration(&text).map(Value::Duration).ok_or(Failed),
                _ => Err(Failed),
            },
            Self::Timestamp => match first {
                Value::Time(nanos) => Ok(Value::Time(nanos)),
                Value::Int(seconds) => seconds.checked_mul(NANOS).map(Value::Time).ok_or(Failed),
                Value::Text(text) => {
                    let parsed = text.parse::<jiff::Timestamp>().map_err(|_| Failed)?;
                    i64::try_from(parsed.as_nanosecond()).map(Value::Time).map_err(|_| Failed)
                }
                _ => Err(Failed),
            },
            Self::Hours => part(&first, 3600 * NANOS, 24),
            Self::Minutes => part(&first, 60 * NANOS, 60),
            Self::Seconds => part(&first, NANOS, 60),
            Self::Milliseconds => part(&first, NANOS / 1000, 1000),
        }
    }
}

/// A duration in units, or the units in which a time (in UTC) goes beyond the next larger one.
fn part<'a>(value: &Value<'a>, unit: i64, within: i64) -> Outcome<'a> {
    match value {
        Value::Duration(nanos) if within == 1000 => Ok(Value::Int(nanos / unit % within)),
        Value::Duration(nanos) => Ok(Value::Int(nanos / unit)),
        Value::Time(nanos) => Ok(Value::Int(nanos.div_euclid(unit).rem_euclid(within))),
        _ => Err(Failed),
    }
}

fn int(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::Uint(number) => i64::try_from(*number).ok(),
        // Beyond this not every whole number can be told.
        Value::Double(number) => (number.abs() < 9.2e18).then(|| number.trunc() as i64),
        Value::Bool(is) => Some(i64::from(*is)),
        Value::Text(text) => text.parse().ok(),
        Value::Time(nanos) => Some(nanos.div_euclid(NANOS)),
        _ => None,
    }
}

fn uint(value: &Value<'_>) -> Option<u64> {
    match value {
        Value::Uint(number) => Some(*number),
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::Double(number) => (0.0..1.8e19).contains(number).then(|| number.trunc() as u64),
        Value::Text(text) => text.parse().ok(),
        _ => None,
    }
}

fn double(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Double(number) => Some(*number),
        Value::Int(number) => Some(*number as f64),
        Value::Uint(number) => Some(*number as f64),
        Value::Text(text) => text.parse().ok(),
        _ => None,
    }
}

/// `1h30m`, `1.5s`, `-200ms`.
fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let units = [("ms", 1e6), ("us", 1e3), ("ns", 1.0), ("h", 3600e9), ("m", 60e9), ("s", 1e9)];
        let (unit, factor) = units.iter().find(|(unit, _)| after.starts_with(unit))?;
        total += number.parse::<f64>().ok()? * factor;
        rest = after.get(unit.len()..)?;
    }
    let total = if negative { -total } else { total };
    (total.abs() < 9.2e18).then(|| total.round() as i64)
}
