//! Who is compared: where their programs are, and how they are started.

use std::env;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;

/// The name of the one that ratios are to.
pub const OURS: &str = "outrigger";

/// One of those compared, in the order of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Peer {
    /// Ours.
    Outrigger,
    /// Envoy.
    Envoy,
    /// HAProxy.
    Haproxy,
    /// nginx.
    Nginx,
    /// The floor: a relay that splices.
    Splice,
    /// The floor: a relay that copies.
    Relay,
    /// No proxy at all.
    None,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Outrigger => OURS,
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Splice => "splice",
            Self::Relay => "relay",
            Self::None => "none",
        })
    }
}

impl Peer {
    /// Whether it understands what it forwards.
    pub fn is_proxy(self) -> bool {
        !matches!(self, Self::Splice | Self::Relay | Self::None)
    }

    /// Whether a control plane can configure it.
    pub fn follows_control_planes(self) -> bool {
        matches!(self, Self::Outrigger | Self::Envoy)
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// This one.
    pub tool: PathBuf,
    outrigger: Option<PathBuf>,
    envoy: Option<PathBuf>,
    haproxy: Option<PathBuf>,
    nginx: Option<PathBuf>,
}

impl Programs {
    /// Looks for them: as told, by `OUTRIGGER_BIN` and `OUTRIGGER_ENVOY`, beside this program and in its checkout, and
    /// where programs are.
    pub fn find(tool: PathBuf, outrigger: Option<&Path>, envoy: Option<&Path>) -> Self {
        let told = |path: Option<&Path>, variable: &str| {
            path.map(Path::to_owned)
                .or_else(|| env::var_os(variable).filter(|v| !v.is_empty()).map(Into::into))
        };
        let near = || env::current_dir().into_iter().chain(tool.ancestors().skip(1).map(Path::to_owned));
        let outrigger = told(outrigger, "OUTRIGGER_BIN").or_else(|| {
            let beside = tool.parent().map(|dir| dir.join("outrigger"));
            let built = near().map(|dir| dir.join("target/release/outrigger"));
            beside.into_iter().chain(built).find(|path| path.is_file())
        });
        let envoy = told(envoy, "OUTRIGGER_ENVOY")
            .or_else(|| near().find_map(|dir| envoy_below(&dir.join(".peers/venv/lib"))))
            .or_else(|| in_path("envoy"));
        Self { outrigger, envoy, haproxy: in_path("haproxy"), nginx: in_path("nginx"), tool }
    }

    /// Where the program of `peer` is.
    pub fn of(&self, peer: Peer) -> Option<&Path> {
        match peer {
            Peer::Outrigger => self.outrigger.as_deref(),
            Peer::Envoy => self.envoy.as_deref(),
            Peer::Haproxy => self.haproxy.as_deref(),
            Peer::Nginx => self.nginx.as_deref(),
            Peer::Splice | Peer::Relay => Some(&self.tool),
            Peer::None => None,
        }
    }

    /// How it is started with this file; `None` if its program was not found.
    pub fn command(
        &self,
        peer: Peer,
        file: &Path,
        (listen, to): (SocketAddr, SocketAddr),
    ) -> Option<Command> {
        let mut command = Command::new(self.of(peer)?);
        match peer {
            Peer::Outrigger => {
                command.arg("run").arg("-c").arg(file).args(["--concurrency", "1", "-l", "warn"])
            }
            Peer::Envoy => {
                command.arg("-c").arg(file);
                command.args(["--concurrency", "1", "-l", "warn", "--disable-hot-restart"])
            }
            Peer::Haproxy => command.arg("-f").arg(file).arg("-db"),
            Peer::Nginx => command.arg("-c").arg(file).args(["-e", "stderr"]),
            Peer::Splice | Peer::Relay => {
                let mode = if peer == Peer::Splice { "splice" } else { "copy" };
                let (listen, to) = (listen.to_string(), to.to_string());
                command.args(["relay", "--mode", mode, "--listen", &listen, "--to", &to])
            }
            Peer::None => return None,
        };
        Some(command)
    }

    /// What it says of itself.
    pub fn version(&self, peer: Peer) -> String {
        let (Some(path), flag) = (
            self.of(peer),
            match peer {
                Peer::Haproxy | Peer::Nginx => "-v",
                _ => "--version",
            },
        ) else {
            return String::new();
        };
        let Ok(output) = Command::new(path).arg(flag).output() else { return String::new() };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        // Some begin with the path they were started by.
        let line = line.split_whitespace().filter(|word| !word.starts_with('/'));
        line.collect::<Vec<_>>().join(" ")
    }
}

fn envoy_below(lib: &Path) -> Option<PathBuf> {
    let pythons = std::fs::read_dir(lib).ok()?.flatten();
    pythons.map(|python| python.path().join("site-packages/envoy/_bin/envoy")).find(|path| path.is_file())
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|path| path.is_file())
}
