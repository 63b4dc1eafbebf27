//! Access-log filters (`envoy.config.accesslog.v3.AccessLogFilter`).

use std::sync::LazyLock;

use crate::config::matcher::HeaderMatcher;
use crate::config::{HeaderKey, HeaderView, Known};
use crate::policy::cel::{Expression, Subject};
use crate::policy::rbac::MetadataMatcher;
use crate::telemetry::format::{grpc_status_of, FormatContext};
use crate::telemetry::stream_info::ResponseFlags;

/// A compiled access-log filter.
#[derive(Debug)]
pub enum LogFilter {
    /// `status_code_filter`; a stream without a status has 0.
    StatusCode(Comparison),
    /// `duration_filter`, in milliseconds.
    Duration(Comparison),
    /// `not_health_check_filter`.
    NotHealthCheck,
    /// `traceable_filter`: the request id carries the decision to trace.
    Traceable,
    /// `runtime_filter`: a share of the streams.
    Sampled {
        /// Streams let through, out of `denominator`.
        numerator: u64,
        /// 100, 10,000 or 1,000,000.
        denominator: u64,
        /// Draw for each log instead of deriving the draw from the request id.
        independent: bool,
    },
    /// `and_filter`.
    And(Vec<LogFilter>),
    /// `or_filter`.
    Or(Vec<LogFilter>),
    /// `response_flag_filter`: any of these flags; of all flags when config names none.
    ResponseFlags(ResponseFlags),
    /// `extension_filter` with an expression in CEL.
    Expression(Box<Expression>),
    /// `metadata_filter`: what filters noted; where nothing was noted, the second.
    Metadata(Box<MetadataMatcher>, bool),
    /// `header_filter`: the request has such a header.
    Header(HeaderMatcher),
    /// `grpc_status_filter`: bits by status number.
    GrpcStatus {
        /// The statuses.
        statuses: u32,
        /// Let all others through instead.
        exclude: bool,
    },
    /// `log_type_filter`: bits by type number.
    LogType {
        /// The types.
        types: u32,
        /// Let all others through instead.
        exclude: bool,
    },
}

/// `ComparisonFilter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Comparison {
    Equal(u64),
    AtLeast(u64),
    AtMost(u64),
    NotEqual(u64),
}

impl Comparison {
    fn holds(self, value: u64) -> bool {
        match self {
            Comparison::Equal(limit) => value == limit,
            Comparison::AtLeast(limit) => value >= limit,
            Comparison::AtMost(limit) => value <= limit,
            Comparison::NotEqual(limit) => value != limit,
        }
    }
}

static REQUEST_ID: LazyLock<HeaderKey> = LazyLock::new(|| Known::XRequestId.into());

impl LogFilter {
    /// Whether the stream is to be logged.
    pub fn matches(&self, ctx: &FormatContext<'_>) -> bool {
        let info = ctx.info;
        match self {
            LogFilter::StatusCode(comparison) => comparison.holds(info.response_code.into()),
            LogFilter::Duration(comparison) => {
                let duration = info.after_start(info.times.end).unwrap_or_else(|| info.start.elapsed());
                comparison.holds(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
            }
            LogFilter::NotHealthCheck => !ctx.health_check,
            // The fifteenth character of the id: 9 sampled, a forced by the server, b by the client.
            LogFilter::Traceable => {
                request_id(ctx).is_some_and(|id| matches!(id.get(14), Some(b'9' | b'a' | b'b')))
            }
            LogFilter::Sampled { numerator, denominator, independent } => {
                let id = if *independent { None } else { request_id(ctx).and_then(id_number) };
                id.unwrap_or_else(|| fastrand::u64(..)) % (*denominator).max(1) < *numerator
            }
            LogFilter::And(filters) => filters.iter().all(|filter| filter.matches(ctx)),
            LogFilter::Or(filters) => filters.iter().any(|filter| filter.matches(ctx)),
            LogFilter::ResponseFlags(any) => info.flags.0 & any.0 != 0,
            // Without a request every header is missing.
            LogFilter::Header(matcher) => match ctx.request {
                Some(request) => matcher.matches(request),
                None => matcher.matches(&NoHead),
            },
            LogFilter::Expression(expression) => expression.is_true(&Subject::from(ctx)),
            LogFilter::Metadata(matcher, absent) => {
                let noted = info.metadata.as_deref().and_then(|all| all.get(&*matcher.filter));
                match matcher.look_up(noted) {
                    // As in Envoy, it is not inverted here.
                    value @ Some(_) => matcher.value.matches(value),
                    None => *absent,
                }
            }
            LogFilter::GrpcStatus { statuses, exclude } => has(*statuses, grpc_status_of(ctx)) != *exclude,
            LogFilter::LogType { types, exclude } => has(*types, ctx.log_type as u64) != *exclude,
        }
    }
}

/// The head of a request that never came.
struct NoHead;

impl HeaderView for NoHead {
    fn values(&self, _: &HeaderKey, _: &mut dyn FnMut(&[u8])) {}

    fn first(&self, _: &HeaderKey) -> Option<&[u8]> {
        None
    }

    fn byte_size(&self) -> usize {
        0
    }
}

fn has(bits: u32, number: u64) -> bool {
    u32::try_from(number).ok().and_then(|number| bits.checked_shr(number)).is_some_and(|bits| bits & 1 == 1)
}

fn request_id<'a>(ctx: &FormatContext<'a>) -> Option<&'a [u8]> {
    ctx.request?.first(&REQUEST_ID)
}

/// The number that Envoy derives from an id: its first eight hexadecimal digits.
fn id_number(id: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(id.get(..8)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}
