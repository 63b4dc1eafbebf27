//! Where configuration comes from: compiled `ConfigSource`s and the control planes behind them.
//!
//! In: the sources that the bootstrap and resources name. Out: values that compare equal when they
//! mean the same control plane asked in the same way, so that equal sources share one stream. Nothing
//! here connects to anything.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger_control_api::pb::envoy::config::core::v3::Node;

use super::cluster::{Address, DnsFamily, Keepalive};
use super::control_secret::{ControlSecret, SecretSource, SentSecret};

/// `initial_fetch_timeout` where it is not set.
pub const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// What the bootstrap says of discovery.
#[derive(Debug, Clone)]
pub struct DiscoveryConfig {
    /// Who this proxy says it is: the bootstrap's node with the flags' values, the user agent and its
    /// version. `client_features` and `extensions` are left to the client.
    pub node: Node,
    /// The control plane of every [`Source::Ads`].
    pub ads: Option<Arc<ApiSource>>,
    /// Where listeners come from.
    pub lds: Option<ConfigSource>,
    /// Where clusters come from.
    pub cds: Option<ConfigSource>,
    /// Runtime layers from a control plane, in the order of the bootstrap.
    pub rtds: Vec<RtdsLayer>,
    /// Who is told of loads (`cluster_manager.load_stats_config`).
    pub load_stats: Option<Arc<ApiSource>>,
}

/// A runtime layer that a control plane fills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RtdsLayer {
    /// The layer's name.
    pub layer: Arc<str>,
    /// The `Runtime` resource to ask for.
    pub name: Arc<str>,
    /// Where.
    pub source: ConfigSource,
}

/// `envoy.config.core.v3.ConfigSource`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConfigSource {
    /// Whom to ask.
    pub source: Source,
    /// How long to wait for the first answer. Default 15 s; `None` = for ever.
    pub initial_fetch_timeout: Option<Duration>,
}

/// Whom to ask for a resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// The bootstrap's `ads_config`.
    Ads,
    /// The source of the resource that refers to this one (`self`). Compiled resources have it replaced
    /// by that source where the bootstrap says what it is.
    SameAsParent,
    /// A control plane of its own.
    Own(Arc<ApiSource>),
    /// A file.
    Path {
        /// The file.
        path: PathBuf,
        /// Only moves in this directory lead to a new read; without it, moves of the file itself.
        watched_directory: Option<PathBuf>,
    },
}

/// `envoy.config.core.v3.ApiConfigSource`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ApiSource {
    /// Incremental (delta) instead of state of the world.
    pub delta: bool,
    /// All types over one stream of the aggregated service, instead of one stream for each type.
    pub aggregated: bool,
    /// How to ask.
    pub kind: ApiKind,
    /// Whom to ask: the first, the next when it cannot be reached. Never empty.
    pub targets: Vec<GrpcTarget>,
    /// Requests allowed on the stream; `None` = any number.
    pub rate_limit: Option<RateLimit>,
    /// Leave the node out of all but the first request of a stream.
    pub set_node_on_first_message_only: bool,
}

/// The transport of an [`ApiSource`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApiKind {
    /// A gRPC stream.
    Grpc,
    /// Repeated HTTP requests.
    Rest {
        /// Time between an answer and the next request.
        refresh_delay: Duration,
        /// How long one request may take. Default 1 s.
        request_timeout: Duration,
    },
}

/// `envoy.config.core.v3.RateLimitSettings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RateLimit {
    /// Size of the bucket. Default 100.
    pub max_tokens: u32,
    /// Time in which one token is added. Default 100 ms.
    pub fill_interval: Duration,
}

/// One way to a control plane: `envoy.config.core.v3.GrpcService` with the cluster that it names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GrpcTarget {
    /// The cluster's name, or the target URI: for logs.
    pub name: Arc<str>,
    /// Where it listens; all are tried. Never empty.
    pub addresses: Vec<TargetAddress>,
    /// `:authority` of the requests.
    pub authority: Arc<str>,
    /// TLS, or plain text.
    pub tls: Option<ControlTls>,
    /// Time for TCP connect and TLS handshake. Default 5 s.
    pub connect_timeout: Duration,
    /// `timeout` of the gRPC service; streams have none.
    pub timeout: Option<Duration>,
    /// Sent with each request, in order.
    pub initial_metadata: Vec<(Arc<str>, Arc<str>)>,
    /// Base and cap of the back-off between streams; `None` = 500 ms and 30 s.
    pub back_off: Option<(Duration, Duration)>,
    /// Longest message taken from the control plane, in bytes.
    pub max_receive_message_length: Option<u32>,
    /// HTTP/2 keepalive: time between pings, and how long to wait for the answer.
    pub http2_keepalive: Option<(Duration, Duration)>,
    /// TCP keepalive.
    pub tcp_keepalive: Option<Keepalive>,
    /// Local address to bind before connecting.
    pub source_address: Option<SocketAddr>,
}

/// Where a control plane listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TargetAddress {
    /// An IP address with its port, or a Unix socket.
    Fixed(Address),
    /// A name to resolve before each connection.
    Name {
        /// The name.
        host: Arc<str>,
        /// The port of the addresses that result.
        port: u16,
        /// Which address families to use.
        family: DnsFamily,
        /// Name servers to ask instead of the system's.
        resolvers: Vec<SocketAddr>,
    },
}

/// TLS towards a control plane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ControlTls {
    /// Whose certificate is taken.
    pub trust: Trust,
    /// A secret that says more of that.
    pub trust_secret: Option<ControlSecret>,
    /// Our certificate.
    pub identity: Option<ControlIdentity>,
    /// The name asked for (SNI); `None` = none is sent.
    pub sni: Option<Arc<str>>,
    /// Its certificate must be valid for `sni`.
    pub verify_sni: bool,
    /// Lowest and highest TLS version: 12 or 13.
    pub versions: (u8, u8),
}

/// Whose certificate is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Trust {
    /// Who may sign it.
    pub roots: Roots,
    /// Names of which it must have one; empty = any.
    pub names: Vec<SanName>,
}

/// Our certificate for control planes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ControlIdentity {
    /// PEM.
    Given {
        /// The chain, the certificate itself first.
        chain: Material,
        /// Its private key.
        key: Material,
    },
    /// In a secret.
    Secret(ControlSecret),
}

impl ControlTls {
    /// The secrets that control planes send.
    pub fn sent(&self) -> impl Iterator<Item = &SentSecret> {
        let identity = self.identity.as_ref().and_then(|identity| match identity {
            ControlIdentity::Secret(secret) => Some(secret),
            ControlIdentity::Given { .. } => None,
        });
        self.trust_secret.iter().chain(identity).filter_map(|secret| match &secret.source {
            SecretSource::Sent(sent) => Some(sent),
            SecretSource::File(_) => None,
        })
    }
}

/// What a certificate is verified against.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Roots {
    /// Nothing: config gives no `trusted_ca`, and any certificate is taken, as in Envoy.
    #[default]
    Unverified,
    /// The system's.
    System,
    /// These, PEM.
    Pem(Material),
}

/// A name that a certificate must bear.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SanName {
    /// Its kind; `None` = any.
    pub kind: Option<SanKind>,
    /// How it is compared.
    pub pattern: SanPattern,
}

/// Kinds of subject alternative names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum SanKind {
    Dns,
    Uri,
    Email,
    Ip,
}

/// How a subject alternative name is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum SanPattern {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    Contains(Arc<str>),
}

impl SanPattern {
    /// Whether `name` fits.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            SanPattern::Exact(text) => name == &**text,
            SanPattern::Prefix(text) => name.starts_with(&**text),
            SanPattern::Suffix(text) => name.ends_with(&**text),
            SanPattern::Contains(text) => name.contains(&**text),
        }
    }
}

/// Certificates or keys.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Material {
    /// In this file, to be read at each connection so that a renewed one is found.
    File(PathBuf),
    /// These bytes.
    Inline(Bytes),
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Material::File(path) => write!(f, "{}", path.display()),
            // It may be a private key.
            Material::Inline(bytes) => write!(f, "{} bytes", bytes.len()),
        }
    }
}

impl Material {
    /// The bytes.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self) -> std::io::Result<Bytes> {
        match self {
            Material::File(path) => std::fs::read(path).map(Bytes::from),
            Material::Inline(bytes) => Ok(bytes.clone()),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Ads => f.write_str("ads"),
            Source::SameAsParent => f.write_str("self"),
            Source::Own(api) => match api.targets.first() {
                Some(target) => f.write_str(&target.name),
                None => f.write_str("api"),
            },
            Source::Path { path, .. } => path.display().fmt(f),
        }
    }
}
