//! Makes a new database of what can be read of a damaged one, and says what cannot.
//!
//! It goes over the pages, not through the trees: a damaged inner page takes nothing with it. A row counts if its checksum
//! holds. What is kept is the newest value of each key, without history: that would have holes. The revisions jump to a new
//! epoch behind everything that can have been given out, and all before it counts as compacted, so that nobody who watched
//! before takes the one for the other.

use super::check::damage_in;
use super::draft::Draft;
use super::files::{Files, Found};
use super::index::Point;
use super::lock::DirectoryLock;
use super::newest;
use super::pages::{Pages, Purpose};
use super::queries::{self, row_id, row_revision};
use super::records::{Record, Value, records};
use super::sums::Head;
use super::wal::{self, Log};
use crate::{KeyValue, LeaseId, Result, Revision, StoreError};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// More revisions than a lost write-ahead log has room for.
const EPOCH: Revision = 1 << 24;
/// What a lease that keys name, but whose row is lost, is given in seconds: as long as Events are kept.
const LEASE_TTL: i64 = 3600;

/// What a repair has done.
#[derive(Debug, Default)]
pub struct Repair {
    /// Each damaged page and what it was of, where that is known.
    pub pages: Vec<(u32, Option<String>)>,
    /// So many committed frames of the write-ahead log cannot be read: what was written last may be among them, whatever it
    /// was of.
    pub frames: usize,
    /// Rows that were written after this revision were on damaged pages, and there is no index that tells of which keys: any key
    /// may be older than it was, or missing, or here again after it was deleted.
    pub since: Option<Revision>,
    /// Keys in the new database, ephemeral ones too.
    pub keys: usize,
    pub lost: Vec<Bytes>,
    /// Keys that have an older value again, with its revision and the lost one's.
    pub older: Vec<(Bytes, Revision, Revision)>,
    /// Keys that have the newest value that was found, where a newer one or a deletion may have been lost.
    pub unsure: Vec<Bytes>,
    /// Leases whose time was lost and is now an hour.
    pub leases: Vec<LeaseId>,
    /// The revision that the new database begins at.
    pub revision: Revision,
    /// Where the damaged files are kept.
    pub kept: Vec<PathBuf>,
}

/// Repairs the database in `dir` if it is damaged; `None`: it is not, and nothing was changed. Fails with
/// [`StoreError::InUse`] while a process has it open.
pub fn repair(dir: impl AsRef<Path>) -> Result<Option<Repair>> {
    let files = Files::of(dir.as_ref());
    let lock = DirectoryLock::take(dir.as_ref())?;
    files.settle()?;
    match files.found() {
        Ok(Found::Nothing) => return Ok(None),
        // It has nothing that damage could be told by; opening it brings it up to date.
        Ok(Found::Unchecked) => return super::migrate::migrate(&files).map(|()| None),
        Ok(Found::Checked) | Err(StoreError::Corrupt(_)) => {}
        Err(e) => return Err(e),
    }
    if damage_in(&files, lock.same_boot)?.is_empty() {
        return Ok(None);
    }
    let log = wal::examine(&files, lock.same_boot)?;
    let pages = Pages::open(&files, &log)?;
    let salvage = Salvage::read(&pages, &log)?;
    let mut repair = Repair::default();
    let draft = Draft::begin(&files, None)?;
    salvage.write(&pages, &draft, &mut repair)?;
    repair.pages = salvage.damaged;
    let unread = log.frames.iter().take(log.readable()).filter(|f| !f.proved).count();
    repair.frames = unread + log.readable().saturating_sub(log.frames.len());
    repair.since = salvage.since;
    repair.kept = files.keep_copies()?;
    draft.finish()?;
    Ok(Some(repair))
}

/// A row of `log` that is whole.
struct Candidate {
    id: i64,
    page: u32,
    put: bool,
    /// It is known that the page is in use and no newer image of it existed. Else the row may be one that was dropped.
    certain: bool,
}

/// What `newest` has of a key.
#[derive(Clone, Copy, Default)]
struct Newest {
    id: i64,
    live: bool,
    /// As [`Candidate::certain`].
    certain: bool,
}

#[derive(Default)]
struct Salvage {
    damaged: Vec<(u32, Option<String>)>,
    meta: BTreeMap<String, i64>,
    log: HashMap<Bytes, Vec<Candidate>>,
    newest: HashMap<Bytes, Newest>,
    leases: BTreeMap<LeaseId, (i64, bool)>,
    ephemeral: BTreeMap<Bytes, KeyValue>,
    classes: BTreeSet<Vec<u8>>,
    settings: BTreeMap<String, Vec<u8>>,
    /// The greatest revision seen.
    last: Revision,
    /// Nothing of the table is lost.
    log_is_complete: bool,
    newest_is_complete: bool,
    /// As [`Repair::since`].
    since: Option<Revision>,
}

/// What a key's rows say.
enum Verdict {
    Restore {
        id: i64,
        unsure: bool,
    },
    /// The row `had` is older than the lost one.
    Older {
        had: i64,
        lost: i64,
    },
    Lost,
    Deleted,
}

impl Salvage {
    fn read(pages: &Pages, log: &Log) -> Result<Self> {
        let mut salvage = Salvage::default();
        let tables = tables(pages)?;
        let numbers = pages.damaged()?;
        let torn = log.frames.iter().take(log.readable()).any(|f| !f.proved) || log.frames.len() < log.readable();
        let table = |page: &u32| pages.root(*page).and_then(|root| tables.get(&root).cloned());
        salvage.damaged = numbers.iter().map(|page| (*page, table(page))).collect();
        // A frame that does not fit can be of any page.
        let complete = |name: &str| !torn && salvage.damaged.iter().all(|(_, t)| t.as_ref().is_some_and(|t| t != name));
        (salvage.log_is_complete, salvage.newest_is_complete) = (complete("log"), complete("newest"));
        let mut reached = BTreeSet::new();
        if (1..=pages.count).any(|page| pages.purpose(page) == Purpose::Unknown) {
            for root in tables.keys() {
                reached.extend(pages.tree(*root)?);
            }
        }
        for page in 1..=pages.count {
            let certain = match pages.purpose(page) {
                Purpose::Tree => true,
                Purpose::Unknown => reached.contains(&page),
                Purpose::Free | Purpose::Map | Purpose::Overflow => continue,
            };
            let certain = certain && !pages.outdated.contains(&page);
            let Some(content) = pages.page(page)? else { continue };
            for record in records(pages, page, &content)? {
                salvage.take(record, page, certain);
            }
        }
        salvage.since = salvage.lost_since(pages, &tables, torn)?;
        let meta = ["compacted", "base", "reserved", "clean"].map(|name| salvage.meta.get(name).copied().unwrap_or(0));
        salvage.last = meta.into_iter().fold(salvage.last, Revision::max);
        Ok(salvage)
    }

    fn lost_since(&self, pages: &Pages, tables: &BTreeMap<u32, String>, torn: bool) -> Result<Option<Revision>> {
        let indexed = match self.meta.get(newest::INDEXED) {
            Some(indexed) => *indexed,
            None if self.meta.is_empty() => 0,
            // Of a version whose index was complete.
            None => return Ok(None),
        };
        let of_log = |table: &Option<String>| table.as_ref().is_none_or(|name| name == "log");
        let lost: Vec<u32> = self.damaged.iter().filter(|(_, table)| of_log(table)).map(|(page, _)| *page).collect();
        let root = tables.iter().find(|(_, name)| *name == "log").map(|(root, _)| *root);
        let reaches = match root {
            _ if lost.is_empty() => false,
            Some(root) => pages.may_reach_past(&lost, root, indexed)?,
            None => true,
        };
        Ok((torn || reaches).then(|| row_revision(indexed)))
    }

    /// Takes a row in if it is one of ours and its checksum holds.
    fn take(&mut self, record: Record, page: u32, certain: bool) {
        use Value::{Blob, Null, Number, Text};
        match (record.row, &record.values[..]) {
            (
                Some(id),
                [
                    Null,
                    Number(prev),
                    Number(kind),
                    Number(created),
                    Number(version),
                    Number(lease),
                    Number(sum),
                    Blob(key),
                    Blob(value),
                ],
            ) => {
                let head = Head { id, prev: *prev, kind: *kind, created: *created, version: *version, lease: *lease };
                if head.row_sum(key, value) == *sum {
                    self.take_row(&head, key, page, certain);
                }
            }
            (None, [Blob(key), Number(id), Number(live), Number(_)]) => {
                self.take_newest(key, Newest { id: *id, live: *live != 0, certain });
            }
            (None, [Text(name), Number(value), Number(sum)]) if queries::meta_sum(name, *value) == *sum => {
                self.meta.insert(name.clone(), *value);
            }
            (Some(id), [Null, Number(ttl), Number(ephemeral), Number(sum)])
                if queries::lease_sum(id, *ttl, *ephemeral != 0) == *sum =>
            {
                self.leases.insert(id, (*ttl, *ephemeral != 0));
            }
            (
                None,
                [
                    Blob(key),
                    Number(modified),
                    Number(created),
                    Number(version),
                    Number(lease),
                    Number(sum),
                    Blob(value),
                ],
            ) => {
                let kv = KeyValue {
                    key: Bytes::copy_from_slice(key),
                    value: Bytes::copy_from_slice(value),
                    create_revision: *created,
                    mod_revision: *modified,
                    version: *version,
                    lease: *lease,
                };
                if queries::ephemeral_sum(&kv) == *sum {
                    self.last = self.last.max(*modified);
                    self.ephemeral.insert(kv.key.clone(), kv);
                }
            }
            (None, [Blob(prefix), Number(sum)]) if queries::class_sum(prefix) == *sum => {
                self.classes.insert(prefix.clone());
            }
            (None, [Text(name), Number(sum), Blob(value)]) if queries::setting_sum(name, value) == *sum => {
                self.settings.insert(name.clone(), value.clone());
            }
            _ => {}
        }
    }

    fn take_row(&mut self, head: &Head, key: &[u8], page: u32, certain: bool) {
        self.last = self.last.max(row_revision(head.id));
        let candidate = Candidate { id: head.id, page, put: head.kind == queries::PUT, certain };
        self.log.entry(Bytes::copy_from_slice(key)).or_default().push(candidate);
    }

    fn take_newest(&mut self, key: &[u8], found: Newest) {
        self.last = self.last.max(row_revision(found.id));
        let newest = self.newest.entry(Bytes::copy_from_slice(key)).or_default();
        if (found.id, found.certain) > (newest.id, newest.certain) {
            *newest = found;
        }
    }

    /// Everything up to here may have been dropped. Where that is lost, it is everything.
    fn compacted(&self) -> Revision {
        match self.meta.get("compacted") {
            Some(compacted) => *compacted,
            None if self.meta.is_empty() => Revision::MAX,
            None => 0,
        }
    }

    fn verdict(&self, key: &Bytes) -> Verdict {
        let compacted = self.compacted();
        let newest = self.newest.get(key).copied();
        let named = newest.map_or(0, |n| n.id);
        let counts = |c: &&Candidate| c.certain || row_revision(c.id) > compacted || c.id == named;
        let rows = || self.log.get(key).into_iter().flatten().filter(counts);
        let last = rows().max_by_key(|c| c.id);
        match (newest, last) {
            (Some(newest), Some(last)) if last.id >= newest.id => match last.put {
                true => Verdict::Restore { id: last.id, unsure: !newest.certain && !self.log_is_complete },
                false => Verdict::Deleted,
            },
            (Some(Newest { live: false, .. }), _) => Verdict::Deleted,
            (Some(Newest { id: lost, .. }), _) => match rows().filter(|c| c.put).max_by_key(|c| c.id) {
                Some(had) => Verdict::Older { had: had.id, lost },
                None => Verdict::Lost,
            },
            (None, Some(last)) if !last.put => Verdict::Deleted,
            // What an index without gaps does not have was dropped.
            (None, Some(last)) if self.newest_is_complete && row_revision(last.id) <= compacted => Verdict::Deleted,
            (None, Some(last)) => Verdict::Restore { id: last.id, unsure: !self.log_is_complete },
            (None, None) => Verdict::Deleted,
        }
    }

    fn write(&self, pages: &Pages, draft: &Draft<'_>, repair: &mut Repair) -> Result<()> {
        // By id: that is the order of the new tree.
        let mut restored: BTreeMap<i64, &Bytes> = BTreeMap::new();
        let keys: BTreeSet<&Bytes> = self.log.keys().chain(self.newest.keys()).collect();
        for key in keys {
            match self.verdict(key) {
                Verdict::Restore { id, unsure } => {
                    restored.insert(id, key);
                    if unsure {
                        repair.unsure.push(key.clone());
                    }
                }
                Verdict::Older { had, lost } => {
                    restored.insert(had, key);
                    repair.older.push((key.clone(), row_revision(had), row_revision(lost)));
                }
                Verdict::Lost => repair.lost.push(key.clone()),
                Verdict::Deleted => {}
            }
        }
        let mut leases = self.leases.clone();
        let held = self.ephemeral.values().map(|kv| kv.lease).collect::<Vec<_>>();
        let mut held: BTreeSet<LeaseId> = held.into_iter().collect();
        for (id, key) in &restored {
            held.insert(self.write_row(pages, draft, *id, key)?);
        }
        for kv in self.ephemeral.values() {
            queries::put_ephemeral(&draft.conn, kv)?;
        }
        for id in held.into_iter().filter(|id| *id != 0) {
            leases.entry(id).or_insert_with(|| {
                repair.leases.push(id);
                (LEASE_TTL, false)
            });
        }
        for (id, (ttl, ephemeral)) in leases {
            queries::put_lease(&draft.conn, id, ttl, ephemeral)?;
        }
        self.classes.iter().try_for_each(|prefix| queries::put_class(&draft.conn, prefix))?;
        self.settings.iter().try_for_each(|(name, value)| queries::set_setting(&draft.conn, name, Some(value)))?;
        repair.keys = restored.len() + self.ephemeral.len();
        repair.revision = self.last + EPOCH;
        for (name, value) in [
            ("base", repair.revision),
            ("compacted", repair.revision),
            ("compacted_through", row_id(repair.revision, 0)),
            // An end that was not a clean one: what is ephemeral gets new revisions at the next start.
            ("reserved", repair.revision),
        ] {
            queries::set_meta(&draft.conn, name, value)?;
        }
        Ok(())
    }

    /// Returns the key's lease.
    fn write_row(&self, pages: &Pages, draft: &Draft<'_>, id: i64, key: &Bytes) -> Result<LeaseId> {
        let place = self.log.get(key).into_iter().flatten().find(|c| c.id == id).map_or(0, |c| c.page);
        let gone = || StoreError::Corrupt(format!("page {place} changed while it was read"));
        let content = pages.page(place)?.ok_or_else(gone)?;
        let row = records(pages, place, &content)?.into_iter().find(|r| r.row == Some(id)).ok_or_else(gone)?;
        use Value::{Blob, Number};
        let [_, _, Number(kind), Number(created), Number(version), Number(lease), _, _, Blob(value)] = &row.values[..]
        else {
            return Err(gone());
        };
        // Nothing before it is kept.
        let head = Head { id, prev: 0, kind: *kind, created: *created, version: *version, lease: *lease };
        let live = *kind == queries::PUT;
        queries::insert_row(&draft.conn, &head, key, value).map_err(queries::failed("write a key"))?;
        newest::set_point(&draft.conn, key, Point { id, live, lease: *lease })?;
        Ok(*lease)
    }
}

/// The name of each tree, as the first page has them.
fn tables(pages: &Pages) -> Result<BTreeMap<u32, String>> {
    let mut tables = BTreeMap::new();
    let Some(first) = pages.page(1)? else { return Ok(tables) };
    tables.insert(1, "the list of tables".to_owned());
    for record in records(pages, 1, &first)? {
        if let [_, Value::Text(name), _, Value::Number(root), _] = &record.values[..]
            && let Ok(root) = u32::try_from(*root)
        {
            tables.insert(root, name.clone());
        }
    }
    Ok(tables)
}
