//! A disk that fails on demand, for tests of what is kept on it: it loses its power, runs full, breaks reads' and writes'
//! promises, and counts what is written to it.
//!
//! It is a layer between SQLite and the files (a VFS, `vfs.rs`), so that what it does is what SQLite asked for. The real
//! files hold what a running program sees; beside them the disk keeps, for each file, what has been synced and which
//! changes have not, and the same for the directory. When the power is cut, what was synced is there, and of the rest
//! whatever a drive may have got to: nothing, all, or some sectors in any order, some of them torn.

mod vfs;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a drive writes whole, as a rule; a torn write ends within one.
const SECTOR: usize = 512;

/// What goes wrong. Shares are chances in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The power goes at the change of this number from now on; 0: at the next one.
    pub power_lost_after: Option<u64>,
    /// Bytes that all files may have together; beyond it a write is told that the disk is full.
    pub capacity: Option<u64>,
    /// Writes that are told that the disk is full.
    pub full: u32,
    /// One change from now on, if it is a write, is told so.
    pub full_at: Option<u64>,
    /// Writes that fail.
    pub write_errors: u32,
    /// Syncs that fail. As Linux has it, what was to be synced counts as written afterwards though it was not, and programs
    /// still see it.
    pub sync_errors: u32,
    /// Only files whose names end so have errors on writes and syncs.
    pub only: Option<&'static str>,
    /// Syncs of these files do nothing and say that they did.
    pub lying_syncs: Option<&'static str>,
}

/// What was asked of the disk so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub writes: u64,
    pub bytes: u64,
    pub syncs: u64,
    /// Creations, deletions and truncations.
    pub others: u64,
}

/// See the module. Registered with SQLite under its name until it is dropped; the connections must be closed by then.
pub struct Disk {
    name: String,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    NoPower,
    Full,
    Io,
}

/// Numbers a file of the disk, whatever it is called by now.
type FileId = u64;

#[derive(Clone)]
enum Change {
    Write { at: usize, data: Vec<u8> },
    Truncate(usize),
}

enum NameChange {
    Create(String, FileId),
    Delete(String),
}

#[derive(Default)]
struct Content {
    synced: Vec<u8>,
    /// In the order in which they were asked for.
    unsynced: Vec<Change>,
    /// As programs see it.
    len: u64,
    failed_syncs: u64,
}

struct State {
    random: Random,
    faults: Faults,
    counts: Counts,
    power: bool,
    /// False: only counted, nothing is kept for a power cut.
    remembers: bool,
    changes: u64,
    next_id: FileId,
    names: BTreeMap<String, FileId>,
    synced_names: BTreeMap<String, FileId>,
    unsynced_names: Vec<NameChange>,
    contents: HashMap<FileId, Content>,
}

impl Disk {
    /// A disk for one directory, over SQLite's layer `base`; `None`: its default one. Everything that is there when it is first
    /// opened counts as synced.
    pub fn register(name: &str, base: Option<&str>, seed: u64) -> io::Result<Arc<Self>> {
        Self::new(name, base, seed, true)
    }

    /// As [`Disk::register`], but it only counts and fails; the power stays.
    pub fn register_counter(name: &str, base: Option<&str>) -> io::Result<Arc<Self>> {
        Self::new(name, base, 0, false)
    }

    fn new(name: &str, base: Option<&str>, seed: u64, remembers: bool) -> io::Result<Arc<Self>> {
        let state = State {
            random: Random(seed),
            faults: Faults::default(),
            counts: Counts::default(),
            power: true,
            remembers,
            changes: 0,
            next_id: 1,
            names: BTreeMap::new(),
            synced_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            contents: HashMap::new(),
        };
        let disk = Arc::new(Disk { name: name.to_owned(), state: Mutex::new(state) });
        vfs::register(&disk, base)?;
        Ok(disk)
    }

    /// Under which SQLite knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.state();
        state.changes = 0;
        state.faults = faults;
    }

    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    pub fn has_power(&self) -> bool {
        self.state().power
    }

    /// Bytes that all files have together.
    pub fn size(&self) -> u64 {
        self.state().size()
    }

    /// From now on the process that has the files open changes nothing any more, as if it had been killed.
    pub fn stop(&self) {
        self.state().power = false;
    }

    /// After [`Disk::stop`]: the files are as they were left, what was not synced included.
    pub fn go_on(&self) {
        self.state().power = true;
    }

    /// Cuts the power if it is still there, and writes to `into` what the drive holds.
    pub fn cut_power(&self, into: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.power = false;
        state.write_survivors(into)
    }

    /// Writes to `into` what the drive would hold if the power went now.
    pub fn look_ahead(&self, into: &Path) -> io::Result<()> {
        self.state().write_survivors(into)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        vfs::unregister(&self.name);
    }
}

/// How much of what was not synced a drive had written.
#[derive(Clone, Copy)]
enum Survival {
    None,
    All,
    /// Chance of a sector in a thousand.
    Some(u32),
}

impl Survival {
    fn choose(random: &mut Random) -> Self {
        match random.below(5) {
            0 => Survival::None,
            1 => Survival::All,
            2 => Survival::Some(100),
            3 => Survival::Some(500),
            _ => Survival::Some(900),
        }
    }

    fn spares(self, random: &mut Random) -> bool {
        match self {
            Survival::None => false,
            Survival::All => true,
            Survival::Some(share) => random.chance(share),
        }
    }
}

impl State {
    /// Counts one change and decides whether it goes wrong.
    fn change(&mut self) -> Result<(), Failure> {
        if self.power && self.faults.power_lost_after.is_some_and(|n| self.changes >= n) {
            self.power = false;
        }
        self.changes += 1;
        if self.power { Ok(()) } else { Err(Failure::NoPower) }
    }

    fn affected(&self, name: &str) -> bool {
        self.faults.only.is_none_or(|end| name.ends_with(end))
    }

    fn size(&self) -> u64 {
        self.names.values().filter_map(|id| self.contents.get(id)).map(|c| c.len).sum()
    }

    /// How much of a write is let through, and how it fails if that is not all.
    fn write_fault(&mut self, id: FileId, name: &str, at: u64, len: usize) -> Result<(), (usize, Failure)> {
        self.change().map_err(|e| (0, e))?;
        let Faults { capacity, full, full_at, write_errors, .. } = self.faults;
        let affected = self.affected(name);
        let grown = (at + len as u64).saturating_sub(self.contents.get(&id).map_or(0, |c| c.len));
        if grown > 0 && capacity.is_some_and(|c| self.size() + grown > c) {
            return Err((0, Failure::Full));
        }
        let failure = match () {
            () if full_at == Some(self.changes - 1) => Failure::Full,
            () if affected && self.random.chance(full) => Failure::Full,
            () if affected && self.random.chance(write_errors) => Failure::Io,
            () => return Ok(()),
        };
        // A part of it may have got through; after an error even all of it.
        let possible = if failure == Failure::Full { len } else { len + 1 };
        Err((self.random.below(possible as u64) as usize, failure))
    }

    fn wrote(&mut self, id: FileId, at: u64, data: &[u8]) {
        self.counts.writes += 1;
        self.counts.bytes += data.len() as u64;
        let remembers = self.remembers;
        let Some(content) = self.contents.get_mut(&id) else { return };
        content.len = content.len.max(at + data.len() as u64);
        if remembers {
            content.unsynced.push(Change::Write { at: at as usize, data: data.to_vec() });
        }
    }

    fn truncated(&mut self, id: FileId, len: u64) {
        self.counts.others += 1;
        let remembers = self.remembers;
        let Some(content) = self.contents.get_mut(&id) else { return };
        content.len = len;
        if remembers {
            content.unsynced.push(Change::Truncate(len as usize));
        }
    }

    fn sync(&mut self, id: FileId, name: &str) -> Result<(), Failure> {
        self.change()?;
        self.counts.syncs += 1;
        if self.faults.lying_syncs.is_some_and(|end| name.ends_with(end)) {
            return Ok(());
        }
        let fails = self.affected(name) && self.random.chance(self.faults.sync_errors);
        let State { contents, random, .. } = self;
        let Some(content) = contents.get_mut(&id) else { return Ok(()) };
        for change in std::mem::take(&mut content.unsynced) {
            match fails {
                false => change.apply(&mut content.synced),
                true => change.apply_some(&mut content.synced, Survival::Some(500), random),
            }
        }
        content.failed_syncs += u64::from(fails);
        if fails { Err(Failure::Io) } else { Ok(()) }
    }

    fn failed_syncs(&self, id: FileId) -> u64 {
        self.contents.get(&id).map_or(0, |c| c.failed_syncs)
    }

    fn sync_names(&mut self) {
        self.synced_names = self.names.clone();
        self.unsynced_names.clear();
        let State { contents, names, .. } = self;
        contents.retain(|id, _| names.values().any(|named| named == id));
    }

    fn add(&mut self, name: &str, content: Content) -> FileId {
        let id = self.next_id;
        self.next_id += 1;
        self.names.insert(name.to_owned(), id);
        self.contents.insert(id, content);
        id
    }

    /// A file that was there before the disk was.
    fn found(&mut self, name: &str, data: Vec<u8>) -> FileId {
        let len = data.len() as u64;
        let synced = if self.remembers { data } else { Vec::new() };
        let id = self.add(name, Content { synced, len, ..Content::default() });
        self.synced_names.insert(name.to_owned(), id);
        id
    }

    fn created(&mut self, name: &str) -> FileId {
        self.counts.others += 1;
        let id = self.add(name, Content::default());
        self.unsynced_names.push(NameChange::Create(name.to_owned(), id));
        id
    }

    fn deleted(&mut self, name: &str) {
        self.counts.others += 1;
        self.names.remove(name);
        self.unsynced_names.push(NameChange::Delete(name.to_owned()));
    }

    fn write_survivors(&mut self, into: &Path) -> io::Result<()> {
        let survival = Survival::choose(&mut self.random);
        for (name, id) in self.surviving_names(survival) {
            let data = self.surviving_content(id, survival);
            std::fs::write(into.join(name), data)?;
        }
        Ok(())
    }

    fn surviving_names(&mut self, survival: Survival) -> BTreeMap<String, FileId> {
        let mut names = self.synced_names.clone();
        for change in &self.unsynced_names {
            if !survival.spares(&mut self.random) {
                continue;
            }
            match change {
                NameChange::Create(name, id) => names.insert(name.clone(), *id),
                NameChange::Delete(name) => names.remove(name),
            };
        }
        names
    }

    fn surviving_content(&mut self, id: FileId, survival: Survival) -> Vec<u8> {
        let Some(content) = self.contents.get(&id) else { return Vec::new() };
        let mut data = content.synced.clone();
        for change in &content.unsynced {
            change.apply_some(&mut data, survival, &mut self.random);
        }
        data
    }
}

impl Change {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Change::Truncate(len) => data.resize(*len, 0),
            Change::Write { at, data: new } => put(data, *at, new),
        }
    }

    /// Each sector as chance will have it; one in eight of those is torn.
    fn apply_some(&self, data: &mut Vec<u8>, survival: Survival, random: &mut Random) {
        let Change::Write { at, data: new } = self else {
            if survival.spares(random) {
                self.apply(data);
            }
            return;
        };
        let mut from = 0;
        while from < new.len() {
            let to = new.len().min(from + SECTOR - (at + from) % SECTOR);
            if survival.spares(random) {
                let torn = matches!(survival, Survival::Some(_)) && random.below(8) == 0;
                let end = if torn { from + random.below((to - from) as u64) as usize } else { to };
                put(data, at + from, &new[from..end]);
            }
            from = to;
        }
    }
}

fn put(data: &mut Vec<u8>, at: usize, new: &[u8]) {
    if data.len() < at + new.len() {
        data.resize(at + new.len(), 0);
    }
    data[at..at + new.len()].copy_from_slice(new);
}

/// SplitMix64: a seed repeats what chance did.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..n`; 0 where `n` is.
    fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }

    /// True `share` times in a thousand.
    fn chance(&mut self, share: u32) -> bool {
        share > 0 && self.below(1000) < u64::from(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::{Connection, OpenFlags};

    fn open(dir: &Path, disk: &Disk) -> Connection {
        let conn = Connection::open_with_flags_and_vfs(dir.join("a.db"), OpenFlags::default(), disk.name()).unwrap();
        conn.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE IF NOT EXISTS t (x)").unwrap();
        conn
    }

    fn rows(dir: &Path) -> i64 {
        let conn = Connection::open(dir.join("a.db")).unwrap();
        conn.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap()
    }

    #[test]
    fn what_was_synced_survives_a_power_cut_and_what_was_not_need_not() {
        let mut lost = 0;
        for seed in 0..20 {
            let (dir, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let disk = Disk::register(&format!("cut-{seed}"), None, seed).unwrap();
            let conn = open(dir.path(), &disk);
            conn.execute_batch("PRAGMA synchronous = FULL; INSERT INTO t VALUES (1)").unwrap();
            conn.execute_batch("PRAGMA synchronous = OFF; INSERT INTO t VALUES (2)").unwrap();
            disk.cut_power(left.path()).unwrap();
            assert!(conn.execute_batch("INSERT INTO t VALUES (3)").is_err());
            drop(conn);
            let rows = rows(left.path());
            assert!(rows == 1 || rows == 2, "seed {seed}: {rows}");
            lost += usize::from(rows == 1);
        }
        assert!((1..20).contains(&lost), "{lost} of 20 lost");
    }

    #[test]
    fn the_power_goes_at_a_chosen_change() {
        let (dir, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let disk = Disk::register("chosen", None, 1).unwrap();
        let conn = open(dir.path(), &disk);
        disk.set_faults(Faults { power_lost_after: Some(50), ..Faults::default() });
        let done = (0..1000).take_while(|i| conn.execute("INSERT INTO t VALUES (?1)", [i]).is_ok()).count() as i64;
        assert!(done > 5 && !disk.has_power());
        drop(conn);
        disk.cut_power(left.path()).unwrap();
        assert!((done..=done + 1).contains(&rows(left.path())));
    }

    #[test]
    fn a_full_disk_says_so_and_a_failed_sync_keeps_nothing() {
        let (dir, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let disk = Disk::register("full", None, 1).unwrap();
        let conn = open(dir.path(), &disk);
        disk.set_faults(Faults { capacity: Some(disk.size() + 5000), ..Faults::default() });
        let error = (0..10).find_map(|i| conn.execute("INSERT INTO t VALUES (?1)", [i]).err()).unwrap();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull));
        disk.set_faults(Faults { sync_errors: 1000, ..Faults::default() });
        let error = conn.execute("INSERT INTO t VALUES (1)", []).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::SystemIoFailure));
        disk.set_faults(Faults::default());
        let before = disk.counts();
        conn.execute("INSERT INTO t VALUES (1)", []).unwrap();
        let after = disk.counts();
        assert!(after.bytes - before.bytes >= 4096 && after.syncs > before.syncs, "{before:?} {after:?}");
        disk.cut_power(left.path()).unwrap();
        drop(conn);
        assert!(rows(left.path()) >= 1);
    }
}
