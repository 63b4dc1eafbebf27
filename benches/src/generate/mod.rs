//! The generator: a [`worker::Worker`] per thread, a [`Client`] for each protocol, and [`run`] which starts the ones,
//! gives them the others and makes one result of their counts.

pub mod grpc;
pub mod h1;
pub mod h2;
pub mod run;
mod slot;
pub mod task;
pub mod tcp;
pub mod websocket;
pub mod worker;

use crate::out::Out;
use crate::record::{Pending, Reason, Recorder};

/// What a client may use while it is called.
pub struct Session<'a> {
    /// The moment, nanoseconds of the clock.
    pub now: u64,
    /// To the peer.
    pub out: &'a mut Out,
    /// For answers and what they bring.
    pub recorder: &'a mut Recorder,
}

/// One connection's side of a protocol, without I/O. Each request that is started is answered, failed, or drained.
pub trait Client: Sized {
    /// What all connections of a thread share.
    type Shared;

    /// Whether requests may end with their last byte sent.
    const ENDS_SENT: bool = false;

    /// A connection that is not open yet.
    fn new(shared: &Self::Shared) -> Self;

    /// The connection is open: says what comes before requests.
    fn open(&mut self, _shared: &mut Self::Shared, _session: &mut Session<'_>) {}

    /// How many requests can be started now.
    fn room(&self) -> usize;

    /// Starts one, having room.
    fn start(&mut self, shared: &mut Self::Shared, pending: Pending, session: &mut Session<'_>);

    /// Takes bytes from the peer; how many, the rest is brought again with what follows.
    ///
    /// # Errors
    /// The connection is of no use any more, for this reason.
    fn received(
        &mut self,
        shared: &mut Self::Shared,
        bytes: &[u8],
        session: &mut Session<'_>,
    ) -> Result<usize, Reason>;

    /// All that was to be sent is sent.
    fn flushed(&mut self, _session: &mut Session<'_>) {}

    /// The peer has closed.
    fn ended(&mut self, _shared: &mut Self::Shared, _session: &mut Session<'_>) {}

    /// The peer has said that it takes no more requests.
    fn closing(&self) -> bool {
        false
    }

    /// When the oldest request was sent.
    fn oldest(&self) -> Option<u64>;

    /// Requests without an answer.
    fn in_flight(&self) -> usize;

    /// Gives up the requests that were sent before this moment; whether the connection is of use afterwards.
    fn expire(&mut self, _before: u64, _session: &mut Session<'_>) -> bool {
        false
    }

    /// Gives all requests back.
    fn drain(&mut self, each: &mut dyn FnMut(Pending));
}
