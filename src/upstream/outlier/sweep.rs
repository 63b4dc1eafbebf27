//! Sweeps: the control thread's part. A cluster is swept from its first request on, for as long as it is awake.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::Cluster;
use crate::telemetry::access_log::LineFile;

/// The way from clusters to the control thread, and the event log that all of them write to.
#[derive(Debug)]
pub struct Registry {
    sender: mpsc::UnboundedSender<Weak<Cluster>>,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<Weak<Cluster>>>>,
    log: OnceLock<LineFile>,
}

impl Default for Registry {
    fn default() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver: Mutex::new(Some(receiver)), log: OnceLock::new() }
    }
}

impl Registry {
    /// Ejections are logged to `file` from now on. Heeded once.
    pub fn log_to(&self, file: LineFile) {
        let _ = self.log.set(file);
    }

    pub(super) fn log(&self, line: impl FnOnce() -> Option<String>) {
        if let Some(file) = self.log.get() {
            if let Some(line) = line() {
                file.append(line.as_bytes());
            }
        }
    }

    pub(super) fn register(&self, cluster: &Arc<Cluster>) {
        // Without a control thread (in tests) nobody sweeps.
        let _ = self.sender.send(Arc::downgrade(cluster));
    }

    /// Sweeps every cluster that registers. Ends at once if it runs elsewhere already; to be spawned on the control
    /// thread's runtime.
    pub async fn run(self: Arc<Self>) {
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut receiver) = receiver else { return };
        while let Some(cluster) = receiver.recv().await {
            let Some(interval) = interval(&cluster) else { continue };
            tokio::spawn(sweep(cluster, interval));
        }
    }
}

fn interval(cluster: &Weak<Cluster>) -> Option<Duration> {
    let cluster = cluster.upgrade()?;
    let outlier = cluster.health.as_ref()?.outlier.as_ref()?;
    // Field rules keep it above zero; nobody needs more than a thousand a second.
    Some(outlier.options.interval.max(Duration::from_millis(1)))
}

async fn sweep(cluster: Weak<Cluster>, interval: Duration) {
    // A cluster that knows of ejections must not fall asleep and forget them.
    let mut held: Option<Arc<Cluster>> = None;
    loop {
        tokio::time::sleep(interval).await;
        // Replaced or removed, and nobody uses it any more.
        if held.as_ref().is_some_and(|cluster| Arc::strong_count(cluster) == 1) {
            return;
        }
        let Some(now) = cluster.upgrade() else { return };
        let Some(outlier) = now.health.as_ref().and_then(|health| health.outlier.as_ref()) else { return };
        let keep = outlier.sweep(&now, std::time::Instant::now());
        held = keep.then_some(now);
    }
}
