//! From a stateful set, its pods and its claims to the next steps.

use super::{claims, pod};
use crate::pod_control::is_available;
use crate::revisions::REVISION_LABEL;
use isopod_client::views::{PersistentVolumeClaim, Pod, StatefulSet};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a pass sees. Revisions are a name and a template.
pub struct Observed<'a> {
    pub set: &'a StatefulSet,
    pub pods: &'a [Arc<Pod>],
    pub claim: &'a (dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>> + Sync),
    /// Of pods that an update has not reached.
    pub current: (&'a str, &'a Value),
    pub update: (&'a str, &'a Value),
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    CreateClaim {
        claim: Value,
        pod: String,
    },
    CreatePod(Value),
    DeletePod(Arc<Pod>),
    /// Gives an adopted pod its labels.
    Identify(Arc<Pod>),
    OwnClaim {
        claim: Arc<PersistentVolumeClaim>,
        owners: Vec<Value>,
    },
}

#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Pods that are deleted because they have an old revision.
    pub replaced: i32,
}

/// An ordered set waits for the pod that was looked at.
struct Wait;

impl Observed<'_> {
    fn is_ordered(&self) -> bool {
        self.set.spec.pod_management_policy != "Parallel"
    }
    fn start(&self) -> i32 {
        self.set.spec.ordinals.as_ref().map_or(0, |o| o.start)
    }
    fn end(&self) -> i32 {
        self.start() + self.set.spec.replicas.unwrap_or(1)
    }
    fn partition(&self) -> i32 {
        self.set.spec.update_strategy.rolling_update.as_ref().map_or(0, |r| r.partition)
    }
    pub fn ordinal(&self, pod: &Pod) -> i32 {
        pod::ordinal(&self.set.metadata.name, &pod.metadata.name).unwrap_or(-1)
    }
    pub fn is_available(&self, pod: &Pod) -> bool {
        is_available(pod, self.set.spec.min_ready_seconds, self.now)
    }
    /// Available, and not about to go.
    fn serves(&self, pod: &Pod) -> bool {
        self.is_available(pod) && !pod.metadata.is_being_deleted()
    }
    /// The pods that the set asks for, by number.
    fn replicas(&self) -> BTreeMap<i32, Option<&Arc<Pod>>> {
        let mut replicas: BTreeMap<i32, Option<&Arc<Pod>>> = (self.start()..self.end()).map(|i| (i, None)).collect();
        for pod in self.pods {
            if let Some(slot) = replicas.get_mut(&self.ordinal(pod)) {
                *slot = Some(pod);
            }
        }
        replicas
    }
    /// The others, highest number first.
    fn condemned(&self) -> Vec<&Arc<Pod>> {
        let asked = self.start()..self.end();
        let mut condemned: Vec<_> = self.pods.iter().filter(|p| !asked.contains(&self.ordinal(p))).collect();
        condemned.sort_by_key(|p| std::cmp::Reverse(self.ordinal(p)));
        condemned
    }
}

pub fn is_running_and_ready(pod: &Pod) -> bool {
    pod.status.phase == "Running" && pod.is_ready()
}

pub fn revision(pod: &Pod) -> &str {
    pod.metadata.labels.get(REVISION_LABEL).map(String::as_str).unwrap_or_default()
}

pub fn plan(o: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    let replicas = o.replicas();
    // An ordered set stops at the first pod that it has to wait for; the update comes last.
    if keep(o, &replicas, &mut plan).is_ok()
        && condemn(o, &replicas, &mut plan).is_ok()
        && o.set.spec.update_strategy.kind != "OnDelete"
    {
        update(o, &replicas, &mut plan);
    }
    plan
}

/// Makes missing pods, upwards, and sees that the others are as they should be.
fn keep(o: &Observed<'_>, replicas: &BTreeMap<i32, Option<&Arc<Pod>>>, plan: &mut Plan) -> Result<(), Wait> {
    for (ordinal, pod) in replicas {
        let kept = match pod {
            None => create(o, *ordinal, plan),
            Some(pod) => keep_one(o, *ordinal, pod, plan),
        };
        if o.is_ordered() {
            kept?;
        }
    }
    Ok(())
}

fn create(o: &Observed<'_>, ordinal: i32, plan: &mut Plan) -> Result<(), Wait> {
    let name = pod::name(o.set, ordinal);
    let mut new = Vec::new();
    for claim in claims::wanted(o.set, ordinal) {
        match (o.claim)(claim["metadata"]["name"].as_str().unwrap_or_default()) {
            None => new.push(Step::CreateClaim { claim, pod: name.clone() }),
            Some(present) if present.metadata.is_being_deleted() || claims::is_stale(o.set, &present, &name, "") => {
                return Err(Wait);
            }
            Some(_) => {}
        }
    }
    let is_rolling = o.set.spec.update_strategy.rolling_update.is_some();
    let untouched = if is_rolling {
        o.partition()
    } else if o.set.spec.update_strategy.kind == "RollingUpdate" {
        o.set.status.current_replicas
    } else {
        0
    };
    let (revision, template) = if ordinal < o.start() + untouched { o.current } else { o.update };
    plan.steps.extend(new);
    plan.steps.push(Step::CreatePod(pod::pod(o.set, ordinal, template, revision)));
    Err(Wait)
}

fn keep_one(o: &Observed<'_>, ordinal: i32, pod: &Arc<Pod>, plan: &mut Plan) -> Result<(), Wait> {
    // Whatever the exit codes: a pod that has ended is made anew once it is gone.
    if pod.is_terminal() {
        if !pod.metadata.is_being_deleted() {
            plan.steps.push(Step::DeletePod(pod.clone()));
        }
        return Err(Wait);
    }
    if pod.status.phase == "Pending" {
        let missing = claims::wanted(o.set, ordinal)
            .into_iter()
            .filter(|c| (o.claim)(c["metadata"]["name"].as_str().unwrap_or_default()).is_none());
        plan.steps.extend(missing.map(|claim| Step::CreateClaim { claim, pod: pod.metadata.name.clone() }));
    }
    if o.is_ordered() && !(is_running_and_ready(pod) && o.serves(pod)) {
        return Err(Wait);
    }
    if !pod::has_identity(pod) {
        plan.steps.push(Step::Identify(pod.clone()));
    }
    own_claims(o, pod, true, plan);
    Ok(())
}

fn own_claims(o: &Observed<'_>, pod: &Pod, in_range: bool, plan: &mut Plan) {
    let templates = o.set.spec.volume_claim_templates.iter().filter_map(|t| t["metadata"]["name"].as_str());
    for claim in templates.filter_map(|t| (o.claim)(&claims::name(o.set, t, o.ordinal(pod)))) {
        if let Some(owners) = claims::owners(o.set, pod, &claim, in_range) {
            plan.steps.push(Step::OwnClaim { claim, owners });
        }
    }
}

/// Takes away what the set does not ask for, downwards.
fn condemn(o: &Observed<'_>, replicas: &BTreeMap<i32, Option<&Arc<Pod>>>, plan: &mut Plan) -> Result<(), Wait> {
    let condemned = o.condemned();
    for pod in &condemned {
        own_claims(o, pod, false, plan);
    }
    // The one pod that may go while it does not serve: the lowest that does not, when all that are asked for do.
    let all_serve = replicas.values().all(|p| p.is_some_and(|p| o.serves(p)));
    let first_broken = condemned.iter().rev().find(|p| !o.serves(p)).filter(|_| all_serve);
    for pod in &condemned {
        if pod.metadata.is_being_deleted() {
            if o.is_ordered() {
                return Err(Wait);
            }
            continue;
        }
        let is_first_broken = first_broken.is_some_and(|f| f.metadata.uid == pod.metadata.uid);
        if o.is_ordered() {
            if is_first_broken || (is_running_and_ready(pod) && o.is_available(pod)) {
                plan.steps.push(Step::DeletePod((*pod).clone()));
            }
            return Err(Wait);
        }
        plan.steps.push(Step::DeletePod((*pod).clone()));
    }
    Ok(())
}

/// Deletes pods of old revisions, downwards to the partition, while at most `maxUnavailable` do not serve.
fn update(o: &Observed<'_>, replicas: &BTreeMap<i32, Option<&Arc<Pod>>>, plan: &mut Plan) {
    let rolling = o.set.spec.update_strategy.rolling_update.as_ref();
    let max_unavailable = rolling.and_then(|r| r.max_unavailable.as_ref());
    let max_unavailable = max_unavailable.map_or(1, |m| m.scaled(replicas.len() as i32, false)).max(1);
    let unavailable = replicas.values().filter(|p| p.is_none_or(|p| !o.serves(p))).count() as i32;
    let budget = (max_unavailable - unavailable).max(0) as usize;
    let lowest = o.start() + o.partition();
    let outdated = || {
        let from_above = replicas.range(lowest.min(o.end())..).rev().filter_map(|(_, p)| *p);
        from_above.filter(|p| revision(p) != o.update.0 && !p.metadata.is_being_deleted())
    };
    let doomed: Vec<Arc<Pod>> = if o.is_ordered() {
        outdated().take(budget).cloned().collect()
    } else {
        // Those that do not serve cost nothing.
        let useless = outdated().filter(|p| !o.serves(p));
        useless.chain(outdated().filter(|p| o.serves(p)).take(budget)).cloned().collect()
    };
    let is_doomed = |pod: &Pod, steps: &[Step]| {
        steps.iter().any(|s| matches!(s, Step::DeletePod(p) if p.metadata.uid == pod.metadata.uid))
    };
    for pod in doomed {
        if !is_doomed(&pod, &plan.steps) {
            plan.steps.push(Step::DeletePod(pod));
            plan.replaced += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(extra: Value) -> StatefulSet {
        let mut v = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"}, "spec": {
            "replicas": 3, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}}});
        isopod_client::calls::merge(&mut v, &json!({"spec": extra}));
        serde_json::from_str(&v.to_string()).unwrap()
    }

    /// `state`: `ready`, `unready`, `going`, or a phase.
    fn pod(ordinal: i32, revision: &str, state: &str) -> Arc<Pod> {
        let name = format!("web-{ordinal}");
        let going = (state == "going").then_some("2026-01-01T00:00:00Z");
        let phase = if ["ready", "unready", "going"].contains(&state) { "Running" } else { state };
        let ready = if ["ready", "going"].contains(&state) { "True" } else { "False" };
        let v = json!({
            "metadata": {"name": name, "uid": name, "deletionTimestamp": going,
                         "labels": {REVISION_LABEL: revision, pod::NAME_LABEL: name}},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
        });
        Arc::new(serde_json::from_value(v).unwrap())
    }

    fn pods(states: &str) -> Vec<Arc<Pod>> {
        let one = |(i, s): (usize, &str)| {
            let (revision, state) = s.split_once(' ')?;
            Some(pod(i as i32, revision, state))
        };
        states.split(", ").enumerate().filter_map(one).collect()
    }

    /// The steps in short: `+1 new`, `-2`, `claim data-web-0`.
    fn steps(
        set: &StatefulSet,
        pods: &[Arc<Pod>],
        claim: &dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    ) -> String {
        let claims: BTreeMap<String, Arc<PersistentVolumeClaim>> = (0..9)
            .flat_map(|i| claims::wanted(set, i))
            .filter_map(|c| c["metadata"]["name"].as_str().map(ToOwned::to_owned))
            .filter_map(|name| Some((name.clone(), claim(&name)?)))
            .collect();
        let template = json!({"spec": {}});
        let (current, update) = (("old", &template), ("new", &template));
        let claim = |name: &str| claims.get(name).cloned();
        let o = Observed { set, pods, claim: &claim, current, update, now: Timestamp::UNIX_EPOCH };
        let shown: Vec<String> = plan(&o)
            .steps
            .iter()
            .map(|s| match s {
                Step::CreatePod(p) => {
                    let name = p["metadata"]["name"].as_str().unwrap().trim_start_matches("web-");
                    format!("+{name} {}", p["metadata"]["labels"][REVISION_LABEL].as_str().unwrap())
                }
                Step::DeletePod(p) => format!("-{}", p.metadata.name.trim_start_matches("web-")),
                Step::CreateClaim { claim, .. } => format!("claim {}", claim["metadata"]["name"].as_str().unwrap()),
                Step::Identify(p) => format!("identify {}", p.metadata.name),
                Step::OwnClaim { claim, owners } => format!("own {} {}", claim.metadata.name, owners.len()),
            })
            .collect();
        shown.join(", ")
    }

    #[test]
    fn an_ordered_set_goes_one_by_one() {
        let none = |_: &str| None;
        for (spec, states, want) in [
            (json!({}), "", "+0 new"),
            (json!({}), "new ready", "+1 new"),
            (json!({}), "new unready", ""),
            (json!({}), "new Pending", ""),
            (json!({}), "new going", ""),
            (json!({}), "new ready, new Failed, new ready", "-1"),
            (json!({}), "new ready, new ready, new ready, new ready, new ready", "-4"),
            (json!({}), "new ready, new ready, new ready, new ready, new going", ""),
            (json!({}), "new ready, new ready, new ready, new ready, new unready", "-4"),
            (json!({}), "new ready, new ready, new ready, new unready, new unready", ""),
            (json!({"replicas": 0}), "new ready, new ready", "-1"),
            (json!({"ordinals": {"start": 1}}), "", "+1 new"),
            (json!({"ordinals": {"start": 2}, "replicas": 1}), "", "+2 new"),
        ] {
            assert_eq!(steps(&set(spec.clone()), &pods(states), &none), want, "{spec} {states}");
        }
    }

    #[test]
    fn a_parallel_set_does_all_at_once() {
        let none = |_: &str| None;
        for (replicas, states, want) in [
            (3, "", "+0 new, +1 new, +2 new"),
            (3, "new unready, new Failed", "-1, +2 new"),
            (1, "new ready, new unready, new ready", "-2, -1"),
        ] {
            let spec = json!({"podManagementPolicy": "Parallel", "replicas": replicas});
            assert_eq!(steps(&set(spec), &pods(states), &none), want, "{states}");
        }
    }

    #[test]
    fn an_update_goes_downwards_to_the_partition() {
        let none = |_: &str| None;
        let rolling = |r: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": r}});
        let parallel = |r: Value| json!({"podManagementPolicy": "Parallel", "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": r}});
        for (spec, states, want) in [
            (json!({}), "old ready, old ready, old ready", "-2"),
            (json!({}), "old ready, old ready, new unready", ""),
            (json!({}), "old ready, old ready, new ready", "-1"),
            (rolling(json!({"partition": 2})), "old ready, old ready, old ready", "-2"),
            (rolling(json!({"partition": 2})), "old ready, old ready, new ready", ""),
            (rolling(json!({"partition": 2})), "", "+0 old"),
            (rolling(json!({"partition": 5})), "old ready, old ready, old ready", ""),
            (rolling(json!({"maxUnavailable": 2})), "old ready, old ready, old ready", "-2, -1"),
            (rolling(json!({"maxUnavailable": "70%"})), "old ready, old ready, old ready", "-2, -1"),
            (
                json!({"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}),
                "old ready, old ready, old ready",
                "",
            ),
            (parallel(json!({})), "old unready, old ready, old ready", "-0"),
            (parallel(json!({"maxUnavailable": 2})), "old unready, old ready, old ready", "-0, -2"),
        ] {
            assert_eq!(steps(&set(spec.clone()), &pods(states), &none), want, "{spec} {states}");
        }
    }

    #[test]
    fn claims_come_before_their_pod() {
        let spec = json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}}],
            "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete", "whenDeleted": "Retain"}});
        let claim = |uid: &str| {
            let refs = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": uid, "controller": true}]);
            let v = json!({"metadata": {"name": "data-web-0", "ownerReferences": refs}});
            Some(Arc::new(serde_json::from_value::<PersistentVolumeClaim>(v).unwrap()))
        };
        let set = set(spec);
        assert_eq!(steps(&set, &[], &|_| None), "claim data-web-0, +0 new");
        assert_eq!(steps(&set, &[], &|_| claim("gone")), "", "the claim of a pod that was scaled away");
        assert_eq!(
            steps(&set, &pods("new ready"), &|n| if n == "data-web-0" { claim("web-0") } else { None }),
            "own data-web-0 0, claim data-web-1, +1 new"
        );
        assert_eq!(steps(&set, &pods("new Pending"), &|_| None), "claim data-web-0");
    }
}
