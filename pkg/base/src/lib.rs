//! What every process needs and no domain owns: the error chain printer, tracing set-up, the clock, the task supervisor.
//!
//! Invariant: nothing here knows Kubernetes.

pub mod clock;
pub mod errors;
pub mod logging;
pub mod reloads;
pub mod supervisor;
