//! Encryption at rest: a store that keeps the values of some resources sealed, as an EncryptionConfiguration of upstream says
//! (`apiserver.config.k8s.io/v1`), in upstream's formats: what kube-apiserver sealed is read here, and the reverse.
//!
//! Invariants:
//! - A value is written by the first provider of its resource, and read by whichever wrote it. One that no provider can read is
//!   an error for whoever reads it, never skipped and never served sealed.
//! - A sealed value belongs to its key: moved to another one it cannot be opened (but with `aescbc` and `secretbox`, whose
//!   formats do not bind it).
//! - Keys are in memory alone, and in no message.

mod cipher;
mod config;
mod kms;
mod metrics;
mod provider;
mod reload;
mod resources;
mod sealed;

pub use config::{ConfigError, new_configuration};
pub use kms::KmsError;
pub use provider::SealError;
pub use reload::{Encryption, LoadError};
pub use resources::Resources;
pub use sealed::{Sealed, opened_by_nobody};
