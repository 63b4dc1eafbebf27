//! The status page: what is served, what is wrong with the files, and what each client has made of it
//! and how much load it reports.
//!
//! In: HTTP requests. Out: `/` for people, `/status.json` for programs, and the gRPC services of
//! discovery are elsewhere.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use hyper::http::{header, HeaderValue, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{json, Value};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::tree::Scope;
use super::{load_page, time_of_day, Control};
use crate::server::{Protocol, Snapshot, StreamStatus};

/// Status connections at a time; more wait.
const MAX_CONNECTIONS: usize = 64;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long accepting pauses after it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const STYLE: &str = "body{font:15px system-ui,sans-serif;margin:2em;max-width:80em}\
    table{border-collapse:collapse;margin:.5em 0 1.5em}td,th{border:1px solid #bbb;padding:.2em .6em;\
    text-align:left;vertical-align:top}.bad{color:#a00;font-weight:600}code{font-size:13px}";

impl Control {
    /// Serves the status page until the future is dropped.
    pub async fn serve_status(&self, listener: TcpListener) {
        let permits = std::sync::Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let control = self.clone();
            connections.spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let response = control.respond(&request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let mut http1 = hyper::server::conn::http1::Builder::new();
                http1.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
                // A client that hangs up is nobody's concern.
                let _ = http1.serve_connection(TokioIo::new(stream), service).await;
                drop(permit);
            });
        }
    }

    fn respond<B>(&self, request: &Request<B>) -> Response<String> {
        let (status, kind, body) = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/") => {
                (StatusCode::OK, "text/html; charset=utf-8", self.status_html())
            }
            (&Method::GET | &Method::HEAD, "/status.json") => {
                (StatusCode::OK, "application/json", format!("{:#}\n", self.status()))
            }
            (&Method::GET | &Method::HEAD, _) => {
                (StatusCode::NOT_FOUND, "text/plain", "there are / and /status.json\n".to_owned())
            }
            _ => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "this page is for reading only\n".to_owned()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// What `/status.json` says.
    #[must_use]
    pub fn status(&self) -> Value {
        let tree = self.tree();
        let mut scopes = vec![scope(None, &tree.common)];
        scopes.extend(tree.keys.iter().map(|(key, found)| scope(Some(key), found)));
        drop(tree);
        let clients: Vec<Value> = self.cache().streams().iter().map(client).collect();
        json!({
            "directory": self.shared.settings.directory.display().to_string(),
            "started": seconds(self.shared.started),
            "snapshots": scopes,
            "clients": clients,
            "loads": self.loads().iter().map(load_page::loads).collect::<Vec<_>>(),
        })
    }

    fn status_html(&self) -> String {
        let status = self.status();
        let mut page = String::from("<!doctype html><html lang=en><meta charset=utf-8>");
        let text = |value: &Value| escape(value.as_str().unwrap_or_default());
        let _ = write!(
            page,
            "<title>outrigger-control</title><style>{STYLE}</style><h1>outrigger-control</h1>\
             <p>Serves <code>{}</code>. As of {}; <a href=status.json>the same as JSON</a>.</p><h2>Files</h2>",
            text(&status["directory"]),
            time_of_day(SystemTime::now()),
        );
        for snapshot in list(&status["snapshots"]) {
            let whom =
                snapshot["key"].as_str().map_or("for everybody".to_owned(), |key| format!("for {key}"));
            let _ = write!(page, "<h3>{}</h3>", escape(&whom));
            rows(&mut page, &["type", "resources", "version"], list(&snapshot["types"]), |row| {
                vec![text(&row["type"]), row["resources"].to_string(), code(&text(&row["version"]))]
            });
            let problems = list(&snapshot["problems"]);
            if !problems.is_empty() {
                page.push_str("<p class=bad>The files have mistakes; the last good state is served.</p>");
                rows(&mut page, &["file", "resource", "field", "what is wrong"], problems, |row| {
                    vec![
                        text(&row["file"]),
                        text(&row["resource"]),
                        code(&text(&row["field"])),
                        text(&row["message"]),
                    ]
                });
            }
        }
        page.push_str("<h2>Clients</h2>");
        if list(&status["clients"]).is_empty() {
            page.push_str("<p>None is connected.</p>");
        }
        for client in list(&status["clients"]) {
            let _ = write!(
                page,
                "<h3>{} <small>(cluster {}, {}, stream {})</small></h3>",
                text(&client["id"]),
                text(&client["cluster"]),
                text(&client["protocol"]),
                client["stream"],
            );
            let heads = ["type", "wants", "has", "waiting", "sent", "accepted", "refused", "last refusal"];
            rows(&mut page, &heads, list(&client["types"]), |row| {
                let number = |field: &str| row[field].to_string();
                let all = if row["wildcard"] == true { "all + " } else { "" };
                let why = row["last_refusal"]["message"].as_str().unwrap_or_default();
                let why = if why.is_empty() {
                    String::new()
                } else {
                    format!("<span class=bad>{}</span>", escape(why))
                };
                vec![
                    text(&row["type"]),
                    format!("{all}{}", number("names")),
                    number("known"),
                    number("pending"),
                    code(&text(&row["version_sent"])),
                    format!("{} &times; {}", code(&text(&row["version_accepted"])), number("accepted")),
                    number("refused"),
                    why,
                ]
            });
        }
        load_page::html(&mut page, list(&status["loads"]));
        page.push_str("</html>\n");
        page
    }
}

fn scope(key: Option<&String>, scope: &Scope) -> Value {
    let problems: Vec<Value> = scope
        .problems
        .iter()
        .map(|p| {
            json!({
                "file": p.file.display().to_string(), "resource": p.resource,
                "field": p.problem.path, "message": p.problem.message,
            })
        })
        .collect();
    let types = scope.snapshot.as_ref().map(|snapshot| types(snapshot)).unwrap_or_default();
    json!({"key": key, "files": scope.files, "types": types, "problems": problems})
}

fn types(snapshot: &Snapshot) -> Vec<Value> {
    let one = |kind| {
        let (count, version) = (snapshot.count(kind), snapshot.version(kind));
        json!({"type": kind.to_string(), "resources": count, "version": version})
    };
    snapshot.types().map(one).collect()
}

fn client(stream: &StreamStatus) -> Value {
    let types: Vec<Value> = stream
        .types
        .iter()
        .map(|t| {
            let refusal = t.last_nack.as_ref().map(|(nack, at)| {
                let (code, message) = (nack.code, nack.message.as_str());
                json!({"version": nack.version, "code": code, "message": message, "at": seconds(*at)})
            });
            json!({
                "type": t.kind.to_string(), "wildcard": t.wildcard, "names": t.subscribed, "known": t.known,
                "pending": t.pending, "version_sent": t.version_sent, "version_accepted": t.version_acked,
                "accepted": t.acks, "refused": t.nacks, "last_refusal": refusal,
            })
        })
        .collect();
    let protocol = match stream.protocol {
        Protocol::Delta => "delta",
        Protocol::StateOfTheWorld => "sotw",
    };
    json!({
        "stream": stream.id, "id": stream.node_id, "cluster": stream.node_cluster, "key": stream.key,
        "protocol": protocol, "only": stream.only.as_ref().map(ToString::to_string),
        "since": seconds(stream.since), "in_sync": stream.is_in_sync(), "types": types,
    })
}

/// Since 1970.
pub(super) fn seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn rows(page: &mut String, heads: &[&str], rows: &[Value], cells: impl Fn(&Value) -> Vec<String>) {
    if rows.is_empty() {
        return;
    }
    let _ = write!(page, "<table><tr><th>{}</tr>", heads.join("<th>"));
    for row in rows {
        let _ = write!(page, "<tr><td>{}</tr>", cells(row).join("<td>"));
    }
    page.push_str("</table>");
}

fn code(escaped: &str) -> String {
    format!("<code>{escaped}</code>")
}

/// Text as it stands in HTML: names come from files, messages from clients.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}
