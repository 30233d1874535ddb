//! Defaults of the other groups: networking, RBAC, storage, admission, discovery, scheduling, flow control, CRDs …

use super::{Overlay, set_nonzero, set_pointer, set_struct, set_text};
use crate::access::{Access, set};
use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn overlay(group: &str, def: &str, full: &str) -> Option<Overlay> {
    let kind = def.rsplit('.').next()?;
    if full.starts_with("io.k8s.apiextensions-apiserver.") || full.starts_with("io.k8s.kube-aggregator.") {
        return Some(match kind {
            "CustomResourceDefinition" => crd,
            "CustomResourceDefinitionSpec" => crd_spec,
            "ServiceReference" => |v| set_pointer(v, "port", 443),
            _ => return None,
        });
    }
    Some(match (group, kind) {
        ("networking", "NetworkPolicyPort") => |v| set_pointer(v, "protocol", "TCP"),
        ("networking", "NetworkPolicySpec") => network_policy,
        ("networking", "IngressClassParametersReference") => |v| set_pointer(v, "scope", "Cluster"),
        ("rbac", "RoleRef") => |v| set_text(v, "apiGroup", RBAC),
        ("rbac", "Subject") => subject,
        ("storage", "StorageClass") => storage_class,
        ("storage", "CSIDriverSpec") => csi_driver,
        ("admissionregistration", "ValidatingWebhook") => webhook,
        ("admissionregistration", "MutatingWebhook") => mutating_webhook,
        ("admissionregistration", "Rule" | "RuleWithOperations" | "NamedRuleWithOperations") => {
            |v| set_pointer(v, "scope", "*")
        }
        ("admissionregistration", "ServiceReference") => |v| set_pointer(v, "port", 443),
        ("admissionregistration", "ValidatingAdmissionPolicySpec" | "MutatingAdmissionPolicySpec") => {
            |v| set_pointer(v, "failurePolicy", "Fail")
        }
        ("admissionregistration", "MatchResources") => match_resources,
        ("discovery", "EndpointPort") => endpoint_port,
        ("scheduling", "PriorityClass") => |v| set_pointer(v, "preemptionPolicy", "PreemptLowerPriority"),
        ("flowcontrol", "FlowSchemaSpec") => |v| set_nonzero(v, "matchingPrecedence", 1000),
        ("flowcontrol", "ExemptPriorityLevelConfiguration") => exempt,
        ("flowcontrol", "LimitedPriorityLevelConfiguration") => limited,
        ("flowcontrol", "QueuingConfiguration") => queuing,
        ("authentication", "TokenRequestSpec") => |v| set_pointer(v, "expirationSeconds", 3600),
        ("certificates", "PodCertificateRequestSpec") => |v| set_pointer(v, "maxExpirationSeconds", 86400),
        ("resource", "ExactDeviceRequest" | "DeviceSubRequest") => device_request,
        ("resource", "DeviceToleration") => |v| set_text(v, "operator", "Equal"),
        ("resource", "DeviceTaint") => device_taint,
        _ => return None,
    })
}

fn network_policy(v: &mut Value) {
    if v.list("policyTypes").is_empty() {
        let egress = !v.list("egress").is_empty();
        set(v, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
    }
}

fn subject(v: &mut Value) {
    if matches!(v.text("kind"), "User" | "Group") {
        set_text(v, "apiGroup", RBAC);
    }
}

fn storage_class(v: &mut Value) {
    set_pointer(v, "reclaimPolicy", "Delete");
    set_pointer(v, "volumeBindingMode", "Immediate");
}

fn csi_driver(v: &mut Value) {
    set_pointer(v, "attachRequired", true);
    set_pointer(v, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    for f in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount", "preventPodSchedulingIfMissing"]
    {
        set_pointer(v, f, false);
    }
    if v.list("volumeLifecycleModes").is_empty() {
        set(v, "volumeLifecycleModes", json!(["Persistent"]));
    }
}

fn match_resources(v: &mut Value) {
    set_pointer(v, "matchPolicy", "Equivalent");
    set_struct(v, "namespaceSelector");
    set_struct(v, "objectSelector");
}

fn webhook(v: &mut Value) {
    set_pointer(v, "failurePolicy", "Fail");
    match_resources(v);
    set_pointer(v, "timeoutSeconds", 10);
}

fn mutating_webhook(v: &mut Value) {
    webhook(v);
    set_pointer(v, "reinvocationPolicy", "Never");
}

fn endpoint_port(v: &mut Value) {
    set_pointer(v, "name", "");
    set_pointer(v, "protocol", "TCP");
}

fn exempt(v: &mut Value) {
    set_pointer(v, "nominalConcurrencyShares", 0);
    set_pointer(v, "lendablePercent", 0);
}

fn limited(v: &mut Value) {
    set_pointer(v, "nominalConcurrencyShares", 30);
    set_pointer(v, "lendablePercent", 0);
}

fn queuing(v: &mut Value) {
    set_nonzero(v, "handSize", 8);
    set_nonzero(v, "queues", 64);
    set_nonzero(v, "queueLengthLimit", 50);
}

fn device_request(v: &mut Value) {
    set_text(v, "allocationMode", "ExactCount");
    if v.text("allocationMode") == "ExactCount" {
        set_nonzero(v, "count", 1);
    }
}

fn device_taint(v: &mut Value) {
    set_pointer(v, "timeAdded", isopod_api::time::now());
}

fn crd(v: &mut Value) {
    if v.list("status.storedVersions").is_empty() {
        let stored = v.list("spec.versions").iter().find(|x| x.flag("storage")).map(|x| x.text("name").to_owned());
        if let Some(name) = stored {
            set(v, "status.storedVersions", json!([name]));
        }
    }
}

fn crd_spec(v: &mut Value) {
    let kind = v.text("names.kind").to_owned();
    set_text(v, "names.singular", &kind.to_lowercase());
    if !kind.is_empty() {
        set_text(v, "names.listKind", &format!("{kind}List"));
    }
    if !v.has("conversion") {
        set(v, "conversion", json!({"strategy": "None"}));
    }
}
