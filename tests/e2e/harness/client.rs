//! A client that sends exactly the bytes it is told to and reads whole responses.

use super::http1::{Message, ReadError, Reader};
use super::DEADLINE;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// One connection to a proxy.
pub struct Client {
    pub reader: Reader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    local: SocketAddr,
}

impl Client {
    /// Connects to a port on loopback.
    pub async fn connect(port: u16) -> io::Result<Client> {
        let stream = timeout(DEADLINE, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await??;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let (read, writer) = stream.into_split();
        Ok(Client { reader: Reader::new(read), writer, local })
    }

    /// The client's end of the connection.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends these bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(DEADLINE, self.writer.write_all(bytes)).await?
    }

    /// Makes the close that follows (when this is dropped) a reset.
    pub fn reset(&self) {
        let stream: &TcpStream = self.writer.as_ref();
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }

    /// Closes the sending direction only.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.writer.shutdown().await
    }

    /// The next response; `None` when none came within the deadline.
    pub async fn response_within(
        &mut self,
        to_head: bool,
        deadline: Duration,
    ) -> Option<Result<Message, ReadError>> {
        timeout(deadline, self.reader.response(to_head)).await.ok()
    }

    /// The next response, which must come.
    pub async fn response(&mut self) -> Message {
        match self.response_within(false, DEADLINE).await {
            Some(Ok(message)) => message,
            Some(Err(e)) => panic!("no response: {e}"),
            None => panic!("no response within {DEADLINE:?}"),
        }
    }

    /// Sends a request and reads its response, skipping interim ones.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Message, ReadError> {
        self.send(request).await?;
        loop {
            let to_head = request.starts_with(b"HEAD ");
            let message = match timeout(DEADLINE, self.reader.response(to_head)).await {
                Ok(message) => message?,
                Err(_) => return Err(ReadError::Malformed(format!("no response within {DEADLINE:?}"))),
            };
            if message.status() >= 200 || message.status() == 101 {
                return Ok(message);
            }
        }
    }

    /// Waits for the peer to close; false when it does not within the deadline. Bytes on the way are dropped.
    pub async fn closed(&mut self, deadline: Duration) -> bool {
        let wait = async {
            while let Ok(true) = self.reader.fill().await {
                self.reader.buffered.clear();
            }
        };
        timeout(deadline, wait).await.is_ok()
    }
}

/// A GET of `path` from `port` on a connection of its own.
pub async fn get(port: u16, path: &str) -> Result<Message, ReadError> {
    let mut client = Client::connect(port).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    client.exchange(request.as_bytes()).await
}
