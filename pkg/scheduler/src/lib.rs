//! The scheduler: chooses a node for every pod that has none, and binds it.
//!
//! One loop owns the picture of the cluster ([`cluster`]): it takes in changes, pops the next pod from the [`queue`], lets
//! the [`plugins`] filter and score the nodes, assumes the pod there, and binds it in the background. Nothing is copied for
//! a pod: filters read the picture in place.
//!
//! Invariants: a pod that was assumed counts on its node until its binding is confirmed or has failed; a pod that fits
//! nowhere waits for a change that may help one of the plugins that refused it, and never polls.

mod algorithm;
mod amounts;
mod cluster;
mod framework;
mod plugins;
mod pod;
mod preemption;
mod queue;
mod run;

pub use run::{NAME, USER, run};
