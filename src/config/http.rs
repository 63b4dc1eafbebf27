//! The HTTP connection manager's compiled options
//! (`envoy.extensions.filters.network.http_connection_manager.v3`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::demand::OnDemand;
use super::scopes::ScopedRoutes;
use super::Slot;
use crate::config::route::{FilterName, RouteTable};
use crate::http::filters;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::stats::HcmStats;

/// A compiled HTTP connection manager.
#[derive(Debug)]
pub struct HttpConnectionManager {
    /// `http.<stat_prefix>.` statistics.
    pub stats: HcmStats,
    /// `codec_type`.
    pub codec: Codec,
    /// Where route tables are.
    pub routes: Routes,
    /// Requests wait for what a control plane has and is not here yet.
    pub on_demand: Option<Box<OnDemand>>,
    /// The filter chain without its terminal router; at most [`MAX_FILTERS`].
    pub filters: Vec<InstalledFilter>,
    /// Options of the router filter.
    pub router: RouterOptions,
    /// Access logs written when a stream ends.
    pub access_logs: Vec<AccessLog>,
    /// Value of the `server` header. Default `envoy`.
    pub server_name: Bytes,
    /// What to do with the upstream's `server` header.
    pub server_header: ServerHeader,
    /// The peer's address is the client's; append it to XFF.
    pub use_remote_address: bool,
    /// Do not append to XFF even with `use_remote_address`.
    pub skip_xff_append: bool,
    /// Trusted proxies in front of us.
    pub xff_num_trusted_hops: u32,
    /// Other ways to find the client's address than a number of hops.
    pub detections: Vec<crate::http::detection::Detection>,
    /// Changes to requests before all else (`early_header_mutation_extensions`).
    pub early: Vec<filters::header_mutation::Mutations>,
    /// `internal_address_config`: networks whose peers count as internal. Empty = none.
    pub internal_networks: Vec<(std::net::IpAddr, u8)>,
    /// `internal_address_config.unix_sockets`.
    pub internal_unix: bool,
    /// Value of `via`, if set.
    pub via: Option<Bytes>,
    /// `add_user_agent`: the `user-agent` for requests without one, and
    /// `x-envoy-downstream-service-cluster` / `-node`.
    pub add_user_agent: bool,
    /// The proxy's `--service-cluster` and `--service-node`, for `add_user_agent`.
    pub service: (Bytes, Bytes),
    /// Make an `x-request-id` where one is missing. Default true.
    pub generate_request_id: bool,
    /// Keep `x-request-id` of external requests.
    pub preserve_external_request_id: bool,
    /// Return `x-request-id` on every response.
    pub always_set_request_id_in_response: bool,
    /// Replace `x-forwarded-proto`'s meaning: overwrite `:scheme` with this.
    pub scheme_overwrite: Option<Bytes>,
    /// The scheme becomes that of the upstream's transport (`match_upstream`).
    pub scheme_follows: bool,
    /// RFC 3986 normalisation of the path.
    pub normalize_path: bool,
    /// Squeeze repeated slashes.
    pub merge_slashes: bool,
    /// What to do about `%2F`, `%5C`.
    pub escaped_slashes: EscapedSlashes,
    /// Strip the port from the authority.
    pub strip_port: StripPort,
    /// Strip a trailing dot from the authority.
    pub strip_trailing_host_dot: bool,
    /// Forward `Expect: 100-continue` and 1xx responses.
    pub proxy_100_continue: bool,
    /// Append the connection's `x-forwarded-port`.
    pub append_x_forwarded_port: bool,
    /// `append_local_overload` and friends do not exist here; timeouts follow.
    pub timeouts: HcmTimeouts,
    /// What a request head may be.
    pub limits: RequestLimits,
    /// Requests per connection; 0 = unlimited.
    pub max_requests_per_connection: u32,
    /// HTTP/1 codec options.
    pub http1: Http1Options,
    /// HTTP/2 codec options.
    pub http2: crate::http::h2::Options,
    /// `http2.` statistics.
    pub http2_stats: crate::telemetry::stats::Http2Stats,
    /// How long a connection that was told to leave may stay without streams. Default 5 s.
    pub drain_timeout: Duration,
    /// Upgrades accepted on every route unless the route says otherwise (lower-case names).
    pub upgrades: Vec<Upgrade>,
    /// Linger after a local close. Default 1 s.
    pub delayed_close_timeout: Duration,
    /// The body and headers of local replies, when config changes them.
    pub local_reply: Option<LocalReplyRules>,
    /// Which requests are traced, and who is told.
    pub tracing: Option<Box<crate::http::trace::Tracing>>,
    /// `forward_client_cert_details` with `set_current_client_cert_details`.
    pub client_cert: ClientCert,
}

/// Where a connection manager's route tables are.
#[derive(Debug)]
pub enum Routes {
    /// One table for all requests: inline, or a slot that RDS fills.
    Table(Arc<Slot<RouteTable>>),
    /// One for each scope.
    Scoped(Box<ScopedRoutes>),
}

/// What a request head may be.
#[derive(Debug, Clone)]
pub struct RequestLimits {
    /// Size of the head in bytes. Default 60 KiB.
    pub max_head: usize,
    /// Number of fields. Default 100.
    pub max_fields: usize,
    /// Accept HTTP/1.0.
    pub http_10: bool,
    /// Host for an HTTP/1.0 request without one.
    pub default_host: Option<Bytes>,
    /// Accept absolute-form targets. Default true.
    pub absolute_url: bool,
    /// Accept a length beside chunked (the length is dropped).
    pub chunked_length: bool,
    /// Accept any method token.
    pub custom_methods: bool,
    /// Keep the spelling of names.
    pub preserve_case: bool,
    /// Names that are added are spelled `Proper-Case` then.
    pub proper_added: bool,
    /// What to do with names that contain an underscore.
    pub underscores: Underscores,
    /// Protocols to which no HTTP/1.1 request is upgraded (`ignore_http_11_upgrade`): it goes on without that wish.
    pub ignored_upgrades: Vec<super::matcher::StringMatcher>,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            max_head: 60 * 1024,
            max_fields: 100,
            http_10: false,
            default_host: None,
            absolute_url: true,
            chunked_length: false,
            custom_methods: false,
            preserve_case: false,
            proper_added: false,
            underscores: Underscores::Allow,
            ignored_upgrades: Vec::new(),
        }
    }
}

/// Timers of the connection manager; `None` = off.
#[derive(Clone, Debug)]
pub struct HcmTimeouts {
    /// Connection without requests. Default 1 h.
    pub idle: Option<Duration>,
    /// Stream without progress. Default 5 min.
    pub stream_idle: Option<Duration>,
    /// From the first byte to the end of the request. Default off.
    pub request: Option<Duration>,
    /// From the first byte to the end of the head. Default: 10 s bar of our own (Envoy: off).
    pub request_headers: Option<Duration>,
    /// Age at which a connection is drained.
    pub max_connection_duration: Option<Duration>,
    /// Over HTTP/1 the next response says so, whenever it comes, instead (`http1_safe_max_connection_duration`).
    pub http1_safe: bool,
    /// Age at which a stream is reset.
    pub max_stream_duration: Option<Duration>,
}

/// `codec_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// The client's first bytes decide.
    Auto,
    /// HTTP/1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// Most filters before the router.
pub const MAX_FILTERS: usize = 64;

/// A filter in its place in the chain.
#[derive(Debug, Clone)]
pub struct InstalledFilter {
    /// Its name: routes speak to it under this.
    pub name: FilterName,
    /// It is off where no route turns it on.
    pub disabled: bool,
    /// What it does.
    pub filter: HttpFilter,
}

/// An HTTP filter before the router.
#[derive(Debug, Clone)]
pub enum HttpFilter {
    /// `envoy.filters.http.grpc_stats`.
    GrpcStats(crate::http::filters::grpc_stats::Config),
    /// One that a control plane configures.
    Discovered(Arc<super::pieces::DiscoveredFilter>),
    /// `envoy.filters.http.grpc_web`.
    GrpcWeb,
    /// `envoy.filters.http.grpc_http1_bridge`.
    GrpcHttp1Bridge(crate::http::filters::grpc_http1_bridge::Config),
    /// `envoy.filters.http.cors`.
    Cors(Arc<filters::cors::Config>),
    /// `envoy.filters.http.fault`.
    Fault(Arc<filters::fault::Config>),
    /// `envoy.filters.http.header_mutation`.
    HeaderMutation(Arc<filters::header_mutation::Config>),
    /// `envoy.filters.http.local_ratelimit`.
    LocalRateLimit(Arc<filters::local_ratelimit::Config>),
    /// `envoy.filters.http.csrf`.
    Csrf(Arc<filters::csrf::Config>),
    /// `envoy.filters.http.custom_response`.
    CustomResponse(Arc<filters::custom_response::Config>),
    /// `envoy.filters.http.basic_auth`.
    BasicAuth(Arc<filters::basic_auth::Config>),
    /// `envoy.filters.http.bandwidth_limit`.
    BandwidthLimit(Arc<filters::bandwidth_limit::Config>),
    /// `envoy.filters.http.credential_injector`.
    CredentialInjector(Arc<filters::credential_injector::Config>),
    /// `envoy.filters.http.oauth2`.
    OAuth2(Arc<filters::oauth2::Config>),
    /// `envoy.filters.http.api_key_auth`.
    ApiKeyAuth(Arc<filters::api_key_auth::Config>),
    /// `envoy.filters.http.buffer`.
    Buffer(Arc<filters::buffer::Config>),
    /// `envoy.filters.http.health_check`.
    HealthCheck(Arc<filters::health_check::Config>),
    /// `envoy.filters.http.set_metadata`.
    SetMetadata(Arc<filters::set_metadata::Config>),
    /// `envoy.filters.http.set_filter_state`.
    SetFilterState(Arc<filters::set_filter_state::Config>),
    /// `envoy.filters.http.header_to_metadata`.
    HeaderToMetadata(Arc<filters::header_to_metadata::Config>),
    /// `envoy.filters.http.rbac`.
    Rbac(Arc<crate::policy::rbac::Filter>),
    /// `envoy.filters.http.admission_control`.
    AdmissionControl(Arc<filters::admission_control::Config>),
    /// `envoy.filters.http.adaptive_concurrency`.
    AdaptiveConcurrency(Arc<filters::adaptive_concurrency::Config>),
    /// `envoy.filters.http.jwt_authn`.
    JwtAuthn(Arc<filters::jwt_authn::Config>),
    /// `envoy.filters.http.ext_authz`.
    ExtAuthz(Arc<filters::ext_authz::Config>),
    /// `envoy.filters.http.ratelimit`.
    RateLimit(Arc<filters::ratelimit::Config>),
    /// `envoy.filters.http.compressor`.
    Compressor(Arc<filters::compressor::Config>),
    /// `envoy.filters.http.ext_proc`.
    ExtProc(Arc<filters::ext_proc::Config>),
    /// `envoy.filters.http.stateful_session`.
    StatefulSession(Arc<filters::stateful_session::Config>),
    /// Istio's `istio_authn`.
    IstioAuthn(Arc<filters::istio::authn::Config>),
    /// Istio's `alpn`.
    IstioAlpn(Arc<filters::istio::alpn::Config>),
    /// Istio's peer metadata.
    PeerMetadata(Arc<filters::istio::peer_metadata::Config>),
    /// One that is skipped for some requests.
    Conditional(Arc<filters::conditional::Config>),
    /// Istio's standard metrics.
    StandardMetrics(Arc<crate::telemetry::istio::StandardMetrics>),
    /// `envoy.filters.http.decompressor`.
    Decompressor(Arc<filters::decompressor::Config>),
}

/// `envoy.extensions.filters.http.router.v3.Router`.
#[derive(Debug, Default)]
pub struct RouterOptions {
    /// Do not add `x-envoy-*` headers.
    pub suppress_envoy_headers: bool,
    /// Reject requests whose `x-envoy-*` values do not parse (names in lower case).
    pub strict_check_headers: Vec<super::HeaderKey>,
    /// Respect `x-envoy-expected-rq-timeout-ms` of the previous hop.
    pub respect_expected_rq_timeout: bool,
    /// What is told of single tries.
    pub upstream_logs: Option<UpstreamLogs>,
}

/// `upstream_log`.
#[derive(Debug)]
pub struct UpstreamLogs {
    /// At least one.
    pub list: Box<[AccessLog]>,
    /// They are also told of a try that has got its connection.
    pub when_connected: bool,
}

/// `server_header_transformation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ServerHeader {
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

/// `path_with_escaped_slashes_action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EscapedSlashes {
    Keep,
    Reject,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

/// `strip_matching_host_port`, `strip_any_host_port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StripPort {
    None,
    Matching,
    Any,
}

/// `headers_with_underscores_action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Underscores {
    Allow,
    Reject,
    Drop,
}

/// `Http1ProtocolOptions`, as far as both directions have a use for them; the rest is in [`RequestLimits`].
#[derive(Clone, Debug, Default)]
pub struct Http1Options {
    /// Forward trailers instead of dropping them.
    pub enable_trailers: bool,
    /// Accept `Transfer-Encoding: chunked` beside `Content-Length` (the length is dropped).
    pub allow_chunked_length: bool,
    /// Spelling of header names we write.
    pub header_case: HeaderCase,
    /// Where names are kept as they were received, those that are added are spelled `Proper-Case`.
    pub proper_added: bool,
    /// Reason phrases are passed on.
    pub forward_reason: bool,
}

/// `header_key_format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HeaderCase {
    /// As Envoy writes them: lower case.
    #[default]
    Lower,
    /// `Proper-Case`.
    Proper,
    /// As they were received.
    Preserve,
}

/// An upgrade that is accepted or refused.
#[derive(Clone, Debug)]
pub struct Upgrade {
    /// Lower-case protocol (`websocket`, `connect`).
    pub kind: Box<str>,
    /// Whether it is on.
    pub enabled: bool,
    /// CONNECT ends here: its payload goes upstream, not the request (routes' `connect_config`).
    pub terminate: bool,
}

/// `local_reply_config`.
#[derive(Debug)]
pub struct LocalReplyRules {
    /// First match wins.
    pub mappers: Vec<LocalReplyMapper>,
    /// Format of bodies that no mapper formats.
    pub body_format: Option<BodyFormat>,
}

/// One `ResponseMapper`.
#[derive(Debug)]
pub struct LocalReplyMapper {
    /// When it applies.
    pub filter: crate::telemetry::access_log::LogFilter,
    /// New status.
    pub status: Option<u16>,
    /// New body, before formatting.
    pub body: Option<Bytes>,
    /// Header changes.
    pub headers: crate::config::route::HeaderOps,
    /// Format of this reply.
    pub body_format: Option<BodyFormat>,
}

/// `SubstitutionFormatString` of a local reply's body.
#[derive(Debug)]
pub struct BodyFormat {
    /// The compiled format.
    pub format: crate::telemetry::format::Format,
    /// The body's content type.
    pub content_type: Bytes,
}

/// What becomes of `x-forwarded-client-cert`. Without a client certificate it is removed, unless it is always
/// forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCert {
    /// Removed.
    Sanitize,
    /// Passed on.
    ForwardOnly,
    /// Ours is added.
    AppendForward(CertDetails),
    /// Ours stands in its place.
    SanitizeSet(CertDetails),
    /// Passed on, whatever the connection is.
    AlwaysForwardOnly,
}

/// What `x-forwarded-client-cert` says besides the hash (`set_current_client_cert_details`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CertDetails {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
}
