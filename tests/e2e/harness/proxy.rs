//! A proxy process under test: Outrigger's own binary or the real Envoy, from the same bootstrap template.
//!
//! A template is a bootstrap in YAML with `@port:NAME@` where a free port is wanted, `@NAME@` where a value given by
//! the test belongs, and `@dir@` for a directory that lives as long as the process.

use super::client::get;
use super::ports::free_port;
use super::{eventually, DEADLINE};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Which proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Outrigger,
    Envoy,
}

impl Kind {
    /// The command that starts it, without arguments.
    pub fn command(self) -> Command {
        match self {
            Kind::Outrigger => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
                command.arg("run");
                command
            }
            Kind::Envoy => Command::new(crate::peers::envoy()),
        }
    }
}

/// How to start one.
pub struct Plan<'a> {
    pub kind: Kind,
    pub template: &'a str,
    /// Values for `@NAME@`.
    pub values: &'a [(&'a str, String)],
    /// More arguments, understood by both.
    pub arguments: &'a [&'a str],
    /// Open descriptors allowed, when fewer than usual.
    pub descriptors: Option<u64>,
    /// What is started in place of the proxy's own command: a tool that watches it, for one.
    pub program: Option<Vec<OsString>>,
    /// Ports that must not be chosen anew (a successor on the same port).
    pub ports: BTreeMap<String, u16>,
}

impl<'a> Plan<'a> {
    /// `OUTRIGGER_E2E_STAND_IN=1` puts Envoy in Outrigger's place, to see whether a test asks for something that Envoy
    /// does not do either.
    pub fn new(kind: Kind, template: &'a str, values: &'a [(&'a str, String)]) -> Plan<'a> {
        let kind = if std::env::var_os("OUTRIGGER_E2E_STAND_IN").is_some() { Kind::Envoy } else { kind };
        Plan {
            kind,
            template,
            values,
            arguments: &[],
            descriptors: None,
            program: None,
            ports: BTreeMap::new(),
        }
    }
}

/// A running proxy. Dropping it kills it; when the test is failing its output is printed first.
pub struct Proxy {
    kind: Kind,
    child: Child,
    ports: BTreeMap<String, u16>,
    dir: TempDir,
}

/// Fills a template in; new ports are added to `ports`.
pub fn fill(
    template: &str,
    values: &[(&str, String)],
    dir: &Path,
    ports: &mut BTreeMap<String, u16>,
) -> String {
    let mut text = template.replace("@dir@", &dir.display().to_string());
    for (name, value) in values {
        text = text.replace(&format!("@{name}@"), value);
    }
    while let Some(start) = text.find("@port:") {
        let rest = &text[start + 6..];
        let end = rest.find('@').expect("the end of a port placeholder");
        let name = rest[..end].to_string();
        let port = *ports.entry(name.clone()).or_insert_with(free_port);
        text = text.replace(&format!("@port:{name}@"), &port.to_string());
    }
    text
}

impl Proxy {
    /// Starts Outrigger and waits until it is ready.
    pub async fn outrigger(template: &str, values: &[(&str, String)]) -> Proxy {
        Proxy::start(Plan::new(Kind::Outrigger, template, values)).await
    }

    /// Starts a proxy and waits until its admin port says it is ready. A port taken meanwhile by somebody else is
    /// tried again with others.
    pub async fn start(plan: Plan<'_>) -> Proxy {
        let mut last = String::new();
        for _ in 0..4 {
            let mut proxy = Proxy::spawn(&plan);
            if proxy.ready().await {
                return proxy;
            }
            last = format!("exit status {:?}\n{}", proxy.child.try_wait(), proxy.output());
            if !last.to_ascii_lowercase().contains("address already in use")
                && !last.to_ascii_lowercase().contains("cannot bind")
            {
                break;
            }
        }
        panic!("{:?} did not become ready: {last}", plan.kind);
    }

    /// Starts a proxy and does not wait for anything.
    pub fn spawn(plan: &Plan<'_>) -> Proxy {
        let dir = tempfile::Builder::new().prefix("outrigger-e2e").tempdir().expect("a directory");
        let mut ports = plan.ports.clone();
        let text = fill(plan.template, plan.values, dir.path(), &mut ports);
        let file = dir.path().join("bootstrap.yaml");
        fs::write(&file, text).expect("the bootstrap file");
        let output = File::create(dir.path().join("output.log")).expect("the output file");
        let mut command = match plan.program.as_deref() {
            Some([program, arguments @ ..]) => {
                let mut command = Command::new(program);
                command.args(arguments);
                command
            }
            _ => plan.kind.command(),
        };
        if let Some(limit) = plan.descriptors {
            let mut limited = Command::new("prlimit");
            limited.arg(format!("--nofile={limit}:{limit}")).arg("--").arg(command.get_program());
            limited.args(command.get_args());
            command = limited;
        }
        command.arg("-c").arg(&file);
        if plan.kind == Kind::Envoy {
            command.args(["--disable-hot-restart", "-l", "error"]);
        }
        let flush = "--file-flush-interval-msec";
        if !plan.arguments.iter().any(|argument| AsRef::<str>::as_ref(argument) == flush) {
            command.args([flush, "10"]);
        }
        if !plan.arguments.contains(&"--concurrency") {
            command.args(["--concurrency", "1"]);
        }
        command.args(plan.arguments);
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("the output file")).stderr(output);
        let child = command.spawn().unwrap_or_else(|e| panic!("{:?} cannot be started: {e}", plan.kind));
        Proxy { kind: plan.kind, child, ports, dir }
    }

    /// Waits for `/ready` to answer 200; false when the process ends first or the deadline passes.
    pub async fn ready(&mut self) -> bool {
        let admin = self.ports.get("admin").copied();
        let mut ended = false;
        let ready = eventually(DEADLINE * 2, || {
            ended = ended || !matches!(self.child.try_wait(), Ok(None));
            async move {
                if ended {
                    return true;
                }
                match admin {
                    Some(port) => get(port, "/ready").await.is_ok_and(|m| m.status() == 200),
                    None => true,
                }
            }
        })
        .await;
        ready && !ended
    }

    /// The port that a placeholder got.
    pub fn port(&self, name: &str) -> u16 {
        *self.ports.get(name).unwrap_or_else(|| panic!("no port named {name} in the template"))
    }

    /// All ports by name, for a successor.
    pub fn ports(&self) -> &BTreeMap<String, u16> {
        &self.ports
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A file in the process's directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The whole lines of a file from this byte on: one that is still being written is none yet.
    pub fn lines(&self, file: &str, from: u64) -> Vec<String> {
        let bytes = fs::read(self.file(file)).unwrap_or_default();
        let text = String::from_utf8_lossy(bytes.get(from as usize..).unwrap_or_default()).into_owned();
        let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        whole.map(str::to_owned).collect()
    }

    /// How many bytes a file has.
    pub fn length(&self, file: &str) -> u64 {
        fs::metadata(self.file(file)).map_or(0, |file| file.len())
    }

    /// Everything it wrote to stdout and stderr so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.file("output.log")).unwrap_or_default()).into_owned()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.pid().to_string()).status();
        assert!(status.is_ok_and(|s| s.success()), "cannot signal process {}", self.pid());
    }

    /// Waits for the end of the process; `None` when it does not end in time.
    pub async fn exit(&mut self, deadline: std::time::Duration) -> Option<std::process::ExitStatus> {
        let mut status = None;
        eventually(deadline, || {
            status = self.child.try_wait().ok().flatten();
            std::future::ready(status.is_some())
        })
        .await;
        status
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> usize {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or("");
        line.split_whitespace().nth(1).and_then(|n| n.parse::<usize>().ok()).unwrap_or(0) * 1024
    }

    /// CPU time used so far, user and system.
    pub fn cpu(&self) -> std::time::Duration {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        std::time::Duration::from_millis((ticks(11) + ticks(12)) * 10)
    }

    /// As [`Proxy::cpu`], to the nanosecond, without that of threads that have ended.
    pub fn cpu_of_threads(&self) -> std::time::Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("a process");
        let time = |task: fs::DirEntry| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        std::time::Duration::from_nanos(tasks.flatten().filter_map(time).sum())
    }

    /// One page of the admin port as text; panics when it is not a 200.
    pub async fn admin(&self, path: &str) -> String {
        let page = get(self.port("admin"), path).await.unwrap_or_else(|e| panic!("admin {path}: {e}"));
        assert_eq!(page.status(), 200, "admin {path}: {}", page.text());
        page.text()
    }

    /// Counters and gauges of `/stats` by name.
    pub async fn stats(&self) -> BTreeMap<String, u64> {
        let page = self.admin("/stats").await;
        page.lines()
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(": ")?;
                Some((name.to_string(), value.trim().parse().ok()?))
            })
            .collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let output = self.output();
            let from = output.len().saturating_sub(8_000);
            let tail = output.get(from..).unwrap_or(&output);
            eprintln!("--- output of {:?} (process {}):\n{tail}---", self.kind, self.child.id());
        }
    }
}
