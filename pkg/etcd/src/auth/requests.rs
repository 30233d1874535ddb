//! What a request about keys and leases needs, in the order in which etcd looks at it.

use super::{Caller, Credentials};
use crate::convert::key_range;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::request_op::Request as Op;
use crate::service::Service;
use crate::status;
use isopod_store::{KeyRange, LeaseId, StoreError};
use tonic::Status;

pub(crate) enum Need {
    Read(KeyRange),
    Write(KeyRange),
    /// To write every key of a lease: who attaches another one to it could end it too.
    WriteLeased(LeaseId),
    /// To read every key of a lease.
    ReadLeased(LeaseId),
}

pub(crate) fn of_put(r: &pb::PutRequest) -> Vec<Need> {
    let key = KeyRange::key(r.key.clone());
    let mut needs = vec![Need::Write(key.clone()), Need::WriteLeased(r.lease)];
    needs.extend(r.prev_kv.then_some(Need::Read(key)));
    needs
}

pub(crate) fn of_range(r: &pb::RangeRequest) -> Vec<Need> {
    vec![Need::Read(key_range(r.key.clone(), r.range_end.clone()))]
}

pub(crate) fn of_delete(r: &pb::DeleteRangeRequest) -> Vec<Need> {
    let range = key_range(r.key.clone(), r.range_end.clone());
    let mut needs = vec![Need::Write(range.clone())];
    needs.extend(r.prev_kv.then_some(Need::Read(range)));
    needs
}

/// Of both branches: which one is taken is known only when it is too late.
pub(crate) fn of_txn(r: &pb::TxnRequest) -> Vec<Need> {
    let compared = r.compare.iter().map(|c| Need::Read(key_range(c.key.clone(), c.range_end.clone())));
    let ops = r.success.iter().chain(&r.failure).flat_map(|op| match &op.request {
        Some(Op::RequestRange(r)) => of_range(r),
        Some(Op::RequestPut(r)) => of_put(r),
        Some(Op::RequestDeleteRange(r)) => of_delete(r),
        Some(Op::RequestTxn(r)) => of_txn(r),
        None => Vec::new(),
    });
    compared.chain(ops).collect()
}

impl Service {
    pub(crate) async fn caller(&self, shown: &Credentials) -> Result<Caller, Status> {
        self.auth.admit(shown).await
    }

    /// Somebody who may do what `needs` says; hold him until it is done.
    pub(crate) async fn permitted(
        &self,
        shown: &Credentials,
        needs: impl FnOnce() -> Vec<Need>,
    ) -> Result<Caller, Status> {
        let caller = self.caller(shown).await?;
        if !caller.is_free() {
            for need in needs() {
                self.check_need(&caller, need).await?;
            }
        }
        Ok(caller)
    }

    /// Somebody who said who he is.
    pub(crate) async fn known(&self, shown: &Credentials) -> Result<Caller, Status> {
        let caller = self.caller(shown).await?;
        caller.check_known()?;
        Ok(caller)
    }

    pub(crate) async fn admin(&self, shown: &Credentials) -> Result<Caller, Status> {
        let caller = self.caller(shown).await?;
        caller.check_admin()?;
        Ok(caller)
    }

    pub(crate) async fn check_need(&self, caller: &Caller, need: Need) -> Result<(), Status> {
        let (lease, check): (_, fn(&Caller, &KeyRange) -> Result<(), Status>) = match need {
            Need::Read(range) => return caller.check_read(&range),
            Need::Write(range) => return caller.check_write(&range),
            Need::WriteLeased(lease) => (lease, Caller::check_write),
            Need::ReadLeased(lease) => (lease, Caller::check_read),
        };
        if lease == 0 || caller.check_admin().is_ok() {
            return Ok(());
        }
        match self.store.lease_status(lease).await {
            Ok(lease) => lease.keys.into_iter().try_for_each(|key| check(caller, &KeyRange::key(key))),
            // What is not there is the business of who asks for it.
            Err(StoreError::LeaseNotFound(_)) => Ok(()),
            Err(e) => Err(status::of(e)),
        }
    }
}
