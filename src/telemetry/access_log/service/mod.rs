//! Access logs that go to services: gRPC's `StreamAccessLogs` and OpenTelemetry's logs.
//!
//! Comes in: loggers' configuration, and streams. Goes out: encoded entries, which wait in the worker ([`outbox`]) until
//! its courier (`http::logs`) brings them. Nothing here waits, and nothing is built for a service that has no room.

mod common;
pub(super) mod compile;
mod entry;
mod otlp;
pub mod outbox;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use metrics::Counter;
use prost::encoding::{encode_key, encode_varint, WireType};
use prost::Message;

use self::common::Common;
use self::entry::Additional;
use self::otlp::Record;
use crate::config::services::{GrpcTarget, HttpTarget, Pairs};
use crate::telemetry::format::FormatContext;
use crate::telemetry::metrics::Scope;

/// A service that takes logs. Loggers with the same configuration share one, and one stream to it for each worker.
pub struct Service {
    pub(super) id: u64,
    /// Where it is, and how it is spoken to.
    pub target: Target,
    /// How long a batch that is not full waits.
    pub interval: Duration,
    /// Bytes of a full batch.
    pub(super) enough: usize,
    /// What stands around the entries of a message.
    frame: Frame,
    written: Counter,
    dropped: Counter,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("id", &self.id).field("target", &self.target).finish_non_exhaustive()
    }
}

/// Where a service is, and how it is spoken to.
#[derive(Debug)]
pub enum Target {
    /// One stream of `StreamAccessLogs`, which lasts.
    Stream(GrpcTarget),
    /// A call of OTLP's `LogsService` for each batch.
    Calls(Arc<GrpcTarget>),
    /// An OTLP request over HTTP for each batch, with these fields.
    Http(HttpTarget, Pairs),
}

/// What stands around entries.
#[derive(Debug)]
enum Frame {
    /// The identifier of a stream, which its first message has, and the field that the list of entries is in.
    Stream(Box<[u8]>, u32),
    /// The resource, which each request has.
    Otlp(Box<[u8]>),
}

impl Service {
    fn new(target: Target, interval: Duration, enough: usize, frame: Frame, scope: &Scope) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            target,
            interval,
            enough,
            frame,
            written: scope.counter("logs_written"),
            dropped: scope.counter("logs_dropped"),
        }
    }

    /// Its number, unique in this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// A message with these entries. `first` says that it is the first of its stream.
    pub fn message(&self, entries: &[u8], first: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(entries.len() + 64);
        match &self.frame {
            Frame::Stream(identifier, field) => {
                if first {
                    out.extend_from_slice(identifier);
                }
                field_of(*field, entries, &mut out);
            }
            Frame::Otlp(resource) => {
                // ResourceLogs: resource = 1, scope_logs = 2. ExportLogsServiceRequest: resource_logs = 1.
                let mut all = resource.to_vec();
                field_of(2, entries, &mut all);
                field_of(1, &all, &mut out);
            }
        }
        out
    }

    /// So many entries did not get there.
    pub fn lost(&self, count: u64) {
        self.dropped.increment(count);
    }

    /// So many entries were taken; OTLP's services say so.
    pub fn taken(&self, count: u64) {
        if !matches!(self.target, Target::Stream(_)) {
            self.written.increment(count);
        }
    }
}

/// Appends the field `number` with these bytes.
fn field_of(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Appends `message` as the field `number`.
fn message_of(number: u32, message: &impl Message, out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(message.encoded_len() as u64, out);
    message.encode_raw(out);
}

/// A logger that writes to a service.
#[derive(Debug)]
pub(super) struct ServiceLog {
    service: Arc<Service>,
    what: What,
}

/// What is written of a stream.
#[derive(Debug)]
enum What {
    Http(Common, Additional),
    Tcp(Common),
    Otlp(Box<Record>),
}

impl ServiceLog {
    /// Writes an entry about the stream. Never waits.
    pub(super) fn write(&self, context: &FormatContext<'_>) {
        // Entries are the field 1 of their list, OTLP's records the field 2.
        let added = outbox::push(&self.service, |out| match &self.what {
            What::Http(common, more) => message_of(1, &entry::http(common, more, context), out),
            What::Tcp(common) => message_of(1, &entry::tcp(common, context), out),
            What::Otlp(record) => message_of(2, &record.of(context), out),
        });
        match (added, &self.service.target) {
            (false, _) => self.service.lost(1),
            (true, Target::Stream(_)) => self.service.written.increment(1),
            (true, _) => {}
        }
    }
}
