//! Objects that admission looks at with every write, as values: namespaces, service accounts, classes. They are small and rarely
//! change, and reading their bytes anew each time would cost more than what is asked of them.
//!
//! Invariant: a value is that of the very bytes that it was read from, so it can be old only if its reader's bytes are.

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// Larger objects take too much memory as values: ten times their bytes and more.
const LARGEST: usize = 4 << 10;
/// What is over is forgotten at once: whoever uses so many pays as if there were no memory.
const MOST: usize = 128;

#[derive(Default)]
pub struct Parsed(Mutex<HashMap<String, (Bytes, Arc<Value>)>>);

impl Parsed {
    /// The value of these bytes, which are the object's at `key`.
    pub fn get(&self, key: String, bytes: &Bytes, read: impl FnOnce() -> Value) -> Arc<Value> {
        if bytes.len() > LARGEST {
            return Arc::new(read());
        }
        let same = |of: &Bytes| std::ptr::eq(&**of, &**bytes) || of == bytes;
        if let Some((_, value)) = self.0.lock().get(&key).filter(|(of, _)| same(of)) {
            return value.clone();
        }
        let value = Arc::new(read());
        let mut all = self.0.lock();
        if all.len() >= MOST && !all.contains_key(&key) {
            all.clear();
        }
        all.insert(key, (bytes.clone(), value.clone()));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn bytes_are_read_once() {
        let (parsed, reads) = (Parsed::default(), Cell::new(0));
        let get = |key: usize, text: &str| {
            let read = || {
                reads.set(reads.get() + 1);
                text.into()
            };
            parsed.get(key.to_string(), &Bytes::from(text.to_owned()), read)
        };
        assert_eq!((*get(1, "a")).clone(), Value::from("a"));
        assert_eq!((*get(1, "a")).clone(), Value::from("a"));
        assert_eq!(reads.get(), 1);
        assert_eq!((*get(1, "b")).clone(), Value::from("b"), "the object has changed");
        assert_eq!((*get(1, "a")).clone(), Value::from("a"), "it was put back from a backup");
        assert_eq!(reads.get(), 3);
        let large = "x".repeat(LARGEST + 1);
        get(2, &large);
        get(2, &large);
        assert_eq!(reads.get(), 5);
        (3..3 + 2 * MOST).for_each(|key| drop(get(key, "c")));
        assert!(parsed.0.lock().len() <= MOST);
    }
}
