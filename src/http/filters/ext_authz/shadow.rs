//! Decisions that stop nobody (`shadow_mode`): what would have been decided is left as an object for logs and other
//! filters, under the filter's name with `.shadow` behind it.

use std::sync::Arc;

use serde_json::{json, Value};

use super::Config;
use crate::http::exchange::Exchange;
use crate::http::filters::chain::{At, Step};

/// What would have been decided.
#[derive(Clone, Copy)]
pub(super) enum Decision<'a> {
    Ok,
    /// A refusal with this answer; `http` says that an HTTP service gave it.
    Denied {
        status: u16,
        headers: &'a [(String, Vec<u8>)],
        http: bool,
    },
    /// The service could not be asked: a refusal with this status.
    Error(u16),
}

impl Decision<'_> {
    /// The name of its result, and the status of the answer.
    fn parts(&self) -> (&'static str, u16, &[(String, Vec<u8>)]) {
        match self {
            Decision::Ok => ("OK", 200, &[]),
            Decision::Denied { status, headers, .. } => ("DENIED", *status, headers),
            Decision::Error(status) => ("ERROR", *status, &[]),
        }
    }
}

impl Config {
    /// Counts a refusal that is none and leaves the decision; the request goes on.
    pub(super) fn note(&self, ex: &mut Exchange<'_>, at: &At<'_>, decision: Decision<'_>) -> Step {
        match decision {
            Decision::Ok => {}
            Decision::Denied { .. } => self.stats.shadow_denied.increment(1),
            Decision::Error(_) => self.stats.shadow_error.increment(1),
        }
        let (result, status, headers) = decision.parts();
        // As an HTTP service's answer has it.
        let first = matches!(decision, Decision::Denied { http: true, .. });
        let first = first.then(|| json!({"key": ":status", "value": status.to_string()}));
        let rest = headers.iter();
        let rest = rest.map(|(name, value)| json!({"key": name, "value": String::from_utf8_lossy(value)}));
        let headers: Vec<Value> = first.into_iter().chain(rest).collect();
        // In the order of the message's fields.
        let written = |names: [&str; 3]| {
            let mut text = format!(r#"{{"{}":"{result}","{}":{status}"#, names[0], names[1]);
            if !headers.is_empty() {
                text += &format!(r#","{}":{}"#, names[2], Value::from(headers.clone()));
            }
            text + "}"
        };
        let name: Arc<str> = format!("{}.shadow", at.name.text()).into();
        let text = written(["check_result", "status_code", "response_headers"]);
        let json = written(["checkResult", "statusCode", "responseHeaders"]);
        ex.info.leave_object(&name, &text, &json);
        Step::Continue
    }
}
