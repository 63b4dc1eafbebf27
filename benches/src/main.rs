//! The program: reads its command line, and has the library do the rest.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use clap::Parser as _;
use outrigger_load::cli::{Command, CommandLine, ReportArgs, RunArgs, ServeArgs};
use outrigger_load::compare::relay::{Relay, RelayArgs};
use outrigger_load::compare::{self, CompareArgs};
use outrigger_load::generate::run::run;
use outrigger_load::generate::task::Stage;
use outrigger_load::report::{html, search, show, text};
use outrigger_load::result::RunResult;
use outrigger_load::serve::Server;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let done = match CommandLine::parse().command {
        Command::Run(args) => load(&args),
        Command::Serve(args) => serve(&args),
        Command::Report(args) => report(&args),
        Command::Compare(args) => side_by_side(&args),
        Command::Relay(args) => relay(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("outrigger-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn load(args: &RunArgs) -> Result<ExitCode, Failure> {
    let plan = args.plan()?;
    open_files();
    let stage = Arc::new(Stage::default());
    on_signals(&stage.stop)?;
    let mut shown = show::Shown::new(args.quiet, plan.requests.is_none().then_some(plan.work.duration_s));
    let result = match args.find_p99_under {
        Some(goal) => search::search(&plan, &stage, goal, &mut shown)?,
        None => run(&plan, &stage, &mut |progress| shown.progress(progress))?,
    };
    shown.clear();
    let json = || serde_json::to_string_pretty(&result);
    match args.json.as_deref() {
        Some(path) if path == Path::new("-") => println!("{}", json()?),
        Some(path) => std::fs::write(path, json()?).map_err(|error| told(path, &error))?,
        None => {}
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        print!("{}", text::text(&result));
    }
    if let Some(path) = &args.html {
        let page = html::page(std::slice::from_ref(&result))?;
        std::fs::write(path, page).map_err(|error| told(path, &error))?;
    }
    // No answer at all is no measurement.
    Ok(if result.requests.answered == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn serve(args: &ServeArgs) -> Result<ExitCode, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    on_signals(&stop)?;
    open_files();
    let mut server = Server::start(&args.settings()?)?;
    for (listen, address) in args.listen.iter().zip(&server.addresses) {
        let tls = if listen.tls { "tls+" } else { "" };
        println!("listening {tls}{}={address}", format!("{:?}", listen.speaks).to_lowercase());
    }
    while !stop.load(Ordering::Relaxed) && !server.is_over() {
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
    if server.is_over() {
        server.wait()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn report(args: &ReportArgs) -> Result<ExitCode, Failure> {
    let mut results = Vec::new();
    for path in &args.results {
        let text = std::fs::read_to_string(path).map_err(|error| told(path, &error))?;
        let result: RunResult = serde_json::from_str(&text).map_err(|error| told(path, &error))?;
        results.push(result);
    }
    std::fs::write(&args.output, html::page(&results)?).map_err(|error| told(&args.output, &error))?;
    Ok(ExitCode::SUCCESS)
}

fn side_by_side(args: &CompareArgs) -> Result<ExitCode, Failure> {
    if args.list {
        print!("{}", compare::list());
        return Ok(ExitCode::SUCCESS);
    }
    open_files();
    let tool = std::env::current_exe()?;
    if args.configs {
        print!("{}", args.configurations(tool)?);
        return Ok(ExitCode::SUCCESS);
    }
    let stage = Stage::default();
    on_signals(&stage.stop)?;
    let comparison = args.compare(tool, &stage, &mut |line| eprintln!("{line}"))?;
    let json = || serde_json::to_string_pretty(&comparison);
    match args.json.as_deref() {
        Some(path) if path == Path::new("-") => println!("{}", json()?),
        Some(path) => std::fs::write(path, json()?).map_err(|error| told(path, &error))?,
        None => {}
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        print!("{}", compare::text(&comparison));
    }
    if let Some(path) = &args.html {
        std::fs::write(path, compare::page(&comparison)?).map_err(|error| told(path, &error))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn relay(args: &RelayArgs) -> Result<ExitCode, Failure> {
    open_files();
    Relay::bind(args)?.run()?;
    Ok(ExitCode::SUCCESS)
}

fn told(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    format!("{}: {error}", path.display()).into()
}

/// The first signal ends in good order, the second at once.
fn on_signals(stop: &Arc<AtomicBool>) -> std::io::Result<()> {
    use signal_hook::{consts, flag};
    for signal in [consts::SIGINT, consts::SIGTERM] {
        flag::register_conditional_shutdown(signal, 1, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    Ok(())
}

/// As many open files as are allowed.
fn open_files() {
    use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
    let limit = getrlimit(Resource::Nofile);
    // Fewer may be enough; if not, connections say so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
