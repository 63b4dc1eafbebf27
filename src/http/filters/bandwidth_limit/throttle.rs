//! A body that waits for tokens of a bucket that it shares with others.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use metrics::{Counter, Gauge, Histogram};
use tokio::time::{sleep, Instant, Sleep};

use super::{BandwidthStats, Config, Delays};
use crate::http::fields::Fields;
use crate::http::stages::Passes;
use crate::telemetry::stats::Held;

/// Whose body it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Request,
    Response,
}

/// The way of one body.
#[derive(Debug)]
pub(in crate::http) struct Throttle {
    config: Arc<Config>,
    side: Side,
    /// What became of the request's body.
    request: Rc<Cell<Delays>>,
    held: VecDeque<Bytes>,
    length: usize,
    /// Bytes that may pass now.
    allowed: usize,
    /// The bucket is not looked at before this has passed.
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when there is something of the body.
    since: Option<Instant>,
    waited: Duration,
    pending: Option<Held>,
    /// The body's end, with its trailers, comes after what is held.
    end: Option<Option<Fields>>,
}

/// Where a side counts.
struct Counts<'c> {
    incoming: [&'c Counter; 2],
    enforced: &'c Counter,
    gauges: [&'c Gauge; 2],
    pending: &'c Gauge,
    duration: &'c Histogram,
}

fn counts(stats: &BandwidthStats, side: Side) -> Counts<'_> {
    match side {
        Side::Request => Counts {
            incoming: [&stats.request_incoming_total_size, &stats.request_allowed_total_size],
            enforced: &stats.request_enforced,
            gauges: [&stats.request_incoming_size, &stats.request_allowed_size],
            pending: &stats.request_pending,
            duration: &stats.request_transfer_duration,
        },
        Side::Response => Counts {
            incoming: [&stats.response_incoming_total_size, &stats.response_allowed_total_size],
            enforced: &stats.response_enforced,
            gauges: [&stats.response_incoming_size, &stats.response_allowed_size],
            pending: &stats.response_pending,
            duration: &stats.response_transfer_duration,
        },
    }
}

impl Throttle {
    pub(super) fn new(config: &Arc<Config>, side: Side, request: &Rc<Cell<Delays>>) -> Self {
        Self {
            config: config.clone(),
            side,
            request: request.clone(),
            held: VecDeque::new(),
            length: 0,
            allowed: 0,
            timer: None,
            since: None,
            waited: Duration::ZERO,
            pending: None,
            end: None,
        }
    }

    /// Bytes that wait.
    pub(in crate::http) fn length(&self) -> usize {
        self.length
    }

    pub(in crate::http) fn hold(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        let counts = counts(&self.config.stats, self.side);
        if self.since.is_none() {
            self.since = Some(Instant::now());
            self.pending = Some(Held::new(counts.pending));
        }
        let [total, _] = counts.incoming;
        total.increment(piece.len() as u64);
        counts.gauges[0].set(piece.len() as f64);
        self.length += piece.len();
        self.held.push_back(piece);
    }

    pub(in crate::http) fn hold_end(&mut self, trailers: Option<Fields>) {
        self.end = Some(trailers);
    }

    /// What passes next; pending until there are tokens for it.
    pub(in crate::http) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Passes> {
        loop {
            if self.held.is_empty() {
                self.allowed = 0;
                let Some(trailers) = self.end.take() else { return Poll::Ready(Passes::Nothing) };
                return Poll::Ready(Passes::End(self.finish(trailers)));
            }
            if self.allowed > 0 {
                return Poll::Ready(self.next_piece());
            }
            if let Some(timer) = &mut self.timer {
                ready!(timer.as_mut().poll(context));
                self.timer = None;
            }
            self.look();
        }
    }

    /// Takes what tokens there are, and waits for more if they are too few.
    fn look(&mut self) {
        let counts = counts(&self.config.stats, self.side);
        let taken = self.config.bucket.take_some(self.length as u64, Instant::now().into_std());
        // No more than `length`.
        self.allowed = taken as usize;
        let [_, total] = counts.incoming;
        total.increment(taken);
        counts.gauges[1].set(taken as f64);
        if self.allowed < self.length {
            counts.enforced.increment(1);
            self.waited += self.config.interval;
            self.timer = Some(Box::pin(sleep(self.config.interval)));
        }
    }

    fn next_piece(&mut self) -> Passes {
        let Some(first) = self.held.front_mut() else { return Passes::Nothing };
        let count = self.allowed.min(first.len());
        let piece = first.split_to(count);
        if first.is_empty() {
            self.held.pop_front();
        }
        self.length -= count;
        self.allowed -= count;
        Passes::Piece(piece)
    }

    /// All of it has passed.
    fn finish(&mut self, trailers: Option<Fields>) -> Option<Fields> {
        self.pending = None;
        let Some(since) = self.since.take() else { return trailers };
        let own = Delays { all: since.elapsed(), waited: self.waited };
        counts(&self.config.stats, self.side).duration.record(own.all.as_secs_f64() * 1000.0);
        if self.side == Side::Request {
            self.request.set(own);
            return trailers;
        }
        let Some(prefix) = &self.config.told else { return trailers };
        let mut trailers = trailers.unwrap_or_default();
        let request = self.request.get();
        for (name, delay) in [
            ("bandwidth-request-delay-ms", request.all),
            ("bandwidth-request-filter-delay-ms", request.waited),
            ("bandwidth-response-delay-ms", own.all),
            ("bandwidth-response-filter-delay-ms", own.waited),
        ] {
            let millis = delay.as_millis();
            if millis > 0 {
                trailers.push(format!("{prefix}{name}").as_bytes(), millis.to_string().as_bytes());
            }
        }
        (!trailers.is_empty()).then_some(trailers)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use outrigger_control_api::pb::envoy::extensions::filters::http::bandwidth_limit::v3 as pb;
    use outrigger_control_api::pb::google::protobuf::UInt64Value;

    use super::*;
    use crate::config::problems::Problems;

    fn config(kib: u64) -> Arc<Config> {
        let config = pb::BandwidthLimit {
            stat_prefix: format!("throttle_{kib}"),
            enable_mode: pb::bandwidth_limit::EnableMode::Response.into(),
            limit_kbps: Some(UInt64Value { value: kib }),
            enable_response_trailers: true,
            ..Default::default()
        };
        Arc::new(Config::compile(&config, false, &mut Problems::default()).unwrap())
    }

    async fn passed(throttle: &mut Throttle) -> (usize, Option<Fields>) {
        let mut bytes = 0;
        loop {
            match poll_fn(|context| throttle.poll_next(context)).await {
                Passes::Piece(piece) => bytes += piece.len(),
                Passes::End(trailers) => return (bytes, trailers),
                Passes::Nothing => panic!("the end is missing"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_share_what_a_second_lets_through() {
        let config = config(4);
        let mut took = Vec::new();
        for length in [4096, 2048] {
            let mut throttle = Throttle::new(&config, Side::Response, &Rc::default());
            throttle.hold(Bytes::from(vec![0; length]));
            throttle.hold_end(None);
            let start = Instant::now();
            let (bytes, trailers) = passed(&mut throttle).await;
            assert_eq!((bytes, throttle.length()), (length, 0));
            let told = trailers.is_some_and(|trailers| trailers.len() == 2);
            took.push((start.elapsed(), told));
        }
        assert_eq!(took[0], (Duration::ZERO, false), "the bucket begins full");
        let (second, told) = took[1];
        let about = Duration::from_millis(450)..Duration::from_millis(650);
        assert!(about.contains(&second) && told, "{second:?} {told}");
    }
}
