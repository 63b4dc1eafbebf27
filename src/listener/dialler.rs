//! TCP sessions to upstreams, by way of the worker's pools.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use xxhash_rust::xxh64::xxh64;

use super::tunnel::{self, Closed};
use crate::config::cluster::Discovery;
use crate::config::{Cluster, Host, Slot};
use crate::http::worker::Worker;
use crate::runtime::Stream;
use crate::tcp::{Dial, DialContext, DialError, Dialed};
use crate::telemetry::stream_info::ResponseFlags;
use crate::tls::upstream::Names;
use crate::upstream::outlier::Outcome;
use crate::upstream::pool::ConnectionPermit;
use crate::upstream::{connect_failure, PickContext, RelayPermit, RequestPermit, UpstreamError};

fn report(cluster: &Arc<Cluster>, host: &Arc<Host>, outcome: Outcome) {
    if let Some(health) = &cluster.health {
        health.report(cluster, host, outcome);
    }
}

/// What is held while a session's way to its upstream is open.
#[derive(Debug)]
pub enum Open {
    /// A connection of its own.
    #[allow(missing_docs)]
    Connection { _connection: ConnectionPermit, _session: RelayPermit },
    /// A request, and the connection where that is its own.
    #[allow(missing_docs)]
    Tunnel { _connection: Option<ConnectionPermit>, _request: RequestPermit },
}

impl Open {
    fn connection(cluster: &Arc<Cluster>, host: &Arc<Host>, permit: ConnectionPermit) -> Self {
        Self::Connection { _connection: permit, _session: RelayPermit::take(cluster, host) }
    }
}

/// Connects TCP sessions through the worker's pools.
pub struct Dialler<'a> {
    /// The worker that the sessions are on.
    pub worker: &'a Worker,
}

impl Dialler<'_> {
    /// A connection to `host` that another process has made, counted as one of ours; `None` when there is no cluster
    /// of this name.
    pub(super) fn adopt(
        &self,
        cluster: &str,
        host: SocketAddr,
        stream: Stream,
    ) -> Option<(Arc<Cluster>, Dialed<Open>)> {
        let local = self.worker.upstreams.cluster(&self.find(cluster)?)?;
        let pool = local.holding(host);
        let connection = pool.adopt(stream);
        let (id, host) = (connection.id, pool.host.clone());
        let (stream, permit) = connection.split();
        let (first, permit) = (BytesMut::new(), Open::connection(&local.cluster, &host, permit));
        Some((local.cluster.clone(), Dialed { stream, id, host, tls: None, first, protocol: None, permit }))
    }
}

impl Dial for Dialler<'_> {
    type Permit = Open;

    fn find(&self, cluster: &str) -> Option<Arc<Slot<Cluster>>> {
        self.worker.clusters.find(cluster)
    }

    async fn dial(
        &self,
        cluster: &Arc<Slot<Cluster>>,
        context: DialContext,
    ) -> Result<Dialed<Self::Permit>, DialError> {
        let none = |flag| DialError { flag, details: "".into(), host: None };
        let Some(local) = self.worker.upstreams.cluster(cluster) else {
            return Err(none(ResponseFlags::NC));
        };
        let mut pool = match (&local.cluster.discovery, context.local) {
            (Discovery::OriginalDst { port_override, .. }, Some(mut address)) => {
                if let Some(port) = port_override {
                    address.set_port(*port);
                }
                local.original_destination(address)
            }
            _ => {
                let source = context.hash_source;
                let source = source.map(|client| xxh64(client.ip().to_string().as_bytes(), 0));
                let hash = context.hash.or(source);
                let pick =
                    PickContext { hash, metadata: context.metadata.as_ref(), ..PickContext::default() };
                local.pick(&pick).map_err(|error| none(error.flag()))?
            }
        };
        if let Some(names) = context.names {
            let tls = local.cluster.tls.is_some();
            pool = pool.named(&if tls { names } else { Names { sni: None, sans: Vec::new(), ..names } });
        }
        let connected = match &context.tunnel {
            None => pool.dedicated().await,
            Some(None) => return Err(none(ResponseFlags::UF)),
            Some(Some(head)) => match Box::pin(tunnel::open(&pool, head)).await {
                Ok(dialed) => {
                    report(&local.cluster, &pool.host, Outcome::Connected);
                    return Ok(dialed);
                }
                Err(Closed::Upstream(error)) => Err(error),
                Err(why) => {
                    if let Closed::Refused(_) = why {
                        report(&local.cluster, &pool.host, Outcome::Failed { connected: false });
                    }
                    let (details, host) = (why.details().into(), Some(pool.host.clone()));
                    return Err(DialError { flag: ResponseFlags::UF, details, host });
                }
            },
        };
        match connected {
            Ok(connection) => {
                report(&local.cluster, &pool.host, Outcome::Connected);
                let id = connection.id;
                let host = pool.host.clone();
                let tls = connection.tls.clone();
                let (stream, permit) = connection.split();
                let (first, permit) = (BytesMut::new(), Open::connection(&local.cluster, &host, permit));
                Ok(Dialed { stream, id, host, tls, first, protocol: None, permit })
            }
            Err(error) => {
                match &error {
                    UpstreamError::Connect { local: false, .. } => {
                        report(&local.cluster, &pool.host, Outcome::Failed { connected: false });
                    }
                    UpstreamError::ConnectTimeout { .. } => {
                        let late = Outcome::TimedOut { connected: false, status: 504 };
                        report(&local.cluster, &pool.host, late);
                    }
                    // What is lacking here says nothing of the host.
                    _ => {}
                }
                let details: Box<str> = match &error {
                    UpstreamError::Connect { reason, .. } => connect_failure(Some(&pool.host), reason).into(),
                    UpstreamError::Tls { reason, .. } => reason.as_str().into(),
                    UpstreamError::ConnectTimeout { .. } => "connection timeout".into(),
                    _ => "".into(),
                };
                Err(DialError { flag: error.flag(), details, host: Some(pool.host.clone()) })
            }
        }
    }
}
