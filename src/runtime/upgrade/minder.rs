//! What is left of a process that was replaced: it passes signals on to its successor, waits for it, and ends as it
//! ends.
//!
//! Whoever started the first process knows that one only: for a container's engine, or systemd, its end is the end of
//! everything. So it stays, as small as it can be: once it has finished its own work it runs its binary anew in this
//! form, without threads or configuration. A successor that is itself replaced simply ends; the next one becomes a
//! child of the minder, which tells it from strangers (as process 1 it gets all orphans) by the session.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{kill, SigSet, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::{getpid, getppid, Pid};

/// The process that minds this one once its predecessor has ended.
pub const VARIABLE: &str = "OUTRIGGER_MINDER";

/// What is passed on.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Whether somebody else minds our successor.
pub fn is_minded() -> bool {
    let named = std::env::var(VARIABLE).ok().and_then(|pid| pid.parse().ok());
    named == Some(getppid().as_raw())
}

/// Who minds a successor of this process.
pub(super) fn of_successor() -> String {
    let minder = if is_minded() { getppid() } else { getpid() };
    minder.to_string()
}

/// Processes that lose their parent in the course of upgrades become ours.
pub(super) fn adopt_orphans() {
    // Kernels before 3.4 cannot; then only process 1 minds a successor's successor.
    let _ = set_child_subreaper(true);
}

/// The successor, while its predecessor still works.
#[derive(Debug)]
pub struct Charge {
    child: Child,
    /// The child, or one that took over from it.
    pid: Pid,
    /// Gives it connections.
    giver: Option<JoinHandle<()>>,
}

impl Charge {
    /// It was started as `child`, and `giver` gives it connections as long as there are any here.
    pub fn new(child: Child, giver: JoinHandle<()>) -> Self {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        Self { child, pid, giver: Some(giver) }
    }

    /// How it ended, if nobody has taken over from it.
    pub fn ended(&mut self) -> Option<i32> {
        let ended = match of(self.pid) {
            Some(_) => None,
            None => self.child.try_wait().ok().flatten(),
        };
        let status = ended?;
        match successor() {
            Some(pid) => {
                self.pid = pid;
                None
            }
            None => Some(status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)),
        }
    }

    /// Passes a signal on.
    pub fn pass_on(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let _ = kill(self.pid, signal);
        }
    }

    /// Ends this process as the successor ends. To be called with nothing else left to do.
    pub fn mind(mut self) -> ExitCode {
        if let Some(giver) = self.giver.take() {
            // Without workers it has nothing more to do.
            let _ = giver.join();
        }
        if is_minded() {
            return ExitCode::SUCCESS;
        }
        if let Some(status) = self.ended() {
            return code(status);
        }
        // They wait from here on, and across what follows.
        let _ = signals().thread_block();
        // Returns only if it fails: then the same is done here, with all that is in memory.
        let pid = self.pid.to_string();
        let error = Command::new("/proc/self/exe").arg0("outrigger").args(["mind", &pid]).exec();
        tracing::debug!("the memory of a process that only waits is kept: {error}");
        run(self.pid)
    }
}

fn signals() -> SigSet {
    PASSED_ON.into_iter().chain([Signal::SIGCHLD]).collect()
}

/// `outrigger mind`: waits for the child `pid`, and for those that replace it.
pub fn run(pid: Pid) -> ExitCode {
    let signals = signals();
    if signals.thread_block().is_err() || set_child_subreaper(true).is_err() {
        return ExitCode::FAILURE;
    }
    let mut minded = pid;
    loop {
        if let Some(status) = reap(minded) {
            match successor() {
                Some(next) => minded = next,
                None => return code(status),
            }
        }
        match signals.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            // It may just have ended, which is told next.
            Ok(signal) => drop(kill(minded, signal)),
        }
    }
}

/// The status that a process ends with, where shells say it so.
fn code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status & 0xff).unwrap_or(1))
}

/// Lets go of all that have ended; how `minded` did, if it is among them.
fn reap(minded: Pid) -> Option<i32> {
    let mut status = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == minded => status = Some(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == minded => status = Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) => return status,
            Err(Errno::ECHILD) => return status.or(Some(1)),
            Ok(_) | Err(_) => {}
        }
    }
}

/// A child of ours of the same session: one that took over from the process that has just ended.
fn successor() -> Option<Pid> {
    let session = of(getpid())?.1;
    let own = getpid().as_raw();
    let entries = fs::read_dir("/proc").ok()?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.map(Pid::from_raw).find(|pid| of(*pid) == Some((own, session)))
}

/// Parent and session of a process that lives (proc(5): `/proc/pid/stat`).
fn of(pid: Pid) -> Option<(i32, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if matches!(fields.next(), Some("Z" | "X")) {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    Some((parent, fields.nth(1)?.parse().ok()?))
}
