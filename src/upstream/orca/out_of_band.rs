//! Load reports that hosts are asked for beside requests: one stream of `xds.service.orca.v3.OpenRcaService` to each
//! (envoyproxy.io: client-side weighted round robin; gRPC proposal A51).
//!
//! Comes in: a cluster whose policy wants them. Goes out: what its hosts report, heeded as if a response had said so.
//! Runs on the control thread. A stream that ends is opened anew after a pause that grows; a host that does not know
//! the service is asked no more.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout, Instant};

use super::report::OrcaLoadReport;
use super::weights::{OutOfBand, WeightOptions};
use crate::config::cluster::Address;
use crate::config::{Cluster, Host};
use crate::http::server_stream::{self, Call, End, Io};
use crate::runtime::{socket, Stream};
use crate::telemetry::metrics::Scope;
use crate::tls::upstream::Purpose;
use crate::upstream::balancing::clock;

crate::stats! {
    /// `cluster.<name>.lb_orca_oob.`.
    pub struct OutOfBandStats {
        counters { reports_received, report_errors, stream_failures, stream_terminated }
        gauges { active_sessions }
        histograms {}
    }
}

const METHOD: &str = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";
/// Largest message that is taken in.
const MAX_MESSAGE: usize = 64 << 10;
/// The first pause after a stream has ended, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));
/// How often the cluster's hosts are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// `xds.service.orca.v3.OrcaLoadReportRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(message, optional, tag = "1")]
    report_interval: Option<prost_types::Duration>,
}

/// A host that is asked.
struct Asked {
    host: Arc<Host>,
    task: JoinHandle<()>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn options(cluster: &Cluster) -> Option<(&WeightOptions, &OutOfBand)> {
    let weights = cluster.orca.as_ref()?.weights.as_ref()?;
    Some((weights, weights.out_of_band.as_ref()?))
}

/// Whether the cluster's hosts are to be asked.
pub fn is_wanted(cluster: &Cluster) -> bool {
    options(cluster).is_some()
}

/// Asks the hosts of `cluster` until it is dropped; done at once where that is not wanted.
pub async fn follow(cluster: Arc<Cluster>) {
    if !is_wanted(&cluster) {
        return;
    }
    let stats = Arc::new(OutOfBandStats::new(&Scope::cluster(&cluster.stat_name).sub("lb_orca_oob")));
    let mut asked: HashMap<usize, Asked> = HashMap::new();
    let mut seen = None;
    loop {
        let set = cluster.hosts.load_full();
        if seen.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, &set)) {
            let key = |host: &Arc<Host>| Arc::as_ptr(&host.shared) as usize;
            let present: HashMap<usize, &Arc<Host>> = set.all.iter().map(|host| (key(host), host)).collect();
            asked.retain(|key, asked| {
                present.get(key).is_some_and(|host| Arc::ptr_eq(&host.shared, &asked.host.shared))
            });
            for (key, host) in present {
                asked.entry(key).or_insert_with(|| {
                    let task = ask(cluster.clone(), host.clone(), stats.clone());
                    Asked { host: host.clone(), task: tokio::spawn(task) }
                });
            }
            stats.active_sessions.set(asked.len() as f64);
            seen = Some(set);
        }
        sleep(LOOK).await;
    }
}

/// Asks one host until it is dropped.
async fn ask(cluster: Arc<Cluster>, host: Arc<Host>, stats: Arc<OutOfBandStats>) {
    let mut pause = PAUSES.0;
    loop {
        let begun = Instant::now();
        match listen(&cluster, &host, &stats).await {
            Ok(()) => {}
            Err(end) if end.is_unimplemented() => {
                stats.stream_terminated.increment(1);
                tracing::warn!(
                    cluster = &*cluster.name,
                    host = &*host.address_text,
                    "no load reports: {end}"
                );
                return;
            }
            Err(end) => {
                tracing::debug!(
                    cluster = &*cluster.name,
                    host = &*host.address_text,
                    "no load reports: {end}"
                );
            }
        }
        stats.stream_failures.increment(1);
        // One that was open for long begins anew.
        if begun.elapsed() > pause {
            pause = PAUSES.0;
        }
        sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
        pause = pause.saturating_mul(2).min(PAUSES.1);
    }
}

/// Opens a stream and heeds what comes on it. Ends with the stream.
async fn listen(cluster: &Cluster, host: &Arc<Host>, stats: &OutOfBandStats) -> Result<(), End> {
    let Some((weights, options)) = options(cluster) else { return Ok(()) };
    let broken = |error: std::io::Error| End::Broken(error.to_string());
    let connected = timeout(cluster.connect_timeout, connect(cluster, host, options)).await;
    let io = connected.map_err(|_| End::Broken("the connection timed out".to_owned()))?.map_err(broken)?;
    let seconds = i64::try_from(options.period.as_secs()).unwrap_or(i64::MAX);
    // Less than 10⁹.
    let nanos = i32::try_from(options.period.subsec_nanos()).unwrap_or_default();
    let request = Request { report_interval: Some(prost_types::Duration { seconds, nanos }) }.encode_to_vec();
    let authority = options.authority.as_deref().unwrap_or(&host.address_text);
    let call = Call { authority, method: METHOD, metadata: &[], message: &request, most: MAX_MESSAGE };
    server_stream::call(io, call, &mut |message| match OrcaLoadReport::decode(message) {
        Ok(report) => {
            stats.reports_received.increment(1);
            if !super::weigh(&report, weights, &host.shared, clock()) {
                stats.report_errors.increment(1);
            }
        }
        Err(_) => stats.report_errors.increment(1),
    })
    .await
}

async fn connect(cluster: &Cluster, host: &Arc<Host>, options: &OutOfBand) -> io::Result<Box<dyn Io>> {
    let address = match (&host.address, options.port) {
        (Address::Ip(address), Some(port)) => {
            let mut address = *address;
            address.set_port(port);
            Address::Ip(address)
        }
        (address, _) => address.clone(),
    };
    let io: Box<dyn Io> = match socket::connect(&address, &cluster.socket_to(host)).await? {
        Stream::Tcp(stream) => Box::new(stream),
        Stream::Unix(stream) => Box::new(stream),
        // Nobody has shaken hands yet.
        Stream::Tls(_) | Stream::Virtual(_) => return Err(io::ErrorKind::Unsupported.into()),
    };
    let own = options.socket_match.as_ref().or(host.template.socket_match.as_deref());
    let Some(tls) = cluster.tls.as_ref().and_then(|tls| tls.for_metadata(own)) else { return Ok(io) };
    let not_ready = || io::Error::other("TLS is not ready");
    let (config, name) = tls.client(host, Purpose::Http2).ok_or_else(not_ready)?;
    Ok(Box::new(tokio_rustls::TlsConnector::from(config).connect(name, io).await?))
}
