//! A control plane from a directory of files: what `outrigger-control` does, as a library.
//!
//! In: a directory with Envoy's resources in YAML or JSON, or services in a [short form](services). Out:
//! a [`SnapshotCache`] that follows the directory, lines that say what was loaded and which client
//! accepted or refused what, and a status page, which also shows the load that clients report.
//!
//! The files at the top of the directory are for everybody. Those in a subdirectory are for the nodes
//! whose key (their id, or their cluster) is its name, beside those at the top; of two resources with the
//! same type and name the subdirectory's counts. Hidden files and directories are passed over, so that a
//! mounted ConfigMap works as it is.
//!
//! Nothing is served before all of it was checked: it is well formed, every type and field is known, names
//! do not repeat, and every cluster, set of endpoints, route table and secret that is pointed at exists.
//! As long as there is a mistake, the last good state stays, for everybody or for that key; mistakes in
//! the files for everybody do not keep those of a key from being served beside the last good ones.
//!
//! For development and small meshes: it knows no Kubernetes, no certificates and no second copy of itself,
//! and is not meant to replace Istio or another real control plane.

mod files;
mod load_page;
mod page;
mod references;
pub mod services;
mod tree;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

pub use files::{load_directory, FileProblem};

use crate::server::{
    Event, LatestLoads, LoadQuery, LoadReports, Protocol, ResourceType, Server, Snapshot, SnapshotCache,
    StreamStatus,
};
use crate::watch::DirectoryWatch;
use tree::{Change, Scan, Tree};

/// What decides which subdirectory is a node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodeKey {
    /// `node.id`.
    Id,
    /// `node.cluster`.
    #[default]
    Cluster,
}

/// How to serve a directory.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directory.
    pub directory: PathBuf,
    /// What names the subdirectory of a node.
    pub node_key: NodeKey,
    /// Clusters that resources may point at although they are not here: clients have them from their
    /// bootstrap.
    pub client_clusters: Vec<String>,
    /// Leaves out lines about clients that come, accept and go.
    pub quiet: bool,
    /// Between two load reports of a client that offers them; `None` = they are not asked for.
    pub load_interval: Option<Duration>,
}

/// [`Settings::load_interval`] unless it is set.
const LOAD_INTERVAL: Duration = Duration::from_secs(10);

impl Settings {
    /// A subdirectory for each node cluster, every cluster here, all lines, and load reports every 10 s.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        Self {
            directory,
            node_key: NodeKey::default(),
            client_clusters: Vec::new(),
            quiet: false,
            load_interval: Some(LOAD_INTERVAL),
        }
    }
}

type Print = dyn Fn(&str) + Send + Sync;

/// A directory being served. Clones are the same one.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    cache: SnapshotCache,
    loads: Option<LoadReports>,
    print: Box<Print>,
    tree: Mutex<Tree>,
    started: SystemTime,
}

impl Control {
    /// Reads the directory once. Mistakes in it are printed, not returned: they may be mended.
    pub fn open(settings: Settings, print: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let cache = match settings.node_key {
            NodeKey::Id => SnapshotCache::by_node_id(),
            NodeKey::Cluster => SnapshotCache::by_node_cluster(),
        };
        let loads = settings.load_interval.map(|interval| LoadReports::new(LoadQuery::all(interval)));
        let tree = Tree { elsewhere: settings.client_clusters.clone(), ..Tree::default() };
        let (tree, print, started) = (Mutex::new(tree), Box::new(print), SystemTime::now());
        let control = Self { shared: Arc::new(Shared { settings, cache, loads, print, tree, started }) };
        control.reload();
        control
    }

    /// The snapshots that are served and the clients that follow them.
    #[must_use]
    pub fn cache(&self) -> &SnapshotCache {
        &self.shared.cache
    }

    /// A server of these snapshots that prints what clients do.
    #[must_use]
    pub fn server(&self) -> Server {
        let control = self.clone();
        let server = Server::new(self.shared.cache.clone());
        let server = server.on_event(move |stream, event| control.tell(stream, event));
        match &self.shared.loads {
            Some(loads) => server.with_load_reports(loads.clone()),
            None => server,
        }
    }

    /// The last load report of each client that sends them.
    #[must_use]
    pub fn loads(&self) -> Vec<LatestLoads> {
        self.shared.loads.as_ref().map(LoadReports::latest).unwrap_or_default()
    }

    /// Every mistake in the files as they are.
    #[must_use]
    pub fn problems(&self) -> Vec<FileProblem> {
        let tree = self.tree();
        let scopes = std::iter::once(&tree.common).chain(tree.keys.values());
        scopes.flat_map(|scope| scope.problems.iter().cloned()).collect()
    }

    /// Follows the directory until dropped.
    pub async fn follow(&self) {
        let mut watch = DirectoryWatch::new();
        let mut directories = vec![self.shared.settings.directory.clone()];
        loop {
            watch.add(&directories);
            // What changed between the last look and the watch is seen now.
            let control = self.clone();
            if let Ok(found) = tokio::task::spawn_blocking(move || control.reload()).await {
                directories = found;
            }
            watch.changed().await;
        }
    }

    /// Looks at the directory now; the directories that were read.
    fn reload(&self) -> Vec<PathBuf> {
        let scan = Scan::of(&self.shared.settings.directory);
        let directories = scan.directories.clone();
        let mut tree = self.tree();
        let changes = tree.update(scan);
        for change in changes {
            match change {
                Change::Serve(key) => {
                    let scope = key.as_ref().map_or(Some(&tree.common), |key| tree.keys.get(key));
                    let Some(snapshot) = scope.and_then(|scope| scope.snapshot.clone()) else { continue };
                    let files = scope.map_or(0, |scope| scope.files);
                    let plural = if files == 1 { "" } else { "s" };
                    let what = census(&snapshot);
                    self.say(&format!("{}: {what} from {files} file{plural}", whom(key.as_deref())));
                    match key {
                        Some(key) => self.shared.cache.set(&key, snapshot),
                        None => self.shared.cache.set_common(Some(snapshot)),
                    }
                }
                Change::Keep(key) => {
                    let scope = key.as_ref().map_or(Some(&tree.common), |key| tree.keys.get(key));
                    let Some(scope) = scope else { continue };
                    for problem in &scope.problems {
                        self.say(&format!("MISTAKE {problem}"));
                    }
                    let stays = match &scope.snapshot {
                        Some(snapshot) => format!("the last good state stays: {}", census(snapshot)),
                        None => "nothing of it is served".to_owned(),
                    };
                    self.say(&format!("{}: {stays}", whom(key.as_deref())));
                }
                Change::Gone(key) => {
                    self.shared.cache.clear(&key);
                    self.say(&format!("{}: gone, what is for everybody remains", whom(Some(&key))));
                }
            }
        }
        directories
    }

    fn tell(&self, stream: &StreamStatus, event: &Event) {
        let refused = matches!(event, Event::Nack { .. } | Event::Disconnected(Some(_)));
        if self.shared.settings.quiet && !refused {
            return;
        }
        let who =
            format!("client {:?} (cluster {:?}, stream {})", stream.node_id, stream.node_cluster, stream.id);
        let what = match event {
            Event::Connected => {
                let form = match stream.protocol {
                    Protocol::Delta => "delta",
                    Protocol::StateOfTheWorld => "state of the world",
                };
                let only = stream.only.as_ref().map_or("all types", short);
                format!("connected: {form}, {only}")
            }
            Event::Disconnected(None) => "disconnected".to_owned(),
            Event::Disconnected(Some(why)) => format!("disconnected: {why}"),
            Event::Ack { kind, version } => format!("accepted {} {version}", short(kind)),
            Event::Nack { kind, nack } => {
                format!(
                    "REFUSED {} {}: {} (code {})",
                    short(kind),
                    nack.version,
                    nack.message.trim(),
                    nack.code
                )
            }
        };
        self.say(&format!("{who} {what}"));
    }

    fn say(&self, line: &str) {
        // One event, one line, whatever a client puts into its names and messages.
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        (self.shared.print)(&format!("{} {line}", time_of_day(SystemTime::now())));
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.shared.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

fn whom(key: Option<&str>) -> String {
    key.map_or("for everybody".to_owned(), |key| format!("for {key:?}"))
}

/// The name of a type without its package.
fn short(kind: &ResourceType) -> &str {
    kind.url().rsplit(['.', '/']).next().unwrap_or(kind.url())
}

/// How many resources of each type.
fn census(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    for kind in snapshot.types() {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{comma}{} {}", snapshot.count(kind), short(kind));
    }
    if text.is_empty() {
        text.push_str("no resources");
    }
    text
}

/// UTC to the millisecond.
fn time_of_day(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs() % 86_400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:03}Z", seconds % 60, since.subsec_millis())
}

#[cfg(test)]
mod tests;
