//! Connections that a service allows or denies (`envoy.filters.network.ext_authz`): what config says of it, and what comes
//! of its answer. Whoever asks the service is told apart ([`Counsel`]).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_control_api::pb::google::protobuf::Struct;

use super::rbac::MetadataMatcher;
use crate::config::services::GrpcTarget;
use crate::telemetry::stream_info::{ConnectionInfo, DynamicMetadata};

crate::stats! {
    /// `ext_authz.<stat_prefix>.`.
    pub struct NetworkAuthzStats {
        counters { total, ok, denied, error, disabled, failure_mode_allowed, cx_closed }
        gauges { active }
        histograms {}
    }
}

/// `envoy.extensions.filters.network.ext_authz.v3.ExtAuthz`.
#[derive(Debug)]
pub struct NetworkAuthz {
    /// Who decides.
    pub target: Arc<GrpcTarget>,
    /// Without an answer the connection goes on.
    pub fail_open: bool,
    /// Answers are counted and noted, and stop nobody (`shadow_mode`).
    pub shadow: bool,
    /// The service sees the client's certificate.
    pub peer_certificate: bool,
    /// And the name that the client asked for in TLS.
    pub tls_session: bool,
    /// Only connections with such metadata are decided on.
    pub enabled: Option<MetadataMatcher>,
    /// Dynamic metadata that the service sees, by namespace.
    pub namespaces: Box<[Box<str>]>,
    /// Its statistics.
    pub stats: NetworkAuthzStats,
}

/// What a service says of a connection.
#[derive(Debug)]
pub enum Answer {
    /// It may go on; with metadata.
    Allowed(Struct),
    /// It may not.
    Denied(Struct),
    /// The service could not be asked.
    Lost,
}

/// An answer that is waited for.
pub type Asking = Pin<Box<dyn Future<Output = Answer>>>;

/// Who asks services.
pub trait Counsel: fmt::Debug {
    /// Asks about the connection `info`, of which filters have noted `dynamic`.
    fn ask(&self, filter: &Arc<NetworkAuthz>, info: &Rc<ConnectionInfo>, dynamic: &DynamicMetadata)
        -> Asking;
}
