//! What capture does to packets, as rules that people can read.
//!
//! Comes in: [`Options`]. Goes out: [`Table`]s, one for each version of IP, equal but for addresses. Shown in the
//! language of `nft`.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::options::{Inbound, List, Options};

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// As nft calls it.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    fn loopback(self) -> Cidr {
        match self {
            Family::V4 => Cidr::host(Ipv4Addr::LOCALHOST.into()),
            Family::V6 => Cidr::host(Ipv6Addr::LOCALHOST.into()),
        }
    }

    /// From where a sidecar connects to its own application when it must not be captured: `127.0.0.6`, `::6`.
    fn passthrough(self) -> Cidr {
        match self {
            Family::V4 => Cidr::host(Ipv4Addr::new(127, 0, 0, 6).into()),
            Family::V6 => Cidr::host(Ipv6Addr::from_bits(6).into()),
        }
    }
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// One of them.
    pub address: IpAddr,
    /// How many of its first bits they share.
    pub length: u8,
}

impl Cidr {
    fn host(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    fn is_of(&self, family: Family) -> bool {
        self.address.is_ipv4() == (family == Family::V4)
    }
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no IP address and no range like 10.0.0.0/8");
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let whole = Self::host(address.parse().map_err(|_| wrong())?);
        let length = length.unwrap_or(whole.length);
        (length <= whole.length).then_some(Self { length, ..whole }).ok_or_else(wrong)
    }
}

impl Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::host(self.address).length == self.length {
            true => self.address.fmt(f),
            false => write!(f, "{}/{}", self.address, self.length),
        }
    }
}

/// A table of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Of which packets.
    pub family: Family,
    /// Its name.
    pub name: &'static str,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// A list of rules, gone through in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where packets come to it by themselves.
    pub hook: Option<Hook>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A place on the way of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What may be done there.
    pub kind: Kind,
    /// Which place.
    pub point: Point,
    /// Lower ones are first.
    pub priority: i32,
}

/// What a chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Nat,
    Filter,
    Route,
}

impl Kind {
    /// As nf_tables calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Nat => "nat",
            Kind::Filter => "filter",
            Kind::Route => "route",
        }
    }
}

/// The places that capture uses, with their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Point {
    Prerouting = 0,
    Output = 3,
}

impl Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let point = match self.point {
            Point::Prerouting => "prerouting",
            Point::Output => "output",
        };
        write!(f, "type {} hook {point} priority {}", self.kind.name(), self.priority)
    }
}

/// What is done to the packets that fulfil all conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The conditions.
    pub matches: Vec<Match>,
    /// What is done.
    pub action: Action,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Match {
    Transport(Transport),
    /// The destination's; after the transport.
    Port {
        port: u16,
        not: bool,
    },
    To {
        cidr: Cidr,
        not: bool,
    },
    From(Cidr),
    /// By the name of an interface; `+` at the end stands for anything.
    Out(String),
    In(String),
    /// Of the socket's owner.
    User(u32),
    Group {
        id: u32,
        not: bool,
    },
    Mark(u32),
    ConnectionMark(u32),
    State(State),
}

impl Match {
    /// Whether connections have to be tracked for it.
    pub fn is_tracked(&self) -> bool {
        matches!(self, Match::ConnectionMark(_) | Match::State(_))
    }
}

/// Of a connection as it is tracked, with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum State {
    Invalid = 1,
    New = 8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Transport {
    Tcp,
    Udp,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Action {
    Accept,
    Drop,
    /// As where nobody listens: a connection is refused. Only of TCP.
    Reset,
    Return,
    Goto(&'static str),
    /// To this port of the machine.
    Redirect(u16),
    /// To the socket of this port, the packet as it is.
    Tproxy(u16),
    /// The connection gets the packet's mark.
    SaveMark,
    /// The packet gets the connection's mark.
    RestoreMark,
}

impl Rule {
    /// As nft shows it.
    pub fn shown(&self, family: Family) -> String {
        let mut text = String::new();
        let mut transport = "th";
        for condition in &self.matches {
            let not = |not: &bool| if *not { "!= " } else { "" };
            let part = match condition {
                Match::Transport(kind) => {
                    transport = match kind {
                        Transport::Tcp => "tcp",
                        Transport::Udp => "udp",
                    };
                    format!("meta l4proto {transport}")
                }
                Match::Port { port, not: opposite } => format!("{transport} dport {}{port}", not(opposite)),
                Match::To { cidr, not: opposite } => {
                    format!("{} daddr {}{cidr}", family.name(), not(opposite))
                }
                Match::From(cidr) => format!("{} saddr {cidr}", family.name()),
                Match::Out(name) => format!("oifname \"{}\"", name.replace('+', "*")),
                Match::In(name) => format!("iifname \"{}\"", name.replace('+', "*")),
                Match::User(id) => format!("meta skuid {id}"),
                Match::Group { id, not: opposite } => format!("meta skgid {}{id}", not(opposite)),
                Match::Mark(mark) => format!("meta mark {mark:#x}"),
                Match::ConnectionMark(mark) => format!("ct mark {mark:#x}"),
                Match::State(State::Invalid) => "ct state invalid".to_owned(),
                Match::State(State::New) => "ct state new".to_owned(),
            };
            text.push_str(&part);
            text.push(' ');
        }
        text.push_str(&match &self.action {
            Action::Accept => "accept".to_owned(),
            Action::Drop => "drop".to_owned(),
            Action::Reset => "reject with tcp reset".to_owned(),
            Action::Return => "return".to_owned(),
            Action::Goto(chain) => format!("goto {chain}"),
            Action::Redirect(port) => format!("redirect to :{port}"),
            Action::Tproxy(port) => format!("tproxy to :{port} accept"),
            Action::SaveMark => "ct mark set meta mark".to_owned(),
            Action::RestoreMark => "meta mark set ct mark".to_owned(),
        });
        text
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family.name(), self.name)?;
        for chain in &self.chains {
            writeln!(f, "\tchain {} {{", chain.name)?;
            if let Some(hook) = chain.hook {
                writeln!(f, "\t\t{hook}; policy accept;")?;
            }
            for rule in &chain.rules {
                writeln!(f, "\t\t{}", rule.shown(self.family))?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

/// The name of the tables.
const NAME: &str = "outrigger";
/// Where the application's packets go that are the proxy's to send on.
const OWN: &str = "of_the_proxy";
/// What the proxies of a mesh tunnel through; it is not captured.
const TCP: Match = Match::Transport(Transport::Tcp);

fn port(port: u16) -> Match {
    Match::Port { port, not: false }
}

fn lo() -> Match {
    Match::Out("lo".to_owned())
}

/// The table for one version of IP.
pub fn table(options: &Options, family: Family) -> Table {
    let mut chains = Vec::new();
    match options.mode {
        Inbound::Redirect => chains.push(inbound_redirect(options, family)),
        Inbound::Tproxy => {
            chains.extend([inbound_tproxy(options), inbound_virtual(options, family), replies(options)]);
        }
    }
    if options.drop_invalid {
        let hook = Hook { kind: Kind::Filter, point: Point::Prerouting, priority: -151 };
        let rules = vec![Rule { matches: vec![TCP, Match::State(State::Invalid)], action: Action::Drop }];
        chains.push(Chain { name: "invalid", hook: Some(hook), rules });
    }
    chains.push(outbound(options, family));
    chains.push(of_the_proxy(options, family));
    Table { family, name: NAME, chains }
}

/// The same for kernels that cannot refuse what comes in before they know where it goes: it is dropped.
pub fn without_resets(mut table: Table) -> Table {
    let rules = table.chains.iter_mut().flat_map(|chain| &mut chain.rules);
    rules.filter(|rule| rule.action == Action::Reset).for_each(|rule| rule.action = Action::Drop);
    table
}

/// A table as it is named, for removing it.
pub fn named(family: Family) -> Table {
    Table { family, name: NAME, chains: Vec::new() }
}

const NAT: i32 = -100;
const MANGLE: i32 = -150;

struct Rules(Vec<Rule>);

impl Rules {
    fn add(&mut self, matches: impl Into<Vec<Match>>, action: Action) {
        self.0.push(Rule { matches: matches.into(), action });
    }

    /// What comes in from outside and is left alone.
    fn inbound_exceptions(&mut self, options: &Options) {
        for name in &options.exclude_interfaces {
            self.add([Match::In(name.clone())], Action::Return);
        }
        if options.tunnel_port != 0 {
            self.add([TCP, port(options.tunnel_port)], Action::Return);
        }
        for excluded in &options.inbound_exclude {
            self.add([TCP, port(*excluded)], Action::Return);
        }
    }

    /// What comes from interfaces of virtual machines goes out, seen from here.
    fn virtual_interfaces(&mut self, options: &Options, family: Family) {
        for name in &options.virtual_interfaces {
            let from = || vec![Match::In(name.clone()), TCP];
            match &options.outbound_include {
                List::All => self.add(from(), Action::Redirect(options.outbound_port)),
                List::Some(ranges) => {
                    for cidr in ranges.iter().filter(|cidr| cidr.is_of(family)) {
                        let to = Match::To { cidr: *cidr, not: false };
                        self.add([from(), vec![to]].concat(), Action::Redirect(options.outbound_port));
                    }
                }
            }
            self.add([Match::In(name.clone())], Action::Return);
        }
    }

    fn captured(&mut self, options: &Options, before: &[Match], action: &Action) {
        match &options.inbound_include {
            List::All => self.add([&[TCP], before].concat(), action.clone()),
            List::Some(ports) => {
                for included in ports {
                    self.add([&[TCP, port(*included)], before].concat(), action.clone());
                }
            }
        }
    }
}

fn inbound_redirect(options: &Options, family: Family) -> Chain {
    let mut rules = Rules(Vec::new());
    rules.virtual_interfaces(options, family);
    rules.inbound_exceptions(options);
    rules.captured(options, &[], &Action::Redirect(options.inbound_port));
    let hook = Hook { kind: Kind::Nat, point: Point::Prerouting, priority: NAT };
    Chain { name: "inbound", hook: Some(hook), rules: rules.0 }
}

/// The other half of [`inbound_tproxy`]: only NAT can send what is on its way out to a port of ours.
fn inbound_virtual(options: &Options, family: Family) -> Chain {
    let mut rules = Rules(Vec::new());
    rules.virtual_interfaces(options, family);
    let hook = Hook { kind: Kind::Nat, point: Point::Prerouting, priority: NAT };
    Chain { name: "inbound_virtual", hook: Some(hook), rules: rules.0 }
}

fn inbound_tproxy(options: &Options) -> Chain {
    let mut rules = Rules(Vec::new());
    let marked = || Match::Mark(options.tproxy_mark);
    // The proxy's connections in the client's name; the application's answers find the way back by the mark.
    rules.add([TCP, marked()], Action::SaveMark);
    rules.add([marked()], Action::Return);
    rules.add([Match::In("lo".to_owned())], Action::Return);
    for name in &options.virtual_interfaces {
        rules.add([Match::In(name.clone())], Action::Return);
    }
    rules.inbound_exceptions(options);
    // Packets after the first find the socket of their connection by themselves.
    rules.captured(options, &[Match::State(State::New)], &Action::Tproxy(options.inbound_port));
    // Where nobody listens for them they would go to the application.
    rules.captured(options, &[Match::State(State::New)], &Action::Reset);
    let hook = Hook { kind: Kind::Filter, point: Point::Prerouting, priority: MANGLE };
    Chain { name: "inbound", hook: Some(hook), rules: rules.0 }
}

/// The application's answers to a client whose address the proxy has taken stay on this machine.
fn replies(options: &Options) -> Chain {
    let mut rules = Rules(Vec::new());
    rules.add([TCP, Match::ConnectionMark(options.tproxy_mark)], Action::RestoreMark);
    let hook = Hook { kind: Kind::Route, point: Point::Output, priority: MANGLE };
    Chain { name: "replies", hook: Some(hook), rules: rules.0 }
}

fn outbound(options: &Options, family: Family) -> Chain {
    let mut rules = Rules(Vec::new());
    let redirect = || Action::Redirect(options.outbound_port);
    for name in &options.exclude_interfaces {
        rules.add([Match::Out(name.clone())], Action::Return);
    }
    rules.add([lo(), Match::From(family.passthrough())], Action::Return);
    // Nothing that the proxy sends may come back to it as if it were the application's.
    if options.mode == Inbound::Tproxy {
        rules.add([Match::Mark(options.tproxy_mark)], Action::Return);
    }
    for mark in &options.proxy_marks {
        rules.add([Match::Mark(*mark)], Action::Goto(OWN));
    }
    for id in &options.proxy_users {
        rules.add([Match::User(*id)], Action::Goto(OWN));
    }
    for id in &options.proxy_groups {
        rules.add([Match::Group { id: *id, not: false }], Action::Goto(OWN));
    }
    if options.redirect_dns {
        dns(options, family, &mut rules);
    }
    rules.add([lo()], Action::Return);
    rules.add([Match::To { cidr: family.loopback(), not: false }], Action::Return);
    for id in &options.users_exclude {
        rules.add([Match::User(*id)], Action::Return);
    }
    match &options.groups_include {
        List::All => {
            for id in &options.groups_exclude {
                rules.add([Match::Group { id: *id, not: false }], Action::Return);
            }
        }
        List::Some(groups) => {
            let others = groups.iter().map(|id| Match::Group { id: *id, not: true });
            rules.add(others.collect::<Vec<_>>(), Action::Return);
        }
    }
    for excluded in &options.outbound_ports_exclude {
        rules.add([TCP, port(*excluded)], Action::Return);
    }
    for cidr in options.outbound_exclude.iter().filter(|cidr| cidr.is_of(family)) {
        rules.add([Match::To { cidr: *cidr, not: false }], Action::Return);
    }
    for included in &options.outbound_ports_include {
        rules.add([TCP, port(*included)], redirect());
    }
    match &options.outbound_include {
        List::All => rules.add([TCP], redirect()),
        List::Some(ranges) => {
            for cidr in ranges.iter().filter(|cidr| cidr.is_of(family)) {
                rules.add([TCP, Match::To { cidr: *cidr, not: false }], redirect());
            }
        }
    }
    let hook = Hook { kind: Kind::Nat, point: Point::Output, priority: NAT };
    Chain { name: "outbound", hook: Some(hook), rules: rules.0 }
}

fn dns(options: &Options, family: Family, rules: &mut Rules) {
    for transport in [Transport::Udp, Transport::Tcp] {
        let asks = || vec![Match::Transport(transport), port(53)];
        let redirect = || Action::Redirect(options.dns_port);
        if options.capture_all_dns {
            rules.add(asks(), redirect());
            continue;
        }
        for server in options.nameservers.iter().filter(|server| Cidr::host(**server).is_of(family)) {
            let to = Match::To { cidr: Cidr::host(*server), not: false };
            rules.add([asks(), vec![to]].concat(), redirect());
        }
    }
}

/// What the proxy sends is left alone, but for what it sends to its own application on the application's behalf: that
/// comes in like everything else.
fn of_the_proxy(options: &Options, family: Family) -> Chain {
    let mut rules = Rules(Vec::new());
    let elsewhere = Match::To { cidr: family.loopback(), not: true };
    let mut matches = vec![lo(), elsewhere, TCP];
    if options.tunnel_port != 0 {
        matches.push(Match::Port { port: options.tunnel_port, not: true });
    }
    if options.redirect_dns {
        matches.push(Match::Port { port: 53, not: true });
    }
    rules.add(matches, Action::Redirect(options.inbound_port));
    Chain { name: OWN, hook: None, rules: rules.0 }
}
