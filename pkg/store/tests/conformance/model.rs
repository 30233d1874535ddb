//! Random operations against a model that is too simple to be wrong: the whole state after every revision.

use crate::postgres::server::Cluster;
use crate::suite::next;
use bytes::Bytes;
use isopod_store::memory::MemoryStore;
use isopod_store::postgres::PostgresStore;
use isopod_store::sqlite::SqliteStore;
use isopod_store::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Key → (value, create revision, mod revision, version).
type State = BTreeMap<String, (String, Revision, Revision, i64)>;

struct Model {
    /// The state at each revision from 1 on.
    states: BTreeMap<Revision, State>,
    compacted: Revision,
}

impl Model {
    fn newest(&self) -> (Revision, State) {
        let (rev, state) = self.states.last_key_value().unwrap();
        (*rev, state.clone())
    }

    fn at(&self, rev: Revision) -> &State {
        self.states.range(..=rev).next_back().unwrap().1
    }

    fn apply(&mut self, puts: &[(String, String)], deletes: &[String]) -> Revision {
        let (rev, mut state) = self.newest();
        let mut wrote = !puts.is_empty();
        for (k, v) in puts {
            let old = state.get(k);
            let new = (v.clone(), old.map_or(rev + 1, |o| o.1), rev + 1, old.map_or(1, |o| o.3 + 1));
            state.insert(k.clone(), new);
        }
        for k in deletes {
            wrote |= state.remove(k).is_some();
        }
        if wrote {
            self.states.insert(rev + 1, state);
        }
        self.newest().0
    }

    /// `+key=value` and `-key` of each revision from `start` on, sorted by key.
    fn events(&self, start: Revision, prefix: &str) -> Vec<(Revision, Vec<String>)> {
        let mut out = Vec::new();
        for (rev, state) in self.states.range(start.max(2)..) {
            let before = self.at(rev - 1);
            let mut changes: Vec<String> = Vec::new();
            for (k, v) in state.iter().filter(|(k, v)| v.2 == *rev && k.starts_with(prefix)) {
                changes.push(format!("+{k}={}", v.0));
            }
            for k in before.keys().filter(|k| !state.contains_key(*k) && k.starts_with(prefix)) {
                changes.push(format!("-{k}"));
            }
            changes.sort_by(|a, b| a[1..].cmp(&b[1..]));
            if !changes.is_empty() {
                out.push((*rev, changes));
            }
        }
        out
    }
}

fn state_of(kvs: &[KeyValue]) -> State {
    let text = |b: &Bytes| String::from_utf8(b.to_vec()).unwrap();
    kvs.iter().map(|kv| (text(&kv.key), (text(&kv.value), kv.create_revision, kv.mod_revision, kv.version))).collect()
}

fn within(state: &State, prefix: &str) -> State {
    state.iter().filter(|(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

const PREFIXES: [&str; 4] = ["", "a/", "e/", "b/1"];

fn key(rng: &mut StdRng) -> String {
    format!("{}/{}", ["a", "b", "e"][rng.random_range(0..3)], rng.random_range(0..12))
}

fn random_txn(rng: &mut StdRng, model: &Model) -> (Txn, Vec<(String, String)>, Vec<String>, bool) {
    let (_, state) = model.newest();
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    for _ in 0..rng.random_range(1..4) {
        let k = key(rng);
        if puts.iter().any(|(p, _)| *p == k) || deletes.contains(&k) {
            continue;
        }
        if rng.random_bool(0.7) {
            puts.push((k, rng.random::<u16>().to_string()));
        } else {
            deletes.push(k);
        }
    }
    let guard = key(rng);
    let right = state.get(&guard).map_or(0, |v| v.2);
    let holds = rng.random_bool(0.8);
    let mut ops: Vec<Op> = puts.iter().map(|(k, v)| Op::put(k.clone(), v.clone())).collect();
    ops.extend(deletes.iter().map(|k| Op::delete(k.clone())));
    let txn = Txn {
        compare: vec![Compare::mod_revision(guard, if holds { right } else { right + 1 })],
        success: ops,
        durability: if rng.random_bool(0.5) { Durability::Ephemeral } else { Durability::Durable },
        ..Default::default()
    };
    (txn, puts, deletes, holds)
}

async fn check_reads(store: &dyn Store, model: &Model, rng: &mut StdRng) {
    let prefix = PREFIXES[rng.random_range(0..PREFIXES.len())];
    let (newest, state) = model.newest();
    let range = if prefix.is_empty() {
        KeyRange { start: Bytes::from_static(b"\0"), end: Bytes::from_static(b"\0") }
    } else {
        KeyRange::prefix(prefix)
    };
    let now = store.range(RangeRequest::new(range.clone())).await.unwrap();
    assert_eq!((now.revision, state_of(&now.kvs)), (newest, within(&state, prefix)));
    let rev = rng.random_range(model.compacted.max(1)..=newest);
    let want = within(model.at(rev), prefix);
    let limit = rng.random_range(0..6);
    let req = RangeRequest { revision: rev, limit, ..RangeRequest::new(range) };
    let got = store.range(req).await.unwrap();
    let take = if limit == 0 { want.len() } else { limit.min(want.len()) };
    assert_eq!(got.count as usize, want.len());
    assert_eq!(got.more, take < want.len());
    assert_eq!(state_of(&got.kvs), want.into_iter().take(take).collect::<State>(), "{prefix} at {rev}");
}

async fn check_watch(store: &dyn Store, model: &Model, start: Revision, prefix: &str) {
    let want = model.events(start, prefix);
    let mut watch = store.watch(WatchRequest { range: KeyRange::prefix(prefix.to_owned()), start }).await.unwrap();
    for (rev, changes) in want {
        let WatchMessage::Events(got, events) = next(&mut watch).await.unwrap() else { panic!() };
        let mut shown: Vec<String> = events
            .iter()
            .map(|e| {
                let key = String::from_utf8_lossy(&e.kv.key);
                match e.kind {
                    EventKind::Put => format!("+{key}={}", String::from_utf8_lossy(&e.kv.value)),
                    EventKind::Delete => format!("-{key}"),
                }
            })
            .collect();
        shown.sort_by(|a, b| a[1..].cmp(&b[1..]));
        assert_eq!((got, shown), (rev, changes));
    }
}

async fn simulate(store: &Arc<dyn Store>, model: &mut Model, rng: &mut StdRng, steps: usize) {
    for _ in 0..steps {
        let (txn, puts, deletes, holds) = random_txn(rng, model);
        let answer = store.txn(txn).await.unwrap();
        assert_eq!(answer.succeeded, holds);
        let want = if holds { model.apply(&puts, &deletes) } else { model.newest().0 };
        assert_eq!(answer.revision, want);
        if rng.random_bool(0.3) {
            check_reads(&**store, model, rng).await;
        }
        if rng.random_bool(0.03) {
            let newest = model.newest().0;
            let rev = rng.random_range(model.compacted.max(1)..=newest);
            if rev > model.compacted {
                store.compact(rev).await.unwrap();
                model.compacted = rev;
            }
        }
    }
    let newest = model.newest().0;
    for prefix in ["a/", "b/", "e/", "b/1"] {
        let start = rng.random_range(model.compacted.max(1)..=newest);
        check_watch(&**store, model, start, prefix).await;
    }
}

fn model() -> Model {
    Model { states: BTreeMap::from([(1, State::new())]), compacted: 0 }
}

fn options() -> Options {
    Options { ephemeral: vec!["e/".into()], index_rows: 10, cache_bytes: 13_000, ..Options::default() }
}

#[tokio::test]
async fn memory_follows_the_model() {
    for seed in 0..40 {
        println!("seed {seed}");
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(options()));
        simulate(&store, &mut model(), &mut StdRng::seed_from_u64(seed), 200).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_follows_the_model_through_restarts() {
    for seed in 0..12 {
        println!("seed {seed}");
        let dir = tempfile::tempdir().unwrap();
        let mut model = model();
        let mut rng = StdRng::seed_from_u64(seed);
        for run in 0..4 {
            let store: Arc<dyn Store> = Arc::new(SqliteStore::open(dir.path(), options()).unwrap());
            let (newest, _) = store.revisions().await.unwrap();
            assert_eq!(newest, model.newest().0, "a clean end leaves no gap");
            check_reads_after_restart(&store, &model).await;
            if run > 0 {
                // What ephemeral keys went through before is not kept: reads of it begin here.
                model.compacted = newest;
                let error = store.watch(WatchRequest { range: KeyRange::prefix("e/"), start: newest }).await.err();
                assert!(matches!(error, Some(StoreError::Compacted { .. })), "{error:?}");
            }
            simulate_from(&store, &mut model, &mut rng).await;
            store.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_follows_the_model_through_restarts() {
    let cluster = Cluster::start("");
    for seed in 0..3 {
        println!("seed {seed}");
        let mut model = model();
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..3 {
            let place = cluster.options(&format!("seed{seed}"));
            let store: Arc<dyn Store> = Arc::new(PostgresStore::open(place, options()).await.unwrap());
            assert_eq!(store.revisions().await.unwrap().0, model.newest().0, "an end leaves no gap");
            check_reads_after_restart(&store, &model).await;
            simulate(&store, &mut model, &mut rng, 120).await;
            store.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_history_has_the_same_hash_on_postgres() {
    let cluster = Cluster::start("");
    let memory: Arc<dyn Store> = Arc::new(MemoryStore::new(options()));
    let postgres: Arc<dyn Store> = Arc::new(PostgresStore::open(cluster.options("hash"), options()).await.unwrap());
    let mut hashes = Vec::new();
    for store in [memory, postgres] {
        simulate(&store, &mut model(), &mut StdRng::seed_from_u64(7), 200).await;
        hashes.push(store.hash(0).await.unwrap());
    }
    assert!(hashes[0].compact_revision > 0);
    assert_eq!(hashes[0], hashes[1]);
}

async fn check_reads_after_restart(store: &Arc<dyn Store>, model: &Model) {
    let everything = KeyRange { start: Bytes::from_static(b"\0"), end: Bytes::from_static(b"\0") };
    let now = store.range(RangeRequest::new(everything)).await.unwrap();
    assert_eq!(state_of(&now.kvs), model.newest().1);
    // Durable history survives a restart.
    let start = model.compacted.max(1);
    check_watch(&**store, model, start, "a/").await;
}

/// As [`simulate`], but a watch on ephemeral keys may not start at the restart itself: one write later it may.
async fn simulate_from(store: &Arc<dyn Store>, model: &mut Model, rng: &mut StdRng) {
    let answer = store.txn(Txn { success: vec![Op::put("e/first", "x")], ..Default::default() }).await.unwrap();
    assert_eq!(answer.revision, model.apply(&[("e/first".into(), "x".into())], &[]));
    let opened = model.compacted;
    model.compacted = answer.revision;
    simulate(store, model, rng, 120).await;
    if model.compacted == answer.revision {
        // Nothing was compacted meanwhile: what was readable before still is.
        model.compacted = opened;
    }
}
