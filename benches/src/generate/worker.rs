//! One thread of the generator: connections, a schedule, and a loop around `epoll` that brings them together. What is
//! said on a connection is the business of a [`Client`].

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustls::{ClientConnection, HandshakeKind};

use super::slot::{up, Parts, Slot, State};
use super::task::{Stage, Task};
use super::{Client, Session};
use crate::clock::{self, Alarm, MILLISECOND};
use crate::link::{Got, Link};
use crate::record::{Pending, Reason, Recorder, Totals, NO_STATUS};
use crate::schedule::Arrivals;

/// The longest time between two looks at the clock.
const TICK: u64 = 10 * MILLISECOND;
/// How long to wait after a failed connection before the next try, so that a server that is gone costs no CPU.
const PAUSE: u64 = 10 * MILLISECOND;
/// Time between two looks for requests that wait too long.
const TIMEOUTS: u64 = 50 * MILLISECOND;
/// How long to wait for the answer to a hello.
const HELLO: u64 = 1000 * MILLISECOND;
/// Reads of one connection before others have their turn.
const TURN: u32 = 16;
const BUFFER: usize = 256 * 1024;
const ALARM: Token = Token(usize::MAX);

/// The state of a thread.
pub struct Worker<C: Client> {
    task: Task,
    stage: Arc<Stage>,
    shared: C::Shared,
    recorder: Recorder,
    poll: Poll,
    alarm: Alarm,
    slots: Vec<Slot<C>>,
    buffer: Vec<u8>,
    arrivals: Option<Arrivals>,
    /// Connections that can take a request and have none to send.
    idle: VecDeque<usize>,
    /// Connections that have more to read.
    again: Vec<usize>,
    /// Connections to open, and when.
    down: Vec<(usize, u64)>,
    tried: u32,
    announced: bool,
    running: bool,
    ended: bool,
    end: u64,
    left: u64,
    cpu: u64,
}

impl<C: Client> Worker<C> {
    /// A thread's state, nothing connected yet.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn new(
        task: Task,
        stage: Arc<Stage>,
        shared: C::Shared,
        recorder: Recorder,
    ) -> std::io::Result<Self> {
        let (poll, alarm) = (Poll::new()?, Alarm::new()?);
        poll.registry().register(&mut SourceFd(&alarm.descriptor()), ALARM, Interest::READABLE)?;
        let slot = |shared| Slot {
            link: None,
            client: C::new(shared),
            state: State::Down,
            began: 0,
            served: 0,
            listed: false,
            tried: false,
            handshake: None,
        };
        let slots = (0..task.connections).map(|_| slot(&shared)).collect();
        Ok(Self {
            left: task.requests,
            task,
            stage,
            shared,
            recorder,
            poll,
            alarm,
            slots,
            buffer: vec![0; BUFFER],
            arrivals: None,
            idle: VecDeque::new(),
            again: Vec::new(),
            down: Vec::new(),
            tried: 0,
            announced: false,
            running: false,
            ended: false,
            end: u64::MAX,
            cpu: 0,
        })
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// Polling does not work.
    pub fn run(mut self) -> std::io::Result<Totals> {
        let began = clock::now();
        if self.task.handshakes {
            self.tried = self.task.connections;
            self.idle.extend(0..self.slots.len());
            self.slots.iter_mut().for_each(|slot| slot.listed = true);
        } else {
            (0..self.slots.len()).for_each(|index| self.connect(index, began));
        }
        let mut events = Events::with_capacity(1024);
        let (mut house, mut timeouts) = (0, 0);
        loop {
            let now = clock::now();
            self.recorder.tick(now);
            if self.cpu == 0 && now >= self.recorder.start {
                self.cpu = clock::thread_cpu();
            }
            if now >= house {
                house = now + TICK;
                self.keep_house(now, began);
                if now >= timeouts {
                    timeouts = now + TIMEOUTS;
                    self.expire(now);
                }
            }
            self.dispatch(now);
            if self.running && self.is_over(now) {
                return Ok(self.finish(now));
            }
            let wait = if self.again.is_empty() { TICK } else { 0 };
            if let (Some(next), false) =
                (self.arrivals.as_ref().and_then(Arrivals::peek), self.idle.is_empty())
            {
                self.alarm.set(next);
            }
            match self.poll.poll(&mut events, Some(Duration::from_nanos(wait))) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for index in std::mem::take(&mut self.again) {
                // That there is more may have been said with the event before.
                self.serve(index, true);
            }
            for event in &events {
                if event.token() != ALARM {
                    self.serve(event.token().0, event.is_read_closed());
                }
            }
        }
    }

    /// What needs no exact time.
    fn keep_house(&mut self, now: u64, began: u64) {
        let due: Vec<_> = self.down.iter().filter(|(_, at)| *at <= now).map(|(index, _)| *index).collect();
        self.down.retain(|(_, at)| *at > now);
        for index in due {
            self.connect(index, now);
        }
        if !self.running {
            let threads = self.task.share.1;
            let all = self.tried >= self.task.connections || now > began + self.task.timeout;
            if all && !self.announced {
                self.announced = true;
                if self.stage.ready.fetch_add(1, Ordering::AcqRel) + 1 == threads {
                    self.stage.begin.store(now, Ordering::Release);
                }
            }
            match self.stage.begin.load(Ordering::Acquire) {
                0 => {}
                begin => self.begin(begin),
            }
        }
        if self.stage.stop.load(Ordering::Relaxed) {
            if !self.running {
                self.begin(now);
            }
            self.stop(now);
        }
    }

    fn begin(&mut self, begin: u64) {
        let (warmup, seconds) = self.task.times;
        let start = begin + clock::from_seconds(warmup);
        self.end = start.saturating_add(clock::from_seconds(seconds));
        self.recorder.start_at(start);
        self.arrivals =
            Arrivals::new(&self.task.schedule, self.task.share, begin, self.task.times, self.task.seed);
        self.running = true;
    }

    /// Ends the time in which requests are sent.
    fn stop(&mut self, at: u64) {
        if at < self.end {
            self.end = at;
            if let Some(arrivals) = &mut self.arrivals {
                arrivals.stop(at);
            }
        }
    }

    /// A request that is due.
    fn take(&mut self, now: u64) -> Option<Pending> {
        if !self.running || self.left == 0 {
            return None;
        }
        let intended = match &mut self.arrivals {
            None if now < self.end => now,
            None => return None,
            Some(arrivals) => {
                let intended = arrivals.peek().filter(|intended| *intended <= now)?;
                arrivals.advance();
                intended
            }
        };
        // Those of the warm-up are not among the requests that were asked for.
        self.left -= u64::from(intended >= self.recorder.start && self.left != u64::MAX);
        Some(Pending { intended, sent: now })
    }

    fn is_due(&self, now: u64) -> bool {
        self.running
            && self.left > 0
            && match &self.arrivals {
                None => now < self.end,
                Some(arrivals) => arrivals.peek().is_some_and(|intended| intended <= now),
            }
    }

    /// Gives what is due to connections that have nothing to do, to each one request in an open loop.
    fn dispatch(&mut self, now: u64) {
        let mut turns = self.idle.len();
        while turns > 0 && self.is_due(now) {
            turns -= 1;
            let Some(index) = self.idle.pop_front() else { return };
            let Some(slot) = self.slots.get_mut(index) else { continue };
            slot.listed = false;
            if self.task.handshakes {
                if slot.state == State::Down {
                    if let Some(pending) = self.take(now) {
                        self.recorder.sent(pending);
                        if let Some(slot) = self.slots.get_mut(index) {
                            slot.handshake = Some(pending);
                        }
                        self.connect(index, now);
                    }
                }
                continue;
            }
            let most = if self.arrivals.is_some() { 1 } else { usize::MAX };
            if let Err(reason) = self.feed(index, now, most) {
                self.fail(index, now, reason);
            }
            turns = turns.max(usize::from(self.arrivals.is_some()) * self.idle.len());
        }
    }

    /// Sends up to `most` requests on a connection, and what else it has to send.
    fn feed(&mut self, index: usize, now: u64, most: usize) -> Result<(), Reason> {
        let mut given = 0;
        loop {
            let Some(slot) = self.slots.get(index).filter(|slot| slot.state == State::Up) else {
                return Ok(());
            };
            let allowed = usize::try_from(self.task.per_connection - slot.served).unwrap_or(usize::MAX);
            if given < most && slot.client.room().min(allowed) > 0 {
                if let Some(pending) = self.take(now) {
                    given += 1;
                    let Some(Parts { link, client, served, .. }) = up(&mut self.slots, index) else {
                        return Ok(());
                    };
                    *served += 1;
                    self.recorder.sent(pending);
                    let mut session = Session { now, out: &mut link.out, recorder: &mut self.recorder };
                    client.start(&mut self.shared, pending, &mut session);
                    continue;
                }
            }
            let Some(Parts { link, client, served, listed, .. }) = up(&mut self.slots, index) else {
                return Ok(());
            };
            let flushed = link.flush();
            self.recorder.bytes(now, link.out.take_total(), 0);
            if flushed.map_err(|error| Reason::of(&error))? {
                let before = client.in_flight();
                let now = if before > 0 && C::ENDS_SENT { clock::now() } else { now };
                let mut session = Session { now, out: &mut link.out, recorder: &mut self.recorder };
                client.flushed(&mut session);
                if client.in_flight() < before {
                    // Let others have their turn, too.
                    self.again.push(index);
                    return Ok(());
                }
            }
            let more = client.room().min(usize::try_from(self.task.per_connection - *served).unwrap_or(1));
            if more > 0 && !*listed {
                *listed = true;
                self.idle.push_back(index);
            }
            if client.in_flight() == 0 && (client.closing() || *served == self.task.per_connection) {
                link.close();
                self.reopen(index, now, 0);
            }
            return Ok(());
        }
    }

    /// Does what a connection is ready for.
    fn serve(&mut self, index: usize, ending: bool) {
        if let Err(reason) = self.progress(index, ending) {
            self.fail(index, clock::now(), reason);
        }
    }

    /// With `ending` it reads to the end: the news that the peer has closed comes only once.
    fn progress(&mut self, index: usize, ending: bool) -> Result<(), Reason> {
        for turn in 0..TURN {
            let Some(slot) = self.slots.get_mut(index) else { return Ok(()) };
            let Some(link) = &mut slot.link else { return Ok(()) };
            if slot.state == State::Connecting {
                if let Some(error) = link.stream.take_error().map_err(|error| Reason::of(&error))? {
                    return Err(Reason::of(&error));
                }
                match link.stream.peer_addr() {
                    Err(error) if error.kind() == std::io::ErrorKind::NotConnected => return Ok(()),
                    Err(error) => return Err(Reason::of(&error)),
                    Ok(_) => {}
                }
                let now = clock::now();
                self.recorder.totals.connect.saturating_record(now - slot.began);
                (slot.began, slot.state) = (now, State::Handshaking);
                if !link.is_handshaking() {
                    self.established(index, now)?;
                    continue;
                }
                link.flush().map_err(|error| Reason::of(&error))?;
            }
            let before = link.kept();
            let got = link.read(&mut self.buffer).map_err(|error| Reason::of(&error))?;
            let now = clock::now();
            if slot.state == State::Handshaking {
                link.flush().map_err(|error| Reason::of(&error))?;
                if link.is_handshaking() {
                    return if got == Got::End { Err(Reason::Closed) } else { Ok(()) };
                }
                self.established(index, now)?;
                if self.slots.get(index).is_some_and(|slot| slot.state != State::Up) {
                    // Closed again, or its hello is on the way.
                    return Ok(());
                }
            }
            let Some(Parts { link, client, state, served, .. }) = up(&mut self.slots, index) else {
                return Ok(());
            };
            if let (State::Hello(_), Some(hello)) = (state, &self.task.hello) {
                match got {
                    Got::Nothing => return Ok(()),
                    Got::End => return Err(Reason::Closed),
                    Got::Bytes { count, .. } => {
                        self.recorder.bytes(now, 0, count - before);
                        let bytes = self.buffer.get(..count).unwrap_or_default();
                        if !(hello.answered)(bytes) {
                            link.keep(bytes);
                            continue;
                        }
                    }
                }
                link.close();
                self.reopen(index, now, 0);
                return Ok(());
            }
            let mut session = Session { now, out: &mut link.out, recorder: &mut self.recorder };
            match got {
                Got::Nothing => return self.feed(index, now, usize::MAX),
                Got::Bytes { count, more } => {
                    session.recorder.bytes(now, 0, count - before);
                    let bytes = self.buffer.get(..count).unwrap_or_default();
                    let used =
                        client.received(&mut self.shared, bytes, &mut session).inspect_err(|reason| {
                            if *reason == Reason::Protocol {
                                self.recorder.unexpected(bytes);
                            }
                        })?;
                    link.keep(bytes.get(used..).unwrap_or_default());
                    if !more && !ending {
                        return self.feed(index, now, usize::MAX);
                    }
                    if turn + 1 == TURN {
                        self.again.push(index);
                        return self.feed(index, now, usize::MAX);
                    }
                }
                Got::End => {
                    client.ended(&mut self.shared, &mut session);
                    if client.in_flight() > 0 {
                        return Err(Reason::Closed);
                    }
                    self.recorder.totals.lost += u64::from(!client.closing());
                    let pause = if *served == 0 { PAUSE } else { 0 };
                    self.reopen(index, now, pause);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The connection is up.
    fn established(&mut self, index: usize, now: u64) -> Result<(), Reason> {
        let Some(slot) = self.slots.get_mut(index) else { return Ok(()) };
        let Some(link) = &mut slot.link else { return Ok(()) };
        let totals = &mut self.recorder.totals;
        totals.opened += 1;
        self.tried += u32::from(!std::mem::replace(&mut slot.tried, true)) * u32::from(!self.task.handshakes);
        if let Some(tls) = link.tls() {
            totals.handshake.saturating_record(now - slot.began);
            let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
            totals.resumed += u64::from(resumed);
            if totals.tls.is_empty() || !resumed {
                let group = tls.negotiated_key_exchange_group().map(rustls::crypto::SupportedKxGroup::name);
                let named = [
                    tls.protocol_version().map(|version| format!("{version:?}")),
                    tls.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite())),
                    group.map(|group| format!("{group:?}")),
                ];
                totals.tls = named.into_iter().flatten().collect::<Vec<_>>().join(" ");
            }
        }
        slot.state = State::Up;
        slot.served = 0;
        if let Some(pending) = slot.handshake.take() {
            self.recorder.answered(pending, now, now, NO_STATUS);
            let Some(hello) = &self.task.hello else {
                link.close();
                self.reopen(index, now, 0);
                return Ok(());
            };
            slot.state = State::Hello(now + HELLO);
            link.out.push_shared(&hello.bytes);
            let flushed = link.flush();
            self.recorder.bytes(now, link.out.take_total(), 0);
            return flushed.map(|_| ()).map_err(|error| Reason::of(&error));
        }
        slot.client = C::new(&self.shared);
        let mut session = Session { now, out: &mut link.out, recorder: &mut self.recorder };
        slot.client.open(&mut self.shared, &mut session);
        self.feed(index, now, usize::MAX)
    }

    /// A connection is of no use any more.
    fn fail(&mut self, index: usize, now: u64, reason: Reason) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let recorder = &mut self.recorder;
        slot.client.drain(&mut |pending| recorder.failed(pending, now, reason));
        if let Some(pending) = slot.handshake.take() {
            recorder.failed(pending, now, reason);
        }
        let early = matches!(slot.state, State::Connecting | State::Handshaking);
        if early || reason == Reason::Upgrade {
            recorder.totals.not_opened[reason as usize] += 1;
        } else {
            recorder.totals.lost += 1;
        }
        self.tried += u32::from(!std::mem::replace(&mut slot.tried, true)) * u32::from(!self.task.handshakes);
        let pause = if early || slot.served <= 1 || reason == Reason::Upgrade { PAUSE } else { 0 };
        self.reopen(index, now, pause);
    }

    /// Closes what is left of a connection and opens it again.
    fn reopen(&mut self, index: usize, now: u64, pause: u64) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        (slot.link, slot.state) = (None, State::Down);
        slot.client = C::new(&self.shared);
        slot.served = 0;
        if self.task.handshakes {
            if !slot.listed {
                slot.listed = true;
                self.idle.push_back(index);
            }
        } else if !self.ended {
            self.down.push((index, now + pause));
            if pause == 0 {
                self.down.pop();
                self.connect(index, now);
            }
        }
    }

    fn connect(&mut self, index: usize, now: u64) {
        if let Err(error) = self.try_connect(index, now) {
            if let Some(slot) = self.slots.get_mut(index) {
                slot.state = State::Connecting;
            }
            self.fail(index, now, Reason::of(&error));
        }
    }

    fn try_connect(&mut self, index: usize, now: u64) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(self.task.address)?;
        stream.set_nodelay(true)?;
        self.poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        let tls = match &self.task.tls {
            None => None,
            Some((config, name)) => {
                let session = ClientConnection::new(config.clone(), name.clone());
                Some(session.map_err(std::io::Error::other)?.into())
            }
        };
        if let Some(slot) = self.slots.get_mut(index) {
            slot.link = Some(Link::new(stream, tls));
            (slot.state, slot.began, slot.served) = (State::Connecting, now, 0);
        }
        Ok(())
    }

    fn expire(&mut self, now: u64) {
        let before = now.saturating_sub(self.task.timeout);
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(index) else { continue };
            match slot.state {
                State::Down => {}
                State::Connecting | State::Handshaking => {
                    if slot.began < before {
                        self.fail(index, now, Reason::Timeout);
                    }
                }
                State::Hello(until) => {
                    if until < now {
                        self.fail(index, now, Reason::Timeout);
                    }
                }
                State::Up => {
                    if slot.client.oldest().is_none_or(|oldest| oldest >= before) {
                        continue;
                    }
                    let Some(Parts { link, client, .. }) = up(&mut self.slots, index) else { continue };
                    let mut session = Session { now, out: &mut link.out, recorder: &mut self.recorder };
                    if client.expire(before, &mut session) {
                        if let Err(reason) = self.feed(index, now, usize::MAX) {
                            self.fail(index, now, reason);
                        }
                    } else {
                        self.fail(index, now, Reason::Timeout);
                    }
                }
            }
        }
    }

    fn is_over(&mut self, now: u64) -> bool {
        let done = self.left == 0;
        if now < self.end && !done {
            return false;
        }
        if now >= self.end && !self.ended {
            self.end_measured();
        }
        let waits = self.slots.iter().any(|slot| slot.client.in_flight() > 0 || slot.handshake.is_some());
        let due = !done && self.arrivals.as_ref().is_some_and(|arrivals| arrivals.peek().is_some());
        let over = (!waits && !due) || now >= self.end.saturating_add(self.task.grace);
        if over && !self.ended {
            // All requests that were asked for are answered before the end.
            self.end = now;
            self.end_measured();
        }
        over
    }

    fn end_measured(&mut self) {
        self.ended = true;
        self.recorder.end();
        self.recorder.totals.cpu = clock::thread_cpu().saturating_sub(self.cpu);
        self.recorder.totals.measured = self.end.saturating_sub(self.recorder.start);
    }

    fn finish(mut self, now: u64) -> Totals {
        for slot in &mut self.slots {
            let recorder = &mut self.recorder;
            slot.client.drain(&mut |pending| recorder.left(pending, now));
            if let Some(pending) = slot.handshake.take() {
                recorder.left(pending, now);
            }
        }
        if let (Some(arrivals), 1..) = (&mut self.arrivals, self.left) {
            while let Some(intended) = arrivals.peek() {
                self.recorder.unsent(intended, now);
                arrivals.advance();
            }
        }
        self.recorder.finish()
    }
}
