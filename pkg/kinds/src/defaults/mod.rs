//! Defaults that upstream keeps in code (`pkg/apis/*/v1/defaults.go`), as overlays by schema definition: a pod template is
//! defaulted wherever it stands.
//!
//! Invariants: idempotent; a parent is defaulted before its children; a value that is there is never replaced, except where
//! upstream does (a ClusterIP service loses its session affinity settings).

mod apps;
mod core;
mod extensions;
mod pod;

use crate::access::{Access, set_default};
use isopod_schema::types::{Object, Overlay};
use isopod_schema::walk;
use serde_json::{Map, Value, json};

/// Fills in the defaults of every struct inside `value`.
pub fn apply(value: &mut Value, object: &Object) {
    walk::objects_mut(value, object, &mut |def, map| {
        if let Some(f) = def.overlay.get_or_init(|| overlay(&def.name)) {
            // The functions work on values; moving the map out and in costs nothing.
            let mut v = Value::Object(std::mem::take(map));
            f(&mut v);
            *map = match v {
                Value::Object(m) => m,
                _ => Map::new(),
            };
        }
    });
}

/// The overlay of a definition: `io.k8s.api.core.v1.Container`.
fn overlay(name: &str) -> Option<Overlay> {
    let short = name.strip_prefix("io.k8s.api.").unwrap_or(name);
    let (group, rest) = short.split_once('.')?;
    match group {
        "core" => pod::overlay(rest.strip_prefix("v1.")?).or_else(|| core::overlay(rest.strip_prefix("v1.")?)),
        "apps" | "batch" | "autoscaling" => apps::overlay(group, rest),
        _ => extensions::overlay(group, rest, name),
    }
}

/// Makes `field` an empty struct where it is absent.
fn set_struct(v: &mut Value, field: &str) {
    if !v.has(field) {
        crate::access::set(v, field, json!({}));
    }
}

/// Go's "empty": sets numbers that are zero too.
fn set_nonzero(v: &mut Value, field: &str, to: i64) {
    if v.int_or(field, 0) == 0 {
        crate::access::set(v, field, to);
    }
}

/// Sets a pointer field: only where it is absent or null (an empty string stays).
fn set_pointer(v: &mut Value, field: &str, to: impl Into<Value>) {
    if !v.has(field) {
        crate::access::set(v, field, to);
    }
}

/// Sets a text field that Go does not hold by pointer.
fn set_text(v: &mut Value, field: &str, to: &str) {
    set_default(v, field, to);
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_schema::facts;
    use std::sync::Arc;

    fn defaulted(def: &str, mut v: Value) -> Value {
        let object: Arc<Object> = facts::builtin().object(&format!("io.k8s.api.{def}")).expect(def);
        apply(&mut v, &object);
        let once = v.clone();
        apply(&mut v, &object);
        assert_eq!(once, v, "defaults are idempotent");
        v
    }

    #[test]
    fn a_pod_template_is_defaulted_in_a_deployment() {
        let v = defaulted(
            "apps.v1.Deployment",
            json!({"spec": {"selector": {}, "template": {"spec": {"containers": [
                {"name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
                 "livenessProbe": {"httpGet": {"port": 80}}},
                {"name": "b", "image": "nginx:1.27"}]}}}}),
        );
        assert_eq!(
            v,
            json!({"spec": {
                "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600, "selector": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
                "template": {"spec": {
                    "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                    "securityContext": {}, "terminationGracePeriodSeconds": 30,
                    "containers": [
                        {"name": "a", "image": "nginx", "imagePullPolicy": "Always",
                         "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                         "ports": [{"containerPort": 80, "protocol": "TCP"}],
                         "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                            "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}},
                        {"name": "b", "image": "nginx:1.27", "imagePullPolicy": "IfNotPresent",
                         "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                }},
            }})
        );
    }

    #[test]
    fn a_pod_gets_what_a_template_does_not() {
        let v = defaulted(
            "core.v1.Pod",
            json!({"spec": {"hostNetwork": true, "serviceAccount": "x", "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "q"}}],
                "containers": [{"name": "a", "image": "a@sha256:00", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1.5m"}, "requests": {"memory": "1Gi"}}}]}}),
        );
        assert!(v.flag("spec.enableServiceLinks"));
        assert_eq!(v.text("spec.serviceAccountName"), "x");
        let c = &v.list("spec.containers")[0];
        assert_eq!(c.list("ports")[0]["hostPort"], 80);
        assert_eq!(c.text("imagePullPolicy"), "IfNotPresent");
        assert_eq!(c["resources"], json!({"limits": {"cpu": "2m"}, "requests": {"cpu": "2m", "memory": "1Gi"}}));
        assert_eq!(v.list("spec.volumes")[0], json!({"name": "v", "emptyDir": {}}));
        assert_eq!(v.list("spec.volumes")[1]["secret"]["defaultMode"], 420);
    }

    #[test]
    fn services() {
        let v = defaulted("core.v1.Service", json!({"spec": {"ports": [{"port": 80}]}}));
        assert_eq!(
            v["spec"],
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
        );
        let v = defaulted("core.v1.Service", json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP"}}));
        assert_eq!(v.int("spec.sessionAffinityConfig.clientIP.timeoutSeconds"), Some(10800));
        assert!(v.flag("spec.allocateLoadBalancerNodePorts"));
        assert_eq!(v.text("spec.externalTrafficPolicy"), "Cluster");
    }

    #[test]
    fn small_kinds() {
        assert_eq!(defaulted("core.v1.Secret", json!({}))["type"], "Opaque");
        let v = defaulted("core.v1.Namespace", json!({"metadata": {"name": "a"}, "status": {}}));
        assert_eq!(
            (v["metadata"]["labels"]["kubernetes.io/metadata.name"].as_str(), v.text("status.phase")),
            (Some("a"), "Active")
        );
        let v = defaulted(
            "rbac.v1.RoleBinding",
            json!({"roleRef": {"kind": "Role"}, "subjects": [{"kind": "User"}, {"kind": "ServiceAccount"}]}),
        );
        assert_eq!(v["roleRef"]["apiGroup"], "rbac.authorization.k8s.io");
        assert_eq!(
            v["subjects"],
            json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io"}, {"kind": "ServiceAccount"}])
        );
        let v = defaulted("batch.v1.Job", json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}));
        assert_eq!(
            (v.int("spec.completions"), v.int("spec.backoffLimit"), v["metadata"]["labels"]["a"].as_str()),
            (Some(1), Some(6), Some("b"))
        );
        let v = defaulted("discovery.v1.EndpointSlice", json!({"ports": [{"port": 1}]}));
        assert_eq!(v["ports"], json!([{"port": 1, "name": "", "protocol": "TCP"}]));
    }
}
