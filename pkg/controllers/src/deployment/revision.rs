//! Revisions of a deployment: the annotations that number its replica sets and carry its scale.

use super::scale;
use isopod_client::views::{Deployment, Labels, ReplicaSet};
use std::sync::Arc;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
pub const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Characters of a revision history.
const LONGEST_HISTORY: usize = 2000;

pub fn is_kept_apart(key: &str) -> bool {
    matches!(key, LAST_APPLIED | REVISION | HISTORY | DESIRED | MAX | ROLLBACK_TO)
}

/// The revision in the annotations; 0 when there is none, `None` when it is no number.
pub fn of(annotations: &Labels) -> Option<i64> {
    annotations.get(REVISION).map_or(Some(0), |r| r.parse().ok())
}

/// The revision before the newest: where an unnamed rollback goes.
pub fn last<'a>(sets: impl IntoIterator<Item = &'a Arc<ReplicaSet>>) -> i64 {
    let (mut max, mut second) = (0, 0);
    for v in sets.into_iter().filter_map(|s| of(&s.metadata.annotations)) {
        if v >= max {
            (max, second) = (v, max);
        } else if v > second {
            second = v;
        }
    }
    second
}

/// Sets on the new replica set's annotations what the deployment says: its own annotations, the revision and the history;
/// for a set that is yet to be made the scale too. Returns the annotations that changed.
pub fn set_annotations(deployment: &Deployment, annotations: &mut Labels, revision: i64, exists: bool) -> Labels {
    let before = annotations.clone();
    for (k, v) in &deployment.metadata.annotations {
        if !is_kept_apart(k) {
            annotations.insert(k.clone(), v.clone());
        }
    }
    let old = annotations.get(REVISION).cloned();
    let old_number = old.as_deref().map_or(Some(0), |o| o.parse::<i64>().ok());
    if let Some(old_number) = old_number {
        if old_number < revision {
            annotations.insert(REVISION.into(), revision.to_string());
            // Rolled back to: remember which numbers it had.
            if let Some(old) = old {
                let history = annotations.get(HISTORY).map(String::as_str).unwrap_or_default();
                if let Some(longer) = append_history(history, &old) {
                    annotations.insert(HISTORY.into(), longer);
                }
            }
        }
        if !exists {
            annotations.extend(scale_annotations(deployment));
        }
    }
    annotations.iter().filter(|(k, v)| before.get(*k) != Some(v)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn append_history(history: &str, revision: &str) -> Option<String> {
    if history.is_empty() {
        return Some(revision.to_owned());
    }
    let mut rest = history;
    while rest.len() + revision.len() + 1 > LONGEST_HISTORY {
        rest = rest.split_once(',')?.1;
    }
    Some(format!("{rest},{revision}"))
}

/// The annotations that tell a scaling from a rollout.
pub fn scale_annotations(deployment: &Deployment) -> Labels {
    let replicas = scale::replicas(deployment);
    [
        (DESIRED.to_owned(), replicas.to_string()),
        (MAX.to_owned(), (replicas + scale::max_surge(deployment)).to_string()),
    ]
    .into()
}

pub fn desired(set: &ReplicaSet) -> Option<i32> {
    set.metadata.annotations.get(DESIRED)?.parse::<u32>().ok()?.try_into().ok()
}

pub fn max_replicas(set: &ReplicaSet) -> Option<i32> {
    set.metadata.annotations.get(MAX)?.parse::<u32>().ok()?.try_into().ok()
}

/// The revision that someone asked to roll back to (0: the one before).
pub fn rollback_to(deployment: &Deployment) -> Option<i64> {
    deployment.metadata.annotations.get(ROLLBACK_TO)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_is_remembered() {
        let d = Deployment::default();
        let mut a: Labels = [(REVISION.to_owned(), "1".to_owned())].into();
        let changed = set_annotations(&d, &mut a, 3, true);
        assert_eq!((a[REVISION].as_str(), a[HISTORY].as_str()), ("3", "1"));
        assert_eq!(changed.len(), 2);
        set_annotations(&d, &mut a, 5, true);
        assert_eq!(a[HISTORY], "1,3");
        assert!(set_annotations(&d, &mut a, 4, true).is_empty(), "a revision never goes down");
    }

    #[test]
    fn the_history_forgets_its_oldest() {
        let long = vec!["1000"; 400].join(",");
        let longer = append_history(&long, "1001").unwrap();
        assert!(longer.len() <= LONGEST_HISTORY && longer.ends_with(",1001"));
    }
}
