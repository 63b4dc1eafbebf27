//! Header additions and removals, in Envoy's order.
//!
//! Each level of config (weighted cluster, route, virtual host, table) is a stage. A stage removes,
//! then works out every value from the head as it is then, then overwrites, then appends; the next
//! stage sees what it left.

use std::sync::Arc;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3 as core;
use smallvec::SmallVec;

use crate::config::headers::{HeaderKey, HeaderMutate, HeaderView};
use crate::config::problems::Problems;
use crate::telemetry::format::{Format, FormatContext};
use crate::telemetry::stream_info::StreamInfo;

/// Header changes of all levels that apply to a message. Cheap to clone: stages are shared.
#[derive(Debug, Clone, Default)]
pub struct HeaderOps {
    stages: SmallVec<[Arc<Stage>; 3]>,
}

#[derive(Debug)]
struct Stage {
    remove: Box<[HeaderKey]>,
    add: Box<[Addition]>,
}

#[derive(Debug)]
struct Addition {
    key: HeaderKey,
    value: Value,
    action: AppendAction,
    keep_empty: bool,
}

#[derive(Debug)]
enum Value {
    /// Without operators: written as it is.
    Literal(Bytes),
    Format(Format),
}

/// `append_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AppendAction {
    AppendIfExistsOrAdd,
    AddIfAbsent,
    OverwriteIfExistsOrAdd,
    OverwriteIfExists,
}

/// A value worked out, by the index of its addition.
enum Ready {
    Literal(Bytes),
    Rendered(std::ops::Range<usize>),
}

impl HeaderOps {
    /// Compiles the lists in the fields `add_field` and `remove_field`; `None` if one entry is bad.
    pub fn compile(
        add: &[core::HeaderValueOption],
        add_field: &str,
        remove: &[String],
        remove_field: &str,
        problems: &mut Problems,
    ) -> Option<Self> {
        let before = problems.count();
        let add: Box<[_]> = (add.iter().enumerate())
            .filter_map(|(index, option)| {
                problems.at_index(add_field, index, |problems| addition(option, problems))
            })
            .collect();
        for (index, name) in remove.iter().enumerate() {
            if !is_modifiable(name) {
                problems.at_index(remove_field, index, |problems| {
                    problems.report(format_args!("{name:?}: pseudo headers and host cannot be removed"));
                });
            }
        }
        if problems.count() > before {
            return None;
        }
        let remove: Box<[_]> = remove.iter().map(|name| HeaderKey::new(name)).collect();
        let mut ops = Self::default();
        if !add.is_empty() || !remove.is_empty() {
            ops.stages.push(Arc::new(Stage { remove, add }));
        }
        Some(ops)
    }

    /// One addition as a stage of its own. `None` if a problem was reported.
    pub fn one(option: &core::HeaderValueOption, problems: &mut Problems) -> Option<Self> {
        let addition = addition(option, problems)?;
        Some(Self {
            stages: SmallVec::from_elem(Arc::new(Stage { remove: [].into(), add: [addition].into() }), 1),
        })
    }

    /// The stages of all `levels`, applied in this order.
    pub fn sequence(levels: &[&HeaderOps]) -> Self {
        Self { stages: levels.iter().flat_map(|ops| ops.stages.iter().cloned()).collect() }
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Applies the changes to a request's head; formats see it as it is when their stage begins.
    pub fn apply_to_request<H: HeaderMutate>(&self, head: &mut H, info: &StreamInfo) {
        for stage in &self.stages {
            stage.apply(head, |head, value, out| {
                value.render(out, &FormatContext::new(info).with_request(head));
            });
        }
    }

    /// Applies the changes to a response's head; formats see it as it is when their stage begins, and
    /// the request if it is given.
    pub fn apply_to_response<H: HeaderMutate>(
        &self,
        head: &mut H,
        info: &StreamInfo,
        request: Option<&dyn HeaderView>,
    ) {
        for stage in &self.stages {
            stage.apply(head, |head, value, out| {
                let context = FormatContext { request, ..FormatContext::new(info).with_response(head) };
                value.render(out, &context);
            });
        }
    }
}

impl HeaderOps {
    /// The same with every value worked out now, by `render`.
    pub fn rendered(&self, render: impl Fn(&Format, &mut Vec<u8>)) -> Self {
        Self { stages: self.stages.iter().map(|stage| stage.rendered(&render)).collect() }
    }

    /// Applies changes whose values have been worked out.
    pub fn apply_rendered<H: HeaderMutate>(&self, head: &mut H) {
        for stage in &self.stages {
            stage.apply(head, |_, _, _| {});
        }
    }
}

impl Stage {
    fn rendered(self: &Arc<Self>, render: &impl Fn(&Format, &mut Vec<u8>)) -> Arc<Self> {
        if self.add.iter().all(|addition| matches!(addition.value, Value::Literal(_))) {
            return self.clone();
        }
        let add = self.add.iter().map(|addition| {
            let value = match &addition.value {
                Value::Literal(literal) => literal.clone(),
                Value::Format(format) => {
                    let mut value = Vec::new();
                    render(format, &mut value);
                    value.into()
                }
            };
            Addition { key: addition.key.clone(), value: Value::Literal(value), ..*addition }
        });
        Arc::new(Self { remove: self.remove.clone(), add: add.collect() })
    }

    fn apply<H: HeaderMutate>(&self, head: &mut H, render: impl Fn(&H, &Format, &mut Vec<u8>)) {
        for key in &self.remove {
            head.remove(key);
        }
        // Values are worked out before any is written: two additions do not see each other.
        let mut buffer = Vec::new();
        let mut overwrite: SmallVec<[(&HeaderKey, Ready); 4]> = SmallVec::new();
        let mut append: SmallVec<[(&HeaderKey, Ready); 4]> = SmallVec::new();
        for addition in &self.add {
            let ready = match &addition.value {
                Value::Literal(literal) => Ready::Literal(literal.clone()),
                Value::Format(format) => {
                    let start = buffer.len();
                    render(head, format, &mut buffer);
                    Ready::Rendered(start..buffer.len())
                }
            };
            if ready.is_empty() && !addition.keep_empty {
                continue;
            }
            match addition.action {
                AppendAction::AppendIfExistsOrAdd => append.push((&addition.key, ready)),
                AppendAction::AddIfAbsent if head.first(&addition.key).is_none() => {
                    append.push((&addition.key, ready));
                }
                AppendAction::OverwriteIfExists if head.first(&addition.key).is_some() => {
                    overwrite.push((&addition.key, ready));
                }
                AppendAction::OverwriteIfExistsOrAdd => overwrite.push((&addition.key, ready)),
                AppendAction::AddIfAbsent | AppendAction::OverwriteIfExists => {}
            }
        }
        for (key, ready) in &overwrite {
            head.set(key, ready.bytes(&buffer));
        }
        for (key, ready) in &append {
            head.append(key, ready.bytes(&buffer));
        }
    }
}

impl Ready {
    fn is_empty(&self) -> bool {
        match self {
            Ready::Literal(literal) => literal.is_empty(),
            Ready::Rendered(range) => range.is_empty(),
        }
    }

    fn bytes<'a>(&'a self, buffer: &'a [u8]) -> &'a [u8] {
        match self {
            Ready::Literal(literal) => literal,
            // The range was cut from this very buffer, which only grew since.
            Ready::Rendered(range) => buffer.get(range.clone()).unwrap_or_default(),
        }
    }
}

/// Whether header changes may touch `name`: everything but pseudo headers and `host`.
pub(super) fn is_modifiable(name: &str) -> bool {
    !name.starts_with(':') && !name.eq_ignore_ascii_case("host")
}

fn addition(option: &core::HeaderValueOption, problems: &mut Problems) -> Option<Addition> {
    use core::header_value_option::HeaderAppendAction;

    // Demanded by a field rule.
    let header = option.header.as_ref()?;
    if !is_modifiable(&header.key) {
        let message = format!("{:?}: pseudo headers and host cannot be changed", header.key);
        problems.report_at("header.key", message);
        return None;
    }
    let action = option.append_action();
    #[allow(deprecated)] // Still widely sent.
    let action = match (option.append.map(|append| append.value), action) {
        (Some(_), action) if action != HeaderAppendAction::AppendIfExistsOrAdd => {
            problems.report_at("append", "append and append_action cannot both be set");
            return None;
        }
        (Some(false), _) => AppendAction::OverwriteIfExistsOrAdd,
        (_, HeaderAppendAction::AppendIfExistsOrAdd) => AppendAction::AppendIfExistsOrAdd,
        (_, HeaderAppendAction::AddIfAbsent) => AppendAction::AddIfAbsent,
        (_, HeaderAppendAction::OverwriteIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
        (_, HeaderAppendAction::OverwriteIfExists) => AppendAction::OverwriteIfExists,
    };
    let format =
        problems.at("header.value", |problems| problems.take(Format::parse_header(&header.value)))?;
    for operator in format.never_filled() {
        problems.note("header.value", format_args!("%{operator}% has no value in this proxy"));
    }
    let value = match format.literal() {
        Some(literal) => Value::Literal(Bytes::copy_from_slice(literal)),
        None => Value::Format(format),
    };
    Some(Addition { key: HeaderKey::new(&header.key), value, action, keep_empty: option.keep_empty_value })
}
