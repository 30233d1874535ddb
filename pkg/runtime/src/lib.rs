//! The container runtime: images, layers, pod sandboxes, containers, exec, attach and logs, each pod under its own shim.
//!
//! Invariant: nothing here knows the Kubernetes API; the kubelet speaks to it through [`Runtime`] only.

pub mod network;
pub mod types;

pub use types::*;
