//! How deep lists and objects may lie in each other.
//!
//! Invariant: no decoder of this crate gives a value that is deeper than [`limit`]. So whatever walks one may recurse, if its thread
//! has the stack for it: every thread has it for [`ORDINARY`] values, and a program in which all have [`STACK`] says so
//! ([`allow_deepest`]).

use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What any thread can take. No schema is as deep.
pub const ORDINARY: usize = 400;
/// Go's limit, which is upstream's.
pub const DEEPEST: usize = 10_000;
/// The stack that a thread needs for the deepest values, in bytes. Code that is not optimized takes a third of it, other code less; half
/// of it is what tests have (`tests/deepest.rs`). What is not
/// touched of a stack takes no memory.
pub const STACK: usize = if cfg!(debug_assertions) { 128 << 20 } else { 64 << 20 };

static LIMIT: AtomicUsize = AtomicUsize::new(ORDINARY);
/// How often something deep has begun to be read.
static MET: AtomicUsize = AtomicUsize::new(0);

/// How deep a value may be.
pub fn limit() -> usize {
    LIMIT.load(Relaxed)
}

/// From now on values may be as deep as upstream takes them. Every thread that may have one must have a stack of [`STACK`] bytes.
pub fn allow_deepest() {
    LIMIT.store(DEEPEST, Relaxed);
}

/// The limit, asked by one who has found something deeper than [`ORDINARY`].
#[cold]
pub(crate) fn beyond_ordinary() -> usize {
    MET.fetch_add(1, Relaxed);
    limit()
}

/// Changes when something deep has been read: stacks have grown then.
pub fn met() -> usize {
    MET.load(Relaxed)
}

/// How deep a value is.
pub fn of(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(of).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(of).max().unwrap_or(0),
        _ => 0,
    }
}

/// Whether a value is deeper than that.
pub fn exceeds(value: &Value, levels: usize) -> bool {
    let Some(left) = levels.checked_sub(1) else { return value.is_array() || value.is_object() };
    match value {
        Value::Array(items) => items.iter().any(|v| exceeds(v, left)),
        Value::Object(map) => map.values().any(|v| exceeds(v, left)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn depth_is_that_of_the_deepest() {
        for (value, deep) in [(json!(1), 0), (json!([]), 1), (json!({"a": [1, {"b": {}}], "c": []}), 4)] {
            assert_eq!(of(&value), deep, "{value}");
            assert!(!exceeds(&value, deep) && (deep == 0 || exceeds(&value, deep - 1)), "{value}");
        }
    }
}
