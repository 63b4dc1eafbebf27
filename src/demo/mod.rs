//! The demonstration: `outrigger demo`.
//!
//! Comes in: two flags, nothing else; no file and no other program is needed. It starts origin services in this
//! process ([`origin`]), a sidecar in front of them as a child process ([`sidecar`]), and clients that keep asking
//! it ([`traffic`]). Goes out: what the sidecar and the clients counted, once a second and at the end, and an exit
//! status that says whether both sides counted the same ([`summary`]). Everything stays on loopback.

mod origin;
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

use origin::{Behaviour, Echo, Origin};
use sidecar::{Bootstrap, Sidecar, Snapshot};
use summary::{Screen, Totals};
use traffic::Traffic;

/// How long `--once` runs.
const ONCE: Duration = Duration::from_secs(10);
/// How long the counters of both sides may take to agree once the last answer is there.
const SETTLE: Duration = Duration::from_secs(3);

/// Three origin services, a sidecar in front of them and steady traffic; no argument is needed.
#[derive(Debug, Parser)]
#[command(name = "outrigger demo")]
struct Options {
    /// Run ten seconds, print the summary, and succeed only if the numbers are right.
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
    #[error("the sidecar ended before it was ready: {0}")]
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
    let origins = Rc::new(Origins::start().await?);
    let bootstrap = Bootstrap::new(&origins)?;
    say(&format!("# The bootstrap of the sidecar\n{}\n", bootstrap.yaml()));
    let mut sidecar = Sidecar::start(&bootstrap)?;
    tokio::select! {
        ready = sidecar.ready() => ready?,
        () = stop.wanted() => return Ok(true),
    }
    say(&bootstrap.invitation());

    let traffic = Traffic::start(bootstrap.http, bootstrap.tcp);
    let limit = match (options.seconds, options.once) {
        (Some(seconds), _) => Some(Duration::from_secs(seconds)),
        (None, true) => Some(ONCE),
        (None, false) => None,
    };
    let interrupted = watch(options.once, limit, &mut stop, &traffic, &origins, &mut sidecar).await?;
    traffic.finish().await;

    let totals = match settled(&traffic, &origins, &sidecar).await {
        Ok(totals) => totals,
        // That the process is gone says more than that its port is.
        Err(error) => return Err(sidecar.still_there().err().unwrap_or(error)),
    };
    let wrong = totals.wrong();
    say(&totals.report());
    // Requests of the user's own are counted by the sidecar and the origins too.
    let verdict = if interrupted { "differs" } else { "WRONG" };
    for line in &wrong {
        say(&format!("{verdict}: {line}"));
    }
    if wrong.is_empty() {
        say("All numbers are right: every request was answered 200, and the sidecar counted what the clients and the \
             origins counted.\n");
    }
    // Someone who pressed Ctrl-C after half a second asked for no verdict.
    Ok(interrupted || wrong.is_empty())
}

/// Shows what happens until the time is over; `true` when the user ended it.
async fn watch(
    quiet: bool,
    limit: Option<Duration>,
    stop: &mut Stop,
    traffic: &Traffic,
    origins: &Origins,
    sidecar: &mut Sidecar,
) -> Result<bool, DemoError> {
    let began = Instant::now();
    let end = async {
        match limit {
            Some(limit) => tokio::time::sleep_until(began + limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    let second = Duration::from_secs(1);
    let mut ticks = tokio::time::interval_at(began + second, second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut screen = Screen::new(std::io::stdout().is_terminal());
    let mut before = 0;
    let mut last = began;
    loop {
        tokio::select! {
            () = stop.wanted() => return Ok(true),
            () = &mut end => return Ok(false),
            _ = ticks.tick() => {}
        }
        sidecar.still_there()?;
        if quiet {
            continue;
        }
        let totals = totals(traffic, origins, sidecar).await?;
        let now = Instant::now();
        let rate = (totals.answers - before) as f64 / (now - last).as_secs_f64().max(0.001);
        (before, last) = (totals.answers, now);
        screen.show(&totals, rate, &traffic.take_latencies());
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
    /// All HTTP origins; the first is the service `orders`, the others are the replicas of `users`.
    http: Vec<Rc<Origin>>,
    echo: Rc<Echo>,
}

impl Origins {
    async fn start() -> Result<Self, DemoError> {
        let kinds = [
            ("orders", "orders", Behaviour::Steady),
            ("users", "users-steady", Behaviour::Steady),
            ("users", "users-slow", Behaviour::Slow(Duration::from_millis(30))),
            ("users", "users-flaky", Behaviour::FailsEvery(10)),
        ];
        let mut http = Vec::new();
        for (service, name, behaviour) in kinds {
            http.push(
                Origin::start(service, name, behaviour).await.map_err(DemoError::io("start an origin"))?,
            );
        }
        Ok(Self { http, echo: Echo::start().await.map_err(DemoError::io("start the echo service"))? })
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
