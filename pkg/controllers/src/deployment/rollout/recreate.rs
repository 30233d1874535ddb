//! Recreate: the old pods are all gone before the first new one comes.

use super::Rollout;
use crate::deployment::{scale, status};
use std::collections::BTreeSet;

/// `with_pods`: uids of the sets with pods that are not finished.
pub fn roll(r: &mut Rollout, with_pods: &BTreeSet<String>) {
    let mut scaled = false;
    for i in 0..r.old.len() {
        if scale::size(&r.old[i]) > 0 {
            scaled |= r.scale_old(i, 0);
        }
    }
    let still_runs =
        |s: &isopod_client::views::ReplicaSet| s.status.replicas > 0 || with_pods.contains(&s.metadata.uid);
    if !scaled && !r.old.iter().any(still_runs) {
        if r.new.is_none() {
            r.sync_revision(true);
        }
        r.scale_new(scale::replicas(&r.d));
        if status::is_complete(&r.d, &r.d.status) {
            r.clean_up();
        }
    }
    r.status(status::of_rollout);
}
