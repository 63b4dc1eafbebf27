//! The search for the highest rate that keeps a goal: the rate doubles until the goal is missed, then the gap between
//! the best kept and the lowest missed rate is halved until it is small.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::show::Shown;
use super::text::{count, time};
use crate::generate::run::{run, Plan};
use crate::generate::task::Stage;
use crate::result::{RunResult, Schedule, Trial};

/// The rate that is tried first without another.
const FIRST: f64 = 1000.0;
/// The gap at which the search ends, as a share of the rate.
const PRECISION: f64 = 0.03;
/// The share of requests that may fail, or be left over, in a trial that keeps its goal.
const BAD: f64 = 0.001;
const TRIALS: usize = 24;

/// Runs trials of `plan`; the result is that of the best one, or of the last one if none kept the goal.
///
/// # Errors
/// A trial cannot be run.
pub fn search(plan: &Plan, stage: &Arc<Stage>, goal_ns: u64, shown: &mut Shown) -> io::Result<RunResult> {
    let (first, poisson) = match plan.work.schedule {
        Schedule::Constant { rate } => (rate, false),
        Schedule::Poisson { rate } => (rate, true),
        _ => (FIRST, false),
    };
    let goal_us = goal_ns as f64 / 1000.0;
    let (mut kept, mut missed, mut rate) = (None::<f64>, None::<f64>, first);
    let (mut best, mut last, mut trials) = (None, None, Vec::new());
    while trials.len() < TRIALS {
        let mut plan = plan.clone();
        plan.work.schedule = if poisson { Schedule::Poisson { rate } } else { Schedule::Constant { rate } };
        let stage = Arc::new(stage.again());
        let result = run(&plan, &stage, &mut |progress| shown.progress(progress))?;
        let requests = &result.requests;
        let bad =
            requests.scheduled.saturating_sub(requests.successful) as f64 / requests.scheduled.max(1) as f64;
        let p99_us = result.latency.corrected.p99_us;
        let keeps = requests.answered > 0 && p99_us <= goal_us && bad <= BAD;
        let answered_per_s = result.rates.answered_per_s;
        trials.push(Trial { rate, answered_per_s, p99_us, bad_share: bad, kept: keeps });
        let told = if keeps { "kept" } else { "missed" };
        shown.say(&format!("{}/s: p99 {}, bad {:.3} %: {told}", count(rate), time(p99_us), bad * 100.0));
        if stage.stop.load(Ordering::Relaxed) {
            last = last.or(Some(result));
            break;
        }
        if keeps {
            kept = Some(rate);
            best = Some(result);
        } else {
            missed = Some(rate);
            last = Some(result);
        }
        rate = match (kept, missed) {
            (Some(kept), None) => kept * 2.0,
            (None, Some(missed)) if missed > 1.0 => missed / 2.0,
            (Some(kept), Some(missed)) if missed - kept > PRECISION * kept => (kept + missed) / 2.0,
            _ => break,
        };
    }
    let mut result = best.or(last).ok_or_else(|| io::Error::other("no trial was run"))?;
    result.search = trials;
    Ok(result)
}
