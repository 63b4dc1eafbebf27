//! Free ports for processes that must be told their port beforehand. They are taken below the kernel's ephemeral
//! range, so that an outgoing connection of a test cannot land on one between the check and the use.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;

const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

/// A port that nothing listens on. Never handed out twice by one process; another process may still win the race,
/// which is why whoever starts a server with it tries again with a new one.
pub fn free_port() -> u16 {
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    let next = NEXT.get_or_init(|| {
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = nanos.map_or(0, |n| n.subsec_nanos()) ^ std::process::id().wrapping_mul(7919);
        AtomicU32::new(seed % COUNT)
    });
    for _ in 0..COUNT {
        let candidate = (FIRST + next.fetch_add(1, Ordering::Relaxed) % COUNT) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, candidate)).is_ok() {
            return candidate;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}
