//! The hash of a request, by the route's hash policies (envoyproxy.io: `RouteAction.HashPolicy`).
//!
//! Comes in: the request as it goes upstream, and what is known of its client. Goes out: a hash that a consistent-hash
//! balancer picks by, and the cookies that the client has to be given for it.

use std::borrow::Cow;
use std::net::SocketAddr;

use smallvec::SmallVec;
use xxhash_rust::xxh64::xxh64;

use crate::config::matcher::cookie_value;
use crate::config::route::{Action, HashCookie, HashInput, HashPolicy, Route};
use crate::config::{HeaderKey, HeaderView, Known, RequestView};
use crate::http::exchange::Exchange;
use crate::telemetry::stream_info::StreamInfo;

/// What a request hashes to.
#[derive(Debug, Default)]
pub(super) struct Hashed {
    /// `None` when there was nothing to hash.
    pub(super) hash: Option<u64>,
    /// Values of `set-cookie` for the response.
    pub(super) cookies: Vec<Vec<u8>>,
}

/// Who is at the two ends of a request's connection.
struct Client {
    /// The client, after what proxies before this one said.
    address: Option<SocketAddr>,
    /// The peer of the connection.
    remote: Option<SocketAddr>,
    /// Our end of it.
    local: Option<SocketAddr>,
}

/// The number by which a request that drew `random` chooses among clusters: its hash, where the route wants that.
pub(in crate::http) fn choice(ex: &Exchange<'_>, route: &Route, random: u64) -> u64 {
    let Action::Forward(forward) = &route.action else { return random };
    if !forward.chooses_by_hash() {
        return random;
    }
    let Some(request) = &ex.request else { return random };
    // Without the ends of its connection no cookie is made: only one that the request has counts.
    let address = ex.info.client.or(ex.info.connection.remote);
    let client = Client { address, remote: None, local: None };
    Hashed::of_request(&forward.hash_policies, request, &client, Some(&ex.info)).hash.unwrap_or(random)
}

impl Hashed {
    /// Hashes the request of `ex`.
    pub(super) fn of(policies: &[HashPolicy], ex: &Exchange<'_>) -> Self {
        let Some(request) = &ex.request else { return Self::default() };
        let connection = &ex.info.connection;
        let client = Client {
            address: ex.info.client.or(connection.remote),
            remote: connection.remote,
            local: connection.local,
        };
        Self::of_request(policies, request, &client, Some(&ex.info))
    }

    fn of_request<R: RequestView>(
        policies: &[HashPolicy],
        request: &R,
        client: &Client,
        info: Option<&StreamInfo>,
    ) -> Self {
        let mut hashed = Self::default();
        for policy in policies {
            let new = match &policy.input {
                HashInput::Header(key, rewrite) => header(request, key, |value| match rewrite {
                    Some(rewrite) => Cow::Owned(rewrite.replace_all(value)),
                    None => Cow::Borrowed(value),
                }),
                HashInput::Cookie(cookie) => hashed.cookie(cookie, request, client),
                HashInput::SourceIp => {
                    client.address.map(|address| xxh64(address.ip().to_string().as_bytes(), 0))
                }
                HashInput::FilterState(name) => info.and_then(|info| info.object(name)?.hash()),
                HashInput::QueryParameter(name) => {
                    query_value(request.path(), name.as_bytes()).map(|value| xxh64(value, 0))
                }
            };
            if let Some(new) = new {
                // Turned, so that two equal policies do not cancel each other out.
                hashed.hash = Some(hashed.hash.map_or(0, |hash| hash.rotate_left(1)) ^ new);
            }
            if policy.terminal && hashed.hash.is_some() {
                break;
            }
        }
        hashed
    }

    fn cookie<R: HeaderView>(&mut self, cookie: &HashCookie, request: &R, client: &Client) -> Option<u64> {
        let mut found: SmallVec<[u8; 64]> = SmallVec::new();
        request.values(&Known::Cookie.into(), &mut |pairs| {
            if found.is_empty() {
                found.extend_from_slice(cookie_value(pairs, cookie.name.as_bytes()).unwrap_or_default());
            }
        });
        if !found.is_empty() {
            return Some(xxh64(&found, 0));
        }
        cookie.ttl?;
        // The same for all requests of a connection: those that race get one cookie.
        let (remote, local) = (client.remote?, client.local?);
        let value = format!("{:016x}", xxh64(format!("{remote}{local}").as_bytes(), 0));
        self.cookies.push(cookie.set(&value));
        Some(xxh64(value.as_bytes(), 0))
    }
}

/// Hashes all values of a header, sorted, so that their order does not matter.
fn header<R: HeaderView>(
    request: &R,
    key: &HeaderKey,
    rewrite: impl for<'v> Fn(&'v [u8]) -> Cow<'v, [u8]>,
) -> Option<u64> {
    let mut values: SmallVec<[SmallVec<[u8; 64]>; 2]> = SmallVec::new();
    request.values(key, &mut |value| values.push(SmallVec::from_slice(&rewrite(value))));
    if values.is_empty() {
        return None;
    }
    values.sort_unstable();
    // The hash of each is the seed of the next.
    Some(values.iter().fold(0, |hash, value| xxh64(value, hash)))
}

/// The first value of a query parameter, as it stands in the path; empty where it has none.
fn query_value<'p>(path: &'p [u8], name: &[u8]) -> Option<&'p [u8]> {
    let query = path.get(path.iter().position(|byte| *byte == b'?')? + 1..)?;
    query.split(|byte| *byte == b'&').find_map(|pair| {
        let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        let (key, value) = pair.split_at(end);
        (key == name).then(|| value.get(1..).unwrap_or_default())
    })
}

#[cfg(test)]
#[path = "hash_tests.rs"]
mod tests;
