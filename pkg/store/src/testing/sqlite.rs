//! The SQLite backend and its recovery in the simulation. A crash leaves the files as they are at that moment, in another
//! directory: nothing that the dying connection still does reaches them.

use super::disk::{Disk, Reader, Started};
use crate::hub::Committed;
use crate::machine::Shared;
use crate::sqlite::testing::{self, Beside, SqliteBackend};
use crate::*;
use std::sync::Arc;
use tempfile::TempDir;

pub(crate) struct SqliteDisk {
    dir: TempDir,
}

/// In memory where the machine has such a file system: what is synced is not what is simulated.
fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory for the database")
}

impl SqliteDisk {
    pub fn new() -> Self {
        SqliteDisk { dir: directory() }
    }
}

impl Disk for SqliteDisk {
    type Backend = SqliteBackend;
    const EPHEMERAL: &'static [&'static str] = &["e/"];

    fn start(&mut self, options: &Options) -> Started<SqliteBackend> {
        let (backend, revision, compacted, leases) =
            testing::open(self.dir.path(), options).expect("what a crash leaves can be opened");
        Started { backend, revision, compacted, leases }
    }

    fn reader(&self, backend: &SqliteBackend, shared: &Arc<Shared>) -> Arc<dyn Reader> {
        Arc::new(testing::beside(self.dir.path(), backend, shared).expect("a second connection"))
    }

    fn idle(&self, backend: &mut SqliteBackend, newest: Revision) {
        if backend.compaction.is_some() {
            backend.compact_idle().expect("a step of the compaction");
        } else if backend.has_dirty() {
            backend.flush(newest, 2).expect("a flush");
        }
    }

    fn end(&self, mut backend: SqliteBackend, newest: Revision) {
        backend.shut(newest).expect("a clean end");
    }

    fn crash(&mut self, backend: SqliteBackend) {
        let left = directory();
        for entry in std::fs::read_dir(self.dir.path()).expect("the directory").flatten() {
            // The shared memory of the write-ahead log is made anew.
            if entry.file_name().to_string_lossy().ends_with("-shm") {
                continue;
            }
            std::fs::copy(entry.path(), left.path().join(entry.file_name())).expect("a copy");
        }
        drop(backend);
        self.dir = left;
    }
}

impl Reader for Beside {
    fn range(&self, req: &RangeRequest) -> Result<RangeResponse> {
        self.read(req)
    }

    fn history(
        &self,
        range: &KeyRange,
        from: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<(Vec<Committed>, Revision)> {
        self.past(range, from, to, limit)
    }
}
