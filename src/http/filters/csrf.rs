//! Requests that another site makes a browser send (`envoy.filters.http.csrf`): those that change something must come
//! from the host that they go to, or from one that config names.

use std::sync::LazyLock;

use outrigger_control_api::pb::envoy::extensions::filters::http::csrf::v3 as pb;

use super::chain::{At, Step};
use crate::config::matcher::{RuntimeFraction, StringMatcher};
use crate::config::problems::Problems;
use crate::config::route::RouteFilter;
use crate::config::{HeaderKey, HeaderView, RequestView};
use crate::http::exchange::{Exchange, Reply};
use crate::telemetry::metrics::Scope;

crate::stats! {
    /// `http.<stat_prefix>.csrf.`.
    pub struct CsrfStats {
        counters { missing_source_origin, request_invalid, request_valid }
        gauges {}
        histograms {}
    }
}

/// The filter.
#[derive(Debug)]
pub struct Config {
    stats: CsrfStats,
    policy: Policy,
}

/// `CsrfPolicy`.
#[derive(Debug)]
pub struct Policy {
    enabled: RuntimeFraction,
    shadow: Option<RuntimeFraction>,
    additional: Box<[StringMatcher]>,
}

static ORIGIN: LazyLock<HeaderKey> = LazyLock::new(|| HeaderKey::new("origin"));
static REFERER: LazyLock<HeaderKey> = LazyLock::new(|| HeaderKey::new("referer"));

impl Policy {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(config: &pb::CsrfPolicy, problems: &mut Problems) -> Option<Self> {
        let additional =
            StringMatcher::compile_all(&config.additional_origins, "additional_origins", problems);
        Some(Self {
            // Demanded by a field rule.
            enabled: RuntimeFraction::of(config.filter_enabled.as_ref()?),
            shadow: config.shadow_enabled.as_ref().map(RuntimeFraction::of),
            additional: additional?,
        })
    }
}

impl Config {
    /// Compiles `config`, which counts in `stats`, the connection manager's. `None` when a problem was reported.
    pub fn compile(config: &pb::CsrfPolicy, stats: &Scope, problems: &mut Problems) -> Option<Self> {
        Some(Self { stats: CsrfStats::new(&stats.sub("csrf")), policy: Policy::compile(config, problems)? })
    }

    pub(super) fn on_request(&self, ex: &Exchange<'_>, at: &At<'_>) -> Step {
        let policy = match at.said() {
            Some(RouteFilter::Csrf(policy)) => policy,
            _ => &self.policy,
        };
        let enabled = ex.worker.draws_from(&policy.enabled);
        let shadow = policy.shadow.as_ref().is_some_and(|share| ex.worker.draws_from(share));
        let Some(request) = ex.request.as_ref().filter(|_| enabled || shadow) else { return Step::Continue };
        if !matches!(request.method(), b"POST" | b"PUT" | b"DELETE" | b"PATCH") {
            return Step::Continue;
        }
        let of = |key| request.first(key).map(host_and_port).filter(|host| !host.is_empty());
        let source = of(&ORIGIN).or_else(|| of(&REFERER)).filter(|origin| *origin != b"null");
        let source = source.unwrap_or_default();
        let valid = source == host_and_port(request.authority())
            || policy.additional.iter().any(|allowed| allowed.matches(source));
        if source.is_empty() {
            self.stats.missing_source_origin.increment(1);
        } else if valid {
            self.stats.request_valid.increment(1);
            return Step::Continue;
        } else {
            self.stats.request_invalid.increment(1);
        }
        if !enabled {
            return Step::Continue;
        }
        Step::Reply(Reply::new(403, "csrf_origin_mismatch").body("Invalid origin"))
    }
}

/// The host and port of a URL; what is no URL stands for itself.
fn host_and_port(url: &[u8]) -> &[u8] {
    let Some(at) = memchr::memmem::find(url, b"://") else { return url };
    let (scheme, rest) = (url.get(..at).unwrap_or_default(), url.get(at + 3..).unwrap_or_default());
    if !matches!(scheme.to_ascii_lowercase().as_slice(), b"http" | b"https") {
        return url;
    }
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    match rest.get(..end).unwrap_or_default() {
        b"" => url,
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_and_referrers_have_a_host() {
        for (url, wanted) in [
            ("http://a.test", "a.test"),
            ("https://a.test:8443/x?y#z", "a.test:8443"),
            ("HTTP://a.test?x", "a.test"),
            ("a.test:80", "a.test:80"),
            ("null", "null"),
            ("http://", "http://"),
            ("ftp://a.test", "ftp://a.test"),
            ("", ""),
        ] {
            assert_eq!(host_and_port(url.as_bytes()), wanted.as_bytes(), "{url}");
        }
    }
}
