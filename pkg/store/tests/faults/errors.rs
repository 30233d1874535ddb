//! The disk runs full, writes and syncs fail, the process is killed, the power goes: nothing acknowledged is lost, what is
//! refused did not happen, and the store goes on by itself where the disk can be trusted.

use crate::ledger::{Changes, EPHEMERAL, Ledger};
use crate::power::{check_file, ops, random_txn};
use crate::{Machine, seeds, wait_until_free};
use bytes::Bytes;
use isopod_base::clock::Clock;
use isopod_base::errors::Chain;
use isopod_store::sqlite::SqliteStore;
use isopod_store::*;
use isopod_sys::faults::Faults;
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

const STEPS: u64 = 60;
const RUNS: u64 = 4;

fn options() -> Options {
    Options {
        ephemeral: vec![EPHEMERAL.into()],
        clock: Clock::fake(Timestamp::UNIX_EPOCH),
        index_rows: 20,
        ..Options::default()
    }
}

async fn put(store: &SqliteStore, key: &str, value: impl Into<Bytes>) -> Result<Revision> {
    let success = vec![Op::put(key.to_owned(), value)];
    store.txn(Txn { success, ..Default::default() }).await.map(|answer| answer.revision)
}

/// Puts several at once, so that they are committed together.
async fn put_all(store: &SqliteStore, keys: &[&str], value: &str) -> Vec<Result<Revision>> {
    futures::future::join_all(keys.iter().map(|key| put(store, key, value.to_owned()))).await
}

async fn get(store: &SqliteStore, key: &str) -> Option<KeyValue> {
    store.range(RangeRequest::new(KeyRange::key(key.to_owned()))).await.unwrap().kvs.pop()
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_when_a_full_disk_has_room_again() {
    let machine = Machine::new(1);
    let store = machine.open(&options()).unwrap();
    put(&store, "d/a", "1").await.unwrap();
    let small = Faults { capacity: Some(machine.disk.size() + 200_000), ..Faults::default() };
    machine.disk.set_faults(small);
    let mut last = 0;
    let error = loop {
        match put(&store, "d/big", vec![b'x'; 20_000]).await {
            Ok(rev) => last = rev,
            Err(e) => break e,
        }
    };
    assert!(matches!(error, StoreError::NoSpace), "{error}");
    // Reads and ephemeral writes go on, and whoever writes together with the one that is too much is refused too.
    assert_eq!(get(&store, "d/big").await.unwrap().mod_revision, last);
    let heartbeat = Txn { success: vec![Op::put("e/n", "1")], durability: Durability::Ephemeral, ..Default::default() };
    assert_eq!(store.txn(heartbeat).await.unwrap().revision, last + 1);
    for refused in put_all(&store, &["d/1", "d/2", "d/3"], &"y".repeat(20_000)).await {
        assert!(matches!(refused, Err(StoreError::NoSpace)), "{refused:?}");
    }
    machine.disk.set_faults(Faults::default());
    assert_eq!(put(&store, "d/a", "2").await.unwrap(), last + 2);
    assert!(get(&store, "d/1").await.is_none());
    store.lease_grant(7, 100).await.unwrap();
    store.close().await.unwrap();
    check_file(machine.dir.path()).unwrap();
}

/// SQLite rolls back by itself after some errors of reads: what was asked before in the same batch must not be acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_lost_midway_is_refused_whole() {
    let machine = Machine::new(2);
    let store = machine.open(&options()).unwrap();
    // More than the writer's cache holds: its pages leave the cache while the next keys are read.
    let keys: Vec<String> = (0..60).map(|i| format!("d/{i}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut versions = vec![0; keys.len()];
    let mut refused = 0;
    for round in 0..60u64 {
        // Each write of a batch in turn.
        let full_at = round.checked_sub(1);
        machine.disk.set_faults(Faults { full_at, ..Faults::default() });
        let answers = put_all(&store, &keys, &format!("{round:060000}")).await;
        machine.disk.set_faults(Faults::default());
        for (i, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(_) => versions[i] += 1,
                Err(StoreError::NoSpace) => refused += 1,
                Err(e) => panic!("round {round}: {}", Chain(&e)),
            }
            let found = get(&store, keys[i]).await.unwrap();
            assert_eq!(found.version, versions[i], "round {round}: {}", keys[i]);
        }
    }
    assert!(refused >= 30, "{refused} puts were refused");
    store.close().await.unwrap();
}

/// A commit that could not be synced is told as unknown, and is not there; but until another one takes its place, a crash could
/// bring it back: so nothing is acknowledged in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_of_the_log_is_made_good_before_anything_is_acknowledged() {
    let machine = Machine::new(3);
    let store = machine.open(&options()).unwrap();
    let before = put(&store, "d/a", "1").await.unwrap();
    machine.disk.set_faults(Faults { sync_errors: 1000, ..Faults::default() });
    let error = put(&store, "d/a", "2").await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert_eq!(get(&store, "d/a").await.unwrap().mod_revision, before);
    let beat = || Txn { success: vec![Op::put("e/n", "1")], durability: Durability::Ephemeral, ..Default::default() };
    let error = store.txn(beat()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "its revision may be taken: {error}");
    machine.disk.set_faults(Faults::default());
    assert_eq!(store.txn(beat()).await.unwrap().revision, before + 1);
    machine.disk.stop();
    let _ = store.close().await;
    machine.disk.go_on();
    let store = machine.open(&options()).unwrap();
    assert_eq!(get(&store, "d/a").await.unwrap().value, "1");
    store.close().await.unwrap();
}

/// After a failed sync the kernel shows what the disk does not have. The next process must not build on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_which_the_disk_lost_a_part_is_not_built_on() {
    for seed in 0..5 {
        let machine = Machine::new(seed);
        let store = machine.open(&options()).unwrap();
        put(&store, "d/a", "1").await.unwrap();
        machine.disk.set_faults(Faults { sync_errors: 1000, ..Faults::default() });
        put(&store, "d/a", "x".repeat(50_000)).await.unwrap_err();
        machine.disk.set_faults(Faults::default());
        machine.disk.stop();
        let _ = store.close().await;
        machine.disk.go_on();
        let store = machine.open(&options()).unwrap();
        let rev = put(&store, "d/b", "1").await.unwrap();
        let after = machine.after_power_cut(seed);
        let _ = store.close().await;
        let store = after.open(&options()).unwrap();
        assert_eq!(get(&store, "d/b").await.map(|kv| kv.mod_revision), Some(rev), "seed {seed}");
        store.close().await.unwrap();
    }
}

/// What a checkpoint wrote and the disk did not keep is still in the log; the log is not emptied any more.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_sync_of_the_file_nothing_is_written_until_the_next_start() {
    let machine = Machine::new(4);
    let store = machine.open(&options()).unwrap();
    let mut last = put(&store, "d/a", "1").await.unwrap();
    machine.disk.set_faults(Faults { sync_errors: 1000, only: Some("state.db"), ..Faults::default() });
    let error = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            match put(&store, "d/big", vec![b'x'; 200_000]).await {
                Ok(rev) => last = rev,
                Err(e) => return e,
            }
        }
    });
    let error = error.await.unwrap();
    assert!(matches!(error, StoreError::NotDone { .. }) && error.to_string().contains("started again"), "{error}");
    assert_eq!(get(&store, "d/big").await.unwrap().mod_revision, last, "reads go on");
    machine.disk.set_faults(Faults::default());
    assert!(put(&store, "d/a", "2").await.is_err(), "a sync that works now proves nothing");
    assert!(store.close().await.is_err());
    drop(store);
    // What the disk kept is enough.
    let machine = machine.after_power_cut(5);
    let store = machine.open(&options()).unwrap();
    assert_eq!(get(&store, "d/big").await.unwrap().mod_revision, last);
    put(&store, "d/a", "2").await.unwrap();
    store.close().await.unwrap();
    check_file(machine.dir.path()).unwrap();
}

/// One client through errors of every kind, kills and power cuts.
struct Life {
    seed: u64,
    rng: StdRng,
    ledger: Ledger,
    machine: Machine,
    options: Options,
}

impl Life {
    fn random_faults(&mut self) -> Faults {
        let mut share = |of: u32| if self.rng.random_bool(0.4) { self.rng.random_range(0..of) } else { 0 };
        let (full, write_errors, sync_errors) = (share(40), share(20), share(100));
        let capacity = share(3) > 0;
        let only = [None, Some("-wal"), Some("state.db")][self.rng.random_range(0..3)];
        let capacity = capacity.then(|| self.machine.disk.size() + self.rng.random_range(0..300_000));
        Faults { capacity, full, write_errors, sync_errors, only, ..Faults::default() }
    }

    fn told(&mut self, changes: Changes, answer: Result<TxnResponse>) -> Result<(), String> {
        match answer {
            Ok(answer) => self.ledger.acknowledged(answer.revision, crate::power::present(changes, &answer)),
            // Refused: it did not happen, which the next look verifies.
            Err(StoreError::NoSpace | StoreError::NotDone { .. }) => Ok(()),
            Err(StoreError::Unavailable { .. } | StoreError::Backend { .. }) => {
                self.ledger.unanswered(changes);
                Ok(())
            }
            Err(e) => Err(format!("answers {}", Chain(&e))),
        }
    }

    async fn run(&mut self, run: u64) -> Result<(), String> {
        let store = self.machine.open(&self.options).map_err(|e| format!("does not open: {}", Chain(&e)))?;
        self.ledger.verify(&store).await?;
        for step in 0..STEPS {
            if step % 10 == 0 {
                let faults = self.random_faults();
                self.machine.disk.set_faults(faults);
            }
            self.step(&store, run * STEPS + step).await?;
            if step % 20 == 19 {
                self.look_ahead(step).await.map_err(|e| format!("after a power cut at step {step}: {e}"))?;
            }
        }
        match self.rng.random_range(0..3) {
            // A clean end, or one that fails.
            0 => drop(store.close().await),
            // Killed: the files are as the programs of the machine see them.
            1 => {
                self.machine.disk.stop();
                let _ = store.close().await;
                self.machine.disk.go_on();
            }
            _ => {
                self.machine = self.machine.after_power_cut(self.seed << 8 | run);
                let _ = store.close().await;
            }
        }
        drop(store);
        wait_until_free(self.machine.dir.path());
        self.machine.disk.set_faults(Faults::default());
        Ok(())
    }

    /// Whatever a power cut leaves at this moment can be used.
    async fn look_ahead(&self, step: u64) -> Result<(), String> {
        let machine = self.machine.ahead(self.seed << 8 | step);
        let store = machine.open(&self.options).map_err(|e| format!("does not open: {}", Chain(&e)))?;
        self.ledger.clone().verify(&store).await?;
        store.close().await.map_err(|e| format!("does not close: {}", Chain(&e)))
    }

    async fn step(&mut self, store: &SqliteStore, n: u64) -> Result<(), String> {
        // A few at once, so that they share a commit, with keys of their own.
        let mut asked: Vec<(Changes, Durability)> = Vec::new();
        for owner in 0..self.rng.random_range(1..4) {
            let owner = owner.to_string();
            let (mut changes, durability) = random_txn(&mut self.rng, &owner, &[4, 900, 5000, 100_000]);
            if durability == Durability::Durable {
                changes.push((format!("d/{owner}/n"), Some(format!("{}-{n}", self.seed).into())));
            }
            if changes.iter().any(|(_, v)| v.is_some()) {
                asked.push((changes, durability));
            }
        }
        let txns = asked.iter().map(|(changes, durability)| {
            store.txn(Txn { success: ops(changes), durability: *durability, ..Default::default() })
        });
        let answers = futures::future::join_all(txns.collect::<Vec<_>>()).await;
        let answered: Vec<_> = asked.into_iter().map(|(changes, _)| changes).zip(answers).collect();
        for (changes, answer) in answered {
            self.told(changes, answer)?;
        }
        match self.rng.random_range(0..20) {
            0 => {
                let (newest, oldest) = store.revisions().await.map_err(|e| e.to_string())?;
                let _ = store.compact(self.rng.random_range(oldest..=newest)).await;
            }
            1 => drop(store.defragment().await),
            2 => self.options.clock.advance(Duration::from_secs(301)),
            _ => {}
        }
        Ok(())
    }
}

async fn live(seed: u64) -> Result<(), String> {
    let rng = StdRng::seed_from_u64(seed);
    let mut life = Life { seed, rng, ledger: Ledger::default(), machine: Machine::new(seed), options: options() };
    for run in 0..RUNS {
        life.run(run).await.map_err(|e| format!("run {run}: {e}"))?;
    }
    let store = life.machine.open(&life.options).map_err(|e| format!("at last: {}", Chain(&e)))?;
    life.ledger.verify(&store).await.map_err(|e| format!("at last: {e}"))?;
    store.close().await.map_err(|e| format!("at last: {}", Chain(&e)))?;
    check_file(life.machine.dir.path())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn nothing_acknowledged_is_lost_on_a_failing_disk() {
    let seeds = seeds("ISOPOD_DISK_ERROR_SEEDS", 40);
    let streams = (0..2).map(|stream| {
        tokio::spawn(async move {
            for seed in (stream..seeds).step_by(2) {
                live(seed).await.map_err(|e| format!("seed {seed}: {e}"))?;
            }
            Ok::<(), String>(())
        })
    });
    for stream in streams.collect::<Vec<_>>() {
        assert_eq!(stream.await.unwrap(), Ok(()));
    }
}
