//! Patches: RFC 6902 ([`json_patch`]), RFC 7386 ([`merge_patch`]) and strategic merge patch ([`strategic_merge`]). Where
//! upstream's libraries differ from the RFCs, these do too, because clients have come to rely on it.

mod json_patch;
mod merge;
mod order;
mod strategic;
mod text;

pub use json_patch::{MAX_COPIED, MAX_OPERATIONS, json_patch};
pub use merge::merge_patch;
pub use strategic::strategic_merge;
pub use text::{Opened, patched_text};

/// Why a patch cannot be applied. Texts are upstream's; the variant says what a client is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed (400).
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object (422).
    #[error("{0}")]
    Unprocessable(String),
    /// What upstream answers with 500: a patch that its algorithm cannot handle.
    #[error("{0}")]
    Internal(String),
}
