//! The scheduling rules: one file each, listed in [`ALL`].

mod affinity;
mod all;
mod balanced_allocation;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_unschedulable;
mod resources_fit;
mod taint_toleration;
mod topology_spread;

pub use all::ALL;
