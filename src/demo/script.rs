//! What happens while the traffic flows: the steps, and whether each had its effect and no other.
//!
//! In: the origins, the file that the control plane follows, what clients see. Out: [`Progress`]. A new endpoint runs
//! before anybody is told of it, and one that is to go ends when nobody asks it any more.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use outrigger_control_api::server::ResourceType;

use super::mesh::Mesh;
use super::plane::Plane;
use super::traffic::{Tally, Traffic};
use super::{DemoError, Origins};

/// What shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// Endpoints of `web`, 1 to 5.
    pub(super) web: usize,
    /// The canary's share of `checkout`, in percent.
    pub(super) canary: u64,
}

/// A change and its name.
pub(super) struct Step {
    pub(super) title: &'static str,
    pub(super) state: State,
}

/// All steps; after the last comes the first again.
pub(super) const STEPS: [Step; 5] = [
    Step { title: "web has 2 endpoints, no canary", state: State { web: 2, canary: 0 } },
    Step { title: "web scales from 2 to 5", state: State { web: 5, canary: 0 } },
    Step { title: "checkout's canary gets 10 %", state: State { web: 5, canary: 10 } },
    Step { title: "web scales from 5 to 1", state: State { web: 1, canary: 10 } },
    Step { title: "checkout's canary gets 100 %", state: State { web: 1, canary: 100 } },
];

/// How long the sidecar may take to accept a change, and the change to have its effect. It takes milliseconds; a
/// machine under load may need longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many answers of a service tell who answers for it.
const WINDOW: u64 = 50;
/// How often clients' counts are looked at while a change takes effect.
const LOOK: Duration = Duration::from_millis(10);
/// Fewer answers than this say nothing of shares.
const ENOUGH: u64 = 200;

/// A step that is over.
pub(super) struct Done {
    pub(super) title: &'static str,
    /// From the change of the file to the sidecar's acceptance; `None` for the first, which it started with.
    pub(super) accepted: Option<Duration>,
    /// Requests from the beginning of the step to that of the next, and how many of them failed.
    pub(super) requests: u64,
    pub(super) failed: u64,
    /// Latencies of `web` and `checkout`, in microseconds.
    pub(super) latencies: Option<Histogram<u64>>,
    /// `web-1 50 %, web-2 50 %; stable 100 %`
    pub(super) shares: String,
}

/// How far the script is.
#[derive(Default)]
pub(super) struct Progress {
    /// Index of the step under way.
    pub(super) step: Cell<usize>,
    /// When the next one begins.
    pub(super) next: Cell<Option<Instant>>,
    /// How long the sidecar took to accept this step.
    pub(super) accepted: Cell<Option<Duration>>,
    /// The latest steps that are over, as many as there are.
    pub(super) done: RefCell<VecDeque<Done>>,
    /// Steps that are over since the start.
    pub(super) completed: Cell<usize>,
    /// Lines for people that were not shown yet.
    pub(super) news: RefCell<Vec<String>>,
    /// What did not go as it must.
    pub(super) wrong: RefCell<Vec<String>>,
}

impl Progress {
    fn tell(&self, line: String) {
        let mut news = self.news.borrow_mut();
        // A terminal's picture does not need them.
        if news.len() < 100 {
            news.push(line);
        }
    }

    fn wrong(&self, line: String) {
        self.wrong.borrow_mut().push(line);
    }
}

/// Counts at one moment.
struct Counts {
    requests: u64,
    failed: u64,
}

impl Counts {
    fn of(tally: &Tally) -> Self {
        Self { requests: tally.answers() + tally.lost.get(), failed: tally.failed() }
    }
}

/// Goes through the steps.
pub(super) struct Script {
    pub(super) mesh: Rc<Mesh>,
    pub(super) origins: Rc<Origins>,
    pub(super) traffic: Rc<Traffic>,
    pub(super) plane: Plane,
    pub(super) progress: Rc<Progress>,
    /// How long each step lasts.
    pub(super) pace: Duration,
}

impl Script {
    /// Each step once, or one after the other without an end.
    pub(super) async fn run(&mut self, once: bool) -> Result<(), DemoError> {
        let mut present = None;
        for index in (0..STEPS.len()).cycle() {
            let Some(step) = STEPS.get(index) else { return Ok(()) };
            self.step(index, step, present).await?;
            present = Some(step.state);
            if once && index + 1 == STEPS.len() {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn step(&mut self, index: usize, step: &Step, present: Option<State>) -> Result<(), DemoError> {
        let end = tokio::time::Instant::now() + self.pace;
        let progress = self.progress.clone();
        let before = Counts::of(&self.traffic.tally);
        progress.step.set(index);
        progress.accepted.set(None);
        progress.next.set(Some(end.into_std()));
        progress.tell(format!("step {} of {}: {}", index + 1, STEPS.len(), step.title));
        let accepted = match present {
            None => None,
            Some(present) => self.change(present, step).await?,
        };
        progress.accepted.set(accepted);
        let effective = self.effect(step).await;
        for origin in self.origins.web.iter().skip(step.state.web) {
            origin.close();
        }
        if let Some(took) = accepted {
            let failed = Counts::of(&self.traffic.tally).failed - before.failed;
            progress
                .tell(format!("  accepted by the sidecar after {} ms, failed: {failed}", took.as_millis()));
        }
        let settled = self.traffic.tally.served_by.borrow().clone();
        tokio::time::sleep_until(end).await;
        if effective {
            self.judge(step, &settled);
        }
        let after = Counts::of(&self.traffic.tally);
        let answers = since(&settled, &self.traffic.tally.served_by.borrow());
        let done = Done {
            title: step.title,
            accepted,
            requests: after.requests - before.requests,
            failed: after.failed - before.failed,
            latencies: self.traffic.take_step_latencies(),
            shares: self.shares(&answers),
        };
        let mut all = progress.done.borrow_mut();
        if all.len() == STEPS.len() {
            all.pop_front();
        }
        all.push_back(done);
        progress.completed.set(progress.completed.get() + 1);
        Ok(())
    }

    /// Tells the control plane, and waits for the sidecar to accept; how long that took.
    async fn change(&mut self, present: State, step: &Step) -> Result<Option<Duration>, DemoError> {
        for origin in self.origins.web.iter().take(step.state.web) {
            origin.open().await.map_err(DemoError::io("start an origin"))?;
        }
        let mut kinds = Vec::new();
        if present.web != step.state.web {
            kinds.push(ResourceType::ENDPOINTS);
        }
        if present.canary != step.state.canary {
            kinds.push(ResourceType::ROUTE);
        }
        self.plane.forget();
        let began = Instant::now();
        self.mesh.tell(&self.origins, step.state)?;
        let accepted = self.plane.accepts(kinds, began, PATIENCE).await;
        if accepted.is_none() {
            self.progress.wrong(format!("{}: the sidecar did not accept it within {PATIENCE:?}", step.title));
        }
        Ok(accepted)
    }

    /// Waits until those answer that shall, and no others.
    async fn effect(&self, step: &Step) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let wanted = self.wanted(step.state);
        let mut from = self.traffic.tally.served_by.borrow().clone();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.traffic.tally.served_by.borrow().clone();
            let answers = since(&from, &now);
            if ["web", "checkout"].iter().all(|service| self.total(service, &answers) >= WINDOW) {
                let seen: Vec<&str> = self.names().filter(|name| answers.contains_key(*name)).collect();
                if seen == wanted {
                    return true;
                }
                from = now;
            }
            if Instant::now() >= deadline {
                self.progress.wrong(format!("{}: no effect within {PATIENCE:?}", step.title));
                return false;
            }
        }
    }

    /// What was answered since the step had its effect must be the work of those who shall, in the shares wanted.
    fn judge(&self, step: &Step, settled: &BTreeMap<&'static str, u64>) {
        let answers = since(settled, &self.traffic.tally.served_by.borrow());
        let wanted = self.wanted(step.state);
        for name in self.names() {
            let count = answers.get(name).copied().unwrap_or_default();
            if count > 0 && !wanted.contains(&name) {
                self.progress.wrong(format!("{}: {count} answers of {name}, which had to go", step.title));
            }
        }
        let web = self.total("web", &answers);
        for origin in self.origins.web.iter().take(step.state.web) {
            let count = answers.get(origin.name).copied().unwrap_or_default();
            if web >= ENOUGH && count * 2 * (step.state.web as u64) < web {
                self.progress.wrong(format!("{}: {} answered {count} of {web}", step.title, origin.name));
            }
        }
        let checkout = self.total("checkout", &answers) as f64;
        let canary = answers.get(self.origins.canary.name).copied().unwrap_or_default() as f64;
        let share = step.state.canary as f64 / 100.0;
        // Five standard deviations of a draw for each request.
        let room = 5.0 * (checkout * share * (1.0 - share)).sqrt() + 1.0;
        if (canary - checkout * share).abs() > room {
            self.progress.wrong(format!("{}: the canary answered {canary} of {checkout}", step.title));
        }
    }

    /// The endpoints of `web` and `checkout`, in the order of [`Self::wanted`].
    fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        let web = self.origins.web.iter();
        web.map(|origin| origin.name).chain([self.origins.stable.name, self.origins.canary.name])
    }

    /// Who shall answer for `web` and `checkout`.
    fn wanted(&self, state: State) -> Vec<&'static str> {
        let web = self.origins.web.iter().take(state.web).map(|origin| origin.name);
        let stable = (state.canary < 100).then_some(self.origins.stable.name);
        let canary = (state.canary > 0).then_some(self.origins.canary.name);
        web.chain(stable).chain(canary).collect()
    }

    fn total(&self, service: &str, answers: &BTreeMap<&'static str, u64>) -> u64 {
        let of = self.origins.all().filter(|origin| origin.service == service);
        of.map(|origin| answers.get(origin.name).copied().unwrap_or_default()).sum()
    }

    fn shares(&self, answers: &BTreeMap<&'static str, u64>) -> String {
        let of = |service: &str| {
            let total = self.total(service, answers);
            let origins = self.origins.all().filter(|origin| origin.service == service);
            let shares = origins.filter_map(|origin| {
                let count = *answers.get(origin.name)?;
                Some(format!("{} {} %", origin.name, super::summary::percent(count, total)))
            });
            shares.collect::<Vec<_>>().join(", ")
        };
        format!("{}; {}", of("web"), of("checkout"))
    }
}

/// The answers of each endpoint between two counts; those without any are left out.
pub(super) fn since(
    from: &BTreeMap<&'static str, u64>,
    now: &BTreeMap<&'static str, u64>,
) -> BTreeMap<&'static str, u64> {
    let more = now.iter().map(|(name, count)| (*name, count - from.get(name).copied().unwrap_or_default()));
    more.filter(|(_, count)| *count > 0).collect()
}
