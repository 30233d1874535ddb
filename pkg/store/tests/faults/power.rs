//! The power goes at any moment, again and again: what was acknowledged is there afterwards.

use crate::ledger::{Changes, EPHEMERAL, Ledger};
use crate::{Machine, seeds};
use bytes::Bytes;
use isopod_base::clock::Clock;
use isopod_store::sqlite::SqliteStore;
use isopod_store::*;
use isopod_sys::faults::Faults;
use jiff::Timestamp;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;

/// Power cuts of one machine's life.
const CUTS: u64 = 4;
const TASKS: u64 = 4;
/// Streams of seeds at a time.
const STREAMS: u64 = 3;

fn options(clock: &Clock) -> Options {
    Options { ephemeral: vec![EPHEMERAL.into()], clock: clock.clone(), index_rows: 20, ..Options::default() }
}

/// Sizes of values.
const LIGHT: [usize; 8] = [4, 4, 4, 900, 900, 900, 5000, 60_000];
/// With these, checkpoints run beside the writes.
const HEAVY: [usize; 8] = [4, 900, 5000, 60_000, 120_000, 120_000, 200_000, 200_000];

/// One put or delete, or a few; of durable keys, of ephemeral ones, or of both.
pub fn random_txn(rng: &mut StdRng, owner: &str, sizes: &[usize]) -> (Changes, Durability) {
    let mut changes = Changes::new();
    for _ in 0..rng.random_range(1..4) {
        let class = if rng.random_bool(0.75) { "d/" } else { EPHEMERAL };
        let key = format!("{class}{owner}/{}", rng.random_range(0..5));
        if changes.iter().any(|(k, _)| *k == key) {
            continue;
        }
        let len = sizes[rng.random_range(0..sizes.len())];
        // Unique, so that what is found tells who wrote it.
        let mut value = rng.random::<u128>().to_string().into_bytes();
        value.resize(value.len() + len, b'.');
        changes.push((key, rng.random_bool(0.8).then(|| Bytes::from(value))));
    }
    let ephemeral = changes.iter().all(|(k, _)| k.starts_with(EPHEMERAL));
    let durability = if ephemeral { Durability::Ephemeral } else { Durability::Durable };
    (changes, durability)
}

pub fn ops(changes: &Changes) -> Vec<Op> {
    let op = |(key, value): &(String, Option<Bytes>)| match value {
        Some(value) => Op::put(key.clone(), value.clone()),
        None => Op::delete(key.clone()),
    };
    changes.iter().map(op).collect()
}

/// Deletes of keys that are not there take no revision: with this put every transaction writes.
fn with_marker(mut changes: Changes, owner: &str, n: u64) -> Changes {
    changes.push((format!("d/{owner}/n"), Some(n.to_string().into())));
    changes
}

struct Life {
    seed: u64,
    lying_syncs: Option<&'static str>,
    ledger: Mutex<Ledger>,
    clock: Clock,
}

impl Life {
    /// Ends with the first error: the power is gone.
    async fn write(&self, store: &SqliteStore, task: u64, cut: u64) -> Result<(), String> {
        let owner = format!("{task}");
        let mut rng = StdRng::seed_from_u64(self.seed << 16 | cut << 8 | task);
        let sizes = if self.seed.is_multiple_of(8) { &HEAVY } else { &LIGHT };
        for n in 0..rng.random_range(1..40) {
            let (mut changes, durability) = random_txn(&mut rng, &owner, sizes);
            if durability == Durability::Durable {
                changes = with_marker(changes, &owner, self.seed << 32 | cut << 16 | n);
            } else if changes.iter().all(|(_, v)| v.is_none()) {
                continue;
            }
            let txn = Txn { success: ops(&changes), durability, ..Default::default() };
            match store.txn(txn).await {
                Ok(answer) => self.ledger.lock().acknowledged(answer.revision, present(changes, &answer))?,
                Err(_) => {
                    self.ledger.lock().unanswered(changes);
                    return Ok(());
                }
            }
            if task == 0 && self.other(store, &mut rng).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What else a store is asked.
    async fn other(&self, store: &SqliteStore, rng: &mut StdRng) -> isopod_store::Result<()> {
        match rng.random_range(0..30) {
            0 => {
                let (newest, oldest) = store.revisions().await?;
                let to = rng.random_range(oldest..=newest);
                match store.compact(to).await {
                    Err(StoreError::Compacted { .. }) => {}
                    other => other?,
                }
            }
            1 => self.clock.advance(Duration::from_secs(301)),
            2 => store.defragment().await?,
            3 => {
                let lease = store.lease_grant(0, 1_000_000).await?;
                self.ledger.lock().lease(lease.id);
            }
            4..8 => {
                let counter = {
                    let mut ledger = self.ledger.lock();
                    ledger.setting.1 += 1;
                    ledger.setting.1
                };
                store.set_setting("counter", Some(counter.to_string().into())).await?;
                self.ledger.lock().setting.0 = counter;
            }
            8..12 => drop(store.range(RangeRequest::new(KeyRange::prefix("d/"))).await?),
            _ => {}
        }
        Ok(())
    }

    /// Lives until the power is cut, at once or at a change of the disk.
    async fn until_cut(self: &Arc<Self>, machine: &Machine, options: &Options, cut: u64) -> Result<(), String> {
        let mut rng = StdRng::seed_from_u64(self.seed << 8 | cut);
        let changes = 1 << rng.random_range(0..12);
        let power_lost_after = Some(rng.random_range(changes..2 * changes));
        machine.disk.set_faults(Faults { power_lost_after, lying_syncs: self.lying_syncs, ..Faults::default() });
        let powered = |e: StoreError| match machine.disk.has_power() {
            true => Err(format!("with power: {}", isopod_base::errors::Chain(&e))),
            false => Ok(()),
        };
        let store = match machine.open(options) {
            Ok(store) => Arc::new(store),
            Err(e) => return powered(e),
        };
        if let Err(e) = self.ledger.lock_and_verify(&store).await {
            return if machine.disk.has_power() { Err(e) } else { Ok(()) };
        }
        let tasks = (0..TASKS).map(|task| {
            let (life, store) = (Arc::clone(self), Arc::clone(&store));
            tokio::spawn(async move { life.write(&store, task, cut).await })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap()?;
        }
        // A clean end, and then the power goes.
        if rng.random_bool(0.3)
            && let Err(e) = store.close().await
        {
            return powered(e);
        }
        Ok(())
    }
}

/// Without the deletes of what was not there.
pub fn present(changes: Changes, answer: &TxnResponse) -> Changes {
    let happened = answer.responses.iter().map(|r| !matches!(r, OpResponse::Delete { deleted: 0, .. }));
    changes.into_iter().zip(happened).filter(|(_, happened)| *happened).map(|(change, _)| change).collect()
}

trait Verify {
    async fn lock_and_verify(&self, store: &SqliteStore) -> Result<(), String>;
}

impl Verify for Mutex<Ledger> {
    /// Nobody else has the ledger while the store has just been opened.
    async fn lock_and_verify(&self, store: &SqliteStore) -> Result<(), String> {
        let mut ledger = std::mem::take(&mut *self.lock());
        let result = ledger.verify(store).await;
        *self.lock() = ledger;
        result
    }
}

/// One machine through a few power cuts.
async fn live(seed: u64, lying_syncs: Option<&'static str>) -> Result<(), String> {
    let clock = Clock::fake(Timestamp::UNIX_EPOCH);
    let options = options(&clock);
    let life = Arc::new(Life { seed, lying_syncs, ledger: Mutex::default(), clock });
    let mut machine = Machine::new(seed);
    for cut in 0..CUTS {
        life.until_cut(&machine, &options, cut).await.map_err(|e| format!("before cut {cut}: {e}"))?;
        machine = machine.after_power_cut(seed << 8 | cut);
    }
    let store = machine.open(&options).map_err(|e| format!("at last: {e}"))?;
    life.ledger.lock_and_verify(&store).await.map_err(|e| format!("at last: {e}"))?;
    store.close().await.map_err(|e| format!("at last: {e}"))?;
    check_file(machine.dir.path())
}

/// SQLite's own check, and that the log and its index agree.
pub fn check_file(dir: &std::path::Path) -> Result<(), String> {
    let conn = rusqlite::Connection::open(dir.join("state.db")).unwrap();
    let text = |sql: &str| conn.query_row(sql, [], |r| r.get::<_, String>(0)).unwrap();
    let astray = "SELECT count(*) || ' index rows lead astray' FROM newest n LEFT JOIN log l ON l.id = n.id AND l.key = n.key \
                  WHERE l.id IS NULL OR (l.kind = 0) <> n.live";
    match (text("PRAGMA integrity_check").as_str(), text(astray).as_str()) {
        ("ok", "0 index rows lead astray") => Ok(()),
        (check, astray) => Err(format!("{check}; {astray}")),
    }
}

async fn first_failure(seeds: u64, lying_syncs: Option<&'static str>) -> Option<String> {
    let streams = (0..STREAMS).map(|stream| {
        tokio::spawn(async move {
            for seed in (stream..seeds).step_by(STREAMS as usize) {
                if let Err(e) = live(seed, lying_syncs).await {
                    return Some(format!("seed {seed}: {e}"));
                }
            }
            None
        })
    });
    let mut failure = None;
    for stream in streams.collect::<Vec<_>>() {
        failure = failure.or(stream.await.unwrap());
    }
    failure
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn acknowledged_writes_survive_power_cuts() {
    let failure = first_failure(seeds("ISOPOD_POWER_SEEDS", 200), None).await;
    assert_eq!(failure, None);
}

/// The test above can fail: where a commit does not wait for the log to be on the disk, as with `synchronous = NORMAL`, it finds
/// what is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_check_sees_lost_writes() {
    let failure = first_failure(60, Some("-wal")).await;
    println!("{failure:?}");
    assert!(failure.is_some(), "no loss in 60 lives whose log is never synced");
}
