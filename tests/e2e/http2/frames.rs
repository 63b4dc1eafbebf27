//! Wrong frames and malformed requests, one at a time ([`super::table`]): what they end, and that they end no more.

use super::raw::*;
use super::requests;
use super::table::{self, Case, Envoy, Expect, Step};
use crate::differential::bootstrap::{origins, Bootstrap};
use crate::harness::origin::Origin;
use crate::harness::proxy::{Kind, Plan, Proxy};
use crate::harness::DEADLINE;
use std::time::Duration;

/// A bootstrap whose listeners speak HTTP/2; `few` with little room.
pub fn bootstrap() -> String {
    let few = "codec_type: HTTP2
http2_protocol_options:
  max_concurrent_streams: 3
  initial_stream_window_size: 65535
  initial_connection_window_size: 65535";
    Bootstrap::new()
        .plain("main", "codec_type: HTTP2")
        .plain("few", few)
        .plain("auto", "")
        .render()
        // The origin shares a thread with the attacker.
        .replace("connect_timeout: 1s", "connect_timeout: 10s")
}

/// The stream of the request that shows whether a connection still works.
const PROBE: u32 = 1001;

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    /// The connection was ended, with the code of its last GOAWAY.
    ended: Option<Option<u32>>,
    reset: Option<u32>,
    status: Option<u16>,
    probed: bool,
}

fn probe() -> Vec<u8> {
    let mut bytes = frame(HEADERS, END_STREAM | END_HEADERS, PROBE, &request("GET", "/probe", "probe.test"));
    bytes.extend(frame(PING, 0, 0, b"the last"));
    bytes
}

/// Plays a case; `patience` is how long is waited for a result of the stream after the probe.
async fn play(port: u16, case: &Case, patience: Duration) -> Seen {
    let mut raw =
        if case.bare { Raw::bare(port).await.expect("a connection") } else { Raw::open(port).await };
    let mut seen = Seen::default();
    for step in &case.steps {
        match step {
            Step::Send(bytes) => drop(raw.send(bytes).await),
            Step::End(stream) => {
                let ended = raw.outcome(*stream, DEADLINE).await;
                assert!(matches!(ended, Outcome::Status(200, _)), "{}: {ended:?}", case.name);
            }
        }
    }
    if !case.bare {
        let _ = raw.send(&probe()).await;
    }
    let (mut probe_answered, mut pinged, mut code) = (false, false, None);
    let mut end = tokio::time::Instant::now() + DEADLINE;
    loop {
        let left = end.saturating_duration_since(tokio::time::Instant::now());
        let Some(frame) = raw.next(left).await else {
            if tokio::time::Instant::now() < end {
                seen.ended = Some(code);
            }
            return seen;
        };
        match frame.kind {
            GOAWAY => code = Some(frame.number(4)),
            RST_STREAM if frame.stream == case.stream => seen.reset = Some(frame.number(0)),
            HEADERS if frame.stream == case.stream && frame.status() >= 200 => {
                seen.status = Some(frame.status());
            }
            HEADERS if frame.stream == PROBE => assert_eq!(frame.status(), 200, "{}: the probe", case.name),
            PING if frame.payload == b"the last" => pinged = true,
            _ => {}
        }
        probe_answered |= frame.stream == PROBE && frame.ends();
        if probe_answered && pinged && !seen.probed {
            seen.probed = true;
            end = tokio::time::Instant::now() + patience;
        }
        if seen.probed {
            let enough = match case.expect {
                Expect::Status(_) | Expect::Refused | Expect::Last(_) => {
                    seen.status.is_some() || seen.reset.is_some()
                }
                Expect::Stream(_) | Expect::Either(_) => seen.reset.is_some(),
                Expect::Ignored => true,
                Expect::Connection(_) => false,
            };
            if enough {
                return seen;
            }
        }
    }
}

fn is_met(case: &Case, seen: &Seen) -> bool {
    let works = seen.probed && seen.ended.is_none();
    let connection = |codes: &[u32]| {
        // A peer that never spoke HTTP/2 need not be told anything.
        let silent = case.bare && seen.ended == Some(None);
        silent || seen.ended.flatten().is_some_and(|code| codes.contains(&code))
    };
    let stream = |codes: &[u32]| works && seen.reset.is_some_and(|code| codes.contains(&code));
    match case.expect {
        Expect::Connection(codes) => connection(codes),
        Expect::Stream(codes) => stream(codes),
        Expect::Either(codes) => stream(codes) || connection(codes),
        Expect::Refused => {
            stream(&[PROTOCOL]) || (works && seen.status.is_some_and(|status| (400..500).contains(&status)))
        }
        Expect::Status(status) => works && seen.status == Some(status),
        Expect::Last(status) => seen.status == Some(status),
        Expect::Ignored => works && seen.reset.is_none(),
    }
}

fn all() -> Vec<Case> {
    let mut cases = table::framing();
    cases.extend(table::compression());
    cases.extend(requests::messages());
    cases
}

#[tokio::test]
async fn every_wrong_frame_ends_what_it_must_and_nothing_else() {
    let origin = Origin::start().await;
    let proxy = Proxy::outrigger(&bootstrap(), &origins(origin.port(), origin.port())).await;
    let mut failures = Vec::new();
    let cases = all();
    for case in &cases {
        let before = origin.requests();
        let seen = play(proxy.port(case.listener), case, DEADLINE / 4).await;
        if !is_met(case, &seen) {
            failures.push(format!("§{} {}: {:?} is wanted, {seen:?}", case.section, case.name, case.expect));
        } else if case.unseen && origin.requests() != before {
            failures.push(format!("§{} {}: the origin saw it", case.section, case.name));
        }
    }
    for message in origin.take() {
        for (name, value) in &message.headers {
            let joined = !name.eq_ignore_ascii_case("cookie") || value == "a=1; b=2";
            if name == "x-evil" || !joined {
                failures.push(format!("the origin saw {name}: {value}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// The column of [`Envoy`] is true.
#[tokio::test]
async fn envoy_answers_as_the_table_says() {
    if !crate::peers::have(&["envoy"]) {
        return;
    }
    let origin = Origin::start().await;
    let (template, values) = (bootstrap(), origins(origin.port(), origin.port()));
    let proxy = Proxy::start(Plan::new(Kind::Envoy, &template, &values)).await;
    let mut wrong = Vec::new();
    let cases = all();
    for case in &cases {
        let seen = play(proxy.port(case.listener), case, Duration::from_millis(300)).await;
        let found = match &seen {
            seen if is_met(case, seen) => Envoy::Same,
            Seen { ended: Some(code), .. } => Envoy::Connection(*code),
            Seen { reset: Some(code), .. } => Envoy::Stream(*code),
            Seen { status: Some(status), .. } => Envoy::Status(*status),
            _ => Envoy::Ignores,
        };
        if found != case.envoy {
            wrong.push(format!("{}|{}|{found:?}", case.section, case.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
