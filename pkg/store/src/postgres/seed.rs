//! A store's whole content put into a database, in one SQL transaction.
//!
//! Invariants: until [`Filled::commit`] has returned the database is as it was, whoever ends or fails before; no server runs on it
//! meanwhile; nothing is deleted, tables that are there are moved to a schema beside.

use super::backend::{MAX_TTL, PENDING, Pending, alarm_bit, write};
use super::connect::{Connection, PostgresOptions, Server};
use super::error::{Fault, fault, is_locked};
use super::queries::row_id;
use super::schema::{self, ADVISORY, FORMAT};
use crate::archive::{Content, Places};
use crate::*;
use bytes::Bytes;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use std::collections::HashMap;

/// What is done with data that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    Refuse,
    /// To a schema beside, from which they can be moved back.
    MoveAside,
}

/// A database in which something is being put. Dropped, it leaves the database as it was.
pub struct Draft {
    server: Server,
    conn: Connection,
    aside: Option<String>,
}

/// Rows that are written at once.
const ROWS: usize = 2048;

impl Draft {
    /// `None`: the database holds data, which were to be refused.
    pub async fn begin(place: &PostgresOptions, existing: Existing) -> Result<Option<Self>> {
        let server = Server::new(place)?;
        let mut conn = server.connect().await.map_err(|e| server.failed("connect", e))?;
        match make_room(&mut conn, &server.schema, existing).await {
            Ok(Room::Made(aside)) => Ok(Some(Draft { server, conn, aside })),
            Ok(Room::Taken) => Ok(None),
            Err(e) => Err(server.failed("prepare the database", e)),
        }
    }

    pub async fn fill(mut self, mut content: Content) -> Result<Filled> {
        if content.reserved > 0 {
            // Nothing is reserved here: revisions that may have been handed out are passed over at once.
            content.begin_epoch(0);
        }
        self.fill_log(&mut content.export).await?;
        match fill_state(&mut self.conn.raw, &content).await {
            Ok(()) => Ok(Filled(self)),
            Err(e) => Err(self.server.failed("write", e)),
        }
    }

    async fn fill_log(&mut self, export: &mut Export) -> Result<()> {
        let mut places = Places::default();
        let mut rows = Rows::default();
        while let Some(part) = export.entries.recv().await {
            for entry in part? {
                let id = row_id(entry.revision, places.next(&entry));
                rows.add(id, entry.into_event());
                if rows.pending.len() >= ROWS || rows.bytes >= PENDING {
                    self.write(std::mem::take(&mut rows)).await?;
                }
            }
        }
        self.write(rows).await
    }

    async fn write(&mut self, rows: Rows) -> Result<()> {
        write(&mut self.conn.raw, &rows.pending, None).await.map_err(|e| self.server.failed("write", e))
    }
}

/// One with all of the content in it.
pub struct Filled(Draft);

impl Filled {
    /// The schema to which what was there is moved.
    pub fn aside(&self) -> Option<&str> {
        self.0.aside.as_deref()
    }

    /// The server and the database, for people.
    pub fn name(&self) -> &str {
        &self.0.server.name
    }

    pub async fn commit(mut self) -> Result<()> {
        // For a server that has come meanwhile.
        let sql = "SELECT pg_notify(current_schema(), revision::text) FROM meta; COMMIT";
        let done = sqlx::raw_sql(sql).execute(&mut self.0.conn.raw).await;
        done.map(drop).map_err(|e| self.0.server.failed("commit", e))
    }
}

/// Rows that wait.
#[derive(Default)]
struct Rows {
    pending: Vec<Pending>,
    bytes: usize,
    /// The newest one of each key.
    newest: HashMap<Bytes, i64>,
}

impl Rows {
    fn add(&mut self, id: i64, event: Event) {
        let Event { kind, kv, .. } = event;
        self.bytes += kv.key.len() + kv.value.len();
        let prev = self.newest.insert(kv.key.clone(), id);
        self.pending.push(Pending { id, prev, deleted: kind == EventKind::Delete, kv });
    }
}

enum Room {
    /// With the schema to which what was there goes.
    Made(Option<String>),
    Taken,
}

/// Opens the transaction, in which there are empty tables then.
async fn make_room(conn: &mut Connection, schema: &str, existing: Existing) -> sqlx::Result<Room> {
    // Reading a backup may take any time between two statements.
    let begin = "BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = 0; \
                 SET LOCAL idle_in_transaction_session_timeout = 0";
    sqlx::raw_sql(begin).execute(&mut conn.raw).await?;
    // A server that has just ended may have its lock for a moment.
    let alone = sqlx::raw_sql(AssertSqlSafe(schema::unserved(schema))).execute(&mut conn.raw).await;
    alone.map_err(|e| if is_locked(&e) { fault(Fault::Served) } else { e })?;
    // Who makes the tables holds this one.
    let lock = format!("SELECT pg_advisory_xact_lock({ADVISORY}, hashtext('{schema}'))");
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut conn.raw).await?;
    let Some(format) = schema::format(&mut conn.raw, schema).await? else {
        schema::create(conn, schema).await?;
        return Ok(Room::Made(None));
    };
    // A server that comes now waits, and looks the tables up anew when they have been replaced.
    sqlx::raw_sql("LOCK TABLE meta IN ACCESS EXCLUSIVE MODE").execute(&mut conn.raw).await?;
    if format == FORMAT && is_unused(&mut conn.raw).await? {
        return Ok(Room::Made(None));
    }
    if existing == Existing::Refuse {
        return Ok(Room::Taken);
    }
    let aside = free_name(&mut conn.raw, schema).await?;
    let rename = format!("ALTER SCHEMA \"{schema}\" RENAME TO \"{aside}\"");
    sqlx::raw_sql(AssertSqlSafe(rename)).execute(&mut conn.raw).await?;
    schema::create(conn, schema).await?;
    Ok(Room::Made(Some(aside)))
}

async fn is_unused(conn: &mut PgConnection) -> sqlx::Result<bool> {
    let sql = "SELECT revision <= 1 AND alarms = 0 AND NOT EXISTS (SELECT FROM log) AND NOT EXISTS (SELECT FROM lease) \
                 AND NOT EXISTS (SELECT FROM setting) FROM meta";
    sqlx::query(sql).fetch_one(conn).await?.try_get(0)
}

async fn free_name(conn: &mut PgConnection, schema: &str) -> sqlx::Result<String> {
    let first = format!("{schema}_replaced_{}", jiff::Timestamp::now().strftime("%Y%m%d_%H%M%S"));
    let mut name = first.clone();
    let mut n = 1;
    while schema::schema_exists(conn, &name).await? {
        n += 1;
        name = format!("{first}_{n}");
    }
    Ok(name)
}

async fn fill_state(conn: &mut PgConnection, content: &Content) -> sqlx::Result<()> {
    let ids: Vec<i64> = content.state.leases.keys().copied().collect();
    let ttls: Vec<i64> = content.state.leases.values().map(|ttl| (*ttl).clamp(1, MAX_TTL)).collect();
    let leases = "INSERT INTO lease (id, ttl, deadline, change, ended) \
                  SELECT id, ttl, clock_timestamp() + ttl * interval '1 second', n, false \
                  FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS t (id, ttl, n)";
    sqlx::query(leases).bind(ids).bind(ttls).execute(&mut *conn).await?;
    for (name, value) in &content.state.settings {
        let insert = "INSERT INTO setting (name, value) VALUES ($1, $2)";
        sqlx::query(insert).bind(name).bind(&value[..]).execute(&mut *conn).await?;
    }
    let alarms = content.state.alarms.iter().fold(0, |bits, alarm| bits | alarm_bit(*alarm));
    // `started`: to the first server it is as after a restart of the database, so that the leases' time begins with it.
    let update =
        sqlx::query("UPDATE meta SET revision = $1, compacted = $2, alarms = $3, lease_change = $4, started = 0");
    let update = update.bind(content.export.revision).bind(content.export.compacted).bind(alarms);
    update.bind(content.state.leases.len() as i64).execute(conn).await.map(drop)
}
