//! The rolling update: the new set up as far as the surge allows, the old ones down as far as availability allows.

use super::Rollout;
use crate::deployment::{scale, status};

pub fn roll(r: &mut Rollout) {
    r.sync_revision(true);
    if !grow_new(r) && !shrink_old(r) && status::is_complete(&r.d, &r.d.status) {
        r.clean_up();
    }
    r.status(status::of_rollout);
}

fn grow_new(r: &mut Rollout) -> bool {
    let wanted = scale::replicas(&r.d);
    let Some(size) = r.new.as_ref().map(scale::size) else { return false };
    let target = if size >= wanted { wanted } else { scale::new_set_size(&r.d, r.total(), size) };
    r.scale_new(target)
}

fn shrink_old(r: &mut Rollout) -> bool {
    let Some(new) = &r.new else { return false };
    if r.old.iter().map(scale::size).sum::<i32>() == 0 {
        return false;
    }
    let least = scale::replicas(&r.d) - scale::max_unavailable(&r.d);
    // Pods of the new set that are not available yet must not let more of the old ones go.
    let new_unavailable = scale::size(new) - new.status.available_replicas;
    let most = r.total() - least - new_unavailable;
    if most <= 0 {
        return false;
    }
    let broken = shrink_broken(r, most);
    let healthy = shrink_available(r, least);
    broken || healthy
}

/// Takes away old pods that are not available: availability does not suffer.
fn shrink_broken(r: &mut Rollout, most: i32) -> bool {
    let mut taken = 0;
    for i in 0..r.old.len() {
        let (size, available) = (scale::size(&r.old[i]), r.old[i].status.available_replicas);
        if taken >= most || size == 0 || size == available {
            continue;
        }
        let less = (most - taken).min(size - available);
        if less > 0 && r.scale_old(i, size - less) {
            taken += less;
        }
    }
    taken > 0
}

/// Takes away old pods that more than the least availability has to spare, the oldest set first.
fn shrink_available(r: &mut Rollout, least: i32) -> bool {
    let available: i32 = r.old.iter().chain(&r.new).map(|s| s.status.available_replicas).sum();
    let spare = available - least;
    let mut taken = 0;
    for i in 0..r.old.len() {
        let size = scale::size(&r.old[i]);
        if taken >= spare || size == 0 {
            continue;
        }
        let less = size.min(spare - taken);
        if r.scale_old(i, size - less) {
            taken += less;
        }
    }
    taken > 0
}
