//! The command line of Outrigger.

use std::process::ExitCode;

use clap::Parser as _;
use outrigger::bootstrap::flags::{version_line, HOT_RESTART_VERSION};
use outrigger::bootstrap::{self, Command, CommandLine, Flags, Mode};
use outrigger::capture::{self, CaptureFlags};
use outrigger::config::compile::CompiledBootstrap;
use outrigger::inject;
use outrigger::telemetry::log::LogLevel;
use outrigger::telemetry::{access_log, log};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Where the node gives huge pages to everybody, each arena would take 2 MiB at its first byte. A kernel that
    // knows no such thing has none.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(shown) => {
            // Help is no error; a wrong flag ends with 1, as every other mistake does.
            let code = if shown.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
            // Nothing can be done when the terminal is gone.
            let _ = shown.print();
            return code;
        }
    };
    if line.version {
        println!("\n{}\n", version_line());
        return ExitCode::SUCCESS;
    }
    if line.hot_restart_version {
        println!("{HOT_RESTART_VERSION}");
        return ExitCode::SUCCESS;
    }
    match line.command {
        None => run(&line.flags),
        Some(Command::Run(flags)) => run(&flags),
        Some(Command::Validate(what)) => match &what.xds_dir {
            Some(directory) => validate_directory(directory, &what.flags),
            None => validate(&what.flags),
        },
        Some(Command::Init { capture, dry_run, cleanup }) => init(&capture, dry_run, cleanup),
        Some(Command::Demo { args }) => outrigger::demo::main(args),
        Some(Command::Inject(flags)) => ended(inject::command::run(&flags, &mut std::io::stderr())),
        Some(Command::Webhook(flags)) => webhook(&flags),
        Some(Command::Ready(flags)) => ended(flags.run()),
        Some(Command::Wait(flags)) => ended(flags.run()),
        Some(Command::Upgrade(flags)) => {
            ended(flags.run().map(|pid| println!("process {pid} has taken over")))
        }
        Some(Command::Mind { pid }) => {
            outrigger::runtime::upgrade::minder::run(nix::unistd::Pid::from_raw(pid))
        }
        Some(Command::Version) => {
            println!("{}", version_line());
            ExitCode::SUCCESS
        }
        Some(Command::Support { markdown: true }) => {
            print!("{}", outrigger::config::support::markdown());
            ExitCode::SUCCESS
        }
        Some(Command::Support { markdown: false }) => {
            print!("{}", outrigger::config::support::table().to_markdown());
            ExitCode::SUCCESS
        }
    }
}

/// Says what went wrong.
fn ended<E: std::fmt::Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn webhook(flags: &inject::webhook::WebhookFlags) -> ExitCode {
    if let Err(error) = log::init(LogLevel::Info, "", None) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ended(inject::webhook::run(flags))
}

fn run(flags: &Flags) -> ExitCode {
    if flags.mode == Mode::Validate {
        return validate(flags);
    }
    let log = match log::init(flags.log_level, &flags.component_log_level, flags.log_path.as_deref()) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    access_log::set_flush_interval(flags.file_flush_interval());
    let Some(compiled) = compile(flags) else { return ExitCode::FAILURE };
    for (flag, reason) in flags.without_effect() {
        tracing::debug!("{flag} has no effect: {reason}");
    }
    for warning in &compiled.warnings {
        tracing::warn!("{warning}");
    }
    if flags.mode == Mode::InitOnly {
        return ExitCode::SUCCESS;
    }
    match outrigger::runtime::run(compiled, flags.clone(), log) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn init(flags: &CaptureFlags, dry_run: bool, cleanup: bool) -> ExitCode {
    let outcome = capture::Options::new(flags, None).and_then(|options| {
        if dry_run {
            print!("{}", capture::shown(&options));
            return Ok(());
        }
        let done = if cleanup { capture::clean_up(&options) } else { capture::apply(&options) };
        done.map_err(|error| error.to_string())
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn validate(flags: &Flags) -> ExitCode {
    let Some(compiled) = compile(flags) else { return ExitCode::FAILURE };
    for warning in &compiled.warnings {
        eprintln!("warning: {}", bootstrap::problem_line(warning, &bootstrap::source_name(flags)));
    }
    println!("configuration '{}' OK", bootstrap::source_name(flags));
    ExitCode::SUCCESS
}

fn validate_directory(directory: &std::path::Path, flags: &Flags) -> ExitCode {
    let named = flags.config_path.is_some() || flags.config_yaml.is_some();
    let compiler = match named.then(|| compile(flags)) {
        Some(None) => return ExitCode::FAILURE,
        Some(Some(compiled)) => Some(compiled.compiler),
        None => None,
    };
    let checked = match bootstrap::xds_dir::check(directory, compiler) {
        Ok(checked) => checked,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    for one in &checked {
        println!("{one}");
    }
    let accepted = checked.iter().filter(|one| one.is_accepted()).count();
    println!("{accepted} of {} accepted", checked.len());
    if accepted == checked.len() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The compiled bootstrap; `None` once every problem has been printed.
fn compile(flags: &Flags) -> Option<CompiledBootstrap> {
    let problems = match bootstrap::compile(flags) {
        Ok(compiled) => return Some(compiled),
        Err(problems) => problems,
    };
    let source = bootstrap::source_name(flags);
    for problem in &problems {
        eprintln!("{}", bootstrap::problem_line(problem, &source));
    }
    if problems.len() > 1 {
        eprintln!("{} problems", problems.len());
    }
    None
}
