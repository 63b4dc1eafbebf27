//! Origins that are processes of their own, so that they can be killed and stopped: this test binary, started once more.

use std::io::Write as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::harness::ports::free_port;
use crate::harness::{eventually, DEADLINE};

/// Where the process is told its port and its number.
const PORT: &str = "OUTRIGGER_TEST_ORIGIN_PORT";
const NUMBER: &str = "OUTRIGGER_TEST_ORIGIN_NUMBER";
/// What a body is long; half of one is less.
pub const BODY: usize = 64;

/// A running origin. Dropping it kills it.
pub struct Origin {
    number: usize,
    pub port: u16,
    child: Child,
    input: Option<ChildStdin>,
}

impl Origin {
    /// Starts one that answers with its number.
    pub async fn start(number: usize) -> Origin {
        for _ in 0..4 {
            if let Some(origin) = Origin::on(number, free_port()).await {
                return origin;
            }
        }
        panic!("origin {number} does not start");
    }

    async fn on(number: usize, port: u16) -> Option<Origin> {
        let (child, input) = spawn(number, port);
        let mut origin = Origin { number, port, child, input };
        let mut ended = false;
        let listens = eventually(DEADLINE, || {
            ended = ended || !matches!(origin.child.try_wait(), Ok(None));
            async move { ended || TcpStream::connect(("127.0.0.1", port)).await.is_ok() }
        })
        .await;
        (listens && !ended).then_some(origin)
    }

    /// `slow MILLISECONDS`, `half COUNT` (so many answers break off), `refuse`, `accept`.
    pub fn tell(&mut self, command: &str) {
        let input = self.input.as_mut().expect("its standard input");
        writeln!(input, "{command}").expect("a command is taken");
    }

    /// Sends a signal to this process, which is ours until it is waited for.
    pub fn signal(&mut self, signal: libc::c_int) {
        assert!(matches!(self.child.try_wait(), Ok(None)), "origin {} has ended", self.number);
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process");
        // SIGKILL and SIGSTOP take effect whatever the process does.
        let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "origin {} cannot be signalled", self.number);
    }

    /// Kills it as nothing else does: no connection is closed by it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again after [`Origin::kill`], on the same port.
    pub async fn restart(&mut self) {
        let again = Origin::on(self.number, self.port).await;
        *self = again.unwrap_or_else(|| panic!("origin {} does not start again", self.number));
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(number: usize, port: u16) -> (Child, Option<ChildStdin>) {
    let program = std::env::current_exe().expect("this program");
    let mut child = Command::new(program)
        .args(["resilience::origin::origin_process", "--exact", "--ignored", "--nocapture"])
        .env(PORT, port.to_string())
        .env(NUMBER, number.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("an origin");
    let input = child.stdin.take();
    (child, input)
}

/// What the connections of an origin share.
struct Manner {
    head: String,
    slow: AtomicU64,
    half: AtomicUsize,
    /// Whether connections are accepted; those that are open end when it becomes false.
    accepts: watch::Sender<bool>,
}

/// Not a test: the process that [`Origin::start`] starts. It ends with its standard input.
#[tokio::test]
#[ignore = "what origins of other tests run as"]
async fn origin_process() {
    let set = |name: &str| std::env::var(name).ok();
    let (Some(port), Some(number)) = (set(PORT), set(NUMBER)) else { return };
    let port: u16 = port.parse().expect("a port");
    let manner = Arc::new(Manner {
        head: format!("HTTP/1.1 200 OK\r\nx-origin: {number}\r\ncontent-length: {BODY}\r\n\r\n"),
        slow: AtomicU64::new(0),
        half: AtomicUsize::new(0),
        accepts: watch::Sender::new(true),
    });
    tokio::spawn(listen(port, manner.clone()));
    let commands = tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("slow", time) => manner.slow.store(time.parse().expect("milliseconds"), Ordering::Relaxed),
                ("half", count) => manner.half.store(count.parse().expect("a count"), Ordering::Relaxed),
                ("refuse", _) => drop(manner.accepts.send(false)),
                ("accept", _) => drop(manner.accepts.send(true)),
                _ => panic!("no command: {line}"),
            }
        }
    });
    let _ = commands.await;
}

async fn listen(port: u16, manner: Arc<Manner>) {
    let mut accepts = manner.accepts.subscribe();
    loop {
        let _ = accepts.wait_for(|accepts| *accepts).await;
        // The port may still be in use by who had it.
        let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await else { std::process::exit(1) };
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    let _ = stream.set_nodelay(true);
                    let manner = manner.clone();
                    connections.spawn(async move { serve(stream, &manner).await });
                    while connections.try_join_next().is_some() {}
                }
                _ = accepts.wait_for(|accepts| !*accepts) => break,
            }
        }
    }
}

async fn serve(mut stream: TcpStream, manner: &Manner) {
    let mut input = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        input.extend_from_slice(&buffer[..read]);
        while let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
            let check = input.starts_with(b"GET /check");
            input.drain(..end + 4);
            let slow = manner.slow.load(Ordering::Relaxed);
            if slow > 0 {
                tokio::time::sleep(Duration::from_millis(slow)).await;
            }
            let less = |left: usize| left.checked_sub(1);
            let half = !check && manner.half.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok();
            let mut answer = manner.head.clone().into_bytes();
            answer.resize(answer.len() + if half { BODY / 4 } else { BODY }, b'x');
            if stream.write_all(&answer).await.is_err() {
                return;
            }
            if half {
                // What was sent must have arrived: a reset takes with it what was not read.
                tokio::time::sleep(Duration::from_millis(30)).await;
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
        }
    }
}
