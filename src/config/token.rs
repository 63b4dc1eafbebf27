//! Tokens: what names of header fields and methods are made of (RFC 9110 §5.6.2), and what may stand in a field.

/// Which bytes may be in a token.
static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let others = b"!#$%&'*+-.^_`|~";
    let mut byte = 0u8;
    while byte < 128 {
        // The index is a byte.
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut place = 0;
    while place < others.len() {
        table[others[place] as usize] = true;
        place += 1;
    }
    table
};

/// Whether a byte may be in a token.
#[inline]
pub fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// Whether `name` may be that of a header field, or with a colon before it of a pseudo header.
pub fn is_field_name(name: &[u8]) -> bool {
    let name = name.strip_prefix(b":").unwrap_or(name);
    !name.is_empty() && name.iter().all(|byte| is_token(*byte))
}

/// Whether `value` may be that of a header field: it has no control characters but tabs.
pub fn is_field_value(value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == b'\t' || *byte >= 0x20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_stand_in_a_field() {
        assert!(is_field_name(b"x-a_1") && is_field_name(b":path"));
        for wrong in [&b""[..], b":", b"a b", b"a:", b"a\r", b"\xc3"] {
            assert!(!is_field_name(wrong), "{wrong:?}");
        }
        assert!(is_field_value(b"a\tb\xff") && is_field_value(b""));
        assert!(!is_field_value(b"a\r\nb") && !is_field_value(b"\0"));
    }
}
