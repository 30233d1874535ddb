//! Clients that each send their next request when the last one is answered.

use crate::grpc::Client;
use crate::messages::*;
use crate::{Args, Work};
use anyhow::ensure;
use bytes::Bytes;
use rand::Rng;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

pub const GROUP: u64 = 10_000;
const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";
const TXN: &str = "/etcdserverpb.KV/Txn";

/// What the clients share; all run on one thread.
pub struct Load {
    pub args: Args,
    sent: Cell<u64>,
    conflicts: Cell<u64>,
    /// The revision of each key as last heard of.
    revisions: RefCell<Vec<i64>>,
    noise: Bytes,
}

pub fn key(prefix: &str, n: u64) -> Bytes {
    format!("{prefix}/{:05}/{:05}", n / GROUP, n % GROUP).into()
}

fn group(prefix: &str, n: u64) -> RangeRequest {
    // "0" comes after "/".
    RangeRequest { key: format!("{prefix}/{n:05}/").into(), range_end: format!("{prefix}/{n:05}0").into() }
}

pub fn update(key: Bytes, value: Bytes, revision: i64, get: bool) -> TxnRequest {
    let range = RangeRequest { key: key.clone(), range_end: Bytes::new() };
    let op = |op| vec![RequestOp { request: Some(op) }];
    TxnRequest {
        compare: vec![Compare { result: 0, target: 2, key: key.clone(), mod_revision: Some(revision) }],
        success: op(Op::Put(PutRequest { key, value })),
        failure: if get { op(Op::Range(range)) } else { Vec::new() },
    }
}

impl Load {
    pub fn new(args: Args) -> Self {
        // Nothing that a server could compress.
        let noise: Vec<u8> = (0..(args.value_bytes + (64 << 10))).map(|_| rand::random()).collect();
        let revisions = RefCell::new(vec![0; args.keys as usize]);
        Load { args, sent: Cell::new(0), conflicts: Cell::new(0), revisions, noise: noise.into() }
    }

    pub fn value(&self) -> Bytes {
        let from = rand::rng().random_range(0..64 << 10);
        self.noise.slice(from..from + self.args.value_bytes)
    }

    fn random(&self) -> u64 {
        rand::rng().random_range(0..self.args.keys)
    }

    /// True: the transaction wrote.
    async fn update(&self, client: &Client, n: u64) -> anyhow::Result<bool> {
        let known = self.revisions.borrow()[n as usize];
        let key = key(&self.args.prefix, n);
        let answer: TxnResponse = client.ask(TXN, &update(key, self.value(), known, true)).await?;
        let revision = if answer.succeeded {
            answer.header.unwrap_or_default().revision
        } else {
            let found =
                answer.responses.into_iter().next().and_then(|r| r.range).and_then(|r| r.kvs.into_iter().next());
            found.map_or(0, |kv| kv.mod_revision)
        };
        let mut revisions = self.revisions.borrow_mut();
        revisions[n as usize] = revision.max(revisions[n as usize]);
        Ok(answer.succeeded)
    }

    async fn request(&self, client: &Client, sent: u64) -> anyhow::Result<()> {
        let prefix = &self.args.prefix;
        match self.args.work {
            Work::Put => {
                let put = PutRequest { key: key(prefix, self.random()), value: self.value() };
                client.ask::<Answer>(PUT, &put).await?;
            }
            Work::Create => {
                let txn = update(key(prefix, self.args.keys + sent), self.value(), 0, false);
                let answer: TxnResponse = client.ask(TXN, &txn).await?;
                ensure!(answer.succeeded, "key {} is there already", self.args.keys + sent);
            }
            Work::Update => {
                if !self.update(client, self.random()).await? {
                    self.conflicts.set(self.conflicts.get() + 1);
                }
            }
            Work::Get => {
                let range = RangeRequest { key: key(prefix, self.random()), range_end: Bytes::new() };
                let answer: RangeResponse = client.ask(RANGE, &range).await?;
                ensure!(answer.count == 1, "a key is not there");
            }
            Work::List => {
                let groups = self.args.keys.div_ceil(GROUP);
                let wanted = self.args.keys.min(GROUP) as i64;
                let range = group(prefix, rand::rng().random_range(0..groups));
                let answer: RangeResponse = client.ask(RANGE, &range).await?;
                ensure!(answer.count == wanted, "a list of {wanted} keys has {}", answer.count);
            }
            Work::Compact => {
                let missing = RangeRequest { key: format!("{prefix}-none").into(), range_end: Bytes::new() };
                let newest: Answer = client.ask(RANGE, &missing).await?;
                let revision = newest.header.unwrap_or_default().revision;
                let path = "/etcdserverpb.KV/Compact";
                client.ask::<Answer>(path, &CompactionRequest { revision, physical: true }).await?;
            }
            Work::Defragment => {
                client.ask::<Answer>("/etcdserverpb.Maintenance/Defragment", &Empty {}).await?;
            }
            Work::Watch => {}
        }
        Ok(())
    }

    /// Learns the revisions of all keys that are there.
    async fn learn(&self, client: &Client) -> anyhow::Result<()> {
        for n in 0..self.args.keys.div_ceil(GROUP) {
            let found: KeysResponse = client.ask(RANGE, &group(&self.args.prefix, n)).await?;
            let mut revisions = self.revisions.borrow_mut();
            for kv in found.kvs {
                let number =
                    kv.key.rsplit(|b| *b == b'/').next().and_then(|b| std::str::from_utf8(b).ok()?.parse().ok());
                let place = number.and_then(|i: u64| revisions.get_mut((n * GROUP + i) as usize));
                if let Some(place) = place {
                    *place = kv.mod_revision;
                }
            }
        }
        Ok(())
    }
}

async fn client(load: Rc<Load>, client: Client, end: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut took = Vec::new();
    loop {
        let sent = load.sent.get();
        let begin = Instant::now();
        if (load.args.count > 0 && sent >= load.args.count) || begin >= end {
            return Ok(took);
        }
        load.sent.set(sent + 1);
        load.request(&client, sent).await?;
        took.push(begin.elapsed());
    }
}

pub async fn run(args: Args) -> anyhow::Result<Value> {
    let mut connections = Vec::new();
    for _ in 0..args.connections.min(args.clients) {
        connections.push(Client::connect(&args.endpoint).await?);
    }
    let load = Rc::new(Load::new(args));
    if load.args.work == Work::Update {
        load.learn(&connections[0]).await?;
    }
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(load.args.seconds);
    let work = async {
        let tasks: Vec<_> = (0..load.args.clients)
            .map(|n| {
                tokio::task::spawn_local(client(Rc::clone(&load), connections[n % connections.len()].clone(), end))
            })
            .collect();
        let mut took = Vec::new();
        for task in tasks {
            took.extend(task.await??);
        }
        anyhow::Ok(took)
    };
    let took = tokio::task::LocalSet::new().run_until(work).await?;
    let seconds = start.elapsed().as_secs_f64();
    let more =
        json!({"seconds": seconds, "per_second": took.len() as f64 / seconds, "conflicts": load.conflicts.get()});
    Ok(crate::report(&load.args, took, more))
}
