//! Waits for changes in directories.
//!
//! In: the directories. Out: a hint that something in them may have changed; the caller looks what. The
//! kernel tells (inotify), and because it does not for every file system, and has a limit on watches,
//! there is a hint at intervals too.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

/// Between hints where the kernel tells.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Between hints where it does not.
const POLL: Duration = Duration::from_secs(1);

/// One change is rarely one event; it is over when nothing has come for this long.
const QUIET: Duration = Duration::from_millis(30);

/// A directory that never rests is looked at all the same, after so many quiet times.
const RESTLESS: usize = 30;

/// Everything that gives a name another content: files written to the end, moved in, linked or removed,
/// symbolic links swapped. Writes in between are not of interest.
fn events() -> WatchFlags {
    WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
}

/// Watches directories, each for its own entries.
#[derive(Debug)]
pub(crate) struct DirectoryWatch {
    kernel: Option<AsyncFd<OwnedFd>>,
    blind: bool,
}

impl DirectoryWatch {
    /// Watches nothing yet. Must be called on a tokio runtime.
    pub(crate) fn new() -> Self {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(io::Error::from);
        // What replaces it is unsafe for the sake of types that give away a descriptor they do not keep;
        // an `OwnedFd` keeps its own.
        #[allow(deprecated)]
        let kernel = fd.and_then(AsyncFd::new).ok();
        Self { kernel, blind: false }
    }

    /// Watches these directories too. To be called again after each hint, because a directory that was
    /// moved away and made anew is another one.
    pub(crate) fn add<P: AsRef<Path>>(&mut self, directories: impl IntoIterator<Item = P>) {
        let Some(kernel) = &self.kernel else { return };
        self.blind = false;
        for directory in directories {
            let added = inotify::add_watch(kernel.get_ref(), directory.as_ref(), events());
            self.blind |= added.is_err();
        }
    }

    /// Returns when something may have changed. What came before a call that was dropped half-way is lost.
    pub(crate) async fn changed(&mut self) {
        let Some(kernel) = &self.kernel else { return sleep(POLL).await };
        let pause = if self.blind { POLL } else { LOOK_AGAIN };
        if timeout(pause, drain(kernel)).await.is_err() {
            return;
        }
        for _ in 0..RESTLESS {
            if timeout(QUIET, drain(kernel)).await.is_err() {
                return;
            }
        }
    }
}

/// Takes the events that are there, after waiting for the first.
async fn drain(kernel: &AsyncFd<OwnedFd>) {
    let mut buffer = [0; 4096];
    loop {
        let Ok(mut ready) = kernel.readable().await else { return sleep(POLL).await };
        match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer)?)) {
            Ok(Ok(_)) => return,
            Ok(Err(_)) => return sleep(POLL).await,
            // Not ready after all.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn hint(watch: &mut DirectoryWatch) {
        // Less than the interval between hints for no reason.
        timeout(Duration::from_secs(5), watch.changed()).await.expect("a hint");
    }

    #[tokio::test]
    async fn what_config_maps_do_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut watch = DirectoryWatch::new();
        watch.add([dir.path()]);
        std::fs::write(at("file"), "1").unwrap();
        hint(&mut watch).await;
        // A new version is linked beside the old one and moved over it.
        std::os::unix::fs::symlink("v1", at("..data")).unwrap();
        hint(&mut watch).await;
        std::os::unix::fs::symlink("v2", at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        hint(&mut watch).await;
        std::fs::remove_file(at("file")).unwrap();
        hint(&mut watch).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_kernel_does_not_tell_is_looked_for() {
        let mut watch = DirectoryWatch::new();
        watch.add([Path::new("/nonexistent/directory")]);
        timeout(POLL * 2, watch.changed()).await.expect("a hint");
        watch.kernel = None;
        timeout(POLL * 2, watch.changed()).await.expect("a hint");
    }
}
