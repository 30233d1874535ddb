//! The vocabulary that every part of Isopod shares: group/version/kind names, `Status` errors, field errors, selectors,
//! quantities, object names and user identities.
//!
//! Invariant: nothing here knows HTTP, storage or a particular kind.

pub mod field;
pub mod float;
pub mod gvk;
pub mod names;
pub mod quantity;
pub mod selector;
pub mod status;
pub mod time;
pub mod user;
mod whole;

pub use field::{Difference, FieldError, FieldErrors, Path, aggregate};
pub use gvk::{GroupVersion, Gvk, Gvr};
pub use status::{Cause, Details, Status};
pub use user::UserInfo;
