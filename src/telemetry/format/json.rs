//! JSON formats: a tree whose strings are formats.

use super::{parse, Format, FormatContext, FormatError, Look, Part};

/// A compiled JSON value.
#[derive(Debug)]
pub(super) enum Node {
    /// Rendered beforehand.
    Constant(Box<[u8]>),
    /// One operator: typed.
    Value { part: Box<[Part; 1]>, omit: bool },
    /// Text with operators in it: a string.
    Text { parts: Vec<Part>, look: Look },
    /// Elements in order.
    List { items: Vec<Node>, omit: bool },
    /// Sorted by key; the key is rendered with quotes and colon.
    Object { fields: Vec<(Box<[u8]>, Node)>, omit: bool },
}

pub(super) fn compile(
    tree: &serde_json::Value,
    omit: bool,
    never_filled: &mut Vec<Box<str>>,
) -> Result<Node, FormatError> {
    use serde_json::Value;
    // Values are escaped as JSON, whole.
    let look = Look { dash: !omit, escape: false, quotes: false };
    Ok(match tree {
        Value::String(format) => {
            let mut parts = parse::parse(format)?;
            never_filled.extend(parse::never_filled(&parts));
            match parts.as_mut_slice() {
                [] => constant(&Value::String(String::new())),
                [Part::Literal(text)] => constant(&String::from_utf8_lossy(text).into()),
                [Part::Operator { .. }] => match <[Part; 1]>::try_from(parts) {
                    Ok(part) => Node::Value { part: Box::new(part), omit },
                    Err(parts) => Node::Text { parts, look },
                },
                _ => Node::Text { parts, look },
            }
        }
        Value::Array(items) => {
            let items = items.iter().map(|item| compile(item, omit, never_filled));
            Node::List { items: items.collect::<Result<_, _>>()?, omit }
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| *key);
            let compiled = fields.into_iter().map(|(key, value)| {
                let mut key = Value::String(key.clone()).to_string();
                key.push(':');
                Ok((key.into_bytes().into(), compile(value, omit, never_filled)?))
            });
            Node::Object { fields: compiled.collect::<Result<_, FormatError>>()?, omit }
        }
        // Structs hold doubles; whole ones are shown without a decimal point.
        Value::Number(number) => match number.as_f64() {
            Some(value) if value.fract() == 0.0 && value.abs() < 9e15 => constant(&(value as i64).into()),
            _ => constant(tree),
        },
        Value::Bool(_) | Value::Null => constant(tree),
    })
}

fn constant(value: &serde_json::Value) -> Node {
    Node::Constant(value.to_string().into_bytes().into())
}

impl Node {
    /// Appends the object as JSON.
    pub fn render(&self, out: &mut Vec<u8>, ctx: &FormatContext<'_>) {
        if !self.try_render(out, ctx) {
            out.extend_from_slice(b"{}");
        }
    }

    /// Appends the value; false, with nothing appended, when it is to be left out.
    fn try_render(&self, out: &mut Vec<u8>, ctx: &FormatContext<'_>) -> bool {
        match self {
            Node::Constant(bytes) => out.extend_from_slice(bytes),
            Node::Value { part, omit } => {
                let [Part::Operator { operator, limit, .. }] = &**part else { return false };
                let start = out.len();
                if !operator.write(out, ctx) {
                    out.truncate(start);
                    if *omit {
                        return false;
                    }
                    out.extend_from_slice(b"null");
                } else if !operator.gives_json(ctx) {
                    if let Some(limit) = limit {
                        out.truncate(start.saturating_add(*limit));
                    }
                    quote_from(out, start);
                }
            }
            Node::Text { parts, look } => {
                let start = out.len();
                super::render_parts(parts, *look, out, ctx);
                quote_from(out, start);
            }
            Node::List { items, omit } => {
                return wrapped(out, b"[]", *omit, items, |item, out| item.try_render(out, ctx));
            }
            Node::Object { fields, omit } => {
                return wrapped(out, b"{}", *omit, fields, |(key, value), out| {
                    let start = out.len();
                    out.extend_from_slice(key);
                    let shown = value.try_render(out, ctx);
                    if !shown {
                        out.truncate(start);
                    }
                    shown
                });
            }
        }
        true
    }
}

/// Writes the items that `write` shows between brackets, with commas. When there are none and `omit`
/// is set, writes nothing and says so.
fn wrapped<T>(
    out: &mut Vec<u8>,
    brackets: &[u8; 2],
    omit: bool,
    items: &[T],
    mut write: impl FnMut(&T, &mut Vec<u8>) -> bool,
) -> bool {
    let start = out.len();
    out.push(brackets[0]);
    let mut empty = true;
    for item in items {
        let before = out.len();
        if !empty {
            out.push(b',');
        }
        if write(item, out) {
            empty = false;
        } else {
            out.truncate(before);
        }
    }
    out.push(brackets[1]);
    if empty && omit {
        out.truncate(start);
        return false;
    }
    true
}

/// Turns `out[start..]` into a JSON string. Bytes that are not UTF-8 become U+FFFD.
fn quote_from(out: &mut Vec<u8>, start: usize) {
    let Some(value) = out.get(start..) else { return };
    let plain = value.iter().all(|b| (b' '..0x7f).contains(b) && *b != b'"' && *b != b'\\');
    if plain {
        out.insert(start, b'"');
        out.push(b'"');
        return;
    }
    let text = serde_json::Value::String(String::from_utf8_lossy(value).into_owned()).to_string();
    out.truncate(start);
    out.extend_from_slice(text.as_bytes());
}

impl Format {
    /// Whether this is a JSON format.
    pub fn is_json(&self) -> bool {
        matches!(self.0.body, super::Body::Json(_))
    }
}
