//! A process that writes under load is killed again and again: what it was told is durable is there afterwards.

use isopod_store::sqlite::SqliteStore;
use isopod_store::*;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

const DIRECTORY: &str = "ISOPOD_STORE_CRASH_DIRECTORY";
const ROUNDS: usize = 10;
/// Kills after so many acknowledgements, and a few more that were on their way.
const ACKNOWLEDGED: [usize; 5] = [1, 37, 200, 511, 90];

fn options() -> Options {
    Options { ephemeral: vec!["e/".into()], ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<(String, Revision)> = Vec::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::writer", "--ignored", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let want = ACKNOWLEDGED[round % ACKNOWLEDGED.len()];
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut got = 0;
        while got < want {
            let line = lines.next().expect("the writer ended by itself").unwrap();
            got += usize::from(record(&line, &mut acknowledged));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had said before it died counts too.
        for line in lines.map_while(|l| l.ok()) {
            record(&line, &mut acknowledged);
        }
        verify(dir.path(), &acknowledged).await;
    }
    assert!(acknowledged.len() > 1000);
}

/// `ack KEY REVISION`. A torn last line is no acknowledgement.
fn record(line: &str, acknowledged: &mut Vec<(String, Revision)>) -> bool {
    let parts: Vec<&str> = line.split(' ').collect();
    let [_, key, rev, "."] = parts[..] else { return false };
    acknowledged.push((key.to_owned(), rev.parse().unwrap()));
    true
}

async fn verify(dir: &Path, acknowledged: &[(String, Revision)]) {
    let store = SqliteStore::open(dir, options()).unwrap();
    let (newest, _) = store.revisions().await.unwrap();
    let all = store.range(RangeRequest::new(KeyRange::prefix("d/"))).await.unwrap();
    let found: std::collections::HashMap<_, _> =
        all.kvs.iter().map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv)).collect();
    for (key, rev) in acknowledged {
        let kv = found.get(key).unwrap_or_else(|| panic!("{key} was acknowledged at {rev} and is lost"));
        assert_eq!(kv.mod_revision, *rev, "{key}");
        assert_eq!(kv.value, key.as_bytes());
        assert!(*rev <= newest);
    }
    let mut revisions: Vec<Revision> = acknowledged.iter().map(|(_, rev)| *rev).collect();
    revisions.sort_unstable();
    assert!(revisions.windows(2).all(|w| w[0] < w[1]), "a revision was handed out twice");
    // Killed as well: the next writer finds an unclean end.
    std::mem::drop(store);
    wait_until_free(dir);
}

/// A dropped store closes by itself: wait for its lock.
fn wait_until_free(dir: &Path) {
    let lock = std::fs::File::open(dir.join("lock")).unwrap();
    lock.lock().unwrap();
}

/// Writes until it is killed: 16 tasks, durable and ephemeral, a compaction now and then.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of acknowledged_writes_survive_kill_9"]
async fn writer() {
    let dir = std::env::var(DIRECTORY).expect("started by the test that kills it");
    let store = Arc::new(SqliteStore::open(&dir, options()).unwrap());
    let run = std::process::id();
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for i in 0u64.. {
                    let durable = i % 4 != 0;
                    let key = format!("{}/{run}-{task}-{i}", if durable { "d" } else { "e" });
                    let durability = if durable { Durability::Durable } else { Durability::Ephemeral };
                    let success = vec![Op::put(key.clone(), key.clone())];
                    let rev = store.txn(Txn { success, durability, ..Default::default() }).await.unwrap().revision;
                    if durable {
                        let mut out = std::io::stdout().lock();
                        writeln!(out, "ack {key} {rev} .").unwrap();
                        out.flush().unwrap();
                    }
                    if task == 0 && i % 50 == 49 {
                        store.compact(rev - 5).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}
