//! Passwords: bcrypt, as etcd keeps them, so that its snapshots carry users from and to it.

use bytes::Bytes;
use tonic::Status;

/// etcd's, where the one that was asked for is out of bounds.
const DEFAULT_COST: u32 = 10;
/// More is nothing that bcrypt would look at.
const LONGEST: usize = 72;

pub(crate) fn cost(wanted: u32) -> u32 {
    if (4..=31).contains(&wanted) {
        return wanted;
    }
    tracing::warn!(wanted, used = DEFAULT_COST, "--bcrypt-cost: write a number from 4 to 31");
    DEFAULT_COST
}

/// Takes its time, on purpose.
pub(crate) async fn hash(password: String, cost: u32) -> Result<Bytes, Status> {
    if password.len() > LONGEST {
        return Err(Status::unknown("bcrypt: password length exceeds 72 bytes"));
    }
    let hashed = tokio::task::spawn_blocking(move || bcrypt::hash_with_result(password, cost)).await;
    let parts = hashed.map_err(interrupted)?.map_err(|e| Status::unknown(format!("bcrypt: {e}")))?;
    Ok(parts.format_for_version(bcrypt::Version::TwoA).into_bytes().into())
}

pub(crate) async fn matches(password: String, hash: &Bytes) -> Result<bool, Status> {
    let Ok(hash) = String::from_utf8(hash.to_vec()) else { return Ok(false) };
    let compared = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash)).await;
    Ok(compared.map_err(interrupted)?.unwrap_or(false))
}

fn interrupted(e: tokio::task::JoinError) -> Status {
    Status::internal(format!("isopod: the password was not looked at: {e}"))
}
