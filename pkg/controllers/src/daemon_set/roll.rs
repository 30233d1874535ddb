//! Replacing pods of old revisions: by making room first, or with a surge.

use super::{Fit, Observed, Step};
use isopod_client::views::{DaemonSet, IntOrString, Pod};
use std::collections::BTreeSet;
use std::sync::Arc;

fn scaled(set: &DaemonSet, pick: fn(&isopod_client::views::RollingUpdate) -> Option<&IntOrString>, of: i32) -> i32 {
    let strategy = &set.spec.update_strategy;
    let rolling = strategy.rolling_update.as_ref().filter(|_| strategy.kind == "RollingUpdate");
    rolling.and_then(pick).map_or(0, |v| v.scaled(of, true))
}

fn max_surge(set: &DaemonSet, of: i32) -> i32 {
    scaled(set, |r| r.max_surge.as_ref(), of)
}

/// Whether a node may have two pods for a while.
pub fn allows_surge(set: &DaemonSet) -> bool {
    max_surge(set, 1) > 0
}

/// The pod of the present revision and that of an old one.
struct Pair<'a> {
    new: Option<&'a Arc<Pod>>,
    old: Option<&'a Arc<Pod>>,
}

/// `None` when the node has several of a kind, which [`super::manage`] takes away first.
fn pair<'a>(o: &Observed<'_>, pods: &'a [Arc<Pod>]) -> Option<Pair<'a>> {
    let mut pair = Pair { new: None, old: None };
    for pod in pods.iter().filter(|p| !p.metadata.is_being_deleted()) {
        let slot = if o.is_updated(pod) { &mut pair.new } else { &mut pair.old };
        if slot.replace(pod).is_some() {
            return None;
        }
    }
    Some(pair)
}

/// The next pods to delete, and with a surge the next nodes to get a second pod.
pub fn roll(o: &Observed<'_>) -> Step {
    let wanted: BTreeSet<&str> =
        o.nodes.iter().filter(|n| o.fit(n) == Fit::Run).map(|n| n.metadata.name.as_str()).collect();
    let count = wanted.len() as i32;
    let (surge, mut unavailable) = (max_surge(o.set, count), scaled(o.set, |r| r.max_unavailable.as_ref(), count));
    if surge == 0 {
        // Nothing could move otherwise.
        unavailable = if unavailable == 0 { 1 } else { unavailable };
        return make_room(o, &wanted, unavailable as usize);
    }
    with_surge(o, &wanted, surge as usize)
}

fn make_room(o: &Observed<'_>, wanted: &BTreeSet<&str>, max_unavailable: usize) -> Step {
    let (mut unavailable, mut useless, mut candidates) = (0, Vec::new(), Vec::new());
    let mut nodes: BTreeSet<&str> = o.pods.keys().map(String::as_str).collect();
    nodes.extend(wanted);
    for node in nodes {
        match pair(o, o.pods_on(node)) {
            Some(Pair { new: Some(new), old: None }) => unavailable += usize::from(!o.is_available(new)),
            Some(Pair { new: None, old: Some(old) }) if o.is_available(old) => candidates.push(old.clone()),
            Some(Pair { new: None, old: Some(old) }) => {
                // Replacing it costs nothing.
                useless.push(old.clone());
                unavailable += 1;
            }
            _ => unavailable += 1,
        }
    }
    candidates.truncate(max_unavailable.saturating_sub(unavailable));
    Step { delete: useless.into_iter().chain(candidates).collect(), ..Step::default() }
}

fn with_surge(o: &Observed<'_>, wanted: &BTreeSet<&str>, max_surge: usize) -> Step {
    let (mut surging, mut available) = (0, 0);
    let (mut replaced, mut misplaced, mut needed, mut candidates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (node, pods) in &o.pods {
        let Some(Pair { new, old }) = pair(o, pods) else {
            surging += 1;
            continue;
        };
        available += usize::from(old.or(new).is_some_and(|p| o.is_available(p)));
        let Some(old) = old else { continue };
        match (new, o.is_available(old), wanted.contains(node.as_str())) {
            (Some(new), ..) if o.is_available(new) => replaced.push(old.clone()),
            (Some(_), ..) => surging += 1,
            (None, false, false) => replaced.push(old.clone()),
            (None, true, false) => misplaced.push(old.clone()),
            (None, false, true) => needed.push(node.clone()),
            (None, true, true) => candidates.push(node.clone()),
        }
    }
    candidates.truncate(max_surge.saturating_sub(surging));
    // A node that the set has left keeps its pod until as many serve elsewhere.
    misplaced.truncate(available.saturating_sub(wanted.len()));
    let create = needed.into_iter().chain(candidates).collect();
    Step { create, delete: replaced.into_iter().chain(misplaced).collect(), ..Step::default() }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use serde_json::json;

    #[test]
    fn room_is_made_within_the_limit() {
        let nodes = ["a", "b", "c"].map(|n| node(n, json!([])));
        let cases = [
            (json!({"maxUnavailable": 1}), ["ready", "ready", "ready"], vec!["a"]),
            (json!({"maxUnavailable": 2}), ["ready", "ready", "ready"], vec!["a", "b"]),
            (json!({"maxUnavailable": "50%"}), ["ready", "ready", "ready"], vec!["a", "b"]),
            (json!({}), ["ready", "ready", "ready"], vec!["a"]),
            (json!({"maxUnavailable": 1}), ["ready", "unready", "ready"], vec!["b"]),
            (json!({"maxUnavailable": 1}), ["ready", "going", "ready"], vec![]),
        ];
        for (rolling, states, want) in cases {
            let set = set(rolling.clone());
            let pods: Vec<_> = ["a", "b", "c"].iter().zip(states).map(|(n, s)| pod(n, n, "old", s)).collect();
            let step = roll(&observed(&set, &nodes, &pods));
            assert_eq!(names(&step.delete), want, "{rolling} {states:?}");
            assert!(step.create.is_empty());
        }
        let set = set(json!({"maxUnavailable": 1}));
        let pods = [pod("a", "a", "new", "unready"), pod("b", "b", "old", "ready"), pod("c", "c", "old", "ready")];
        assert!(roll(&observed(&set, &nodes, &pods)).is_empty(), "the new one is waited for");
    }

    #[test]
    fn a_surge_makes_first_and_deletes_then() {
        let set = set(json!({"maxSurge": 1, "maxUnavailable": 0}));
        let nodes = ["a", "b"].map(|n| node(n, json!([])));
        let both = [pod("a", "a", "old", "ready"), pod("b", "b", "old", "ready")];
        assert_eq!(roll(&observed(&set, &nodes, &both)).create, ["a"]);
        let surged = [both[0].clone(), both[1].clone(), pod("a2", "a", "new", "unready")];
        assert!(roll(&observed(&set, &nodes, &surged)).is_empty());
        let serving = [both[0].clone(), both[1].clone(), pod("a2", "a", "new", "ready")];
        let step = roll(&observed(&set, &nodes, &serving));
        assert_eq!((names(&step.delete), step.create), (vec!["a"], vec!["b".to_owned()]));
        let broken = [pod("a", "a", "old", "unready"), both[1].clone()];
        assert_eq!(roll(&observed(&set, &nodes, &broken)).create, ["a", "b"]);
    }
}
