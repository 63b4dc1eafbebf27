//! Regular expressions as config writes them: RE2's syntax, which the `regex` crate does not quite
//! share.
//!
//! Comes in: a pattern in RE2's syntax. Goes out: a compiled matcher on bytes that matches the same
//! texts in linear time. Where the crate reads the same characters in another way (`\d` beyond ASCII,
//! set operators in classes, `\<`, a brace that opens no repetition), the pattern is rewritten first.

use regex::bytes::Regex as Engine;

/// Why a pattern or a substitution was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegexError {
    /// An escape that RE2 does not know, or one that this proxy does not take.
    #[error("regular expression {pattern:?}: the escape \\{escape} is not supported")]
    Escape {
        /// The whole pattern.
        pattern: String,
        /// The character after the backslash.
        escape: String,
    },
    /// A group with flags that RE2 does not have.
    #[error("regular expression {pattern:?}: the flags (?{flags}) are not supported")]
    Flags {
        /// The whole pattern.
        pattern: String,
        /// The text between `(?` and `)` or `:`.
        flags: String,
    },
    /// Refused by the engine: syntax, or a program that is too big.
    #[error("regular expression {pattern:?}: {reason}")]
    Engine {
        /// The whole pattern.
        pattern: String,
        /// What the engine says, on one line.
        reason: String,
    },
    /// A substitution names a group that the pattern does not have, or ends in a backslash.
    #[error("substitution {substitution:?}: \\{escape} is no group of the pattern (it has {groups})")]
    Substitution {
        /// The whole substitution.
        substitution: String,
        /// The character after the backslash.
        escape: String,
        /// Number of groups in the pattern.
        groups: usize,
    },
}

/// A pattern that must match the whole text.
#[derive(Debug, Clone)]
pub struct Regex(Engine);

impl Regex {
    /// Compiles `pattern`.
    pub fn new(pattern: &str) -> Result<Self, RegexError> {
        // Compiled alone first: a stray parenthesis must not close the group that anchors it.
        engine(pattern, &translate(pattern)?)?;
        engine(pattern, &format!(r"\A(?:{})\z", translate(pattern)?)).map(Self)
    }

    /// Whether the pattern matches all of `text`.
    pub fn matches(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }
}

/// A pattern that may match anywhere in the text.
#[derive(Debug, Clone)]
pub struct Search(Engine);

impl Search {
    /// Compiles `pattern`.
    pub fn new(pattern: &str) -> Result<Self, RegexError> {
        engine(pattern, &translate(pattern)?).map(Self)
    }

    /// Whether the pattern matches a part of `text`.
    pub fn finds(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }
}

/// A pattern and what every match of it is replaced by (`RegexMatchAndSubstitute`).
#[derive(Debug, Clone)]
pub struct Substitution {
    pattern: Engine,
    parts: Box<[Part]>,
}

#[derive(Debug, Clone)]
enum Part {
    Literal(Box<[u8]>),
    Group(usize),
}

impl Substitution {
    /// Compiles `pattern` and `substitution`, in which `\0` to `\9` stand for groups and `\\` for a
    /// backslash.
    pub fn new(pattern: &str, substitution: &str) -> Result<Self, RegexError> {
        let pattern = engine(pattern, &translate(pattern)?)?;
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut bytes = substitution.bytes();
        while let Some(byte) = bytes.next() {
            if byte != b'\\' {
                literal.push(byte);
                continue;
            }
            match bytes.next() {
                Some(b'\\') => literal.push(b'\\'),
                Some(digit @ b'0'..=b'9') if usize::from(digit - b'0') < pattern.captures_len() => {
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal).into()));
                    }
                    parts.push(Part::Group(usize::from(digit - b'0')));
                }
                other => {
                    return Err(RegexError::Substitution {
                        substitution: substitution.to_owned(),
                        escape: other.map(|byte| char::from(byte).to_string()).unwrap_or_default(),
                        groups: pattern.captures_len() - 1, // Group 0, the match, is always there.
                    });
                }
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Self { pattern, parts: parts.into() })
    }

    /// `text` with every match replaced.
    pub fn replace_all(&self, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len());
        let mut end = 0;
        for captures in self.pattern.captures_iter(text) {
            let Some(whole) = captures.get(0) else { continue };
            out.extend_from_slice(text.get(end..whole.start()).unwrap_or_default());
            for part in &self.parts {
                match part {
                    Part::Literal(literal) => out.extend_from_slice(literal),
                    Part::Group(group) => {
                        out.extend_from_slice(captures.get(*group).map_or(b"", |found| found.as_bytes()));
                    }
                }
            }
            end = whole.end();
        }
        out.extend_from_slice(text.get(end..).unwrap_or_default());
        out
    }
}

fn engine(pattern: &str, translated: &str) -> Result<Engine, RegexError> {
    Engine::new(translated).map_err(|error| {
        // The engine draws the pattern and an arrow; its last line says what is wrong.
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
        RegexError::Engine { pattern: pattern.to_owned(), reason: reason.to_owned() }
    })
}

const SPACE: &str = r"\t\n\f\r ";

/// `pattern` in the syntax of the `regex` crate.
fn translate(pattern: &str) -> Result<String, RegexError> {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    while let Some(next) = rest.chars().next() {
        let after = &rest[next.len_utf8()..];
        rest = match next {
            '\\' => escape(pattern, after, false, &mut out)?,
            '[' => class(pattern, after, &mut out)?,
            '(' => {
                check_flags(pattern, after)?;
                out.push('(');
                after
            }
            '{' if !opens_repetition(after) => {
                out.push_str(r"\{");
                after
            }
            _ => {
                out.push(next);
                after
            }
        };
    }
    Ok(out)
}

/// Translates the escape whose backslash was just read; returns what follows it.
fn escape<'p>(pattern: &str, rest: &'p str, in_class: bool, out: &mut String) -> Result<&'p str, RegexError> {
    let unsupported =
        |escape: &str| RegexError::Escape { pattern: pattern.to_owned(), escape: escape.to_owned() };
    let next = rest.chars().next().ok_or_else(|| unsupported(""))?;
    let after = &rest[next.len_utf8()..];
    let mut set = |negated: bool, members: &str| match (in_class, negated) {
        (true, false) => out.push_str(members),
        _ => {
            out.push_str(if negated { "[^" } else { "[" });
            out.push_str(members);
            out.push(']');
        }
    };
    match next {
        'd' | 'D' => set(next == 'D', "0-9"),
        's' | 'S' => set(next == 'S', SPACE),
        'w' | 'W' => set(next == 'W', "0-9A-Za-z_"),
        'b' if !in_class => out.push_str(r"(?-u:\b)"),
        'B' if !in_class => out.push_str(r"(?-u:\B)"),
        'C' if !in_class => out.push_str("(?s-u:.)"),
        'Q' if !in_class => {
            let (quoted, after) = after.split_once(r"\E").unwrap_or((after, ""));
            out.push_str(&regex::escape(quoted));
            return Ok(after);
        }
        'A' | 'z' if !in_class => out.extend(['\\', next]),
        'a' | 'f' | 't' | 'n' | 'r' | 'v' => out.extend(['\\', next]),
        'p' | 'P' | 'x' => {
            out.extend(['\\', next]);
            // A braced argument is no repetition.
            if let Some(end) = after.starts_with('{').then(|| after.find('}')).flatten() {
                out.push_str(&after[..=end]);
                return Ok(&after[end + 1..]);
            }
        }
        '<' | '>' => out.push(next),
        _ if next.is_ascii_punctuation() => out.extend(['\\', next]),
        _ => return Err(unsupported(next.encode_utf8(&mut [0; 4]))),
    }
    Ok(after)
}

/// Translates the class whose bracket was just read; returns what follows it. RE2 has no classes in
/// classes and no set operators.
fn class<'p>(pattern: &str, mut rest: &'p str, out: &mut String) -> Result<&'p str, RegexError> {
    out.push('[');
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    let mut first = true;
    let mut after_dash = false;
    while let Some(next) = rest.chars().next() {
        let after = &rest[next.len_utf8()..];
        let was_dash = std::mem::take(&mut after_dash);
        match next {
            ']' if !first => {
                out.push(']');
                return Ok(after);
            }
            '\\' => {
                rest = escape(pattern, after, true, out)?;
                first = false;
                continue;
            }
            '[' => match posix_class(rest) {
                Some(named) => {
                    out.push_str(named);
                    rest = &rest[named.len()..];
                    first = false;
                    continue;
                }
                None => out.push_str(r"\["),
            },
            '-' if first || was_dash => out.push_str(r"\-"),
            '-' => {
                out.push('-');
                after_dash = true;
            }
            ']' | '&' | '~' => out.extend(['\\', next]),
            _ => out.push(next),
        }
        first = false;
        rest = after;
    }
    // Unclosed: the engine says so.
    Ok(rest)
}

/// The `[:name:]` that `text` starts with.
fn posix_class(text: &str) -> Option<&str> {
    let inner = text.strip_prefix("[:")?;
    let end = inner.find(":]")?;
    let name = inner[..end].strip_prefix('^').unwrap_or(&inner[..end]);
    name.bytes().all(|byte| byte.is_ascii_lowercase()).then(|| &text[..end + 4])
}

/// Whether what follows a brace makes it a repetition: `2}`, `2,}`, `2,5}`.
fn opens_repetition(after: &str) -> bool {
    let Some((inner, _)) = after.split_once('}') else { return false };
    let (least, most) = inner.split_once(',').unwrap_or((inner, ""));
    !least.is_empty() && least.bytes().chain(most.bytes()).all(|byte| byte.is_ascii_digit())
}

fn check_flags(pattern: &str, after: &str) -> Result<(), RegexError> {
    let Some(group) = after.strip_prefix('?') else { return Ok(()) };
    if group.starts_with(['P', '<']) {
        return Ok(());
    }
    let flags: String = group.chars().take_while(|c| *c != ')' && *c != ':').collect();
    if flags.chars().all(|flag| "imsU-".contains(flag)) {
        return Ok(());
    }
    Err(RegexError::Flags { pattern: pattern.to_owned(), flags })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Regex::new(pattern).unwrap().matches(text.as_bytes())
    }

    #[test]
    fn the_whole_text_must_match() {
        assert!(matches("a|ab", "ab"));
        assert!(!matches("a", "ab"));
        assert!(matches("", ""));
        assert!(!matches("a$", "a\n"));
        assert!(!matches("a.b", "a\nb"));
        assert!(matches("(?s)a.b", "a\nb"));
    }

    #[test]
    fn classes_are_ascii() {
        assert!(matches(r"\d+", "12"));
        assert!(!matches(r"\d", "٣"));
        assert!(!matches(r"\w", "é"));
        assert!(matches(r"\W", "é"));
        assert!(matches(r"[^\d]", "٣"));
        assert!(matches(r"[a\D]+", "axy"));
        assert!(matches(r".\bx", "-x"));
        assert!(!matches(r"\s", "\u{2003}"));
    }

    #[test]
    fn what_only_the_engine_would_read_otherwise() {
        assert!(matches(r"/users/{id}", "/users/{id}"));
        assert!(matches(r"a{,2}", "a{,2}"));
        assert!(matches(r"a{2}b{1,}c{0,1}", "aabbc"));
        assert!(matches(r"[a&&b]+", "a&b"));
        assert!(!matches(r"[a-z&&[x]]", "x"));
        assert!(matches(r"[[a]+", "[a"));
        assert!(matches(r"[]a]+", "]a"));
        assert!(matches(r"[^]a]", "b"));
        assert!(matches(r"[a~~b]+", "a~b"));
        assert!(matches(r"[[:alpha:]-]+", "ab-"));
        assert!(matches(r"[+--]+", "+,-"));
        assert!(matches(r"[--/]+", "-./"));
        assert!(matches(r"\<x\>", "<x>"));
        assert!(matches(r"\Qa.b\E.", "a.bc"));
        assert!(matches(r"\x{41}\x42\pL", "ABé"));
    }

    #[test]
    fn refuses_what_re2_does_not_have() {
        for pattern in [r"\1", r"\u0041", "(?x) a", "(?=a)", "(?i-u)a", "(", "a)", ")(", "[a", r"a\", "*"] {
            assert!(Regex::new(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn invalid_utf8_matches_no_dot() {
        let regex = Regex::new(".*").unwrap();
        assert!(regex.matches("é".as_bytes()));
        assert!(!regex.matches(b"\xff"));
    }

    #[test]
    fn substitutes_every_match() {
        let swap = Substitution::new("^/([a-z]+)/([0-9]+)", r"/\2/\1\\").unwrap();
        assert_eq!(swap.replace_all(b"/users/12/x"), b"/12/users\\/x");
        assert_eq!(swap.replace_all(b"/none"), b"/none");
        let every = Substitution::new("one", r"<\0>").unwrap();
        assert_eq!(every.replace_all(b"/xx/one/yy/one/zz"), b"/xx/<one>/yy/<one>/zz");
        let empty = Substitution::new("a*", "x").unwrap();
        assert_eq!(empty.replace_all(b"baac"), b"xbxcx");
        assert!(Substitution::new("(a)", r"\2").is_err());
        assert!(Substitution::new("(a)", r"\").is_err());
        assert!(Substitution::new("(a)", r"\x").is_err());
    }
}
