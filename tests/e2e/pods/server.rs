//! An application: what it does depends on the port that it is asked on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::mesh::Pod;
use crate::harness::DEADLINE;
use crate::resilience::origin::BODY;

/// Sends back what it gets, and its end after the client's.
pub const ECHO: u16 = 7000;
/// Says hello before the client says anything, then is an echo.
pub const GREETS: u16 = 7001;
/// Reads to the end, then says how many bytes that were.
pub const COUNTS: u16 = 7002;
/// Resets the connection at the first byte.
pub const RESETS: u16 = 7003;
/// Answers requests of HTTP/1.1.
pub const HTTP: u16 = 7004;
/// An echo as [`ECHO`].
pub const OTHER: u16 = 7005;

/// Answers requests of HTTP/1.1 as the origins of loads do.
pub const PLENTY: u16 = 7006;
/// As [`GREETS`]; no sidecar takes TLS there.
pub const WELCOMES: u16 = 7007;

pub const GREETING: &[u8] = b"220 hello from the server\r\n";

/// Who connected to the application, as it saw them.
#[derive(Clone, Default)]
pub struct Application {
    peers: Arc<Mutex<Vec<(u16, SocketAddr)>>>,
}

impl Application {
    /// Starts it in `pod`. It ends with the test's process.
    pub fn start(pod: &Pod) -> Application {
        let application = Application::default();
        for port in [ECHO, GREETS, COUNTS, RESETS, HTTP, OTHER, PLENTY, WELCOMES] {
            let (listener, known) = (pod.listen(port), application.clone());
            std::thread::spawn(move || known.accept(&listener, port));
        }
        application
    }

    fn accept(&self, listener: &TcpListener, port: u16) {
        while let Ok((stream, peer)) = listener.accept() {
            self.peers.lock().expect("peers").push((port, peer));
            std::thread::spawn(move || {
                let _ = stream.set_read_timeout(Some(DEADLINE * 3));
                let _ = stream.set_nodelay(true);
                let _ = serve(stream, port);
            });
        }
    }

    /// The addresses of those who connected to this port.
    pub fn peers(&self, port: u16) -> Vec<SocketAddr> {
        let peers = self.peers.lock().expect("peers");
        peers.iter().filter(|(of, _)| *of == port).map(|(_, peer)| *peer).collect()
    }
}

fn serve(mut stream: TcpStream, port: u16) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    match port {
        COUNTS => {
            let count = std::io::copy(&mut stream, &mut std::io::sink())?;
            write!(stream, "{count} bytes")?;
        }
        RESETS => {
            stream.read_exact(&mut [0])?;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        HTTP | PLENTY => {
            let mut head = Vec::new();
            loop {
                let count = stream.read(&mut buffer)?;
                head.extend_from_slice(&buffer[..count]);
                if count == 0 {
                    return Ok(());
                }
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    let answer = match port {
                        PLENTY => format!(
                            "HTTP/1.1 200 OK\r\nx-origin: 0\r\ncontent-length: {BODY}\r\n\r\n{:BODY$}",
                            ""
                        ),
                        _ => "HTTP/1.1 200 OK\r\nserver: the-app\r\ncontent-length: 2\r\n\r\nhi".to_string(),
                    };
                    stream.write_all(answer.as_bytes())?;
                }
            }
        }
        _ => {
            if matches!(port, GREETS | WELCOMES) {
                stream.write_all(GREETING)?;
            }
            loop {
                let count = stream.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                stream.write_all(&buffer[..count])?;
            }
            stream.shutdown(Shutdown::Write)?;
        }
    }
    Ok(())
}
