//! nf_tables' own language: rules as expressions over registers, in netlink messages.
//!
//! Comes in: [`Table`]s. Goes out: one transaction that puts them in the place of what was there under their names.
//! The numbers are those of `linux/netfilter/nf_tables.h`.

use std::net::IpAddr;

use super::netlink::{attribute, nest, text, Message, Subject, APPEND, CREATE};
use super::rules::{Action, Chain, Cidr, Family, Hook, Kind, Match, Rule, Table, Transport};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;

/// The transaction that makes these tables; those of their names are replaced.
pub fn replace(tables: &[Table]) -> Vec<Message> {
    transaction(tables, true)
}

/// The transaction that removes tables of these names, where there are any.
pub fn remove(tables: &[Table]) -> Vec<Message> {
    transaction(tables, false)
}

fn transaction(tables: &[Table], make: bool) -> Vec<Message> {
    let mut messages = vec![Message::bracket(BATCH_BEGIN, &general(0, 10))];
    for table in tables {
        let family = table.family;
        let named = |kind, flags| {
            let what = format!("the table {} {}", family.name(), table.name);
            let needs = match family {
                Family::V4 => "CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV4",
                Family::V6 => "CONFIG_NF_TABLES and CONFIG_NF_TABLES_IPV6",
            };
            let message = Message::new(kind, flags, &general(number(family), 0), Subject { what, needs });
            message.attribute(1, &text(table.name))
        };
        // One that is not there cannot be removed: it is made first.
        messages.push(named(NEW_TABLE, CREATE));
        messages.push(named(DELETE_TABLE, 0));
        if make {
            messages.push(named(NEW_TABLE, CREATE));
            // All of them first, so that rules can jump to any.
            messages.extend(table.chains.iter().map(|made| chain(table, made)));
            let rules =
                table.chains.iter().flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)));
            messages.extend(rules.map(|(chain, made)| rule(table, chain, made)));
        }
    }
    messages.push(Message::bracket(BATCH_END, &general(0, 10)));
    messages
}

/// What every message of netfilter begins with.
fn general(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn chain(table: &Table, chain: &Chain) -> Message {
    let what = match chain.hook {
        Some(hook) => format!("the chain {} of {}, {hook}", chain.name, table.family.name()),
        None => format!("the chain {} of {}", chain.name, table.family.name()),
    };
    let needs = match chain.hook {
        Some(Hook { kind: Kind::Nat, .. }) => "CONFIG_NFT_NAT and CONFIG_NF_NAT",
        _ => "CONFIG_NF_TABLES",
    };
    let fixed = general(number(table.family), 0);
    let message = Message::new(NEW_CHAIN, CREATE, &fixed, Subject { what, needs })
        .attribute(1, &text(table.name))
        .attribute(3, &text(chain.name));
    let Some(hook) = chain.hook else { return message };
    let mut place = Vec::new();
    attribute(&mut place, 1, &(hook.point as u32).to_be_bytes());
    attribute(&mut place, 2, &hook.priority.to_be_bytes());
    message.nest(4, &place).attribute(7, &text(hook.kind.name()))
}

/// `NFT_REJECT_TCP_RST`.
const WITH_RESET: [u8; 4] = 1u32.to_be_bytes();

fn rule(table: &Table, chain: &Chain, rule: &Rule) -> Message {
    let mut expressions = Expressions::default();
    for part in &rule.matches {
        expressions.condition(part, table.family);
    }
    expressions.action(&rule.action, table.family);
    let what = format!("the rule \"{}\" of the chain {}", rule.shown(table.family), chain.name);
    let needs = match rule.action {
        Action::Redirect(_) => "CONFIG_NFT_REDIR",
        Action::Tproxy(_) => "CONFIG_NFT_TPROXY",
        Action::Reset => "CONFIG_NFT_REJECT",
        Action::SaveMark | Action::RestoreMark => "CONFIG_NFT_CT and CONFIG_NF_CONNTRACK_MARK",
        _ if rule.matches.iter().any(Match::is_tracked) => "CONFIG_NFT_CT",
        _ => "CONFIG_NF_TABLES",
    };
    let fixed = general(number(table.family), 0);
    Message::new(NEW_RULE, CREATE | APPEND, &fixed, Subject { what, needs })
        .attribute(1, &text(table.name))
        .attribute(2, &text(chain.name))
        .nest(4, &expressions.bytes)
}

/// The register that all expressions work with.
const REGISTER: [u8; 4] = 1u32.to_be_bytes();
/// The register of verdicts.
const VERDICT: [u8; 4] = 0u32.to_be_bytes();

mod meta {
    pub const MARK: u32 = 3;
    pub const IIFNAME: u32 = 6;
    pub const OIFNAME: u32 = 7;
    pub const SKUID: u32 = 10;
    pub const SKGID: u32 = 11;
    pub const L4PROTO: u32 = 16;
}

mod ct {
    pub const STATE: u32 = 0;
    pub const MARK: u32 = 3;
}

#[derive(Default)]
struct Expressions {
    bytes: Vec<u8>,
}

impl Expressions {
    fn add(&mut self, name: &str, attributes: &[(u16, &[u8])]) {
        let mut body = Vec::new();
        for (kind, value) in attributes {
            attribute(&mut body, *kind, value);
        }
        let mut expression = Vec::new();
        attribute(&mut expression, 1, &text(name));
        nest(&mut expression, 2, &body);
        nest(&mut self.bytes, 1, &expression);
    }

    fn meta(&mut self, key: u32) {
        self.add("meta", &[(1, &REGISTER), (2, &key.to_be_bytes())]);
    }

    fn compare(&mut self, not: bool, value: &[u8]) {
        self.add("cmp", &[(1, &REGISTER), (2, &u32::from(not).to_be_bytes()), (3 | 0x8000, &data(value))]);
    }

    fn mask(&mut self, mask: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or_default().to_be_bytes();
        let nothing = vec![0; mask.len()];
        self.add(
            "bitwise",
            &[
                (1, &REGISTER),
                (2, &REGISTER),
                (3, &length),
                (4 | 0x8000, &data(mask)),
                (5 | 0x8000, &data(&nothing)),
            ],
        );
    }

    /// Loads so many bytes of a header: 1 = network, 2 = transport.
    fn payload(&mut self, base: u32, offset: u32, length: u32) {
        self.add(
            "payload",
            &[
                (1, &REGISTER),
                (2, &base.to_be_bytes()),
                (3, &offset.to_be_bytes()),
                (4, &length.to_be_bytes()),
            ],
        );
    }

    fn load(&mut self, value: &[u8]) {
        self.add("immediate", &[(1, &REGISTER), (2 | 0x8000, &data(value))]);
    }

    fn interface(&mut self, key: u32, name: &str, not: bool) {
        self.meta(key);
        match name.strip_suffix('+') {
            // The beginning is compared alone.
            Some(beginning) => self.compare(not, beginning.as_bytes()),
            None => {
                let mut whole = [0; 16];
                for (to, from) in whole.iter_mut().take(15).zip(name.bytes()) {
                    *to = from;
                }
                self.compare(not, &whole);
            }
        }
    }

    fn address(&mut self, (v4, v6): (u32, u32), cidr: &Cidr, not: bool) {
        match cidr.address {
            IpAddr::V4(address) => {
                self.payload(1, v4, 4);
                let mask = u32::MAX.checked_shl(32 - u32::from(cidr.length)).unwrap_or(0);
                self.mask(&mask.to_be_bytes());
                self.compare(not, &(address.to_bits() & mask).to_be_bytes());
            }
            IpAddr::V6(address) => {
                self.payload(1, v6, 16);
                let mask = u128::MAX.checked_shl(128 - u32::from(cidr.length)).unwrap_or(0);
                self.mask(&mask.to_be_bytes());
                self.compare(not, &(address.to_bits() & mask).to_be_bytes());
            }
        }
    }

    fn condition(&mut self, condition: &Match, _family: Family) {
        match condition {
            Match::Transport(transport) => {
                self.meta(meta::L4PROTO);
                self.compare(
                    false,
                    &[match transport {
                        Transport::Tcp => 6,
                        Transport::Udp => 17,
                    }],
                );
            }
            Match::Port { port, not } => {
                self.payload(2, 2, 2);
                self.compare(*not, &port.to_be_bytes());
            }
            Match::To { cidr, not } => self.address((16, 24), cidr, *not),
            Match::From(cidr) => self.address((12, 8), cidr, false),
            Match::Out(name) => self.interface(meta::OIFNAME, name, false),
            Match::In(name) => self.interface(meta::IIFNAME, name, false),
            Match::User(id) => {
                self.meta(meta::SKUID);
                self.compare(false, &id.to_ne_bytes());
            }
            Match::Group { id, not } => {
                self.meta(meta::SKGID);
                self.compare(*not, &id.to_ne_bytes());
            }
            Match::Mark(mark) => {
                self.meta(meta::MARK);
                self.compare(false, &mark.to_ne_bytes());
            }
            Match::ConnectionMark(mark) => {
                self.add("ct", &[(1, &REGISTER), (2, &ct::MARK.to_be_bytes())]);
                self.compare(false, &mark.to_ne_bytes());
            }
            Match::State(state) => {
                self.add("ct", &[(1, &REGISTER), (2, &ct::STATE.to_be_bytes())]);
                self.mask(&(*state as u32).to_ne_bytes());
                self.compare(true, &0u32.to_ne_bytes());
            }
        }
    }

    fn action(&mut self, action: &Action, family: Family) {
        match action {
            Action::Accept => self.verdict(1, None),
            Action::Drop => self.verdict(0, None),
            Action::Reset => self.add("reject", &[(1, &WITH_RESET)]),
            Action::Return => self.verdict(-5, None),
            Action::Goto(chain) => self.verdict(-4, Some(chain)),
            Action::Redirect(port) => {
                self.load(&port.to_be_bytes());
                self.add("redir", &[(1, &REGISTER)]);
            }
            Action::Tproxy(port) => {
                self.load(&port.to_be_bytes());
                let family = u32::from(number(family)).to_be_bytes();
                self.add("tproxy", &[(1, &family), (3, &REGISTER)]);
                self.verdict(1, None);
            }
            Action::SaveMark => {
                self.meta(meta::MARK);
                self.add("ct", &[(2, &ct::MARK.to_be_bytes()), (4, &REGISTER)]);
            }
            Action::RestoreMark => {
                self.add("ct", &[(1, &REGISTER), (2, &ct::MARK.to_be_bytes())]);
                self.add("meta", &[(2, &meta::MARK.to_be_bytes()), (3, &REGISTER)]);
            }
        }
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        let mut verdict = Vec::new();
        attribute(&mut verdict, 1, &code.to_be_bytes());
        if let Some(chain) = chain {
            attribute(&mut verdict, 2, &text(chain));
        }
        let mut data = Vec::new();
        nest(&mut data, 2, &verdict);
        self.add("immediate", &[(1, &VERDICT), (2 | 0x8000, &data)]);
    }
}

fn data(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    attribute(&mut out, 1, value);
    out
}
