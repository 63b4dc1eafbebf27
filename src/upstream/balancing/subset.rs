//! Subsets: hosts grouped by their metadata, and which group a request goes to
//! (envoyproxy.io: load_balancing/subsets).
//!
//! Comes in: hosts and the selectors of config. Goes out: a [`SubsetIndex`], shared by all workers, and for the
//! criteria of a route a plan: which groups to ask, in order. A worker makes that plan once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::config::balancing::{
    write_pair, Criteria, CriteriaKey, HostMetadata, MetaValue, SelectorFallback, SubsetFallback, Subsets,
};
use crate::config::cluster::{Locality, Split};
use crate::config::{Host, HostSet};

/// The subsets of one host set.
#[derive(Debug)]
pub struct SubsetIndex {
    options: Arc<Subsets>,
    by_key: HashMap<CriteriaKey, u32>,
    subsets: Vec<Subset>,
    /// The default subset, where config asks for it.
    default: Option<u32>,
    /// How many hosts have no place because another is the only one of its subset.
    pub duplicates: u64,
    /// How many subsets came and went, in all the sets of hosts until this one.
    pub changes: (u64, u64),
}

/// One of them.
#[derive(Debug)]
pub struct Subset {
    /// Its hosts.
    pub split: Split,
    /// It has one host, which is used whatever its health.
    pub single: Option<u32>,
}

/// Some of a cluster's hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// All of them.
    Any,
    /// A subset.
    Subset(u32),
}

/// What to count for a pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubsetNote {
    /// A subset was selected, whether or not it has a host that may be used.
    Selected,
    /// The fallback gave a host.
    Fallback,
    /// The fallback had none, and any host was taken.
    Panic,
    /// Nothing.
    None,
}

/// Groups of hosts to ask, in order, until one gives a host.
pub type Plan = SmallVec<[(Target, SubsetNote); 2]>;

impl SubsetIndex {
    /// Groups the hosts of `set`.
    pub fn new(options: Arc<Subsets>, set: &HostSet) -> Arc<Self> {
        // In the order in which they are found, so that indices do not depend on hashes.
        let mut by_key: HashMap<CriteriaKey, u32> = HashMap::new();
        let mut groups: Vec<(Vec<u32>, bool)> = Vec::new();
        let mut duplicates = 0;
        for (index, host) in set.all.iter().enumerate() {
            let Some(metadata) = &host.template.metadata else { continue };
            let mut seen = HashSet::new();
            for selector in &options.selectors {
                for key in keys_of(metadata, &selector.keys, options.list_as_any) {
                    let group = *by_key.entry(key).or_insert_with(|| {
                        groups.push((Vec::new(), selector.single_host));
                        (groups.len() - 1) as u32
                    });
                    let Some((hosts, single)) = groups.get_mut(group as usize) else { continue };
                    if *single && !hosts.is_empty() {
                        duplicates += 1;
                    } else if seen.insert(group) {
                        hosts.push(index as u32);
                    }
                }
            }
        }
        let mut subsets: Vec<Subset> =
            groups.into_iter().map(|(hosts, single)| Subset::new(set, &options, hosts, single)).collect();
        let wants_default = options.fallback == SubsetFallback::Default
            || (options.selectors.iter())
                .any(|one| one.fallback == SelectorFallback::To(SubsetFallback::Default));
        let default = wants_default.then(|| {
            let has = |host: &Arc<Host>| match &host.template.metadata {
                Some(metadata) => metadata.has(&options.default_subset, options.list_as_any),
                None => options.default_subset.pairs().is_empty(),
            };
            let hosts = set.all.iter().enumerate().filter(|(_, host)| has(host));
            let hosts = hosts.map(|(index, _)| index as u32).collect();
            subsets.push(Subset::new(set, &options, hosts, false));
            (subsets.len() - 1) as u32
        });
        let changes = (by_key.len() as u64, 0);
        Arc::new(Self { options, by_key, subsets, default, duplicates, changes })
    }

    /// The same for other hosts.
    pub(crate) fn renewed(&self, set: &HostSet) -> Arc<Self> {
        let mut renewed = Self::new(self.options.clone(), set);
        let missing = |of: &Self, from: &Self| {
            of.by_key.keys().filter(|key| !from.by_key.contains_key(*key)).count() as u64
        };
        let (created, removed) = self.changes;
        let changes = (created + missing(&renewed, self), removed + missing(self, &renewed));
        if let Some(renewed) = Arc::get_mut(&mut renewed) {
            renewed.changes = changes;
        }
        renewed
    }

    /// One of the subsets.
    pub fn get(&self, index: u32) -> Option<&Subset> {
        self.subsets.get(index as usize)
    }

    /// How many there are, the default one not counted.
    pub fn len(&self) -> usize {
        self.subsets.len() - usize::from(self.default.is_some())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whom to ask for a request with these criteria.
    pub fn plan(&self, criteria: Option<&Criteria>) -> Plan {
        let mut plan = Plan::new();
        let Some(criteria) = criteria else {
            self.fall_back(&mut plan);
            return plan;
        };
        if !self.options.fallback_list {
            self.plan_once(criteria, &mut plan);
            return plan;
        }
        let (base, alternatives) = criteria.split_alternatives();
        match alternatives {
            Some([_, ..]) => {
                for alternative in alternatives.unwrap_or_default() {
                    let over = match alternative {
                        MetaValue::Fields(fields) => &**fields,
                        _ => &[][..],
                    };
                    self.plan_once(&base.merged(over), &mut plan);
                }
            }
            Some([]) => self.plan_once(&base, &mut plan),
            None => self.plan_once(criteria, &mut plan),
        }
        plan
    }

    fn plan_once(&self, criteria: &Criteria, plan: &mut Plan) {
        let redundant = self.options.allow_redundant_keys.then(|| self.reduced(criteria)).flatten();
        let used = redundant.as_ref().unwrap_or(criteria);
        let keys = || used.pairs().iter().map(|(key, _)| key);
        if !used.pairs().is_empty() {
            if let Some(index) = self.by_key.get(&used.key()) {
                plan.push((Target::Subset(*index), SubsetNote::Selected));
                return;
            }
            let selector = self.options.selectors.iter().find(|selector| selector.keys.iter().eq(keys()));
            match selector.map(|selector| &selector.fallback) {
                None | Some(SelectorFallback::Inherit) => {}
                Some(SelectorFallback::To(SubsetFallback::None)) => return,
                Some(SelectorFallback::To(SubsetFallback::Any)) => {
                    plan.push((Target::Any, SubsetNote::None));
                    return;
                }
                Some(SelectorFallback::To(SubsetFallback::Default)) => {
                    plan.extend(self.default.map(|index| (Target::Subset(index), SubsetNote::None)));
                    return;
                }
                // Fewer keys each time, as config makes sure.
                Some(SelectorFallback::Keys(keys)) => return self.plan_once(&used.only(keys), plan),
            }
        }
        self.fall_back(plan);
    }

    /// The criteria without keys that no selector asks for: those of the selector with the most keys among those all
    /// of whose keys they have, and of the first of these.
    fn reduced(&self, criteria: &Criteria) -> Option<Criteria> {
        let mut most: Option<Criteria> = None;
        for selector in &self.options.selectors {
            let longer = most.as_ref().is_none_or(|most| most.pairs().len() < selector.keys.len());
            let reduced = longer.then(|| criteria.only(&selector.keys));
            if let Some(reduced) = reduced.filter(|reduced| reduced.pairs().len() == selector.keys.len()) {
                most = Some(reduced);
            }
        }
        most
    }

    fn fall_back(&self, plan: &mut Plan) {
        let target = match self.options.fallback {
            SubsetFallback::None => None,
            SubsetFallback::Any => Some(Target::Any),
            SubsetFallback::Default => self.default.map(Target::Subset),
        };
        let Some(target) = target else { return };
        plan.push((target, SubsetNote::Fallback));
        if self.options.panic_mode_any {
            plan.push((Target::Any, SubsetNote::Panic));
        }
    }
}

impl Subset {
    fn new(set: &HostSet, options: &Subsets, hosts: Vec<u32>, single: bool) -> Self {
        let single = if single { hosts.first().copied() } else { None };
        let mut split = Split::new(&set.all, &set.states, hosts.into_iter(), set.options);
        if options.scale_locality_weight {
            for (level, whole) in split.priorities.iter_mut().zip(&set.priorities) {
                let sizes: BTreeMap<&Locality, usize> =
                    whole.localities.iter().map(|place| (&*place.locality, place.hosts.len())).collect();
                for place in &mut level.localities {
                    let Some(all) = sizes.get(&*place.locality).filter(|all| **all > 0) else { continue };
                    let weight = u64::from(place.weight) * place.hosts.len() as u64;
                    // No more than the weight itself.
                    place.weight = (weight as f32 / *all as f32).round() as u32;
                }
            }
        }
        Self { split, single }
    }
}

/// The keys of all subsets of one selector that a host belongs to; none if it lacks one of `names`.
fn keys_of(metadata: &HostMetadata, names: &[Box<str>], list_as_any: bool) -> Vec<CriteriaKey> {
    /// Lists multiply each other; a host is in no more subsets of a selector than this.
    const MOST: usize = 1024;
    let mut keys = vec![CriteriaKey::new()];
    for name in names {
        let Some(value) = metadata.value(name) else { return Vec::new() };
        keys = match value {
            MetaValue::List(values) if list_as_any => {
                let each = |value| keys.iter().map(move |key| (key, value));
                let both = values.iter().flat_map(each);
                let joined = both.map(|(key, value)| {
                    let mut key = key.clone();
                    write_pair(&mut key, name, value);
                    key
                });
                joined.take(MOST).collect()
            }
            value => {
                keys.iter_mut().for_each(|key| write_pair(key, name, value));
                keys
            }
        };
    }
    if names.is_empty() {
        return Vec::new();
    }
    keys
}
