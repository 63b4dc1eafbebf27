//! Who speaks first: a client of which nothing is heard may be slow, or wait for its server's greeting.
//!
//! Comes in: a silent client and the chain that would serve it if it stayed silent. After a moment the upstream is
//! dialled as well, and whoever speaks first decides: a client is inspected as ever, a server has said that the
//! connection is plain bytes.
//!
//! A greeting in plain text can still be wrong: where its chain is one of two, and the other ends TLS (mTLS of a mesh
//! that is permissive), the client's hello may be late. There a client may be silent for long the first time, and not
//! where it went without TLS the last time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use crate::config::tcp::TcpProxy;
use crate::runtime::Stream;
use crate::tcp::{self, Dial, Early};
use crate::telemetry::stream_info::ConnectionInfo;

/// Who spoke first when this destination was last connected to.
#[derive(Debug, Default)]
pub struct Verdicts(RefCell<HashMap<Way, Speaker>>);

/// What a verdict is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Way {
    destination: SocketAddr,
    /// The client, where it may as well begin TLS that is ended here: others may do otherwise.
    client: Option<IpAddr>,
}

impl Way {
    /// That of a connection; `may_be_tls`: a hello would be answered here.
    pub(super) fn of(
        destination: Option<SocketAddr>,
        client: Option<SocketAddr>,
        may_be_tls: bool,
    ) -> Option<Self> {
        let client = client.map(|client| client.ip().to_canonical()).filter(|_| may_be_tls);
        destination.map(|destination| Self { destination, client })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaker {
    Client,
    Server,
}

/// Ways remembered by a worker; with more it begins anew.
const MOST: usize = 4096;
/// Clients that have something to say have said it by then, mostly: it came with the end of the handshake.
const SILENCE: Duration = Duration::from_millis(10);
/// The same where clients have always spoken first: dialling for them would be in vain.
const LONG_SILENCE: Duration = Duration::from_millis(500);
/// Where TLS is taken too, a hello may be late: nobody is dialled for a client that is not known before.
const HELLO: Duration = Duration::from_millis(250);
/// A server that cannot be reached greets nobody: a client that is silent for so long is told so.
const UNREACHED: Duration = Duration::from_secs(5);

impl Verdicts {
    fn last(&self, way: Option<Way>) -> Option<Speaker> {
        self.0.borrow().get(&way?).copied()
    }

    fn note(&self, way: Option<Way>, speaker: Speaker) {
        let Some(way) = way else { return };
        let mut known = self.0.borrow_mut();
        if known.len() >= MOST && !known.contains_key(&way) {
            known.clear();
        }
        known.insert(way, speaker);
    }

    /// A client has begun TLS. If it, or another one behind the same address, was thought to wait for greetings in plain
    /// text, it is not any more.
    pub(super) fn begins_tls(&self, destination: Option<SocketAddr>, client: Option<SocketAddr>) {
        let mut known = self.0.borrow_mut();
        if known.is_empty() {
            return;
        }
        if let Some(speaker) = Way::of(destination, client, true).and_then(|way| known.get_mut(&way)) {
            *speaker = Speaker::Client;
        }
    }
}

impl Speaker {
    /// How long a client may be silent before the server is asked, if this was so the last time; `may_be_tls`: it could
    /// begin TLS as well.
    fn patience(last: Option<Self>, may_be_tls: bool) -> Duration {
        match (last, may_be_tls) {
            (Some(Speaker::Server), false) => Duration::ZERO,
            (Some(Speaker::Client), false) => LONG_SILENCE,
            // Another client may have got the address of the one that is known, and its hello be on the way.
            (Some(Speaker::Server), true) | (None, false) => SILENCE,
            (_, true) => HELLO,
        }
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

/// Waits until the client of `stream` or its server has spoken. `may_be_tls`: the client could begin TLS as well, and
/// would be served otherwise.
pub(super) async fn first<D: Dial>(
    verdicts: &Verdicts,
    stream: &Stream,
    proxy: &TcpProxy,
    info: Rc<ConnectionInfo>,
    dialler: &D,
    may_be_tls: bool,
) -> First<D::Permit> {
    let way = Way::of(info.local, info.remote, may_be_tls);
    let client = || spoken(stream);
    let patience = Speaker::patience(verdicts.last(way), may_be_tls);
    tokio::select! {
        biased;
        () = client() => {
            verdicts.note(way, Speaker::Client);
            return First::Client(None);
        }
        () = tokio::time::sleep(patience) => {}
    }
    let early = tokio::select! {
        biased;
        () = client() => {
            verdicts.note(way, Speaker::Client);
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
            }
            None => tokio::time::sleep(UNREACHED).await,
        }
    };
    tokio::select! {
        biased;
        () = client() => {
            verdicts.note(way, Speaker::Client);
            First::Client(early)
        }
        () = server => {
            if early.is_some() {
                verdicts.note(way, Speaker::Server);
            }
            First::Server(early)
        }
    }
}

/// Waits until there is something to read: bytes, an end or an error.
async fn spoken(stream: &Stream) {
    poll_fn(|context| stream.poll_spoken(context)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let verdicts = Verdicts::default();
        let at = |port| Way::of(Some(SocketAddr::from(([10, 0, 0, 1], port))), None, false);
        let patience = |way| Speaker::patience(verdicts.last(way), false);
        assert_eq!(patience(at(1)), SILENCE);
        verdicts.note(at(1), Speaker::Server);
        verdicts.note(at(2), Speaker::Client);
        assert_eq!((patience(at(1)), patience(at(2))), (Duration::ZERO, LONG_SILENCE));
        for port in 0..=MOST as u16 {
            verdicts.note(at(port), Speaker::Server);
        }
        assert!(verdicts.0.borrow().len() <= MOST);
        assert_eq!(patience(at(MOST as u16)), Duration::ZERO);
        assert_eq!(patience(None), SILENCE);
    }

    #[test]
    fn where_tls_may_come_clients_are_told_apart() {
        let verdicts = Verdicts::default();
        let to = Some(SocketAddr::from(([10, 0, 0, 1], 25)));
        let from = |last, port| Some(SocketAddr::from(([10, 0, 0, last], port)));
        let way = |last| Way::of(to, from(last, 1), true);
        verdicts.note(way(2), Speaker::Server);
        verdicts.begins_tls(to, from(3, 1));
        // Another port of the same client is the same; another client is not; who has begun TLS may do so again.
        assert_eq!(verdicts.last(Way::of(to, from(2, 9), true)), Some(Speaker::Server));
        assert_eq!((verdicts.last(way(3)), verdicts.last(Way::of(to, from(2, 1), false))), (None, None));
        let patience = |last| Speaker::patience(verdicts.last(way(last)), true);
        assert_eq!((patience(2), patience(3)), (SILENCE, HELLO));
        verdicts.begins_tls(to, from(2, 7));
        assert_eq!((verdicts.last(way(2)), patience(2)), (Some(Speaker::Client), HELLO));
    }
}
