//! The load of `make bench-store`: puts, transactions, ranges and watches on anything that speaks etcd's API, and one JSON
//! object with rate and latencies. Keys are called PREFIX/GROUP/NUMBER, ten thousand to a group.

mod closed;
mod grpc;
mod messages;
mod watch;

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Work {
    /// Put of a random key, whatever it is
    Put,
    /// Transaction that makes the next key if it is not there
    Create,
    /// Transaction that writes a random key if its revision is the one last heard of, and else gets it
    Update,
    /// Range of one random key
    Get,
    /// Range of a random group
    List,
    /// Puts at a steady rate, and when watches hear of them
    Watch,
    /// Compacts at the newest revision
    Compact,
    Defragment,
}

#[derive(Parser)]
struct Args {
    /// HOST:PORT, without TLS
    #[arg(long)]
    endpoint: String,
    /// Each sends its next request when the last one is answered
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Shared by the clients
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Requests in all; 0: as many as fit into the time
    #[arg(long, default_value_t = 0)]
    count: u64,
    /// Ends earlier if all requests are answered
    #[arg(long, default_value_t = 1e9)]
    seconds: f64,
    /// Keys that requests choose from; created keys begin after them
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    #[arg(long, default_value_t = 1024)]
    value_bytes: usize,
    #[arg(long, default_value = "/registry/bench")]
    prefix: String,
    #[arg(long, default_value_t = 1000)]
    watches: usize,
    /// Watches that hear of the same key
    #[arg(long, default_value_t = 1)]
    watches_a_key: usize,
    /// Puts a second while watches are measured
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Watched keys are written by transactions that compare: kine knows no others
    #[arg(long)]
    transactions: bool,
    work: Work,
}

/// What was measured: quantiles of these times, and `more`.
fn report(args: &Args, mut took: Vec<Duration>, more: Value) -> Value {
    took.sort_unstable();
    let at = |q: f64| took.get((took.len() as f64 * q) as usize).map_or(0.0, |d| d.as_secs_f64() * 1000.0);
    let mut out = json!({
        "clients": args.clients, "count": took.len(), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0 - 1e-9),
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        out[key] = value.clone();
    }
    out
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // One thread: the load has one core, and the server the other.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = runtime.block_on(async {
        match args.work {
            Work::Watch => watch::run(args).await,
            _ => closed::run(args).await,
        }
    })?;
    println!("{measured}");
    Ok(())
}
