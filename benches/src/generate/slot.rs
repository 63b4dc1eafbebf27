//! The place of one connection among those of a thread.

use crate::link::Link;
use crate::record::Pending;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Down,
    Connecting,
    Handshaking,
    Up,
    /// Waits for the answer to its hello until then.
    Hello(u64),
}

pub(super) struct Slot<C> {
    pub(super) link: Option<Link>,
    pub(super) client: C,
    pub(super) state: State,
    /// Start of the connection, and of its TLS handshake.
    pub(super) began: u64,
    /// Requests sent on this connection.
    pub(super) served: u64,
    /// In the list of idle ones.
    pub(super) listed: bool,
    pub(super) tried: bool,
    /// The request that is a handshake.
    pub(super) handshake: Option<Pending>,
}

/// A connection that has a link, taken apart.
pub(super) struct Parts<'a, C> {
    pub(super) link: &'a mut Link,
    pub(super) client: &'a mut C,
    pub(super) state: State,
    pub(super) served: &'a mut u64,
    pub(super) listed: &'a mut bool,
}

pub(super) fn up<C>(slots: &mut [Slot<C>], index: usize) -> Option<Parts<'_, C>> {
    let Slot { link: Some(link), client, state, served, listed, .. } = slots.get_mut(index)? else {
        return None;
    };
    Some(Parts { link, client, state: *state, served, listed })
}
