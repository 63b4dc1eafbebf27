//! The Huffman code of HPACK (RFC 7541, appendix B), decoding only. The code is canonical: symbols of one length have
//! consecutive codes in the order of their values, so the lengths say everything.

/// Bits of the code of each byte value, and last of the end-of-string symbol.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26, 30,
];
const END: u16 = 256;
const SHORTEST: usize = 5;
const LONGEST: usize = 30;

/// For every length: its first code, how many there are, and where their symbols stand.
struct Code {
    first: [u32; LONGEST + 1],
    count: [u32; LONGEST + 1],
    start: [usize; LONGEST + 1],
    symbols: [u16; 257],
}

const CODE: Code = build();

const fn build() -> Code {
    let mut code =
        Code { first: [0; LONGEST + 1], count: [0; LONGEST + 1], start: [0; LONGEST + 1], symbols: [0; 257] };
    let (mut next, mut placed, mut length) = (0, 0, 1);
    while length <= LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.start[length] = placed;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                code.symbols[placed] = symbol as u16;
                placed += 1;
                next += 1;
                code.count[length] += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    code
}

/// Appends the decoded bytes; `None` if they are no Huffman string.
pub fn decode(bytes: &[u8], into: &mut Vec<u8>) -> Option<()> {
    static TABLE: Code = CODE;
    let (mut window, mut bits) = (0_u64, 0_usize);
    for &byte in bytes {
        window = (window << 8) | u64::from(byte);
        bits += 8;
        let mut length = SHORTEST;
        while length <= bits.min(LONGEST) {
            let code = ((window >> (bits - length)) & ((1 << length) - 1)) as u32;
            let nth = code.wrapping_sub(TABLE.first[length]);
            if nth >= TABLE.count[length] {
                length += 1;
                continue;
            }
            let symbol = TABLE.symbols[TABLE.start[length] + nth as usize];
            if symbol == END {
                return None;
            }
            into.push(symbol as u8);
            bits -= length;
            window &= (1 << bits) - 1;
            length = SHORTEST;
        }
        if bits > LONGEST {
            return None;
        }
    }
    // What is left is padding: fewer than 8 bits, all ones.
    (bits < 8 && window == (1 << bits) - 1).then_some(())
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn examples_of_the_rfc_decode() {
        let mut text = Vec::new();
        decode(&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff], &mut text).unwrap();
        assert_eq!(text, b"www.example.com");
        text.clear();
        decode(&[0x64, 0x02], &mut text).unwrap();
        assert_eq!(text, b"302");
    }

    #[test]
    fn wrong_padding_is_refused() {
        assert!(decode(&[0x1c], &mut Vec::new()).is_none());
        assert!(decode(&[0xff, 0xff, 0xff, 0xff], &mut Vec::new()).is_none());
    }
}
