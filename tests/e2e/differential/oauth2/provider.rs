//! A provider of tokens: what it gives depends on the code or the refresh token that it is sent.

use crate::harness::http2;
use base64::prelude::{Engine as _, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use std::sync::{Arc, Mutex};

pub struct Provider {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Provider {
    pub async fn start() -> Provider {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = seen.clone();
        let port = http2::serve(move |request, mut respond| {
            let kept = kept.clone();
            async move {
                let (head, mut body) = request.into_parts();
                let mut bytes = Vec::new();
                while let Some(Ok(piece)) = body.data().await {
                    let _ = body.flow_control().release_capacity(piece.len());
                    bytes.extend_from_slice(&piece);
                }
                let form = String::from_utf8_lossy(&bytes).into_owned();
                kept.lock().expect("no panic").push(shown(&head, &form));
                let (status, text) = answer(&form);
                let answer =
                    http::Response::builder().status(status).header("content-type", "application/json");
                let Ok(mut stream) = respond.send_response(answer.body(()).expect("a head"), false) else {
                    return;
                };
                let _ = stream.send_data(Bytes::from(text), true);
            }
        })
        .await;
        Provider { port, seen }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it was asked since the last time.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().expect("no panic"))
    }
}

/// A request without what is random.
fn shown(head: &http::request::Parts, form: &str) -> String {
    let random = ["x-request-id", "x-forwarded-for"];
    let mut fields: Vec<String> = (head.headers.iter())
        .filter(|(name, _)| !random.contains(&name.as_str()))
        .map(|(name, value)| format!("{name}: {value:?}"))
        .collect();
    fields.sort();
    let pairs: Vec<String> = (form.split('&'))
        .map(|pair| match pair.strip_prefix("code_verifier=") {
            Some(verifier) => format!("code_verifier=<{}>", verifier.len()),
            None => pair.to_string(),
        })
        .collect();
    format!("{} {} {fields:?} {pairs:?}", head.method, head.uri)
}

/// A token whose claims say when it ends.
fn jwt(expires: u64) -> String {
    let part = |text: String| BASE64_URL_SAFE_NO_PAD.encode(text);
    let claims = part(format!(r#"{{"iss":"login","sub":"jane","exp":{expires}}}"#));
    format!(
        "{}.{claims}.{}",
        part(r#"{"alg":"RS256","typ":"JWT"}"#.to_string()),
        part("signature".to_string())
    )
}

fn answer(form: &str) -> (u16, String) {
    let field = |name: &str| {
        form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    let good = || {
        // Long ago, so that how long it lives is the same for both.
        let id = jwt(1_000_000_000);
        format!(
            r#"{{"access_token":"access","id_token":"{id}","refresh_token":"next","expires_in":3600,"token_type":"bearer","more":[1]}}"#
        )
    };
    match [field("code"), field("refresh_token")].concat().as_str() {
        "good" | "old" | "next" => (200, good()),
        "few" => (200, r#"{"access_token":"access"}"#.to_string()),
        "keep" => (200, r#"{"access_token":"another","expires_in":"120"}"#.to_string()),
        "none" => (200, r#"{"expires_in":3600}"#.to_string()),
        "text" => (200, "no json".to_string()),
        "list" => (200, "[1]".to_string()),
        "kinds" => (200, r#"{"access_token":[1]}"#.to_string()),
        "broken" => (500, "oops".to_string()),
        _ => (400, "what?".to_string()),
    }
}
