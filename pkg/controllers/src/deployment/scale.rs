//! How many pods a rollout may have: surge, unavailability, and shares of several replica sets.

use super::revision;
use isopod_client::views::{Deployment, IntOrString, ReplicaSet};

pub fn replicas(d: &Deployment) -> i32 {
    d.spec.replicas.unwrap_or(1)
}

pub fn size(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

pub fn is_rolling(d: &Deployment) -> bool {
    d.spec.strategy.kind != "Recreate"
}

fn scaled(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    value.map_or(0, |v| v.scaled(total, round_up))
}

/// Surge and unavailability in pods. When both come to zero, one pod may be unavailable: nothing could move otherwise.
fn fenceposts(d: &Deployment) -> (i32, i32) {
    let rolling = d.spec.strategy.rolling_update.as_ref();
    let surge = scaled(rolling.and_then(|r| r.max_surge.as_ref()), replicas(d), true);
    let unavailable = scaled(rolling.and_then(|r| r.max_unavailable.as_ref()), replicas(d), false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

pub fn max_surge(d: &Deployment) -> i32 {
    if is_rolling(d) { fenceposts(d).0 } else { 0 }
}

pub fn max_unavailable(d: &Deployment) -> i32 {
    if !is_rolling(d) || replicas(d) == 0 { 0 } else { fenceposts(d).1.min(replicas(d)) }
}

/// The size of the new replica set, given the sum of all sizes.
pub fn new_set_size(d: &Deployment, all: i32, new: i32) -> i32 {
    if !is_rolling(d) {
        return replicas(d);
    }
    let rolling = d.spec.strategy.rolling_update.as_ref();
    let most = replicas(d) + scaled(rolling.and_then(|r| r.max_surge.as_ref()), replicas(d), true);
    if all >= most { new } else { new + (most - all).min(replicas(d) - new) }
}

/// The share of `to_add` pods (negative: to take away) that falls to this set; `added` is already given out.
pub fn proportion(set: &ReplicaSet, d: &Deployment, to_add: i32, added: i32) -> i32 {
    if size(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let (share, allowed) = (fraction(set, d), to_add - added);
    if to_add > 0 { share.min(allowed) } else { share.max(allowed) }
}

fn fraction(set: &ReplicaSet, d: &Deployment) -> i32 {
    if replicas(d) == 0 {
        return -size(set);
    }
    let most = f64::from(replicas(d) + max_surge(d));
    let before = revision::max_replicas(set).filter(|m| *m != 0).unwrap_or(d.status.replicas);
    if before == 0 {
        return 0;
    }
    (f64::from(size(set)) * most / f64::from(before)).round() as i32 - size(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(replicas: i32, surge: serde_json::Value, unavailable: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({"spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
        .unwrap()
    }

    #[test]
    fn percentages_round_surge_up_and_unavailability_down() {
        for (replicas, surge, unavailable, want) in [
            (3, json!("25%"), json!("25%"), (1, 0)),
            (10, json!("25%"), json!("25%"), (3, 2)),
            (1, json!("25%"), json!("25%"), (1, 0)),
            (3, json!(0), json!("10%"), (0, 1)),
            (2, json!(1), json!(5), (1, 2)),
            (0, json!("25%"), json!(1), (0, 0)),
        ] {
            let d = deployment(replicas, surge, unavailable);
            assert_eq!((max_surge(&d), max_unavailable(&d)), want, "{replicas}");
        }
    }

    #[test]
    fn the_new_set_grows_into_the_room_that_is_left() {
        let d = deployment(10, json!(3), json!(2));
        for (all, new, want) in [(10, 0, 3), (13, 3, 3), (11, 3, 5), (5, 5, 10)] {
            assert_eq!(new_set_size(&d, all, new), want, "{all} {new}");
        }
    }
}
