//! Who speaks first: a client of which nothing is heard may be slow, or wait for its server's greeting.
//!
//! Comes in: a silent client and the chain that would serve it if it stayed silent. After a moment the upstream is
//! dialled as well, and whoever speaks first decides: a client is inspected as ever, a server has said that the
//! connection is plain bytes. No timer decides what a connection speaks.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::time::Instant;

use crate::config::tcp::TcpProxy;
use crate::runtime::Stream;
use crate::tcp::{self, Dial, Early};
use crate::telemetry::stream_info::ConnectionInfo;

/// Who spoke first when this destination was last connected to.
#[derive(Debug, Default)]
pub struct Verdicts(RefCell<HashMap<SocketAddr, Speaker>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaker {
    Client,
    Server,
}

/// Destinations remembered by a worker; with more it begins anew.
const MOST: usize = 4096;
/// Clients that have something to say have said it by then, mostly: it came with the end of the handshake.
const SILENCE: Duration = Duration::from_millis(10);
/// The same where clients have always spoken first: dialling for them would be in vain.
const LONG_SILENCE: Duration = Duration::from_millis(500);
/// Where TLS is taken too, a hello may be late: a greeting is not passed on before.
const HELLO: Duration = Duration::from_millis(250);
/// A server that cannot be reached greets nobody: a client that is silent for so long is told so.
const UNREACHED: Duration = Duration::from_secs(5);

impl Verdicts {
    /// How long a client of this destination may be silent before the server is asked.
    fn patience(&self, destination: Option<SocketAddr>) -> Duration {
        match destination.and_then(|destination| self.0.borrow().get(&destination).copied()) {
            Some(Speaker::Server) => Duration::ZERO,
            Some(Speaker::Client) => LONG_SILENCE,
            None => SILENCE,
        }
    }

    fn note(&self, destination: Option<SocketAddr>, speaker: Speaker) {
        let Some(destination) = destination else { return };
        let mut known = self.0.borrow_mut();
        if known.len() >= MOST && !known.contains_key(&destination) {
            known.clear();
        }
        known.insert(destination, speaker);
    }
}

/// Who spoke first.
#[derive(Debug)]
pub(super) enum First<P> {
    /// The client; the connection that was made meanwhile, if one was.
    Client(Option<Early<P>>),
    /// The server; or it cannot be reached, which whoever serves the connection will find out once more.
    Server(Option<Early<P>>),
}

/// Waits until the client of `stream` or its server has spoken.
pub(super) async fn first<D: Dial>(
    verdicts: &Verdicts,
    stream: &Stream,
    proxy: &TcpProxy,
    info: Rc<ConnectionInfo>,
    dialler: &D,
    ends_tls: bool,
) -> First<D::Permit> {
    let destination = info.local;
    let begin = Instant::now();
    let client = || spoken(stream);
    let patience = verdicts.patience(destination);
    tokio::select! {
        biased;
        () = client() => {
            verdicts.note(destination, Speaker::Client);
            return First::Client(None);
        }
        () = tokio::time::sleep(patience) => {}
    }
    let early = tokio::select! {
        biased;
        () = client() => {
            verdicts.note(destination, Speaker::Client);
            return First::Client(None);
        }
        early = tcp::early(proxy, info, dialler) => early,
    };
    let server = async {
        match &early {
            Some(early) => {
                // What came with the response that opened a tunnel is a word too.
                if !early.has_spoken() {
                    spoken(early.stream()).await;
                }
                if ends_tls {
                    tokio::time::sleep_until(begin + HELLO).await;
                }
            }
            None => tokio::time::sleep(UNREACHED).await,
        }
    };
    tokio::select! {
        biased;
        () = client() => {
            verdicts.note(destination, Speaker::Client);
            First::Client(early)
        }
        () = server => {
            if early.is_some() {
                verdicts.note(destination, Speaker::Server);
            }
            First::Server(early)
        }
    }
}

/// Waits until there is something to read: bytes, an end or an error.
async fn spoken(stream: &Stream) {
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        // With TLS there may be nothing but its own messages.
        let found = if stream.is_plain() {
            stream.try_io(Interest::READABLE, || stream.try_peek(&mut [0]))
        } else {
            stream.try_peek(&mut [0])
        };
        match found {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let verdicts = Verdicts::default();
        let at = |port| Some(SocketAddr::from(([10, 0, 0, 1], port)));
        assert_eq!(verdicts.patience(at(1)), SILENCE);
        verdicts.note(at(1), Speaker::Server);
        verdicts.note(at(2), Speaker::Client);
        assert_eq!((verdicts.patience(at(1)), verdicts.patience(at(2))), (Duration::ZERO, LONG_SILENCE));
        for port in 0..=MOST as u16 {
            verdicts.note(at(port), Speaker::Server);
        }
        assert!(verdicts.0.borrow().len() <= MOST);
        assert_eq!(verdicts.patience(at(MOST as u16)), Duration::ZERO);
        assert_eq!(verdicts.patience(None), SILENCE);
    }
}
