//! A load generator for `make bench`: it creates, gets, lists and watches objects over TLS and prints one JSON object with
//! rate and latencies. It works on any Kubernetes API server that a kubeconfig with a client certificate names, so that two
//! servers can be compared.

mod closed;
mod cpu;
mod events;
mod target;

use clap::Parser;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Parser)]
struct Args {
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Connections that send at once
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Requests in all, or changes that are watched
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// Watches of watch-changes, 100 to a connection
    #[arg(long, default_value_t = 100)]
    watchers: usize,
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Objects are called PREFIX-N
    #[arg(long, default_value = "load")]
    prefix: String,
    /// Accept header of reads
    #[arg(long, default_value = "application/json")]
    accept: String,
    /// Accept-Encoding header of reads; what is compressed is not unpacked
    #[arg(long, default_value = "identity")]
    accept_encoding: String,
    /// Image of start-pods
    #[arg(long, default_value = "busybox")]
    image: String,
    /// Processes of the server, here, whose processor time is told
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// create-configmaps, create-pods, create-services, get-configmaps, list-pods, list-configmaps, watch-changes, start-pods
    work: String,
}

/// What was measured: quantiles of these times, and `more`.
fn report(args: &Args, mut took: Vec<Duration>, more: Value) -> Value {
    took.sort_unstable();
    let at = |q: f64| took.get((took.len() as f64 * q) as usize).map_or(0.0, |d| d.as_secs_f64() * 1000.0);
    let mut out =
        json!({"work": args.work, "clients": args.clients, "count": took.len(), "p50_ms": at(0.5), "p99_ms": at(0.99)});
    for (key, value) in more.as_object().into_iter().flatten() {
        out[key] = value.clone();
    }
    out
}

fn main() -> anyhow::Result<()> {
    let args = Arc::new(Args::parse());
    // It has one core as a rule.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = runtime.block_on(async {
        let target = Arc::new(target::Target::read(&args.kubeconfig)?);
        match args.work.as_str() {
            "watch-changes" => events::changes(args, target).await,
            "start-pods" => events::pods(args, target).await,
            _ => closed::run(args, target).await,
        }
    })?;
    println!("{measured}");
    Ok(())
}
