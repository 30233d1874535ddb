//! How a server is reached: the endpoint, what each connection is set to, and what it tells about the server.
//!
//! Invariants: no connection to a replica is ever used; a commit on a connection of ours is on the disk when it returns
//! (`synchronous_commit` is at least `on`); the password is in no error and in no log.

use super::error::{Fault, failed, fault, is_forbidden, is_passing};
use crate::{Result, StoreError};
use rand::Rng;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where the database is. pgbouncer's transaction mode is not supported: sessions have settings, locks and notifications.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:port/database?sslmode=…`, as libpq reads it. Without a password the files that
    /// `PGPASSFILE` or `~/.pgpass` name are looked at; a host that begins with `/` (as `%2F…`) is a socket's directory.
    pub url: String,
    /// The CA that signed the server's certificate. Where the URL says nothing of `sslmode` it is then `verify-full`.
    pub ca_file: Option<PathBuf>,
    /// The certificate shown to the server, and its key.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// The schema whose tables are used; created where it is not there. Letters, digits and `_`.
    pub schema: String,
    /// Connections for reads; two more write and listen.
    pub read_connections: usize,
}

impl PostgresOptions {
    pub fn new(url: impl Into<String>) -> Self {
        PostgresOptions {
            url: url.into(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            schema: "isopod".into(),
            read_connections: 4,
        }
    }

    /// Can this be the place of a database? Asks nobody.
    pub fn check(&self) -> Result<()> {
        Server::new(self).map(drop)
    }
}

/// Until when an unreachable server is tried again before the asker is told.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// Until when a connection must stand, and one statement be answered.
pub(crate) const CONNECT: Duration = Duration::from_secs(3);
pub(crate) const STATEMENT: Duration = Duration::from_secs(6);

/// Plans are the same whatever the statistics say: an index from key to row, then the rows by id. A server notices itself
/// that a client is gone while it holds the lock on `meta`, and the lock is not waited for for ever.
const SESSION: &str = "
SET default_transaction_isolation = 'read committed';
SET default_transaction_read_only = off;
SET lock_timeout = '4s';
SET statement_timeout = '60s';
SET idle_in_transaction_session_timeout = '4s';
SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 10000;
SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off;
SET bytea_output = 'hex';
SELECT set_config('synchronous_commit',
         CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on'
              ELSE current_setting('synchronous_commit') END, false),
       current_setting('server_version_num')::int AS version,
       pg_is_in_recovery() AS replica,
       current_setting('fsync') = 'on' AS fsync,
       (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started,
       ";
const LINEAGE: &str = "(SELECT system_identifier FROM pg_control_system())::text || '/' ||
         CASE WHEN pg_is_in_recovery() THEN ''
              ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END";
/// Some providers keep these functions for themselves: there a failover is noticed by what is missing after it.
const NO_LINEAGE: &str = "''::text";

/// What a connection tells about its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The database cluster's identifier and its timeline: another one after a failover, or when a backup was restored.
    pub lineage: String,
    /// When the server was started, in microseconds.
    pub started: i64,
    pub fsync: bool,
}

pub(crate) struct Connection {
    pub raw: PgConnection,
    pub facts: Facts,
}

/// Where to connect to.
pub(crate) struct Server {
    /// It has been reached once: whatever keeps it from being reached later may pass.
    reached: AtomicBool,
    options: PgConnectOptions,
    pub schema: String,
    /// Host, port and database, for people.
    pub name: String,
}

impl Server {
    pub fn new(options: &PostgresOptions) -> Result<Self> {
        let schema = options.schema.clone();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if schema.is_empty() || !schema.chars().all(plain) {
            let wrong = format!("the schema {schema:?} has other characters than a-z, 0-9 and _");
            return Err(wrong_endpoint(sqlx::Error::Configuration(wrong.into())));
        }
        let mut connect = PgConnectOptions::from_str(&options.url).map_err(wrong_endpoint)?;
        if let Some(ca) = &options.ca_file {
            connect = connect.ssl_root_cert(ca);
            if !options.url.contains("sslmode=") && !options.url.contains("ssl-mode=") {
                connect = connect.ssl_mode(PgSslMode::VerifyFull);
            }
        }
        if let (Some(cert), Some(key)) = (&options.cert_file, &options.key_file) {
            connect = connect.ssl_client_cert(cert).ssl_client_key(key);
        }
        if connect.get_application_name().is_none() {
            connect = connect.application_name("isopod");
        }
        // Statements and their values are nobody's business.
        connect = connect.disable_statement_logging();
        let host = match connect.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", connect.get_host(), connect.get_port()),
        };
        let name = format!("{host}/{}", connect.get_database().unwrap_or(connect.get_username()));
        Ok(Server { reached: AtomicBool::new(false), options: connect, schema, name })
    }

    /// For what keeps connections by itself.
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    pub async fn connect(&self) -> sqlx::Result<Connection> {
        let connect = async {
            let mut raw = self.options.connect().await?;
            let set_up = |lineage| format!("SET search_path = \"{}\"; {SESSION} {lineage} AS lineage", self.schema);
            let row = match sqlx::raw_sql(AssertSqlSafe(set_up(LINEAGE))).fetch_one(&mut raw).await {
                Err(e) if is_forbidden(&e) => {
                    sqlx::raw_sql(AssertSqlSafe(set_up(NO_LINEAGE))).fetch_one(&mut raw).await?
                }
                other => other?,
            };
            let version: i32 = row.try_get("version")?;
            if version < 130_000 {
                return Err(fault(Fault::TooOld(version / 10_000)));
            }
            if row.try_get("replica")? {
                return Err(fault(Fault::Replica));
            }
            let facts = Facts {
                lineage: row.try_get("lineage")?,
                started: row.try_get("started")?,
                fsync: row.try_get("fsync")?,
            };
            Ok(Connection { raw, facts })
        };
        match in_time(CONNECT, connect).await {
            Ok(connection) => {
                self.reached.store(true, Ordering::SeqCst);
                Ok(connection)
            }
            Err(e) if self.reached.load(Ordering::SeqCst) && !is_passing(&e) => {
                Err(sqlx::Error::Io(std::io::Error::other(e)))
            }
            Err(e) => Err(e),
        }
    }

    /// As [`failed`], with the server's name.
    pub fn failed(&self, what: &str, error: sqlx::Error) -> StoreError {
        failed(&format!("{what} (Postgres at {})", self.name), error)
    }
}

fn wrong_endpoint(error: sqlx::Error) -> StoreError {
    let context = "cannot read the datastore's endpoint; write postgres://USER:PASSWORD@HOST:PORT/DATABASE".into();
    StoreError::Backend { context, source: Arc::new(error) }
}

pub(crate) async fn in_time<T>(limit: Duration, work: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(fault(Fault::NoAnswer(limit))))
}

/// Pauses between attempts: each twice as long as the one before, and a random part of it, so that servers which lost the
/// same database do not come back to it at the same moment.
pub(crate) struct Attempts {
    began: Instant,
    pause: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Attempts {
    /// Counted from when somebody asked.
    pub fn since(began: Instant) -> Self {
        Attempts { began, pause: FIRST_PAUSE }
    }

    /// How long to wait before the next attempt; `None`: the patience is at its end.
    pub fn pause(&mut self) -> Option<Duration> {
        if self.began.elapsed() > PATIENCE {
            return None;
        }
        Some(self.endless_pause())
    }

    pub fn endless_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_shown_without_its_password() {
        let server = |url: &str| Server::new(&PostgresOptions::new(url));
        assert_eq!(server("postgres://me:secret@db.example:5433/k8s").unwrap().name, "db.example:5433/k8s");
        assert_eq!(server("postgres://me:secret@%2Frun%2Fpg/k8s").unwrap().name, "/run/pg/k8s");
        for bad in ["postgres://me:secret@host:port/db", "postgres://me:secret@host/db?sslmode=maybe", "secret"] {
            let error = server(bad).err().unwrap();
            let text = isopod_base::errors::Chain(&error).to_string();
            assert!(text.contains("postgres://USER") && !text.contains("secret"), "{text}");
        }
        let odd = PostgresOptions { schema: "a; DROP".into(), ..PostgresOptions::new("postgres://h/d") };
        assert!(Server::new(&odd).is_err());
    }

    #[test]
    fn pauses_grow_and_patience_ends() {
        let mut attempts = Attempts::since(Instant::now());
        let first = attempts.pause().unwrap();
        for _ in 0..10 {
            attempts.pause().unwrap();
        }
        assert!(first <= FIRST_PAUSE && attempts.pause().unwrap() >= LONGEST_PAUSE / 2);
        let long_ago = Instant::now().checked_sub(PATIENCE * 2).unwrap();
        assert!(Attempts::since(long_ago).pause().is_none());
    }
}
