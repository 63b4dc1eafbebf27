//! Changes of heads, trailers and query parameters (`envoy.filters.http.header_mutation`).

use std::sync::Arc;

use outrigger_control_api::pb::envoy::config::common::mutation_rules::v3::header_mutation::Action;
use outrigger_control_api::pb::envoy::config::common::mutation_rules::v3::HeaderMutation as Mutation;
use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::config::core::v3::key_value_append::KeyValueAppendAction as Append;
use outrigger_control_api::pb::envoy::extensions::filters::http::header_mutation::v3 as pb;
use outrigger_control_api::pb::envoy::extensions::http::early_header_mutation::header_mutation::v3::HeaderMutation as EarlyConfig;
use outrigger_control_api::pb::google::protobuf::value::Kind;

use super::chain::{active, At, Step};
use super::transforms::Transform;
use super::Download;
use crate::config::matcher::StringMatcher;
use crate::config::problems::Problems;
use crate::config::query;
use crate::config::route::{HeaderOps, Override, RouteFilter};
use crate::config::{HeaderKey, HeaderMutate, RequestView};
use crate::http::exchange::Exchange;
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead};
use crate::telemetry::format::{Format, FormatContext};
use crate::telemetry::stream_info::StreamInfo;

/// The filter.
#[derive(Clone, Debug)]
pub struct Config {
    mutations: Arc<RouteFilter>,
    most_specific_wins: bool,
}

/// `Mutations`, in order.
#[derive(Debug, Default)]
pub struct Mutations {
    request: Box<[Change]>,
    response: Box<[Change]>,
    request_trailers: Box<[Change]>,
    response_trailers: Box<[Change]>,
    query: Box<[QueryChange]>,
}

#[derive(Debug)]
enum Change {
    Remove(HeaderKey),
    RemoveMatching(StringMatcher),
    Add(HeaderOps),
}

#[derive(Debug)]
enum QueryChange {
    Remove(Box<str>),
    Add(Box<str>, Format, Append),
}

/// Changes of one message's trailers, in order. Their values are worked out with the head: trailers pass where nothing
/// else of the request is at hand.
#[derive(Debug)]
pub struct TrailerChanges(Vec<(Arc<RouteFilter>, Vec<HeaderOps>)>, Side);

#[derive(Debug, Clone, Copy)]
enum Side {
    Request,
    Response,
}

/// Changes of one response, in order.
#[derive(Debug)]
pub(super) struct Response(Vec<Arc<RouteFilter>>);

impl Mutations {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(config: Option<&pb::Mutations>, problems: &mut Problems) -> Option<Self> {
        let Some(config) = config else { return Some(Self::default()) };
        problems.at("mutations", |problems| {
            let before = problems.count();
            let request = changes(&config.request_mutations, "request_mutations", problems);
            let response = changes(&config.response_mutations, "response_mutations", problems);
            let request_trailers =
                changes(&config.request_trailers_mutations, "request_trailers_mutations", problems);
            let response_trailers =
                changes(&config.response_trailers_mutations, "response_trailers_mutations", problems);
            let query = (config.query_parameter_mutations.iter().enumerate())
                .filter_map(|(index, mutation)| {
                    problems.at_index("query_parameter_mutations", index, |problems| {
                        query_change(mutation, problems)
                    })
                })
                .collect();
            (problems.count() == before).then_some(Self {
                request,
                response,
                request_trailers,
                response_trailers,
                query,
            })
        })
    }

    /// Compiles changes of requests alone, `config` of the connection manager's. `None` when a problem was reported.
    pub fn early(config: &EarlyConfig, problems: &mut Problems) -> Option<Self> {
        Self::of_requests(&config.mutations, "mutations", problems)
    }

    /// Compiles changes of requests alone, those in `field`. `None` when a problem was reported.
    pub fn of_requests(list: &[Mutation], field: &str, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let request = changes(list, field, problems);
        (problems.count() == before).then(|| Self { request, ..Self::default() })
    }

    pub(in crate::http) fn change_request(&self, request: &mut RequestHead, info: &StreamInfo) {
        for change in &self.request {
            match change {
                Change::Add(ops) => ops.apply_to_request(request, info),
                change => change.remove(&mut request.fields),
            }
        }
        if self.query.is_empty() || request.path().is_empty() {
            return;
        }
        let path = changed_path(&self.query, request, info);
        request.set_path(&path);
    }

    fn of_trailers(&self, side: Side) -> &[Change] {
        match side {
            Side::Request => &self.request_trailers,
            Side::Response => &self.response_trailers,
        }
    }

    fn change_response(&self, head: &mut ResponseHead, ex: &Exchange<'_>) {
        for change in &self.response {
            match change {
                Change::Add(ops) => {
                    ops.apply_to_response(head, &ex.info, ex.request.as_ref().map(|request| request as _));
                }
                change => change.remove(&mut head.fields),
            }
        }
    }
}

impl Change {
    fn remove(&self, fields: &mut Fields) {
        match self {
            Change::Remove(key) => {
                fields.remove(key);
            }
            Change::RemoveMatching(matcher) => {
                fields.remove_where(|name| matcher.matches(&name.to_ascii_lowercase()));
            }
            Change::Add(_) => {}
        }
    }
}

fn changes(list: &[Mutation], field: &str, problems: &mut Problems) -> Box<[Change]> {
    let each = |(index, mutation)| problems.at_index(field, index, |problems| change(mutation, problems));
    list.iter().enumerate().filter_map(each).collect()
}

fn change(mutation: &Mutation, problems: &mut Problems) -> Option<Change> {
    // One of them is demanded by a field rule.
    match mutation.action.as_ref()? {
        Action::Remove(name) if name.starts_with(':') || name.eq_ignore_ascii_case("host") => {
            problems.report_at("remove", format_args!("{name:?}: pseudo headers and host cannot be removed"));
            None
        }
        Action::Remove(name) => Some(Change::Remove(HeaderKey::new(name))),
        Action::Append(option) => {
            problems.at("append", |problems| HeaderOps::one(option, problems)).map(Change::Add)
        }
        Action::RemoveOnMatch(config) => problems.at("remove_on_match.key_matcher", |problems| {
            StringMatcher::compile(config.key_matcher.as_ref()?, problems).map(Change::RemoveMatching)
        }),
    }
}

fn query_change(mutation: &core::KeyValueMutation, problems: &mut Problems) -> Option<QueryChange> {
    let Some(append) = &mutation.append else {
        if mutation.remove.is_empty() {
            problems.report("needs either append or remove");
            return None;
        }
        return Some(QueryChange::Remove(mutation.remove.as_str().into()));
    };
    let Some(record) = &append.record else {
        problems.report_at("append.record", "is required");
        return None;
    };
    let Some(Kind::StringValue(value)) = record.value.as_ref().and_then(|value| value.kind.as_ref()) else {
        problems.report_at("append.record.value", "must be a string");
        return None;
    };
    let format = problems.at("append.record.value", |problems| problems.take(Format::parse_header(value)))?;
    Some(QueryChange::Add(record.key.as_str().into(), format, append.action()))
}

/// Query parameters, each name with its values, in the order of names.
type Query = std::collections::BTreeMap<Vec<u8>, Vec<Vec<u8>>>;

fn changed_path(changes: &[QueryChange], request: &RequestHead, info: &StreamInfo) -> Vec<u8> {
    let (bare, pairs) = query::pairs(request.path());
    let mut parameters = Query::new();
    for (name, value) in pairs {
        let values = parameters.entry(query::decoded(name).into_owned()).or_default();
        values.push(encoded(&query::decoded(value), is_legal));
    }
    for change in changes {
        match change {
            QueryChange::Remove(name) => {
                parameters.remove(name.as_bytes());
            }
            QueryChange::Add(name, format, action) => {
                let mut value = Vec::new();
                format.render(&mut value, &FormatContext::new(info).with_request(request));
                let value = encoded(&value, query::is_unreserved);
                let name = name.as_bytes();
                match (action, parameters.get_mut(name)) {
                    (Append::AppendIfExistsOrAdd, Some(values)) => values.push(value),
                    (Append::AddIfAbsent, Some(_)) | (Append::OverwriteIfExists, None) => {}
                    (_, Some(values)) => *values = vec![value],
                    (_, None) => {
                        parameters.insert(name.to_vec(), vec![value]);
                    }
                }
            }
        }
    }
    let mut out = bare.to_vec();
    let mut mark = b'?';
    for (name, values) in &parameters {
        for value in values {
            out.push(mark);
            query::encode(&mut out, name, is_legal);
            out.push(b'=');
            out.extend_from_slice(value);
            mark = b'&';
        }
    }
    out
}

/// What may stand in a value that was sent. Envoy writes it decoded, whatever it is: a line could end in it.
fn is_legal(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"%&=#+\"<>".contains(&byte)
}

fn encoded(text: &[u8], may: fn(u8) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    query::encode(&mut out, text, may);
    out
}

impl Config {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(config: &pb::HeaderMutation, problems: &mut Problems) -> Option<Self> {
        Some(Self {
            mutations: Arc::new(RouteFilter::HeaderMutation(Mutations::compile(
                config.mutations.as_ref(),
                problems,
            )?)),
            most_specific_wins: config.most_specific_header_mutations_wins,
        })
    }

    /// All changes in their order: the filter's, then those of the levels in `over`.
    fn all<'m>(&'m self, levels: &'m [Arc<RouteFilter>]) -> impl Iterator<Item = &'m Arc<RouteFilter>> {
        let count = levels.len();
        let level = move |index| levels.get(if self.most_specific_wins { count - 1 - index } else { index });
        std::iter::once(&self.mutations).chain((0..count).filter_map(level))
    }

    pub(super) fn on_request(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let Some(request) = &mut ex.request else { return Step::Continue };
        self.change_request(request, &ex.info, at.levels());
        let changes = TrailerChanges::of(self.all(at.levels()), Side::Request, |format, out| {
            format.render(out, &FormatContext::new(&ex.info).with_request(request));
        });
        if let Some(changes) = changes {
            ex.upload.change_trailers(changes);
        }
        Step::Continue
    }

    /// Changes a request's head; `levels` is what its route says.
    pub(in crate::http) fn change_request(
        &self,
        request: &mut RequestHead,
        info: &StreamInfo,
        levels: &[Arc<RouteFilter>],
    ) {
        for mutations in self.all(levels).filter_map(of) {
            mutations.change_request(request, info);
        }
    }

    /// Changes a response's head.
    pub(in crate::http) fn change_response(
        &self,
        ex: &Exchange<'_>,
        head: &mut ResponseHead,
        levels: &[Arc<RouteFilter>],
    ) {
        for mutations in self.all(levels).filter_map(of) {
            mutations.change_response(head, ex);
        }
    }

    /// What changes the response; `None` if nothing does.
    pub(super) fn encoder(&self, over: Option<&Override>) -> Option<Response> {
        let levels = over.map(|over| &*over.levels).unwrap_or_default();
        let changing = |said: &&Arc<RouteFilter>| {
            of(said).is_some_and(|mutations| {
                !mutations.response.is_empty() || !mutations.response_trailers.is_empty()
            })
        };
        let all: Vec<_> = self.all(levels).filter(changing).cloned().collect();
        (!all.is_empty()).then_some(Response(all))
    }
}

fn of(said: &Arc<RouteFilter>) -> Option<&Mutations> {
    match &**said {
        RouteFilter::HeaderMutation(mutations) => Some(mutations),
        _ => None,
    }
}

impl Response {
    /// `trailers` says that trailers may follow.
    pub(super) fn on_response(&self, ex: &mut Exchange<'_>, head: &mut ResponseHead, trailers: bool) {
        for mutations in self.0.iter().filter_map(of) {
            mutations.change_response(head, ex);
        }
        if !trailers {
            return;
        }
        let request = ex.request.as_ref().map(|request| request as _);
        let changes = TrailerChanges::of(self.0.iter(), Side::Response, |format, out| {
            format
                .render(out, &FormatContext { request, ..FormatContext::new(&ex.info).with_response(head) });
        });
        if let Some(changes) = changes {
            active(ex).downloads.push(Download::Transform(Transform::Trailers(Box::new(changes))));
        }
    }
}

impl TrailerChanges {
    /// Those of `all`, with values from `render`; `None` if nothing changes.
    fn of<'m>(
        all: impl Iterator<Item = &'m Arc<RouteFilter>>,
        side: Side,
        render: impl Fn(&Format, &mut Vec<u8>),
    ) -> Option<Self> {
        let mut list = Vec::new();
        for said in all {
            let changes = of(said).map(|mutations| mutations.of_trailers(side)).unwrap_or_default();
            if changes.is_empty() {
                continue;
            }
            let additions = changes.iter().filter_map(|change| match change {
                Change::Add(ops) => Some(ops.rendered(&render)),
                _ => None,
            });
            list.push((said.clone(), additions.collect()));
        }
        (!list.is_empty()).then_some(Self(list, side))
    }

    /// Makes the changes.
    pub(in crate::http) fn apply(&self, trailers: &mut Fields) {
        for (said, additions) in &self.0 {
            let mut additions = additions.iter();
            for change in of(said).map(|mutations| mutations.of_trailers(self.1)).unwrap_or_default() {
                match change {
                    Change::Add(_) => {
                        if let Some(ops) = additions.next() {
                            ops.apply_rendered(trailers);
                        }
                    }
                    change => change.remove(trailers),
                }
            }
        }
    }
}
