//! The parts of the SQLite store without its threads, for the simulation.

pub(crate) use super::backend::SqliteBackend;
use super::damage::Damage;
use super::files::Files;
use super::reader::{Snapshot, Split};
use super::{checkpoint, recovery, schema};
use crate::hub::Committed;
use crate::leases::Leases;
use crate::machine::Shared;
use crate::*;
use parking_lot::Mutex;
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;

const CACHE_KIB: u32 = 256;

/// The backend, its revision, the compacted one, and the leases.
pub(crate) fn open(dir: &Path, options: &Options) -> Result<(SqliteBackend, Revision, Revision, Leases)> {
    let files = Files::of(dir);
    // The simulation kills processes: the machine stays up.
    schema::prepare(&files, true, None)?;
    let conn = schema::connect(&files.database, options, CACHE_KIB, true)?;
    checkpoint::settle(&conn)?;
    let found = recovery::recover(conn, options.clone(), Arc::new(Damage::default()))?;
    Ok((found.backend, found.revision, found.compacted, found.leases))
}

/// A reader with a connection of its own.
pub(crate) struct Beside {
    conn: Mutex<Connection>,
    snapshot: Snapshot,
    shared: Arc<Shared>,
}

pub(crate) fn beside(dir: &Path, backend: &SqliteBackend, shared: &Arc<Shared>) -> Result<Beside> {
    let conn = Mutex::new(schema::connect(&Files::of(dir).database, &shared.options, CACHE_KIB, false)?);
    let (hub, memory) = (Arc::clone(&shared.hub), Arc::clone(&backend.memory));
    let (rows, recent) = (Arc::clone(&backend.rows), Arc::clone(&backend.index.points));
    let snapshot = Snapshot { hub, memory, rows, recent, options: shared.options.clone() };
    Ok(Beside { conn, snapshot, shared: Arc::clone(shared) })
}

impl Beside {
    /// As the store answers a range.
    pub fn read(&self, req: &RangeRequest) -> Result<RangeResponse> {
        self.shared.check_revision(req.revision)?;
        if !Split::of(&req.range, &self.shared.options).durable {
            return self.snapshot.range_memory(req);
        }
        self.snapshot.range(&self.conn.lock(), req)
    }

    /// As the store reads history for a watch.
    pub fn past(
        &self,
        range: &KeyRange,
        from: Revision,
        to: Revision,
        limit: usize,
    ) -> Result<(Vec<Committed>, Revision)> {
        self.snapshot.history(&self.conn.lock(), range, from, to, limit)
    }
}
