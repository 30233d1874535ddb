//! The store on a disk that fails: its power goes, it runs full, its syncs fail; and what the store writes to it at all.
//!
//! The disk is a layer between SQLite and the files (`isopod_sys::faults`). It is quick: nothing is really synced.

#![allow(clippy::unwrap_used)]

mod errors;
mod ledger;
mod log;
mod power;
mod quiet;

use isopod_store::Options;
use isopod_store::sqlite::SqliteStore;
use isopod_sys::faults::Disk;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A directory on a disk of its own.
pub struct Machine {
    pub dir: tempfile::TempDir,
    pub disk: Arc<Disk>,
}

impl Machine {
    pub fn new(seed: u64) -> Self {
        Machine { dir: tempfile::tempdir().unwrap(), disk: Disk::register(&name(), None, seed).unwrap() }
    }

    /// Its power is never cut.
    pub fn counting() -> Self {
        Machine { dir: tempfile::tempdir().unwrap(), disk: Disk::register_counter(&name(), None).unwrap() }
    }

    pub fn open(&self, options: &Options) -> isopod_store::Result<SqliteStore> {
        let vfs = Some(self.disk.name().to_owned());
        SqliteStore::open(self.dir.path(), Options { vfs, ..options.clone() })
    }

    /// The machine after a power cut, with another disk that holds what this one kept.
    pub fn after_power_cut(&self, seed: u64) -> Self {
        let next = Machine::new(seed);
        self.disk.cut_power(next.dir.path()).unwrap();
        next
    }

    /// What it would be after a power cut now.
    pub fn ahead(&self, seed: u64) -> Self {
        let next = Machine::new(seed);
        self.disk.look_ahead(next.dir.path()).unwrap();
        next
    }
}

/// Each disk has its own.
fn name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("faults-{}", NEXT.fetch_add(1, Ordering::SeqCst))
}

/// A dropped store closes by itself: waits for its lock.
pub fn wait_until_free(dir: &Path) {
    if let Ok(lock) = std::fs::File::open(dir.join("lock")) {
        lock.lock().unwrap();
    }
}

/// How many seeds a test tries: `default`, or as many as the variable says.
pub fn seeds(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |n| n.parse().unwrap())
}
