//! Joins a state machine with a transport: the only part of the client that knows of tasks and clocks.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, Instant};

use super::addresses::Addresses;
use super::exchange::{or_never, Exchange, Happening};
use super::machine::{Machine, Settings, Variant};
use super::quiet::Quiet;
use super::transport::{serve, Endpoint, Heard, Inbound, TransportError};
use super::types::{Change, Event, Rejection, Status, Verdict, Wildcard};

/// Events held for a user that takes its time, and responses held for verdicts. Beyond, nothing is
/// read, and HTTP/2's flow control makes the control plane wait.
const MAX_HELD: usize = 32;
/// Bytes of responses held for verdicts. Beyond, nothing is read.
const MAX_HELD_BYTES: usize = 16 << 20;

/// A client of one control plane: what to ask with, what comes, and the task that does it.
///
/// The task has to be run by the caller, on whatever thread the control plane belongs to. It ends when
/// every [`Subscriptions`] or the [`Events`] are gone. `seed` decides the waits between streams: it
/// should differ between processes.
pub fn client<V: Variant>(
    endpoint: Endpoint,
    mut settings: Settings,
    seed: u64,
) -> (Subscriptions, Events, impl Future<Output = ()> + Send)
where
    V::Request: Send + Sync,
    V::Response: Send + Sync,
{
    if settings.single_type.is_none() {
        settings.single_type.clone_from(&endpoint.single_type);
    }
    run::<V, Grpc>(Grpc::new(endpoint, seed), settings, seed)
}

/// What carries requests and responses.
pub(super) trait Transport<V: Variant>: Send + 'static {
    /// One attempt: from opening a stream to its end.
    fn open(
        &self,
        heard: Heard,
        requests: mpsc::Receiver<V::Request>,
        inbound: mpsc::Sender<Inbound<V::Response>>,
    ) -> Pin<Box<dyn Future<Output = TransportError> + Send>>;

    /// Where it leads to, for the log.
    fn address(&self) -> String;
}

/// A gRPC stream.
struct Grpc {
    endpoint: Endpoint,
    addresses: Arc<Addresses>,
}

impl Grpc {
    fn new(endpoint: Endpoint, seed: u64) -> Self {
        let addresses = Arc::new(Addresses::new(&endpoint, seed));
        Self { endpoint, addresses }
    }
}

impl<V: Variant> Transport<V> for Grpc
where
    V::Request: Send + Sync,
    V::Response: Send + Sync,
{
    fn open(
        &self,
        heard: Heard,
        requests: mpsc::Receiver<V::Request>,
        inbound: mpsc::Sender<Inbound<V::Response>>,
    ) -> Pin<Box<dyn Future<Output = TransportError> + Send>> {
        match self.endpoint.method(V::METHOD) {
            Ok(path) => {
                let (endpoint, addresses) = (self.endpoint.clone(), self.addresses.clone());
                Box::pin(serve(endpoint, addresses, path, heard, requests, inbound))
            }
            Err(error) => Box::pin(std::future::ready(error)),
        }
    }

    fn address(&self) -> String {
        self.addresses.current()
    }
}

/// A client over any transport.
pub(super) fn run<V: Variant, T: Transport<V>>(
    transport: T,
    settings: Settings,
    seed: u64,
) -> (Subscriptions, Events, impl Future<Output = ()> + Send)
where
    V::Request: Send + Sync,
    V::Response: Send + Sync,
{
    let (commands, command_queue) = mpsc::unbounded_channel();
    let (event_queue, events) = mpsc::channel(1);
    let run = async move {
        let machine = Machine::<V>::new(settings, Instant::now().into_std(), seed);
        let heard = Heard::new();
        let (exchange, outbox, quiet) = (None, VecDeque::new(), Quiet::default());
        let driver = Driver { transport, machine, heard, exchange, outbox, quiet };
        driver.run(command_queue, event_queue).await;
    };
    (Subscriptions { commands }, Events { events }, run)
}

enum Command {
    Change(Change),
    Verdict(u64, Verdict),
    Status(oneshot::Sender<Status>),
}

/// Says what is wanted, and what becomes of updates. Cheap to clone. After the client has ended its
/// methods do nothing.
#[derive(Debug, Clone)]
pub struct Subscriptions {
    commands: mpsc::UnboundedSender<Command>,
}

impl Subscriptions {
    /// Wants resources by name.
    pub fn subscribe<N: Into<String>>(&self, type_url: &str, names: impl IntoIterator<Item = N>) {
        let names = names.into_iter().map(Into::into).collect();
        self.change(Change::Subscribe { type_url: type_url.to_owned(), names, fetch_timeout: None });
    }

    /// Wants everything of a type.
    pub fn subscribe_all(&self, type_url: &str, wildcard: Wildcard) {
        self.change(Change::SubscribeAll { type_url: type_url.to_owned(), wildcard, fetch_timeout: None });
    }

    /// Wants names no longer; their resources go without an update.
    pub fn unsubscribe<N: Into<String>>(&self, type_url: &str, names: impl IntoIterator<Item = N>) {
        let names = names.into_iter().map(Into::into).collect();
        self.change(Change::Unsubscribe { type_url: type_url.to_owned(), names });
    }

    /// Any change of interest.
    pub fn change(&self, change: Change) {
        let _ = self.commands.send(Command::Change(change));
    }

    /// Every resource of the update is valid.
    pub fn accept(&self, id: u64) {
        let _ = self.commands.send(Command::Verdict(id, Verdict::Accepted));
    }

    /// These are not.
    pub fn reject(&self, id: u64, rejections: Vec<Rejection>) {
        let _ = self.commands.send(Command::Verdict(id, Verdict::Rejected(rejections)));
    }

    /// The state of the stream and of every type; `None` after the client has ended.
    pub async fn status(&self) -> Option<Status> {
        let (reply, status) = oneshot::channel();
        self.commands.send(Command::Status(reply)).ok()?;
        status.await.ok()
    }
}

/// What comes from the client. Never [`Event::Connect`] or [`Event::Abandon`], which it acts on itself.
#[derive(Debug)]
pub struct Events {
    events: mpsc::Receiver<Event>,
}

impl Events {
    /// The next event; `None` after the client has ended. Loses nothing when dropped half-way.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

struct Driver<V: Variant, T> {
    transport: T,
    machine: Machine<V>,
    heard: Heard,
    exchange: Option<Exchange<V::Request, V::Response>>,
    outbox: VecDeque<Event>,
    quiet: Quiet,
}

impl<V: Variant, T: Transport<V>> Driver<V, T>
where
    V::Request: Send + Sync,
    V::Response: Send + Sync,
{
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>, events: mpsc::Sender<Event>) {
        loop {
            let full = self.advance();
            let held = self.outbox.len().max(self.machine.backlog());
            let read = held < MAX_HELD && self.machine.held_bytes() < MAX_HELD_BYTES;
            let deadline = self.machine.deadline();
            let exchange = self.exchange.as_mut();
            let room = exchange.as_ref().map(|exchange| exchange.requests.clone()).filter(|_| full);
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                permit = events.reserve(), if !self.outbox.is_empty() => {
                    let (Ok(permit), Some(event)) = (permit, self.outbox.pop_front()) else { return };
                    permit.send(event);
                }
                () = events.closed(), if self.outbox.is_empty() => return,
                happening = or_never(exchange.map(|exchange| exchange.next(read))) => {
                    self.happened(happening);
                }
                _ = or_never(room.as_ref().map(mpsc::Sender::reserve)) => {}
                () = or_never(deadline.map(|at| sleep_until(at.into()))) => {
                    self.machine.alive(self.heard.at());
                    self.machine.tick(Instant::now().into_std());
                }
            }
        }
    }

    /// Acts on events and sends what can be sent. True if the stream has no room for more.
    fn advance(&mut self) -> bool {
        loop {
            while let Some(event) = self.machine.event() {
                self.act(event);
            }
            let Some(exchange) = &self.exchange else { return false };
            let Ok(room) = exchange.requests.try_reserve() else { return true };
            match self.machine.request(Instant::now().into_std()) {
                Some(request) => room.send(request),
                None => {
                    drop(room);
                    // The rate limit reports itself once.
                    match self.machine.event() {
                        Some(event) => self.act(event),
                        None => return false,
                    }
                }
            }
        }
    }

    fn act(&mut self, event: Event) {
        let address = self.transport.address();
        match &event {
            Event::Connect => {
                let open = |requests, inbound| self.transport.open(self.heard.clone(), requests, inbound);
                self.exchange = Some(Exchange::new(open));
                return;
            }
            Event::Abandon { reason } => {
                self.exchange = None;
                self.machine.closed(Instant::now().into_std(), reason.as_str());
                return;
            }
            Event::Connected => tracing::info!(%address, "control plane connected"),
            Event::Disconnected { reason, retry_in } => {
                tracing::warn!(%address, reason, ?retry_in, "no stream to the control plane");
            }
            Event::Refused { type_url, version, message } => {
                if let Some(unsaid) = self.quiet.say("refused", type_url) {
                    tracing::warn!(%address, type_url, version, unsaid, "discovery response refused: {message}");
                }
            }
            Event::Ignored { type_url, reason } => {
                if let Some(unsaid) = self.quiet.say("ignored", type_url) {
                    tracing::warn!(%address, type_url, unsaid, "discovery response ignored: {reason}");
                }
            }
            Event::Odd { type_url, what } => {
                if let Some(unsaid) = self.quiet.say("odd", type_url) {
                    tracing::warn!(%address, type_url, unsaid, "odd control plane: {what}");
                }
            }
            Event::FetchTimeout { type_url, name } => {
                let name = name.as_deref().unwrap_or("*");
                if let Some(unsaid) = self.quiet.say("late", type_url) {
                    tracing::warn!(%address, type_url, name, unsaid, "resource not received in time");
                }
            }
            Event::ResourceError { type_url, name, code, message } => {
                tracing::warn!(%address, type_url, name, code, message, "control plane has no such resource to give");
            }
            Event::Unsupported { type_url, name, reason } => {
                tracing::warn!(%address, type_url, name, reason, "resource not asked for");
            }
            Event::RateLimited => tracing::warn!(%address, "discovery requests exceed their rate limit"),
            Event::Update(_) => {}
        }
        self.outbox.push_back(event);
    }

    fn command(&mut self, command: Command) {
        let now = Instant::now().into_std();
        match command {
            Command::Change(change) => self.machine.change(now, change),
            Command::Verdict(id, verdict) => self.machine.verdict(now, id, verdict),
            Command::Status(reply) => {
                self.machine.alive(self.heard.at());
                let _ = reply.send(self.machine.status());
            }
        }
    }

    fn happened(&mut self, happening: Happening<V::Response>) {
        match happening {
            Happening::Inbound(inbound) => self.inbound(inbound),
            Happening::Ended(error) => {
                // What came before the end counts.
                if let Some(mut exchange) = self.exchange.take() {
                    while let Ok(inbound) = exchange.inbound.try_recv() {
                        self.inbound(inbound);
                    }
                }
                self.machine.closed(Instant::now().into_std(), error.to_string());
            }
        }
    }

    fn inbound(&mut self, inbound: Inbound<V::Response>) {
        let now = Instant::now().into_std();
        match inbound {
            Inbound::Opened => self.machine.opened(now),
            Inbound::Response(response) => self.machine.response(now, response),
            Inbound::Unreadable { type_url, message } => self.machine.unreadable(&type_url, message),
        }
    }
}
