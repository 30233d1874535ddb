//! `isopod cleanup`: leaves the machine as it was before Isopod, with or without a living server's records.

use crate::args::CleanupArgs;
use crate::paths::Paths;
use crate::wire;
use anyhow::{Context, bail};
use isopod_store::sqlite::SqliteStore;
use isopod_sys::mount;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

pub async fn run(args: CleanupArgs) -> anyhow::Result<()> {
    let paths = Paths::new(&args.data.data_dir)?;
    refuse_while_running(&paths)?;
    if !args.yes && !confirmed(&paths, args.keep_state)? {
        bail!("nothing was removed");
    }
    step("pods, containers, images", || {
        isopod_runtime::cleanup(&paths.runtime(), &paths.run, &args.cgroup_root).map_err(Into::into)
    })?;
    step("volumes", || remove_dir(&paths.kubelet()))?;
    step("pod network", || wire::remove_network(&paths))?;
    step("service rules", || isopod_proxy::Proxy::cleanup(wire::TABLE_PREFIX).map_err(Into::into))?;
    step("logs", || remove_dir(&paths.data.join("agent")))?;
    if !args.keep_state {
        step("datastore and keys", || remove_dir(&paths.data))?;
    }
    Ok(())
}

/// A server holds the lock of its datastore.
fn refuse_while_running(paths: &Paths) -> anyhow::Result<()> {
    if !paths.store().exists() {
        return Ok(());
    }
    SqliteStore::check_unused(paths.store())
        .map_err(|e| anyhow::Error::new(e).context("a server is running: stop it first"))
}

fn confirmed(paths: &Paths, keep_state: bool) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("this stops every pod and removes their data: say so with --yes");
    }
    let what = if keep_state { "all pods, images and volumes" } else { "all pods, images, volumes and the datastore" };
    print!("Remove {what} below {}? [y/N] ", paths.data.display());
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn step(what: &str, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    work().with_context(|| format!("cannot remove {what}"))?;
    println!("removed {what}");
    Ok(())
}

/// Removes a directory with what is mounted in it.
fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    let Ok(real) = dir.canonicalize() else { return Ok(()) };
    mount::detach_below(&real)?;
    std::fs::remove_dir_all(&real).with_context(|| format!("{}", real.display()))
}
