//! `isopod`: Kubernetes in one program. This file chooses the subcommand; `wire/` is the only place where the parts of a
//! server meet.

mod admin_config;
mod args;
mod audit_flags;
mod auth_flags;
mod authz_flags;
mod backup;
mod check;
mod claim;
mod cleanup;
mod config;
mod datastore;
mod endpoint;
mod etcd_flags;
mod flagz;
mod front_proxy;
mod image;
mod node;
mod paths;
mod probe;
mod replace;
mod restore;
mod server;
mod signing_flags;
mod stacks;
mod wire;

use clap::{CommandFactory, Parser};
use isopod_base::errors::Chain;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The shim (zstd), run from a sealed in-memory file for every pod.
pub static SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shim.zst"));

fn main() -> ExitCode {
    stacks::run(program).unwrap_or_else(|e| fail(&e))
}

fn program() -> ExitCode {
    let expanded = match config::expand(std::env::args_os().collect()) {
        Ok(args) => args,
        Err(e) => return fail(e.as_ref()),
    };
    let etcd_flags::Expanded { args: expanded, notes } = match datastore_flags(expanded) {
        Ok(expanded) => expanded,
        Err(e) => return fail(e.as_ref()),
    };
    let flags = flagz::shown(&expanded);
    let cli = args::Cli::parse_from(expanded);
    isopod_pki::tls::install_provider();
    let result = match cli.command {
        args::Command::Server(a) => run(server::run(a, flags)),
        args::Command::Backup(a) => run(backup::run(a)),
        args::Command::Restore(a) => run(restore::run(a)),
        args::Command::Datastore(a) => run(datastore::run(*a, notes)),
        args::Command::Image(a) => run(image::run(a)),
        args::Command::Check(a) => check::run(&a),
        args::Command::Cleanup(a) => run(cleanup::run(a)),
        args::Command::Completion { shell } => {
            clap_complete::generate(shell, &mut args::Cli::command(), "isopod", &mut std::io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(e.as_ref()),
    }
}

/// etcd's flags for `isopod datastore`, beside those that it has.
fn datastore_flags(args: Vec<std::ffi::OsString>) -> anyhow::Result<etcd_flags::Expanded> {
    let command = args::Cli::command();
    let flags = command.find_subcommand("datastore").into_iter().flat_map(clap::Command::get_arguments);
    let known = flags.filter_map(clap::Arg::get_long).map(str::to_owned).collect();
    let vars = std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)));
    etcd_flags::expand(args, &known, vars)
}

/// Two worker threads are enough for an edge device; more cores get one each, up to eight.
fn run<F: Future<Output = anyhow::Result<()>>>(work: F) -> anyhow::Result<()> {
    give_memory_back();
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = stacks::of(runtime.worker_threads(cores.clamp(2, 8))).enable_all().build()?;
    let result = runtime.block_on(work);
    // A blocked thread (a terminal's stdin) must not keep the process alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

/// Has a thread of the allocator give back to the kernel what a burst has left: without it nothing is given back while nothing is
/// allocated. An allocator that cannot is no reason not to run.
fn give_memory_back() {
    let _ = tikv_jemalloc_ctl::max_background_threads::write(1);
    let _ = tikv_jemalloc_ctl::background_thread::write(true);
}

fn fail(e: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("isopod: {}", Chain(e));
    ExitCode::FAILURE
}
