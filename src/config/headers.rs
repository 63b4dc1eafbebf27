//! Header names resolved when config is compiled, and the narrow views of a message head through
//! which routing, header mutation and log formats see it without knowing its protocol.

use std::net::SocketAddr;

use crate::telemetry::stream_info::StreamInfo;

/// Headers that the proxy itself reads or writes. A head carries this number beside each field, so
/// finding one of them compares bytes, not strings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Known {
    Other = 0,
    // Pseudo headers: the request line, as HTTP/2 names its parts.
    Method,
    Path,
    Authority,
    Scheme,
    Status,
    Protocol,
    // Framing and connection.
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    KeepAlive,
    ProxyConnection,
    Upgrade,
    Te,
    Trailer,
    Expect,
    Http2Settings,
    // End to end.
    ContentType,
    UserAgent,
    Server,
    Date,
    Via,
    Location,
    Cookie,
    Authorization,
    GrpcStatus,
    GrpcMessage,
    GrpcTimeout,
    // Forwarding.
    XForwardedFor,
    XForwardedProto,
    XForwardedHost,
    XForwardedPort,
    XForwardedClientCert,
    XRequestId,
    // Envoy's own.
    XEnvoyInternal,
    XEnvoyExternalAddress,
    XEnvoyOriginalPath,
    XEnvoyOriginalHost,
    XEnvoyExpectedRqTimeoutMs,
    XEnvoyUpstreamServiceTime,
    XEnvoyAttemptCount,
    XEnvoyOverloaded,
    XEnvoyDecoratorOperation,
    XEnvoyMaxRetries,
    XEnvoyRetryOn,
    XEnvoyRetryGrpcOn,
    XEnvoyRetriableStatusCodes,
    XEnvoyRetriableHeaderNames,
    XEnvoyUpstreamAltStatName,
    XEnvoyUpstreamRqTimeoutAltResponse,
    XEnvoyUpstreamRqTimeoutMs,
    XEnvoyUpstreamRqPerTryTimeoutMs,
    XEnvoyUpstreamStreamDurationMs,
    XEnvoyHedgeOnPerTryTimeout,
    XEnvoyForceTrace,
    XEnvoyIpTags,
    XEnvoyOriginalUrl,
    XEnvoyDownstreamServiceCluster,
    XEnvoyDownstreamServiceNode,
    XEnvoyRatelimited,
    XEnvoyIsTimeoutRetry,
    XEnvoyDegraded,
    XEnvoyImmediateHealthCheckFail,
    EndpointLoadMetrics,
    EndpointLoadMetricsBin,
}

macro_rules! known_names {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// Every known name with its number, in the order of the numbers.
        const NAMES: &[(&[u8], Known)] = &[$(($name.as_bytes(), Known::$variant)),*];

        impl Known {
            /// The header's name in lower case; empty for [`Known::Other`].
            pub const fn name(self) -> &'static str {
                match self {
                    Known::Other => "",
                    $(Known::$variant => $name,)*
                }
            }

            /// What a header line begins with, `name: `, in lower case; empty for [`Known::Other`].
            pub const fn line_start(self) -> &'static str {
                match self {
                    Known::Other => "",
                    $(Known::$variant => concat!($name, ": "),)*
                }
            }
        }
    };
}

/// Slots of the hash table below: four times the names, so that most lookups compare once.
const TABLE_SIZE: usize = 256;

/// Open-addressing table from name to its index in `NAMES` plus one; 0 = empty.
const TABLE: [u8; TABLE_SIZE] = {
    assert!(NAMES.len() * 2 < TABLE_SIZE && NAMES.len() < 128);
    let mut table = [0u8; TABLE_SIZE];
    let mut index = 0;
    while index < NAMES.len() {
        let mut slot = hash(NAMES[index].0);
        while table[slot] != 0 {
            slot = (slot + 1) % TABLE_SIZE;
        }
        table[slot] = index as u8 + 1;
        index += 1;
    }
    table
};

const fn hash(name: &[u8]) -> usize {
    let len = name.len();
    let (first, middle, last) = (name[0] as usize, name[len / 2] as usize, name[len - 1] as usize);
    (len.wrapping_mul(37) ^ first.wrapping_mul(7) ^ middle.wrapping_mul(13) ^ last.wrapping_mul(31))
        % TABLE_SIZE
}

impl Known {
    /// All that have a name.
    pub fn all() -> impl Iterator<Item = Known> {
        NAMES.iter().map(|(_, known)| *known)
    }

    /// Resolves a lower-case header name (or pseudo-header name).
    pub fn of(name: &[u8]) -> Known {
        if name.is_empty() {
            return Known::Other;
        }
        let mut slot = hash(name);
        loop {
            // `slot` is reduced modulo the table's size, and entries are indices into NAMES + 1.
            let entry = TABLE[slot] as usize;
            if entry == 0 {
                return Known::Other;
            }
            let (candidate, known) = NAMES[entry - 1];
            if candidate == name {
                return known;
            }
            slot = (slot + 1) % TABLE_SIZE;
        }
    }

    /// This header's bit in a [`KnownSet`].
    pub const fn bit(self) -> KnownSet {
        1 << self as u8
    }
}

/// A set of known headers, one bit each.
pub type KnownSet = u128;

known_names! {
    Method = ":method", Path = ":path", Authority = ":authority", Scheme = ":scheme",
    Status = ":status", Protocol = ":protocol",
    Host = "host", Connection = "connection", ContentLength = "content-length",
    TransferEncoding = "transfer-encoding", KeepAlive = "keep-alive",
    ProxyConnection = "proxy-connection", Upgrade = "upgrade", Te = "te", Trailer = "trailer",
    Expect = "expect", Http2Settings = "http2-settings",
    ContentType = "content-type", UserAgent = "user-agent", Server = "server", Date = "date",
    Via = "via", Location = "location", Cookie = "cookie", Authorization = "authorization",
    GrpcStatus = "grpc-status", GrpcMessage = "grpc-message", GrpcTimeout = "grpc-timeout",
    XForwardedFor = "x-forwarded-for", XForwardedProto = "x-forwarded-proto",
    XForwardedHost = "x-forwarded-host", XForwardedPort = "x-forwarded-port",
    XForwardedClientCert = "x-forwarded-client-cert", XRequestId = "x-request-id",
    XEnvoyInternal = "x-envoy-internal", XEnvoyExternalAddress = "x-envoy-external-address",
    XEnvoyOriginalPath = "x-envoy-original-path", XEnvoyOriginalHost = "x-envoy-original-host",
    XEnvoyExpectedRqTimeoutMs = "x-envoy-expected-rq-timeout-ms",
    XEnvoyUpstreamServiceTime = "x-envoy-upstream-service-time",
    XEnvoyAttemptCount = "x-envoy-attempt-count", XEnvoyOverloaded = "x-envoy-overloaded",
    XEnvoyDecoratorOperation = "x-envoy-decorator-operation",
    XEnvoyMaxRetries = "x-envoy-max-retries", XEnvoyRetryOn = "x-envoy-retry-on",
    XEnvoyRetryGrpcOn = "x-envoy-retry-grpc-on",
    XEnvoyRetriableStatusCodes = "x-envoy-retriable-status-codes",
    XEnvoyRetriableHeaderNames = "x-envoy-retriable-header-names",
    XEnvoyUpstreamAltStatName = "x-envoy-upstream-alt-stat-name",
    XEnvoyUpstreamRqTimeoutAltResponse = "x-envoy-upstream-rq-timeout-alt-response",
    XEnvoyUpstreamRqTimeoutMs = "x-envoy-upstream-rq-timeout-ms",
    XEnvoyUpstreamRqPerTryTimeoutMs = "x-envoy-upstream-rq-per-try-timeout-ms",
    XEnvoyUpstreamStreamDurationMs = "x-envoy-upstream-stream-duration-ms",
    XEnvoyHedgeOnPerTryTimeout = "x-envoy-hedge-on-per-try-timeout",
    XEnvoyForceTrace = "x-envoy-force-trace", XEnvoyIpTags = "x-envoy-ip-tags",
    XEnvoyOriginalUrl = "x-envoy-original-url",
    XEnvoyDownstreamServiceCluster = "x-envoy-downstream-service-cluster",
    XEnvoyDownstreamServiceNode = "x-envoy-downstream-service-node",
    XEnvoyRatelimited = "x-envoy-ratelimited", XEnvoyIsTimeoutRetry = "x-envoy-is-timeout-retry",
    XEnvoyDegraded = "x-envoy-degraded",
    XEnvoyImmediateHealthCheckFail = "x-envoy-immediate-health-check-fail",
    EndpointLoadMetrics = "endpoint-load-metrics",
    EndpointLoadMetricsBin = "endpoint-load-metrics-bin",
}

/// A header name from config: lower-cased and resolved once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderKey {
    name: Box<str>,
    known: Known,
}

impl HeaderKey {
    /// Lower-cases and resolves `name`. `host` is treated as `:authority`, as in Envoy.
    pub fn new(name: &str) -> Self {
        let mut name = name.to_ascii_lowercase();
        if name == "host" {
            name = ":authority".into();
        }
        let known = Known::of(name.as_bytes());
        Self { name: name.into(), known }
    }

    /// The lower-case name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name's number, [`Known::Other`] when it has none.
    pub fn known(&self) -> Known {
        self.known
    }
}

impl From<Known> for HeaderKey {
    fn from(known: Known) -> Self {
        Self { name: known.name().into(), known }
    }
}

/// Read access to the fields of a message head, pseudo headers included.
pub trait HeaderView {
    /// Calls `each` with every value of the header, in order.
    fn values(&self, key: &HeaderKey, each: &mut dyn FnMut(&[u8]));

    /// The header's first value.
    fn first(&self, key: &HeaderKey) -> Option<&[u8]>;

    /// Total size of the head's names and values in bytes.
    fn byte_size(&self) -> usize;
}

/// Write access to the fields of a message head. Names are lower case. Pseudo headers `:path`,
/// `:authority`, `:method` and `:scheme` can be set, never removed.
pub trait HeaderMutate: HeaderView {
    /// Adds a value after those already there.
    fn append(&mut self, key: &HeaderKey, value: &[u8]);

    /// Replaces all values by this one, or adds it.
    fn set(&mut self, key: &HeaderKey, value: &[u8]);

    /// Removes every value; says whether there was one.
    fn remove(&mut self, key: &HeaderKey) -> bool;

    /// Removes every field whose name starts with `prefix` (lower case).
    fn remove_prefix(&mut self, prefix: &str);
}

/// What routing may see of a request.
pub trait RequestView: HeaderView {
    /// The method, as sent.
    fn method(&self) -> &[u8];
    /// `:path` with its query; empty for CONNECT without a path.
    fn path(&self) -> &[u8];
    /// `:authority`, as sent (HTTP/1: the target's authority or the Host header).
    fn authority(&self) -> &[u8];
    /// `http` or `https`.
    fn scheme(&self) -> &[u8];
    /// Whether this is an HTTP/1.1 upgrade or an HTTP/2 extended CONNECT, with its protocol.
    fn upgrade(&self) -> Option<&[u8]>;
    /// Whether `content-type` is `application/grpc` or `application/grpc+...`.
    fn is_grpc(&self) -> bool;
    /// The downstream peer's address after XFF processing.
    fn remote_address(&self) -> Option<SocketAddr>;
    /// What else is known of its stream.
    fn stream(&self) -> Option<&StreamInfo> {
        None
    }
}
