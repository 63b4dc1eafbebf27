//! A browser that keeps cookies, and tells what it sees without what is random.

use super::super::Side;
use super::provider::Provider;
use crate::harness::client::Client;
use base64::prelude::{Engine as _, BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// What came of a request.
pub struct Seen {
    pub status: u16,
    pub location: String,
    pub text: String,
}

#[derive(Clone)]
pub struct Browser<'s> {
    side: &'s Side,
    provider: &'s Provider,
    listener: &'static str,
    cookies: BTreeMap<String, String>,
    state: String,
}

impl<'s> Browser<'s> {
    pub fn new(side: &'s Side, provider: &'s Provider, listener: &'static str) -> Browser<'s> {
        Browser { side, provider, listener, cookies: BTreeMap::new(), state: String::new() }
    }

    pub fn with(
        side: &'s Side,
        provider: &'s Provider,
        listener: &'static str,
        cookies: &BTreeMap<String, String>,
    ) -> Browser<'s> {
        Browser { cookies: cookies.clone(), ..Browser::new(side, provider, listener) }
    }

    /// Its cookies.
    pub fn kept(&self) -> BTreeMap<String, String> {
        self.cookies.clone()
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.cookies.insert(name.to_string(), value.to_string());
    }

    /// Loses cookies whose names begin so, or all.
    pub fn forget(&mut self, name: &str) {
        match name {
            "" => {}
            "all" => self.cookies.clear(),
            _ => self.cookies.retain(|kept, _| !kept.starts_with(name)),
        }
    }

    /// What the last redirect to the provider carried.
    pub fn state(&self) -> String {
        self.state.clone()
    }

    pub async fn get(&mut self, path: &str, headers: &str) -> String {
        self.look(path, headers).await.text
    }

    pub async fn look(&mut self, path: &str, headers: &str) -> Seen {
        for (_, origin) in &self.side.origins {
            origin.take();
        }
        let log = self.side.proxy.file("access.log");
        let before = std::fs::read(&log).map_or(0, |bytes| bytes.len());
        let host = if headers.contains("Host:") { "" } else { "Host: t.test\r\n" };
        let pairs: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let cookies = match pairs.is_empty() {
            true => String::new(),
            false => format!("Cookie: {}\r\n", pairs.join("; ")),
        };
        let port = self.side.proxy.port(self.listener);
        let mut client = Client::connect(port).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\n{host}{headers}{cookies}\r\n");
        let answer = client.exchange(request.as_bytes()).await.expect("an answer");
        let mut text = format!("{} {:?}\n", answer.start_line, answer.text());
        let mut names: Vec<String> =
            answer.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        names.retain(|name| {
            !["set-cookie", "date", "server", "x-envoy-upstream-service-time"].contains(&&**name)
        });
        names.sort();
        writeln!(text, "headers {names:?}").expect("room");
        let location = answer.header("location").unwrap_or_default().to_string();
        writeln!(text, "location {}", self.shape_of_location(&location)).expect("room");
        let mut set = Vec::new();
        for cookie in answer.all("set-cookie") {
            let (pair, tail) = cookie.split_once(';').unwrap_or((cookie, ""));
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            set.push(format!("set {}={};{tail}\n", shape_of_name(name), shape(value)));
            if value == "deleted" {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_string(), value.to_string());
            }
        }
        // Envoy takes cookies away in any order.
        set.sort();
        text += &set.concat();
        for (name, origin) in &self.side.origins {
            for request in origin.take() {
                writeln!(text, "{name}: {}", request.start_line).expect("room");
                let mut fields: Vec<String> = request
                    .headers
                    .iter()
                    .filter(|(name, _)| {
                        !["x-request-id", "cookie", "x-forwarded-for"].contains(&&*name.to_ascii_lowercase())
                    })
                    .map(|(name, value)| format!("{}: {value}", name.to_ascii_lowercase()))
                    .collect();
                fields.sort();
                let mut cookies: Vec<String> = (request.all("cookie"))
                    .flat_map(|line| line.split("; "))
                    .map(|pair| {
                        let (name, value) = pair.split_once('=').unwrap_or((pair, "<none>"));
                        format!("{}={}", shape_of_name(name), shape(value))
                    })
                    .collect();
                cookies.sort();
                writeln!(text, "  {fields:?}\n  cookies {cookies:?}").expect("room");
            }
        }
        for asked in self.provider.take() {
            writeln!(text, "provider: {asked}").expect("room");
        }
        let mut line = String::new();
        crate::harness::eventually(crate::harness::DEADLINE / 3, || {
            let bytes = std::fs::read(&log).unwrap_or_default();
            line = String::from_utf8_lossy(bytes.get(before..).unwrap_or_default()).into_owned();
            std::future::ready(line.ends_with('\n'))
        })
        .await;
        for field in line.trim_end().split('\t') {
            if ["code=", "flags=", "details="].iter().any(|key| field.starts_with(key)) {
                // What is random in it comes last, as what Envoy says of bad JSON is.
                let short = field.split("state=").next().unwrap_or_default();
                let short = short.split(",_exception").next().unwrap_or_default();
                writeln!(text, "log {}", short.replace(&self.state, "<state>")).expect("room");
            }
        }
        Seen { status: answer.status(), location, text }
    }

    /// A location without what is random; the state is kept.
    fn shape_of_location(&mut self, location: &str) -> String {
        let (path, query) = location.split_once('?').unwrap_or((location, ""));
        let mut out = path.to_string();
        for (index, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
            out.push(if index == 0 { '?' } else { '&' });
            if let Some(state) = pair.strip_prefix("state=") {
                self.state = state.to_string();
                let decoded = BASE64_URL_SAFE_NO_PAD.decode(state).expect("a state");
                let decoded: serde_json::Value = serde_json::from_slice(&decoded).expect("JSON");
                let names: Vec<_> = decoded.as_object().expect("an object").keys().cloned().collect();
                out += &format!("state=<{names:?} {}>", decoded["url"]);
            } else if let Some(challenge) = pair.strip_prefix("code_challenge=") {
                out += &format!("code_challenge=<{}>", challenge.len());
            } else {
                out += pair;
            }
        }
        out
    }
}

/// A cookie's name without the id of a flow.
fn shape_of_name(name: &str) -> String {
    match name.split_once('.') {
        Some((base, id)) if id.len() <= 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            format!("{base}.<flow>")
        }
        _ => name.to_string(),
    }
}

/// A value without what is random.
fn shape(value: &str) -> String {
    if let Some((random, mac)) = value.split_once('.') {
        let hex = random.len() <= 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hex && BASE64_STANDARD.decode(mac).is_ok_and(|mac| mac.len() == 32) {
            return "<signed>".to_string();
        }
    }
    if BASE64_STANDARD.decode(value).is_ok_and(|mac| mac.len() == 32) {
        return "<mac>".to_string();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    if let Ok(time) = value.parse::<u64>() {
        if time > now - 100 {
            return format!("<now and {}>", (time + 30 - now) / 60 * 60);
        }
    }
    match BASE64_URL_SAFE_NO_PAD.decode(value) {
        Ok(bytes) if bytes.len() >= 32 && bytes.len() % 16 == 0 => format!("<sealed in {}>", bytes.len()),
        _ => value.to_string(),
    }
}
