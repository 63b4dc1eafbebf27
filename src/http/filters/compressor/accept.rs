//! What a client accepts (RFC 9110 §12.5.3), and which of the codings at hand it likes best.

use smallvec::SmallVec;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http::filters) enum Choice {
    /// The client names this coding.
    Coding(&'static str),
    /// It takes any: this is the first.
    Any(&'static str),
    /// It wants the body as it is.
    Identity,
    /// It names nothing that is at hand.
    None,
}

impl Choice {
    /// Chooses among `offers`: the codings, and whether each goes before others that are liked as much. As in Envoy, the
    /// first of equals wins otherwise, and what names no weight that can be read is passed over.
    pub(super) fn of(accept: &[u8], offers: impl Iterator<Item = (&'static str, bool)>) -> Self {
        let mut open: SmallVec<[(&'static str, bool); 4]> = SmallVec::new();
        for (token, first) in offers {
            if !open.iter().any(|(other, _)| *other == token) {
                open.push((token, first));
            }
        }
        let members: SmallVec<[_; 8]> = accept.split(|byte| *byte == b',').filter_map(member).collect();
        for (name, _) in members.iter().filter(|(_, weight)| *weight == 0.0) {
            open.retain(|(token, _)| token.as_bytes() != *name);
        }
        let (mut best, mut most) = (Choice::None, 0.0);
        for (name, weight) in members {
            let offer = open.iter().find(|(token, _)| token.as_bytes() == name);
            let (found, first) = match (offer, name) {
                (Some((token, first)), _) => (Choice::Coding(token), *first),
                (None, b"identity") => (Choice::Identity, false),
                (None, b"*") => (Choice::Any(""), false),
                (None, _) => continue,
            };
            if weight > most || (weight == most && first) {
                (best, most) = (found, weight);
            }
        }
        match best {
            _ if open.is_empty() => Choice::None,
            Choice::Any(_) => open.first().map_or(Choice::None, |(token, _)| Choice::Any(token)),
            best => best,
        }
    }
}

/// A coding and its weight.
fn member(text: &[u8]) -> Option<(&[u8], f32)> {
    let mut parts = text.splitn(2, |byte| *byte == b';');
    let name = parts.next()?.trim_ascii();
    if name.is_empty() {
        return None;
    }
    let Some(parameters) = parts.next() else { return Some((name, 1.0)) };
    let mut parts = parameters.splitn(2, |byte| *byte == b'=');
    let is_weight = parts.next()?.trim_ascii().eq_ignore_ascii_case(b"q");
    match parts.next() {
        Some(value) if is_weight => {
            let weight: f32 = std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()?;
            Some((name, weight))
        }
        _ => Some((name, 1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        let (plain, first) = ([("gzip", false), ("br", false)], [("gzip", false), ("br", true)]);
        let cases = [
            ("gzip", Choice::Coding("gzip"), Choice::Coding("gzip")),
            ("gzip, br", Choice::Coding("gzip"), Choice::Coding("br")),
            ("br, gzip", Choice::Coding("br"), Choice::Coding("br")),
            ("br;q=0.5, gzip", Choice::Coding("gzip"), Choice::Coding("gzip")),
            ("gzip; Q=0.4 , br ; q = 0.5", Choice::Coding("br"), Choice::Coding("br")),
            ("gzip;q=1.0;x=2, br;q=0.9", Choice::Coding("br"), Choice::Coding("br")),
            ("*", Choice::Any("gzip"), Choice::Any("gzip")),
            ("gzip;q=0, *", Choice::Any("br"), Choice::Any("br")),
            ("*;q=0", Choice::None, Choice::None),
            ("identity", Choice::Identity, Choice::Identity),
            ("identity, gzip;q=0.3", Choice::Identity, Choice::Identity),
            ("gzip;q=0", Choice::None, Choice::None),
            ("gzip;q=bad", Choice::None, Choice::None),
            ("GZIP", Choice::None, Choice::None),
            ("deflate", Choice::None, Choice::None),
            ("", Choice::None, Choice::None),
            (",,", Choice::None, Choice::None),
            ("gzip, gzip;q=0", Choice::None, Choice::None),
            ("identity, gzip;q=0, br;q=0", Choice::None, Choice::None),
            ("br;q=0.5, gzip, gzip;q=0", Choice::Coding("br"), Choice::Coding("br")),
        ];
        for (accept, expected, with_first) in cases {
            assert_eq!(Choice::of(accept.as_bytes(), plain.into_iter()), expected, "{accept}");
            assert_eq!(Choice::of(accept.as_bytes(), first.into_iter()), with_first, "{accept}");
        }
    }
}
