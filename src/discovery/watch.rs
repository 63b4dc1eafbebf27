//! How the streams are: asked for once a second, for metrics and the admin page.
//!
//! In: streams that open and end, and the client's own account of each. Out: the gauges of
//! `control_plane.`, and a board that the admin page reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use outrigger_control_api::client::Status;
use tokio::task::JoinHandle;

use super::effects::{CDS, EDS, LDS, RDS};
use super::sources::StreamId;
use super::stats::{ControlPlaneStats, TypeStats};
use super::streams::Streams;
use crate::telemetry::metrics::Scope;

/// Longest text of an error that is kept.
const MAX_REASON: usize = 1000;

/// What is known of all streams.
pub(super) type Board = BTreeMap<StreamId, Line>;

/// What is known of one.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// As it was up to a second ago.
    pub(super) status: Option<Status>,
    /// Since when it is open.
    pub(super) open: Option<Instant>,
    /// How often it ended or could not be opened.
    pub(super) ends: u64,
    /// Why the last time.
    pub(super) last_end: Option<(SystemTime, String)>,
}

/// Keeps the board and the gauges.
pub(super) struct Watch {
    board: Arc<Mutex<Board>>,
    stats: Arc<ControlPlaneStats>,
    types: Arc<[(&'static str, TypeStats); 4]>,
    asking: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn new(stats: Arc<ControlPlaneStats>) -> Self {
        let types = [(CDS, "cds"), (EDS, "eds"), (LDS, "lds"), (RDS, "rds")];
        let types = types.map(|(url, name)| (url, TypeStats::new(&Scope::raw("control_plane").sub(name))));
        Self { board: Arc::default(), stats, types: Arc::new(types), asking: None }
    }

    pub(super) fn board(&self) -> Arc<Mutex<Board>> {
        self.board.clone()
    }

    /// A stream is open.
    pub(super) fn opened(&self, stream: StreamId) {
        let mut board = lock(&self.board);
        board.entry(stream).or_default().open = Some(Instant::now());
        self.stats.streams_opened.increment(1);
        self.publish_state(&board);
    }

    /// It ended, or could not be opened.
    pub(super) fn closed(&self, stream: StreamId, mut reason: String) {
        let end = (0..=MAX_REASON.min(reason.len())).rev().find(|&at| reason.is_char_boundary(at));
        reason.truncate(end.unwrap_or(0));
        let mut board = lock(&self.board);
        let line = board.entry(stream).or_default();
        line.open = None;
        line.ends += 1;
        line.last_end = Some((SystemTime::now(), reason));
        self.publish_state(&board);
    }

    fn publish_state(&self, board: &Board) {
        // Files are no streams: they neither open nor end.
        let mut streams = board.values().filter(|line| line.open.is_some() || line.ends > 0);
        let all = !board.is_empty() && streams.all(|line| line.open.is_some());
        self.stats.connected_state.set(f64::from(u8::from(all)));
    }

    /// What came at `received` is in force.
    pub(super) fn in_effect(&self, type_url: &str, received: Instant) {
        if let Some((_, stats)) = self.types.iter().find(|(url, _)| *url == type_url) {
            stats.time_to_effect_us.record(received.elapsed().as_secs_f64() * 1e6);
        }
    }

    /// Streams that have been open for at least this long.
    pub(super) fn open_for(&self, now: Instant, time: Duration) -> Vec<StreamId> {
        let is_old = |line: &Line| line.open.is_some_and(|at| now.saturating_duration_since(at) >= time);
        lock(&self.board).iter().filter(|(_, line)| is_old(line)).map(|(stream, _)| *stream).collect()
    }

    /// Has the streams asked, unless the last time is not over.
    pub(super) fn ask(&mut self, streams: &Streams) {
        if self.asking.as_ref().is_some_and(|asking| !asking.is_finished()) {
            return;
        }
        let (statuses, board) = (streams.statuses(), self.board.clone());
        let (stats, types) = (self.stats.clone(), self.types.clone());
        self.asking = Some(tokio::spawn(async move {
            let statuses = statuses.await;
            publish(&statuses, Instant::now(), &stats, &*types);
            let mut board = lock(&board);
            for (stream, status) in statuses {
                board.entry(stream).or_default().status = Some(status);
            }
        }));
    }
}

/// Sets the gauges to the worst of all streams.
fn publish(
    statuses: &[(StreamId, Status)],
    now: Instant,
    stats: &ControlPlaneStats,
    types: &[(&'static str, TypeStats)],
) {
    let age = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at).as_millis() as f64);
    let all = || statuses.iter().map(|(_, status)| status);
    if let Some(silence) = all().filter_map(|status| age(status.heard)).reduce(f64::max) {
        stats.silence_ms.set(silence);
    }
    stats.pending_requests.set(all().map(|status| status.pending_requests).sum::<usize>() as f64);
    for (url, stats) in types {
        let ages = all().flat_map(|status| &status.types).filter(|status| status.type_url == *url);
        if let Some(age) = ages.filter_map(|status| age(status.accepted)).reduce(f64::max) {
            stats.content_age_ms.set(age);
        }
    }
}

pub(super) fn lock(board: &Mutex<Board>) -> MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}
