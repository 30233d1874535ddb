//! Time as a dependency: real in programs, driven by hand in tests.

use jiff::Timestamp;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Tells the wall time and waits. Clone it freely.
#[derive(Clone)]
pub struct Clock(Inner);

#[derive(Clone)]
enum Inner {
    System,
    Steady(Timestamp, Instant),
    Fake(Arc<Mutex<Timestamp>>, watch::Sender<()>),
}

impl Clock {
    pub fn system() -> Self {
        Clock(Inner::System)
    }

    /// Begins with what this clock says and goes on evenly, whatever an operator or NTP does to the wall time: for how long
    /// something may live, and not for what people are shown. A fake clock stays the same one.
    pub fn steady(&self) -> Self {
        match &self.0 {
            Inner::System => Clock(Inner::Steady(Timestamp::now(), Instant::now())),
            Inner::Steady(..) | Inner::Fake(..) => self.clone(),
        }
    }

    /// A clock that stands until [`Clock::advance`] moves it.
    pub fn fake(start: Timestamp) -> Self {
        Clock(Inner::Fake(Arc::new(Mutex::new(start)), watch::Sender::new(())))
    }

    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Inner::System => Timestamp::now(),
            Inner::Steady(began, at) => *began + at.elapsed(),
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
    async fn a_steady_clock_goes_on() {
        let clock = Clock::system().steady();
        let (began, other) = (clock.now(), clock.clone());
        clock.sleep_until(began + Duration::from_millis(20)).await;
        assert!(other.now() >= began + Duration::from_millis(20), "a clone is the same clock");
        let fake = Clock::fake(Timestamp::UNIX_EPOCH);
        fake.steady().advance(Duration::from_secs(1));
        assert_eq!(
            fake.now(),
            Timestamp::UNIX_EPOCH + Duration::from_secs(1),
            "a fake clock stays the one that is driven"
        );
    }

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
