//! How a cluster chooses a host, compiled: the policy, what localities have to say, and subsets.
//!
//! Comes in: what [`super::compile`] read. Goes out: plain values that `upstream` builds its pickers from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::core::v3::Metadata;
use outrigger_control_api::pb::google::protobuf::{value::Kind, Struct, Value};
use smallvec::SmallVec;

use super::hosts::{HealthStatus, Locality};
use super::slot::Slot;
use super::{Cluster, HeaderKey};
use crate::upstream::orca::weights::WeightOptions;

/// How a cluster's host is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Balancing {
    /// Among the hosts of one source.
    pub policy: LbPolicy,
    /// Whether and how localities matter.
    pub locality: LocalityLb,
    /// How new hosts are eased in; round robin and least request only.
    pub slow_start: Option<SlowStart>,
    /// Groups of hosts by their metadata.
    pub subsets: Option<Arc<Subsets>>,
    /// Headers of a request that name the host to use.
    pub override_host: Option<Arc<OverrideHost>>,
    /// Which hosts sessions may stay with.
    pub askable: Askable,
    /// Close the connections to all hosts when a host comes or goes.
    pub close_on_host_set_change: bool,
    /// Hosts that were never checked are in no count (`ignore_new_hosts_until_first_hc`).
    pub ignore_new_hosts: bool,
    /// In panic, fail instead of using unhealthy hosts.
    pub fail_traffic_on_panic: bool,
    /// Hosts that could not be reached a moment ago are passed over (runtime key [`Balancing::SUSPECTS`]).
    pub suspects: bool,
}

impl Balancing {
    /// The runtime key that, at 0, has picks go by the policy alone, as Envoy's do.
    pub const SUSPECTS: &str = "outrigger.upstream.pass_over_suspect_hosts";

    /// `policy` alone.
    pub fn new(policy: LbPolicy) -> Self {
        Self {
            policy,
            locality: LocalityLb::None,
            slow_start: None,
            subsets: None,
            override_host: None,
            askable: Askable::default(),
            close_on_host_set_change: false,
            ignore_new_hosts: false,
            fail_traffic_on_panic: false,
            suspects: true,
        }
    }

    /// Whether a pick goes by the hash of the request.
    #[inline]
    pub fn hashes(&self) -> bool {
        matches!(self.policy, LbPolicy::RingHash(_) | LbPolicy::Maglev(_))
    }

    /// Whether picks need to know hosts by their locality.
    pub fn by_locality(&self) -> bool {
        !matches!(self.locality, LocalityLb::None)
    }
}

/// `lb_policy`, classic or extension form.
#[derive(Clone, Debug, PartialEq)]
pub enum LbPolicy {
    /// Rotation; by EDF when weights differ.
    RoundRobin,
    /// Uniform.
    Random,
    /// The least loaded of some hosts.
    LeastRequest {
        /// Draws per pick, 2 or more. Default 2.
        choice_count: u32,
        /// Exponent on active requests when weights differ. Default 1.0.
        active_request_bias: f64,
        /// Look at every host instead of drawing some.
        full_scan: bool,
    },
    /// Consistent hashing on a ring.
    RingHash(RingHash),
    /// Consistent hashing by a table.
    Maglev(Maglev),
    /// By what hosts report of their load (`client_side_weighted_round_robin`).
    ClientSideWeighted(Box<WeightOptions>),
    /// The cluster decides (original destination, aggregate).
    ClusterProvided,
}

/// Options of a ring.
#[derive(Clone, Debug, PartialEq)]
pub struct RingHash {
    /// Least number of entries. Default 1024.
    pub minimum_size: u64,
    /// Largest number of entries. Default 8,388,608.
    pub maximum_size: u64,
    /// MurmurHash2 instead of xxHash64.
    pub murmur: bool,
    /// What both kinds of consistent hashing share.
    pub hashing: Hashing,
}

/// Options of a Maglev table.
#[derive(Clone, Debug, PartialEq)]
pub struct Maglev {
    /// Entries, a prime. Default 65537.
    pub table_size: u64,
    /// What both kinds of consistent hashing share.
    pub hashing: Hashing,
}

/// `consistent_hashing_lb_config`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hashing {
    /// Hosts are known by their names instead of their addresses.
    pub use_hostname: bool,
    /// No host gets more than this percentage of the mean load; 0 = as much as may be.
    pub balance_factor: u32,
}

/// What localities have to say about a pick.
#[derive(Clone, Debug, PartialEq)]
pub enum LocalityLb {
    /// Nothing.
    None,
    /// By the weights of the localities (`locality_weighted_lb_config`).
    Weighted,
    /// Near ones first (`zone_aware_lb_config`).
    ZoneAware(Arc<ZoneAware>),
}

/// `zone_aware_lb_config` and what it depends on.
#[derive(Clone, Debug)]
pub struct ZoneAware {
    /// Share of requests that it applies to, in percent. Default 100.
    pub routing_enabled: u8,
    /// Fewest healthy hosts for it. Default 6.
    pub min_cluster_size: u64,
    /// Stay in this locality as long as it has so many healthy hosts.
    pub force_local: Option<u32>,
    /// Hosts count by their weights.
    pub by_weight: bool,
    /// The cluster that this proxy belongs to (`local_cluster_name`).
    pub local: Arc<Slot<Cluster>>,
    /// Where this proxy runs.
    pub here: Locality,
}

impl PartialEq for ZoneAware {
    fn eq(&self, other: &Self) -> bool {
        let plain = |of: &Self| (of.routing_enabled, of.min_cluster_size, of.force_local, of.by_weight);
        plain(self) == plain(other) && self.here == other.here && Arc::ptr_eq(&self.local, &other.local)
    }
}

/// `slow_start_config`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// How long a host is new.
    pub window: Duration,
    /// Above 1, a host gets its share faster at first; below, slower. Default 1.0.
    pub aggression: f64,
    /// Share of its weight that a host begins with, 0 to 1. Default 0.1.
    pub min_weight: f64,
}

impl SlowStart {
    /// What a host's weight is multiplied by, `age_ms` after it came.
    pub fn factor(&self, age_ms: u64) -> f64 {
        let window = self.window.as_millis().max(1) as f64;
        let age = age_ms as f64;
        if age >= window {
            return 1.0;
        }
        let time = age.max(1.0) / window;
        let grown = if self.aggression == 1.0 { time } else { time.powf(1.0 / self.aggression) };
        grown.max(self.min_weight)
    }
}

/// `override_host` policy: where a request says which host it asks for.
#[derive(Clone, Debug)]
pub struct OverrideHost {
    /// Headers with addresses: those of the first come before those of the next.
    pub headers: Box<[HeaderKey]>,
}

impl PartialEq for OverrideHost {
    fn eq(&self, other: &Self) -> bool {
        self.headers.iter().map(HeaderKey::name).eq(other.headers.iter().map(HeaderKey::name))
    }
}

/// Which hosts the requests of a session may ask for (`override_host_status`), by a bit for each [`HealthStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Askable(u8);

impl Askable {
    /// Hosts of these.
    pub fn of(statuses: impl IntoIterator<Item = HealthStatus>) -> Self {
        Self(statuses.into_iter().fold(0, |all, status| all | 1 << status as u8))
    }

    /// Whether a host of this may be asked for.
    pub fn has(self, status: HealthStatus) -> bool {
        self.0 & 1 << status as u8 != 0
    }
}

impl Default for Askable {
    fn default() -> Self {
        Self::of([HealthStatus::Unknown, HealthStatus::Healthy, HealthStatus::Degraded])
    }
}

/// The clusters of an aggregate cluster, in order of preference.
#[derive(Clone)]
pub struct Members(pub Arc<[Arc<Slot<Cluster>>]>);

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|slot| slot.name())).finish()
    }
}

impl PartialEq for Members {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&*other.0).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

/// `lb_subset_config`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Subsets {
    /// Where requests go whose metadata match no subset.
    pub fallback: SubsetFallback,
    /// What hosts of the default subset have.
    pub default_subset: Criteria,
    /// By which keys hosts are grouped.
    pub selectors: Box<[Selector]>,
    /// Weights of localities count inside of subsets.
    pub locality_weight_aware: bool,
    /// A locality's weight shrinks with the share of its hosts that are in the subset.
    pub scale_locality_weight: bool,
    /// When the fallback has no host either, any will do.
    pub panic_mode_any: bool,
    /// A list among a host's metadata stands for each of its values.
    pub list_as_any: bool,
    /// Requests may bring a list of alternatives (`FALLBACK_LIST`).
    pub fallback_list: bool,
    /// Keys of a request that no selector asks for are left out (extension form only).
    pub allow_redundant_keys: bool,
}

/// Where requests go that match no subset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SubsetFallback {
    /// Nowhere.
    #[default]
    None,
    /// Anywhere.
    Any,
    /// The default subset.
    Default,
}

/// A group of keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Selector {
    /// The keys, sorted, each once.
    pub keys: Box<[Box<str>]>,
    /// A subset has one host only: the first.
    pub single_host: bool,
    /// Where requests go that have these keys, but match no subset.
    pub fallback: SelectorFallback,
}

/// As [`SubsetFallback`], for one selector.
#[derive(Clone, Debug, PartialEq)]
pub enum SelectorFallback {
    /// What holds for all.
    Inherit,
    /// This one.
    To(SubsetFallback),
    /// The subset of these keys alone, sorted.
    Keys(Box<[Box<str>]>),
}

/// Key of the alternatives in a request's metadata.
const FALLBACK_LIST: &str = "fallback_list";

/// Pairs of a key and a value, sorted by key: what a request asks of hosts.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Criteria(Vec<(Box<str>, MetaValue)>);

impl Criteria {
    /// Those in a message.
    pub fn of(fields: &Struct) -> Self {
        let sorted: BTreeMap<_, _> = fields.fields.iter().collect();
        Self(sorted.into_iter().map(|(key, value)| (key.as_str().into(), MetaValue::of(value))).collect())
    }

    /// Those of `envoy.lb` in `metadata`, on top of those around them.
    pub fn under(metadata: Option<&Metadata>, around: Option<&Arc<Self>>) -> Option<Arc<Self>> {
        let fields = metadata.and_then(|metadata| metadata.filter_metadata.get("envoy.lb"));
        let own = fields.filter(|fields| !fields.fields.is_empty()).map(Criteria::of);
        match (own, around) {
            (Some(own), Some(around)) => Some(Arc::new(around.merged(own.pairs()))),
            (Some(own), None) => Some(Arc::new(own)),
            (None, around) => around.cloned(),
        }
    }

    /// The pairs.
    pub fn pairs(&self) -> &[(Box<str>, MetaValue)] {
        &self.0
    }

    /// These, and those of `over` in place of equal keys.
    #[must_use]
    pub fn merged(&self, over: &[(Box<str>, MetaValue)]) -> Self {
        let both = self.0.iter().chain(over).map(|(key, value)| (key.clone(), value.clone()));
        Self(both.collect::<BTreeMap<_, _>>().into_iter().collect())
    }

    /// Those whose key is one of `keys`.
    #[must_use]
    pub fn only(&self, keys: &[Box<str>]) -> Self {
        Self(self.0.iter().filter(|(key, _)| keys.contains(key)).cloned().collect())
    }

    /// The same without its list of alternatives, and that list, if there is one.
    pub fn split_alternatives(&self) -> (Self, Option<&[MetaValue]>) {
        let list = self.0.iter().find(|(key, _)| **key == *FALLBACK_LIST).map(|(_, value)| value);
        let rest = self.0.iter().filter(|(key, _)| **key != *FALLBACK_LIST).cloned().collect();
        let list = list.map(|list| match list {
            MetaValue::List(items) => &**items,
            _ => &[][..],
        });
        (Self(rest), list)
    }

    /// Bytes that are equal when the criteria are.
    pub fn key(&self) -> CriteriaKey {
        let mut out = CriteriaKey::new();
        for (key, value) in &self.0 {
            write_pair(&mut out, key, value);
        }
        out
    }
}

/// See [`Criteria::key`].
pub type CriteriaKey = SmallVec<[u8; 64]>;

/// Appends a pair to the key of criteria.
pub fn write_pair(out: &mut CriteriaKey, key: &str, value: &MetaValue) {
    write_text(out, key);
    value.write(out);
}

fn write_text(out: &mut CriteriaKey, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// `google.protobuf.Value`, compact.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum MetaValue {
    Null,
    Number(f64),
    Text(Box<str>),
    Bool(bool),
    List(Box<[MetaValue]>),
    Fields(Box<[(Box<str>, MetaValue)]>),
}

impl MetaValue {
    /// The value of a message.
    pub fn of(value: &Value) -> Self {
        match &value.kind {
            None | Some(Kind::NullValue(_)) => MetaValue::Null,
            Some(Kind::NumberValue(number)) => MetaValue::Number(*number),
            Some(Kind::StringValue(text)) => MetaValue::Text(text.as_str().into()),
            Some(Kind::BoolValue(value)) => MetaValue::Bool(*value),
            Some(Kind::ListValue(list)) => MetaValue::List(list.values.iter().map(Self::of).collect()),
            Some(Kind::StructValue(fields)) => MetaValue::Fields(Criteria::of(fields).0.into()),
        }
    }

    fn write(&self, out: &mut CriteriaKey) {
        match self {
            MetaValue::Null => out.push(0),
            MetaValue::Number(number) => {
                out.push(1);
                // Both zeros are equal.
                let number = if *number == 0.0 { 0.0 } else { *number };
                out.extend_from_slice(&number.to_bits().to_le_bytes());
            }
            MetaValue::Text(text) => {
                out.push(2);
                write_text(out, text);
            }
            MetaValue::Bool(value) => out.extend_from_slice(&[3, u8::from(*value)]),
            MetaValue::List(items) => {
                out.push(4);
                out.extend_from_slice(&(items.len() as u64).to_le_bytes());
                items.iter().for_each(|item| item.write(out));
            }
            MetaValue::Fields(fields) => {
                out.push(5);
                out.extend_from_slice(&(fields.len() as u64).to_le_bytes());
                fields.iter().for_each(|(key, value)| write_pair(out, key, value));
            }
        }
    }
}

/// What a host has under `envoy.lb` in its metadata.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct HostMetadata(Criteria);

impl HostMetadata {
    /// `None` when there is nothing.
    pub fn of(fields: Option<&Struct>) -> Option<Arc<Self>> {
        let fields = fields.filter(|fields| !fields.fields.is_empty())?;
        Some(Arc::new(Self(Criteria::of(fields))))
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<&MetaValue> {
        let pairs = self.0.pairs();
        let at = pairs.binary_search_by(|(name, _)| (**name).cmp(key)).ok()?;
        pairs.get(at).map(|(_, value)| value)
    }

    /// Whether it has all of `wanted`. With `list_as_any`, one value of a list is enough.
    pub fn has(&self, wanted: &Criteria, list_as_any: bool) -> bool {
        wanted.pairs().iter().all(|(key, wanted)| match self.value(key) {
            Some(MetaValue::List(items)) if list_as_any => items.contains(wanted),
            found => found == Some(wanted),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_start_grows_as_envoys() {
        let slow = SlowStart { window: Duration::from_secs(10), aggression: 1.0, min_weight: 0.1 };
        assert_eq!(slow.factor(0), 0.1);
        assert_eq!(slow.factor(5_000), 0.5);
        assert_eq!(slow.factor(10_000), 1.0);
        let eager = SlowStart { aggression: 2.0, ..slow };
        assert_eq!(eager.factor(2_500), 0.5);
    }

    #[test]
    fn keys_of_criteria_tell_types_and_borders_apart() {
        let one = |key: &str, value: MetaValue| Criteria(vec![(key.into(), value)]).key();
        let text = |text: &str| MetaValue::Text(text.into());
        let all = [
            one("a", text("1")),
            one("a", MetaValue::Number(1.0)),
            one("a1", text("")),
            one("a", MetaValue::Bool(true)),
            one("a", MetaValue::Null),
            Criteria(vec![("a".into(), text("1")), ("b".into(), text("2"))]).key(),
        ];
        for (index, key) in all.iter().enumerate() {
            assert!(all.iter().skip(index + 1).all(|other| other != key), "{index}");
        }
    }
}
