//! Health checks of this proxy's own service (`envoy.filters.http.health_check`): answered here, or passed on and their
//! answers kept for a while.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outrigger_control_api::pb::envoy::extensions::filters::http::health_check::v3 as pb;

use super::chain::{At, Step};
use super::Encoder;
use crate::config::compile::{bool_or, duration};
use crate::config::hosts::Health;
use crate::config::matcher::HeaderMatcher;
use crate::config::problems::Problems;
use crate::config::Known;
use crate::http::exchange::{Exchange, Reply};
use crate::http::fields::Fields;
use crate::http::head::ResponseHead;
use crate::telemetry::metrics::Scope;
use crate::telemetry::stream_info::ResponseFlags;

crate::stats! {
    /// `http.<stat_prefix>.health_check.`.
    pub struct HealthCheckStats {
        counters {
            cached_response, degraded, failed, failed_cluster_empty, failed_cluster_not_found,
            failed_cluster_unhealthy, ok, request_total,
        }
        gauges {}
        histograms {}
    }
}

/// The filter.
#[derive(Debug)]
pub struct Config {
    stats: HealthCheckStats,
    pass_through: bool,
    headers: Box<[HeaderMatcher]>,
    cache: Option<Cache>,
    /// Clusters and how many percent of their hosts must be healthy.
    clusters: Box<[(Box<str>, f64)]>,
}

/// The last answer. It is forgotten at regular moments.
#[derive(Debug)]
struct Cache {
    base: Instant,
    time: Duration,
    /// In which period it came, its status, and whether it was degraded.
    last: Mutex<Option<(u128, u16, bool)>>,
}

impl Cache {
    fn period(&self, now: Instant) -> u128 {
        now.saturating_duration_since(self.base).as_nanos() / self.time.as_nanos().max(1)
    }

    fn get(&self, now: Instant) -> Option<(u16, bool)> {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|(period, ..)| *period == self.period(now))
            .map(|(_, status, degraded)| (status, degraded))
    }

    fn put(&self, now: Instant, status: u16, degraded: bool) {
        let last = (self.period(now), status, degraded);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }
}

impl Config {
    /// Compiles `config`, which counts in `stats`, the connection manager's. `None` when a problem was reported.
    pub fn compile(config: &pb::HealthCheck, stats: &Scope, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let pass_through = bool_or(config.pass_through_mode, false);
        let time = duration(&config.cache_time, "cache_time", problems).filter(|time| !time.is_zero());
        if time.is_some() && !pass_through {
            problems.report_at("cache_time", "needs pass_through_mode");
        }
        let headers = HeaderMatcher::compile_all(&config.headers, "headers", problems);
        let clusters = config.cluster_min_healthy_percentages.iter();
        let mut clusters: Vec<_> =
            clusters.map(|(name, share)| (name.as_str().into(), share.value)).collect();
        clusters.sort_by(|(one, _): &(Box<str>, f64), (other, _)| one.cmp(other));
        if problems.count() > before {
            return None;
        }
        Some(Self {
            stats: HealthCheckStats::new(&stats.sub("health_check")),
            pass_through,
            headers: headers?,
            cache: time.map(|time| Cache { base: Instant::now(), time, last: Mutex::default() }),
            clusters: if pass_through { Box::default() } else { clusters.into() },
        })
    }

    pub(super) fn on_request(self: &Arc<Self>, ex: &mut Exchange<'_>, at: &At<'_>) -> Step {
        let failing = ex.worker.is_failing_health();
        let is_check = ex
            .request
            .as_ref()
            .is_some_and(|request| self.headers.iter().all(|matcher| matcher.matches(request)));
        if !is_check {
            if failing {
                at.encode(ex, Encoder::HealthFailing);
            }
            return Step::Continue;
        }
        ex.info.health_check = true;
        at.encode(ex, Encoder::HealthCheck(self.clone()));
        let cached = self.cache.as_ref().and_then(|cache| cache.get(ex.now));
        if self.pass_through && !failing && cached.is_none() {
            return Step::Continue;
        }
        self.stats.request_total.increment(1);
        let (status, degraded, details) = if failing {
            (503, false, "health_check_failed")
        } else if let Some((status, degraded)) = cached {
            self.stats.cached_response.increment(1);
            (status, degraded, "health_check_cached")
        } else {
            match self.unhealthy_cluster(ex) {
                Some(details) => (503, false, details),
                None if self.clusters.is_empty() => (200, false, "health_check_ok"),
                None => (200, false, "health_check_ok_cluster_healthy"),
            }
        };
        if degraded {
            self.stats.degraded.increment(1);
        }
        if status / 100 == 2 {
            self.stats.ok.increment(1);
        } else {
            self.stats.failed.increment(1);
            ex.info.flags.insert(ResponseFlags::LH);
        }
        let mut reply = Reply::new(status, details);
        if degraded {
            let mut fields = Fields::default();
            fields.push_known(Known::XEnvoyDegraded, b"");
            reply = reply.with_fields(fields);
        }
        Step::Reply(reply)
    }

    /// Why the service counts as failed for the sake of a cluster.
    fn unhealthy_cluster(&self, ex: &Exchange<'_>) -> Option<&'static str> {
        self.clusters.iter().find_map(|(name, least)| {
            let slot = ex.worker.clusters.find(name);
            let Some(cluster) = slot.and_then(|slot| ex.worker.upstreams.cluster(&slot)) else {
                self.stats.failed_cluster_not_found.increment(1);
                return Some("health_check_failed_no_cluster_found");
            };
            let hosts = cluster.cluster.hosts.load();
            let total = hosts.all.len();
            let healthy = hosts.all.iter().filter(|host| host.health() == Health::Healthy).count();
            if total == 0 {
                if *least == 0.0 {
                    return None;
                }
                self.stats.failed_cluster_empty.increment(1);
                return Some("health_check_failed_cluster_empty");
            }
            // Numbers of hosts are far below 2^52.
            if (100.0 * healthy as f64) < total as f64 * least {
                self.stats.failed_cluster_unhealthy.increment(1);
                return Some("health_check_failed_cluster_unhealthy");
            }
            None
        })
    }

    pub(super) fn on_response(&self, ex: &Exchange<'_>, head: &mut ResponseHead) {
        if let Some(cache) = self.cache.as_ref() {
            cache.put(ex.now, head.status, head.fields.has(Known::XEnvoyDegraded));
        }
        head.fields.push(b"x-envoy-upstream-healthchecked-cluster", &ex.manager.service.0);
    }
}
