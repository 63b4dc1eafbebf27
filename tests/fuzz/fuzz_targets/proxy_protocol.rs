//! Any bytes as a PROXY protocol header: no panic; what is decided does not depend on how the bytes were cut; an
//! accepted header, written again, says the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::runtime::proxy_protocol::{fields, look, write, Verdict};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let whole = look(bytes);
    let cut = usize::from(cut) % (bytes.len() + 1);
    match (look(&bytes[..cut]), &whole) {
        (Ok(Verdict::NeedMore), _) => {}
        (part, whole) => assert_eq!(&part, whole, "cut at {cut}"),
    }
    let Ok(Verdict::Header(header)) = whole else { return };
    assert!(header.length <= bytes.len() && header.fields.end <= header.length);
    let read: usize = fields(&bytes[header.fields.clone()]).map(|(_, value)| value.len() + 3).sum();
    assert!(read <= header.fields.len());
    let again = write(header.version, header.ends);
    let Ok(Verdict::Header(second)) = look(&again) else { panic!("refused: {again:?}") };
    assert_eq!((second.version, second.ends, second.length), (header.version, header.ends, again.len()));
});
