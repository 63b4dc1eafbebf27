//! The origin: listeners and their connections on one or more threads, each with its own `epoll` and its own sockets
//! on the same addresses. HTTP/1.1, HTTP/2, gRPC and WebSocket share a port and are told apart by what a client says.

pub mod behaviour;
mod h1;
mod h2;
mod worker;

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use crate::out::Out;
use behaviour::Behaviour;
pub use worker::Server;

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1, HTTP/2 with prior knowledge, gRPC and WebSocket.
    Http,
    /// Every byte back.
    Echo,
    /// Nothing back.
    Sink,
    /// Bytes without an end.
    Source,
}

/// One listener.
#[derive(Clone, Debug)]
pub struct Listen {
    /// With TLS; `mtls` asks for a client certificate.
    pub tls: bool,
    /// What.
    pub speaks: Speaks,
    /// Where; port 0 for any.
    pub address: SocketAddr,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, address) = text
            .split_once('=')
            .ok_or_else(|| format!("{text}: not KIND=ADDRESS:PORT, such as http=127.0.0.1:8080"))?;
        let (tls, kind) = kind.strip_prefix("tls+").map_or((false, kind), |kind| (true, kind));
        let speaks = match kind {
            "http" => Speaks::Http,
            "echo" => Speaks::Echo,
            "sink" => Speaks::Sink,
            "source" => Speaks::Source,
            _ => return Err(format!("{kind}: not http, echo, sink or source, with tls+ before it or not")),
        };
        let address = address.parse().map_err(|_| format!("{address}: not ADDRESS:PORT"))?;
        Ok(Self { tls, speaks, address })
    }
}

/// What a server is made of.
pub struct Settings {
    /// Its listeners.
    pub listen: Vec<Listen>,
    /// For those with TLS.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// For all requests.
    pub behaviour: Behaviour,
    /// Threads.
    pub threads: u32,
    /// Cores to run on, one after the other; empty for any.
    pub pin: Vec<usize>,
}

/// Why a connection ends, or changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// In good order, after what is to be sent.
    Close,
    /// With a reset.
    Reset,
    /// It speaks WebSocket from here.
    WebSocket,
}

/// What all connections of a thread share.
pub(crate) struct Shared {
    behaviour: Behaviour,
    random: fastrand::Rng,
    filler: Bytes,
    http1: h1::Cache,
    requests: u64,
}

impl Shared {
    fn new(behaviour: Behaviour) -> Self {
        let random = fastrand::Rng::new();
        Self { behaviour, random, filler: Bytes::new(), http1: h1::Cache::default(), requests: 0 }
    }

    /// A body of so many bytes.
    fn body(&mut self, size: usize) -> Bytes {
        if self.filler.len() < size {
            self.filler = Bytes::from(vec![b'x'; size.next_power_of_two()]);
        }
        self.filler.slice(..size)
    }

    /// A request has come; now and then the whole thread stops, as a collector of garbage would make it.
    fn count(&mut self) {
        self.requests += 1;
        if let Some((every, time)) = self.behaviour.stall {
            if self.requests.is_multiple_of(every) {
                std::thread::sleep(std::time::Duration::from_nanos(time));
            }
        }
    }
}

/// What a connection may use while it is called.
pub(crate) struct Turn<'a> {
    now: u64,
    out: &'a mut Out,
    shared: &'a mut Shared,
    /// Moments at which it wants to be called again, each with its stream.
    timers: &'a mut Vec<(u64, u32)>,
}
