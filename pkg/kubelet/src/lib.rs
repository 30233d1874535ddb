//! The kubelet: runs the pods that are bound to this node, reports them and the node, and serves the node's HTTPS endpoints.
//!
//! Start at [`Kubelet::start`]. A pod's life is in `worker`: woken by events and deadlines, it computes what to do from the pod
//! and the runtime's state (`plan`), does it, and writes the status (`status`).
//!
//! Invariants: it speaks to containers through `isopod_runtime::Runtime` only; it does not know nftables; nothing is
//! remembered that the runtime, the disk or the API does not hold, so that a restarted kubelet adopts what runs.

mod admission;
mod allocation;
mod backoff;
mod conditions;
pub mod config;
mod container_config;
mod credentials;
mod downward;
mod env;
mod expand;
mod hooks;
mod images;
mod kubelet;
mod log_file;
mod machine;
mod network;
mod node;
mod node_status;
mod objects;
mod plan;
mod pod;
mod pressure;
mod probe;
mod resize;
mod resources;
mod security;
mod server;
mod shared;
mod state;
mod status;
mod status_patch;
mod upkeep;
mod volumes;
mod worker;

#[cfg(test)]
mod tests;

pub use config::KubeletConfig;
pub use kubelet::{Kubelet, KubeletError};
pub use pressure::Thresholds;
