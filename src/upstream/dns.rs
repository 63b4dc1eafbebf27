//! DNS discovery: keeps the hosts of a STRICT_DNS or LOGICAL_DNS cluster what its names resolve to.
//!
//! Comes in: a compiled cluster whose discovery is DNS. Goes out: host sets stored in
//! `cluster.hosts`, membership and `update_*` statistics. Runs on the control thread, one task per
//! cluster; every name has its own timer, as in Envoy. Dropping the future stops all of it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::Name;
use hickory_resolver::{system_conf, TokioResolver, MAX_TTL};
use tokio::sync::oneshot;
use tokio::task::{Id, JoinSet};

use crate::config::cluster::{Address, Discovery, Dns, DnsFamily, DnsName, Health, HealthFlags};
use crate::config::{Cluster, Host, HostSet};

/// How long start-up waits for the first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// Why a name has no addresses now.
#[derive(Debug, thiserror::Error)]
enum DnsError {
    #[error("{name:?} is not a host name: {reason}")]
    Name { name: Arc<str>, reason: String },
    #[error("no resolver for {name:?}: {reason}")]
    Resolver { name: Arc<str>, reason: NetError },
    #[error("resolving {name:?} failed: {reason}")]
    Lookup { name: Arc<str>, reason: NetError },
    #[error("resolving a name was aborted")]
    Aborted,
    #[error("{name:?} has no addresses")]
    Empty { name: Arc<str> },
}

/// What a name resolved to. No addresses: the name exists without an address of the wanted family.
struct Answer {
    addresses: Vec<IpAddr>,
    /// The smallest TTL of the records, if they came from a name server.
    ttl: Option<Duration>,
}

/// Resolves the cluster's names again and again and keeps its host set current. Returns only when
/// there is nothing (more) to do: the cluster is not a DNS one, or all its names are IP addresses.
///
/// Hosts already in `cluster.hosts` are kept when address and template stay the same.
pub async fn follow(cluster: Arc<Cluster>) {
    run(cluster, None).await;
}

/// [`follow`], telling `first` when every name was answered once, well or badly. For
/// [`first_resolution`].
pub async fn follow_announcing(cluster: Arc<Cluster>, first: oneshot::Sender<()>) {
    run(cluster, Some(first)).await;
}

/// Waits until every name of a cluster was answered once; at most 5 s. True when they were (or
/// there was nothing to resolve), false when time ran out.
pub async fn first_resolution(first: oneshot::Receiver<()>) -> bool {
    tokio::time::timeout(FIRST_ANSWER, first).await.is_ok()
}

/// Counts the hosts that a cluster has from the start, and publishes them.
pub fn announce_members(cluster: &Cluster) {
    if !cluster.hosts.load().all.is_empty() {
        cluster.stats().membership_change.increment(1);
    }
    publish_membership(cluster);
}

/// Sets the membership gauges to what the cluster's host set is now.
pub fn publish_membership(cluster: &Cluster) {
    let hosts = cluster.hosts.load();
    let of = |health| hosts.all.iter().filter(|host| host.health() == health).count() as f64;
    let stats = cluster.stats();
    stats.membership_total.set(hosts.all.len() as f64);
    stats.membership_healthy.set(of(Health::Healthy));
    stats.membership_degraded.set(of(Health::Degraded));
    let excluded = hosts.priorities.iter().map(|level| level.excluded).sum::<u32>();
    stats.membership_excluded.set(f64::from(excluded));
    // Envoy keeps this one only where the hosts may change.
    if let Discovery::StrictDns(_) = cluster.discovery {
        let heaviest = hosts.all.iter().map(|host| host.template.weight).max().unwrap_or(0);
        stats.max_host_weight.set(f64::from(heaviest));
    }
}

/// One name and what is known of it.
struct Target {
    name: DnsName,
    /// The last good answer: sorted for STRICT_DNS, at most one for LOGICAL_DNS.
    addresses: Vec<SocketAddr>,
    answered: bool,
    failing: bool,
    /// The back-off's next upper bound; `None` after a success.
    step: Option<Duration>,
    task: Option<Id>,
}

impl Target {
    /// Time until the next try after a failure.
    fn after_failure(&mut self, dns: &Dns) -> Duration {
        let Some((base, max)) = dns.failure_refresh else { return dns.refresh };
        let step = self.step.unwrap_or(base).min(max);
        self.step = Some(step.saturating_mul(2));
        let bound = u64::try_from(step.as_millis()).unwrap_or(u64::MAX).max(1);
        // Fully jittered, as Envoy's: many proxies that lost one name server do not return at once.
        Duration::from_millis(fastrand::u64(1..=bound))
    }
}

async fn run(cluster: Arc<Cluster>, mut first: Option<oneshot::Sender<()>>) {
    let (dns, logical) = match &cluster.discovery {
        Discovery::StrictDns(dns) => (dns, false),
        Discovery::LogicalDns(dns) => (dns, true),
        _ => return,
    };
    publish_membership(&cluster);
    let resolver = Arc::new(Resolver::new(dns.clone()));
    let mut lookups = JoinSet::new();
    let schedule = |lookups: &mut JoinSet<_>, index: usize, target: &mut Target, delay: Duration| {
        let (cluster, resolver, host) = (cluster.clone(), resolver.clone(), target.name.host.clone());
        let lookup = async move {
            tokio::time::sleep(delay).await;
            cluster.stats().update_attempt.increment(1);
            (index, resolver.resolve(&host).await)
        };
        target.task = Some(lookups.spawn(lookup).id());
    };
    let mut targets: Vec<Target> = Vec::with_capacity(dns.names.len());
    for (index, name) in dns.names.iter().enumerate() {
        let mut target = Target {
            name: name.clone(),
            addresses: Vec::new(),
            answered: false,
            failing: false,
            step: None,
            task: None,
        };
        schedule(&mut lookups, index, &mut target, Duration::ZERO);
        targets.push(target);
    }
    while let Some(done) = lookups.join_next().await {
        let (index, answer) = match done {
            Ok(done) => done,
            // The resolver panicked; the name stays followed.
            Err(error) => match targets.iter().position(|target| target.task == Some(error.id())) {
                Some(index) => (index, Err(DnsError::Aborted)),
                None => continue,
            },
        };
        // `index` comes from the enumeration that filled `targets`.
        let target = &mut targets[index];
        let delay = take_answer(&cluster, dns, logical, target, answer);
        target.answered = true;
        if target.name.host.parse::<IpAddr>().is_err() {
            // A zero interval would spin.
            schedule(&mut lookups, index, target, delay.max(Duration::from_millis(1)));
        }
        if !target.failing {
            store(&cluster, &targets);
        }
        if targets.iter().all(|target| target.answered) {
            if let Some(first) = first.take() {
                // Nobody need wait for it.
                let _ = first.send(());
            }
        }
    }
}

/// Counts the answer, keeps its addresses, and says when to ask again.
fn take_answer(
    cluster: &Cluster,
    dns: &Dns,
    logical: bool,
    target: &mut Target,
    answer: Result<Answer, DnsError>,
) -> Duration {
    let stats = cluster.stats();
    let answer = answer.and_then(|answer| {
        // A logical host without address is of no use: its last one is kept. (`update_empty` is not for
        // DNS, in Envoy either.)
        if answer.addresses.is_empty() && logical {
            return Err(DnsError::Empty { name: target.name.host.clone() });
        }
        Ok(answer)
    });
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            stats.update_failure.increment(1);
            if !target.failing {
                let kept = target.addresses.len();
                tracing::warn!(cluster = &*cluster.name, "{error}; keeping {kept} known addresses");
            }
            target.failing = true;
            return target.after_failure(dns);
        }
    };
    stats.update_success.increment(1);
    if target.failing {
        tracing::info!(cluster = &*cluster.name, "{:?} resolves again", target.name.host);
    }
    target.failing = false;
    target.step = None;
    target.addresses = answer.addresses.iter().map(|ip| SocketAddr::new(*ip, target.name.port)).collect();
    if logical {
        target.addresses.truncate(1);
    } else {
        // Servers rotate their answers; the order means nothing here.
        target.addresses.sort_unstable();
        target.addresses.dedup();
    }
    answer.ttl.filter(|ttl| dns.respect_ttl && !ttl.is_zero()).unwrap_or(dns.refresh)
}

/// Swaps in the host set that `targets` describe, if it differs from the present one.
fn store(cluster: &Cluster, targets: &[Target]) {
    let present = cluster.hosts.load_full();
    let mut known: HashMap<&Address, Vec<&Arc<Host>>> = HashMap::new();
    for host in &present.all {
        known.entry(&host.address).or_default().push(host);
    }
    let mut hosts = Vec::new();
    for target in targets {
        let template = &target.name.template;
        for address in &target.addresses {
            let address = Address::Ip(*address);
            let same = known.get_mut(&address).and_then(|hosts| {
                let equal = |host: &&Arc<Host>| host.template == *template;
                let at = hosts.iter().position(equal);
                let at = at.or_else(|| hosts.iter().position(|host| host.is_same_endpoint(template)))?;
                // Each host once: two equal names make two hosts, as in Envoy.
                let host = hosts.remove(at);
                Some(if equal(&host) { host.clone() } else { host.described(template.clone()) })
            });
            hosts.push(same.unwrap_or_else(|| Host::new(address, template.clone())));
        }
    }
    let unchanged = hosts.len() == present.all.len()
        && hosts.iter().zip(&present.all).all(|(new, old)| Arc::ptr_eq(new, old))
        && !hosts.iter().any(|host| host.shared.health.has(HealthFlags::PENDING_DYNAMIC_REMOVAL));
    if unchanged {
        cluster.stats().update_no_rebuild.increment(1);
        return;
    }
    let options = cluster.split_options();
    cluster.hosts.store(HostSet::new(hosts, options));
    let changed = !cluster.hosts.load().has_members_of(&present);
    cluster.stats().membership_change.increment(u64::from(changed));
    publish_membership(cluster);
}

/// When `/etc/resolv.conf` and `/etc/hosts` were last changed.
type SystemFiles = [Option<SystemTime>; 2];

/// Answers by the options of one cluster, or of a listener that forwards queries. Made anew when the system's files change, which they do
/// when a network comes up or a pod's hosts are edited.
#[derive(Debug)]
pub struct Resolver {
    dns: Dns,
    current: Mutex<Option<(SystemFiles, TokioResolver)>>,
}

impl Resolver {
    /// One that answers by the options of `dns`.
    pub fn new(dns: Dns) -> Self {
        Self { dns, current: Mutex::default() }
    }

    /// The addresses of a name; none where it has none, or nobody says.
    pub async fn addresses(&self, host: &Arc<str>) -> Vec<IpAddr> {
        match self.resolve(host).await {
            Ok(answer) => answer.addresses,
            Err(reason) => {
                tracing::debug!("{reason}");
                Vec::new()
            }
        }
    }

    async fn resolve(&self, host: &Arc<str>) -> Result<Answer, DnsError> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Answer { addresses: vec![ip], ttl: None });
        }
        if host.is_empty() {
            return Err(DnsError::Name { name: host.clone(), reason: "it is empty".to_owned() });
        }
        let name = Name::from_str_relaxed(&**host)
            .map_err(|reason| DnsError::Name { name: host.clone(), reason: reason.to_string() })?;
        let resolver = self.current().map_err(|reason| DnsError::Resolver { name: host.clone(), reason })?;
        // Every refresh asks: the interval is ours, not a cache's.
        resolver.clear_cache();
        match resolver.lookup_ip(name).await {
            Ok(found) => {
                let ttl = found.as_lookup().answers().iter().map(|record| record.ttl).min();
                // The hosts file and special names come with the largest TTL there is.
                let ttl = ttl.filter(|ttl| *ttl < MAX_TTL).map(|ttl| Duration::from_secs(ttl.into()));
                Ok(Answer { addresses: found.iter().collect(), ttl })
            }
            // A name that is not there (NXDOMAIN) or has no address is an answer: as in Envoy the
            // hosts go away. Without any answer the last good ones stay.
            Err(reason) if reason.is_no_records_found() => Ok(Answer { addresses: Vec::new(), ttl: None }),
            Err(reason) => Err(DnsError::Lookup { name: host.clone(), reason }),
        }
    }

    fn current(&self) -> Result<TokioResolver, NetError> {
        let files = ["/etc/resolv.conf", "/etc/hosts"]
            .map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok());
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, resolver)) = &*current {
            if *of == files {
                return Ok(resolver.clone());
            }
        }
        let resolver = build(&self.dns)?;
        *current = Some((files, resolver.clone()));
        Ok(resolver)
    }
}

fn build(dns: &Dns) -> Result<TokioResolver, NetError> {
    let servers = |addresses: &[SocketAddr]| addresses.iter().map(|a| server(*a, dns.tcp)).collect();
    let (config, mut options) = match system_conf::read_system_conf() {
        Ok((config, options)) => {
            let (domain, search, mut system) = config.into_parts();
            if dns.tcp {
                for server in &mut system {
                    server.connections.retain(|connection| connection.protocol == ProtocolConfig::Tcp);
                }
            }
            let system = if dns.resolvers.is_empty() { system } else { servers(&dns.resolvers) };
            match dns.no_search_domain {
                true => (ResolverConfig::from_name_servers(system), options),
                // The machine's own domain counts only where no search list is given.
                false if search.is_empty() => (ResolverConfig::from_parts(domain, search, system), options),
                false => (ResolverConfig::from_parts(None, search, system), options),
            }
        }
        // Without a resolv.conf a name server on this machine is asked, as by other resolvers.
        Err(_) if dns.resolvers.is_empty() => {
            let local = SocketAddr::from(([127, 0, 0, 1], 53));
            (ResolverConfig::from_name_servers(servers(&[local])), ResolverOpts::default())
        }
        Err(_) => (ResolverConfig::from_name_servers(servers(&dns.resolvers)), ResolverOpts::default()),
    };
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Always;
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    // Answers of addresses only: an alias without an address must count as no answer.
    options.preserve_intermediates = false;
    options.ip_strategy = match dns.family {
        DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
        DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        // As in Envoy: of a logical host the first is used.
        DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    };
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build()
}

fn server(address: SocketAddr, tcp_only: bool) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::tcp()];
    if !tcp_only {
        connections.insert(0, ConnectionConfig::udp());
    }
    for connection in &mut connections {
        connection.port = address.port();
    }
    NameServerConfig::new(address.ip(), true, connections)
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
