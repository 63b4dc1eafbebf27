//! One run: threads are started, their counts merged, and the result made.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{channel, RecvTimeoutError};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hdrhistogram::Histogram;
use rustls::pki_types::ServerName;
use rustls::ClientConfig;

use super::h2::Conversation;
use super::task::{Hello, Stage, Task};
use super::worker::Worker;
use super::{grpc, h1, h2, tcp, websocket, Client};
use crate::clock::{self, MILLISECOND, SECOND};
use crate::record::{
    distribution, histogram, share, Reason, Recorder, Slice, Totals, AFTER, GRPC, NO_STATUS,
};
use crate::result::{
    Connections, Interval, Latency, Rates, Requests, RunResult, Schedule, ToolCost, Traffic, Work, FORMAT,
};

/// What to talk.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// These bytes; the answer to HEAD has no body.
    Http1 {
        /// The whole request.
        request: Bytes,
        /// Its method is HEAD.
        head_only: bool,
    },
    /// HTTP/2 or gRPC.
    Http2 {
        /// Pseudo headers and headers.
        fields: Vec<(String, String)>,
        /// A body, empty for none.
        body: Bytes,
    },
    /// The bundled echo service, with these pseudo headers and headers.
    Grpc {
        /// Pseudo headers and headers.
        fields: Vec<(String, String)>,
        /// Which method.
        kind: GrpcKind,
        /// Bytes of a payload.
        size: usize,
    },
    /// Messages of so many bytes after this request.
    WebSocket {
        /// The request that upgrades.
        upgrade: Vec<u8>,
        /// Bytes of a message.
        size: usize,
    },
    /// Bytes there and back.
    Tcp {
        /// Bytes sent.
        send: usize,
        /// Bytes expected.
        receive: u64,
    },
    /// Connections that come and go.
    Handshake {
        /// What is said on them; without it, nothing.
        hello: Option<Hello>,
    },
}

/// Which method of the echo service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum GrpcKind {
    /// One message each way.
    Unary,
    /// One message there, many back.
    ServerStream,
    /// Many messages there, one back.
    ClientStream,
    /// A message back for each, one after the other.
    Bidi,
}

/// Everything that a run needs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the result calls it.
    pub name: String,
    /// What the result says was asked for; rates, counts and times are taken from here.
    pub work: Work,
    /// Where to connect.
    pub address: SocketAddr,
    /// TLS, and the name of the server.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// What to talk.
    pub protocol: Protocol,
    /// Ends after so many requests.
    pub requests: Option<u64>,
    /// How long to wait for answers after the end, seconds.
    pub grace_s: f64,
    /// Length of the intervals of the series, seconds; by default a sixtieth of the run, a tenth of a second or more.
    pub interval_s: Option<f64>,
    /// For random arrivals.
    pub seed: u64,
}

/// What is known while it runs, of the last interval.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The interval.
    pub interval: Interval,
    /// Answers and failures so far.
    pub answered: u64,
    /// Failures so far.
    pub failed: u64,
}

/// Runs it to the end, or until `stage.stop` is set.
///
/// # Errors
/// A thread cannot be started, pinned, or cannot poll.
pub fn run(plan: &Plan, stage: &Arc<Stage>, progress: &mut dyn FnMut(&Progress)) -> io::Result<RunResult> {
    let streams = plan.work.streams.max(1);
    match &plan.protocol {
        Protocol::Http1 { request, head_only } => {
            drive::<h1::Http1>(plan, stage, progress, &|| h1::Requests::new(request.clone(), *head_only))
        }
        Protocol::Http2 { fields, body } => drive::<h2::Http2>(plan, stage, progress, &|| h2::Requests {
            fields: fields.clone(),
            body: body.clone(),
            messages: u32::from(!body.is_empty()),
            conversation: Conversation::Ahead,
            grpc: false,
            streams,
        }),
        Protocol::Grpc { fields, kind, size } => drive::<h2::Http2>(plan, stage, progress, &|| {
            let many = plan.work.messages.max(1);
            h2::Requests {
                fields: fields.clone(),
                body: grpc::request(*size, many),
                messages: if matches!(kind, GrpcKind::ClientStream | GrpcKind::Bidi) { many } else { 1 },
                conversation: if *kind == GrpcKind::Bidi {
                    Conversation::PingPong
                } else {
                    Conversation::Ahead
                },
                grpc: true,
                streams,
            }
        }),
        Protocol::WebSocket { upgrade, size } => {
            drive::<websocket::WebSocket>(plan, stage, progress, &|| {
                websocket::Messages::new(upgrade.clone(), *size, streams)
            })
        }
        Protocol::Tcp { send, receive } => drive::<tcp::Tcp>(plan, stage, progress, &|| tcp::Exchange {
            payload: Bytes::from(vec![b'x'; *send]),
            answer: *receive,
            depth: streams,
        }),
        Protocol::Handshake { .. } => drive::<tcp::Tcp>(plan, stage, progress, &|| tcp::Exchange {
            payload: Bytes::new(),
            answer: 1,
            depth: 1,
        }),
    }
}

/// The `nth` of `parts` parts of a whole.
fn part(whole: u64, nth: u32, parts: u32) -> u64 {
    let (nth, parts) = (u64::from(nth), u64::from(parts));
    whole / parts + u64::from(nth < whole % parts)
}

fn drive<C: Client + 'static>(
    plan: &Plan,
    stage: &Arc<Stage>,
    progress: &mut dyn FnMut(&Progress),
    shared: &dyn Fn() -> C::Shared,
) -> io::Result<RunResult>
where
    C::Shared: Send,
{
    let work = &plan.work;
    let threads = work.threads.clamp(1, work.connections.max(1));
    let open = work.schedule != Schedule::Closed;
    let interval = plan.interval_s.unwrap_or((work.duration_s / 60.0).clamp(0.1, 60.0));
    let interval = clock::from_seconds(interval).max(MILLISECOND);
    let (sender, slices) = channel();
    let hello = match &plan.protocol {
        Protocol::Handshake { hello } => hello.clone(),
        _ => None,
    };
    let mut running: Vec<JoinHandle<io::Result<Totals>>> = Vec::new();
    for thread in 0..threads {
        let task = Task {
            address: plan.address,
            tls: plan.tls.clone(),
            connections: part(u64::from(work.connections.max(1)), thread, threads) as u32,
            share: (thread, threads),
            schedule: work.schedule.clone(),
            requests: plan.requests.map_or(u64::MAX, |whole| part(whole, thread, threads)),
            per_connection: if work.requests_per_connection == 0 {
                u64::MAX
            } else {
                work.requests_per_connection
            },
            times: (work.warmup_s, work.duration_s),
            timeout: clock::from_seconds(work.timeout_s),
            grace: clock::from_seconds(plan.grace_s),
            handshakes: matches!(plan.protocol, Protocol::Handshake { .. }),
            hello: hello.clone(),
            seed: plan.seed,
        };
        let recorder = Recorder::new(open, interval, sender.clone());
        let (shared, stage) = (shared(), stage.clone());
        let core = work.pinned.get(thread as usize % work.pinned.len().max(1)).copied();
        running.push(std::thread::Builder::new().name(format!("load-{thread}")).spawn(move || {
            core.map_or(Ok(()), clock::pin)?;
            Worker::<C>::new(task, stage, shared, recorder)?.run()
        })?);
    }
    drop(sender);
    let mut merged = Merged::new(open, interval, threads);
    loop {
        match slices.recv_timeout(Duration::from_millis(200)) {
            Ok(slice) => {
                // What is left of the clock's last tick is no interval.
                let within = |now: &Progress| now.interval.start_s + 1e-6 < work.duration_s;
                if let Some(now) = merged.add(slice).filter(within) {
                    progress(&now);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                if running.iter().any(JoinHandle::is_finished) && running.len() > 1 {
                    // One that failed must not let the others wait for it.
                    stage.stop.fetch_or(running.iter().all(JoinHandle::is_finished), Ordering::Relaxed);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let mut totals = Vec::new();
    for thread in running {
        totals.push(thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread ended in panic")))?);
    }
    Ok(merged.result(plan, threads, &totals))
}

/// The counts of all threads.
struct Merged {
    interval: u64,
    threads: u32,
    /// What belongs to no interval, and the sum of those that are complete.
    sum: Slice,
    /// Within the measured time.
    answered: u64,
    parts: BTreeMap<u64, (Slice, u32)>,
    series: Vec<Interval>,
    received_bytes: u64,
    received_messages: u64,
    sent_bytes: u64,
}

impl Merged {
    fn new(open: bool, interval: u64, threads: u32) -> Self {
        Self {
            interval,
            threads,
            sum: Slice::new(0, open),
            answered: 0,
            parts: BTreeMap::new(),
            series: Vec::new(),
            received_bytes: 0,
            received_messages: 0,
            sent_bytes: 0,
        }
    }

    /// Adds one; the progress, if it completes an interval of all threads.
    fn add(&mut self, slice: Slice) -> Option<Progress> {
        let index = slice.index;
        if index == AFTER {
            add(&mut self.sum, &slice);
            return None;
        }
        let complete = match self.parts.get_mut(&index) {
            None => {
                self.parts.insert(index, (slice, 1));
                self.threads == 1
            }
            Some((part, threads)) => {
                add(part, &slice);
                *threads += 1;
                *threads == self.threads
            }
        };
        complete.then(|| self.close(index)).flatten()
    }

    fn close(&mut self, index: u64) -> Option<Progress> {
        let (slice, _) = self.parts.remove(&index)?;
        add(&mut self.sum, &slice);
        self.answered += slice.answered;
        self.received_bytes += slice.received_bytes;
        self.received_messages += slice.received_messages;
        self.sent_bytes += slice.sent_bytes;
        let us = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        let at = |quantile| us(slice.corrected.value_at_quantile(quantile).min(slice.corrected.max()));
        let interval = Interval {
            start_s: clock::seconds(index * self.interval),
            length_s: clock::seconds(self.interval),
            sent: slice.sent,
            answered: slice.answered,
            failed: slice.failed,
            received_bytes: slice.received_bytes,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            max_us: us(slice.corrected.max()),
        };
        self.series.push(interval.clone());
        Some(Progress { interval, answered: self.sum.answered, failed: self.sum.failed })
    }

    fn result(mut self, plan: &Plan, threads: u32, totals: &[Totals]) -> RunResult {
        for index in self.parts.keys().copied().collect::<Vec<_>>() {
            self.close(index);
        }
        self.series.sort_by(|a, b| a.start_s.total_cmp(&b.start_s));
        // An end that was earlier than asked for is that of the last thread.
        let measured = totals.iter().map(|totals| totals.measured).max().unwrap_or(0).max(1);
        let seconds = clock::seconds(measured);
        self.series.retain(|interval| interval.start_s < seconds);
        for interval in &mut self.series {
            interval.length_s = interval.length_s.min(seconds - interval.start_s);
        }
        let whole = |count: fn(&Totals) -> u64| totals.iter().map(count).sum::<u64>();
        let reasons = |counts: fn(&Totals) -> &[u64; Reason::ALL.len()]| -> BTreeMap<String, u64> {
            let sum =
                |reason: Reason| totals.iter().map(|totals| counts(totals)[reason as usize]).sum::<u64>();
            let named = Reason::ALL.iter().map(|reason| (reason.name().to_owned(), sum(*reason)));
            named.filter(|(_, count)| *count > 0).collect()
        };
        let distributions = |each: fn(&Totals) -> &Histogram<u64>| {
            let mut sum = histogram();
            for totals in totals {
                // Same bounds: it cannot fail.
                let _ = sum.add(each(totals));
            }
            distribution(&sum)
        };
        let (mut by_status, mut successful) = (BTreeMap::new(), 0);
        for totals in totals {
            for (status, count) in totals.by_status.iter().enumerate().filter(|(_, count)| **count > 0) {
                let status = status as u16;
                let (name, good) = match status {
                    NO_STATUS => ("ok".to_owned(), true),
                    GRPC.. => (format!("grpc-{}", status - GRPC), status == GRPC),
                    _ => (status.to_string(), (200..400).contains(&status)),
                };
                *by_status.entry(name).or_insert(0) += count;
                successful += if good { *count } else { 0 };
            }
        }
        let unsent = whole(|totals| totals.unsent);
        let first = |text: fn(&Totals) -> &String| {
            totals.iter().map(text).find(|text| !text.is_empty()).cloned().unwrap_or_default()
        };
        let requests = Requests {
            scheduled: self.sum.sent + unsent,
            sent: self.sum.sent,
            answered: self.sum.answered,
            successful,
            failed: self.sum.failed,
            failed_by_reason: reasons(|totals| &totals.failed),
            unexpected: first(|totals| &totals.unexpected),
            in_flight: whole(|totals| totals.in_flight),
            unsent,
        };
        let connections = Connections {
            opened: whole(|totals| totals.opened),
            failed: whole(|totals| totals.not_opened.iter().sum()),
            failed_by_reason: reasons(|totals| &totals.not_opened),
            lost: whole(|totals| totals.lost),
            resumed: whole(|totals| totals.resumed),
            tls: first(|totals| &totals.tls),
            connect: distributions(|totals| &totals.connect),
            tls_handshake: distributions(|totals| &totals.handshake),
        };
        let corrected = distribution(&self.sum.corrected);
        let uncorrected = self.sum.uncorrected.as_ref().map_or_else(|| corrected.clone(), distribution);
        let cpu = whole(|totals| totals.cpu);
        let per = |count: u64| count as f64 / seconds;
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        RunResult {
            format: FORMAT,
            name: plan.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_s: started - seconds,
            work: Work { threads, ..plan.work.clone() },
            interrupted: plan.requests.is_none()
                && measured + SECOND / 1000 < clock::from_seconds(plan.work.duration_s),
            measured_s: seconds,
            rates: Rates {
                answered_per_s: per(self.answered),
                offered_per_s: per(requests.scheduled),
                sent_bytes_per_s: per(self.sent_bytes),
                received_bytes_per_s: per(self.received_bytes),
                received_messages_per_s: per(self.received_messages),
            },
            requests,
            by_status,
            connections,
            traffic: Traffic {
                sent_bytes: self.sent_bytes,
                received_bytes: self.received_bytes,
                body_bytes: whole(|totals| totals.body_bytes),
                sent_messages: whole(|totals| totals.sent_messages),
                received_messages: self.sum.received_messages,
            },
            latency: Latency { corrected, uncorrected, first_byte: distribution(&self.sum.first_byte) },
            series: self.series,
            tool: ToolCost {
                cpu_s: clock::seconds(cpu),
                cpu_us_per_answer: if self.answered == 0 {
                    0.0
                } else {
                    cpu as f64 / 1000.0 / self.answered as f64
                },
                process_cpu_s: clock::seconds(clock::process_cpu()),
                busiest_thread: totals.iter().map(|totals| share(totals.cpu, measured)).fold(0.0, f64::max),
            },
            search: Vec::new(),
        }
    }
}

fn add(sum: &mut Slice, slice: &Slice) {
    // All histograms have the same bounds: adding cannot fail.
    let _ = sum.corrected.add(&slice.corrected);
    let _ = sum.first_byte.add(&slice.first_byte);
    if let (Some(sum), Some(slice)) = (&mut sum.uncorrected, &slice.uncorrected) {
        let _ = sum.add(slice);
    }
    sum.sent += slice.sent;
    sum.answered += slice.answered;
    sum.failed += slice.failed;
    sum.sent_bytes += slice.sent_bytes;
    sum.received_bytes += slice.received_bytes;
    sum.received_messages += slice.received_messages;
}
