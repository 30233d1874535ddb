//! Drives servers of etcd's API with many clients, records what each of them saw, and checks it: `isopod-e2e-history
//! --endpoint http://127.0.0.1:2379`. Servers may be killed, stopped, cut off and started again meanwhile: an outcome that a
//! client was not told is one that the checker has to find. Several endpoints are servers of one datastore.
//!
//! Ends with 0 if all was right, with 1 and a report if not, with 2 if it could not be told.

mod client;
mod convert;
mod record;
mod watcher;
mod wishes;

use anyhow::{Context, bail};
use clap::Parser;
use client::Connection;
use isopod_history::{Answer, Get, History, Keys, Note, Outcome, Request, Revision, Step, Txn};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use record::Recorder;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use wishes::Wishes;

/// How long the servers have to answer again after the last fault.
const SETTLE: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Args {
    /// A server; several are servers of one datastore
    #[arg(long = "endpoint", required_unless_present = "check")]
    endpoints: Vec<String>,
    #[arg(long, default_value_t = 12)]
    clients: usize,
    #[arg(long, default_value_t = 6)]
    watchers: usize,
    /// How long the clients write and read
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Operations a second of each client at most
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Decides what is asked for; not how the servers interleave it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Others write to the datastore as well, if only leases of an earlier run that end: revisions may have gaps
    #[arg(long)]
    shared: bool,
    /// Writes the history to this file
    #[arg(long)]
    dump: Option<PathBuf>,
    /// Checks a history that was written before, and asks no server
    #[arg(long)]
    check: Option<PathBuf>,
}

fn main() -> ExitCode {
    let judged = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(Args::parse())));
    match judged {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("the history cannot be judged: {e:#}");
            ExitCode::from(2)
        }
    }
}

async fn run(args: Args) -> anyhow::Result<bool> {
    if let Some(file) = &args.check {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let history = serde_json::from_slice(&bytes).with_context(|| format!("no history: {}", file.display()))?;
        return judge(&history);
    }
    let history = record(&args).await?;
    if let Some(file) = &args.dump {
        let bytes = serde_json::to_vec(&history)?;
        std::fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
    }
    judge(&history)
}

fn judge(history: &History) -> anyhow::Result<bool> {
    match isopod_history::check(history) {
        Ok(summary) => {
            println!("right: {summary:?}");
            if summary.transactions < 10 || summary.events < 10 {
                bail!("too little happened to tell: {summary:?}");
            }
            Ok(true)
        }
        Err(violation) => {
            println!("{}", isopod_history::report(history, &violation));
            Ok(false)
        }
    }
}

async fn record(args: &Args) -> anyhow::Result<History> {
    let prefix = format!("history/{}-{:08x}/", args.seed, rand::rng().random::<u32>());
    let recorder = Arc::new(Recorder::new());
    let mut connection = Connection::new(args.endpoints.clone(), 0);
    let base = baseline(&mut connection, &prefix).await?;
    recorder.newest.store(base, Ordering::SeqCst);
    recorder.witnessed.store(base + 1, Ordering::SeqCst);
    let (asking, watching) = (CancellationToken::new(), CancellationToken::new());
    let mut watchers = Vec::new();
    for n in 0..=args.watchers {
        let task = watcher::Watcher {
            recorder: Arc::clone(&recorder),
            connection: Connection::new(args.endpoints.clone(), n),
            rng: StdRng::seed_from_u64(args.seed ^ (1000 + n as u64)),
            prefix: prefix.clone(),
            client: 1000 + n as u32,
        };
        // The first one is the witness: it sees everything, from the beginning.
        let start = if n == 0 { base + 1 } else { 0 };
        watchers.push(tokio::spawn(task.run(n == 0, start, watching.clone())));
    }
    let mut clients = Vec::new();
    for n in 0..args.clients {
        let wishes = Wishes::new(args.seed.wrapping_mul(31).wrapping_add(n as u64), n as u32, prefix.clone());
        let connection = Connection::new(args.endpoints.clone(), n);
        let task = client::run(wishes, connection, Arc::clone(&recorder), asking.clone(), args.rate);
        clients.push(tokio::spawn(task));
    }
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    asking.cancel();
    for client in clients {
        client.await.context("a client ended badly")?;
    }
    let ended = end(&recorder, &mut connection, &prefix).await;
    watching.cancel();
    for watcher in watchers {
        watcher.await.context("a watcher ended badly")?;
    }
    let (operations, watches) = recorder.take();
    let history = History { base, alone: !args.shared, operations, watches, ..History::default() };
    match ended {
        // What was seen until then may show why.
        Err(e) if isopod_history::check(&history).is_ok() => Err(e),
        _ => Ok(history),
    }
}

/// The revision before anything happens under the prefix.
async fn baseline(connection: &mut Connection, prefix: &str) -> anyhow::Result<Revision> {
    let deadline = Instant::now() + SETTLE;
    let request = Request::Get(Get::newest(Keys::prefix(prefix)));
    loop {
        if let Some(Outcome::Answered(answer)) = connection.ask(&request).await {
            return Ok(answer.revision());
        }
        if Instant::now() > deadline {
            bail!("no server answers within {} s", SETTLE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A last write, which the witness must see, and a last look at everything.
async fn end(recorder: &Recorder, connection: &mut Connection, prefix: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLE;
    let put = |n: u64| {
        let step = Step::Put { key: format!("{prefix}end"), value: format!("end {n}"), lease: 0, prev: false };
        Request::Txn(Txn::of(vec![step]))
    };
    let mut last = 0;
    for n in 0.. {
        if let Some(Outcome::Answered(Answer::Txn { revision, .. })) = recorder.operation(0, put(n), connection).await {
            last = revision;
            break;
        }
        if Instant::now() > deadline {
            bail!("no server takes a write {} s after the end", SETTLE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    while recorder.witnessed.load(Ordering::SeqCst) <= last {
        if Instant::now() > deadline {
            bail!("the witness was not told of revision {last} within {} s", SETTLE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let get = Request::Get(Get::newest(Keys::prefix(prefix)));
    while !matches!(recorder.operation(0, get.clone(), connection).await, Some(Outcome::Answered(_))) {
        if Instant::now() > deadline {
            bail!("no server answers a read {} s after the end", SETTLE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// How far a watch has told everything.
fn told(next: Revision, note: &Note) -> Revision {
    match note {
        Note::Events(rev, _) | Note::Progress(rev) => next.max(rev + 1),
        _ => next,
    }
}
