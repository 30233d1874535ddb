//! Validation that several kinds share: pod templates, resources, volumes, selectors, references.
//!
//! Invariant: causes, fields and messages are upstream's (`pkg/apis/core/validation`).

pub mod autoscaler;
pub mod check;
pub mod claim;
pub mod container;
pub mod env;
pub mod job;
pub mod plugins;
pub mod pod;
pub mod pod_update;
pub mod pod_warnings;
pub mod probe;
pub mod projected;
pub mod resources;
pub mod scheduling;
pub mod security;
pub mod service;
pub mod volume;
pub mod warnings;
pub mod workload;
