//! `outrigger upgrade`: asks the running process.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use socket2::{Domain, SockAddr, Socket, Type};

use super::office::{Answer, Question};
use super::UpgradeError;
use crate::runtime::socket::kernel_path;

/// What a process needs to notice that its successor is late.
const GRACE: Duration = Duration::from_secs(20);

/// The flags of `outrigger upgrade`.
#[derive(Debug, Clone, Args)]
pub struct UpgradeFlags {
    /// The binary that takes over.
    #[arg(long, value_name = "BINARY")]
    pub to: PathBuf,
    /// The `--socket-path` of the running process.
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<String>,
    /// The `--state-dir` of the running process, if it has no `--socket-path`.
    #[arg(long, value_name = "DIRECTORY")]
    pub state_dir: Option<PathBuf>,
    /// The `--base-id` of the running process.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub base_id: u32,
    /// How long the new process may take to become ready, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout_s: u64,
}

/// Where a process with these flags listens: at `--socket-path`, else in the `--state-dir`. A base id other than 0 is
/// appended.
pub fn place(socket_path: Option<&str>, state_dir: Option<&Path>, base_id: u32) -> Option<PathBuf> {
    let base = match (socket_path, state_dir) {
        (Some(path), _) => PathBuf::from(path),
        (None, Some(directory)) => directory.join("upgrade.sock"),
        (None, None) => return None,
    };
    if base_id == 0 {
        return Some(base);
    }
    let mut name = base.into_os_string();
    name.push(format!("_{base_id}"));
    Some(name.into())
}

impl UpgradeFlags {
    /// Asks, and waits for what comes of it: the new process's id.
    ///
    /// # Errors
    /// [`UpgradeError`]; the running process goes on as before.
    pub fn run(&self) -> Result<u32, UpgradeError> {
        let place = place(self.socket_path.as_deref(), self.state_dir.as_deref(), self.base_id)
            .ok_or(UpgradeError::Nowhere)?;
        // The running process may be somewhere else.
        let to = std::path::absolute(&self.to).map_err(|error| UpgradeError::Run(self.to.clone(), error))?;
        let nobody = |error| UpgradeError::Nobody(place.display().to_string(), error);
        let mut stream = connect(&place).map_err(nobody)?;
        let (own, peer) = (rustix::process::geteuid(), rustix::net::sockopt::socket_peercred(&stream));
        let peer = peer.map_err(std::io::Error::from)?.uid;
        // Where names are anybody's, somebody else may have been there first.
        if !own.is_root() && peer != own && !peer.is_root() {
            return Err(UpgradeError::Stranger(peer.as_raw()));
        }
        stream.set_read_timeout(Some(Duration::from_secs(self.timeout_s) + GRACE))?;
        let question = Question { to, timeout_s: self.timeout_s };
        let mut line = serde_json::to_vec(&question).map_err(std::io::Error::other)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        match serde_json::from_str(&answer) {
            Ok(Answer::Pid(pid)) => Ok(pid),
            Ok(Answer::Error(why)) => Err(UpgradeError::Refused(why)),
            Err(_) => Err(UpgradeError::Refused("the running process ended, or does not answer".to_owned())),
        }
    }
}

fn connect(place: &Path) -> std::io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.connect(&SockAddr::unix(kernel_path(place))?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_process_listens_follows_from_its_flags() {
        let at = |path: Option<&str>, dir: Option<&str>, id| {
            place(path, dir.map(Path::new), id).map(|place| place.display().to_string())
        };
        assert_eq!(at(None, None, 3), None);
        assert_eq!(at(None, Some("/s"), 0).as_deref(), Some("/s/upgrade.sock"));
        assert_eq!(at(None, Some("/s"), 3).as_deref(), Some("/s/upgrade.sock_3"));
        assert_eq!(at(Some("@name"), Some("/s"), 3).as_deref(), Some("@name_3"));
    }
}
