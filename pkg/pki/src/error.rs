//! What can go wrong with certificates and keys.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot {verb} {path}")]
    File {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not a valid {what}; move it away to have a new one made")]
    Broken { path: PathBuf, what: &'static str },
    #[error("cannot make the certificate of {name:?}")]
    Sign {
        name: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("cannot use the certificate of {name:?} for TLS")]
    Tls {
        name: String,
        #[source]
        source: rustls::Error,
    },
    #[error("{path} cannot sign certificates: {why}")]
    Authority { path: PathBuf, why: String },
    #[error("the request for a certificate cannot be read: {0}")]
    Request(String),
    #[error("the signature of the request for a certificate is not of the key that it is about")]
    Proof,
    #[error("the authority's own certificate is over; give it a new one")]
    Expired,
    #[error("the system gives no random numbers")]
    Random,
    #[error("unknown key type {0:?}")]
    KeyType(String),
    #[error("{0}")]
    Option(String),
    #[error("the certificate of {0:?} is not valid PEM")]
    Pem(String),
}
