//! Bodies that are decoded on their way (`envoy.filters.http.decompressor`).
//!
//! Comes in: heads that name a coding first. Goes out: the heads without it, and for the pump what decodes the body
//! ([`Reader`]): how much may come of a piece is bounded, and a body that is not what it says ends the stream.

use std::sync::Arc;

use bytes::Bytes;
use metrics::Counter;

use super::chain::{active, At, Step};
use super::compressor::{joined, no_transform, KEYS};
use super::transforms::Transform;
use super::Encoder as Hook;
use crate::config::runtime_value::RuntimeSwitch;
use crate::config::{HeaderKey, HeaderMutate, Known};
use crate::http::coding::{Coding, Decoder, Undecodable};
use crate::http::exchange::Exchange;
use crate::http::fields::Fields;
use crate::http::head::ResponseHead;

crate::stats! {
    /// `http.<stat_prefix>.decompressor.<library>.<coding>.request.` or `.response.`.
    pub struct BodyStats {
        counters { decompressed, not_decompressed, total_uncompressed_bytes, total_compressed_bytes }
        gauges {}
        histograms {}
    }
}

/// The filter.
#[derive(Debug)]
pub struct Config {
    /// What is decoded.
    pub coding: Coding,
    /// A piece grows to at most so many times its length.
    pub ratio: usize,
    /// Upstreams are told that it is understood.
    pub advertise: bool,
    /// Requests.
    pub request: Direction,
    /// Responses.
    pub response: Direction,
    /// Counts what cannot be decoded.
    pub errors: Counter,
    /// Counts what grows too much.
    pub overflows: Counter,
    /// Trailers that tell the size of the body before and after.
    pub sizes: [HeaderKey; 2],
}

/// What is decoded in one direction.
#[derive(Debug)]
pub struct Direction {
    /// Whether anything is.
    pub enabled: RuntimeSwitch,
    /// Even what nobody may change.
    pub always: bool,
    /// Its statistics.
    pub stats: BodyStats,
}

impl Config {
    pub(super) fn on_request(self: &Arc<Self>, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let runtime = &ex.worker.runtime;
        let (requests, responses) = (self.request.enabled.now(runtime), self.response.enabled.now(runtime));
        let ends = super::is_over(ex);
        let Some(request) = &mut ex.request else { return Step::Continue };
        if responses && self.advertise {
            let list = joined(request, &KEYS.accept_encoding).unwrap_or_default();
            request.set(&KEYS.accept_encoding, &with_coding(&list, self.coding.token()));
        }
        let mut step = Step::Continue;
        if !ends {
            if let Some(reader) = self.open(&self.request, requests, request) {
                step = super::transform_request(ex, reader);
            }
        }
        at.encode(ex, Hook::Decompressor(self.clone()));
        step
    }

    /// The head of a response passes; `ends` says that nothing follows it.
    pub(super) fn on_response(self: &Arc<Self>, ex: &mut Exchange<'_>, head: &mut ResponseHead, ends: bool) {
        if ends {
            return;
        }
        let enabled = self.response.enabled.now(&ex.worker.runtime);
        if let Some(reader) = self.open(&self.response, enabled, head) {
            active(ex).downloads.push(super::Download::Transform(reader));
        }
    }

    /// What decodes the body behind a head, which is then changed.
    fn open(
        self: &Arc<Self>,
        direction: &Direction,
        enabled: bool,
        head: &mut impl HeaderMutate,
    ) -> Option<Transform> {
        let coding = if enabled && (direction.always || !no_transform(head)) {
            joined(head, &KEYS.content_encoding)
        } else {
            None
        };
        let mut names = coding.as_deref().unwrap_or_default().splitn(2, |byte| *byte == b',');
        let first = names.next().unwrap_or_default().trim_ascii();
        let decoder =
            first.eq_ignore_ascii_case(self.coding.token().as_bytes()).then(|| self.coding.decoder());
        let Some(decoder) = decoder.flatten() else {
            direction.stats.not_decompressed.increment(1);
            return None;
        };
        direction.stats.decompressed.increment(1);
        head.remove(&Known::ContentLength.into());
        match names.next() {
            Some(rest) => head.set(&KEYS.content_encoding, rest.trim_ascii()),
            None => drop(head.remove(&KEYS.content_encoding)),
        }
        let stats = &direction.stats;
        Some(Transform::Decompress(Box::new(Reader {
            config: self.clone(),
            decoder,
            before: (0, stats.total_compressed_bytes.clone()),
            after: (0, stats.total_uncompressed_bytes.clone()),
        })))
    }
}

/// The list of what is accepted, with this coding at its end, once.
fn with_coding(list: &[u8], token: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for member in list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        let name = member.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        if !member.is_empty() && !name.eq_ignore_ascii_case(token.as_bytes()) {
            out.extend_from_slice(member);
            out.push(b',');
        }
    }
    out.extend_from_slice(token.as_bytes());
    out
}

/// Decodes one body, and counts.
pub struct Reader {
    config: Arc<Config>,
    decoder: Decoder,
    before: (u64, Counter),
    after: (u64, Counter),
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({:?})", self.decoder)
    }
}

impl Reader {
    /// The next piece. `None` where it cannot be decoded.
    pub(super) fn piece(&mut self, piece: &[u8]) -> Option<Bytes> {
        self.before.0 += piece.len() as u64;
        self.before.1.increment(piece.len() as u64);
        match self.decoder.piece(piece, self.config.ratio) {
            Ok(out) => {
                self.after.0 += out.len() as u64;
                self.after.1.increment(out.len() as u64);
                Some(out.into())
            }
            Err(error) => {
                match error {
                    Undecodable::Damaged => self.config.errors.increment(1),
                    Undecodable::Overflow => self.config.overflows.increment(1),
                }
                None
            }
        }
    }

    /// The trailers, which tell how large the body was.
    pub(super) fn end(&mut self, trailers: Option<Fields>) -> Fields {
        let mut trailers = trailers.unwrap_or_else(Fields::recycled);
        for (key, size) in self.config.sizes.iter().zip([self.before.0, self.after.0]) {
            let mut digits = itoa::Buffer::new();
            trailers.push(key.name().as_bytes(), digits.format(size).as_bytes());
        }
        trailers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted() {
        let cases = [
            ("", "gzip"),
            ("br", "br,gzip"),
            ("gzip;q=0", "gzip"),
            ("br, GZIP;q=0.1 , zstd;q=0.5", "br,zstd;q=0.5,gzip"),
        ];
        for (list, expected) in cases {
            assert_eq!(with_coding(list.as_bytes(), "gzip"), expected.as_bytes(), "{list}");
        }
    }
}
