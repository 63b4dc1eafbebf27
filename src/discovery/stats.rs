//! Statistics of subscriptions, by Envoy's names (envoyproxy.io: configuration/overview/mgmt_server).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use xxhash_rust::xxh64::xxh64;

use crate::telemetry::metrics::Scope;

crate::stats! {
    /// `cluster_manager.cds.`, `listener_manager.lds.` and the like.
    pub struct SubscriptionStats {
        counters {
            update_attempt, update_success, update_failure, update_rejected, init_fetch_timeout,
        }
        gauges { update_time, version }
        histograms { update_duration: Milliseconds }
    }
}

crate::stats! {
    /// `extension_config_discovery.http_filter.<name>.`, beside its subscription's.
    pub struct PieceStats {
        counters { config_reload, config_fail, config_conflict }
        gauges {}
        histograms {}
    }
}

crate::stats! {
    /// `http.<prefix>.rds.<name>.`.
    pub struct RdsStats {
        counters {
            update_attempt, update_success, update_failure, update_rejected, config_reload,
            init_fetch_timeout,
        }
        gauges { update_time, version, config_reload_time_ms, content_age_ms }
        histograms { update_duration: Milliseconds }
    }
}

crate::stats! {
    /// `http.<prefix>.scoped_rds.<name>.`.
    pub struct ScopesStats {
        counters {
            update_attempt, update_success, update_failure, update_rejected, update_empty, config_reload,
            init_fetch_timeout,
        }
        gauges {
            update_time, version, config_reload_time_ms, all_scopes, active_scopes, on_demand_scopes,
        }
        histograms { update_duration: Milliseconds }
    }
}

crate::stats! {
    /// `http.<prefix>.vhds.<table>.`.
    pub struct HostsStats {
        counters { update_attempt, update_success, update_rejected, update_empty, config_reload }
        gauges { update_time, version }
        histograms {}
    }
}

crate::stats! {
    /// `control_plane.`.
    pub struct ControlPlaneStats {
        counters { rate_limit_enforced, streams_opened, responses_ignored, responses_refused }
        gauges { connected_state, pending_requests, silence_ms, last_good_in_use }
        histograms {}
    }
}

crate::stats! {
    /// `control_plane.<cds, eds, lds or rds>.`: since when nothing of the type was accepted, over all
    /// streams, and from a response's receipt to when requests go by it.
    pub struct TypeStats {
        counters {}
        gauges { content_age_ms }
        histograms { time_to_effect_us: Microseconds }
    }
}

crate::stats! {
    /// `load_reporter.`: what came from whom loads are reported to, what was sent, and streams that failed or were
    /// tried anew.
    pub struct LoadReporterStats {
        counters { requests, responses, errors, retries }
        gauges {}
        histograms {}
    }
}

impl SubscriptionStats {
    /// A response was taken whole.
    pub(super) fn succeeded(&self, version: &str, at: SystemTime, took: Duration) {
        self.update_success.increment(1);
        self.update_duration.record(took.as_secs_f64() * 1000.0);
        self.update_time.set(millis(at));
        self.version.set(version_number(version));
    }
}

impl HostsStats {
    /// Those of the virtual hosts of `table` in connection managers that count under `stat_prefix`.
    pub(super) fn of_hosts(stat_prefix: &str, table: &str) -> Self {
        Self::new(&Scope::http_part(stat_prefix, "vhds", "envoy_vhds_route_config", table))
    }

    /// A response was taken whole.
    pub(super) fn succeeded(&self, version: &str, at: SystemTime) {
        self.update_success.increment(1);
        self.update_time.set(millis(at));
        self.version.set(version_number(version));
    }
}

impl ScopesStats {
    /// Those of the scopes `name` in connection managers that count under `stat_prefix`.
    pub(super) fn of_scopes(stat_prefix: &str, name: &str) -> Self {
        Self::new(&Scope::http_part(stat_prefix, "scoped_rds", "envoy_scoped_rds_config", name))
    }

    /// A response was taken whole.
    pub(super) fn succeeded(&self, version: &str, at: SystemTime, took: Duration) {
        self.update_success.increment(1);
        self.update_duration.record(took.as_secs_f64() * 1000.0);
        self.update_time.set(millis(at));
        self.version.set(version_number(version));
    }

    /// There were other scopes than before.
    pub(super) fn reloaded(&self, at: SystemTime) {
        self.config_reload.increment(1);
        self.config_reload_time_ms.set(millis(at));
    }
}

impl RdsStats {
    /// Those of the table `name` in connection managers that count under `stat_prefix`.
    pub(super) fn of_route(stat_prefix: &str, name: &str) -> Self {
        Self::new(&Scope::http_route(stat_prefix, name))
    }

    /// A table was taken.
    pub(super) fn succeeded(&self, version: &str, at: SystemTime, took: Duration) {
        self.update_success.increment(1);
        self.update_duration.record(took.as_secs_f64() * 1000.0);
        self.update_time.set(millis(at));
        self.version.set(version_number(version));
    }

    /// It was another one than before.
    pub(super) fn reloaded(&self, at: SystemTime) {
        self.config_reload_time_ms.set(millis(at));
    }
}

/// A hash of the version, as Envoy's; of its 64 bits only as many as a gauge can hold exactly.
fn version_number(version: &str) -> f64 {
    (xxh64(version.as_bytes(), 0) & ((1 << 53) - 1)) as f64
}

fn millis(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_millis() as f64)
}
