//! Waits until something happens to the files of a directory (inotify): how a log that is followed is known to have grown.
//!
//! Invariant: what happens after [`DirectoryWatch::open`] returned wakes the next [`DirectoryWatch::changed`]; so open first,
//! look at the files, then wait.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::io::unix::AsyncFd;

/// Tells that files of one directory were written, made or moved.
pub struct DirectoryWatch {
    queue: AsyncFd<OwnedFd>,
}

impl DirectoryWatch {
    /// `EMFILE` when this user has no inotify instance left (`fs.inotify.max_user_instances`). Must be called within a tokio
    /// runtime.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let what = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(directory, what | AddWatchFlags::IN_ONLYDIR)?;
        // SAFETY: an `OwnedFd` always names the same descriptor and keeps it open; `AsyncFd` owns it until it is dropped.
        let queue = unsafe { AsyncFd::register(OwnedFd::from(inotify)) }.map_err(io::Error::from)?;
        Ok(DirectoryWatch { queue })
    }

    /// Returns once something has changed since the last call, at once if it has already.
    pub async fn changed(&self) -> io::Result<()> {
        let mut block = [0u8; 4096];
        let mut seen = false;
        loop {
            let mut ready = self.queue.readable().await?;
            // Everything that is queued is one change.
            while let Ok(n) = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut block)?)) {
                seen |= n? > 0;
            }
            if seen {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::time::Duration;

    #[tokio::test]
    async fn growth_creation_and_moves_wake_and_silence_does_not() {
        let dir = std::env::temp_dir().join(format!("isopod-file-watch-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut log = fs::File::create(dir.join("log")).unwrap();
        let watch = DirectoryWatch::open(&dir).unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(30), watch.changed()).await;
        assert!(silent.is_err());
        let wakes = || async { tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.unwrap().unwrap() };
        log.write_all(b"a line\n").unwrap();
        wakes().await;
        fs::rename(dir.join("log"), dir.join("log.1")).unwrap();
        wakes().await;
        fs::File::create(dir.join("log")).unwrap();
        wakes().await;
        fs::remove_dir_all(&dir).unwrap();
        assert!(DirectoryWatch::open(&dir).is_err());
    }
}
