//! Reads the fields of an object one by one, and remembers what is wrong with each.

use std::net::SocketAddr;

use serde_json::{Map, Value};

use crate::problem::Problem;
use crate::text::describe;

/// One object being read. Fields nobody asked for are problems, see [`finish`](Self::finish).
pub(super) struct Fields<'a> {
    path: String,
    object: &'a Map<String, Value>,
    known: Vec<&'static str>,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Fields<'a> {
    /// Reads `value` with `read`, if it is an object.
    pub(super) fn read<T>(
        path: &str,
        value: &Value,
        problems: &mut Vec<Problem>,
        read: impl FnOnce(&mut Fields<'_>) -> T,
    ) -> Option<T> {
        let Some(object) = value.as_object() else {
            problems.push(Problem::new(path, format!("must be an object, found {}", describe(value))));
            return None;
        };
        let mut fields = Fields { path: path.to_owned(), object, known: Vec::new(), problems };
        let result = read(&mut fields);
        fields.finish();
        Some(result)
    }

    fn finish(self) {
        let Fields { path, object, known, problems } = self;
        for name in object.keys().filter(|name| !known.contains(&name.as_str())) {
            let message = format!("no such field; there are {}", known.join(", "));
            problems.push(Problem::new(join(&path, name), message));
        }
    }

    pub(super) fn path(&self, field: &str) -> String {
        join(&self.path, field)
    }

    pub(super) fn problem(&mut self, field: &str, message: impl Into<String>) {
        let path = if field.is_empty() { self.path.clone() } else { self.path(field) };
        self.problems.push(Problem::new(path, message));
    }

    /// The value of a field, if it is there.
    pub(super) fn value(&mut self, field: &'static str) -> Option<&'a Value> {
        self.known.push(field);
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// An object in a field.
    pub(super) fn object<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut Fields<'_>) -> T,
    ) -> Option<T> {
        let value = self.value(field)?;
        let path = self.path(field);
        Fields::read(&path, value, self.problems, read)
    }

    /// The entries of an object whose keys are names, each with its path.
    pub(super) fn named(&mut self, field: &'static str) -> Vec<(String, &'a str, &'a Value)> {
        let Some(value) = self.value(field) else { return Vec::new() };
        let Some(object) = value.as_object() else {
            self.problem(field, format!("must be an object with names as keys, found {}", describe(value)));
            return Vec::new();
        };
        let path = self.path(field);
        object.iter().map(|(name, value)| (format!("{path}[{name:?}]"), name.as_str(), value)).collect()
    }

    /// The items of a list, each with its path. One item may stand without a list.
    pub(super) fn items(&mut self, field: &'static str) -> Vec<(String, &'a Value)> {
        let path = self.path(field);
        match self.value(field) {
            None => Vec::new(),
            Some(Value::Array(items)) => {
                items.iter().enumerate().map(|(index, item)| (format!("{path}[{index}]"), item)).collect()
            }
            Some(one) => vec![(path, one)],
        }
    }

    pub(super) fn problems(&mut self) -> &mut Vec<Problem> {
        self.problems
    }

    pub(super) fn text(&mut self, field: &'static str) -> Option<String> {
        let value = self.value(field)?;
        match value {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            other => {
                self.problem(field, format!("must be text, found {}", describe(other)));
                None
            }
        }
    }

    /// One of `choices`.
    pub(super) fn choice(&mut self, field: &'static str, choices: &[&'static str]) -> Option<&'static str> {
        let text = self.text(field)?;
        let found = choices.iter().find(|choice| **choice == text).copied();
        if found.is_none() {
            self.problem(field, format!("{text:?} is none of {}", choices.join(", ")));
        }
        found
    }

    pub(super) fn texts(&mut self, field: &'static str) -> Vec<String> {
        let mut texts = Vec::new();
        for (path, item) in self.items(field) {
            match item.as_str().filter(|text| !text.is_empty()) {
                Some(text) => texts.push(text.to_owned()),
                None => {
                    let message = format!("must be text, found {}", describe(item));
                    self.problems.push(Problem::new(path, message));
                }
            }
        }
        texts
    }

    /// A whole number within limits.
    pub(super) fn number(&mut self, field: &'static str, least: u64, most: u64) -> Option<u64> {
        let value = self.value(field)?;
        let number = value.as_u64().filter(|number| (least..=most).contains(number));
        if number.is_none() {
            let found = describe(value);
            self.problem(field, format!("must be a whole number from {least} to {most}, found {found}"));
        }
        number
    }

    /// A time such as `250ms`, `15s`, `1.5s`, `2m` or `1h`, in the form that Envoy reads.
    pub(super) fn time(&mut self, field: &'static str) -> Option<String> {
        let text = self.text(field)?;
        let seconds = seconds_of(&text);
        if seconds.is_none() {
            self.problem(field, format!("{text:?} is no time such as 250ms, 15s, 2m or 1h, up to a year"));
        }
        seconds
    }

    /// An IP address with a port.
    pub(super) fn socket(&mut self, field: &'static str) -> Option<SocketAddr> {
        let text = self.text(field)?;
        let parsed = text.parse();
        if parsed.is_err() {
            self.problem(field, format!("{text:?} is no IP address with a port, such as 127.0.0.1:8080"));
        }
        parsed.ok()
    }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() {
        field.to_owned()
    } else {
        format!("{path}.{field}")
    }
}

/// Seconds with up to nine decimals and an `s`.
fn seconds_of(text: &str) -> Option<String> {
    const YEAR: f64 = 365.0 * 24.0 * 3600.0;
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, factor)))?;
    let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let seconds = number.parse::<f64>().ok().filter(|_| plain)? * factor;
    (seconds <= YEAR).then(|| {
        let decimals = format!("{seconds:.9}");
        format!("{}s", decimals.trim_end_matches('0').trim_end_matches('.'))
    })
}

#[cfg(test)]
mod tests {
    use super::seconds_of;

    #[test]
    fn times_become_seconds() {
        let read = |text| seconds_of(text).unwrap_or_else(|| "none".to_owned());
        assert_eq!(
            [read("250ms"), read("15s"), read("1.5s"), read("2m"), read("0s")],
            ["0.25s", "15s", "1.5s", "120s", "0s"]
        );
        for bad in ["", "s", "5", "-1s", "1e9s", "9999999h", "1 s", "5d", "infs"] {
            assert_eq!(read(bad), "none", "{bad:?}");
        }
    }
}
