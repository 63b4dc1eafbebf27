//! What an implementation supports of the messages it is given.
//!
//! In: a table, written by whoever implements the messages, and a configuration. Out: each set field
//! that is refused, and each that is accepted without effect, with its path. Whatever the table does
//! not name is refused, so that nothing is ever ignored silently.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value as Field,
};

use crate::any::{expand_any, Expanded};
use crate::json::sorted;
use crate::load::MAX_DEPTH;
use crate::problem::{Path, Problem};
use crate::reflect::pool;
use crate::well_known::WellKnown;

/// How far one message type is supported. A field that appears nowhere is refused.
#[derive(Debug, Clone, Copy)]
pub struct MessageSupport {
    /// The full name, such as `envoy.config.cluster.v3.Cluster`.
    pub message: &'static str,
    /// Names of the fields that take effect; `"*"` means all but those that were added later
    /// ([`FieldDescriptor::is_newer`]); they must be named.
    pub implemented: &'static [&'static str],
    /// Fields that are accepted without effect, and why; they are not looked into. `"*"` stands for the
    /// whole message, `FIELD=VALUE` for one value of an enum field that is implemented otherwise.
    pub observe: &'static [(&'static str, &'static str)],
    /// Fields that are refused, and why, where more is to be said than "not supported"; `"*"` and
    /// `FIELD=VALUE` as in `observe`.
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
            // A type known by name alone has no fields to list.
            let descriptor = pool().get_message_by_name(name);
            let fields = |standing| {
                descriptor.as_ref().map(|d| fields_that_are(standing, entry, d)).unwrap_or_default()
            };
            let refused = [with_reasons(entry.rejected), fields(Standing::Absent)];
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "| `{name}` | {} | {} | {} |",
                cell(&fields(Standing::Implemented)),
                cell(&with_reasons(entry.observe)),
                cell(&refused.concat()),
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

/// How an entry classes a field of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It takes effect.
    Implemented,
    /// Accepted without effect, and why.
    Observed(&'static str),
    /// Refused, and why.
    Rejected(&'static str),
    /// Refused because the entry does not name it.
    Absent,
}

impl MessageSupport {
    /// How the entry classes a field of its message.
    #[must_use]
    pub fn standing(&self, field: &FieldDescriptor) -> Standing {
        let name = field.name();
        if let Some(reason) = reason(self.rejected, name) {
            Standing::Rejected(reason)
        } else if let Some(reason) = reason(self.observe, name) {
            Standing::Observed(reason)
        } else if self.implemented.contains(&name) || (self.implemented.contains(&"*") && !field.is_newer()) {
            Standing::Implemented
        } else {
            Standing::Absent
        }
    }

    /// The reason why the whole message is refused or without effect.
    #[must_use]
    pub fn whole(&self) -> Option<Standing> {
        reason(self.rejected, "*")
            .map(Standing::Rejected)
            .or_else(|| reason(self.observe, "*").map(Standing::Observed))
    }
}

fn reason(list: &[(&'static str, &'static str)], name: &str) -> Option<&'static str> {
    list.iter().find(|(listed, _)| *listed == name).map(|(_, reason)| *reason)
}

/// The names of the fields of `descriptor` that have this standing.
fn fields_that_are(
    standing: Standing,
    entry: &MessageSupport,
    descriptor: &MessageDescriptor,
) -> Vec<String> {
    if entry.whole().is_some() {
        return Vec::new();
    }
    let fields = descriptor.fields().filter(|field| entry.standing(field) == standing);
    fields.map(|field| format!("`{}`", field.name())).collect()
}

fn with_reasons(fields: &[(&str, &str)]) -> Vec<String> {
    let name = |field: &str| if field == "*" { "everything".to_owned() } else { format!("`{field}`") };
    fields.iter().map(|(field, reason)| format!("{} ({reason})", name(field))).collect()
}

/// Vertical bars would end a Markdown cell.
fn cell(items: &[String]) -> String {
    items.join(", ").replace('|', "\\|")
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
        match entry.whole() {
            Some(Standing::Rejected(reason)) => return self.reject(reason),
            Some(Standing::Observed(reason)) => return self.observe(reason),
            _ => {}
        }
        for unknown in message.unknown_fields() {
            self.reject(format!("unknown field number {} of {name}", unknown.number()));
        }
        let optional = optional(message);
        for (field, value) in message.fields() {
            let back = self.path.field(field.name());
            match value {
                Field::Message(any) if optional == Some(field.name()) && self.is_unknown(any) => {
                    self.observe("its type is not supported, and it is optional: left out");
                }
                value => self.field(entry, &field, value, depth),
            }
            self.path.back(back);
        }
    }

    /// Whether an extension is of a type that is unknown or refused as a whole.
    fn is_unknown(&self, any: &DynamicMessage) -> bool {
        let standing = |name: &str| self.table.message(name).map(MessageSupport::whole);
        match expand_any(any, self.path.as_str()) {
            Expanded::Unknown(_) => true,
            Expanded::Message(message) => {
                matches!(standing(message.descriptor().full_name()), None | Some(Some(Standing::Rejected(_))))
            }
            Expanded::Opaque { type_name, .. } => {
                !matches!(standing(&type_name), Some(Some(Standing::Observed(_))))
            }
            Expanded::Empty | Expanded::Invalid(_) => false,
        }
    }

    fn field(&mut self, entry: &MessageSupport, field: &FieldDescriptor, value: &Field, depth: usize) {
        match entry.standing(field) {
            Standing::Rejected(reason) => self.reject(reason),
            Standing::Observed(reason) => self.observe(reason),
            Standing::Absent => self.reject("the field is not supported"),
            Standing::Implemented => {
                if let Kind::Enum(descriptor) = field.kind() {
                    self.enumeration(entry, field, &descriptor, value);
                }
                self.value(value, depth + 1);
            }
        }
    }

    fn enumeration(
        &mut self,
        entry: &MessageSupport,
        field: &FieldDescriptor,
        descriptor: &EnumDescriptor,
        value: &Field,
    ) {
        for number in numbers(value) {
            let Some(value) = descriptor.get_value(number) else {
                self.reject(format!("{number} is no {}", descriptor.full_name()));
                continue;
            };
            let named = format!("{}={}", field.name(), value.name());
            if let Some(reason) = reason(entry.rejected, &named) {
                self.reject(reason);
            } else if let Some(reason) = reason(entry.observe, &named) {
                self.observe(reason);
            }
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
        match self.table.message(type_name).and_then(MessageSupport::whole) {
            Some(Standing::Observed(reason)) => self.observe(reason),
            Some(Standing::Rejected(reason)) => self.reject(reason),
            _ if type_name.is_empty() => self.reject("the structure names no type"),
            _ => self.reject(format!("unknown type {type_name}")),
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

/// The field whose extension is left out if its type is not known: `is_optional` of a filter, and of what a route says to
/// one.
fn optional(message: &DynamicMessage) -> Option<&'static str> {
    const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
    let field = match message.descriptor().full_name() {
        HCM => "typed_config",
        "envoy.config.route.v3.FilterConfig" => "config",
        _ => return None,
    };
    let is = message.get_field_by_name("is_optional")?.as_bool()?;
    is.then_some(field)
}

/// The enum numbers in a field: one, those of a list, or those of a map.
pub(crate) fn numbers(value: &Field) -> Vec<i32> {
    match value {
        Field::EnumNumber(number) => vec![*number],
        Field::List(items) => items.iter().filter_map(Field::as_enum_number).collect(),
        Field::Map(entries) => entries.values().filter_map(Field::as_enum_number).collect(),
        _ => Vec::new(),
    }
}
