//! Damage, once found, stays known: nothing is written any more, and the alarm says so.

use crate::machine::Shared;
use crate::{Alarm, Result, StoreError};
use std::sync::{OnceLock, Weak};

/// What somebody must do.
pub(crate) const REMEDY: &str = "stop this server and run `isopod datastore repair` with its --data-dir, which keeps the damaged \
                                 files and says what is lost, or restore a backup";

#[derive(Default)]
pub(crate) struct Damage {
    found: OnceLock<String>,
    shared: OnceLock<Weak<Shared>>,
}

impl Damage {
    /// Whose alarm it raises.
    pub fn watch_over(&self, shared: Weak<Shared>) {
        if self.found.get().is_some() {
            raise(&shared);
        }
        let _ = self.shared.set(shared);
    }

    /// Remembers `error` if it tells of damage.
    pub fn note(&self, error: &StoreError) {
        let StoreError::Corrupt(text) = error else { return };
        if self.found.set(text.clone()).is_err() {
            return;
        }
        if let Some(shared) = self.shared.get() {
            raise(shared);
        }
        tracing::error!(damage = text, "the datastore is damaged and nothing is written to it any more: {REMEDY}");
    }

    /// What was found first; `None`: nothing so far.
    pub fn found(&self) -> Option<StoreError> {
        self.found.get().map(|text| StoreError::Corrupt(text.clone()))
    }

    /// May be written to?
    pub fn check(&self) -> Result<()> {
        self.found().map_or(Ok(()), Err)
    }
}

/// In memory only: the disk is not to be trusted with it, and the next start looks for damage anew.
fn raise(shared: &Weak<Shared>) {
    if let Some(shared) = shared.upgrade() {
        shared.alarms.lock().insert(Alarm::Corrupt);
    }
}
