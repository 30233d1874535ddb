//! One client that watches, again and again: it goes on from where it was when its watch is lost.

use crate::client::Connection;
use crate::record::Recorder;
use crate::{convert, told};
use etcd_client::{WatchOptions, WatchStream};
use isopod_history::{Keys, Note, Revision, WatchLog};
use rand::Rng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A watch that cannot be made within this time is tried elsewhere.
const PATIENCE: Duration = Duration::from_secs(3);

pub struct Watcher {
    pub recorder: Arc<Recorder>,
    pub connection: Connection,
    pub rng: StdRng,
    pub prefix: String,
    pub client: u32,
}

impl Watcher {
    /// `start` 0: from now.
    pub async fn run(mut self, witness: bool, start: Revision, stop: CancellationToken) {
        let (mut keys, mut next) = (Keys::prefix(&self.prefix), start);
        while !stop.is_cancelled() {
            let log = WatchLog {
                client: self.client,
                keys: keys.clone(),
                start: next,
                prev: true,
                invoked: self.recorder.now(),
                notes: Vec::new(),
                witness,
            };
            let Some(stream) = self.open(&log).await else { continue };
            // Now and then the client itself closes the watch, and goes on or begins another one.
            let life = Duration::from_millis(self.rng.random_range(20..1500));
            let log = self.follow(log, stream, if witness { None } else { Some(life) }, &stop).await;
            next = log.notes.iter().fold(next, |next, (_, note)| told(next, note));
            let compacted = log.notes.iter().any(|(_, note)| matches!(note, Note::Compacted(_)));
            if !witness && (compacted || self.rng.random_bool(0.3)) {
                keys = self.keys();
                // Something that is certain to be there still, or something that may have been compacted.
                next = if self.rng.random_bool(0.5) { 0 } else { self.past() };
            }
            self.recorder.watch(log);
        }
    }

    fn keys(&mut self) -> Keys {
        match self.rng.random_range(0..4) {
            0 => Keys::prefix(&self.prefix),
            1 => Keys::One(format!("{}a/{}", self.prefix, self.rng.random_range(0..4))),
            2 => Keys::prefix(&format!("{}a/", self.prefix)),
            _ => Keys::prefix(&format!("{}b/", self.prefix)),
        }
    }

    fn past(&mut self) -> Revision {
        (self.recorder.newest.load(Ordering::SeqCst) - self.rng.random_range(-3..600)).max(1)
    }

    async fn open(&mut self, log: &WatchLog) -> Option<WatchStream> {
        let mut client = self.connection.client().await?;
        let (key, end) = convert::range(&log.keys);
        let mut options = WatchOptions::new().with_start_revision(log.start).with_prev_key();
        if let Some(end) = end {
            options = options.with_range(end);
        }
        match tokio::time::timeout(PATIENCE, client.watch(key, Some(options))).await {
            Ok(Ok(stream)) => Some(stream),
            _ => {
                self.connection.lose();
                None
            }
        }
    }

    async fn follow(
        &mut self,
        mut log: WatchLog,
        mut stream: WatchStream,
        life: Option<Duration>,
        stop: &CancellationToken,
    ) -> WatchLog {
        let end = tokio::time::Instant::now() + life.unwrap_or(Duration::from_secs(1 << 20));
        let mut next = log.start;
        let mut wish = tokio::time::interval(Duration::from_millis(self.rng.random_range(50..700)));
        loop {
            tokio::select! {
                () = stop.cancelled() => return log,
                () = tokio::time::sleep_until(end) => {
                    log.notes.push((self.recorder.now(), Note::Ended("closed".into())));
                    return log;
                }
                _ = wish.tick() => {
                    // Its failure shows on the stream.
                    let _ = stream.request_progress().await;
                }
                message = stream.message() => {
                    let now = self.recorder.now();
                    let notes = match message {
                        Ok(Some(answer)) => convert::notes(&answer),
                        Ok(None) => vec![Note::Ended("the stream ended".into())],
                        Err(e) => vec![Note::Ended(e.to_string())],
                    };
                    for note in notes {
                        next = told(next, &note);
                        let ended = matches!(note, Note::Ended(_) | Note::Compacted(_));
                        if let Note::Events(rev, _) | Note::Progress(rev) | Note::Created(rev) = note {
                            self.recorder.heard(rev);
                        }
                        log.notes.push((now, note));
                        if ended {
                            self.connection.lose();
                            return log;
                        }
                    }
                    if log.witness {
                        self.recorder.witnessed.store(next, Ordering::SeqCst);
                    }
                }
            }
        }
    }
}
