//! `isopod cleanup`: leaves the machine as it was before Isopod, with or without a living server's records.
//!
//! Invariants: it holds the same claims as a server on everything that it removes, so nothing of a running cluster goes,
//! whatever --data-dir it is given; it unmounts what Isopod mounted and removes no file behind a mount of somebody else.

use crate::args::CleanupArgs;
use crate::claim::{self, Lock};
use crate::paths::Paths;
use crate::{admin_config, wire};
use anyhow::{Context, bail};
use isopod_sys::mount;
use std::collections::BTreeSet;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

pub async fn run(args: CleanupArgs) -> anyhow::Result<()> {
    let paths = Paths::new(&args.data.data_dir)?;
    let _claims = claim_all(&paths, &args.cgroup_root).context("nothing was removed")?;
    if !args.yes && !confirmed(&paths, args.keep_state)? {
        bail!("nothing was removed");
    }
    step("pods, containers, images", || {
        isopod_runtime::cleanup(&paths.runtime(), &paths.run, &args.cgroup_root).map_err(Into::into)
    })?;
    let mut left = BTreeSet::new();
    step("volumes", || {
        if let Ok(kubelet) = paths.kubelet().canonicalize() {
            mount::detach_below(&kubelet)?;
        }
        remove_dir(&paths.kubelet(), &mut left)
    })?;
    step("pod network", || wire::remove_network(&paths))?;
    step("service rules", || isopod_proxy::Proxy::cleanup(wire::TABLE_PREFIX).map_err(Into::into))?;
    step("logs", || remove_dir(&paths.data.join("agent"), &mut left))?;
    if !args.keep_state {
        for path in admin_config::remove(&paths).context("cannot remove the kubeconfig")? {
            println!("removed kubeconfig {}", path.display());
        }
        step("datastore and keys", || remove_dir(&paths.data, &mut left))?;
    }
    for dir in left {
        println!("left {}: it is a mount of its own", dir.display());
    }
    Ok(())
}

/// Everything that goes. Without a data directory there is none to claim.
fn claim_all(paths: &Paths, cgroup_root: &str) -> anyhow::Result<(Option<Lock>, claim::Node)> {
    let data = if paths.data.exists() { Some(claim::data_directory(&paths.data)?) } else { None };
    Ok((data, claim::removal(cgroup_root)?))
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

/// Removes a directory. What is mounted in it, and it itself where it is a mount point, is somebody else's: that stays.
fn remove_dir(dir: &Path, left: &mut BTreeSet<PathBuf>) -> anyhow::Result<()> {
    if let Ok(real) = dir.canonicalize() {
        left.extend(mount::remove_tree(&real).with_context(|| real.display().to_string())?);
    }
    Ok(())
}
