//! The origin over HTTP/1.

use super::*;
use crate::harness::http1::Reader;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

pub async fn serve_http1(stream: TcpStream, state: Arc<State>) {
    let (read, mut write) = stream.into_split();
    let mut reader = Reader::new(read);
    while let Ok(mut message) = reader.head().await {
        message.framing = Reader::<OwnedReadHalf>::request_framing(&message);
        let headers = message.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
        let mut seen = Seen { line: message.start_line.clone(), ..Seen::default() };
        seen.line = seen.line.trim_end_matches(" HTTP/1.1").to_string();
        seen.headers = headers.collect();
        let slot = state.record(seen);
        let plan = state.plan.lock().expect("plan").clone();
        let _busy = Busy(&state);
        if !answer_http1(&state, slot, &plan, (&mut reader, &mut write), &mut message).await {
            break;
        }
    }
    // Dropped, it would close in good order what is to be reset.
    write.forget();
}

fn text(status: u16, headers: &[(&'static str, &'static str)]) -> String {
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut text = format!("HTTP/1.1 {status} {}\r\n", reason.unwrap_or("Status"));
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text
}

async fn body_http1(
    state: &State,
    slot: usize,
    reader: &mut Reader<OwnedReadHalf>,
    message: &mut crate::harness::http1::Message,
) -> bool {
    // What has come shows while more is waited for.
    let mut whole = reader.body(message).await.is_ok();
    whole &= message.complete;
    state.update(slot, |seen| {
        seen.body.clone_from(&message.body);
        seen.trailers.clone_from(&message.trailers);
        seen.end = if whole { "complete" } else { "closed" }.to_string();
    });
    whole
}

/// True when another request may follow.
async fn answer_http1(
    state: &State,
    slot: usize,
    plan: &Plan,
    (reader, stream): (&mut Reader<OwnedReadHalf>, &mut OwnedWriteHalf),
    message: &mut crate::harness::http1::Message,
) -> bool {
    let to_head = message.start_line.starts_with("HEAD ");
    for (status, headers) in &plan.interim {
        let _ = stream.write_all((text(*status, headers) + "\r\n").as_bytes()).await;
    }
    let tunnel = matches!(plan.act, Act::Tunnel | Act::TunnelBreak(_));
    if plan.at_head {
        while reader.buffered.len() < plan.after && matches!(reader.fill().await, Ok(true)) {}
    } else if !tunnel && !body_http1(state, slot, reader, message).await {
        return false;
    }
    let reset = |stream: &OwnedWriteHalf| {
        let stream: &TcpStream = stream.as_ref();
        let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    };
    let simple = Act::Answer { status: 200, headers: vec![], body: Body::Fixed(2), trailers: vec![] };
    let act = if matches!(plan.act, Act::RefuseOnce) { &simple } else { &plan.act };
    match act {
        Act::RefuseOnce => {}
        Act::Answer { status, headers, body, trailers } => {
            let mut bytes = text(*status, headers).into_bytes();
            let mut out = Vec::new();
            match body {
                Body::None if !trailers.is_empty() => bytes.extend(b"transfer-encoding: chunked\r\n"),
                Body::None if matches!(status, 204 | 304) || to_head => {}
                Body::None => bytes.extend(b"content-length: 0\r\n"),
                Body::Fixed(length) => bytes.extend(format!("content-length: {length}\r\n").bytes()),
                Body::Streamed(..) => bytes.extend(b"transfer-encoding: chunked\r\n"),
            }
            bytes.extend(b"\r\n");
            if !to_head {
                let chunked = matches!(body, Body::Streamed(..)) || !trailers.is_empty();
                for piece in body.pieces() {
                    if chunked {
                        out.extend(format!("{:x}\r\n", piece.len()).bytes());
                    }
                    out.extend_from_slice(&piece);
                    if chunked {
                        out.extend(b"\r\n");
                    }
                }
                if chunked {
                    out.extend(b"0\r\n");
                    for (name, value) in trailers {
                        out.extend(format!("{name}: {value}\r\n").bytes());
                    }
                    out.extend(b"\r\n");
                }
            }
            bytes.extend(out);
            if stream.write_all(&bytes).await.is_err() {
                return false;
            }
            if plan.at_head {
                return body_http1(state, slot, reader, message).await;
            }
            return true;
        }
        Act::Stall(sent) => {
            if let Some(sent) = sent {
                begin_http1(stream, *sent).await;
            }
            while let Ok(true) = reader.fill().await {
                reader.buffered.clear();
            }
            state.update(slot, |seen| seen.after = Some("closed".to_string()));
        }
        Act::Break(sent, how) => {
            if let Some(sent) = sent {
                begin_http1(stream, *sent).await;
                state.wait_for_client().await;
            }
            if matches!(how, Break::Reset(_)) {
                reset(stream);
            }
            if plan.at_head {
                state.update(slot, |seen| seen.end = "broken off".to_string());
            }
        }
        Act::Tunnel | Act::TunnelBreak(_) => {
            let accepted = if message.start_line.starts_with("CONNECT ") {
                text(200, &[]) + "\r\n"
            } else {
                let fields = [
                    ("connection", "Upgrade"),
                    ("upgrade", "websocket"),
                    ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
                ];
                text(101, &fields) + "\r\n"
            };
            let _ = stream.write_all(accepted.as_bytes()).await;
            loop {
                let bytes = std::mem::take(&mut reader.buffered);
                state.update(slot, |seen| seen.body.extend_from_slice(&bytes));
                if let (Act::TunnelBreak(how), false) = (act, bytes.is_empty()) {
                    state.update(slot, |seen| seen.end = "broken off".to_string());
                    if matches!(how, Break::Reset(_)) {
                        reset(stream);
                    }
                    return false;
                }
                if stream.write_all(&bytes).await.is_err() || !reader.fill().await.unwrap_or(false) {
                    break;
                }
            }
            let _ = stream.shutdown().await;
            state.update(slot, |seen| seen.end = "complete".to_string());
        }
    }
    false
}

async fn begin_http1(stream: &mut OwnedWriteHalf, sent: usize) {
    let mut bytes = text(200, &[("x-begun", "yes"), ("transfer-encoding", "chunked")]).into_bytes();
    bytes.extend(b"\r\n");
    if sent > 0 {
        bytes.extend(format!("{sent:x}\r\n").bytes());
        bytes.extend_from_slice(&pattern(sent));
        bytes.extend(b"\r\n");
    }
    let _ = stream.write_all(&bytes).await;
}
