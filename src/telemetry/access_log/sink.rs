//! Files that lines are appended to, each with a bounded buffer and a thread that empties it.
//!
//! A file is opened once however many loggers name it, and closed when the last of them is gone.
//! Its thread sleeps while there is nothing to write; the first line starts a timer, and the buffer
//! is written when the timer ends or 64 KiB are waiting.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::telemetry::metrics::Scope;

/// Bytes waiting at which the buffer is written without waiting for the timer.
const FULL: usize = 64 * 1024;
/// Bytes that may wait. More only come together while the disk stalls; lines beyond are dropped.
const LIMIT: usize = 2 * 1024 * 1024;
/// Capacity that an emptied buffer keeps.
const KEPT: usize = 2 * FULL;
/// Standard output and error are watched by people: their timer is never longer than this.
const CONSOLE_INTERVAL: Duration = Duration::from_millis(100);
/// How long a reader that does not read may hold up a write to a non-blocking descriptor.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

crate::stats! {
    /// `filesystem.` statistics, all files together. `write_dropped` is ours: bytes are never
    /// dropped silently.
    pub(super) struct FilesystemStats {
        counters {
            write_buffered, write_completed, write_failed, write_dropped, flushed_by_timer, reopen_failed,
        }
        gauges { write_total_buffered }
        histograms {}
    }
}

static STATS: LazyLock<FilesystemStats> = LazyLock::new(|| FilesystemStats::new(&Scope::raw("filesystem")));
static FILES: LazyLock<Mutex<HashMap<Target, Weak<Owner>>>> = LazyLock::new(Mutex::default);
static INTERVAL_MS: AtomicU64 = AtomicU64::new(10_000);

/// What lines are written to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Stdout,
    Stderr,
    File(PathBuf),
}

impl Target {
    /// The target that `path` names. The standard streams' paths mean the streams themselves: they
    /// can be written to even where the path cannot be opened.
    pub fn of_path(path: &str) -> Self {
        match path {
            "/dev/stdout" | "/proc/self/fd/1" | "/dev/fd/1" => Target::Stdout,
            "/dev/stderr" | "/proc/self/fd/2" | "/dev/fd/2" => Target::Stderr,
            path => Target::File(path.into()),
        }
    }

    fn open(&self) -> io::Result<Writer> {
        Ok(match self {
            Target::Stdout => Writer::Stdout,
            Target::Stderr => Writer::Stderr,
            Target::File(path) => Writer::File(open(path)?),
        })
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// A handle on a file shared by loggers.
#[derive(Clone, Debug)]
pub(super) struct Sink(Arc<Owner>);

/// Dropped with the last handle; the thread, which holds only `shared`, then writes the rest and
/// ends.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    state: Mutex<State>,
    /// To the thread: something to do.
    wake: Condvar,
    /// From the thread: a round is done.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Opened but not yet taken by the thread.
    writer: Option<Writer>,
    running: bool,
    reopen: bool,
    closing: bool,
    /// Flushes asked for and done.
    asked: u64,
    flushed: u64,
}

impl State {
    fn is_urgent(&self) -> bool {
        self.waiting.len() >= FULL || self.reopen || self.closing || self.asked != self.flushed
    }
}

impl Sink {
    /// Opens `target`, or joins the loggers that have it open.
    pub fn open(target: Target) -> io::Result<Self> {
        let mut files = locked(&FILES);
        if let Some(owner) = files.get(&target).and_then(Weak::upgrade) {
            return Ok(Sink(owner));
        }
        let writer = target.open()?;
        let shared = Arc::new(Shared {
            target: target.clone(),
            state: Mutex::new(State { writer: Some(writer), ..State::default() }),
            wake: Condvar::new(),
            done: Condvar::new(),
        });
        let owner = Arc::new(Owner { shared });
        files.retain(|_, owner| owner.strong_count() > 0);
        files.insert(target, Arc::downgrade(&owner));
        Ok(Sink(owner))
    }

    /// Appends a line to the buffer, or drops it when that is full.
    pub fn append(&self, line: &[u8]) {
        if line.is_empty() {
            return;
        }
        let shared = &self.0.shared;
        let mut state = locked(&shared.state);
        let before = state.waiting.len();
        if before + line.len() > LIMIT {
            drop(state);
            STATS.write_dropped.increment(1);
            return;
        }
        state.waiting.extend_from_slice(line);
        let start = !std::mem::replace(&mut state.running, true);
        let wake = before == 0 || before < FULL && state.waiting.len() >= FULL;
        drop(state);
        STATS.write_buffered.increment(1);
        STATS.write_total_buffered.increment(line.len() as f64);
        if start {
            shared.start();
        } else if wake {
            shared.wake.notify_one();
        }
    }
}

impl Sink {
    /// Writes out what is buffered and waits for it, at most for `patience`.
    pub fn flush(&self, patience: Duration) -> bool {
        flush(std::slice::from_ref(&self.0), patience)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        locked(&self.shared.state).closing = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    /// Starts the thread. It is started by the first line, so that reading a configuration (to
    /// check it, say) starts none.
    fn start(self: &Arc<Self>) {
        let shared = self.clone();
        let thread = std::thread::Builder::new().name("access_log".into()).stack_size(128 * 1024);
        if let Err(error) = thread.spawn(move || shared.run()) {
            tracing::error!(target: "file", "no thread for the access log {:?}: {error}", self.target);
            locked(&self.state).running = false;
        }
    }

    fn run(&self) {
        let Some(mut writer) = locked(&self.state).writer.take() else { return };
        let mut batch = Vec::new();
        loop {
            let mut state = locked(&self.state);
            while state.waiting.is_empty() && !state.is_urgent() {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state = self.wait_for_more(state);
            std::mem::swap(&mut batch, &mut state.waiting);
            let (asked, closing) = (state.asked, state.closing);
            let reopen = std::mem::take(&mut state.reopen);
            drop(state);

            if !batch.is_empty() {
                match writer.write_all(&batch) {
                    Ok(()) => STATS.write_completed.increment(1),
                    Err(_) => STATS.write_failed.increment(1),
                }
                STATS.write_total_buffered.decrement(batch.len() as f64);
                batch.clear();
                batch.shrink_to(KEPT);
            }
            if reopen {
                match self.target.open() {
                    Ok(fresh) => writer = fresh,
                    Err(error) => {
                        STATS.reopen_failed.increment(1);
                        tracing::warn!(target: "file", "cannot reopen {:?}: {error}", self.target);
                    }
                }
            }
            let mut state = locked(&self.state);
            state.flushed = asked;
            self.done.notify_all();
            if closing && state.waiting.is_empty() {
                return;
            }
        }
    }

    fn wait_flushed(&self, asked: u64, deadline: Instant) -> bool {
        let mut state = locked(&self.state);
        while state.flushed < asked {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Lets lines gather until the timer ends or something is urgent.
    fn wait_for_more<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let mut interval = Duration::from_millis(INTERVAL_MS.load(Ordering::Relaxed));
        if !matches!(self.target, Target::File(_)) {
            interval = interval.min(CONSOLE_INTERVAL);
        }
        let deadline = Instant::now() + interval;
        while !state.is_urgent() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                STATS.flushed_by_timer.increment(1);
                break;
            }
            state = self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }
}

#[derive(Debug)]
enum Writer {
    Stdout,
    Stderr,
    File(File),
}

impl Writer {
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let mut deadline = None;
        while !bytes.is_empty() {
            let result = match self {
                // The locks of the standard streams are held for one call only: others print too.
                Writer::Stdout => {
                    let mut out = io::stdout().lock();
                    out.write(bytes).and_then(|written| out.flush().map(|()| written))
                }
                Writer::Stderr => io::stderr().lock().write(bytes),
                Writer::File(file) => file.write(bytes),
            };
            match result {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = bytes.get(written..).unwrap_or_default();
                    deadline = None;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A pipe that someone made non-blocking: this thread is there to wait.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let now = Instant::now();
                    if now > *deadline.get_or_insert(now + WRITE_PATIENCE) {
                        return Err(error);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

pub(super) fn set_flush_interval(interval: Duration) {
    let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    // A day is as good as never, and cannot overflow a clock.
    INTERVAL_MS.store(millis.clamp(1, 86_400_000), Ordering::Relaxed);
}

pub(super) fn flush_all(patience: Duration) -> bool {
    flush(&open_files(), patience)
}

fn flush(owners: &[Arc<Owner>], patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    // All threads at once, then wait for each.
    let mut waits = Vec::new();
    for owner in owners {
        let mut state = locked(&owner.shared.state);
        if state.running {
            state.asked += 1;
            waits.push((owner, state.asked));
            owner.shared.wake.notify_one();
        }
    }
    // No short cut: every file gets its time.
    waits.into_iter().fold(true, |all, (owner, asked)| owner.shared.wait_flushed(asked, deadline) && all)
}

pub(super) fn reopen_all() {
    for owner in open_files() {
        let mut state = locked(&owner.shared.state);
        if state.running {
            state.reopen = true;
            owner.shared.wake.notify_one();
        } else if let Ok(writer) = owner.shared.target.open() {
            state.writer = Some(writer);
        } else {
            STATS.reopen_failed.increment(1);
        }
    }
}

fn open_files() -> Vec<Arc<Owner>> {
    locked(&FILES).values().filter_map(Weak::upgrade).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
