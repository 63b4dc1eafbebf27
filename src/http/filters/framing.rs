//! gRPC's messages in a body: each has five bytes before it, a flag and its length (gRPC over HTTP/2, "Length-Prefixed-
//! Message").

use std::cell::Cell;
use std::rc::Rc;

use metrics::Counter;

/// Counts the messages that pass.
pub struct Messages {
    counter: Counter,
    /// Those of one stream, and the side of it.
    own: Option<(Rc<[Cell<u64>; 2]>, usize)>,
    head: [u8; 5],
    have: usize,
    /// Bytes of the message to come.
    skip: u64,
}

impl std::fmt::Debug for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Messages").field("have", &self.have).field("skip", &self.skip).finish_non_exhaustive()
    }
}

impl Messages {
    /// Counts with `counter`, and for one side of a stream.
    pub fn new(counter: Counter, own: Option<(Rc<[Cell<u64>; 2]>, usize)>) -> Self {
        Self { counter, own, head: [0; 5], have: 0, skip: 0 }
    }

    /// The next bytes of the body.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        let mut seen = 0;
        while !bytes.is_empty() {
            if self.skip > 0 {
                let over = bytes.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                bytes = bytes.get(over..).unwrap_or_default();
                self.skip -= over as u64;
                continue;
            }
            let take = (self.head.len() - self.have).min(bytes.len());
            let (head, rest) = bytes.split_at(take);
            // `have` stays below the length of a head, and `take` fills it at most.
            self.head[self.have..self.have + take].copy_from_slice(head);
            self.have += take;
            bytes = rest;
            if self.have == self.head.len() {
                let [_, length @ ..] = self.head;
                self.have = 0;
                self.skip = u32::from_be_bytes(length).into();
                seen += 1;
            }
        }
        if seen > 0 {
            self.counter.increment(seen);
            if let Some(own) = self.own.as_ref().and_then(|(sides, side)| sides.get(*side)) {
                own.set(own.get() + seen);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{snapshot, Scope};

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut body = Vec::new();
        for length in [0usize, 3, 300, 0, 70_000] {
            body.push(0);
            body.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
            body.resize(body.len() + length, 7);
        }
        for cut in [1, 4, 5, 1000, body.len()] {
            let name = format!("test_messages_{cut}");
            let counter = Scope::raw(&name).counter("n");
            let mut messages = Messages::new(counter.clone(), None);
            body.chunks(cut).for_each(|piece| messages.feed(piece));
            assert_eq!(snapshot().number(&format!("{name}.n")), Some(5), "{cut}");
        }
    }
}
