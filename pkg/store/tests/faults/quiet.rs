//! How much is written: nothing by an idle store, and how many bytes for a put, a heartbeat and an Event. The figures stand in
//! `docs/datastore.md`.

use crate::Machine;
use isopod_base::clock::Clock;
use isopod_store::sqlite::SqliteStore;
use isopod_store::*;
use isopod_sys::faults::Counts;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn options(clock: &Clock) -> Options {
    Options { ephemeral: vec!["events/".into(), "leases/".into()], clock: clock.clone(), ..Options::default() }
}

fn clock() -> Clock {
    Clock::fake(Timestamp::UNIX_EPOCH)
}

/// A value of 1 kB, another one each time.
fn kilobyte(n: usize) -> Vec<u8> {
    format!("{n:01024}").into_bytes()
}

async fn put(store: &SqliteStore, key: String, value: Vec<u8>, durability: Durability) -> Revision {
    let success = vec![Op::put(key, value)];
    store.txn(Txn { success, durability, ..Default::default() }).await.unwrap().revision
}

/// Moves the clock until what is dirty has been flushed.
async fn flush(machine: &Machine, clock: &Clock) {
    let before = machine.disk.counts();
    let flushed = async {
        while machine.disk.counts() == before {
            clock.advance(301 * SECOND);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // More than one commit, where there are many keys.
        let mut last = before;
        while machine.disk.counts() != last {
            last = machine.disk.counts();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(20 * SECOND, flushed).await.expect("nothing is flushed");
}

/// An hour with a heartbeat of a node every ten seconds, and the compactions that an API server asks for.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_store_writes_nothing_for_an_hour() {
    let machine = Machine::counting();
    let clock = clock();
    let store = machine.open(&options(&clock)).unwrap();
    for i in 0..500 {
        put(&store, format!("pods/{i}"), kilobyte(i), Durability::Durable).await;
    }
    let lease = store.lease_grant_ephemeral(0, 1_000_000).await.unwrap().id;
    let mut newest = put(&store, "leases/n".into(), b"0".to_vec(), Durability::Ephemeral).await;
    store.compact_physically(newest).await.unwrap();
    flush(&machine, &clock).await;
    let before = machine.disk.counts();
    for beat in 0..360 {
        clock.advance(10 * SECOND);
        newest = put(&store, "leases/n".into(), beat.to_string().into_bytes(), Durability::Ephemeral).await;
        store.lease_keep_alive(lease).await.unwrap();
        if beat % 30 == 29 {
            store.compact(newest - 10).await.unwrap();
        }
        if beat % 60 == 0 {
            store.range(RangeRequest::new(KeyRange::prefix("pods/"))).await.unwrap();
        }
    }
    assert_eq!(machine.disk.counts(), before);
    store.close().await.unwrap();
}

/// The compaction of what was written at the start is no reason to write heartbeats again.
#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_brings_no_flush() {
    let machine = Machine::counting();
    let clock = clock();
    let store = machine.open(&options(&clock)).unwrap();
    for i in 0..50 {
        put(&store, "pods/1".into(), kilobyte(i), Durability::Durable).await;
    }
    put(&store, "leases/n".into(), b"0".to_vec(), Durability::Ephemeral).await;
    flush(&machine, &clock).await;
    let newest = put(&store, "leases/n".into(), b"1".to_vec(), Durability::Ephemeral).await;
    let before = machine.disk.counts();
    store.compact_physically(newest - 1).await.unwrap();
    let compacted = machine.disk.counts();
    assert_ne!(compacted, before, "there was something to drop");
    for _ in 0..10 {
        clock.advance(100 * SECOND);
        // The writer has come past whatever the clock woke.
        store.lease_grant_ephemeral(0, 1_000_000).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(machine.disk.counts(), compacted);
    store.close().await.unwrap();
}

/// Bytes and syncs of `what`, for each of `n`.
fn report(what: &str, n: usize, before: Counts, after: Counts) -> u64 {
    let bytes = (after.bytes - before.bytes) / n as u64;
    println!("{what}: {bytes} bytes, {:.2} syncs", (after.syncs - before.syncs) as f64 / n as f64);
    bytes
}

/// Bounds are a half more than what was measured.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_written_for_each_write() {
    const N: usize = 2000;
    let machine = Machine::counting();
    let clock = clock();
    let store = Arc::new(machine.open(&options(&clock)).unwrap());

    let before = machine.disk.counts();
    for i in 0..N {
        put(&store, format!("pods/namespace/{i:08}"), kilobyte(i), Durability::Durable).await;
    }
    let create = report("a create of 1 kB, alone", N, before, machine.disk.counts());

    let before = machine.disk.counts();
    for i in 0..N {
        put(&store, format!("pods/namespace/{:08}", i * 7 % N), kilobyte(i), Durability::Durable).await;
    }
    let update = report("an update of 1 kB, alone", N, before, machine.disk.counts());

    let before = machine.disk.counts();
    for i in 0..N / 64 {
        let puts = (0..64).map(|c| {
            let key = format!("pods/namespace/{:08}", (i * 64 + c) * 7 % N);
            put(&store, key, kilobyte(c), Durability::Durable)
        });
        futures::future::join_all(puts).await;
    }
    let together = report("an update of 1 kB, with 64 clients", N / 64 * 64, before, machine.disk.counts());

    let before = machine.disk.counts();
    for i in 0..N {
        put(&store, "leases/node".into(), format!("{i:0300}").into_bytes(), Durability::Ephemeral).await;
    }
    let heartbeat = report("a heartbeat, without other writes", N, before, machine.disk.counts());

    for i in 0..N {
        put(&store, format!("events/namespace/{i:08}"), kilobyte(i), Durability::Ephemeral).await;
    }
    // A durable write is what lets them be flushed.
    put(&store, "pods/last".into(), kilobyte(0), Durability::Durable).await;
    let before = machine.disk.counts();
    flush(&machine, &clock).await;
    let event = report("an Event of 1 kB, flushed with others", N, before, machine.disk.counts());
    store.close().await.unwrap();

    assert_eq!(heartbeat, 0);
    let bounds = [
        ("create", create, 30_000),
        ("update", update, 36_000),
        ("together", together, 8_000),
        ("event", event, 15_000),
    ];
    for (what, bytes, bound) in bounds {
        assert!(bytes <= bound, "{what}: {bytes} bytes, more than {bound}");
    }
}
