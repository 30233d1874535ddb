//! A datastore, and keys, put in the place of others: made beside them, and moved there when whole.
//!
//! Invariants: nothing is deleted, what was there is moved aside; until the move begins, nothing of it has changed; no server
//! runs on the directory meanwhile.

use crate::claim::{self, Lock};
use crate::paths::Paths;
use anyhow::{Context, bail};
use isopod_store::archive::{ArchivedFile, Content};
use isopod_store::sqlite::{self, SqliteStore};
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A data directory that is ours for the time being.
pub struct Place {
    paths: Paths,
    force: bool,
    _claim: Lock,
}

impl Place {
    /// Claims a data directory in which a datastore (and, with `keys`, the cluster's keys) may be put. One that has some is
    /// refused, unless `force`.
    pub fn claim(paths: Paths, keys: bool, force: bool) -> anyhow::Result<Place> {
        let mut there = Vec::new();
        for (what, dir) in [("a datastore", paths.store()), ("keys", paths.tls())] {
            if (keys || dir == paths.store()) && is_filled(&dir)? {
                there.push(format!("{what} ({})", dir.display()));
            }
        }
        if !there.is_empty() && !force {
            bail!(
                "{} has {} already; nothing was changed. Choose another directory with --data-dir, or move them aside with \
                 --force",
                paths.data.display(),
                there.join(" and ")
            );
        }
        let claim = claim::data_directory(&paths.data)?;
        if paths.store().exists() {
            // `isopod datastore` claims no more than this.
            SqliteStore::check_unused(paths.store())?;
        }
        Ok(Place { paths, force, _claim: claim })
    }

    pub fn data(&self) -> &Path {
        &self.paths.data
    }

    /// Makes the datastore and writes the key files, then puts both in their places. Returns where to what was there was
    /// moved. Runs on a thread that may wait.
    pub fn fill(&self, content: Content, keys: &[ArchivedFile]) -> anyhow::Result<Option<PathBuf>> {
        let server = self.paths.data.join("server");
        let incoming = server.join("incoming");
        // What an attempt has left that was killed.
        remove_all(&incoming)?;
        let made = self.make(&incoming, content, keys);
        if made.is_err() {
            remove_all(&incoming)?;
        }
        made.and_then(|()| self.put(&server, &incoming, !keys.is_empty()))
    }

    fn make(&self, incoming: &Path, content: Content, keys: &[ArchivedFile]) -> anyhow::Result<()> {
        let cannot = || format!("cannot create {}", incoming.display());
        DirBuilder::new().recursive(true).mode(0o700).create(incoming).with_context(cannot)?;
        sqlite::seed(&incoming.join("db"), content).context("nothing was changed")?;
        for file in keys {
            if !isopod_pki::LASTING.contains(&file.name.as_str()) {
                bail!("the backup has a file {:?}, which this version does not know; nothing was changed", file.name);
            }
            isopod_pki::write_atomic(&incoming.join("tls").join(&file.name), &file.content, file.mode)?;
        }
        Ok(())
    }

    fn put(&self, server: &Path, incoming: &Path, keys: bool) -> anyhow::Result<Option<PathBuf>> {
        let aside = free_name(server);
        let mut moved = None;
        // The keys first: a server that starts in between makes none of its own.
        let tls = keys.then(|| (incoming.join("tls"), self.paths.tls()));
        for (new, place) in tls.into_iter().chain([(incoming.join("db"), self.paths.store())]) {
            if !is_filled(&place)? {
                remove_all(&place)?;
            } else if self.force {
                DirBuilder::new().recursive(true).mode(0o700).create(&aside)?;
                rename(&place, &aside.join(place.file_name().unwrap_or_default()))?;
                moved = Some(aside.clone());
            }
            rename(&new, &place)?;
        }
        remove_all(incoming)?;
        File::open(server)?.sync_all()?;
        Ok(moved)
    }
}

/// Where what is replaced goes. Two replacements may fall into one second.
fn free_name(server: &Path) -> PathBuf {
    let first = server.join(format!("replaced-{}", file_time()));
    let others = (2..).map(|n| PathBuf::from(format!("{}-{n}", first.display())));
    let mut names = std::iter::once(first.clone()).chain(others);
    names.find(|p| !p.exists()).unwrap_or(first)
}

/// Now, in UTC, as it stands in names of files.
pub fn file_time() -> String {
    jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string()
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

fn remove_all(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Is anything in this directory but what an empty datastore's lock leaves?
fn is_filled(dir: &Path) -> anyhow::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.any(|e| e.is_ok_and(|e| e.file_name() != "lock"))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_store::Store;
    use isopod_store::memory::MemoryStore;

    fn empty_content() -> Content {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(Content::of(&MemoryStore::default() as &dyn Store)).unwrap()
    }

    fn key(name: &str, content: &'static str) -> ArchivedFile {
        ArchivedFile { name: name.into(), mode: 0o600, content: content.into() }
    }

    #[test]
    fn what_is_there_is_moved_aside_or_refused() {
        let dir = std::env::temp_dir().join(format!("isopod-replace-{}", std::process::id()));
        let paths = Paths::new(&dir).unwrap();
        let place = Place::claim(paths.clone(), true, false).unwrap();
        let beside = Place::claim(paths.clone(), true, false).err().unwrap().to_string();
        assert!(beside.contains("in use"), "{beside}");
        assert_eq!(place.fill(empty_content(), &[key("service.key", "one")]).unwrap(), None);
        drop(place);
        let service_key = paths.tls().join("service.key");
        assert_eq!(fs::read_to_string(&service_key).unwrap(), "one");
        let refused = Place::claim(paths.clone(), true, false).err().unwrap().to_string();
        assert!(
            refused.contains("a datastore") && refused.contains("keys") && refused.contains("--force"),
            "{refused}"
        );

        let place = Place::claim(paths.clone(), true, true).unwrap();
        let unknown = place.fill(empty_content(), &[key("../evil", "x")]).unwrap_err().to_string();
        assert!(unknown.contains("nothing was changed"), "{unknown}");
        assert_eq!(fs::read_to_string(&service_key).unwrap(), "one");
        assert!(!paths.data.join("server/incoming").exists());
        let aside = place.fill(empty_content(), &[key("service.key", "two")]).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&service_key).unwrap(), "two");
        assert_eq!(fs::read_to_string(aside.join("tls/service.key")).unwrap(), "one");
        assert!(aside.join("db/state.db").exists() && sqlite::exists(&paths.store()));
        let again = place.fill(empty_content(), &[]).unwrap().unwrap();
        assert!(again != aside && again.join("db/state.db").exists(), "also within the same second");
        drop(place);
        fs::remove_dir_all(dir).unwrap();
    }
}
