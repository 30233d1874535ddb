//! One process at a time on a data directory: an advisory lock on a file that names its holder.

use crate::{Result, StoreError};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;

/// Held until dropped. The kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    file: File,
}

fn backend(context: String, source: std::io::Error) -> StoreError {
    StoreError::Backend { context, source: Arc::new(source) }
}

impl DirectoryLock {
    pub fn take(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| backend(format!("cannot create {}", dir.display()), e))?;
        let path = dir.join("lock");
        let cannot = |e| backend(format!("cannot lock {}", path.display()), e);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = holder.trim();
                let holder = if holder.is_empty() { "(unknown)" } else { holder };
                return Err(StoreError::InUse { dir: dir.display().to_string(), holder: holder.to_owned() });
            }
            Err(TryLockError::Error(e)) => return Err(cannot(e)),
        }
        file.set_len(0).map_err(cannot)?;
        file.rewind().map_err(cannot)?;
        writeln!(file, "{}", std::process::id()).map_err(cannot)?;
        Ok(DirectoryLock { file })
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread is just forking holds the same open file until its exec.
        let _ = self.file.unlock();
    }
}
