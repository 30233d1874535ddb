//! The runtime on this machine: real shims, namespaces, control groups and mounts, in directories and a control group of
//! each test's own. Needs root and a built shim (`cargo b -p isopod-shim`).

#![allow(clippy::unwrap_used)]

mod adoption;
mod containers;
mod fixture;
mod images;
mod limits;
mod registry;
mod registry_auth;
mod streams;
