//! The way back for connections in a client's name: packets with the mark stay on this machine, whatever their
//! destination.
//!
//! The numbers are those of `linux/rtnetlink.h` and `linux/fib_rules.h`.

use super::netlink::{Message, Subject, CREATE, EXCLUSIVE};
use super::rules::Family;

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
/// A network namespace's first interface is its loopback.
const LOOPBACK: u32 = 1;
const BOOT: u8 = 3;
const HOST: u8 = 254;
const LOCAL: u8 = 2;
const LOOK_UP: u8 = 1;

/// The rule and the route; those that are there already answer that they exist.
pub fn add(family: Family, mark: u32, table: u32) -> [Message; 2] {
    both(family, mark, table, [NEW_RULE, NEW_ROUTE], CREATE | EXCLUSIVE)
}

/// Removes them; those that are not there answer that.
pub fn remove(family: Family, mark: u32, table: u32) -> [Message; 2] {
    both(family, mark, table, [DELETE_RULE, DELETE_ROUTE], 0)
}

/// The same as commands of `ip`.
pub fn shown(family: Family, mark: u32, table: u32) -> String {
    let (ip, all) = match family {
        Family::V4 => ("ip", "0.0.0.0/0"),
        Family::V6 => ("ip -6", "::/0"),
    };
    format!("{ip} rule add fwmark {mark} lookup {table}\n{ip} route add local {all} dev lo table {table}\n")
}

fn both(family: Family, mark: u32, table: u32, [rule, route]: [u16; 2], flags: u16) -> [Message; 2] {
    let (number, name) = match family {
        Family::V4 => (2, "ip"),
        Family::V6 => (10, "ip -6"),
    };
    let subject = |what: &str, needs| Subject { what: format!("the {name} {what}"), needs };
    let rule = Message::new(
        rule,
        flags,
        &[number, 0, 0, 0, 0, 0, 0, LOOK_UP, 0, 0, 0, 0],
        subject("rule of routing by the mark", "CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES"),
    )
    .attribute(10, &mark.to_ne_bytes())
    .attribute(15, &table.to_ne_bytes());
    let route = Message::new(
        route,
        flags,
        &[number, 0, 0, 0, 0, BOOT, HOST, LOCAL, 0, 0, 0, 0],
        subject("route to this machine", "CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES"),
    )
    .attribute(15, &table.to_ne_bytes())
    .attribute(4, &LOOPBACK.to_ne_bytes());
    [rule, route]
}
