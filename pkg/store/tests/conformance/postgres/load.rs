//! Writers that go on through everything, watchers that see everything, and what must hold of both afterwards.

use isopod_store::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

const LAST: &str = "load/zz-last";

/// What writers were told. Each value is written once.
#[derive(Default)]
pub struct Told {
    pub acknowledged: Vec<(String, Revision)>,
    /// Answered with [`StoreError::Unavailable`]: written or not.
    pub doubtful: HashSet<String>,
}

/// What a watcher saw: revision → values.
pub type Seen = BTreeMap<Revision, Vec<String>>;

pub struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Told>>,
    watchers: Vec<JoinHandle<Seen>>,
    stores: Vec<Arc<dyn Store>>,
}

fn text(b: &[u8]) -> String {
    String::from_utf8_lossy(b).into_owned()
}

async fn write(store: Arc<dyn Store>, name: String, stop: Arc<AtomicBool>) -> Told {
    let mut told = Told::default();
    for i in 0u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let value = format!("{name}-{i}");
        let success = vec![Op::put(format!("load/{name}"), value.clone())];
        match store.txn(Txn { success, ..Default::default() }).await {
            Ok(answer) => told.acknowledged.push((value, answer.revision)),
            Err(StoreError::Unavailable { .. }) => drop(told.doubtful.insert(value)),
            // Which the next look verifies.
            Err(StoreError::NotDone { .. }) => {}
            Err(e) => panic!("{e:?}"),
        }
    }
    told
}

async fn watch(mut watch: Watch) -> Seen {
    let mut seen = Seen::new();
    loop {
        let message = tokio::time::timeout(Duration::from_secs(60), watch.receiver.recv()).await;
        let message = message.expect("nothing came for a minute").expect("the watch ended").expect("the watch failed");
        let WatchMessage::Events(rev, events) = message else { continue };
        assert!(seen.last_key_value().is_none_or(|(last, _)| *last < rev), "revision {rev} came late or twice");
        seen.insert(rev, events.iter().map(|e| text(&e.kv.value)).collect());
        if events.iter().any(|e| e.kv.key == LAST) {
            return seen;
        }
    }
}

impl Load {
    /// A few writers and a watcher on each store.
    pub async fn start(stores: &[Arc<dyn Store>], writers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = stores[0].revisions().await.unwrap().0 + 1;
        let mut load = Load { stop, writers: Vec::new(), watchers: Vec::new(), stores: stores.to_vec() };
        for (i, store) in stores.iter().enumerate() {
            let range = KeyRange::prefix("load/");
            load.watchers.push(tokio::spawn(watch(store.watch(WatchRequest { range, start }).await.unwrap())));
            for w in 0..writers {
                let writer = write(Arc::clone(store), format!("{i}.{w}"), Arc::clone(&load.stop));
                load.writers.push(tokio::spawn(writer));
            }
        }
        load
    }

    /// Ends it and checks: every watcher saw the same, each write once, and each that was acknowledged at its revision.
    pub async fn end(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let mut acknowledged = HashMap::new();
        let mut doubtful = HashSet::new();
        for writer in self.writers {
            let told = writer.await.unwrap();
            acknowledged.extend(told.acknowledged);
            doubtful.extend(told.doubtful);
        }
        let last = Txn { success: vec![Op::put(LAST, "last")], ..Default::default() };
        self.stores[0].txn(last).await.unwrap();
        let mut seen = Vec::new();
        for watcher in self.watchers {
            seen.push(watcher.await.unwrap());
        }
        for other in &seen[1..] {
            assert_eq!(*other, seen[0], "two watchers saw two histories");
        }
        let mut found: HashMap<&str, Revision> = HashMap::new();
        for (rev, values) in &seen[0] {
            for value in values {
                assert!(found.insert(value, *rev).is_none(), "{value} was applied twice");
            }
        }
        for (value, rev) in &acknowledged {
            assert_eq!(found.get(&value[..]), Some(rev), "{value} was acknowledged at {rev}");
        }
        for value in found.keys().filter(|v| **v != "last") {
            assert!(acknowledged.contains_key(*value) || doubtful.contains(*value), "{value} was refused");
        }
        println!("{} acknowledged, {} doubtful", acknowledged.len(), doubtful.len());
        acknowledged.len()
    }
}
