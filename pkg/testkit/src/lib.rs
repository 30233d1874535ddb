//! For tests: an API server in this process on the memory store, clients of any user, and a TLS listener where a test needs
//! the network.
//!
//! Invariant: nothing outlives the test but what the test itself leaves behind; nothing is written outside temporary
//! directories.

#![allow(clippy::unwrap_used)]

mod authorizer;
mod server;

pub use authorizer::AllowAll;
pub use server::{Answer, Listening, TestServer};
