//! A control plane for those that follow one: our server library on a thread of its own, with the resources of a large
//! mesh, the same for everybody. One endpoint assignment of it changes on demand,
//! and the routes and the listener with it for who wants that.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outrigger_control_api::load_resource;
use outrigger_control_api::server::{Event, ResourceType, Server, Snapshot, SnapshotCache};
use serde_json::{json, Value};
use tokio::sync::Notify;

use super::configs::{address, all_to, domains_of, service, Setup};
use super::Error;
use crate::clock;

/// The node that every proxy says it is.
pub const NODE: &str = "sidecar";
/// What differs in a snapshot: the endpoints of the last cluster.
const ENDPOINTS: usize = 1;
/// Its routes have one more.
const ROUTES: usize = 2;
/// Its listener calls itself something else.
const LISTENER: usize = 4;
/// The name of the route table.
const TABLE: &str = "all";
/// What the other endpoints answer with, which the origin never does.
pub const ELSEWHERE: u16 = 203;

/// The resources of a mesh.
#[derive(Clone)]
pub struct Mesh {
    snapshot: Snapshot,
    /// The routes as they are, and with one more.
    tables: [Value; 2],
    last: String,
    endpoints: Vec<SocketAddr>,
    /// The last resource of each type, for who wants to know.
    pub sample: String,
}

impl Mesh {
    /// So many clusters with these endpoints, each with a virtual host.
    ///
    /// # Errors
    /// A resource cannot be made.
    pub fn new(clusters: usize, endpoints: &[SocketAddr]) -> Result<Self, Error> {
        let mut mesh = Self {
            snapshot: Snapshot::new(),
            tables: [Value::Null, Value::Null],
            last: service(clusters.saturating_sub(1)),
            endpoints: endpoints.to_vec(),
            sample: String::new(),
        };
        let ads = json!({"resource_api_version": "V3", "ads": {}});
        let mut hosts = Vec::new();
        for nth in 0..clusters {
            let name = service(nth);
            let cluster = json!({
                "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                "name": name,
                "type": "EDS",
                "connect_timeout": "1s",
                "eds_cluster_config": {"eds_config": ads},
                "circuit_breakers": {"thresholds": [{
                    "max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000
                }]}
            });
            let assignment = assignment(&name, endpoints);
            if name == mesh.last {
                mesh.sample = format!("{cluster}\n{assignment}\n");
            }
            mesh.insert(&cluster)?;
            mesh.insert(&assignment)?;
            hosts.push(all_to(&name, &domains_of(nth)));
        }
        if let Some(host) = hosts.last() {
            mesh.sample += &format!("{host}\n");
        }
        let table = |hosts: &[Value]| {
            json!({
                "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
                "name": TABLE,
                "virtual_hosts": hosts
            })
        };
        let before = table(&hosts);
        if let Some(routes) = hosts.last_mut().and_then(|host| host["routes"].as_array_mut()) {
            let mut other = routes.first().cloned().unwrap_or_default();
            other["match"] = json!({"prefix": "/other"});
            routes.insert(0, other);
        }
        mesh.tables = [before, table(&hosts)];
        let [first, _] = mesh.tables.clone();
        mesh.insert(&first)?;
        Ok(mesh)
    }

    fn insert(&mut self, resource: &Value) -> Result<(), Error> {
        insert(&mut self.snapshot, resource)
    }
}

fn insert(snapshot: &mut Snapshot, resource: &Value) -> Result<(), Error> {
    let failed = |told: String| Error::Control(told);
    let loaded = load_resource(resource).map_err(|problems| failed(format!("{problems:?}")))?;
    snapshot.insert_any(loaded.any).map_err(|error| failed(error.to_string()))
}

fn assignment(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoints = endpoints.iter().map(|&at| json!({"endpoint": {"address": address(at)}}));
    json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": endpoints.collect::<Vec<_>>()}]
    })
}

/// A control plane that serves one proxy.
pub struct ControlPlane {
    /// Where.
    pub address: SocketAddr,
    cache: SnapshotCache,
    /// By what is changed in them, a bit each: [`ENDPOINTS`], [`ROUTES`], [`LISTENER`].
    snapshots: Vec<Arc<Snapshot>>,
    end: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
    /// Known once it runs.
    server_thread: Arc<OnceLock<clock::Thread>>,
    acknowledged: Arc<AtomicU64>,
    refused: Arc<Mutex<Vec<String>>>,
}

impl ControlPlane {
    /// Serves `mesh` and a listener as `setup` wants it. The last cluster's endpoints can change to `others`.
    ///
    /// # Errors
    /// There is no port, or a resource cannot be made.
    pub fn start(
        mesh: &Mesh,
        setup: &Setup,
        others: &[SocketAddr],
        core: Option<usize>,
    ) -> Result<Self, Error> {
        let mut first = mesh.snapshot.clone();
        let routes = json!({"rds": {
            "route_config_name": TABLE,
            "config_source": {"resource_api_version": "V3", "ads": {}}
        }});
        let mut listener = setup.listener(&routes);
        listener["@type"] = json!("type.googleapis.com/envoy.config.listener.v3.Listener");
        let mut renamed = listener.clone();
        renamed["filter_chains"][0]["filters"][0]["typed_config"]["server_name"] = json!("renamed");
        let [_, routes] = &mesh.tables;
        insert(&mut first, &listener)?;
        insert(&mut first, &assignment(&mesh.last, &mesh.endpoints))?;
        let mut snapshots = vec![Arc::new(first)];
        for (bit, change) in
            [(ENDPOINTS, &assignment(&mesh.last, others)), (ROUTES, routes), (LISTENER, &renamed)]
        {
            // Those so far are as many as the bit says, and each is there once more with the change.
            for nth in 0..bit {
                let Some(mut changed) = snapshots.get(nth).map(|snapshot| (**snapshot).clone()) else {
                    continue;
                };
                insert(&mut changed, change)?;
                snapshots.push(Arc::new(changed));
            }
        }
        let cache = SnapshotCache::by_node_id();
        snapshots.iter().take(1).for_each(|first| cache.set(NODE, first.clone()));
        let refused = Arc::new(Mutex::new(Vec::new()));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (seen, counted) = (refused.clone(), acknowledged.clone());
        let server = Server::new(cache.clone()).on_event(move |_, event| match event {
            Event::Ack { kind, .. } if *kind == ResourceType::ENDPOINTS => {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Event::Nack { kind, nack } => {
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{kind}: {}", nack.message));
            }
            _ => {}
        });
        let failed = || Error::io(Path::new("the control plane"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
        listener.set_nonblocking(true).map_err(failed())?;
        let address = listener.local_addr().map_err(failed())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed())?;
        let end = Arc::new(Notify::new());
        let ended = end.clone();
        let server_thread = Arc::new(OnceLock::new());
        let known = server_thread.clone();
        let thread = std::thread::spawn(move || {
            if let Some(core) = core {
                let _ = clock::pin(core);
            }
            let _ = known.set(clock::this_thread());
            runtime.block_on(async move {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = server.serve(listener) => {}
                    () = ended.notified() => {}
                }
            });
        });
        let thread = Some(thread);
        Ok(Self { address, cache, snapshots, end, thread, server_thread, acknowledged, refused })
    }

    /// Changes the last cluster's endpoints: to the others, or back.
    pub fn change(&self, others: bool) {
        self.set(usize::from(others) * ENDPOINTS);
    }

    fn set(&self, changed: usize) {
        if let Some(snapshot) = self.snapshots.get(changed) {
            self.cache.set(NODE, snapshot.clone());
        }
    }

    /// Answers to endpoints that said yes.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// What the proxy refused.
    pub fn refused(&self) -> Vec<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes endpoints to and fro, so many times a second, routes once a second and the listener each five, while
    /// `work` goes on; its result, and the changes of endpoints.
    pub fn churn<R>(&self, rate: u32, work: impl FnOnce() -> R) -> (R, u64) {
        let over = AtomicBool::new(false);
        // What it does for a moment should not look like a proxy that answers late.
        let step = |back| self.server_thread.get().map(|thread| clock::step_back(*thread, back));
        let _ = step(true);
        let result = std::thread::scope(|scope| {
            let changes = scope.spawn(|| {
                let (begin, gap) = (Instant::now(), Duration::from_secs(1) / rate.max(1));
                let mut count: u32 = 0;
                let per_second = rate.max(1);
                while !over.load(Ordering::Relaxed) {
                    count += 1;
                    let odd = |every: u32| usize::from(count / every % 2 == 1);
                    let routes = odd(per_second) * ROUTES;
                    self.set(odd(1) * ENDPOINTS + routes + odd(per_second.saturating_mul(5)) * LISTENER);
                    let next = begin + gap * count;
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                count
            });
            let result = work();
            over.store(true, Ordering::Relaxed);
            (result, changes.join().unwrap_or(0).into())
        });
        let _ = step(false);
        result
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.end.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Endpoints that answer everything with [`ELSEWHERE`], until dropped.
pub struct Elsewhere {
    /// Where.
    pub endpoints: Vec<SocketAddr>,
    over: Arc<AtomicBool>,
}

impl Elsewhere {
    /// So many.
    ///
    /// # Errors
    /// There is no port.
    pub fn start(count: u8) -> Result<Self, Error> {
        let failed = || Error::io(Path::new("another endpoint"));
        let over = Arc::new(AtomicBool::new(false));
        let mut endpoints = Vec::new();
        for nth in 1..=count {
            let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 1, nth));
            let listener = TcpListener::bind((ip, 0)).map_err(failed())?;
            endpoints.push(listener.local_addr().map_err(failed())?);
            let over = over.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    std::thread::spawn(move || answer(stream));
                }
            });
        }
        Ok(Self { endpoints, over })
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for endpoint in &self.endpoints {
            let _ = TcpStream::connect_timeout(endpoint, Duration::from_secs(1));
        }
    }
}

/// Answers requests without bodies until the connection closes.
fn answer(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let (mut head, mut part) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut part) {
            Ok(0) => return,
            Ok(count) => head.extend(part.iter().take(count)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            let reply = format!("HTTP/1.1 {ELSEWHERE} Elsewhere\r\ncontent-length: 0\r\n\r\n");
            if stream.write_all(reply.as_bytes()).is_err() {
                return;
            }
        }
    }
}
