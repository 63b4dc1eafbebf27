//! The process's own log: Envoy's levels and line shape, on stderr or in a file.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;

use super::flags::{Flags, LogLevel};

/// Starts logging as the flags say. Later calls change nothing.
///
/// # Errors
/// The file of `--log-path` cannot be opened.
pub fn init(flags: &Flags) -> io::Result<()> {
    let components: Vec<(String, LogLevel)> = flags.component_log_level.clone().unwrap_or_default();
    let levels = Levels { base: flags.log_level, components };
    let (filter, handle) = reload::Layer::new(levels.filter());
    let layer = tracing_subscriber::fmt::layer().event_format(Line).with_ansi(false);
    let started = match &flags.log_path {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            let subscriber =
                tracing_subscriber::registry().with(filter).with(layer.with_writer(Mutex::new(file)));
            tracing::subscriber::set_global_default(subscriber)
        }
        None => {
            let subscriber = tracing_subscriber::registry().with(filter).with(layer.with_writer(io::stderr));
            tracing::subscriber::set_global_default(subscriber)
        }
    };
    if started.is_ok() {
        let apply = move |levels: &Levels| handle.reload(levels.filter()).is_ok();
        // Nobody else sets it: only the first `set_global_default` succeeds.
        let _ = CONTROL.set(Control { levels: Mutex::new(levels), apply: Box::new(apply) });
    }
    Ok(())
}

/// The current levels: the base, then those of single components. For the admin port.
pub fn levels() -> (LogLevel, Vec<(String, LogLevel)>) {
    match CONTROL.get() {
        Some(control) => {
            let levels = control.levels.lock().unwrap_or_else(PoisonError::into_inner);
            (levels.base, levels.components.clone())
        }
        None => (LogLevel::Off, Vec::new()),
    }
}

/// Changes the level of one component, or of everything. `false` when logging was never started.
pub fn set_level(component: Option<&str>, level: LogLevel) -> bool {
    let Some(control) = CONTROL.get() else { return false };
    let mut levels = control.levels.lock().unwrap_or_else(PoisonError::into_inner);
    match component {
        None => {
            levels.base = level;
            levels.components.clear();
        }
        Some(component) => {
            levels.components.retain(|(name, _)| name != component);
            levels.components.push((component.to_owned(), level));
        }
    }
    (control.apply)(&levels)
}

static CONTROL: OnceLock<Control> = OnceLock::new();

struct Control {
    levels: Mutex<Levels>,
    apply: Box<dyn Fn(&Levels) -> bool + Send + Sync>,
}

struct Levels {
    base: LogLevel,
    components: Vec<(String, LogLevel)>,
}

impl Levels {
    fn filter(&self) -> EnvFilter {
        let mut filter = EnvFilter::default().add_directive(level_filter(self.base).into());
        for (component, level) in &self.components {
            let level = level_filter(*level);
            // A component is a room of this crate; names that are none match nothing.
            if let Ok(directive) = format!("outrigger::{component}={level}").parse() {
                filter = filter.add_directive(directive);
            }
        }
        filter
    }
}

fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error | LogLevel::Critical => LevelFilter::ERROR,
        LogLevel::Off => LevelFilter::OFF,
    }
}

/// `[time][level][component] message key=value`, control characters escaped.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::TRACE => "trace",
            Level::DEBUG => "debug",
            Level::INFO => "info",
            Level::WARN => "warning",
            Level::ERROR => "error",
        };
        let target = event.metadata().target();
        let component = target.strip_prefix("outrigger::").unwrap_or(target);
        let component = component.split("::").next().unwrap_or(component);
        let now = jiff::Timestamp::try_from(SystemTime::now()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        write!(out, "[{}][{level}][{component}] ", now.strftime("%Y-%m-%d %H:%M:%S.%3f"))?;
        let mut text = Text::default();
        event.record(&mut text);
        for character in text.message.chars().chain(text.fields.chars()) {
            if character.is_control() {
                write!(out, "{}", character.escape_default())?;
            } else {
                out.write_char(character)?;
            }
        }
        writeln!(out)
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.fields.push_str(&format!(" {}={value:?}", field.name()));
        }
    }
}
