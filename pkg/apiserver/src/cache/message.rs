//! The message of protobuf beside the JSON of which it was made, so that the next list does not make it again.
//!
//! Invariants: all messages of the process together take at most [`LIMIT`] bytes; the one of an object that is gone goes with it;
//! those that nobody has asked for in [`PATIENCE`] are dropped by the hub. A length is remembered always.

use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

const LIMIT: usize = 64 << 20;
/// What a message takes beside its bytes.
const OVERHEAD: usize = 80;
/// Informers start together, and come again when their server was away for a moment.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What all messages take now.
static USED: AtomicUsize = AtomicUsize::new(0);

/// What is known of an entry's message.
#[derive(Debug, Default)]
pub struct Message {
    /// 0: not known.
    length: AtomicU32,
    kept: Mutex<Option<Box<Held>>>,
}

#[derive(Debug)]
struct Held(Bytes);

impl Held {
    fn new(message: &[u8]) -> Option<Box<Self>> {
        let more = |used: usize| Some(used + message.len() + OVERHEAD).filter(|all| *all <= LIMIT);
        let room = USED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        room.then(|| Box::new(Held(Bytes::copy_from_slice(message))))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        USED.fetch_sub(self.0.len() + OVERHEAD, Ordering::Relaxed);
    }
}

impl Message {
    /// Remembers a message that was made: its length, and its bytes if there is room.
    pub fn remember(&self, message: &[u8]) {
        self.length.store(message.len() as u32, Ordering::Relaxed);
        let mut kept = self.kept.lock();
        if kept.is_none() {
            *kept = Held::new(message);
        }
    }

    pub fn length(&self) -> Option<usize> {
        Some(self.length.load(Ordering::Relaxed) as usize).filter(|n| *n > 0)
    }

    pub fn kept(&self) -> Option<Bytes> {
        self.kept.lock().as_ref().map(|held| held.0.clone())
    }

    pub fn forget(&self) {
        drop(self.kept.lock().take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_kept_while_there_is_room() {
        let (a, b, c) = (Message::default(), Message::default(), Message::default());
        assert_eq!((a.length(), a.kept()), (None, None));
        a.remember(b"abc");
        assert_eq!((a.length(), a.kept().as_deref()), (Some(3), Some(&b"abc"[..])));
        let large = vec![b'x'; LIMIT / 2];
        b.remember(&large);
        c.remember(&large);
        assert_eq!((b.kept().is_some(), c.kept().is_some()), (true, false));
        assert_eq!(c.length(), Some(large.len()), "what has no room has a length");
        b.forget();
        c.remember(&large);
        assert_eq!((b.length(), b.kept(), c.kept().is_some()), (Some(large.len()), None, true));
        drop(c);
        b.remember(&large);
        assert!(b.kept().is_some(), "what is gone takes no room");
    }
}
