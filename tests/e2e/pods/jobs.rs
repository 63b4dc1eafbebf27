//! A job's pod in the classic form: its containers see each other's processes, and the sidecar ends when the job has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::mesh::Mesh;
use super::sidecar::{bootstrap, Plan};
use super::user::as_root;
use crate::harness::DEADLINE;
use crate::tls::certs::Certs;

/// A control group of the job's container; gone when dropped.
struct Group(PathBuf);

impl Group {
    /// In the first hierarchy that lets us; `None` where none does.
    fn make() -> Option<Group> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let kinds = ["cgroup2", "cgroup"];
        let places = kinds.iter().flat_map(|kind| {
            let of_kind = move |line: &&str| line.split(' ').nth(2) == Some(kind);
            mounts.lines().filter(of_kind).filter_map(|line| line.split(' ').nth(1))
        });
        let name = format!("outrigger-job-{}", std::process::id());
        places.map(|place| Path::new(place).join(&name)).find(|path| fs::create_dir(path).is_ok()).map(Group)
    }

    fn processes(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn kill(&self) {
        for process in self.processes() {
            let status = Command::new("kill").args(["-9", &process]).status();
            assert!(status.is_ok_and(|status| status.success()), "the job is there to be ended");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for process in self.processes() {
            let _ = Command::new("kill").args(["-9", &process]).status();
        }
        let end = Instant::now() + DEADLINE;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Ends the pod's processes with the test.
struct Processes(Child);

impl Drop for Processes {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE * 2;
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// For how many ends of other processes the process waits that was started with this file.
fn watches(file: &str) -> usize {
    let processes = fs::read_dir("/proc").expect("/proc");
    let handles = |process: PathBuf| {
        let line = fs::read(process.join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let ours = line.starts_with(env!("CARGO_BIN_EXE_outrigger")) && line.contains(file);
        let handles = fs::read_dir(process.join("fd")).ok().filter(|_| ours)?;
        let is_one = |target: PathBuf| target.to_string_lossy().contains("pidfd");
        Some(handles.filter(move |handle| {
            let target = handle.as_ref().ok().and_then(|handle| fs::read_link(handle.path()).ok());
            target.is_some_and(is_one)
        }))
    };
    processes.filter_map(Result::ok).filter_map(|process| handles(process.path())).map(Iterator::count).sum()
}

#[test]
fn the_sidecar_of_a_job_ends_with_it() {
    as_root!(really: "a job's control group from another");
    let Some(group) = Group::make() else {
        println!("no control groups can be made here");
        return;
    };
    let (mesh, certs) = (Mesh::new(1), Certs::new());
    let pod = &mesh.pods[0];
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("bootstrap.yaml");
    fs::write(&file, bootstrap(&Plan::PLAIN, &certs)).expect("written");
    // The first process stands for the one that holds a pod's namespaces together.
    let script = "sh -c 'echo 0 > \"$0/cgroup.procs\" && exec sleep 1000' \"$3\" & \
                  \"$1\" --concurrency 1 -c \"$2\" --exit-with-application --drain-time-s 1 & wait $!";
    let file = file.to_str().expect("UTF-8");
    let mut command = pod.program(false, "unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script, "sh"]);
    command.args([env!("CARGO_BIN_EXE_outrigger"), file]).arg(&group.0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut processes = Processes(command.spawn().expect("a pod's processes"));
    until("the sidecar is not ready", || pod.admin("/ready").is_some());
    until("the job does not begin", || !group.processes().is_empty());
    until("the sidecar does not look for the job", || watches(file) > 0);
    // However long that takes it is one job, of which it remembers that it was there.
    until("time goes by", || pod.counter("server.uptime") >= 2);
    assert_eq!(watches(file), 1);
    assert!(matches!(processes.0.try_wait(), Ok(None)), "the sidecar stays as long as the job does");
    group.kill();
    until("the sidecar stays without the job", || !matches!(processes.0.try_wait(), Ok(None)));
    let status = processes.0.wait().expect("its status");
    assert!(status.success(), "the sidecar ended with {status}");
}
