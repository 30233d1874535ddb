//! The write-ahead log: the torn end of a commit that nobody was told of is no damage, everything else is.

use crate::ground::{get, killed, open};
use isopod_store::sqlite::{check, repair};
use isopod_store::*;
use std::path::Path;
use tempfile::TempDir;

const FRAME: usize = 4096 + 24;

/// Three commits, one after another, in a log that is not yet emptied into the database. Killed.
async fn three_commits() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    for key in ["a", "b", "c"] {
        let success = vec![Op::put(key, key.repeat(12_000))];
        store.txn(Txn { success, ..Default::default() }).await.unwrap();
    }
    let killed = killed(dir.path()).await;
    store.close().await.unwrap();
    killed
}

/// Without what the kernel had not yet written to the disk.
fn cut_power(dir: &Path) {
    std::fs::remove_file(dir.join("state.db-shm")).unwrap();
}

/// As a power cut that comes when the kernel has written everything.
fn start_the_machine_anew(dir: &Path) {
    std::fs::write(dir.join("lock"), "1\nof an earlier boot\n").unwrap();
}

fn flip(dir: &Path, file: &str, at: usize) {
    let path = dir.join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// The frames that end a transaction.
fn commits(dir: &Path) -> Vec<usize> {
    let log = std::fs::read(dir.join("state.db-wal")).unwrap();
    let frames = log[32..].chunks(FRAME).enumerate();
    frames.filter(|(_, f)| f[4..8] != [0; 4]).map(|(i, _)| i).collect()
}

/// The frames that hold most of a key's value, which is the key over and over.
fn frames_of(dir: &Path, key: &str) -> Vec<usize> {
    let log = std::fs::read(dir.join("state.db-wal")).unwrap();
    let mark = key.repeat(3000);
    let frames = log[32..].chunks(FRAME).enumerate();
    frames.filter(|(_, f)| f.windows(3000).any(|w| w == mark.as_bytes())).map(|(i, _)| i).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_end_is_no_damage() {
    let dir = three_commits().await;
    cut_power(dir.path());
    flip(dir.path(), "state.db-wal", 32 + frames_of(dir.path(), "c")[0] * FRAME + 500);
    assert_eq!(check(dir.path()).unwrap(), Vec::<String>::new());
    let store = open(dir.path()).unwrap();
    assert!(get(&store, "b").await.unwrap().is_some());
    assert_eq!(get(&store, "c").await.unwrap(), None, "its commit was not whole");
    store.close().await.unwrap();
}

/// A transaction of several frames was given up, as on a full disk. A shorter one began in its place, and of that the power cut let
/// through the first sector, in which a header only begins: it says that a commit ends here, and has the other one's checksum.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_transaction_that_was_given_up_is_no_damage() {
    let dir = three_commits().await;
    cut_power(dir.path());
    let commits = commits(dir.path());
    let [.., before, last] = commits[..] else { panic!("{commits:?}") };
    let begins = before + 1;
    assert!(begins < last, "{commits:?}");
    let path = dir.path().join("state.db-wal");
    let mut log = std::fs::read(&path).unwrap();
    log[32 + begins * FRAME..][..8].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 20]);
    std::fs::write(&path, log).unwrap();
    assert_eq!(check(dir.path()).unwrap(), Vec::<String>::new());
    let store = open(dir.path()).unwrap();
    assert!(get(&store, "b").await.unwrap().is_some());
    assert_eq!(get(&store, "c").await.unwrap(), None);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_before_another_commit_is_found_after_a_power_cut() {
    let dir = three_commits().await;
    cut_power(dir.path());
    let frame = frames_of(dir.path(), "b")[0];
    assert!(!commits(dir.path()).contains(&frame));
    flip(dir.path(), "state.db-wal", 32 + frame * FRAME + 500);
    refused_and_repaired(dir.path(), "b").await;
}

/// Where the index came to the disk, it tells what was committed, and no frame is doubtful.
#[tokio::test(flavor = "multi_thread")]
async fn damage_to_the_end_of_a_commit_is_found_after_a_power_cut_by_the_index() {
    for key in ["b", "c"] {
        let dir = three_commits().await;
        start_the_machine_anew(dir.path());
        let frame = *frames_of(dir.path(), key).last().unwrap();
        assert!(commits(dir.path()).contains(&frame));
        flip(dir.path(), "state.db-wal", 32 + frame * FRAME + 500);
        refused_and_repaired(dir.path(), key).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_the_last_commit_is_found_after_a_kill() {
    let dir = three_commits().await;
    flip(dir.path(), "state.db-wal", 32 + frames_of(dir.path(), "c")[0] * FRAME + 500);
    refused_and_repaired(dir.path(), "c").await;
}

/// The header begins a new round of the log, when all of the last one is in the database. A power cut may tear it.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_header_over_what_was_copied_is_no_damage() {
    const SALT: usize = 20;
    let dir = three_commits().await;
    cut_power(dir.path());
    flip(dir.path(), "state.db-wal", SALT);
    let error = open(dir.path()).err().unwrap();
    assert!(matches!(error, StoreError::Corrupt(_)), "before it is copied: {error}");
    flip(dir.path(), "state.db-wal", SALT);
    copy_log(dir.path());
    flip(dir.path(), "state.db-wal", SALT);
    assert_eq!(check(dir.path()).unwrap(), Vec::<String>::new());
    let store = open(dir.path()).unwrap();
    for key in ["a", "b", "c"] {
        assert!(get(&store, key).await.unwrap().is_some(), "{key}");
    }
    store.close().await.unwrap();
}

/// A checkpoint, which leaves the log as it is.
fn copy_log(dir: &Path) {
    let vfs = isopod_sys::sqlite::checked_vfs(None).unwrap();
    let flags = rusqlite::OpenFlags::default();
    let conn = rusqlite::Connection::open_with_flags_and_vfs(dir.join("state.db"), flags, vfs).unwrap();
    conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
    drop(conn);
    cut_power(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_gone_is_found_after_a_kill() {
    let dir = three_commits().await;
    std::fs::write(dir.path().join("state.db-wal"), b"").unwrap();
    let error = open(dir.path()).err().unwrap();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
}

async fn refused_and_repaired(dir: &Path, lost: &str) {
    let error = open(dir).err().unwrap().to_string();
    assert!(error.contains("write-ahead log") && error.contains("isopod datastore repair"), "{error}");
    let again = open(dir).err().unwrap().to_string();
    assert_eq!(error, again, "looking at it changes nothing");
    let repair = repair(dir).unwrap().unwrap();
    assert!(repair.frames > 0);
    let store = open(dir).unwrap();
    for key in ["a", "b", "c"] {
        assert_eq!(get(&store, key).await.unwrap().is_none(), key == lost, "{key}");
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_the_log_of_a_running_store_is_not_served_nor_carried_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    for key in ["a", "b"] {
        let success = vec![Op::put(key, key.repeat(6000))];
        store.txn(Txn { success, ..Default::default() }).await.unwrap();
    }
    flip(dir.path(), "state.db-wal", 32 + frames_of(dir.path(), "a")[0] * FRAME + 500);
    let error = get(&store, "a").await.err().unwrap().to_string();
    assert!(error.contains("page") && error.contains("write-ahead log"), "{error}");
    assert!(get(&store, "b").await.unwrap().is_some(), "the rest is served");
    assert_eq!(store.alarms().await.unwrap(), [Alarm::Corrupt]);
    let put = store.txn(Txn { success: vec![Op::put("d", "1")], ..Default::default() }).await;
    assert!(matches!(put, Err(StoreError::Corrupt(_))));
    let disarmed = store.set_alarm(Alarm::Corrupt, false).await;
    assert!(matches!(disarmed, Err(StoreError::Corrupt(_))), "it is still damaged");
    store.close().await.unwrap();
    assert!(!check(dir.path()).unwrap().is_empty(), "closing has not made it look whole");
    assert!(dir.path().join("state.db-wal").exists());
}
