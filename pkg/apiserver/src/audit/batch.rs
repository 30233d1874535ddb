//! Events that wait in memory until enough have come together or enough time has gone by, so that no request waits for them.

use super::event::Event;
use super::settings::Batching;
use super::{Counters, Sink};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::task::TaskTracker;

pub struct Batched {
    queue: Mutex<Option<mpsc::Sender<Arc<Event>>>>,
    worker: Mutex<Option<JoinHandle<()>>>,
    inner: Arc<dyn Sink>,
    counters: Counters,
}

impl Batched {
    /// Needs a runtime of tokio.
    pub fn start(inner: Arc<dyn Sink>, settings: Batching, counters: Counters) -> Self {
        let (queue, events) = mpsc::channel(settings.buffer_size);
        let worker = tokio::spawn(work(events, inner.clone(), settings));
        Batched { queue: Mutex::new(Some(queue)), worker: Mutex::new(Some(worker)), inner, counters }
    }
}

#[async_trait]
impl Sink for Batched {
    async fn take(&self, events: Vec<Arc<Event>>) -> bool {
        let queue = self.queue.lock().clone();
        let mut rest = events.into_iter();
        while let Some(event) = rest.next() {
            let (why, event) = match &queue {
                None => ("audit backend shut down", event),
                Some(queue) => match queue.try_send(event) {
                    Ok(()) => continue,
                    Err(TrySendError::Full(event)) => ("audit buffer queue blocked", event),
                    Err(TrySendError::Closed(event)) => ("audit backend shut down", event),
                },
            };
            let lost: Vec<_> = std::iter::once(event).chain(rest.by_ref()).collect();
            self.counters.failed("buffered", why, &lost);
        }
        true
    }

    async fn close(&self) {
        drop(self.queue.lock().take());
        let worker = self.worker.lock().take();
        if let Some(worker) = worker {
            // It ends when the queue is empty.
            let _ = worker.await;
        }
        self.inner.close().await;
    }
}

async fn work(mut events: mpsc::Receiver<Arc<Event>>, inner: Arc<dyn Sink>, settings: Batching) {
    let mut throttle = Throttle::new(&settings);
    let sending = TaskTracker::new();
    while let Some(first) = events.recv().await {
        let batch = collect(first, &mut events, &settings).await;
        throttle.turn().await;
        if settings.concurrent {
            let inner = inner.clone();
            sending.spawn(async move { inner.take(batch).await });
        } else {
            inner.take(batch).await;
        }
    }
    sending.close();
    sending.wait().await;
}

async fn collect(first: Arc<Event>, events: &mut mpsc::Receiver<Arc<Event>>, settings: &Batching) -> Vec<Arc<Event>> {
    let (mut batch, end) = (vec![first], Instant::now() + settings.max_wait);
    while batch.len() < settings.max_size {
        match timeout_at(end, events.recv()).await {
            Ok(Some(event)) => batch.push(event),
            Ok(None) | Err(_) => break,
        }
    }
    batch
}

/// A bucket of tokens: one for each batch.
struct Throttle {
    /// Between two tokens; `None`: as many as wanted.
    every: Option<Duration>,
    burst: u32,
    /// When the bucket will be full.
    full_at: Instant,
}

impl Throttle {
    fn new(settings: &Batching) -> Self {
        let every = settings.throttle.then(|| Duration::from_secs_f64(1.0 / settings.throttle_qps));
        Throttle { every, burst: settings.throttle_burst, full_at: Instant::now() }
    }

    async fn turn(&mut self) {
        sleep_until(self.next(Instant::now())).await;
    }

    /// Takes a token: when the batch may go.
    fn next(&mut self, now: Instant) -> Instant {
        let Some(every) = self.every else { return now };
        self.full_at = self.full_at.max(now) + every;
        self.full_at.checked_sub(every * self.burst).unwrap_or(now).max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Kept(Mutex<Vec<usize>>);

    #[async_trait]
    impl Sink for Kept {
        async fn take(&self, events: Vec<Arc<Event>>) -> bool {
            self.0.lock().push(events.len());
            true
        }
    }

    fn settings() -> Batching {
        Batching {
            buffer_size: 5,
            max_size: 2,
            max_wait: Duration::from_secs(30),
            throttle: false,
            throttle_qps: 1.0,
            throttle_burst: 1,
            concurrent: false,
        }
    }

    #[tokio::test]
    async fn batches_are_full_or_late_and_close_sends_the_rest() {
        let kept = Arc::new(Kept::default());
        let sink = Batched::start(kept.clone(), settings(), Counters::default());
        sink.take((0..5).map(|_| Arc::new(Event::default())).collect()).await;
        sink.close().await;
        assert_eq!(*kept.0.lock(), [2, 2, 1]);
        sink.take(vec![Arc::default()]).await;
        let lost = sink.counters.errors.get_or_create(&super::super::PluginLabels { plugin: "buffered" }).get();
        assert_eq!(lost, 1);
        let late = Batching { max_wait: Duration::from_millis(1), ..settings() };
        let sink = Batched::start(kept.clone(), late, Counters::default());
        sink.take(vec![Arc::default()]).await;
        while kept.0.lock().len() < 4 {
            tokio::task::yield_now().await;
        }
        sink.close().await;
    }

    #[test]
    fn the_throttle_lets_a_burst_through_and_then_its_rate() {
        let mut throttle =
            Throttle::new(&Batching { throttle: true, throttle_qps: 10.0, throttle_burst: 3, ..settings() });
        let now = throttle.full_at;
        let waits: Vec<u128> = (0..5).map(|_| (throttle.next(now) - now).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100, 200]);
        assert_eq!(throttle.next(now + Duration::from_secs(9)), now + Duration::from_secs(9));
    }
}
