//! Before a batch decides anything it takes the lock on `meta` and learns what the other servers have committed; a wake-up
//! from them learns the same without the lock.
//!
//! Invariants: this server publishes the revisions of all servers in their order, each once, and its own after those before
//! them; its leases are those of the database before a transaction may refer to one.

use super::connect::Facts;
use super::epoch::{Loss, first_revision};
use super::queries::{self, LeaseRow, META, Meta};
use super::writer::Writer;
use crate::leases::Leases;
use crate::*;
use bytes::Bytes;
use sqlx::{AssertSqlSafe, PgConnection};
use std::collections::BTreeSet;

/// Events that are taken in at a time.
const PAGE: usize = 2000;

async fn read_meta(conn: &mut PgConnection, begin: &str, lock: &str) -> sqlx::Result<Meta> {
    let sql = AssertSqlSafe(format!("{begin}; {META} {lock}"));
    Meta::of(&sqlx::raw_sql(sql).fetch_one(conn).await?)
}

fn everything() -> KeyRange {
    KeyRange { start: Bytes::new(), end: Bytes::from_static(b"\0") }
}

impl Writer {
    /// Opens a batch that is going to look at `keys`.
    pub fn begin(&mut self, keys: &BTreeSet<Bytes>) -> Result<()> {
        let meta = self.lock_meta()?;
        self.catch_up(&meta)?;
        self.machine.backend.batch().meta = meta;
        self.read_keys(keys)
    }

    /// Learns what the others have committed.
    pub fn follow(&mut self) -> Result<()> {
        let facts = self.session().facts()?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        let meta = self.session().begin("read the revision", async |conn| read_meta(conn, begin, "").await)?;
        if self.is_strange(&meta, &facts) {
            self.session().rollback();
            return self.begin(&BTreeSet::new());
        }
        self.catch_up(&meta)
    }

    /// Takes the lock, and sets right what a failover or a restart of the database has left.
    fn lock_meta(&mut self) -> Result<Meta> {
        loop {
            let connected = self.session().is_connected();
            let facts = self.session().facts()?;
            let locked = self
                .session()
                .begin("take the lock on the revision", async |conn| read_meta(conn, "BEGIN", "FOR UPDATE").await);
            let meta = match locked {
                // The server may have closed an idle connection, which is found out here: nothing was asked of it yet.
                Err(_) if connected && !self.session().is_connected() => continue,
                other => other?,
            };
            if !self.is_strange(&meta, &facts) {
                return Ok(meta);
            }
            self.mend(&meta, &facts)?;
        }
    }

    fn is_strange(&self, meta: &Meta, facts: &Facts) -> bool {
        self.is_behind(meta) || !meta.is_of(facts)
    }

    /// Does the database lack what this server has shown, and nobody has said so yet?
    fn is_behind(&self, meta: &Meta) -> bool {
        meta.revision < self.machine.revision && !self.is_news(meta)
    }

    /// Are there epochs that this server does not know?
    fn is_news(&self, meta: &Meta) -> bool {
        meta.lineage != self.lineage || meta.epoch as usize != self.epochs.read().0.len()
    }

    /// Opens an epoch where commits may have been lost, and gives every lease its time again: nobody could keep one alive
    /// while the database was away.
    fn mend(&mut self, meta: &Meta, facts: &Facts) -> Result<()> {
        let shown = self.machine.revision;
        let facts = facts.clone();
        if meta.lineage == facts.lineage && !self.is_behind(meta) {
            return self.settle("begin after a restart of the database", async |conn| {
                sqlx::query("UPDATE meta SET started = $1").bind(facts.started).execute(conn).await.map(drop)
            });
        }
        let (base, epoch) = (meta.revision, meta.epoch + 1);
        let first = first_revision(base, shown);
        let lineage = facts.lineage.clone();
        self.settle("open an epoch", async |conn| {
            let insert = "INSERT INTO epoch (epoch, base, first) VALUES ($1, $2, $3)";
            sqlx::query(insert).bind(epoch).bind(base).bind(first).execute(&mut *conn).await?;
            let update = "UPDATE meta SET epoch = $1, revision = $2, lineage = $3, started = $4";
            let update = sqlx::query(update).bind(epoch).bind(first).bind(lineage).bind(facts.started);
            update.execute(conn).await.map(drop)
        })?;
        tracing::warn!(
            epoch,
            before = meta.lineage,
            now = facts.lineage,
            last_revision = base,
            next_revision = first + 1,
            "the database is another one, or an older state of it, as after a failover or a restored backup: a new epoch \
             begins, for commits may have been lost; who may have seen such a commit has to list again"
        );
        Ok(())
    }

    /// Commits `change` and new times for all leases.
    fn settle(&mut self, what: &str, change: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<()>) -> Result<()> {
        self.session().run(what, async |conn| {
            change(conn).await?;
            let leases = "UPDATE lease SET deadline = clock_timestamp() + ttl * interval '1 second' WHERE NOT ended";
            sqlx::query(leases).execute(conn).await.map(drop)
        })?;
        self.session().commit()
    }

    /// Takes in what was committed since the last time: `meta` and what is read here are of one moment.
    fn catch_up(&mut self, meta: &Meta) -> Result<()> {
        if self.is_news(meta) {
            self.enter_epoch(meta)?;
        }
        // What compaction has dropped cannot be told any more.
        if self.machine.revision + 1 < meta.compacted {
            self.load_leases(meta)?;
            let compacted = meta.compacted;
            self.go_on_after(compacted - 1, |requested| match requested < compacted {
                true => Err(StoreError::Compacted { requested, compacted }),
                false => Ok(()),
            });
        }
        let changed = self.changed_leases(meta)?;
        self.add_leases(&changed);
        while self.machine.revision < meta.revision {
            let (from, to) = (self.machine.revision + 1, meta.revision);
            let (_, committed, through) = self.session().run("read what other servers wrote", async |conn| {
                queries::history(conn, &everything(), from, to, PAGE).await
            })?;
            {
                let mut leases = self.machine.shared.leases.lock();
                for (_, events) in &committed {
                    leases.apply(events);
                }
            }
            self.machine.shared.hub.publish(&committed);
            self.machine.shared.hub.advance(through);
            self.machine.revision = through;
        }
        {
            let mut leases = self.machine.shared.leases.lock();
            for row in changed.iter().filter(|row| row.ended) {
                leases.remove(row.id);
            }
        }
        self.lease_change = meta.lease_change;
        *self.machine.shared.compacted.lock() = meta.compacted;
        self.take_alarms(meta.alarms);
        Ok(())
    }

    fn enter_epoch(&mut self, meta: &Meta) -> Result<()> {
        let epochs = self.session().run("read the epochs", async |conn| queries::epochs(conn).await)?;
        // Grants and ends have no revision: whatever happened to the others, some may be lost.
        self.load_leases(meta)?;
        let shown = self.machine.revision;
        let moved = meta.lineage != self.lineage;
        let loss = epochs.loss(&self.epochs.read(), shown, moved);
        self.lineage = meta.lineage.clone();
        // Before the watches end: who comes back must be refused what is lost.
        *self.epochs.write() = epochs.clone();
        if loss != Loss::Nothing {
            tracing::warn!(
                shown,
                "revisions that this server has shown were lost with the failed database: every watch that was told of them ends"
            );
        }
        // Clients of several servers may wait here for what follows that which another one has told them: it may be lost even
        // where nothing of this server's is, and what came after the loss is not.
        match loss {
            Loss::Nothing => self.go_on_after(shown, |start| epochs.check_watch(start)),
            Loss::Until(first) => self.go_on_after(first, |start| epochs.check_watch(start)),
            Loss::Everything => {
                let compacted = epochs.0.last().map_or(meta.revision, |(_, first)| *first);
                self.go_on_after(meta.revision, |requested| Err(StoreError::Compacted { requested, compacted }));
            }
        }
        Ok(())
    }

    /// What this server has not told up to `rev` it never tells; `check` says which watches end for it.
    fn go_on_after(&mut self, rev: Revision, check: impl Fn(Revision) -> Result<()>) {
        self.machine.revision = rev;
        self.machine.shared.hub.jump(rev, check);
    }

    /// Every lease with its keys, as of `meta`.
    pub fn load_leases(&mut self, meta: &Meta) -> Result<()> {
        let (rows, keys) = self.session().run("read the leases", async |conn| {
            Ok((queries::lease_changes(conn, -1).await?, queries::leased_keys(conn).await?))
        })?;
        let now = self.machine.shared.options.clock.now();
        let mut leases = Leases::default();
        for row in rows.iter().filter(|row| !row.ended) {
            leases.grant(row.id, row.ttl, now);
            leases.renewed(row.id, row.ttl, row.stamp, now);
        }
        for (id, key) in keys {
            leases.attach(id, key);
        }
        *self.machine.shared.leases.lock() = leases;
        self.machine.shared.leases_changed.notify_one();
        self.lease_change = meta.lease_change;
        Ok(())
    }

    fn changed_leases(&mut self, meta: &Meta) -> Result<Vec<LeaseRow>> {
        let seen = self.lease_change;
        if seen == meta.lease_change {
            return Ok(Vec::new());
        }
        let trimmed = seen < meta.lease_floor;
        let after = if trimmed { -1 } else { seen };
        let mut rows = self.session().run("read the leases", async |conn| queries::lease_changes(conn, after).await)?;
        if trimmed {
            // The rows of some that ended are gone: what is not among the living has ended.
            let living: BTreeSet<LeaseId> = rows.iter().filter(|r| !r.ended).map(|r| r.id).collect();
            let here = self.machine.shared.leases.lock().ids();
            let ended = here.into_iter().filter(|id| !living.contains(id));
            rows.extend(ended.map(|id| LeaseRow { id, ttl: 0, stamp: 0, ended: true }));
        }
        Ok(rows)
    }

    fn add_leases(&mut self, rows: &[LeaseRow]) {
        let now = self.machine.shared.options.clock.now();
        let mut leases = self.machine.shared.leases.lock();
        for row in rows.iter().filter(|row| !row.ended) {
            if !leases.contains(row.id) {
                leases.grant(row.id, row.ttl, now);
                leases.renewed(row.id, row.ttl, row.stamp, now);
            }
        }
        self.machine.shared.leases_changed.notify_one();
    }

    fn take_alarms(&self, bits: i32) {
        let raised = [Alarm::NoSpace, Alarm::Corrupt].into_iter().filter(|a| bits & super::backend::alarm_bit(*a) != 0);
        *self.machine.shared.alarms.lock() = raised.collect();
    }

    /// Reads what the batch is going to look at, all at once.
    fn read_keys(&mut self, keys: &BTreeSet<Bytes>) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let wanted: Vec<&[u8]> = keys.iter().map(|k| &k[..]).collect();
        let found =
            self.session().run("read the keys of a batch", async |conn| queries::newest_of(conn, &wanted).await)?;
        let known = &mut self.machine.backend.batch().known;
        known.extend(keys.iter().map(|key| (key.clone(), None)));
        known.extend(found.into_iter().map(|kv| (kv.key.clone(), Some(kv))));
        Ok(())
    }
}

/// The keys that transactions name one by one.
pub(crate) fn named_keys(txns: &[Txn]) -> BTreeSet<Bytes> {
    let mut keys = BTreeSet::new();
    for txn in txns {
        add_keys(txn, &mut keys);
    }
    keys
}

fn add_keys(txn: &Txn, keys: &mut BTreeSet<Bytes>) {
    keys.extend(txn.compare.iter().filter(|c| c.range.is_single()).map(|c| c.range.start.clone()));
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Put { key, .. } => drop(keys.insert(key.clone())),
            Op::Delete { range, .. } if range.is_single() => drop(keys.insert(range.start.clone())),
            Op::Txn(nested) => add_keys(nested, keys),
            Op::Delete { .. } | Op::Range(_) => {}
        }
    }
}
