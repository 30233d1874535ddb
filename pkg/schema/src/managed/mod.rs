//! Ownership of fields: server-side apply and `metadata.managedFields` (KEP-555).
//!
//! From the bottom up: a [`PathElement`] names a child of a value, a [`Set`] holds paths and is `FieldsV1` in JSON; `typed`
//! says of which shape a value is by its schema; `compare`, `merge` and `remove` walk values along their schema; `update`
//! moves ownership between managers; [`FieldManager`] keeps the entries of an object.
//!
//! Invariant: nothing here knows a kind or does I/O. What a version of a kind is, callers say ([`Versions`]).

mod atomics;
mod compare;
mod entries;
mod fields;
mod manager;
mod merge;
mod path;
mod remove;
mod scale;
mod set;
mod typed;
mod update;
mod validate;

pub use atomics::atomics;
pub use compare::{Comparison, compare};
pub use entries::{ManagerId, Managers, Operation, Owner};
pub use manager::{Applied, ApplyError, FieldManager};
pub use merge::merge;
pub use path::{Path, PathElement};
pub use remove::{ensure_named, remove};
pub use scale::Scale;
pub use set::{Filter, Set};
pub use typed::{Type, to_set};
pub use update::{Conflict, Typed, Versions};
pub use validate::validate;
