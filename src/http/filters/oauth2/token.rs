//! Asking the provider for tokens.

use std::time::Duration;

use base64::prelude::{Engine as _, BASE64_STANDARD};
use bytes::Bytes;
use serde_json::Value;

use super::session::Tokens;
use super::{ClientAuth, Keys, Settings};
use crate::config::query::encode;
use crate::config::token::is_field_value;
use crate::config::Known;
use crate::http::call::{self, Answer, Call, CallError};
use crate::http::worker::Worker;

/// Most bytes of an answer.
const MAX_ANSWER: usize = 1 << 20;

/// What tokens are asked for with.
pub enum Grant<'a> {
    /// A code that the provider has sent.
    Code {
        /// The code.
        code: &'a [u8],
        /// Where it was sent to.
        redirect_uri: &'a [u8],
        /// What proves that the flow began here.
        verifier: &'a [u8],
    },
    /// A refresh token.
    Refresh(&'a [u8]),
}

/// What comes of it.
pub enum Fetched {
    /// Tokens, and how long the access token lives.
    Tokens(Tokens, Duration),
    /// Tokens are not renewed.
    Refused,
    /// Something that cannot be used.
    Failed {
        /// What.
        reason: &'static str,
        /// More of it.
        details: String,
    },
}

// Tokens are no business of logs.
impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Fetched::Tokens(..) => "Tokens",
            Fetched::Refused => "Refused",
            Fetched::Failed { reason, .. } => reason,
        })
    }
}

/// What stands in a form as it is; as in Envoy spaces do.
fn is_plain(byte: u8) -> bool {
    (b' '..b'~').contains(&byte) && !b":/=&?+".contains(&byte)
}

/// In a form's value that has nothing to tell apart.
fn is_printable(byte: u8) -> bool {
    (b' '..b'~').contains(&byte) && byte != b'%'
}

/// The question.
pub fn call(settings: &Settings, grant: &Grant<'_>, keys: &Keys, worker: &Worker) -> Call {
    let mut body = Vec::new();
    let put = |body: &mut Vec<u8>, name: &str, value: &[u8], may: fn(u8) -> bool| {
        body.extend_from_slice(name.as_bytes());
        encode(body, value, may);
    };
    let any = |_: u8| true;
    match grant {
        Grant::Code { code, .. } => put(&mut body, "grant_type=authorization_code&code=", code, any),
        Grant::Refresh(token) => {
            let may = if settings.auth == ClientAuth::Basic { is_printable } else { is_plain };
            put(&mut body, "grant_type=refresh_token&refresh_token=", token, may);
        }
    }
    if settings.auth != ClientAuth::Basic {
        put(&mut body, "&client_id=", settings.client_id.as_bytes(), is_plain);
    }
    if settings.auth == ClientAuth::Body {
        put(&mut body, "&client_secret=", &keys.client, is_plain);
    }
    if let Grant::Code { redirect_uri, verifier, .. } = grant {
        put(&mut body, "&redirect_uri=", redirect_uri, is_plain);
        put(&mut body, "&code_verifier=", verifier, any);
    }
    let target = &settings.endpoint;
    let mut request = call::head(b"POST", &target.authority, &target.path, b"http");
    request.fields.push_known(Known::ContentType, b"application/x-www-form-urlencoded");
    request.fields.push(b"accept", b"application/json");
    if settings.auth == ClientAuth::Basic {
        let pair = [settings.client_id.as_bytes(), b":", &keys.client].concat();
        let value = format!("Basic {}", BASE64_STANDARD.encode(pair));
        request.fields.push_known(Known::Authorization, value.as_bytes());
    }
    let mut digits = itoa::Buffer::new();
    request.fields.push_known(Known::ContentLength, digits.format(body.len()).as_bytes());
    let timeout = target.timeout;
    let per_try = settings.retries.and_then(|retries| retries.per_try(timeout));
    call::sign(&mut request, worker, per_try.or(timeout));
    Call { request, body: Bytes::from(body), timeout, most: MAX_ANSWER, retries: settings.retries }
}

/// Reads an answer. `renews` says that it is about a refresh token; `expires` is how long access tokens live of which it does
/// not say that.
pub fn read(answer: Result<Answer, CallError>, renews: bool, expires: Duration) -> Fetched {
    let failed = |reason, details| match renews {
        true => Fetched::Refused,
        false => Fetched::Failed { reason, details },
    };
    let answer = match answer {
        Ok(answer) if answer.head.status == 200 => answer,
        Ok(answer) => {
            let (code, body) = (answer.head.status, String::from_utf8_lossy(&answer.body));
            return failed(
                "Failed to get access token",
                format!("response code: {code}, response body: {body}"),
            );
        }
        Err(CallError::NoCluster) => {
            return Fetched::Failed { reason: "Token endpoint cluster not found", details: String::new() };
        }
        // As Envoy has it: such an answer is one of its own.
        Err(CallError::TimedOut | CallError::Unavailable | CallError::Unreached) => {
            return failed("Failed to get access token", String::new());
        }
        Err(_) => return failed("Failed to get access token due to HTTP request failure", String::new()),
    };
    let shown = || format!("response body: {}", String::from_utf8_lossy(&answer.body));
    let unusable = |reason| Fetched::Failed { reason, details: shown() };
    let Ok(Value::Object(all)) = serde_json::from_slice::<Value>(&answer.body) else {
        return unusable("Failed to parse oauth response body");
    };
    let text = |name: &str| match all.get(name) {
        None | Some(Value::Null) => Ok(None),
        // They go into headers as they are.
        Some(Value::String(text)) if is_field_value(text.as_bytes()) => Ok(Some(text.clone().into_bytes())),
        Some(_) => Err(()),
    };
    let seconds = match all.get("expires_in") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => text.parse().map(Some).map_err(|_| ()),
        Some(value) => value.as_u64().map(Some).ok_or(()),
    };
    let (Ok(access), Ok(id), Ok(refresh), Ok(seconds)) =
        (text("access_token"), text("id_token"), text("refresh_token"), seconds)
    else {
        return unusable("Failed to parse oauth response body");
    };
    let Some(access) = access else {
        return unusable("No access token found in the token exchange response");
    };
    let lives = seconds.map_or(expires, Duration::from_secs);
    if lives.is_zero() {
        return unusable(
            "No default or explicit access token expiration found in the token exchange response",
        );
    }
    let tokens = Tokens {
        access,
        id: id.unwrap_or_default(),
        refresh: refresh.unwrap_or_default(),
        ..Tokens::default()
    };
    Fetched::Tokens(tokens, lives)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::fields::Fields;
    use crate::http::head::ResponseHead;
    use crate::telemetry::stream_info::Protocol;

    fn told(body: &str) -> Fetched {
        let head = ResponseHead::new(Fields::default(), 200, Protocol::Http11);
        let answer = Answer { head, body: body.to_owned().into(), trailers: None, took: Duration::ZERO };
        read(Ok(answer), false, Duration::from_secs(1))
    }

    #[test]
    fn tokens_that_would_end_a_header_are_none() {
        assert!(matches!(told(r#"{"access_token": "a.b.c"}"#), Fetched::Tokens(..)));
        for name in ["access_token", "id_token", "refresh_token"] {
            let body = format!(r#"{{"access_token": "a", "{name}": "a\r\nx-user: root"}}"#);
            assert!(matches!(told(&body), Fetched::Failed { .. }), "{name}");
        }
    }
}
