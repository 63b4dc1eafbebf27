//! A limit of concurrent requests that follows from how long they take (`envoy.filters.http.adaptive_concurrency`).
//!
//! Comes in: requests, and when their responses are complete. Goes out: 503 for what is over the limit. The limit is
//! what [`gradient`] makes of the times.

mod gradient;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrigger_control_api::pb::envoy::extensions::filters::http::adaptive_concurrency::v3 as pb;
use outrigger_control_api::pb::envoy::r#type::v3::Percent;

use self::gradient::{Gradient, Options, Rtt, Shown};
use super::chain::{active, Step};
use crate::config::compile::{duration, u32_or};
use crate::config::problems::Problems;
use crate::config::runtime_value::RuntimeSwitch;
use crate::http::exchange::{Exchange, Reply};
use crate::telemetry::metrics::Scope;

crate::stats! {
    /// `http.<stat_prefix>.adaptive_concurrency.gradient_controller.`.
    pub struct GradientStats {
        counters { rq_blocked }
        gauges {
            burst_queue_size, concurrency_limit, gradient, min_rtt_calculation_active, min_rtt_msecs,
            sample_rtt_msecs,
        }
        histograms {}
    }
}

/// The filter.
#[derive(Debug)]
pub struct Config {
    stats: GradientStats,
    enabled: RuntimeSwitch,
    status: u16,
    gradient: Mutex<Gradient>,
}

impl Config {
    /// Compiles `config`. `None` when a problem was reported.
    pub fn compile(config: &pb::AdaptiveConcurrency, stats: &Scope, problems: &mut Problems) -> Option<Self> {
        use pb::adaptive_concurrency::ConcurrencyControllerConfig as Controller;
        let before = problems.count();
        // Demanded by a field rule.
        let Controller::GradientControllerConfig(controller) =
            config.concurrency_controller_config.as_ref()?;
        let options = problems.at("gradient_controller_config", |problems| options(controller, problems))?;
        let status = config.concurrency_limit_exceeded_status.as_ref().map_or(0, |status| status.code);
        let compiled = Self {
            stats: GradientStats::new(&stats.sub("adaptive_concurrency.gradient_controller")),
            enabled: RuntimeSwitch::of(config.enabled.as_ref()),
            // As in Envoy, nobody is turned away with a success.
            status: u16::try_from(status).ok().filter(|status| (400..600).contains(status)).unwrap_or(503),
            gradient: Mutex::new(Gradient::new(options, fastrand::u64(..), Instant::now())),
        };
        compiled.show(&compiled.gradient().shown());
        (problems.count() == before).then_some(compiled)
    }

    fn gradient(&self) -> MutexGuard<'_, Gradient> {
        self.gradient.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn on_request(self: &Arc<Self>, ex: &mut Exchange<'_>) -> Step {
        if !self.enabled.now(&ex.worker.runtime) || ex.info.health_check {
            return Step::Continue;
        }
        let now = ex.now;
        let (admitted, changed) = {
            let mut gradient = self.gradient();
            let changed = gradient.advance(now);
            (gradient.admit(), changed.then(|| gradient.shown()))
        };
        if let Some(shown) = changed {
            self.show(&shown);
        }
        if admitted {
            active(ex).turns.push(Turn { config: self.clone(), start: now, over: false });
            return Step::Continue;
        }
        self.stats.rq_blocked.increment(1);
        Step::Reply(Reply::new(self.status, "reached_concurrency_limit").body("reached concurrency limit"))
    }

    fn show(&self, shown: &Shown) {
        let stats = &self.stats;
        stats.concurrency_limit.set(f64::from(shown.limit));
        stats.burst_queue_size.set(shown.headroom.floor());
        // Thousandths: gauges are whole numbers.
        stats.gradient.set((shown.gradient * 1000.0).floor());
        stats.min_rtt_calculation_active.set(f64::from(u8::from(shown.measuring)));
        stats.min_rtt_msecs.set((shown.min_rtt / 1000) as f64);
        stats.sample_rtt_msecs.set((shown.sample_rtt / 1000) as f64);
    }
}

/// A request that counts against the limit until this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    config: Arc<Config>,
    start: Instant,
    over: bool,
}

impl Turn {
    /// The response is complete: how long it took is a sample.
    pub(super) fn complete(mut self, now: Instant) {
        self.over = true;
        let shown = {
            let mut gradient = self.config.gradient();
            let changed = gradient.advance(now) | gradient.complete(self.start, now);
            changed.then(|| gradient.shown())
        };
        if let Some(shown) = shown {
            self.config.show(&shown);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.over {
            self.config.gradient().cancel();
        }
    }
}

fn options(config: &pb::GradientControllerConfig, problems: &mut Problems) -> Option<Options> {
    let share =
        |percent: Option<Percent>, default: f64| percent.map_or(default, |percent| percent.value) / 100.0;
    // Both are demanded by field rules.
    let (limits, rtt) = (config.concurrency_limit_params?, config.min_rtt_calc_params?);
    let update = duration(
        &limits.concurrency_update_interval,
        "concurrency_limit_params.concurrency_update_interval",
        problems,
    );
    let (min_rtt, min_concurrency) = problems.at("min_rtt_calc_params", |problems| {
        let fixed = duration(&rtt.fixed_value, "fixed_value", problems);
        let interval = duration(&rtt.interval, "interval", problems);
        let min_rtt = match (fixed, interval) {
            (Some(fixed), _) => Some(Rtt::Fixed(fixed)),
            (None, Some(interval)) => Some(Rtt::Measured {
                interval,
                jitter: share(rtt.jitter, 15.0),
                requests: u32_or(rtt.request_count, 50),
            }),
            (None, None) => {
                problems.report("needs interval or fixed_value");
                None
            }
        };
        (min_rtt, u32_or(rtt.min_concurrency, 3))
    });
    Some(Options {
        percentile: share(config.sample_aggregate_percentile, 50.0).clamp(0.0, 1.0),
        most: u32_or(limits.max_concurrency_limit, 1000),
        least: min_concurrency,
        // A field rule keeps it above 0.
        update: update?.max(Duration::from_millis(1)),
        buffer: share(rtt.buffer, 25.0),
        min_rtt: min_rtt?,
    })
}
