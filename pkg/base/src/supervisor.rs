//! Runs long-lived tasks, restarts those that fail, and stops them together.

use crate::errors::Chain;
use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A group of named tasks with one end.
#[derive(Clone, Default)]
pub struct Supervisor {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Supervisor {
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the group should end.
    pub fn token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs `task` until it returns `Ok` or the group ends. After an error or a panic it is started again, with a backoff
    /// that doubles from 0.2 s to 30 s.
    pub fn spawn<F, Fut, E>(&self, name: &'static str, task: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let mut wait = Duration::from_millis(200);
            loop {
                let started = std::time::Instant::now();
                let mut run = tokio::spawn(task());
                let ended = tokio::select! {
                    r = &mut run => r,
                    () = stop.cancelled() => {
                        // The task sees the same token: give it time to put its things in order.
                        if tokio::time::timeout(Duration::from_secs(10), &mut run).await.is_err() {
                            run.abort();
                            tracing::warn!(task = name, "did not stop in time");
                        }
                        return;
                    }
                };
                match ended {
                    Ok(Ok(())) => return,
                    Ok(Err(e)) => tracing::error!(task = name, error = %Chain(&e), "task failed; starting it again"),
                    Err(e) => tracing::error!(task = name, error = %e, "task panicked; starting it again"),
                }
                if started.elapsed() > Duration::from_secs(60) {
                    wait = Duration::from_millis(200);
                }
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = stop.cancelled() => return,
                }
                wait = (wait * 2).min(Duration::from_secs(30));
            }
        });
    }

    /// Ends the group and waits for its tasks.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
