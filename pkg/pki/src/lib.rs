//! Certificates and keys: the cluster's CAs, the leaves that they sign and renew, service-account keys, kubeconfigs and
//! rustls configurations. It knows nothing of pods.
//!
//! Invariants:
//! - Every key is generated on the machine that uses it, is readable by its owner only, and is never logged.
//! - A file appears whole or not at all: written beside its place, synced, renamed.
//! - A leaf is renewed when fewer than 90 days are left, at start also when its names changed; CAs live ten years, and are renewed with
//!   their keys at a start within the last two. Who shows one
//!   ([`Shown`]) takes the newest at each handshake.

mod ca;
mod error;
mod files;
mod from_files;
mod kubeconfig;
mod listener;
pub mod request;
mod server;
mod shown;
pub mod signing;
pub mod tls;
pub mod x509;

pub use ca::{CertAuthority, Identity, Leaf, Usage};
pub use error::PkiError;
pub use files::write_atomic;
pub use from_files::FromFiles;
pub use kubeconfig::{is_kubeconfig_of, kubeconfig, renew_kubeconfig};
pub use listener::ListenerOptions;
pub use server::{FRONT_PROXY, LASTING, Own, ServerNames, ServerPki};
pub use shown::Shown;
