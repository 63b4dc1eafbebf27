//! Where tokens are in a request, and how they are taken out of it.

use std::collections::{BTreeMap, BTreeSet};

use smallvec::SmallVec;

use crate::config::matcher::cookie_value;
use crate::config::query::Query;
use crate::config::{HeaderKey, HeaderMutate, Known, RequestView};

/// The places in which some providers look for tokens.
#[derive(Debug, Default)]
pub struct Extractor {
    headers: BTreeMap<String, (HeaderKey, Box<str>, Issuers)>,
    parameters: BTreeMap<String, Issuers>,
    cookies: BTreeMap<String, Issuers>,
    /// Headers that only a verified token may write.
    sanitized: Vec<HeaderKey>,
}

/// Whose tokens may be in a place.
#[derive(Debug, Default)]
struct Issuers {
    all: bool,
    some: BTreeSet<Box<str>>,
}

/// A place that holds a token.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'e> {
    Header(&'e HeaderKey),
    Parameter(&'e str),
    Cookie,
}

/// A token as found.
pub(super) struct Found<'e> {
    pub(super) token: Vec<u8>,
    pub(super) place: Place<'e>,
    issuers: &'e Issuers,
}

/// Characters of base64url, and the dot.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

impl Issuers {
    fn add(&mut self, issuer: &str) {
        if issuer.is_empty() {
            self.all = true;
        } else {
            self.some.insert(issuer.into());
        }
    }
}

impl Found<'_> {
    /// Whether tokens of `issuer` may be there.
    pub(super) fn allows(&self, issuer: &str) -> bool {
        self.issuers.all || self.issuers.some.contains(issuer)
    }
}

impl Extractor {
    /// Tokens of `issuer` may be in the header `name` after `prefix`.
    pub fn header(&mut self, issuer: &str, name: &str, prefix: &str) {
        let key = HeaderKey::new(name);
        let place = self.headers.entry(format!("{}{prefix}", key.name()));
        place.or_insert_with(|| (key, prefix.into(), Issuers::default())).2.add(issuer);
    }

    /// Tokens of `issuer` may be in the query parameter `name`.
    pub fn parameter(&mut self, issuer: &str, name: &str) {
        self.parameters.entry(name.to_owned()).or_default().add(issuer);
    }

    /// Tokens of `issuer` may be in the cookie `name`.
    pub fn cookie(&mut self, issuer: &str, name: &str) {
        self.cookies.entry(name.to_owned()).or_default().add(issuer);
    }

    /// The header `name` is written from tokens: what a client sends in it is removed.
    pub fn sanitize(&mut self, name: &str) {
        self.sanitized.push(HeaderKey::new(name));
    }

    /// Removes what clients must not send.
    pub(super) fn clean<R: HeaderMutate>(&self, request: &mut R) {
        for key in &self.sanitized {
            request.remove(key);
        }
    }

    /// All tokens of a request.
    pub(super) fn find<R: RequestView>(&self, request: &R) -> SmallVec<[Found<'_>; 2]> {
        let mut found = SmallVec::new();
        for (key, prefix, issuers) in self.headers.values() {
            let mut each = |value: &[u8]| {
                let token = if prefix.is_empty() {
                    value
                } else {
                    let Some(at) = memchr::memmem::find(value, prefix.as_bytes()) else { return };
                    let after = value.get(at + prefix.len()..).unwrap_or_default();
                    match after.iter().position(|byte| is_token_byte(*byte)) {
                        Some(start) => after.get(start..).unwrap_or_default(),
                        None => value,
                    }
                };
                found.push(Found { token: token.to_vec(), place: Place::Header(key), issuers });
            };
            if key.known() == Known::Authorization {
                // As in Envoy several are one list.
                joined(request, key, &mut each);
            } else {
                request.values(key, &mut each);
            }
        }
        if !self.parameters.is_empty() && memchr::memchr(b'?', request.path()).is_some() {
            let query = Query::decoded(request.path());
            for (name, issuers) in &self.parameters {
                if let Some(value) = query.first(name.as_bytes()) {
                    let place = Place::Parameter(name);
                    found.push(Found { token: value.to_vec(), place, issuers });
                }
            }
        }
        if !self.cookies.is_empty() {
            let cookie = HeaderKey::from(Known::Cookie);
            for (name, issuers) in &self.cookies {
                let mut token: Option<Vec<u8>> = None;
                request.values(&cookie, &mut |pairs| {
                    if token.is_none() {
                        token = cookie_value(pairs, name.as_bytes()).map(<[u8]>::to_vec);
                    }
                });
                found.extend(token.map(|token| Found { token, place: Place::Cookie, issuers }));
            }
        }
        found
    }
}

/// Calls `each` with the values of a header as one, if there are any.
fn joined<R: RequestView>(request: &R, key: &HeaderKey, each: &mut dyn FnMut(&[u8])) {
    let (mut count, mut all) = (0, Vec::new());
    request.values(key, &mut |value| {
        if count > 0 {
            all.push(b',');
            all.extend_from_slice(value);
        }
        count += 1;
    });
    match (count, request.first(key)) {
        (_, None) => {}
        (1, Some(only)) => each(only),
        (_, Some(first)) => each(&[first, &all].concat()),
    }
}

impl Place<'_> {
    /// Takes the token out of the request. One in a cookie stays, as in Envoy.
    pub(super) fn remove<R: RequestView + HeaderMutate>(self, request: &mut R) {
        match self {
            Place::Header(key) => {
                request.remove(key);
            }
            Place::Parameter(name) => {
                let mut query = Query::decoded(request.path());
                query.remove(name.as_bytes());
                let path = query.written();
                request.set(&Known::Path.into(), &path);
            }
            Place::Cookie => {}
        }
    }
}
