//! What is logged of sessions, and of all that a worker has forwarded by one configuration.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use outrigger_control_api::pb::google::protobuf::value::Kind;
use tokio::time::Instant;

use super::sessions::Session;
use super::{metadata, record, Port};
use crate::config::udp::UdpProxy;
use crate::telemetry::format::{FormatContext, LogType};
use crate::telemetry::stream_info::StreamInfo;

/// The dynamic metadata of sessions, and of what forwards them.
const SESSION: &str = "udp.proxy.session";
const PROXY: &str = "udp.proxy.proxy";

/// The number of a session, unique in this process.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What went from and to clients.
#[derive(Default)]
pub(super) struct Tally {
    received: Cell<(u64, u64)>,
    sent: Cell<(u64, u64)>,
    errors: Cell<u64>,
}

impl Tally {
    /// A datagram of so many bytes has come.
    pub(super) fn received(&self, bytes: u64) {
        let (datagrams, before) = self.received.get();
        self.received.set((datagrams + 1, before + bytes));
    }

    /// A datagram of so many bytes has gone.
    pub(super) fn sent(&self, bytes: u64) {
        let (datagrams, before) = self.sent.get();
        self.sent.set((datagrams + 1, before + bytes));
    }

    /// A datagram could not be sent.
    pub(super) fn not_sent(&self) {
        self.errors.set(self.errors.get() + 1);
    }
}

/// What one worker forwards by one configuration.
pub(super) struct Served {
    pub(super) proxy: Arc<UdpProxy>,
    pub(super) tally: Tally,
    start: Instant,
}

impl Served {
    pub(super) fn new(proxy: &Arc<UdpProxy>) -> Self {
        Self { proxy: proxy.clone(), tally: Tally::default(), start: Instant::now() }
    }

    /// It is over. As in Envoy the metadata is what all workers have counted since the process began.
    pub(super) fn log(&self, port: &Port) {
        if self.proxy.proxy_logs.is_empty() {
            return;
        }
        let counted = |name| Kind::NumberValue(self.proxy.scope.counted(name) as f64);
        let fields = [
            ("bytes_sent", "downstream_sess_tx_bytes"),
            ("bytes_received", "downstream_sess_rx_bytes"),
            ("errors_sent", "downstream_sess_tx_errors"),
            ("errors_received", "downstream_sess_rx_errors"),
            ("datagrams_sent", "downstream_sess_tx_datagrams"),
            ("datagrams_received", "downstream_sess_rx_datagrams"),
            ("no_route", "downstream_sess_no_route"),
            ("session_total", "downstream_sess_total"),
            ("idle_timeout", "idle_timeout"),
        ];
        let fields = fields.into_iter().map(|(field, name)| (field, counted(name))).collect();
        let mut info = record(port, None, self.start.into_std());
        info.metadata = Some(metadata(PROXY, fields));
        take(&mut info, &self.tally);
        let context = FormatContext::new(&info);
        for log in &self.proxy.proxy_logs {
            log.write(&context);
        }
    }
}

impl Session {
    /// Tells of it.
    pub(super) fn log(&self, port: &Port, log_type: LogType) {
        if self.proxy.access_logs.is_empty() {
            return;
        }
        let number = |value: u64| Kind::NumberValue(value as f64);
        let fields = vec![
            ("cluster_name", Kind::StringValue(self.cluster.name.to_string())),
            ("bytes_sent", number(self.tally.sent.get().1)),
            ("bytes_received", number(self.tally.received.get().1)),
            ("errors_sent", number(self.tally.errors.get())),
            ("datagrams_sent", number(self.tally.sent.get().0)),
            ("datagrams_received", number(self.tally.received.get().0)),
        ];
        let mut info = record(port, Some(self.key.0), self.start.into_std());
        if let Some(connection) = Rc::get_mut(&mut info.connection) {
            connection.id = self.id;
        }
        take(&mut info, &self.tally);
        info.host = Some(self.host.clone());
        info.upstream_local = self.upstream.local_addr().ok();
        info.metadata = Some(metadata(SESSION, fields));
        let context = FormatContext { log_type, ..FormatContext::new(&info) };
        for log in &self.proxy.access_logs {
            log.write(&context);
        }
    }
}

fn take(info: &mut StreamInfo, tally: &Tally) {
    info.bytes_received = tally.received.get().1;
    info.bytes_sent = tally.sent.get().1;
}
