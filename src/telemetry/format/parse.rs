//! From the text of a format to its parts.

use super::operator::Operator;
use super::{FormatError, Part};

/// Splits `format` into literal text and operators.
pub(super) fn parse(format: &str) -> Result<Vec<Part>, FormatError> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    // Whether the format's own text has an open double quote here.
    let mut quoted = false;
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        let (text, from) = rest.split_at(at);
        take_text(text, &mut literal, &mut quoted);
        if let Some(after) = from.strip_prefix("%%") {
            literal.push('%');
            rest = after;
            continue;
        }
        let syntax = || FormatError::Syntax { format: format.into(), position: format.len() - from.len() };
        let (token, after) = Token::split(from).ok_or_else(syntax)?;
        rest = after;
        let operator = Operator::new(&token)?;
        // Known for the whole life of the process: as good as text.
        if let Operator::Constant(Some(value)) = &operator {
            let end = token.limit.unwrap_or(value.len()).min(value.len());
            literal.push_str(&String::from_utf8_lossy(value.as_bytes().get(..end).unwrap_or_default()));
            continue;
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(std::mem::take(&mut literal).into_bytes().into()));
        }
        parts.push(Part::Operator { operator, limit: token.limit, quoted });
    }
    take_text(rest, &mut literal, &mut quoted);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal.into_bytes().into()));
    }
    Ok(parts)
}

fn take_text(text: &str, literal: &mut String, quoted: &mut bool) {
    literal.push_str(text);
    *quoted ^= text.bytes().filter(|b| *b == b'"').count() % 2 == 1;
}

/// Names of the operators in `parts` that never have a value here.
pub(super) fn never_filled(parts: &[Part]) -> Vec<Box<str>> {
    let mut names = Vec::new();
    for part in parts {
        match part {
            Part::Operator { operator: Operator::Never(name), .. } => names.push(name.clone()),
            Part::Operator { operator: Operator::Coalesce(coalesce), .. } => {
                names.extend(coalesce.never_filled().cloned());
            }
            _ => {}
        }
    }
    names
}

/// `%NAME(ARGUMENT):LIMIT%` taken apart.
pub(super) struct Token<'a> {
    pub name: &'a str,
    pub argument: Option<&'a str>,
    pub limit: Option<usize>,
}

impl<'a> Token<'a> {
    /// Takes a token off the front of `text`, which starts with `%`.
    fn split(text: &'a str) -> Option<(Token<'a>, &'a str)> {
        let text = text.strip_prefix('%')?;
        let end = text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))?;
        let (name, rest) = text.split_at(end);
        if name.is_empty() {
            return None;
        }
        let Some(inner) = rest.strip_prefix('(') else {
            let (limit, rest) = Self::limit(rest)?;
            return Some((Token { name, argument: None, limit }, rest));
        };
        // The argument may hold parentheses and percent signs itself (time formats): it ends at the
        // first parenthesis that ends the token.
        inner.match_indices(')').find_map(|(close, _)| {
            let (argument, rest) = inner.split_at(close);
            let (limit, rest) = Self::limit(rest.get(1..)?)?;
            Some((Token { name, argument: Some(argument), limit }, rest))
        })
    }

    /// `%` or `:12%`.
    fn limit(rest: &str) -> Option<(Option<usize>, &str)> {
        if let Some(rest) = rest.strip_prefix('%') {
            return Some((None, rest));
        }
        let (digits, rest) = rest.strip_prefix(':')?.split_once('%')?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        // More digits than a length can have: no limit in effect.
        Some((Some(digits.parse().unwrap_or(usize::MAX)), rest))
    }
}
