//! The files of a database, and how a new one takes the place of another: first it is whole and on the disk, then it is named
//! `ready`, then what stood there before goes. A start after a crash in between goes on from there.

use crate::{Result, StoreError};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub dir: PathBuf,
    pub database: PathBuf,
    pub log: PathBuf,
    /// Shared memory of the processes that have the database open: what is where in the log.
    pub index: PathBuf,
    /// A database that is being made.
    pub draft: PathBuf,
    /// One that is whole, and about to take its place.
    ready: PathBuf,
}

/// Which sort of file stands at a database's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    /// Without checksums on its pages: of a format before 3, or of another program.
    Unchecked,
    Checked,
}

pub(crate) fn failed(what: &str, path: &Path, e: std::io::Error) -> StoreError {
    if e.kind() == ErrorKind::StorageFull {
        return StoreError::NoSpace;
    }
    StoreError::Backend { context: format!("cannot {what} {}", path.display()), source: Arc::new(e) }
}

const MAGIC: &[u8] = b"SQLite format 3\0";

impl Files {
    pub fn of(dir: &Path) -> Self {
        let file = |name: &str| dir.join(name);
        Files {
            dir: dir.to_owned(),
            database: file("state.db"),
            log: file("state.db-wal"),
            index: file("state.db-shm"),
            draft: file("state.db.draft"),
            ready: file("state.db.ready"),
        }
    }

    /// Ends what a crash has interrupted.
    pub fn settle(&self) -> Result<()> {
        remove(&self.draft)?;
        if self.ready.try_exists().map_err(|e| failed("look for", &self.ready, e))? {
            self.put_in_place()?;
        }
        Ok(())
    }

    /// The draft, which is closed and complete, becomes the database.
    pub fn replace_with_draft(&self) -> Result<()> {
        File::open(&self.draft).and_then(|f| f.sync_all()).map_err(|e| failed("sync", &self.draft, e))?;
        rename(&self.draft, &self.ready)?;
        self.sync()?;
        self.put_in_place()
    }

    fn put_in_place(&self) -> Result<()> {
        // A log that stays would be taken for the new database's.
        remove(&self.log)?;
        remove(&self.index)?;
        rename(&self.ready, &self.database)?;
        self.sync()
    }

    /// Keeps database and log under other names, which are returned. They keep their own too.
    pub fn keep_copies(&self) -> Result<Vec<PathBuf>> {
        let named = |path: &Path, n: usize| PathBuf::from(format!("{}.damaged-{n}", path.display()));
        let is_free = |n: &usize| [&self.database, &self.log].iter().all(|p| !named(p, *n).exists());
        let n = (1..).find(is_free).unwrap_or(1);
        let mut kept = Vec::new();
        for path in [&self.database, &self.log] {
            if std::fs::metadata(path).map_or(0, |m| m.len()) == 0 {
                continue;
            }
            let copy = named(path, n);
            // Not every file system has links.
            if std::fs::hard_link(path, &copy).is_err() {
                std::fs::copy(path, &copy).map_err(|e| failed("copy", path, e))?;
                File::open(&copy).and_then(|f| f.sync_all()).map_err(|e| failed("sync", &copy, e))?;
            }
            kept.push(copy);
        }
        self.sync()?;
        Ok(kept)
    }

    fn sync(&self) -> Result<()> {
        File::open(&self.dir).and_then(|d| d.sync_all()).map_err(|e| failed("sync", &self.dir, e))
    }

    /// Looks at the first bytes. To be called before SQLite has the file open: closing it again would take SQLite's locks away.
    pub fn found(&self) -> Result<Found> {
        let mut header = Vec::new();
        match File::open(&self.database).and_then(|f| f.take(100).read_to_end(&mut header)) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let log = std::fs::metadata(&self.log).map_or(0, |m| m.len());
                return match log {
                    0 => Ok(Found::Nothing),
                    _ => Err(self.corrupt("is missing, but its write-ahead log is there")),
                };
            }
            Err(e) => return Err(failed("read", &self.database, e)),
        }
        if header.is_empty() {
            return Err(self.corrupt("is empty; remove it if there never was anything in it"));
        }
        if header.len() < 100 || !header.starts_with(MAGIC) {
            return Err(self.corrupt("does not begin as a database does"));
        }
        // Where SQLite says how many bytes at the end of each page are not its own.
        match usize::from(header[20]) {
            0 if !says_checked(&header) => Ok(Found::Unchecked),
            isopod_sys::sqlite::RESERVED => Ok(Found::Checked),
            _ => Err(self.corrupt("has a damaged header")),
        }
    }

    pub fn corrupt(&self, what: &str) -> StoreError {
        StoreError::Corrupt(format!("{} {what}", self.database.display()))
    }
}

/// Do the other fields say that there are checksums? Ours since format 3, `application_id` and `user_version`.
fn says_checked(header: &[u8]) -> bool {
    let number = |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    number(68) == super::schema::APPLICATION_ID && number(60) >= 3
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|e| failed("rename", from, e))
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("remove", path, e)),
        _ => Ok(()),
    }
}
