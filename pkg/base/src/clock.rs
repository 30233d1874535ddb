//! Time as a dependency: real in programs, driven by hand in tests.

use jiff::Timestamp;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// Tells the wall time and waits. Clone it freely.
#[derive(Clone)]
pub struct Clock(Inner);

#[derive(Clone)]
enum Inner {
    System,
    Steady(Timestamp, std::time::Instant),
    Fake(Arc<Mutex<Timestamp>>, watch::Sender<()>),
}

impl Clock {
    pub fn system() -> Self {
        Clock(Inner::System)
    }

    /// The wall time of now, and from there on what really passes: it does not jump when the machine's clock is set.
    pub fn steady() -> Self {
        Clock(Inner::Steady(Timestamp::now(), std::time::Instant::now()))
    }

    /// A clock that stands until [`Clock::advance`] moves it.
    pub fn fake(start: Timestamp) -> Self {
        Clock(Inner::Fake(Arc::new(Mutex::new(start)), watch::Sender::new(())))
    }

    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Inner::System => Timestamp::now(),
            Inner::Steady(start, began) => *start + began.elapsed(),
            Inner::Fake(t, _) => *t.lock().unwrap_or_else(|e| e.into_inner()),
        }
    }

    /// Moves a fake clock and wakes its sleepers. A system clock is not moved.
    pub fn advance(&self, by: Duration) {
        if let Inner::Fake(t, wake) = &self.0 {
            *t.lock().unwrap_or_else(|e| e.into_inner()) += by;
            wake.send_replace(());
        }
    }

    pub async fn sleep(&self, d: Duration) {
        match &self.0 {
            Inner::System | Inner::Steady(..) => tokio::time::sleep(d).await,
            Inner::Fake(_, wake) => {
                let until = self.now() + d;
                let mut woken = wake.subscribe();
                while self.now() < until {
                    if woken.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Returns at `t`, at once if it is past.
    pub async fn sleep_until(&self, t: Timestamp) {
        let d = t.duration_since(self.now());
        if d.is_positive() {
            self.sleep(d.unsigned_abs()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleeper_wakes_when_the_fake_clock_passes_its_deadline() {
        let clock = Clock::fake(Timestamp::UNIX_EPOCH);
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(10)).await }
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(9));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
    }
}
