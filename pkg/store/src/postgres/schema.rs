//! The tables, made on first use, and how an older format becomes this one.
//!
//! A row of `log` is one event; its id is `revision << 20 | sub`. `newest` points from each key to its newest row; a deleted
//! key stays there as not live until compaction, so that reads at old revisions find the chain that `prev` makes.
//! `meta` is the one row whose lock orders the writers of all servers.

use super::connect::{Connection, Server};
use super::error::{Fault, fault};
use sqlx::{AssertSqlSafe, PgConnection, Row};

/// Raised when the tables change shape.
pub(crate) const FORMAT: i32 = STEPS.len() as i32;

/// What each format has beyond the one before; the first makes the tables.
const STEPS: [&str; 1] = ["
CREATE TABLE meta (
  single boolean PRIMARY KEY DEFAULT true CHECK (single), format int NOT NULL,
  revision bigint NOT NULL, compacted bigint NOT NULL,
  epoch int NOT NULL, lineage text COLLATE \"C\" NOT NULL, started bigint NOT NULL,
  lease_change bigint NOT NULL, lease_floor bigint NOT NULL, alarms int NOT NULL
) WITH (fillfactor = 10);
CREATE TABLE log (
  id bigint PRIMARY KEY, prev bigint NOT NULL, created bigint NOT NULL, version bigint NOT NULL,
  lease bigint NOT NULL, deleted boolean NOT NULL, key bytea NOT NULL, value bytea NOT NULL
) WITH (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE log ALTER COLUMN value SET STORAGE EXTERNAL;
CREATE TABLE newest (
  key bytea PRIMARY KEY, id bigint NOT NULL, lease bigint NOT NULL, live boolean NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX newest_lease ON newest (lease) WHERE lease <> 0;
-- An ended lease keeps its row for a while: the other servers learn from it.
CREATE TABLE lease (
  id bigint PRIMARY KEY, ttl bigint NOT NULL, deadline timestamptz NOT NULL, change bigint NOT NULL, ended boolean NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX lease_change ON lease (change);
CREATE TABLE setting (name text COLLATE \"C\" PRIMARY KEY, value bytea NOT NULL);
-- The history before `base` is whole, what followed it may be lost, and it goes on after `first`.
CREATE TABLE epoch (epoch int PRIMARY KEY, base bigint NOT NULL, first bigint NOT NULL, opened timestamptz NOT NULL DEFAULT now());
-- The last batch of each server: tells whether a commit whose answer was lost took place.
CREATE TABLE server (id bigint PRIMARY KEY, batch bigint NOT NULL, seen timestamptz NOT NULL) WITH (fillfactor = 10);
CREATE TABLE compaction (single boolean PRIMARY KEY DEFAULT true CHECK (single), through bigint NOT NULL) WITH (fillfactor = 10);
INSERT INTO compaction (through) VALUES (0);
"];

/// "isop": the first half of the keys of advisory locks, so that they are nobody else's.
pub(crate) const ADVISORY: i32 = 0x6973_6f70;

/// A lock that each server's writer has, shared with the others: whoever replaces the tables asks for it alone.
pub(crate) fn serving(schema: &str) -> String {
    format!("SELECT pg_advisory_lock_shared({ADVISORY}, hashtext('{schema} server'))")
}

/// Asks for that lock, alone and until the transaction ends.
pub(crate) fn unserved(schema: &str) -> String {
    format!("SELECT pg_advisory_xact_lock({ADVISORY}, hashtext('{schema} server'))")
}

/// Makes or migrates the tables, one server at a time. A server writes nothing to a database that is as it should be.
pub(crate) async fn prepare(conn: &mut Connection, server: &Server) -> sqlx::Result<()> {
    if format(&mut conn.raw, &server.schema).await? == Some(FORMAT) {
        return Ok(());
    }
    let lock = format!(
        "BEGIN; SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock({ADVISORY}, hashtext('{0}'))",
        server.schema
    );
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut conn.raw).await?;
    // Another server may have done it meanwhile.
    let found = format(&mut conn.raw, &server.schema).await?;
    match found {
        Some(n) if (1..=FORMAT).contains(&n) => {
            let steps = STEPS[n as usize..].concat();
            sqlx::raw_sql(AssertSqlSafe(steps)).execute(&mut conn.raw).await?;
            sqlx::query("UPDATE meta SET format = $1").bind(FORMAT).execute(&mut conn.raw).await?;
        }
        Some(found) => return Err(fault(Fault::Format { found, supported: FORMAT })),
        None => create(conn, &server.schema).await?,
    }
    sqlx::raw_sql("COMMIT").execute(&mut conn.raw).await?;
    Ok(())
}

/// Makes the tables, and the schema where there is none, in the transaction that is open.
pub(crate) async fn create(conn: &mut Connection, schema: &str) -> sqlx::Result<()> {
    if !schema_exists(&mut conn.raw, schema).await? {
        let create = format!("CREATE SCHEMA \"{schema}\"");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut conn.raw).await?;
    }
    sqlx::raw_sql(AssertSqlSafe(STEPS.concat())).execute(&mut conn.raw).await?;
    let insert = "INSERT INTO meta (format, revision, compacted, epoch, lineage, started, lease_change, lease_floor, alarms) \
                  VALUES ($1, 1, 0, 0, $2, $3, 0, 0, 0)";
    let insert = sqlx::query(insert).bind(FORMAT).bind(&conn.facts.lineage).bind(conn.facts.started);
    insert.execute(&mut conn.raw).await.map(drop)
}

pub(crate) async fn schema_exists(conn: &mut PgConnection, schema: &str) -> sqlx::Result<bool> {
    let row = sqlx::query("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)").bind(schema).fetch_one(conn);
    row.await?.try_get(0)
}

/// The format of the tables; `None`: there are none.
pub(crate) async fn format(conn: &mut PgConnection, schema: &str) -> sqlx::Result<Option<i32>> {
    // Not by a name that the server looks up: it may remember that there was none.
    let sql = "SELECT has_schema_privilege(n.oid, 'USAGE') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1 AND c.relname = 'meta'";
    match sqlx::query(sql).bind(schema).fetch_optional(&mut *conn).await? {
        None => return Ok(None),
        Some(row) if row.try_get(0)? => {}
        Some(_) => return Err(fault(Fault::Forbidden(schema.to_owned()))),
    }
    match sqlx::query("SELECT format FROM meta").fetch_optional(conn).await? {
        Some(row) => row.try_get(0).map(Some),
        None => Err(fault(Fault::NoMeta)),
    }
}
