//! Images: their names, the registries they come from, their layers on disk.

pub mod archive;
mod digest;
mod lock;
mod manifest;
mod merged;
mod oauth;
mod pull;
mod reference;
pub mod registries;
mod store;
mod unpack;

pub use digest::Digest;
pub use manifest::{ImageConfig, RunConfig};
pub use merged::Merged;
pub use pull::Puller;
pub use reference::Reference;
pub use store::{Image, Store};

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot {what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{what} is not valid JSON")]
    Json {
        what: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the content of {expected} has the digest {found}")]
    WrongDigest { expected: String, found: String },
    #[error("{0:?} is not a digest this runtime knows (sha256:<64 hex digits>)")]
    BadDigest(String),
    #[error("the image has no manifest for {0}")]
    NoPlatform(String),
    #[error("{0}")]
    Malformed(String),
    #[error("registry {registry}: {why}")]
    Registry { registry: String, why: String },
    /// Nothing answers there: other credentials would not help.
    #[error("registry {registry}: {why}")]
    Unreachable { registry: String, why: String },
}

impl ImageError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| ImageError::Io { what, source }
    }

    pub(crate) fn json(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        let what = what.into();
        move |source| ImageError::Json { what, source }
    }
}
