//! Sidecars replaced under load, by a restart and in place: nobody notices.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::mesh::{Mesh, Pod};
use super::server::{Application, ECHO, PLENTY};
use super::sidecar::{Plan, Sidecar};
use super::user::as_root;
use crate::harness::{alone, DEADLINE};
use crate::resilience::load::{Load, Tally};
use crate::tls::certs::Certs;
use crate::upgrade::{command_line, upgraded};

/// Requests a second to each of two servers.
const RATE: f64 = 1000.0;

/// Load from a pod.
struct Clients {
    stop: Arc<AtomicBool>,
    over: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<Tally>>,
}

impl Clients {
    fn start(pod: &Pod, to: Vec<SocketAddr>) -> Clients {
        let (stop, over) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (told, done) = (stop.clone(), over.clone());
        let thread = pod.namespace.thread(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let loads: Vec<_> = to.into_iter().map(Load::to).collect();
                let running: Vec<_> = loads
                    .iter()
                    .map(|load| tokio::task::spawn_local(load.clone().run(RATE, &[""])))
                    .collect();
                while !told.load(Ordering::Relaxed) {
                    done.store(loads.iter().map(|load| load.over()).sum(), Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                loads.iter().for_each(|load| load.stop());
                for one in running {
                    one.await.expect("a load");
                }
                loads.iter().flat_map(|load| load.take()).map(|(_, tally)| tally).collect()
            })
        });
        Clients { stop, over, thread }
    }

    /// Waits for so many more requests.
    fn more(&self, count: usize) {
        let until = self.over.load(Ordering::Relaxed) + count;
        let end = Instant::now() + DEADLINE * 2;
        while self.over.load(Ordering::Relaxed) < until {
            assert!(Instant::now() < end, "the load does not go on");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it; fails unless each request was answered.
    fn lost_nothing(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let tallies = self.thread.join().expect("the clients");
        for tally in &tallies {
            assert_eq!(tally.lost(), 0, "of {}: {}", tally.all(), tally.losses());
        }
        tallies.iter().map(Tally::all).sum()
    }
}

/// A client and two servers with sidecars, and a server without.
struct Three {
    mesh: Mesh,
    certs: Certs,
    _applications: Vec<Application>,
}

impl Three {
    fn new() -> Three {
        let mesh = Mesh::new(4);
        let applications = mesh.pods.iter().skip(1).map(Application::start).collect();
        mesh.pods.iter().take(3).for_each(|pod| pod.init(&[]));
        Three { mesh, certs: Certs::new(), _applications: applications }
    }

    fn sidecar(&self, pod: usize, arguments: &[&str]) -> Sidecar {
        let members: Vec<&Pod> = self.mesh.pods.iter().take(3).collect();
        Sidecar::spawn(&self.mesh.pods[pod], &Plan { mesh: &members, arguments, ..Plan::PLAIN }, &self.certs)
    }

    fn clients(&self) -> Clients {
        let to = self.mesh.pods[1..3].iter().map(|pod| pod.at(false, PLENTY)).collect();
        Clients::start(&self.mesh.pods[0], to)
    }
}

#[tokio::test]
async fn sidecars_restarted_one_by_one_lose_no_request() {
    let _alone = alone().await;
    as_root!();
    let world = Three::new();
    // Long enough for a successor to start in, on a machine that is busy.
    let drain = ["--drain-time-s", "3"];
    let mut sidecars: Vec<_> = (0..3).map(|pod| world.sidecar(pod, &drain)).collect();
    for (sidecar, pod) in sidecars.iter_mut().zip(&world.mesh.pods) {
        sidecar.ready(pod);
    }
    let clients = world.clients();
    clients.more(500);
    for (index, sidecar) in sidecars.iter_mut().enumerate() {
        sidecar.signal(libc::SIGTERM);
        let mut successor = world.sidecar(index, &drain);
        sidecar.wait();
        successor.ready(&world.mesh.pods[index]);
        *sidecar = successor;
        clients.more(500);
    }
    let count = clients.lost_nothing();
    println!("{count} requests, none lost");
    // The traffic went through all of them.
    for (pod, listener) in [(0, 15001), (1, 15006), (2, 15006)] {
        assert!(world.mesh.pods[pod].counter(&format!("listener.[__]_{listener}.downstream_cx_total")) > 0);
    }
}

/// An echo that answers each time, until it is told to end.
struct Talk {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Talk {
    fn start(mut stream: TcpStream) -> Talk {
        let (stop, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (told, count) = (stop.clone(), rounds.clone());
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let message = format!("{:07}\n", count.fetch_add(1, Ordering::Relaxed));
                stream.write_all(message.as_bytes()).expect("sent");
                let mut got = [0; 8];
                stream.read_exact(&mut got).expect("an echo");
                assert_eq!(got, message.as_bytes());
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        Talk { stop, rounds, thread }
    }

    fn more(&self) {
        let until = self.rounds.load(Ordering::Relaxed) + 20;
        let end = Instant::now() + DEADLINE;
        while self.rounds.load(Ordering::Relaxed) < until {
            assert!(Instant::now() < end && !self.thread.is_finished(), "a connection does not go on");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a connection that stays");
    }
}

#[tokio::test]
async fn sidecars_upgraded_in_place_lose_nothing() {
    let _alone = alone().await;
    as_root!();
    let world = Three::new();
    let states: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("a directory")).collect();
    let state = |pod: usize| states[pod].path().to_str().expect("a path");
    let start = |pod| world.sidecar(pod, &["--drain-time-s", "30", "--state-dir", state(pod)]);
    let mut sidecars: Vec<_> = (0..3).map(start).collect();
    for (sidecar, pod) in sidecars.iter_mut().zip(&world.mesh.pods) {
        sidecar.ready(pod);
    }
    let [client, server, ..] = world.mesh.pods.as_slice() else { panic!("four pods") };
    let clients = world.clients();
    // As they are, to the server without a sidecar; with mTLS to the one with; and from one without.
    let plain = world.mesh.pods[3].at(false, ECHO);
    let talks = [
        client.connect(plain).expect("a connection"),
        client.connect(server.at(false, ECHO)).expect("a connection"),
        world.mesh.pods[3].connect(server.at(true, ECHO)).expect("a connection"),
    ]
    .map(Talk::start);
    clients.more(500);
    let mut successors = Vec::new();
    for (pod, sidecar) in sidecars.iter_mut().enumerate() {
        successors.push(upgraded(&["--state-dir", state(pod)]));
        clients.more(500);
        talks.iter().for_each(Talk::more);
        assert!(sidecar.is_running());
    }
    println!("{} requests, none lost", clients.lost_nothing());
    let [handed_over, encrypted, incoming] = talks;
    // What nobody but the old process can read stays there, and keeps it.
    encrypted.more();
    encrypted.end();
    for sidecar in &sidecars {
        let minds = || command_line(sidecar.pid()).is_some_and(|line| line.contains(" mind "));
        let end = Instant::now() + DEADLINE * 2;
        while !minds() {
            assert!(Instant::now() < end, "an old process does not leave");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    handed_over.more();
    incoming.more();
    handed_over.end();
    incoming.end();
    assert!(client.counter("tcp.out.downstream_cx_total") > 0);
    for sidecar in &mut sidecars {
        // Told twice it ends, whatever it does.
        while sidecar.is_running() {
            sidecar.signal(libc::SIGTERM);
            std::thread::sleep(Duration::from_millis(10));
        }
        sidecar.wait();
    }
    assert!(successors.iter().all(|successor| command_line(successor.0).is_none()));
}

/// What only the old process can read stays there for as long as it may, and no longer.
#[tokio::test]
async fn an_encrypted_connection_stays_for_the_drain_time() {
    const DRAIN: Duration = Duration::from_secs(3);
    let _alone = alone().await;
    as_root!();
    let world = Three::new();
    let state = tempfile::tempdir().expect("a directory");
    let state = state.path().to_str().expect("a path");
    let mut own = world.sidecar(0, &[]);
    let mut theirs = world.sidecar(1, &["--drain-time-s", "3", "--state-dir", state]);
    let [client, server, ..] = world.mesh.pods.as_slice() else { panic!("four pods") };
    own.ready(client);
    theirs.ready(server);
    let mut stream = client.connect(server.at(false, ECHO)).expect("a connection");
    let mut echo = || stream.write_all(b"x\n").is_ok() && stream.read_exact(&mut [0; 2]).is_ok();
    assert!(echo());
    let begin = Instant::now();
    let _successor = upgraded(&["--state-dir", state]);
    assert!(echo(), "it is cut at once");
    stream.set_read_timeout(Some(DRAIN + DEADLINE * 2)).expect("a timeout");
    let end = stream.read(&mut [0]);
    assert!(matches!(&end, Ok(0)) || end.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset), "it stays");
    let lasted = begin.elapsed();
    assert!(lasted >= DRAIN, "only {lasted:?}");
    let cut = "the drain time is over, and 1 requests and relayed connections are cut off";
    assert!(theirs.output().contains(cut), "{}", theirs.output());
    // Whoever comes now is the new process's.
    let mut stream = client.connect(server.at(false, ECHO)).expect("a connection");
    stream.write_all(b"y\n").expect("sent");
    stream.read_exact(&mut [0]).expect("an echo");
}
