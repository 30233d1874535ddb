//! A Postgres of the test's own: made in a temporary directory, run by an unprivileged user, on a socket there, taken away
//! at the end.

// Whoever includes it uses a part.
#![allow(dead_code)]

use isopod_store::postgres::PostgresOptions;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `nobody`: Postgres refuses to run as root.
const NOBODY: u32 = 65534;

pub struct Cluster {
    dir: tempfile::TempDir,
    /// The directory of its socket: a replica's is that of the primary whose place it takes.
    socket: PathBuf,
}

/// Makes the clock by which a database tells how late it is one that [`set_clock`] sets; before anything else connects to
/// it. What Postgres itself takes time from goes on as it does.
pub const SETTABLE_CLOCK: &str = "
    CREATE SEQUENCE public.clock_set MINVALUE -1000000000000 START 1;
    SELECT setval('public.clock_set', 0);
    ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO real_clock_timestamp;
    CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
      'SELECT real_clock_timestamp() + (SELECT last_value FROM public.clock_set) * interval ''1 second''';";

/// The clock is `seconds` ahead of what it was at first.
pub fn set_clock(seconds: i64) -> String {
    format!("SELECT setval('public.clock_set', {seconds})")
}

/// Where Postgres' programs are: where `ISOPOD_POSTGRES` says (see `hack/postgres.py`), on the path, or where Debian has them.
fn programs() -> PathBuf {
    if let Some(chosen) = std::env::var_os("ISOPOD_POSTGRES") {
        return chosen.into();
    }
    installed()
}

fn installed() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|d| d.flatten().map(|e| e.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    places.extend(versions.into_iter().rev());
    let whole = |dir: &PathBuf| ["initdb", "pg_ctl", "pg_basebackup", "postgres"].iter().all(|p| dir.join(p).exists());
    places.into_iter().find(whole).expect("Postgres' programs are not here: install them with hack/deps.sh test")
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0).unwrap_or(false)
}

/// Runs one of Postgres' programs to its end.
fn run(program: &str, args: &[&str], dir: &Path) {
    // A chosen version may come without all programs; those of the system serve older servers too.
    let place = Some(programs().join(program)).filter(|p| p.exists());
    let mut command = Command::new(place.unwrap_or_else(|| installed().join(program)));
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.args(args).current_dir(dir).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null());
    let log = std::fs::File::create(dir.join(format!("{program}.log"))).unwrap();
    let status = command.stderr(log).status().unwrap();
    let said = std::fs::read_to_string(dir.join(format!("{program}.log"))).unwrap_or_default();
    let server = std::fs::read_to_string(dir.join("server.log")).unwrap_or_default();
    assert!(status.success(), "{program} {args:?}: {said}\n{server}");
}

impl Cluster {
    fn directory(socket: Option<&Path>) -> Self {
        let dir = tempfile::Builder::new().prefix("isopod-pg-").tempdir().unwrap();
        if is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let socket = socket.unwrap_or(dir.path()).to_owned();
        Cluster { dir, socket }
    }

    /// With lines for `postgresql.conf`. Synced to the disk is nothing: no test cuts the power.
    pub fn start(settings: &str) -> Self {
        let cluster = Self::directory(None);
        run(
            "initdb",
            &["-D", "data", "-U", "isopod", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"],
            cluster.path(),
        );
        let conf = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nmax_connections = 60\nshared_buffers = 32MB\n{settings}\n",
            cluster.path().display()
        );
        let file = cluster.path().join("data/postgresql.conf");
        let old = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, old + &conf).unwrap();
        cluster.up();
        cluster
    }

    /// Copies files to where the server finds them, as its own.
    pub fn adopt(&self, from: &Path, files: &[&str]) {
        for name in files {
            let to = self.path().join("data").join(name);
            std::fs::write(&to, std::fs::read(from.join(name)).unwrap()).unwrap();
            std::fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            if is_root() {
                chown(&to, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
    }

    /// More lines for `postgresql.conf`, and who may come in; for the next start.
    pub fn configure(&self, settings: &str, access: &str) {
        let file = self.path().join("data/postgresql.conf");
        let old = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, old + settings).unwrap();
        std::fs::write(self.path().join("data/pg_hba.conf"), access).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn url(&self) -> String {
        format!("postgres://isopod@{}/postgres", self.socket.display().to_string().replace('/', "%2F"))
    }

    /// The file of its socket.
    pub fn socket(&self) -> PathBuf {
        self.socket.join(".s.PGSQL.5432")
    }

    pub fn options(&self, schema: &str) -> PostgresOptions {
        PostgresOptions { schema: schema.into(), ..PostgresOptions::new(self.url()) }
    }

    fn ctl(&self, args: &[&str]) {
        run("pg_ctl", &[&["-D", "data", "-w", "-s", "-t", "60"], args].concat(), self.path());
    }

    pub fn up(&self) {
        self.ctl(&["start", "-l", "server.log"]);
    }

    /// As a crash.
    pub fn down(&self) {
        self.ctl(&["stop", "-m", "immediate"]);
    }

    /// In order: all that was written is in its log.
    pub fn stop(&self) {
        self.ctl(&["stop", "-m", "fast"]);
    }

    /// A replica that is down has all that `primary`, which has been stopped, had.
    pub fn take_log_of(&self, primary: &Cluster) {
        for entry in std::fs::read_dir(primary.path().join("data/pg_wal")).unwrap().flatten() {
            if entry.file_type().unwrap().is_file() {
                let name = format!("pg_wal/{}", entry.file_name().to_string_lossy());
                self.adopt(&primary.path().join("data"), &[&name]);
            }
        }
    }

    pub fn restart(&self) {
        self.ctl(&["restart", "-m", "immediate", "-l", "server.log"]);
    }

    /// A copy as it is now, which has yet to be started in this one's place.
    pub fn replica(&self) -> Self {
        let replica = Self::directory(Some(&self.socket));
        let socket = self.socket.display().to_string();
        let args = ["-h", &socket, "-U", "isopod", "-D", "data", "-R", "-c", "fast", "--no-sync"];
        run("pg_basebackup", &args, replica.path());
        replica
    }

    pub fn promote(&self) {
        self.ctl(&["promote"]);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut stop = Command::new(programs().join("pg_ctl"));
        if is_root() {
            stop.uid(NOBODY).gid(NOBODY);
        }
        stop.args(["-D", "data", "-s", "-w", "-m", "immediate", "stop"]).current_dir(self.path());
        // One that is down already says so.
        let _ = stop.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
