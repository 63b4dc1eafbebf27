//! The demonstration: `outrigger demo`.
//!
//! Comes in: two flags, nothing else; no file and no other program is needed. It starts origin services in this
//! process ([`origin`]), a control plane on a thread of its own ([`plane`]) that serves the files of [`mesh`], a sidecar
//! that takes everything from it as a child process ([`sidecar`]), and clients that keep asking it ([`traffic`]). Then
//! services scale and a canary takes over ([`script`]). Goes out: what the sidecar and the clients counted, while it
//! runs ([`screen`]) and at the end, and an exit status that says whether nothing failed and both sides counted the
//! same ([`summary`]). Everything stays on loopback.

mod mesh;
mod origin;
mod plane;
mod screen;
mod script;
mod sidecar;
mod summary;
mod traffic;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{signal, SignalKind};
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior};

use mesh::Mesh;
use origin::{Behaviour, Echo, Origin};
use plane::{Plane, PlaneView};
use screen::{Screen, Shown};
use script::{Progress, Script, STEPS};
use sidecar::{Sidecar, Snapshot};
use summary::{missing_steps, Totals};
use traffic::Traffic;

/// How long `--once` runs.
const ONCE: Duration = Duration::from_secs(10);
/// How long a step lasts where there is no end.
const STEP: Duration = Duration::from_secs(5);
/// The shortest step: enough to see what it did.
const SHORTEST_STEP: Duration = Duration::from_secs(1);
/// How long the counters of both sides may take to agree once the last answer is there.
const SETTLE: Duration = Duration::from_secs(3);

/// A control plane, a sidecar that follows it, services that scale and steady traffic; no argument is needed.
#[derive(Debug, Parser)]
#[command(name = "outrigger demo")]
struct Options {
    /// Go through all steps once, ten seconds in all, print the summary, and succeed only if no request failed and
    /// the numbers are right.
    #[arg(long)]
    once: bool,
    /// Stop after this many seconds.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
}

/// Why the demonstration ended early.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("cannot {doing}: {source}")]
    Io { doing: &'static str, source: std::io::Error },
    #[error("the sidecar ended: {0}")]
    SidecarEnded(String),
    #[error("the sidecar was not ready within {0:?}")]
    NotReady(Duration),
    #[error("the admin port's answer to {path} is not understood: {why}")]
    Admin { path: &'static str, why: String },
}

impl DemoError {
    fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// Runs the demonstration with these arguments.
pub fn main(args: Vec<String>) -> ExitCode {
    let line = std::iter::once("outrigger demo".to_owned()).chain(args);
    let options = match Options::try_parse_from(line) {
        Ok(options) => options,
        Err(shown) => {
            let code = if shown.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
            // Nothing can be done when the terminal is gone.
            let _ = shown.print();
            return code;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime
        .map_err(DemoError::io("start the runtime"))
        .and_then(|runtime| LocalSet::new().block_on(&runtime, Box::pin(run(&options))));
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("outrigger demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the numbers were right, or the user ended it.
async fn run(options: &Options) -> Result<bool, DemoError> {
    let mut stop = Stop::listen()?;
    let first = STEPS[0].state;
    let origins = Rc::new(Origins::start(first.web).await?);
    let (mesh, sockets) = Mesh::create(&origins, first)?;
    let mesh = Rc::new(mesh);
    let plane = Plane::start(&mesh.resources(), sockets)?;
    say(&mesh.introduction());
    let mut sidecar = Sidecar::start(&mesh)?;
    tokio::select! {
        ready = sidecar.ready() => ready?,
        () = stop.wanted() => return Ok(true),
    }
    say(&mesh.invitation());

    let limit = match (options.seconds, options.once) {
        (Some(seconds), _) => Some(Duration::from_secs(seconds)),
        (None, true) => Some(ONCE),
        (None, false) => None,
    };
    let steps = STEPS.len() as u32;
    let pace = limit.map_or(STEP, |limit| (limit / steps).min(STEP)).max(SHORTEST_STEP);
    let names = origins.all().map(|origin| origin.name).collect();
    let traffic = Rc::new(Traffic::start(mesh.http, mesh.tcp, names));
    let progress = Rc::new(Progress::default());
    let view = plane.view();
    let mut script = Script {
        mesh: mesh.clone(),
        origins: origins.clone(),
        traffic: traffic.clone(),
        plane,
        progress: progress.clone(),
        pace,
    };
    let mut shown = Watch {
        quiet: options.once,
        traffic: &traffic,
        origins: &origins,
        sidecar: &mut sidecar,
        progress: &progress,
        plane: &view,
    };
    let interrupted = shown.watch(&mut script, limit, options.once, &mut stop).await?;
    traffic.finish().await;

    let totals = match settled(&traffic, &origins, &sidecar).await {
        Ok(totals) => totals,
        // That the process is gone says more than that its port is.
        Err(error) => return Err(sidecar.still_there().err().unwrap_or(error)),
    };
    let mut wrong = totals.wrong();
    wrong.extend(view.wrong());
    wrong.append(&mut progress.wrong.borrow_mut());
    if options.once {
        wrong.extend(missing_steps(&progress));
    }
    say(&format!("\n{}", totals.report(&progress)));
    // Requests of the user's own are counted by the sidecar and the origins too.
    let verdict = if interrupted { "differs" } else { "WRONG" };
    for line in &wrong {
        say(&format!("{verdict}: {line}"));
    }
    if interrupted && !wrong.is_empty() {
        say("(As it does after requests of your own, and where a step was cut short.)");
    }
    if wrong.is_empty() {
        say("All numbers are right: every request was answered 200, and the sidecar counted what the clients and the \
             origins counted.");
    }
    // Someone who pressed Ctrl-C after half a second asked for no verdict.
    Ok(interrupted || wrong.is_empty())
}

/// What is shown while it runs, and from where.
struct Watch<'a> {
    /// Only the steps, not every second.
    quiet: bool,
    traffic: &'a Traffic,
    origins: &'a Origins,
    sidecar: &'a mut Sidecar,
    progress: &'a Progress,
    plane: &'a PlaneView,
}

impl Watch<'_> {
    /// Runs the script and shows what happens until the time is over, or all steps are; `true` when the user ended it.
    async fn watch(
        &mut self,
        script: &mut Script,
        limit: Option<Duration>,
        once: bool,
        stop: &mut Stop,
    ) -> Result<bool, DemoError> {
        let began = Instant::now();
        let end = async {
            match limit.filter(|_| !once) {
                Some(limit) => tokio::time::sleep_until(began + limit).await,
                // All steps once, however long they take.
                None => std::future::pending().await,
            }
        };
        let steps = script.run(once);
        tokio::pin!(end, steps);
        let terminal = std::io::stdout().is_terminal() && !self.quiet;
        let period = Duration::from_millis(if terminal { 500 } else { 1000 });
        let mut ticks = tokio::time::interval_at(began + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut screen = Screen::new(terminal);
        let mut before = 0;
        let mut last = began;
        loop {
            tokio::select! {
                () = stop.wanted() => return Ok(true),
                () = &mut end => return Ok(false),
                ended = &mut steps => {
                    self.tell_news(terminal);
                    return ended.map(|()| false);
                }
                _ = ticks.tick() => {}
            }
            self.sidecar.still_there()?;
            self.tell_news(terminal);
            if self.quiet {
                continue;
            }
            let totals = totals(self.traffic, self.origins, self.sidecar).await?;
            let now = Instant::now();
            let answers = totals.answers.saturating_sub(before);
            let rate = answers as f64 / (now - last).as_secs_f64().max(0.001);
            (before, last) = (totals.answers, now);
            let recent = self.traffic.take_latencies();
            let (progress, plane) = (self.progress, self.plane);
            screen.show(&Shown { totals: &totals, rate, recent: &recent, progress, plane });
        }
    }

    /// Lines about steps; a terminal's picture has them.
    fn tell_news(&self, terminal: bool) {
        let news = std::mem::take(&mut *self.progress.news.borrow_mut());
        if !terminal {
            news.iter().for_each(|line| say(line));
        }
    }
}

/// The totals once both sides agree, or as they are after [`SETTLE`]: the sidecar writes its counters in passing.
async fn settled(traffic: &Traffic, origins: &Origins, sidecar: &Sidecar) -> Result<Totals, DemoError> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let totals = totals(traffic, origins, sidecar).await?;
        if totals.wrong().is_empty() || Instant::now() >= deadline {
            return Ok(totals);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn totals(traffic: &Traffic, origins: &Origins, sidecar: &Sidecar) -> Result<Totals, DemoError> {
    let snapshot: Snapshot = sidecar.snapshot().await?;
    Ok(Totals::new(traffic, origins, snapshot))
}

/// The origin services: what stands behind the sidecar.
struct Origins {
    /// The replicas of `web`, of which the first ones are open.
    web: Vec<Rc<Origin>>,
    /// The versions of `checkout`.
    stable: Rc<Origin>,
    canary: Rc<Origin>,
    /// The replicas of `users`.
    users: Vec<Rc<Origin>>,
    echo: Rc<Echo>,
}

impl Origins {
    /// All but the replicas of `web` beyond `web`.
    async fn start(web: usize) -> Result<Self, DemoError> {
        let names = ["web-1", "web-2", "web-3", "web-4", "web-5"];
        let users = [
            ("users-steady", Behaviour::Steady),
            ("users-slow", Behaviour::Slow(Duration::from_millis(30))),
            ("users-flaky", Behaviour::FailsEvery(10)),
        ];
        let origins = Self {
            web: names.map(|name| Origin::new("web", "web", name, Behaviour::Steady)).into(),
            stable: Origin::new("checkout", "checkout/stable", "stable", Behaviour::Steady),
            canary: Origin::new("checkout", "checkout/canary", "canary", Behaviour::Steady),
            users: users.map(|(name, behaviour)| Origin::new("users", "users", name, behaviour)).into(),
            echo: Echo::start().await.map_err(DemoError::io("start the echo service"))?,
        };
        for (index, origin) in origins.all().enumerate() {
            if origin.service != "web" || index < web {
                origin.open().await.map_err(DemoError::io("start an origin"))?;
            }
        }
        Ok(origins)
    }

    /// In the order in which they are shown.
    fn all(&self) -> impl Iterator<Item = &Rc<Origin>> {
        self.web.iter().chain([&self.stable, &self.canary]).chain(&self.users)
    }
}

/// The signals that end a program.
struct Stop {
    signals: [tokio::signal::unix::Signal; 3],
}

impl Stop {
    fn listen() -> Result<Self, DemoError> {
        let listen = |kind| signal(kind).map_err(DemoError::io("listen for signals"));
        let signals = [
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ];
        Ok(Self { signals })
    }

    async fn wanted(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Prints; a reader that went away (`| head`) is no reason to panic.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests;
