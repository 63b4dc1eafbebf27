//! The control plane: what `outrigger-control` is made of, on a thread of its own in this process.
//!
//! In: a directory and its sockets. Out: discovery for any sidecar, a status page, and when the demonstration's own
//! sidecar accepted or refused something.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outrigger_control_api::control::{Control, Settings};
use outrigger_control_api::server::{Event, ResourceType, Server};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use super::mesh::{ControlSockets, NODE};
use super::DemoError;

/// The running control plane; it ends when this is dropped.
pub(super) struct Plane {
    control: Control,
    accepted: mpsc::UnboundedReceiver<(ResourceType, Instant)>,
    /// Mistakes in the files, and what the sidecar refused.
    wrong: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What is told of it while it runs.
#[derive(Clone)]
pub(super) struct PlaneView {
    control: Control,
    wrong: Arc<Mutex<Vec<String>>>,
}

impl Drop for Plane {
    fn drop(&mut self) {
        // It has ended already, or ends now.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic was printed where it happened.
            let _ = thread.join();
        }
    }
}

impl Plane {
    /// Serves the directory until dropped.
    pub(super) fn start(directory: &Path, sockets: ControlSockets) -> Result<Self, DemoError> {
        let wrong = Arc::new(Mutex::new(Vec::new()));
        let mistakes = wrong.clone();
        let control = Control::open(Settings::new(directory), move |line| {
            if line.contains(" MISTAKE ") {
                note(&mistakes, line.to_owned());
            }
        });
        let (sender, accepted) = mpsc::unbounded_channel();
        let refused = wrong.clone();
        let server = Server::new(control.cache().clone()).on_event(move |stream, event| {
            if stream.node_id != NODE {
                return;
            }
            match event {
                Event::Ack { kind, .. } => {
                    // Nobody waits for it at the end.
                    let _ = sender.send((kind.clone(), Instant::now()));
                }
                Event::Nack { kind, nack } => {
                    note(&refused, format!("the sidecar refused {kind}: {}", nack.message));
                }
                Event::Connected | Event::Disconnected(_) => {}
            }
        });

        let failed = || DemoError::io("start the control plane");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed())?;
        let ControlSockets { discovery, status } = sockets;
        let adopt = |socket: std::net::TcpListener| {
            let _entered = runtime.enter();
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket)
        };
        let (discovery, status) = (adopt(discovery).map_err(failed())?, adopt(status).map_err(failed())?);
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = control.clone();
        let thread = std::thread::Builder::new().name("control-plane".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = server.serve(discovery) => {}
                    () = serving.serve_status(status) => {}
                    () = serving.follow() => {}
                    _ = stopped => {}
                }
            });
        });
        let thread = Some(thread.map_err(failed())?);
        Ok(Self { control, accepted, wrong, stop: Some(stop), thread })
    }

    /// Forgets what was accepted so far.
    pub(super) fn forget(&mut self) {
        while self.accepted.try_recv().is_ok() {}
    }

    /// Waits until the sidecar has accepted something of each of these types; how long that was after `began`.
    /// `None` after `patience`.
    pub(super) async fn accepts(
        &mut self,
        mut kinds: Vec<ResourceType>,
        began: Instant,
        patience: Duration,
    ) -> Option<Duration> {
        let all = async {
            let mut last = began;
            while !kinds.is_empty() {
                let (kind, at) = self.accepted.recv().await?;
                kinds.retain(|wanted| *wanted != kind);
                last = at;
            }
            Some(last.saturating_duration_since(began))
        };
        tokio::time::timeout(patience, all).await.ok().flatten()
    }

    pub(super) fn view(&self) -> PlaneView {
        PlaneView { control: self.control.clone(), wrong: self.wrong.clone() }
    }
}

impl PlaneView {
    /// Mistakes in the files, and what the sidecar refused.
    pub(super) fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its clients and whether each has accepted everything: `demo (in sync), second (in sync)`.
    pub(super) fn clients(&self) -> String {
        let streams = self.control.cache().streams();
        let clients = streams.iter().map(|stream| {
            let state = if stream.is_in_sync() { "in sync" } else { "catching up" };
            // A name comes from whoever connects.
            let name: String = stream.node_id.chars().filter(|c| !c.is_control()).take(40).collect();
            format!("{name} ({state})")
        });
        clients.collect::<Vec<_>>().join(", ")
    }
}

/// More of the same would say nothing new.
fn note(list: &Mutex<Vec<String>>, line: String) {
    let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
    if list.len() < 20 {
        list.push(line);
    }
}
