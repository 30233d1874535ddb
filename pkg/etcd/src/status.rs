//! Errors as etcd says them.

use isopod_base::errors::Chain;
use isopod_store::StoreError;
use tonic::{Code, Status};

macro_rules! errors {
    ($($name:ident: $code:ident, $text:literal;)*) => {
        $(pub(crate) fn $name() -> Status {
            Status::new(Code::$code, concat!("etcdserver: ", $text))
        })*
    };
}

errors! {
    empty_key: InvalidArgument, "key is not provided";
    key_not_found: InvalidArgument, "key not found";
    value_provided: InvalidArgument, "value is provided";
    lease_provided: InvalidArgument, "lease is provided";
    too_many_ops: InvalidArgument, "too many operations in txn request";
    duplicate_key: InvalidArgument, "duplicate key given in txn request";
    invalid_sort_option: InvalidArgument, "invalid sort option";
    request_too_large: InvalidArgument, "request is too large";
    compacted: OutOfRange, "mvcc: required revision has been compacted";
    future_revision: OutOfRange, "mvcc: required revision is a future revision";
    no_space: ResourceExhausted, "mvcc: database space exceeded";
    lease_not_found: NotFound, "requested lease not found";
    lease_exists: FailedPrecondition, "lease already exists";
    lease_ttl_too_large: OutOfRange, "too large lease TTL";
    bad_leader_transferee: FailedPrecondition, "bad leader transferee";
    member_bad_urls: InvalidArgument, "given member URLs are invalid";
    member_not_found: NotFound, "member not found";
    // etcd's own list has another code for this one; its servers answer this.
    not_enough_started_members: Unknown, "re-configuration failed due to not enough started members";
    member_not_learner: FailedPrecondition, "can only promote a learner member";
    auth_not_enabled: FailedPrecondition, "authentication is not enabled";
    root_user_not_found: FailedPrecondition, "root user does not exist";
    root_role_not_granted: FailedPrecondition, "root user does not have root role";
    user_exists: FailedPrecondition, "user name already exists";
    user_empty: InvalidArgument, "user name is empty";
    user_not_found: FailedPrecondition, "user name not found";
    role_exists: FailedPrecondition, "role name already exists";
    role_not_found: FailedPrecondition, "role name not found";
    role_empty: InvalidArgument, "role name is empty";
    auth_failed: InvalidArgument, "authentication failed, invalid user ID or password";
    permission_not_given: InvalidArgument, "permission not given";
    permission_denied: PermissionDenied, "permission denied";
    role_not_granted: FailedPrecondition, "role is not granted to the user";
    permission_not_granted: FailedPrecondition, "permission is not granted to the role";
    invalid_auth_token: Unauthenticated, "invalid auth token";
    invalid_auth_management: InvalidArgument, "invalid auth management";
    auth_old_revision: InvalidArgument, "revision of auth store is old";
    wrong_downgrade_version: InvalidArgument, "wrong downgrade target version format";
    invalid_downgrade_version: InvalidArgument, "invalid downgrade target version";
    corrupt: DataLoss, "corrupt cluster";
    stopped: Unavailable, "server stopped";
}

/// One of those that etcd forgot to give a code.
pub(crate) fn no_password_user() -> Status {
    Status::unknown("auth: authentication failed, password was given for no password user")
}

/// Of a store's error. What etcd has no word for keeps our own.
pub(crate) fn of(error: StoreError) -> Status {
    match error {
        StoreError::Compacted { .. } => compacted(),
        StoreError::FutureRevision { .. } => future_revision(),
        StoreError::KeyNotFound => key_not_found(),
        StoreError::LeaseNotFound(_) => lease_not_found(),
        StoreError::LeaseExists(_) => lease_exists(),
        StoreError::DuplicateKey => duplicate_key(),
        StoreError::TooManyWrites(_) => too_many_ops(),
        StoreError::NoSpace => no_space(),
        StoreError::Closed => stopped(),
        StoreError::Corrupt(text) => {
            tracing::error!(damage = text, "the store is corrupt");
            corrupt()
        }
        other @ (StoreError::Unavailable { .. } | StoreError::NotDone { .. }) => {
            Status::unavailable(format!("etcdserver: {}", Chain(&other)))
        }
        other @ (StoreError::WatchOverrun
        | StoreError::InUse { .. }
        | StoreError::Format { .. }
        | StoreError::Backend { .. }) => Status::unknown(format!("etcdserver: {}", Chain(&other))),
    }
}
