//! `outrigger ready` and `outrigger wait`: a running process asked by its admin port, from inside its container, where
//! there may be no other program to ask with.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use clap::Args;

/// Longest answer that is looked at.
const MOST: u64 = 4096;
/// How often is asked.
const PAUSE: Duration = Duration::from_millis(50);

/// The flags of `outrigger ready`.
#[derive(Debug, Clone, Args)]
pub struct ReadyFlags {
    /// The admin address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    pub admin_address: SocketAddr,
    /// How long to wait for an answer, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout_ms: u64,
}

/// The flags of `outrigger wait`.
#[derive(Debug, Clone, Args)]
pub struct WaitFlags {
    /// The admin address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    pub admin_address: SocketAddr,
    /// How long to wait at most, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout_s: u64,
}

/// Why a process does not count as ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// Nobody answers.
    #[error("not ready: admin at {0}: {1}")]
    Silent(SocketAddr, std::io::Error),
    /// It says so.
    #[error("not ready: {0}")]
    Says(String),
    /// It did not become ready in time.
    #[error("{1} after {0} s")]
    TooLate(u64, Box<NotReady>),
}

impl ReadyFlags {
    /// Asks once.
    ///
    /// # Errors
    /// [`NotReady`].
    pub fn run(&self) -> Result<(), NotReady> {
        ask(self.admin_address, Duration::from_millis(self.timeout_ms))
    }
}

impl WaitFlags {
    /// Asks until the process is ready.
    ///
    /// # Errors
    /// [`NotReady`].
    pub fn run(&self) -> Result<(), NotReady> {
        let deadline = Instant::now() + Duration::from_secs(self.timeout_s);
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(PAUSE);
            match ask(self.admin_address, left) {
                Ok(()) => return Ok(()),
                Err(reason) if Instant::now() >= deadline => {
                    return Err(NotReady::TooLate(self.timeout_s, Box::new(reason)));
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }
}

fn ask(admin: SocketAddr, patience: Duration) -> Result<(), NotReady> {
    let exchange = || {
        let mut stream = TcpStream::connect_timeout(&admin, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.write_all(
            format!("GET /ready HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut answer = Vec::new();
        stream.take(MOST).read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = exchange().map_err(|error| NotReady::Silent(admin, error))?;
    let status = answer.split(' ').nth(1);
    if status == Some("200") {
        return Ok(());
    }
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
    Err(NotReady::Says(format!("{} {body}", status.unwrap_or("no HTTP")).trim().to_owned()))
}
