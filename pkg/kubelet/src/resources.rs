//! Quality of service, cgroup parents and the numbers that requests and limits become.

use crate::pod::{PodExt, init_containers, is_sidecar};
use isopod_api::quantity::Quantity;
use isopod_runtime::Resources;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use std::collections::BTreeMap;

/// The smallest share that the kernel takes.
const MIN_SHARES: u64 = 2;
/// cgroup v1's largest (cgroup v2's weights map to the same range).
const MAX_SHARES: u64 = 262_144;
/// Microseconds.
const QUOTA_PERIOD: u64 = 100_000;
const MIN_QUOTA: i64 = 1000;

pub type List = BTreeMap<String, ApiQuantity>;

pub fn parse(q: &ApiQuantity) -> Option<Quantity> {
    Quantity::parse(&q.0).ok()
}

fn amount<'a>(list: Option<&'a List>, name: &str) -> Option<&'a ApiQuantity> {
    list?.get(name)
}

fn requirement<'a>(
    r: Option<&'a ResourceRequirements>,
    name: &str,
) -> (Option<&'a ApiQuantity>, Option<&'a ApiQuantity>) {
    let request = r.and_then(|r| amount(r.requests.as_ref(), name));
    let limit = r.and_then(|r| amount(r.limits.as_ref(), name));
    (request, limit)
}

/// (request, limit) of one resource in its unit: millicores for `cpu`, else whole units.
pub fn of(c: &Container, name: &str) -> (Option<i64>, Option<i64>) {
    let value = |q: Option<&ApiQuantity>| {
        let q = parse(q?)?;
        Some(if name == "cpu" { q.milli_value() } else { q.value() })
    };
    let (request, limit) = requirement(c.resources.as_ref(), name);
    (value(request), value(limit))
}

/// `Guaranteed`, `Burstable` or `BestEffort` (upstream's `ComputePodQOS`).
pub fn qos_class(pod: &Pod) -> &'static str {
    let spec = pod.spec();
    if let Some(r) = &spec.resources {
        let has = |l: &Option<List>| l.as_ref().is_some_and(|l| !l.is_empty());
        if has(&r.requests) || has(&r.limits) {
            return class_of([Some(r)].into_iter());
        }
    }
    class_of(init_containers(spec).iter().chain(&spec.containers).map(|c| c.resources.as_ref()))
}

fn class_of<'a>(all: impl Iterator<Item = Option<&'a ResourceRequirements>>) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for r in all {
        for name in ["cpu", "memory"] {
            let (request, limit) = requirement(r, name);
            let set = |q: Option<&ApiQuantity>| q.and_then(parse).filter(|q| !q.is_zero());
            let (request, limit) = (set(request), set(limit));
            any |= request.is_some() || limit.is_some();
            // The API server defaults requests to limits, so a missing request beside a limit is equal to it.
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// `/isopod/kubepods/burstable/pod<uid>`; guaranteed pods stand directly below `kubepods`.
pub fn cgroup_parent(root: &str, pod: &Pod) -> String {
    let class = match qos_class(pod) {
        "Burstable" => "/burstable",
        "BestEffort" => "/besteffort",
        _ => "",
    };
    format!("{}/kubepods{class}/pod{}", root.trim_end_matches('/'), pod.uid())
}

/// The OOM score that makes the kernel choose victims by class and by use relative to the request (`qos.GetContainerOOMScoreAdjust`).
pub fn oom_score_adj(pod: &Pod, c: &Container, node_memory: u64) -> i32 {
    if pod.spec().priority_class_name.as_deref() == Some("system-node-critical") {
        return -997;
    }
    match qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = of(c, "memory").0.unwrap_or(0);
            let capacity = i64::try_from(node_memory.max(1)).unwrap_or(i64::MAX);
            let score = 1000 - (1000 * i128::from(request) / i128::from(capacity)) as i64;
            if is_sidecar(c) {
                // A sidecar is never chosen before the containers that it serves.
                let others = pod.spec().containers.iter().filter_map(|m| of(m, "memory").0);
                let least = others.map(|r| 1000 - 1000 * r / capacity).min().unwrap_or(score);
                return score.min(least).clamp(3, 999) as i32;
            }
            score.clamp(3, 999) as i32
        }
    }
}

pub fn cpu_shares(milli: i64) -> u64 {
    if milli <= 0 {
        return MIN_SHARES;
    }
    (milli as u64 * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

pub fn cpu_quota(milli: i64) -> Option<i64> {
    (milli > 0).then(|| (milli * QUOTA_PERIOD as i64 / 1000).max(MIN_QUOTA))
}

/// What one container's cgroup gets.
pub fn container(pod: &Pod, c: &Container, node_memory: u64, cfs_quota: bool) -> Resources {
    let (cpu_request, cpu_limit) = of(c, "cpu");
    let (memory_request, memory_limit) = of(c, "memory");
    let mut hugepages = BTreeMap::new();
    for (name, q) in c.resources.iter().flat_map(|r| r.limits.iter().flatten()) {
        if let (Some(size), Some(q)) = (name.strip_prefix("hugepages-"), parse(q)) {
            hugepages.insert(size.replace("Mi", "MB").replace("Gi", "GB").replace("Ki", "KB"), q.value().max(0) as u64);
        }
    }
    Resources {
        // A limit without a request stands for both.
        cpu_shares: Some(cpu_shares(cpu_request.or(cpu_limit).unwrap_or(0))),
        cpu_quota: cpu_limit.filter(|_| cfs_quota).and_then(cpu_quota),
        cpu_period: Some(QUOTA_PERIOD),
        memory_limit: memory_limit.filter(|m| *m > 0),
        memory_request: memory_request.filter(|m| *m > 0),
        oom_score_adj: Some(oom_score_adj(pod, c, node_memory)),
        hugepages,
        ..Default::default()
    }
}

/// The pod's requests or limits of one resource: the larger of all ordinary containers with sidecars together and the
/// hungriest moment of initialization, plus overhead (KEP-753).
pub fn pod_amount(pod: &Pod, name: &str, limits: bool) -> i64 {
    let spec = pod.spec();
    let pick = |c: &Container| {
        let (request, limit) = of(c, name);
        if limits { limit } else { request }.unwrap_or(0)
    };
    let sum: i64 = spec.containers.iter().map(pick).sum();
    let (mut sidecars, mut peak) = (0, 0);
    for c in init_containers(spec) {
        if is_sidecar(c) {
            sidecars += pick(c);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + pick(c));
        }
    }
    let overhead = spec.overhead.as_ref().and_then(|o| o.get(name)).and_then(parse);
    let overhead = overhead.map_or(0, |q| if name == "cpu" { q.milli_value() } else { q.value() });
    let own = spec
        .resources
        .as_ref()
        .and_then(|r| amount(if limits { r.limits.as_ref() } else { r.requests.as_ref() }, name));
    let own = own.and_then(parse).map(|q| if name == "cpu" { q.milli_value() } else { q.value() });
    own.unwrap_or((sum + sidecars).max(peak)) + overhead
}

/// What the pod's own cgroup gets: shares for all, and limits where every container has one.
pub fn pod_level(pod: &Pod, pids_limit: Option<i64>, cfs_quota: bool) -> Resources {
    let spec = pod.spec();
    let containers = || init_containers(spec).iter().chain(&spec.containers);
    let own = |name: &str| spec.resources.as_ref().and_then(|r| amount(r.limits.as_ref(), name)).is_some();
    let all_limited = |name: &str| own(name) || containers().all(|c| of(c, name).1.is_some_and(|l| l > 0));
    let shares = match qos_class(pod) {
        "BestEffort" => MIN_SHARES,
        _ => cpu_shares(pod_amount(pod, "cpu", false)),
    };
    Resources {
        cpu_shares: Some(shares),
        cpu_quota: (cfs_quota && all_limited("cpu")).then(|| cpu_quota(pod_amount(pod, "cpu", true))).flatten(),
        cpu_period: Some(QUOTA_PERIOD),
        memory_limit: all_limited("memory").then(|| pod_amount(pod, "memory", true)).filter(|m| *m > 0),
        pids_limit,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u1"}, "spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        let limited = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        let cases = [
            (json!([{"name": "a"}]), "BestEffort", "/isopod/kubepods/besteffort/podu1"),
            (json!([{"name": "a", "resources": limited}]), "Guaranteed", "/isopod/kubepods/podu1"),
            (
                json!([{"name": "a", "resources": limited}, {"name": "b"}]),
                "Burstable",
                "/isopod/kubepods/burstable/podu1",
            ),
            (
                json!([{"name": "a", "resources": {"requests": {"cpu": "0"}}}]),
                "BestEffort",
                "/isopod/kubepods/besteffort/podu1",
            ),
        ];
        for (containers, class, parent) in cases {
            let p = pod(containers);
            assert_eq!(qos_class(&p), class);
            assert_eq!(cgroup_parent("/isopod", &p), parent);
        }
    }

    #[test]
    fn numbers_match_upstreams() {
        assert_eq!([cpu_shares(0), cpu_shares(1), cpu_shares(500), cpu_shares(2000)], [2, 2, 512, 2048]);
        assert_eq!([cpu_quota(0), cpu_quota(1), cpu_quota(250)], [None, Some(1000), Some(25_000)]);
        let p = pod(
            json!([{"name": "a", "resources": {"requests": {"memory": "4Gi"}, "limits": {"memory": "6Gi", "cpu": "250m"}}}]),
        );
        let r = container(&p, &p.spec().containers[0], 8 << 30, true);
        assert_eq!(r.oom_score_adj, Some(500));
        assert_eq!((r.cpu_shares, r.cpu_quota, r.memory_limit), (Some(256), Some(25_000), Some(6 << 30)));
    }

    #[test]
    fn initialization_may_need_more_than_the_containers() {
        let p: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "big", "resources": {"requests": {"cpu": "2"}}},
            ],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "500m"}}}],
        }}))
        .unwrap();
        assert_eq!(pod_amount(&p, "cpu", false), 2100);
    }
}
