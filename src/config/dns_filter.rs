//! Names that this proxy answers itself (`envoy.extensions.filters.udp.dns_filter.v3`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::cluster::Dns;
use super::{Cluster, Slot};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::stats::DnsFilterStats;

/// TTL of an answer where config says nothing, in seconds.
pub const DEFAULT_TTL: u32 = 300;
/// The dynamic metadata that logs of queries read.
pub const QUERY_METADATA: &str = "envoy.filters.udp.dns_filter";
/// How many labels, from the last, a suffix has at most.
const SUFFIX_LABELS: usize = 2;

/// A compiled `DnsFilterConfig`.
#[derive(Debug)]
pub struct DnsFilter {
    /// What is known here.
    pub table: DnsTable,
    /// Who is asked for the rest; `None`: nobody.
    pub forward: Option<Forward>,
    /// What is written of each query.
    pub access_logs: Vec<AccessLog>,
    /// Statistics under `dns_filter.<stat_prefix>.`.
    pub stats: DnsFilterStats,
}

/// How queries are forwarded.
#[derive(Debug)]
pub struct Forward {
    /// The name servers.
    pub dns: Dns,
    /// How long one try may take. Default 500 ms, at least 1 s where it is set.
    pub timeout: Duration,
    /// How often a name is asked for again that nobody has answered for. 0 to 3.
    pub retries: u32,
    /// A worker asks for no more when it waits for more answers than this.
    pub max_pending: u64,
}

/// Virtual domains by suffix, as Envoy finds them: a name in one of its suffixes is a known domain.
#[derive(Debug, Default)]
pub struct DnsTable {
    domains: HashMap<Box<str>, HashMap<Box<str>, Endpoint>>,
    ttls: HashMap<Box<str>, u32>,
    /// Names are the same in capitals. The table's own have none then.
    pub case_insensitive: bool,
}

/// What a name stands for.
#[derive(Debug)]
pub enum Endpoint {
    /// These addresses.
    Addresses(Vec<IpAddr>),
    /// The endpoints of a cluster.
    Cluster(Arc<Slot<Cluster>>),
    /// What offers a service.
    Service(Service),
}

/// A service: `_name._protocol.domain`.
#[derive(Debug)]
pub struct Service {
    /// TTL in seconds.
    pub ttl: u32,
    /// Who offers it; at least one.
    pub targets: Vec<Target>,
}

/// Who offers a service.
#[derive(Debug)]
pub struct Target {
    /// A host's name, or a cluster's.
    pub name: Box<str>,
    /// The cluster of that name, where it is one's.
    pub cluster: Option<Arc<Slot<Cluster>>>,
    /// As SRV records have it.
    pub priority: u16,
    /// As SRV records have it.
    pub weight: u16,
    /// The port; 0 is the endpoint's own where the target is a cluster.
    pub port: u16,
}

impl DnsTable {
    /// A table that knows nothing yet.
    pub fn new(case_insensitive: bool) -> Self {
        Self { case_insensitive, ..Self::default() }
    }

    /// Adds a name below the suffix of `domain`. What is there first stays, and a second list of addresses adds to the
    /// first.
    pub fn insert(&mut self, domain: &str, name: &str, endpoint: Endpoint) {
        use std::collections::hash_map::Entry;
        let names = self.domains.entry(suffix(domain).into()).or_default();
        match (names.entry(name.into()), endpoint) {
            (Entry::Vacant(place), endpoint) => {
                place.insert(endpoint);
            }
            (Entry::Occupied(mut known), Endpoint::Addresses(more)) => {
                if let Endpoint::Addresses(addresses) = known.get_mut() {
                    addresses.extend(more);
                }
            }
            _ => {}
        }
    }

    /// Sets the TTL of answers for a name, unless it is set.
    pub fn insert_ttl(&mut self, name: &str, ttl: u32) {
        self.ttls.entry(name.into()).or_insert(ttl);
    }

    /// Whether any virtual domain ends as `name` does.
    pub fn knows_suffix(&self, name: &str) -> bool {
        self.domains.contains_key(suffix(name))
    }

    /// What is known of `name`: itself, or the longest wildcard that holds it.
    pub fn find(&self, name: &str) -> Option<&Endpoint> {
        let names = self.domains.get(suffix(name))?;
        let dots = name.match_indices('.').map(|(at, _)| at).filter(|at| *at > 0);
        std::iter::once(0).chain(dots).find_map(|at| names.get(name.get(at..)?))
    }

    /// The TTL of answers for `name`, which a wildcard does not set.
    pub fn ttl(&self, name: &str) -> u32 {
        self.ttls.get(name).copied().unwrap_or(DEFAULT_TTL)
    }

    /// How a virtual domain's name is kept: `*.example.com` as `.example.com`.
    pub fn key(domain: &str) -> &str {
        domain.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(domain)
    }
}

/// The last two labels of a name.
fn suffix(name: &str) -> &str {
    let start = name.rmatch_indices('.').nth(SUFFIX_LABELS - 1).map_or(0, |(at, _)| at + 1);
    name.get(start..).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(names: &[&str]) -> DnsTable {
        let mut table = DnsTable::new(false);
        for (number, name) in names.iter().enumerate() {
            let key = DnsTable::key(name);
            let address = IpAddr::from([10, 0, 0, u8::try_from(number).unwrap()]);
            table.insert(key, key, Endpoint::Addresses(vec![address]));
        }
        table
    }

    fn number(table: &DnsTable, name: &str) -> Option<u8> {
        match table.find(name)? {
            Endpoint::Addresses(list) => match list.first()? {
                IpAddr::V4(ip) => Some(ip.octets()[3]),
                IpAddr::V6(_) => None,
            },
            _ => None,
        }
    }

    #[test]
    fn the_longest_wildcard_holds_a_name_that_is_not_there_itself() {
        let table = table(&["*.example.com", "*.foo.example.com", "bar.foo.example.com", "*foo.example.com"]);
        for (name, wanted) in [
            ("bar.foo.example.com", Some(2)),
            ("baz.foo.example.com", Some(1)),
            ("a.b.foo.example.com", Some(1)),
            ("foo.example.com", Some(0)),
            ("*foo.example.com", Some(3)),
            ("example.com", None),
            ("example.org", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(number(&table, name), wanted, "{name}");
        }
    }

    #[test]
    fn a_known_domain_shares_the_last_two_labels() {
        let table = table(&["a.b.example.com", "single"]);
        for (name, wanted) in [
            ("example.com", true),
            ("x.y.z.example.com", true),
            ("com", false),
            ("other.com", false),
            ("single", true),
            ("a.single", false),
        ] {
            assert_eq!(table.knows_suffix(name), wanted, "{name}");
        }
    }

    #[test]
    fn a_second_list_of_addresses_adds_to_the_first() {
        let mut table = table(&["a.example.com"]);
        table.insert("a.example.com", "a.example.com", Endpoint::Addresses(vec![IpAddr::from([1; 4])]));
        assert!(matches!(table.find("a.example.com"), Some(Endpoint::Addresses(list)) if list.len() == 2));
    }
}
