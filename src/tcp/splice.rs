//! Moving bytes from socket to socket inside the kernel, through a pipe (`splice(2)`).
//!
//! A worker keeps a pool of pipes. A relay borrows one only while bytes sit in it, so that a worker
//! whose peers keep up needs a single pipe however many connections it has. What a pipe holds is
//! counted in bytes, never compared with its capacity: one of its slots can carry a whole socket
//! buffer fragment of up to 64 KiB.
#![allow(unsafe_code)] // splice(2) and F_SETPIPE_SZ have no safe wrapper here.

use std::cell::{Cell, RefCell};
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;

use crate::runtime::socket;

/// Most bytes asked for by one splice into an empty pipe: bounds what a connection with a stalled
/// reader holds in the kernel. Measured: 256 KiB costs a fifth more CPU per byte.
const FILL: usize = 1 << 20;

/// Size asked for a pipe: as many slots as the kernel grants an unprivileged process (256), since
/// fragments from a network card are small.
const PIPE_SIZE: libc::c_int = 1 << 20;

/// Empty pipes kept for reuse.
const KEPT: usize = 16;

/// A pipe and the number of bytes in it.
#[derive(Debug)]
pub struct Pipe {
    reader: PipeReader,
    writer: PipeWriter,
    held: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        // SAFETY: a plain fcntl on a descriptor that we own. A refusal (the user's pages are used
        // up) leaves a smaller pipe, which works as well, only with more calls.
        unsafe {
            libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_SIZE);
        }
        Ok(Self { reader, writer, held: 0 })
    }

    /// How many bytes are in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves at most `most` bytes from `source` into the pipe, which must be empty: only then does
    /// "would block" speak of the socket and not of a full pipe. `Ok(0)` is the end of the stream.
    pub fn fill(&mut self, source: BorrowedFd<'_>, most: u64) -> io::Result<usize> {
        debug_assert_eq!(self.held, 0, "filled a pipe that is not empty");
        let most = usize::try_from(most).unwrap_or(FILL).min(FILL);
        let count = splice(source.as_raw_fd(), self.writer.as_raw_fd(), most)?;
        self.held += count;
        Ok(count)
    }

    /// Moves what `target` takes of the pipe's bytes.
    pub fn drain(&mut self, target: BorrowedFd<'_>) -> io::Result<usize> {
        let count = splice(self.reader.as_raw_fd(), target.as_raw_fd(), self.held)?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.held = self.held.saturating_sub(count);
        Ok(count)
    }

    /// Takes the bytes out into memory, for a target that cannot be spliced to.
    pub fn take(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.held];
        // Never waits: the pipe holds at least this much.
        self.reader.read_exact(&mut bytes)?;
        self.held = 0;
        Ok(bytes)
    }
}

fn splice(from: i32, to: i32, length: usize) -> io::Result<usize> {
    // SAFETY: both descriptors are open for the duration of the call (they are borrowed from live
    // owners by the callers in this file), and null offsets mean "none".
    let count = unsafe {
        libc::splice(
            from,
            std::ptr::null_mut(),
            to,
            std::ptr::null_mut(),
            length,
            libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK,
        )
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// One worker's pipes.
#[derive(Debug)]
pub struct Pipes {
    free: RefCell<Vec<Pipe>>,
    in_use: Cell<usize>,
    limit: usize,
}

impl Pipes {
    /// A pool that lends at most `limit` pipes at a time.
    pub fn new(limit: usize) -> Rc<Self> {
        Rc::new(Self { free: RefCell::default(), in_use: Cell::new(0), limit })
    }

    /// The calling thread's pool. It may use a sixteenth of the process's file descriptors.
    pub fn of_thread() -> Rc<Self> {
        thread_local! {
            static PIPES: Rc<Pipes> = {
                let descriptors = socket::raise_nofile_limit().unwrap_or(1024);
                Pipes::new(usize::try_from(descriptors / 32).unwrap_or(usize::MAX).clamp(2, 1024))
            };
        }
        PIPES.with(Rc::clone)
    }

    /// Lends an empty pipe; `None` when the limit is reached or the process has no descriptors left.
    pub fn lend(self: &Rc<Self>) -> Option<Lent> {
        if self.in_use.get() >= self.limit {
            return None;
        }
        let free = self.free.borrow_mut().pop();
        let pipe = match free {
            Some(pipe) => pipe,
            None => Pipe::new().ok()?,
        };
        self.in_use.set(self.in_use.get() + 1);
        Some(Lent { pipe: Some(pipe), pipes: self.clone() })
    }

    /// How many pipes are lent now.
    pub fn in_use(&self) -> usize {
        self.in_use.get()
    }
}

#[cfg(test)]
impl Pipes {
    /// How many empty pipes are kept.
    pub fn idle(&self) -> usize {
        self.free.borrow().len()
    }
}

/// A borrowed pipe, given back when dropped. One that still holds bytes is closed instead.
#[derive(Debug)]
pub struct Lent {
    pipe: Option<Pipe>,
    pipes: Rc<Pipes>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pipes.in_use.set(self.pipes.in_use.get().saturating_sub(1));
        let mut free = self.pipes.free.borrow_mut();
        if let Some(pipe) = self.pipe.take().filter(|pipe| pipe.held == 0 && free.len() < KEPT) {
            free.push(pipe);
        }
    }
}

impl std::ops::Deref for Lent {
    type Target = Pipe;

    #[allow(clippy::expect_used)] // Only Drop takes the pipe out.
    fn deref(&self) -> &Pipe {
        self.pipe.as_ref().expect("a lent pipe is there until it is given back")
    }
}

impl std::ops::DerefMut for Lent {
    #[allow(clippy::expect_used)] // Only Drop takes the pipe out.
    fn deref_mut(&mut self) -> &mut Pipe {
        self.pipe.as_mut().expect("a lent pipe is there until it is given back")
    }
}
