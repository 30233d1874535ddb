//! The runtime on this machine: real shims, namespaces, control groups and mounts, in directories and a control group of
//! each test's own. Needs root and a built shim (`cargo b -p isopod-shim`).

mod adoption;
mod containers;
mod fixture;
mod images;
mod limits;
mod streams;
