//! `isopod datastore import`: a datastore made of what another program kept.

use crate::args::ImportArgs;
use crate::paths::Paths;
use crate::replace::{Place, Target};
use anyhow::{Context, bail};
use isopod_apiserver::Adoption;
use isopod_etcd::snapshot_file;
use isopod_store::archive::{Content, Depth};
use isopod_store::kine;
use isopod_store::{HistoryEntry, KeyValue, Revision, StoreError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

pub async fn run(args: ImportArgs) -> anyhow::Result<()> {
    let source = Source::of(&args.from)?;
    tokio::task::spawn_blocking(move || import(&args, &source)).await?
}

/// What is read.
#[derive(Debug, PartialEq)]
enum Source {
    /// kine's database on SQLite.
    Kine(PathBuf),
    /// A snapshot of etcd's, or the database of a member.
    Snapshot(PathBuf),
}

impl Source {
    fn of(url: &str) -> anyhow::Result<Source> {
        let wrong = || {
            format!(
                "--from {url}: write sqlite:///PATH (kine's database, such as /var/lib/rancher/k3s/server/db/state.db) or \
                 etcd-snapshot:///PATH"
            )
        };
        let (scheme, path) = url.split_once("://").with_context(wrong)?;
        let path = path.split('?').next().filter(|p| p.starts_with('/')).map(PathBuf::from);
        match (scheme, path) {
            ("sqlite", Some(path)) => Ok(Source::Kine(path)),
            ("etcd-snapshot", Some(path)) => Ok(Source::Snapshot(path)),
            _ => bail!(wrong()),
        }
    }

    fn path(&self) -> &Path {
        let (Source::Kine(path) | Source::Snapshot(path)) = self;
        path
    }

    /// Its content, and why its history is not in it although it was asked for.
    fn content(&self, depth: Depth) -> Result<(Content, Option<String>), StoreError> {
        match self {
            Source::Kine(path) => kine::content(path, depth),
            Source::Snapshot(path) => Ok((snapshot_file::content(path, depth)?, None)),
        }
    }
}

fn import(args: &ImportArgs, source: &Source) -> anyhow::Result<()> {
    let ours = args.purpose == "isopod";
    let depth = if ours { Depth::Newest } else { Depth::History };
    let target = Target::of(&args.datastore)?;
    let (content, left) = source.content(depth)?;
    let place = Place::claim(Paths::new(&args.data.data_dir)?, &target, false, args.force)?;
    let (found, revision) = (content.keys, content.export.revision);
    let (content, taken) = if ours { adopted(content, args.skip_unreadable)? } else { (content, None) };
    let done = place.fill(content, &[])?;
    println!("Imported {} at revision {revision}: {found} keys", source.path().display());
    if let Some(why) = left {
        println!("Its history does not fit together ({why}): only the newest state was taken");
    }
    if let Some(taken) = taken {
        println!("{}", taken.blocking_recv().context("the import did not come to its end")?);
    }
    for aside in done.aside {
        println!("The datastore that was there is in {aside}");
    }
    let command = if ours { "server" } else { "datastore" };
    match target {
        Target::DataDirectory => println!("Next: isopod {command} --data-dir {}", done.data.display()),
        // The endpoint may have a password in it.
        Target::Postgres(_) => println!("Next: isopod {command} with the same --datastore-endpoint"),
    }
    Ok(())
}

/// What became of the objects.
#[derive(Default)]
struct Taken {
    objects: u64,
    /// Prefixes of keys that are no objects, and how many there were.
    left: BTreeMap<String, u64>,
    unreadable: Vec<String>,
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} objects taken over", self.objects)?;
        let left: Vec<String> = self.left.iter().map(|(prefix, n)| format!("{prefix} ({n})")).collect();
        if !left.is_empty() {
            write!(f, "; not objects, and left behind: {}", left.join(", "))?;
        }
        for line in &self.unreadable {
            write!(f, "\nLeft out: {line}")?;
        }
        Ok(())
    }
}

/// The content as our API server stores it, and, when all of it was taken, what became of the objects.
fn adopted(
    content: Content,
    skip_unreadable: bool,
) -> anyhow::Result<(Content, Option<tokio::sync::oneshot::Receiver<Taken>>)> {
    let Content { state, reserved, keys, mut export } = content;
    let (sender, entries) = mpsc::channel(2);
    let (done, taken) = tokio::sync::oneshot::channel();
    // Services' addresses and ports are written after everything else, in a transaction of their own.
    let last = export.revision + 1;
    let mut incoming = std::mem::replace(&mut export.entries, entries);
    (export.revision, export.compacted) = (last, last);
    let work = move || {
        let mut run = || -> Result<Taken, StoreError> {
            let mut adoption = Adoption::default();
            let mut taken = Taken::default();
            while let Some(part) = incoming.blocking_recv() {
                let part = part?.into_iter();
                let part: Vec<HistoryEntry> = part.filter_map(|e| adopt(&mut adoption, &mut taken, e)).collect();
                if !taken.unreadable.is_empty() && !skip_unreadable {
                    return Err(unreadable(&taken));
                }
                if sender.blocking_send(Ok(part)).is_err() {
                    return Err(StoreError::Closed);
                }
            }
            let claims = (0..).zip(adoption.claims()).map(|(sub, claim)| put(last, sub, claim));
            let _ = sender.blocking_send(Ok(claims.collect()));
            Ok(taken)
        };
        match run() {
            Ok(taken) => drop(done.send(taken)),
            Err(e) => drop(sender.blocking_send(Err(e))),
        }
    };
    std::thread::Builder::new().name("import".into()).spawn(work).context("cannot start a thread")?;
    Ok((Content { state, reserved, keys, export }, Some(taken)))
}

fn adopt(adoption: &mut Adoption, taken: &mut Taken, mut entry: HistoryEntry) -> Option<HistoryEntry> {
    let kv = entry.kv.as_mut()?;
    let key = String::from_utf8_lossy(&kv.key).into_owned();
    match adoption.object(&key, &kv.value) {
        Ok(Some(stored)) => {
            kv.value = stored;
            taken.objects += 1;
            Some(entry)
        }
        Ok(None) => {
            let prefix: Vec<&str> = key.splitn(4, '/').take(3).collect();
            *taken.left.entry(prefix.join("/")).or_default() += 1;
            None
        }
        Err(e) => {
            taken.unreadable.push(format!("{key}: {}", isopod_base::errors::Chain(&e)));
            None
        }
    }
}

fn unreadable(taken: &Taken) -> StoreError {
    let first = taken.unreadable.first().map(String::as_str).unwrap_or_default();
    let why = std::io::Error::new(std::io::ErrorKind::InvalidData, "leave such objects out with --skip-unreadable");
    StoreError::Backend { context: format!("cannot take over {first}"), source: Arc::new(why) }
}

fn put(revision: Revision, sub: u32, (key, value): (String, bytes::Bytes)) -> HistoryEntry {
    let key = bytes::Bytes::from(key);
    let (create_revision, mod_revision) = (revision, revision);
    let kv = KeyValue { key: key.clone(), value, create_revision, mod_revision, version: 1, lease: 0 };
    HistoryEntry { revision, sub, key, kv: Some(kv) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        let k3s = "/var/lib/rancher/k3s/server/db/state.db";
        assert_eq!(Source::of(&format!("sqlite://{k3s}?_journal=WAL")).unwrap(), Source::Kine(k3s.into()));
        assert_eq!(Source::of("etcd-snapshot:///a/b.db").unwrap(), Source::Snapshot("/a/b.db".into()));
        for bad in ["", "state.db", "sqlite://state.db", "sqlite://", "mysql://x", "http://a:1"] {
            assert!(Source::of(bad).unwrap_err().to_string().contains("sqlite:///PATH"), "{bad}");
        }
    }
}
