//! What the service sees of a head, and what it may change in it.

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, HeaderValueOption};
use outrigger_control_api::pb::envoy::service::ext_proc::v3 as pb;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use outrigger_control_api::pb::envoy::service::ext_proc::v3::common_response::ResponseStatus;

use super::{Config, Verdict};
use crate::config::token::{is_field_name, is_field_value};
use crate::config::{HeaderKey, HeaderMutate, Known, RequestView};
use crate::http::fields::Fields;
use crate::http::filters::ext_authz::rules::Change;
use crate::http::head::{RequestHead, ResponseHead};

/// Why the changes that a service wants are not made, as details tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) struct Refused(pub(super) &'static str);

impl Refused {
    pub(in crate::http) const LENGTH: Self =
        Self("mismatch_between_content_length_and_the_length_of_the_mutated_body");
    const CHARACTER: Self = Self("header_mutation_set_contains_invalid_character");
    const SET: Self = Self("header_mutation_set_headers_failed");
    const REMOVE: Self = Self("header_mutation_remove_headers_failed");
}

/// The lines of a request's head.
pub(super) fn request_lines(request: &RequestHead) -> Vec<(String, Vec<u8>)> {
    let pseudo = [
        (":authority", request.authority()),
        (":path", request.path()),
        (":method", request.method()),
        (":scheme", request.scheme()),
    ];
    let pseudo = pseudo.into_iter().filter(|(_, value)| !value.is_empty());
    pseudo.map(|(name, value)| (name.to_owned(), value.to_vec())).chain(lines(&request.fields)).collect()
}

/// The lines of a response's head.
pub(in crate::http) fn response_lines(head: &ResponseHead) -> Vec<(String, Vec<u8>)> {
    let status = (":status".to_owned(), head.status_text().to_vec());
    std::iter::once(status).chain(lines(&head.fields)).collect()
}

fn lines(fields: &Fields) -> impl Iterator<Item = (String, Vec<u8>)> + '_ {
    let lower = |name: &[u8]| String::from_utf8_lossy(name).to_ascii_lowercase();
    fields.iter().map(move |(_, name, value)| (lower(name), value.to_vec()))
}

/// What the service sees of a head.
pub(in crate::http) fn headers(
    config: &Config,
    lines: Vec<(String, Vec<u8>)>,
    ends: bool,
) -> pb::HttpHeaders {
    pb::HttpHeaders { headers: Some(map(config, lines)), end_of_stream: ends, ..pb::HttpHeaders::default() }
}

/// What it sees of trailers.
pub(super) fn trailers(config: &Config, trailers: &Fields) -> pb::HttpTrailers {
    pb::HttpTrailers { trailers: Some(map(config, lines(trailers).collect())) }
}

fn map(config: &Config, lines: Vec<(String, Vec<u8>)>) -> HeaderMap {
    let is = |list: &[crate::config::matcher::StringMatcher], name: &str| {
        list.iter().any(|matcher| matcher.matches(name.as_bytes()))
    };
    let seen = |name: &str| {
        config.allowed.as_ref().is_none_or(|allowed| is(allowed, name)) && !is(&config.disallowed, name)
    };
    let headers = lines
        .into_iter()
        .filter(|(name, _)| seen(name))
        .map(|(key, raw_value)| HeaderValue { key, raw_value, ..HeaderValue::default() })
        .collect();
    HeaderMap { headers }
}

/// A header to set: its name, its value, and whether it is added to what is there.
type Named<'o> = (HeaderKey, &'o [u8], bool);

fn named(option: &HeaderValueOption) -> Option<Named<'_>> {
    let header = option.header.as_ref()?;
    #[allow(deprecated)] // As in Envoy, the newer field is not read.
    let append = option.append.is_some_and(|append| append.value);
    Some((HeaderKey::new(&header.key), &header.raw_value, append))
}

/// Bodies are framed here.
fn is_framing(key: &HeaderKey) -> bool {
    matches!(
        key.known(),
        Known::TransferEncoding | Known::Connection | Known::Upgrade | Known::KeepAlive | Known::Te
    )
}

impl Config {
    /// Whether a header may be changed.
    fn permits(&self, key: &HeaderKey, remove: bool) -> Result<bool, Refused> {
        // What names the host decides on the route as the authority does.
        let authority = HeaderKey::from(Known::Authority);
        let ruled = if key.known() == Known::Host { &authority } else { key };
        match self.rules.check(ruled, remove) {
            Change::Made => Ok(true),
            Change::Ignored => {
                self.stats.rejected_header_mutations.increment(1);
                Ok(false)
            }
            Change::Fatal => {
                self.stats.rejected_header_mutations.increment(1);
                Err(if remove { Refused::REMOVE } else { Refused::SET })
            }
        }
    }

    fn checked<'o>(&self, option: &'o HeaderValueOption) -> Result<Option<Named<'o>>, Refused> {
        let Some((key, value, append)) = named(option) else { return Ok(None) };
        if !is_field_name(key.name().as_bytes()) || !is_field_value(value) {
            self.stats.rejected_header_mutations.increment(1);
            return Err(Refused::CHARACTER);
        }
        Ok(self.permits(&key, false)?.then_some((key, value, append)))
    }
}

impl Config {
    /// Takes out what is to go and may. True where the body's length was among it.
    fn remove(&self, changes: &pb::HeaderMutation, from: &mut dyn HeaderMutate) -> Result<bool, Refused> {
        let mut sized = false;
        for name in &changes.remove_headers {
            let key = HeaderKey::new(name);
            if self.permits(&key, true)? && !is_framing(&key) {
                sized |= from.remove(&key) && key.known() == Known::ContentLength;
            }
        }
        Ok(sized)
    }

    /// What `option` sets, if it may; the body's length only if `may_size`.
    fn settable<'o>(
        &self,
        option: &'o HeaderValueOption,
        may_size: bool,
    ) -> Result<Option<Named<'o>>, Refused> {
        let may = |key: &HeaderKey| !is_framing(key) && (may_size || key.known() != Known::ContentLength);
        Ok(self.checked(option)?.filter(|(key, ..)| may(key)))
    }
}

/// Sets a field; what is told by other means is left alone.
fn put((key, value, append): Named<'_>, into: &mut dyn HeaderMutate) {
    if append {
        into.append(&key, value);
    } else if !key.name().starts_with(':') {
        into.set(&key, value);
    }
}

/// Makes changes to a request. `may_size` says that its length is known when it goes on; `chunked` is set where it is not
/// told any more.
pub(super) fn apply_to_request(
    config: &Config,
    changes: &pb::HeaderMutation,
    request: &mut RequestHead,
    may_size: bool,
    chunked: &mut bool,
) -> Result<(), Refused> {
    *chunked |= config.remove(changes, request)?;
    for option in &changes.set_headers {
        let Some(named) = config.settable(option, may_size)? else { continue };
        if named.0.known() == Known::ContentLength {
            *chunked = false;
        }
        if named.0.name().starts_with(':') {
            request.set(&named.0, named.1);
        } else {
            put(named, request);
        }
    }
    Ok(())
}

/// Makes changes to a response, as [`apply_to_request`].
pub(in crate::http) fn apply_to_response(
    config: &Config,
    changes: &pb::HeaderMutation,
    head: &mut ResponseHead,
    may_size: bool,
) -> Result<(), Refused> {
    config.remove(changes, head)?;
    for option in &changes.set_headers {
        let Some(named) = config.settable(option, may_size)? else { continue };
        if named.0.known() == Known::Status {
            let status = crate::config::matcher::number::<u16>(named.1);
            if let Some(status) = status.filter(|status| (200..600).contains(status)) {
                head.set_status(status);
            }
        } else {
            put(named, head);
        }
    }
    Ok(())
}

/// Makes changes to trailers.
pub(super) fn apply_to_trailers(
    config: &Config,
    changes: &pb::HeaderMutation,
    trailers: &mut Fields,
) -> Result<(), Refused> {
    config.remove(changes, trailers)?;
    for option in &changes.set_headers {
        let named = config.settable(option, false)?;
        // Trailers have no other lines than fields.
        if let Some(named) = named.filter(|(key, ..)| !key.name().starts_with(':')) {
            put(named, trailers);
        }
    }
    Ok(())
}

/// The headers of an answer of the service's own.
pub(super) fn fields(config: &Config, changes: &pb::HeaderMutation) -> Fields {
    let mut fields = Fields::recycled();
    for option in &changes.set_headers {
        // What may not be set is left out.
        let named = config.settable(option, false).ok().flatten();
        if let Some(named) = named.filter(|(key, ..)| !key.name().starts_with(':')) {
            put(named, &mut fields);
        }
    }
    fields
}

/// Whether a piece is given as of a body that is taken and given freely.
pub(super) fn is_streamed(common: &pb::CommonResponse) -> bool {
    let mutation = common.body_mutation.as_ref().and_then(|change| change.mutation.as_ref());
    matches!(mutation, Some(Mutation::StreamedResponse(_)))
}

/// What becomes of the body.
pub(in crate::http) fn body_of(common: pb::CommonResponse, of_head: bool) -> Verdict {
    let replaces = of_head && common.status == ResponseStatus::ContinueAndReplace as i32;
    let body = match common.body_mutation.and_then(|change| change.mutation) {
        Some(Mutation::Body(body)) => Some(Bytes::from(body)),
        Some(Mutation::ClearBody(true)) => Some(Bytes::new()),
        _ => None,
    };
    if replaces && body.is_some() {
        return Verdict::Go(body, true);
    }
    // With a head nothing is said of the body otherwise.
    Verdict::Go(body.filter(|_| !of_head), false)
}
