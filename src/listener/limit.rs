//! How many connections clients may have open with this process, at all listeners together
//! (`envoy.resource_monitors.global_downstream_max_connections`).

use std::sync::atomic::{AtomicU64, Ordering};

static MOST: AtomicU64 = AtomicU64::new(u64::MAX);
static OPEN: AtomicU64 = AtomicU64::new(0);

/// The room that a connection takes, until it is dropped.
#[derive(Debug)]
pub struct Room(());

/// At most so many may be open from now on; `None` = any number.
pub fn set(most: Option<u64>) {
    MOST.store(most.unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Makes room for one more. `None` where there is none; without a limit nothing is counted.
pub fn take() -> Option<Option<Room>> {
    let most = MOST.load(Ordering::Relaxed);
    if most == u64::MAX {
        return Some(None);
    }
    if OPEN.fetch_add(1, Ordering::Relaxed) >= most {
        OPEN.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    Some(Some(Room(())))
}

impl Drop for Room {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}
