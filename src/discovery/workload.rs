//! The stream of the SPIFFE Workload API (`FetchX509SVID`), from which an agent sends identities as they change.
//!
//! In: an agent's endpoint. Out: its secrets, in their slots. A stream that ends is opened anew after a pause that grows;
//! until then, and where the agent sends what cannot be used, the last good ones serve on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::config::cluster::SocketTuning;
use crate::http::server_stream::{self, Call, End, Io};
use crate::runtime::{socket, Stream};
use crate::telemetry::metrics::Scope;
use crate::tls::workload::Workload;

crate::stats! {
    /// `spiffe_workload.`
    pub struct WorkloadStats {
        counters { update_attempt, update_success, update_rejected, update_failure }
        gauges { connected_state }
        histograms {}
    }
}

/// Of every request, so that a browser that was led astray cannot make one.
const SECURITY_HEADER: (&str, &str) = ("workload.spiffe.io", "true");
const METHOD: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
/// The first pause after a stream has ended, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
const CONNECT: Duration = Duration::from_secs(5);
/// Largest response.
const MAX_RESPONSE: usize = 4 << 20;

/// Follows the agent, from when something wants a secret, for as long as the process lives.
pub async fn follow(workload: Arc<Workload>) {
    let stats = WorkloadStats::new(&Scope::raw("spiffe_workload"));
    stats.connected_state.set(0.0);
    let mut pause = PAUSES.0;
    // The endpoint may be known to a pod whose proxy has no use for it.
    workload.wanted().await;
    loop {
        stats.update_attempt.increment(1);
        let mut came = false;
        let end = listen(&workload, &stats, &mut came).await;
        stats.connected_state.set(0.0);
        stats.update_failure.increment(1);
        let endpoint = &workload.endpoint;
        match end {
            Ok(()) => tracing::info!("the Workload API at {endpoint} has ended its stream"),
            Err(end) => tracing::warn!("the Workload API at {endpoint}: {end}"),
        }
        if came {
            pause = PAUSES.0;
        }
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = pause.saturating_mul(2).min(PAUSES.1);
    }
}

async fn listen(workload: &Workload, stats: &WorkloadStats, came: &mut bool) -> Result<(), End> {
    let tuning = SocketTuning::default();
    let connected = timeout(CONNECT, socket::connect(&workload.endpoint, &tuning)).await;
    let connected = connected.map_err(|_| End::Broken("the connection timed out".to_owned()))?;
    let io: Box<dyn Io> = match connected.map_err(|error| End::Broken(error.to_string()))? {
        Stream::Tcp(stream) => Box::new(stream),
        Stream::Unix(stream) => Box::new(stream),
        // Nobody shakes hands here.
        Stream::Tls(_) | Stream::Virtual(_) => return Err(End::Broken("TLS".to_owned())),
    };
    // The request has no fields.
    let call = Call {
        authority: "localhost",
        method: METHOD,
        metadata: &[SECURITY_HEADER],
        message: b"",
        most: MAX_RESPONSE,
    };
    server_stream::call(io, call, &mut |message| {
        *came = true;
        stats.connected_state.set(1.0);
        match workload.take(&message) {
            Ok(()) => stats.update_success.increment(1),
            Err(error) => {
                stats.update_rejected.increment(1);
                tracing::error!("identities from the Workload API are not used, the last ones stay: {error}");
            }
        }
        crate::tls::identity::wipe(message);
    })
    .await
}
