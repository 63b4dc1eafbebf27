//! When a request may be sent again: a route's policy, and what a request's headers add to it.
//!
//! The state of one request's retries is kept elsewhere; this is what that state is made from.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::route::v3 as pb;
use outrigger_control_api::type_of;
use smallvec::SmallVec;

use crate::config::balancing::Criteria;
use crate::config::compile::{duration, extension, u32_or};
use crate::config::headers::{HeaderKey, HeaderView, Known, KnownSet};
use crate::config::matcher::{number, HeaderMatcher};
use crate::config::problems::Problems;

macro_rules! retry_on {
    ($($kind:ident $bit:literal $konst:ident $token:literal),* $(,)?) => {
        /// Conditions of a retry, a set.
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
        pub struct RetryOn(u32);

        #[allow(missing_docs)]
        impl RetryOn {
            $(pub const $konst: RetryOn = RetryOn(1 << $bit);)*
        }

        const CONDITIONS: &[(Kind, &[u8], RetryOn)] =
            &[$((Kind::$kind, $token, RetryOn::$konst)),*];
    };
}

/// Which header a condition may stand in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `x-envoy-retry-on`.
    Http,
    /// `x-envoy-retry-grpc-on`.
    Grpc,
}

retry_on! {
    Http 0 FIVE_XX b"5xx", Http 1 GATEWAY_ERROR b"gateway-error",
    Http 2 CONNECT_FAILURE b"connect-failure", Http 3 RETRIABLE_4XX b"retriable-4xx",
    Http 4 REFUSED_STREAM b"refused-stream", Http 5 RETRIABLE_STATUS_CODES b"retriable-status-codes",
    Http 6 RESET b"reset", Http 7 RETRIABLE_HEADERS b"retriable-headers",
    Http 8 ENVOY_RATELIMITED b"envoy-ratelimited",
    Http 9 HTTP3_POST_CONNECT_FAILURE b"http3-post-connect-failure",
    Http 10 RESET_BEFORE_REQUEST b"reset-before-request",
    Grpc 16 GRPC_CANCELLED b"cancelled", Grpc 17 GRPC_DEADLINE_EXCEEDED b"deadline-exceeded",
    Grpc 18 GRPC_RESOURCE_EXHAUSTED b"resource-exhausted", Grpc 19 GRPC_UNAVAILABLE b"unavailable",
    Grpc 20 GRPC_INTERNAL b"internal",
}

impl RetryOn {
    /// No condition: no retry.
    pub const NONE: RetryOn = RetryOn(0);

    /// Reads an `x-envoy-retry-on` list; also says whether every token was known.
    pub fn parse(list: &[u8]) -> (Self, bool) {
        Self::parse_kinds(list, &[Kind::Http])
    }

    /// Reads an `x-envoy-retry-grpc-on` list; also says whether every token was known.
    pub fn parse_grpc(list: &[u8]) -> (Self, bool) {
        Self::parse_kinds(list, &[Kind::Grpc])
    }

    /// Reads a list of conditions of either kind; those that there are not are told of.
    pub fn parse_any(list: &str, problems: &mut Problems) -> Self {
        let list = list.as_bytes();
        for token in tokens(list) {
            if Self::parse_kinds(token, &[Kind::Http, Kind::Grpc]).0.is_empty() {
                let token = String::from_utf8_lossy(token);
                problems.note("retry_on", format_args!("there is no retry condition {token:?}"));
            }
        }
        Self::parse_kinds(list, &[Kind::Http, Kind::Grpc]).0
    }

    fn parse_kinds(list: &[u8], kinds: &[Kind]) -> (Self, bool) {
        let mut all_known = true;
        let mut on = Self::NONE;
        for token in tokens(list) {
            match CONDITIONS.iter().find(|(kind, name, _)| kinds.contains(kind) && *name == token) {
                Some((_, _, condition)) => on = on.with(*condition),
                None => all_known = false,
            }
        }
        (on, all_known)
    }

    /// Both sets together.
    #[must_use]
    pub fn with(self, other: RetryOn) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all conditions of `other` are in the set.
    pub fn contains(self, other: RetryOn) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any condition of `other` is in the set.
    pub fn intersects(self, other: RetryOn) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is no condition.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The non-empty items of a comma-separated list, without the white space around them.
fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// A route's retry policy.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Conditions.
    pub on: RetryOn,
    /// Retries after the first try. Default 1.
    pub num_retries: u32,
    /// Time for one try. `None` = as long as the route's timeout.
    pub per_try_timeout: Option<Duration>,
    /// Time without progress for one try. `None` = off.
    pub per_try_idle_timeout: Option<Duration>,
    /// Wait before a retry.
    pub back_off: BackOff,
    /// Wait asked for by the upstream, if it is to be heeded.
    pub rate_limited_back_off: Option<RateLimitedBackOff>,
    /// Statuses of [`RetryOn::RETRIABLE_STATUS_CODES`].
    pub retriable_status_codes: Box<[u16]>,
    /// Response headers of [`RetryOn::RETRIABLE_HEADERS`]; any of them.
    pub retriable_headers: Box<[HeaderMatcher]>,
    /// Requests that may be retried; empty = all.
    pub retriable_request_headers: Box<[HeaderMatcher]>,
    /// Hosts a retry avoids.
    pub host_predicates: Box<[HostPredicate]>,
    /// A retry goes to a priority that was not tried; they are looked at after so many tries
    /// (`previous_priorities`).
    pub previous_priorities: Option<u32>,
    /// Times a host is chosen anew because a predicate rejected it. Default 1.
    pub host_selection_max_attempts: u32,
}

/// Exponential back-off with full jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// First interval, at least 1 ms. Default 25 ms.
    pub base: Duration,
    /// Longest interval. Default 10 x `base`.
    pub max: Duration,
}

/// `rate_limited_retry_back_off`.
#[derive(Debug, Clone)]
pub struct RateLimitedBackOff {
    /// Response headers that may hold the wait; the first that does counts.
    pub reset_headers: Box<[ResetHeader]>,
    /// Longer waits are ignored. Default 300 s.
    pub max: Duration,
}

/// A header such as `retry-after`.
#[derive(Debug, Clone)]
pub struct ResetHeader {
    /// Its name.
    pub key: HeaderKey,
    /// What its value is.
    pub format: ResetFormat,
}

/// How a wait is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetFormat {
    /// Seconds from now.
    Seconds,
    /// Seconds since 1970.
    UnixTimestamp,
}

/// Which hosts a retry avoids.
#[derive(Debug, Clone, PartialEq)]
pub enum HostPredicate {
    /// Those tried before for this request.
    PreviousHosts,
    /// Those that their metadata call canaries.
    OmitCanaryHosts,
    /// Those with these metadata.
    OmitHostMetadata(Criteria),
}

impl Default for BackOff {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

impl RetryPolicy {
    /// Compiles `config`.
    pub fn compile(config: &pb::RetryPolicy, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let on = RetryOn::parse_any(&config.retry_on, problems);
        let host_predicates = (config.retry_host_predicate.iter().enumerate())
            .filter_map(|(index, predicate)| {
                problems
                    .at_index("retry_host_predicate", index, |problems| host_predicate(predicate, problems))
            })
            .collect();
        let (retriable_headers, retriable_request_headers) = (
            HeaderMatcher::compile_all(&config.retriable_headers, "retriable_headers", problems),
            HeaderMatcher::compile_all(
                &config.retriable_request_headers,
                "retriable_request_headers",
                problems,
            ),
        );
        let policy = Self {
            on,
            num_retries: u32_or(config.num_retries, 1),
            per_try_timeout: not_zero(duration(&config.per_try_timeout, "per_try_timeout", problems)),
            per_try_idle_timeout: not_zero(duration(
                &config.per_try_idle_timeout,
                "per_try_idle_timeout",
                problems,
            )),
            back_off: back_off(config.retry_back_off.as_ref(), problems),
            rate_limited_back_off: rate_limited(config.rate_limited_retry_back_off.as_ref(), problems),
            retriable_status_codes: (config.retriable_status_codes.iter())
                .filter_map(|code| u16::try_from(*code).ok())
                .collect(),
            retriable_headers: retriable_headers?,
            retriable_request_headers: retriable_request_headers?,
            host_predicates,
            previous_priorities: previous_priorities(config.retry_priority.as_ref(), problems),
            host_selection_max_attempts: match config.host_selection_retry_max_attempts {
                0 => 1,
                attempts => u32::try_from(attempts).unwrap_or_else(|_| {
                    let message = format_args!("{attempts} is not between 0 and {}", u32::MAX);
                    problems.report_at("host_selection_retry_max_attempts", message);
                    1
                }),
            },
        };
        (problems.count() == before).then_some(policy)
    }
}

fn not_zero(duration: Option<Duration>) -> Option<Duration> {
    duration.filter(|duration| !duration.is_zero())
}

fn back_off(config: Option<&pb::retry_policy::RetryBackOff>, problems: &mut Problems) -> BackOff {
    let Some(config) = config else { return BackOff::default() };
    problems.at("retry_back_off", |problems| {
        let base = duration(&config.base_interval, "base_interval", problems);
        let base = base.unwrap_or(BackOff::default().base).max(Duration::from_millis(1));
        let max = match duration(&config.max_interval, "max_interval", problems) {
            Some(max) => max.max(Duration::from_millis(1)),
            None => base.saturating_mul(10),
        };
        if max < base {
            let message = format_args!("{max:?} is less than base_interval, {base:?}");
            problems.report_at("max_interval", message);
        }
        BackOff { base, max }
    })
}

fn rate_limited(
    config: Option<&pb::retry_policy::RateLimitedRetryBackOff>,
    problems: &mut Problems,
) -> Option<RateLimitedBackOff> {
    use pb::retry_policy::ResetHeaderFormat;

    let config = config?;
    let reset_headers = (config.reset_headers.iter())
        .map(|header| ResetHeader {
            key: HeaderKey::new(&header.name),
            format: match header.format() {
                ResetHeaderFormat::Seconds => ResetFormat::Seconds,
                ResetHeaderFormat::UnixTimestamp => ResetFormat::UnixTimestamp,
            },
        })
        .collect();
    problems.at("rate_limited_retry_back_off", |problems| {
        let max = duration(&config.max_interval, "max_interval", problems);
        Some(RateLimitedBackOff { reset_headers, max: max.unwrap_or(Duration::from_secs(300)) })
    })
}

fn host_predicate(
    config: &pb::retry_policy::RetryHostPredicate,
    problems: &mut Problems,
) -> Option<HostPredicate> {
    use outrigger_control_api::pb::envoy::extensions::retry::host;
    use pb::retry_policy::retry_host_predicate::ConfigType;

    match &config.config_type {
        // Other types are refused by the support table.
        Some(ConfigType::TypedConfig(any)) => match type_of(any) {
            "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate" => {
                Some(HostPredicate::OmitCanaryHosts)
            }
            "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig" => {
                let config: host::omit_host_metadata::v3::OmitHostMetadataConfig =
                    extension(any, "typed_config", problems)?;
                let metadata = config.metadata_match.as_ref();
                let fields = metadata.and_then(|metadata| metadata.filter_metadata.get("envoy.lb"));
                Some(HostPredicate::OmitHostMetadata(fields.map(Criteria::of).unwrap_or_default()))
            }
            _ => {
                extension::<host::previous_hosts::v3::PreviousHostsPredicate>(any, "typed_config", problems)?;
                Some(HostPredicate::PreviousHosts)
            }
        },
        None => {
            problems.report_at("typed_config", "is required");
            None
        }
    }
}

fn previous_priorities(
    config: Option<&pb::retry_policy::RetryPriority>,
    problems: &mut Problems,
) -> Option<u32> {
    use outrigger_control_api::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
    use pb::retry_policy::retry_priority::ConfigType;

    problems.at("retry_priority", |problems| match &config?.config_type {
        // Other types are refused by the support table.
        Some(ConfigType::TypedConfig(any)) => {
            let config: PreviousPrioritiesConfig = extension(any, "typed_config", problems)?;
            // More than 0 by its field rule.
            u32::try_from(config.update_frequency).ok().filter(|frequency| *frequency > 0)
        }
        None => {
            problems.report_at("typed_config", "is required");
            None
        }
    })
}

/// Request headers that [`RequestRetries::of`] reads; they do not travel on.
pub const RETRY_HEADERS: KnownSet = Known::XEnvoyRetryOn.bit()
    | Known::XEnvoyRetryGrpcOn.bit()
    | Known::XEnvoyMaxRetries.bit()
    | Known::XEnvoyRetriableStatusCodes.bit()
    | Known::XEnvoyRetriableHeaderNames.bit();

struct Keys {
    on: HeaderKey,
    grpc_on: HeaderKey,
    max: HeaderKey,
    status_codes: HeaderKey,
    header_names: HeaderKey,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    on: Known::XEnvoyRetryOn.into(),
    grpc_on: Known::XEnvoyRetryGrpcOn.into(),
    max: Known::XEnvoyMaxRetries.into(),
    status_codes: Known::XEnvoyRetriableStatusCodes.into(),
    header_names: Known::XEnvoyRetriableHeaderNames.into(),
});

/// What may be retried of one request: its route's policy and its own headers.
#[derive(Debug, Clone)]
pub struct RequestRetries {
    /// The route's policy.
    pub policy: Option<Arc<RetryPolicy>>,
    /// Conditions.
    pub on: RetryOn,
    /// Retries after the first try.
    pub num_retries: u32,
    status_codes: SmallVec<[u16; 4]>,
    headers: Vec<HeaderKey>,
}

impl RequestRetries {
    /// Those of a request of our own.
    pub fn plain(on: RetryOn, num_retries: u32) -> Self {
        Self { policy: None, on, num_retries, status_codes: SmallVec::new(), headers: Vec::new() }
    }

    /// `None` when nothing is ever to be retried.
    pub fn of<V: HeaderView>(policy: Option<&Arc<RetryPolicy>>, request: &V) -> Option<Self> {
        let value = |key: &HeaderKey| request.first(key);
        let keys = &*KEYS;
        let mut on = policy.map_or(RetryOn::NONE, |policy| policy.on);
        if let Some(list) = value(&keys.on) {
            on = on.with(RetryOn::parse(list).0);
        }
        if let Some(list) = value(&keys.grpc_on) {
            on = on.with(RetryOn::parse_grpc(list).0);
        }
        let gate = policy.map_or(&[][..], |policy| &policy.retriable_request_headers);
        if on.is_empty() || !(gate.is_empty() || gate.iter().any(|matcher| matcher.matches(request))) {
            return None;
        }
        let num_retries = (value(&keys.max).and_then(number::<u32>))
            .unwrap_or_else(|| policy.map_or(1, |policy| policy.num_retries));
        let status_codes = value(&keys.status_codes)
            .map_or_else(SmallVec::new, |list| tokens(list).filter_map(number::<u16>).collect());
        let headers = value(&keys.header_names).map_or_else(Vec::new, |list| {
            tokens(list).filter_map(|name| std::str::from_utf8(name).ok()).map(HeaderKey::new).collect()
        });
        Some(Self { policy: policy.cloned(), on, num_retries, status_codes, headers })
    }

    /// Whether `status` is one of the retriable status codes.
    pub fn is_retriable_status(&self, status: u16) -> bool {
        self.status_codes.contains(&status)
            || self.policy.as_ref().is_some_and(|policy| policy.retriable_status_codes.contains(&status))
    }

    /// Whether `response` has one of the retriable headers.
    pub fn has_retriable_header<V: HeaderView>(&self, response: &V) -> bool {
        self.headers.iter().any(|key| response.first(key).is_some())
            || (self.policy.as_ref()).is_some_and(|policy| {
                policy.retriable_headers.iter().any(|matcher| matcher.matches(response))
            })
    }
}
