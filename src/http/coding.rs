//! Codings of bodies (RFC 9110 §8.4.1): gzip, brotli and zstd.
//!
//! Comes in: a body piece by piece, with the moments at which it pauses and at which it ends. Goes out: the same body
//! coded, or decoded. What a decoder makes of a piece is bounded, and so is the memory that it keeps.

use brotli::enc::{BrotliEncoderParams, StandardAlloc};
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState, CompressorWriter};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use zstd::stream::raw::{self, CParameter, DParameter, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe::Strategy;

use std::io::Write;

/// A coding, with what config says of it.
#[derive(Debug, Clone)]
pub enum Library {
    /// gzip (RFC 1952): level 1 to 9, window of 2^`window` bytes (9 to 15).
    Gzip {
        /// How hard it tries.
        level: u32,
        /// The window.
        window: u8,
    },
    /// Brotli (RFC 7932).
    Brotli(Box<BrotliEncoderParams>),
    /// Zstandard (RFC 8878).
    Zstd {
        /// How hard it tries.
        level: i32,
        /// The end has a checksum.
        checksum: bool,
        /// How it searches; `None` = as the level has it.
        strategy: Option<Strategy>,
    },
}

/// What is read, whatever the options of who wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// gzip, with a window of at most 2^`window` bytes.
    Gzip {
        /// The window.
        window: u8,
    },
    /// Brotli.
    Brotli,
    /// Zstandard.
    Zstd,
}

/// Why a body cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Undecodable {
    /// It is not what it says.
    #[error("the body is not in its coding")]
    Damaged,
    /// It grows more than it may.
    #[error("a piece of the body grows beyond its limit")]
    Overflow,
}

/// Room for the next part of what comes out.
const STEP: usize = 8 * 1024;
/// A window of 8 MiB is the most that RFC 9659 lets a peer ask for.
const ZSTD_WINDOW_LOG: u32 = 23;
/// Whatever the ratio, so much may come of one piece: the end of a long match may need one byte.
const LEAST: usize = 64 * 1024;

impl Library {
    /// The token in `content-encoding`.
    pub fn token(&self) -> &'static str {
        match self {
            Library::Gzip { .. } => "gzip",
            Library::Brotli(_) => "br",
            Library::Zstd { .. } => "zstd",
        }
    }

    /// Its part in the names of statistics.
    pub fn name(&self) -> &'static str {
        match self {
            Library::Gzip { .. } => "gzip",
            Library::Brotli(_) => "brotli",
            Library::Zstd { .. } => "zstd",
        }
    }

    /// What codes one body. `None` when there is no memory for it.
    pub fn encoder(&self) -> Option<Encoder> {
        Some(match self {
            Library::Gzip { level, window } => {
                Encoder::Gzip(Box::new(Compress::new_gzip(Compression::new(*level), *window)))
            }
            Library::Brotli(params) => {
                Encoder::Brotli(Some(Box::new(CompressorWriter::with_params(Vec::new(), STEP, params))))
            }
            Library::Zstd { level, checksum, strategy } => {
                let mut encoder = raw::Encoder::new(*level).ok()?;
                encoder.set_parameter(CParameter::ChecksumFlag(*checksum)).ok()?;
                if let Some(strategy) = strategy {
                    encoder.set_parameter(CParameter::Strategy(*strategy)).ok()?;
                }
                Encoder::Zstd(Box::new(Zstd(encoder)))
            }
        })
    }
}

impl Coding {
    /// The token in `content-encoding`.
    pub fn token(self) -> &'static str {
        match self {
            Coding::Gzip { .. } => "gzip",
            Coding::Brotli => "br",
            Coding::Zstd => "zstd",
        }
    }

    /// Its part in the names of statistics.
    pub fn name(self) -> &'static str {
        match self {
            Coding::Gzip { .. } => "gzip",
            Coding::Brotli => "brotli",
            Coding::Zstd => "zstd",
        }
    }

    /// What decodes one body. `None` when there is no memory for it.
    pub fn decoder(self) -> Option<Decoder> {
        Some(match self {
            Coding::Gzip { window } => {
                Decoder::Gzip { inflate: Box::new(Decompress::new_gzip(window)), window, done: false }
            }
            Coding::Brotli => {
                let alloc = StandardAlloc::default;
                let state = BrotliState::new(alloc(), alloc(), alloc());
                Decoder::Brotli { state: Box::new(state), total: 0, done: false }
            }
            Coding::Zstd => {
                let mut decoder = raw::Decoder::new().ok()?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).ok()?;
                Decoder::Zstd(Box::new(Unzstd(decoder)))
            }
        })
    }
}

/// Codes a body.
#[allow(missing_docs)]
pub enum Encoder {
    Gzip(Box<Compress>),
    Brotli(Option<Box<CompressorWriter<Vec<u8>>>>),
    Zstd(Box<Zstd>),
}

/// Zstandard's encoder, which the enum above keeps behind a pointer.
pub struct Zstd(raw::Encoder<'static>);
/// Its decoder.
pub struct Unzstd(raw::Decoder<'static>);

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Encoder::Gzip(_) => "Encoder(gzip)",
            Encoder::Brotli(_) => "Encoder(brotli)",
            Encoder::Zstd(_) => "Encoder(zstd)",
        })
    }
}

impl Encoder {
    /// Takes the next piece in; some of what it becomes is appended to `out`. `None` if it cannot be coded.
    pub fn piece(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Option<()> {
        match self {
            Encoder::Gzip(deflate) => deflate_all(deflate, piece, FlushCompress::None, out),
            Encoder::Brotli(writer) => {
                let writer = writer.as_mut()?;
                writer.write_all(piece).ok()?;
                out.append(writer.get_mut());
                Some(())
            }
            Encoder::Zstd(zstd) => {
                let mut input = InBuffer::around(piece);
                while input.pos() < piece.len() {
                    part(out, |part| zstd.0.run(&mut input, part)).ok()?;
                }
                Some(())
            }
        }
    }

    /// All that was taken in so far comes out: nothing follows for now.
    pub fn flush(&mut self, out: &mut Vec<u8>) -> Option<()> {
        match self {
            Encoder::Gzip(deflate) => deflate_all(deflate, &[], FlushCompress::Sync, out),
            Encoder::Brotli(writer) => {
                let writer = writer.as_mut()?;
                writer.flush().ok()?;
                out.append(writer.get_mut());
                Some(())
            }
            Encoder::Zstd(zstd) => {
                while part(out, |part| zstd.0.flush(part)).ok()? > 0 {}
                Some(())
            }
        }
    }

    /// The end of the body.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Option<()> {
        match self {
            Encoder::Gzip(deflate) => deflate_all(deflate, &[], FlushCompress::Finish, out),
            Encoder::Brotli(writer) => {
                out.append(&mut writer.take()?.into_inner());
                Some(())
            }
            Encoder::Zstd(zstd) => {
                while part(out, |part| zstd.0.finish(part, true)).ok()? > 0 {}
                Some(())
            }
        }
    }
}

fn deflate_all(
    deflate: &mut Compress,
    mut piece: &[u8],
    flush: FlushCompress,
    out: &mut Vec<u8>,
) -> Option<()> {
    loop {
        out.reserve(STEP);
        let (before_in, room) = (deflate.total_in(), out.capacity() - out.len());
        let (before_out, nothing) = (out.len(), piece.is_empty());
        let status = deflate.compress_vec(piece, out, flush).ok()?;
        let taken = usize::try_from(deflate.total_in() - before_in).ok()?;
        piece = piece.get(taken..)?;
        let full = out.len() - before_out == room;
        match status {
            Status::StreamEnd => return Some(()),
            _ if full => {}
            Status::BufError if nothing => return Some(()),
            _ if piece.is_empty() && !matches!(flush, FlushCompress::Finish) => return Some(()),
            _ => {}
        }
    }
}

/// Lets `step` append to `out`, with some room for it.
fn part<R>(out: &mut Vec<u8>, step: impl FnOnce(&mut OutBuffer<'_, Vec<u8>>) -> R) -> R {
    out.reserve(STEP);
    let at = out.len();
    step(&mut OutBuffer::around_pos(out, at))
}

type Brotli = BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>;

/// Decodes a body. What follows its end is passed over, but for a further member of gzip.
#[allow(missing_docs)]
pub enum Decoder {
    Gzip { inflate: Box<Decompress>, window: u8, done: bool },
    Brotli { state: Box<Brotli>, total: usize, done: bool },
    Zstd(Box<Unzstd>),
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Decoder::Gzip { .. } => "Decoder(gzip)",
            Decoder::Brotli { .. } => "Decoder(brotli)",
            Decoder::Zstd(_) => "Decoder(zstd)",
        })
    }
}

/// The first byte of a member of gzip.
const MAGIC: u8 = 0x1f;

impl Decoder {
    /// Decodes the next piece, to at most `ratio` times its length, or 64 KiB.
    ///
    /// # Errors
    /// [`Undecodable`]; nothing more can be had of the body then.
    pub fn piece(&mut self, mut piece: &[u8], ratio: usize) -> Result<Vec<u8>, Undecodable> {
        let most = piece.len().saturating_mul(ratio).max(LEAST);
        let mut out = Vec::new();
        match self {
            Decoder::Gzip { inflate, window, done } => loop {
                if *done {
                    if piece.first() != Some(&MAGIC) {
                        return Ok(out);
                    }
                    **inflate = Decompress::new_gzip(*window);
                    *done = false;
                }
                out.reserve(STEP);
                let (before, had, room) = (inflate.total_in(), out.len(), out.capacity() - out.len());
                let status = inflate
                    .decompress_vec(piece, &mut out, FlushDecompress::None)
                    .map_err(|_| Undecodable::Damaged)?;
                let taken = usize::try_from(inflate.total_in() - before).unwrap_or(usize::MAX);
                piece = piece.get(taken..).unwrap_or_default();
                if out.len() > most {
                    return Err(Undecodable::Overflow);
                }
                let full = out.len() - had == room;
                match status {
                    Status::StreamEnd => *done = true,
                    _ if full => {}
                    _ if piece.is_empty() || taken == 0 => return Ok(out),
                    _ => {}
                }
            },
            Decoder::Brotli { state, total, done } => {
                if *done {
                    return Ok(out);
                }
                let (mut left, mut read) = (piece.len(), 0);
                let mut buffer = [0; STEP];
                loop {
                    let (mut room, mut written) = (buffer.len(), 0);
                    let result = BrotliDecompressStream(
                        &mut left,
                        &mut read,
                        piece,
                        &mut room,
                        &mut written,
                        &mut buffer,
                        total,
                        state,
                    );
                    out.extend_from_slice(buffer.get(..written).unwrap_or_default());
                    if out.len() > most {
                        return Err(Undecodable::Overflow);
                    }
                    match result {
                        BrotliResult::NeedsMoreOutput => {}
                        // Where it has filled the room, there may be more inside.
                        BrotliResult::NeedsMoreInput if written == buffer.len() => {}
                        BrotliResult::NeedsMoreInput => return Ok(out),
                        BrotliResult::ResultSuccess => {
                            *done = true;
                            return Ok(out);
                        }
                        BrotliResult::ResultFailure => return Err(Undecodable::Damaged),
                    }
                }
            }
            Decoder::Zstd(decoder) => {
                let mut input = InBuffer::around(piece);
                loop {
                    let had = out.len();
                    out.reserve(STEP);
                    let room = out.capacity() - had;
                    let mut part = OutBuffer::around_pos(&mut out, had);
                    decoder.0.run(&mut input, &mut part).map_err(|_| Undecodable::Damaged)?;
                    if out.len() > most {
                        return Err(Undecodable::Overflow);
                    }
                    // Where it has filled the room, there may be more inside.
                    if input.pos() == piece.len() && out.len() - had < room {
                        return Ok(out);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libraries() -> [(Library, Coding); 3] {
        let zstd = Library::Zstd { level: 3, checksum: true, strategy: Some(Strategy::ZSTD_fast) };
        [
            (Library::Gzip { level: 6, window: 12 }, Coding::Gzip { window: 15 }),
            (Library::Brotli(Box::default()), Coding::Brotli),
            (zstd, Coding::Zstd),
        ]
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|at| b"the quick brown fox "[(at * at / 7) % 20]).collect()
    }

    #[test]
    fn bodies_come_back_whatever_the_cuts_and_pauses() {
        for (library, coding) in libraries() {
            for length in [0, 1, 100, 70_000] {
                let body = text(length);
                for cut in [1, 13, 5000, 100_000] {
                    let mut encoder = library.encoder().unwrap();
                    let mut coded = Vec::new();
                    for (at, piece) in body.chunks(cut.max(length / 50)).enumerate() {
                        encoder.piece(piece, &mut coded).unwrap();
                        if at % 3 == 0 {
                            encoder.flush(&mut coded).unwrap();
                            encoder.flush(&mut coded).unwrap();
                        }
                    }
                    encoder.finish(&mut coded).unwrap();
                    let mut decoder = coding.decoder().unwrap();
                    let mut decoded = Vec::new();
                    for piece in coded.chunks(cut) {
                        decoded.extend(decoder.piece(piece, 10_000).unwrap());
                    }
                    assert!(decoded == body, "{} {length} {cut}", library.name());
                    assert_eq!(decoder.piece(b"garbage", 100).unwrap_or_default(), b"");
                }
            }
        }
    }

    #[test]
    fn what_was_flushed_can_be_read() {
        for (library, coding) in libraries() {
            let (mut encoder, mut decoder) = (library.encoder().unwrap(), coding.decoder().unwrap());
            for length in [1, 50_000, 10] {
                let (body, mut coded) = (text(length), Vec::new());
                encoder.piece(&body, &mut coded).unwrap();
                encoder.flush(&mut coded).unwrap();
                assert!(decoder.piece(&coded, 10_000).unwrap() == body, "{} {length}", library.name());
            }
        }
    }

    #[test]
    fn bombs_and_noise_are_refused() {
        for (library, coding) in libraries() {
            let mut coded = Vec::new();
            let mut encoder = library.encoder().unwrap();
            encoder.piece(&vec![0; 30_000_000], &mut coded).unwrap();
            encoder.finish(&mut coded).unwrap();
            let refused = |piece: &[u8], ratio| coding.decoder().unwrap().piece(piece, ratio).unwrap_err();
            assert_eq!(refused(&coded, 100), Undecodable::Overflow, "{}", library.name());
            assert_eq!(refused(&[0x0f; 300], 100), Undecodable::Damaged, "{}", library.name());
            let end = coded.len() / 2;
            if library.name() == "gzip" {
                assert_eq!(refused(&coded[..end], 100), Undecodable::Overflow);
                coded[20] ^= 0xff;
                assert!(coding.decoder().unwrap().piece(&coded, 100_000).is_err());
            }
        }
    }

    #[test]
    fn members_of_gzip_follow_one_another() {
        let mut coded = Vec::new();
        for part in ["one ", "two"] {
            let mut encoder = Library::Gzip { level: 1, window: 15 }.encoder().unwrap();
            encoder.piece(part.as_bytes(), &mut coded).unwrap();
            encoder.finish(&mut coded).unwrap();
        }
        let mut decoder = Coding::Gzip { window: 15 }.decoder().unwrap();
        assert_eq!(decoder.piece(&coded, 100).unwrap(), b"one two");
    }
}
