//! Files of a store are damaged at random, a seed each time: nothing wrong is ever served, damage is reported, nothing panics
//! or hangs, and a repair brings back every key that is not on the damaged pages. `ISOPOD_STORE_SEEDS` asks for more seeds.

use crate::ground::{Ground, copy, get, ground, open};
use isopod_store::sqlite::{SqliteStore, check, repair};
use isopod_store::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

const PAGE: usize = 4096;
const FRAME: usize = PAGE + 24;

/// What was done to a file.
#[derive(Debug)]
struct Harm {
    file: &'static str,
    kind: &'static str,
    /// Bytes that are not as they were.
    from: usize,
    to: usize,
    /// All bytes were there and nothing is missing.
    in_place: bool,
}

impl Harm {
    /// Of which pages the damage is can be told: nothing is cut off, and no header of a frame is hit.
    fn names_pages(&self) -> bool {
        let in_header = |at: usize| at < 32 || (at - 32) % FRAME < 24;
        self.in_place && (self.file != "state.db-wal" || !(self.from..self.to).any(in_header))
    }
}

fn harm(rng: &mut StdRng, dir: &Path, file: &'static str) -> Option<Harm> {
    let path = dir.join(file);
    let mut bytes = std::fs::read(&path).ok().filter(|b| !b.is_empty())?;
    let before = bytes.clone();
    let at = rng.random_range(0..bytes.len());
    let kind = match rng.random_range(0..10) {
        0 => {
            bytes.truncate(at);
            "cut"
        }
        1 => {
            let sector = at / 512 * 512;
            let end = (sector + 512).min(bytes.len());
            bytes[sector..end].fill(0);
            "zeroed sector"
        }
        2 if bytes.len() > PAGE => {
            let (a, b) = (at / PAGE * PAGE, rng.random_range(0..bytes.len() / PAGE) * PAGE);
            let page = bytes[b..b + PAGE].to_vec();
            let end = (a + PAGE).min(bytes.len());
            bytes[a..end].copy_from_slice(&page[..end - a]);
            "written to a wrong place"
        }
        3 => {
            let end = (at + rng.random_range(1..200)).min(bytes.len());
            bytes[at..end].iter_mut().for_each(|b| *b ^= rng.random::<u8>());
            "garbage"
        }
        _ => {
            bytes[at] ^= 1 << rng.random_range(0..8);
            "flipped bit"
        }
    };
    let from = before.iter().zip(&bytes).position(|(a, b)| a != b).unwrap_or(bytes.len());
    let to = (from..bytes.len()).rev().find(|i| before[*i] != bytes[*i]).map_or(before.len(), |i| i + 1);
    if from == before.len() {
        return None;
    }
    let in_place = bytes.len() == before.len();
    std::fs::write(path, bytes).unwrap();
    Some(Harm { file, kind, from, to, in_place })
}

/// `None`: damage was reported instead of an answer.
fn answer<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(answer) => Some(answer),
        Err(StoreError::Corrupt(text)) => {
            assert!(!text.is_empty());
            None
        }
        Err(e) => panic!("{e:?}"),
    }
}

fn by_key(kvs: Vec<KeyValue>, prefix: &str) -> BTreeMap<String, KeyValue> {
    let named = kvs.into_iter().map(|kv| (String::from_utf8(kv.key.to_vec()).unwrap(), kv));
    named.filter(|(key, _)| key.starts_with(prefix)).collect()
}

fn durable(all: &BTreeMap<String, KeyValue>) -> BTreeMap<String, KeyValue> {
    all.iter().filter(|(key, _)| key.starts_with("k/")).map(|(key, kv)| (key.clone(), kv.clone())).collect()
}

/// Reads all there is in every way. True: damage was met.
async fn read_everything(store: &SqliteStore, ground: &Ground, rng: &mut StdRng) -> bool {
    let mut met = false;
    let newest = durable(&ground.newest);
    for range in [KeyRange::prefix("k/"), KeyRange { start: "a".into(), end: "\0".into() }] {
        let all = answer(store.range(RangeRequest::new(range)).await);
        met |= all.is_none();
        if let Some(all) = all {
            assert_eq!(by_key(all.kvs, "k/"), newest);
        }
    }
    for i in (0..newest.len() + 50).step_by(7) {
        let key = format!("k/{i:04}");
        let found = answer(get(store, &key).await);
        met |= found.is_none();
        if let Some(found) = found {
            assert_eq!(found.as_ref(), newest.get(&key), "{key}");
        }
    }
    let (rev, state) = ground.states.iter().nth(rng.random_range(0..ground.states.len())).unwrap();
    let old = RangeRequest { revision: *rev, keys_only: rng.random(), ..RangeRequest::new(KeyRange::prefix("k/")) };
    let keys_only = old.keys_only;
    let old = answer(store.range(old).await);
    met |= old.is_none();
    if let Some(old) = old {
        let shown = |kv: &KeyValue| KeyValue {
            value: if keys_only { Default::default() } else { kv.value.clone() },
            ..kv.clone()
        };
        assert_eq!(by_key(old.kvs, "k/"), state.iter().map(|(k, kv)| (k.clone(), shown(kv))).collect());
    }
    met | watch(store, ground, *rev).await
}

/// Follows the history from a revision on. True: damage was met.
async fn watch(store: &SqliteStore, ground: &Ground, rev: Revision) -> bool {
    let mut state = ground.states[&rev].clone();
    let last = *ground.states.last_key_value().unwrap().0;
    let watch = store.watch(WatchRequest { range: KeyRange::prefix("k/"), start: rev + 1 }).await;
    let Some(mut watch) = answer(watch) else { return true };
    let mut at = rev;
    while at < last {
        let message =
            tokio::time::timeout(Duration::from_secs(20), watch.receiver.recv()).await.expect("a watch hangs");
        match answer(message.expect("a watch ends without a word")) {
            None => return true,
            Some(WatchMessage::Progress(_)) => {}
            Some(WatchMessage::Events(rev, events)) => {
                for event in events.iter() {
                    let key = String::from_utf8(event.kv.key.to_vec()).unwrap();
                    assert_eq!(event.prev.as_ref(), state.get(&key));
                    match event.kind {
                        EventKind::Put => state.insert(key, event.kv.clone()),
                        EventKind::Delete => state.remove(&key),
                    };
                }
                assert_eq!(state, ground.states[&rev]);
                at = rev;
            }
        }
    }
    false
}

/// A damaged store that opens: right answers or none, and none written after damage was met.
async fn use_it(store: &SqliteStore, ground: &Ground, rng: &mut StdRng) -> bool {
    let met = read_everything(store, ground, rng).await;
    // The check that runs beside may have found what no reader has met.
    let alarm = store.alarms().await.unwrap().contains(&Alarm::Corrupt);
    assert!(alarm || !met, "the alarm says what was met");
    let put = store.txn(Txn { success: vec![Op::put("new", "1")], ..Default::default() }).await;
    let written = answer(put).is_some();
    assert!(!(alarm && written), "nothing is written to a damaged store");
    if written {
        let new = answer(get(store, "new").await).expect("what was just written is read").unwrap();
        assert_eq!(new.value, "1");
    }
    let _ = store.close().await;
    alarm || !written
}

fn keys_in(bytes: &[u8], keys: &mut BTreeSet<String>) {
    let text = String::from_utf8_lossy(bytes);
    for part in text.split('<').skip(1) {
        if let Some((key, _)) = part.split_once('@') {
            keys.insert(key.to_owned());
        }
    }
}

/// Keys that have a piece on the damaged pages. `before` is the file as it was.
fn touched(harm: &Harm, before: &[u8]) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let to = if harm.in_place { harm.to } else { before.len() };
    let (unit, first, last) = match harm.file {
        "state.db-wal" => {
            let frame = |at: usize| at.saturating_sub(32) / FRAME;
            // A frame's checksum proves the next one.
            (FRAME, frame(harm.from), frame(to - 1) + 1)
        }
        _ => (PAGE, harm.from / PAGE, (to - 1) / PAGE),
    };
    let skip = if unit == FRAME { 32 } else { 0 };
    let range = skip + first * unit..(skip + (last + 1) * unit).min(before.len());
    keys_in(&before[range], &mut keys);
    keys
}

/// After a repair: all that was not on damaged pages is there, and what is missing is named.
async fn repaired(dir: &Path, ground: &Ground, harm: &Harm, touched: &BTreeSet<String>) {
    let done = repair(dir).unwrap().expect("there is damage");
    let named = |keys: &[bytes::Bytes], key: &str| keys.iter().any(|k| &k[..] == key.as_bytes());
    let store = open(dir).unwrap();
    assert!(store.revisions().await.unwrap().0 > ground.revision + 1000, "a new epoch");
    let watch = store.watch(WatchRequest { range: KeyRange::prefix("k/"), start: ground.revision }).await;
    assert!(matches!(watch.err(), Some(StoreError::Compacted { .. })));
    let all = store.range(RangeRequest::new(KeyRange::prefix("k/"))).await.unwrap();
    let all = by_key(all.kvs, "k/");
    for (key, want) in &durable(&ground.newest) {
        let got = all.get(key);
        if got == Some(want) {
            assert!(!named(&done.lost, key), "{key} is there");
            continue;
        }
        let revision = got.map(|kv| kv.mod_revision);
        assert!(
            touched.contains(key),
            "{key} at {revision:?} and not {}, was not on a damaged page",
            want.mod_revision
        );
        if harm.names_pages() {
            let older = done
                .older
                .iter()
                .any(|(k, had, _)| &k[..] == key.as_bytes() && got.is_some_and(|g| g.mod_revision == *had));
            let told = older || named(&done.unsure, key) || (got.is_none() && named(&done.lost, key));
            // The index said nothing of it yet.
            let recent = done.since.is_some_and(|since| want.mod_revision > since);
            assert!(told || recent, "{key}: {done:?}");
        }
    }
    for key in all.keys() {
        let known = ground.newest.contains_key(key) || named(&done.unsure, key) || done.since.is_some();
        assert!(known || !harm.names_pages(), "{key} was deleted");
    }
    for kept in &done.kept {
        assert!(kept.exists());
    }
    let put = store.txn(Txn { success: vec![Op::put("k/new", "1")], ..Default::default() }).await.unwrap();
    assert!(put.revision > ground.revision);
    store.close().await.unwrap();
    assert_eq!(check(dir).unwrap(), Vec::<String>::new());
    assert!(repair(dir).unwrap().is_none(), "nothing more to repair");
}

async fn seed(seed: u64, ground: &Ground, base: &Path, file: &'static str) -> Option<bool> {
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = copy(base);
    let before = std::fs::read(dir.path().join(file)).unwrap_or_default();
    let harm = harm(&mut rng, dir.path(), file)?;
    println!("seed {seed}: {} of {} at {}..{}", harm.kind, harm.file, harm.from, harm.to);
    let damaged_files = copy(dir.path());
    let found = check(dir.path()).unwrap();
    let met = match answer(open(dir.path())) {
        Some(store) => use_it(&store, ground, &mut rng).await,
        None => true,
    };
    assert!(!met || !found.is_empty(), "what a reader meets, a check finds");
    if !found.is_empty() {
        repaired(damaged_files.path(), ground, &harm, &touched(&harm, &before)).await;
    }
    Some(!found.is_empty())
}

fn seeds() -> u64 {
    std::env::var("ISOPOD_STORE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60)
}

/// Pages of trees, with what overflows from them: what a check may not overlook.
fn used_pages(dir: &Path) -> BTreeSet<usize> {
    let copy = copy(dir);
    let conn = rusqlite::Connection::open(copy.path().join("state.db")).unwrap();
    let mut pages = conn.prepare("SELECT pageno FROM dbstat").unwrap();
    pages.query_map([], |r| r.get::<_, i64>(0)).unwrap().map(|n| n.unwrap() as usize).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_a_closed_store() {
    let ground = ground(300).await;
    let used = used_pages(ground.clean.path());
    for n in 0..seeds() {
        let mut rng = StdRng::seed_from_u64(n);
        let dir = copy(ground.clean.path());
        let harmed = harm(&mut rng, dir.path(), "state.db");
        let found = seed(n, &ground, ground.clean.path(), "state.db").await;
        if let (Some(harm), Some(found)) = (harmed, found) {
            let pages = harm.from / PAGE + 1..=(harm.to - 1) / PAGE + 1;
            assert!(found || !pages.into_iter().any(|page| used.contains(&page)), "{harm:?} was overlooked");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_the_files_of_a_killed_store() {
    let ground = ground(300).await;
    let mut found = 0;
    for n in 0..seeds() {
        for file in ["state.db", "state.db-wal", "state.db-wal"] {
            found += u32::from(seed(n, &ground, ground.killed.path(), file).await == Some(true));
        }
    }
    assert!(u64::from(found) > seeds() / 2, "the damage was to what counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_what_holds_no_data() {
    let ground = ground(100).await;
    for n in 0..seeds() / 4 {
        for file in ["state.db-shm", "lock"] {
            let found = seed(n, &ground, ground.killed.path(), file).await;
            assert_ne!(found, Some(true), "there is nothing to lose in it");
        }
    }
}
