//! The application beside which this process runs in a pod: whether it is still there.
//!
//! Two signs, both of which need no rights: somebody else listens in our network namespace, and, where the pod's
//! containers see each other's processes (`shareProcessNamespace`), a process of another container lives.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{pidfd_open, Pid, PidfdFlags};
use tokio::sync::oneshot;

use super::foreign;

/// How often is looked for an application that has not begun.
const LOOK: Duration = Duration::from_secs(1);
/// The process that holds a pod's namespaces together; it stays to the end.
const PAUSE: i32 = 1;

/// Where the signs are.
#[derive(Debug, Clone)]
pub struct Application {
    proc: PathBuf,
}

impl Default for Application {
    fn default() -> Self {
        Self { proc: PathBuf::from("/proc") }
    }
}

impl Application {
    /// Whether something listens or lives.
    pub fn is_there(&self) -> bool {
        self.listens() || !self.processes().is_empty()
    }

    /// Returns when a process of another container was there, and none is any more; never if none is ever seen.
    pub async fn gone(&self) {
        let mut seen = false;
        loop {
            let Some(first) = self.processes().first().copied() else {
                if seen {
                    return;
                }
                tokio::time::sleep(LOOK).await;
                continue;
            };
            seen = true;
            match end_of(first) {
                Some(end) => drop(end.await),
                None => tokio::time::sleep(LOOK / 10).await,
            }
        }
    }

    /// Whether a socket listens on a port on which none of ours does. A successor of this process listens on the same.
    fn listens(&self) -> bool {
        let own = self.own_sockets();
        let tables = ["self/net/tcp", "self/net/tcp6"].map(|table| self.proc.join(table));
        let all: Vec<_> = tables.iter().flat_map(|table| foreign::listening_in(table)).collect();
        let ours: HashSet<u16> =
            all.iter().filter(|(_, inode)| own.contains(inode)).map(|(address, _)| address.port()).collect();
        all.iter().any(|(address, _)| !ours.contains(&address.port()))
    }

    fn own_sockets(&self) -> HashSet<u64> {
        let Ok(entries) = std::fs::read_dir(self.proc.join("self/fd")) else { return HashSet::new() };
        let inode = |path: PathBuf| {
            let target = std::fs::read_link(path).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        };
        entries.filter_map(|entry| inode(entry.ok()?.path())).collect()
    }

    /// Processes of other containers: those in another control group than ours.
    fn processes(&self) -> Vec<i32> {
        let group = |of: &Path| std::fs::read(of.join("cgroup")).ok();
        let Some(own) = group(&self.proc.join("self")) else { return Vec::new() };
        let Ok(entries) = std::fs::read_dir(&self.proc) else { return Vec::new() };
        let pid = |entry: std::fs::DirEntry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let other = group(&entry.path())? != own;
            (pid != PAUSE && other && !is_dead(&entry.path())).then_some(pid)
        };
        entries.filter_map(|entry| pid(entry.ok()?)).collect()
    }
}

/// Whether only its parent's interest keeps it in the table (proc(5): `/proc/pid/stat`).
fn is_dead(process: &Path) -> bool {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().next());
    matches!(state, None | Some("Z" | "X"))
}

/// Told when the process has ended; `None` if it has already, or the kernel has no handles of processes (before 5.3).
fn end_of(pid: i32) -> Option<oneshot::Receiver<()>> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let (tell, told) = oneshot::channel();
    // A thread of its own, which the end of this process need not wait for.
    let watch = move || {
        let mut handle = [PollFd::new(&process, PollFlags::IN)];
        while matches!(poll(&mut handle, None), Err(Errno::INTR)) {}
        // Who waited may have gone.
        let _ = tell.send(());
    };
    std::thread::Builder::new().name("application".to_owned()).spawn(watch).ok()?;
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;

    /// A listening socket's line.
    fn line(port: u16, inode: u64) -> String {
        format!("   0: 00000000:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 {inode} 1 0 100 0 0 10 0\n")
    }

    /// A `/proc` where our sockets have the inodes `own`, and those of `sockets` listen.
    fn proc(own: &[u64], sockets: &[(u16, u64)]) -> (tempfile::TempDir, Application) {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        create_dir_all(at("self/net")).unwrap();
        create_dir_all(at("self/fd")).unwrap();
        let lines: String = sockets.iter().map(|(port, inode)| line(*port, *inode)).collect();
        write(at("self/net/tcp"), format!("  sl  local_address rem_address\n{lines}")).unwrap();
        write(at("self/cgroup"), "0::/\n").unwrap();
        for (index, inode) in own.iter().enumerate() {
            symlink(format!("socket:[{inode}]"), at(&format!("self/fd/{index}"))).unwrap();
        }
        let application = Application { proc: root.path().to_owned() };
        (root, application)
    }

    fn process(root: &Path, pid: u32, cgroup: &str, state: char) {
        let at = root.join(pid.to_string());
        create_dir_all(&at).unwrap();
        write(at.join("cgroup"), cgroup).unwrap();
        write(at.join("stat"), format!("{pid} (a) b) {state} 1 1")).unwrap();
    }

    #[test]
    fn who_listens_on_another_port_is_there() {
        assert!(!proc(&[7], &[(15001, 7)]).1.is_there(), "only we listen");
        assert!(!proc(&[7], &[(15001, 7), (15001, 8)]).1.is_there(), "our successor listens on our port");
        assert!(proc(&[7], &[(15001, 7), (8080, 9)]).1.is_there());
        assert!(!proc(&[], &[]).1.is_there());
    }

    #[test]
    fn processes_of_other_containers_are_there_until_they_end() {
        let (root, application) = proc(&[], &[]);
        process(root.path(), 1, "0::/../pause\n", 'S');
        process(root.path(), 20, "0::/\n", 'S');
        assert!(!application.is_there(), "the pod's own process and our children do not count");
        process(root.path(), 30, "0::/../app\n", 'Z');
        assert!(!application.is_there(), "who has ended does not count");
        process(root.path(), 30, "0::/../app\n", 'R');
        assert!(application.is_there());
    }
}
