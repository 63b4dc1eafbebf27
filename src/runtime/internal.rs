//! Internal listeners: connections of this process to itself, which stay on the worker's thread.
//!
//! Comes in: who takes the connections of a listener, by its name, and who wants one. Goes out: the two ends of a
//! [`pipe`], and with the far one what the near one passes on of its client.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use super::{pipe, Stream};
use crate::telemetry::filter_state::Objects;
use crate::telemetry::stream_info::DynamicMetadata;

/// What a connection to an internal listener brings with it.
#[derive(Debug, Default)]
pub struct Passed {
    /// Metadata of the host or the cluster that was connected to.
    pub metadata: Option<Box<DynamicMetadata>>,
    /// Objects of the client's stream that are shared with its upstream.
    pub objects: Option<Box<Objects>>,
}

/// Takes connections.
pub type Taker = Rc<dyn Fn(Stream, Passed)>;

/// Bytes that each direction of a connection holds, unless the bootstrap says.
pub const BUFFER: usize = 64 << 10;

static CAPACITY: AtomicUsize = AtomicUsize::new(BUFFER);

thread_local! {
    static TAKERS: RefCell<HashMap<Arc<str>, Taker>> = RefCell::default();
}

/// From now on each direction of a connection holds `bytes` (`buffer_size_kb`), at least 1.
pub fn set_buffer(bytes: usize) {
    CAPACITY.store(bytes.max(1), Ordering::Relaxed);
}

/// A listener of this thread. Its drop is its end.
pub struct Listening {
    name: Arc<str>,
    taker: Taker,
}

/// Connections of this thread to the internal listener `name` go to `taker`, in place of who took them before.
pub fn listen(name: Arc<str>, taker: Taker) -> Listening {
    drop(TAKERS.with_borrow_mut(|all| all.insert(name.clone(), taker.clone())));
    Listening { name, taker }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let own = |all: &HashMap<_, Taker>| all.get(&self.name).is_some_and(|it| Rc::ptr_eq(it, &self.taker));
        // Dropped once the table is free again.
        drop(TAKERS.with_borrow_mut(|all| own(all).then(|| all.remove(&self.name))));
    }
}

/// A connection to the internal listener `name` of this thread.
///
/// # Errors
/// There is none: [`io::ErrorKind::InvalidInput`], as in Envoy.
pub fn connect(name: &str, passed: Passed) -> io::Result<Stream> {
    let taker = TAKERS.with_borrow(|all| all.get(name).cloned());
    let taker = taker.ok_or_else(|| io::Error::from(rustix::io::Errno::INVAL))?;
    let (near, far) = pipe::pair(CAPACITY.load(Ordering::Relaxed));
    taker(Stream::of(far), passed);
    Ok(Stream::of(near))
}
