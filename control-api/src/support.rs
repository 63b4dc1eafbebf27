//! What an implementation supports of the messages it is given.
//!
//! In: a table, written by whoever implements the messages, and a configuration. Out: each set field
//! that is refused, and each that is accepted without effect, with its path. Whatever the table does
//! not name is refused, so that nothing is ever ignored silently.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use prost_reflect::{
    DynamicMessage, FieldDescriptor, MessageDescriptor, ReflectMessage as _, Value as Field,
};

use crate::any::{expand_any, Expanded};
use crate::json::sorted;
use crate::load::MAX_DEPTH;
use crate::pool::pool;
use crate::problem::{Path, Problem};
use crate::well_known::WellKnown;

/// How far one message type is supported. A field that appears nowhere is refused.
#[derive(Debug, Clone, Copy)]
pub struct MessageSupport {
    /// The full name, such as `envoy.config.cluster.v3.Cluster`.
    pub message: &'static str,
    /// Names of the fields that take effect; `"*"` means all of them.
    pub implemented: &'static [&'static str],
    /// Fields that are accepted without effect, and why. The name `"*"` stands for the whole message:
    /// it is noted once and not looked into.
    pub observe: &'static [(&'static str, &'static str)],
    /// Fields that are refused, and why, where more is to be said than "not supported". `FIELD=VALUE`
    /// refuses one value of an enum; `"*"` refuses the whole message.
    pub rejected: &'static [(&'static str, &'static str)],
}

/// What a check found, in the order of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Fields that make the configuration unacceptable.
    pub rejected: Vec<Problem>,
    /// Fields that are accepted without effect.
    pub observed: Vec<Problem>,
}

/// The support of a set of message types.
#[derive(Debug, Clone, Default)]
pub struct SupportTable {
    messages: BTreeMap<&'static str, &'static MessageSupport>,
}

impl SupportTable {
    /// A table of all the entries in `parts`; of two for one message the later counts.
    #[must_use]
    pub fn new(parts: &[&'static [MessageSupport]]) -> Self {
        let messages =
            parts.iter().flat_map(|part| part.iter()).map(|entry| (entry.message, entry)).collect();
        Self { messages }
    }

    /// The entry of a message type.
    #[must_use]
    pub fn message(&self, full_name: &str) -> Option<&'static MessageSupport> {
        self.messages.get(full_name).copied()
    }

    /// Looks through every set field of `message`; paths start with `root_path`.
    #[must_use]
    pub fn check(&self, message: &DynamicMessage, root_path: &str) -> Findings {
        let mut check = Check { table: self, path: Path::new(root_path), findings: Findings::default() };
        check.message(message, false, 0);
        check.findings
    }

    /// Names in the table that no known message or field has: mistakes in the table itself. An entry that
    /// only observes or refuses a whole message may be of a type that is known by name alone.
    #[must_use]
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        for (name, entry) in &self.messages {
            let Some(descriptor) = pool().get_message_by_name(name) else {
                let by_name = entry.implemented.is_empty()
                    && entry.observe.iter().chain(entry.rejected).all(|(field, _)| *field == "*");
                if !by_name {
                    mistakes.push(format!("{name} is no known message"));
                }
                continue;
            };
            let listed = entry.observe.iter().chain(entry.rejected).map(|(field, _)| *field);
            for field in entry.implemented.iter().copied().chain(listed) {
                if !field_exists(&descriptor, field) {
                    mistakes.push(format!("{name} has no field {field}"));
                }
            }
        }
        mistakes
    }

    /// A Markdown table with one row for each message type, in the order of their names.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut out = String::from(
            "| message | implemented | accepted without effect | refused |\n|---|---|---|---|\n",
        );
        for (name, entry) in &self.messages {
            let Some(descriptor) = pool().get_message_by_name(name) else {
                continue;
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "| `{name}` | {} | {} | {} |",
                cell(implemented(entry, &descriptor)),
                cell(with_reasons(entry.observe)),
                cell(with_reasons(entry.rejected).chain(refused_by_absence(entry, &descriptor))),
            );
        }
        out
    }
}

fn field_exists(descriptor: &MessageDescriptor, name: &str) -> bool {
    let (field, value) = name.split_once('=').map_or((name, None), |(f, v)| (f, Some(v)));
    if field == "*" {
        return true;
    }
    descriptor.get_field_by_name(field).is_some_and(|field| {
        value.is_none_or(|v| field.kind().as_enum().is_some_and(|e| e.get_value_by_name(v).is_some()))
    })
}

fn implemented<'a>(
    entry: &'a MessageSupport,
    descriptor: &'a MessageDescriptor,
) -> impl Iterator<Item = String> + 'a {
    let all = entry.implemented.contains(&"*");
    let listed: BTreeSet<&str> =
        entry.observe.iter().chain(entry.rejected).map(|(field, _)| *field).collect();
    descriptor
        .fields()
        .map(|field| field.name().to_owned())
        .filter(move |name| {
            entry.implemented.contains(&name.as_str()) || (all && !listed.contains(name.as_str()))
        })
        .map(|name| format!("`{name}`"))
}

fn with_reasons<'a>(fields: &'a [(&'static str, &'static str)]) -> impl Iterator<Item = String> + 'a {
    fields.iter().map(|(field, reason)| {
        let field = if *field == "*" { "everything".to_owned() } else { format!("`{field}`") };
        format!("{field} ({reason})")
    })
}

fn refused_by_absence<'a>(
    entry: &'a MessageSupport,
    descriptor: &'a MessageDescriptor,
) -> impl Iterator<Item = String> + 'a {
    let whole = |fields: &[(&str, &str)]| fields.iter().any(|(field, _)| *field == "*");
    let none = entry.implemented.contains(&"*") || whole(entry.observe) || whole(entry.rejected);
    let named: BTreeSet<&str> = entry
        .implemented
        .iter()
        .copied()
        .chain(entry.observe.iter().chain(entry.rejected).map(|(field, _)| *field))
        .collect();
    descriptor
        .fields()
        .filter(move |field| !none && !named.contains(field.name()))
        .map(|field| format!("`{}`", field.name()))
}

/// Vertical bars would end a Markdown cell.
fn cell(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ").replace('|', "\\|")
}

struct Check<'a> {
    table: &'a SupportTable,
    path: Path,
    findings: Findings,
}

impl Check<'_> {
    fn reject(&mut self, message: impl Into<String>) {
        self.findings.rejected.push(Problem::new(self.path.as_str(), message));
    }

    fn observe(&mut self, reason: &str) {
        self.findings.observed.push(Problem::new(self.path.as_str(), reason));
    }

    fn message(&mut self, message: &DynamicMessage, is_extension: bool, depth: usize) {
        if depth >= MAX_DEPTH {
            self.reject(format!("nested deeper than {MAX_DEPTH} levels"));
            return;
        }
        let descriptor = message.descriptor();
        let name = descriptor.full_name();
        match WellKnown::of(&descriptor) {
            Some(WellKnown::Any) => return self.any(message, depth),
            Some(_) => return,
            None => {}
        }
        let Some(entry) = self.table.message(name) else {
            return self.reject(if is_extension {
                format!("the extension type {name} is known but not supported")
            } else {
                format!("{name} is not supported")
            });
        };
        if let Some((_, reason)) = entry.rejected.iter().find(|(field, _)| *field == "*") {
            return self.reject(*reason);
        }
        if let Some((_, reason)) = entry.observe.iter().find(|(field, _)| *field == "*") {
            return self.observe(reason);
        }
        for (field, value) in message.fields() {
            let back = self.path.field(field.name());
            self.field(entry, &field, value, depth);
            self.path.back(back);
        }
    }

    fn field(&mut self, entry: &MessageSupport, field: &FieldDescriptor, value: &Field, depth: usize) {
        let reason = |list: &[(&str, &'static str)]| {
            list.iter()
                .find(|(listed, _)| *listed == field.name() || is_value(field, value, listed))
                .map(|(_, r)| *r)
        };
        if let Some(reason) = reason(entry.rejected) {
            self.reject(reason);
        } else if let Some(reason) = reason(entry.observe) {
            self.observe(reason);
        } else if entry.implemented.contains(&field.name()) || entry.implemented.contains(&"*") {
            self.value(value, depth + 1);
        } else {
            self.reject("the field is not supported");
        }
    }

    fn value(&mut self, value: &Field, depth: usize) {
        match value {
            Field::Message(message) => self.message(message, false, depth),
            Field::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let back = self.path.index(index);
                    self.value(item, depth);
                    self.path.back(back);
                }
            }
            Field::Map(entries) => {
                for (key, item) in sorted(entries) {
                    let back = self.path.key(&key);
                    self.value(item, depth);
                    self.path.back(back);
                }
            }
            _ => {}
        }
    }

    /// A structure of a type without a definition: only an entry for the whole of it can tell.
    fn opaque(&mut self, type_name: &str) {
        let whole =
            |list: &[(&str, &'static str)]| list.iter().find(|(field, _)| *field == "*").map(|(_, r)| *r);
        let entry = self.table.message(type_name);
        match entry.and_then(|entry| whole(entry.observe)) {
            Some(reason) => self.observe(reason),
            None if type_name.is_empty() => self.reject("the structure names no type"),
            None => self.reject(format!("unknown type {type_name}")),
        }
    }

    fn any(&mut self, any: &DynamicMessage, depth: usize) {
        match expand_any(any, self.path.as_str()) {
            Expanded::Empty => {}
            Expanded::Message(message) if WellKnown::of(&message.descriptor()).is_some() => {}
            Expanded::Message(message) => self.message(&message, true, depth + 1),
            Expanded::Opaque { type_name, .. } => self.opaque(&type_name),
            Expanded::Unknown(name) => self.reject(format!("unknown type {name}")),
            Expanded::Invalid(problems) => self.findings.rejected.extend(problems),
        }
    }
}

/// Whether `listed` is `FIELD=VALUE` for the enum value that `field` has.
fn is_value(field: &FieldDescriptor, value: &Field, listed: &str) -> bool {
    let Some((name, wanted)) = listed.split_once('=') else {
        return false;
    };
    let is = |value: &Field| {
        value
            .as_enum_number()
            .and_then(|number| field.kind().as_enum()?.get_value(number))
            .is_some_and(|value| value.name() == wanted)
    };
    name == field.name() && (is(value) || value.as_list().is_some_and(|list| list.iter().any(is)))
}
