//! Clients that send what is allowed frame by frame and ruinous in number. Of each: what ends it, the statistic that
//! says so, how much memory it took at its worst, and that another client was served all the time.

use super::abuse::{beside_a_neighbour, stat, WORST};
use super::frames::bootstrap;
use super::raw::*;
use crate::differential::bootstrap::origins;
use crate::harness::alone;
use crate::harness::origin::{Answer, Origin};
use crate::harness::proxy::Proxy;
use std::time::Duration;

struct Flood {
    name: &'static str,
    before: Vec<u8>,
    /// What is sent over and over, by its number.
    unit: fn(u32) -> Vec<u8>,
    most: u32,
    codes: &'static [u32],
    stat: &'static str,
}

const PREMATURE: &str = "downstream_rq_too_many_premature_resets";

fn floods() -> Vec<Flood> {
    let open = || post(1, "/");
    vec![
        Flood {
            name: "PING",
            before: vec![],
            unit: |_| ping(),
            most: 100_000,
            codes: &[CALM],
            stat: "http2.outbound_control_flood",
        },
        Flood {
            name: "SETTINGS",
            before: vec![],
            unit: |_| frame(SETTINGS, 0, 0, b""),
            most: 100_000,
            codes: &[CALM],
            stat: "http2.outbound_control_flood",
        },
        Flood {
            name: "SETTINGS that resize the table",
            before: vec![],
            unit: |i| frame(SETTINGS, 0, 0, &setting(1, i % 2 * 65_536)),
            most: 100_000,
            codes: &[CALM],
            stat: "http2.outbound_control_flood",
        },
        Flood {
            name: "SETTINGS of many settings",
            before: vec![],
            unit: |_| frame(SETTINGS, 0, 0, &setting(4, 70_000).repeat(2700)),
            most: 5_000,
            codes: &[CALM],
            stat: "http2.outbound_control_flood",
        },
        Flood {
            name: "acknowledged PINGs nobody sent",
            before: vec![],
            unit: |_| frame(PING, ACK, 0, b"12345678"),
            most: 200_000,
            codes: &[CALM],
            stat: "http2.outbound_control_flood",
        },
        Flood {
            name: "acknowledged SETTINGS nobody sent",
            before: vec![],
            unit: |_| frame(SETTINGS, ACK, 0, b""),
            most: 200_000,
            codes: &[CALM, PROTOCOL],
            stat: "downstream_cx_protocol_error",
        },
        Flood {
            name: "PRIORITY",
            before: open(),
            unit: |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 7]),
            most: 100_000,
            codes: &[CALM],
            stat: "http2.inbound_priority_frames_flood",
        },
        Flood {
            name: "PRIORITY of idle streams",
            before: vec![],
            unit: |i| frame(PRIORITY, 0, 2 * i + 1, &[0, 0, 0, 0, 7]),
            most: 100_000,
            codes: &[CALM],
            stat: "http2.inbound_priority_frames_flood",
        },
        Flood {
            name: "WINDOW_UPDATE of the connection",
            before: vec![],
            unit: |_| window_update(0, 1),
            most: 100_000,
            codes: &[CALM],
            stat: "http2.inbound_window_update_frames_flood",
        },
        Flood {
            name: "WINDOW_UPDATE of a stream",
            before: open(),
            unit: |_| window_update(1, 1),
            most: 100_000,
            codes: &[CALM],
            stat: "http2.inbound_window_update_frames_flood",
        },
        Flood {
            name: "RST_STREAM of a closed stream",
            before: [open(), rst(1, CANCEL)].concat(),
            unit: |_| rst(1, CANCEL),
            most: 100_000,
            codes: &[CALM],
            stat: "http2.outbound_control_flood",
        },
        Flood {
            name: "unknown frames",
            before: vec![],
            unit: |_| frame(0x99, 0, 0, b""),
            most: 100_000,
            codes: &[CALM],
            stat: "http2.outbound_control_flood",
        },
        Flood {
            name: "large unknown frames",
            before: vec![],
            unit: |_| frame(0x99, 0, 0, &[0; 16_000]),
            most: 10_000,
            codes: &[CALM],
            stat: "http2.outbound_control_flood",
        },
        Flood {
            name: "GOAWAY",
            before: open(),
            unit: |_| frame(GOAWAY, 0, 0, &[0; 8]),
            most: 100_000,
            codes: &[CALM],
            stat: "http2.outbound_control_flood",
        },
        Flood {
            name: "empty DATA",
            before: open(),
            unit: |_| frame(DATA, 0, 1, b""),
            most: 100_000,
            codes: &[CALM],
            stat: "http2.inbound_empty_frames_flood",
        },
        Flood {
            name: "DATA of padding",
            before: open(),
            unit: |_| frame(DATA, PADDED, 1, &[0]),
            most: 1_000_000,
            codes: &[CALM],
            stat: "http2.inbound_empty_frames_flood",
        },
        Flood {
            name: "DATA of a lot of padding",
            before: open(),
            unit: |_| {
                let mut padding = vec![255];
                padding.extend([0; 255]);
                frame(DATA, PADDED, 1, &padding)
            },
            most: 500_000,
            codes: &[CALM],
            stat: "http2.inbound_empty_frames_flood",
        },
        Flood {
            name: "CONTINUATION without payload",
            before: frame(HEADERS, END_STREAM, 1, &request("GET", "/", "t.test")),
            unit: |_| frame(CONTINUATION, 0, 1, b""),
            most: 100_000,
            codes: &[CALM],
            stat: "http2.inbound_empty_frames_flood",
        },
        Flood {
            name: "small CONTINUATION",
            before: frame(HEADERS, END_STREAM, 1, &request("GET", "/", "t.test")),
            unit: |_| frame(CONTINUATION, 0, 1, &literal(b"a", b"b")),
            most: 100_000,
            codes: &[CALM, COMPRESSION, PROTOCOL],
            stat: "http2.header_overflow",
        },
        Flood {
            name: "large CONTINUATION",
            before: frame(HEADERS, END_STREAM, 1, &request("GET", "/", "t.test")),
            unit: |_| frame(CONTINUATION, 0, 1, &literal(b"a", &[b'b'; 16_000])),
            most: 5_000,
            codes: &[CALM, COMPRESSION, PROTOCOL],
            stat: "http2.header_overflow",
        },
        Flood {
            name: "CONTINUATION of one string",
            before: frame(HEADERS, END_STREAM, 1, &[0, 1, b'a', 0x7f, 0x81, 0xff, 0xff, 0x7f]),
            unit: |_| frame(CONTINUATION, 0, 1, &[b'b'; 16_000]),
            most: 5_000,
            codes: &[CALM, COMPRESSION, PROTOCOL],
            stat: "http2.header_overflow",
        },
        Flood {
            name: "rapid reset",
            before: vec![],
            unit: |i| [get(2 * i + 1, "/"), rst(2 * i + 1, CANCEL)].concat(),
            most: 20_000,
            codes: &[CALM],
            stat: PREMATURE,
        },
        Flood {
            name: "rapid reset of uploads",
            before: vec![],
            unit: |i| [post(2 * i + 1, "/"), rst(2 * i + 1, CANCEL)].concat(),
            most: 20_000,
            codes: &[CALM],
            stat: PREMATURE,
        },
        Flood {
            name: "window overflow after each request",
            before: vec![],
            unit: |i| [get(2 * i + 1, "/"), window_update(2 * i + 1, 0x7fff_ffff)].concat(),
            most: 20_000,
            codes: &[CALM],
            stat: PREMATURE,
        },
        Flood {
            name: "an empty WINDOW_UPDATE after each request",
            before: vec![],
            unit: |i| [get(2 * i + 1, "/"), window_update(2 * i + 1, 0)].concat(),
            most: 20_000,
            codes: &[CALM],
            stat: PREMATURE,
        },
        Flood {
            name: "DATA after each request",
            before: vec![],
            unit: |i| [get(2 * i + 1, "/"), frame(DATA, 0, 2 * i + 1, b"x")].concat(),
            most: 20_000,
            codes: &[CALM, STREAM_CLOSED],
            stat: "downstream_cx_protocol_error",
        },
        Flood {
            name: "more DATA than said, each time",
            before: vec![],
            unit: |i| {
                let mut block = request("POST", "/", "t.test");
                block.extend(literal(b"content-length", b"1"));
                [frame(HEADERS, END_HEADERS, 2 * i + 1, &block), frame(DATA, 0, 2 * i + 1, b"xx")].concat()
            },
            most: 20_000,
            codes: &[CALM],
            stat: PREMATURE,
        },
        Flood {
            name: "malformed requests",
            before: vec![],
            unit: |i| {
                let mut block = request("GET", "/", "t.test");
                block.extend(literal(b"Upper", b"case"));
                frame(HEADERS, 5, 2 * i + 1, &block)
            },
            most: 20_000,
            codes: &[CALM],
            stat: PREMATURE,
        },
        Flood {
            name: "requests only we find malformed",
            before: vec![],
            unit: |i| frame(HEADERS, 5, 2 * i + 1, &request("get", "/", "t.test")),
            most: 20_000,
            codes: &[CALM],
            stat: PREMATURE,
        },
        Flood {
            name: "trailers that do not end the stream",
            before: vec![],
            unit: |i| [post(2 * i + 1, "/"), frame(HEADERS, 4, 2 * i + 1, &literal(b"a", b"b"))].concat(),
            most: 20_000,
            codes: &[CALM],
            stat: PREMATURE,
        },
        Flood {
            name: "more streams than allowed",
            before: vec![],
            unit: |i| post(2 * i + 1, "/"),
            most: 100_000,
            codes: &[CALM],
            stat: PREMATURE,
        },
    ]
}

#[tokio::test]
async fn floods_are_ended_and_cost_little() {
    let _alone = alone().await;
    let origin = Origin::with(false, |_| Answer::ok("ok")).await;
    let proxy = Proxy::outrigger(&bootstrap(), &origins(origin.port(), origin.port())).await;
    let mut failures = Vec::new();
    let mut costs = Vec::new();
    for flood in floods() {
        let counted = stat(&proxy, flood.stat).await;
        let cpu = proxy.cpu();
        let attack = async {
            let mut raw = Raw::open(proxy.port("main")).await;
            let _ = raw.send(&flood.before).await;
            let mut sent = 0;
            while sent < flood.most {
                let end = (sent + 64).min(flood.most);
                let bytes: Vec<u8> = (sent..end).flat_map(flood.unit).collect();
                if !raw.try_send(&bytes, Duration::from_secs(1)).await {
                    break;
                }
                sent = end;
                // What comes is read, so that nothing piles up on this side.
                while raw.next(Duration::from_micros(50)).await.is_some() {}
            }
            (sent, raw.ended(Duration::from_secs(3)).await)
        };
        let ((sent, (ended, code)), cost) = beside_a_neighbour(&proxy, attack).await;
        let cpu = proxy.cpu() - cpu;
        costs.push(format!("{}: {} KiB, {cpu:?}, {sent} sent, {ended} {code:?}", flood.name, cost >> 10));
        if !ended || code.is_some_and(|code| !flood.codes.contains(&code)) {
            failures.push(format!("{}: after {sent}: ended {ended}, {code:?}", flood.name));
        }
        if code.is_none() {
            failures.push(format!("{}: no GOAWAY", flood.name));
        }
        if cost > WORST {
            failures.push(format!("{}: {} KiB of memory", flood.name, cost >> 10));
        }
        if stat(&proxy, flood.stat).await == counted {
            failures.push(format!("{}: {} does not count it", flood.name, flood.stat));
        }
    }
    assert!(failures.is_empty(), "{}\n\n{}", failures.join("\n"), costs.join("\n"));
}
