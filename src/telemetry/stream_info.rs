//! What is known of one stream (an HTTP request or a TCP connection) while it lives, as access logs
//! and header formats read it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outrigger_control_api::pb::google::protobuf::{Any, Struct};

use super::filter_state::Objects;
use super::istio::{Peers, Service};
use crate::config::cluster::ClusterNames;
use crate::config::{Host, Retirement};
use crate::runtime::proxy_protocol::Ends;
use crate::tls::TlsInfo;

/// Facts of the downstream connection, shared by its streams.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Number of the connection, unique in this process.
    pub id: u64,
    /// The peer (after the PROXY protocol). `None` for Unix sockets.
    pub remote: Option<SocketAddr>,
    /// The peer of the socket itself.
    pub direct_remote: Option<SocketAddr>,
    /// Our end (after restoring the original destination).
    pub local: Option<SocketAddr>,
    /// Our end of the socket itself.
    pub direct_local: Option<SocketAddr>,
    /// TLS with the client.
    pub tls: Option<Rc<TlsInfo>>,
    /// SNI.
    pub server_name: Option<Box<str>>,
    /// Name of the listener.
    pub listener: Arc<str>,
    /// Name of the filter chain.
    pub filter_chain: Arc<str>,
    /// When it was accepted.
    pub start: Instant,
    /// Whether its listener is inbound.
    pub inbound: bool,
    /// Whether its filter chain is leaving.
    pub retirement: Arc<Retirement>,
    /// What network filters have left for its streams.
    pub objects: Option<Box<Objects>>,
    /// Our end is where the client meant to go, and was restored.
    pub is_restored: bool,
    /// Upstreams are connected to from this address, by sockets with this mark (0 = none).
    pub source: Option<(SocketAddr, u32)>,
    /// What listener filters noted (dynamic metadata).
    pub metadata: Option<Box<DynamicMetadata>>,
}

impl ConnectionInfo {
    /// Where the client meant to go, if that is not our end of the socket.
    pub fn restored(&self) -> Option<SocketAddr> {
        self.local.filter(|_| self.is_restored)
    }

    /// Its ends, for an upstream that is told of them.
    pub fn ends(&self) -> Option<Ends> {
        Some(Ends { source: self.remote?, destination: self.local? })
    }
}

/// HTTP version of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Protocol {
    Http10,
    #[default]
    Http11,
    Http2,
}

impl Protocol {
    /// As logs spell it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Http10 => "HTTP/1.0",
            Protocol::Http11 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
        }
    }
}

macro_rules! response_flags {
    ($($bit:literal $konst:ident $short:literal $long:literal),* $(,)?) => {
        /// Envoy's response flags, a set.
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
        pub struct ResponseFlags(pub u32);

        #[allow(missing_docs)]
        impl ResponseFlags {
            $(pub const $konst: ResponseFlags = ResponseFlags(1 << $bit);)*

            /// Every flag: itself, short and long name, in Envoy's order.
            pub const ALL: &'static [(ResponseFlags, &'static str, &'static str)] =
                &[$((ResponseFlags::$konst, $short, $long)),*];
        }
    };
}

response_flags! {
    0 LH "LH" "FailedLocalHealthCheck", 1 UH "UH" "NoHealthyUpstream",
    2 UT "UT" "UpstreamRequestTimeout", 3 LR "LR" "LocalReset",
    4 UR "UR" "UpstreamRemoteReset", 5 UF "UF" "UpstreamConnectionFailure",
    6 UC "UC" "UpstreamConnectionTermination", 7 UO "UO" "UpstreamOverflow",
    8 NR "NR" "NoRouteFound", 9 DI "DI" "DelayInjected", 10 FI "FI" "FaultInjected",
    11 RL "RL" "RateLimited", 12 UAEX "UAEX" "UnauthorizedExternalService",
    13 RLSE "RLSE" "RateLimitServiceError", 14 DC "DC" "DownstreamConnectionTermination",
    15 URX "URX" "UpstreamRetryLimitExceeded", 16 SI "SI" "StreamIdleTimeout",
    17 IH "IH" "InvalidEnvoyRequestHeaders", 18 DPE "DPE" "DownstreamProtocolError",
    19 UMSDR "UMSDR" "UpstreamMaxStreamDurationReached",
    20 RFCF "RFCF" "ResponseFromCacheFilter", 21 NFCF "NFCF" "NoFilterConfigFound",
    22 DT "DT" "DurationTimeout", 23 UPE "UPE" "UpstreamProtocolError",
    24 NC "NC" "NoClusterFound", 25 OM "OM" "OverloadManagerTerminated",
    26 DF "DF" "DnsResolutionFailed", 27 DO "DO" "DropOverload",
    28 DR "DR" "DownstreamRemoteReset", 29 UDO "UDO" "UnconditionalDropOverload",
}

/// A flag with its short and its long name.
pub type NamedFlag = (ResponseFlags, &'static str, &'static str);

impl ResponseFlags {
    /// No flag.
    pub const NONE: ResponseFlags = ResponseFlags(0);

    /// Adds the flags of `other`.
    pub fn insert(&mut self, other: ResponseFlags) {
        self.0 |= other.0;
    }

    /// Those that are not of `other`.
    #[must_use]
    pub fn without(self, other: ResponseFlags) -> Self {
        Self(self.0 & !other.0)
    }

    /// Those that are among `these`.
    #[must_use]
    pub fn only<const N: usize>(self, these: [ResponseFlags; N]) -> Self {
        Self(self.0 & these.iter().fold(0, |set, flag| set | flag.0))
    }

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: ResponseFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags in the order in which they come about: an HTTP stream's retries end before its failure is noted, a
    /// TCP session's after. `http` says which it is.
    pub fn ordered(self, http: bool) -> impl Iterator<Item = &'static NamedFlag> {
        let early = if http { Self::URX } else { Self::NONE };
        let (ahead, behind) = (Self::ALL.iter(), Self::ALL.iter());
        let ordered =
            ahead.filter(move |flag| flag.0 == early).chain(behind.filter(move |flag| flag.0 != early));
        ordered.filter(move |flag| self.contains(flag.0))
    }

    /// Whether no flag is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The wall clock, told from the monotonic one: both were read at one moment, other moments follow.
#[derive(Debug, Clone, Copy)]
pub struct WallClock {
    instant: Instant,
    system: SystemTime,
}

impl WallClock {
    /// Both clocks as they stand.
    pub fn now() -> Self {
        Self::at(Instant::now(), SystemTime::now())
    }

    /// It was `system` at `instant`.
    pub fn at(instant: Instant, system: SystemTime) -> Self {
        Self { instant, system }
    }

    /// The wall-clock time at `at`.
    pub fn system(&self, at: Instant) -> SystemTime {
        match at.checked_duration_since(self.instant) {
            Some(since) => self.system + since,
            None => self.system - self.instant.duration_since(at),
        }
    }
}

/// Dynamic metadata: a structure for each namespace.
pub type DynamicMetadata = BTreeMap<String, Struct>;

/// Dynamic metadata of its other kind: a message of any type for each namespace.
pub type TypedMetadata = BTreeMap<String, Any>;

/// Something that was configured reads dynamic metadata.
static METADATA_READ: AtomicBool = AtomicBool::new(false);

/// Notes that what is being compiled reads dynamic metadata.
pub fn read_dynamic_metadata() {
    METADATA_READ.store(true, Ordering::Relaxed);
}

/// Whether anything reads dynamic metadata: filters whose decisions are not asked for need not write them for each
/// request.
pub fn dynamic_metadata_are_read() -> bool {
    METADATA_READ.load(Ordering::Relaxed)
}

/// Something that was configured reads metadata of routes.
static ROUTES_READ: AtomicBool = AtomicBool::new(false);

/// Notes that what is being compiled reads metadata of routes.
pub fn read_route_metadata() {
    ROUTES_READ.store(true, Ordering::Relaxed);
}

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub id: u128,
    /// The stream's span.
    pub span: u64,
}

/// The name of a virtual cluster.
#[derive(Debug)]
pub struct VirtualClusterName(pub Box<str>);

/// The record of one stream.
#[derive(Debug, Clone)]
pub struct StreamInfo {
    /// The wall clock.
    pub clock: WallClock,
    /// Monotonic clock at the first byte.
    pub start: Instant,
    /// Its connection.
    pub connection: Rc<ConnectionInfo>,
    /// The client after XFF processing, if that differs from the connection's peer.
    pub client: Option<SocketAddr>,
    /// HTTP version; `None` for TCP.
    pub protocol: Option<Protocol>,
    /// Status sent downstream; 0 = none.
    pub response_code: u16,
    /// Response flags.
    pub flags: ResponseFlags,
    /// `response_code_details`.
    pub details: Cow<'static, str>,
    /// `CONNECTION_TERMINATION_DETAILS`.
    pub termination_details: Cow<'static, str>,
    /// Body bytes from the client.
    pub bytes_received: u64,
    /// Body bytes to the client.
    pub bytes_sent: u64,
    /// Head bytes from the client, uncompressed.
    pub request_headers_bytes: u64,
    /// Head bytes to the client.
    pub response_headers_bytes: u64,
    /// Bytes to and from the upstream, heads included.
    pub upstream_wire_sent: u64,
    /// Bytes from the upstream, head included.
    pub upstream_wire_received: u64,
    /// It is a health check of this proxy's service.
    pub health_check: bool,
    /// What filters noted (dynamic metadata), by namespace.
    pub metadata: Option<Box<DynamicMetadata>>,
    /// Messages that they noted, by namespace.
    pub typed_metadata: Option<Box<TypedMetadata>>,
    /// What filters have left by name (filter state), beside what the connection has.
    pub objects: Option<Box<Objects>>,
    /// Its place in a trace, if it has one.
    pub trace: Option<Box<Trace>>,
    /// Name of the route that matched.
    pub route_name: Option<Arc<str>>,
    /// Its metadata, if anything reads those.
    pub route_metadata: Option<Arc<DynamicMetadata>>,
    /// The virtual cluster that the request belongs to.
    pub virtual_cluster: Option<Arc<VirtualClusterName>>,
    /// Cluster the request went to.
    pub cluster: Option<Arc<ClusterNames>>,
    /// The service that the cluster stands for, where it is known.
    pub service: Option<Arc<Service>>,
    /// Who its peers are, where they have told.
    pub peers: Peers,
    /// Host the (last) attempt went to.
    pub host: Option<Arc<Host>>,
    /// Our end of the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// Number of the upstream connection.
    pub upstream_connection_id: u64,
    /// TLS with the upstream.
    pub upstream_tls: Option<Rc<TlsInfo>>,
    /// HTTP version upstream.
    pub upstream_protocol: Option<Protocol>,
    /// Why the downstream transport failed.
    pub downstream_failure: Option<Box<str>>,
    /// Why the upstream transport failed.
    pub upstream_failure: Option<Box<str>>,
    /// Attempts made, the first included.
    pub attempts: u32,
    /// Points in time after `start`.
    pub times: StreamTimes,
}

/// Points in a stream's life, on the monotonic clock: a request whose log nobody reads does no
/// arithmetic with them.
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamTimes {
    /// Last byte of the request received.
    pub request_complete: Option<Instant>,
    /// First byte sent upstream.
    pub first_upstream_tx: Option<Instant>,
    /// Last byte sent upstream.
    pub last_upstream_tx: Option<Instant>,
    /// First byte received from upstream.
    pub first_upstream_rx: Option<Instant>,
    /// Last byte received from upstream.
    pub last_upstream_rx: Option<Instant>,
    /// First byte sent downstream.
    pub first_downstream_tx: Option<Instant>,
    /// Last byte sent downstream.
    pub last_downstream_tx: Option<Instant>,
    /// The stream's end.
    pub end: Option<Instant>,
}

impl StreamTimes {
    /// When the last byte went upstream: with the end of the request, which is passed on as it comes.
    pub fn upstream_tx_end(&self) -> Option<Instant> {
        self.last_upstream_tx.or_else(|| Some(self.first_upstream_tx?.max(self.request_complete?)))
    }
}

impl StreamInfo {
    /// Notes the route that was taken, or that there is none any more.
    #[inline]
    pub fn taken(&mut self, name: Option<&Arc<str>>, metadata: Option<&Arc<DynamicMetadata>>) {
        self.route_name = name.cloned();
        let told = metadata.is_some() || self.route_metadata.is_some();
        if told && ROUTES_READ.load(Ordering::Relaxed) {
            self.route_metadata = metadata.cloned();
        }
    }

    /// The record of a stream that starts now.
    pub fn new(connection: Rc<ConnectionInfo>, start: Instant, clock: WallClock) -> Self {
        Self {
            clock,
            start,
            connection,
            client: None,
            protocol: None,
            response_code: 0,
            flags: ResponseFlags::NONE,
            details: Cow::Borrowed(""),
            termination_details: Cow::Borrowed(""),
            bytes_received: 0,
            bytes_sent: 0,
            request_headers_bytes: 0,
            response_headers_bytes: 0,
            upstream_wire_sent: 0,
            upstream_wire_received: 0,
            health_check: false,
            metadata: None,
            typed_metadata: None,
            objects: None,
            trace: None,
            route_name: None,
            route_metadata: None,
            virtual_cluster: None,
            cluster: None,
            service: None,
            peers: Peers::default(),
            host: None,
            upstream_local: None,
            upstream_connection_id: 0,
            upstream_tls: None,
            upstream_protocol: None,
            downstream_failure: None,
            upstream_failure: None,
            attempts: 0,
            times: StreamTimes::default(),
        }
    }

    /// The wall-clock time of the start.
    pub fn start_time(&self) -> SystemTime {
        self.clock.system(self.start)
    }

    /// How long after the start `point` came.
    pub fn after_start(&self, point: Option<Instant>) -> Option<Duration> {
        point.map(|point| point.saturating_duration_since(self.start))
    }

    /// The client's address.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.client.or(self.connection.remote)
    }
}
