//! Runs long-lived tasks, notices when one ends, and stops them together.
//!
//! Invariant: no task of a group ends unseen before the group does: it is started again, or the group has failed and says
//! what ended and why.

use crate::errors::Chain;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A task that ran for so long is started again without a long pause.
const HEALTHY: Duration = Duration::from_secs(60);
/// How long a task may take to end.
const ENDING: Duration = Duration::from_secs(10);

/// A run of a task. In a box: what is done with it is compiled once for all tasks.
type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A task ended that the others cannot do without.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} ended: {why}")]
pub struct Failure {
    pub name: &'static str,
    pub why: String,
}

/// A group of named tasks with one end.
#[derive(Clone)]
pub struct Supervisor {
    tracker: TaskTracker,
    stop: CancellationToken,
    failure: Arc<watch::Sender<Option<Failure>>>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl Supervisor {
    pub fn new() -> Self {
        Self::with_token(CancellationToken::new())
    }

    /// A group that ends with `parent` at the latest.
    pub fn under(parent: &CancellationToken) -> Self {
        Self::with_token(parent.child_token())
    }

    fn with_token(stop: CancellationToken) -> Self {
        Supervisor { tracker: TaskTracker::new(), stop, failure: Arc::new(watch::Sender::new(None)) }
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
        self.restarting(
            name,
            Box::new(move || {
                let run = task();
                Box::pin(async move { run.await.map_err(|e| Chain(&e).to_string()) })
            }),
        );
    }

    /// Runs `task` until the group ends: when it ends before, in whatever way, it is started again with the same backoff.
    pub fn keep<F, Fut>(&self, name: &'static str, task: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.restarting(
            name,
            Box::new(move || {
                let run = task();
                Box::pin(async move {
                    run.await;
                    Err("it returned".to_owned())
                })
            }),
        );
    }

    /// Runs a task that cannot be started again: when it ends before the group does, the group has [failed](Self::failed).
    pub fn vital<Fut>(&self, name: &'static str, task: Fut)
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.watched(name, Box::pin(task));
    }

    fn watched(&self, name: &'static str, task: Task<()>) {
        let (stop, failure) = (self.stop.clone(), self.failure.clone());
        self.tracker.spawn(async move {
            let Some(ended) = until_end(name, tokio::spawn(task), &stop).await else { return };
            let why = ended.err().map_or_else(|| "it returned".into(), panic_text);
            // The first one is the cause.
            failure.send_if_modified(|f| f.is_none() && f.replace(Failure { name, why }).is_none());
        });
    }

    /// Returns when a [vital](Self::vital) task has ended before the group.
    pub async fn failed(&self) -> Failure {
        let mut failure = self.failure.subscribe();
        match failure.wait_for(Option::is_some).await.map(|f| f.clone()) {
            Ok(Some(failure)) => failure,
            // The sender lives as long as this group.
            _ => std::future::pending().await,
        }
    }

    /// Starts what `task` makes, again after an error or a panic.
    fn restarting(&self, name: &'static str, task: Box<dyn Fn() -> Task<Result<(), String>> + Send + Sync>) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let mut wait = FIRST_PAUSE;
            loop {
                let started = std::time::Instant::now();
                let Some(ended) = until_end(name, tokio::spawn(task()), &stop).await else { return };
                let why = match ended {
                    Ok(Ok(())) => return,
                    Ok(Err(why)) => why,
                    Err(e) => panic_text(e),
                };
                tracing::error!(task = name, error = why, "task ended; starting it again");
                if started.elapsed() > HEALTHY {
                    wait = FIRST_PAUSE;
                }
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = stop.cancelled() => return,
                }
                wait = (wait * 2).min(LONGEST_PAUSE);
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

/// How the task ended; `None`: the group ended, and the task with it.
async fn until_end<T>(
    name: &'static str,
    mut run: tokio::task::JoinHandle<T>,
    stop: &CancellationToken,
) -> Option<Result<T, JoinError>> {
    tokio::select! {
        // An end that was asked for is none to be noticed.
        biased;
        () = stop.cancelled() => {
            // The task sees the same token: give it time to put its things in order.
            if tokio::time::timeout(ENDING, &mut run).await.is_err() {
                run.abort();
                tracing::warn!(task = name, "did not stop in time");
            }
            None
        }
        ended = &mut run => Some(ended),
    }
}

fn panic_text(e: JoinError) -> String {
    let Ok(panic) = e.try_into_panic() else { return "it was aborted".into() };
    let text =
        panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panic: {}", text.as_deref().unwrap_or("no message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    /// Tells how often it has run and fails as told until the third time.
    struct Flaky {
        runs: AtomicUsize,
        third: Notify,
    }

    impl Flaky {
        fn new() -> Arc<Self> {
            Arc::new(Flaky { runs: AtomicUsize::new(0), third: Notify::new() })
        }

        async fn run(&self, stop: CancellationToken) {
            match self.runs.fetch_add(1, Ordering::SeqCst) {
                0 => panic!("first"),
                1 => {}
                _ => {
                    self.third.notify_one();
                    stop.cancelled().await;
                }
            }
        }
    }

    #[tokio::test]
    async fn what_is_kept_is_started_again_however_it_ends() {
        let (group, flaky) = (Supervisor::new(), Flaky::new());
        let (task, stop) = (flaky.clone(), group.token());
        group.keep("flaky", move || {
            let (task, stop) = (task.clone(), stop.clone());
            async move { task.run(stop).await }
        });
        flaky.third.notified().await;
        group.shutdown().await;
        assert_eq!(flaky.runs.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_vital_task_that_ends_is_the_groups_failure() {
        let group = Supervisor::new();
        let stop = group.token();
        group.vital("good", async move { stop.cancelled().await });
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        group.vital("bad", async move {
            let _ = gone.await;
            panic!("out of {}", "luck");
        });
        assert!(tokio::time::timeout(Duration::ZERO, group.failed()).await.is_err(), "nothing has failed yet");
        go.send(()).unwrap();
        assert_eq!(group.failed().await.to_string(), "bad ended: panic: out of luck");
        group.vital("later", async {});
        group.shutdown().await;
        assert_eq!(group.failed().await.name, "bad");
    }

    #[tokio::test]
    async fn an_orderly_end_is_no_failure() {
        let parent = CancellationToken::new();
        let group = Supervisor::under(&parent);
        let stop = group.token();
        group.vital("good", async move { stop.cancelled().await });
        parent.cancel();
        group.shutdown().await;
        assert!(tokio::time::timeout(Duration::ZERO, group.failed()).await.is_err());
    }
}
