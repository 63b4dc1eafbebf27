//! Notes that config makes on a request (`envoy.filters.http.set_metadata`), for filters after it and for logs.

use outrigger_control_api::pb::envoy::extensions::filters::http::set_metadata::v3 as pb;
use outrigger_control_api::pb::google::protobuf::value::Kind;
use outrigger_control_api::pb::google::protobuf::{Any, Struct, Value};

use super::chain::Step;
use crate::http::exchange::Exchange;
use crate::telemetry::metrics::Scope;

crate::stats! {
    /// `http.<stat_prefix>.set_metadata.`.
    pub struct SetMetadataStats {
        counters { overwrite_denied }
        gauges {}
        histograms {}
    }
}

/// The filter.
#[derive(Debug)]
pub struct Config {
    stats: SetMetadataStats,
    notes: Box<[Note]>,
    typed: Box<[TypedNote]>,
}

#[derive(Debug)]
struct Note {
    namespace: String,
    value: Struct,
    overwrite: bool,
}

#[derive(Debug)]
struct TypedNote {
    namespace: String,
    value: Any,
    overwrite: bool,
}

impl Config {
    /// Compiles `config`, which counts in `stats`, the connection manager's.
    pub fn compile(config: &pb::Config, stats: &Scope) -> Self {
        let mut notes = Vec::new();
        if let Some(value) = config.value.as_ref().filter(|_| !config.metadata_namespace.is_empty()) {
            let namespace = config.metadata_namespace.clone();
            notes.push(Note { namespace, value: value.clone(), overwrite: true });
        }
        notes.extend(config.metadata.iter().filter_map(|entry| {
            let namespace = entry.metadata_namespace.clone();
            Some(Note { namespace, value: entry.value.clone()?, overwrite: entry.allow_overwrite })
        }));
        // One with both kinds of value has the first.
        let typed = config.metadata.iter().filter(|entry| entry.value.is_none()).filter_map(|entry| {
            let namespace = entry.metadata_namespace.clone();
            Some(TypedNote { namespace, value: entry.typed_value.clone()?, overwrite: entry.allow_overwrite })
        });
        Self {
            stats: SetMetadataStats::new(&stats.sub("set_metadata")),
            notes: notes.into(),
            typed: typed.collect(),
        }
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>) -> Step {
        let all = ex.info.metadata.get_or_insert_default();
        for note in &self.notes {
            match all.get_mut(&note.namespace) {
                None => {
                    all.insert(note.namespace.clone(), note.value.clone());
                }
                Some(there) if note.overwrite => join(there, &note.value),
                Some(_) => self.stats.overwrite_denied.increment(1),
            }
        }
        self.note_typed(ex);
        Step::Continue
    }

    /// A message takes the place of another as a whole.
    fn note_typed(&self, ex: &mut Exchange<'_>) {
        if self.typed.is_empty() {
            return;
        }
        let all = ex.info.typed_metadata.get_or_insert_default();
        for note in &self.typed {
            if all.contains_key(&note.namespace) && !note.overwrite {
                self.stats.overwrite_denied.increment(1);
            } else {
                all.insert(note.namespace.clone(), note.value.clone());
            }
        }
    }
}

/// Structures are joined, lists appended, everything else replaced.
fn join(into: &mut Struct, from: &Struct) {
    for (key, value) in &from.fields {
        let Some(there) = into.fields.get_mut(key) else {
            into.fields.insert(key.clone(), value.clone());
            continue;
        };
        match (&mut there.kind, &value.kind) {
            (Some(Kind::StructValue(there)), Some(Kind::StructValue(new))) => join(there, new),
            (Some(Kind::ListValue(there)), Some(Kind::ListValue(new))) => {
                there.values.extend(new.values.iter().cloned());
            }
            (_, kind) => *there = Value { kind: kind.clone() },
        }
    }
}
