//! Access logs: one line, or one entry for a service, for each finished stream.
//!
//! Comes in: a loggers' configuration, and streams as [`FormatContext`]s. Goes out: lines, appended
//! to the buffer of the file they belong to and written by that file's own thread, so that a worker
//! never waits for a disk; and entries for [`service`]s, which wait in the worker until they are fetched.

mod compile;
mod filter;
pub mod service;
mod sink;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

pub use compile::substitution_format;
pub use filter::LogFilter;
use service::ServiceLog;
use sink::Sink;

use super::format::{Format, FormatContext};

/// A compiled access logger.
#[derive(Debug)]
pub struct AccessLog {
    filter: Option<LogFilter>,
    output: Output,
}

/// Where logs go.
#[derive(Debug)]
enum Output {
    Lines(Format, Sink),
    Service(ServiceLog),
}

/// A file that whole lines are appended to, shared with loggers that name the same one.
#[derive(Clone, Debug)]
pub struct LineFile(Sink);

impl LineFile {
    /// Opens the file at `path`, or joins those that have it open.
    ///
    /// # Errors
    /// The kernel's, if it cannot be opened.
    pub fn open(path: &str) -> std::io::Result<Self> {
        Sink::open(sink::Target::of_path(path)).map(Self)
    }

    /// Appends `line`, which brings its end along. Never blocks on I/O.
    pub fn append(&self, line: &[u8]) {
        self.0.append(line);
    }
}

/// `time` as protobuf's JSON has it: UTC, with milliseconds unless there are none.
pub fn json_time(time: SystemTime) -> String {
    let Ok(time) = jiff::Timestamp::try_from(time) else { return String::new() };
    let format = if time.subsec_millisecond() == 0 { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S.%3fZ" };
    time.strftime(format).to_string()
}

thread_local! {
    /// Where a line is put together before it goes to the shared buffer.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Longest line kept allocated between lines, in bytes.
const KEPT_LINE: usize = 16 * 1024;

impl AccessLog {
    /// Writes about the stream if the filter lets it through. Never blocks on I/O; when the file's buffer
    /// is full the line is dropped and counted (`filesystem.write_dropped`), and so are entries for a service
    /// that takes no more (`logs_dropped`).
    pub fn write(&self, ctx: &FormatContext<'_>) {
        if self.filter.as_ref().is_some_and(|filter| !filter.matches(ctx)) {
            return;
        }
        let (format, sink) = match &self.output {
            Output::Lines(format, sink) => (format, sink),
            Output::Service(log) => return log.write(ctx),
        };
        LINE.with(|line| {
            // Rendering calls nothing that logs, so the line is never borrowed already.
            let Ok(mut line) = line.try_borrow_mut() else { return };
            line.clear();
            format.render(&mut line, ctx);
            sink.append(&line);
            line.shrink_to(KEPT_LINE);
        });
    }

    /// Writes out what is buffered for this logger's file and waits for it, at most for `patience`.
    /// Not for workers.
    pub fn flush(&self, patience: Duration) -> bool {
        match &self.output {
            Output::Lines(_, sink) => sink.flush(patience),
            Output::Service(_) => true,
        }
    }
}

/// How often files are written to: `--file-flush-interval-msec`. Default 10 s.
pub fn set_flush_interval(interval: Duration) {
    sink::set_flush_interval(interval);
}

/// Writes out everything buffered and waits for it, at most for `patience`. False when something
/// was not written in time. For shutdown; not for workers.
pub fn flush_all(patience: Duration) -> bool {
    sink::flush_all(patience)
}

/// Closes and opens every log file again, for log rotation (`POST /reopen_logs`, `SIGUSR1`). What is
/// buffered goes to the old file.
pub fn reopen_all() {
    sink::reopen_all();
}
