//! The connections for reads. Each is as it was left: a read that fails is made again on a fresh connection, within limits.
//!
//! Invariant: a connection on which something failed or was given up half-way is never used again.

use super::connect::{Attempts, Connection, PATIENCE, STATEMENT, Server, in_time};
use super::error::{Fault, fault, is_passing};
use crate::{Result, StoreError};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use sqlx::PgConnection;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Semaphore, SemaphorePermit};

pub(crate) struct Pool {
    pub server: Arc<Server>,
    idle: Mutex<Vec<Connection>>,
    free: Semaphore,
}

/// A connection in use.
pub(crate) struct Borrowed<'a> {
    pub conn: Connection,
    _permit: SemaphorePermit<'a>,
}

impl Pool {
    pub fn new(server: Arc<Server>, size: usize) -> Self {
        Pool { server, idle: Mutex::new(Vec::new()), free: Semaphore::new(size.max(1)) }
    }

    pub async fn take(&self) -> sqlx::Result<Borrowed<'_>> {
        let permit = match tokio::time::timeout(PATIENCE, self.free.acquire()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(sqlx::Error::PoolClosed),
            Err(_) => return Err(fault(Fault::Busy)),
        };
        let idle = self.idle.lock().pop();
        let conn = match idle {
            Some(conn) => conn,
            None => self.server.connect().await?,
        };
        Ok(Borrowed { conn, _permit: permit })
    }

    /// Only what is in order comes back.
    pub fn give_back(&self, borrowed: Borrowed<'_>) {
        if !self.free.is_closed() {
            self.idle.lock().push(borrowed.conn);
        }
    }

    async fn attempt<T>(
        &self,
        read: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>>,
    ) -> sqlx::Result<T> {
        let mut borrowed = self.take().await?;
        let result = in_time(STATEMENT, read(&mut borrowed.conn.raw)).await;
        match &result {
            Ok(_) => self.give_back(borrowed),
            // The others have most probably met the same.
            Err(e) if is_passing(e) => self.idle.lock().clear(),
            Err(_) => {}
        }
        result
    }

    /// Runs `read`, again and again while the server is away, but not for long.
    pub async fn run<T>(
        &self,
        what: &str,
        mut read: impl for<'c> FnMut(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>>,
    ) -> Result<T> {
        let mut attempts = Attempts::since(Instant::now());
        loop {
            let error = match self.attempt(&mut read).await {
                Ok(value) => return Ok(value),
                Err(sqlx::Error::PoolClosed) => return Err(StoreError::Closed),
                Err(error) => error,
            };
            match attempts.pause() {
                Some(pause) if is_passing(&error) => tokio::time::sleep(pause).await,
                _ => return Err(self.server.failed(what, error)),
            }
        }
    }

    /// Runs `work` once, for as long as it takes, on a connection of its own: the reads need theirs.
    pub async fn run_long<T>(
        &self,
        what: &str,
        work: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, sqlx::Result<T>>,
    ) -> Result<T> {
        let mut attempts = Attempts::since(Instant::now());
        let mut conn = loop {
            if self.free.is_closed() {
                return Err(StoreError::Closed);
            }
            match self.server.connect().await {
                Ok(conn) => break conn,
                Err(e) => match attempts.pause().filter(|_| is_passing(&e)) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(self.server.failed(what, e)),
                },
            }
        };
        work(&mut conn.raw).await.map_err(|e| self.server.failed(what, e))
    }

    /// Later reads find it closed; those that run come to their end.
    pub fn close(&self) {
        self.free.close();
        self.idle.lock().clear();
    }
}
