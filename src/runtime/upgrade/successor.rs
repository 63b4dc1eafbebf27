//! The new process's part: it takes what the old one gives.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::net::sockopt::socket_domain;
use rustix::net::AddressFamily;

use super::wire::{Channel, Frame, New, Old, Purpose, WireError, VARIABLE, VERSION};
use crate::config::{Cluster, Directory};
use crate::listener::adopt::Adopted;
use crate::runtime::listeners::{Inherited, ListenerManager, Origin};
use crate::runtime::socket::Bound;
use crate::tcp::handover::{Leg, Position};

/// How long the old process may take to say what there is.
const PROMPT: Duration = Duration::from_secs(10);

/// The process in whose place this one is to serve.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    /// The ports that belong to no listener.
    ports: Vec<Inherited>,
    /// What is taken of them.
    taken: Vec<u64>,
}

impl Predecessor {
    /// The process that started this one to take over, if that is so; with the sockets of its listeners.
    ///
    /// # Errors
    /// It is so, and the two do not understand each other.
    pub fn meet() -> Result<Option<(Self, Vec<Inherited>)>, WireError> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let input = io::stdin();
        // A process that was started by something else, with the same environment.
        if !matches!(socket_domain(input.as_fd()), Ok(AddressFamily::UNIX)) {
            return Ok(None);
        }
        let channel = Channel::new(UnixStream::from(input.as_fd().try_clone_to_owned()?))?;
        // Nobody else is to read from it, and its end must be that of one handle.
        let nothing = std::fs::File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&nothing).map_err(io::Error::from)?;
        channel.send(&New::Hello { versions: vec![VERSION] }, b"", &[])?;
        let until = Some(Instant::now() + PROMPT);
        let mut sockets = Vec::new();
        loop {
            let Frame { message, sockets: descriptors, .. } = channel.receive(until)?;
            match message {
                Old::Socket(socket) => {
                    let missing = || WireError::Unexpected("a socket without a descriptor".to_owned());
                    let descriptor = descriptors.into_iter().next().ok_or_else(missing)?;
                    sockets.push(Inherited { socket, bound: Bound::try_from(descriptor)? });
                }
                Old::Begin { version: VERSION } => break,
                other => return Err(WireError::Unexpected(format!("{other:?}"))),
            }
        }
        let (listeners, ports) =
            sockets.into_iter().partition(|one: &Inherited| one.socket.purpose == Purpose::Listener);
        Ok(Some((Self { channel, ports, taken: Vec::new() }, listeners)))
    }

    /// Its port for this purpose, if it is at the same address.
    pub fn port(&mut self, purpose: Purpose, address: &str) -> Option<Bound> {
        let is_it = |one: &Inherited| one.socket.purpose == purpose && one.socket.address == address;
        let found = self.ports.swap_remove(self.ports.iter().position(is_it)?);
        self.taken.push(found.socket.id);
        Some(found.bound)
    }

    /// Says that this process could serve, and waits until it is to.
    ///
    /// # Errors
    /// The old process does not want it, or has gone.
    pub fn offer(&mut self, listeners: &Mutex<ListenerManager>) -> Result<(), WireError> {
        let mut manager = listeners.lock().unwrap_or_else(PoisonError::into_inner);
        manager.disinherit();
        let taken = [manager.ids(), std::mem::take(&mut self.taken)].concat();
        let listeners =
            [Origin::Static, Origin::Dynamic].into_iter().flat_map(|origin| manager.names(origin));
        let listeners = listeners.map(|name| name.to_string()).collect();
        drop(manager);
        self.ports.clear();
        self.channel.send(&New::Ready { taken, listeners }, b"", &[])?;
        match self.channel.receive(Some(Instant::now() + PROMPT))?.message {
            Old::Go => Ok(()),
            other => Err(WireError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Says that this process serves.
    ///
    /// # Errors
    /// The old process has gone.
    pub fn relieve(&self) -> Result<(), WireError> {
        self.channel.send(&New::Serving, b"", &[])
    }

    /// Takes connections until the old process has none.
    pub fn take(self, listeners: &Mutex<ListenerManager>, clusters: &Directory<Cluster>) {
        let outcome = loop {
            if let Err(error) = self.take_one(listeners, clusters) {
                break error;
            }
        };
        match outcome {
            WireError::Closed => tracing::info!("the old process has nothing more to hand over"),
            error => tracing::warn!("no more connections are taken over: {error}"),
        }
    }

    fn take_one(
        &self,
        listeners: &Mutex<ListenerManager>,
        clusters: &Directory<Cluster>,
    ) -> Result<(), WireError> {
        let Frame { message, bytes, sockets } = self.channel.receive(None)?;
        let Old::Connection(passage) = message else {
            return Err(WireError::Unexpected(format!("{message:?}")));
        };
        let mut sockets = sockets.into_iter();
        let (Some(downstream), Some(upstream), Some((up, down))) =
            (sockets.next(), sockets.next(), bytes.split_at_checked(passage.held_up))
        else {
            return Err(WireError::Unexpected("a connection without its sockets or bytes".to_owned()));
        };
        let leg = |held: &[u8], stage| Leg { held: BytesMut::from(held), stage };
        let position = Position { up: leg(up, passage.up), down: leg(down, passage.down), fresh: false };
        let mut manager = listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let found = manager.takes(&passage).and_then(|found| match clusters.find(&passage.cluster) {
            Some(_) if passage.host.is_some() => Ok(found),
            _ => Err("no cluster of this name"),
        });
        match found {
            Ok((listener, chain, proxy)) => {
                // Not before the old process can know: it goes on with what nobody has taken.
                self.channel.send(&New::Took, b"", &[])?;
                manager.adopt(Adopted {
                    listener,
                    chain,
                    proxy,
                    downstream,
                    upstream,
                    passage: *passage,
                    position,
                });
                Ok(())
            }
            Err(why) => self.channel.send(&New::Refused { why: why.to_owned() }, b"", &[]),
        }
    }
}
