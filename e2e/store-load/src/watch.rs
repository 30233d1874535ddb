//! How long it takes from the moment a put is sent until watches have heard of it.

use crate::Args;
use crate::closed::{Load, key, update};
use crate::grpc::{Client, Messages};
use crate::messages::*;
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use rand::Rng;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Watches that share a stream, as those of an API server do.
const STREAM: usize = 100;

/// A put, named by its revision, was heard of by a watch.
struct Heard {
    revision: i64,
    at: Instant,
}

/// `prefix/`: kine watches directories only.
fn watched(prefix: &str, n: u64) -> WatchRequest {
    let key = key(prefix, n);
    let start = [&key[..], b"/"].concat();
    let end = [&key[..], b"0"].concat();
    WatchRequest { create: Some(WatchCreate { key: start.into(), range_end: end.into() }) }
}

async fn listen(mut messages: Messages, heard: mpsc::UnboundedSender<Heard>) -> anyhow::Result<()> {
    while let Some(answer) = messages.next::<WatchResponse>().await? {
        let at = Instant::now();
        ensure!(!answer.canceled, "a watch was cancelled");
        for kv in answer.events.into_iter().filter_map(|e| e.kv) {
            if heard.send(Heard { revision: kv.mod_revision, at }).is_err() {
                return Ok(());
            }
        }
    }
    bail!("the server ended a stream of watches")
}

async fn open(args: &Args, heard: &mpsc::UnboundedSender<Heard>) -> anyhow::Result<()> {
    let all: Vec<u64> = (0..args.watches).map(|w| (w / args.watches_a_key) as u64).collect();
    for part in all.chunks(STREAM) {
        let client = Client::connect(&args.endpoint).await?;
        let requests: Vec<WatchRequest> = part.iter().map(|n| watched(&args.prefix, *n)).collect();
        let (out, mut messages) = client.stream("/etcdserverpb.Watch/Watch", &requests).await?;
        let mut created = 0;
        while created < part.len() {
            let answer: WatchResponse = messages.next().await?.context("the server ended a stream of watches")?;
            created += usize::from(answer.created);
        }
        let heard = heard.clone();
        tokio::spawn(async move {
            // Both directions stay open as long as somebody listens.
            let _kept = (out, client);
            listen(messages, heard).await
        });
    }
    Ok(())
}

/// Puts once; the revision.
async fn put(load: &Load, client: &Client, n: u64, round: usize) -> anyhow::Result<i64> {
    let args = &load.args;
    let name: Bytes = [&key(&args.prefix, n)[..], format!("/{round}").as_bytes()].concat().into();
    let header = if args.transactions {
        let answer: TxnResponse = client.ask("/etcdserverpb.KV/Txn", &update(name, load.value(), 0, false)).await?;
        ensure!(answer.succeeded, "a key of an earlier run is there: choose another --prefix");
        answer.header
    } else {
        let put = PutRequest { key: name, value: load.value() };
        client.ask::<Answer>("/etcdserverpb.KV/Put", &put).await?.header
    };
    Ok(header.unwrap_or_default().revision)
}

pub async fn run(args: Args) -> anyhow::Result<Value> {
    let (sender, mut heard) = mpsc::unbounded_channel();
    open(&args, &sender).await?;
    let client = Client::connect(&args.endpoint).await?;
    let load = Load::new(args);
    let args = &load.args;
    let keys = args.watches.div_ceil(args.watches_a_key) as u64;
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / args.rate));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut took = Vec::new();
    let start = Instant::now();
    for round in 0..args.count.max(1) as usize {
        ticks.tick().await;
        let n = rand::rng().random_range(0..keys);
        let begin = Instant::now();
        let revision = put(&load, &client, n, round).await?;
        // The last key may have fewer.
        let wanted = args.watches_a_key.min(args.watches - n as usize * args.watches_a_key);
        for _ in 0..wanted {
            let next = tokio::time::timeout(Duration::from_secs(30), heard.recv()).await;
            let event = next.context("a watch heard nothing for 30 s")?.context("no watch is left")?;
            ensure!(event.revision == revision, "a watch heard of {} instead of {revision}", event.revision);
            took.push(event.at - begin);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(crate::report(args, took, json!({"seconds": seconds, "watches": args.watches})))
}
