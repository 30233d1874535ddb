//! The built-in kinds: one row each in `table`, defaults by schema definition in `defaults/`, and one file of hooks in
//! `kinds/` for those that need one. Pure functions over JSON values.
//!
//! Invariants: nothing here knows HTTP or storage; a kind made from a CRD is the same [`Kind`], so the pipeline cannot tell.

pub mod access;
pub mod bootstrap;
pub mod cel;
pub mod columns;
pub mod custom;
pub mod defaults;
mod diff;
pub mod golang;
pub mod kind;
pub mod kinds;
pub mod metadata;
mod ownership;
pub mod policy_types;
pub mod quota;
pub mod strategy;
pub mod table;
mod validation;

pub use kind::*;
