//! The little of HTTP/1.1 that both ends need: where a head and a body end, and what a head says about that.

/// The longest head, and the longest line of a chunked body.
pub const MAX_HEAD: usize = 64 * 1024;

/// The bytes are no HTTP/1.1.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not valid HTTP/1.1")]
pub struct Invalid;

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its status.
    pub status: u16,
    /// The connection ends after it.
    pub close: bool,
    /// Bytes of the head, its empty line included.
    pub length: usize,
    /// Where the body ends.
    pub body: Body,
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// After so many bytes.
    Length(u64),
    /// Where its chunks say.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// The length of the head at the start of the bytes, its empty line included, if it is whole.
///
/// # Errors
/// It is too long.
pub fn head_length(bytes: &[u8]) -> Result<Option<usize>, Invalid> {
    match memchr::memmem::find(bytes, b"\r\n\r\n") {
        Some(at) => Ok(Some(at + 4)),
        None if bytes.len() > MAX_HEAD => Err(Invalid),
        None => Ok(None),
    }
}

/// The name and value of a line of a head.
pub fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = memchr::memchr(b':', line)?;
    let (name, value) = line.split_at_checked(colon)?;
    Some((name, value.get(1..)?.trim_ascii()))
}

/// The lines of a head, its first one included, its empty one not.
pub fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = head.strip_suffix(b"\r\n\r\n").unwrap_or(head);
    let mut rest = Some(lines);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = memchr::memchr(b'\n', text);
        let (line, after) = match end {
            Some(end) => (text.get(..end)?, text.get(end + 1..)),
            None => (text, None),
        };
        rest = after;
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    })
}

/// A number of decimal digits.
pub fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Whether a comma-separated value has this element, given in lower case.
pub fn lists(value: &[u8], element: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(element))
}

/// The head of an answer at the start of the bytes, if it is whole.
///
/// # Errors
/// It is none.
pub fn parse_answer(bytes: &[u8]) -> Result<Option<Head>, Invalid> {
    let start = b"HTTP/1.";
    if !bytes.starts_with(start.get(..bytes.len().min(start.len())).unwrap_or_default()) {
        return Err(Invalid);
    }
    let Some(length) = head_length(bytes)? else { return Ok(None) };
    let mut lines = lines(bytes.get(..length).unwrap_or_default());
    let first = lines.next().ok_or(Invalid)?;
    let status = first.get(9..12).and_then(number).filter(|status| *status >= 100).ok_or(Invalid)? as u16;
    let mut close = first.get(7) == Some(&b'0');
    let empty = matches!(status, 100..=199 | 204 | 304);
    let mut body = if empty { Body::Length(0) } else { Body::UntilClose };
    for (name, value) in lines.filter_map(field) {
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") && body != Body::Chunked && !empty => {
                body = Body::Length(number(value).ok_or(Invalid)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") && !empty && lists(value, b"chunked") => {
                body = Body::Chunked;
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                close = lists(value, b"close") || (close && !lists(value, b"keep-alive"));
            }
            _ => {}
        }
    }
    close |= body == Body::UntilClose;
    Ok(Some(Head { status, close, length, body }))
}

/// Finds the end of a chunked body, in strides where data is.
#[derive(Default)]
pub struct Chunks {
    /// Data of the current chunk still to come, with its line end.
    data: u64,
    line: Vec<u8>,
    /// The last chunk has come; the trailers are left.
    last: bool,
}

impl Chunks {
    /// How many of the bytes belong to the body, and whether it ends with them.
    ///
    /// # Errors
    /// They are no chunks.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(usize, bool), Invalid> {
        let mut used = 0;
        while let Some(&byte) = bytes.get(used) {
            if self.data > 0 {
                let step = self.data.min((bytes.len() - used) as u64);
                self.data -= step;
                used += step as usize;
                continue;
            }
            used += 1;
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() > MAX_HEAD {
                    return Err(Invalid);
                }
                continue;
            }
            let text = std::str::from_utf8(&self.line).map_err(|_| Invalid)?.trim_end_matches('\r');
            if self.last {
                let done = text.is_empty();
                self.line.clear();
                if done {
                    return Ok((used, true));
                }
                continue;
            }
            let size = text.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(|_| Invalid)?;
            self.line.clear();
            self.last = size == 0;
            self.data = if self.last { 0 } else { size.checked_add(2).ok_or(Invalid)? };
        }
        Ok((used, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read() {
        let head = parse_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap().unwrap();
        assert_eq!(head, Head { status: 200, close: false, length: 38, body: Body::Length(5) });
        let head = parse_answer(b"HTTP/1.0 404 No\r\n\r\n").unwrap().unwrap();
        assert_eq!(head, Head { status: 404, close: true, length: 19, body: Body::UntilClose });
        let head = parse_answer(b"HTTP/1.1 304 x\r\ncontent-length: 9\r\nconnection: close\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!((head.body, head.close), (Body::Length(0), true));
        assert_eq!(parse_answer(b"HTTP/1.1 200 OK\r\n").unwrap(), None);
        assert!(parse_answer(b"SSH-2.0\r\n\r\n").is_err());
        assert!(parse_answer(b"HTTP/1.1 2x0 OK\r\n\r\n").is_err());
    }

    #[test]
    fn chunks_end_where_they_end_however_they_are_cut() {
        let body = b"5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nt: v\r\n\r\n";
        for cut in 0..body.len() {
            let (front, back) = body.split_at(cut);
            let mut chunks = Chunks::default();
            assert_eq!(chunks.take(front).unwrap(), (cut, false), "cut at {cut}");
            assert_eq!(chunks.take(back).unwrap(), (back.len(), true), "cut at {cut}");
        }
        assert!(Chunks::default().take(b"x\r\n").is_err());
        assert_eq!(Chunks::default().take(b"0\r\n\r\nmore").unwrap(), (5, true));
    }
}
