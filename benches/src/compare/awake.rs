//! Keeps idle cores from sleeping. In a virtual machine, to wake a core that sleeps costs the one who wakes it more than
//! what the woken one is to do: the faster a proxy is, the more often its core sleeps, and the slower load and origin
//! get. Cores that poll while they are idle make all proxies look like what they are.

use std::fs::{File, OpenOptions};
use std::io::Write as _;

/// The kernel's latency limit, as long as this is there.
pub struct Awake {
    _limit: File,
}

impl Awake {
    /// Asks for a wake-up latency of nothing; `None` where that is not allowed.
    pub fn keep() -> Option<Self> {
        let mut limit = OpenOptions::new().write(true).open("/dev/cpu_dma_latency").ok()?;
        limit.write_all(&0_i32.to_ne_bytes()).ok()?;
        Some(Self { _limit: limit })
    }
}
