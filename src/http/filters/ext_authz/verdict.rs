//! What the service has decided, and what of that is done.

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use outrigger_control_api::pb::envoy::config::core::v3::HeaderValueOption;
use outrigger_control_api::pb::envoy::service::auth::v3 as pb;
use outrigger_control_api::pb::envoy::service::auth::v3::check_response::HttpResponse;
use outrigger_control_api::pb::google::protobuf::{value::Kind, Struct, Value};

use super::rules::Change;
use super::shadow::Decision;
use super::{any, is_pseudo, is_valid, Config, HttpService, Service, NAMESPACE};
use crate::config::matcher::StringMatcher;
use crate::config::query::Query;
use crate::config::{HeaderKey, HeaderMutate, HeaderView, Known, RequestView};
use crate::http::call::{Answer, CallError};
use crate::http::exchange::{Exchange, Reply};
use crate::http::fields::Fields;
use crate::http::filters::by_cluster::charge;
use crate::http::filters::chain::{active, At, Step};
use crate::http::filters::Encoder;
use crate::http::head::{RequestHead, ResponseHead};
use crate::telemetry::stream_info::ResponseFlags;

/// How a header is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Set,
    Add,
    /// To the value that is there; without one nothing is done.
    Append,
    AddIfAbsent,
    OverwriteIfExists,
}

/// A header to change.
type Named = (String, Vec<u8>, How);

/// What the service has decided.
#[derive(Debug)]
pub(in crate::http::filters) enum Verdict {
    Allowed(Box<Allowed>),
    Denied(Denied),
    /// Nothing.
    Error,
}

/// Changes to a request that may pass.
#[derive(Debug, Default)]
pub(in crate::http::filters) struct Allowed {
    headers: Vec<Named>,
    remove: Vec<String>,
    response: Vec<Named>,
    query: Vec<(String, String)>,
    query_remove: Vec<String>,
    metadata: Struct,
}

/// The answer to one that may not.
#[derive(Debug)]
pub(in crate::http::filters) struct Denied {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    body: Bytes,
    metadata: Struct,
}

/// Changes to a response.
#[derive(Debug)]
pub(in crate::http::filters) struct Changes(Vec<Named>);

/// Names of headers that an HTTP service wants removed.
const REMOVE: &str = "x-envoy-auth-headers-to-remove";
/// How long the service took, in milliseconds.
const TOOK: &str = "x-envoy-upstream-service-time";
const FAILURE_ALLOWED: &[u8] = b"x-envoy-auth-failure-mode-allowed";

fn named(options: Vec<HeaderValueOption>, request: bool) -> Vec<Named> {
    let how = |option: &HeaderValueOption| {
        #[allow(deprecated)] // Services still say it.
        let append = option.append.map(|append| append.value);
        match (append, option.append_action()) {
            (Some(true), _) if request => How::Append,
            (Some(true), _) => How::Add,
            (Some(false), _) => How::Set,
            // As in Envoy, the newer field says nothing about requests.
            (None, _) if request => How::Set,
            (None, HeaderAppendAction::AppendIfExistsOrAdd) => How::Add,
            (None, HeaderAppendAction::AddIfAbsent) => How::AddIfAbsent,
            (None, HeaderAppendAction::OverwriteIfExistsOrAdd) => How::Set,
            (None, HeaderAppendAction::OverwriteIfExists) => How::OverwriteIfExists,
        }
    };
    options
        .into_iter()
        .filter_map(|option| {
            let how = how(&option);
            let header = option.header?;
            let value =
                if header.raw_value.is_empty() { header.value.into_bytes() } else { header.raw_value };
            Some((header.key.to_ascii_lowercase(), value, how))
        })
        .collect()
}

impl Verdict {
    /// What a gRPC service says.
    pub(super) fn of_answer(answer: pb::CheckResponse) -> Self {
        let status = answer.status.as_ref().map_or(0, |status| status.code);
        let mut metadata = answer.dynamic_metadata.unwrap_or_default();
        if status != 0 {
            let mut denied = Denied { status: 403, headers: Vec::new(), body: Bytes::new(), metadata };
            if let Some(HttpResponse::DeniedResponse(said)) = answer.http_response {
                let code = said.status.map_or(0, |status| status.code);
                if let Some(code) = u16::try_from(code).ok().filter(|code| (200..600).contains(code)) {
                    denied.status = code;
                }
                // As in Envoy, what is to be appended is not.
                let headers = named(said.headers, true).into_iter().filter(|(.., how)| *how == How::Set);
                denied.headers = headers.map(|(name, value, _)| (name, value)).collect();
                denied.body = said.body.into();
            }
            return Verdict::Denied(denied);
        }
        let mut allowed = Allowed::default();
        if let Some(HttpResponse::OkResponse(said)) = answer.http_response {
            #[allow(deprecated)] // Services still say it.
            let own = said.dynamic_metadata;
            metadata = own.unwrap_or(metadata);
            allowed.headers = named(said.headers, true);
            allowed.remove = said.headers_to_remove;
            allowed.response = named(said.response_headers_to_add, false);
            allowed.query =
                said.query_parameters_to_set.into_iter().map(|set| (set.key, set.value)).collect();
            allowed.query_remove = said.query_parameters_to_remove;
        }
        allowed.metadata = metadata;
        Verdict::Allowed(Box::new(allowed))
    }

    /// What an HTTP service says.
    pub(super) fn of_http(service: &HttpService, answer: Result<Answer, CallError>) -> Self {
        let Ok(answer) = answer else { return Verdict::Error };
        let status = answer.head.status;
        if status >= 500 {
            return Verdict::Error;
        }
        let fields =
            || {
                answer.head.fields.iter().map(|(_, name, value)| {
                    (String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec())
                })
            };
        if status != 200 {
            let goes = |name: &str| match &service.client {
                None => name != "host",
                Some(some) => any(some, name.as_bytes()),
            };
            // As from any upstream of Envoy's.
            let took = (TOOK.to_owned(), answer.took.as_millis().to_string().into_bytes());
            let headers = fields().chain([took]).filter(|(name, _)| goes(name)).collect();
            return Verdict::Denied(Denied {
                status,
                headers,
                body: answer.body,
                metadata: Struct::default(),
            });
        }
        let mut allowed = Allowed::default();
        for (name, value) in fields() {
            if name == REMOVE {
                let text = String::from_utf8_lossy(&value).into_owned();
                let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
                allowed.remove.extend(names.map(str::to_owned));
                continue;
            }
            let is = |list: &[StringMatcher]| any(list, name.as_bytes());
            if is(&service.upstream) {
                allowed.headers.push((name.clone(), value.clone(), How::Set));
            }
            if is(&service.upstream_append) {
                allowed.headers.push((name.clone(), value.clone(), How::Add));
            }
            if is(&service.client_on_success) {
                allowed.response.push((name.clone(), value.clone(), How::Add));
            }
            if is(&service.metadata) {
                let text = String::from_utf8_lossy(&value).into_owned();
                allowed.metadata.fields.insert(name, Value { kind: Some(Kind::StringValue(text)) });
            }
        }
        Verdict::Allowed(Box::new(allowed))
    }
}

impl Config {
    pub(super) fn apply(&self, verdict: Verdict, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        match verdict {
            Verdict::Allowed(allowed) => {
                let mut allowed = *allowed;
                self.tell(std::mem::take(&mut allowed.metadata), true, ex);
                let Some(changed) = self.change(&allowed, ex) else { return self.invalid(ex, at) };
                if changed && self.reroute {
                    active(ex).reroute = true;
                }
                if !allowed.response.is_empty() {
                    at.encode(ex, Encoder::ExtAuthz(Changes(allowed.response)));
                }
                self.count(ex, at, |stats| &stats.ok, |stats| &stats.ok);
                if self.shadow {
                    return self.note(ex, at, Decision::Ok);
                }
                Step::Continue
            }
            Verdict::Denied(denied) => self.deny(denied, ex, at),
            Verdict::Error => {
                self.count(ex, at, |stats| &stats.error, |stats| &stats.error);
                if self.shadow {
                    return self.note(ex, at, Decision::Error(self.status_on_error));
                }
                if !self.fail_open {
                    return self.failure(ex);
                }
                self.count(ex, at, |stats| &stats.failure_mode_allowed, |stats| &stats.failure_mode_allowed);
                if let Some(request) = ex.request.as_mut().filter(|_| self.tell_failure) {
                    request.fields.push(FAILURE_ALLOWED, b"true");
                }
                Step::Continue
            }
        }
    }

    fn tell(&self, mut metadata: Struct, allowed: bool, ex: &mut Exchange<'_>) {
        if metadata.fields.is_empty() {
            return;
        }
        if !self.ingest {
            self.stats.ignored_dynamic_metadata.increment(1);
            return;
        }
        if allowed {
            let since = ex.info.start.elapsed().as_millis() as f64;
            let value = Value { kind: Some(Kind::NumberValue(since)) };
            metadata.fields.insert("ext_authz_duration".to_owned(), value);
        }
        let all = ex.info.metadata.get_or_insert_default();
        all.entry(NAMESPACE.to_owned()).or_default().fields.extend(metadata.fields);
    }

    fn invalid(&self, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        self.count(ex, at, |stats| &stats.invalid, |stats| &stats.invalid);
        ex.info.flags.insert(ResponseFlags::UAEX);
        Step::Reply(Reply::new(500, "ext_authz_invalid"))
    }

    fn deny(&self, mut denied: Denied, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        self.tell(std::mem::take(&mut denied.metadata), false, ex);
        self.count(ex, at, |stats| &stats.denied, |stats| &stats.denied);
        if self.charge {
            charge(ex, at, denied.status);
        }
        if self.shadow {
            let http = matches!(self.service(at), Service::Http(_));
            let decision = Decision::Denied { status: denied.status, headers: &denied.headers, http };
            return self.note(ex, at, decision);
        }
        if self.validate && denied.headers.iter().any(|(name, value)| !is_valid(name, value)) {
            return self.invalid(ex, at);
        }
        let mut fields = Fields::default();
        for (name, value) in &denied.headers {
            // The body's framing is ours, and so is what would break the head.
            let framing = matches!(
                name.as_str(),
                "content-length" | "transfer-encoding" | "connection" | "keep-alive" | "upgrade"
            );
            if !framing && !name.starts_with(':') && is_valid(name, value) {
                fields.push(name.as_bytes(), value);
            }
        }
        ex.info.flags.insert(ResponseFlags::UAEX);
        let mut reply = Reply::new(denied.status, "ext_authz_denied").with_fields(fields);
        reply.body = match self.max_denial {
            0 => denied.body,
            most => denied.body.slice(..denied.body.len().min(most)),
        };
        Step::Reply(reply)
    }

    /// Changes the request; says whether anything was to be changed. `None` if the answer is invalid.
    fn change(&self, allowed: &Allowed, ex: &mut Exchange<'_>) -> Option<bool> {
        let request = ex.request.as_mut()?;
        for order in [How::Set, How::Add, How::Append, How::AddIfAbsent, How::OverwriteIfExists] {
            for (name, value, how) in allowed.headers.iter().filter(|(.., how)| *how == order) {
                if !is_valid(name, value) {
                    if self.validate {
                        return None;
                    }
                    continue;
                }
                let key = HeaderKey::new(name);
                match self.rules.as_ref().map_or(Change::Made, |rules| rules.check(&key, false)) {
                    Change::Made => set(request, &key, value, *how),
                    Change::Ignored => {}
                    Change::Fatal => return None,
                }
            }
        }
        for name in &allowed.remove {
            let key = HeaderKey::new(name);
            let removable = !key.name().starts_with(':');
            match self.rules.as_ref().map(|rules| rules.check(&key, true)) {
                None if !removable => {}
                None | Some(Change::Made) => {
                    request.remove(&key);
                }
                Some(Change::Ignored) => {}
                Some(Change::Fatal) => return None,
            }
        }
        if self.validate && allowed.response.iter().any(|(name, value, _)| !is_valid(name, value)) {
            return None;
        }
        if !allowed.query.is_empty() || !allowed.query_remove.is_empty() {
            let mut query = Query::raw(request.path());
            for (name, value) in &allowed.query {
                let encoded = |text: &str| text.bytes().all(is_query_byte);
                if !encoded(name) || !encoded(value) {
                    if self.validate {
                        return None;
                    }
                    continue;
                }
                query.set(name.as_bytes(), value.as_bytes());
            }
            for name in &allowed.query_remove {
                query.remove(name.as_bytes());
            }
            let path = query.written();
            request.set_path(&path);
        }
        Some(
            !(allowed.headers.is_empty()
                && allowed.remove.is_empty()
                && allowed.query.is_empty()
                && allowed.query_remove.is_empty()),
        )
    }
}

/// What may stand in a query as it is.
fn is_query_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~%!$'()*,;:@/?+=".contains(&byte)
}

fn set(request: &mut RequestHead, key: &HeaderKey, value: &[u8], how: How) {
    if key.name().starts_with(':') && !is_pseudo(key) {
        return;
    }
    // The body's framing is the client's.
    if matches!(
        key.known(),
        Known::ContentLength | Known::TransferEncoding | Known::Connection | Known::Upgrade
    ) {
        return;
    }
    let present = request.first(key).is_some();
    match how {
        How::Set => request.set(key, value),
        How::Add => request.append(key, value),
        How::Append if present => {
            let mut joined = Vec::new();
            request.values(key, &mut |one| {
                joined.extend_from_slice(one);
                joined.push(b',');
            });
            joined.extend_from_slice(value);
            request.set(key, &joined);
        }
        How::AddIfAbsent if !present => request.append(key, value),
        How::OverwriteIfExists if present => request.set(key, value),
        How::Append | How::AddIfAbsent | How::OverwriteIfExists => {}
    }
}

impl Changes {
    pub(in crate::http::filters) fn on_response(&self, head: &mut ResponseHead) {
        for order in [How::Add, How::Append, How::Set, How::AddIfAbsent, How::OverwriteIfExists] {
            for (name, value, _) in self.0.iter().filter(|(.., how)| *how == order) {
                if name.starts_with(':') || !is_valid(name, value) {
                    continue;
                }
                let key = HeaderKey::new(name);
                let present = head.fields.first(&key).is_some();
                match order {
                    How::Add | How::Append => head.fields.append(&key, value),
                    How::Set => head.fields.set(&key, value),
                    How::AddIfAbsent if !present => head.fields.append(&key, value),
                    How::OverwriteIfExists if present => head.fields.set(&key, value),
                    How::AddIfAbsent | How::OverwriteIfExists => {}
                }
            }
        }
    }
}
