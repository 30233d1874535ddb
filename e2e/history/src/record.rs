//! What all clients together saw.

use crate::client::Connection;
use isopod_history::{Operation, Outcome, Request, Revision, Time, WatchLog};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

pub struct Recorder {
    began: Instant,
    operations: Mutex<Vec<Operation>>,
    watches: Mutex<Vec<WatchLog>>,
    /// The newest revision that anybody heard of, to ask for the past with.
    pub newest: AtomicI64,
    /// Before this revision the witness has seen everything: history may be compacted up to here.
    pub witnessed: AtomicI64,
}

impl Recorder {
    pub fn new() -> Self {
        Recorder {
            began: Instant::now(),
            operations: Mutex::default(),
            watches: Mutex::default(),
            newest: AtomicI64::new(0),
            witnessed: AtomicI64::new(0),
        }
    }

    pub fn now(&self) -> Time {
        self.began.elapsed().as_nanos() as Time
    }

    pub fn heard(&self, revision: Revision) {
        self.newest.fetch_max(revision, Ordering::SeqCst);
    }

    /// Asks, and takes down what came of it. `None`: it was never sent.
    pub async fn operation(&self, client: u32, request: Request, connection: &mut Connection) -> Option<Outcome> {
        let invoked = self.now();
        let outcome = connection.ask(&request).await?;
        let returned = self.now();
        if let Outcome::Answered(answer) = &outcome {
            self.heard(answer.revision());
        }
        // A read that was not answered says nothing.
        if outcome != Outcome::Unknown || !matches!(request, Request::Get(_)) {
            let outcome = outcome.clone();
            self.operations.lock().push(Operation { client, invoked, returned, request, outcome });
        }
        Some(outcome)
    }

    pub fn watch(&self, log: WatchLog) {
        self.watches.lock().push(log);
    }

    pub fn take(&self) -> (Vec<Operation>, Vec<WatchLog>) {
        (std::mem::take(&mut self.operations.lock()), std::mem::take(&mut self.watches.lock()))
    }
}
