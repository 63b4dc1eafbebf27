//! The process as a whole: its life cycle and the `server.` statistics.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};

use metrics::{Gauge, Histogram};

use super::metrics::{Scope, Unit};
use crate::tls::expiry::days_until_first;

/// This build's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `envoy.admin.v3.ServerInfo.State`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum ServerState {
    Live = 0,
    Draining = 1,
    PreInitializing = 2,
    Initializing = 3,
}

impl ServerState {
    /// As `/ready` and `/server_info` spell it.
    pub fn name(self) -> &'static str {
        match self {
            ServerState::Live => "LIVE",
            ServerState::Draining => "DRAINING",
            ServerState::PreInitializing => "PRE_INITIALIZING",
            ServerState::Initializing => "INITIALIZING",
        }
    }

    fn of(number: u8) -> Self {
        match number {
            0 => ServerState::Live,
            1 => ServerState::Draining,
            2 => ServerState::PreInitializing,
            _ => ServerState::Initializing,
        }
    }
}

crate::stats! {
    /// `server.` statistics that do not change by themselves.
    pub struct ServerStats {
        counters {
            static_unknown_fields, dynamic_unknown_fields, wip_protos, envoy_bug_failures,
            debug_assertion_failures, watchdog_miss, watchdog_mega_miss,
        }
        gauges {
            concurrency, hot_restart_epoch, hot_restart_generation, live, state, version, uptime,
            parent_connections, total_connections, memory_allocated, memory_heap_size,
            memory_physical_size, days_until_first_cert_expiring, stats_recent_lookups,
        }
        histograms {}
    }
}

crate::stats! {
    /// `cluster_manager.` statistics.
    pub struct ClusterManagerStats {
        counters {
            cluster_added, cluster_modified, cluster_removed, cluster_updated, cluster_updated_via_merge,
            update_merge_cancelled, update_out_of_merge_window,
        }
        gauges { active_clusters, warming_clusters }
        histograms {}
    }
}

crate::stats! {
    /// `listener_manager.` statistics.
    pub struct ListenerManagerStats {
        counters {
            listener_added, listener_create_failure, listener_create_success, listener_in_place_updated,
            listener_modified, listener_removed, listener_stopped,
        }
        gauges {
            total_filter_chains_draining, total_listeners_active, total_listeners_draining,
            total_listeners_warming, workers_started,
        }
        histograms {}
    }
}

/// The clusters of the bootstrap, as `cluster_manager.` shows them for as long as this lives.
#[derive(Debug)]
pub struct Managers {
    clusters: ClusterManagerStats,
}

impl Managers {
    /// So many clusters were read.
    pub fn new(clusters: usize) -> Self {
        let managers = Self { clusters: ClusterManagerStats::new(&Scope::cluster_manager()) };
        managers.clusters.cluster_added.increment(clusters as u64);
        managers.clusters.active_clusters.set(clusters as f64);
        managers
    }
}

/// The server's state, shared by everything that asks for it.
#[derive(Debug)]
pub struct Server {
    started: Instant,
    state: AtomicU8,
    health_failed: AtomicBool,
    /// Open downstream connections, all workers.
    connections: AtomicU64,
    stats: ServerStats,
    initialization_time: Histogram,
}

impl Server {
    /// A server that is not initialised yet, with this many workers.
    pub fn new(concurrency: usize) -> Self {
        Self::within(&Scope::server(), concurrency)
    }

    fn within(scope: &Scope, concurrency: usize) -> Self {
        let stats = ServerStats::new(scope);
        stats.concurrency.set(concurrency as f64);
        stats.hot_restart_epoch.set(0.0);
        stats.hot_restart_generation.set(1.0);
        stats.version.set(version_number(VERSION));
        stats.parent_connections.set(0.0);
        Self {
            started: Instant::now(),
            state: AtomicU8::new(ServerState::PreInitializing as u8),
            health_failed: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            stats,
            initialization_time: scope.histogram("initialization_time_ms", Unit::Milliseconds),
        }
    }

    /// Where the server stands. A server told to fail health checks is draining.
    pub fn state(&self) -> ServerState {
        match ServerState::of(self.state.load(Ordering::Acquire)) {
            ServerState::Live if self.is_failing_health() => ServerState::Draining,
            state => state,
        }
    }

    /// Moves to `state`. The first time it is live, the time that took is recorded.
    pub fn set_state(&self, state: ServerState) {
        let before = ServerState::of(self.state.swap(state as u8, Ordering::AcqRel));
        let starting = matches!(before, ServerState::PreInitializing | ServerState::Initializing);
        if state == ServerState::Live && starting {
            self.initialization_time.record(self.started.elapsed().as_millis() as f64);
        }
    }

    /// Whether `/healthcheck/fail` is in effect.
    pub fn is_failing_health(&self) -> bool {
        self.health_failed.load(Ordering::Acquire)
    }

    /// `/healthcheck/fail` (true) and `/healthcheck/ok`.
    pub fn fail_health(&self, fail: bool) {
        self.health_failed.store(fail, Ordering::Release);
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Counts open downstream connections: `server.total_connections`.
    pub fn connections(&self) -> &AtomicU64 {
        &self.connections
    }

    /// The counters and gauges themselves.
    pub fn stats(&self) -> &ServerStats {
        &self.stats
    }

    /// Brings the gauges up to date. Called before they are read; nothing updates them otherwise.
    pub fn refresh(&self) {
        let memory = Memory::read();
        let stats = &self.stats;
        let set = |gauge: &Gauge, value: u64| gauge.set(value as f64);
        set(&stats.uptime, self.uptime().as_secs());
        set(&stats.state, self.state() as u64);
        set(&stats.live, u64::from(self.state() == ServerState::Live));
        set(&stats.total_connections, self.connections.load(Ordering::Relaxed));
        set(&stats.memory_allocated, memory.allocated);
        set(&stats.memory_heap_size, memory.heap);
        set(&stats.memory_physical_size, memory.physical);
        let days = days_until_first(SystemTime::now());
        set(&stats.days_until_first_cert_expiring, days.unwrap_or(u32::MAX.into()));
    }
}

/// What the kernel knows of the process's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Anonymous memory in use: the heap and stacks. Envoy's allocator counts more exactly.
    pub allocated: u64,
    /// Address space reserved for data.
    pub heap: u64,
    /// Resident memory, mapped files included.
    pub physical: u64,
}

impl Memory {
    /// Reads `/proc/self/status`; zeros where there is none.
    pub fn read() -> Self {
        std::fs::read_to_string("/proc/self/status").map(|status| Self::parse(&status)).unwrap_or_default()
    }

    fn parse(status: &str) -> Self {
        let kilobytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_end_matches("kB").trim().parse::<u64>().ok()
        };
        let bytes = |name| kilobytes(name).unwrap_or(0).saturating_mul(1024);
        Self { allocated: bytes("RssAnon:"), heap: bytes("VmData:"), physical: bytes("VmRSS:") }
    }
}

/// `1.2.3` as 10203: a number that grows with the version.
fn version_number(version: &str) -> f64 {
    version
        .split('.')
        .map(|part| part.parse::<f64>().unwrap_or(0.0))
        .fold(0.0, |sum, part| sum * 100.0 + part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::snapshot;

    #[test]
    fn a_server_is_born_lives_and_drains() {
        let server = Server::within(&Scope::raw("server-test"), 3);
        assert_eq!(server.state(), ServerState::PreInitializing);
        server.fail_health(true);
        assert_eq!(server.state(), ServerState::PreInitializing);
        server.fail_health(false);
        server.set_state(ServerState::Initializing);
        server.set_state(ServerState::Live);
        server.fail_health(true);
        assert_eq!(server.state().name(), "DRAINING");
        server.fail_health(false);
        server.refresh();
        let stats = snapshot();
        assert_eq!(stats.number("server-test.concurrency"), Some(3));
        assert_eq!(stats.number("server-test.days_until_first_cert_expiring"), Some(4_294_967_295));
        assert!(stats.number("server-test.memory_physical_size").unwrap() > 100_000);
        assert_eq!(stats.histogram("server-test.initialization_time_ms").unwrap().count, 1);
    }

    #[test]
    fn memory_is_read_from_the_kernels_text() {
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t     512 kB\nVmData:\t1024 kB\n";
        let memory = Memory { allocated: 512 << 10, heap: 1 << 20, physical: 2 << 20 };
        assert_eq!(Memory::parse(status), memory);
        assert_eq!(Memory::parse("VmRSS: lots"), Memory::default());
        assert_eq!(version_number("1.2.3"), 10203.0);
    }
}
