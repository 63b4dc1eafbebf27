//! The snapshots of all nodes, and the clients that follow them.
//!
//! In: a snapshot for a node key. Out: to each stream of that key, the newest one; older ones that it has
//! not taken yet are skipped.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::snapshot::Snapshot;
use super::status::StreamStatus;
use crate::pb::envoy::config::core::v3;

type KeyOf = dyn Fn(&v3::Node) -> String + Send + Sync;
type Current = Option<Arc<Snapshot>>;

/// Snapshots by node key, shared by everything that serves and sets them; clones are the same cache.
#[derive(Clone)]
pub struct SnapshotCache {
    inner: Arc<Inner>,
}

struct Inner {
    key_of: Box<KeyOf>,
    nodes: Mutex<Nodes>,
    streams: Mutex<Streams>,
}

#[derive(Default)]
struct Nodes {
    by_key: HashMap<String, Node>,
    /// For keys without a snapshot of their own.
    common: Current,
}

struct Node {
    sender: watch::Sender<Current>,
    /// The snapshot is the key's own, not the common one.
    own: bool,
}

#[derive(Default)]
struct Streams {
    last: u64,
    by_id: BTreeMap<u64, StreamStatus>,
}

impl SnapshotCache {
    /// One snapshot for each node id.
    #[must_use]
    pub fn by_node_id() -> Self {
        Self::by(|node| node.id.clone())
    }

    /// One snapshot for each node cluster, shared by its nodes.
    #[must_use]
    pub fn by_node_cluster() -> Self {
        Self::by(|node| node.cluster.clone())
    }

    /// One snapshot for each key that `key_of` makes of a node: of its locality or metadata, say. The
    /// same key for all makes one snapshot for the whole mesh.
    #[must_use]
    pub fn by(key_of: impl Fn(&v3::Node) -> String + Send + Sync + 'static) -> Self {
        let inner = Inner { key_of: Box::new(key_of), nodes: Mutex::default(), streams: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// The key of a node.
    #[must_use]
    pub fn key_of(&self, node: &v3::Node) -> String {
        (self.inner.key_of)(node)
    }

    /// Gives the nodes of `key` a snapshot, now and when they connect. It is not validated: a snapshot
    /// may be incomplete on purpose, see [`Snapshot::validate`].
    pub fn set(&self, key: &str, snapshot: impl Into<Arc<Snapshot>>) {
        let snapshot = Some(snapshot.into());
        let mut nodes = lock(&self.inner.nodes);
        match nodes.by_key.get_mut(key) {
            Some(node) => {
                node.own = true;
                node.sender.send_replace(snapshot);
            }
            None => {
                let node = Node { sender: watch::Sender::new(snapshot), own: true };
                nodes.by_key.insert(key.to_owned(), node);
            }
        }
    }

    /// Gives a snapshot to all nodes whose key has none of its own, now and when they connect; `None`
    /// takes it away again as [`clear`](Self::clear) does.
    pub fn set_common(&self, snapshot: Option<Arc<Snapshot>>) {
        let mut nodes = lock(&self.inner.nodes);
        for node in nodes.by_key.values().filter(|node| !node.own) {
            node.sender.send_replace(snapshot.clone());
        }
        nodes.common = snapshot;
    }

    /// The snapshot of `key`: its own, or the common one.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<Snapshot>> {
        let nodes = lock(&self.inner.nodes);
        match nodes.by_key.get(key) {
            Some(node) => node.sender.borrow().clone(),
            None => nodes.common.clone(),
        }
    }

    /// Forgets the snapshot of `key`: its nodes get the common one. Without that, connected nodes keep
    /// what they have, and nodes that connect later get no answer until there is a snapshot again.
    pub fn clear(&self, key: &str) {
        let mut nodes = lock(&self.inner.nodes);
        let common = nodes.common.clone();
        if let Some(node) = nodes.by_key.get_mut(key) {
            node.own = false;
            node.sender.send_replace(common);
            if node.sender.receiver_count() == 0 {
                nodes.by_key.remove(key);
            }
        }
    }

    /// The keys that have a snapshot of their own, sorted.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let nodes = lock(&self.inner.nodes);
        let own = nodes.by_key.iter().filter(|(_, node)| node.own);
        let mut keys: Vec<_> = own.map(|(key, _)| key.clone()).collect();
        keys.sort_unstable();
        keys
    }

    /// Every stream that is open, oldest first. Streams of one client have the same `node_id`.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamStatus> {
        lock(&self.inner.streams).by_id.values().cloned().collect()
    }

    pub(crate) fn watch(&self, key: &str) -> Watch {
        let mut nodes = lock(&self.inner.nodes);
        let Nodes { by_key, common } = &mut *nodes;
        let unknown = || Node { sender: watch::Sender::new(common.clone()), own: false };
        let mut receiver = by_key.entry(key.to_owned()).or_insert_with(unknown).sender.subscribe();
        receiver.mark_changed();
        Watch { receiver: Some(receiver), key: key.to_owned(), cache: self.clone() }
    }

    /// Lists a stream for as long as the value returned lives.
    pub(super) fn enter(&self, mut status: StreamStatus) -> Entry {
        let mut streams = lock(&self.inner.streams);
        streams.last += 1;
        status.id = streams.last;
        let id = status.id;
        streams.by_id.insert(id, status);
        Entry { id, cache: self.clone() }
    }
}

impl fmt::Debug for SnapshotCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = lock(&self.inner.streams).by_id.len();
        f.debug_struct("SnapshotCache").field("keys", &self.keys()).field("streams", &streams).finish()
    }
}

/// Follows the snapshot of one key.
pub(crate) struct Watch {
    receiver: Option<watch::Receiver<Current>>,
    key: String,
    cache: SnapshotCache,
}

impl Watch {
    /// The next snapshot that is not `None`; at once for the one that is there on entry.
    pub(crate) async fn next(&mut self) -> Arc<Snapshot> {
        while let Some(receiver) = self.receiver.as_mut() {
            if receiver.changed().await.is_err() {
                break;
            }
            let current = receiver.borrow_and_update().clone();
            if let Some(snapshot) = current {
                return snapshot;
            }
        }
        // The sender lives in the cache, which this value keeps alive.
        std::future::pending().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.receiver = None;
        let mut nodes = lock(&self.cache.inner.nodes);
        // Nothing is kept of nodes that only ever asked.
        let idle = |node: &Node| node.sender.receiver_count() == 0 && !node.own;
        if nodes.by_key.get(&self.key).is_some_and(idle) {
            nodes.by_key.remove(&self.key);
        }
    }
}

/// A listed stream.
pub(super) struct Entry {
    pub id: u64,
    cache: SnapshotCache,
}

impl Entry {
    pub(super) fn update(&self, change: impl FnOnce(&mut StreamStatus)) {
        if let Some(status) = lock(&self.cache.inner.streams).by_id.get_mut(&self.id) {
            change(status);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.cache.inner.streams).by_id.remove(&self.id);
    }
}

/// Nothing that happens under these locks can leave their content half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
