//! The writer's connection, driven from its thread: each call returns when the server has answered, or in time without.
//!
//! Invariant: a connection of which it is not known in what state it is is dropped; the server then takes back what was not
//! committed.

use super::connect::{Attempts, Connection, Facts, STATEMENT, Server, in_time};
use super::error::{Fault, fault, is_lost, is_passing};
use super::schema;
use crate::{Result, StoreError};
use sqlx::{AssertSqlSafe, PgConnection};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

pub(crate) struct Session {
    runtime: Runtime,
    pub server: Arc<Server>,
    conn: Option<Connection>,
    /// A SQL transaction is open.
    open: bool,
    /// The last failure is one after which the same may be tried again.
    pub passing: bool,
}

impl Session {
    pub fn new(server: Arc<Server>) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| StoreError::Backend {
            context: "cannot start the store's writer".into(),
            source: Arc::new(e),
        })?;
        Ok(Session { runtime, server, conn: None, open: false, passing: false })
    }

    /// Connects where there is no connection. Tells what the server is.
    pub fn facts(&mut self) -> Result<Facts> {
        if let Some(conn) = &self.conn {
            return Ok(conn.facts.clone());
        }
        let connect = async {
            let mut conn = self.server.connect().await?;
            let serving = AssertSqlSafe(schema::serving(&self.server.schema));
            in_time(STATEMENT, sqlx::raw_sql(serving).execute(&mut conn.raw)).await?;
            Ok(conn)
        };
        match self.runtime.block_on(connect) {
            Ok(conn) => Ok(self.conn.insert(conn).facts.clone()),
            Err(e) => Err(self.failed("connect", e)),
        }
    }

    /// Connects, trying for a while, and makes the tables what they must be.
    pub fn prepare(&mut self) -> Result<()> {
        let mut attempts = Attempts::since(Instant::now());
        let facts = loop {
            match self.facts() {
                Ok(facts) => break facts,
                Err(e) => match attempts.pause().filter(|_| self.passing) {
                    Some(pause) => std::thread::sleep(pause),
                    None => return Err(e),
                },
            }
        };
        if facts.lineage.is_empty() {
            tracing::warn!(
                server = self.server.name,
                "Postgres does not tell its timeline: a failover that loses commits is noticed only by a server that has shown \
                 more than the database then has; grant EXECUTE on pg_control_system() and pg_walfile_name(pg_lsn)"
            );
        }
        if !facts.fsync {
            tracing::error!(
                server = self.server.name,
                "Postgres runs with fsync=off: a power cut loses writes that were acknowledged; set fsync=on"
            );
        }
        let Some(mut conn) = self.conn.take() else { return Ok(()) };
        let server = Arc::clone(&self.server);
        let prepared = self.runtime.block_on(schema::prepare(&mut conn, &server));
        self.conn = Some(conn);
        prepared.map_err(|e| {
            self.disconnect();
            self.failed("make the tables", e)
        })
    }

    pub fn is_connected(&self) -> bool {
        self.conn.is_some()
    }

    /// Runs `work` on the connection. `what`, as in "cannot …".
    pub fn run<T>(&mut self, what: &str, work: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>) -> Result<T> {
        self.run_within(STATEMENT, what, work)
    }

    pub fn run_within<T>(
        &mut self,
        limit: Duration,
        what: &str,
        work: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
    ) -> Result<T> {
        let result = match &mut self.conn {
            Some(conn) => self.runtime.block_on(async { in_time(limit, work(&mut conn.raw)).await }),
            None => Err(fault(Fault::NoAnswer(Duration::ZERO))),
        };
        result.map_err(|e| self.failed(what, e))
    }

    fn failed(&mut self, what: &str, error: sqlx::Error) -> StoreError {
        self.passing = is_passing(&error);
        if is_lost(&error) {
            self.disconnect();
        }
        self.server.failed(what, error)
    }

    /// Opens a SQL transaction with `begin`, which may do more at once, and returns what it returns.
    pub fn begin<T>(&mut self, what: &str, begin: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>) -> Result<T> {
        self.open = true;
        let result = self.run(what, begin);
        if result.is_err() {
            self.rollback();
        }
        result
    }

    pub fn commit(&mut self) -> Result<()> {
        self.open = false;
        self.run("commit", async |conn| sqlx::raw_sql("COMMIT").execute(conn).await.map(drop))
    }

    /// Does not fail: a connection that cannot roll back is dropped, and the server does it.
    pub fn rollback(&mut self) {
        if !std::mem::take(&mut self.open) || self.conn.is_none() {
            return;
        }
        let passing = self.passing;
        if self.run("roll back", async |conn| sqlx::raw_sql("ROLLBACK").execute(conn).await.map(drop)).is_err() {
            self.disconnect();
        }
        self.passing = passing;
    }

    pub fn disconnect(&mut self) {
        self.open = false;
        if let Some(conn) = self.conn.take() {
            // Its socket belongs to this runtime.
            let _inside = self.runtime.enter();
            drop(conn);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.disconnect();
    }
}
