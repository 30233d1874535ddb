//! What etcd's answers mean to the store's callers, and which requests may be sent again.

use isopod_store::StoreError;
use std::sync::Arc;
use tonic::{Code, Status};

/// What becomes of a request that was not served.
pub(super) enum Verdict {
    /// etcd's answer.
    Refused(StoreError),
    /// The member does not serve, or the connection broke: what the request was to do may be done or not.
    Away,
    /// The request has certainly not reached a member.
    NotSent,
    /// The token is no longer known: with a new one the request may be sent again.
    Token,
}

/// The source of an error without its words for where it came from.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Words(pub String);

pub(super) fn unavailable(
    context: impl Into<String>,
    source: impl std::error::Error + Send + Sync + 'static,
) -> StoreError {
    StoreError::Unavailable { context: context.into(), source: Arc::new(source) }
}

pub(super) fn backend(context: impl Into<String>, why: impl Into<String>) -> StoreError {
    StoreError::Backend { context: context.into(), source: Arc::new(Words(why.into())) }
}

/// Says what etcd calls a token that it does not take.
pub(super) fn is_about_the_token(text: &str) -> bool {
    ["invalid auth token", "revision of auth store is old", "user name is empty"].iter().any(|t| text.contains(t))
}

pub(super) fn judge(status: Status) -> Verdict {
    let text = status.message();
    if is_about_the_token(text) {
        return Verdict::Token;
    }
    if never_sent(&status) {
        return Verdict::NotSent;
    }
    let known = [
        ("required revision has been compacted", StoreError::Compacted { requested: 0, compacted: 0 }),
        ("required revision is a future revision", StoreError::FutureRevision { requested: 0, newest: 0 }),
        ("duplicate key given", StoreError::DuplicateKey),
        ("key not found", StoreError::KeyNotFound),
        ("lease not found", StoreError::LeaseNotFound(0)),
        ("lease already exists", StoreError::LeaseExists(0)),
        ("database space exceeded", StoreError::NoSpace),
        ("corrupt cluster", StoreError::Corrupt("etcd says that its members differ".into())),
    ];
    if let Some((_, error)) = known.into_iter().find(|(part, _)| text.contains(part)) {
        return Verdict::Refused(error);
    }
    let away = match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => true,
        // etcd has too much to do: it has not taken the request, and will later.
        Code::ResourceExhausted => text.contains("too many requests"),
        // The connection broke: no member said this.
        Code::Unknown | Code::Internal => std::error::Error::source(&status).is_some(),
        _ => false,
    };
    if away {
        return Verdict::Away;
    }
    Verdict::Refused(backend("etcd refused the request", text))
}

/// The connection was closed before the request was given to it.
fn never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        source = error.source();
    }
    false
}

/// The error with the revision or lease that was asked for: etcd's message does not say it.
pub(super) fn about(error: StoreError, asked: i64, known: i64) -> StoreError {
    match error {
        StoreError::Compacted { .. } => StoreError::Compacted { requested: asked, compacted: known },
        StoreError::FutureRevision { .. } => StoreError::FutureRevision { requested: asked, newest: known },
        StoreError::LeaseNotFound(_) => StoreError::LeaseNotFound(asked),
        StoreError::LeaseExists(_) => StoreError::LeaseExists(asked),
        other => other,
    }
}
