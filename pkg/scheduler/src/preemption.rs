//! Preemption: which pods of lower priority would have to go, and from which node, so that a pod fits
//! (`pkg/scheduler/framework/preemption`, and `DefaultPreemption`).
//!
//! The picture of the cluster is changed to see what would be and put back; nothing else changes here.

use crate::algorithm::fits;
use crate::cluster::Cluster;
use crate::framework::Plugin;
use crate::pod::PodInfo;
use isopod_client::views::PodDisruptionBudget;
use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;

/// Who goes, and from where.
#[derive(Debug)]
pub struct Preemption {
    pub node: String,
    /// The most important first.
    pub victims: Vec<Arc<PodInfo>>,
}

/// Why nobody is preempted, as the end of the sentence about a pod that fits nowhere.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NoPreemption {
    nodes: usize,
    /// On so many nodes the pod would fit, but those in its way are not less important.
    without_victims: usize,
    /// On so many it would not fit even alone.
    not_helpful: usize,
    /// Nobody was looked for.
    ineligible: Option<&'static str>,
}

impl fmt::Display for NoPreemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = self.ineligible {
            return write!(f, "preemption: {why}");
        }
        write!(f, "preemption: 0/{} nodes are available:", self.nodes)?;
        let parts = [
            (self.without_victims, "No preemption victims found for incoming pod"),
            (self.not_helpful, "Preemption is not helpful for scheduling"),
        ];
        let texts: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, why)| format!("{n} {why}")).collect();
        write!(f, " {}.", texts.join(", "))
    }
}

/// A node and who would have to go from it.
struct Candidate {
    node: String,
    victims: Vec<Arc<PodInfo>>,
    violations: usize,
}

fn priority(pod: &PodInfo) -> i32 {
    pod.pod.spec.priority
}

/// Finds the node where the least harm is done. The pod fits nowhere as it is.
pub fn find(
    pod: &PodInfo,
    cluster: &mut Cluster,
    plugins: &[&dyn Plugin],
    budgets: &[Arc<PodDisruptionBudget>],
) -> Result<Preemption, NoPreemption> {
    if let Some(why) = ineligible(pod, cluster) {
        return Err(NoPreemption { ineligible: Some(why), ..Default::default() });
    }
    let names: Vec<String> = cluster.nodes().iter().map(|n| n.name().to_owned()).collect();
    let mut none = NoPreemption { nodes: names.len(), ..Default::default() };
    let mut candidates = Vec::new();
    for node in names {
        match victims(pod, cluster, &node, plugins, budgets) {
            Some(candidate) => candidates.push(candidate),
            None if fits_alone(pod, cluster, &node, plugins) => none.without_victims += 1,
            None => none.not_helpful += 1,
        }
    }
    let best = candidates.into_iter().min_by_key(harm);
    best.map(|c| Preemption { node: c.node, victims: c.victims }).ok_or(none)
}

/// The words of upstream's status, if this pod may preempt nobody now.
fn ineligible(pod: &PodInfo, cluster: &Cluster) -> Option<&'static str> {
    if pod.pod.spec.preemption_policy == "Never" {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = cluster.nominated(pod.uid())?;
    let node = cluster.nodes().iter().find(|n| n.name() == nominated)?;
    let leaving = |p: &&Arc<PodInfo>| priority(p) < priority(pod) && p.pod.metadata.is_being_deleted();
    let waits = node.pods.values().any(|p| leaving(&p));
    waits.then_some("not eligible due to a terminating pod on the nominated node.")
}

/// The fewest that must go from a node, the least important ones; `None`: even all of lower priority are not enough.
fn victims(
    pod: &PodInfo,
    cluster: &mut Cluster,
    node: &str,
    plugins: &[&dyn Plugin],
    budgets: &[Arc<PodDisruptionBudget>],
) -> Option<Candidate> {
    let mut lower = cluster.pods_on(node);
    lower.retain(|p| priority(p) < priority(pod));
    if lower.is_empty() {
        return None;
    }
    lower.sort_by(|a, b| importance(b).cmp(&importance(a)));
    for p in &lower {
        cluster.remove_pod(p.uid());
    }
    let enough = fits(pod, cluster, node, plugins);
    let (mut gone, mut violations) = (Vec::new(), 0);
    if enough {
        // Those whose budget would be broken are spared first, then the more important ones.
        let (breaking, others) = split_by_budget(&lower, budgets);
        for (group, breaks) in [(breaking, true), (others, false)] {
            for p in group {
                cluster.place(p.clone(), node);
                if !fits(pod, cluster, node, plugins) {
                    cluster.remove_pod(p.uid());
                    violations += usize::from(breaks);
                    gone.push(p);
                }
            }
        }
    }
    lower.iter().for_each(|p| cluster.place(p.clone(), node));
    gone.sort_by(|a, b| importance(b).cmp(&importance(a)));
    (!gone.is_empty()).then(|| Candidate { node: node.to_owned(), victims: gone, violations })
}

/// Whether the pod would fit with no other there: upstream calls other refusals unresolvable.
fn fits_alone(pod: &PodInfo, cluster: &mut Cluster, node: &str, plugins: &[&dyn Plugin]) -> bool {
    let all = cluster.pods_on(node);
    for p in &all {
        cluster.remove_pod(p.uid());
    }
    let fits = fits(pod, cluster, node, plugins);
    all.into_iter().for_each(|p| cluster.place(p, node));
    fits
}

/// Higher priority is more important; of equals, what has run longer.
fn importance(pod: &PodInfo) -> (i32, Reverse<&str>) {
    let started = pod.pod.status.start_time.as_deref();
    (priority(pod), Reverse(started.unwrap_or(pod.pod.metadata.creation_timestamp.as_str())))
}

/// Those whose budget does not allow one more disruption, and the others; both in the order that they came in.
fn split_by_budget(
    pods: &[Arc<PodInfo>],
    budgets: &[Arc<PodDisruptionBudget>],
) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left: Vec<i32> = budgets.iter().map(|b| b.status.disruptions_allowed).collect();
    pods.iter().cloned().partition(|p| {
        let mut breaks = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            if covers(budget, p) {
                *left -= 1;
                breaks |= *left < 0;
            }
        }
        breaks
    })
}

fn covers(budget: &PodDisruptionBudget, pod: &PodInfo) -> bool {
    let meta = &pod.pod.metadata;
    budget.metadata.namespace == meta.namespace
        && !meta.labels.is_empty()
        && budget.spec.selector.as_ref().is_some_and(|s| s.matches(&meta.labels))
        // Its disruption is counted already.
        && !budget.status.disrupted_pods.contains_key(&meta.name)
}

/// What is compared, the least first: broken budgets, the most important victim, all priorities, how many, and how long the
/// most important one has run. Priorities are moved up, so that many negative ones weigh more than few.
fn harm(c: &Candidate) -> (usize, i32, i64, usize, Reverse<String>) {
    let highest = c.victims.first().map_or(i32::MIN, |p| priority(p));
    let sum = c.victims.iter().map(|p| i64::from(priority(p)) + i64::from(i32::MAX) + 1).sum();
    let first = c.victims.first().map(|p| importance(p).1.0.to_owned()).unwrap_or_default();
    (c.violations, highest, sum, c.victims.len(), Reverse(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::*;
    use crate::plugins::ALL;
    use serde_json::{Value, json};

    fn bound(name: &str, node: &str, priority: i32, cpu: &str, started: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": name}},
            "spec": {"nodeName": node, "priority": priority, "containers": [{"resources": {"requests": {"cpu": cpu}}}]},
            "status": {"startTime": started}})
    }

    fn wants(cpu: &str, more: Value) -> PodInfo {
        let mut spec = json!({"priority": 100, "containers": [{"resources": {"requests": {"cpu": cpu}}}]});
        isopod_client::calls::merge(&mut spec, &more);
        pod(spec)
    }

    fn budget(app: &str, allowed: i32) -> Arc<PodDisruptionBudget> {
        let b = json!({"metadata": {"name": app, "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": app}}}, "status": {"disruptionsAllowed": allowed}});
        Arc::new(serde_json::from_value(b).unwrap())
    }

    fn go(
        nodes: &[Value],
        pods: &[Value],
        pod: &PodInfo,
        budgets: &[Arc<PodDisruptionBudget>],
    ) -> Result<String, String> {
        let mut c = cluster(nodes, pods);
        let before: Vec<usize> = c.nodes().iter().map(|n| n.pods.len()).collect();
        let found = find(pod, &mut c, ALL, budgets);
        assert_eq!(c.nodes().iter().map(|n| n.pods.len()).collect::<Vec<_>>(), before, "the picture is put back");
        let text = |p: Preemption| {
            let names: Vec<&str> = p.victims.iter().map(|v| v.pod.metadata.name.as_str()).collect();
            format!("{}: {}", p.node, names.join(" "))
        };
        found.map(text).map_err(|e| e.to_string())
    }

    #[test]
    fn the_least_important_that_suffice_go() {
        let (a, b) = (node("a", json!({})), node("b", json!({})));
        let early = "2026-01-01T00:00:00Z";
        let late = "2026-01-02T00:00:00Z";
        let pods = [bound("p1", "a", 1, "2", early), bound("p2", "a", 10, "2", early)];
        assert_eq!(go(std::slice::from_ref(&a), &pods, &wants("2", json!({})), &[]).unwrap(), "a: p1");
        assert_eq!(go(std::slice::from_ref(&a), &pods, &wants("4", json!({})), &[]).unwrap(), "a: p2 p1");
        // Of equals the younger one goes.
        let same = [bound("old", "a", 1, "2", early), bound("young", "a", 1, "2", late)];
        assert_eq!(go(std::slice::from_ref(&a), &same, &wants("2", json!({})), &[]).unwrap(), "a: young");
        // The node whose victim matters least.
        let two = [bound("p1", "a", 50, "4", early), bound("p2", "b", 5, "4", early)];
        assert_eq!(go(&[a.clone(), b.clone()], &two, &wants("1", json!({})), &[]).unwrap(), "b: p2");
        // A budget weighs more than priority.
        assert_eq!(go(&[a, b], &two, &wants("1", json!({})), &[budget("p2", 0)]).unwrap(), "a: p1");
    }

    #[test]
    fn why_nobody_goes() {
        let nodes = [node("a", json!({})), node("b", json!({"spec": {"unschedulable": true}}))];
        let equal = [bound("p", "a", 100, "4", "")];
        let text = "preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.";
        assert_eq!(go(&nodes, &equal, &wants("1", json!({})), &[]).unwrap_err(), text);
        let never = wants("1", json!({"preemptionPolicy": "Never"}));
        let text = "preemption: not eligible due to preemptionPolicy=Never.";
        assert_eq!(go(&nodes, &[bound("p", "a", 1, "4", "")], &never, &[]).unwrap_err(), text);
    }
}
