//! Virtual hosts that sleep in their encoded form until a request wants them.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::compile::{again, Scope};
use super::VirtualHost;
use crate::config::{Cluster, Slot};

/// What the virtual hosts of a table are compiled from.
#[derive(Debug)]
pub(super) struct Sleeping {
    /// The table as it came.
    pub(super) body: Arc<[u8]>,
    /// What they inherit.
    pub(super) scope: Scope,
    /// Every cluster that one of them names: it is referred to, whether or not the host sleeps.
    pub(super) _clusters: Box<[Arc<Slot<Cluster>>]>,
}

/// The place of one virtual host.
#[derive(Debug)]
pub(super) struct HostCell {
    host: OnceLock<Arc<VirtualHost>>,
    /// Where it is in [`Sleeping::body`]; nowhere if it never sleeps.
    start: u32,
    end: u32,
}

impl HostCell {
    /// One that never sleeps.
    pub(super) fn awake(host: VirtualHost) -> Self {
        Self { host: Arc::new(host).into(), start: 0, end: 0 }
    }

    /// One that sleeps at `place`, within the 4 GiB that an encoded message may have.
    pub(super) fn asleep(place: Range<usize>) -> Self {
        let at = |place| u32::try_from(place).unwrap_or(u32::MAX);
        Self { host: OnceLock::new(), start: at(place.start), end: at(place.end) }
    }

    /// The host, if it is awake.
    pub(super) fn get(&self) -> Option<&Arc<VirtualHost>> {
        self.host.get()
    }

    /// Wakes it.
    #[cold]
    pub(super) fn wake(&self, sleeping: Option<&Sleeping>) -> Option<&Arc<VirtualHost>> {
        // Two may do it at a time; the first is kept.
        let host = self.made(sleeping)?;
        Some(self.host.get_or_init(|| host))
    }

    /// The host without waking it: made for the caller alone where it sleeps.
    pub(super) fn made(&self, sleeping: Option<&Sleeping>) -> Option<Arc<VirtualHost>> {
        if let Some(host) = self.get() {
            return Some(host.clone());
        }
        let host = again(sleeping?, self.start as usize..self.end as usize);
        if host.is_none() {
            tracing::error!("a virtual host cannot be compiled any more");
        }
        host.map(Arc::new)
    }

    /// Whether it is awake and could sleep.
    pub(super) fn is_tired(&self) -> bool {
        self.end > 0 && self.host.get().is_some()
    }

    /// The same place with nobody awake in it.
    pub(super) fn rested(&self) -> Self {
        let host = if self.end > 0 { OnceLock::new() } else { self.host.clone() };
        Self { host, start: self.start, end: self.end }
    }
}

/// Where the virtual hosts of an encoded `RouteConfiguration` are, and everything else of it.
#[derive(Debug, Default)]
pub struct Parts {
    /// The message without its virtual hosts.
    pub rest: Vec<u8>,
    /// The place of each virtual host.
    pub hosts: Vec<Range<usize>>,
}

/// Number of `virtual_hosts` with its wire type, length-delimited.
const VIRTUAL_HOSTS: u64 = 2 << 3 | 2;

/// Takes an encoded `RouteConfiguration` apart. `None` if the bytes are no message.
pub fn split(body: &[u8]) -> Option<Parts> {
    let mut parts = Parts::default();
    u32::try_from(body.len()).ok()?;
    let mut at = 0;
    while at < body.len() {
        let start = at;
        let key = varint(body, &mut at)?;
        let length = match key & 7 {
            0 => {
                varint(body, &mut at)?;
                0
            }
            1 => 8,
            2 => usize::try_from(varint(body, &mut at)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let end = at.checked_add(length).filter(|end| *end <= body.len())?;
        if key == VIRTUAL_HOSTS {
            parts.hosts.push(at..end);
        } else {
            parts.rest.extend_from_slice(body.get(start..end)?);
        }
        at = end;
    }
    Some(parts)
}

fn varint(body: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *body.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
