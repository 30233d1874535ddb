//! Checkpoints: the write-ahead log is copied into the database's file beside the commits, and begins again at its start.
//!
//! A connection of the readers copies. What only the writer can do, it does between two commits, when little is left: it copies
//! what came meanwhile and lets the log begin again. It waits for no read: where one stands in the way, the log grows until the
//! next try. Past a limit, new reads wait for those that run.
//!
//! Invariant: after the disk failed to sync the file, nothing is copied any more and the log stays as it is. The kernel may
//! have dropped what it could not write, and says so once: a second sync that succeeds proves nothing. The log holds all of
//! it, and the next start copies all of it again.

use super::queries::{self, failed};
use super::reader::{Paused, Readers};
use super::schema::BUSY_TIMEOUT;
use super::writer::Request;
use crate::{Result, StoreError};
use rusqlite::{Connection, ffi};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::mpsc::WeakUnboundedSender;
use tokio::sync::oneshot;

/// A checkpoint begins when about so many pages were written: 4 MB.
pub(crate) const BEGIN_PAGES: usize = 1000;
/// A log of so many frames is to begin again: 16 MB.
const RESTART_FRAMES: i64 = 4 << 10;
/// From here on reads wait for that: 64 MB.
pub(crate) const LIMIT_FRAMES: i64 = 16 << 10;
/// New reads wait at most so long for those that run.
const PAUSE: Duration = Duration::from_secs(2);

/// Starts checkpoints, one at a time.
pub(crate) struct Checkpoints {
    pub readers: Arc<Readers>,
    pub runtime: tokio::runtime::Handle,
    /// To the writer; it does not keep a dropped store alive.
    pub writer: WeakUnboundedSender<Request>,
    pub running: AtomicBool,
    /// One was asked for while another one ran, and may have come too late for it.
    pub again: AtomicBool,
    /// From so many frames on reads wait; more after a read that did not end in time, as one whose answer nobody takes.
    pub limit: AtomicI64,
    /// Set when the file could not be synced.
    pub stopped: Arc<OnceLock<StoreError>>,
}

impl Checkpoints {
    /// Now, or when the one that is running has ended. False: there are none any more.
    pub fn start(self: &Arc<Self>) -> bool {
        if self.stopped.get().is_some() {
            return false;
        }
        self.again.store(true, Ordering::SeqCst);
        if self.running.swap(true, Ordering::SeqCst) {
            return true;
        }
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            loop {
                while this.again.swap(false, Ordering::SeqCst) {
                    if let Err(e) = this.run().await {
                        this.failed(e);
                    }
                }
                this.running.store(false, Ordering::SeqCst);
                // Asked for between the two.
                if !this.again.load(Ordering::SeqCst) || this.running.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
        });
        true
    }

    async fn run(&self) -> Result<()> {
        let frames = self.readers.run(copy).await?;
        if frames < RESTART_FRAMES {
            self.limit.store(LIMIT_FRAMES, Ordering::SeqCst);
            return Ok(());
        }
        let paused = self.pause(frames).await;
        let again = {
            let readers = Arc::clone(&self.readers);
            // What came during the first copy, and a sync that the writer does not have to wait for.
            move |conn: &Connection| copy(conn).and_then(|_| readers.sync_file())
        };
        match &paused {
            Some(paused) => paused.run(again).await?,
            None => self.readers.run(again).await?,
        }
        let (reply, done) = oneshot::channel();
        if let Some(writer) = self.writer.upgrade() {
            let _ = writer.send(Request::RestartLog(reply));
        }
        // Closed meanwhile: then there is nothing left to do.
        let _ = done.await;
        Ok(())
    }

    async fn pause(&self, frames: i64) -> Option<Paused> {
        if frames < self.limit.load(Ordering::SeqCst) {
            return None;
        }
        let paused = self.readers.pause(PAUSE).await;
        if paused.is_none() {
            self.limit.store(2 * frames, Ordering::SeqCst);
        }
        paused
    }

    /// Lets the log begin again if no read stands in the way. The writer's part.
    pub fn restart(&self, conn: &Connection) {
        if self.stopped.get().is_some() {
            return;
        }
        let run = || -> rusqlite::Result<()> {
            conn.busy_timeout(Duration::ZERO)?;
            let restarted = conn.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
            conn.busy_timeout(BUSY_TIMEOUT)?;
            restarted
        };
        if let Err(e) = run() {
            self.failed(failed("let the write-ahead log begin again")(e));
        }
    }

    pub fn failed(&self, e: StoreError) {
        match e {
            StoreError::Closed => {}
            e if is_failed_sync(&e) => {
                tracing::error!(
                    error = %isopod_base::errors::Chain(&e),
                    "the disk did not keep what was written: nothing is written any more until the store is opened anew; \
                     what was acknowledged is in the write-ahead log. Look at the disk before that"
                );
                let context = "the disk failed, and nothing is written until the server is started again".into();
                let _ = self.stopped.set(StoreError::NotDone { context, source: Arc::new(e) });
            }
            // As a full disk: what was committed stays in the log, and the next checkpoint tries again.
            e => tracing::warn!(error = %isopod_base::errors::Chain(&e), "the write-ahead log grows"),
        }
    }
}

/// Copies what no read needs from the log. Returns how long the log is.
fn copy(conn: &Connection) -> Result<i64> {
    let passive = || conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |r| r.get::<_, i64>(1));
    passive().map_err(failed("copy the write-ahead log"))
}

/// Empties the log that a process left which did not end cleanly. That process may have been told that a sync failed: then the
/// log as we read it is not the log on the disk, and no commit may build on it. One that ended cleanly leaves a log only where
/// somebody else reads it, as a backup does.
pub(crate) fn settle(conn: &Connection) -> Result<()> {
    let busy = || conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get::<_, bool>(0));
    match busy().map_err(failed("copy the write-ahead log that the last run left"))? {
        false => Ok(()),
        true if queries::meta(conn, "clean")?.is_some() => Ok(()),
        true => Err(StoreError::Backend {
            context: "cannot copy the write-ahead log that the last run left".into(),
            source: Arc::new(std::io::Error::other(
                "another program reads the database (a backup?): let it end, or end it, and start again",
            )),
        }),
    }
}

pub(crate) fn is_failed_sync(e: &StoreError) -> bool {
    let (StoreError::Backend { source, .. } | StoreError::Unavailable { source, .. }) = e else { return false };
    let sqlite = source.downcast_ref::<rusqlite::Error>().and_then(|e| e.sqlite_error());
    let synced_by_us = source.downcast_ref::<std::io::Error>().is_some();
    synced_by_us || sqlite.is_some_and(|e| e.extended_code == ffi::SQLITE_IOERR_FSYNC)
}
