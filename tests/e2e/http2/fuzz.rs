//! Connections of random and of mutated frames, from a seed: whatever comes, the proxy stays up and serves others.
//! `OUTRIGGER_FUZZ_SECONDS` says how long (2), `OUTRIGGER_FUZZ_SEED` where to begin.

use super::frames::bootstrap;
use super::raw::*;
use super::{requests, table};
use crate::differential::bootstrap::origins;
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::Proxy;
use crate::harness::{alone, DEADLINE};
use std::time::{Duration, Instant};

/// A small generator (SplitMix64): the same seed gives the same frames.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most);
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// One frame that may be right.
fn some_frame(random: &mut Random, next: &mut u32) -> Vec<u8> {
    let stream = match random.below(4) {
        0 => 0,
        1 => random.below(64) as u32,
        _ => next.saturating_sub(2),
    };
    match random.below(14) {
        0 => frame(random.below(12) as u8, random.next() as u8, stream, &random.bytes(40)),
        1 => frame(DATA, random.below(2) as u8, stream, &random.bytes(400)),
        2 => window_update(stream, random.below(70_000) as u32),
        3 => rst(stream, random.below(14) as u32),
        4 => ping(),
        5 => frame(
            SETTINGS,
            random.below(2) as u8,
            0,
            &setting(random.below(9) as u16, random.next() as u32 >> random.below(32)),
        ),
        6 => frame(CONTINUATION, (random.below(2) * 4) as u8, stream, &random.bytes(60)),
        7 => frame(HEADERS, random.next() as u8 & 0x2d, stream, &random.bytes(100)),
        kind => {
            let id = *next;
            *next += 2;
            let mut block = request(["GET", "POST", "HEAD", "CONNECT"][random.below(4)], "/", "t.test");
            if kind == 8 {
                let at = random.below(block.len());
                block[at] = random.next() as u8;
            }
            if kind == 9 {
                block.extend(random.bytes(30));
            }
            let flags = END_HEADERS | random.below(2) as u8;
            frame(HEADERS, flags, id, &block)
        }
    }
}

#[tokio::test]
async fn whatever_comes_the_proxy_stays_up() {
    let _alone = alone().await;
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let length = Duration::from_secs(number("OUTRIGGER_FUZZ_SECONDS").unwrap_or(2));
    let first = number("OUTRIGGER_FUZZ_SEED").unwrap_or(1);
    let origin = Origin::with(false, |_| Answer::ok("ok")).await;
    let proxy = Proxy::outrigger(&bootstrap(), &origins(origin.port(), origin.port())).await;
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for case in table::framing().into_iter().chain(table::compression()).chain(requests::messages()) {
        for step in case.steps {
            if let table::Step::Send(bytes) = step {
                seeds.push(bytes);
            }
        }
    }
    let begun = Instant::now();
    let (mut seed, before) = (first, proxy.resident());
    while begun.elapsed() < length || seed < first + 20 {
        let mut random = Random(seed);
        let listener = ["main", "few", "auto"][random.below(3)];
        let mut raw = Raw::open(proxy.port(listener)).await;
        let mut bytes = Vec::new();
        let mut next = 1;
        if random.below(2) == 0 {
            for _ in 0..random.below(60) + 1 {
                bytes.extend(some_frame(&mut random, &mut next));
            }
        } else {
            for _ in 0..random.below(4) + 1 {
                bytes.extend(&seeds[random.below(seeds.len())]);
            }
            for _ in 0..random.below(4) {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
            }
        }
        // Cut anywhere.
        let cut = random.below(bytes.len());
        let whole = raw.send(&bytes[..cut]).await.is_ok() && raw.send(&bytes[cut..]).await.is_ok();
        if whole {
            let _ = raw.send(&ping()).await;
            while let Some(frame) = raw.next(Duration::from_millis(3)).await {
                if frame.kind == GOAWAY {
                    break;
                }
            }
        }
        if seed % 16 == 0 {
            let answer = Raw::open(proxy.port("auto")).await.get(1, "/").await;
            assert_eq!(answer, Outcome::Status(200, 2), "after seed {seed}");
        }
        seed += 1;
    }
    let answer = Raw::open(proxy.port("main")).await.get(1, "/").await;
    assert_eq!(answer, Outcome::Status(200, 2), "after seeds {first} to {seed}");
    assert!(!proxy.output().contains("panicked"), "seeds {first} to {seed}: {}", proxy.output());
    let grown = proxy.resident().saturating_sub(before);
    assert!(grown <= 16 << 20, "{} KiB after seeds {first} to {seed}", grown >> 10);
    let _ = DEADLINE;
}
