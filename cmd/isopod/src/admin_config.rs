//! The administrator's kubeconfig: written at start, held and kept valid while the server runs, found again and removed by
//! `cleanup`.
//!
//! Invariants: the file of a running server is not overwritten by another; where it was written stands in the data directory
//! before it is there, so that `cleanup` finds it wherever it is; what is not of this cluster any more is left alone.

use crate::claim::Lock;
use crate::paths::Paths;
use anyhow::{Context, bail};
use isopod_pki::{Identity, ServerPki, is_kubeconfig_of, kubeconfig, renew_kubeconfig, write_atomic};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const NAME: &str = "isopod";

/// A kubeconfig to be written.
pub struct AdminConfig<'a> {
    pub path: &'a Path,
    pub mode: u32,
    /// The server's URL.
    pub server: &'a str,
}

impl AdminConfig<'_> {
    /// Writes it and claims it for as long as the answer lives.
    pub fn write(&self, paths: &Paths, pki: &ServerPki) -> anyhow::Result<Held> {
        let cannot = || {
            format!("cannot write the kubeconfig {}; choose another place with --write-kubeconfig", self.path.display())
        };
        let path = std::path::absolute(self.path).with_context(cannot)?;
        match Lock::take(&path) {
            Ok(Some(_)) => {}
            Ok(None) => bail!(
                "the kubeconfig {} is that of a server that runs; choose another place with --write-kubeconfig",
                path.display()
            ),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(cannot),
        }
        let mut written = Written::read(paths).context("cannot read where kubeconfigs were written")?;
        let missing = path.ancestors().skip(1).take_while(|p| !p.exists()).map(|p| (p.to_owned(), Kind::Directory));
        written.0.extend(missing);
        written.0.insert((path.clone(), Kind::Kubeconfig));
        written.write(paths).context("cannot note where the kubeconfig is written")?;
        let text = kubeconfig(NAME, self.server, &pki.server_ca.cert_pem, &pki.admin);
        write_atomic(&path, text.as_bytes(), self.mode).with_context(cannot)?;
        let lock = Lock::take(&path).with_context(cannot)?.with_context(cannot)?;
        Ok(Held { path, newest: Mutex::new((pki.admin.clone(), lock)) })
    }
}

/// A kubeconfig that was written, claimed for as long as this lives.
pub struct Held {
    path: PathBuf,
    newest: Mutex<(Identity, Lock)>,
}

impl Held {
    /// Gives it the administrator's new certificate; what else stands in it stays. One that was removed or replaced meanwhile is
    /// left alone.
    pub fn renew(&self, admin: &Identity) -> anyhow::Result<()> {
        let cannot = || format!("cannot write the kubeconfig {}", self.path.display());
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let text = match fs::read_to_string(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.with_context(cannot)?,
        };
        let Some(text) = renew_kubeconfig(&text, &newest.0, admin) else { return Ok(()) };
        let mode = fs::metadata(&self.path).with_context(cannot)?.permissions().mode() & 0o777;
        write_atomic(&self.path, text.as_bytes(), mode).with_context(cannot)?;
        // Another file now stands at its place.
        let lock = Lock::take(&self.path).with_context(cannot)?.with_context(cannot)?;
        *newest = (admin.clone(), lock);
        Ok(())
    }
}

/// Removes the kubeconfigs that servers on this data directory wrote, and the directories that were made for them and are
/// empty. Answers which files went.
pub fn remove(paths: &Paths) -> anyhow::Result<Vec<PathBuf>> {
    let ca = match fs::read_to_string(paths.tls().join("server-ca.crt")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context("cannot read the server's CA")?,
    };
    let mut removed = Vec::new();
    // Backwards: files before the directories that hold them.
    for (path, kind) in Written::read(paths)?.0.into_iter().rev() {
        let done = match kind {
            Kind::Directory => fs::remove_dir(&path),
            Kind::Kubeconfig if fs::read_to_string(&path).is_ok_and(|text| is_kubeconfig_of(&text, &ca)) => {
                fs::remove_file(&path).inspect(|()| removed.push(path.clone()))
            }
            Kind::Kubeconfig => Ok(()),
        };
        match done {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                return Err(e).with_context(|| path.display().to_string());
            }
            _ => {}
        }
    }
    Ok(removed)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Directory,
    Kubeconfig,
}

/// What was made for kubeconfigs: a line each, a directory's with a slash at its end.
struct Written(BTreeSet<(PathBuf, Kind)>);

impl Written {
    fn read(paths: &Paths) -> io::Result<Self> {
        let text = match fs::read_to_string(paths.kubeconfigs()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        let line = |l: &str| match l.strip_suffix('/') {
            Some(dir) => (PathBuf::from(dir), Kind::Directory),
            None => (PathBuf::from(l), Kind::Kubeconfig),
        };
        Ok(Written(text.lines().filter(|l| !l.is_empty()).map(line).collect()))
    }

    fn write(&self, paths: &Paths) -> anyhow::Result<()> {
        let mut text = String::new();
        for (path, kind) in &self.0 {
            let path = path.to_str().context("its path is not UTF-8")?;
            text.push_str(path);
            text.push_str(if *kind == Kind::Directory { "/\n" } else { "\n" });
        }
        Ok(write_atomic(&paths.kubeconfigs(), text.as_bytes(), 0o600)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_pki::ServerNames;

    fn place(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("isopod-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn cluster(dir: &Path) -> (Paths, ServerPki) {
        let paths = Paths::new(dir).unwrap();
        let pki = ServerPki::load_or_create(&paths.tls(), &ServerNames::default()).unwrap();
        (paths, pki)
    }

    fn write(path: &Path, (paths, pki): &(Paths, ServerPki)) -> anyhow::Result<Held> {
        AdminConfig { path, mode: 0o600, server: "https://127.0.0.1:6443" }.write(paths, pki)
    }

    #[test]
    fn the_kubeconfig_of_a_running_server_stays() {
        isopod_pki::tls::install_provider();
        let dir = place("held");
        let (a, b) = (cluster(&dir.join("a")), cluster(&dir.join("b")));
        let path = dir.join("etc/isopod.yaml");
        let held = write(&path, &a).unwrap();
        let before = fs::read(&path).unwrap();
        let err = write(&path, &b).err().unwrap().to_string();
        assert!(err.contains("--write-kubeconfig") && err.contains("isopod.yaml"), "{err}");
        assert_eq!(fs::read(&path).unwrap(), before);
        drop(held);
        write(&path, &b).unwrap();
        assert_ne!(fs::read(&path).unwrap(), before);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_new_certificate_is_written_into_what_is_there() {
        isopod_pki::tls::install_provider();
        let dir = place("renewed");
        let (paths, pki) = cluster(&dir.join("a"));
        let path = dir.join("config");
        let held = write(&path, &(paths, pki)).unwrap();
        let other = cluster(&dir.join("b")).1.admin;
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{before}# mine\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        held.renew(&other).unwrap();
        let after = fs::read_to_string(&path).unwrap();
        assert!(after.ends_with("# mine\n") && after != before, "{after}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(Lock::take(&path).unwrap().is_none(), "still held");
        // What somebody else put there stays.
        fs::write(&path, "apiVersion: v1\n").unwrap();
        held.renew(&other).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "apiVersion: v1\n");
        fs::remove_file(&path).unwrap();
        held.renew(&other).unwrap();
        assert!(!path.exists());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_was_written_is_removed_and_nothing_else() {
        isopod_pki::tls::install_provider();
        let dir = place("written");
        let (a, b) = (cluster(&dir.join("a")), cluster(&dir.join("b")));
        let (first, second, theirs) = (dir.join("etc/x/one"), dir.join("etc/x/two"), dir.join("etc/x/theirs"));
        write(&first, &a).unwrap();
        write(&second, &a).unwrap();
        write(&theirs, &a).unwrap();
        // Another cluster wrote there since.
        write(&theirs, &b).unwrap();
        assert_eq!(remove(&a.0).unwrap(), [second.clone(), first.clone()]);
        assert!(!first.exists() && !second.exists() && theirs.exists());
        assert_eq!(remove(&a.0).unwrap(), Vec::<PathBuf>::new(), "again");
        assert_eq!(remove(&b.0).unwrap(), [theirs]);
        assert!(dir.join("etc/x").exists(), "the other cluster made it");
        remove(&a.0).unwrap();
        assert!(!dir.join("etc").exists(), "made for it");
        fs::remove_dir_all(dir).unwrap();
    }
}
