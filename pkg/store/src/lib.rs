//! The datastore: etcd's MVCC data model over bytes. It knows no objects, no JSON, no HTTP.
//!
//! Invariants:
//! - A transaction touches any number of keys at one revision and reaches watchers whole.
//! - Revisions only grow and are never handed out twice; they have gaps only at an epoch (see [`Durability::Ephemeral`]).
//! - An acknowledged durable write survives `kill -9` and power loss.
//! - A watcher sees every event once, in order; progress is never announced before the events that it covers.

pub mod archive;
mod eval;
mod hash;
mod hub;
mod intervals;
pub mod kine;
mod leases;
mod log;
mod machine;
pub mod memory;
mod options;
pub mod postgres;
mod select;
pub mod sqlite;
pub mod types;

pub use eval::MAX_TXN_EVENTS;
pub use options::Options;
pub use types::*;

#[cfg(test)]
extern crate self as isopod_store;
#[cfg(test)]
mod testing;
