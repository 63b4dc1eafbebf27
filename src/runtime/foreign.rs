//! Sockets of other processes: as the kernel's tables show them, and as they are handed over.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use socket2::{Domain, Socket, Type};

use super::socket::Bound;

impl TryFrom<OwnedFd> for Bound {
    type Error = io::Error;

    /// A socket that another process has bound.
    fn try_from(socket: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(socket);
        socket.set_nonblocking(true)?;
        Ok(match (socket.domain()?, socket.r#type()?) {
            (Domain::UNIX, _) => Bound::Unix(socket.into()),
            (_, Type::DGRAM) => Bound::Udp(socket.into()),
            _ => Bound::Tcp(socket.into()),
        })
    }
}

/// Those of `addresses` on which, address and port exactly, a socket listens in our network namespace
/// that is not one of ours (`own_inodes`, see [`inode`](super::socket::inode)): one of a successor or predecessor process.
/// None when the kernel's tables cannot be read.
pub fn foreign_listeners(addresses: &[SocketAddr], own_inodes: &[u64]) -> HashSet<SocketAddr> {
    let mut found = HashSet::new();
    for (table, is_wanted) in [
        ("/proc/self/net/tcp", SocketAddr::is_ipv4 as fn(&SocketAddr) -> bool),
        ("/proc/self/net/tcp6", SocketAddr::is_ipv6),
    ] {
        if !addresses.iter().any(is_wanted) {
            continue;
        }
        // With a line for every connection of the namespace, it can be long.
        let table = std::fs::read(table).unwrap_or_default();
        let listeners = table.split(|byte| *byte == b'\n').filter_map(listening);
        let foreign = listeners.filter(|(_, inode)| !own_inodes.contains(inode));
        found.extend(foreign.map(|(address, _)| address).filter(|address| addresses.contains(address)));
    }
    found
}

/// Address and inode of each socket that listens, of a table such as `/proc/net/tcp`; none where it cannot be read.
pub(super) fn listening_in(table: &Path) -> Vec<(SocketAddr, u64)> {
    let table = std::fs::read(table).unwrap_or_default();
    table.split(|byte| *byte == b'\n').filter_map(listening).collect()
}

/// Address and inode of a line of `/proc/net/tcp` or `tcp6`, if it is a listening socket's.
pub(super) fn listening(line: &[u8]) -> Option<(SocketAddr, u64)> {
    const LISTEN: &[u8] = b"0A";
    let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty()).skip(1);
    let local = fields.next()?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    // Skipped: queues, timer, retransmits, user, timeout.
    let inode = text(fields.nth(5)?)?.parse().ok()?;
    let (address, port) = text(local)?.split_once(':')?;
    // Words of the address as it lies in memory, read as numbers of this machine.
    let word = |index: usize| {
        let digits = address.get(8 * index..8 * index + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let ip: IpAddr = match address.len() {
        8 => word(0)?.into(),
        32 => {
            let mut bytes = [0; 16];
            for (index, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index)?);
            }
            bytes.into()
        }
        _ => return None,
    };
    Some((SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?), inode))
}

/// What the kernel writes is ASCII.
fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok()
}
