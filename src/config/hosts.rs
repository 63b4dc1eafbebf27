//! Hosts of a cluster.
//!
//! A [`Host`] is shared by all workers and by successive host sets; its counters are atomics, and stay even when its
//! weight, health or place changes. [`Hosts`] holds the set of the moment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{fence, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::Notify;

use super::balancing::{Hashing, HostMetadata, MetaValue};
use crate::telemetry::stream_info::DynamicMetadata;
use crate::upstream::balancing::subset::SubsetIndex;
use crate::upstream::balancing::suspect::Suspicion;
use crate::upstream::balancing::table::HashTable;
use crate::upstream::health::{CheckPolicy, HostCheck};
use crate::upstream::host_set::{HostState, SplitOptions};
use crate::upstream::orca::weights::Reckoning;
use crate::upstream::orca::HostLoad;
use crate::upstream::outlier::Monitor;

/// Where a host listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// IP and port.
    Ip(SocketAddr),
    /// Unix domain socket.
    Pipe(PathBuf),
    /// A listener of this process.
    Internal(Arc<InternalAddress>),
}

/// `envoy.config.core.v3.EnvoyInternalAddress`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InternalAddress {
    /// The listener's name.
    pub listener: Arc<str>,
    /// Tells the hosts of a cluster apart that are behind one listener.
    pub endpoint_id: Box<str>,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Ip(address) => address.fmt(f),
            Address::Pipe(path) => path.display().fmt(f),
            Address::Internal(internal) => {
                write!(f, "envoy://{}/{}", internal.listener, internal.endpoint_id)
            }
        }
    }
}

/// What config says of a host besides its address.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostTemplate {
    /// The name it was given or resolved from.
    pub hostname: Arc<str>,
    /// `load_balancing_weight`, at least 1.
    pub weight: u32,
    /// Priority level; 0 is tried first.
    pub priority: u32,
    /// Region, zone, sub-zone.
    pub locality: Arc<Locality>,
    /// Weight of its locality; 0 = none was given.
    pub locality_weight: u32,
    /// Health told by the control plane.
    pub status: HealthStatus,
    /// Metadata `envoy.transport_socket_match`.
    pub socket_match: Option<Arc<serde_json::Map<String, serde_json::Value>>>,
    /// How it is checked, where that differs from the other hosts (`health_check_config`).
    pub check: Option<Arc<HostCheck>>,
    /// What subsets and hashes read.
    pub metadata: Option<Arc<HostMetadata>>,
    /// What Istio says of its workload, as it is written in its metadata.
    pub workload: Option<Arc<str>>,
    /// All its metadata, which formats and expressions read, and which may be passed on to a listener of this process.
    pub noted: Option<Arc<DynamicMetadata>>,
}

/// `envoy.config.core.v3.Locality`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Locality {
    pub region: Box<str>,
    pub zone: Box<str>,
    pub sub_zone: Box<str>,
}

/// How much traffic a host may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// HEALTHY or UNKNOWN.
    #[default]
    Healthy,
    /// DEGRADED.
    Degraded,
    /// UNHEALTHY, DRAINING or TIMEOUT.
    Unhealthy,
}

/// `health_status` of an endpoint (`envoy.config.core.v3.HealthStatus`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum HealthStatus {
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
    Draining,
    Timeout,
    Degraded,
}

impl HealthStatus {
    /// What it means for traffic.
    pub fn health(self) -> Health {
        match self {
            Self::Unknown | Self::Healthy => Health::Healthy,
            Self::Degraded => Health::Degraded,
            Self::Unhealthy | Self::Draining | Self::Timeout => Health::Unhealthy,
        }
    }
}

#[cfg(test)]
impl From<Health> for HealthStatus {
    fn from(health: Health) -> Self {
        match health {
            Health::Healthy => Self::Healthy,
            Health::Degraded => Self::Degraded,
            Health::Unhealthy => Self::Unhealthy,
        }
    }
}

/// One endpoint as one host set describes it. What outlives a change of that description is in
/// `shared`: a host that stays across updates keeps its counters and its pooled connections.
#[derive(Debug)]
pub struct Host {
    /// Where it listens.
    pub address: Address,
    /// `address`, as text for logs.
    pub address_text: Arc<str>,
    /// What config says of it.
    pub template: HostTemplate,
    /// What the successive descriptions of one endpoint share; its identity is the `Arc`.
    pub shared: Arc<HostShared>,
}

/// What is counted and found out about an endpoint, by all workers of this process.
#[derive(Debug, Default)]
pub struct HostShared {
    /// What was found out about its health. Who changes it calls [`Hosts::health_changed`] then.
    pub health: HealthFlags,
    /// Requests in flight.
    pub active_requests: AtomicU32,
    /// Connections open now.
    pub active_connections: AtomicU32,
    /// Counters shown by `/clusters`.
    pub counters: HostCounters,
    /// What outlier detection counts; made by the first request of a cluster that has it.
    pub outlier: OnceLock<Box<Monitor>>,
    /// What it says of its load; made by the first report of a cluster that wants any.
    pub load: OnceLock<Box<HostLoad>>,
    /// How often it was found to have failed, by checks or as an outlier: its pooled connections are not used on.
    pub failures: AtomicU32,
    /// Who waits for it to fail, where anybody does.
    failing: OnceLock<Box<Notify>>,
    /// Whether it could not be reached a moment ago.
    pub suspicion: Suspicion,
    /// Since when it is healthy, for slow start, in milliseconds of [`crate::upstream::balancing::clock`];
    /// 0 = it never was.
    pub healthy_since: AtomicU64,
}

impl HostShared {
    /// Checks or outlier detection have found it to have failed.
    pub fn note_failure(&self) {
        self.failures.fetch_add(1, Ordering::SeqCst);
        // Who comes to wait either is seen here or sees the new count.
        fence(Ordering::SeqCst);
        if let Some(failing) = self.failing.get() {
            failing.notify_waiters();
        }
    }

    /// Completes when it is next found to have failed.
    pub async fn fails(&self) {
        let before = self.failures.load(Ordering::SeqCst);
        let failing = self.failing.get_or_init(Box::default);
        fence(Ordering::SeqCst);
        loop {
            let told = failing.notified();
            if self.failures.load(Ordering::SeqCst) != before {
                return;
            }
            told.await;
        }
    }
}

/// Per-host counters of Envoy's `/clusters`.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct HostCounters {
    pub cx_total: AtomicU64,
    pub cx_connect_fail: AtomicU64,
    pub rq_total: AtomicU64,
    pub rq_success: AtomicU64,
    pub rq_error: AtomicU64,
    pub rq_timeout: AtomicU64,
}

impl Host {
    /// A host with zeroed counters.
    pub fn new(address: Address, template: HostTemplate) -> Arc<Self> {
        let address_text = address.to_string().into();
        Arc::new(Self { address, address_text, template, shared: Arc::default() })
    }

    /// The same endpoint as `self` with another description: counters and pools stay.
    pub fn described(&self, template: HostTemplate) -> Arc<Self> {
        let (address, address_text) = (self.address.clone(), self.address_text.clone());
        Arc::new(Self { address, address_text, template, shared: self.shared.clone() })
    }

    /// Whether a host with `template` at the same address is this endpoint: connections to it may go
    /// on, whatever its weight, health, priority and locality are now.
    pub fn is_same_endpoint(&self, template: &HostTemplate) -> bool {
        self.template.hostname == template.hostname
            && self.template.socket_match == template.socket_match
            && self.template.check == template.check
            && (!matches!(self.address, Address::Internal(_)) || self.template.noted == template.noted)
    }

    /// Its health by all that is known: the control plane, health checks, outlier detection
    /// (Envoy's `Host::coarseHealth`).
    pub fn health(&self) -> Health {
        let (flags, told) = (self.shared.health.get(), self.template.status.health());
        if told == Health::Unhealthy || flags & HealthFlags::UNHEALTHY != 0 {
            Health::Unhealthy
        } else if told == Health::Degraded || flags & HealthFlags::DEGRADED != 0 {
            Health::Degraded
        } else {
            Health::Healthy
        }
    }

    /// The same, as it would be told (Envoy's `Host::healthStatus`): what was found out comes first.
    pub fn status(&self) -> HealthStatus {
        let (flags, told) = (self.shared.health.get(), self.template.status);
        if flags & HealthFlags::UNHEALTHY != 0 {
            HealthStatus::Unhealthy
        } else if told.health() != Health::Unhealthy && flags & HealthFlags::DEGRADED != 0 {
            HealthStatus::Degraded
        } else {
            told
        }
    }

    /// Whether it is in no host count: panic and the split between priorities do not see it.
    pub fn is_excluded(&self, ignore_new_hosts: bool) -> bool {
        let new = if ignore_new_hosts { HealthFlags::PENDING_ACTIVE_HC } else { 0 };
        // One that drains is on its way out: it must not look like a loss.
        self.template.status == HealthStatus::Draining
            || self.shared.health.has(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL | new)
    }

    /// What stands for it in a consistent hash.
    pub fn hash_key(&self, hashing: &Hashing) -> &str {
        let named = self.template.metadata.as_ref().and_then(|metadata| metadata.value("hash_key"));
        match named {
            Some(MetaValue::Text(key)) if !key.is_empty() => key,
            _ if hashing.use_hostname => &self.template.hostname,
            _ => &self.address_text,
        }
    }

    /// What it weighs in picks by load: as reports say, else as config does.
    pub fn weight_by_load(&self) -> u32 {
        let reckoned = self.shared.load.get().and_then(|load| load.share());
        reckoned.unwrap_or(self.template.weight.max(1))
    }

    /// Whether its metadata call it a canary.
    pub fn is_canary(&self) -> bool {
        let metadata = self.template.metadata.as_ref();
        metadata.is_some_and(|metadata| metadata.value("canary") == Some(&MetaValue::Bool(true)))
    }
}

/// The hosts of a cluster at one moment, sorted into priorities, with what picking needs computed
/// beforehand.
#[derive(Debug, Default)]
pub struct HostSet {
    /// Every host, in config order.
    pub all: Vec<Arc<Host>>,
    /// All of them by priority, locality and health.
    pub split: Split,
    /// What they were sorted by.
    pub options: SplitOptions,
    /// What each one's health was then.
    pub(crate) states: Box<[HostState]>,
    /// The subsets, where somebody has asked for them.
    pub(crate) subsets: OnceLock<Arc<SubsetIndex>>,
}

impl std::ops::Deref for HostSet {
    type Target = Split;

    fn deref(&self) -> &Split {
        &self.split
    }
}

/// Hosts of a [`HostSet`], all or some, sorted into priorities.
#[derive(Debug, Default)]
pub struct Split {
    /// By priority.
    pub priorities: Vec<PriorityHosts>,
    /// Share of traffic per priority in percent: healthy hosts, then degraded ones.
    pub load: Vec<PriorityLoad>,
    /// How much of its share each priority could take, in percent: healthy hosts, and degraded ones.
    pub availability: Vec<(u8, u8)>,
}

/// One priority level. Hosts are indices into [`HostSet::all`].
#[derive(Debug, Default)]
pub struct PriorityHosts {
    /// Every host of the level.
    pub hosts: Vec<u32>,
    /// The healthy ones.
    pub healthy: Vec<u32>,
    /// The degraded ones.
    pub degraded: Vec<u32>,
    /// How many are in no count.
    pub excluded: u32,
    /// The same by locality, sorted, where picks need that.
    pub localities: Vec<LocalityHosts>,
    /// The table of a consistent-hashing policy, made by the first who needs it.
    pub(crate) table: OnceLock<Arc<HashTable>>,
}

/// Hosts of one priority in one locality.
#[derive(Debug, Default)]
pub struct LocalityHosts {
    /// Where they are.
    pub locality: Arc<Locality>,
    /// The weight that config gives the locality.
    pub weight: u32,
    /// Every host.
    pub hosts: Vec<u32>,
    /// The healthy ones.
    pub healthy: Vec<u32>,
    /// The degraded ones.
    pub degraded: Vec<u32>,
    /// How many are in no count.
    pub excluded: u32,
}

/// A priority's share of traffic.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PriorityLoad {
    /// Percent sent to its healthy hosts.
    pub healthy: u8,
    /// Percent sent to its degraded hosts.
    pub degraded: u8,
    /// In panic: health is ignored.
    pub panic: bool,
}

/// The current hosts of a cluster. Read without a lock; whoever changes them takes turns.
#[derive(Debug, Default)]
pub struct Hosts {
    current: ArcSwap<HostSet>,
    turn: Mutex<()>,
    /// What active health checks want done with hosts that come and go.
    policy: OnceLock<Box<CheckPolicy>>,
    /// When weights by load were reckoned.
    pub(crate) reckoning: Reckoning,
}

impl Hosts {
    /// Begins with `set`.
    pub fn new(set: HostSet) -> Self {
        Self { current: ArcSwap::from_pointee(set), ..Self::default() }
    }

    /// The set of the moment.
    #[inline]
    pub fn load(&self) -> Guard<Arc<HostSet>> {
        self.current.load()
    }

    /// The set of the moment, to be kept.
    pub fn load_full(&self) -> Arc<HostSet> {
        self.current.load_full()
    }

    /// Another set takes its place. It may have been sorted before the health of a host changed, so it is
    /// sorted again if that is so.
    pub fn store(&self, set: HostSet) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let policy = self.policy.get();
        let set = match policy {
            Some(policy) => policy.admit(&self.current.load(), set),
            None => set,
        };
        let set = if set.is_sorted() { set } else { set.sorted_again() };
        set.prepare_as(&self.current.load());
        self.current.store(Arc::new(set));
        if let Some(policy) = policy {
            policy.changed.notify_one();
        }
    }

    /// Hosts are checked from now on, and those that are there start as `policy` wants. Heeded once.
    pub fn check(&self, policy: CheckPolicy) {
        policy.begin(&self.current.load());
        let _ = self.policy.set(Box::new(policy));
        self.health_changed();
    }

    /// What active health checks want done with hosts that come and go, where there are checks.
    pub fn policy(&self) -> Option<&CheckPolicy> {
        self.policy.get().map(|policy| &**policy)
    }

    /// Takes out a host that was kept only because its checks succeeded.
    pub fn remove(&self, host: &Arc<HostShared>) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load();
        let stay = |other: &&Arc<Host>| !Arc::ptr_eq(&other.shared, host);
        let all = current.all.iter().filter(stay).cloned().collect();
        self.current.store(Arc::new(HostSet::new(all, current.options)));
        if let Some(policy) = self.policy.get() {
            policy.changed.notify_one();
        }
    }

    /// Sorts the hosts anew if the health of one is no longer what it was sorted by. Says whether it was so.
    pub fn health_changed(&self) -> bool {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load();
        let stale = !current.is_sorted();
        if stale {
            let set = current.sorted_again();
            set.prepare_as(&current);
            self.current.store(Arc::new(set));
        }
        stale
    }
}

/// What was found out about a host's health, as bits (Envoy's `Host::HealthFlag`).
#[derive(Debug, Default)]
pub struct HealthFlags(AtomicU16);

impl HealthFlags {
    /// Active health checks fail.
    pub const FAILED_ACTIVE_HC: u16 = 1;
    /// Ejected by outlier detection.
    pub const FAILED_OUTLIER_CHECK: u16 = 2;
    /// Active health checks say that it is degraded.
    pub const DEGRADED_ACTIVE_HC: u16 = 4;
    /// It was not checked yet.
    pub const PENDING_ACTIVE_HC: u16 = 8;
    /// A health check answered that it wants to be left alone: it is in no host count either.
    pub const EXCLUDED_VIA_IMMEDIATE_HC_FAIL: u16 = 16;
    /// It refused or could not be reached a moment ago.
    pub const SUSPECT: u16 = 32;
    /// The last check was not answered in time.
    pub const ACTIVE_HC_TIMEOUT: u16 = 64;
    /// Discovery took it away, but its checks succeed.
    pub const PENDING_DYNAMIC_REMOVAL: u16 = 128;
    /// Its answers say that it is degraded.
    pub const DEGRADED_OUTLIER_DETECTION: u16 = 256;
    /// With any of these, it is degraded.
    const DEGRADED: u16 = Self::DEGRADED_ACTIVE_HC | Self::DEGRADED_OUTLIER_DETECTION;
    /// With any of these, it is in no host count.
    pub const EXCLUDED: u16 = Self::PENDING_ACTIVE_HC | Self::EXCLUDED_VIA_IMMEDIATE_HC_FAIL;
    /// With any of these, it gets no traffic.
    const UNHEALTHY: u16 = Self::FAILED_ACTIVE_HC | Self::FAILED_OUTLIER_CHECK;

    /// All bits.
    #[inline]
    pub fn get(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether one of `flags` is set.
    #[inline]
    pub fn has(&self, flags: u16) -> bool {
        self.get() & flags != 0
    }

    /// Sets `flags`; false when all of them were set before.
    pub fn set(&self, flags: u16) -> bool {
        self.0.fetch_or(flags, Ordering::Relaxed) & flags != flags
    }

    /// Clears `flags`; false when none of them was set.
    pub fn clear(&self, flags: u16) -> bool {
        self.0.fetch_and(!flags, Ordering::Relaxed) & flags != 0
    }
}
