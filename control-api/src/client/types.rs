//! What passes between the client and its user: resources, updates, verdicts, changes of interest.

use std::time::{Duration, Instant};

use bytes::Bytes;

/// Type URLs of the resources that a sidecar asks for.
pub mod type_url {
    /// Listeners (LDS).
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    /// Route configurations (RDS).
    pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    /// Scoped routes (SRDS).
    pub const SCOPED_ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
    /// Virtual hosts on demand (VHDS), delta only.
    pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
    /// Clusters (CDS).
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    /// Endpoints of a cluster (EDS).
    pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    /// Secrets (SDS).
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    /// Runtime layers (RTDS).
    pub const RUNTIME: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
    /// Extension configurations (ECDS).
    pub const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
    /// The wrapper that carries name, version and TTL of another resource.
    pub(crate) const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";
}

/// The place of a type in the order that breaks nothing: CDS, EDS, LDS, RDS, then the rest.
///
/// Requests that are due together are sent in this order; a user that has updates of several types to
/// apply should take them in this order too, and removals of clusters last.
#[must_use]
pub fn warming_order(type_url: &str) -> u8 {
    match type_url {
        type_url::CLUSTER => 0,
        type_url::ENDPOINTS => 1,
        type_url::LISTENER => 2,
        type_url::SCOPED_ROUTE => 3,
        type_url::ROUTE => 4,
        type_url::VIRTUAL_HOST => 5,
        _ => 6,
    }
}

/// Whether a state-of-the-world response of this type always holds everything, so that absence deletes.
#[must_use]
pub fn absence_deletes(type_url: &str) -> bool {
    matches!(type_url, type_url::CLUSTER | type_url::LISTENER | type_url::SCOPED_ROUTE)
}

/// One resource as it came, still encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Its name, unique within its type.
    pub name: String,
    /// The version that the control plane gave it. In state of the world that of the whole response.
    pub version: String,
    /// Other names that it was asked for by (VHDS).
    pub aliases: Vec<String>,
    /// The encoded message, of the type of the update around it. Compare a hash of it before decoding.
    pub body: Bytes,
}

/// Where an update comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A discovery response.
    Response,
    /// The time to live of the removed resources ran out.
    Expired,
}

/// A change to one type of resources. Each has to be answered once, with a [`Verdict`].
///
/// The next update of the same type is held back until then; other types go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// What the verdict has to name.
    pub id: u64,
    /// The type of every resource in it.
    pub type_url: String,
    /// The version of the response as a whole; for people, it is not compared.
    pub version: String,
    /// Why.
    pub cause: Cause,
    /// New and changed resources; in state of the world unchanged ones too.
    pub added: Vec<Resource>,
    /// Names of resources that are gone, or do not exist though asked for.
    pub removed: Vec<String>,
    /// There was more in the response, which is refused whatever the verdict on this is.
    pub flawed: bool,
    /// When the response came; `None` if there is none.
    pub received: Option<Instant>,
}

/// Why a resource cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The resource, or nothing when the whole update is refused.
    pub name: String,
    /// Field path, value and limit, as the control plane's operator should read it.
    pub message: String,
}

/// What the user makes of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every resource in it is valid in isolation; it need not be in effect yet.
    Accepted,
    /// These are not, and stay at their last good version. The others were taken, unless one rejection
    /// names no resource: then nothing was.
    Rejected(Vec<Rejection>),
}

/// How everything of a type is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wildcard {
    /// By naming nothing at all in the first request: what Envoy does for LDS and CDS. Turns into the
    /// other form where explicit names are wanted as well.
    Legacy,
    /// By the name `*`.
    Star,
}

/// A change of what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Resources wanted by name. Naming `*` is the same as [`Change::SubscribeAll`].
    Subscribe {
        /// The type.
        type_url: String,
        /// Names; those already wanted stay as they are.
        names: Vec<String>,
        /// Instead of [`Settings::initial_fetch_timeout`]; zero waits for ever.
        ///
        /// [`Settings::initial_fetch_timeout`]: super::Settings::initial_fetch_timeout
        fetch_timeout: Option<Duration>,
    },
    /// Everything of a type, besides what is named.
    SubscribeAll {
        /// The type.
        type_url: String,
        /// How to ask.
        wildcard: Wildcard,
        /// As above.
        fetch_timeout: Option<Duration>,
    },
    /// Names no longer wanted. Their resources are forgotten without an update.
    Unsubscribe {
        /// The type.
        type_url: String,
        /// Names.
        names: Vec<String>,
    },
    /// Ends [`Change::SubscribeAll`]. What is not wanted by name is forgotten without an update.
    UnsubscribeAll {
        /// The type.
        type_url: String,
    },
    /// Asks for resources again that are wanted already, such as the endpoints of a changed cluster.
    Refresh {
        /// The type.
        type_url: String,
        /// Names; those not wanted are skipped.
        names: Vec<String>,
    },
    /// Sends nothing of this type until resumed.
    Pause {
        /// The type.
        type_url: String,
    },
    /// Ends [`Change::Pause`].
    Resume {
        /// The type.
        type_url: String,
    },
    /// Resources that the user holds from an earlier run, so that the control plane need not resend
    /// them. Before anything of the type was received; later it is ignored.
    Restore {
        /// The type.
        type_url: String,
        /// The version last accepted (state of the world).
        version: String,
        /// Names and versions (delta).
        resources: Vec<(String, String)>,
    },
}

/// What happens besides requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A stream has to be opened now; answer with `opened` or `closed`.
    Connect,
    /// The open stream has to be given up: there is doubt about it. Answer with `closed`.
    Abandon {
        /// Why.
        reason: String,
    },
    /// Resources for the user.
    Update(Update),
    /// Nothing came in time; the user goes on without.
    FetchTimeout {
        /// The type.
        type_url: String,
        /// The name, or nothing for a wildcard.
        name: Option<String>,
    },
    /// The stream is open.
    Connected,
    /// It closed, or could not be opened.
    Disconnected {
        /// Why.
        reason: String,
        /// When the next attempt is made.
        retry_in: Duration,
    },
    /// A response was refused; for the log.
    Refused {
        /// The type.
        type_url: String,
        /// The version of the response.
        version: String,
        /// What the control plane is told.
        message: String,
    },
    /// A response was passed over, unanswered; for the log.
    Ignored {
        /// The type that it named.
        type_url: String,
        /// Why.
        reason: String,
    },
    /// The control plane says why it has no such resource for this client. What is held stays.
    ResourceError {
        /// The type.
        type_url: String,
        /// The name.
        name: String,
        /// A gRPC code.
        code: i32,
        /// In the control plane's words.
        message: String,
    },
    /// A name was not subscribed to, because this client cannot.
    Unsupported {
        /// The type.
        type_url: String,
        /// The name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The control plane does what the protocol does not know, without harm; for the log.
    Odd {
        /// The type, or nothing where it is no matter of one.
        type_url: String,
        /// What.
        what: String,
    },
    /// Requests wait for the rate limit. Reported once for each time of waiting.
    RateLimited,
}

/// The state of one type, for an admin page and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeStatus {
    /// The type.
    pub type_url: String,
    /// The version of the last response that was accepted whole.
    pub version: String,
    /// How many resources are held.
    pub resources: usize,
    /// How many names are wanted.
    pub names: usize,
    /// Whether all of the type is wanted.
    pub wildcard: bool,
    /// When the last response came.
    pub received: Option<Instant>,
    /// When one was last accepted whole: `now` less this is the age of the content.
    pub accepted: Option<Instant>,
    /// How many responses were accepted.
    pub accepted_total: u64,
    /// How many were refused, in part or whole.
    pub rejected_total: u64,
    /// The last refusal, with the version refused; kept until something is accepted.
    pub last_rejection: Option<(String, String)>,
    /// Responses received whose verdict is outstanding.
    pub pending: usize,
}

/// The state of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether a stream is open.
    pub connected: bool,
    /// Streams opened so far.
    pub streams: u64,
    /// When the last sign of life came: a response or a keepalive answer.
    pub heard: Option<Instant>,
    /// How many times the rate limit held requests back.
    pub rate_limited: u64,
    /// Types that have something to say and wait for the rate limit or for room on the stream.
    pub pending_requests: usize,
    /// Every type ever wanted, in warming order.
    pub types: Vec<TypeStatus>,
}
