//! Pods of ordinary users. A test that is not root runs itself once more in a user namespace of its own, in which it is
//! root over network namespaces, and ends as that one does.
//!
//! There it has one user and one group, so that a sidecar is told from its application by the mark of its sockets.

use std::io::Write;
use std::process::Command;
use std::sync::Once;

use super::mesh::ip;
use crate::peers::may_be_missing;

/// The mark of a sidecar's sockets where it has no group of its own.
pub const MARK: &str = "7";

/// Begins a test that needs to be root, over its own namespaces at least; `really` is what only root itself can do.
macro_rules! as_root {
    () => {
        fn here() {}
        if $crate::pods::user::done_elsewhere(std::any::type_name_of_val(&here)) {
            return;
        }
    };
    (really: $what:literal) => {
        if !$crate::pods::user::is_root() {
            eprintln!("skipped: only root can tell {}", $what);
            return;
        }
    };
}
pub(crate) use as_root;

fn user() -> (bool, bool) {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let users: u64 = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum();
    (rustix::process::geteuid().is_root(), users > 1)
}

/// Whether this is root, and not only of a user namespace.
pub fn is_root() -> bool {
    user() == (true, true)
}

/// Whether this is root of a user namespace that has nobody else.
pub fn is_alone() -> bool {
    user() == (true, false)
}

/// What a cluster's `upstream_bind_config` needs besides an address.
pub fn socket_options() -> String {
    match is_alone() {
        true => {
            format!("socket_options: [ {{ level: 1, name: 36, int_value: {MARK}, state: STATE_PREBIND }} ]")
        }
        false => String::new(),
    }
}

/// Makes room for network namespaces, where those of the machine are not ours.
pub fn prepare() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        if is_alone() {
            let mount = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]).status();
            assert!(
                mount.is_ok_and(|status| status.success()),
                "a user namespace needs a mount namespace too"
            );
            ip("link set lo up");
        }
    });
}

/// Whether the test that has the function `here` was run by root of a user namespace, or cannot be.
pub fn done_elsewhere(here: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    let namespaces = ["--user", "--map-root-user", "--net", "--mount"];
    let possible = Command::new("unshare").args(namespaces).arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        assert!(may_be_missing(), "needs root, or a kernel that lets users have namespaces");
        eprintln!("skipped: needs root, or a kernel that lets users have namespaces");
        return true;
    }
    let parts = here.split("::").skip(1).filter(|part| *part != "{{closure}}" && *part != "here");
    let name = parts.collect::<Vec<_>>().join("::");
    let mut again = Command::new("unshare");
    again.args(namespaces).arg(std::env::current_exe().expect("this program"));
    let output = again.args([&name, "--exact", "--nocapture", "--test-threads", "1"]).output();
    let output = output.expect("to run it again");
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    let _ = std::io::stderr().write_all(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{name} failed in a user namespace");
    true
}
