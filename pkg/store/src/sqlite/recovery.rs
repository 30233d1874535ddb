//! What a store finds when it opens: where the revisions go on, what is left of the ephemeral keys, which leases live.
//!
//! After a clean end nothing is missing. After any other end, ephemeral writes since the last flush are lost, and which of
//! the reserved revisions were given to them is not known: the sequence jumps past the reservation, and what is left is
//! stamped with the first revision of that new epoch, so that nobody takes an old value for a newer one.

use super::backend::{BLOCK, EphemeralLease, Open, SqliteBackend, alarm_name};
use super::compaction::Compaction;
use super::damage::Damage;
use super::index::Index;
use super::newest;
use super::queries::{self, failed};
use super::rows::Rows;
use super::schema::{self, CacheOf};
use crate::leases::Leases;
use crate::log::MemLog;
use crate::*;
use bytes::Bytes;
use parking_lot::RwLock;
use rusqlite::{Connection, params};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};

pub(crate) struct Recovered {
    pub backend: SqliteBackend,
    pub revision: Revision,
    pub compacted: Revision,
    pub leases: Leases,
    pub alarms: BTreeSet<Alarm>,
    pub settings: BTreeMap<String, Bytes>,
    /// The last process did not close it: it is looked at for damage.
    pub unclean: bool,
}

pub(crate) fn recover(conn: Connection, options: Options, damage: Arc<Damage>) -> Result<Recovered> {
    conn.execute_batch("BEGIN IMMEDIATE").map_err(failed("begin to write"))?;
    schema::stamp(&conn)?;
    complete_index(&conn)?;
    let compacted = queries::meta(&conn, "compacted")?.unwrap_or(0);
    let last_durable = queries::last_revision(&conn)?;
    let (mut revision, clean) = newest_revision(&conn, compacted, last_durable)?;
    let moved = move_classes(&conn, &options, revision + 1)?;
    if moved {
        revision += 1;
    }
    let mut memory = MemLog::default();
    let mut dirty = BTreeSet::new();
    let mut survivors = without_orphans(&conn, queries::all_ephemeral(&conn)?)?;
    for kv in &mut survivors {
        if !clean || moved {
            kv.mod_revision = revision;
            dirty.insert(kv.key.clone());
        }
        memory.restore(kv.clone());
    }
    memory.forget_history_through(revision);
    let mut reserved = revision;
    let unclean = queries::meta(&conn, "clean")?.is_none() && revision > 1;
    queries::clear_meta(&conn, "clean")?;
    if options.ephemeral.is_empty() {
        queries::clear_meta(&conn, "reserved")?;
        // No more jumps: what the last reservation left open ends here.
        queries::set_meta(&conn, "base", revision)?;
    } else {
        reserved += BLOCK;
        queries::set_meta(&conn, "reserved", reserved)?;
    }
    let last = newest::last_row(&conn)?;
    queries::set_meta(&conn, newest::INDEXED, last)?;
    conn.execute_batch("COMMIT").map_err(failed("commit"))?;
    let pages = fit_cache(&conn)?;

    let (leases, ephemeral_leases) = restore_leases(&conn, &options, &survivors)?;
    let (alarms, settings) = (alarms(&conn)?, queries::settings(&conn)?);
    let through = queries::meta(&conn, "compacted_through")?.unwrap_or(0);
    let compaction = (through < queries::row_id(compacted, 0)).then(|| Compaction::new(through, compacted));
    let backend = SqliteBackend {
        conn,
        memory: Arc::new(RwLock::new(memory)),
        rows: Arc::new(Rows::new(options.cache_bytes)),
        index: Index::new(last, options.index_rows, pages),
        size: Arc::new(AtomicUsize::new(pages)),
        written: Vec::new(),
        options,
        reserved,
        dirty,
        ephemeral_leases,
        ended_leases: Vec::new(),
        leases_before: Vec::new(),
        compaction,
        memory_compaction: None,
        compaction_before: None,
        last_durable: last_durable.max(if moved { revision } else { 0 }),
        compacted_on_disk: compacted,
        damage,
        stopped: Arc::new(OnceLock::new()),
        open: Open::default(),
        unsettled: false,
        gives_back: false,
        pages: 0,
        committed: false,
    };
    Ok(Recovered { backend, revision, compacted, leases, alarms, settings, unclean })
}

/// What a process that ended had not entered yet.
fn complete_index(conn: &Connection) -> Result<()> {
    newest::unindexed(conn)?.iter().try_for_each(|(key, point)| newest::set_point(conn, key, *point))
}

/// Returns how many pages there are.
fn fit_cache(conn: &Connection) -> Result<usize> {
    let pages = schema::page_count(conn)?;
    schema::set_cache(conn, schema::cache_kib(CacheOf::Writer, pages)).map(|()| pages)
}

fn alarms(conn: &Connection) -> Result<BTreeSet<Alarm>> {
    let mut alarms = BTreeSet::new();
    for alarm in [Alarm::NoSpace, Alarm::Corrupt] {
        if queries::meta(conn, alarm_name(alarm))?.is_some() {
            alarms.insert(alarm);
        }
    }
    Ok(alarms)
}

/// A lease that a crash found ended durably has taken its keys with it, those too whose deletion was not flushed.
fn without_orphans(conn: &Connection, survivors: Vec<KeyValue>) -> Result<Vec<KeyValue>> {
    let leases: BTreeSet<LeaseId> = queries::leases(conn)?.into_iter().map(|(id, _, _)| id).collect();
    let (kept, orphans): (Vec<KeyValue>, Vec<KeyValue>) =
        survivors.into_iter().partition(|kv| kv.lease == 0 || leases.contains(&kv.lease));
    for kv in orphans {
        queries::delete_ephemeral(conn, &kv.key)?;
    }
    Ok(kept)
}

/// The revision to go on from, and whether the last end was a clean one.
fn newest_revision(conn: &Connection, compacted: Revision, last_durable: Revision) -> Result<(Revision, bool)> {
    let base = queries::meta(conn, "base")?.unwrap_or(1);
    let known = last_durable.max(compacted).max(base).max(1);
    if let Some(clean) = queries::meta(conn, "clean")? {
        return Ok((known.max(clean), true));
    }
    match queries::meta(conn, "reserved")? {
        Some(reserved) => Ok((known.max(reserved) + 1, false)),
        None => Ok((known, true)),
    }
}

/// Moves keys whose class has changed since the store was last open, at revision `rev`. True: there were such classes.
fn move_classes(conn: &Connection, options: &Options, rev: Revision) -> Result<bool> {
    let stored = queries::classes(conn)?;
    let wanted: BTreeSet<Vec<u8>> = options.ephemeral.iter().map(|p| p.to_vec()).collect();
    if stored == wanted {
        return Ok(false);
    }
    // Into the log what has become durable …
    let put = |kv: &KeyValue| {
        let kv = KeyValue { mod_revision: rev, ..kv.clone() };
        Event { kind: EventKind::Put, kv, prev: None }
    };
    let leaving = queries::all_ephemeral(conn)?.into_iter().filter(|kv| !options.is_ephemeral(&kv.key));
    for (sub, kv) in (0..).zip(leaving) {
        queries::append(conn, rev, sub, &put(&kv))?;
        queries::delete_ephemeral(conn, &kv.key)?;
    }
    // … and out of it what has become ephemeral, history and all.
    for prefix in wanted.difference(&stored) {
        let range = KeyRange::prefix(prefix.clone());
        for kv in newest::range_newest(conn, &RangeRequest::new(range.clone()), &Vec::new())?.kvs {
            queries::put_ephemeral(conn, &KeyValue { mod_revision: rev, ..kv })?;
        }
        let end = range.end_bound().map(|e| e.to_vec());
        for table in ["log", "newest"] {
            let sql = format!("DELETE FROM {table} WHERE key >= ?1 AND (?2 IS NULL OR key < ?2)");
            conn.execute(&sql, params![prefix, end]).map_err(failed("move keys to the ephemeral class"))?;
        }
    }
    queries::clear_classes(conn)?;
    for prefix in &wanted {
        queries::put_class(conn, prefix)?;
    }
    Ok(!stored.is_empty() || queries::last_revision(conn)? > 0)
}

/// Every lease begins anew with its whole time, as in etcd.
fn restore_leases(
    conn: &Connection,
    options: &Options,
    survivors: &[KeyValue],
) -> Result<(Leases, HashMap<LeaseId, EphemeralLease>)> {
    let mut leases = Leases::default();
    let mut ephemeral_leases = HashMap::new();
    for (id, ttl, ephemeral) in queries::leases(conn)? {
        leases.grant(id, ttl, options.clock.now());
        if ephemeral {
            ephemeral_leases.insert(id, EphemeralLease { ttl, on_disk: true });
        }
    }
    let held: Vec<(LeaseId, Bytes)> = newest::leased_keys(conn)?;
    let kept = survivors.iter().filter(|kv| kv.lease != 0).map(|kv| (kv.lease, kv.key.clone()));
    for (id, key) in held.into_iter().chain(kept) {
        leases.attach(id, key);
    }
    Ok((leases, ephemeral_leases))
}
