//! The pages of a database as they lie on the disk, without SQLite, for a database that SQLite cannot read: the newest whole
//! image of each, and what each is for (<https://sqlite.org/fileformat2.html>).

use super::files::{self, Files};
use super::wal::{self, Log};
use crate::Result;
use isopod_sys::sqlite::{PAGE, RESERVED, has_page_sum};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// What of a page is SQLite's.
pub(crate) const USABLE: usize = PAGE - RESERVED;
/// Never used: SQLite locks the bytes there.
const LOCKED: u32 = (0x4000_0000 / PAGE + 1) as u32;
/// Pages that one page of the map tells about, and that page itself.
const MAPPED: u32 = (USABLE / 5 + 1) as u32;

pub(crate) type Page = [u8; PAGE];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Free,
    Tree,
    /// The rest of a long row.
    Overflow,
    /// Tells about other pages.
    Map,
    /// What tells about it is damaged.
    Unknown,
}

pub(crate) struct Pages {
    database: Option<(PathBuf, File)>,
    log: Option<(PathBuf, File)>,
    /// The last frame of each page that was committed and is whole.
    frames: HashMap<u32, usize>,
    /// Pages whose last committed frame is not: what is there of them is older, or nothing.
    pub outdated: BTreeSet<u32>,
    pub count: u32,
    /// What each page of the map says; damaged ones are not here.
    map: BTreeMap<u32, Box<Page>>,
}

pub(crate) fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

fn open(path: &PathBuf) -> Result<Option<(PathBuf, File)>> {
    match File::open(path) {
        Ok(file) => Ok(Some((path.clone(), file))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(files::failed("read", path, e)),
    }
}

fn read_at(file: &Option<(PathBuf, File)>, offset: u64) -> Result<Option<Box<Page>>> {
    let Some((path, file)) = file else { return Ok(None) };
    let mut page = Box::new([0; PAGE]);
    match file.read_exact_at(&mut page[..], offset) {
        Ok(()) => Ok(Some(page)),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(files::failed("read", path, e)),
    }
}

impl Pages {
    /// No process may have the database open.
    pub fn open(files: &Files, log: &Log) -> Result<Self> {
        let mut pages = Pages {
            database: open(&files.database)?,
            log: open(&files.log)?,
            frames: HashMap::new(),
            outdated: BTreeSet::new(),
            count: 0,
            map: BTreeMap::new(),
        };
        let mut committed = 0;
        for (i, frame) in log.frames.iter().take(log.readable()).enumerate() {
            if frame.proved {
                pages.frames.insert(frame.page, i);
                pages.outdated.remove(&frame.page);
                committed = if frame.commit == 0 { committed } else { frame.commit };
            } else {
                pages.outdated.insert(frame.page);
            }
        }
        // A commit that is not whole may have added pages.
        pages.count = pages.size(committed)?.max(pages.frames.keys().copied().max().unwrap_or(0));
        let maps = (0..).map(|i| 2 + i * MAPPED).take_while(|n| *n <= pages.count).map(|n| n + u32::from(n == LOCKED));
        for number in maps.collect::<Vec<_>>() {
            if let Some(page) = pages.page(number)? {
                pages.map.insert(number, page);
            }
        }
        Ok(pages)
    }

    fn size(&self, committed: u32) -> Result<u32> {
        let file = match &self.database {
            Some((path, file)) => {
                file.metadata().map_err(|e| files::failed("read", path, e))?.len().div_ceil(PAGE as u64)
            }
            None => 0,
        };
        let file = u32::try_from(file).unwrap_or(u32::MAX);
        if committed != 0 {
            return Ok(committed);
        }
        // The header has it too; a file that is shorter was cut off.
        Ok(self.page(1)?.map_or(file, |page| number(&page[..], 28)))
    }

    /// The newest image that is whole; `None`: there is none.
    pub fn page(&self, number: u32) -> Result<Option<Box<Page>>> {
        if let Some(frame) = self.frames.get(&number) {
            return read_at(&self.log, wal::page_offset(*frame));
        }
        let page = read_at(&self.database, u64::from(number.saturating_sub(1)) * PAGE as u64)?;
        Ok(page.filter(|page| has_page_sum(number, &page[..])))
    }

    pub fn purpose(&self, page: u32) -> Purpose {
        if page == 1 {
            return Purpose::Tree;
        }
        let Some((map, at)) = self.place_in_map(page) else { return Purpose::Map };
        match self.map.get(&map).map(|map| map[at]) {
            Some(2) => Purpose::Free,
            Some(1 | 5) => Purpose::Tree,
            Some(3 | 4) => Purpose::Overflow,
            _ => Purpose::Unknown,
        }
    }

    /// Which page of the map tells about `page`, and where in it; `None`: it is one itself, or the one that is never used.
    fn place_in_map(&self, page: u32) -> Option<(u32, usize)> {
        let map = (page - 2) / MAPPED * MAPPED + 2;
        let map = map + u32::from(map == LOCKED);
        if page <= map || page == LOCKED { None } else { Some((map, 5 * (page - map - 1) as usize)) }
    }

    /// The root of the tree that a page belongs to; `None`: that cannot be told.
    pub fn root(&self, page: u32) -> Option<u32> {
        self.climb(page, &[1])
    }

    /// The page of a tree that has the row of which a piece is on `page`; a page of a tree itself.
    fn owner(&self, page: u32) -> Option<u32> {
        self.climb(page, &[1, 5])
    }

    /// From a page to the one that leads to it, until one that the map calls one of `ends`.
    fn climb(&self, mut page: u32, ends: &[u8]) -> Option<u32> {
        // No tree is as deep, no row as long; damage can make a ring.
        for _ in 0..self.count {
            if page == 1 {
                return Some(1);
            }
            let (map, at) = self.place_in_map(page)?;
            let entry = self.map.get(&map)?.get(at..at + 5)?;
            match entry[0] {
                purpose if ends.contains(&purpose) => return Some(page),
                3..=5 => page = number(entry, 1),
                _ => return None,
            }
        }
        None
    }

    /// Can these pages have had rows after `last`, of the table with this root? Where that cannot be told, they can.
    pub fn may_reach_past(&self, lost: &[u32], root: u32, last: i64) -> Result<bool> {
        let (mut greatest, mut open) = (BTreeMap::from([(root, i64::MAX)]), vec![root]);
        while let Some(number) = open.pop() {
            let bound = greatest.get(&number).copied().unwrap_or(i64::MAX);
            let Some(page) = self.page(number)? else { continue };
            for (child, told) in super::records::bounded_children(number, &page) {
                if greatest.insert(child, told.unwrap_or(bound)).is_none() {
                    open.push(child);
                }
            }
        }
        let bound = |page: &u32| self.owner(*page).and_then(|owner| greatest.get(&owner)).copied();
        Ok(lost.iter().any(|page| bound(page).is_none_or(|bound| bound > last)))
    }

    /// Pages in use that are not whole.
    pub fn damaged(&self) -> Result<Vec<u32>> {
        let mut damaged = Vec::new();
        for number in 1..=self.count {
            let used = self.purpose(number) != Purpose::Free && number != LOCKED;
            if used && (self.outdated.contains(&number) || self.page(number)?.is_none()) {
                damaged.push(number);
            }
        }
        Ok(damaged)
    }

    /// The pages of the tree with this root that can be reached through whole ones, itself among them.
    pub fn tree(&self, root: u32) -> Result<BTreeSet<u32>> {
        let (mut seen, mut open) = (BTreeSet::new(), vec![root]);
        while let Some(number) = open.pop() {
            if number == 0 || number > self.count || !seen.insert(number) {
                continue;
            }
            if let Some(page) = self.page(number)? {
                open.extend(super::records::children(number, &page));
            }
        }
        Ok(seen)
    }
}
