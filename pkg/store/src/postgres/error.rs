//! What Postgres' errors mean to the store.

use crate::StoreError;
use std::sync::Arc;
use std::time::Duration;

/// What is wrong with a server or its database, beside what it says itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    #[error("all connections are in use")]
    Busy,
    #[error("it is a replica, which only reads: name the primary in the datastore's endpoint")]
    Replica,
    #[error("it is version {0}: Isopod needs Postgres 13 or newer")]
    TooOld(i32),
    #[error(
        "its tables have format {found} and this program reads format {supported}: use the version of the program that wrote them, or choose another database"
    )]
    Format { found: i32, supported: i32 },
    #[error("the schema {0} is another user's: come as that user, or choose another database")]
    Forbidden(String),
    #[error("the row of the table meta is gone: restore the database from a backup, or choose another one")]
    NoMeta,
    #[error("a server uses it: end every server on this database first")]
    Served,
    #[error("its history lies behind what this server has shown: commits were lost")]
    Behind,
}

/// `what`, as in "cannot …".
pub(crate) fn failed(what: &str, error: sqlx::Error) -> StoreError {
    match code(&error).as_deref() {
        Some("53100") => StoreError::NoSpace,
        Some("XX001" | "XX002") => StoreError::Corrupt(error.to_string()),
        _ if is_passing(&error) => {
            StoreError::Unavailable { context: format!("cannot {what}"), source: Arc::new(error) }
        }
        _ => StoreError::Backend { context: format!("cannot {what}"), source: Arc::new(error) },
    }
}

pub(crate) fn fault(fault: Fault) -> sqlx::Error {
    match fault {
        Fault::NoAnswer(_) | Fault::Busy | Fault::Replica | Fault::Behind => {
            sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, fault))
        }
        Fault::TooOld(_) | Fault::Format { .. } | Fault::Forbidden(_) | Fault::NoMeta | Fault::Served => {
            sqlx::Error::Configuration(Box::new(fault))
        }
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// Can the same request succeed later, when the server, the network or somebody else's lock lets it?
pub(crate) fn is_passing(error: &sqlx::Error) -> bool {
    match error {
        // A certificate that is not the right one will not become it.
        sqlx::Error::Io(e) => e.kind() != std::io::ErrorKind::InvalidData,
        sqlx::Error::Protocol(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => true,
        sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(_) => code(error).is_some_and(|code| {
            // Connections (08), too many of them or too little memory (53), shutdowns and crashes (57P0), locks and
            // deadlocks, timeouts, and a primary that has become a replica.
            ["08", "53", "57P0"].iter().any(|class| code.starts_with(class))
                || matches!(code.as_str(), "55P03" | "40001" | "40P01" | "57014" | "25006" | "25P03")
        }),
        _ => false,
    }
}

/// Is there no such function, or not for this user?
pub(crate) fn is_forbidden(error: &sqlx::Error) -> bool {
    matches!(code(error).as_deref(), Some("42501" | "42883" | "0A000"))
}

/// Does somebody else hold a lock that was waited for?
pub(crate) fn is_locked(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("55P03")
}

/// Is the connection of no more use?
pub(crate) fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(_) => code(error).is_some_and(|code| {
            ["08", "57P0"].iter().any(|class| code.starts_with(class)) || matches!(code.as_str(), "25006" | "25P03")
        }),
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_server_is_away_and_a_strange_format_is_not() {
        let away = failed("read", fault(Fault::NoAnswer(Duration::from_secs(1))));
        assert!(matches!(away, StoreError::Unavailable { .. }), "{away:?}");
        let strange = failed("open", fault(Fault::Format { found: 9, supported: 1 }));
        assert!(matches!(strange, StoreError::Backend { .. }), "{strange:?}");
    }
}
