//! Reading the server name and the application protocols out of a TLS ClientHello.
//!
//! Comes in: the first bytes of a connection, again each time there are more. Goes out: a
//! [`Verdict`]. Like Envoy's inspector it calls anything that is not a well-formed hello "not TLS"
//! and leaves it to the filter chains what to do with that.

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// So far a ClientHello, but not all of it.
    NeedMore,
    /// Not a ClientHello.
    NotTls,
    /// A whole ClientHello.
    Hello(Hello),
}

/// What a ClientHello tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The server's name in lower case. `None` also when it holds anything but visible ASCII, which
    /// no chain could name and no log should show.
    pub server_name: Option<Box<str>>,
    /// ALPN in the client's order; entries that are not UTF-8 are left out.
    pub alpn: Vec<Box<str>>,
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const RECORD_HEADER: usize = 5;
/// Record sizes that BoringSSL accepts: 2^14 and room for expansion.
const MAX_RECORD: usize = (16 << 10) + 320;
/// A longer handshake message is no ClientHello that a server would take.
const MAX_MESSAGE: usize = super::MAX_BYTES;
/// Longest server name in a hello.
const MAX_NAME: usize = 255;

/// The parser's place in the bytes, so that each record is looked at once however slowly the bytes
/// come.
#[derive(Debug, Default)]
pub struct HelloParser {
    /// Where the next record starts.
    next: usize,
    /// The handshake message so far, when it is spread over records.
    message: Vec<u8>,
}

impl HelloParser {
    /// Looks at `bytes`: everything received so far, the earlier calls' bytes included.
    pub fn look(&mut self, bytes: &[u8]) -> Verdict {
        if self.next == 0 {
            if let Some(verdict) = old_hello(bytes) {
                return verdict;
            }
        }
        loop {
            let rest = bytes.get(self.next..).unwrap_or_default();
            // Each byte of the header decides as soon as it is there.
            if rest.first().is_some_and(|kind| *kind != HANDSHAKE)
                || rest.get(1).is_some_and(|major| *major != 3)
            {
                return Verdict::NotTls;
            }
            let &[_, _, _, high, low, ..] = rest else {
                return Verdict::NeedMore;
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if length > MAX_RECORD {
                return Verdict::NotTls;
            }
            let Some(record) = rest.get(RECORD_HEADER..RECORD_HEADER + length) else {
                return Verdict::NeedMore;
            };
            self.next += RECORD_HEADER + length;
            let message = if self.message.is_empty() {
                record
            } else {
                self.message.extend_from_slice(record);
                &self.message
            };
            if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
                return Verdict::NotTls;
            }
            if let &[_, a, b, c, ref body @ ..] = message {
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                if length > MAX_MESSAGE {
                    return Verdict::NotTls;
                }
                if let Some(body) = body.get(..length) {
                    return Hello::parse(body).map_or(Verdict::NotTls, Verdict::Hello);
                }
            }
            if self.message.is_empty() {
                self.message.extend_from_slice(record);
            }
        }
    }
}

/// The hello of SSL 2, in which TLS clients of old could greet. It names no server.
fn old_hello(bytes: &[u8]) -> Option<Verdict> {
    if bytes.first()? & 0x80 == 0 {
        return None;
    }
    Some(match bytes {
        [_, _, kind, ..] if *kind != CLIENT_HELLO => Verdict::NotTls,
        [_, _, _, major, ..] if *major != 3 => Verdict::NotTls,
        [_, _, _, _, ..] => Verdict::Hello(Hello::default()),
        _ => Verdict::NeedMore,
    })
}

impl Hello {
    /// Parses a ClientHello's body; `None` if it is malformed.
    fn parse(body: &[u8]) -> Option<Self> {
        let mut body = Reader(body);
        body.take(2)?; // legacy version
        body.take(32)?; // random
        if body.u8_prefixed()?.len() > 32 {
            return None; // session id
        }
        let suites = body.u16_prefixed()?;
        if suites.len() < 2 || suites.len() % 2 != 0 || body.u8_prefixed()?.is_empty() {
            return None; // cipher suites, compression methods
        }
        let mut hello = Self::default();
        if body.0.is_empty() {
            return Some(hello);
        }
        let mut extensions = Reader(body.u16_prefixed()?);
        if !body.0.is_empty() {
            return None;
        }
        let (mut named, mut listed) = (false, false);
        while !extensions.0.is_empty() {
            let kind = extensions.u16()?;
            let data = extensions.u16_prefixed()?;
            match kind {
                // Twice the same extension: two parsers could take different ones.
                SERVER_NAME if named => return None,
                SERVER_NAME => {
                    named = true;
                    hello.server_name = visible(server_name(data)?);
                }
                ALPN if listed => return None,
                ALPN => {
                    listed = true;
                    hello.alpn = protocols(data)?;
                }
                _ => {}
            }
        }
        Some(hello)
    }
}

/// The one host name that a server_name extension may hold.
fn server_name(data: &[u8]) -> Option<&[u8]> {
    let mut data = Reader(data);
    let mut list = Reader(data.u16_prefixed()?);
    let is_host = list.take(1)? == [0];
    let name = list.u16_prefixed()?;
    let sane = !name.is_empty() && name.len() <= MAX_NAME && !name.contains(&0);
    (is_host && sane && list.0.is_empty() && data.0.is_empty()).then_some(name)
}

fn visible(name: &[u8]) -> Option<Box<str>> {
    let name = std::str::from_utf8(name).ok()?;
    name.bytes().all(|byte| byte.is_ascii_graphic()).then(|| name.to_ascii_lowercase().into())
}

fn protocols(data: &[u8]) -> Option<Vec<Box<str>>> {
    let mut data = Reader(data);
    let mut list = Reader(data.u16_prefixed()?);
    if list.0.is_empty() || !data.0.is_empty() {
        return None;
    }
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let protocol = list.u8_prefixed()?;
        if protocol.is_empty() {
            return None;
        }
        protocols.extend(std::str::from_utf8(protocol).ok().map(Into::into));
    }
    Some(protocols)
}

/// Takes parts off the front of a message; `None` when it is too short.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (part, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(part)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn u8_prefixed(&mut self) -> Option<&'a [u8]> {
        let length = *self.take(1)?.first()?;
        self.take(length.into())
    }

    fn u16_prefixed(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}
