//! SQLite with checksums: a VFS that keeps one in each page of a database and proves every page that is read, and what is
//! needed of the formats of SQLite's files to do so.

mod frames;
mod vfs;

pub use frames::{FRAME, FRAME_HEADER, FrameHeader, LOG_HEADER, LogHeader, index_of_log};
pub use vfs::{Damage, checked_vfs, reserve_checksums, take_damage};

/// The size of every page. SQLite's default, and the VFS knows pages by it.
pub const PAGE: usize = 4096;
/// Bytes at the end of each page that SQLite leaves to the checksum.
pub const RESERVED: usize = 4;

/// The checksum of a page: its number is in it, so that a page that was written to a wrong place is found too.
fn page_sum(number: u32, page: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&number.to_le_bytes());
    crc.update(page);
    crc.finalize()
}

/// Does page `number`, the first is 1, carry its checksum?
pub fn has_page_sum(number: u32, page: &[u8]) -> bool {
    let (content, sum) = page.split_at(page.len().saturating_sub(RESERVED));
    sum == page_sum(number, content).to_le_bytes()
}

/// May page `number` be used? One that was never written is nothing but zeros: SQLite leaves such holes where it used a page and
/// freed it before it got to the disk. Where zeros stand for content, they make neither a page of a tree nor a row.
pub fn is_whole(number: u32, page: &[u8]) -> bool {
    has_page_sum(number, page) || page.iter().all(|b| *b == 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rusqlite::{Connection, ErrorCode, OpenFlags};
    use std::path::Path;

    fn open(path: &Path, cache: u32) -> Connection {
        open_over(None, path, cache)
    }

    fn open_over(below: Option<&str>, path: &Path, cache: u32) -> Connection {
        let vfs = checked_vfs(below).unwrap();
        let conn = Connection::open_with_flags_and_vfs(path, OpenFlags::default(), vfs).unwrap();
        reserve_checksums(&conn).unwrap();
        conn.execute_batch(&format!(
            "PRAGMA cache_size = {cache}; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
             CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, text TEXT)"
        ))
        .unwrap();
        conn
    }

    fn length(conn: &Connection) -> rusqlite::Result<i64> {
        conn.query_row("SELECT sum(length(text)) FROM t", [], |r| r.get(0))
    }

    /// A cache of a few pages: pages go to the log within the transaction, come back, and are written there again.
    #[test]
    fn a_transaction_larger_than_the_cache_reads_what_it_has_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let (writer, reader) = (open(&path, 5), open(&path, 5));
        for round in 1..4 {
            writer.execute_batch("BEGIN").unwrap();
            for text in ["a", "b", "c"] {
                for id in 0..300 {
                    let values = (id, text.repeat(200 * round));
                    writer.execute("INSERT OR REPLACE INTO t VALUES (?1, ?2)", values).unwrap();
                }
                assert_eq!(length(&writer).unwrap(), 300 * 200 * round as i64);
            }
            writer.execute_batch(if round == 2 { "ROLLBACK" } else { "COMMIT" }).unwrap();
            let kept = if round == 2 { 1 } else { round as i64 };
            assert_eq!(length(&reader).unwrap(), 300 * 200 * kept);
        }
        writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        let file = std::fs::read(&path).unwrap();
        let wrong = file.chunks(PAGE).zip(1..).filter(|(page, number)| !has_page_sum(*number, page)).count();
        assert_eq!(wrong, 0);
        assert_eq!(length(&reader).unwrap(), 300 * 600);
    }

    #[cfg(feature = "faults")]
    #[test]
    fn the_frames_of_a_transaction_go_on_together() {
        let dir = tempfile::tempdir().unwrap();
        let disk = crate::faults::Disk::register_counter("joined-frames", None).unwrap();
        let conn = open_over(Some(disk.name()), &dir.path().join("db"), 100);
        let fill = |text: &str| {
            conn.execute_batch("BEGIN").unwrap();
            for id in 0..20 {
                conn.execute("INSERT OR REPLACE INTO t VALUES (?1, ?2)", (id, text.repeat(3000))).unwrap();
            }
            conn.execute_batch("COMMIT").unwrap();
        };
        fill("a");
        let before = disk.counts();
        fill("b");
        let after = disk.counts();
        let frames = (after.bytes - before.bytes) / FRAME as u64;
        assert!((20..31).contains(&frames), "{frames} frames");
        assert_eq!(after.writes - before.writes, 1);
    }

    #[test]
    fn a_log_is_longer_than_what_is_written_to_it_and_a_crash_leaves_its_commits() {
        let dir = tempfile::tempdir().unwrap();
        let (path, log) = (dir.path().join("db"), dir.path().join("db-wal"));
        let conn = open(&path, 100);
        let mut lengths = Vec::new();
        for id in 0..300 {
            conn.execute("INSERT INTO t VALUES (?1, ?2)", (id, "a".repeat(200))).unwrap();
            lengths.push(std::fs::metadata(&log).unwrap().len());
        }
        assert!(lengths.iter().all(|n| n % (256 << 10) == 0), "{lengths:?}");
        lengths.dedup();
        assert!((4..20).contains(&lengths.len()), "{lengths:?}");
        // What a process that is killed leaves behind.
        let crashed = tempfile::tempdir().unwrap();
        for (from, to) in [(&path, "db"), (&log, "db-wal")] {
            std::fs::copy(from, crashed.path().join(to)).unwrap();
        }
        let conn = open(&crashed.path().join("db"), 100);
        assert_eq!(length(&conn).unwrap(), 300 * 200);
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        assert_eq!(std::fs::metadata(crashed.path().join("db-wal")).unwrap().len(), 0);
        conn.execute("INSERT INTO t VALUES (1000, 'a')", []).unwrap();
        assert_eq!(std::fs::metadata(crashed.path().join("db-wal")).unwrap().len(), 256 << 10);
    }

    #[test]
    fn a_page_that_was_changed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let conn = open(&path, 100);
        for id in 0..300 {
            conn.execute("INSERT INTO t VALUES (?1, ?2)", (id, "a".repeat(200))).unwrap();
        }
        drop(conn);
        let mut file = std::fs::read(&path).unwrap();
        file[10 * PAGE + 2000] ^= 8;
        std::fs::write(&path, &file).unwrap();
        let conn = open(&path, 100);
        let error = length(&conn).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure));
        assert_eq!(take_damage(), Some(Damage { page: 11, in_log: false }));
        assert_eq!(take_damage(), None, "told once");
    }
}
