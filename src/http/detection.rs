//! Who the client is where proxies before this one say so in ways of their own (`original_ip_detection_extensions`).

use std::net::IpAddr;

use super::head::RequestHead;
use super::manager::nth_from_right;
use crate::config::{HeaderKey, HeaderView, Known};
use crate::policy::rbac::Networks;

/// One way to find the client's address.
#[derive(Debug)]
pub enum Detection {
    /// In `x-forwarded-for`.
    Forwarded {
        /// The proxies whose addresses are passed over.
        trusted: Trusted,
        /// The peer's address is appended.
        append: bool,
    },
    /// In a header of this name.
    Header {
        /// The header.
        name: HeaderKey,
        /// The address may make a request an internal one.
        trusted: bool,
        /// The status of requests without an address; `None` = they go on.
        refusal: Option<u16>,
    },
}

/// The proxies that tell the truth.
#[derive(Debug)]
pub enum Trusted {
    /// So many of them, from the right.
    Hops(u32),
    /// Those in these networks.
    In(Networks),
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Detected {
    /// The client.
    pub(super) address: Option<IpAddr>,
    /// It may make the request an internal one.
    pub(super) trusted: bool,
    /// The peer's address is to be appended to `x-forwarded-for`.
    pub(super) append: bool,
}

/// The first that finds something. `Err` is the status of a refusal.
pub(super) fn detect(ways: &[Detection], head: &RequestHead, peer: Option<IpAddr>) -> Result<Detected, u16> {
    let mut append = false;
    for way in ways {
        let (address, trusted) = match way {
            Detection::Forwarded { trusted: Trusted::Hops(hops), append: appends } => {
                append |= appends;
                (nth_from_right(head, *hops as usize), !is_list(head))
            }
            Detection::Forwarded { trusted: Trusted::In(networks), append: appends } => {
                // What a stranger says of others is kept, and not believed.
                let known = peer.is_some_and(|peer| networks.contains(peer));
                append |= *appends || !known;
                if known {
                    (last_stranger(head, networks), !is_list(head))
                } else {
                    (None, false)
                }
            }
            Detection::Header { name, trusted, refusal } => {
                let text = head.first(name).and_then(|value| std::str::from_utf8(value).ok());
                match (text.and_then(|text| text.parse().ok()), refusal) {
                    (None, Some(status)) => return Err(*status),
                    (found, _) => (found, *trusted),
                }
            }
        };
        if address.is_some() {
            return Ok(Detected { address, trusted, append });
        }
    }
    Ok(Detected { address: None, trusted: false, append })
}

/// Whether `x-forwarded-for` names more than one, addresses or not.
pub(super) fn is_list(head: &RequestHead) -> bool {
    head.fields.all(Known::XForwardedFor).flat_map(|line| line.split(|byte| *byte == b',')).nth(1).is_some()
}

/// The last address of `x-forwarded-for` that is in none of the networks, or the first if all are; none where one of those
/// passed over is no address.
fn last_stranger(head: &RequestHead, networks: &Networks) -> Option<IpAddr> {
    if !head.fields.has(Known::XForwardedFor) {
        return None;
    }
    let mut last = None;
    for text in head.fields.all(Known::XForwardedFor).rev().flat_map(|line| line.rsplit(|byte| *byte == b','))
    {
        let address: IpAddr = std::str::from_utf8(text).ok()?.trim().parse().ok()?;
        if !networks.contains(address) {
            return Some(address);
        }
        last = Some(address);
    }
    last
}
