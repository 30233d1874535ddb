//! The objects that a new cluster starts with: system namespaces, priority classes, the service address range.

pub mod fairness;

use serde_json::{Value, json};

/// The namespaces that always exist and cannot be deleted.
pub const SYSTEM_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// The ServiceCIDR that comes from the server's configuration.
pub const SERVICE_CIDR: &str = "kubernetes";

/// Objects to create where they do not exist. `service_cidrs`: one or two ranges (`--service-cidr`).
pub fn objects(service_cidrs: &[String]) -> Vec<Value> {
    let namespace = |name: &&str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let class = |name: &str, value: i64, what: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": what, "preemptionPolicy": "PreemptLowerPriority",
        })
    };
    let mut all: Vec<Value> = SYSTEM_NAMESPACES.iter().map(namespace).collect();
    let critical = "Used for system critical pods that must not be moved from their current node.";
    all.push(class("system-node-critical", 2_000_001_000, critical));
    let critical =
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.";
    all.push(class("system-cluster-critical", 2_000_000_000, critical));
    if !service_cidrs.is_empty() {
        all.push(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": SERVICE_CIDR},
            "spec": {"cidrs": service_cidrs},
        }));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_cluster() {
        let names = |all: Vec<Value>| {
            all.iter().map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(objects(&[])).len(), 6);
        assert_eq!(names(objects(&["10.43.0.0/16".into()])).last().map(String::as_str), Some("kubernetes"));
    }

    #[test]
    fn they_pass_their_own_validation() {
        let kinds = crate::table::builtin();
        let user = isopod_api::UserInfo::default();
        let ctx = crate::Ctx { now: jiff::Timestamp::UNIX_EPOCH, user: &user, subresource: "", dry_run: false };
        for mut obj in objects(&["10.43.0.0/16".into()]) {
            let (version, name) = (obj["apiVersion"].as_str().unwrap(), obj["kind"].as_str().unwrap());
            let same = |k: &&std::sync::Arc<crate::Kind>| k.gvk.api_version() == version && k.gvk.kind == name;
            let kind = kinds.iter().find(same).unwrap().clone();
            crate::defaults::apply(&mut obj, &kind.schema);
            kind.hooks.default(&mut obj);
            kind.hooks.prepare_create(&ctx, &mut obj);
            assert_eq!(crate::metadata::validate_create(&kind, &obj), Vec::new(), "{obj}");
            assert_eq!(kind.hooks.validate_create(&ctx, &obj), Vec::new(), "{obj}");
        }
    }
}
