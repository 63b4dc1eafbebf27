//! The labels of a stream, as Istio's dashboards know them.

use std::borrow::Cow;
use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use super::recent::seed;
use super::{Service, StandardMetrics, Workload};
use crate::config::discovery::SanKind;
use crate::config::{HeaderKey, Known};
use crate::telemetry::format::FormatContext;
use crate::telemetry::stream_info::{ResponseFlags, StreamInfo};
use crate::tls::TlsInfo;

/// Names and values of labels.
pub(super) type Labels = Vec<(Cow<'static, str>, Box<str>)>;

/// What stands for what is not known.
pub(super) const UNKNOWN: &str = "unknown";
/// What stands for a revision that is not known.
const LATEST: &str = "latest";
/// Peers choose values; longer ones are cut, in bytes.
const LONGEST: usize = 512;

/// Whether Istio has a label of this name.
pub(super) fn is_standard(name: &str) -> bool {
    const OTHERS: [&str; 7] = [
        "reporter",
        "request_protocol",
        "response_flags",
        "connection_security_policy",
        "response_code",
        "grpc_response_status",
        "destination_service_name",
    ];
    const OF_PEERS: [&str; 8] = [
        "workload",
        "workload_namespace",
        "principal",
        "app",
        "version",
        "canonical_service",
        "canonical_revision",
        "cluster",
    ];
    let of = |side: &str| name.strip_prefix(side).and_then(|rest| rest.strip_prefix('_'));
    OTHERS.contains(&name)
        || of("source").or(of("destination")).is_some_and(|rest| OF_PEERS.contains(&rest))
        || of("destination").is_some_and(|rest| ["service", "service_namespace"].contains(&rest))
}

/// What a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    /// With the status that the client was told.
    Grpc(Option<u64>),
    Tcp,
}

/// Who reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reporter {
    /// The sidecar of the caller.
    Source,
    /// That of the called.
    Destination,
    /// A proxy for several workloads.
    Waypoint,
}

/// Routes of Istio's that lead to no service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Nothing,
    BlackHole,
    Passthrough,
}

/// All that the labels of a stream depend on, borrowed from it.
#[derive(Clone, Copy)]
pub(super) struct Stream<'a> {
    pub metrics: &'a StandardMetrics,
    pub protocol: Protocol,
    reporter: Reporter,
    /// Who it comes from, or goes to at the caller's.
    peer: Option<&'a Arc<Workload>>,
    /// Who it goes to, behind a gateway.
    upstream: Option<&'a Arc<Workload>>,
    /// What is known of the endpoint.
    endpoint: Option<&'a Arc<str>>,
    service: Option<&'a Arc<Service>>,
    route: Named,
    /// The request's own host, where it stands for the service's.
    host: &'a [u8],
    peer_name: &'a str,
    local_name: &'a str,
    code: u16,
    flags: ResponseFlags,
    pub extra: &'a [Box<str>],
}

impl<'a> Stream<'a> {
    /// Of a stream that `context` is about.
    pub fn of(
        metrics: &'a StandardMetrics,
        context: &FormatContext<'a>,
        protocol: Protocol,
        extra: &'a [Box<str>],
    ) -> Self {
        let info = context.info;
        let reporter = match (metrics.gateway, info.connection.inbound) {
            (true, _) => Reporter::Waypoint,
            (false, true) => Reporter::Destination,
            (false, false) => Reporter::Source,
        };
        let (tls, peer) = match reporter {
            Reporter::Source => (info.upstream_tls.as_deref(), &info.peers.upstream),
            _ => (info.connection.tls.as_deref(), &info.peers.downstream),
        };
        let service = info.service.as_ref();
        let names_host = service.is_some_and(|service| service.host.is_some());
        let authority: HeaderKey = Known::Authority.into();
        let host = match context.request {
            Some(request) if metrics.host_fallback && !names_host => request.first(&authority),
            _ => None,
        };
        let endpoint = match (reporter, peer) {
            (Reporter::Source, None) => endpoint(info),
            _ => None,
        };
        Self {
            metrics,
            protocol,
            reporter,
            peer: peer.as_ref(),
            upstream: info.peers.upstream.as_ref().filter(|_| reporter == Reporter::Waypoint),
            endpoint,
            service,
            route: match info.route_name.as_deref() {
                Some("block_all") => Named::BlackHole,
                Some("allow_any") => Named::Passthrough,
                _ => Named::Nothing,
            },
            host: host.unwrap_or_default(),
            peer_name: tls.and_then(TlsInfo::peer_facts).map_or("", first_uri),
            local_name: tls.and_then(TlsInfo::local_facts).map_or("", first_uri),
            code: if protocol == Protocol::Tcp { 0 } else { info.response_code },
            flags: info.flags,
            extra,
        }
    }

    /// Streams with the same labels have the same hash.
    pub fn hash(&self) -> u64 {
        fn place<T>(shared: Option<&Arc<T>>) -> u64 {
            shared.map_or(0, |shared| Arc::as_ptr(shared).addr() as u64)
        }
        let (kind, status) = match self.protocol {
            Protocol::Http => (0, 0),
            Protocol::Tcp => (1, 0),
            Protocol::Grpc(None) => (2, 0),
            Protocol::Grpc(Some(status)) => (3, status),
        };
        let small = u64::from(self.code)
            | (kind << 16)
            | ((self.reporter as u64) << 20)
            | ((self.route as u64) << 24)
            | (u64::from(self.flags.0) << 32);
        let mut hash = seed();
        let mut mix = |number: u64| {
            hash = (hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 32;
        };
        for number in
            [small, status, self.metrics.id, place(self.peer), place(self.upstream), place(self.service)]
        {
            mix(number);
        }
        let endpoint = self.endpoint.map_or("", |endpoint| endpoint);
        for text in [self.host, self.peer_name.as_bytes(), self.local_name.as_bytes(), endpoint.as_bytes()] {
            mix(if text.is_empty() { 0 } else { xxh64(text, seed()) });
        }
        self.extra.iter().for_each(|text| mix(xxh64(text.as_bytes(), seed())));
        hash
    }

    /// The labels of metrics that a stream has at its end.
    pub fn labels(&self) -> Labels {
        let mut labels = self.of_peers();
        let protocol = match self.protocol {
            Protocol::Http => "http",
            Protocol::Grpc(_) => "grpc",
            Protocol::Tcp => "tcp",
        };
        labels.push(("request_protocol".into(), protocol.into()));
        if self.protocol != Protocol::Tcp {
            labels.push(("response_code".into(), self.code.to_string().into()));
            let status = match self.protocol {
                Protocol::Grpc(Some(status)) => status.to_string(),
                _ => String::new(),
            };
            labels.push(("grpc_response_status".into(), status.into()));
        }
        let flags = self.flags.ordered(self.protocol != Protocol::Tcp).map(|(_, short, _)| *short);
        let flags = if self.flags.is_empty() { "-".into() } else { flags.collect::<Vec<_>>().join(",") };
        labels.push(("response_flags".into(), flags.into()));
        let policy = match self.reporter {
            Reporter::Source => UNKNOWN,
            _ if !self.peer_name.is_empty() && !self.local_name.is_empty() => "mutual_tls",
            _ => "none",
        };
        labels.push(("connection_security_policy".into(), policy.into()));
        labels
    }

    /// The labels that tell who calls whom.
    pub fn of_peers(&self) -> Labels {
        let own = &self.metrics.node.own;
        let told;
        let peer = match (self.peer, self.endpoint) {
            (Some(peer), _) => Some(&**peer),
            (None, Some(endpoint)) => {
                told = Workload::encoded(endpoint);
                told.as_ref()
            }
            (None, None) => None,
        };
        let mut labels = Labels::with_capacity(26);
        let mut label = |name: &'static str, value: &str| labels.push((name.into(), cut(value).into()));
        let known = |value: &str, otherwise: &'static str| -> Box<str> {
            if value.is_empty() {
                otherwise.into()
            } else {
                value.into()
            }
        };
        let of = |field: fn(&Workload) -> &str, otherwise| known(peer.map_or("", field), otherwise);
        let namespace = match namespace_of(self.peer_name) {
            Some(namespace) if !namespace.is_empty() => namespace.into(),
            _ => of(|peer| &peer.namespace, UNKNOWN),
        };
        let host = String::from_utf8_lossy(self.host);
        let service_host = match self.service.and_then(|service| service.host.as_deref()) {
            Some(host) => host,
            None => &*host,
        };
        let service_name = match self.route {
            Named::BlackHole => "BlackHoleCluster",
            Named::Passthrough => "PassthroughCluster",
            Named::Nothing => match self.service.and_then(|service| service.name.as_deref()) {
                Some(name) => name,
                None => &*host,
            },
        };
        let (peer_name, local_name) = (known(self.peer_name, UNKNOWN), known(self.local_name, UNKNOWN));
        if self.reporter == Reporter::Source {
            label("reporter", "source");
            label("source_workload", &own.name);
            label("source_canonical_service", &own.canonical_service);
            label("source_canonical_revision", &own.canonical_revision);
            label("source_workload_namespace", &own.namespace);
            label("source_principal", &local_name);
            label("source_app", &own.app);
            label("source_version", &own.version);
            label("source_cluster", &own.cluster);
            label("destination_workload", &of(|peer| &peer.name, UNKNOWN));
            label("destination_workload_namespace", &namespace);
            label("destination_principal", &peer_name);
            label("destination_app", &of(|peer| &peer.app, UNKNOWN));
            label("destination_version", &of(|peer| &peer.version, UNKNOWN));
            label("destination_service", &known(service_host, UNKNOWN));
            label("destination_canonical_service", &of(|peer| &peer.canonical_service, UNKNOWN));
            label("destination_canonical_revision", &of(|peer| &peer.canonical_revision, LATEST));
            label("destination_service_name", &known(service_name, UNKNOWN));
            label("destination_service_namespace", &namespace);
            label("destination_cluster", &of(|peer| &peer.cluster, UNKNOWN));
            return labels;
        }
        label("reporter", if self.reporter == Reporter::Waypoint { "waypoint" } else { "destination" });
        label("source_workload", &of(|peer| &peer.name, UNKNOWN));
        label("source_canonical_service", &of(|peer| &peer.canonical_service, UNKNOWN));
        label("source_canonical_revision", &of(|peer| &peer.canonical_revision, LATEST));
        label("source_workload_namespace", &namespace);
        label("source_principal", &peer_name);
        label("source_app", &of(|peer| &peer.app, UNKNOWN));
        label("source_version", &of(|peer| &peer.version, UNKNOWN));
        label("source_cluster", &of(|peer| &peer.cluster, UNKNOWN));
        let behind;
        let destination = match self.reporter {
            Reporter::Waypoint => {
                let unknown = || UNKNOWN.into();
                behind = match self.upstream {
                    Some(upstream) => Workload::clone(upstream),
                    None => Workload {
                        name: unknown(),
                        namespace: unknown(),
                        canonical_service: unknown(),
                        canonical_revision: unknown(),
                        app: unknown(),
                        version: unknown(),
                        cluster: Box::default(),
                    },
                };
                &behind
            }
            _ => own,
        };
        let principal = if self.reporter == Reporter::Waypoint { UNKNOWN } else { &local_name };
        label("destination_workload", &destination.name);
        label("destination_workload_namespace", &destination.namespace);
        label("destination_principal", principal);
        label("destination_app", &destination.app);
        label("destination_version", &destination.version);
        let service = &destination.canonical_service;
        label("destination_service", if service_host.is_empty() { service } else { service_host });
        label("destination_canonical_service", service);
        label("destination_canonical_revision", &destination.canonical_revision);
        label("destination_service_name", if service_name.is_empty() { service } else { service_name });
        label("destination_service_namespace", &own.namespace);
        label("destination_cluster", &own.cluster);
        labels
    }
}

fn endpoint(info: &StreamInfo) -> Option<&Arc<str>> {
    info.host.as_ref()?.template.workload.as_ref()
}

fn first_uri(facts: &crate::tls::peer::Facts) -> &str {
    facts.of_kind(SanKind::Uri).next().unwrap_or_default()
}

/// The namespace in a SPIFFE identity of Kubernetes, `.../ns/<namespace>/sa/<account>`.
fn namespace_of(identity: &str) -> Option<&str> {
    let (_, rest) = identity.split_once("/ns/")?;
    rest.split('/').next()
}

fn cut(value: &str) -> &str {
    let mut end = value.len().min(LONGEST);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    // `end` is at a boundary: 0 is one at the latest.
    &value[..end]
}

/// What [`Stream`] borrows, kept.
pub(super) struct Kept {
    protocol: Protocol,
    reporter: Reporter,
    id: u64,
    peer: Option<Arc<Workload>>,
    upstream: Option<Arc<Workload>>,
    endpoint: Option<Arc<str>>,
    service: Option<Arc<Service>>,
    route: Named,
    host: Box<[u8]>,
    peer_name: Box<str>,
    local_name: Box<str>,
    code: u16,
    flags: ResponseFlags,
    extra: Box<[Box<str>]>,
}

impl Kept {
    pub fn of(stream: &Stream<'_>) -> Self {
        Self {
            protocol: stream.protocol,
            reporter: stream.reporter,
            id: stream.metrics.id,
            peer: stream.peer.cloned(),
            upstream: stream.upstream.cloned(),
            endpoint: stream.endpoint.cloned(),
            service: stream.service.cloned(),
            route: stream.route,
            host: stream.host.into(),
            peer_name: stream.peer_name.into(),
            local_name: stream.local_name.into(),
            code: stream.code,
            flags: stream.flags,
            extra: stream.extra.into(),
        }
    }

    /// Whether `stream` has the same labels.
    pub fn is_of(&self, stream: &Stream<'_>) -> bool {
        fn same<T>(own: &Option<Arc<T>>, other: Option<&Arc<T>>) -> bool {
            own.as_ref().map(Arc::as_ptr) == other.map(Arc::as_ptr)
        }
        (self.protocol, self.reporter, self.id) == (stream.protocol, stream.reporter, stream.metrics.id)
            && (self.code, self.flags, self.route) == (stream.code, stream.flags, stream.route)
            && same(&self.peer, stream.peer)
            && same(&self.upstream, stream.upstream)
            && same(&self.service, stream.service)
            && self.endpoint.as_ref() == stream.endpoint
            && *self.host == *stream.host
            && *self.peer_name == *stream.peer_name
            && *self.local_name == *stream.local_name
            && *self.extra == *stream.extra
    }
}
