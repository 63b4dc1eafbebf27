//! Bodies that are coded on their way (`envoy.filters.http.compressor`): responses where the client accepts it, requests
//! where config says so.
//!
//! Comes in: the request's head, then the response's. Goes out: their heads as they are with a coded body, and for the
//! pump what codes it ([`Coder`]). Of several filters, [`accept`] tells which one the client likes best; the one that is
//! asked first decides for all.

mod accept;

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use metrics::Counter;

pub(super) use accept::Choice;

use super::chain::{active, At, Step};
use super::transforms::Transform;
use super::Encoder as Hook;
use crate::config::matcher::number;
use crate::config::route::RouteFilter;
use crate::config::runtime_value::RuntimeSwitch;
use crate::config::{HeaderKey, HeaderMutate, HeaderView, Known};
use crate::http::coding::{Encoder, Library};
use crate::http::exchange::Exchange;
use crate::http::head::ResponseHead;

crate::stats! {
    /// `http.<stat_prefix>.compressor.<library>.<coding>.[request.|response.]`.
    pub struct BodyStats {
        counters {
            compressed, not_compressed, total_uncompressed_bytes, total_compressed_bytes, content_length_too_small,
        }
        gauges {}
        histograms {}
    }
}

crate::stats! {
    /// `http.<stat_prefix>.compressor.<library>.<coding>.`: what became of `accept-encoding`.
    pub struct AcceptStats {
        counters {
            no_accept_header, header_identity, header_compressor_used, header_compressor_overshadowed,
            header_wildcard, header_not_valid, not_compressed_etag,
        }
        gauges {}
        histograms {}
    }
}

/// The filter.
#[derive(Debug)]
pub struct Config {
    /// What codes.
    pub library: Library,
    /// It goes before others that the client likes as much.
    pub choose_first: bool,
    /// Requests; `None` = none are coded.
    pub request: Option<Direction>,
    /// Counts requests.
    pub request_stats: BodyStats,
    /// Responses.
    pub response: Direction,
    /// Counts responses.
    pub response_stats: BodyStats,
    /// Counts what clients accept.
    pub accept_stats: AcceptStats,
    /// Responses with an entity tag are left alone.
    pub skip_etag: bool,
    /// The tag of what was coded becomes weak, rather than being taken away.
    pub weaken_etag: bool,
    /// The upstream does not see what the client accepts.
    pub hide_accept: bool,
    /// Responses with these statuses are left alone.
    pub skip_status: Box<[u32]>,
    /// A header tells what was done.
    pub tell: bool,
}

/// What is coded in one direction.
#[derive(Debug)]
pub struct Direction {
    /// Whether anything is.
    pub enabled: RuntimeSwitch,
    /// The least length, where it is known.
    pub least: u64,
    /// Types in lower case, without parameters.
    pub types: Box<[Box<str>]>,
}

/// What a route says (`CompressorPerRoute`).
#[derive(Debug)]
pub enum PerRoute {
    /// Responses are not coded.
    Off,
    /// In place of what the filter says.
    Overrides {
        /// Responses are coded.
        on: bool,
        /// The upstream does not see what the client accepts.
        hide_accept: Option<bool>,
        /// What codes.
        library: Option<Library>,
    },
}

/// What is coded where config does not say.
pub const TYPES: [&str; 20] = [
    "text/html",
    "text/plain",
    "text/css",
    "application/javascript",
    "application/x-javascript",
    "text/javascript",
    "text/x-javascript",
    "text/ecmascript",
    "text/js",
    "text/jscript",
    "text/x-js",
    "application/ecmascript",
    "application/x-json",
    "application/xml",
    "application/json",
    "image/svg+xml",
    "text/xml",
    "application/xhtml+xml",
    "application/grpc-web",
    "application/grpc-web+proto",
];
/// The least length where config does not say, in bytes.
pub const LEAST: u64 = 30;

/// Headers that are no other part's concern.
pub(super) struct Keys {
    pub(super) accept_encoding: HeaderKey,
    pub(super) content_encoding: HeaderKey,
    pub(super) cache_control: HeaderKey,
    etag: HeaderKey,
    vary: HeaderKey,
    status: HeaderKey,
}

pub(super) static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    accept_encoding: HeaderKey::new("accept-encoding"),
    content_encoding: HeaderKey::new("content-encoding"),
    cache_control: HeaderKey::new("cache-control"),
    etag: HeaderKey::new("etag"),
    vary: HeaderKey::new("vary"),
    status: HeaderKey::new("x-envoy-compression-status"),
});

/// The filter's part in one response.
#[derive(Debug)]
pub(super) struct Turn {
    config: Arc<Config>,
    /// Responses may be coded.
    enabled: bool,
    /// What the client accepts, as the filter saw it.
    accept: Option<Box<[u8]>>,
    /// What a route wants it to be coded with.
    library: Option<Library>,
}

/// All values of a header as one list.
pub(super) fn joined(head: &impl HeaderView, key: &HeaderKey) -> Option<Box<[u8]>> {
    let mut list: Option<Vec<u8>> = None;
    head.values(key, &mut |value| {
        match &mut list {
            None => list = Some(value.to_vec()),
            Some(list) => {
                list.push(b',');
                list.extend_from_slice(value);
            }
        };
    });
    list.map(Into::into)
}

/// Whether a list has this member.
pub(super) fn lists(list: &[u8], member: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(member))
}

/// Whether nobody may change the body (RFC 9111 §5.2.2.6).
pub(super) fn no_transform(head: &impl HeaderView) -> bool {
    joined(head, &KEYS.cache_control).is_some_and(|list| lists(&list, b"no-transform"))
}

impl Direction {
    fn takes_length(&self, length: Option<&[u8]>, stats: &BodyStats) -> bool {
        let Some(length) = length else { return true };
        let enough = number::<u64>(length).is_some_and(|length| length >= self.least);
        if !enough {
            stats.content_length_too_small.increment(1);
        }
        enough
    }

    fn takes_type(&self, kind: Option<&[u8]>) -> bool {
        let Some(kind) = kind else { return true };
        let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        self.types.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(kind))
    }
}

impl Config {
    pub(super) fn on_request(self: &Arc<Self>, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let runtime = &ex.worker.runtime;
        let (enabled, hide, library) = match at.said() {
            Some(RouteFilter::Compressor(PerRoute::Off)) => (false, self.hide_accept, &None),
            Some(RouteFilter::Compressor(PerRoute::Overrides { on, hide_accept, library })) => {
                (*on || self.response.enabled.now(runtime), hide_accept.unwrap_or(self.hide_accept), library)
            }
            _ => (self.response.enabled.now(runtime), self.hide_accept, &None),
        };
        let coded = self.request.as_ref().filter(|direction| direction.enabled.now(runtime));
        let ends = super::is_over(ex);
        let Some(request) = &mut ex.request else { return Step::Continue };
        let accept = joined(request, &KEYS.accept_encoding);
        if let Some(list) =
            accept.as_ref().filter(|list| request.first(&KEYS.accept_encoding) != Some(&***list))
        {
            // One line, as in Envoy.
            request.set(&KEYS.accept_encoding, list);
        }
        if enabled && hide {
            request.remove(&KEYS.accept_encoding);
        }
        let stats = &self.request_stats;
        let mut step = Step::Continue;
        let coder = coded
            .filter(|direction| {
                !ends
                    && direction.takes_length(request.fields.get(Known::ContentLength), stats)
                    && direction.takes_type(request.fields.get(Known::ContentType))
                    && request.first(&KEYS.content_encoding).is_none()
            })
            .and_then(|_| library.as_ref().unwrap_or(&self.library).encoder());
        match coder {
            Some(encoder) => {
                stats.compressed.increment(1);
                let token = library.as_ref().unwrap_or(&self.library).token();
                request.fields.remove_known(Known::ContentLength);
                request.set(&KEYS.content_encoding, token.as_bytes());
                let coder = Coder::new(encoder, stats);
                step = super::transform_request(ex, Transform::Compress(Box::new(coder)));
            }
            None => stats.not_compressed.increment(1),
        }
        let turn = Turn { config: self.clone(), enabled, accept, library: library.clone() };
        at.encode(ex, Hook::Compressor(Box::new(turn)));
        step
    }
}

/// Why a response is not coded, as the header tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unfit {
    Length,
    Type,
    Etag,
    Status,
    /// Nothing is told.
    Silent,
}

impl Unfit {
    fn text(self) -> Option<&'static str> {
        match self {
            Unfit::Length => Some("ContentLengthTooSmall"),
            Unfit::Type => Some("ContentTypeNotAllowed"),
            Unfit::Etag => Some("EtagNotAllowed"),
            Unfit::Status => Some("StatusCodeNotAllowed"),
            Unfit::Silent => None,
        }
    }
}

impl Turn {
    fn library(&self) -> &Library {
        self.library.as_ref().unwrap_or(&self.config.library)
    }

    /// What of the response is in the way, but for its length.
    fn unfit(&self, head: &ResponseHead) -> Option<Unfit> {
        let config = &self.config;
        if head.status == 101 || head.fields.has(Known::Upgrade) {
            return Some(Unfit::Silent);
        }
        if !config.response.takes_type(head.fields.get(Known::ContentType)) {
            return Some(Unfit::Type);
        }
        if no_transform(head) {
            return Some(Unfit::Silent);
        }
        if head.first(&KEYS.content_encoding).is_some() {
            return Some(Unfit::Silent);
        }
        if config.skip_etag && head.first(&KEYS.etag).is_some() {
            config.accept_stats.not_compressed_etag.increment(1);
            return Some(Unfit::Etag);
        }
        config.skip_status.contains(&head.status.into()).then_some(Unfit::Status)
    }

    /// Whether the client wants this filter's coding. `all` are the filters of the chain; what one of them found out
    /// holds for the others.
    fn wanted(&self, head: &ResponseHead, all: &[(usize, Hook)], choice: &mut Option<Choice>) -> bool {
        let stats = &self.config.accept_stats;
        let Some(accept) = &self.accept else {
            stats.no_accept_header.increment(1);
            return false;
        };
        let choice = choice.get_or_insert_with(|| {
            let kind = head.fields.get(Known::ContentType).filter(|kind| !kind.is_empty());
            let offers = all.iter().filter_map(|(_, hook)| match hook {
                Hook::Compressor(turn) => Some(&**turn),
                _ => None,
            });
            let offers =
                offers.filter(|turn| kind.is_none() || turn.config.response.takes_type(kind)).map(|turn| {
                    // Of what a route says to others nothing is known here.
                    let library =
                        if std::ptr::eq(turn, self) { self.library() } else { &turn.config.library };
                    (library.token(), turn.config.choose_first)
                });
            Choice::of(accept, offers)
        });
        let token = self.library().token();
        match *choice {
            Choice::Coding(chosen) if chosen == token => stats.header_compressor_used.increment(1),
            Choice::Coding(_) => stats.header_compressor_overshadowed.increment(1),
            Choice::Identity => stats.header_identity.increment(1),
            Choice::Any(_) => stats.header_wildcard.increment(1),
            Choice::None => stats.header_not_valid.increment(1),
        }
        matches!(*choice, Choice::Coding(chosen) | Choice::Any(chosen) if chosen == token)
    }

    /// The head of a response passes; `ends` says that nothing follows it.
    pub(super) fn on_response(
        &self,
        ex: &mut Exchange<'_>,
        head: &mut ResponseHead,
        ends: bool,
        all: &[(usize, Hook)],
        choice: &mut Option<Choice>,
    ) {
        let (config, stats) = (&self.config, &self.config.response_stats);
        let length = head.fields.get(Known::ContentLength);
        let long = self.enabled && config.response.takes_length(length, stats);
        // Where a header tells what was done, what the client accepts counts last.
        let mut wanted = !config.tell && !ends && long && self.wanted(head, all, choice);
        let unfit = match (self.enabled, long) {
            (false, _) => Some(Unfit::Silent),
            (_, false) => Some(Unfit::Length),
            _ => self.unfit(head),
        };
        if config.tell && !ends {
            if self.enabled && !long {
                // As in Envoy, which looks twice.
                stats.content_length_too_small.increment(1);
            }
            wanted = unfit.is_none() && self.wanted(head, all, choice);
        }
        let library = self.library();
        let encoder = if wanted && unfit.is_none() { library.encoder() } else { None };
        if let Some(text) = unfit.filter(|_| config.tell && !ends).and_then(Unfit::text) {
            tell(head, &format!("{};{text}", library.token()));
        }
        match encoder {
            Some(encoder) => {
                self.mark(head);
                stats.compressed.increment(1);
                let coder = Transform::Compress(Box::new(Coder::new(encoder, stats)));
                active(ex).downloads.push(super::Download::Transform(coder));
            }
            None => stats.not_compressed.increment(1),
        }
        if unfit.is_none() {
            vary(head);
        }
    }

    /// The head says that its body is coded.
    fn mark(&self, head: &mut ResponseHead) {
        let library = self.library();
        let tag = head.first(&KEYS.etag).filter(|tag| !tag.starts_with(b"W/"));
        if let Some(weak) = tag.map(|tag| [b"W/", tag].concat()) {
            match self.config.weaken_etag {
                true => head.set(&KEYS.etag, &weak),
                false => drop(head.remove(&KEYS.etag)),
            }
        }
        if self.config.tell {
            let length = head.fields.get(Known::ContentLength).unwrap_or_default();
            let length = String::from_utf8_lossy(length).into_owned();
            tell(head, &format!("{};Compressed;OriginalLength={length}", library.token()));
        }
        head.fields.remove_known(Known::ContentLength);
        head.set(&KEYS.content_encoding, library.token().as_bytes());
    }
}

/// Caches are told that the client's wishes count.
fn vary(head: &mut ResponseHead) {
    const NAME: &[u8] = b"Accept-Encoding";
    match joined(head, &KEYS.vary) {
        None => head.set(&KEYS.vary, NAME),
        // As in Envoy, the case of letters counts.
        Some(list) if list.split(|byte| *byte == b',').any(|one| one.trim_ascii() == NAME) => {}
        Some(list) => head.set(&KEYS.vary, &[&list, &b", "[..], NAME].concat()),
    }
}

fn tell(head: &mut ResponseHead, text: &str) {
    let value = match joined(head, &KEYS.status) {
        None => text.as_bytes().to_vec(),
        Some(before) => [&before, &b","[..], text.as_bytes()].concat(),
    };
    head.set(&KEYS.status, &value);
}

/// Codes one body, and counts.
pub struct Coder {
    encoder: Encoder,
    /// Something was taken in since the last pause.
    holds: bool,
    uncompressed: Counter,
    compressed: Counter,
}

impl std::fmt::Debug for Coder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Coder({:?})", self.encoder)
    }
}

impl Coder {
    fn new(encoder: Encoder, stats: &BodyStats) -> Self {
        let (uncompressed, compressed) = (&stats.total_uncompressed_bytes, &stats.total_compressed_bytes);
        Self { encoder, holds: false, uncompressed: uncompressed.clone(), compressed: compressed.clone() }
    }

    fn out(&self, out: Vec<u8>) -> Bytes {
        self.compressed.increment(out.len() as u64);
        out.into()
    }

    pub(super) fn piece(&mut self, piece: &[u8]) -> Option<Bytes> {
        self.holds = true;
        self.uncompressed.increment(piece.len() as u64);
        let mut out = Vec::new();
        self.encoder.piece(piece, &mut out)?;
        Some(self.out(out))
    }

    pub(super) fn pause(&mut self) -> Option<Bytes> {
        if !std::mem::take(&mut self.holds) {
            return Some(Bytes::new());
        }
        let mut out = Vec::new();
        self.encoder.flush(&mut out)?;
        Some(self.out(out))
    }

    pub(super) fn end(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        self.encoder.finish(&mut out)?;
        Some(self.out(out))
    }
}
