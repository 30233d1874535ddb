//! How a store is opened.

use bytes::Bytes;
use isopod_base::clock::Clock;
use std::time::Duration;

#[derive(Clone)]
pub struct Options {
    /// Key prefixes of the ephemeral class, see [`crate::Durability::Ephemeral`]. None by default.
    pub ephemeral: Vec<Bytes>,
    /// Tells when leases end and when dirty ephemeral keys are flushed.
    pub clock: Clock,
    /// How many messages a watcher may fall behind before it is ended with [`crate::StoreError::WatchOverrun`].
    pub watch_buffer: usize,
    /// How long ephemeral keys stay dirty at most while durable writes go on. An idle store flushes only when it closes.
    pub flush_interval: Duration,
    /// SQLite's name of the layer that files go through; `None`: its own.
    pub vfs: Option<String>,
    /// How much of the newest values is kept in memory beside the database.
    pub cache_bytes: usize,
    /// SQLite: so many rows are in the log before their keys are entered into its index, together.
    pub index_rows: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            ephemeral: Vec::new(),
            clock: Clock::system(),
            watch_buffer: 8192,
            flush_interval: Duration::from_secs(300),
            vfs: None,
            cache_bytes: 4 << 20,
            index_rows: 2048,
        }
    }
}

impl Options {
    pub(crate) fn is_ephemeral(&self, key: &[u8]) -> bool {
        self.ephemeral.iter().any(|p| key.starts_with(p))
    }
}
