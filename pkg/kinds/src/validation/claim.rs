//! Persistent volumes and claims.

use super::check::{all_required, child, dns_label, dns_subdomain, one_of_if_set, required, supported};
use super::plugins;
use super::resources::{amount, non_negative_quantity, resource_value};
use super::scheduling::node_selector;
use crate::access::{self, Access, same};
use crate::metadata::{immutable, label_selector};
use isopod_api::{Difference, FieldError, FieldErrors, Path};
use serde_json::{Value, json};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn access_modes(spec: &Value, why: &str, path: &Path) -> FieldErrors {
    let (modes, p) = (spec.texts("accessModes"), path.child("accessModes"));
    let mut errs = Vec::new();
    if modes.is_empty() {
        errs.push(FieldError::required(&p, why));
    }
    errs.extend(modes.iter().flat_map(|m| supported(m, &MODES, &p)));
    let pod = modes.contains(&"ReadWriteOncePod");
    if pod && modes.iter().any(|m| *m != "ReadWriteOncePod" && MODES.contains(m)) {
        errs.push(FieldError::forbidden(&p, "may not use ReadWriteOncePod with other access modes"));
    }
    errs
}

fn positive_quantity(v: &Value, path: &Path) -> FieldErrors {
    let q = amount(v);
    if q.sign() <= 0 {
        return vec![FieldError::invalid(path, q.to_string(), super::check::NOT_POSITIVE)];
    }
    Vec::new()
}

/// The spec of a claim, also of a template.
pub fn claim_spec(spec: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if spec.list("accessModes").is_empty() {
        errs.push(FieldError::required(&path.child("accessModes"), "at least 1 access mode is required"));
    }
    errs.extend(label_selector(spec.at("selector"), &path.child("selector")));
    if !spec.list("accessModes").is_empty() {
        errs.extend(access_modes(spec, "", path));
    }
    let p = path.child("resources").key("storage");
    match spec.at("resources.requests.storage") {
        Value::Null => errs.push(FieldError::required(&p, "")),
        v => {
            let e = positive_quantity(v, &p);
            errs.extend(if e.is_empty() { resource_value("storage", v, &p) } else { e });
        }
    }
    for f in ["storageClassName", "volumeAttributesClassName"] {
        if !spec.text(f).is_empty() {
            errs.extend(dns_subdomain(spec.text(f), &path.child(f)));
        }
    }
    errs.extend(one_of_if_set(spec, "volumeMode", &["Block", "Filesystem"], path));
    for f in ["dataSource", "dataSourceRef"] {
        if spec.has(f) {
            errs.extend(data_source(spec.at(f), &path.child(f)));
        }
    }
    let (source, r) = (spec.at("dataSource"), spec.at("dataSourceRef"));
    if !source.is_null() && !r.is_null() {
        if !r.text("namespace").is_empty() {
            let m = "may not be specified when dataSourceRef.namespace is specified";
            errs.push(FieldError::invalid(path, json!({}), m));
        } else if ["apiGroup", "kind", "name"].iter().any(|f| source.text(f) != r.text(f)) {
            errs.push(FieldError::invalid(path, json!({}), "must match dataSourceRef"));
        }
    }
    errs
}

fn data_source(d: &Value, path: &Path) -> FieldErrors {
    let mut errs = all_required(d, &["name", "kind"], path);
    match d.text("apiGroup") {
        "" if d.text("kind") != "PersistentVolumeClaim" => {
            let m = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errs.push(FieldError::invalid(path, d.text("kind"), m));
        }
        "" => {}
        group => errs.extend(dns_subdomain(group, &path.child("apiGroup"))),
    }
    if !d.text("namespace").is_empty() {
        errs.extend(dns_label(d.text("namespace"), &path.child("namespace")));
    }
    errs
}

pub fn claim_create(new: &Value) -> FieldErrors {
    claim_spec(new.at("spec"), &Path::new("spec"))
}

pub fn claim_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = claim_create(new);
    let (mut n, mut o) = (new.at("spec").clone(), old.at("spec").clone());
    if o.text("volumeName").is_empty() {
        access::keep(&mut o, &n, "volumeName");
    }
    let annotation = |v: &Value| v.entry_text("metadata.annotations", BETA_CLASS).to_owned();
    let beta = annotation(old);
    if annotation(new) != beta && !(n.text("storageClassName") == beta && annotation(new).is_empty()) {
        let p = child(&Path::new("metadata"), "annotations").key(BETA_CLASS);
        errs.push(FieldError::invalid(&p, annotation(new), crate::metadata::IMMUTABLE));
    }
    // A class may be given once to a claim that has none.
    if !o.has("storageClassName")
        && n.has("storageClassName")
        && (beta.is_empty() || beta == n.text("storageClassName"))
    {
        access::unset(&mut n, "storageClassName");
    }
    if new.text("status.phase") == "Bound" {
        access::keep(&mut n, &o, "resources.requests.storage");
        access::keep(&mut n, &o, "volumeAttributesClassName");
    }
    if !same(&n, &o) {
        let m =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        let definition = "io.k8s.api.core.v1.PersistentVolumeClaimSpec";
        let change = Difference { old: o, new: n, definition, inlined: "" };
        errs.push(FieldError::forbidden(&Path::new("spec"), format!("{m}\n")).about(change));
    }
    let size = |v: &Value, path: &str| amount(v.at(path));
    let (asked, before) = (size(new, "spec.resources.requests.storage"), size(old, "spec.resources.requests.storage"));
    if asked < before && asked <= size(old, "status.capacity.storage") {
        let p = child(&Path::new("spec"), "resources.requests.storage");
        errs.push(FieldError::forbidden(&p, "field can not be less than status.capacity"));
    }
    errs.extend(immutable(new.at("spec"), old.at("spec"), "volumeMode", &Path::root()));
    if old.has("status.currentVolumeAttributesClassName") {
        let p = child(&Path::new("spec"), "volumeAttributesClassName");
        let why = "is forbidden when status.currentVolumeAttributesClassName is not nil";
        match new.at("spec.volumeAttributesClassName").as_str() {
            None => errs.push(FieldError::forbidden(&p, format!("update to nil {why}"))),
            Some("") => errs.push(FieldError::forbidden(&p, format!("update to empty string {why}"))),
            _ => {}
        }
    }
    errs
}

/// Sources of a persistent volume, in upstream's order, and how the path of a second one is spelt.
const SOURCES: [(&str, &str); 22] = [
    ("hostPath", "hostPath"),
    ("gcePersistentDisk", "gcePersistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore"),
    ("glusterfs", "glusterfs"),
    ("flocker", "flocker"),
    ("nfs", "nfs"),
    ("rbd", "rbd"),
    ("quobyte", "quobyte"),
    ("cephfs", "cephFS"),
    ("iscsi", "iscsi"),
    ("cinder", "cinder"),
    ("fc", "fc"),
    ("flexVolume", "flexVolume"),
    ("azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk"),
    ("scaleIO", "scaleIO"),
    ("local", "local"),
    ("storageos", "storageos"),
    ("csi", "csi"),
];

pub fn volume_create(new: &Value) -> FieldErrors {
    let (spec, path) = (new.at("spec"), Path::new("spec"));
    let mut errs = access_modes(spec, "", &path);
    let (capacity, p) = (spec.entries("capacity"), path.child("capacity"));
    if capacity.is_empty() {
        errs.push(FieldError::required(&p, ""));
    }
    if !spec.has("capacity.storage") || capacity.len() > 1 {
        errs.push(FieldError::not_supported(&p, spec.at("capacity").clone(), &["storage"]));
    }
    for (name, v) in capacity {
        errs.extend(non_negative_quantity(v, &p.key(name)));
        errs.extend(positive_quantity(v, &p.key(name)));
    }
    let policy = spec.text("persistentVolumeReclaimPolicy");
    if !policy.is_empty() {
        errs.extend(supported(policy, &["Delete", "Recycle", "Retain"], &path.child("persistentVolumeReclaimPolicy")));
    }
    if spec.has("nodeAffinity") {
        let p = child(&path, "nodeAffinity.required");
        match spec.at("nodeAffinity.required") {
            Value::Null => errs.push(FieldError::required(&p, "must specify required node constraints")),
            r => errs.extend(node_selector(r, &p)),
        }
    }
    errs.extend(volume_sources(spec, new.text("metadata.name"), &path));
    let root = spec.text("hostPath.path");
    if policy == "Recycle" && root.starts_with('/') && root.trim_matches(['/', '.']).is_empty() {
        let m = "may not be 'recycle' for a hostPath mount of '/'";
        errs.push(FieldError::forbidden(&path.child("persistentVolumeReclaimPolicy"), m));
    }
    if !spec.text("storageClassName").is_empty() {
        errs.extend(dns_subdomain(spec.text("storageClassName"), &path.child("storageClassName")));
    }
    errs.extend(one_of_if_set(spec, "volumeMode", &["Block", "Filesystem"], &path));
    if let Some(class) = spec.at("volumeAttributesClassName").as_str() {
        let p = path.child("volumeAttributesClassName");
        match class {
            "" => errs.push(FieldError::required(&p, "an empty string is disallowed")),
            class => errs.extend(dns_subdomain(class, &p)),
        }
        if !spec.has("csi") {
            let m = "has to be specified when using volumeAttributesClassName";
            errs.push(FieldError::required(&path.child("csi"), m));
        }
    }
    errs
}

/// The spec of a volume that an attachment brings with it.
pub fn inline_volume(spec: &Value, path: &Path) -> FieldErrors {
    const CONTEXT: &str = "in the context of inline volumes";
    let forbid = |f: &str| FieldError::forbidden(&path.child(f), format!("may not be specified {CONTEXT}"));
    let set = ["claimRef", "capacity"].into_iter().filter(|f| !spec.is_empty_at(f));
    let mut errs: FieldErrors = set.map(forbid).collect();
    if !spec.has("csi") {
        errs.push(FieldError::required(&path.child("csi"), format!("has to be specified {CONTEXT}")));
    }
    errs.extend(access_modes(spec, "", path));
    if !matches!(spec.text("persistentVolumeReclaimPolicy"), "" | "Retain") {
        let p = path.child("persistentVolumeReclaimPolicy");
        errs.push(FieldError::forbidden(&p, format!("may only be Retain {CONTEXT}")));
    }
    if spec.has("nodeAffinity") {
        errs.push(forbid("nodeAffinity"));
    }
    errs.extend(volume_sources(spec, "", path));
    if !spec.is_empty_at("storageClassName") {
        errs.push(forbid("storageClassName"));
    }
    if !matches!(spec.text("volumeMode"), "" | "Filesystem") {
        let m = format!("may not specify volumeMode other than Filesystem {CONTEXT}");
        errs.push(FieldError::forbidden(&path.child("volumeMode"), m));
    }
    errs
}

fn volume_sources(spec: &Value, name: &str, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = false;
    for (field, spelt) in SOURCES.iter().filter(|(f, _)| spec.has(f)) {
        if seen && *field != "flexVolume" {
            errs.push(FieldError::forbidden(&path.child(spelt), "may not specify more than 1 volume type"));
            continue;
        }
        seen = true;
        errs.extend(plugins::in_persistent_volume(field, spec.at(field), name, path));
        if *field == "local" && !spec.has("nodeAffinity") {
            errs.push(FieldError::required(&path.child("nodeAffinity"), "Local volume requires node affinity"));
        }
    }
    if !seen {
        errs.push(FieldError::required(path, "must specify a volume type"));
    }
    errs
}

pub fn volume_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = volume_create(new);
    let source = |v: &Value| {
        let mut s: serde_json::Map<String, Value> = v.at("spec").as_object().cloned().unwrap_or_default();
        s.retain(|k, _| SOURCES.iter().any(|(f, _)| f == k));
        Value::Object(s)
    };
    let (mut n, o) = (source(new), source(old));
    if o.has("csi") && !o.has("csi.controllerExpandSecretRef") && n.has("csi") {
        access::unset(&mut n, "csi.controllerExpandSecretRef");
    }
    if !same(&n, &o) {
        let p = child(&Path::new("spec"), "persistentvolumesource");
        let definition = "io.k8s.api.core.v1.PersistentVolumeSpec";
        let change = Difference { old: o, new: n, definition, inlined: "PersistentVolumeSource" };
        let m = "spec.persistentvolumesource is immutable after creation\n";
        errs.push(FieldError::forbidden(&p, m).about(change));
    }
    errs.extend(immutable(new.at("spec"), old.at("spec"), "volumeMode", &Path::root()));
    if old.has("spec.nodeAffinity") && !same(new.at("spec.nodeAffinity"), old.at("spec.nodeAffinity")) {
        let m = "field is immutable, except for updating from beta label to GA";
        // Upstream's path begins at the spec.
        errs.push(FieldError::invalid(&Path::new("nodeAffinity"), new.at("spec.nodeAffinity").clone(), m));
    }
    if old.has("spec.volumeAttributesClassName") && !new.has("spec.volumeAttributesClassName") {
        let p = child(&Path::new("spec"), "volumeAttributesClassName");
        errs.push(FieldError::forbidden(&p, "update from non-nil value to nil is forbidden"));
    }
    errs
}

pub fn claim_status(new: &Value, _: &Value) -> FieldErrors {
    let mut errs = required(new.at("spec"), "accessModes", &Path::new("Spec"));
    let p = child(&Path::new("status"), "capacity");
    for (k, v) in new.entries("status.capacity") {
        let q = amount(v);
        if q.sign() < 0 {
            errs.push(FieldError::invalid(&p.key(k), q.value(), "must be a valid resource quantity"));
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(errs: FieldErrors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn claims() {
        let ok = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}});
        assert_eq!(say(claim_create(&ok)), [""; 0]);
        assert_eq!(
            say(claim_create(&json!({"spec": {"accessModes": ["Odd"]}}))),
            [
                "spec.accessModes: Unsupported value: \"Odd\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec.resources[storage]: Required value"
            ]
        );
        let mut bigger = ok.clone();
        bigger["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
        assert_eq!(say(claim_update(&bigger, &ok)), [""; 0]);
        assert_eq!(
            say(claim_update(
                &json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}, "status": {"phase": "Bound"}}),
                &ok
            )),
            ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
        );
        let mut other = ok.clone();
        other["spec"]["accessModes"] = json!(["ReadWriteMany"]);
        assert_eq!(claim_update(&other, &ok).len(), 1);
    }

    #[test]
    fn persistent_volumes() {
        let ok = json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/data"}}});
        assert_eq!(say(volume_create(&ok)), [""; 0]);
        let none = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}});
        assert_eq!(say(volume_create(&none)), ["spec: Required value: must specify a volume type"]);
        let mut moved = ok.clone();
        moved["spec"]["hostPath"]["path"] = "/other".into();
        assert_eq!(volume_update(&moved, &ok).len(), 1);
    }
}
