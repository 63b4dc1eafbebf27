//! HPACK's Huffman code (RFC 7541 appendix B), as far as strings must be looked into: it is canonical, so that the
//! lengths of its codes say all of it.

use std::sync::LazyLock;

/// Bits of the code of each byte, and of the end of a string.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, //
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, //
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, //
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, //
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
const LONGEST: usize = 30;

struct Code {
    /// The first code of each length, how many there are, and where their symbols begin.
    first: [u32; LONGEST + 1],
    count: [u32; LONGEST + 1],
    start: [u32; LONGEST + 1],
    symbols: Vec<u16>,
}

static CODE: LazyLock<Code> = LazyLock::new(|| {
    let mut code = Code {
        first: [0; LONGEST + 1],
        count: [0; LONGEST + 1],
        start: [0; LONGEST + 1],
        symbols: Vec::with_capacity(LENGTHS.len()),
    };
    let mut next = 0u32;
    for length in 1..=LONGEST {
        next <<= 1;
        // Lengths are below the arrays' size.
        code.first[length] = next;
        code.start[length] = u32::try_from(code.symbols.len()).unwrap_or(0);
        for (symbol, _) in (0u16..).zip(LENGTHS).filter(|(_, bits)| usize::from(*bits) == length) {
            code.symbols.push(symbol);
            code.count[length] += 1;
            next += 1;
        }
    }
    code
});

/// The string; `None` when it is no string in this code, or is padded wrongly (RFC 7541 §5.2).
pub fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let code = &*CODE;
    let mut out = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut value, mut length) = (0u32, 0usize);
    for byte in bytes {
        for bit in (0..8).rev() {
            value = value << 1 | u32::from(byte >> bit & 1);
            length += 1;
            let within = value.wrapping_sub(*code.first.get(length)?);
            if within < *code.count.get(length)? {
                let place = usize::try_from(code.start.get(length)? + within).ok()?;
                // The end of a string is no part of one.
                out.push(u8::try_from(*code.symbols.get(place)?).ok()?);
                (value, length) = (0, 0);
            }
        }
    }
    // What is left are ones, fewer than a byte.
    (length < 8 && value == (1 << length) - 1).then_some(out)
}

/// Whether the string may have control characters, or bytes outside ASCII, in it: their codes begin with ten ones
/// or more. Costs next to nothing; few other strings are suspected.
pub fn is_suspect(bytes: &[u8]) -> bool {
    let mut ones = 0;
    for byte in bytes {
        if *byte == 0xff {
            ones += 8;
        } else {
            if ones + byte.leading_ones() >= 10 {
                return true;
            }
            ones = byte.trailing_ones();
        }
    }
    ones >= 10
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &[u8]) -> Vec<u8> {
        let code = &*CODE;
        let mut bits = Vec::new();
        for byte in text {
            let length = usize::from(LENGTHS[usize::from(*byte)]);
            let start = code.start[length] as usize;
            let place = code.symbols[start..].iter().position(|symbol| *symbol == u16::from(*byte)).unwrap();
            let value = code.first[length] + place as u32;
            bits.extend((0..length).rev().map(|bit| (value >> bit & 1) as u8));
        }
        bits.resize(bits.len().next_multiple_of(8), 1);
        bits.chunks(8).map(|byte| byte.iter().fold(0, |all, bit| all << 1 | bit)).collect()
    }

    #[test]
    fn the_examples_of_the_rfc() {
        // RFC 7541 C.4.1, C.6.1.
        let host = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decode(&host).as_deref(), Some(&b"www.example.com"[..]));
        assert_eq!(decode(&[0x64, 0x02]).as_deref(), Some(&b"302"[..]));
        assert_eq!(decode(&[]).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn every_byte_comes_back_and_bad_ones_are_suspected() {
        for byte in 0..=255u8 {
            for before in ["", "a", "aa", "ab!", "0:", "X"] {
                let text = [before.as_bytes(), &[byte], b"tail"].concat();
                let coded = encode(&text);
                assert_eq!(decode(&coded), Some(text));
                if (byte < 32 && byte != 9) || byte >= 127 {
                    assert!(is_suspect(&coded), "{byte} after {before}");
                }
            }
        }
        assert!(!is_suspect(&encode(b"/api/v1/users?id=7&x=y")));
    }

    #[test]
    fn padding_and_the_end_of_string_are_refused() {
        assert_eq!(decode(&[0x1f, 0xff]), None, "more than seven bits");
        assert_eq!(decode(&[0x18]), None, "zeros");
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff]), None);
    }
}
