//! The real programs that the tests run against: where they are and how they are started on free ports in
//! directories of their own. `tests/run` installs them; a test that misses one fails and says so.

pub mod servers;

use std::path::{Path, PathBuf};
use std::process::Command;

/// True when tests may be skipped for want of a program.
pub fn may_be_missing() -> bool {
    std::env::var_os("OUTRIGGER_ALLOW_MISSING_PEERS").is_some_and(|v| v == "1")
}

/// Looks a program up in the search path, system directories included.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The real Envoy: `OUTRIGGER_ENVOY`, else the one that `tests/run` installed, else one in the search path.
pub fn envoy_if_any() -> Option<PathBuf> {
    if let Some(file) = std::env::var_os("OUTRIGGER_ENVOY").map(PathBuf::from) {
        return file.is_file().then_some(file);
    }
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join(".peers/venv/lib");
    let installed = std::fs::read_dir(lib).into_iter().flatten().flatten();
    let mut installed = installed.map(|e| e.path().join("site-packages/envoy/_bin/envoy"));
    installed.find(|file| file.is_file()).or_else(|| find("envoy"))
}

/// The real Envoy; fails the test when there is none.
pub fn envoy() -> PathBuf {
    envoy_if_any().expect("the real Envoy is missing: run tests/run, or set OUTRIGGER_ENVOY to its binary")
}

/// True when all of these programs are there (`envoy` among them by that name). When some are missing the test fails,
/// or is skipped if that is allowed.
pub fn have(programs: &[&str]) -> bool {
    let there = |p: &&&str| if **p == "envoy" { envoy_if_any().is_some() } else { find(p).is_some() };
    let missing: Vec<_> = programs.iter().filter(|p| !there(p)).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(may_be_missing(), "missing programs {missing:?}: run tests/run, which installs them");
    eprintln!("skipped: missing programs {missing:?}");
    false
}

/// A command for a program that `have` has found.
pub fn command(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| panic!("{program} is missing: run tests/run")))
}
