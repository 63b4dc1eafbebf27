//! How a cluster's host is chosen: `lb_policy`, `load_balancing_policy`, `common_lb_config` and `lb_subset_config` in,
//! a [`Balancing`] out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use outrigger_control_api::pb::envoy::config::{cluster::v3 as pb, core::v3 as core};
use outrigger_control_api::pb::envoy::extensions::load_balancing_policies as lb;
use outrigger_control_api::pb::envoy::r#type::v3::Percent;
use outrigger_control_api::pb::google::protobuf::{Any, UInt64Value};
use outrigger_control_api::type_of;

use super::cluster::Kind;
use super::{duration, extension, orca, u32_or, Environment};
use crate::config::balancing::{
    Askable, Balancing, Criteria, Hashing, LbPolicy, LocalityLb, Maglev, OverrideHost, RingHash, Selector,
    SelectorFallback, SlowStart, SubsetFallback, Subsets, ZoneAware,
};
use crate::config::problems::Problems;
use crate::config::HeaderKey;

/// Compiles what `cluster` says of choosing hosts; also the panic threshold in percent.
pub(super) fn balancing(
    cluster: &pb::Cluster,
    kind: Option<Kind>,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<(Balancing, u8)> {
    let mut balancing = match &cluster.load_balancing_policy {
        Some(policies) => {
            refuse_classic(cluster, problems);
            problems
                .at("load_balancing_policy", |problems| extensions(policies, kind, environment, problems))?
        }
        None => classic(cluster, kind, environment, problems)?,
    };
    if environment.compiler.local_cluster.as_ref().is_some_and(|local| **local.name() == *cluster.name) {
        // As near as a host of the local cluster is to itself, there is nothing to reckon with.
        if let LocalityLb::ZoneAware(_) = balancing.locality {
            balancing.locality = LocalityLb::None;
        }
    }
    let common = cluster.common_lb_config.as_ref();
    if let Some(common) = common {
        balancing.close_on_host_set_change = common.close_connections_on_host_set_change;
        balancing.ignore_new_hosts = common.ignore_new_hosts_until_first_hc;
    }
    if let Some(set) = common.and_then(|common| common.override_host_status.as_ref()) {
        balancing.askable = Askable::of(set.statuses().map(super::endpoints::status));
    }
    let runtime = environment.compiler.runtime.load();
    balancing.suspects = runtime.number(Balancing::SUSPECTS).is_none_or(|value| value > 0.0);
    let threshold =
        common.and_then(|config| config.healthy_panic_threshold).map_or(50.0, |percent| percent.value);
    // Envoy cuts the percentage off; the field's rule keeps it within 0 to 100.
    let threshold = runtime.number("upstream.healthy_panic_threshold").unwrap_or(threshold);
    Some((balancing, threshold.clamp(0.0, 100.0) as u8))
}

/// What says the same as `load_balancing_policy` cannot stand beside it.
fn refuse_classic(cluster: &pb::Cluster, problems: &mut Problems) {
    use pb::cluster::common_lb_config::LocalityConfigSpecifier;
    let mut refuse = |set: bool, field: &str| {
        if set {
            problems.report_at(field, "cannot be set together with load_balancing_policy");
        }
    };
    refuse(cluster.lb_subset_config.is_some(), "lb_subset_config");
    let Some(common) = &cluster.common_lb_config else { return };
    let field = match common.locality_config_specifier {
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) => "common_lb_config.zone_aware_lb_config",
        _ => "common_lb_config.locality_weighted_lb_config",
    };
    refuse(common.locality_config_specifier.is_some(), field);
    let hashing = "common_lb_config.consistent_hashing_lb_config";
    refuse(common.consistent_hashing_lb_config.is_some(), hashing);
}

fn classic(
    cluster: &pb::Cluster,
    kind: Option<Kind>,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Balancing> {
    use pb::cluster::{LbConfig, LbPolicy as Classic};
    let common = cluster.common_lb_config.clone().unwrap_or_default();
    let hashing =
        common.consistent_hashing_lb_config.as_ref().map_or_else(Hashing::default, |config| Hashing {
            use_hostname: config.use_hostname_for_hashing,
            balance_factor: u32_or(config.hash_balance_factor, 0),
        });
    if hashing.use_hostname && kind.is_some_and(|kind| kind != Kind::StrictDns) {
        let field = "common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing";
        problems.report_at(field, "is only for clusters of type STRICT_DNS");
    }
    let mut slow_start = None;
    let policy = match cluster.lb_policy() {
        Classic::RoundRobin => {
            if let Some(LbConfig::RoundRobinLbConfig(config)) = &cluster.lb_config {
                slow_start = problems.at("round_robin_lb_config", |problems| {
                    classic_slow_start(config.slow_start_config.as_ref(), problems)
                });
            }
            LbPolicy::RoundRobin
        }
        Classic::Random => LbPolicy::Random,
        Classic::LeastRequest => match &cluster.lb_config {
            Some(LbConfig::LeastRequestLbConfig(config)) => {
                problems.at("least_request_lb_config", |problems| {
                    slow_start = classic_slow_start(config.slow_start_config.as_ref(), problems);
                    LbPolicy::LeastRequest {
                        choice_count: u32_or(config.choice_count, 2),
                        active_request_bias: bias(config.active_request_bias.as_ref(), problems),
                        full_scan: false,
                    }
                })
            }
            _ => LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0, full_scan: false },
        },
        Classic::RingHash => {
            let config = match &cluster.lb_config {
                Some(LbConfig::RingHashLbConfig(config)) => *config,
                _ => pb::cluster::RingHashLbConfig::default(),
            };
            let murmur =
                config.hash_function() == pb::cluster::ring_hash_lb_config::HashFunction::MurmurHash2;
            let (minimum, maximum) = (config.minimum_ring_size, config.maximum_ring_size);
            problems
                .at("ring_hash_lb_config", |problems| ring(minimum, maximum, murmur, hashing, problems))?
        }
        Classic::Maglev => {
            let size = match &cluster.lb_config {
                Some(LbConfig::MaglevLbConfig(config)) => config.table_size,
                _ => None,
            };
            problems.at("maglev_lb_config", |problems| maglev(size, hashing, problems))?
        }
        Classic::ClusterProvided => LbPolicy::ClusterProvided,
        Classic::LoadBalancingPolicyConfig => {
            problems.report_at(
                "load_balancing_policy",
                "is required with lb_policy LOAD_BALANCING_POLICY_CONFIG",
            );
            return None;
        }
    };
    let mut balancing = check_provided(Balancing::new(policy), kind, "lb_policy", problems)?;
    balancing.slow_start = slow_start;
    use pb::cluster::common_lb_config::LocalityConfigSpecifier;
    match &common.locality_config_specifier {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
            balancing.locality = LocalityLb::Weighted;
        }
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(config)) => {
            balancing.fail_traffic_on_panic = config.fail_traffic_on_panic;
            let zone = Zone {
                routing_enabled: config.routing_enabled,
                min_cluster_size: config.min_cluster_size,
                force_local: None,
                by_weight: false,
            };
            balancing.locality = zone.compile(environment);
        }
        None => near_first(&mut balancing, environment),
    }
    if let Some(config) = &cluster.lb_subset_config {
        problems.at("lb_subset_config", |problems| {
            set_subsets(&classic_subsets(config), &mut balancing, problems);
        });
    }
    Some(balancing)
}

fn check_provided(
    balancing: Balancing,
    kind: Option<Kind>,
    field: &str,
    problems: &mut Problems,
) -> Option<Balancing> {
    let provided = balancing.policy == LbPolicy::ClusterProvided;
    let needs = match kind {
        // Of an unsupported type nothing is known.
        None => return Some(balancing),
        Some(Kind::OriginalDst) => Some("an ORIGINAL_DST"),
        Some(Kind::Aggregate) => Some("an aggregate"),
        Some(_) => None,
    };
    match (needs, provided) {
        (Some(what), false) => {
            problems.report_at(field, format!("{what} cluster needs CLUSTER_PROVIDED"));
            None
        }
        (None, true) => {
            problems.report_at(field, "CLUSTER_PROVIDED is only for ORIGINAL_DST and aggregate clusters");
            None
        }
        _ => Some(balancing),
    }
}

/// The first policy of the list that is supported, as Envoy chooses.
fn extensions(
    policies: &pb::LoadBalancingPolicy,
    kind: Option<Kind>,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Balancing> {
    let mut names = Vec::new();
    for (index, policy) in policies.policies.iter().enumerate() {
        let Some(any) =
            policy.typed_extension_config.as_ref().and_then(|config| config.typed_config.as_ref())
        else {
            continue;
        };
        let before = problems.count();
        let chosen = problems.at_index("policies", index, |problems| {
            problems.at("typed_extension_config.typed_config", |problems| of(any, environment, problems))
        });
        match chosen {
            Some(balancing) => return check_provided(balancing, kind, "policies", problems),
            // One that is known, and wrong.
            None if problems.count() > before => return None,
            None => names.push(type_of(any).to_owned()),
        }
    }
    problems.report_at("policies", format!("none of these policies is supported: {}", names.join(", ")));
    None
}

/// A policy inside of another one.
fn inner(
    policies: Option<&pb::LoadBalancingPolicy>,
    field: &str,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Balancing> {
    problems.at(field, |problems| match policies {
        Some(policies) => extensions(policies, None, environment, problems),
        None => {
            problems.report("is required");
            None
        }
    })
}

fn of(any: &Any, environment: &Environment<'_>, problems: &mut Problems) -> Option<Balancing> {
    const PREFIX: &str = "envoy.extensions.load_balancing_policies.";
    match type_of(any).strip_prefix(PREFIX)? {
        "round_robin.v3.RoundRobin" => {
            let config: lb::round_robin::v3::RoundRobin = extension(any, "", problems)?;
            let mut balancing = Balancing::new(LbPolicy::RoundRobin);
            balancing.slow_start = slow_start(config.slow_start_config.as_ref(), problems);
            locality(config.locality_lb_config.as_ref(), &mut balancing, environment);
            Some(balancing)
        }
        "random.v3.Random" => {
            let config: lb::random::v3::Random = extension(any, "", problems)?;
            let mut balancing = Balancing::new(LbPolicy::Random);
            locality(config.locality_lb_config.as_ref(), &mut balancing, environment);
            Some(balancing)
        }
        "least_request.v3.LeastRequest" => {
            use lb::least_request::v3::{least_request::SelectionMethod, LeastRequest};
            let config: LeastRequest = extension(any, "", problems)?;
            let full_scan = config.enable_full_scan.is_some_and(|scan| scan.value)
                || config.selection_method() == SelectionMethod::FullScan;
            let mut balancing = Balancing::new(LbPolicy::LeastRequest {
                choice_count: u32_or(config.choice_count, 2),
                active_request_bias: bias(config.active_request_bias.as_ref(), problems),
                full_scan,
            });
            balancing.slow_start = slow_start(config.slow_start_config.as_ref(), problems);
            locality(config.locality_lb_config.as_ref(), &mut balancing, environment);
            Some(balancing)
        }
        "ring_hash.v3.RingHash" => {
            use lb::ring_hash::v3::{ring_hash::HashFunction, RingHash};
            let config: RingHash = extension(any, "", problems)?;
            let old = Hashing {
                use_hostname: config.use_hostname_for_hashing,
                balance_factor: u32_or(config.hash_balance_factor, 0),
            };
            let hashing = hashing(config.consistent_hashing_lb_config.as_ref(), old);
            let murmur = config.hash_function() == HashFunction::MurmurHash2;
            let (minimum, maximum) = (config.minimum_ring_size, config.maximum_ring_size);
            let mut balancing = Balancing::new(ring(minimum, maximum, murmur, hashing, problems)?);
            if config.locality_weighted_lb_config.is_some() {
                balancing.locality = LocalityLb::Weighted;
            }
            Some(balancing)
        }
        "maglev.v3.Maglev" => {
            let config: lb::maglev::v3::Maglev = extension(any, "", problems)?;
            let hashing = hashing(config.consistent_hashing_lb_config.as_ref(), Hashing::default());
            let mut balancing = Balancing::new(maglev(config.table_size, hashing, problems)?);
            if config.locality_weighted_lb_config.is_some() {
                balancing.locality = LocalityLb::Weighted;
            }
            Some(balancing)
        }
        "wrr_locality.v3.WrrLocality" => {
            let config: lb::wrr_locality::v3::WrrLocality = extension(any, "", problems)?;
            let policies = config.endpoint_picking_policy.as_ref();
            let mut balancing = inner(policies, "endpoint_picking_policy", environment, problems)?;
            balancing.locality = LocalityLb::Weighted;
            Some(balancing)
        }
        "subset.v3.Subset" => {
            let config: lb::subset::v3::Subset = extension(any, "", problems)?;
            let policies = config.subset_lb_policy.as_ref();
            let mut balancing = inner(policies, "subset_lb_policy", environment, problems)?;
            if balancing.subsets.is_some() {
                problems.report_at("subset_lb_policy", "subsets of subsets are not supported");
                return None;
            }
            set_subsets(&config, &mut balancing, problems);
            Some(balancing)
        }
        "override_host.v3.OverrideHost" => {
            let config: lb::override_host::v3::OverrideHost = extension(any, "", problems)?;
            let mut balancing =
                inner(config.fallback_policy.as_ref(), "fallback_policy", environment, problems)?;
            // Metadata as a source is refused by the support table.
            let headers = config.override_host_sources.iter().filter(|source| !source.header.is_empty());
            balancing.override_host = Some(Arc::new(OverrideHost {
                headers: headers.map(|source| HeaderKey::new(&source.header)).collect(),
            }));
            Some(balancing)
        }
        "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin" => {
            use lb::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin;
            let config: ClientSideWeightedRoundRobin = extension(any, "", problems)?;
            let options = orca::weights(&config, problems)?;
            let mut balancing = Balancing::new(LbPolicy::ClientSideWeighted(Box::new(options)));
            balancing.slow_start = slow_start(config.slow_start_config.as_ref(), problems);
            near_first(&mut balancing, environment);
            Some(balancing)
        }
        "cluster_provided.v3.ClusterProvided" => Some(Balancing::new(LbPolicy::ClusterProvided)),
        _ => None,
    }
}

fn hashing(config: Option<&lb::common::v3::ConsistentHashingLbConfig>, old: Hashing) -> Hashing {
    config.map_or(old, |config| Hashing {
        use_hostname: config.use_hostname_for_hashing,
        balance_factor: u32_or(config.hash_balance_factor, 0),
    })
}

fn ring(
    minimum: Option<UInt64Value>,
    maximum: Option<UInt64Value>,
    murmur: bool,
    hashing: Hashing,
    problems: &mut Problems,
) -> Option<LbPolicy> {
    /// The field rule's bound, which is the default too.
    const LARGEST: u64 = 8_388_608;
    let minimum_size = minimum.map_or(1024, |size| size.value);
    let maximum_size = maximum.map_or(LARGEST, |size| size.value);
    if minimum_size > maximum_size {
        let message = format!("is {minimum_size}, more than maximum_ring_size ({maximum_size})");
        problems.report_at("minimum_ring_size", message);
        return None;
    }
    let maximum_size = maximum_size.clamp(1, LARGEST);
    Some(LbPolicy::RingHash(RingHash {
        minimum_size: minimum_size.min(LARGEST),
        maximum_size,
        murmur,
        hashing,
    }))
}

fn maglev(size: Option<UInt64Value>, hashing: Hashing, problems: &mut Problems) -> Option<LbPolicy> {
    /// The field rule's bound.
    const LARGEST: u64 = 5_000_011;
    let table_size = size.map_or(65537, |size| size.value);
    if table_size > LARGEST {
        return None;
    }
    let prime = table_size > 1
        && (2..).take_while(|by| by * by <= table_size).all(|by| !table_size.is_multiple_of(by));
    if !prime {
        problems.report_at("table_size", format!("is {table_size}, must be a prime number"));
        return None;
    }
    Some(LbPolicy::Maglev(Maglev { table_size, hashing }))
}

fn bias(bias: Option<&core::RuntimeDouble>, problems: &mut Problems) -> f64 {
    let value = bias.map_or(1.0, |bias| bias.default_value);
    if value.is_nan() || value < 0.0 {
        problems.note("active_request_bias", format!("{value} is no valid bias, 1.0 is used"));
        return 1.0;
    }
    value
}

fn classic_slow_start(
    config: Option<&pb::cluster::SlowStartConfig>,
    problems: &mut Problems,
) -> Option<SlowStart> {
    let config = config.map(|config| lb::common::v3::SlowStartConfig {
        slow_start_window: config.slow_start_window,
        aggression: config.aggression.clone(),
        min_weight_percent: config.min_weight_percent,
    });
    slow_start(config.as_ref(), problems)
}

fn slow_start(
    config: Option<&lb::common::v3::SlowStartConfig>,
    problems: &mut Problems,
) -> Option<SlowStart> {
    let config = config?;
    problems.at("slow_start_config", |problems| {
        let window = duration(&config.slow_start_window, "slow_start_window", problems).unwrap_or_default();
        let mut aggression = config.aggression.as_ref().map_or(1.0, |aggression| aggression.default_value);
        if aggression.is_nan() || aggression <= 0.0 {
            problems.note("aggression", format!("{aggression} is not above 0, 1.0 is used"));
            aggression = 1.0;
        }
        let min_weight = config.min_weight_percent.map_or(10.0, |percent| percent.value) / 100.0;
        (window > Duration::ZERO).then_some(SlowStart { window, aggression, min_weight })
    })
}

/// `zone_aware_lb_config`, both forms.
#[derive(Default)]
struct Zone {
    routing_enabled: Option<Percent>,
    min_cluster_size: Option<UInt64Value>,
    force_local: Option<u32>,
    by_weight: bool,
}

impl Zone {
    /// Without a local cluster there is nothing to route by, as in Envoy.
    fn compile(self, environment: &Environment<'_>) -> LocalityLb {
        let Some(local) = &environment.compiler.local_cluster else { return LocalityLb::None };
        LocalityLb::ZoneAware(Arc::new(ZoneAware {
            // The field's rule keeps it within 0 to 100.
            routing_enabled: self.routing_enabled.map_or(100.0, |percent| percent.value).clamp(0.0, 100.0)
                as u8,
            min_cluster_size: self.min_cluster_size.map_or(6, |size| size.value),
            force_local: self.force_local,
            by_weight: self.by_weight,
            local: local.clone(),
            here: environment.compiler.locality.clone(),
        }))
    }
}

fn locality(
    config: Option<&lb::common::v3::LocalityLbConfig>,
    balancing: &mut Balancing,
    environment: &Environment<'_>,
) {
    use lb::common::v3::locality_lb_config::{
        zone_aware_lb_config::LocalityBasis, LocalityConfigSpecifier as Specifier,
    };
    match config.and_then(|config| config.locality_config_specifier.as_ref()) {
        Some(Specifier::LocalityWeightedLbConfig(_)) => balancing.locality = LocalityLb::Weighted,
        Some(Specifier::ZoneAwareLbConfig(config)) => {
            balancing.fail_traffic_on_panic = config.fail_traffic_on_panic;
            let forced = config.force_local_zone.as_ref().map(|zone| u32_or(zone.min_size, 1));
            let zone = Zone {
                routing_enabled: config.routing_enabled,
                min_cluster_size: config.min_cluster_size,
                force_local: forced.or(config.force_locality_direct_routing.then_some(1)),
                by_weight: config.locality_basis() == LocalityBasis::HealthyHostsWeight,
            };
            balancing.locality = zone.compile(environment);
        }
        None => near_first(balancing, environment),
    }
}

/// Where config does not speak of localities, near ones come first, for all policies that can.
fn near_first(balancing: &mut Balancing, environment: &Environment<'_>) {
    if !balancing.hashes() && balancing.policy != LbPolicy::ClusterProvided {
        balancing.locality = Zone::default().compile(environment);
    }
}

fn classic_subsets(config: &pb::cluster::LbSubsetConfig) -> lb::subset::v3::Subset {
    use lb::subset::v3::subset::LbSubsetSelector;
    let selector = |one: &pb::cluster::lb_subset_config::LbSubsetSelector| LbSubsetSelector {
        keys: one.keys.clone(),
        fallback_policy: one.fallback_policy,
        fallback_keys_subset: one.fallback_keys_subset.clone(),
        single_host_per_subset: one.single_host_per_subset,
    };
    lb::subset::v3::Subset {
        fallback_policy: config.fallback_policy,
        default_subset: config.default_subset.clone(),
        subset_selectors: config.subset_selectors.iter().map(selector).collect(),
        allow_redundant_keys: false,
        locality_weight_aware: config.locality_weight_aware,
        scale_locality_weight: config.scale_locality_weight,
        panic_mode_any: config.panic_mode_any,
        list_as_any: config.list_as_any,
        metadata_fallback_policy: config.metadata_fallback_policy,
        subset_lb_policy: None,
    }
}

/// Puts `balancing` to work on subsets.
fn set_subsets(config: &lb::subset::v3::Subset, balancing: &mut Balancing, problems: &mut Problems) {
    balancing.subsets = subsets(config, balancing, problems);
    // Unless it is said, weights of localities do not reach into subsets, of which "any host" is one.
    let aware = config.locality_weight_aware || balancing.subsets.is_none();
    if balancing.locality == LocalityLb::Weighted && !aware {
        balancing.locality = LocalityLb::None;
    }
}

fn subsets(
    config: &lb::subset::v3::Subset,
    balancing: &Balancing,
    problems: &mut Problems,
) -> Option<Arc<Subsets>> {
    use lb::subset::v3::subset::{LbSubsetFallbackPolicy, LbSubsetMetadataFallbackPolicy};
    if balancing.policy == LbPolicy::ClusterProvided {
        problems.report("CLUSTER_PROVIDED cannot be combined with subsets");
    }
    if config.locality_weight_aware && balancing.locality != LocalityLb::Weighted {
        let message = "needs locality_weighted_lb_config";
        problems.report_at("locality_weight_aware", message);
    }
    if config.scale_locality_weight && !config.locality_weight_aware {
        problems.note("scale_locality_weight", "without effect without locality_weight_aware");
    }
    let selectors = config.subset_selectors.iter().enumerate();
    let selectors = selectors
        .map(|(index, one)| problems.at_index("subset_selectors", index, |problems| selector(one, problems)))
        .collect::<Vec<_>>();
    // Without selectors there are no subsets, as in Envoy.
    if config.subset_selectors.is_empty() {
        return None;
    }
    Some(Arc::new(Subsets {
        fallback: match config.fallback_policy() {
            LbSubsetFallbackPolicy::NoFallback => SubsetFallback::None,
            LbSubsetFallbackPolicy::AnyEndpoint => SubsetFallback::Any,
            LbSubsetFallbackPolicy::DefaultSubset => SubsetFallback::Default,
        },
        default_subset: config.default_subset.as_ref().map(Criteria::of).unwrap_or_default(),
        selectors: without_hidden_fallbacks(selectors).into(),
        locality_weight_aware: config.locality_weight_aware,
        scale_locality_weight: config.scale_locality_weight,
        panic_mode_any: config.panic_mode_any,
        list_as_any: config.list_as_any,
        fallback_list: config.metadata_fallback_policy() == LbSubsetMetadataFallbackPolicy::FallbackList,
        allow_redundant_keys: config.allow_redundant_keys,
    }))
}

/// Envoy keeps selectors in a tree by their keys, and forgets the fallback of one whose keys an earlier one begins
/// with.
fn without_hidden_fallbacks(mut selectors: Vec<Selector>) -> Vec<Selector> {
    for index in 0..selectors.len() {
        let (before, after) = selectors.split_at_mut(index);
        let Some(one) = after.first_mut() else { break };
        if before.iter().any(|earlier| earlier.keys.starts_with(&one.keys)) {
            one.fallback = SelectorFallback::Inherit;
        }
    }
    selectors
}

fn selector(config: &lb::subset::v3::subset::LbSubsetSelector, problems: &mut Problems) -> Selector {
    use lb::subset::v3::subset::lb_subset_selector::LbSubsetSelectorFallbackPolicy as Fallback;
    let sorted = |keys: &[String]| -> Box<[Box<str>]> {
        keys.iter().collect::<BTreeSet<_>>().into_iter().map(|key| key.as_str().into()).collect()
    };
    let keys = sorted(&config.keys);
    let fallback = match config.fallback_policy() {
        Fallback::NotDefined => SelectorFallback::Inherit,
        Fallback::NoFallback => SelectorFallback::To(SubsetFallback::None),
        Fallback::AnyEndpoint => SelectorFallback::To(SubsetFallback::Any),
        Fallback::DefaultSubset => SelectorFallback::To(SubsetFallback::Default),
        Fallback::KeysSubset => {
            let fewer = sorted(&config.fallback_keys_subset);
            let fits = fewer.iter().all(|key| keys.contains(key));
            if fewer.is_empty() || !fits || fewer.len() >= keys.len() {
                problems.report_at("fallback_keys_subset", "must be some of keys, but not all");
            }
            SelectorFallback::Keys(fewer)
        }
    };
    Selector { keys, single_host: config.single_host_per_subset, fallback }
}
