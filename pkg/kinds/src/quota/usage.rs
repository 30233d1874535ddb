//! One evaluator for every resource: what an object of it uses, which of a quota's names and scopes concern it, and which
//! writes can raise its usage.

use super::amounts::{Amounts, number};
use super::{claim, pod};
use crate::access::Access;
use isopod_api::quantity::{Format, Quantity};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Resources that are counted under a name of their own besides `count/…`.
const NAMED: [&str; 4] = ["configmaps", "resourcequotas", "replicationcontrollers", "secrets"];
const SERVICES: [&str; 4] = ["count/services", "services", "services.nodeports", "services.loadbalancers"];

/// What is never counted: what is not stored, and events, which come by themselves.
const IGNORED: [&str; 10] = [
    "bindings",
    "componentstatuses",
    "events",
    "events.events.k8s.io",
    "tokenreviews.authentication.k8s.io",
    "selfsubjectreviews.authentication.k8s.io",
    "subjectaccessreviews.authorization.k8s.io",
    "selfsubjectaccessreviews.authorization.k8s.io",
    "localsubjectaccessreviews.authorization.k8s.io",
    "selfsubjectrulesreviews.authorization.k8s.io",
];

/// Counts the objects of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evaluator {
    Pods,
    Services,
    VolumeClaims,
    DeviceClaims,
    /// Objects that are only counted, by resource: `configmaps`, `deployments.apps`.
    Objects(String),
}

/// Whether it is the name of a resource that Kubernetes itself defines.
pub(super) fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// `requests.` of a device or another extended resource.
pub(super) fn is_extended_request(name: &str) -> bool {
    let implicit = name.starts_with("requests.deviceclass.resource.kubernetes.io/");
    name.starts_with("requests.") && (implicit || !is_native(name))
}

/// Whether a requirement selects this value; `None`: the object has none.
pub(super) fn selects(requirement: &Value, value: Option<&str>) -> bool {
    let listed = |v: &str| requirement.texts("values").contains(&v);
    match requirement.text("operator") {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

/// The scopes of a quota, in one form.
fn scopes(quota: &Value) -> Vec<Value> {
    let plain = quota.texts("spec.scopes").into_iter().map(|s| json!({"scopeName": s, "operator": "Exists"}));
    plain.chain(quota.list("spec.scopeSelector.matchExpressions").iter().cloned()).collect()
}

impl Evaluator {
    /// The evaluator of a resource, named as `pods` or `deployments.apps`; `None`: it is never counted.
    pub fn of(resource: &str) -> Option<Self> {
        Some(match resource {
            "pods" => Evaluator::Pods,
            "services" => Evaluator::Services,
            "persistentvolumeclaims" => Evaluator::VolumeClaims,
            "resourceclaims.resource.k8s.io" => Evaluator::DeviceClaims,
            ignored if IGNORED.contains(&ignored) => return None,
            other => Evaluator::Objects(other.to_owned()),
        })
    }

    /// `pods`, `deployments.apps`.
    pub fn resource(&self) -> &str {
        match self {
            Evaluator::Pods => "pods",
            Evaluator::Services => "services",
            Evaluator::VolumeClaims => "persistentvolumeclaims",
            Evaluator::DeviceClaims => "resourceclaims.resource.k8s.io",
            Evaluator::Objects(resource) => resource,
        }
    }

    /// Whether usage follows from the number of objects alone.
    pub fn only_counts(&self) -> bool {
        matches!(self, Evaluator::Objects(_))
    }

    /// Whether a write through this subresource may raise usage. `old`: it is an update.
    pub fn handles(&self, subresource: &str, new: &Value, old: Option<&Value>) -> bool {
        match (self, subresource, old) {
            (_, "", None) => true,
            (Evaluator::Pods, "", Some(old)) => pod::is_terminating(new) != pod::is_terminating(old),
            (Evaluator::Pods, "resize", Some(_)) => true,
            (Evaluator::VolumeClaims, "status", Some(_)) => true,
            (Evaluator::Services | Evaluator::VolumeClaims | Evaluator::DeviceClaims, "", Some(_)) => true,
            _ => false,
        }
    }

    /// Whether objects of this resource count against a quota's name.
    pub fn counts(&self, name: &str) -> bool {
        match self {
            Evaluator::Pods => pod::counts(name),
            Evaluator::Services => SERVICES.contains(&name),
            Evaluator::VolumeClaims => claim::counts_volumes(name),
            Evaluator::DeviceClaims => claim::counts_devices(name),
            Evaluator::Objects(resource) => {
                name.strip_prefix("count/") == Some(resource) || (name == resource && NAMED.contains(&name))
            }
        }
    }

    fn in_scope(&self, object: &Value, requirement: &Value) -> bool {
        match self {
            Evaluator::Pods => pod::in_scope(object, requirement),
            Evaluator::VolumeClaims => claim::in_scope(object, requirement),
            _ => false,
        }
    }

    /// Whether the object is in all scopes of the quota.
    pub fn in_scopes(&self, quota: &Value, object: &Value) -> bool {
        scopes(quota).iter().all(|s| self.in_scope(object, s))
    }

    /// What the object must say for a quota of these names to be able to count it.
    pub fn must_specify(&self, required: &[&str], object: &Value) -> Result<(), String> {
        if *self == Evaluator::Pods { pod::must_specify(required, object) } else { Ok(()) }
    }

    /// What the object uses, by every name that it can count against.
    pub fn usage(&self, object: &Value, now: Timestamp) -> Amounts {
        match self {
            Evaluator::Pods => pod::usage(object, now),
            Evaluator::Services => service(object),
            Evaluator::VolumeClaims => claim::volume_usage(object),
            Evaluator::DeviceClaims => claim::device_usage(object),
            Evaluator::Objects(resource) => self.of_many(resource, 1),
        }
    }

    fn of_many(&self, resource: &str, n: usize) -> Amounts {
        let mut out = Amounts::default();
        out.set(format!("count/{resource}"), number(n));
        if NAMED.contains(&resource) {
            out.set(resource, number(n));
        }
        out
    }
}

/// Node ports are counted by intent: they are not allocated yet when a Service is admitted.
fn service(service: &Value) -> Amounts {
    let ports = service.list("spec.ports");
    let with_port = || ports.iter().filter(|p| p.int_or("nodePort", 0) != 0).count();
    let no_ports = service.at("spec.allocateLoadBalancerNodePorts") == &Value::Bool(false);
    let (node_ports, balancers) = match service.text("spec.type") {
        "NodePort" => (ports.len(), 0),
        "LoadBalancer" if no_ports => (with_port(), 1),
        "LoadBalancer" => (ports.len(), 1),
        _ => (0, 0),
    };
    let mut out = Amounts::default();
    out.set("count/services", number(1));
    out.set("services", number(1));
    out.set("services.nodeports", number(node_ports));
    out.set("services.loadbalancers", number(balancers));
    out
}

/// The resource whose objects count against a quota's name; `None`: nothing does.
pub fn counted_by(name: &str) -> Option<Evaluator> {
    let special = [Evaluator::Pods, Evaluator::Services, Evaluator::VolumeClaims, Evaluator::DeviceClaims];
    if let Some(found) = special.into_iter().find(|e| e.counts(name)) {
        return Some(found);
    }
    match name.strip_prefix("count/") {
        Some(resource) => Evaluator::of(resource),
        None => NAMED.contains(&name).then(|| Evaluator::Objects(name.to_owned())),
    }
}

/// The objects of one resource in the quota's namespace.
pub enum Counted<'a> {
    Objects(&'a [Value]),
    /// There are so many: enough where [`Evaluator::only_counts`].
    Number(usize),
}

/// The quota's status as it must be: what it allows, and what the objects use of it. `objects` gives those of one resource,
/// `None` where they cannot be counted: what the status says of them stays.
pub fn recount<'a>(quota: &Value, now: Timestamp, objects: impl Fn(&Evaluator) -> Option<Counted<'a>>) -> Value {
    let hard = Amounts::read(quota.at("spec.hard"));
    let names = hard.names();
    let mut used = Amounts::read(quota.at("status.used")).only(names.iter().copied());
    let evaluators: Vec<Evaluator> = names.iter().filter_map(|n| counted_by(n)).collect();
    let mut seen = BTreeSet::new();
    for evaluator in evaluators.iter().filter(|e| seen.insert(e.resource())) {
        let Some(counted) = objects(evaluator) else { continue };
        let own: Vec<&str> = names.iter().copied().filter(|n| evaluator.counts(n)).collect();
        let zero = || Quantity::new(0, Format::DecimalSi);
        let mut sum = Amounts(own.iter().map(|n| ((*n).to_owned(), zero())).collect());
        match counted {
            // A scope that does not know the resource holds none of its objects.
            Counted::Number(n) if scopes(quota).is_empty() => sum.add(&evaluator.of_many(evaluator.resource(), n)),
            Counted::Number(_) => {}
            Counted::Objects(list) => {
                list.iter().filter(|o| evaluator.in_scopes(quota, o)).for_each(|o| sum.add(&evaluator.usage(o, now)));
            }
        }
        for name in own {
            used.set(name, sum.0[name].clone());
        }
    }
    json!({"hard": hard.to_json(), "used": used.to_json()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_what_they_count() {
        for (name, want) in [
            ("pods", Some("pods")),
            ("requests.example.com/gpu", Some("pods")),
            ("hugepages-2Mi", Some("pods")),
            ("requests.storage", Some("persistentvolumeclaims")),
            ("gold.storageclass.storage.k8s.io/requests.storage", Some("persistentvolumeclaims")),
            ("services.nodeports", Some("services")),
            ("count/services", Some("services")),
            ("count/deployments.apps", Some("deployments.apps")),
            ("count/widgets.example.com", Some("widgets.example.com")),
            ("secrets", Some("secrets")),
            ("gpu.deviceclass.resource.k8s.io/devices", Some("resourceclaims.resource.k8s.io")),
            ("count/events", None),
            ("storage", None),
        ] {
            assert_eq!(counted_by(name).as_ref().map(Evaluator::resource), want, "{name}");
        }
    }

    #[test]
    fn services() {
        let of = |ty: &str, more: Value| {
            let mut s = json!({"spec": {"type": ty, "ports": [{"port": 1}, {"port": 2, "nodePort": 30000}]}});
            s["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let used = service(&s);
            (used.0["services.nodeports"].value(), used.0["services.loadbalancers"].value())
        };
        assert_eq!(of("ClusterIP", json!({})), (0, 0));
        assert_eq!(of("NodePort", json!({})), (2, 0));
        assert_eq!(of("LoadBalancer", json!({})), (2, 1));
        assert_eq!(of("LoadBalancer", json!({"allocateLoadBalancerNodePorts": false})), (1, 1));
    }

    #[test]
    fn writes_that_can_raise_usage() {
        let ends = json!({"spec": {"activeDeadlineSeconds": 1}});
        let none = json!({});
        for (resource, subresource, new, old, want) in [
            ("pods", "", &none, None, true),
            ("pods", "", &none, Some(&none), false),
            ("pods", "", &ends, Some(&none), true),
            ("pods", "resize", &none, Some(&none), true),
            ("pods", "status", &none, Some(&none), false),
            ("services", "", &none, Some(&none), true),
            ("services", "status", &none, Some(&none), false),
            ("persistentvolumeclaims", "status", &none, Some(&none), true),
            ("configmaps", "", &none, None, true),
            ("configmaps", "", &none, Some(&none), false),
        ] {
            let got = Evaluator::of(resource).unwrap().handles(subresource, new, old);
            assert_eq!(got, want, "{resource}/{subresource} {new} {old:?}");
        }
    }

    #[test]
    fn a_recount() {
        let now = Timestamp::UNIX_EPOCH;
        let pods = [
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}}}]}}),
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}, "status": {"phase": "Failed"}}),
        ];
        let count = |quota: &Value| {
            recount(quota, now, |e| match e.resource() {
                "pods" => Some(Counted::Objects(&pods)),
                "configmaps" => Some(Counted::Number(3)),
                _ => None,
            })
        };
        let hard =
            json!({"cpu": "1", "pods": "5", "count/pods": "5", "configmaps": "4", "secrets": "1", "count/x.y": "1"});
        let quota = json!({"spec": {"hard": hard}, "status": {"used": {"secrets": "1", "memory": "1"}}});
        let used = json!({"cpu": "500m", "pods": "1", "count/pods": "2", "configmaps": "3", "secrets": "1"});
        assert_eq!(count(&quota), json!({"hard": hard, "used": used}));
        let scoped = json!({"spec": {"hard": {"pods": "1", "configmaps": "1"}, "scopes": ["BestEffort"]}});
        assert_eq!(count(&scoped)["used"], json!({"pods": "0", "configmaps": "0"}));
    }
}
