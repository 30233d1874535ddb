//! Amounts of resources as plain integers: CPU in thousandths of a core, the rest in units (bytes, counts).

use isopod_api::quantity::Quantity;
use isopod_client::views;
use std::collections::BTreeMap;

/// What a pod asks for, or a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Extended resources and huge pages.
    pub others: BTreeMap<String, i64>,
}

/// What a container without requests counts as in scores, so that they spread (upstream's `schedutil`).
const DEFAULT_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

impl Amounts {
    /// Reads a `requests` or `allocatable` map; `pods` and what is not a quantity are left out.
    pub fn read(map: &BTreeMap<String, views::Quantity>) -> Self {
        let mut sum = Amounts::default();
        for (name, text) in map {
            let Ok(q) = Quantity::parse(&text.text()) else { continue };
            match name.as_str() {
                "cpu" => sum.cpu = q.milli_value(),
                "memory" => sum.memory = q.value(),
                "ephemeral-storage" => sum.ephemeral_storage = q.value(),
                "pods" => {}
                other => {
                    sum.others.insert(other.to_owned(), q.value());
                }
            }
        }
        sum
    }

    pub fn add(&mut self, other: &Amounts) {
        self.cpu += other.cpu;
        self.memory += other.memory;
        self.ephemeral_storage += other.ephemeral_storage;
        for (name, n) in &other.others {
            *self.others.entry(name.clone()).or_default() += n;
        }
    }

    pub fn sub(&mut self, other: &Amounts) {
        self.cpu -= other.cpu;
        self.memory -= other.memory;
        self.ephemeral_storage -= other.ephemeral_storage;
        for (name, n) in &other.others {
            if let Some(have) = self.others.get_mut(name) {
                *have -= n;
            }
        }
    }

    /// Each amount the larger of both.
    pub fn max(&mut self, other: &Amounts) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, n) in &other.others {
            let have = self.others.entry(name.clone()).or_default();
            *have = (*have).max(*n);
        }
    }

    pub fn is_zero(&self) -> bool {
        self.cpu == 0 && self.memory == 0 && self.ephemeral_storage == 0 && self.others.values().all(|n| *n == 0)
    }
}

/// What a pod needs of a node: its containers and restartable init containers together, or the largest init container with
/// those restartable ones that were started before it, whichever is more; pod-level requests replace the sum for what they
/// name; overhead comes on top (KEP-753, KEP-2837).
pub fn of_pod(spec: &views::PodSpec) -> Amounts {
    total(spec, |c| Amounts::read(&c.resources.requests))
}

/// As [`of_pod`], with defaults for containers that ask for no CPU or memory: for scores.
pub fn of_pod_nonzero(spec: &views::PodSpec) -> Amounts {
    total(spec, |c| {
        let mut a = Amounts::read(&c.resources.requests);
        if !c.resources.requests.contains_key("cpu") {
            a.cpu = DEFAULT_CPU;
        }
        if !c.resources.requests.contains_key("memory") {
            a.memory = DEFAULT_MEMORY;
        }
        a
    })
}

fn total(spec: &views::PodSpec, of: impl Fn(&views::Container) -> Amounts) -> Amounts {
    let mut sum = Amounts::default();
    spec.containers.iter().for_each(|c| sum.add(&of(c)));
    let (mut sidecars, mut init) = (Amounts::default(), Amounts::default());
    for c in &spec.init_containers {
        let mut needs = of(c);
        if c.restart_policy == "Always" {
            sum.add(&needs);
            sidecars.add(&needs);
            needs = sidecars.clone();
        } else {
            needs.add(&sidecars);
        }
        init.max(&needs);
    }
    sum.max(&init);
    if let Some(pod_level) = &spec.resources {
        let named = Amounts::read(&pod_level.requests);
        for name in pod_level.requests.keys() {
            match name.as_str() {
                "cpu" => sum.cpu = named.cpu,
                "memory" => sum.memory = named.memory,
                other => {
                    if let Some(n) = named.others.get(other) {
                        sum.others.insert(other.to_owned(), *n);
                    }
                }
            }
        }
    }
    sum.add(&Amounts::read(&spec.overhead));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(spec: &str) -> (i64, i64) {
        let spec: views::PodSpec = serde_json::from_str(spec).unwrap();
        let a = of_pod(&spec);
        (a.cpu, a.memory)
    }

    #[test]
    fn pods_need_the_most_that_runs_at_once() {
        for (spec, want) in [
            (
                r#"{"containers":[{"resources":{"requests":{"cpu":"100m"}}},{"resources":{"requests":{"cpu":1,"memory":"1Ki"}}}]}"#,
                (1100, 1024),
            ),
            (
                r#"{"containers":[{"resources":{"requests":{"cpu":"100m"}}}],"initContainers":[{"resources":{"requests":{"cpu":"2"}}}]}"#,
                (2000, 0),
            ),
            // A sidecar runs beside the containers and beside the init containers after it.
            (
                r#"{"containers":[{"resources":{"requests":{"cpu":"100m"}}}],"initContainers":[
                {"restartPolicy":"Always","resources":{"requests":{"cpu":"200m"}}},{"resources":{"requests":{"cpu":"500m"}}}]}"#,
                (700, 0),
            ),
            (r#"{"containers":[{"resources":{"requests":{"cpu":"1"}}}],"overhead":{"cpu":"5m"}}"#, (1005, 0)),
            (
                r#"{"containers":[{"resources":{"requests":{"cpu":"1"}}}],"resources":{"requests":{"cpu":"3"}}}"#,
                (3000, 0),
            ),
        ] {
            assert_eq!(needs(spec), want, "{spec}");
        }
    }

    #[test]
    fn pods_without_requests_count_in_scores() {
        let spec: views::PodSpec = serde_json::from_str(r#"{"containers":[{}]}"#).unwrap();
        assert_eq!(of_pod_nonzero(&spec).cpu, DEFAULT_CPU);
        assert!(of_pod(&spec).is_zero());
    }
}
