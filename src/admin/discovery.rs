//! `/discovery`: the streams to control planes, as text or JSON.

use std::fmt::Write;
use std::time::Duration;

use outrigger_control_api::client::TypeStatus;
use serde_json::{json, Value};

use super::{AdminState, Answer, Params};
use crate::discovery::view::{StreamView, View};

pub(super) fn discovery(state: &AdminState, params: &Params) -> Answer {
    let streams = state.discovery.as_ref().map(View::streams).unwrap_or_default();
    match params.get("format") {
        None | Some("" | "text") => Answer::text(text(&streams)),
        Some("json") => {
            let streams: Vec<Value> = streams.iter().map(stream_json).collect();
            Answer::json(&json!({ "streams": streams }))
        }
        Some(other) => Answer::bad_request(format!("unknown format {other:?}: text or json\n")),
    }
}

fn text(streams: &[StreamView]) -> String {
    if streams.is_empty() {
        return "no control plane is asked for anything\n".to_owned();
    }
    let mut out = String::new();
    // Writing to a String cannot fail. What a peer wrote is shown escaped.
    for stream in streams {
        let state = if stream.connected { "connected" } else { "not connected" };
        let silence = match stream.silence {
            Some(silence) => format!("last heard {} ago", seconds(silence)),
            None => "never heard".to_owned(),
        };
        let _ = writeln!(out, "{}: {state}, {silence}, ended {} times", stream.source, stream.ends);
        if let Some((at, reason)) = &stream.last_end {
            let _ = writeln!(out, "  last end: {at} {}", reason.escape_debug());
        }
        if stream.rate_limited > 0 {
            let _ = writeln!(out, "  requests waited for the rate limit {} times", stream.rate_limited);
        }
        for (age, status) in &stream.types {
            let age = match age {
                Some(age) => format!("accepted {} ago", seconds(*age)),
                None => "nothing accepted yet".to_owned(),
            };
            let wanted = match (status.wildcard, status.names) {
                (true, 0) => "all".to_owned(),
                (true, names) => format!("all and {names} names"),
                (false, names) => format!("{names} names"),
            };
            let TypeStatus { type_url, version, resources, accepted_total, rejected_total, pending, .. } =
                status;
            let _ = writeln!(
                out,
                "  {type_url}: version {version:?}, {age}; {resources} resources held, {wanted} wanted; \
                 responses: {accepted_total} accepted, {rejected_total} refused, {pending} pending",
            );
            if let Some((version, message)) = &status.last_rejection {
                let _ = writeln!(out, "    last refused: version {version:?}: {}", message.escape_debug());
            }
        }
    }
    out
}

fn stream_json(stream: &StreamView) -> Value {
    let types = stream.types.iter().map(|(age, status)| {
        json!({
            "type_url": status.type_url,
            "version": status.version,
            "content_age_ms": age.map(millis),
            "resources": status.resources,
            "names": status.names,
            "wildcard": status.wildcard,
            "accepted": status.accepted_total,
            "refused": status.rejected_total,
            "pending": status.pending,
            "last_refused": status.last_rejection.as_ref()
                .map(|(version, message)| json!({ "version": version, "message": message })),
        })
    });
    json!({
        "source": stream.source,
        "connected": stream.connected,
        "silence_ms": stream.silence.map(millis),
        "ends": stream.ends,
        "last_end": stream.last_end.as_ref().map(|(at, reason)| json!({ "at": at, "reason": reason })),
        "rate_limited": stream.rate_limited,
        "types": types.collect::<Vec<_>>(),
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
