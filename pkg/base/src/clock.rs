//! Time as a dependency: real in programs, driven by hand in tests.

use jiff::{SignedDuration, Timestamp};
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
    Fake(Arc<Fake>),
    /// With how far the fake clock was set when this one began.
    SteadyFake(Arc<Fake>, SignedDuration),
}

/// A clock that is driven by hand: how much time has gone by, and what it was set to besides.
struct Fake {
    gone_by: Mutex<Timestamp>,
    set: Mutex<SignedDuration>,
    wake: watch::Sender<()>,
}

impl Fake {
    fn gone_by(&self) -> Timestamp {
        *self.gone_by.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn set(&self) -> SignedDuration {
        *self.set.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Sleeps until so much time has gone by.
    async fn sleep(&self, until: Timestamp) {
        let mut woken = self.wake.subscribe();
        while self.gone_by() < until {
            if woken.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Clock {
    pub fn system() -> Self {
        Clock(Inner::System)
    }

    /// Begins with what this clock says and goes on evenly, whatever an operator or NTP does to the wall time: for how long
    /// something may live, and not for what people are shown. One of a fake clock is driven with it.
    pub fn steady(&self) -> Self {
        match &self.0 {
            Inner::System => Clock(Inner::Steady(Timestamp::now(), Instant::now())),
            Inner::Fake(fake) => Clock(Inner::SteadyFake(Arc::clone(fake), fake.set())),
            Inner::Steady(..) | Inner::SteadyFake(..) => self.clone(),
        }
    }

    /// A clock that stands until [`Clock::advance`] moves it.
    pub fn fake(start: Timestamp) -> Self {
        let (gone_by, set) = (Mutex::new(start), Mutex::new(SignedDuration::ZERO));
        Clock(Inner::Fake(Arc::new(Fake { gone_by, set, wake: watch::Sender::new(()) })))
    }

    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Inner::System => Timestamp::now(),
            Inner::Steady(began, at) => *began + at.elapsed(),
            Inner::Fake(fake) => fake.gone_by() + fake.set(),
            Inner::SteadyFake(fake, set) => fake.gone_by() + *set,
        }
    }

    /// Moves a fake clock and wakes its sleepers. A system clock is not moved.
    pub fn advance(&self, by: Duration) {
        if let Inner::Fake(fake) | Inner::SteadyFake(fake, _) = &self.0 {
            *fake.gone_by.lock().unwrap_or_else(|e| e.into_inner()) += by;
            fake.wake.send_replace(());
        }
    }

    /// Sets a fake clock, as an operator or NTP sets a machine's: it is then `ahead` of the time that it was moved to. Those
    /// that go on evenly do not, and nobody who sleeps wakes.
    pub fn set(&self, ahead: SignedDuration) {
        if let Inner::Fake(fake) = &self.0 {
            *fake.set.lock().unwrap_or_else(|e| e.into_inner()) = ahead;
        }
    }

    pub async fn sleep(&self, d: Duration) {
        match &self.0 {
            Inner::System | Inner::Steady(..) => tokio::time::sleep(d).await,
            Inner::Fake(fake) | Inner::SteadyFake(fake, _) => fake.sleep(fake.gone_by() + d).await,
        }
    }

    /// Returns at `t`, at once if it is past.
    pub async fn sleep_until(&self, t: Timestamp) {
        // Of a fake clock what is added, and not what is left: somebody may move it at any moment.
        match &self.0 {
            Inner::Fake(fake) => fake.sleep(before(t, fake.set())).await,
            Inner::SteadyFake(fake, set) => fake.sleep(before(t, *set)).await,
            Inner::System | Inner::Steady(..) => {
                let d = t.duration_since(self.now());
                if d.is_positive() {
                    self.sleep(d.unsigned_abs()).await;
                }
            }
        }
    }
}

/// `t` less `d`, as far as there is a calendar.
fn before(t: Timestamp, d: SignedDuration) -> Timestamp {
    // Only units of a calendar could not be subtracted.
    t.saturating_sub(d).unwrap_or(t)
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
    async fn setting_a_clock_moves_no_steady_one_and_wakes_nobody() {
        let clock = Clock::fake(Timestamp::UNIX_EPOCH);
        let hour = SignedDuration::from_hours(1);
        clock.set(hour);
        let steady = clock.steady();
        assert_eq!(steady.now(), Timestamp::UNIX_EPOCH + hour, "it begins with what the clock says");
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(10)).await }
        });
        tokio::task::yield_now().await;
        clock.set(-hour);
        clock.advance(Duration::from_secs(9));
        tokio::task::yield_now().await;
        let second = SignedDuration::from_secs(1);
        assert_eq!(clock.now(), Timestamp::UNIX_EPOCH - hour + second * 9);
        assert_eq!(steady.now(), Timestamp::UNIX_EPOCH + hour + second * 9);
        clock.set(hour * 24);
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        steady.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
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
