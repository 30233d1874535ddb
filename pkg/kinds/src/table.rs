//! The table of built-in kinds: facts about their shape from `isopod_schema::facts`, and per kind a strategy, columns,
//! selectable fields and where it is stored.
//!
//! Invariant: nothing outside this table and `kinds/` knows a built-in kind by name.

use crate::columns;
use crate::kind::{Columns, Kind, Storage, Subresource};
use crate::kinds;
use crate::strategy::Strategy;
use isopod_api::Gvk;
use isopod_schema::facts::{self, KindFact};
use std::sync::Arc;

/// Seconds after which an Event is gone (`--event-ttl`).
pub const EVENT_TTL_SECONDS: i64 = 3600;
/// How the keys of those leases begin, below the kind's prefix, that are heartbeats: of nodes and of API servers.
pub const HEARTBEATS: [&str; 2] = ["kube-node-lease/", "kube-system/apiserver-"];

/// Every built-in kind, in the order of the facts.
pub fn builtin() -> Vec<Arc<Kind>> {
    facts::builtin().kinds().iter().map(|f| Arc::new(kind(f))).collect()
}

fn kind(fact: &KindFact) -> Kind {
    let strategy = kinds::strategy(&fact.gvk);
    let has_status = fact.subresources.iter().any(|(name, _, _)| name == "status");
    let subresources = fact.subresources.iter().map(|(name, gvk, verbs)| Subresource {
        name: name.clone(),
        gvk: gvk.clone(),
        verbs: verbs.clone(),
    });
    Kind {
        gvk: fact.gvk.clone(),
        list_kind: fact.list_kind.clone(),
        resource: fact.resource.clone(),
        singular: fact.singular.clone(),
        short_names: fact.short_names.clone(),
        categories: fact.categories.clone(),
        namespaced: fact.namespaced,
        served: true,
        verbs: fact.verbs.clone(),
        subresources: subresources.collect(),
        schema: fact.schema.clone(),
        storage: storage(&fact.gvk, &fact.resource),
        selectable: strategy.fields.iter().map(|f| (*f).to_owned()).collect(),
        hooks: Arc::new(Strategy {
            status_isolated: strategy.status_isolated && has_status,
            returns_deleted: returns_deleted(&fact.gvk.group, &fact.resource),
            deprecation: deprecation(&fact.gvk),
            ..strategy
        }),
        columns: Columns::BuiltIn(columns::of(&fact.gvk)),
        version_priority: version_priority(&fact.gvk.version),
    }
}

/// The resources whose stores upstream sets up to answer a delete with the object.
fn returns_deleted(group: &str, resource: &str) -> bool {
    match group {
        "" => matches!(
            resource,
            "pods"
                | "serviceaccounts"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "resourcequotas"
                | "podtemplates"
                | "services"
        ),
        "storage.k8s.io" => resource != "csistoragecapacities",
        "resource.k8s.io" => resource != "devicetaintrules",
        _ => false,
    }
}

/// What `APILifecycleDeprecated` and `APILifecycleReplacement` of the served types come to.
fn deprecation(gvk: &Gvk) -> &'static str {
    match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("", "Endpoints") => "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
        ("", "ComponentStatus") => "v1 ComponentStatus is deprecated in v1.19+",
        _ => "",
    }
}

/// Upstream's keys in etcd: the plural name, but for a few old ones.
fn storage(gvk: &Gvk, resource: &str) -> Storage {
    let prefix = match (gvk.group.as_str(), resource) {
        ("", "replicationcontrollers") => "controllers".to_owned(),
        ("", "endpoints") => "services/endpoints".to_owned(),
        ("", "nodes") => "minions".to_owned(),
        ("", "services") => "services/specs".to_owned(),
        ("networking.k8s.io", "ingresses") => "ingress".to_owned(),
        ("apiextensions.k8s.io" | "apiregistration.k8s.io", _) => format!("{}/{resource}", gvk.group),
        _ => resource.to_owned(),
    };
    let stored = match (gvk.group.as_str(), gvk.kind.as_str()) {
        ("events.k8s.io", "Event") => Gvk::new("", "v1", "Event"),
        ("autoscaling", "HorizontalPodAutoscaler") => Gvk::new("autoscaling", "v2", "HorizontalPodAutoscaler"),
        _ => gvk.clone(),
    };
    let event = gvk.kind == "Event" && matches!(gvk.group.as_str(), "" | "events.k8s.io");
    let lease = gvk.group == "coordination.k8s.io" && gvk.kind == "Lease";
    Storage {
        ephemeral: event,
        ephemeral_below: if lease { &HEARTBEATS } else { &[] },
        ttl_seconds: if event { EVENT_TTL_SECONDS } else { 0 },
        ..Storage::new(prefix, stored)
    }
}

/// The order of versions that Kubernetes uses: `v2` before `v1` before `v1beta2` before `v1alpha1`.
pub fn version_priority(version: &str) -> i32 {
    let Some(rest) = version.strip_prefix('v') else { return 0 };
    let digits = |s: &str| s.parse::<i32>().ok();
    let (major, minor, class) = if let Some((a, b)) = rest.split_once("beta") {
        (digits(a), digits(b), 1)
    } else if let Some((a, b)) = rest.split_once("alpha") {
        (digits(a), digits(b), 0)
    } else {
        (digits(rest), Some(0), 2)
    };
    match (major, minor) {
        // Numbers that are no smaller than these are equal: a definition's author may write any.
        (Some(a), Some(b)) => class * 700_000_000 + a.clamp(0, 69_999) * 10_000 + b.clamp(0, 9_998) + 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(all: &'a [Arc<Kind>], group: &str, kind: &str) -> &'a Kind {
        all.iter().find(|k| k.gvk.group == group && k.gvk.kind == kind).unwrap_or_else(|| panic!("{group} {kind}"))
    }

    #[test]
    fn versions_of_any_number_have_an_order() {
        let all = ["v2147483647", "v2", "v1", "v2147483647beta2147483647", "v1beta2", "v1beta1", "v9alpha1", "v1-x"];
        let priorities = all.map(version_priority);
        assert!(priorities.is_sorted_by(|a, b| a > b), "{priorities:?}");
    }

    #[test]
    fn the_kinds_of_v1_37() {
        let all = builtin();
        assert!(all.len() > 60, "{}", all.len());
        let pods = find(&all, "", "Pod");
        assert_eq!((pods.resource.as_str(), pods.storage.prefix.as_str(), pods.namespaced), ("pods", "pods", true));
        assert!(pods.selectable.iter().any(|f| f == "spec.nodeName"));
        assert!(pods.subresources.iter().any(|s| s.name == "binding"));
        let prefixes = [
            ("", "Service", "services/specs"),
            ("", "Endpoints", "services/endpoints"),
            ("", "Node", "minions"),
            ("", "ReplicationController", "controllers"),
            ("apps", "Deployment", "deployments"),
            ("networking.k8s.io", "Ingress", "ingress"),
            ("coordination.k8s.io", "Lease", "leases"),
            ("apiextensions.k8s.io", "CustomResourceDefinition", "apiextensions.k8s.io/customresourcedefinitions"),
        ];
        for (group, kind, prefix) in prefixes {
            assert_eq!(find(&all, group, kind).storage.prefix, prefix);
        }
        let events = find(&all, "events.k8s.io", "Event");
        assert_eq!((events.storage.gvk.to_string(), events.storage.ttl_seconds), ("v1, Kind=Event".into(), 3600));
        assert!(events.storage.ephemeral && !pods.storage.ephemeral);
        let leases = find(&all, "coordination.k8s.io", "Lease");
        assert_eq!(leases.storage.ephemeral_below, HEARTBEATS);
    }

    #[test]
    fn every_listable_kind_has_a_name_column_and_unique_storage() {
        let all = builtin();
        for k in all.iter().filter(|k| k.verbs.iter().any(|v| v == "list")) {
            assert!(k.columns.definitions().iter().any(|c| c["name"] == "Name"), "{}", k.gvk);
            let twins =
                all.iter().filter(|o| o.storage.prefix == k.storage.prefix && o.verbs.iter().any(|v| v == "list"));
            let stored: std::collections::BTreeSet<String> = twins.map(|o| o.storage.gvk.to_string()).collect();
            assert_eq!(stored.len(), 1, "{}: {stored:?}", k.storage.prefix);
        }
    }

    #[test]
    fn versions_in_order() {
        let order = ["v2", "v1", "v2beta1", "v1beta2", "v1beta1", "v1alpha1", "foo"];
        let mut sorted = order;
        sorted.sort_by_key(|v| -version_priority(v));
        assert_eq!(order, sorted);
    }
}
