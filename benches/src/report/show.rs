//! Progress on the standard error: a bar on a terminal, a line every second elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::text::{count, time};
use crate::generate::run::Progress;

/// Where progress is shown.
pub struct Shown {
    bar: Option<ProgressBar>,
    quiet: bool,
    next: f64,
}

impl Shown {
    /// Of a run of so many seconds, if that is known.
    pub fn new(quiet: bool, seconds: Option<f64>) -> Self {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let bar = (terminal && !quiet).then(|| {
            let target = ProgressDrawTarget::stderr_with_hz(10);
            let bar = ProgressBar::with_draw_target(seconds.map(|seconds| (seconds * 1000.0) as u64), target);
            if let Ok(style) = ProgressStyle::with_template("{bar:24} {elapsed_precise}  {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        Self { bar, quiet, next: 0.0 }
    }

    /// An interval is over.
    pub fn progress(&mut self, progress: &Progress) {
        let interval = &progress.interval;
        let line = format!(
            "{:>9}/s  p50 {}  p90 {}  p99 {}  max {}  failed {}",
            count(interval.answered as f64 / interval.length_s.max(1e-9)),
            time(interval.p50_us),
            time(interval.p90_us),
            time(interval.p99_us),
            time(interval.max_us),
            progress.failed,
        );
        let at = interval.start_s + interval.length_s;
        if let Some(bar) = &self.bar {
            bar.set_position((at * 1000.0) as u64);
            bar.set_message(line);
        } else if !self.quiet && at + 1e-6 >= self.next {
            self.next = at + 1.0;
            eprintln!("{at:7.1} s  {line}");
        }
    }

    /// A line of its own.
    pub fn say(&mut self, line: &str) {
        self.next = 0.0;
        match &self.bar {
            Some(bar) => bar.println(line),
            None if self.quiet => {}
            None => eprintln!("{line}"),
        }
    }

    /// Leaves the terminal as it was.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
