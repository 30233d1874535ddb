//! A store whose content is known to the last byte, and copies of its files.

use isopod_store::sqlite::SqliteStore;
use isopod_store::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// So few that the index is written many times, and is behind when a process is killed.
const INDEX_ROWS: usize = 100;

pub fn open(dir: &Path) -> Result<SqliteStore> {
    // What is kept in memory would hide what the files are like.
    let options = Options { cache_bytes: 0, index_rows: INDEX_ROWS, ..Options::default() };
    SqliteStore::open(dir, Options { ephemeral: vec!["e/".into()], ..options })
}

pub async fn get(store: &SqliteStore, key: &str) -> Result<Option<KeyValue>> {
    Ok(store.range(RangeRequest::new(KeyRange::key(key.to_owned()))).await?.kvs.pop())
}

pub fn copy(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// What a key's value at a revision is: the revision is all over it, so that it says where its pages are.
fn value(key: &str, n: usize, size: usize) -> String {
    format!("<{key}@{n}>").chars().cycle().take(size).collect()
}

pub struct Ground {
    /// The store was closed.
    pub clean: TempDir,
    /// The process was killed.
    pub killed: TempDir,
    /// The whole content.
    pub newest: BTreeMap<String, KeyValue>,
    /// What stood at each revision that is kept.
    pub states: BTreeMap<Revision, BTreeMap<String, KeyValue>>,
    pub revision: Revision,
}

/// Writes `keys` keys some times over: short and long values, deletions, a compaction, a lease, a setting, ephemeral keys.
pub async fn ground(keys: usize) -> Ground {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.lease_grant(7, 1_000_000).await.unwrap();
    store.set_setting("users", Some("root".into())).await.unwrap();
    let mut states = BTreeMap::new();
    for n in 0..4 {
        let mut ops = Vec::new();
        for k in (0..keys).filter(|k| (k * 7 + n) % 3 != 0 || n == 0) {
            let key = format!("k/{k:04}");
            let size = if k % 29 == 3 { 9000 } else { 40 + k * 13 % 700 };
            if (k + n) % 11 == 5 && n > 0 {
                ops.push(Op::delete(key));
            } else {
                let lease = if k % 17 == 0 { 7 } else { 0 };
                let value = value(&key, n, size).into();
                ops.push(Op::Put {
                    key: key.into(),
                    value,
                    lease,
                    prev_kv: false,
                    ignore_value: false,
                    ignore_lease: false,
                });
            }
        }
        for part in ops.chunks(40) {
            let rev = store.txn(Txn { success: part.to_vec(), ..Default::default() }).await.unwrap().revision;
            states.insert(rev, everything(&store).await);
        }
        if n == 2 {
            let at = *states.keys().nth(states.len() / 2).unwrap();
            store.compact_physically(at).await.unwrap();
            states.retain(|rev, _| *rev >= at);
        }
    }
    for k in 0..40 {
        let success = vec![Op::put(format!("e/{k:02}"), value(&format!("e/{k:02}"), 0, 90))];
        store.txn(Txn { success, durability: Durability::Ephemeral, ..Default::default() }).await.unwrap();
    }
    let (killed, newest, revision) =
        (killed(dir.path()).await, everything(&store).await, store.revisions().await.unwrap().0);
    store.close().await.unwrap();
    Ground { clean: dir, killed, newest, states, revision }
}

async fn everything(store: &SqliteStore) -> BTreeMap<String, KeyValue> {
    let all = store.range(RangeRequest::new(KeyRange { start: "a".into(), end: "z".into() })).await.unwrap();
    all.kvs.into_iter().map(|kv| (String::from_utf8(kv.key.to_vec()).unwrap(), kv)).collect()
}

/// The files as a killed process leaves them. Checkpoints run beside the writes: wait until nothing changes.
pub async fn killed(dir: &Path) -> TempDir {
    let content =
        || ["state.db", "state.db-wal", "state.db-shm"].map(|f| std::fs::read(dir.join(f)).unwrap_or_default());
    let mut before = content();
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let copied = copy(dir);
        let after = content();
        if before == after {
            return copied;
        }
        before = after;
    }
}
