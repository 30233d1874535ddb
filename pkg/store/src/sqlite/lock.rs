//! One process at a time on a data directory: an advisory lock on a file that names its holder.

use crate::{Result, StoreError};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Held until dropped. The kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    file: File,
    path: PathBuf,
    /// The machine has not been started anew since the last holder: what that one wrote is there, synced or not.
    pub same_boot: bool,
}

fn backend(context: String, source: std::io::Error) -> StoreError {
    StoreError::Backend { context, source: Arc::new(source) }
}

/// Another one after each start of the machine; empty where the kernel does not tell.
fn this_boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl DirectoryLock {
    pub fn take(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| backend(format!("cannot create {}", dir.display()), e))?;
        let path = dir.join("lock");
        let cannot = |e| backend(format!("cannot lock {}", path.display()), e);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(cannot)?;
        let taken = file.try_lock();
        // The holder's process, then its boot.
        let mut content = Vec::new();
        let _ = file.read_to_end(&mut content);
        let content = String::from_utf8_lossy(&content);
        let mut lines = content.lines().map(str::trim);
        let holder = lines.next().filter(|h| !h.is_empty()).unwrap_or("(unknown)");
        match taken {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse { dir: dir.display().to_string(), holder: holder.to_owned() });
            }
            Err(TryLockError::Error(e)) => return Err(cannot(e)),
        }
        let boot = lines.next().unwrap_or_default().to_owned();
        let same_boot = !boot.is_empty() && boot == this_boot();
        let mut lock = DirectoryLock { file, path, same_boot };
        lock.write(&boot)?;
        Ok(lock)
    }

    /// From now on this process has the database open. Until then what lies there is that of an earlier one.
    pub fn opened(&mut self) -> Result<()> {
        self.write(&this_boot())
    }

    fn write(&mut self, boot: &str) -> Result<()> {
        let content = format!("{}\n{boot}\n", std::process::id());
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(content.as_bytes())
        };
        write(&mut self.file).map_err(|e| backend(format!("cannot write {}", self.path.display()), e))
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread is just forking holds the same open file until its exec.
        let _ = self.file.unlock();
    }
}
