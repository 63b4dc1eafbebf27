//! A process that is measured: started on a core, and its CPU time and memory, with those of its children, read from
//! `/proc`. It ends when dropped.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{kill_process, Pid, Signal};

use crate::clock;

/// The longest wait for an end in good order.
const PATIENCE: Duration = Duration::from_secs(5);

/// One of them.
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// Memory of a process and its children.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident bytes.
    pub rss: u64,
    /// The same, shared pages by share; `None` if the system does not say.
    pub pss: Option<u64>,
}

impl Process {
    /// Starts it on this core; what it writes goes to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command, core: Option<usize>, log: &Path) -> io::Result<Self> {
        let output = fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let start = move || {
            // A child runs where the thread that starts it does.
            core.map_or(Ok(()), clock::pin)?;
            command.spawn()
        };
        let child = std::thread::spawn(start).join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// What it has written.
    pub fn written(&self) -> String {
        fs::read(&self.log).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// If it has ended, why.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        let written = self.written();
        let lines = || written.lines().map(str::trim).filter(|line| !line.is_empty());
        let words = ["error", "alert", "emerg", "critical", "not supported", "unknown", "cannot"];
        let telling = |line: &&str| {
            let line = line.to_lowercase();
            !line.contains("warn") && words.iter().any(|word| line.contains(word))
        };
        let line = lines().find(telling).or_else(|| lines().next_back());
        Some(line.map_or_else(|| status.to_string(), |line| line.chars().take(300).collect()))
    }

    /// It and its children.
    fn family(&self) -> Vec<u32> {
        let mut parents: HashMap<u32, Vec<u32>> = HashMap::new();
        let found = fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in found.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            // The name before may have anything in it; after it come the state and the parent.
            let parent =
                stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
            if let Some(parent) = parent {
                parents.entry(parent).or_default().push(pid);
            }
        }
        let mut family = vec![self.child.id()];
        let mut next = 0;
        while let Some(pid) = family.get(next) {
            family.extend(parents.remove(pid).unwrap_or_default());
            next += 1;
        }
        family
    }

    /// Nanoseconds of CPU that its threads have used.
    pub fn cpu(&self) -> u64 {
        let mut sum = 0;
        for pid in self.family() {
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                sum += text.split_whitespace().next().and_then(|time| time.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        sum
    }

    /// Its memory.
    pub fn memory(&self) -> Memory {
        let mut memory = Memory { rss: 0, pss: Some(0) };
        for pid in self.family() {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            memory.rss += kilobytes(&rollup, "Rss:").or_else(|| kilobytes(&status(), "VmRSS:")).unwrap_or(0);
            memory.pss = memory.pss.zip(kilobytes(&rollup, "Pss:")).map(|(sum, pss)| sum + pss);
        }
        memory
    }

    /// Its memory, once it has not changed for a second; after some seconds what it is then.
    pub fn settled_memory(&self) -> Memory {
        let deadline = Instant::now() + PATIENCE;
        let (mut last, mut since) = (self.memory(), Instant::now());
        while since.elapsed() < Duration::from_secs(1) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.memory();
            if now.rss.abs_diff(last.rss) > 64 << 10 {
                (last, since) = (now, Instant::now());
            }
        }
        last
    }

    /// How many files it and its children have open.
    pub fn open_files(&self) -> usize {
        let count = |pid| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        self.family().into_iter().map(count).sum()
    }
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|value| value << 10)
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let family = self.family();
        let send = |pid: u32, signal| {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, signal);
            }
        };
        send(self.child.id(), Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        family.into_iter().for_each(|pid| send(pid, Signal::KILL));
        let _ = self.child.wait();
    }
}
