//! What objects use of what quotas limit: amounts of resources, the totals of pods, usage and scopes of every kind, and
//! whether a change fits (`apiserver/pkg/quota/v1`, `kubernetes/pkg/quota/v1/evaluator`). Admission charges with it and the
//! quota controller counts with it, so that both always mean the same.

pub mod amounts;
pub mod check;
pub mod claim;
pub mod pod;
pub mod usage;

pub use amounts::Amounts;
pub use check::{Change, charge};
pub use usage::{Evaluator, counted_by, recount};
