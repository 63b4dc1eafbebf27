//! Numbers with units, as flags and headers have them.

use crate::clock::SECOND;

/// Nanoseconds of a duration such as `250us`, `5ms`, `1.5s`, `2m`; a bare number is seconds.
///
/// # Errors
/// It is none.
pub fn duration(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ns" => 1.0,
        "us" | "µs" => 1e3,
        "ms" => 1e6,
        "" | "s" => 1e9,
        "m" => 60e9,
        "h" => 3600e9,
        _ => return Err(format!("{text}: not a duration such as 250us, 5ms, 1.5s, 2m")),
    };
    let value: f64 =
        number.parse().map_err(|_| format!("{text}: not a duration such as 250us, 5ms, 1.5s, 2m"))?;
    let nanoseconds = value * scale;
    if nanoseconds > (100.0 * 3600.0) * SECOND as f64 {
        return Err(format!("{text}: more than 100 hours"));
    }
    Ok(nanoseconds.round() as u64)
}

/// Bytes of a size such as `92`, `64k`, `1m`, powers of 1024.
///
/// # Errors
/// It is none.
pub fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        _ => return Err(format!("{text}: not a size such as 92, 64k, 1m")),
    };
    let value: u64 = number.parse().map_err(|_| format!("{text}: not a size such as 92, 64k, 1m"))?;
    value.checked_mul(scale).filter(|size| *size <= 1 << 40).ok_or_else(|| format!("{text}: more than 1 TiB"))
}

/// A size of at least one byte and a duration, `1k/10ms`.
///
/// # Errors
/// It is none.
pub fn pace(text: &str) -> Result<(usize, u64), String> {
    let (size, pause) = text.split_once('/').ok_or_else(|| format!("{text}: not BYTES/DURATION"))?;
    Ok((bytes(size)?.clamp(1, 1 << 30) as usize, duration(pause)?))
}

/// A count and a duration, `5000/100ms`.
///
/// # Errors
/// It is none.
pub fn every(text: &str) -> Result<(u64, u64), String> {
    let (count, time) = text.split_once('/').ok_or_else(|| format!("{text}: not COUNT/DURATION"))?;
    let count =
        count.parse().ok().filter(|count| *count > 0).ok_or_else(|| format!("{count}: not a count"))?;
    Ok((count, duration(time)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read() {
        assert_eq!(duration("250us"), Ok(250_000));
        assert_eq!(duration("1.5s"), Ok(1_500_000_000));
        assert_eq!(duration("2"), Ok(2_000_000_000));
        assert_eq!(bytes("64k"), Ok(65_536));
        assert_eq!(pace("1k/10ms"), Ok((1024, 10_000_000)));
        assert_eq!(every("5000/100ms"), Ok((5000, 100_000_000)));
        for bad in ["", "5 parsecs", "-1s", "1.2.3s", "1e9h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(bytes("1.5k").is_err());
    }
}
