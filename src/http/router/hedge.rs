//! Tries that were too slow, but go on (`hedge_on_per_try_timeout`): another goes beside them, and the first good answer
//! wins (envoyproxy.io: request hedging).
//!
//! Comes in: a try whose time is up, with all that it holds. Goes out: its answer, if that is the one to pass on. Late
//! tries are looked after wherever the request waits; the request has come in full by then, so they only send what they
//! have and listen.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use std::time::Instant;

use super::attempt::{Answered, Failed, Reading, Sent};
use super::deadlines::Expired;
use super::lent::Lent;
use super::log::Noted;
use super::{Attempts, End, Ended, Failure};
use crate::config::{Cluster, Host};
use crate::http::exchange::Exchange;
use crate::http::h1::ParsedResponse;
use crate::telemetry::stream_info::{Protocol, StreamInfo};
use crate::tls::TlsInfo;
use crate::upstream::{RequestPermit, UpstreamError};

/// A try that goes on beside others.
pub(super) struct Late {
    connection: Lent,
    sent: Sent,
    request_permit: RequestPermit,
    reading: Reading,
    trace: Trace,
    member: Option<Arc<Cluster>>,
    noted: Option<Box<Noted>>,
    /// Another try was begun for it: its answer is no reason for one more.
    retried: bool,
}

/// A late try that decides the request: by its answer, or because it failed and was the last.
pub(super) struct Won {
    late: Late,
    outcome: Result<ParsedResponse, Failure>,
}

/// What the exchange says of the upstream of one try.
struct Trace {
    host: Option<Arc<Host>>,
    connection: u64,
    local: Option<SocketAddr>,
    tls: Option<Rc<TlsInfo>>,
    protocol: Option<Protocol>,
    first_tx: Option<Instant>,
}

impl Trace {
    fn of(info: &StreamInfo) -> Self {
        Self {
            host: info.host.clone(),
            connection: info.upstream_connection_id,
            local: info.upstream_local,
            tls: info.upstream_tls.clone(),
            protocol: info.upstream_protocol,
            first_tx: info.times.first_upstream_tx,
        }
    }

    fn swap(&mut self, info: &mut StreamInfo) {
        std::mem::swap(&mut self.host, &mut info.host);
        std::mem::swap(&mut self.connection, &mut info.upstream_connection_id);
        std::mem::swap(&mut self.local, &mut info.upstream_local);
        std::mem::swap(&mut self.tls, &mut info.upstream_tls);
        std::mem::swap(&mut self.protocol, &mut info.upstream_protocol);
        std::mem::swap(&mut self.first_tx, &mut info.times.first_upstream_tx);
    }
}

impl Failure {
    /// Whether another try of the same request may still have an answer.
    fn is_of_try(&self) -> bool {
        matches!(
            self,
            Failure::Upstream(_)
                | Failure::Closed
                | Failure::Protocol
                | Failure::Reset(_)
                | Failure::Timeout(Expired::TryDuration)
        )
    }
}

impl Attempts<'_> {
    /// Whether a try that failed like this goes on instead.
    pub(super) fn goes_on(&self, failure: &Failure) -> bool {
        self.deadlines.hedge && matches!(failure, Failure::Timeout(Expired::PerTry | Expired::PerTryIdle))
    }

    /// The time of a try is up, and it goes on.
    pub(super) fn set_aside(&mut self, ex: &Exchange<'_>, answered: Unanswered) -> Failed {
        let Unanswered { connection, sent, request_permit, mut reading } = answered;
        let (trace, member, noted) = (Trace::of(&ex.info), self.member.clone(), self.noted.take());
        reading.quiet = true;
        let late = Late { connection, sent, request_permit, reading, trace, member, noted, retried: false };
        self.late.push(late);
        Failed { failure: Failure::Late, started: true, unprocessed: false }
    }

    /// A try was just set aside. True when another is to go beside it.
    pub(super) fn hedge(&mut self, ex: &mut Exchange<'_>) -> bool {
        // The host was too slow, whatever it may answer yet.
        self.failed(ex, &started(Failure::Timeout(Expired::PerTry)));
        self.deadlines.try_ended();
        let retried = self.may_hedge(ex);
        if let Some(late) = self.late.last_mut() {
            late.retried = retried;
        }
        retried
    }

    /// Makes the exchange speak of `late` instead of the try it spoke of; once more, and it is as before.
    fn swap(&mut self, ex: &mut Exchange<'_>, late: &mut Late) {
        late.trace.swap(&mut ex.info);
        std::mem::swap(&mut self.member, &mut late.member);
        std::mem::swap(&mut self.noted, &mut late.noted);
    }

    /// Looks after the late tries. Ready when one of them decides the request.
    #[cold]
    pub(super) fn poll_late(&mut self, ex: &mut Exchange<'_>, context: &mut Context<'_>) -> Poll<()> {
        let mut index = 0;
        while index < self.late.len() {
            let mut late = self.late.remove(index);
            self.swap(ex, &mut late);
            let polled = self.poll_one(ex, &mut late, context);
            let last = self.alone && self.late.is_empty();
            let outcome = match polled {
                Poll::Pending => {
                    self.swap(ex, &mut late);
                    self.late.insert(index, late);
                    index += 1;
                    continue;
                }
                Poll::Ready(Ok(mut parsed)) => {
                    self.filter_response(ex, &mut parsed.head);
                    self.heard(ex, &parsed.head);
                    self.note_load(ex.info.host.as_ref(), &parsed.head.fields);
                    if !late.retried {
                        self.note_late(ex, &parsed.head);
                    }
                    if !last && self.is_retriable(&parsed.head) {
                        self.charge_error(ex);
                        self.count_given_up(ex);
                        self.note_head(&parsed.head);
                        self.log_end(ex, None);
                        None
                    } else {
                        Some(Ok(parsed))
                    }
                }
                Poll::Ready(Err(failure)) => {
                    let failed = started(failure);
                    self.count(ex, &failed);
                    self.failed(ex, &failed);
                    self.log_end(ex, Some(&failed.failure));
                    if last {
                        Some(Err(failed.failure))
                    } else {
                        self.charge_abort(ex, &failed.failure);
                        None
                    }
                }
            };
            self.swap(ex, &mut late);
            if let Some(outcome) = outcome {
                self.won = Some(Box::new(Won { late, outcome }));
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    fn poll_one(
        &mut self,
        ex: &mut Exchange<'_>,
        late: &mut Late,
        context: &mut Context<'_>,
    ) -> Poll<Result<ParsedResponse, Failure>> {
        self.poll_upload(ex, &late.connection, &mut late.sent.out, context)?;
        let polled = ready!(self.poll_head(ex, &mut late.connection, &mut late.reading, context));
        if let (Err(Failure::Closed), Lent::Http1(connection)) = (&polled, &late.connection) {
            connection.note_remote_close();
        }
        Poll::Ready(polled)
    }

    /// A late try has decided the request. `began` says that there is another, which had a connection.
    pub(super) async fn overtaken(&mut self, ex: &mut Exchange<'_>, began: bool) -> Ended {
        if began {
            self.count_given_up(ex);
            self.log_end(ex, None);
        }
        self.give_up_late(ex);
        self.end_retries();
        let Some(won) = self.won.take() else { return End::Gone.into() };
        let Won { mut late, outcome } = *won;
        self.swap(ex, &mut late);
        match outcome {
            Ok(parsed) => {
                let Late { connection, sent, request_permit, .. } = late;
                self.note_head(&parsed.head);
                let ended = self.respond(ex, Answered { parsed, connection, request_permit, sent }).await;
                self.log_answered(ex);
                ended
            }
            Err(failure) => self.fail(ex, failure),
        }
    }

    /// No other try will follow: waits for one of the late ones.
    pub(super) async fn wait_for_late(&mut self, ex: &mut Exchange<'_>) -> Ended {
        self.alone = true;
        self.deadlines.try_ended();
        let waited: Result<(), Failure> = poll_fn(|context| self.poll_client(ex, context)).await;
        match waited {
            Err(Failure::Overtaken) => self.overtaken(ex, false).await,
            Err(failure) => self.fail_late(ex, failure),
            // There is nothing else to be ready for.
            Ok(()) => End::Gone.into(),
        }
    }

    /// The request ends like this while nothing but late tries goes on.
    pub(super) fn fail_late(&mut self, ex: &mut Exchange<'_>, failure: Failure) -> Ended {
        let failed = started(failure);
        if let Some(mut late) = self.late.pop() {
            self.swap(ex, &mut late);
        }
        self.count(ex, &failed);
        self.end_late(ex, &failed.failure);
        self.end_retries();
        self.fail(ex, failed.failure)
    }

    /// The request ends like this: late tries end with it.
    pub(super) fn end_late(&mut self, ex: &mut Exchange<'_>, failure: &Failure) {
        if let Failure::Timeout(Expired::Route) = failure {
            // Each of them was too slow for the client.
            for mut late in std::mem::take(&mut self.late) {
                self.swap(ex, &mut late);
                self.count_timeout(ex, Expired::Route);
                self.count_given_up(ex);
                self.charge_abort(ex, failure);
                self.log_end(ex, None);
                self.swap(ex, &mut late);
            }
        }
        self.give_up_late(ex);
    }

    /// Resets the late tries.
    pub(super) fn give_up_late(&mut self, ex: &mut Exchange<'_>) {
        for mut late in std::mem::take(&mut self.late) {
            self.swap(ex, &mut late);
            self.count_given_up(ex);
            self.log_end(ex, None);
            self.swap(ex, &mut late);
        }
    }

    /// Whether late tries are to be waited for after this failure of another.
    pub(super) fn is_survived(&self, failure: &Failure) -> bool {
        !self.late.is_empty() && failure.is_of_try()
    }

    /// Charges a try without an answer to its cluster and host where the client hears of another.
    pub(super) fn charge_abort(&self, ex: &Exchange<'_>, failure: &Failure) {
        let Some(host) = &ex.info.host else { return };
        let status = match failure {
            Failure::Protocol => 502,
            Failure::Timeout(Expired::Route) => self.deadlines.late_status,
            // The end of a try's life is charged to nobody.
            Failure::Timeout(_) | Failure::Upstream(UpstreamError::NoHealthyHost) => return,
            _ => 503,
        };
        self.count_response(status);
        host.shared.counters.rq_error.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a try holds that waits for its answer.
pub(super) struct Unanswered {
    pub(super) connection: Lent,
    pub(super) sent: Sent,
    pub(super) request_permit: RequestPermit,
    pub(super) reading: Reading,
}

/// A failure of a try that had a connection.
fn started(failure: Failure) -> Failed {
    Failed { failure, started: true, unprocessed: false }
}
