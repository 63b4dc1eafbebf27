//! What is shown while it runs: a picture that is drawn anew on a terminal, a line a second elsewhere.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Instant;

use crossterm::style::{Attribute, Color, ResetColor, SetAttribute, SetForegroundColor};
use crossterm::{cursor, queue, terminal};
use hdrhistogram::Histogram;

use super::plane::PlaneView;
use super::script::{since, Progress, STEPS};
use super::summary::{percent, quantiles, Totals};

/// Columns of the bar for all of a service's requests.
const BAR: u64 = 24;

/// Where the numbers are shown.
pub(super) struct Screen {
    terminal: bool,
    colors: bool,
    /// What bars are made of.
    block: char,
    /// Lines of the last picture, which the next one replaces.
    drawn: u16,
    /// Answers of each endpoint when it was last shown.
    before: BTreeMap<&'static str, u64>,
}

/// How a line looks.
#[derive(Clone, Copy)]
enum Tone {
    Plain,
    Title,
    Good,
    Bad,
    Faint,
}

/// What is shown at one moment.
pub(super) struct Shown<'a> {
    pub(super) totals: &'a Totals,
    /// Requests per second since the last time.
    pub(super) rate: f64,
    /// Latencies since the last time, in microseconds.
    pub(super) recent: &'a Option<Histogram<u64>>,
    pub(super) progress: &'a Progress,
    pub(super) plane: &'a PlaneView,
}

impl Screen {
    pub(super) fn new(terminal: bool) -> Self {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        // The first that is set counts.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find(|name| is_set(name));
        let locale =
            locale.and_then(|name| std::env::var(name).ok()).unwrap_or_default().to_ascii_lowercase();
        let unicode = locale.contains("utf-8") || locale.contains("utf8");
        Self {
            terminal,
            colors: !is_set("NO_COLOR"),
            block: if unicode { '\u{2588}' } else { '#' },
            drawn: 0,
            before: BTreeMap::new(),
        }
    }

    /// Shows it.
    pub(super) fn show(&mut self, shown: &Shown<'_>) {
        let now: BTreeMap<_, _> =
            shown.totals.replicas.iter().map(|replica| (replica.name, replica.answers)).collect();
        let answers = since(&self.before, &now);
        self.before = now;
        // A terminal that went away ends the program by its signal.
        let _ = if self.terminal {
            let lines = self.picture(shown, &answers);
            self.draw(&lines)
        } else {
            let shares = shown.totals.replicas.iter().filter_map(|replica| {
                let share = percent(
                    *answers.get(replica.name)?,
                    service_total(shown.totals, replica.service, &answers),
                );
                Some(format!("{} {share}%", replica.name))
            });
            let shares: Vec<String> = shares.collect();
            writeln!(
                std::io::stdout().lock(),
                "{:.0} requests/s, failed: {}{}, {}; {}",
                shown.rate,
                shown.totals.failed,
                shown.totals.failures(),
                quantiles(shown.recent.as_ref()),
                shares.join(", "),
            )
        };
    }

    fn picture(&self, shown: &Shown<'_>, answers: &BTreeMap<&'static str, u64>) -> Vec<(Tone, String)> {
        let Shown { totals, rate, recent, progress, plane } = shown;
        let mut lines = Vec::new();
        lines.push((
            Tone::Title,
            format!("{rate:>6.0} requests/s   web and checkout: {}", quantiles(recent.as_ref())),
        ));
        let tone = if totals.failed == 0 { Tone::Good } else { Tone::Bad };
        lines.push((
            tone,
            format!(
                "failed: {} of {} requests{}",
                totals.failed,
                totals.answers + totals.lost,
                totals.failures()
            ),
        ));
        lines.push((
            Tone::Title,
            format!("{:<9} {:<13} {:<17} {:>5}", "service", "endpoint", "address", "share"),
        ));
        for replica in &totals.replicas {
            let service = service_total(totals, replica.service, answers);
            let count = answers.get(replica.name).copied().unwrap_or_default();
            let Some(address) = replica.address else {
                lines.push((Tone::Faint, format!("{:<9} {:<13} -", replica.service, replica.name)));
                continue;
            };
            let columns = (count * BAR).checked_div(service).unwrap_or_default();
            let bar: String = (0..columns).map(|_| self.block).collect();
            let (address, share) = (address.to_string(), percent(count, service));
            let tone = if count == 0 { Tone::Faint } else { Tone::Plain };
            lines.push((
                tone,
                format!("{:<9} {:<13} {address:<17} {share:>4}% {bar}", replica.service, replica.name),
            ));
        }
        lines.extend(self.steps(progress));
        lines.push((Tone::Plain, totals.retry_line()));
        lines.push((Tone::Plain, format!("clients of the control plane: {}", plane.clients())));
        lines.push((Tone::Faint, "Ctrl-C ends it.".to_owned()));
        lines
    }

    /// All steps, the present one marked.
    fn steps(&self, progress: &Progress) -> Vec<(Tone, String)> {
        let present = progress.step.get();
        let done = progress.done.borrow();
        let line = |(index, step): (usize, &super::script::Step)| {
            let last = done.iter().rev().find(|done| done.title == step.title);
            if index == present {
                let took = progress.accepted.get();
                let took =
                    took.map_or(String::new(), |took| format!(", accepted after {} ms", took.as_millis()));
                let left =
                    progress.next.get().map(|at| at.saturating_duration_since(Instant::now()).as_secs() + 1);
                let left = left.map_or(String::new(), |left| format!(", {left} s left"));
                (Tone::Title, format!("> {}{took}{left}", step.title))
            } else {
                let was = last.map_or(String::new(), |last| format!(" (failed: {})", last.failed));
                (Tone::Faint, format!("  {}{was}", step.title))
            }
        };
        STEPS.iter().enumerate().map(line).collect()
    }

    fn draw(&mut self, lines: &[(Tone, String)]) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.drawn > 0 {
            queue!(out, cursor::MoveToPreviousLine(self.drawn))?;
        }
        queue!(out, terminal::Clear(terminal::ClearType::FromCursorDown))?;
        // A line that wraps would take two, and a picture that is higher than the terminal would not be replaced. Some
        // terminals say that they have no size at all.
        let (width, height) = match terminal::size() {
            Ok((columns @ 20.., rows @ 5..)) => (usize::from(columns), usize::from(rows)),
            _ => (80, 24),
        };
        let mut drawn = 0;
        for (tone, line) in lines.iter().take(height - 1) {
            match (tone, self.colors) {
                (Tone::Title, _) => queue!(out, SetAttribute(Attribute::Bold))?,
                (Tone::Good, true) => queue!(out, SetForegroundColor(Color::Green))?,
                (Tone::Bad, true) => queue!(out, SetForegroundColor(Color::Red))?,
                (Tone::Faint, true) => queue!(out, SetForegroundColor(Color::DarkGrey))?,
                _ => {}
            }
            let cut: String = line.chars().take(width - 1).collect();
            write!(out, "{cut}")?;
            queue!(out, SetAttribute(Attribute::Reset), ResetColor)?;
            writeln!(out)?;
            drawn += 1;
        }
        self.drawn = drawn;
        out.flush()
    }
}

fn service_total(totals: &Totals, service: &str, answers: &BTreeMap<&'static str, u64>) -> u64 {
    let of = totals.replicas.iter().filter(|replica| replica.service == service);
    of.map(|replica| answers.get(replica.name).copied().unwrap_or_default()).sum()
}
