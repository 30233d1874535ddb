//! What can go wrong with an API call.

use isopod_api::Status;

/// An API call failed. A `Status` is the server's answer; the rest never reached it or was not understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server's own answer, message and all.
    #[error(transparent)]
    Status(#[from] Status),
    #[error("cannot reach the API server")]
    Transport(#[source] kube::Error),
    #[error("cannot read the kubeconfig")]
    Kubeconfig(#[source] kube::config::KubeconfigError),
    #[error("cannot make a client from the kubeconfig")]
    Client(#[source] kube::Error),
    #[error("cannot make the request for {path:?}")]
    Request { path: String, source: http::Error },
    #[error("cannot encode {what}")]
    Encode { what: String, source: serde_json::Error },
    #[error("cannot decode the API server's answer about {what}")]
    Decode { what: String, source: serde_json::Error },
    #[error("the watch of {what} ended in the middle of an event")]
    CutOff { what: String },
    #[error("the tunnel's server answered {code} {reason:?} instead of switching protocols")]
    TunnelRefused { code: u16, reason: String },
    #[error("the tunnel's connection failed")]
    Tunnel(#[source] hyper::Error),
}

impl Error {
    /// The server's answer, when it gave one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Error::Status(s) => Some(s),
            _ => None,
        }
    }
    fn has_reason(&self, reason: &str) -> bool {
        self.status().is_some_and(|s| s.reason == reason)
    }
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(|s| s.code == 404)
    }
    pub fn is_conflict(&self) -> bool {
        self.has_reason("Conflict")
    }
    pub fn is_already_exists(&self) -> bool {
        self.has_reason("AlreadyExists")
    }
    /// The resource version is too old for a watch or a list (410).
    pub fn is_expired(&self) -> bool {
        self.status().is_some_and(|s| s.code == 410)
    }
    pub fn is_invalid(&self) -> bool {
        self.has_reason("Invalid")
    }
    pub fn is_forbidden(&self) -> bool {
        self.has_reason("Forbidden")
    }
    /// The namespace is going away: creating in it will not succeed again.
    pub fn is_namespace_terminating(&self) -> bool {
        self.is_forbidden()
            && self
                .status()
                .and_then(|s| s.details.as_ref())
                .is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating"))
    }
    /// How long the server asked to wait before the next try.
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        let seconds = self.status()?.details.as_ref()?.retry_after_seconds;
        (seconds > 0).then(|| std::time::Duration::from_secs(seconds as u64))
    }
}
