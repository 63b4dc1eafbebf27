//! `COALESCE({"operators": [...]})`: the first of several operators that has a value.

use serde_json::Value;

use super::operator::Operator;
use super::parse::Token;
use super::{FormatContext, FormatError};

/// The operators, each with the longest value that it may give.
#[derive(Debug)]
pub(super) struct Coalesce(Box<[(Operator, Option<usize>)]>);

impl Coalesce {
    /// From its argument: an entry is the name of an operator, or an object of `command`, `param` and `max_length`.
    pub(super) fn parse(argument: &str) -> Result<Self, FormatError> {
        let wrong = |reason: &str| FormatError::Argument {
            operator: "COALESCE".into(),
            argument: argument.into(),
            reason: reason.into(),
        };
        let tree: Value = serde_json::from_str(argument).map_err(|error| wrong(&error.to_string()))?;
        let entries = tree.get("operators").and_then(Value::as_array).filter(|entries| !entries.is_empty());
        let entries =
            entries.ok_or_else(|| wrong("must be an object with a list \"operators\" of at least one"))?;
        let operators = entries.iter().map(|entry| {
            let text = |key| entry.get(key).and_then(Value::as_str);
            let name = entry.as_str().or_else(|| text("command")).filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| wrong("an entry must be a name or have a \"command\""))?;
            let limit = match entry.get("max_length") {
                None => None,
                Some(length) => Some(
                    length
                        .as_u64()
                        .filter(|length| *length > 0)
                        .and_then(|length| usize::try_from(length).ok())
                        .ok_or_else(|| wrong("\"max_length\" must be a positive integer"))?,
                ),
            };
            let operator = Operator::new(&Token { name, argument: text("param"), limit })?;
            Ok((operator, limit))
        });
        operators.collect::<Result<_, FormatError>>().map(Self)
    }

    /// Appends the value; false when none has one.
    pub(super) fn write(&self, out: &mut Vec<u8>, ctx: &FormatContext<'_>) -> bool {
        let start = out.len();
        self.0.iter().any(|(operator, limit)| {
            let there = operator.write(out, ctx);
            let end = limit.filter(|_| there).map_or(out.len(), |limit| start.saturating_add(limit));
            out.truncate(if there { end } else { start });
            there
        })
    }

    /// Whether what has a value gives JSON by itself.
    pub(super) fn gives_json(&self, ctx: &FormatContext<'_>) -> bool {
        let mut value = Vec::new();
        let first = self.0.iter().find(|(operator, _)| operator.write(&mut value, ctx));
        first.is_some_and(|(operator, _)| operator.gives_json(ctx))
    }

    /// The names of those that never have one.
    pub(super) fn never_filled(&self) -> impl Iterator<Item = &Box<str>> {
        self.0.iter().filter_map(|(operator, _)| match operator {
            Operator::Never(name) => Some(name),
            _ => None,
        })
    }
}
