//! The streams to control planes: opened when the first resource is wanted from them.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::client::{
    self, add_client_features, client, file_client, rest_client, Change, Endpoint, Event, Events, File,
    Incremental, Keepalive, RateLimit, Rest, Settings, StateOfTheWorld, Status, Subscriptions, Tls, Wildcard,
};
use outrigger_control_api::pb::envoy::config::core::v3::Node;
use tokio::sync::mpsc;

use super::effects::{CDS, LDS, SRDS, VHDS};
use super::sources::{Origin, Sources, StreamId};
use super::tls;
use super::DiscoveryError;
use crate::config::cluster::Address;
use crate::config::control_secret::SentSecret;
use crate::config::discovery::{ApiKind, ApiSource, ControlTls, GrpcTarget, TargetAddress};
use crate::runtime::socket::kernel_path;

/// Events held for the control thread while it applies one.
const QUEUE: usize = 4;

/// All open streams.
pub(super) struct Streams {
    node: Node,
    ads: Option<Arc<ApiSource>>,
    open: HashMap<StreamId, Subscriptions>,
    sender: mpsc::Sender<(StreamId, Event)>,
}

impl Streams {
    /// No stream yet; what comes from them is received at the other end.
    pub(super) fn new(
        mut node: Node,
        ads: Option<Arc<ApiSource>>,
    ) -> (Self, mpsc::Receiver<(StreamId, Event)>) {
        add_client_features(&mut node);
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self { node, ads, open: HashMap::new(), sender }, receiver)
    }

    /// The stream's subscriptions; opened now where this is its first use.
    ///
    /// # Errors
    /// There is no such control plane, or what the bootstrap says of it cannot be used.
    pub(super) fn subscriptions(
        &mut self,
        stream: StreamId,
        sources: &Sources,
    ) -> Result<&Subscriptions, DiscoveryError> {
        if !self.open.contains_key(&stream) {
            let origin = sources.origin(stream).ok_or(DiscoveryError::NoAds)?;
            let subscriptions = self.start(stream, origin)?;
            self.open.insert(stream, subscriptions);
        }
        self.open.get(&stream).ok_or(DiscoveryError::NoAds)
    }

    /// A stream that is open.
    pub(super) fn get(&self, stream: StreamId) -> Option<&Subscriptions> {
        self.open.get(&stream)
    }

    /// Asks every open stream for its state.
    pub(super) fn statuses(&self) -> impl Future<Output = Vec<(StreamId, Status)>> + Send + 'static {
        let mut open: Vec<_> = self.open.iter().map(|(stream, open)| (*stream, open.clone())).collect();
        open.sort_by_key(|(stream, _)| *stream);
        async move {
            let mut statuses = Vec::with_capacity(open.len());
            for (stream, subscriptions) in open {
                statuses.extend(subscriptions.status().await.map(|status| (stream, status)));
            }
            statuses
        }
    }

    fn start(&self, stream: StreamId, origin: &Origin) -> Result<Subscriptions, DiscoveryError> {
        let seed = fastrand::u64(..);
        let (source, single_type) = match origin {
            Origin::Ads => (self.ads.as_ref().ok_or(DiscoveryError::NoAds)?, None),
            Origin::Own { source, type_url } => (source, Some((*type_url).to_owned())),
            Origin::Path { path, watched_directory, type_url } => {
                let file = File {
                    path: path.clone(),
                    watched_directory: watched_directory.clone(),
                    type_url: (*type_url).to_owned(),
                };
                return Ok(self.join(
                    stream,
                    Vec::new(),
                    file_client(file, Settings::new(self.node.clone())),
                ));
            }
        };
        let (mut endpoint, mut settings) = way(source, &self.node)?;
        settings.single_type.clone_from(&single_type);
        endpoint.single_type = single_type;
        let tls = source.targets.first().and_then(|target| target.tls.as_ref());
        let secrets = tls.into_iter().flat_map(ControlTls::sent).cloned().collect();
        Ok(match source.kind {
            ApiKind::Rest { refresh_delay, request_timeout } => {
                let rest = Rest { endpoint, refresh_delay, request_timeout };
                self.join(stream, secrets, rest_client(rest, settings, seed))
            }
            ApiKind::Grpc if source.delta => {
                self.join(stream, secrets, client::<Incremental>(endpoint, settings, seed))
            }
            ApiKind::Grpc => self.join(stream, secrets, client::<StateOfTheWorld>(endpoint, settings, seed)),
        })
    }

    /// Runs a client as soon as it can prove itself; its events come together with those of all others.
    fn join(
        &self,
        stream: StreamId,
        secrets: Vec<SentSecret>,
        (subscriptions, mut events, run): (Subscriptions, Events, impl Future<Output = ()> + Send + 'static),
    ) -> Subscriptions {
        tokio::spawn(async move {
            for secret in &secrets {
                secret.came().await;
            }
            run.await;
        });
        let sender = self.sender.clone();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                if sender.send((stream, event)).await.is_err() {
                    return;
                }
            }
        });
        subscriptions
    }
}

/// How to reach a control plane, and how to behave towards it.
///
/// # Errors
/// What the bootstrap says of it cannot be used.
pub(super) fn way(source: &ApiSource, node: &Node) -> Result<(Endpoint, Settings), DiscoveryError> {
    // The compiler gives at least one.
    let target = source.targets.first().ok_or(DiscoveryError::NoAds)?;
    let mut settings = Settings::new(node.clone());
    settings.set_node_on_first_message_only = source.set_node_on_first_message_only;
    settings.rate_limit = source.rate_limit.map(|limit| RateLimit {
        max_tokens: limit.max_tokens,
        fill_rate: 1.0 / limit.fill_interval.as_secs_f64().max(f64::MIN_POSITIVE),
    });
    if let Some((base, cap)) = target.back_off {
        settings.backoff_base = base;
        settings.backoff_cap = cap;
    }
    let mut endpoint = endpoint(target)?;
    if let Some(Keepalive { interval, timeout }) = endpoint.keepalive {
        // Two answers missing are no accident.
        let doubt = (interval + timeout) * 2;
        settings.doubt_after = Some(doubt);
        settings.answer_after = settings.answer_after.min(doubt);
        endpoint.halt_after = endpoint.halt_after.map(|halt| halt.min(doubt));
    }
    Ok((endpoint, settings))
}

fn endpoint(target: &GrpcTarget) -> Result<Endpoint, DiscoveryError> {
    let mut addresses = target.addresses.iter().map(|address| match address {
        TargetAddress::Fixed(Address::Ip(address)) => {
            client::Address::Tcp(address.ip().to_string(), address.port())
        }
        TargetAddress::Fixed(Address::Pipe(path)) => client::Address::Unix(kernel_path(path)),
        // Refused where clusters of control planes are compiled.
        TargetAddress::Fixed(Address::Internal(internal)) => {
            client::Address::Unix(internal.listener.as_ref().into())
        }
        TargetAddress::Name { host, port, .. } => client::Address::Tcp(host.to_string(), *port),
    });
    let mut endpoint = Endpoint::new(addresses.next().ok_or(DiscoveryError::NoAds)?);
    endpoint.others = addresses.collect();
    if !target.authority.is_empty() {
        endpoint.authority = target.authority.to_string();
    }
    endpoint.connect_timeout = target.connect_timeout;
    endpoint.metadata =
        target.initial_metadata.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    if let Some((interval, timeout)) = target.http2_keepalive {
        endpoint.keepalive = Some(Keepalive { interval, timeout });
    }
    if let Some(limit) = target.max_receive_message_length {
        endpoint.max_message_size = limit as usize;
    }
    if let Some(config) = &target.tls {
        let name = config.sni.as_deref().unwrap_or("control-plane");
        let failed = |reason: String| DiscoveryError::Tls { target: target.name.clone(), reason };
        let client = tls::client_config(&target.name, config).map_err(failed)?;
        endpoint.tls = Some(Tls::new(client, name).map_err(|error| failed(error.to_string()))?);
    }
    Ok(endpoint)
}

/// Everything of a type.
pub(super) fn subscribe_all(subscriptions: &Subscriptions, type_url: &str, timeout: Option<Duration>) {
    debug_assert!([CDS, LDS, SRDS, VHDS].contains(&type_url));
    subscriptions.change(Change::SubscribeAll {
        type_url: type_url.to_owned(),
        wildcard: Wildcard::Legacy,
        fetch_timeout: Some(timeout.unwrap_or(Duration::ZERO)),
    });
}

/// Resources by their names.
pub(super) fn subscribe(
    subscriptions: &Subscriptions,
    type_url: &str,
    names: &[Arc<str>],
    timeout: Option<Duration>,
) {
    subscriptions.change(Change::Subscribe {
        type_url: type_url.to_owned(),
        names: names.iter().map(ToString::to_string).collect(),
        fetch_timeout: Some(timeout.unwrap_or(Duration::ZERO)),
    });
}
