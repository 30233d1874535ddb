//! Columns of volumes, claims, storage classes and CSI, and of dynamic resource allocation.

use super::{AGE, NAME, boolean, column, field, integer, or, since, text, wide};
use crate::access::Access;
use crate::kind::Column;
use jiff::Timestamp;
use serde_json::Value;

pub(super) fn columns(group: &str, kind: &str) -> Option<Vec<Column>> {
    Some(match (group, kind) {
        ("", "PersistentVolume") => persistent_volume(),
        ("", "PersistentVolumeClaim") => claim(),
        ("storage.k8s.io", "StorageClass") => vec![
            Column { cell: class_name, ..NAME },
            text("Provisioner", field!(text "provisioner")),
            text("ReclaimPolicy", field!(text "reclaimPolicy" or "Delete")),
            text("VolumeBindingMode", field!(text "volumeBindingMode" or "Immediate")),
            text("AllowVolumeExpansion", field!(flag "allowVolumeExpansion")),
            AGE,
        ],
        ("storage.k8s.io", "VolumeAttributesClass") => {
            vec![NAME, text("DriverName", field!(text "driverName")), AGE]
        }
        ("storage.k8s.io", "VolumeAttachment") => vec![
            NAME,
            Column { format: "name", ..text("Attacher", field!(text "spec.attacher")) },
            text("PV", field!(text "spec.source.persistentVolumeName")),
            text("Node", field!(text "spec.nodeName")),
            boolean("Attached", field!(flag "status.attached")),
            AGE,
        ],
        ("storage.k8s.io", "CSINode") => vec![NAME, super::cluster::DRIVERS, AGE],
        ("storage.k8s.io", "CSIDriver") => csi_driver(),
        ("resource.k8s.io", "DeviceClass" | "ResourceClaimTemplate") => vec![NAME, AGE],
        ("resource.k8s.io", "ResourceClaim") => vec![NAME, text("State", claim_state), AGE],
        ("resource.k8s.io", "ResourceSlice") => vec![
            NAME,
            text("Node", field!(text "spec.nodeName")),
            text("Driver", field!(text "spec.driver")),
            text("Pool", field!(text "spec.pool.name")),
            AGE,
        ],
        ("resource.k8s.io", "DeviceTaintRule") => vec![
            NAME,
            text("Key", field!(text "spec.taint.key")),
            text("Value", field!(text "spec.taint.value")),
            text("Effect", field!(text "spec.taint.effect")),
            text("TimeAdded", |o, now| match o.text("spec.taint.timeAdded") {
                "" => "".into(),
                t => since(t, now).into(),
            }),
            AGE,
        ],
        _ => return None,
    })
}

fn access_modes(list: &[&str]) -> String {
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    short.iter().filter(|(long, _)| list.contains(long)).map(|(_, s)| *s).collect::<Vec<_>>().join(",")
}

/// The annotation that came before the field.
fn storage_class(o: &Value) -> &str {
    or(o.entry_text("metadata.annotations", "volume.beta.kubernetes.io/storage-class"), o.text("spec.storageClassName"))
}

fn phase(o: &Value) -> &str {
    if o.has("metadata.deletionTimestamp") { "Terminating" } else { o.text("status.phase") }
}

const VOLUME_ATTRIBUTES_CLASS: Column =
    text("VolumeAttributesClass", field!(text "spec.volumeAttributesClassName" or "<unset>"));
const VOLUME_MODE: Column = wide("VolumeMode", field!(text "spec.volumeMode" or "<unset>"));

fn persistent_volume() -> Vec<Column> {
    vec![
        NAME,
        text("Capacity", |o, _| or(o.text("spec.capacity.storage"), "0").into()),
        text("Access Modes", |o, _| access_modes(&o.texts("spec.accessModes")).into()),
        text("Reclaim Policy", field!(text "spec.persistentVolumeReclaimPolicy")),
        text("Status", |o, _| phase(o).into()),
        text("Claim", |o, _| match o.at("spec.claimRef") {
            Value::Null => "".into(),
            c => format!("{}/{}", c.text("namespace"), c.text("name")).into(),
        }),
        text("StorageClass", |o, _| storage_class(o).into()),
        VOLUME_ATTRIBUTES_CLASS,
        text("Reason", field!(text "status.reason")),
        AGE,
        VOLUME_MODE,
    ]
}

fn claim() -> Vec<Column> {
    vec![
        NAME,
        text("Status", |o, _| phase(o).into()),
        text("Volume", field!(text "spec.volumeName")),
        text("Capacity", |o, _| match o.text("spec.volumeName") {
            "" => "".into(),
            _ => or(o.text("status.capacity.storage"), "0").into(),
        }),
        text("Access Modes", |o, _| match o.text("spec.volumeName") {
            "" => "".into(),
            _ => access_modes(&o.texts("status.accessModes")).into(),
        }),
        text("StorageClass", |o, _| storage_class(o).into()),
        VOLUME_ATTRIBUTES_CLASS,
        AGE,
        VOLUME_MODE,
    ]
}

fn class_name(o: &Value, _: Timestamp) -> Value {
    let name = o.text("metadata.name");
    let keys = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    if keys.iter().any(|k| o.entry_text("metadata.annotations", k) == "true") {
        return format!("{name} (default)").into();
    }
    name.into()
}

fn csi_driver() -> Vec<Column> {
    vec![
        NAME,
        boolean("AttachRequired", |o, _| o.at("spec.attachRequired").as_bool().unwrap_or(true).into()),
        boolean("PodInfoOnMount", field!(flag "spec.podInfoOnMount")),
        boolean("StorageCapacity", field!(flag "spec.storageCapacity")),
        text("TokenRequests", |o, _| match o.at("spec.tokenRequests") {
            Value::Null => "<unset>".into(),
            _ => {
                let all: Vec<&str> = o.list("spec.tokenRequests").iter().map(|t| t.text("audience")).collect();
                all.join(",").into()
            }
        }),
        boolean("RequiresRepublish", field!(flag "spec.requiresRepublish")),
        text("Modes", |o, _| or(&o.texts("spec.volumeLifecycleModes").join(","), "<none>").into()),
        AGE,
    ]
}

fn claim_state(o: &Value, _: Timestamp) -> Value {
    let deleted = o.has("metadata.deletionTimestamp");
    let mut states = Vec::new();
    if deleted {
        states.push("deleted");
    }
    if !o.has("status.allocation") {
        if !deleted {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        if !o.list("status.reservedFor").is_empty() {
            states.push("reserved");
        }
    }
    states.join(",").into()
}

/// A number or `<none>`.
pub(super) fn number_or_none(o: &Value, path: &str) -> Value {
    o.int(path).map_or_else(|| "<none>".into(), Value::from)
}

pub(super) const fn count_column(name: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Column {
    column(name, "string", cell)
}

/// Webhooks in a configuration.
pub(super) const WEBHOOKS: Column = integer("Webhooks", field!(count "webhooks"));
