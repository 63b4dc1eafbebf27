//! Records of OpenTelemetry's logs.

use outrigger_control_api::pb::opentelemetry::proto::common::v1::{
    any_value, AnyValue, ArrayValue, KeyValue, KeyValueList,
};
use outrigger_control_api::pb::opentelemetry::proto::logs::v1::LogRecord;

use super::common::Common;
use crate::config::problems::Problems;
use crate::telemetry::format::{Format, FormatContext, Style};
use crate::telemetry::otlp::{nanos, pair};
use crate::telemetry::told::utf8;

/// A value whose texts are formats.
#[derive(Debug)]
pub(super) enum Template {
    Text(Format),
    List(Vec<Template>),
    Map(Vec<(String, Template)>),
}

impl Template {
    /// Compiles `value`.
    pub fn compile(value: &AnyValue, problems: &mut Problems) -> Option<Self> {
        use any_value::Value;
        match value.value.as_ref() {
            Some(Value::StringValue(text)) => problems.at("string_value", |problems| {
                // Values are no lines: nothing in them is escaped.
                let format = problems.take(Format::parse_as(text, Style::Body))?;
                for name in format.never_filled() {
                    let why = format_args!("%{name}% has no value here and is written as a missing one");
                    problems.note("", why);
                }
                Some(Template::Text(format))
            }),
            Some(Value::ArrayValue(list)) => {
                let each = |(index, value)| {
                    problems.at_index("array_value.values", index, |problems| Self::compile(value, problems))
                };
                let items: Vec<_> = list.values.iter().enumerate().filter_map(each).collect();
                (items.len() == list.values.len()).then_some(Template::List(items))
            }
            Some(Value::KvlistValue(list)) => {
                problems.at("kvlist_value", |problems| Self::map(list, problems)).map(Template::Map)
            }
            _ => {
                problems.report("only texts, lists and maps of them are values here");
                None
            }
        }
    }

    /// Compiles a map.
    pub fn map(list: &KeyValueList, problems: &mut Problems) -> Option<Vec<(String, Self)>> {
        let empty = AnyValue::default();
        let each = |(index, pair): (usize, &KeyValue)| {
            problems.at_index("values", index, |problems| {
                let value = pair.value.as_ref().unwrap_or(&empty);
                let value = problems.at("value", |problems| Self::compile(value, problems))?;
                Some((pair.key.clone(), value))
            })
        };
        let fields: Vec<_> = list.values.iter().enumerate().filter_map(each).collect();
        (fields.len() == list.values.len()).then_some(fields)
    }

    fn of(&self, context: &FormatContext<'_>) -> AnyValue {
        let value = match self {
            Template::Text(format) => {
                let mut out = Vec::new();
                format.render(&mut out, context);
                any_value::Value::StringValue(utf8(&out))
            }
            Template::List(items) => {
                let values = items.iter().map(|item| item.of(context)).collect();
                any_value::Value::ArrayValue(ArrayValue { values })
            }
            Template::Map(fields) => {
                any_value::Value::KvlistValue(KeyValueList { values: pairs(fields, context) })
            }
        };
        AnyValue { value: Some(value) }
    }
}

fn pairs(fields: &[(String, Template)], context: &FormatContext<'_>) -> Vec<KeyValue> {
    let pair =
        |(key, value): &(String, Template)| KeyValue { key: key.clone(), value: Some(value.of(context)) };
    fields.iter().map(pair).collect()
}

/// How a record is put together.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub body: Option<Template>,
    pub attributes: Vec<(String, Template)>,
    pub common: Common,
}

impl Record {
    /// The record of a stream.
    pub fn of(&self, context: &FormatContext<'_>) -> LogRecord {
        let info = context.info;
        let mut attributes = pairs(&self.attributes, context);
        for name in &self.common.objects {
            if let Some(object) = info.object(name).filter(|object| object.is_message()) {
                // As the JSON of the message that stands for it.
                attributes.push(pair(name, serde_json::Value::from(object.text()).to_string()));
            }
        }
        attributes.extend(self.common.tags(context).map(|(name, value)| pair(&name, value)));
        let (trace_id, span_id) = info.trace.as_ref().map_or_else(Default::default, |trace| {
            (trace.id.to_be_bytes().to_vec(), trace.span.to_be_bytes().to_vec())
        });
        LogRecord {
            time_unix_nano: nanos(info.start_time()),
            body: self.body.as_ref().map(|body| body.of(context)),
            attributes,
            trace_id,
            span_id,
            ..LogRecord::default()
        }
    }
}
