//! Reads of single keys at the newest revision. Those that come while others are being read are read together, in one snapshot
//! and with one change of threads: of a read by itself, both cost several times what the read costs.
//!
//! Invariant: a snapshot is taken after every read that it answers was asked for, so each sees all that was acknowledged
//! before.

use super::index::Recent;
use super::queries::row_revision;
use super::reader::{Readers, Snapshot};
use crate::select::select;
use crate::{KeyRange, RangeRequest, RangeResponse, Result, StoreError};
use parking_lot::Mutex;
use rusqlite::Connection;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Snapshots taken in a row before the connection is given back: somebody may wait until none is in use.
const ROUNDS: usize = 16;

pub(crate) struct Points {
    readers: Arc<Readers>,
    snapshot: Arc<Snapshot>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    reads: Vec<Read>,
    /// Somebody sees to the reads.
    attended: bool,
}

struct Read {
    req: RangeRequest,
    reply: oneshot::Sender<Result<RangeResponse>>,
}

impl Points {
    pub fn new(readers: Arc<Readers>, snapshot: Arc<Snapshot>) -> Arc<Self> {
        Arc::new(Points { readers, snapshot, waiting: Mutex::default() })
    }

    /// `req` is of a single durable key, at the newest revision.
    pub async fn range(self: &Arc<Self>, req: RangeRequest) -> Result<RangeResponse> {
        let (reply, answer) = oneshot::channel();
        let attended = {
            let mut waiting = self.waiting.lock();
            waiting.reads.push(Read { req, reply });
            std::mem::replace(&mut waiting.attended, true)
        };
        if !attended {
            // Not in this task: who asks may go away, and others count on it.
            tokio::spawn(Arc::clone(self).attend());
        }
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn attend(self: Arc<Self>) {
        loop {
            let points = Arc::clone(&self);
            let read = self.readers.run(move |conn| {
                points.rounds(conn);
                Ok(())
            });
            let read = read.await;
            let mut waiting = self.waiting.lock();
            if let Err(e) = read {
                for Read { reply, .. } in waiting.reads.drain(..) {
                    let _ = reply.send(Err(e.clone()));
                }
            }
            if waiting.reads.is_empty() {
                waiting.attended = false;
                return;
            }
        }
    }

    fn rounds(&self, conn: &Connection) {
        for _ in 0..ROUNDS {
            let reads = std::mem::take(&mut self.waiting.lock().reads);
            if reads.is_empty() {
                return;
            }
            let (requests, replies): (Vec<_>, Vec<_>) = reads.into_iter().map(|r| (r.req, r.reply)).unzip();
            let answers = self.read(conn, &requests);
            let answers = answers.unwrap_or_else(|e| vec![Err(e); requests.len()]);
            for (answer, reply) in answers.into_iter().zip(replies) {
                if let Err(e) = &answer {
                    self.readers.note(e);
                }
                // Who went away does not want its answer.
                let _ = reply.send(answer);
            }
        }
    }

    fn read(&self, conn: &Connection, requests: &[RangeRequest]) -> Result<Vec<Result<RangeResponse>>> {
        let hub = &self.snapshot.hub;
        let published = hub.published();
        let ranges: Vec<&KeyRange> = requests.iter().map(|req| &req.range).collect();
        let (transaction, last, recent) = self.snapshot.recent.begin(conn, &ranges)?;
        let newest = published.max(row_revision(last));
        let read = |(req, recent): (&RangeRequest, &Recent)| {
            let found = select(req, |plain| self.snapshot.rows.range(conn, plain, last, recent))?;
            Ok(RangeResponse { revision: newest, ..found })
        };
        let answers = requests.iter().zip(&recent).map(read).collect();
        drop(transaction);
        // The snapshot may hold a commit that is not published yet: nobody may hear of it before the watchers can.
        hub.wait_for(newest)?;
        Ok(answers)
    }
}
