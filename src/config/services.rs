//! Services that filters ask: where they are, as config names them.

use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::core::v3 as core;
use outrigger_control_api::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;

use super::compile::{duration, u32_or};
use super::problems::Problems;
use super::route::RetryOn;
use super::{Cluster, Directory, HeaderKey, Slot};

/// A resource of an HTTP service (`HttpUri`).
#[derive(Debug)]
pub struct HttpTarget {
    /// Its cluster.
    pub cluster: Arc<Slot<Cluster>>,
    /// The authority in its URI.
    pub authority: Box<[u8]>,
    /// The path in its URI.
    pub path: Box<[u8]>,
    /// How long an answer may take.
    pub timeout: Option<Duration>,
}

/// A gRPC service in a cluster (`GrpcService.envoy_grpc`).
#[derive(Debug, Clone)]
pub struct GrpcTarget {
    /// Its cluster.
    pub cluster: Arc<Slot<Cluster>>,
    /// The authority: the cluster's name unless config says another.
    pub authority: Box<[u8]>,
    /// How long an answer may take; `None` = as long as it takes.
    pub timeout: Option<Duration>,
    /// What is sent with each call.
    pub metadata: Pairs,
    /// When a call of one question and one answer is tried again.
    pub retries: Option<Retries>,
}

/// How often, and when, something is tried again (`envoy.config.core.v3.RetryPolicy`).
#[derive(Debug, Clone, Copy)]
pub struct Retries {
    /// After what.
    pub on: RetryOn,
    /// After the first try.
    pub most: u32,
    /// The longest pause before the second try.
    pub base: Duration,
    /// The longest pause of all.
    pub max: Duration,
}

/// What calls are tried again after whose policy says nothing of it that counts.
pub const ANY_FAILURE: &str = "5xx,gateway-error,connect-failure,reset";
const STREAMS: &str = "a call that lasts is not tried again, in Envoy either";

/// The pause of a policy that says none.
const BASE: Duration = Duration::from_secs(1);

impl HttpTarget {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(
        config: &core::HttpUri,
        clusters: &Directory<Cluster>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let core::http_uri::HttpUpstreamType::Cluster(cluster) = config.http_upstream_type.as_ref()?;
        let bare = config.uri.split_once("://").map_or(config.uri.as_str(), |(_, rest)| rest);
        let (authority, path) = bare.split_at(bare.find('/').unwrap_or(bare.len()));
        let timeout = duration(&config.timeout, "timeout", problems);
        Some(Self {
            cluster: clusters.slot(cluster),
            authority: authority.as_bytes().into(),
            path: if path.is_empty() { "/" } else { path }.as_bytes().into(),
            timeout: timeout.filter(|timeout| !timeout.is_zero()),
        })
    }
}

/// Fields that are sent with each request, with their values.
pub type Pairs = Vec<(HeaderKey, Box<str>)>;

/// Compiles a service over HTTP: where it is, and the fields that are sent with each request. `None` when a problem was
/// reported.
pub fn http_service(
    config: &core::HttpService,
    clusters: &Directory<Cluster>,
    problems: &mut Problems,
) -> Option<(HttpTarget, Pairs)> {
    let Some(uri) = &config.http_uri else {
        problems.report_at("http_uri", "is required");
        return None;
    };
    let target = problems.at("http_uri", |problems| HttpTarget::compile(uri, clusters, problems))?;
    let mut fields = Vec::with_capacity(config.request_headers_to_add.len());
    for (index, option) in config.request_headers_to_add.iter().enumerate() {
        problems.at_index("request_headers_to_add", index, |problems| {
            let Some(header) = &option.header else { return };
            // There is no request here that it could be about.
            if header.value.contains('%') {
                problems.report_at("header.value", "fields of requests to services have no formats");
            }
            let raw = String::from_utf8_lossy(&header.raw_value);
            let value = if header.value.is_empty() { &*raw } else { header.value.as_str() };
            fields.push((HeaderKey::new(&header.key), value.into()));
        });
    }
    Some((target, fields))
}

impl GrpcTarget {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(
        config: &core::GrpcService,
        clusters: &Directory<Cluster>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let timeout = duration(&config.timeout, "timeout", problems);
        let envoy = match config.target_specifier.as_ref()? {
            TargetSpecifier::EnvoyGrpc(envoy) => envoy,
            TargetSpecifier::GoogleGrpc(_) => {
                problems.report_at("google_grpc", "filters ask services of clusters: use envoy_grpc");
                return None;
            }
        };
        if envoy.retry_policy.is_some() {
            problems
                .note("envoy_grpc.retry_policy", "Envoy reads it for control planes only: use retry_policy");
        }
        let before = problems.count();
        let retries = problems.at("retry_policy", |problems| {
            let policy = config.retry_policy.as_ref();
            Retries::compile(policy, policy.map_or("", |policy| &policy.retry_on), problems)
        });
        (problems.count() == before).then_some(())?;
        let authority = if envoy.authority.is_empty() { &envoy.cluster_name } else { &envoy.authority };
        Some(Self {
            cluster: clusters.slot(&envoy.cluster_name),
            authority: authority.as_bytes().into(),
            timeout: timeout.filter(|timeout| !timeout.is_zero()),
            metadata: pairs(&config.initial_metadata),
            retries,
        })
    }

    /// As [`GrpcTarget::compile`], for calls that last.
    pub fn compile_stream(
        config: &core::GrpcService,
        clusters: &Directory<Cluster>,
        problems: &mut Problems,
    ) -> Option<Self> {
        if config.retry_policy.is_some() {
            problems.note("retry_policy", STREAMS);
        }
        Self::compile(config, clusters, problems)
    }

    /// With `metadata` besides, in place of what has the same name.
    #[must_use]
    pub fn with_metadata(mut self, metadata: &[(HeaderKey, Box<str>)]) -> Self {
        for (key, value) in metadata {
            match self.metadata.iter_mut().find(|(known, _)| known == key) {
                Some((_, known)) => known.clone_from(value),
                None => self.metadata.push((key.clone(), value.clone())),
            }
        }
        self
    }

    /// With this timeout where config says none.
    #[must_use]
    pub fn or_timeout(mut self, timeout: Duration) -> Self {
        self.timeout.get_or_insert(timeout);
        self
    }
}

/// Headers as config has them.
pub fn pairs(headers: &[core::HeaderValue]) -> Pairs {
    headers.iter().map(|header| (HeaderKey::new(&header.key), header.value.as_str().into())).collect()
}

impl Retries {
    /// Compiles `config`, whose conditions are those in `on`; `None` without one, or when a problem was reported.
    pub fn compile(config: Option<&core::RetryPolicy>, on: &str, problems: &mut Problems) -> Option<Self> {
        let config = config?;
        let count = problems.count();
        let (mut base, mut max) = (BASE, BASE * 10);
        if let Some(backoff) = &config.retry_back_off {
            problems.at("retry_back_off", |problems| {
                base = duration(&backoff.base_interval, "base_interval", problems).unwrap_or(BASE);
                max = duration(&backoff.max_interval, "max_interval", problems).unwrap_or(base * 10);
                if max < base {
                    problems.report_at("max_interval", "must not be less than base_interval");
                }
            });
        }
        let on = RetryOn::parse_any(on, problems);
        (problems.count() == count).then_some(Self { on, most: u32_or(config.num_retries, 1), base, max })
    }

    /// The longest pause before the try after `tries` ones.
    pub fn pause(&self, tries: u32) -> Duration {
        let doubled = self.base.saturating_mul(1u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.max)
    }

    /// How long one try may take: as in Envoy as long as the longest pause, where all of them may take longer.
    pub fn per_try(&self, timeout: Option<Duration>) -> Option<Duration> {
        Some(self.max).filter(|max| !max.is_zero() && timeout.is_none_or(|timeout| *max < timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let retries = Retries {
            on: RetryOn::NONE,
            most: 5,
            base: Duration::from_millis(10),
            max: Duration::from_millis(35),
        };
        let pauses: Vec<_> = (1..=4).map(|tries| retries.pause(tries).as_millis()).collect();
        assert_eq!(pauses, [10, 20, 35, 35]);
        let per_try = |millis| retries.per_try(Some(Duration::from_millis(millis)));
        assert_eq!((per_try(35), per_try(36)), (None, Some(retries.max)), "no longer than all of them");
        assert_eq!(retries.per_try(None), Some(retries.max));
    }
}
