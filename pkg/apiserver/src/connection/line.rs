//! What a connection and its requests know of each other: how many run, since when none does, and by when the client has to send
//! or to take something.

use http::{Extensions, Version};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// For the head of a request over HTTP/1, as upstream.
const HEAD: Duration = Duration::from_secs(32);
/// For the beginning of HTTP/2, as Go's server.
const PREFACE: Duration = Duration::from_secs(10);
/// The bytes that every client begins HTTP/2 with.
const PREFACE_LENGTH: usize = 24;

#[derive(Clone, Debug)]
pub struct Line(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    usage: Mutex<Use>,
    /// There is another time by which something has to come.
    changed: Notify,
    hang_up: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    /// Requests whose answers are not sent yet.
    running: usize,
    /// When that became none.
    since: Instant,
    /// HTTP/2: many requests at a time, each with a time of its own.
    many: bool,
    /// Bytes that came before the first request.
    heard: usize,
    /// By then the client has sent the head of its request, or has taken the answer.
    until: Option<Instant>,
}

impl Line {
    /// `many`: the client wants to speak HTTP/2.
    pub fn new(many: bool) -> Self {
        let usage = Mutex::new(Use::new(many, Instant::now()));
        Line(Arc::new(Shared { usage, changed: Notify::new(), hang_up: CancellationToken::new() }))
    }

    /// The client speaks HTTP/2, or wants to.
    pub fn many(&self) -> bool {
        self.0.usage.lock().many
    }

    /// More than one request runs.
    pub fn shared(&self) -> bool {
        self.0.usage.lock().running > 1
    }

    /// The head of a request is there.
    pub fn busy(&self, version: Version) -> Busy {
        self.0.usage.lock().begin(version);
        Busy(self.clone())
    }

    /// Bytes came from the client.
    pub fn heard(&self, bytes: usize) {
        if self.0.usage.lock().heard(bytes, Instant::now) {
            self.0.changed.notify_one();
        }
    }

    /// Over HTTP/1, where an answer is all that its connection is used for: the client has taken it by then.
    pub fn answer_by(&self, until: Instant) {
        let mut usage = self.0.usage.lock();
        if !usage.many {
            usage.until = Some(until);
            self.0.changed.notify_one();
        }
    }

    /// Returns when the client has had its time.
    pub async fn late(&self) {
        loop {
            let until = self.0.usage.lock().until;
            match until {
                Some(until) if until <= Instant::now() => return,
                Some(until) => {
                    let _ = tokio::time::timeout_at(until, self.0.changed.notified()).await;
                }
                None => self.0.changed.notified().await,
            }
        }
    }

    /// Returns when there was no request for `patience`.
    pub async fn idle(&self, patience: Duration) {
        loop {
            let usage = *self.0.usage.lock();
            let Some(until) = usage.rest(patience, Instant::now()) else { return };
            tokio::time::sleep_until(until).await;
        }
    }

    /// Returns when a request was the last one.
    pub async fn hung_up(&self) {
        self.0.hang_up.cancelled().await;
    }
}

impl Use {
    fn new(many: bool, now: Instant) -> Self {
        let until = Some(now + if many { PREFACE } else { HEAD });
        Use { running: 0, since: now, many, heard: 0, until }
    }

    fn begin(&mut self, version: Version) {
        self.running += 1;
        self.many |= version == Version::HTTP_2;
        self.until = None;
    }

    fn end(&mut self, now: Instant) {
        self.running -= 1;
        self.since = now;
        if !self.many {
            self.until = None;
        }
    }

    /// True: from now on something has to come by a time.
    fn heard(&mut self, bytes: usize, now: impl FnOnce() -> Instant) -> bool {
        if self.many {
            self.heard = self.heard.saturating_add(bytes);
            if self.heard >= PREFACE_LENGTH {
                self.until = None;
            }
            return false;
        }
        let begins = self.running == 0 && self.until.is_none();
        if begins {
            self.until = Some(now() + HEAD);
        }
        begins
    }

    /// When it may have had no request for `patience`, if not now.
    fn rest(self, patience: Duration, now: Instant) -> Option<Instant> {
        let until = if self.running > 0 { now } else { self.since } + patience;
        (until > now).then_some(until)
    }
}

/// Over HTTP/2, where that is cheap to abuse (CVE-2023-44487) and hard to move to another server, this request's connection ends
/// when those that run on it have their answers.
pub fn end_after(version: Version, request: &Extensions) {
    if let Some(Line(shared)) = request.get::<Line>().filter(|_| version == Version::HTTP_2) {
        shared.hang_up.cancel();
    }
}

/// A request that has not got all of its answer.
pub struct Busy(Line);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.usage.lock().end(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_idle_when_it_had_no_request_for_long_enough() {
        let (since, second, patience) = (Instant::now(), Duration::from_secs(1), Duration::from_secs(90));
        let after = |running, passed| {
            let usage = Use { running, since, many: true, heard: 0, until: None };
            usage.rest(patience, since + passed).map(|until| until - since)
        };
        assert_eq!(after(0, second), Some(patience), "the rest of it");
        assert_eq!(after(0, patience), None);
        assert_eq!(after(1, 1000 * second), Some(1000 * second + patience), "the request may end at once");
    }

    #[test]
    fn the_head_of_a_request_has_its_time() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut usage = Use::new(false, now);
        assert_eq!(usage.until, Some(now + HEAD), "nothing was said yet");
        usage.begin(Version::HTTP_11);
        assert_eq!(usage.until, None);
        assert!(!usage.heard(1, || now) && usage.until.is_none(), "a body has the request's time");
        usage.end(now);
        assert_eq!(usage.until, None, "it may be used again");
        assert!(usage.heard(1, || now + second));
        assert!(!usage.heard(1, || now + 20 * second), "a byte now and then changes nothing");
        assert_eq!(usage.until, Some(now + second + HEAD));
    }

    #[test]
    fn http2_has_to_begin_and_then_streams_have_their_own_time() {
        let now = Instant::now();
        let mut usage = Use::new(true, now);
        assert!(!usage.heard(PREFACE_LENGTH - 1, || now));
        assert_eq!(usage.until, Some(now + PREFACE));
        assert!(!usage.heard(1, || now));
        assert_eq!(usage.until, None);
    }

    #[tokio::test]
    async fn an_answer_that_is_not_taken_is_late() {
        let is_late = async |line: &Line| tokio::time::timeout(Duration::from_millis(50), line.late()).await.is_ok();
        let line = Line::new(false);
        let running = line.busy(Version::HTTP_11);
        assert!(!is_late(&line).await);
        let (late, _) = tokio::join!(line.late(), async { line.answer_by(Instant::now()) });
        assert_eq!(late, ());
        drop(running);
        assert!(!is_late(&line).await, "it was taken");
        let line = Line::new(true);
        let _running = line.busy(Version::HTTP_2);
        line.answer_by(Instant::now());
        assert!(!is_late(&line).await, "its stream ends alone");
    }
}
