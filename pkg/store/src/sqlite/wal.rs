//! Looks at a write-ahead log before SQLite does. SQLite's recovery ends at the first frame that does not fit and drops what
//! follows without a word: right for a commit that a power cut tore, wrong for acknowledged ones behind a damaged frame.
//!
//! Every commit is synced before the next one is written, so a frame that does not fit is damage, and not the torn end of the
//! log, if frames of a later transaction stand behind it, or if the index beside the log says that it had been committed: the
//! index is written after the sync. Only after a power cut, damage to the last commit looks as a torn one does, and so does
//! damage to the frame that ends the one before.
//!
//! A header tells nothing by itself. Behind the end of the log lie frames of transactions that were given up, and of earlier
//! rounds; a transaction that the power cut short went over some of their sectors, so that a header may say that a commit ends
//! there in the words of one transaction, and have the checksum that the next frame of another one fits to.
//!
//! A power cut may also tear the header that begins a new round of the log, over the frames of the last one. These have all
//! been copied into the database by then, and nothing is lost with them.

use super::files::{self, Files};
use crate::Result;
use isopod_sys::sqlite::{FRAME, FRAME_HEADER, FrameHeader, LOG_HEADER, LogHeader, PAGE, RESERVED, index_of_log};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;

pub(crate) struct Frame {
    pub page: u32,
    /// Pages of the database after it, if it ends a transaction; else 0.
    pub commit: u32,
    /// Its content and its place are as they were written.
    pub proved: bool,
}

/// A log as it lies on the disk.
#[derive(Default)]
pub(crate) struct Log {
    pub frames: Vec<Frame>,
    /// So many frames SQLite will take: up to the last commit before one that does not fit.
    pub usable: usize,
    /// So many frames were committed for certain.
    pub committed: usize,
    /// The last frame of the last commit that stands there whole, and more than that is not known to be missing.
    last: usize,
}

impl Log {
    /// Are acknowledged commits lost if SQLite opens this?
    pub fn is_damaged(&self) -> bool {
        self.committed > self.usable
    }

    /// So many frames say what the database is: those that SQLite will take, or where that are too few, all there is.
    pub fn readable(&self) -> usize {
        if self.is_damaged() { self.committed.max(self.last) } else { self.usable }
    }

    /// Of a log that is damaged.
    pub fn describe(&self) -> String {
        format!(
            "frame {} of the write-ahead log does not match its checksum, and {} committed frames from there on cannot be read",
            self.frames.iter().position(|f| !f.proved).map_or(self.frames.len(), |i| i + 1).min(self.usable + 1).max(1),
            self.committed - self.usable
        )
    }
}

/// Where a page of frame `i` lies in the log.
pub(crate) fn page_offset(i: usize) -> u64 {
    (LOG_HEADER + i * FRAME + FRAME_HEADER) as u64
}

/// `same_boot`: the index beside the log is as the last process left it, to the last byte.
pub(crate) fn examine(files: &Files, same_boot: bool) -> Result<Log> {
    let log = look(files, same_boot)?;
    let copied = log.is_damaged() && is_copied(files, &log).unwrap_or(false);
    Ok(if copied { Log::default() } else { log })
}

fn look(files: &Files, same_boot: bool) -> Result<Log> {
    let mut index = Vec::new();
    if let Ok(file) = File::open(&files.index) {
        let _ = file.take(48).read_to_end(&mut index);
    }
    let index = index_of_log(&index);
    let read = |file| read(BufReader::with_capacity(1 << 18, file), index.map(|(salts, _)| salts));
    let mut log = match File::open(&files.log) {
        Ok(file) => read(file).map_err(|e| files::failed("read", &files.log, e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Scan::default(),
        Err(e) => return Err(files::failed("read", &files.log, e)),
    };
    let Some((salts, committed)) = index else { return Ok(log.log) };
    let same_round = log.salts == Some(salts);
    if same_boot {
        // It tells exactly. Where the round is another, what was committed in it is not in the log.
        (log.log.committed, log.log.last) = (committed as usize, committed as usize);
        log.log.usable = if same_round { log.log.usable } else { 0 };
    } else if same_round {
        // Some of what it was told after that may not have come to the disk.
        log.log.committed = log.log.committed.max(committed as usize);
    }
    Ok(log.log)
}

/// Are all of the log's commits in the database too? Only of a log of which SQLite takes nothing: of another one it would take
/// older pages than the database has.
fn is_copied(files: &Files, log: &Log) -> std::io::Result<bool> {
    let through = log.committed.max(log.last);
    let Some(frames) = log.frames.get(..through).filter(|_| log.usable == 0) else { return Ok(false) };
    let size = frames.last().map_or(0, |f| f.commit);
    let newest: BTreeMap<u32, usize> = frames.iter().enumerate().map(|(i, f)| (f.page, i)).collect();
    let (database, wal) = (File::open(&files.database)?, File::open(&files.log)?);
    let (mut copied, mut logged) = ([0u8; PAGE], [0u8; PAGE]);
    for (page, frame) in newest.range(1..=size) {
        database.read_exact_at(&mut copied, (u64::from(*page) - 1) * PAGE as u64)?;
        wal.read_exact_at(&mut logged, page_offset(*frame))?;
        // The database's pages end with their checksums.
        if copied[..PAGE - RESERVED] != logged[..PAGE - RESERVED] {
            return Ok(false);
        }
    }
    Ok(size > 0)
}

#[derive(Default)]
struct Scan {
    log: Log,
    salts: Option<[u8; 8]>,
}

/// `expected`: the salts in the index beside the log.
fn read(mut file: impl Read, expected: Option<[u8; 8]>) -> std::io::Result<Scan> {
    let mut bytes = [0u8; LOG_HEADER];
    if !filled(&mut file, &mut bytes)? {
        return Ok(Scan::default());
    }
    let header = LogHeader::parse(&bytes).filter(|h| h.page_size as usize == PAGE);
    let mut before = header.map(|h| h.sum);
    let mut scan = Scan { salts: header.map(|h| h.salts), ..Scan::default() };
    let mut proof = header;
    let mut frame = vec![0u8; FRAME];
    let (mut all_proved, mut run) = (header.is_some(), Run::default());
    while filled(&mut file, &mut frame)? {
        let (head, page) = frame.split_at(FRAME_HEADER);
        let Some(head) = head.first_chunk().map(FrameHeader::parse) else { break };
        // Without a header, frames that follow one another prove themselves by the salts in the index, or in the first one.
        let proof = proof.get_or_insert_with(|| LogHeader::assumed(expected.unwrap_or(head.salts)));
        let proved = before.is_some_and(|before| proof.proves(before, &head, page));
        before = Some(head.sum);
        scan.log.frames.push(Frame { page: head.page, commit: head.commit, proved });
        let through = scan.log.frames.len();
        all_proved &= proved;
        if all_proved && head.commit != 0 {
            scan.log.usable = through;
        }
        if proved && head.commit != 0 {
            scan.log.last = through;
        }
        if let Some(committed) = run.next(proved, head.commit != 0, through) {
            scan.log.committed = committed;
        }
    }
    scan.log.committed = scan.log.committed.max(scan.log.usable);
    Ok(scan)
}

/// Frames that fit to one another without a gap: they are of transactions that followed one another.
#[derive(Default)]
struct Run {
    commit: Option<usize>,
}

impl Run {
    /// Through which frame all is known to be committed: a commit behind which another transaction begins.
    fn next(&mut self, proved: bool, commit: bool, through: usize) -> Option<usize> {
        if !proved {
            self.commit = None;
            return None;
        }
        let known = self.commit;
        if commit {
            self.commit = Some(through);
        }
        known
    }
}

/// False: the file ends before.
fn filled(file: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}
