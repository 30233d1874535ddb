//! Archives: what comes out is what went in, from every backend; what was cut or changed is refused; and a store made of one
//! goes on where no revision was handed out before.

#![allow(clippy::unwrap_used)]

#[path = "conformance/postgres/server.rs"]
mod server;

use isopod_base::clock::Clock;
use isopod_store::archive::{self, Archive, ArchiveError, ArchivedFile, Content};
use isopod_store::memory::MemoryStore;
use isopod_store::postgres::{Draft, Existing, PostgresStore};
use isopod_store::sqlite::{self, SqliteStore};
use isopod_store::*;
use jiff::Timestamp;
use server::Cluster;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

fn put(key: &str, value: impl Into<bytes::Bytes>, lease: LeaseId) -> Op {
    let (key, value) = (key.to_owned().into(), value.into());
    Op::Put { key, value, lease, prev_kv: false, ignore_value: false, ignore_lease: false }
}

async fn write(store: &dyn Store, ops: Vec<Op>, durability: Durability) -> Revision {
    store.txn(Txn { success: ops, durability, ..Default::default() }).await.unwrap().revision
}

async fn durable(store: &dyn Store, ops: Vec<Op>) -> Revision {
    write(store, ops, Durability::Durable).await
}

fn noise(n: usize) -> Vec<u8> {
    (0..n).map(|_| rand::random()).collect()
}

/// History, deletions, transactions, a compaction, leases, settings, alarms.
async fn fill(store: &dyn Store, bytes: usize) {
    store.lease_grant(7, 600).await.unwrap();
    store.lease_grant(-8, 60).await.unwrap();
    for i in 0..60 {
        durable(store, vec![put(&format!("k/{:02}", i % 20), noise(bytes), 0), put(&format!("once/{i}"), "x", 0)])
            .await;
        if i % 7 == 0 {
            durable(store, vec![Op::delete(format!("k/{:02}", i % 20))]).await;
        }
    }
    durable(store, vec![put("leased", "1", 7), put("empty", "", 0)]).await;
    store.compact_physically(60).await.unwrap();
    store.set_setting("users", Some("everyone".into())).await.unwrap();
    store.set_setting("zero", Some(bytes::Bytes::new())).await.unwrap();
    store.set_alarm(Alarm::NoSpace, true).await.unwrap();
}

async fn archived(content: Content, files: &[ArchivedFile]) -> Vec<u8> {
    let files = files.to_vec();
    let written = tokio::task::spawn_blocking(move || archive::write(Vec::new(), content, &files, "a test", "tests 1"));
    written.await.unwrap().unwrap().0
}

async fn seeded(dir: &Path, content: Content) -> Result<()> {
    let dir = dir.to_owned();
    tokio::task::spawn_blocking(move || sqlite::seed(&dir, content)).await.unwrap()
}

async fn opened(file: Vec<u8>, dir: &Path, options: Options) -> SqliteStore {
    let content = Archive::open(std::io::Cursor::new(file)).unwrap().into_content().unwrap();
    seeded(dir, content).await.unwrap();
    SqliteStore::open(dir, options).unwrap()
}

/// Everything that can be asked of a store.
async fn assert_same(a: &dyn Store, b: &dyn Store) {
    assert_eq!(a.hash(0).await.unwrap(), b.hash(0).await.unwrap());
    assert_eq!(a.revisions().await.unwrap(), b.revisions().await.unwrap());
    assert_eq!(a.leases().await.unwrap(), b.leases().await.unwrap());
    for id in a.leases().await.unwrap() {
        let [one, other] = [a.lease_status(id).await.unwrap(), b.lease_status(id).await.unwrap()];
        assert_eq!((one.granted_ttl, one.keys), (other.granted_ttl, other.keys), "lease {id}");
    }
    assert_eq!(a.settings().await.unwrap(), b.settings().await.unwrap());
    assert_eq!(a.alarms().await.unwrap(), b.alarms().await.unwrap());
    let (newest, compacted) = a.revisions().await.unwrap();
    for revision in [compacted, (newest + compacted) / 2, newest] {
        let everything = RangeRequest { revision, ..RangeRequest::new(KeyRange::prefix("")) };
        let [one, other] = [a.range(everything.clone()).await.unwrap(), b.range(everything).await.unwrap()];
        assert_eq!((one.kvs, one.count), (other.kvs, other.count), "at {revision}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_backend_comes_back_as_it_was() {
    let [first, second, third] = [0; 3].map(|_| tempfile::tempdir().unwrap());
    let memory = MemoryStore::default();
    fill(&memory, 40_000).await;
    let file = archived(Content::of(&memory).await.unwrap(), &[]).await;
    assert!(file.len() > 300_000, "several blocks: {}", file.len());
    let restored = opened(file, first.path(), Options::default()).await;
    assert_same(&memory, &restored).await;

    // From the open SQLite store, and from beside it, as another process would.
    durable(&restored, vec![put("more", "1", 7), Op::delete("empty")]).await;
    let content = Content::of(&restored).await.unwrap();
    let keys = content.keys;
    let again = opened(archived(content, &[]).await, second.path(), Options::default()).await;
    assert_same(&restored, &again).await;
    let beside = sqlite::content(first.path()).unwrap();
    assert_eq!((beside.keys, beside.reserved), (keys, 0));
    let beside = opened(archived(beside, &[]).await, third.path(), Options::default()).await;
    assert_same(&restored, &beside).await;
    // The restored ones are stores like any other.
    let next = durable(&beside, vec![put("k/00", "new", 0)]).await;
    assert_eq!(next, restored.revisions().await.unwrap().0 + 1);
    for store in [&restored, &again, &beside] {
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn header_and_files() {
    let files = [("service.key", 0o600, "secret"), ("ca.crt", 0o644, "")];
    let files = files.map(|(n, mode, c)| ArchivedFile { name: n.into(), mode, content: c.into() });
    let store = MemoryStore::default();
    let revision = durable(&store, vec![put("a", "1", 0)]).await;
    let file = archived(Content::of(&store).await.unwrap(), &files).await;
    let start = String::from_utf8_lossy(&file[..120]).into_owned();
    assert!(start.starts_with("ISOPOD BACKUP 1\n") && start.contains("revision: 2\n"), "people can read it: {start}");
    let mut archive = Archive::open(&file[..]).unwrap();
    assert_eq!(archive.files, files);
    let header = archive.header.clone();
    assert_eq!((header.revision, header.keys, header.source.as_str()), (revision, 1, "a test"));
    assert!((Timestamp::now() - header.created).get_seconds() < 60, "{}", header.created);
    assert_eq!(archive.entries().unwrap().unwrap().len(), 1);
    assert!(archive.entries().unwrap().is_none());
}

/// Reads all of it, as a restore does.
fn read(file: &[u8]) -> Result<usize, ArchiveError> {
    let mut archive = Archive::open(file)?;
    let mut count = 0;
    while let Some(entries) = archive.entries()? {
        count += entries.len();
    }
    Ok(count)
}

/// Where the blocks end, the format's line and the whole file among them.
fn boundaries(file: &[u8]) -> Vec<usize> {
    let mut ends = vec![file.iter().position(|b| *b == b'\n').unwrap() + 1];
    while let Some(head) = file.get(ends[ends.len() - 1]..).and_then(|rest| rest.get(..9)) {
        let stored = u32::from_le_bytes(head[1..5].try_into().unwrap()) as usize;
        ends.push(ends[ends.len() - 1] + 9 + stored + 16);
    }
    assert_eq!(ends.last(), Some(&file.len()));
    ends
}

#[tokio::test]
async fn a_cut_archive_is_refused() {
    let store = MemoryStore::default();
    fill(&store, 40_000).await;
    let content = Content::of(&store).await.unwrap();
    let file = archived(content, &[ArchivedFile { name: "f".into(), mode: 0o600, content: "x".into() }]).await;
    assert!(read(&file).unwrap() > 80);
    let ends = boundaries(&file);
    assert!(ends.len() > 6, "{ends:?}");
    for (block, end) in ends.iter().enumerate() {
        for cut in [end.wrapping_sub(1), *end, end + 1, end + 5, end + 12].into_iter().filter(|c| *c < file.len()) {
            let e = read(&file[..cut]).unwrap_err();
            assert!(matches!(e, ArchiveError::Truncated { .. }), "cut at {cut}, after block {block}: {e}");
        }
    }
    assert!(matches!(read(b""), Err(ArchiveError::Foreign)));
    assert!(matches!(read(&[&file[..], b"x"].concat()), Err(ArchiveError::Trailing)));
    // A block left out, two blocks in each other's place.
    let [a, b, c] = [ends[3], ends[4], ends[5]];
    let without = [&file[..a], &file[b..]].concat();
    let swapped = [&file[..a], &file[b..c], &file[a..b], &file[c..]].concat();
    for wrong in [without, swapped] {
        assert!(matches!(read(&wrong), Err(ArchiveError::Damaged { .. })));
    }
}

#[tokio::test]
async fn a_changed_archive_is_refused() {
    let store = MemoryStore::default();
    store.lease_grant(5, 60).await.unwrap();
    durable(&store, vec![put("a", "some value", 5), put("b", "", 0)]).await;
    durable(&store, vec![Op::delete("a")]).await;
    let mut file = archived(Content::of(&store).await.unwrap(), &[]).await;
    assert_eq!(read(&file).unwrap(), 3);
    for bit in 0..file.len() * 8 {
        file[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&file).is_err(), "bit {bit} of {} was flipped", file.len() * 8);
        file[bit / 8] ^= 1 << (bit % 8);
    }
    let newer = [b"ISOPOD BACKUP 2\n", &file[16..]].concat();
    let e = read(&newer).unwrap_err().to_string();
    assert!(e.contains("format 2") && e.contains("newer"), "{e}");
    assert!(matches!(read(b"SQLite format 3\0 and more"), Err(ArchiveError::Foreign)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_archive_makes_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = MemoryStore::default();
    fill(&store, 40_000).await;
    let mut file = archived(Content::of(&store).await.unwrap(), &[]).await;
    let middle = file.len() / 4 * 3;
    file[middle] ^= 1;
    let content = Archive::open(std::io::Cursor::new(file)).unwrap().into_content().unwrap();
    let e = seeded(dir.path(), content).await.unwrap_err();
    let text = isopod_base::errors::Chain(&e).to_string();
    assert!(text.starts_with("cannot read the backup: the backup's block ") && text.contains("damaged"), "{text}");
    assert!(!sqlite::exists(dir.path()), "there is none of a part");
    // What was begun is not taken for a database; where there is one, none is made.
    seeded(dir.path(), Content::of(&store).await.unwrap()).await.unwrap();
    let e = seeded(dir.path(), Content::of(&store).await.unwrap()).await.unwrap_err();
    assert!(isopod_base::errors::Chain(&e).to_string().contains("exists"), "{e}");
}

fn ephemeral(clock: &Clock) -> Options {
    let flush_interval = Duration::from_secs(60);
    Options { ephemeral: vec!["e/".into()], clock: clock.clone(), flush_interval, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_epoch_begins_where_nobody_was() {
    let [dir, place, other] = [0; 3].map(|_| tempfile::tempdir().unwrap());
    let clock = Clock::fake(Timestamp::UNIX_EPOCH);
    let store = SqliteStore::open(dir.path(), ephemeral(&clock)).unwrap();
    durable(&store, vec![put("d/1", "1", 0)]).await;
    write(&store, vec![put("e/1", "flushed", 0), put("e/2", "flushed", 0)], Durability::Ephemeral).await;
    store.close().await.unwrap();
    let store = SqliteStore::open(dir.path(), ephemeral(&clock)).unwrap();
    write(&store, vec![put("e/1", "in memory", 0)], Durability::Ephemeral).await;
    durable(&store, vec![put("d/2", "2", 0)]).await;
    let mut content = sqlite::content(dir.path()).unwrap();
    // What the server does after the backup was made.
    let mut handed_out = 0;
    for i in 0..40 {
        handed_out = write(&store, vec![put("e/1", i.to_string(), 0)], Durability::Ephemeral).await;
    }
    handed_out = handed_out.max(durable(&store, vec![put("d/1", "lost", 0)]).await);

    assert!(content.reserved >= handed_out && content.keys == 4);
    let kept = archived(content, &[]).await;
    let read_again = || Archive::open(std::io::Cursor::new(kept.clone())).unwrap().into_content().unwrap();
    content = read_again();
    content.begin_epoch(0);
    let newest = content.export.revision;
    assert!(newest > handed_out, "also without a bump: {newest}");
    seeded(other.path(), content).await.unwrap();
    content = read_again();
    content.begin_epoch(1_000_000_000);
    assert_eq!(content.export.revision, content.export.compacted);
    seeded(place.path(), content).await.unwrap();

    for (place, least) in [(&place, 1_000_000_000), (&other, newest)] {
        let restored = SqliteStore::open(place.path(), ephemeral(&clock)).unwrap();
        let (revision, compacted) = restored.revisions().await.unwrap();
        assert!(revision > least && compacted >= least, "{revision}, {compacted}");
        let all = restored.range(RangeRequest::new(KeyRange::prefix(""))).await.unwrap();
        let found: BTreeMap<&[u8], (&[u8], bool)> =
            all.kvs.iter().map(|kv| (&kv.key[..], (&kv.value[..], kv.mod_revision > handed_out))).collect();
        let flushed: (&[u8], bool) = (b"flushed", true);
        let want: [(&[u8], (&[u8], bool)); 4] =
            [(b"d/1", (b"1", false)), (b"d/2", (b"2", false)), (b"e/1", flushed), (b"e/2", flushed)];
        assert_eq!(found, BTreeMap::from(want), "the durable ones as they were, the others with new revisions");
        for start in [2, handed_out, handed_out + 1] {
            for range in [KeyRange::prefix("d/"), KeyRange::prefix("e/")] {
                let watch = restored.watch(WatchRequest { range, start }).await;
                assert!(
                    matches!(watch, Err(StoreError::Compacted { .. })),
                    "a watch from {start} has missed something"
                );
            }
        }
        assert_eq!(durable(&restored, vec![put("d/3", "3", 0)]).await, revision + 1);
        restored.close().await.unwrap();
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_one_revision_keep_their_places() {
    // Two restarts that were no clean ends: every ephemeral key gets one revision, each time.
    let [dir, place] = [0; 2].map(|_| tempfile::tempdir().unwrap());
    let clock = Clock::fake(Timestamp::UNIX_EPOCH);
    let store = SqliteStore::open(dir.path(), ephemeral(&clock)).unwrap();
    durable(&store, vec![put("d", "1", 0)]).await;
    let many = (0..30).map(|i| put(&format!("e/{i:02}"), "x", 0)).collect();
    write(&store, many, Durability::Ephemeral).await;
    store.close().await.unwrap();
    // The class has changed and changed back.
    for options in [Options::default(), ephemeral(&clock)] {
        SqliteStore::open(dir.path(), options).unwrap().close().await.unwrap();
    }
    seeded(place.path(), sqlite::content(dir.path()).unwrap()).await.unwrap();
    let restored = SqliteStore::open(place.path(), Options::default()).unwrap();
    assert_eq!(restored.range(RangeRequest::new(KeyRange::prefix("e/"))).await.unwrap().count, 30);
    restored.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_moment_stays_whatever_the_server_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(dir.path(), Options::default()).unwrap();
    for i in 0..40 {
        durable(&store, (0..100).map(|k| put(&format!("k/{k:03}"), format!("{i}"), 0)).collect()).await;
    }
    let mut content = sqlite::content(dir.path()).unwrap();
    let mut entries = content.export.entries.recv().await.unwrap().unwrap();
    // The reader waits in the middle while everything is overwritten, dropped, moved and opened anew.
    durable(&store, (0..100).map(|k| put(&format!("k/{k:03}"), "later", 0)).collect()).await;
    store.compact_physically(42).await.unwrap();
    store.close().await.unwrap();
    store = SqliteStore::open(dir.path(), Options::default()).unwrap();
    durable(&store, vec![Op::Delete { range: KeyRange::prefix("k/"), prev_kv: false }]).await;
    while let Some(part) = content.export.entries.recv().await {
        entries.extend(part.unwrap());
    }
    assert_eq!((content.export.revision, content.keys, entries.len()), (41, 100, 4000));
    let mut places = entries.iter().map(|e| (e.revision, e.sub));
    assert!(places.clone().eq((2..=41).flat_map(|rev| (0..100).map(move |sub| (rev, sub)))), "{:?}", places.next());
    assert_eq!(store.range(RangeRequest::new(KeyRange::prefix("k/"))).await.unwrap().count, 0);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_content_where_there_is_no_database() {
    let dir = tempfile::tempdir().unwrap();
    assert!(sqlite::content(dir.path()).is_err() && !sqlite::exists(dir.path()));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "looking makes nothing");
    let conn = rusqlite::Connection::open(dir.path().join("state.db")).unwrap();
    conn.execute_batch("CREATE TABLE kine (id INTEGER)").unwrap();
    let e = sqlite::content(dir.path()).err().unwrap();
    assert!(matches!(&e, StoreError::Format { found, .. } if found == "of another program"), "{e}");
}

fn unpacked(file: &[u8]) -> Content {
    Archive::open(std::io::Cursor::new(file.to_vec())).unwrap().into_content().unwrap()
}

async fn draft(cluster: &Cluster, existing: Existing) -> Result<Option<Draft>> {
    Draft::begin(&cluster.options("restored"), existing).await
}

async fn postgres(cluster: &Cluster) -> PostgresStore {
    PostgresStore::open(cluster.options("restored"), Options::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_database_is_made_of_a_backup() {
    let cluster = Cluster::start("");
    let memory = MemoryStore::default();
    fill(&memory, 40_000).await;
    let file = archived(Content::of(&memory).await.unwrap(), &[]).await;
    // A server made the tables and wrote nothing.
    postgres(&cluster).await.close().await.unwrap();
    let room = draft(&cluster, Existing::Refuse).await.unwrap().unwrap();
    room.fill(unpacked(&file)).await.unwrap().commit().await.unwrap();
    let restored = postgres(&cluster).await;
    assert_same(&memory, &restored).await;
    assert!(restored.lease_status(7).await.unwrap().ttl > 590, "the whole time again");
    let next = durable(&restored, vec![put("k/00", "new", 0)]).await;
    assert_eq!(next, memory.revisions().await.unwrap().0 + 1);
    let again = archived(Content::of(&restored).await.unwrap(), &[]).await;
    assert_eq!(unpacked(&again).keys, unpacked(&file).keys);

    let used = draft(&cluster, Existing::MoveAside).await.err().unwrap();
    let used = isopod_base::errors::Chain(&used).to_string();
    assert!(used.contains("end every server"), "{used}");
    restored.close().await.unwrap();
    assert!(draft(&cluster, Existing::Refuse).await.unwrap().is_none(), "it holds data");
    let room = draft(&cluster, Existing::MoveAside).await.unwrap().unwrap();
    let mut content = unpacked(&file);
    content.begin_epoch(1_000_000_000);
    let filled = room.fill(content).await.unwrap();
    let aside = filled.aside().unwrap().to_owned();
    // Who comes now waits, and finds the new tables.
    let comes = tokio::spawn(PostgresStore::open(cluster.options("restored"), Options::default()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    filled.commit().await.unwrap();
    let restored = comes.await.unwrap().unwrap();
    let (newest, compacted) = restored.revisions().await.unwrap();
    assert!(newest > 1_000_000_000 && compacted == newest, "{newest} {compacted}");
    let watch = restored.watch(WatchRequest { range: KeyRange::prefix("k/"), start: next }).await;
    assert!(matches!(watch, Err(StoreError::Compacted { .. })));
    assert_eq!(durable(&restored, vec![put("k/00", "newer", 0)]).await, newest + 1);
    let moved = PostgresStore::open(cluster.options(&aside), Options::default()).await.unwrap();
    assert_eq!(moved.revisions().await.unwrap().0, next, "what was there is whole, beside");
    moved.close().await.unwrap();
    restored.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_database_stays_what_it_was_when_a_restore_fails() {
    let cluster = Cluster::start("");
    let store = postgres(&cluster).await;
    let before = durable(&store, vec![put("mine", "1", 0)]).await;
    store.close().await.unwrap();
    let memory = MemoryStore::default();
    fill(&memory, 40_000).await;
    let whole = archived(Content::of(&memory).await.unwrap(), &[]).await;
    let mut damaged = whole.clone();
    damaged[whole.len() / 4 * 3] ^= 1;
    let room = draft(&cluster, Existing::MoveAside).await.unwrap().unwrap();
    let e = room.fill(unpacked(&damaged)).await.err().unwrap();
    assert!(isopod_base::errors::Chain(&e).to_string().contains("damaged"), "{e}");
    // And when it ends before its commit.
    let room = draft(&cluster, Existing::MoveAside).await.unwrap().unwrap();
    drop(room.fill(unpacked(&whole)).await.unwrap());
    let store = postgres(&cluster).await;
    assert_eq!(store.revisions().await.unwrap().0, before);
    assert_eq!(store.range(RangeRequest::new(KeyRange::prefix(""))).await.unwrap().count, 1);
    store.close().await.unwrap();
}
