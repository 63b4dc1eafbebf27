//! The process's own log: lines on standard error, with Envoy's levels and logger names.
//!
//! Comes in: `tracing` events. Goes out: one line each,
//! `[2026-01-31 23:59:59.123][pid][info][main] message`. Levels are set at start (`--log-level`,
//! `--component-log-level`) and changed while running (`POST /logging`).

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use jiff::tz::TimeZone;
use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{reload, Layer, Registry};

/// Envoy's log levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warning,
    Error,
    Critical,
    Off,
}

impl LogLevel {
    const ALL: [(LogLevel, &'static str); 7] = [
        (LogLevel::Trace, "trace"),
        (LogLevel::Debug, "debug"),
        (LogLevel::Info, "info"),
        (LogLevel::Warning, "warning"),
        (LogLevel::Error, "error"),
        (LogLevel::Critical, "critical"),
        (LogLevel::Off, "off"),
    ];

    /// As Envoy spells it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(level, _)| *level == self).map_or("", |(_, name)| name)
    }

    /// Nothing is logged as critical here, so that level shows what `error` shows.
    fn filter(self) -> LevelFilter {
        match self {
            LogLevel::Trace => LevelFilter::TRACE,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Warning => LevelFilter::WARN,
            LogLevel::Error | LogLevel::Critical => LevelFilter::ERROR,
            LogLevel::Off => LevelFilter::OFF,
        }
    }
}

impl std::str::FromStr for LogLevel {
    type Err = LogError;

    fn from_str(name: &str) -> Result<Self, LogError> {
        let name = if name == "warn" { "warning" } else { name };
        let found = Self::ALL.iter().find(|(_, spelled)| *spelled == name);
        found.map(|(level, _)| *level).ok_or_else(|| LogError::Level(name.to_owned()))
    }
}

/// A wrong level or logger name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// No such level.
    #[error("unknown log level {0:?} (trace debug info warning error critical off)")]
    Level(String),
    /// No such logger.
    #[error("unknown logger name {0:?}")]
    Logger(String),
    /// Not `name:level,name:level`.
    #[error("{0:?} is not <logger>:<level>")]
    Syntax(String),
    /// The log file cannot be opened.
    #[error("cannot open the log file {path}: {reason}")]
    File {
        /// Its path.
        path: String,
        /// What the system says.
        reason: String,
    },
}

/// Envoy's loggers that something here writes to, and the `tracing` targets each stands for. An
/// event's target may also be a logger's name itself.
const LOGGERS: &[(&str, &[&str])] = &[
    ("admin", &["outrigger::admin", "axum", "hyper"]),
    ("config", &["outrigger::config", "outrigger::bootstrap", "outrigger_control_api"]),
    ("conn_handler", &["outrigger::listener"]),
    ("connection", &["outrigger::runtime::stream"]),
    ("dns", &["outrigger::upstream::dns", "hickory_net", "hickory_proto", "hickory_resolver"]),
    ("file", &["outrigger::telemetry::access_log"]),
    ("filter", &["outrigger::tcp"]),
    ("grpc", &["outrigger::discovery"]),
    ("http", &["outrigger::http"]),
    ("http2", &["outrigger::http::h2", "h2"]),
    ("lua", &["outrigger::http::filters::lua"]),
    ("main", &["outrigger", "outrigger::runtime"]),
    ("pool", &["outrigger::upstream::pool"]),
    ("router", &["outrigger::http::router"]),
    ("stats", &["outrigger::telemetry::metrics"]),
    ("upstream", &["outrigger::upstream"]),
];

/// Envoy's other loggers: their levels can be set, and nothing is written to them.
const SILENT_LOGGERS: &str = "alternate_protocols_cache aws assert backtrace basic_auth cache_filter \
    client compression credential_injector decompression dubbo dynamic_modules envoy_bug ext_authz \
    ext_proc forward_proxy geolocation golang happy_eyeballs hc health_checker hystrix init io jwt \
    json_rpc kafka key_value_store local_rate_limit matcher mcp misc mongo multi_connection \
    notification oauth2 quic quic_stream rate_limit_quota rbac rds redis rocketmq runtime secret \
    stats_sinks tap testing thrift tracing udp wasm websocket";

/// Changes levels while running. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogControl(Arc<Control>);

struct Control {
    levels: Mutex<BTreeMap<&'static str, LogLevel>>,
    handle: Option<reload::Handle<Targets, Registry>>,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

/// Sets the log up, once for the process. `components` is `--component-log-level`'s value (may be
/// empty), `file` is `--log-path`. When the process already has a subscriber, that one stays.
pub fn init(
    level: LogLevel,
    components: &str,
    file: Option<&std::path::Path>,
) -> Result<LogControl, LogError> {
    let mut levels = all_loggers().map(|name| (name, level)).collect();
    apply(&mut levels, components)?;
    let output = match file {
        None => Output::Stderr,
        Some(path) => {
            let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
            let reason = |error: std::io::Error| LogError::File {
                path: path.display().to_string(),
                reason: error.to_string(),
            };
            Output::File(Arc::new(opened.map_err(reason)?))
        }
    };
    let (filter, handle) = reload::Layer::new(targets(&levels));
    let lines = tracing_subscriber::fmt::layer().event_format(Lines).with_writer(output).with_filter(filter);
    let installed = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines));
    let handle = installed.is_ok().then_some(handle);
    Ok(LogControl(Arc::new(Control { levels: Mutex::new(levels), handle })))
}

impl LogControl {
    /// Levels without a log behind them, for tests.
    pub fn detached(level: LogLevel) -> Self {
        let levels = all_loggers().map(|name| (name, level)).collect();
        Self(Arc::new(Control { levels: Mutex::new(levels), handle: None }))
    }

    /// Every logger and its level, sorted by name.
    pub fn levels(&self) -> Vec<(&'static str, LogLevel)> {
        self.locked().iter().map(|(name, level)| (*name, *level)).collect()
    }

    /// Sets the level of every logger.
    pub fn set_all(&self, level: LogLevel) {
        let mut levels = self.locked();
        levels.values_mut().for_each(|each| *each = level);
        self.reload(&levels);
    }

    /// Sets levels as `name:level,name:level` says: all of them or, with an error, none.
    pub fn set(&self, components: &str) -> Result<(), LogError> {
        let mut levels = self.locked();
        let mut changed = levels.clone();
        apply(&mut changed, components)?;
        *levels = changed;
        self.reload(&levels);
        Ok(())
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<&'static str, LogLevel>> {
        self.0.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reload(&self, levels: &BTreeMap<&'static str, LogLevel>) {
        if let Some(handle) = &self.0.handle {
            // Fails only when the subscriber is gone, and then there is no log to change.
            let _ = handle.reload(targets(levels));
        }
    }
}

fn all_loggers() -> impl Iterator<Item = &'static str> {
    LOGGERS.iter().map(|(name, _)| *name).chain(SILENT_LOGGERS.split_whitespace())
}

fn apply(levels: &mut BTreeMap<&'static str, LogLevel>, components: &str) -> Result<(), LogError> {
    for part in components.split(',').filter(|part| !part.is_empty()) {
        let (name, level) = part.split_once(':').ok_or_else(|| LogError::Syntax(part.to_owned()))?;
        let entry = levels.get_mut(name).ok_or_else(|| LogError::Logger(name.to_owned()))?;
        *entry = level.parse()?;
    }
    Ok(())
}

/// The filter: the longest target that is a prefix of an event's target decides.
fn targets(levels: &BTreeMap<&'static str, LogLevel>) -> Targets {
    let level = |name: &str| levels.get(name).copied().unwrap_or(LogLevel::Info);
    let mut targets = Targets::new().with_default(level("misc").filter());
    for (name, stands_for) in LOGGERS {
        let filter = level(name).filter();
        targets = targets.with_target(*name, filter);
        for target in *stands_for {
            targets = targets.with_target(*target, filter);
        }
    }
    targets
}

/// The logger that an event belongs to.
fn logger(target: &str) -> &str {
    let mut best = ("misc", 0);
    for (name, stands_for) in LOGGERS {
        if *name == target {
            return name;
        }
        for prefix in *stands_for {
            let rest = target.strip_prefix(prefix);
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::")) && prefix.len() > best.1 {
                best = (name, prefix.len());
            }
        }
    }
    best.0
}

#[derive(Clone, Debug)]
enum Output {
    Stderr,
    File(Arc<std::fs::File>),
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Box<dyn std::io::Write + 'a>;

    fn make_writer(&'a self) -> Self::Writer {
        match self {
            Output::Stderr => Box::new(std::io::stderr()),
            Output::File(file) => Box::new(&**file),
        }
    }
}

/// Writes events as lines.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        let now = Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH);
        let metadata = event.metadata();
        writeln!(
            out,
            "[{}][{}][{}][{}] {}",
            now.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S.%3f"),
            std::process::id(),
            level_name(*metadata.level()),
            logger(metadata.target()),
            fields.0
        )
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::TRACE => "trace",
        Level::DEBUG => "debug",
        Level::INFO => "info",
        Level::WARN => "warning",
        Level::ERROR => "error",
    }
}

/// The message, then `name=value` for each other field. Control characters, which can come from
/// peers, are escaped: an event is one line.
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        // Writing to a String cannot fail.
        if field.name() != "message" {
            let _ = write!(self.0, "{}=", field.name());
        }
        for c in text.chars() {
            let _ =
                if c.is_control() { write!(self.0, "{}", c.escape_default()) } else { self.0.write_char(c) };
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_set_by_name() {
        let control = LogControl::detached(LogLevel::Info);
        let level = |name| control.levels().into_iter().find(|(n, _)| *n == name).map(|(_, level)| level);
        assert_eq!(control.set("http:debug,wasm:off,upstream:warn"), Ok(()));
        assert_eq!(level("http"), Some(LogLevel::Debug));
        assert_eq!(level("upstream"), Some(LogLevel::Warning));
        assert_eq!(control.set("http:trace,nope:info"), Err(LogError::Logger("nope".into())));
        assert_eq!(level("http"), Some(LogLevel::Debug), "all or none");
        assert_eq!(control.set("http:loud"), Err(LogError::Level("loud".into())));
        assert_eq!(control.set("http"), Err(LogError::Syntax("http".into())));
        control.set_all(LogLevel::Error);
        assert_eq!(level("main").map(LogLevel::name), Some("error"));
        assert!(control.levels().is_sorted());
    }

    #[test]
    fn targets_belong_to_the_longest_prefix() {
        let cases = [
            ("outrigger::http::router::retry", "router"),
            ("outrigger::http::h1", "http"),
            ("outrigger::httpx", "main"),
            ("outrigger", "main"),
            ("file", "file"),
            ("h2::codec", "http2"),
            ("rustls", "misc"),
        ];
        for (target, want) in cases {
            assert_eq!(logger(target), want, "{target}");
        }
        let levels = [("http", LogLevel::Off), ("router", LogLevel::Debug)].into_iter().collect();
        let filter = targets(&levels);
        assert!(filter.would_enable("outrigger::http::router", &Level::DEBUG));
        assert!(!filter.would_enable("outrigger::http::h1", &Level::ERROR));
        assert!(filter.would_enable("outrigger::upstream", &Level::INFO));
    }

    #[test]
    fn an_event_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let output = Output::File(Arc::new(std::fs::File::create(&path).unwrap()));
        let layer = tracing_subscriber::fmt::layer().event_format(Lines).with_writer(output);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(target: "outrigger::upstream::pool", host = "a\r\nb", count = 3, "gone\n{}", "x\"\0");
        });
        let text = std::fs::read_to_string(&path).unwrap();
        let (head, message) = text.split_at(25);
        assert!(head.starts_with("[20") && head.ends_with(']'), "{text}");
        let rest =
            format!("[{}][warning][pool] gone\\nx\"\\u{{0}} host=a\\r\\nb count=3\n", std::process::id());
        assert_eq!(message, rest);
    }
}
