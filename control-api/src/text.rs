//! Configuration text to a JSON value.
//!
//! In: bytes as a file holds them. Out: one `serde_json::Value`, or one error that names the line.
//! Duplicate keys are errors in both notations, because the reader cannot know which one was meant.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::load::MAX_TEXT_BYTES;
use crate::problem::Problem;

/// The notation of a configuration text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// YAML 1.1 as far as configurations use it: anchors, aliases and merge keys included.
    Yaml,
    /// JSON, without comments.
    Json,
    /// JSON when the text is a JSON object, else YAML.
    #[default]
    Auto,
}

/// Parses `text`, which holds an object.
///
/// # Errors
/// What is wrong with it; the problem has an empty path.
pub fn parse(text: &[u8], format: Format) -> Result<Value, Problem> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(whole(format!(
            "the configuration has {} bytes, more than the limit of {MAX_TEXT_BYTES}",
            text.len()
        )));
    }
    let text = std::str::from_utf8(text).map_err(|error| {
        let before = text.get(..error.valid_up_to()).unwrap_or_default();
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        whole(format!("the configuration is not UTF-8 text (line {line}, byte {})", error.valid_up_to()))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let value = match format {
        Format::Json => json(text),
        Format::Yaml => yaml(text),
        // An object in braces is nearly always JSON, but it may be YAML's flow notation too.
        Format::Auto if text.trim_start().starts_with('{') => {
            json(text).or_else(|e| yaml(text).map_err(|_| e))
        }
        Format::Auto => yaml(text),
    }?;
    match value {
        Value::Null => Err(whole("the configuration is empty".to_owned())),
        Value::Object(_) => Ok(value),
        other => Err(whole(format!("the configuration must be an object, found {}", describe(&other)))),
    }
}

/// What a JSON value is, for messages: its kind, and the value itself when it is short.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) if s.chars().count() <= 40 => format!("the string {s:?}"),
        Value::String(_) => "a long string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn whole(message: String) -> Problem {
    Problem::new("", message)
}

fn json(text: &str) -> Result<Value, Problem> {
    serde_json::from_str::<Strict>(text).map(|v| v.0).map_err(|e| whole(format!("invalid JSON: {e}")))
}

/// The deepest flow nesting (`[[[`) that is handed to the YAML parser. Its own limit comes much lower, but
/// only once it has scanned everything, in time that grows with the square of the nesting.
const MAX_FLOW_NESTING: usize = 10_000;

fn yaml(text: &str) -> Result<Value, Problem> {
    let mut nesting = 0usize;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => nesting += 1,
            b']' | b'}' => nesting = nesting.saturating_sub(1),
            _ => {}
        }
        if nesting > MAX_FLOW_NESTING {
            return Err(whole(format!(
                "invalid YAML: recursion limit exceeded: {MAX_FLOW_NESTING} open brackets"
            )));
        }
    }
    let invalid = |e: serde_yaml_ng::Error| whole(format!("invalid YAML: {e}"));
    let mut value: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).map_err(invalid)?;
    value.apply_merge().map_err(invalid)?;
    yaml_to_json(value).map_err(|e| whole(format!("invalid YAML: {e}")))
}

/// Depth is bounded by the YAML parser's own limit.
fn yaml_to_json(value: serde_yaml_ng::Value) -> Result<Value, String> {
    use serde_yaml_ng::Value as Yaml;
    Ok(match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(b) => Value::Bool(b),
        Yaml::String(s) => Value::String(s),
        Yaml::Number(n) => {
            if let Some(i) = n.as_i64() {
                Value::from(i)
            } else if let Some(u) = n.as_u64() {
                Value::from(u)
            } else {
                let f = n.as_f64().unwrap_or(f64::NAN);
                // JSON has no number for these; protobuf's JSON form writes them as text.
                Number::from_f64(f).map_or_else(|| Value::String(non_finite(f).to_owned()), Value::Number)
            }
        }
        Yaml::Sequence(items) => {
            Value::Array(items.into_iter().map(yaml_to_json).collect::<Result<Vec<_>, _>>()?)
        }
        Yaml::Mapping(entries) => {
            let mut object = Map::with_capacity(entries.len());
            for (key, value) in entries {
                let key = match yaml_to_json(key)? {
                    Value::String(s) => s,
                    Value::Number(n) => n.to_string(),
                    Value::Bool(b) => b.to_string(),
                    other => return Err(format!("{} cannot be a key", describe(&other))),
                };
                let value = yaml_to_json(value)?;
                if object.contains_key(&key) {
                    return Err(format!("duplicate key {key:?}"));
                }
                object.insert(key, value);
            }
            Value::Object(object)
        }
        Yaml::Tagged(tagged) => return Err(format!("the tag {} has no meaning here", tagged.tag)),
    })
}

pub(crate) fn non_finite(value: f64) -> &'static str {
    if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

/// A JSON value whose objects have no duplicate keys.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format!("duplicate key {key:?}")));
            }
            let Strict(value) = map.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}
