//! The command line: Outrigger's subcommands, and Envoy's own flags with or without one.
//!
//! A pod specification written for Envoy starts Outrigger unchanged, so every flag of Envoy is
//! accepted. Those that change nothing here are listed, with the reason, in [`WITHOUT_EFFECT`].

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::ready::{ReadyFlags, WaitFlags};
use crate::capture::{self, CaptureFlags};
use crate::http::h2::rebalance;
use crate::inject::command::InjectFlags;
use crate::inject::webhook::WebhookFlags;
use crate::runtime::upgrade::command::{self, UpgradeFlags};
use crate::telemetry::log::LogLevel;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "outrigger",
    about = "A service-mesh sidecar data plane that takes Envoy's configuration",
    args_conflicts_with_subcommands = true,
    disable_version_flag = true,
    subcommand_negates_reqs = true
)]
pub struct CommandLine {
    /// What to do; without it, Envoy's own command line.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Envoy's flags.
    #[command(flatten)]
    pub flags: Flags,
    /// Print the version and exit.
    #[arg(long)]
    pub version: bool,
    /// Print the hot restart version and exit.
    #[arg(long)]
    pub hot_restart_version: bool,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve traffic according to a bootstrap file.
    Run(Flags),
    /// Check a bootstrap file, or a directory of xDS resources, list every problem, and exit.
    Validate(Validate),
    /// Bring this pod's connections to its proxy, and exit: the work of `istio-iptables`, with its flags.
    Init {
        /// What is captured.
        #[command(flatten)]
        capture: Box<CaptureFlags>,
        /// Only print the rules.
        #[arg(short = 'n', long, env = "DRY_RUN", value_parser = FalseyValueParser::new())]
        dry_run: bool,
        /// Remove the rules.
        #[arg(long, alias = "cleanup-only")]
        cleanup: bool,
    },
    /// Start a small self-contained demonstration.
    #[command(disable_help_flag = true)]
    Demo {
        /// Passed on to the demonstration.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Print the version.
    Version,
    /// Give pods of Kubernetes objects a sidecar.
    Inject(InjectFlags),
    /// Serve the admission webhook that gives pods a sidecar.
    Webhook(WebhookFlags),
    /// Ask a running process whether it takes traffic; exit code 0 says yes. For exec probes.
    Ready(ReadyFlags),
    /// Wait until a running process takes traffic. For post-start hooks.
    Wait(WaitFlags),
    /// Replace the binary of a running process: connections stay.
    Upgrade(UpgradeFlags),
    /// Wait for a process that took over.
    #[command(hide = true)]
    Mind {
        /// The process.
        pid: i32,
    },
    /// Print which configuration fields are supported.
    #[command(hide = true)]
    Support {
        /// As the Markdown of docs/support.md.
        #[arg(long)]
        markdown: bool,
    },
}

/// What to check.
#[derive(Debug, Clone, Args)]
pub struct Validate {
    /// Check the xDS resources in this directory instead of a bootstrap: files of resources in JSON or YAML, or of
    /// lists, discovery responses or configuration dumps of them.
    #[arg(long, value_name = "DIRECTORY")]
    pub xds_dir: Option<PathBuf>,
    /// Envoy's flags.
    #[command(flatten)]
    pub flags: Flags,
}

/// Envoy's flags.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// Bootstrap file: YAML, JSON, or binary protobuf (`.pb`).
    #[arg(short = 'c', long, value_name = "FILE")]
    pub config_path: Option<PathBuf>,
    /// Bootstrap as YAML text, merged over the file.
    #[arg(long, value_name = "YAML")]
    pub config_yaml: Option<String>,
    /// Serve, only check the configuration, or stop after initialisation.
    #[arg(long, value_enum, default_value_t = Mode::Serve)]
    pub mode: Mode,
    /// Worker threads; 0 counts as 1 [default: 1].
    #[arg(long, value_name = "N")]
    pub concurrency: Option<u32>,
    /// As many workers as the CPU affinity and the cgroup's quota allow, unless `--concurrency` says.
    #[arg(long)]
    pub cpuset_threads: bool,

    /// Node name; overrides `node.id` of the bootstrap.
    #[arg(long, value_name = "ID")]
    pub service_node: Option<String>,
    /// Cluster that this node belongs to; overrides `node.cluster`.
    #[arg(long, value_name = "NAME")]
    pub service_cluster: Option<String>,
    /// Zone of this node; overrides `node.locality.zone`.
    #[arg(long, value_name = "ZONE")]
    pub service_zone: Option<String>,

    /// Level of the log.
    #[arg(short = 'l', long, value_name = "LEVEL", value_parser = log_level, default_value = "info")]
    pub log_level: LogLevel,
    /// Levels of single components: `upstream:debug,http:trace`.
    #[arg(long, value_name = "LIST", default_value = "", hide_default_value = true)]
    pub component_log_level: String,
    /// Write the log to this file instead of stderr.
    #[arg(long, value_name = "FILE")]
    pub log_path: Option<PathBuf>,
    /// Envoy's log pattern.
    #[arg(long, value_name = "PATTERN")]
    pub log_format: Option<String>,
    /// Escape control characters in the log.
    #[arg(long)]
    pub log_format_escaped: bool,
    /// No warnings about deprecated fields.
    #[arg(long)]
    pub skip_deprecated_logs: bool,
    /// One log level per source file.
    #[arg(long)]
    pub enable_fine_grain_logging: bool,
    /// Stack traces as one log entry.
    #[arg(long)]
    pub log_stacktrace_single_entry: bool,

    /// Keep the last good discovered configuration in this directory, and serve from it when the control
    /// plane does not answer at start.
    #[arg(long, value_name = "DIRECTORY")]
    pub state_dir: Option<PathBuf>,
    /// Where a SPIFFE Workload API listens: `unix:///PATH` or `tcp://IP:PORT`. TLS secrets that are called as SPIRE calls
    /// them (`default`, `ROOTCA`, `ALL`, or a SPIFFE ID), and that no source is named for, come from there.
    #[arg(long, value_name = "ENDPOINT", env = "SPIFFE_ENDPOINT_SOCKET")]
    pub spiffe_endpoint_socket: Option<String>,
    /// Bring this pod's connections here as soon as they are listened for; with flags of `outrigger init` in one
    /// argument, if any: `--capture='-x 10.0.0.0/8'`. They stay captured when the process ends.
    #[arg(
        long,
        value_name = "FLAGS",
        num_args = 0..=1,
        default_missing_value = "",
        require_equals = true,
        allow_hyphen_values = true
    )]
    pub capture: Option<String>,
    /// How long a drain may take, in seconds. Filter chains that discovery changes or removes keep their
    /// connections for this long if it is given, else until these end [default: 600].
    #[arg(long, value_name = "SECONDS")]
    pub drain_time_s: Option<u32>,
    /// On SIGTERM, go on serving listeners of outbound traffic as long as the application is there (something else listens
    /// in this network namespace, or a process of another container is seen) and the drain time is not over.
    #[arg(long)]
    pub outlive_application: bool,
    /// Exit when the processes of all other containers are gone; the pod's containers must share a PID namespace.
    #[arg(long)]
    pub exit_with_application: bool,
    /// Answer kubelet's probes of the application on this port: those in the environment variable OUTRIGGER_APP_PROBES, as
    /// `outrigger inject` writes it.
    #[arg(long, value_name = "PORT")]
    pub probe_port: Option<u16>,
    /// Ask clients to leave little by little, or at once.
    #[arg(long, value_enum, default_value_t = DrainStrategy::Gradual)]
    pub drain_strategy: DrainStrategy,
    /// When the cluster of this name grows, of which this process is a host, ask a fair share of the clients with
    /// HTTP/2 connections to connect anew, so that they find the new hosts [default: never].
    #[arg(long, value_name = "NAME")]
    pub rebalance_cluster: Option<String>,
    /// Over how many seconds they are asked, one by one.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "rebalance_cluster")]
    pub rebalance_window_s: u32,
    /// When a hot restart's parent is shut down, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub parent_shutdown_time_s: u32,

    /// Address family of this node's own address.
    #[arg(long, value_enum, default_value_t = IpVersion::V4)]
    pub local_address_ip_version: IpVersion,
    /// Write the admin address to this file.
    #[arg(long, value_name = "FILE")]
    pub admin_address_path: Option<PathBuf>,
    /// How often buffered files are written, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    pub file_flush_interval_msec: u32,
    /// Buffered files are also written when this many KiB are waiting.
    #[arg(long, value_name = "KIB", default_value_t = 64)]
    pub file_flush_min_size_kb: u32,

    /// As `--allow-unknown-static-fields`.
    #[arg(long)]
    pub allow_unknown_fields: bool,
    /// Unknown fields of the bootstrap are warnings.
    #[arg(long)]
    pub allow_unknown_static_fields: bool,
    /// Unknown fields in discovered resources are errors.
    #[arg(long)]
    pub reject_unknown_dynamic_fields: bool,
    /// Unknown fields in discovered resources are not even logged.
    #[arg(long)]
    pub ignore_unknown_dynamic_fields: bool,
    /// Extensions to refuse, comma separated.
    #[arg(long, value_name = "NAMES")]
    pub disable_extensions: Option<String>,
    /// A tag for every statistic: `name:value`. May be repeated.
    #[arg(long, value_name = "NAME:VALUE", value_parser = stats_tag)]
    pub stats_tag: Vec<(String, String)>,

    /// Distinguishes processes with the same `--socket-path` or `--state-dir`; appended to the socket for upgrades.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub base_id: u32,
    /// Choose a base id.
    #[arg(long)]
    pub use_dynamic_base_id: bool,
    /// Write the base id to this file.
    #[arg(long, value_name = "FILE")]
    pub base_id_path: Option<PathBuf>,
    /// Number of this process in a chain of hot restarts.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub restart_epoch: u32,
    /// Take no upgrades.
    #[arg(long)]
    pub disable_hot_restart: bool,
    /// Start afresh when a hot restart finds no parent.
    #[arg(long)]
    pub skip_hot_restart_on_no_parent: bool,
    /// Take no statistics from a hot restart's parent.
    #[arg(long)]
    pub skip_hot_restart_parent_stats: bool,
    /// Where `outrigger upgrade` asks this process: a Unix socket, `@name` for an abstract one
    /// [default: upgrade.sock in the --state-dir; without one, nowhere].
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<String>,
    /// Permissions of that socket.
    #[arg(long, value_name = "MODE", value_parser = octal, default_value = "600")]
    pub socket_mode: u32,
    /// Trace contention of mutexes.
    #[arg(long)]
    pub enable_mutex_tracing: bool,
    /// Allow core dumps.
    #[arg(long)]
    pub enable_core_dump: bool,
}

/// `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Mode {
    /// Serve traffic.
    Serve,
    /// Check the configuration and exit.
    Validate,
    /// Initialise and exit.
    InitOnly,
}

/// Envoy's default.
const DRAIN_TIME_S: u32 = 600;

/// `--drain-strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DrainStrategy {
    /// The probability of closing grows over the drain time.
    Gradual,
    /// Every response closes.
    Immediate,
}

/// `--local-address-ip-version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum IpVersion {
    V4,
    V6,
}

fn log_level(text: &str) -> Result<LogLevel, String> {
    text.to_ascii_lowercase()
        .parse()
        .map_err(|_| "must be trace, debug, info, warning, error, critical or off".to_owned())
}

fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "must be permissions in octal, such as 600".to_owned())
}

fn stats_tag(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once(':').ok_or_else(|| format!("'{text}' is not of the form name:value"))?;
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(format!("tag name '{name}' may only have letters and digits"));
    }
    if value.is_empty() || value.contains('.') {
        return Err(format!("tag value '{value}' may not be empty nor contain '.'"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

impl Flags {
    /// How many workers to start.
    pub fn workers(&self) -> usize {
        match self.concurrency {
            Some(count) => (count as usize).max(1),
            None if self.cpuset_threads => available_cpus(),
            None => 1,
        }
    }

    /// What `--capture` captures; `None` without it.
    ///
    /// # Errors
    /// Its flags are none; one line for the operator.
    pub fn captures(&self) -> Result<Option<capture::Options>, String> {
        #[derive(Parser)]
        #[command(no_binary_name = true, disable_help_flag = true)]
        struct Line {
            #[command(flatten)]
            capture: CaptureFlags,
        }
        let Some(text) = &self.capture else { return Ok(None) };
        let line = Line::try_parse_from(text.split_whitespace()).map_err(|error| {
            let error = error.to_string();
            format!("--capture: {}", error.lines().next().unwrap_or_default())
        })?;
        let own = rustix::process::geteuid();
        let own = (!own.is_root()).then(|| own.as_raw());
        capture::Options::new(&line.capture, own).map(Some)
    }

    /// Where this process is asked to be replaced, if anywhere.
    pub fn upgrade_socket(&self) -> Option<PathBuf> {
        let place = command::place(self.socket_path.as_deref(), self.state_dir.as_deref(), self.base_id);
        place.filter(|_| !self.disable_hot_restart)
    }

    /// `--drain-time-s`.
    pub fn drain_time(&self) -> Duration {
        Duration::from_secs(self.drain_time_s.unwrap_or(DRAIN_TIME_S).into())
    }

    /// Whether connections of retired filter chains are closed at the end of the drain time: it was asked for.
    pub fn drain_ends(&self) -> bool {
        self.drain_time_s.is_some()
    }

    /// `--rebalance-cluster` and `--rebalance-window-s`.
    pub fn rebalance(&self) -> Option<rebalance::Options> {
        let window = Duration::from_secs(self.rebalance_window_s.into());
        self.rebalance_cluster
            .as_deref()
            .map(|cluster| rebalance::Options { cluster: cluster.into(), window })
    }

    /// `--file-flush-interval-msec`.
    pub fn file_flush_interval(&self) -> Duration {
        Duration::from_millis(self.file_flush_interval_msec.into())
    }

    /// Whether unknown fields in the bootstrap are only warnings.
    pub fn tolerates_unknown_fields(&self) -> bool {
        self.allow_unknown_fields || self.allow_unknown_static_fields
    }

    /// The flags given that change nothing here, with the reason for each.
    pub fn without_effect(&self) -> impl Iterator<Item = (&'static str, &'static str)> + '_ {
        WITHOUT_EFFECT.iter().filter(|(_, _, given)| given(self)).map(|(flag, reason, _)| (*flag, *reason))
    }
}

type Given = fn(&Flags) -> bool;

const NO_SHARED_MEMORY: &str = "a replacement takes over the sockets, so there is no shared memory";

/// Flags that are accepted for Envoy's sake and change nothing: name, reason, whether it was given.
pub const WITHOUT_EFFECT: &[(&str, &str, Given)] = &[
    ("--use-dynamic-base-id", NO_SHARED_MEMORY, |flags| flags.use_dynamic_base_id),
    ("--base-id-path", NO_SHARED_MEMORY, |flags| flags.base_id_path.is_some()),
    ("--restart-epoch", NO_SHARED_MEMORY, |flags| flags.restart_epoch != 0),
    ("--skip-hot-restart-on-no-parent", NO_SHARED_MEMORY, |flags| flags.skip_hot_restart_on_no_parent),
    ("--skip-hot-restart-parent-stats", NO_SHARED_MEMORY, |flags| flags.skip_hot_restart_parent_stats),
    ("--parent-shutdown-time-s", NO_SHARED_MEMORY, |flags| flags.parent_shutdown_time_s != 900),
    ("--log-format", "log lines have one fixed format", |flags| flags.log_format.is_some()),
    ("--log-format-escaped", "control characters are always escaped", |flags| flags.log_format_escaped),
    ("--enable-fine-grain-logging", "levels are set per component", |flags| flags.enable_fine_grain_logging),
    ("--log-stacktrace-single-entry", "stack traces are not logged", |flags| {
        flags.log_stacktrace_single_entry
    }),
    ("--enable-mutex-tracing", "requests take no mutex", |flags| flags.enable_mutex_tracing),
    ("--enable-core-dump", "the kernel's limits decide about core dumps", |flags| flags.enable_core_dump),
    (
        "--reject-unknown-dynamic-fields",
        "unknown fields in discovered resources are always errors",
        |flags| flags.reject_unknown_dynamic_fields,
    ),
    (
        "--ignore-unknown-dynamic-fields",
        "unknown fields in discovered resources are always errors",
        |flags| flags.ignore_unknown_dynamic_fields,
    ),
    ("--disable-extensions", "extensions cannot be switched off", |flags| flags.disable_extensions.is_some()),
    ("--stats-tag", "statistics have Envoy's own tags only", |flags| !flags.stats_tag.is_empty()),
    ("--file-flush-min-size-kb", "a log line waits for the flush interval at most", |flags| {
        flags.file_flush_min_size_kb != 64
    }),
    ("--local-address-ip-version", "this node does not report an address of its own", |flags| {
        flags.local_address_ip_version != IpVersion::V4
    }),
    ("--skip-deprecated-logs", "deprecated fields are not logged", |flags| flags.skip_deprecated_logs),
];

/// CPUs this process may use: the affinity mask and the cgroup's quota, whichever is less, rounded
/// up and at least 1.
pub fn available_cpus() -> usize {
    // The standard library reads both the affinity mask and the quota of cgroup v1 and v2.
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What `--version` prints, in the shape of Envoy's line.
pub fn version_line() -> String {
    let commit = option_env!("OUTRIGGER_COMMIT").unwrap_or("unknown");
    let build = if cfg!(debug_assertions) { "DEBUG" } else { "RELEASE" };
    format!("outrigger  version: {commit}/{}/Clean/{build}/rustls", env!("CARGO_PKG_VERSION"))
}

/// What `--hot-restart-version` prints. Who prints the same can take over: the number is that of
/// [the protocol](crate::runtime::upgrade::wire).
pub const HOT_RESTART_VERSION: &str = "outrigger.1";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> CommandLine {
        CommandLine::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_command_line_of_istios_agent_is_accepted() {
        let line = parse(
            "outrigger -c envoy.json --drain-time-s 45 --drain-strategy immediate \
             --local-address-ip-version v4 --file-flush-interval-msec 1000 --disable-hot-restart \
             --allow-unknown-static-fields -l warning --component-log-level misc:error \
             --skip-deprecated-logs --concurrency 2"
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .as_str(),
        );
        assert!(line.command.is_none());
        let flags = line.flags;
        assert_eq!(flags.config_path.as_deref(), Some(std::path::Path::new("envoy.json")));
        assert_eq!(flags.drain_time(), Duration::from_secs(45));
        assert_eq!(flags.drain_strategy, DrainStrategy::Immediate);
        assert_eq!(flags.log_level, LogLevel::Warning);
        assert_eq!(flags.component_log_level, "misc:error");
        assert_eq!(flags.workers(), 2);
        assert!(flags.tolerates_unknown_fields());
        let idle: Vec<_> = flags.without_effect().map(|(flag, _)| flag).collect();
        assert_eq!(idle, ["--skip-deprecated-logs"]);
    }

    #[test]
    fn every_flag_of_envoy_is_known() {
        let envoy = "stats-tag enable-core-dump socket-mode socket-path disable-extensions cpuset-threads \
            enable-mutex-tracing disable-hot-restart mode parent-shutdown-time-s drain-strategy drain-time-s \
            file-flush-min-size-kb file-flush-interval-msec service-zone service-node service-cluster \
            hot-restart-version restart-epoch log-path enable-fine-grain-logging log-format-escaped log-format \
            component-log-level log-level local-address-ip-version admin-address-path \
            log-stacktrace-single-entry skip-deprecated-logs ignore-unknown-dynamic-fields \
            reject-unknown-dynamic-fields allow-unknown-static-fields allow-unknown-fields config-yaml \
            config-path concurrency base-id-path skip-hot-restart-parent-stats \
            skip-hot-restart-on-no-parent use-dynamic-base-id base-id version";
        let command = <CommandLine as clap::CommandFactory>::command();
        let known: Vec<_> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        for flag in envoy.split_whitespace() {
            assert!(known.contains(&flag), "--{flag}");
        }
    }

    #[test]
    fn subcommands_take_the_same_flags() {
        let Some(Command::Validate(flags)) = parse("outrigger validate -c a.yaml --service-node n").command
        else {
            panic!("not validate");
        };
        assert_eq!(flags.flags.service_node.as_deref(), Some("n"));
        assert_eq!(flags.flags.workers(), 1);
        let Some(Command::Demo { args }) = parse("outrigger demo --once --port 0").command else {
            panic!("not demo");
        };
        assert_eq!(args, ["--once", "--port", "0"]);
    }

    #[test]
    fn wrong_values_are_refused() {
        for line in [
            "outrigger --mode sleep",
            "outrigger --concurrency many",
            "outrigger --stats-tag a.b:c",
            "outrigger --stats-tag a",
            "outrigger -l loud",
            "outrigger --no-such-flag",
            "outrigger -c a run",
        ] {
            assert!(CommandLine::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
