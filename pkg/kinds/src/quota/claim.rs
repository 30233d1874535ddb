//! Claims: of volumes, with their storage class and attributes classes, and of devices.

use super::amounts::{Amounts, number};
use super::usage::selects;
use crate::access::Access;
use isopod_api::quantity::Quantity;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// So many devices one claim can get (`AllocationResultsMaxSize`).
const MOST_DEVICES: usize = 32;

pub fn counts_volumes(name: &str) -> bool {
    let own = |n: &str| matches!(n, "persistentvolumeclaims" | "requests.storage");
    name == "count/persistentvolumeclaims" || own(name) || name.rsplit_once(STORAGE_CLASS).is_some_and(|(_, n)| own(n))
}

pub fn counts_devices(name: &str) -> bool {
    name == "count/resourceclaims.resource.k8s.io" || name.ends_with(DEVICE_CLASS)
}

/// The storage class that a claim names, by its field or by the older annotation.
pub fn storage_class(claim: &Value) -> &str {
    match claim.entry("metadata.annotations", BETA_CLASS).as_str() {
        Some(class) => class,
        None => claim.text("spec.storageClassName"),
    }
}

pub fn volume_usage(claim: &Value) -> Amounts {
    let mut out = Amounts::default();
    out.set("count/persistentvolumeclaims", number(1));
    out.set("persistentvolumeclaims", number(1));
    let class = storage_class(claim);
    if !class.is_empty() {
        out.set(format!("{class}{STORAGE_CLASS}persistentvolumeclaims"), number(1));
    }
    if let Some(storage) = storage(claim) {
        if !class.is_empty() {
            out.set(format!("{class}{STORAGE_CLASS}requests.storage"), storage.clone());
        }
        out.set("requests.storage", storage);
    }
    out
}

/// What is asked for, or what is allocated while an expansion is taken back; in whole bytes.
fn storage(claim: &Value) -> Option<Quantity> {
    let whole = |text: &str| {
        let parsed = Quantity::parse(text).ok()?;
        let mut rounded = parsed.clone();
        Some(if rounded.round_up(0) { parsed } else { rounded })
    };
    let asked = whole(claim.text("spec.resources.requests.storage"))?;
    let allocated = whole(claim.text("status.allocatedResources.storage"));
    Some(allocated.filter(|a| *a > asked).unwrap_or(asked))
}

/// Whether the claim is in the scope of its volume attributes classes: the one that it names, has, or is on its way to.
pub fn in_scope(claim: &Value, requirement: &Value) -> bool {
    if requirement.text("scopeName") != "VolumeAttributesClass" {
        return false;
    }
    let fields = [
        "spec.volumeAttributesClassName",
        "status.currentVolumeAttributesClassName",
        "status.modifyVolumeStatus.targetVolumeAttributesClassName",
    ];
    let classes: BTreeSet<&str> = fields.iter().map(|f| claim.text(f)).filter(|c| !c.is_empty()).collect();
    if classes.is_empty() { selects(requirement, None) } else { classes.iter().any(|c| selects(requirement, Some(c))) }
}

pub fn device_usage(claim: &Value) -> Amounts {
    let mut out = Amounts::default();
    out.set("count/resourceclaims.resource.k8s.io", number(1));
    let devices = |r: &Value| match r.text("allocationMode") {
        "ExactCount" => usize::try_from(r.int_or("count", 0)).unwrap_or(0),
        "All" => MOST_DEVICES,
        _ => 0,
    };
    for request in claim.list("spec.devices.requests") {
        // Of alternatives one is taken: for each class the largest counts.
        let alternatives = request.list("firstAvailable").iter().chain([request.at("exactly")]);
        let mut most: BTreeMap<String, usize> = BTreeMap::new();
        for r in alternatives.filter(|r| r.is_object()) {
            let own = most.entry(format!("{}{DEVICE_CLASS}", r.text("deviceClassName"))).or_default();
            *own = (*own).max(devices(r));
        }
        out.add(&Amounts(most.into_iter().map(|(class, n)| (class, number(n))).collect()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volumes() {
        let claim = |class: Value, asked: &str, allocated: Value| {
            json!({"metadata": {"annotations": {}}, "spec": {"storageClassName": class, "resources": {"requests": {"storage": asked}}},
                "status": {"allocatedResources": {"storage": allocated}}})
        };
        for (claim, want) in [
            (
                claim(Value::Null, "1Gi", Value::Null),
                "count/persistentvolumeclaims=1,persistentvolumeclaims=1,requests.storage=1Gi",
            ),
            (
                claim(json!("gold"), "1Gi", json!("2Gi")),
                "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/requests.storage=2Gi,persistentvolumeclaims=1,requests.storage=2Gi",
            ),
            (
                claim(Value::Null, "1500m", Value::Null),
                "count/persistentvolumeclaims=1,persistentvolumeclaims=1,requests.storage=2",
            ),
        ] {
            assert_eq!(volume_usage(&claim).to_string(), want);
        }
        assert!(counts_volumes("gold.storageclass.storage.k8s.io/requests.storage"));
        assert!(!counts_volumes("gold.storageclass.storage.k8s.io/pods"));
    }

    #[test]
    fn attributes_classes() {
        let claim = json!({"spec": {"volumeAttributesClassName": "new"}, "status": {"currentVolumeAttributesClassName": "old"}});
        let requirement =
            |op: &str, values: Value| json!({"scopeName": "VolumeAttributesClass", "operator": op, "values": values});
        for (requirement, of_claim, of_plain) in [
            (requirement("Exists", json!([])), true, false),
            (requirement("DoesNotExist", json!([])), false, true),
            (requirement("In", json!(["old"])), true, false),
            (requirement("NotIn", json!(["old"])), true, true),
            (requirement("In", json!(["other"])), false, false),
        ] {
            assert_eq!((in_scope(&claim, &requirement), in_scope(&json!({}), &requirement)), (of_claim, of_plain));
        }
    }

    #[test]
    fn devices() {
        let exactly =
            |class: &str, mode: &str, n: usize| json!({"deviceClassName": class, "allocationMode": mode, "count": n});
        let claim = json!({"spec": {"devices": {"requests": [
            {"name": "a", "exactly": exactly("gpu", "ExactCount", 2)},
            {"name": "b", "firstAvailable": [exactly("gpu", "ExactCount", 1), exactly("gpu", "ExactCount", 4), exactly("nic", "All", 0)]},
        ]}}});
        let want = "count/resourceclaims.resource.k8s.io=1,gpu.deviceclass.resource.k8s.io/devices=6,nic.deviceclass.resource.k8s.io/devices=32";
        assert_eq!(device_usage(&claim).to_string(), want);
    }
}
