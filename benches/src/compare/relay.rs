//! The floors of the comparison: relays that know no protocol and do nothing but move bytes, one thread around `epoll`.
//! One copies through a buffer, the other moves pages through a pipe with `splice`. What a proxy costs beyond them is
//! the price of what it understands.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;

use clap::{Args, ValueEnum};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustix::pipe::{fcntl_setpipe_size, pipe_with, splice, PipeFlags, SpliceFlags};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX);
const BUFFER: usize = 256 * 1024;
/// The most that an unprivileged user may have in a pipe: fewer and larger steps cost less.
const PIPE: usize = 1024 * 1024;
/// Turns of one direction before others have theirs.
const TURNS: u32 = 16;

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// `read` and `write`.
    Copy,
    /// `splice` into a pipe and out of it.
    Splice,
}

/// Arguments of `relay`.
#[derive(Args)]
pub struct RelayArgs {
    /// How bytes are moved.
    #[arg(long, default_value = "copy")]
    pub mode: Mode,
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Where every connection leads.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub to: SocketAddr,
}

/// A relay that is bound.
pub struct Relay {
    poll: Poll,
    listener: TcpListener,
    mode: Mode,
    to: SocketAddr,
    pairs: Slab<Pair>,
    buffer: Vec<u8>,
    /// Empty pipes.
    pipes: Vec<Pipe>,
    /// Directions that have had their turns.
    again: Vec<(usize, usize)>,
    /// There was no descriptor for a connection that waits.
    starved: bool,
}

struct Pipe {
    output: OwnedFd,
    input: OwnedFd,
}

/// Client and server, and what is between them.
struct Pair {
    ends: [TcpStream; 2],
    ways: [Way; 2],
}

/// A direction, named by the end that it comes from.
#[derive(Default)]
struct Way {
    held: Held,
    readable: bool,
    ended: bool,
    shut: bool,
}

#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    Bytes(Vec<u8>),
    Pipe(Pipe, usize),
}

impl Relay {
    /// Binds.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn bind(args: &RelayArgs) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(args.listen)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            mode: args.mode,
            to: args.to,
            pairs: Slab::new(),
            buffer: vec![0; BUFFER],
            pipes: Vec::new(),
            again: Vec::new(),
            starved: false,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Relays until the process ends.
    ///
    /// # Errors
    /// It cannot poll.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            let wait = if self.again.is_empty() { None } else { Some(std::time::Duration::ZERO) };
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                let token = event.token();
                if token == LISTENER {
                    self.accept()?;
                    continue;
                }
                let (key, side) = (token.0 / 2, token.0 % 2);
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    if let Some(pair) = self.pairs.get_mut(key) {
                        pair.ways[side].readable = true;
                        self.turn(key, side)?;
                    }
                }
                if event.is_writable() {
                    self.turn(key, 1 - side)?;
                }
            }
            for (key, from) in std::mem::take(&mut self.again) {
                self.turn(key, from)?;
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        self.starved = false;
        loop {
            let client = match self.listener.accept() {
                Ok((client, _)) => client,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.starved = true;
                    return Ok(());
                }
            };
            let Ok(server) = TcpStream::connect(self.to) else { continue };
            // Without it, small messages wait; but they arrive.
            let _ = client.set_nodelay(true);
            let _ = server.set_nodelay(true);
            let entry = self.pairs.vacant_entry();
            let key = entry.key();
            let pair = entry.insert(Pair { ends: [client, server], ways: Default::default() });
            for (side, end) in pair.ends.iter_mut().enumerate() {
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(end, Token(key * 2 + side), interest)?;
            }
        }
    }

    /// Moves what can be moved in one direction, and ends what is over.
    fn turn(&mut self, key: usize, from: usize) -> io::Result<()> {
        let Some(pair) = self.pairs.get_mut(key) else { return Ok(()) };
        let moved = match self.mode {
            Mode::Copy => pair.copy(from, &mut self.buffer),
            Mode::Splice => pair.splice(from, &mut self.pipes),
        };
        let over = match moved {
            Ok(true) => {
                self.again.push((key, from));
                false
            }
            Ok(false) => pair.ways.iter().all(|way| way.shut),
            Err(_) => true,
        };
        if over {
            // A pipe that is not empty ends with its pair.
            self.pairs.remove(key);
            if self.starved {
                self.accept()?;
            }
        }
        Ok(())
    }
}

impl Pair {
    /// Whether there may be more to do at once.
    fn copy(&mut self, from: usize, buffer: &mut [u8]) -> io::Result<bool> {
        let Self { ends, ways } = self;
        let [first, second] = ends;
        let (source, sink) = if from == 0 { (first, second) } else { (second, first) };
        let way = &mut ways[from];
        for _ in 0..TURNS {
            if let Held::Bytes(held) = &mut way.held {
                let sent = write(sink, held)?;
                held.drain(..sent);
                if !held.is_empty() {
                    return Ok(false);
                }
                way.held = Held::Nothing;
            }
            if !way.readable {
                return way.end(sink);
            }
            match source.read(buffer) {
                Ok(0) => {
                    way.ended = true;
                    way.readable = false;
                }
                Ok(count) => {
                    // Less than asked for: the socket is empty, and what comes next is an event.
                    way.readable = count == buffer.len();
                    let sent = write(sink, &buffer[..count])?;
                    if sent < count {
                        way.held = Held::Bytes(buffer[sent..count].to_vec());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => way.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn splice(&mut self, from: usize, pipes: &mut Vec<Pipe>) -> io::Result<bool> {
        let Self { ends, ways } = self;
        let [first, second] = ends;
        let (source, sink) = if from == 0 { (first, second) } else { (second, first) };
        let way = &mut ways[from];
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        for _ in 0..TURNS {
            if let Held::Pipe(pipe, held) = &mut way.held {
                while *held > 0 {
                    match splice(&pipe.output, None, &*sink, None, *held, flags) {
                        Ok(count) => *held -= count,
                        Err(rustix::io::Errno::AGAIN) => return Ok(false),
                        Err(rustix::io::Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            if !way.readable {
                if let Held::Pipe(pipe, _) = std::mem::take(&mut way.held) {
                    pipes.push(pipe);
                }
                return way.end(sink);
            }
            if matches!(way.held, Held::Nothing) {
                way.held = Held::Pipe(pipes.pop().map_or_else(Pipe::new, Ok)?, 0);
            }
            let Held::Pipe(pipe, held) = &mut way.held else { continue };
            match splice(&*source, None, &pipe.input, None, PIPE, flags) {
                Ok(0) => {
                    way.ended = true;
                    way.readable = false;
                }
                Ok(count) => *held = count,
                // The pipe is empty: it is the source that has nothing.
                Err(rustix::io::Errno::AGAIN) => way.readable = false,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

impl Way {
    /// The end of the source is passed on once all before it is.
    fn end(&mut self, sink: &TcpStream) -> io::Result<bool> {
        if self.ended && !self.shut {
            self.shut = true;
            sink.shutdown(Shutdown::Write)?;
        }
        Ok(false)
    }
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (output, input) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A user who has many may get no larger ones.
        let _ = fcntl_setpipe_size(&input, PIPE);
        Ok(Self { output, input })
    }
}

/// Writes once; 0 if the socket takes nothing.
fn write(sink: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match sink.write(bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends with what it cannot do")]

    use super::*;

    #[test]
    fn every_byte_arrives_in_order_and_the_end_after_it() {
        for mode in [Mode::Copy, Mode::Splice] {
            let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let listen = "127.0.0.1:0".parse().unwrap();
            let args = RelayArgs { mode, listen, to: server.local_addr().unwrap() };
            let mut relay = Relay::bind(&args).unwrap();
            let address = relay.address().unwrap();
            std::thread::spawn(move || relay.run());
            // All of it comes before any goes back: sockets and pipes are full in between.
            let answer = std::thread::spawn(move || {
                let (mut stream, _) = server.accept().unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                stream.write_all(&all).unwrap();
            });
            let sent: Vec<u8> =
                (0..6_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let mut client = std::net::TcpStream::connect(address).unwrap();
            client.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
            client.write_all(&sent).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut received = Vec::new();
            client.read_to_end(&mut received).unwrap();
            answer.join().unwrap();
            assert!(received == sent, "{mode:?}: {} of {} bytes", received.len(), sent.len());
        }
    }
}
