//! Buffers between uses, kept by each worker.
//!
//! A connection holds a buffer only while bytes are in it. The few that are in use at one time go
//! round among all connections of a worker, most recently used first, so they stay in the cache.

use std::cell::RefCell;

use bytes::BytesMut;

/// What one worker keeps of each kind; more than this is freed.
const KEPT: usize = 64;
/// The room of a fresh input buffer, in bytes: most heads fit.
pub const INPUT: usize = 4 * 1024;
/// The room of a fresh output buffer, in bytes.
const OUTPUT: usize = 1024;
/// A buffer that grew beyond this many bytes is not kept.
const KEPT_CAPACITY: usize = 16 * 1024;

thread_local! {
    static INPUTS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static OUTPUTS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer to read into.
pub fn input() -> BytesMut {
    INPUTS.with(|kept| kept.borrow_mut().pop()).unwrap_or_else(|| BytesMut::with_capacity(INPUT))
}

/// Takes the memory of an empty input buffer back. One that still holds bytes is left as it is.
#[inline]
pub fn put_back(input: &mut BytesMut) {
    if input.is_empty() && input.capacity() != 0 {
        keep_input(std::mem::take(input));
    }
}

fn keep_input(mut input: BytesMut) {
    // Reclaiming fails while pieces split off it are still on their way.
    if !input.try_reclaim(INPUT) || input.capacity() > KEPT_CAPACITY {
        return;
    }
    // The thread may be ending; then there is nothing to keep.
    let _ = INPUTS.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.len() < KEPT {
            kept.push(input);
        }
    });
}

/// An empty buffer to write into.
pub fn output() -> Vec<u8> {
    OUTPUTS.with(|kept| kept.borrow_mut().pop()).unwrap_or_else(|| Vec::with_capacity(OUTPUT))
}

/// Takes the memory of an output buffer back; what it holds is forgotten.
pub fn put_back_output(output: &mut Vec<u8>) {
    let mut output = std::mem::take(output);
    if output.capacity() == 0 || output.capacity() > KEPT_CAPACITY {
        return;
    }
    output.clear();
    let _ = OUTPUTS.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.len() < KEPT {
            kept.push(output);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_goes_round_and_one_with_bytes_stays() {
        let mut first = input();
        first.extend_from_slice(b"GET");
        put_back(&mut first);
        assert_eq!(&first[..], b"GET", "bytes that nobody has used");
        first.clear();
        let place = first.as_ptr();
        put_back(&mut first);
        assert_eq!(first.capacity(), 0);
        assert_eq!(input().as_ptr(), place);
    }

    #[test]
    fn a_buffer_in_use_elsewhere_or_grown_large_is_not_kept() {
        let mut shared = BytesMut::with_capacity(INPUT);
        shared.resize(INPUT, 1);
        let piece = shared.split_to(INPUT).freeze();
        put_back(&mut shared);
        let mut large = BytesMut::with_capacity(4 * KEPT_CAPACITY);
        put_back(&mut large);
        let fresh = input();
        assert!(fresh.capacity() <= KEPT_CAPACITY);
        assert_eq!(piece.len(), INPUT);
    }
}
