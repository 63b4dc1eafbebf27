//! The side-by-side comparison: the same work through Outrigger, other proxies, bare relays and nothing at all. Names
//! of scenarios go in, a [`result::Comparison`] comes out, as tables, JSON and a page.
//!
//! Load and origin run on one core, the proxy that is measured on another. Rounds are interleaved (A B C A B C), so that
//! a machine that is slower for a while is slower for all of them. What a request costs is the CPU time of all threads
//! of the proxy, over the time of a run, for each answer in it. Whether someone can do something is found out by
//! trying: who refuses its configuration or ends is *not supported*, who does not answer has *failed*, and neither gets
//! a number.

mod awake;
mod bench;
mod certs;
mod configs;
mod control;
mod estimate;
mod load;
mod page;
pub mod peer;
mod process;
pub mod relay;
pub mod result;
mod scale;
mod scenario;
mod special;
mod table;
mod transparent;

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::generate::task::Stage;
use crate::report::html;
use bench::Bench;
use peer::{Peer, Programs};
use result::{Comparison, Machine, PeerInfo, FORMAT};
use scenario::Kind;

pub use page::page;
pub use table::text;

/// Arguments of `compare`.
#[derive(Args)]
pub struct CompareArgs {
    /// What to measure, by name or group (see --list); `all` for everything. By default all that need no TLS and serve.
    pub scenarios: Vec<String>,
    /// Who is compared.
    #[arg(long, value_delimiter = ',', default_value = "outrigger,envoy,haproxy,nginx,splice,relay,none")]
    pub peers: Vec<Peer>,
    /// Rounds; a shorter one before them is dropped.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Seconds of one measurement; latency takes half as long again.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub seconds: f64,
    /// For checking: two rounds of half a second.
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    pub quick: bool,
    /// Write the result as JSON; `-` for the standard output, instead of the tables.
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Write the result as a self-contained page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Our program; by default the one beside this, or in target/release.
    #[arg(long, value_name = "PATH")]
    pub outrigger: Option<PathBuf>,
    /// Envoy's program; by default OUTRIGGER_ENVOY, the one that `tests/run` has fetched, or the one in PATH.
    #[arg(long, value_name = "PATH")]
    pub envoy: Option<PathBuf>,
    /// The core of the proxy and that of load and origin; `any` to leave that to the system.
    #[arg(long, value_name = "PROXY,LOAD", default_value = "0,1")]
    pub cores: Cores,
    /// Let idle cores sleep: what it costs to wake them is then a part of all figures, and in a virtual machine a large
    /// one. Otherwise they poll, where that is allowed.
    #[arg(long)]
    pub sleep: bool,
    /// Print the scenarios.
    #[arg(long)]
    pub list: bool,
    /// Print the configurations of a scenario's proxies instead of measuring.
    #[arg(long)]
    pub configs: bool,
    /// Show what these results of earlier comparisons have, instead of measuring.
    #[arg(long, value_name = "FILE", conflicts_with = "configs")]
    pub from: Vec<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err(format!("{text}: not between 0.05 and 3600 seconds")),
    }
}

/// The core of the proxy, and that of load and origin; `None` for any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores(Option<(usize, usize)>);

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "any" {
            return Ok(Self(None));
        }
        let core = |text: &str| text.parse::<usize>().map_err(|_| format!("{text}: no core"));
        let (proxy, load) = text.split_once(',').ok_or_else(|| format!("{text}: not PROXY,LOAD"))?;
        Ok(Self(Some((core(proxy)?, core(load)?))))
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, or a process.
    #[error("{what}: {source}")]
    Io {
        /// Which one.
        what: String,
        /// What happened.
        source: io::Error,
    },
    /// No scenario.
    #[error("{0}: no such scenario; --list has them all")]
    Scenario(String),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] crate::tls::Error),
    /// Certificates.
    #[error("certificates: {0}")]
    Certificates(#[from] rcgen::Error),
    /// The load.
    #[error("load: {0}")]
    Load(#[from] crate::cli::Error),
    /// The page.
    #[error(transparent)]
    Page(#[from] html::Error),
    /// JSON.
    #[error("{what}: {source}")]
    Json {
        /// Which one.
        what: String,
        /// What happened.
        source: serde_json::Error,
    },
    /// The control plane.
    #[error("the control plane: {0}")]
    Control(String),
    /// The origin.
    #[error("the origin does not start: {0}")]
    Origin(String),
}

impl Error {
    /// For `map_err` of what was done with this path.
    pub fn io(what: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { what: what.display().to_string(), source }
    }
}

/// The scenarios, a line each.
pub fn list() -> String {
    scenario::all().iter().map(|one| format!("{:22} {}\n", one.name, one.about)).collect()
}

impl CompareArgs {
    /// Measures, or reads what was measured. `tool` is the program that is origin and relay: `outrigger-load`.
    ///
    /// # Errors
    /// Something that has nothing to do with those compared.
    pub fn compare(
        &self,
        tool: PathBuf,
        stage: &Stage,
        say: &mut dyn FnMut(&str),
    ) -> Result<Comparison, Error> {
        if !self.from.is_empty() {
            return self.earlier();
        }
        let scenarios = scenario::chosen(&self.scenarios).map_err(Error::Scenario)?;
        let mut peers = self.peers.clone();
        peers.sort_unstable();
        peers.dedup();
        let (rounds, seconds) = if self.quick { (2, 0.5) } else { (self.rounds, self.seconds) };
        let programs = Programs::find(tool, self.outrigger.as_deref(), self.envoy.as_deref());
        let (cores, told) = usable(self.cores);
        if let Some(told) = told {
            say(&told);
        }
        let awake = if self.sleep { None } else { awake::Awake::keep() };
        let mut machine = machine(cores);
        machine.awake = awake.is_some();
        if awake.is_none() {
            say("idle cores sleep: rates and latencies have the cost of waking them in them");
        }
        if machine.congestion == "bbr" {
            say("TCP's congestion control is bbr, which paces: what is said of bulk is said of its pauses");
        }
        let time = estimate::of(&scenarios, &peers, rounds, seconds);
        say(&format!("{} scenarios, {} at most", scenarios.len(), estimate::text(time)));
        let mut comparison = Comparison {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            machine,
            rounds,
            seconds,
            peers: peers
                .iter()
                .map(|&peer| PeerInfo { name: peer.to_string(), version: programs.version(peer) })
                .collect(),
            ..Comparison::default()
        };
        let mut bench = Bench::start(programs, peers, (rounds, seconds), cores, Arc::new(stage.again()))?;
        for scenario in &scenarios {
            if bench.stopped() {
                break;
            }
            say(&format!("{}: {}", scenario.name, scenario.about));
            let results = match &scenario.kind {
                Kind::Load(load) => vec![load::measure(&mut bench, load, say)?],
                Kind::Latency => special::latency(&mut bench, say)?,
                Kind::Idle(security) => vec![special::idle(&mut bench, *security, say)?],
                Kind::Start => vec![special::start(&mut bench, say)?],
                Kind::Scale(clusters) => vec![scale::scale(&mut bench, *clusters, say)?],
                Kind::Transparent => transparent::transparent(&bench, say)?,
                Kind::Churn(clusters) => vec![scale::churn(&bench, *clusters, say)?],
            };
            let many = results.len() > 1;
            for mut result in results {
                result.name =
                    if many { format!("{}-{}", scenario.name, result.name) } else { scenario.name.clone() };
                if result.about.is_empty() {
                    result.about.clone_from(&scenario.about);
                }
                result.summarise();
                comparison.scenarios.push(result);
            }
        }
        comparison.interrupted = stage.stop.load(Ordering::Relaxed);
        Ok(comparison)
    }

    /// The configurations of those scenarios, as text.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn configurations(&self, tool: PathBuf) -> Result<String, Error> {
        let scenarios = scenario::chosen(&self.scenarios).map_err(Error::Scenario)?;
        let programs = Programs::find(tool, None, None);
        let bench = Bench::start(programs, self.peers.clone(), (1, 1.0), None, Arc::new(Stage::default()))?;
        let mut text = String::new();
        for scenario in scenarios {
            let (load, clusters) = match scenario.kind {
                Kind::Load(load) => (load, 0),
                Kind::Scale(clusters) => (scenario::BASE, clusters),
                _ => (scenario::BASE, 0),
            };
            for &peer in &self.peers {
                let mut setup = bench.setup(&load, clusters)?;
                if clusters > 0 && peer.follows_control_planes() {
                    // One that is not there: this is about what it is told to ask for.
                    setup.control = Some(setup.admin);
                }
                let config = bench.config(peer, &setup)?;
                if !config.is_empty() {
                    text += &format!("# {}, {peer}\n{config}\n", scenario.name);
                }
            }
        }
        Ok(text)
    }

    fn earlier(&self) -> Result<Comparison, Error> {
        let mut all: Option<Comparison> = None;
        for path in &self.from {
            let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
            let one: Comparison = serde_json::from_str(&text)
                .map_err(|source| Error::Json { what: path.display().to_string(), source })?;
            match &mut all {
                None => all = Some(one),
                Some(all) => all.scenarios.extend(one.scenarios),
            }
        }
        Ok(all.unwrap_or_default())
    }
}

/// The cores, if there are such; otherwise none, and why.
fn usable(cores: Cores) -> (Option<(usize, usize)>, Option<String>) {
    let Some((proxy, load)) = cores.0 else { return (None, None) };
    let allowed = rustix::thread::sched_getaffinity(None);
    let has = |core: usize| {
        core < rustix::thread::CpuSet::MAX_CPU && allowed.as_ref().is_ok_and(|set| set.is_set(core))
    };
    match (has(proxy), has(load)) {
        (true, true) => (cores.0, None),
        _ => (None, Some(format!("cores {proxy} and {load} may not both be used: nothing is pinned"))),
    }
}

fn machine(cores: Option<(usize, usize)>) -> Machine {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Machine {
        processor: processor.map(|(_, name)| name.trim().to_owned()).unwrap_or_default(),
        cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        proxy_core: cores.map(|(proxy, _)| proxy),
        load_core: cores.map(|(_, load)| load),
        congestion: std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        awake: false,
        open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX),
    }
}
