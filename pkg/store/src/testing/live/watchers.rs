//! Watchers that come and go, and the two witnesses, which miss nothing.

use super::recorder::Recorder;
use super::{DURABLE, EPHEMERAL, WATCHERS};
use crate::testing::convert;
use crate::*;
use isopod_history::{Keys, Note, WatchLog};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// All watchers of one process of the store.
pub(crate) struct Watching {
    recorder: Arc<Recorder>,
    ends: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

struct Watcher {
    store: Arc<dyn Store>,
    recorder: Arc<Recorder>,
    ends: Arc<AtomicBool>,
    rng: StdRng,
    client: u32,
    /// Of which of the witnesses this is one.
    witness: Option<usize>,
}

pub(crate) fn start(store: &Arc<dyn Store>, recorder: &Arc<Recorder>, seed: u64) -> Watching {
    let ends = Arc::new(AtomicBool::new(false));
    let tasks = (0..2 + WATCHERS).map(|n| {
        let watcher = Watcher {
            store: Arc::clone(store),
            recorder: Arc::clone(recorder),
            ends: Arc::clone(&ends),
            rng: StdRng::seed_from_u64(seed << 8 | u64::from(n)),
            client: 1000 + n,
            witness: (n < 2).then_some(n as usize),
        };
        tokio::spawn(watcher.run())
    });
    Watching { recorder: Arc::clone(recorder), tasks: tasks.collect(), ends }
}

impl Watching {
    /// Lets the witnesses see everything that anybody was told, and closes the store. The history of ephemeral keys goes with
    /// the process; that of durable ones is there for the next one, and without power perhaps only then.
    pub async fn end(self, store: &dyn Store, power: bool) -> Result<()> {
        let seen = async {
            let through = self.recorder.newest();
            while self.recorder.witnessed[usize::from(!power)..]
                .iter()
                .any(|next| next.load(Ordering::SeqCst) <= through)
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), seen).await.expect("the witnesses are not told of everything");
        self.ends.store(true, Ordering::SeqCst);
        let closed = store.close().await;
        for task in self.tasks {
            task.await.expect("a watcher ends in order");
        }
        closed
    }
}

impl Watcher {
    async fn run(mut self) {
        while !self.ends.load(Ordering::SeqCst) {
            let (keys, start) = match self.witness {
                Some(n) => (Keys::prefix([DURABLE, EPHEMERAL][n]), self.recorder.resume(n)),
                None => (self.keys(), if self.rng.random_bool(0.5) { 0 } else { self.past() }),
            };
            let log = WatchLog {
                client: self.client,
                keys: keys.clone(),
                start,
                prev: true,
                invoked: self.recorder.now(),
                notes: Vec::new(),
                witness: self.witness.is_some(),
            };
            let log = self.follow(log).await;
            self.recorder.watch(log);
        }
    }

    fn keys(&mut self) -> Keys {
        match self.rng.random_range(0..5) {
            0 => Keys::prefix(DURABLE),
            1 => Keys::prefix(EPHEMERAL),
            2 => Keys::Between("d/1".into(), "d/3".into()),
            3 => Keys::From(String::new()),
            _ => Keys::One(format!("{DURABLE}{}", self.rng.random_range(0..4))),
        }
    }

    fn past(&mut self) -> Revision {
        (self.recorder.newest() - self.rng.random_range(-2..40)).max(1)
    }

    async fn follow(&mut self, mut log: WatchLog) -> WatchLog {
        if log.start == 0
            // A server of several begins where it has got to: let that be what is known.
            && let Err(e) = self.store.revisions().await
        {
            self.note(&mut log, ended(&e));
            tokio::time::sleep(Duration::from_millis(1)).await;
            return log;
        }
        let request = WatchRequest { range: convert::range(&log.keys), start: log.start };
        let mut watch = match self.store.watch(request).await {
            Ok(watch) => watch,
            Err(e) => {
                self.note(&mut log, ended(&e));
                tokio::time::sleep(Duration::from_millis(1)).await;
                return log;
            }
        };
        let life = self.rng.random_range(1..60);
        let mut silent = 0;
        for n in 0.. {
            if self.witness.is_none() && (n == life || silent == 20) {
                self.note(&mut log, Note::Ended("closed".into()));
                return log;
            }
            // Now and then it lags behind.
            if self.witness.is_none() && self.rng.random_bool(0.05) {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            let note = match tokio::time::timeout(Duration::from_millis(2), watch.receiver.recv()).await {
                Ok(Some(Ok(WatchMessage::Events(rev, events)))) => {
                    Note::Events(rev, events.iter().map(convert::event).collect())
                }
                Ok(Some(Ok(WatchMessage::Progress(rev)))) => Note::Progress(rev),
                Ok(Some(Err(e))) => ended(&e),
                Ok(None) => Note::Ended("the store is closed".into()),
                Err(_) => {
                    silent += 1;
                    (watch.request_progress)();
                    continue;
                }
            };
            let end = matches!(note, Note::Ended(_) | Note::Compacted(_));
            self.note(&mut log, note);
            if end {
                return log;
            }
        }
        log
    }

    fn note(&self, log: &mut WatchLog, note: Note) {
        let at = self.recorder.now();
        if let Note::Events(rev, _) | Note::Progress(rev) = note {
            self.recorder.heard(rev);
            if let Some(n) = self.witness {
                self.recorder.witnessed[n].fetch_max(rev + 1, Ordering::SeqCst);
            }
        }
        log.notes.push((at, note));
    }
}

fn ended(error: &StoreError) -> Note {
    match error {
        StoreError::Compacted { .. } => Note::Compacted(0),
        other => Note::Ended(other.to_string()),
    }
}
