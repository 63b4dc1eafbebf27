//! Time as nanoseconds of the monotonic clock, the one timers use too, and the CPU time of the tool.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use rustix::time::{
    clock_gettime, ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec,
};

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;
/// Nanoseconds in a millisecond.
pub const MILLISECOND: u64 = 1_000_000;

/// Nanoseconds of the monotonic clock.
pub fn now() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// Nanoseconds of CPU that this thread has used.
pub fn thread_cpu() -> u64 {
    nanoseconds(clock_gettime(ClockId::ThreadCPUTime))
}

/// Nanoseconds of CPU that this process has used.
pub fn process_cpu() -> u64 {
    nanoseconds(clock_gettime(ClockId::ProcessCPUTime))
}

/// Nanoseconds of so many seconds; 0 for what is no positive number.
pub fn from_seconds(seconds: f64) -> u64 {
    // A cast from float saturates.
    (seconds * SECOND as f64) as u64
}

/// Seconds of so many nanoseconds.
pub fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / SECOND as f64
}

fn nanoseconds(time: Timespec) -> u64 {
    time.tv_sec as u64 * SECOND + time.tv_nsec as u64
}

/// Makes a poll return at a moment, more exactly than the milliseconds of its timeout.
pub struct Alarm {
    descriptor: OwnedFd,
    set_for: u64,
}

impl Alarm {
    /// An alarm that is not set.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn new() -> std::io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self { descriptor: rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?, set_for: 0 })
    }

    /// What to poll for being readable, edge-triggered.
    pub fn descriptor(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }

    /// Sets it for this moment, at once if that is over.
    pub fn set(&mut self, at: u64) {
        if self.set_for == at {
            return;
        }
        self.set_for = at;
        let at = Timespec { tv_sec: (at / SECOND) as i64, tv_nsec: (at % SECOND).max(1) as i64 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        // It fails for no valid time; without an alarm the poll's own timeout is left.
        let _ = rustix::time::timerfd_settime(self.descriptor.as_fd(), TimerfdTimerFlags::ABSTIME, &once);
    }
}

/// A thread of this process.
#[derive(Debug, Clone, Copy)]
pub struct Thread(rustix::thread::Pid);

/// The calling thread.
pub fn this_thread() -> Thread {
    Thread(rustix::thread::gettid())
}

/// Makes a thread give way to all others, or not any more.
///
/// # Errors
/// The kernel does not let it.
pub fn step_back(thread: Thread, back: bool) -> std::io::Result<()> {
    Ok(rustix::process::setpriority_process(Some(thread.0), if back { 19 } else { 0 })?)
}

/// Runs the calling thread on this core only.
///
/// # Errors
/// There is no such core, or it may not be used.
pub fn pin(core: usize) -> std::io::Result<()> {
    let mut cores = rustix::thread::CpuSet::new();
    if core >= rustix::thread::CpuSet::MAX_CPU {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    cores.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &cores)?)
}
