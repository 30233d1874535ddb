//! Clients of the API server: transports, API calls, shared informers, work queues, events, leases, leader election and the agent's end of
//! the tunnel.
//!
//! Invariants: nobody above this crate can tell whether the API server is in this process or behind TLS; nothing here knows
//! which controller uses it.

pub mod calls;
pub mod decode;
pub mod discovery;
pub mod election;
pub mod error;
pub mod events;
mod https;
pub mod informer;
pub mod lease;
pub mod queue;
mod queue_metrics;
pub mod resource;
pub mod transport;
pub mod tunnel;
pub mod views;
mod watch;

pub use calls::{Calls, Delete, Patch, Preconditions, Propagation};
pub use error::Error;
pub use informer::{Change, Informer, Informers, View};
pub use queue_metrics::QueueMetrics;
pub use resource::{ListScope, Resource};
pub use transport::{in_process, tls};
