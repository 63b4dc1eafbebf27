use std::cell::Cell;
use std::hash::Hasher;
use std::io::ErrorKind;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::timeout;
use xxhash_rust::xxh64::Xxh64;

use super::*;
use crate::tcp::handover::Stage;

#[derive(Default)]
struct Counts {
    paused: Cell<u32>,
    resumed: Cell<u32>,
    flushing: Cell<u32>,
    undecided: Cell<bool>,
}

impl Meter for Counts {
    fn moved(&self, _: &Traffic) {}
    fn paused(&self, side: Side, paused: bool) {
        if side == Side::Downstream {
            let count = if paused { &self.paused } else { &self.resumed };
            count.set(count.get() + 1);
        }
    }
    fn flushing(&self) {
        self.flushing.set(self.flushing.get() + 1);
    }
    fn decides(&self) -> bool {
        self.undecided.get()
    }
    fn poll_decided(&self, _: &mut Context<'_>) -> Poll<()> {
        self.undecided.set(false);
        Poll::Ready(())
    }
}

/// A running relay; `end` completes with how it ended once both of its sockets are closed.
struct Rig<S> {
    client: S,
    server: S,
    traffic: Rc<Traffic>,
    counts: Rc<Counts>,
    pipes: Rc<Pipes>,
    end: JoinHandle<End>,
}

struct Options {
    limits: Limits,
    prefix: &'static [u8],
    pipes: usize,
    cut: Option<tokio::sync::oneshot::Receiver<Order>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { limits: Limits::default(), prefix: b"", pipes: 8, cut: None }
    }
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (left, right) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (left.unwrap(), right.unwrap().0)
}

fn start<S>(client: (S, Stream), server: (S, Stream), options: Options) -> Rig<S> {
    let (traffic, counts) = (Rc::new(Traffic::default()), Rc::new(Counts::default()));
    let pipes = Pipes::new(options.pipes);
    let end = tokio::task::spawn_local({
        let (traffic, counts, pipes) = (traffic.clone(), counts.clone(), pipes.clone());
        async move {
            let cut = async move {
                match options.cut {
                    Some(order) => order.await.unwrap_or(Order::Cut),
                    None => pending().await,
                }
            };
            let from = (&client.1, BytesMut::from(options.prefix).into());
            relay(from, &server.1, options.limits, cut, &traffic, &*counts, &pipes).await
        }
    });
    Rig { client: client.0, server: server.0, traffic, counts, pipes, end }
}

async fn rig(options: Options) -> Rig<TcpStream> {
    let ((client, downstream), (server, upstream)) = (tcp_pair().await, tcp_pair().await);
    start((client, downstream.into()), (server, upstream.into()), options)
}

/// Runs a test on a current-thread runtime, with a deadline.
fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async { timeout(Duration::from_secs(60), test).await };
    LocalSet::new().block_on(&runtime, test).expect("the test took too long");
}

fn run_paused<F: Future<Output = ()>>(test: F) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

/// Sends `total` bytes of noise and then the end of stream; the hash of what was sent.
async fn send<W: AsyncWriteExt + Unpin>(mut to: W, seed: u64, total: usize) -> u64 {
    let mut noise = vec![0; 300_007];
    fastrand::Rng::with_seed(seed).fill(&mut noise);
    let mut hash = Xxh64::new(0);
    let mut left = total;
    while left > 0 {
        let chunk = &noise[..left.min(noise.len())];
        to.write_all(chunk).await.unwrap();
        hash.write(chunk);
        left -= chunk.len();
    }
    to.shutdown().await.unwrap();
    hash.finish()
}

/// Receives until the end of stream: how much, and its hash.
async fn receive<R: AsyncReadExt + Unpin>(mut from: R) -> (usize, u64) {
    let mut buffer = vec![0; 200_003];
    let (mut total, mut hash) = (0, Xxh64::new(0));
    loop {
        let count = from.read(&mut buffer).await.unwrap();
        if count == 0 {
            return (total, hash.finish());
        }
        hash.write(&buffer[..count]);
        total += count;
    }
}

async fn bulk_both_ways<C, S>(rig: Rig<C>, split: impl Fn(C) -> (S, S), total: usize) -> Rc<Pipes>
where
    S: AsyncReadExt + AsyncWriteExt + Unpin,
    C: 'static,
{
    let ((client_read, client_write), (server_read, server_write)) = (split(rig.client), split(rig.server));
    let (sent_up, sent_down, at_server, at_client) = tokio::join!(
        send(client_write, 1, total),
        send(server_write, 2, total),
        receive(server_read),
        receive(client_read),
    );
    assert_eq!(at_server, (total, sent_up));
    assert_eq!(at_client, (total, sent_down));
    assert!(matches!(rig.end.await.unwrap(), End::Finished));
    let traffic = &rig.traffic;
    for count in
        [&traffic.from_downstream, &traffic.to_upstream, &traffic.from_upstream, &traffic.to_downstream]
    {
        assert_eq!(count.get(), total as u64);
    }
    assert_eq!(rig.pipes.in_use(), 0);
    rig.pipes
}

/// Two handles on one socket.
fn twice(stream: TcpStream) -> (TcpStream, TcpStream) {
    let stream = stream.into_std().unwrap();
    let other = stream.try_clone().unwrap();
    (TcpStream::from_std(stream).unwrap(), TcpStream::from_std(other).unwrap())
}

fn twice_unix(stream: UnixStream) -> (UnixStream, UnixStream) {
    let stream = stream.into_std().unwrap();
    let other = stream.try_clone().unwrap();
    (UnixStream::from_std(stream).unwrap(), UnixStream::from_std(other).unwrap())
}

#[test]
fn a_client_that_says_nothing_is_not_decided_on() {
    run(async {
        let mut rig = rig(Options::default()).await;
        rig.counts.undecided.set(true);
        let mut got = [0; 5];
        for _ in 0..3 {
            rig.server.write_all(b"hello").await.unwrap();
            rig.client.read_exact(&mut got).await.unwrap();
            assert!(rig.counts.undecided.get());
        }
        rig.client.write_all(b"first").await.unwrap();
        rig.server.read_exact(&mut got).await.unwrap();
        assert!(!rig.counts.undecided.get());
    });
}

#[test]
fn a_hundred_megabytes_each_way_through_splice() {
    run(async {
        let pipes = bulk_both_ways(rig(Options::default()).await, twice, 100 << 20).await;
        assert!(pipes.idle() > 0, "the pipes were used");
    });
}

#[test]
fn without_pipes_it_copies() {
    run(async {
        let options = Options { pipes: 0, ..Options::default() };
        let pipes = bulk_both_ways(rig(options).await, twice, 20 << 20).await;
        assert_eq!(pipes.idle(), 0);
    });
}

#[test]
fn with_one_pipe_one_direction_copies() {
    run(async {
        let options = Options { pipes: 1, ..Options::default() };
        bulk_both_ways(rig(options).await, twice, 20 << 20).await;
    });
}

#[test]
fn unix_sockets_too() {
    run(async {
        let ((client, downstream), (server, upstream)) =
            (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let rig = start((client, downstream.into()), (server, upstream.into()), Options::default());
        bulk_both_ways(rig, twice_unix, 20 << 20).await;
    });
}

#[test]
fn half_close_from_the_client() {
    run(async {
        let mut rig = rig(Options { prefix: b"peeked ", ..Options::default() }).await;
        rig.client.write_all(b"question").await.unwrap();
        rig.client.shutdown().await.unwrap();
        let mut question = String::new();
        rig.server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "peeked question");
        rig.server.write_all(b"answer").await.unwrap();
        let mut buffer = [0; 6];
        rig.client.read_exact(&mut buffer).await.unwrap();
        rig.server.write_all(b" more").await.unwrap();
        rig.server.shutdown().await.unwrap();
        let mut rest = String::new();
        rig.client.read_to_string(&mut rest).await.unwrap();
        assert_eq!((&buffer, rest.as_str()), (b"answer", " more"));
        assert!(matches!(rig.end.await.unwrap(), End::Finished));
        assert_eq!(rig.traffic.from_downstream.get(), 15);
        assert_eq!(rig.traffic.to_downstream.get(), 11);
    });
}

#[test]
fn half_close_from_the_server() {
    run(async {
        let mut rig = rig(Options::default()).await;
        rig.server.write_all(b"hello").await.unwrap();
        rig.server.shutdown().await.unwrap();
        let mut hello = String::new();
        rig.client.read_to_string(&mut hello).await.unwrap();
        assert_eq!(hello, "hello");
        rig.client.write_all(b"still here").await.unwrap();
        let mut buffer = [0; 10];
        rig.server.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"still here");
        assert!(!rig.end.is_finished());
        drop(rig.client);
        assert_eq!(rig.server.read(&mut buffer).await.unwrap(), 0);
        assert!(matches!(rig.end.await.unwrap(), End::Finished));
    });
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

async fn expect_reset(mut stream: TcpStream) {
    let mut buffer = Vec::new();
    let error = stream.read_to_end(&mut buffer).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn resets_are_carried_both_ways() {
    run(async {
        let client_resets = rig(Options::default()).await;
        reset(client_resets.client);
        expect_reset(client_resets.server).await;
        assert!(matches!(client_resets.end.await.unwrap(), End::Failed(Side::Downstream, _)));
        let server_resets = rig(Options::default()).await;
        reset(server_resets.server);
        expect_reset(server_resets.client).await;
        assert!(matches!(server_resets.end.await.unwrap(), End::Failed(Side::Upstream, _)));
    });
}

#[test]
fn a_reset_after_half_close_is_carried() {
    run(async {
        let mut client_resets = rig(Options::default()).await;
        client_resets.client.shutdown().await.unwrap();
        assert_eq!(client_resets.server.read(&mut [0]).await.unwrap(), 0);
        // Reading is over, so only the watch can see this one.
        reset(client_resets.client);
        let end = client_resets.end.await.unwrap();
        assert!(matches!(end, End::Failed(Side::Downstream, _)), "{end:?}");
        // The server sees its peer gone for good: a write is answered by a reset.
        let gone = async {
            while client_resets.server.write_all(b"x").await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        gone.await;

        let mut server_resets = rig(Options::default()).await;
        server_resets.server.shutdown().await.unwrap();
        assert_eq!(server_resets.client.read(&mut [0]).await.unwrap(), 0);
        reset(server_resets.server);
        let end = server_resets.end.await.unwrap();
        assert!(matches!(end, End::Failed(Side::Upstream, _)), "{end:?}");
    });
}

/// Writes until the relay takes no more for a while; how much it took.
async fn fill(client: &mut TcpStream) -> usize {
    let chunk = vec![7; 64 << 10];
    let mut total = 0;
    while let Ok(count) = timeout(Duration::from_millis(300), client.write(&chunk)).await {
        total += count.unwrap();
    }
    total
}

#[test]
fn a_slow_reader_stops_its_sender() {
    for (pipes, buffer) in [(8, usize::MAX), (0, usize::MAX), (8, 32 << 10), (0, 4 << 10)] {
        run(async {
            let limits = Limits { buffer, ..Limits::default() };
            let mut rig = rig(Options { pipes, limits, ..Options::default() }).await;
            let total = fill(&mut rig.client).await;
            let held = rig.traffic.from_downstream.get() - rig.traffic.to_upstream.get();
            let most = buffer.min(if pipes > 0 { 1 << 20 } else { 64 << 10 }) as u64;
            assert!(held > 0 && held <= most, "{held} bytes held");
            assert!(rig.counts.paused.get() > 0);
            assert_eq!(rig.counts.paused.get(), rig.counts.resumed.get() + 1);
            // The other direction is not affected.
            rig.server.write_all(b"hurry").await.unwrap();
            let mut buffer = [0; 5];
            rig.client.read_exact(&mut buffer).await.unwrap();
            drop(rig.client);
            assert_eq!(receive(&mut rig.server).await.0, total);
            drop(rig.server);
            rig.end.await.unwrap();
            assert_eq!(rig.counts.paused.get(), rig.counts.resumed.get());
        });
    }
}

#[test]
fn what_a_client_sent_before_it_left_is_delivered() {
    run(async {
        let mut rig = rig(Options::default()).await;
        let total = fill(&mut rig.client).await;
        // The client leaves without reading; the server's bytes make its kernel answer with a reset.
        drop(rig.client);
        while rig.counts.flushing.get() == 0 {
            rig.server.write_all(b"too late").await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut buffer = vec![0; 1 << 20];
        let mut received = 0;
        while let Ok(count @ 1..) = rig.server.read(&mut buffer).await {
            received += count;
        }
        let delivered = rig.traffic.to_upstream.get() as usize;
        assert_eq!(received, delivered);
        assert!(delivered > 0 && delivered <= total);
        rig.end.await.unwrap();
    });
}

#[test]
fn a_server_that_answers_and_hangs_up_is_heard() {
    run(async {
        let mut rig = rig(Options::default()).await;
        fill(&mut rig.client).await;
        // Closing with unread bytes is a reset, right behind the answer.
        rig.server.write_all(b"413 too large").await.unwrap();
        drop(rig.server);
        let mut buffer = vec![0; 100];
        let count = rig.client.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..count], b"413 too large");
        assert!(matches!(rig.end.await.unwrap(), End::Failed(Side::Upstream, _)));
    });
}

#[test]
fn small_messages_stay_small() {
    run(async {
        let mut rig = rig(Options::default()).await;
        let mut buffer = [0; 100];
        for round in 0..2000u32 {
            let message = round.to_be_bytes();
            rig.client.write_all(&message).await.unwrap();
            rig.server.read_exact(&mut buffer[..4]).await.unwrap();
            rig.server.write_all(&message).await.unwrap();
            rig.client.read_exact(&mut buffer[4..8]).await.unwrap();
            assert_eq!(buffer[..4], buffer[4..8]);
        }
        assert_eq!(rig.pipes.idle(), 0, "never bulk");
    });
}

#[test]
fn bulk_and_small_messages_in_turn() {
    run(async {
        let mut rig = rig(Options::default()).await;
        let mut noise = vec![0; 1 << 20];
        fastrand::Rng::with_seed(3).fill(&mut noise);
        let mut back = vec![0; noise.len()];
        for round in 0..60 {
            let part = &noise[..if round % 20 < 3 { noise.len() } else { 100 + round }];
            let (mut reader, mut writer) = rig.client.split();
            let (mut server_reader, mut server_writer) = rig.server.split();
            let mut at_server = vec![0; part.len()];
            let (sent, received) =
                tokio::join!(writer.write_all(part), server_reader.read_exact(&mut at_server));
            sent.and(received.map(drop)).unwrap();
            let (sent, received) =
                tokio::join!(server_writer.write_all(&at_server), reader.read_exact(&mut back[..part.len()]));
            sent.and(received.map(drop)).unwrap();
            assert!(part == &back[..part.len()]);
        }
        assert_eq!(rig.pipes.in_use(), 0, "nothing is held at rest");
    });
}

#[test]
fn urgent_bytes_do_not_stall_a_splice() {
    run(async {
        let mut rig = rig(Options::default()).await;
        let noise = vec![1; 1 << 20];
        let mut at_server = vec![0; noise.len()];
        let (sent, _) = tokio::join!(rig.client.write_all(&noise), rig.server.read_exact(&mut at_server));
        sent.unwrap();
        assert_eq!(SockRef::from(&rig.client).send_out_of_band(b"!").unwrap(), 1);
        rig.client.write_all(b"after").await.unwrap();
        rig.client.shutdown().await.unwrap();
        let mut rest = String::new();
        rig.server.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "after");
    });
}

#[test]
fn idle_means_no_byte_either_way() {
    run_paused(async {
        let limits = Limits { idle: Some(Duration::from_secs(3600)), ..Limits::default() };
        let mut rig = rig(Options { limits, ..Options::default() }).await;
        let start = Instant::now();
        tokio::time::sleep(Duration::from_secs(1800)).await;
        rig.server.write_all(b"x").await.unwrap();
        rig.client.read_exact(&mut [0]).await.unwrap();
        let last = start.elapsed();
        assert!(matches!(rig.end.await.unwrap(), End::Idle));
        let idle = start.elapsed() - last;
        assert!((3600..3601).contains(&idle.as_secs()), "{idle:?}");
        assert_eq!(rig.client.read(&mut [0]).await.unwrap(), 0);
    });
}

#[test]
fn a_deadline_ends_it_even_when_busy() {
    run_paused(async {
        let deadline = Instant::now() + Duration::from_secs(60);
        let limits =
            Limits { idle: Some(Duration::from_secs(45)), deadline: Some(deadline), ..Limits::default() };
        let mut rig = rig(Options { limits, ..Options::default() }).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        rig.client.write_all(b"x").await.unwrap();
        rig.server.read_exact(&mut [0]).await.unwrap();
        assert!(matches!(rig.end.await.unwrap(), End::Deadline));
        assert!(Instant::now() >= deadline && Instant::now() < deadline + Duration::from_secs(1));
    });
}

#[test]
fn cutting_ends_it() {
    run(async {
        let (cut, cutting) = tokio::sync::oneshot::channel();
        let rig = rig(Options { cut: Some(cutting), ..Options::default() }).await;
        cut.send(Order::Cut).unwrap();
        assert!(matches!(rig.end.await.unwrap(), End::Cut));
    });
}

/// Stopped with both ways at different points, and gone on with by another relay on the same sockets.
#[test]
fn what_leaves_goes_on_elsewhere() {
    run(async {
        let (leave, leaving) = tokio::sync::oneshot::channel();
        let ((client, downstream), (server, upstream)) = (tcp_pair().await, tcp_pair().await);
        let (downstream, upstream) = (downstream.into_std().unwrap(), upstream.into_std().unwrap());
        let stream =
            |of: &std::net::TcpStream| Stream::from(TcpStream::from_std(of.try_clone().unwrap()).unwrap());
        let ends = ((client, stream(&downstream)), (server, stream(&upstream)));
        let mut first =
            start(ends.0, ends.1, Options { cut: Some(leaving), prefix: b"pre", ..Options::default() });
        // The client ends its side, and does not read what the server sends without end.
        first.client.write_all(b"fix").await.unwrap();
        first.client.shutdown().await.unwrap();
        let mut text = String::new();
        first.server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "prefix");
        let mut sent = 0_usize;
        let block = [7; 1 << 16];
        while let Ok(written) = timeout(Duration::from_millis(200), first.server.write(&block)).await {
            sent += written.unwrap();
        }
        leave.send(Order::Leave).unwrap();
        let End::Left(at) = first.end.await.unwrap() else { panic!("it did not leave") };
        assert_eq!((at.up.stage, at.down.stage), (Stage::Done, Stage::Open));
        assert!(!at.down.held.is_empty());
        let counted = first.traffic.totals();

        let (downstream, upstream) = (stream(&downstream), stream(&upstream));
        let (traffic, counts, pipes) = (Traffic::default(), Counts::default(), Pipes::new(8));
        traffic.restore(counted);
        let second =
            relay((&downstream, at), &upstream, Limits::default(), pending(), &traffic, &counts, &pipes);
        let rest = async {
            let mut read = vec![0; 1 << 16];
            let (mut got, mut server) = (0, Some(first.server));
            loop {
                let count = first.client.read(&mut read).await.unwrap();
                assert!(read[..count].iter().all(|byte| *byte == 7));
                got += count;
                if got == sent {
                    // Everything is there: now the end.
                    drop(server.take());
                }
                if count == 0 {
                    break got;
                }
            }
        };
        let (end, got) = tokio::join!(second, rest);
        assert!(matches!(end, End::Finished), "{end:?}");
        assert_eq!((got, traffic.totals()), (sent, [6, 6, sent as u64, sent as u64]));
    });
}
