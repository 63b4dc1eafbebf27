//! The sidecar as a child process: its start and end, and what its admin port says.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::mesh::Mesh;
use super::traffic::{exchange, Answer};
use super::DemoError;

/// How long a start may take. It takes milliseconds; a machine under load may need longer.
const START: Duration = Duration::from_secs(10);
/// How long an answer of the admin port may take.
const ADMIN_PATIENCE: Duration = Duration::from_secs(5);
/// Lines of the sidecar's log kept for when it does not start.
const LOG_LINES: usize = 20;

/// The running sidecar; it ends when this is dropped.
pub(super) struct Sidecar {
    child: Child,
    admin: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It has ended already, or ends now: nothing is lost, its clients are ours and are done.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sidecar {
    /// Starts this very program with its bootstrap.
    pub(super) fn start(mesh: &Mesh) -> Result<Self, DemoError> {
        let program = std::env::current_exe().map_err(DemoError::io("find this program's own file"))?;
        let mut child = Command::new(program)
            .args(["run", "--log-level", "warning", "-c"])
            .arg(mesh.bootstrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for this process, which ends the sidecar once the last answer is there.
            .process_group(0)
            .spawn()
            .map_err(DemoError::io("start the sidecar"))?;
        let log = Arc::new(Mutex::new(Vec::new()));
        if let Some(stderr) = child.stderr.take() {
            let log = log.clone();
            // Read to the end, or the sidecar would wait for room in the pipe.
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    if log.len() == LOG_LINES {
                        log.remove(0);
                    }
                    log.push(line);
                }
            });
        }
        Ok(Self { child, admin: mesh.admin, log })
    }

    /// Returns once `/ready` says so.
    pub(super) async fn ready(&mut self) -> Result<(), DemoError> {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            self.still_there()?;
            if matches!(self.get("/ready").await, Ok(answer) if answer.status == 200) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(DemoError::NotReady(START))
    }

    /// An error once the process has ended, with the end of its log.
    pub(super) fn still_there(&mut self) -> Result<(), DemoError> {
        let Some(status) = self.child.try_wait().map_err(DemoError::io("look after the sidecar"))? else {
            return Ok(());
        };
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        Err(DemoError::SidecarEnded(format!("{status}\n{}", log.join("\n"))))
    }

    /// What it has counted so far.
    pub(super) async fn snapshot(&self) -> Result<Snapshot, DemoError> {
        let stats = self.json("/stats?format=json&type=Counters").await?;
        let gauges = self.json("/stats?format=json&type=Gauges").await?;
        let clusters = self.json("/clusters?format=json").await?;
        Ok(Snapshot::new(&[stats, gauges], &clusters))
    }

    async fn json(&self, path: &'static str) -> Result<Value, DemoError> {
        let wrong = |why: String| DemoError::Admin { path, why };
        let answer = self.get(path).await.map_err(|error| wrong(error.to_string()))?;
        if answer.status != 200 {
            return Err(wrong(format!("status {}", answer.status)));
        }
        serde_json::from_slice(&answer.body).map_err(|error| wrong(error.to_string()))
    }

    async fn get(&self, path: &str) -> std::io::Result<Answer> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin);
        tokio::time::timeout(ADMIN_PATIENCE, exchange(&mut None, self.admin, request.as_bytes())).await?
    }
}

/// What the sidecar counted, from its admin port.
#[derive(Default)]
pub(super) struct Snapshot {
    /// Counters and gauges by Envoy's names.
    stats: BTreeMap<String, u64>,
    /// The statistics of each endpoint.
    hosts: BTreeMap<SocketAddr, BTreeMap<String, u64>>,
}

impl Snapshot {
    /// From `/stats?format=json` and `/clusters?format=json`.
    pub(super) fn new(stats: &[Value], clusters: &Value) -> Self {
        let mut shown = Self::default();
        for stats in stats {
            shown.stats.extend(list(stats, "stats").filter_map(named));
        }
        for host in list(clusters, "cluster_statuses").flat_map(|cluster| list(cluster, "host_statuses")) {
            let Some(address) = address(host) else { continue };
            shown.hosts.insert(address, list(host, "stats").filter_map(named).collect());
        }
        shown
    }

    /// A counter or gauge; 0 where there is none, as for one that was never written.
    pub(super) fn stat(&self, name: &str) -> u64 {
        self.stats.get(name).copied().unwrap_or_default()
    }

    /// A statistic of an endpoint.
    pub(super) fn host(&self, address: SocketAddr, name: &str) -> u64 {
        self.hosts.get(&address).and_then(|stats| stats.get(name)).copied().unwrap_or_default()
    }
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// Values are numbers in one of the two answers and, as 64-bit integers of protobuf, text in the other; a value of 0
/// may be left out.
fn named(stat: &Value) -> Option<(String, u64)> {
    let name = stat.get("name")?.as_str()?.to_owned();
    let value = match stat.get("value") {
        None => 0,
        Some(Value::String(text)) => text.parse().ok()?,
        Some(value) => value.as_u64()?,
    };
    Some((name, value))
}

fn address(host: &Value) -> Option<SocketAddr> {
    let address = host.pointer("/address/socket_address")?;
    let ip = address.get("address")?.as_str()?.parse().ok()?;
    Some(SocketAddr::new(ip, address.get("port_value")?.as_u64()?.try_into().ok()?))
}
