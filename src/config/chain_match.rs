//! Filter-chain matching: which chain of a listener serves a connection.
//!
//! Comes in: the `FilterChainMatch` of every chain. Goes out: an index that is walked once per
//! connection, without allocating. The order is Envoy's: destination port, destination IP, server
//! name, transport protocol, application protocol, directly connected source IP, source type,
//! source IP, source port. Each step commits to its most specific entry: when a later step then
//! finds nothing, no less specific entry of an earlier one is tried (checked against Envoy 1.40).

use std::borrow::Borrow;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use outrigger_control_api::pb::envoy::config::core::v3::CidrRange;
use outrigger_control_api::pb::envoy::config::listener::v3::{FilterChain, FilterChainMatch};

use super::problems::Problems;

/// What is known of a connection when its chain is chosen.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionFacts<'a> {
    /// Where the client meant to go; `None` for Unix sockets.
    pub local: Option<SocketAddr>,
    /// The client; `None` for Unix sockets.
    pub remote: Option<SocketAddr>,
    /// The peer of the socket itself; differs from `remote` behind a PROXY protocol.
    pub direct_remote: Option<SocketAddr>,
    /// SNI in lower case; empty if there is none.
    pub server_name: &'a str,
    /// `tls`, or `raw_buffer` when nothing was detected. Empty means `raw_buffer`.
    pub transport: &'a str,
    /// Application protocols in the client's order of preference.
    pub alpn: &'a [Box<str>],
}

/// The compiled index of a listener's filter chains. The default value matches nothing.
#[derive(Debug, Default)]
pub struct ChainIndex {
    ports: Ports,
}

type Ports = Keyed<u16, Prefixes<Names>>;
type Names = Keyed<Box<str>, Transports>;
type Transports = Keyed<Box<str>, Protocols>;
type Protocols = Keyed<Box<str>, Prefixes<SourceTypes>>;
type SourceIps = Prefixes<Keyed<u16, Leaf>>;
/// The number of a chain.
type Leaf = Option<usize>;

/// What one chain may expand to: every combination of its alternatives is an entry.
const MAX_ENTRIES: usize = 1_000_000;

impl ChainIndex {
    /// Compiles the match rules of `chains`; problems are put under `filter_chains[i]`.
    pub fn compile(chains: &[FilterChain], problems: &mut Problems) -> Self {
        let mut index = Self::default();
        let none = FilterChainMatch::default();
        for (number, chain) in chains.iter().enumerate() {
            problems.at_index("filter_chains", number, |problems| {
                problems.at("filter_chain_match", |problems| {
                    let rule = Rule::compile(chain.filter_chain_match.as_ref().unwrap_or(&none), problems);
                    if let Err(other) = rule.map_or(Ok(()), |rule| index.insert(&rule, number)) {
                        let other_name = chains.get(other).map_or("", |chain| chain.name.as_str());
                        problems.report(overlap(chain, number, other, other_name));
                    }
                });
            });
        }
        index
    }

    /// The number of the chain that serves this connection.
    pub fn find(&self, facts: &ConnectionFacts<'_>) -> Option<usize> {
        let ips = self.ports.get_or_any(facts.local.map(|local| local.port()).as_ref())?;
        let names = ips.longest(facts.local.map(|local| local.ip()))?;
        let transports = by_server_name(names, facts.server_name)?;
        let transport = if facts.transport.is_empty() { "raw_buffer" } else { facts.transport };
        let protocols = transports.get_or_any(Some(transport))?;
        let protocol = facts.alpn.iter().find_map(|protocol| protocols.get(protocol.as_ref()));
        by_source(protocol.or(protocols.any.as_deref())?, facts)
    }

    /// Whether one of the `wanted` chains may serve this connection, if the client begins with a hello of TLS, whatever
    /// stands in that. What `facts` say besides its ends does not matter.
    pub fn may_find(&self, facts: &ConnectionFacts<'_>, wanted: impl Fn(usize) -> bool) -> bool {
        let ips = self.ports.get_or_any(facts.local.map(|local| local.port()).as_ref());
        let names = ips.and_then(|ips| ips.longest(facts.local.map(|local| local.ip())));
        let transports = names.into_iter().flat_map(Keyed::all);
        let protocols = transports.filter_map(|transports| transports.get_or_any(Some("tls")));
        let mut sources = protocols.flat_map(Keyed::all);
        sources.any(|sources| by_source(sources, facts).is_some_and(&wanted))
    }

    /// Enters every combination of the rule; the chain in the way if one is taken already.
    fn insert(&mut self, rule: &Rule, chain: usize) -> Result<(), usize> {
        let ips = self.ports.at(rule.port);
        for ip in &rule.ips {
            let names = ips.at(*ip);
            for name in &rule.names {
                let protocols = names.at(name.clone()).at(rule.transport.clone());
                for protocol in &rule.alpn {
                    let direct = protocols.at(protocol.clone());
                    for direct_ip in &rule.direct_ips {
                        let sources = direct.at(*direct_ip).at(rule.source_type);
                        for source_ip in &rule.source_ips {
                            let ports = sources.at(*source_ip);
                            for port in &rule.source_ports {
                                let leaf = ports.at(*port);
                                if let Some(other) = *leaf {
                                    return Err(other);
                                }
                                *leaf = Some(chain);
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

fn overlap(chain: &FilterChain, number: usize, other: usize, other_name: &str) -> String {
    if other == number {
        return "multiple filter chains with overlapping matching rules are defined: \
                the chain's own alternatives repeat each other"
            .into();
    }
    let label = |number: usize, name: &str| match name {
        "" => format!("filter_chains[{number}]"),
        name => format!("'{name}' (filter_chains[{number}])"),
    };
    format!(
        "multiple filter chains with overlapping matching rules are defined: {} and {}",
        label(other, other_name),
        label(number, &chain.name)
    )
}

/// The last steps, by where the client is.
fn by_source(direct: &Prefixes<SourceTypes>, facts: &ConnectionFacts<'_>) -> Option<usize> {
    let types = direct.longest(facts.direct_remote.map(|remote| remote.ip()))?;
    let sources = types.of(facts)?.longest(facts.remote.map(|remote| remote.ip()))?;
    *sources.get_or_any(facts.remote.map(|remote| remote.port()).as_ref())?
}

/// Exact name, then `*.` wildcards from long to short, then chains that name no server.
fn by_server_name<'a>(names: &'a Names, server_name: &str) -> Option<&'a Transports> {
    if !server_name.is_empty() {
        if let Some(exact) = names.get(server_name) {
            return Some(exact);
        }
        // Wildcards are stored with their dot: `*.a.b` as `.a.b`. One that covers the whole name, or
        // nothing but a trailing dot, does not count.
        let dots = server_name.bytes().enumerate().filter(|(at, byte)| *at > 0 && *byte == b'.');
        for (at, _) in dots.take_while(|(at, _)| at + 1 < server_name.len()) {
            if let Some(wildcard) = server_name.get(at..).and_then(|suffix| names.get(suffix)) {
                return Some(wildcard);
            }
        }
    }
    names.any.as_deref()
}

/// One chain's rule; lists hold `None` where anything will do, and are never empty.
struct Rule {
    port: Option<u16>,
    ips: Vec<Option<Network>>,
    names: Vec<Option<Box<str>>>,
    transport: Option<Box<str>>,
    alpn: Vec<Option<Box<str>>>,
    direct_ips: Vec<Option<Network>>,
    source_type: SourceType,
    source_ips: Vec<Option<Network>>,
    source_ports: Vec<Option<u16>>,
}

impl Rule {
    fn compile(rule: &FilterChainMatch, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        for (field, set) in
            [("address_suffix", !rule.address_suffix.is_empty()), ("suffix_len", rule.suffix_len.is_some())]
        {
            if set {
                problems.report_at(field, "is not implemented (nor is it in Envoy)");
            }
        }
        let port = rule.destination_port.as_ref().map(|port| port.value);
        let port = port.and_then(|value| self::port("destination_port", value, problems));
        let source_type = match rule.source_type {
            0 => SourceType::Any,
            1 => SourceType::SameIpOrLoopback,
            2 => SourceType::External,
            other => {
                problems.report_at("source_type", format!("{other} is no source type"));
                SourceType::Any
            }
        };
        let mut source_ports = Vec::with_capacity(rule.source_ports.len());
        for (index, value) in rule.source_ports.iter().enumerate() {
            source_ports
                .extend(self::port(format_args!("source_ports[{index}]"), *value, problems).map(Some));
        }
        let compiled = Self {
            port,
            ips: networks("prefix_ranges", &rule.prefix_ranges, problems),
            names: or_any(server_names(&rule.server_names, problems)),
            transport: text(&rule.transport_protocol),
            alpn: or_any(rule.application_protocols.iter().map(|protocol| text(protocol)).collect()),
            direct_ips: networks("direct_source_prefix_ranges", &rule.direct_source_prefix_ranges, problems),
            source_type,
            source_ips: networks("source_prefix_ranges", &rule.source_prefix_ranges, problems),
            source_ports: or_any(source_ports),
        };
        let lists = [
            compiled.ips.len(),
            compiled.names.len(),
            compiled.alpn.len(),
            compiled.direct_ips.len(),
            compiled.source_ips.len(),
            compiled.source_ports.len(),
        ];
        if lists.iter().fold(1usize, |product, length| product.saturating_mul(*length)) > MAX_ENTRIES {
            problems.report(format!("its alternatives combine to more than {MAX_ENTRIES} entries"));
        }
        (problems.count() == before).then_some(compiled)
    }
}

fn or_any<T>(mut list: Vec<Option<T>>) -> Vec<Option<T>> {
    if list.is_empty() {
        list.push(None);
    }
    list
}

fn text(value: &str) -> Option<Box<str>> {
    (!value.is_empty()).then(|| value.into())
}

fn port(field: impl std::fmt::Display, value: u32, problems: &mut Problems) -> Option<u16> {
    let port = u16::try_from(value).ok().filter(|port| *port > 0);
    if port.is_none() {
        problems.report_at(field, format!("{value} is not a port from 1 to 65535"));
    }
    port
}

fn server_names(names: &[String], problems: &mut Problems) -> Vec<Option<Box<str>>> {
    let mut compiled = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        let name = name.to_ascii_lowercase();
        let stored = if name.starts_with("*.") { name.get(1..).unwrap_or_default() } else { name.as_str() };
        if stored.contains('*') {
            let message = format!("partial wildcards are not supported in \"server_names\": {name:?}");
            problems.report_at(format_args!("server_names[{index}]"), message);
        }
        compiled.push(text(stored));
    }
    compiled
}

fn networks(field: &str, ranges: &[CidrRange], problems: &mut Problems) -> Vec<Option<Network>> {
    let mut networks = Vec::with_capacity(ranges.len());
    for (index, range) in ranges.iter().enumerate() {
        let length = range.prefix_len.as_ref().map_or(0, |length| length.value);
        match range.address_prefix.parse::<IpAddr>() {
            Ok(ip) => networks.push(Some(Network::new(ip, length))),
            Err(_) => problems.report_at(
                format_args!("{field}[{index}].address_prefix"),
                format!("malformed IP address: {}", range.address_prefix),
            ),
        }
    }
    or_any(networks)
}

/// A CIDR range without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    V4(u32, u8),
    V6(u128, u8),
}

impl Network {
    /// A prefix longer than the address counts as the whole address, as in Envoy.
    fn new(ip: IpAddr, length: u32) -> Self {
        match ip {
            IpAddr::V4(ip) => {
                let length = length.min(32) as u8;
                Network::V4(ip.to_bits() & mask4(length), length)
            }
            IpAddr::V6(ip) => {
                let length = length.min(128) as u8;
                Network::V6(ip.to_bits() & mask6(length), length)
            }
        }
    }
}

fn mask4(length: u8) -> u32 {
    u32::MAX.checked_shl(32u32.saturating_sub(length.into())).unwrap_or(0)
}

fn mask6(length: u8) -> u128 {
    u128::MAX.checked_shl(128u32.saturating_sub(length.into())).unwrap_or(0)
}

/// A map as a sorted list: compact, and searched without hashing.
#[derive(Debug)]
struct Sorted<K, V>(Vec<(K, V)>);

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord, V> Sorted<K, V> {
    fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let at = self.0.binary_search_by(|(own, _)| own.borrow().cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    fn entry(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        let at = match self.0.binary_search_by(|(own, _)| own.cmp(&key)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (key, V::default()));
                at
            }
        };
        // `at` was found or inserted just above.
        &mut self.0[at].1
    }
}

/// A step by exact value, with an entry for chains that do not name one.
#[derive(Debug)]
struct Keyed<K, V> {
    exact: Sorted<K, V>,
    any: Option<Box<V>>,
}

impl<K, V> Default for Keyed<K, V> {
    fn default() -> Self {
        Self { exact: Sorted::default(), any: None }
    }
}

impl<K: Ord, V> Keyed<K, V> {
    fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.exact.get(key)
    }

    fn get_or_any<Q: Ord + ?Sized>(&self, key: Option<&Q>) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        key.and_then(|key| self.get(key)).or(self.any.as_deref())
    }

    fn all(&self) -> impl Iterator<Item = &V> {
        self.exact.0.iter().map(|(_, value)| value).chain(self.any.as_deref())
    }

    fn at(&mut self, key: Option<K>) -> &mut V
    where
        V: Default,
    {
        match key {
            Some(key) => self.exact.entry(key),
            None => self.any.get_or_insert_with(Box::default),
        }
    }
}

/// A step by longest prefix. Lengths are sorted from long to short.
#[derive(Debug)]
struct Prefixes<V> {
    v4: Vec<(u8, Sorted<u32, V>)>,
    v6: Vec<(u8, Sorted<u128, V>)>,
    any: Option<Box<V>>,
}

impl<V> Default for Prefixes<V> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new(), any: None }
    }
}

impl<V> Prefixes<V> {
    fn longest(&self, ip: Option<IpAddr>) -> Option<&V> {
        // Envoy prefers a chain without ranges to one with a range of length zero.
        let (real, zero) = match ip {
            Some(IpAddr::V4(ip)) => longest(&self.v4, |length| ip.to_bits() & mask4(length)),
            Some(IpAddr::V6(ip)) => longest(&self.v6, |length| ip.to_bits() & mask6(length)),
            None => (None, None),
        };
        real.or(self.any.as_deref()).or(zero)
    }

    fn at(&mut self, network: Option<Network>) -> &mut V
    where
        V: Default,
    {
        match network {
            Some(Network::V4(bits, length)) => of_length(&mut self.v4, length).entry(bits),
            Some(Network::V6(bits, length)) => of_length(&mut self.v6, length).entry(bits),
            None => self.any.get_or_insert_with(Box::default),
        }
    }
}

fn of_length<K, V>(lengths: &mut Vec<(u8, Sorted<K, V>)>, length: u8) -> &mut Sorted<K, V> {
    let at = match lengths.binary_search_by(|(own, _)| length.cmp(own)) {
        Ok(at) => at,
        Err(at) => {
            lengths.insert(at, (length, Sorted::default()));
            at
        }
    };
    // `at` was found or inserted just above.
    &mut lengths[at].1
}

/// The longest hit of a length above zero, else the one of length zero.
fn longest<K: Ord, V>(lengths: &[(u8, Sorted<K, V>)], masked: impl Fn(u8) -> K) -> (Option<&V>, Option<&V>) {
    for (length, networks) in lengths {
        match (length, networks.get(&masked(*length))) {
            (_, None) => {}
            (0, zero) => return (None, zero),
            (_, real) => return (real, None),
        }
    }
    (None, None)
}

#[derive(Clone, Copy, Debug)]
enum SourceType {
    Any,
    SameIpOrLoopback,
    External,
}

/// The step by source type.
#[derive(Debug, Default)]
struct SourceTypes {
    any: Option<Box<SourceIps>>,
    local: Option<Box<SourceIps>>,
    external: Option<Box<SourceIps>>,
}

impl SourceTypes {
    fn of(&self, facts: &ConnectionFacts<'_>) -> Option<&SourceIps> {
        let specific = if is_local(facts) { &self.local } else { &self.external };
        specific.as_deref().or(self.any.as_deref())
    }

    fn at(&mut self, source_type: SourceType) -> &mut SourceIps {
        let place = match source_type {
            SourceType::Any => &mut self.any,
            SourceType::SameIpOrLoopback => &mut self.local,
            SourceType::External => &mut self.external,
        };
        place.get_or_insert_with(Box::default)
    }
}

/// Envoy's notion: Unix sockets, the loopback address itself (not its whole network), and peers
/// with our own address.
fn is_local(facts: &ConnectionFacts<'_>) -> bool {
    match facts.remote.map(|remote| remote.ip()) {
        None => true,
        Some(IpAddr::V4(Ipv4Addr::LOCALHOST)) => true,
        Some(IpAddr::V6(ip)) if ip.is_loopback() => true,
        Some(ip) => facts.local.is_some_and(|local| local.ip() == ip),
    }
}

#[cfg(test)]
#[path = "chain_match_tests.rs"]
mod tests;
