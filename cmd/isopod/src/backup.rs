//! `isopod backup`: the datastore and the keys that make a cluster the same one again, in one file.
//!
//! Invariants: nothing of a running server is touched or waited for; a backup appears under its name only when it is whole and
//! on the disk; it is readable by its owner only, as the keys in it are.

use crate::args::{BackupArgs, Datastore};
use crate::endpoint::Endpoint;
use crate::paths::Paths;
use crate::replace::file_time;
use anyhow::{Context, bail};
use indicatif::DecimalBytes;
use isopod_store::archive::{self, ArchivedFile, Content, Header};
use isopod_store::sqlite;
use isopod_store::{Options, Store};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

const PREFIX: &str = "isopod-backup-";
const SUFFIX: &str = ".isopod";

pub async fn run(args: BackupArgs) -> anyhow::Result<()> {
    let paths = Paths::new(&args.data.data_dir)?;
    let (content, store) = content(&args.datastore, &paths).await?;
    let lacks_memory = content.reserved > 0;
    let backup = Backup { keys: keys(&paths)?, source: source(&paths, store.is_some()), content };
    let written = write(args.output, backup, lacks_memory).await;
    if let Some(store) = store {
        store.close().await.context("cannot close the datastore")?;
    }
    if let (Some(target), Some(keep)) = (written?, args.keep) {
        for gone in prune(target.parent().unwrap_or(Path::new("/")), keep as usize)? {
            println!("Removed {}", gone.display());
        }
    }
    Ok(())
}

/// What the datastore holds now. SQLite's is read beside whoever has it open; a shared one is opened as a server would, and
/// returned.
async fn content(args: &Datastore, paths: &Paths) -> anyhow::Result<(Content, Option<Arc<dyn Store>>)> {
    let endpoint = Endpoint::parse(&args.datastore_endpoint)?;
    if let Some(dir) = endpoint.directory(paths.store()) {
        if !sqlite::exists(&dir) {
            bail!("there is no datastore in {}; say with --data-dir where the server has its data", dir.display());
        }
        return Ok((sqlite::content(&dir)?, None));
    }
    if !endpoint.is_shared() {
        bail!("what a server keeps in its memory alone cannot be backed up from outside");
    }
    let store = endpoint.open(args, paths.store(), Options::default()).await?;
    Ok((Content::of(&*store).await?, Some(store)))
}

/// Says what was written, and returns where if it is a file.
async fn write(output: Option<PathBuf>, backup: Backup, lacks_memory: bool) -> anyhow::Result<Option<PathBuf>> {
    if output.as_deref() == Some(Path::new("-")) {
        let header = to_stdout(backup).await?;
        eprintln!("{}", described(&header, "standard output", lacks_memory));
        return Ok(None);
    }
    let target = target(output)?;
    let (header, size) = to_file(&target, backup).await?;
    println!("{}", described(&header, &format!("{}, {}", target.display(), DecimalBytes(size)), lacks_memory));
    Ok(Some(target))
}

/// What goes into the file.
struct Backup {
    content: Content,
    keys: Vec<ArchivedFile>,
    source: String,
}

impl Backup {
    /// Runs on a thread that may wait.
    fn write<W: Write>(self, out: W) -> anyhow::Result<(W, Header)> {
        let program = concat!("isopod ", env!("CARGO_PKG_VERSION"));
        let (mut out, header) = archive::write(BufWriter::new(out), self.content, &self.keys, &self.source, program)?;
        out.flush().context("cannot write the backup")?;
        let out = out.into_inner().map_err(io::IntoInnerError::into_error).context("cannot write the backup")?;
        Ok((out, header))
    }
}

fn described(header: &Header, place: &str, lacks_memory: bool) -> String {
    let mut text = format!("Backup in {place}: revision {}, {} keys", header.revision, header.keys);
    if lacks_memory {
        text += "\nNot in it: heartbeats and Events that the server has in memory only (of the last minutes)";
    }
    text
}

/// In words, and without the endpoint: it may have a password in it.
fn source(paths: &Paths, shared: bool) -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let datastore = if shared { "a shared datastore and the keys" } else { "the datastore" };
    format!("{datastore} in {} on {}", paths.data.display(), host.trim())
}

/// The keys that are there: a datastore without a server has none.
fn keys(paths: &Paths) -> anyhow::Result<Vec<ArchivedFile>> {
    let mut keys = Vec::new();
    for name in isopod_pki::LASTING {
        let path = paths.tls().join(name);
        let cannot = || format!("cannot read {}", path.display());
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).with_context(cannot),
        };
        let mode = fs::metadata(&path).with_context(cannot)?.permissions().mode() & 0o777;
        keys.push(ArchivedFile { name: name.to_owned(), mode, content: content.into() });
    }
    Ok(keys)
}

fn target(output: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let name = format!("{PREFIX}{}{SUFFIX}", file_time());
    let target = match output {
        None => PathBuf::from(name),
        Some(dir) if dir.is_dir() => dir.join(name),
        Some(file) => file,
    };
    std::path::absolute(&target).with_context(|| format!("cannot use {}", target.display()))
}

async fn to_stdout(backup: Backup) -> anyhow::Result<Header> {
    if io::stdout().is_terminal() {
        bail!("a backup is no text: send it to a file or a program, or leave `--output -` out");
    }
    let (_, header) = tokio::task::spawn_blocking(move || backup.write(io::stdout())).await??;
    Ok(header)
}

/// Writes beside the target and moves it there. Who is told to stop leaves nothing behind.
async fn to_file(target: &Path, backup: Backup) -> anyhow::Result<(Header, u64)> {
    let mut name = OsString::from(".");
    name.push(target.file_name().context("--output needs the name of a file")?);
    name.push(format!(".{}.tmp", std::process::id()));
    let part = target.with_file_name(name);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
    let file = file.with_context(|| format!("cannot create {}", part.display()))?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let work = move || -> anyhow::Result<(Header, u64)> {
        let (file, header) = backup.write(file)?;
        file.sync_all().context("cannot write the backup")?;
        Ok((header, file.metadata()?.len()))
    };
    let written = tokio::select! {
        written = tokio::task::spawn_blocking(work) => written?,
        _ = terminate.recv() => Err(anyhow::anyhow!("the backup was told to stop")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("the backup was told to stop")),
    };
    let placed = written.and_then(|done| {
        fs::rename(&part, target).with_context(|| format!("cannot write {}", target.display()))?;
        File::open(target.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        Ok(done)
    });
    if placed.is_err() {
        let _ = fs::remove_file(&part);
    }
    placed
}

/// Removes the oldest backups with names of ours, so that `keep` are left. The time in the name is their order.
fn prune(dir: &Path, keep: usize) -> anyhow::Result<Vec<PathBuf>> {
    let cannot = || format!("cannot look for older backups in {}", dir.display());
    let mut ours = Vec::new();
    for entry in fs::read_dir(dir).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            ours.push(path);
        }
    }
    ours.sort();
    ours.truncate(ours.len().saturating_sub(keep));
    for old in &ours {
        fs::remove_file(old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept() {
        let dir = std::env::temp_dir().join(format!("isopod-prune-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let names = [
            "isopod-backup-20260102T000000Z.isopod",
            "isopod-backup-20260101T000000Z.isopod",
            "other.isopod",
            "isopod-backup-20260103T000000Z.isopod",
            "isopod-backup-notes.txt",
        ];
        for name in names {
            fs::write(dir.join(name), "x").unwrap();
        }
        assert_eq!(prune(&dir, 2).unwrap(), [dir.join(names[1])]);
        assert!(prune(&dir, 2).unwrap().is_empty());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 4);
        fs::remove_dir_all(dir).unwrap();
    }
}
