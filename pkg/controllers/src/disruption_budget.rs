//! Keeps the status of disruption budgets, from which evictions are granted.
//!
//! Watches budgets, pods and what controls them; writes the budgets' status. Invariants: when it cannot be told how many
//! pods there should be, no disruption is allowed; an eviction that was granted counts as a loss until its pod is gone, or
//! for [`GRANT_LASTS`].

mod scale;
mod stale;

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use async_trait::async_trait;
use isopod_api::time;
use isopod_client::events::{Kind, ObjectRef};
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Condition, IntOrString, Pod, PodDisruptionBudget, PodDisruptionBudgetStatus};
use isopod_client::{Change, Informer};
use jiff::{SignedDuration, Timestamp};
use scale::Scales;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const ALLOWED: &str = "DisruptionAllowed";
/// So long may a pod still be there after its eviction was granted.
const GRANT_LASTS: SignedDuration = SignedDuration::from_mins(2);

struct Budgets {
    context: Context,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    scales: Scales,
}

pub async fn run(context: Context) {
    let budgets = context.informer::<PodDisruptionBudget>(PodDisruptionBudget::resource());
    let pods = context.informer::<Pod>(Pod::resource());
    let scales = Scales::new(&context);
    budgets.synced().await;
    pods.synced().await;
    scales.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    context.feed_own(&budgets, &queue);
    let (known, again) = (budgets.clone(), queue.clone());
    context.feed(&pods, move |change| {
        let (old, new) = match change {
            Change::Applied { old, new } => (old, Some(new)),
            Change::Deleted(old) => (Some(old), None),
            Change::Resync => return,
        };
        for pod in old.iter().chain(&new) {
            let namespace = known.list_namespace(&pod.metadata.namespace);
            namespace.iter().filter(|b| covers(b, pod)).for_each(|b| again.add(Key::of(&b.metadata)));
        }
    });
    let stale = stale::run(context.clone(), pods.clone());
    let controller = Arc::new(Budgets { context: context.clone(), budgets, pods, scales });
    tokio::join!(context.work(controller, queue, 2), stale);
}

/// An empty selector selects all pods, a missing one none.
fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    budget.spec.selector.as_ref().is_some_and(|s| s.matches(&pod.metadata.labels))
}

/// How many pods there should be, and how many of them healthy. `scale`: the sum of the scales of what controls the pods.
fn expected(budget: &PodDisruptionBudget, pods: usize, scale: i32) -> (i32, i32) {
    match (&budget.spec.max_unavailable, &budget.spec.min_available) {
        (Some(max), _) => (scale, (scale - max.scaled(scale, true)).max(0)),
        (None, Some(IntOrString::Int(min))) => (pods as i32, *min),
        (None, Some(share)) => (scale, share.scaled(scale, true)),
        (None, None) => (0, 0),
    }
}

/// Whether the number of pods follows from what controls them.
fn asks_for_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = &budget.spec;
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::Text(_)))
}

/// The evictions that were granted and whose pods are still there, and the pods that should have been gone by now.
fn granted(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, String>, Vec<Arc<Pod>>) {
    let (mut waiting, mut overdue) = (BTreeMap::new(), Vec::new());
    for pod in pods.iter().filter(|p| !p.metadata.is_being_deleted()) {
        let Some(at) = budget.status.disrupted_pods.get(&pod.metadata.name) else { continue };
        if time::parse(at).is_some_and(|t| t + GRANT_LASTS >= now) {
            waiting.insert(pod.metadata.name.clone(), at.clone());
        } else {
            overdue.push(pod.clone());
        }
    }
    (waiting, overdue)
}

fn calculate(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    disrupted: BTreeMap<String, String>,
    scale: i32,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let (expected_pods, desired_healthy) = expected(budget, pods.len(), scale);
    let is_healthy =
        |p: &&Arc<Pod>| !p.metadata.is_being_deleted() && !disrupted.contains_key(&p.metadata.name) && p.is_ready();
    let current_healthy = pods.iter().filter(is_healthy).count() as i32;
    // Without pods nothing is allowed: the first ones may come before the next look.
    let spare = if expected_pods > 0 { (current_healthy - desired_healthy).max(0) } else { 0 };
    let mut status = PodDisruptionBudgetStatus {
        observed_generation: budget.metadata.generation,
        disrupted_pods: disrupted,
        disruptions_allowed: spare,
        current_healthy,
        desired_healthy,
        expected_pods,
        conditions: budget.status.conditions.clone(),
    };
    let reason = if spare > 0 { "SufficientPods" } else { "InsufficientPods" };
    set_condition(&mut status, spare > 0, reason, String::new(), now);
    status
}

/// The status when the number of pods cannot be told.
fn unknown(budget: &PodDisruptionBudget, why: String, now: Timestamp) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone();
    status.disruptions_allowed = 0;
    set_condition(&mut status, false, "SyncFailed", why, now);
    status
}

fn set_condition(status: &mut PodDisruptionBudgetStatus, is: bool, reason: &str, message: String, now: Timestamp) {
    let value = if is { "True" } else { "False" };
    let old = status.conditions.iter().find(|c| c.kind == ALLOWED).filter(|c| c.status == value);
    let since = old.and_then(|c| c.last_transition_time.clone()).unwrap_or_else(|| time::format(now));
    let new = Condition {
        kind: ALLOWED.into(),
        status: value.into(),
        reason: reason.into(),
        message,
        observed_generation: status.observed_generation,
        last_transition_time: Some(since),
        ..Condition::default()
    };
    match status.conditions.iter_mut().find(|c| c.kind == ALLOWED) {
        Some(condition) => *condition = new,
        None => status.conditions.push(new),
    }
}

/// The write of a status that differs from the one in the object. An eviction that is granted meanwhile is not overwritten.
fn write(budget: &PodDisruptionBudget, new: &PodDisruptionBudgetStatus) -> Option<Op> {
    let old = &budget.status;
    if old == new {
        return None;
    }
    let gone = old.disrupted_pods.keys().filter(|k| !new.disrupted_pods.contains_key(*k));
    let mut disrupted: Map<String, Value> = gone.map(|k| (k.clone(), Value::Null)).collect();
    disrupted.extend(new.disrupted_pods.iter().map(|(k, v)| (k.clone(), json!(v))));
    let conditions: Vec<Value> = new
        .conditions
        .iter()
        .map(|c| {
            let mut v = json!({"type": c.kind, "status": c.status, "reason": c.reason, "message": c.message,
                               "lastTransitionTime": c.last_transition_time});
            if c.observed_generation != 0 {
                v["observedGeneration"] = json!(c.observed_generation);
            }
            v
        })
        .collect();
    let body = json!({"status": {
        "observedGeneration": new.observed_generation,
        "disruptedPods": if new.disrupted_pods.is_empty() { Value::Null } else { Value::Object(disrupted) },
        "disruptionsAllowed": new.disruptions_allowed,
        "currentHealthy": new.current_healthy,
        "desiredHealthy": new.desired_healthy,
        "expectedPods": new.expected_pods,
        "conditions": conditions,
    }});
    let m = &budget.metadata;
    let op = Op::status(PodDisruptionBudget::resource(), &m.namespace, &m.name, body);
    Some(op.if_uid(&m.uid).if_unchanged(&m.resource_version))
}

#[async_trait]
impl Controller for Budgets {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(budget) = self.budgets.get(&key.namespace, &key.name) else { return Ok(None) };
        let about = ObjectRef::new("policy/v1", "PodDisruptionBudget", &budget.metadata);
        let say = |kind, reason: &str, text: String| self.context.recorder.event(&about, kind, reason, text);
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|p| covers(&budget, p));
        if pods.is_empty() {
            say(Kind::Normal, "NoPods", "No matching pods found".to_owned());
        }
        let now = self.context.clock.now();
        let scale = if asks_for_scale(&budget) { self.scales.sum(&pods).await } else { Ok(scale::Sum::default()) };
        let new = match scale {
            Ok(sum) => {
                if sum.has_unmanaged {
                    say(Kind::Warning, "UnmanagedPods", unmanaged(&budget));
                }
                let (disrupted, overdue) = granted(&budget, &pods, now);
                overdue.iter().for_each(|p| self.say_overdue(p, key));
                calculate(&budget, &pods, disrupted, sum.scale, now)
            }
            Err(why) => {
                let text = format!("Failed to calculate the number of expected pods: {why}");
                say(Kind::Warning, "CalculateExpectedPodCountFailed", text);
                unknown(&budget, why, now)
            }
        };
        if let Some(op) = write(&budget, &new) {
            self.context.apply(&op).await?;
        }
        let ends = new.disrupted_pods.values().filter_map(|at| time::parse(at)).map(|t| t + GRANT_LASTS);
        Ok(ends.min().map(|t| t.duration_since(now).unsigned_abs() + Duration::from_millis(10)))
    }
}

fn unmanaged(budget: &PodDisruptionBudget) -> String {
    let selector = budget.spec.selector.as_ref().map(|s| json!(s).to_string()).unwrap_or_default();
    format!(
        "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
    )
}

impl Budgets {
    fn say_overdue(&self, pod: &Pod, budget: &Key) {
        let about = ObjectRef::new("v1", "Pod", &pod.metadata);
        // Upstream names the namespace twice.
        let text = format!("Pod was expected by PDB {0}/{0} to be deleted but it wasn't", budget.namespace);
        self.context.recorder.event(&about, Kind::Warning, "NotDeleted", text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let metadata = json!({"name": "b", "namespace": "ns", "generation": 2});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
    }

    fn pods(states: &[&str]) -> Vec<Arc<Pod>> {
        let pod = |(i, state): (usize, &&str)| {
            let going = (*state == "going").then_some("2026-01-01T00:00:00Z");
            let ready = if *state == "unready" { "False" } else { "True" };
            let v = json!({"metadata": {"name": format!("p{i}"), "deletionTimestamp": going},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}});
            Arc::new(serde_json::from_value(v).unwrap())
        };
        states.iter().enumerate().map(pod).collect()
    }

    #[test]
    fn what_may_be_disrupted() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        for (spec, states, scale, want) in [
            // Expected, desired, healthy, allowed.
            (json!({"minAvailable": 2}), vec!["ready", "ready", "ready"], 0, [3, 2, 3, 1]),
            (json!({"minAvailable": 2}), vec!["ready", "unready", "going"], 0, [3, 2, 1, 0]),
            (json!({"minAvailable": "50%"}), vec!["ready", "ready", "ready"], 3, [3, 2, 3, 1]),
            (json!({"maxUnavailable": 1}), vec!["ready", "ready"], 3, [3, 2, 2, 0]),
            (json!({"maxUnavailable": "30%"}), vec!["ready", "ready", "ready"], 3, [3, 2, 3, 1]),
            (json!({"maxUnavailable": 5}), vec!["ready"], 1, [1, 0, 1, 1]),
            (json!({"minAvailable": 0}), vec![], 0, [0, 0, 0, 0]),
        ] {
            let b = budget(spec.clone(), json!({}));
            let s = calculate(&b, &pods(&states), BTreeMap::new(), scale, now);
            let got = [s.expected_pods, s.desired_healthy, s.current_healthy, s.disruptions_allowed];
            assert_eq!(got, want, "{spec} {states:?}");
            let reason = if want[3] > 0 { "SufficientPods" } else { "InsufficientPods" };
            assert_eq!((s.conditions[0].reason.as_str(), s.conditions[0].observed_generation), (reason, 2));
            let same = PodDisruptionBudget { status: s.clone(), ..b };
            let later = calculate(&same, &pods(&states), BTreeMap::new(), scale, now + GRANT_LASTS);
            assert_eq!(write(&same, &later), None, "nothing to change");
        }
    }

    #[test]
    fn granted_evictions_count_for_a_while() {
        let now: Timestamp = "2026-01-01T00:03:00Z".parse().unwrap();
        let disrupted =
            json!({"p0": "2026-01-01T00:02:00Z", "p1": "2026-01-01T00:00:00Z", "gone": "2026-01-01T00:02:00Z"});
        let b = budget(json!({"minAvailable": 1}), json!({"disruptedPods": disrupted}));
        let pods = pods(&["ready", "ready", "ready"]);
        let (waiting, overdue) = granted(&b, &pods, now);
        assert_eq!(waiting.keys().collect::<Vec<_>>(), ["p0"]);
        assert_eq!(overdue.iter().map(|p| p.metadata.name.as_str()).collect::<Vec<_>>(), ["p1"]);
        let s = calculate(&b, &pods, waiting, 0, now);
        assert_eq!((s.current_healthy, s.disruptions_allowed), (2, 1));
        let text = write(&b, &s).unwrap().to_string();
        assert!(text.contains(r#""gone":null"#) && text.contains(r#""p0":"2026"#), "{text}");
    }

    #[test]
    fn nothing_is_allowed_when_nothing_is_known() {
        let b = budget(json!({"maxUnavailable": 1}), json!({"disruptionsAllowed": 3, "observedGeneration": 1}));
        let s = unknown(&b, "why".into(), Timestamp::UNIX_EPOCH);
        assert_eq!((s.disruptions_allowed, s.conditions[0].reason.as_str()), (0, "SyncFailed"));
    }
}
