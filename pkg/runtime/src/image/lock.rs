//! Locks among processes and threads: `flock(2)` on files made for it, because `isopod image` changes the store while a server
//! runs on it.
//!
//! Invariants: each holder has opened the file itself, so that threads exclude one another as processes do; a lock file is
//! never removed; a process that dies lets go of its locks.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

/// A lock, let go when dropped.
#[must_use]
#[derive(Debug)]
pub struct Hold {
    pub(super) file: File,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// A signal may end the wait early.
fn waited(mut lock: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match lock() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Blocks.
pub fn shared(path: &Path) -> io::Result<Hold> {
    let file = open(path)?;
    waited(|| file.lock_shared())?;
    Ok(Hold { file })
}

/// Blocks.
pub fn exclusive(path: &Path) -> io::Result<Hold> {
    let file = open(path)?;
    waited(|| file.lock())?;
    Ok(Hold { file })
}

/// `None`: somebody else has it.
pub fn try_exclusive(path: &Path) -> io::Result<Option<Hold>> {
    let file = open(path)?;
    Ok(attempt(&file)?.then_some(Hold { file }))
}

fn attempt(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

impl Hold {
    /// Runs `f` when no one else holds the lock, and keeps all others out meanwhile. The lock was and stays shared, with a
    /// moment before and after in which it is nobody's.
    pub fn while_alone<T>(&self, f: impl FnOnce() -> T) -> io::Result<Option<T>> {
        let done = attempt(&self.file)?.then(f);
        waited(|| self.file.lock_shared())?;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_exclude_one_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (a, b) = (shared(&path).unwrap(), shared(&path).unwrap());
        assert!(try_exclusive(&path).unwrap().is_none());
        assert_eq!(a.while_alone(|| 1).unwrap(), None);
        drop(b);
        assert!(a.while_alone(|| try_exclusive(&path).unwrap().is_none()).unwrap().unwrap());
        // Shared again.
        let b = shared(&path).unwrap();
        drop((a, b));
        let alone = exclusive(&path).unwrap();
        assert!(try_exclusive(&path).unwrap().is_none());
        drop(alone);
        assert!(try_exclusive(&path).unwrap().is_some());
    }
}
