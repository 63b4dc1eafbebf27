//! The admin port: Envoy's endpoints.
//!
//! Comes in: HTTP requests on a listener of its own, served on the control thread, so that a huge
//! dump delays no traffic. Goes out: the state of everything that [`AdminState`] holds, and
//! [`AdminCommand`]s to whoever runs the process. What changes something is POST only, and no
//! page runs a script or shows text of a peer as HTML.

mod config_dump;
mod discovery;
mod endpoints;
mod endpoints_dump;
mod resources;
mod stats;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{header, HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use axum::Router;
use tokio::sync::mpsc;

use crate::bootstrap::flags::HOT_RESTART_VERSION;
use crate::config::cluster::Address;
use crate::config::{Cluster, Directory};
use crate::discovery::view::View;
use crate::telemetry::log::LogControl;
use crate::telemetry::process::Server;

/// Everything the admin port shows or changes.
#[derive(Clone, Debug)]
pub struct AdminState {
    /// The server's life cycle and statistics.
    pub server: Arc<Server>,
    /// Clusters.
    pub clusters: Arc<Directory<Cluster>>,
    /// Listeners that are bound, kept up to date by whoever binds them.
    pub listeners: Arc<ArcSwap<Vec<ListenerStatus>>>,
    /// The bootstrap.
    pub bootstrap: BootstrapSource,
    /// Its node as JSON.
    pub node: Arc<serde_json::Value>,
    /// When the bootstrap was loaded.
    pub loaded: SystemTime,
    /// `command_line_options` of `/server_info`.
    pub options: Arc<serde_json::Value>,
    /// Levels of the process's log.
    pub log: LogControl,
    /// What control planes gave, if there are any.
    pub discovery: Option<View>,
    /// Where commands go. Bounded: a command that does not fit is refused with 503.
    pub commands: mpsc::Sender<AdminCommand>,
}

/// Gives the bootstrap as JSON, `@type`s included, as [`outrigger_control_api::to_json`] does. That is
/// many times the size of what it is made from, so it is made for each page that shows it.
#[derive(Clone)]
pub struct BootstrapSource(pub Arc<dyn Fn() -> serde_json::Value + Send + Sync>);

impl BootstrapSource {
    fn json(&self) -> serde_json::Value {
        (self.0)()
    }
}

impl std::fmt::Debug for BootstrapSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BootstrapSource")
    }
}

/// A listener as `/listeners` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Where it is bound; more than one with `additional_addresses`.
    pub addresses: Vec<Address>,
}

/// What the process is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminCommand {
    /// `/quitquitquit`: exit.
    Quit,
    /// `/drain_listeners`.
    DrainListeners {
        /// Announce the end on open connections first.
        graceful: bool,
        /// Only listeners with `traffic_direction: INBOUND`.
        inbound_only: bool,
        /// Drain connections and keep the listeners.
        skip_exit: bool,
    },
    /// `/healthcheck/fail` (true) or `/healthcheck/ok`. The server's state has changed already.
    HealthFail(bool),
}

/// Serves `listener` (TCP or Unix) until `shutdown` is done, then lets open requests finish.
pub async fn serve<L>(
    listener: L,
    state: AdminState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()>
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    let router = Router::new().fallback(dispatch).with_state(state);
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

/// One endpoint.
struct Endpoint {
    path: &'static str,
    help: &'static str,
    /// Parameters and what they mean.
    params: &'static [(&'static str, &'static str)],
    /// Changes something: POST only.
    mutates: bool,
    handle: fn(&AdminState, &Params) -> Answer,
}

/// Sorted by path.
const ENDPOINTS: &[Endpoint] = &[
    read("/", "admin home page", &[], |_, _| endpoints::home()),
    read("/certs", "print certificates in use", &[], |_, _| endpoints::certs()),
    read(
        "/clusters",
        "upstream cluster status",
        &[("filter", "regular expression for cluster names"), ("format", "one of text, json")],
        resources::clusters,
    ),
    read(
        "/config_dump",
        "dump the current configuration",
        &[
            ("resource", "the repeated field to dump, such as static_clusters"),
            ("mask", "field mask: which fields of the dump, or of each resource, to keep"),
            ("name_regex", "only resources whose names match"),
            ("include_eds", "with endpoints"),
        ],
        config_dump::config_dump,
    ),
    read(
        "/discovery",
        "print the streams to control planes: what came, how old it is, what was refused",
        &[("format", "one of text, json")],
        discovery::discovery,
    ),
    action(
        "/drain_listeners",
        "drain listeners",
        &[
            ("graceful", "announce the end on open connections first"),
            ("inboundonly", "only listeners with traffic_direction INBOUND"),
            ("skip_exit", "drain connections and keep the listeners"),
        ],
        endpoints::drain_listeners,
    ),
    action("/healthcheck/fail", "fail health checks", &[], |state, _| endpoints::health(state, true)),
    action("/healthcheck/ok", "pass health checks", &[], |state, _| endpoints::health(state, false)),
    read("/help", "print this list", &[], |_, _| Answer::text(help())),
    read("/hot_restart_version", "print the hot restart compatibility version", &[], |_, _| {
        Answer::text(HOT_RESTART_VERSION)
    }),
    read("/init_dump", "dump what initialisation waits for", &[], |_, _| {
        Answer::json(&serde_json::json!({}))
    }),
    read("/listeners", "print listener info", &[("format", "one of text, json")], resources::listeners),
    action(
        "/logging",
        "query or change log levels",
        &[
            ("level", "the level for every logger"),
            ("paths", "levels of some loggers: <name>:<level>,<name>:<level>"),
        ],
        endpoints::logging,
    ),
    read("/memory", "print memory in use", &[], |_, _| endpoints::memory()),
    action("/quitquitquit", "exit the server", &[], |state, _| command(state, AdminCommand::Quit)),
    read(
        "/ready",
        "print the server's state; 200 if LIVE, otherwise 503",
        &[("verbose", "say what is waited for, and what serves instead")],
        endpoints::ready,
    ),
    action("/reopen_logs", "reopen access logs", &[], |_, _| endpoints::reopen_logs()),
    action("/reset_counters", "reset all counters to zero", &[], |_, _| endpoints::reset_counters()),
    read("/runtime", "print runtime values", &[], endpoints::runtime),
    read("/server_info", "print version and status", &[], endpoints::server_info),
    read("/stats", "print statistics", stats::PARAMS, stats::stats),
    read("/stats/prometheus", "print statistics for Prometheus", stats::PARAMS, stats::prometheus),
    read("/strict_mtls", "print peers that strict mTLS would refuse", &[], |_, _| endpoints::strict_mtls()),
];

const fn read(
    path: &'static str,
    help: &'static str,
    params: &'static [(&'static str, &'static str)],
    handle: fn(&AdminState, &Params) -> Answer,
) -> Endpoint {
    Endpoint { path, help, params, mutates: false, handle }
}

const fn action(
    path: &'static str,
    help: &'static str,
    params: &'static [(&'static str, &'static str)],
    handle: fn(&AdminState, &Params) -> Answer,
) -> Endpoint {
    Endpoint { path, help, params, mutates: true, handle }
}

async fn dispatch(
    State(state): State<AdminState>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    if method == Method::POST && is_foreign(&headers) {
        let refused = Answer::text("POST from a page of another origin\n");
        return Answer { status: StatusCode::FORBIDDEN, ..refused }.into();
    }
    answer(&state, &method, &uri).into()
}

/// Whether a browser sent this for a page that is not ours: such a page can make it POST here, but
/// cannot make it hide where the page came from.
fn is_foreign(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
    let origin = origin.as_bytes();
    let site = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
    site.is_none() || site != host
}

fn answer(state: &AdminState, method: &Method, uri: &Uri) -> Answer {
    let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| endpoint.path == uri.path()) else {
        return Answer { status: StatusCode::NOT_FOUND, ..Answer::text(format!("invalid path. {}", help())) };
    };
    let allowed = match *method {
        Method::POST => true,
        Method::GET | Method::HEAD => !endpoint.mutates,
        _ => false,
    };
    if !allowed {
        let needed = if endpoint.mutates { "POST" } else { "GET" };
        let message = format!("Method {method} not allowed, {needed} required.");
        return Answer { status: StatusCode::METHOD_NOT_ALLOWED, ..Answer::text(message) };
    }
    match Query::try_from_uri(uri) {
        Ok(Query(pairs)) => (endpoint.handle)(state, &Params(pairs)),
        Err(error) => Answer::bad_request(format!("malformed query: {error}\n")),
    }
}

/// The query's parameters, in order.
struct Params(Vec<(String, String)>);

impl Params {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(each, _)| each == name).map(|(_, value)| value.as_str())
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The regular expression in `name`, if there is one.
    fn regex(&self, name: &str) -> Result<Option<regex::Regex>, Answer> {
        let Some(pattern) = self.get(name).filter(|pattern| !pattern.is_empty()) else { return Ok(None) };
        // The size limit bounds what a pattern costs; matching takes linear time.
        let regex = regex::RegexBuilder::new(pattern).size_limit(1 << 20).build();
        regex.map(Some).map_err(|error| Answer::bad_request(format!("Invalid regex: {error}\n")))
    }
}

/// What is sent back.
struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

impl Answer {
    fn text(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, content_type: "text/plain; charset=UTF-8", body: body.into() }
    }

    fn json(body: &serde_json::Value) -> Self {
        Self { status: StatusCode::OK, content_type: "application/json", body: pretty(body) }
    }

    fn bad_request(body: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, ..Self::text(body) }
    }
}

impl From<Answer> for Response<Body> {
    fn from(answer: Answer) -> Self {
        let mut response = Response::new(Body::from(answer.body));
        *response.status_mut() = answer.status;
        let headers = response.headers_mut();
        for (name, value) in [
            (header::CONTENT_TYPE, answer.content_type),
            (header::CACHE_CONTROL, "no-cache, max-age=0"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (
                header::CONTENT_SECURITY_POLICY,
                "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'",
            ),
            (header::X_FRAME_OPTIONS, "DENY"),
            (header::SERVER, "envoy"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// Hands a command over.
fn command(state: &AdminState, command: AdminCommand) -> Answer {
    match state.commands.try_send(command) {
        Ok(()) => Answer::text("OK\n"),
        Err(_) => {
            Answer { status: StatusCode::SERVICE_UNAVAILABLE, ..Answer::text("busy or shutting down\n") }
        }
    }
}

fn help() -> String {
    let mut out = String::from("admin commands are:\n");
    for endpoint in ENDPOINTS {
        let post = if endpoint.mutates { " (POST)" } else { "" };
        out += &format!("  {}{post}: {}\n", endpoint.path, endpoint.help);
        for (name, meaning) in endpoint.params {
            out += &format!("      {name}: {meaning}\n");
        }
    }
    out
}

/// JSON as Envoy prints it: one space of indentation for each level.
fn pretty(value: &serde_json::Value) -> String {
    use serde::Serialize;
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    // Writing a value to memory cannot fail.
    let _ = value.serialize(&mut serializer);
    out.push(b'\n');
    String::from_utf8(out).unwrap_or_default()
}
