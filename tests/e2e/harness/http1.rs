//! A small HTTP/1 reader for the tests, written apart from the product's codec so that they cannot share a mistake.
//! It is lenient about what it reads and exact about what it reports.

use std::fmt;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How the end of a message was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Empty,
    Length(usize),
    Chunked,
    UntilClose,
}

/// A request or a response as it stood on the wire.
#[derive(Debug, Clone)]
pub struct Message {
    pub start_line: String,
    /// In order, names as written, values trimmed.
    pub headers: Vec<(String, String)>,
    pub framing: Framing,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// False when the peer went away before the end that the framing promised.
    pub complete: bool,
    /// The head exactly as received, including the empty line.
    pub raw_head: Vec<u8>,
}

impl Message {
    /// All values of a header, case-insensitively by name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The status of a response; 0 when the start line has none.
    pub fn status(&self) -> u16 {
        self.start_line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
    }

    /// The target of a request.
    pub fn target(&self) -> &str {
        self.start_line.split(' ').nth(1).unwrap_or("")
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Why no message could be read.
#[derive(Debug)]
pub enum ReadError {
    /// The peer closed in good order; these bytes came before it.
    Closed(Vec<u8>),
    /// The connection was reset.
    Reset,
    /// What came is not HTTP.
    Malformed(String),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Closed(rest) if rest.is_empty() => write!(f, "closed"),
            ReadError::Closed(rest) => write!(f, "closed after {:?}", String::from_utf8_lossy(rest)),
            ReadError::Reset => write!(f, "reset"),
            ReadError::Malformed(what) => write!(f, "malformed: {what}"),
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(_: io::Error) -> Self {
        ReadError::Reset
    }
}

/// Reads messages from one direction of a connection and keeps what came too early.
pub struct Reader<R> {
    io: R,
    pub buffered: Vec<u8>,
    ended: bool,
}

/// Latin-1, so that every byte shows.
fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(io: R) -> Self {
        Reader { io, buffered: Vec::new(), ended: false }
    }

    /// What it reads from.
    pub fn io(&self) -> &R {
        &self.io
    }

    /// Reads more bytes; false at the end of the stream.
    pub async fn fill(&mut self) -> Result<bool, ReadError> {
        if self.ended {
            return Ok(false);
        }
        let mut chunk = vec![0u8; 64 * 1024];
        let n = self.io.read(&mut chunk).await?;
        self.buffered.extend_from_slice(&chunk[..n]);
        self.ended = n == 0;
        Ok(n > 0)
    }

    /// The bytes up to and including `mark`.
    async fn until(&mut self, mark: &[u8]) -> Result<Vec<u8>, ReadError> {
        let mut from = 0;
        loop {
            if let Some(at) = self.buffered[from..].windows(mark.len()).position(|w| w == mark) {
                return Ok(self.buffered.drain(..from + at + mark.len()).collect());
            }
            from = self.buffered.len().saturating_sub(mark.len() - 1);
            if !self.fill().await? {
                return Err(ReadError::Closed(std::mem::take(&mut self.buffered)));
            }
        }
    }

    /// Start line and headers; the body is still to come.
    pub async fn head(&mut self) -> Result<Message, ReadError> {
        let raw_head = self.until(b"\r\n\r\n").await?;
        let lines = text(&raw_head);
        let mut lines = lines.trim_end_matches("\r\n").split("\r\n");
        let start_line = lines.next().unwrap_or("").to_string();
        let mut headers = Vec::new();
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                return Err(ReadError::Malformed(format!("header line {line:?}")));
            };
            headers.push((name.to_string(), value.trim_matches([' ', '\t']).to_string()));
        }
        let framing = Framing::Empty;
        Ok(Message {
            start_line,
            headers,
            framing,
            body: vec![],
            trailers: vec![],
            complete: false,
            raw_head,
        })
    }

    /// How the body of a request is framed.
    pub fn request_framing(head: &Message) -> Framing {
        if head.all("transfer-encoding").any(|v| v.to_ascii_lowercase().contains("chunked")) {
            return Framing::Chunked;
        }
        match head.header("content-length").and_then(|v| v.parse().ok()) {
            Some(n) => Framing::Length(n),
            None => Framing::Empty,
        }
    }

    /// How the body of a response is framed.
    pub fn response_framing(head: &Message, to_head: bool) -> Framing {
        let status = head.status();
        if to_head || (100..200).contains(&status) || status == 204 || status == 304 {
            return Framing::Empty;
        }
        match Self::request_framing(head) {
            Framing::Empty => Framing::UntilClose,
            framing => framing,
        }
    }

    /// Reads the body that `message.framing` promises into it. An early end is not an error: `complete` stays false.
    pub async fn body(&mut self, message: &mut Message) -> Result<(), ReadError> {
        match message.framing {
            Framing::Empty => message.complete = true,
            Framing::Length(n) => {
                while self.buffered.len() < n && self.fill().await? {}
                let take = n.min(self.buffered.len());
                message.body.extend(self.buffered.drain(..take));
                message.complete = take == n;
            }
            Framing::UntilClose => {
                while self.fill().await? {}
                message.body.append(&mut self.buffered);
                message.complete = true;
            }
            Framing::Chunked => self.chunks(message).await?,
        }
        Ok(())
    }

    async fn chunks(&mut self, message: &mut Message) -> Result<(), ReadError> {
        loop {
            let line = match self.until(b"\r\n").await {
                Ok(line) => text(&line),
                Err(ReadError::Closed(_)) => return Ok(()),
                Err(e) => return Err(e),
            };
            let digits = line.trim_end().split(';').next().unwrap_or("").trim().to_string();
            let Ok(size) = usize::from_str_radix(&digits, 16) else {
                return Err(ReadError::Malformed(format!("chunk size {line:?}")));
            };
            if size == 0 {
                break;
            }
            while self.buffered.len() < size + 2 && self.fill().await? {}
            if self.buffered.len() < size + 2 {
                message.body.append(&mut self.buffered);
                return Ok(());
            }
            message.body.extend(self.buffered.drain(..size));
            if self.buffered.drain(..2).collect::<Vec<_>>() != b"\r\n" {
                return Err(ReadError::Malformed("no line end after a chunk".to_string()));
            }
        }
        loop {
            let line = match self.until(b"\r\n").await {
                Ok(line) => text(&line),
                Err(ReadError::Closed(_)) => return Ok(()),
                Err(e) => return Err(e),
            };
            let line = line.trim_end_matches("\r\n");
            if line.is_empty() {
                message.complete = true;
                return Ok(());
            }
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            message.trailers.push((name.to_string(), value.trim().to_string()));
        }
    }

    /// A whole response, interim ones (1xx except 101) included one by one.
    pub async fn response(&mut self, to_head: bool) -> Result<Message, ReadError> {
        let mut message = self.head().await?;
        message.framing = Self::response_framing(&message, to_head);
        match self.body(&mut message).await {
            Ok(()) | Err(ReadError::Reset) => Ok(message),
            Err(e) => Err(e),
        }
    }
}
