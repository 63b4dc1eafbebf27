//! A control plane that behaves well until it is told not to: gRPC written out by hand over HTTP/2, so that anything
//! can be sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use outrigger_control_api::load_resource;
use outrigger_control_api::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use outrigger_control_api::pb::google::protobuf::Any;
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::mesh::Mesh;

pub const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// How streams are treated that are opened from now on.
#[derive(Debug, Clone)]
pub enum Manner {
    Good,
    /// These bytes come before anything was asked.
    First(Bytes),
    /// Response headers, and then nothing.
    HeadersOnly,
    /// Not even headers.
    Mute,
    /// An HTTP answer.
    Http(u16),
    /// Each message is followed by a reset.
    ResetAfterEach,
}

enum Do {
    Raw(Bytes),
    /// The start of a message of so many bytes, of which so many come at once and the rest one by one.
    Drip(usize, usize),
    Push,
    Cut,
}

struct State {
    delta: bool,
    manner: Mutex<Manner>,
    /// By type and name.
    resources: Mutex<BTreeMap<(String, String), Vec<u8>>>,
    version: AtomicUsize,
    streams: Mutex<Vec<mpsc::UnboundedSender<Do>>>,
    opened: AtomicUsize,
    refused: Mutex<Vec<String>>,
    deaf: watch::Sender<bool>,
}

/// A running one; it stops when dropped.
pub struct Scripted {
    pub port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("not poisoned")
}

impl Scripted {
    pub async fn start(delta: bool, mesh: &Mesh) -> Scripted {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let state = Arc::new(State {
            delta,
            manner: Mutex::new(Manner::Good),
            resources: Mutex::default(),
            version: AtomicUsize::new(0),
            streams: Mutex::default(),
            opened: AtomicUsize::new(0),
            refused: Mutex::default(),
            deaf: watch::channel(false).0,
        });
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(connection(stream, shared.clone()));
            }
        });
        let scripted = Scripted { port, state, task };
        scripted.set(mesh);
        scripted
    }

    /// Serves this; streams that behave are told.
    pub fn set(&self, mesh: &Mesh) {
        self.set_all(&mesh.resources());
    }

    pub fn set_all(&self, resources: &[String]) {
        let mut all = BTreeMap::new();
        for text in resources {
            let value: serde_json::Value = serde_yaml_ng::from_str(text).expect("YAML");
            let any = load_resource(&value).unwrap_or_else(|e| panic!("{text}: {e:?}")).any;
            let name = value["name"].as_str().or(value["cluster_name"].as_str()).expect("a name").to_owned();
            all.insert((any.type_url, name), any.value.to_vec());
        }
        *lock(&self.state.resources) = all;
        self.state.version.fetch_add(1, Ordering::Relaxed);
        self.tell(|| Do::Push);
    }

    /// How streams are treated from now on; those that are open end.
    pub fn manner(&self, manner: Manner) {
        *lock(&self.state.manner) = manner;
        self.tell(|| Do::Cut);
    }

    /// Behaves from now on. Streams stay open that can be used.
    pub fn good_again(&self) {
        let before = std::mem::replace(&mut *lock(&self.state.manner), Manner::Good);
        if let Manner::HeadersOnly | Manner::Mute = before {
            self.tell(|| Do::Cut);
        }
        self.state.deaf.send_replace(false);
    }

    /// Sends bytes as they are.
    pub fn raw(&self, bytes: &Bytes) {
        self.tell(|| Do::Raw(bytes.clone()));
    }

    /// Sends a response.
    pub fn send(&self, response: &Reply) {
        self.raw(&frame(&response.encode(self.state.delta)));
    }

    pub fn drip(&self, of: usize, at_once: usize) {
        self.tell(|| Do::Drip(of, at_once));
    }

    /// Neither reads nor writes any more, until [`Scripted::good_again`].
    pub fn deafen(&self) {
        self.state.deaf.send_replace(true);
    }

    /// Streams opened so far.
    pub fn opened(&self) -> usize {
        self.state.opened.load(Ordering::Relaxed)
    }

    /// Texts of all refusals.
    pub fn refused(&self) -> Vec<String> {
        lock(&self.state.refused).clone()
    }

    fn tell(&self, what: impl Fn() -> Do) {
        lock(&self.state.streams).retain(|stream| stream.send(what()).is_ok());
    }
}

/// A response in either variant.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub type_url: String,
    pub version: String,
    pub nonce: String,
    /// Name, type and content.
    pub resources: Vec<(String, String, Vec<u8>)>,
    pub removed: Vec<String>,
}

impl Reply {
    pub fn new(type_url: &str, version: &str, nonce: &str) -> Reply {
        Reply {
            type_url: type_url.to_owned(),
            version: version.to_owned(),
            nonce: nonce.to_owned(),
            ..Reply::default()
        }
    }

    pub fn with(mut self, name: &str, type_url: &str, value: Vec<u8>) -> Reply {
        self.resources.push((name.to_owned(), type_url.to_owned(), value));
        self
    }

    pub fn encode(&self, delta: bool) -> Vec<u8> {
        let any = |type_url: &str, value: &[u8]| Any { type_url: type_url.to_owned(), value: value.to_vec() };
        let (type_url, nonce) = (self.type_url.clone(), self.nonce.clone());
        if delta {
            let resource = |(name, url, value): &(String, String, Vec<u8>)| Resource {
                name: name.clone(),
                version: self.version.clone(),
                resource: Some(any(url, value)),
                ..Resource::default()
            };
            DeltaDiscoveryResponse {
                system_version_info: self.version.clone(),
                resources: self.resources.iter().map(resource).collect(),
                type_url,
                removed_resources: self.removed.clone(),
                nonce,
                ..DeltaDiscoveryResponse::default()
            }
            .encode_to_vec()
        } else {
            DiscoveryResponse {
                version_info: self.version.clone(),
                resources: self.resources.iter().map(|(_, url, value)| any(url, value)).collect(),
                type_url,
                nonce,
                ..DiscoveryResponse::default()
            }
            .encode_to_vec()
        }
    }
}

/// A message as gRPC sends it.
pub fn frame(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(message.len() + 5);
    bytes.put_u8(0);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    bytes.freeze()
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let mut deaf = state.deaf.subscribe();
    let mut streams = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    streams.spawn(serve(request, respond, state.clone()));
                }
                _ => return,
            },
            () = told(&mut deaf, true) => break,
        }
    }
    // Not polled, nothing is read: not even a PING is answered.
    told(&mut deaf, false).await;
}

async fn told(deaf: &mut watch::Receiver<bool>, wanted: bool) {
    let _ = deaf.wait_for(|deaf| *deaf == wanted).await;
}

async fn serve(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, state: Arc<State>) {
    state.opened.fetch_add(1, Ordering::Relaxed);
    let (sender, mut orders) = mpsc::unbounded_channel();
    lock(&state.streams).push(sender);
    let manner = lock(&state.manner).clone();
    let mut requests = request.into_body();
    let head = |status: u16, kind: &str| {
        Response::builder().status(status).header("content-type", kind).body(()).expect("a response")
    };
    match manner {
        Manner::Http(status) => {
            if let Ok(mut body) = respond.send_response(head(status, "text/html"), false) {
                let _ = body.send_data(Bytes::from_static(b"<h1>not a control plane</h1>"), true);
            }
            return;
        }
        Manner::Mute => {
            until_cut(&mut orders, &mut requests).await;
            respond.send_reset(Reason::CANCEL);
            return;
        }
        _ => {}
    }
    let Ok(out) = respond.send_response(head(200, "application/grpc"), false) else { return };
    let mut stream =
        Stream { out, state, wanted: BTreeMap::new(), sent: BTreeMap::new(), answers: 0, reset: false };
    match manner {
        Manner::First(bytes) => stream.write(bytes),
        Manner::HeadersOnly => {
            until_cut(&mut orders, &mut requests).await;
            stream.out.send_reset(Reason::CANCEL);
            return;
        }
        Manner::ResetAfterEach => stream.reset = true,
        _ => {}
    }
    let mut buffered = BytesMut::new();
    loop {
        tokio::select! {
            data = requests.data() => {
                let Some(Ok(data)) = data else { return };
                let _ = requests.flow_control().release_capacity(data.len());
                buffered.put(data);
                while buffered.len() >= 5 {
                    let length = u32::from_be_bytes([buffered[1], buffered[2], buffered[3], buffered[4]]) as usize;
                    if buffered.len() < 5 + length {
                        break;
                    }
                    let message = buffered.split_to(5 + length).split_off(5);
                    stream.request(&message);
                }
            }
            order = orders.recv() => match order {
                Some(Do::Raw(bytes)) => stream.write(bytes),
                Some(Do::Push) => [CDS, EDS, LDS, RDS].iter().for_each(|url| stream.answer(url, false)),
                Some(Do::Drip(of, at_once)) => stream.drip(of, at_once).await,
                Some(Do::Cut) | None => {
                    stream.out.send_reset(Reason::CANCEL);
                    return;
                }
            },
        }
    }
}

async fn until_cut(orders: &mut mpsc::UnboundedReceiver<Do>, requests: &mut RecvStream) {
    loop {
        tokio::select! {
            order = orders.recv() => if let Some(Do::Cut) | None = order { return },
            data = requests.data() => {
                let Some(Ok(data)) = data else { return };
                let _ = requests.flow_control().release_capacity(data.len());
            }
        }
    }
}

#[derive(Default)]
struct Wanted {
    all: bool,
    names: BTreeSet<String>,
}

struct Stream {
    out: SendStream<Bytes>,
    state: Arc<State>,
    wanted: BTreeMap<String, Wanted>,
    /// What was sent of each resource.
    sent: BTreeMap<(String, String), Vec<u8>>,
    answers: usize,
    reset: bool,
}

impl Stream {
    fn write(&mut self, bytes: Bytes) {
        let _ = self.out.send_data(bytes, false);
        if self.reset {
            self.out.send_reset(Reason::INTERNAL_ERROR);
        }
    }

    async fn drip(&mut self, of: usize, at_once: usize) {
        let mut start = BytesMut::from(&frame(&[])[..1]);
        start.put_u32(of as u32);
        start.resize(5 + at_once, 0);
        self.write(start.freeze());
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tokio::select! {
                _ = tick.tick() => self.write(Bytes::from_static(b"\0")),
                _ = std::future::poll_fn(|cx| self.out.poll_reset(cx)) => return,
            }
        }
    }

    fn request(&mut self, message: &[u8]) {
        let refused = |error: Option<String>| lock(&self.state.refused).extend(error);
        if self.state.delta {
            let request = DeltaDiscoveryRequest::decode(message).expect("a request");
            refused(request.error_detail.map(|status| status.message));
            let url = request.type_url;
            let first = !self.wanted.contains_key(&url);
            let wanted = self.wanted.entry(url.clone()).or_default();
            wanted.all |= first && request.resource_names_subscribe.is_empty();
            for name in &request.resource_names_subscribe {
                wanted.names.insert(name.clone());
                self.sent.remove(&(url.clone(), name.clone()));
            }
            for name in &request.resource_names_unsubscribe {
                wanted.names.remove(name);
                self.sent.remove(&(url.clone(), name.clone()));
            }
            for name in request.initial_resource_versions.into_keys() {
                self.sent.insert((url.clone(), name), Vec::new());
            }
            if first || !request.resource_names_subscribe.is_empty() {
                self.answer(&url, first);
            }
        } else {
            let request = DiscoveryRequest::decode(message).expect("a request");
            refused(request.error_detail.map(|status| status.message));
            let url = request.type_url;
            let names: BTreeSet<String> = request.resource_names.into_iter().collect();
            let wanted = self.wanted.entry(url.clone()).or_default();
            let news = wanted.names != names || request.response_nonce.is_empty();
            wanted.all = names.is_empty();
            wanted.names = names;
            if news {
                self.answer(&url, true);
            }
        }
    }

    /// What is new of a type; with `always` even if that is nothing.
    fn answer(&mut self, url: &str, always: bool) {
        let Some(wanted) = self.wanted.get(url) else { return };
        let resources = lock(&self.state.resources).clone();
        let is_wanted = |name: &String| wanted.all || wanted.names.contains(name);
        let of_type = || resources.iter().filter(|((kind, name), _)| kind == url && is_wanted(name));
        self.answers += 1;
        let version = self.state.version.load(Ordering::Relaxed).to_string();
        let mut reply = Reply::new(url, &version, &self.answers.to_string());
        let mut news = always;
        for (key, value) in of_type() {
            let new = self.sent.get(key) != Some(value);
            news |= new;
            if new || !self.state.delta {
                reply = reply.with(&key.1, url, value.clone());
            }
        }
        let gone: Vec<_> =
            self.sent.keys().filter(|key| key.0 == url && !resources.contains_key(*key)).cloned().collect();
        news |= !gone.is_empty();
        if !news {
            return;
        }
        for (key, value) in of_type() {
            self.sent.insert(key.clone(), value.clone());
        }
        for key in gone {
            self.sent.remove(&key);
            reply.removed.push(key.1);
        }
        self.write(frame(&reply.encode(self.state.delta)));
    }
}
