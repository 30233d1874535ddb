//! Every system call that needs care: processes, mounts, control groups, devices, netlink and nftables.
//!
//! Invariant: the only crate with `unsafe`, each block with its proof; nothing here knows Kubernetes or OCI.
#![allow(unsafe_code)]

pub mod cgroup;
pub mod confined;
pub mod conntrack;
pub mod devices;
#[cfg(feature = "faults")]
pub mod faults;
pub mod fdpass;
pub mod file_watch;
pub mod mount;
pub mod netlink;
pub mod nft;
pub mod own_code;
pub mod own_memory;
pub mod process;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod stack;
pub mod terminal;
pub mod volume;
pub mod xattr;
