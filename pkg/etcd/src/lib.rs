//! The etcd v3 API over a [`isopod_store::Store`]: who speaks to etcd can speak to this. And the way back: [`remote`], a store
//! that is a real etcd.
//!
//! Invariants:
//! - Codes and messages of errors are etcd's: clients tell errors apart by them.
//! - What a stream of watches says is in the order of the store; progress is said after all that it covers.
//! - Nothing is answered before the store has committed it.

mod auth;
mod bolt;
mod bolt_reader;
mod check;
mod cluster;
mod codec;
pub mod compaction;
mod concurrency;
mod convert;
mod kv;
mod lease;
mod maintenance;
mod metrics;
mod quota;
pub mod remote;
mod server;
mod service;
mod silence;
mod snapshot;
pub mod snapshot_file;
mod status;
mod watch;

pub use auth::{AuthConfig, TokenError, TokenOptions};
pub use server::{Listener, serve};
pub use service::{Config, Service};

/// Messages and services as `build.rs` made them.
#[allow(clippy::all, clippy::pedantic)]
pub(crate) mod pb {
    pub mod authpb {
        tonic::include_proto!("authpb");
    }
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// The version whose API this is. Clients choose by it what they ask for.
pub const VERSION: &str = "3.7.0";
