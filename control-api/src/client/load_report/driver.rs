//! Joins the state machine of load reporting with a stream and the clock.

use std::sync::Arc;

use hyper::http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio::time::{sleep_until, Instant};

use super::{LoadEvent, LoadReporter, Loads};
use crate::client::addresses::Addresses;
use crate::client::exchange::{or_never, Exchange, Happening};
use crate::client::machine::Settings;
use crate::client::transport::{serve, Endpoint, Heard, Inbound, TransportError};
use crate::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};

const METHOD: &str = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats";

/// Reports loads to one control plane, for as long as the future is run. `seed` decides the waits between streams: it
/// should differ between processes.
pub async fn load_reports<L: Loads>(endpoint: Endpoint, settings: Settings, seed: u64, loads: L) {
    let addresses = Arc::new(Addresses::new(&endpoint, seed));
    let machine = LoadReporter::new(&settings, Instant::now().into_std(), seed);
    Driver { endpoint, addresses, machine, heard: Heard::new(), exchange: None, loads }.run().await;
}

struct Driver<L> {
    endpoint: Endpoint,
    addresses: Arc<Addresses>,
    machine: LoadReporter,
    heard: Heard,
    exchange: Option<Exchange<LoadStatsRequest, LoadStatsResponse>>,
    loads: L,
}

impl<L: Loads> Driver<L> {
    async fn run(mut self) {
        loop {
            let full = self.advance();
            let deadline = self.machine.deadline(!full);
            let exchange = self.exchange.as_mut();
            let room = exchange.as_ref().map(|exchange| exchange.requests.clone()).filter(|_| full);
            tokio::select! {
                happening = or_never(exchange.map(|exchange| exchange.next(true))) => self.happened(happening),
                _ = or_never(room.as_ref().map(mpsc::Sender::reserve)) => {}
                () = or_never(deadline.map(|at| sleep_until(at.into()))) => {
                    self.machine.alive(self.heard.at());
                    self.machine.tick(Instant::now().into_std());
                }
            }
        }
    }

    /// Acts on events and sends what is due. True if the stream has no room.
    fn advance(&mut self) -> bool {
        loop {
            while let Some(event) = self.machine.event() {
                self.loads.event(&event);
                self.act(event);
            }
            let Some(exchange) = &self.exchange else { return false };
            let Ok(room) = exchange.requests.try_reserve() else { return true };
            match self.machine.report(Instant::now().into_std(), &mut self.loads) {
                Some(request) => room.send(request),
                None => return false,
            }
        }
    }

    fn act(&mut self, event: LoadEvent) {
        let address = self.addresses.current();
        match event {
            LoadEvent::Connect => {
                let (endpoint, addresses) = (self.endpoint.clone(), self.addresses.clone());
                let (path, heard) = (PathAndQuery::from_static(METHOD), self.heard.clone());
                self.exchange = Some(Exchange::new(|requests, inbound| {
                    Box::pin(serve(endpoint, addresses, path, heard, requests, inbound))
                }));
            }
            LoadEvent::Abandon { reason } => {
                self.exchange = None;
                self.machine.closed(Instant::now().into_std(), reason, false);
            }
            LoadEvent::Connected => tracing::info!(%address, "load reporting connected"),
            LoadEvent::Disconnected { reason, retry_in, graceful } => {
                if graceful {
                    tracing::info!(%address, reason, ?retry_in, "no stream for load reports");
                } else {
                    tracing::warn!(%address, reason, ?retry_in, "no stream for load reports");
                }
            }
            LoadEvent::Asked { clusters, interval } => {
                let clusters = clusters.map_or("all".to_owned(), |count| count.to_string());
                tracing::info!(%address, clusters, ?interval, "loads are asked for");
            }
            LoadEvent::Retried | LoadEvent::Sent { .. } => {}
        }
    }

    fn happened(&mut self, happening: Happening<LoadStatsResponse>) {
        match happening {
            Happening::Inbound(inbound) => self.inbound(inbound),
            Happening::Ended(error) => {
                // What came before the end counts.
                if let Some(mut exchange) = self.exchange.take() {
                    while let Ok(inbound) = exchange.inbound.try_recv() {
                        self.inbound(inbound);
                    }
                }
                let graceful = matches!(error, TransportError::Ended { .. });
                self.machine.closed(Instant::now().into_std(), error.to_string(), graceful);
            }
        }
    }

    fn inbound(&mut self, inbound: Inbound<LoadStatsResponse>) {
        let now = Instant::now().into_std();
        match inbound {
            Inbound::Opened => self.machine.opened(now),
            Inbound::Response(response) => self.machine.response(now, &response, &mut self.loads),
            // Only of resources.
            Inbound::Unreadable { .. } => {}
        }
    }
}
