//! A datastore, and keys, put in the place of others: made beside them, and moved there when whole. The datastore may be one
//! in Postgres, where a transaction does the same.
//!
//! Invariants: nothing is deleted, what was there is moved aside; until the move begins, nothing of it has changed; no server
//! runs on the directory or the database meanwhile.

use crate::args::Datastore;
use crate::claim::{self, Lock};
use crate::endpoint::{Endpoint, with_files};
use crate::paths::Paths;
use anyhow::{Context, bail};
use isopod_store::archive::{ArchivedFile, Content};
use isopod_store::postgres::{Draft, Existing, Filled, PostgresOptions};
use isopod_store::sqlite::{self, SqliteStore};
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where the datastore is to be.
pub enum Target {
    DataDirectory,
    Postgres(PostgresOptions),
}

impl Target {
    pub fn of(args: &Datastore) -> anyhow::Result<Target> {
        match Endpoint::parse(&args.datastore_endpoint)? {
            Endpoint::Sqlite(None) => Ok(Target::DataDirectory),
            Endpoint::Postgres(place) => Ok(Target::Postgres(with_files(&place, args))),
            Endpoint::Sqlite(Some(dir)) => bail!(
                "a datastore is made in a data directory: name one with --data-dir and --datastore-endpoint sqlite, and \
                 afterwards move its server/db to {}",
                dir.display()
            ),
            Endpoint::Memory => {
                bail!("what is made in memory is gone when this command ends: name another --datastore-endpoint")
            }
            Endpoint::Etcd { .. } => bail!(
                "an etcd lets nobody set its revision from outside: make a datastore in a data directory, serve it with \
                 `isopod datastore`, and make etcd's members of its snapshot, as docs/datastore.md shows"
            ),
        }
    }
}

/// A place that is ours for the time being.
pub struct Place {
    paths: Paths,
    force: bool,
    /// The transaction in a database; `None`: the datastore is in the data directory.
    shared: Option<Draft>,
    _claim: Option<Lock>,
}

/// What [`Place::fill`] did.
pub struct Replaced {
    /// Where the datastore is now, for people.
    pub place: String,
    pub data: PathBuf,
    /// Where to what was there was moved.
    pub aside: Vec<String>,
}

impl Place {
    /// Claims a place in which a datastore (and, with `keys`, the cluster's keys) may be put. One that has some is refused,
    /// unless `force`. Runs on a thread that may wait, as [`Place::fill`] does.
    pub fn claim(paths: Paths, target: &Target, keys: bool, force: bool) -> anyhow::Result<Place> {
        let here = matches!(target, Target::DataDirectory);
        let mut there = Vec::new();
        for (what, dir, wanted) in [("a datastore", paths.store(), here), ("keys", paths.tls(), keys)] {
            if wanted && is_filled(&dir)? {
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
        let claim = if here || keys { Some(claim::data_directory(&paths.data)?) } else { None };
        if here && paths.store().exists() {
            // `isopod datastore` claims no more than this.
            SqliteStore::check_unused(paths.store())?;
        }
        let shared = match target {
            Target::DataDirectory => None,
            Target::Postgres(place) => Some(begin(place, force)?),
        };
        Ok(Place { paths, force, shared, _claim: claim })
    }

    /// Makes the datastore and writes the key files, then puts both in their places.
    pub fn fill(mut self, content: Content, keys: &[ArchivedFile]) -> anyhow::Result<Replaced> {
        let server = self.paths.data.join("server");
        let incoming = server.join("incoming");
        // What an attempt has left that was killed.
        remove_all(&incoming)?;
        let made = self.make(&incoming, content, keys);
        if made.is_err() {
            remove_all(&incoming)?;
        }
        let filled = made?;
        let mut aside = Vec::new();
        if incoming.exists() {
            let moved = self.put(&server, &incoming, !keys.is_empty(), filled.is_none())?;
            aside.extend(moved.map(|dir| dir.display().to_string()));
        }
        let data = self.paths.data;
        let place = match filled {
            None => data.display().to_string(),
            Some(filled) => {
                let place = format!("Postgres at {}", filled.name());
                let moved = filled.aside().map(|schema| format!("the schema {schema} of {place}"));
                let keys = if keys.is_empty() { "" } else { "; the keys are in their place, go on with --force" };
                let committed = wait(filled.commit());
                committed.with_context(|| format!("the datastore may not have been made{keys}"))?;
                aside.extend(moved);
                place
            }
        };
        Ok(Replaced { place, data, aside })
    }

    fn make(&mut self, incoming: &Path, content: Content, keys: &[ArchivedFile]) -> anyhow::Result<Option<Filled>> {
        let shared = self.shared.take();
        if shared.is_none() || !keys.is_empty() {
            let cannot = || format!("cannot create {}", incoming.display());
            DirBuilder::new().recursive(true).mode(0o700).create(incoming).with_context(cannot)?;
        }
        for file in keys {
            if !isopod_pki::LASTING.contains(&file.name.as_str()) {
                bail!("the backup has a file {:?}, which this version does not know; nothing was changed", file.name);
            }
            isopod_pki::write_atomic(&incoming.join("tls").join(&file.name), &file.content, file.mode)?;
        }
        let unchanged = "nothing was changed";
        match shared {
            Some(draft) => wait(draft.fill(content)).map(Some).context(unchanged),
            None => sqlite::seed(&incoming.join("db"), content).map(|()| None).context(unchanged),
        }
    }

    fn put(&self, server: &Path, incoming: &Path, keys: bool, datastore: bool) -> anyhow::Result<Option<PathBuf>> {
        let aside = free_name(server);
        let mut moved = None;
        // The keys first: a server that starts in between makes none of its own.
        let tls = keys.then(|| (incoming.join("tls"), self.paths.tls()));
        let db = datastore.then(|| (incoming.join("db"), self.paths.store()));
        for (new, place) in tls.into_iter().chain(db) {
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

/// Opens the transaction in which all is done.
fn begin(place: &PostgresOptions, force: bool) -> anyhow::Result<Draft> {
    let existing = if force { Existing::MoveAside } else { Existing::Refuse };
    wait(Draft::begin(place, existing)).context("nothing was changed")?.context(
        "the database of --datastore-endpoint has a datastore already; nothing was changed. Choose another database, or \
         move it to a schema beside with --force",
    )
}

/// For threads that may wait, as all here.
fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Handle::current().block_on(work)
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

    fn claim(paths: &Paths, force: bool) -> anyhow::Result<Place> {
        Place::claim(paths.clone(), &Target::DataDirectory, true, force)
    }

    #[test]
    fn what_is_there_is_moved_aside_or_refused() {
        let dir = std::env::temp_dir().join(format!("isopod-replace-{}", std::process::id()));
        let paths = Paths::new(&dir).unwrap();
        let place = claim(&paths, false).unwrap();
        let beside = claim(&paths, false).err().unwrap().to_string();
        assert!(beside.contains("in use"), "{beside}");
        assert!(place.fill(empty_content(), &[key("service.key", "one")]).unwrap().aside.is_empty());
        let service_key = paths.tls().join("service.key");
        assert_eq!(fs::read_to_string(&service_key).unwrap(), "one");
        let refused = claim(&paths, false).err().unwrap().to_string();
        assert!(
            refused.contains("a datastore") && refused.contains("keys") && refused.contains("--force"),
            "{refused}"
        );

        let unknown =
            claim(&paths, true).unwrap().fill(empty_content(), &[key("../evil", "x")]).err().unwrap().to_string();
        assert!(unknown.contains("nothing was changed"), "{unknown}");
        assert_eq!(fs::read_to_string(&service_key).unwrap(), "one");
        assert!(!paths.data.join("server/incoming").exists());
        let aside = claim(&paths, true).unwrap().fill(empty_content(), &[key("service.key", "two")]).unwrap().aside;
        let aside = Path::new(&aside[0]);
        assert_eq!(fs::read_to_string(&service_key).unwrap(), "two");
        assert_eq!(fs::read_to_string(aside.join("tls/service.key")).unwrap(), "one");
        assert!(aside.join("db/state.db").exists() && sqlite::exists(&paths.store()));
        let again = claim(&paths, true).unwrap().fill(empty_content(), &[]).unwrap().aside;
        let again = Path::new(&again[0]);
        assert!(again != aside && again.join("db/state.db").exists(), "also within the same second");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn other_targets_are_refused_with_what_to_do() {
        for (endpoint, remedy) in
            [("memory", "another"), ("sqlite:///srv/db", "--data-dir"), ("https://a:2379", "docs/datastore.md")]
        {
            let datastore_endpoint = endpoint.to_owned();
            let args = Datastore {
                datastore_endpoint,
                datastore_cafile: None,
                datastore_certfile: None,
                datastore_keyfile: None,
            };
            let refused = Target::of(&args).err().unwrap().to_string();
            assert!(refused.contains(remedy), "{endpoint}: {refused}");
        }
    }
}
