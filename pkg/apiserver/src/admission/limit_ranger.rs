//! `LimitRanger`: the limit ranges of a namespace give its containers defaults, and bound what containers, pods and claims of
//! volumes ask for.

use super::{Operation, Plugin, Request};
use async_trait::async_trait;
use isopod_api::Status;
use isopod_api::quantity::Quantity;
use isopod_kinds::access::Access;
use isopod_kinds::quota::Amounts;
use isopod_kinds::quota::pod::{Side, Total, total};
use serde_json::{Value, json};
use std::sync::Arc;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";
/// Above this, thousandths do not fit an i64: whole units are compared.
const MAX_MILLI: i64 = i64::MAX / 1000;

pub struct LimitRanger;

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    async fn mutate(&self, request: &Request<'_>, new: &mut Value) -> Result<(), Status> {
        if is_pod(request) {
            for range in ranges(request).await? {
                set_defaults(new, &range);
            }
        }
        Ok(())
    }

    async fn validate(&self, request: &Request<'_>, new: Option<&Value>) -> Result<(), Status> {
        let Some(new) = new else { return Ok(()) };
        let check = if is_pod(request) {
            pod_faults
        } else if request.is("persistentvolumeclaims") {
            claim_faults
        } else {
            return Ok(());
        };
        for range in ranges(request).await? {
            let faults = check(new, &range);
            if !faults.is_empty() {
                return Err(request.forbidden(Some(new), aggregate(faults)));
            }
        }
        Ok(())
    }
}

/// Pods are looked at when they are created or resized.
fn is_pod(request: &Request<'_>) -> bool {
    let (operation, subresource) = (request.operation, request.intent.subresource.as_str());
    request.intent.kind.is("pods")
        && ((operation == Operation::Create && subresource.is_empty())
            || (operation == Operation::Update && subresource == "resize"))
}

/// The limit ranges that concern the request. What is being deleted is left alone.
async fn ranges(request: &Request<'_>) -> Result<Vec<Arc<Value>>, Status> {
    if request.old.is_some_and(|o| o.has("metadata.deletionTimestamp")) {
        return Ok(Vec::new());
    }
    request.read_all("", "limitranges", &request.intent.namespace).await
}

/// One message as it is, several as Go's aggregate shows them.
fn aggregate(faults: Vec<String>) -> String {
    let mut once: Vec<String> = Vec::new();
    for fault in faults {
        if !once.contains(&fault) {
            once.push(fault);
        }
    }
    if let [one] = once.as_slice() { one.clone() } else { format!("[{}]", once.join(", ")) }
}

fn items<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    range.list("spec.limits").iter().filter(move |l| l.text("type") == kind)
}

fn set_defaults(pod: &mut Value, range: &Value) {
    let mut defaults = json!({"requests": {}, "limits": {}});
    for item in items(range, "Container") {
        for (side, from) in [("requests", "defaultRequest"), ("limits", "default")] {
            for (name, amount) in item.entries(from) {
                defaults[side][name] = amount.clone();
            }
        }
    }
    let mut notes = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            for (side, word) in [("requests", "request"), ("limits", "limit")] {
                let set = merge(container, side, &defaults[side]);
                if !set.is_empty() {
                    notes.push(format!("{} {word} for {what} {}", set.join(", "), container.text("name")));
                }
            }
        }
    }
    if notes.is_empty() {
        return;
    }
    if !pod["metadata"]["annotations"].is_object() {
        pod["metadata"]["annotations"] = json!({});
    }
    pod["metadata"]["annotations"][ANNOTATION] = format!("LimitRanger plugin set: {}", notes.join("; ")).into();
}

/// Sets what the container does not say, and returns its names in order.
fn merge(container: &mut Value, side: &str, defaults: &Value) -> Vec<String> {
    let mut set = Vec::new();
    for (name, amount) in defaults.entries("") {
        if container["resources"][side].get(name).is_none() {
            if !container["resources"].is_object() {
                container["resources"] = json!({});
            }
            if !container["resources"][side].is_object() {
                container["resources"][side] = json!({});
            }
            container["resources"][side][name] = amount.clone();
            set.push(name.to_owned());
        }
    }
    set.sort_unstable();
    set
}

fn pod_faults(pod: &Value, range: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for item in items(range, "Container") {
        for container in pod.list("spec.containers").iter().chain(pod.list("spec.initContainers")) {
            let read = |side: &str| Amounts::read(container.at("resources").at(side));
            faults.extend(bounds(item, "Container", &read("requests"), &read("limits")));
        }
    }
    for item in items(range, "Pod") {
        let sum = |side| total(pod, side, Total::Declared);
        faults.extend(bounds(item, "Pod", &sum(Side::Requests), &sum(Side::Limits)));
    }
    faults
}

fn claim_faults(claim: &Value, range: &Value) -> Vec<String> {
    let requests = Amounts::read(claim.at("spec.resources.requests"));
    let mut faults = Vec::new();
    for item in items(range, "PersistentVolumeClaim") {
        let subject = Subject { kind: "PersistentVolumeClaim", requests: &requests, limits: &Amounts::default() };
        faults.extend(Amounts::read(item.at("min")).0.iter().filter_map(|(name, q)| subject.below(name, q)));
        faults.extend(Amounts::read(item.at("max")).0.iter().filter_map(|(name, q)| subject.request_above(name, q)));
    }
    faults
}

fn bounds(item: &Value, kind: &str, requests: &Amounts, limits: &Amounts) -> Vec<String> {
    let subject = Subject { kind, requests, limits };
    let mut faults = Vec::new();
    faults.extend(Amounts::read(item.at("min")).0.iter().filter_map(|(name, q)| subject.below(name, q)));
    faults.extend(Amounts::read(item.at("max")).0.iter().filter_map(|(name, q)| subject.above(name, q)));
    let ratios = Amounts::read(item.at("maxLimitRequestRatio"));
    faults.extend(ratios.0.iter().filter_map(|(name, q)| subject.ratio_above(name, q)));
    faults
}

/// What is bounded: a container, a pod, a claim.
struct Subject<'a> {
    kind: &'a str,
    requests: &'a Amounts,
    limits: &'a Amounts,
}

/// In thousandths where all of them fit, else in whole units.
fn comparable(amounts: [Option<&Quantity>; 3]) -> [i64; 3] {
    let of = |f: fn(&Quantity) -> i64| amounts.map(|q| q.map_or(0, f));
    let whole = of(Quantity::value);
    if whole.iter().all(|v| *v <= MAX_MILLI) { of(Quantity::milli_value) } else { whole }
}

impl Subject<'_> {
    fn below(&self, name: &str, min: &Quantity) -> Option<String> {
        let (request, limit) = (self.requests.get(name), self.limits.get(name));
        let [asked, limited, least] = comparable([request, limit, Some(min)]);
        let start = format!("minimum {name} usage per {} is {min}", self.kind);
        match (request, limit) {
            (None, _) => Some(format!("{start}.  No request is specified")),
            (Some(request), _) if asked < least => Some(format!("{start}, but request is {request}")),
            (_, Some(limit)) if limited < least => Some(format!("{start}, but limit is {limit}")),
            _ => None,
        }
    }

    fn above(&self, name: &str, max: &Quantity) -> Option<String> {
        let (request, limit) = (self.requests.get(name), self.limits.get(name));
        let [asked, limited, most] = comparable([request, limit, Some(max)]);
        let start = format!("maximum {name} usage per {} is {max}", self.kind);
        match (limit, request) {
            (None, _) => Some(format!("{start}.  No limit is specified")),
            (Some(limit), _) if limited > most => Some(format!("{start}, but limit is {limit}")),
            (_, Some(request)) if asked > most => Some(format!("{start}, but request is {request}")),
            _ => None,
        }
    }

    fn request_above(&self, name: &str, max: &Quantity) -> Option<String> {
        let request = self.requests.get(name);
        let [asked, _, most] = comparable([request, None, Some(max)]);
        let start = format!("maximum {name} usage per {} is {max}", self.kind);
        match request {
            None => Some(format!("{start}.  No request is specified")),
            Some(request) => (asked > most).then(|| format!("{start}, but request is {request}")),
        }
    }

    fn ratio_above(&self, name: &str, max: &Quantity) -> Option<String> {
        let (request, limit) = (self.requests.get(name), self.limits.get(name));
        let [asked, limited, _] = comparable([request, limit, Some(max)]);
        let start = format!("{name} max limit to request ratio per {} is {max}", self.kind);
        if asked == 0 {
            return Some(format!("{start}, but no request is specified or request is 0"));
        }
        if limited == 0 {
            return Some(format!("{start}, but no limit is specified or limit is 0"));
        }
        let ratio = limited as f64 / asked as f64;
        let over = if max.value() <= MAX_MILLI {
            ratio * 1000.0 > max.milli_value() as f64
        } else {
            ratio > max.value() as f64
        };
        over.then(|| format!("{start}, but provided ratio is {ratio:.6}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }

    #[test]
    fn defaults_are_set_and_noted() {
        let range = range(
            json!({"type": "Container", "default": {"cpu": "2", "memory": "1Gi"}, "defaultRequest": {"cpu": "1"}}),
        );
        let mut pod = json!({"metadata": {}, "spec": {
            "containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "3"}, "limits": {"cpu": "3", "memory": "1"}}}],
            "initContainers": [{"name": "i", "resources": {"limits": {"cpu": "5"}}}]}});
        set_defaults(&mut pod, &range);
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; cpu request for init container i; memory limit for init container i"
        );
        let a = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "1Gi"}});
        assert_eq!(pod["spec"]["containers"][0]["resources"], a);
        assert_eq!(pod["spec"]["containers"][1]["resources"]["limits"], json!({"cpu": "3", "memory": "1"}));
        let full = pod.clone();
        pod["metadata"] = json!({});
        set_defaults(&mut pod, &range);
        assert_eq!((&pod["spec"], &pod["metadata"]), (&full["spec"], &json!({})));
    }

    #[test]
    fn bounds_of_pods() {
        let check = |item: Value, resources: Value, want: &[&str]| {
            let pod = json!({"spec": {"containers": [{"name": "a", "resources": resources}, {"name": "b", "resources": resources}]}});
            assert_eq!(pod_faults(&pod, &range(item.clone())), want, "{item} {resources}");
        };
        let container = |bound: &str, amount: &str| json!({"type": "Container", bound: {"cpu": amount}});
        let whole = |bound: &str, amount: &str| json!({"type": "Pod", bound: {"cpu": amount}});
        let cpu = |request: &str, limit: &str| json!({"requests": {"cpu": request}, "limits": {"cpu": limit}});
        let none = json!({});
        check(container("min", "100m"), cpu("100m", "100m"), &[]);
        check(
            container("min", "100m"),
            cpu("50m", "100m"),
            &["minimum cpu usage per Container is 100m, but request is 50m"; 2],
        );
        check(
            container("min", "1"),
            none.clone(),
            &["minimum cpu usage per Container is 1.  No request is specified"; 2],
        );
        check(container("max", "1"), cpu("1", "2"), &["maximum cpu usage per Container is 1, but limit is 2"; 2]);
        check(container("max", "1"), none, &["maximum cpu usage per Container is 1.  No limit is specified"; 2]);
        check(whole("max", "3"), cpu("1", "2"), &["maximum cpu usage per Pod is 3, but limit is 4"]);
        check(whole("max", "4"), cpu("1", "2"), &[]);
        check(whole("min", "3"), cpu("1", "2"), &["minimum cpu usage per Pod is 3, but request is 2"]);
        check(container("maxLimitRequestRatio", "2"), cpu("1", "2"), &[]);
        check(
            container("maxLimitRequestRatio", "1500m"),
            cpu("1", "2"),
            &["cpu max limit to request ratio per Container is 1500m, but provided ratio is 2.000000"; 2],
        );
        check(
            container("maxLimitRequestRatio", "2"),
            cpu("0", "1"),
            &["cpu max limit to request ratio per Container is 2, but no request is specified or request is 0"; 2],
        );
    }

    #[test]
    fn bounds_of_claims() {
        let item = json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}});
        for (asked, want) in [
            ("1Gi", vec![]),
            ("3Gi", vec!["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]),
            ("1", vec!["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1"]),
        ] {
            let claim = json!({"spec": {"resources": {"requests": {"storage": asked}}}});
            assert_eq!(claim_faults(&claim, &range(item.clone())), want);
        }
        assert_eq!(aggregate(vec!["a".into(), "b".into(), "a".into()]), "[a, b]");
        assert_eq!(aggregate(vec!["a".into(), "a".into()]), "a");
    }
}
