//! The control thread's part of an upgrade: it takes questions, lets others do what takes time, and says when the
//! process has a successor.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};

use super::minder::Charge;
use super::office::{self, Answer, Ask, Question};
use super::predecessor::{self, Successor};
use super::successor::Predecessor;
use super::wire::{Channel, Purpose, Socket};
use super::UpgradeError;
use crate::bootstrap::Flags;
use crate::config::cluster::Address;
use crate::runtime::listeners::ListenerManager;
use crate::runtime::socket::{self, Bound, ListenError, ListenOptions};
use crate::runtime::worker::Command;

/// Upgrades of this process.
#[derive(Debug)]
pub struct Upgrades {
    asks: mpsc::Receiver<Ask>,
    /// Ports that belong to no listener.
    ports: Vec<(Socket, OwnedFd)>,
    stop: watch::Sender<bool>,
    pending: Option<Pending>,
}

/// An upgrade that is under way.
#[derive(Debug)]
struct Pending {
    answer: oneshot::Sender<Answer>,
    /// Closed, it gives up.
    channel: Channel,
    outcome: oneshot::Receiver<Result<Successor, UpgradeError>>,
}

impl Drop for Upgrades {
    fn drop(&mut self) {
        if let Some(pending) = &self.pending {
            pending.channel.close();
        }
    }
}

impl Upgrades {
    /// Takes questions where the flags say, or where the process before did; nowhere if neither does.
    ///
    /// # Errors
    /// The socket that was asked for cannot be bound.
    pub fn open(flags: &Flags, predecessor: Option<&mut Predecessor>) -> Result<Self, ListenError> {
        let (sender, asks) = mpsc::channel(4);
        let (stop, stopped) = watch::channel(false);
        let mut upgrades = Self { asks, ports: Vec::new(), stop, pending: None };
        let Some(path) = flags.upgrade_socket() else { return Ok(upgrades) };
        let text = path.display().to_string();
        let inherited = predecessor.and_then(|predecessor| predecessor.port(Purpose::Upgrade, &text));
        let bound = match inherited.map_or_else(|| bind(&path, flags), Ok) {
            Ok(bound) => bound,
            // Nobody has asked for it.
            Err(error) if flags.socket_path.is_none() => {
                tracing::warn!("no upgrades are taken: {error}");
                return Ok(upgrades);
            }
            Err(error) => return Err(error),
        };
        upgrades.keep(Purpose::Upgrade, &text, &bound);
        if let Bound::Unix(listener) = bound {
            let listener = UnixListener::from_std(listener);
            let address = Address::Pipe(path);
            let listener = listener.map_err(|source| ListenError::Other { address, source })?;
            tokio::spawn(office::serve(listener, sender, stopped));
        }
        Ok(upgrades)
    }

    /// A successor gets this port too.
    pub fn keep(&mut self, purpose: Purpose, address: &str, port: &impl AsFd) {
        let own = || std::io::Result::Ok((socket::inode(port.as_fd())?, port.as_fd().try_clone_to_owned()?));
        // Without descriptors to spare there will be no upgrade either.
        let Ok((id, descriptor)) = own() else { return };
        let socket =
            Socket { id, purpose, name: String::new(), address: address.to_owned(), form: String::new() };
        self.ports.push((socket, descriptor));
    }

    /// Answers questions until there is a successor. Loses nothing when dropped half-way.
    pub async fn next(&mut self, listeners: &Mutex<ListenerManager>) -> Relief {
        loop {
            let pending = &mut self.pending;
            let outcome = async {
                match pending {
                    Some(pending) => (&mut pending.outcome).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                outcome = outcome => {
                    let Some(Pending { answer, .. }) = self.pending.take() else { continue };
                    let gone = |_| Err(UpgradeError::Busy("the thread that does it has ended"));
                    match outcome.unwrap_or_else(gone) {
                        Ok(successor) => return Relief { successor, answer },
                        Err(error) => {
                            tracing::warn!("not upgraded: {error}");
                            // Who asked may have gone.
                            let _ = answer.send(Answer::Error(error.to_string()));
                        }
                    }
                }
                Some(Ask { question, answer }) = self.asks.recv() => {
                    if self.pending.is_some() {
                        let busy = "another upgrade is under way".to_owned();
                        let _ = answer.send(Answer::Error(busy));
                        continue;
                    }
                    tracing::info!("upgrade to {}", question.to.display());
                    match self.begin(question, listeners) {
                        Ok((channel, outcome)) => self.pending = Some(Pending { answer, channel, outcome }),
                        Err(error) => drop(answer.send(Answer::Error(error.to_string()))),
                    }
                }
            }
        }
    }

    #[allow(clippy::type_complexity)] // A channel and an outcome, used once.
    fn begin(
        &self,
        question: Question,
        listeners: &Mutex<ListenerManager>,
    ) -> Result<(Channel, oneshot::Receiver<Result<Successor, UpgradeError>>), UpgradeError> {
        let mut sockets = listeners.lock().unwrap_or_else(PoisonError::into_inner).sockets()?;
        for (socket, descriptor) in &self.ports {
            sockets.push((socket.clone(), descriptor.try_clone()?));
        }
        let (ours, theirs) = UnixStream::pair()?;
        let channel = Channel::new(ours)?;
        let second = channel.try_clone()?;
        let (done, outcome) = oneshot::channel();
        let work = move || {
            let outcome = predecessor::start(&question, &sockets, channel, theirs);
            if let Err(Ok(mut unwanted)) = done.send(outcome) {
                unwanted.channel.close();
                let _ = unwanted.child.kill();
                let _ = unwanted.child.wait();
            }
        };
        std::thread::Builder::new().name("upgrade".to_owned()).spawn(work)?;
        Ok((second, outcome))
    }

    /// Takes no more questions.
    pub fn close(&self) {
        let _ = self.stop.send(true);
    }
}

fn bind(path: &Path, flags: &Flags) -> Result<Bound, ListenError> {
    if let Some(directory) = path.parent().filter(|_| flags.socket_path.is_none()) {
        // That it cannot be made is told by what follows.
        let _ = std::fs::create_dir_all(directory);
    }
    let mode = Some(flags.socket_mode);
    let options = ListenOptions { reuse_port: false, backlog: 16, mode, ..ListenOptions::default() };
    socket::listen(&Address::Pipe(path.to_owned()), &options)
}

/// A successor that serves.
#[derive(Debug)]
pub struct Relief {
    successor: Successor,
    answer: oneshot::Sender<Answer>,
}

impl Relief {
    /// Leaves to it what it has taken, and the connections that can go; tells who asked.
    ///
    /// # Errors
    /// No thread can be started. Connections stay then.
    pub fn accept(self, listeners: &Arc<Mutex<ListenerManager>>) -> std::io::Result<Charge> {
        let Successor { child, channel, taken } = self.successor;
        let pid = child.id();
        let (takers, mut departures) = mpsc::unbounded_channel();
        let mut manager = listeners.lock().unwrap_or_else(PoisonError::into_inner);
        manager.leave(&taken);
        manager.tell(|| Command::Leave(takers.clone()));
        drop(manager);
        drop(takers);
        let known = listeners.clone();
        let work = move || predecessor::hand_over(&channel, &known, &mut departures);
        let giver = std::thread::Builder::new().name("hand over".to_owned()).spawn(work)?;
        tracing::info!("process {pid} has taken over");
        // Who asked may have gone.
        let _ = self.answer.send(Answer::Pid(pid));
        Ok(Charge::new(child, giver))
    }
}
