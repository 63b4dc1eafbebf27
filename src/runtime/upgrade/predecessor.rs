//! The old process's part: it starts the new one, gives it what it has, and has nothing more to do.
//!
//! All of this waits, and therefore has threads of its own.

use std::collections::HashSet;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::minder;
use super::office::Question;
use super::wire::{Channel, New, Old, Purpose, Socket, WireError, VARIABLE, VERSION};
use super::UpgradeError;
use crate::bootstrap::flags::HOT_RESTART_VERSION;
use crate::runtime::listeners::ListenerManager;
use crate::tcp::handover::Departing;

/// How long a binary may take to say its version.
const QUICK: Duration = Duration::from_secs(10);
/// How long the new process may take to answer.
const PROMPT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// A process that serves in our place.
#[derive(Debug)]
pub struct Successor {
    /// The process.
    pub child: Child,
    /// How it is spoken to.
    pub channel: Channel,
    /// What it serves.
    pub taken: HashSet<u64>,
}

/// Starts the binary that is asked for and waits until it serves from `sockets`. `channel` is our end, and `theirs`
/// the other one; closing ours gives up.
///
/// # Errors
/// Why it does not; then it has ended.
pub fn start(
    question: &Question,
    sockets: &[(Socket, OwnedFd)],
    channel: Channel,
    theirs: UnixStream,
) -> Result<Successor, UpgradeError> {
    let patience = Duration::from_secs(question.timeout_s);
    let until = Instant::now() + patience;
    compare(&question.to)?;
    let mut command = Command::new(&question.to);
    command.args(std::env::args_os().skip(1)).stdin(Stdio::from(OwnedFd::from(theirs)));
    command.env(VARIABLE, VERSION.to_string()).env(minder::VARIABLE, minder::of_successor());
    minder::adopt_orphans();
    let spawned = command.spawn().map_err(|error| UpgradeError::Run(question.to.clone(), error));
    // The command holds the other end as well, which is to be the new process's alone.
    drop(command);
    let mut child = spawned?;
    match introduce(&channel, sockets, until) {
        Ok(taken) => Ok(Successor { child, channel, taken }),
        Err(error) => {
            channel.close();
            // It ends by itself when the channel does, but for one that does not look.
            let ended = ended(&mut child, Duration::from_millis(500));
            let _ = child.kill();
            let status = child.wait();
            Err(match (error, ended, status) {
                (UpgradeError::Wire(WireError::Closed | WireError::Io(_)), true, Ok(status)) => {
                    UpgradeError::Ended(status)
                }
                (UpgradeError::Wire(WireError::Silent), ..) => UpgradeError::Late(patience),
                (error, ..) => error,
            })
        }
    }
}

/// Whether the binary, asked for its version, knows the protocol. One that does not would take the ports while we
/// have them.
fn compare(binary: &Path) -> Result<(), UpgradeError> {
    let failed = |error| UpgradeError::Run(binary.to_owned(), error);
    let mut command = Command::new(binary);
    command.arg("--hot-restart-version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let ended = ended(&mut child, QUICK);
    let _ = child.kill();
    child.wait().map_err(failed)?;
    let mut said = Vec::new();
    // What it wrote is in the pipe; a process that it left behind may keep that open.
    if let Some(output) = child.stdout.take().filter(|_| ended) {
        output.take(HOT_RESTART_VERSION.len() as u64 + 64).read_to_end(&mut said).map_err(failed)?;
    }
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    if said == HOT_RESTART_VERSION {
        return Ok(());
    }
    Err(UpgradeError::Unlike(binary.to_owned(), said, HOT_RESTART_VERSION.to_owned()))
}

/// Whether it ends within this time.
fn ended(child: &mut Child, within: Duration) -> bool {
    let until = Instant::now() + within;
    while Instant::now() < until {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        std::thread::sleep(POLL);
    }
    false
}

fn introduce(
    channel: &Channel,
    sockets: &[(Socket, OwnedFd)],
    until: Instant,
) -> Result<HashSet<u64>, UpgradeError> {
    let unexpected = |said: New| Err(WireError::Unexpected(format!("{said:?}")).into());
    match channel.receive(Some(until))?.message {
        New::Hello { versions } if versions.contains(&VERSION) => {}
        other => return unexpected(other),
    }
    for (socket, descriptor) in sockets {
        channel.send(&Old::Socket(socket.clone()), b"", &[descriptor.as_fd()])?;
    }
    channel.send(&Old::Begin { version: VERSION }, b"", &[])?;
    let (taken, listeners) = match channel.receive(Some(until))?.message {
        New::Ready { taken, listeners } => (taken, listeners),
        other => return unexpected(other),
    };
    // One that has heard from nobody is ready too, after a while.
    let ours = sockets.iter().filter(|(socket, _)| socket.purpose == Purpose::Listener);
    if let Some((missing, _)) = ours.clone().find(|(socket, _)| !listeners.contains(&socket.name)) {
        return Err(UpgradeError::Lacks(missing.name.clone()));
    }
    channel.send(&Old::Go, b"", &[])?;
    match channel.receive(Some(Instant::now() + PROMPT))?.message {
        New::Serving => Ok(taken.into_iter().collect()),
        other => unexpected(other),
    }
}

/// Gives the successor the connections that come, until none can come any more.
pub fn hand_over(
    channel: &Channel,
    listeners: &Mutex<ListenerManager>,
    departures: &mut mpsc::UnboundedReceiver<Departing>,
) {
    let (mut gone, mut stayed) = (0_u64, 0_u64);
    let mut deaf = false;
    while let Some(mut departing) = departures.blocking_recv() {
        let manager = listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let placed = manager.place(&departing.retirement, &mut departing.passage);
        drop(manager);
        let outcome = match placed && !deaf {
            true => give(channel, &departing),
            false => Ok(false),
        };
        let taken = outcome.unwrap_or_else(|error| {
            tracing::warn!("connections stay with the old process: {error}");
            channel.close();
            deaf = true;
            false
        });
        if taken {
            gone += 1;
            // The task may have ended with its worker.
            let _ = departing.taken.send(());
        } else {
            stayed += 1;
        }
    }
    tracing::info!("{gone} connections were handed over, {stayed} were not taken");
}

/// Whether the successor takes it.
fn give(channel: &Channel, departing: &Departing) -> Result<bool, WireError> {
    let Departing { passage, downstream, upstream, held, .. } = departing;
    channel.send(
        &Old::Connection(Box::new(passage.clone())),
        held,
        &[downstream.as_fd(), upstream.as_fd()],
    )?;
    let answer = channel.receive(Some(Instant::now() + PROMPT)).or_else(|error| {
        // It may have answered this very moment; from now on it cannot.
        channel.hear_no_more();
        channel.receive(Some(Instant::now() + POLL)).map_err(|_| error)
    });
    match answer?.message {
        New::Took => Ok(true),
        New::Refused { why } => {
            tracing::debug!("a connection stays with the old process: {why}");
            Ok(false)
        }
        other => Err(WireError::Unexpected(format!("{other:?}"))),
    }
}
