//! The container runtime: images, layers, pod sandboxes, containers, exec, attach and logs, each pod under its own shim.
//!
//! Start reading at `types.rs` (what the kubelet asks), then `service.rs` (who answers), `runtime.rs` (what is known and how
//! it is found again after a restart).
//!
//! Invariant: nothing here knows the Kubernetes API; the kubelet speaks to it through [`Runtime`] only.

mod capabilities;
mod cleanup;
mod config;
mod containers;
pub mod image;
mod images;
pub mod network;
mod persist;
mod records;
mod runtime;
mod sandboxes;
mod seccomp;
mod service;
mod shim;
mod spec;
mod streams;
pub mod types;
mod users;

pub use cleanup::cleanup;
pub use config::RuntimeConfig;
pub use image::registries::{Registries, RegistriesError};
pub use images::{Images, ImagesError};
pub use runtime::{IsopodRuntime, OpenError};
pub use types::*;
