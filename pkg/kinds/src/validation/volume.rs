//! The volumes of a pod: names, exactly one source each, and the sources that are about files.

use super::check::{
    child, descending_path, dns_label, invalid_each, no_backsteps, non_reserved_path, required, supported,
};
use super::env::{VOLUME_FIELDS, field_ref, resource_field_ref};
use super::resources::amount;
use super::security::user_field;
use super::{claim, plugins, projected};
use crate::access::Access;
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const ONE_TYPE: &str = "may not specify more than 1 volume type";

/// Valid volumes by name: what mounts may refer to.
pub type Volumes<'a> = BTreeMap<&'a str, &'a Value>;

/// `pod_name` is empty for a template.
pub fn volumes<'a>(list: &'a [Value], pod_name: &str, path: &Path) -> (Volumes<'a>, FieldErrors) {
    let mut found = Volumes::new();
    let mut errs = Vec::new();
    let own_claims: BTreeSet<String> = list
        .iter()
        .filter(|v| v.has("ephemeral") && !pod_name.is_empty())
        .map(|v| format!("{pod_name}-{}", v.text("name")))
        .collect();
    for (i, v) in list.iter().enumerate() {
        let (p, name) = (path.index(i), v.text("name"));
        let mut e = source(v, pod_name, &p);
        if name.is_empty() {
            e.push(FieldError::required(&p.child("name"), ""));
        } else {
            e.extend(dns_label(name, &p.child("name")));
        }
        if found.contains_key(name) {
            e.push(FieldError::duplicate(&p.child("name"), name));
        }
        if e.is_empty() {
            found.insert(name, v);
        }
        errs.extend(e);
        let claim = v.text("persistentVolumeClaim.claimName");
        if own_claims.contains(claim) {
            let m = "must not reference a PVC that gets created for an ephemeral volume";
            errs.push(FieldError::invalid(&child(&p, "persistentVolumeClaim.claimName"), claim, m));
        }
    }
    (found, errs)
}

/// In the order in which upstream looks at them: the field, and how upstream's path of a second one spells it.
const SOURCES: [(&str, &str); 30] = [
    ("emptyDir", "emptyDir"),
    ("hostPath", "hostPath"),
    ("gitRepo", "gitRepo"),
    ("gcePersistentDisk", "gcePersistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore"),
    ("secret", "secret"),
    ("nfs", "nfs"),
    ("iscsi", "iscsi"),
    ("glusterfs", "glusterfs"),
    ("flocker", "flocker"),
    ("persistentVolumeClaim", "persistentVolumeClaim"),
    ("rbd", "rbd"),
    ("cinder", "cinder"),
    ("cephfs", "cephFS"),
    ("quobyte", "quobyte"),
    ("downwardAPI", "downwarAPI"),
    ("fc", "fc"),
    ("flexVolume", "flexVolume"),
    ("configMap", "configMap"),
    ("azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk"),
    ("storageos", "storageos"),
    ("projected", "projected"),
    ("scaleIO", "scaleIO"),
    ("csi", "csi"),
    ("ephemeral", "ephemeral"),
    ("image", "image"),
];

fn source(v: &Value, pod_name: &str, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = false;
    for (field, spelt) in SOURCES.iter().filter(|(f, _)| v.has(f)) {
        if seen {
            errs.push(FieldError::forbidden(&path.child(spelt), ONE_TYPE));
            continue;
        }
        seen = true;
        errs.extend(one_source(field, v, pod_name, path));
    }
    if !seen {
        errs.push(FieldError::required(path, "must specify a volume type"));
    }
    errs
}

fn one_source(field: &str, volume: &Value, pod_name: &str, path: &Path) -> FieldErrors {
    let (v, p) = (volume.at(field), path.child(field));
    match field {
        "emptyDir" => empty_dir(v, &p),
        "hostPath" => host_path(v, &p),
        "gitRepo" => {
            let mut errs = required(v, "repository", &p);
            errs.extend(descending_path(v.text("directory"), &p.child("directory")));
            errs
        }
        "secret" => key_files(v, "secretName", &p),
        "configMap" => key_files(v, "name", &p),
        "downwardAPI" => downward(v, &p),
        "projected" => projected::volume(v, &p),
        "persistentVolumeClaim" => required(v, "claimName", &p),
        "image" => image(v, &p),
        "ephemeral" => ephemeral(v, volume.text("name"), pod_name, path),
        _ => plugins::in_pod(field, v, volume.text("name"), path),
    }
}

fn empty_dir(v: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if v.has("sizeLimit") && amount(v.at("sizeLimit")).sign() < 0 {
        let m = "SizeLimit field must be a valid resource quantity";
        errs.push(FieldError::forbidden(&path.child("sizeLimit"), m));
    }
    if let Some(n) = v.int("mode").filter(|n| !(0..=0o1777).contains(n)) {
        let m = "must be a number between 0 and 01777 (octal), both inclusive";
        errs.push(FieldError::invalid(&path.child("mode"), n, m));
    }
    errs
}

pub fn host_path(v: &Value, path: &Path) -> FieldErrors {
    let mut errs = required(v, "path", path);
    if errs.is_empty() {
        errs.extend(no_backsteps(v.text("path"), &path.child("path")));
        let types =
            ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
        errs.extend(supported(v.text("type"), &types, &path.child("type")));
    }
    errs
}

pub fn mode(v: &Value, field: &str, path: &Path) -> FieldErrors {
    match v.int(field) {
        Some(n) if !(0..=0o777).contains(&n) => vec![FieldError::invalid(&path.child(field), n, FILE_MODE)],
        _ => Vec::new(),
    }
}

/// Secret and ConfigMap volumes.
fn key_files(v: &Value, name: &str, path: &Path) -> FieldErrors {
    let mut errs = required(v, name, path);
    errs.extend(mode(v, "defaultMode", path));
    errs.extend(user_field(v, "defaultUser", path));
    for (i, item) in v.list("items").iter().enumerate() {
        errs.extend(key_to_path(item, &path.child("items").index(i)));
    }
    errs
}

pub fn key_to_path(item: &Value, path: &Path) -> FieldErrors {
    let mut errs = required(item, "key", path);
    errs.extend(required(item, "path", path));
    errs.extend(non_reserved_path(item.text("path"), &path.child("path")));
    errs.extend(mode(item, "mode", path));
    errs.extend(user_field(item, "user", path));
    errs
}

fn downward(v: &Value, path: &Path) -> FieldErrors {
    let mut errs = mode(v, "defaultMode", path);
    errs.extend(user_field(v, "defaultUser", path));
    errs.extend(v.list("items").iter().flat_map(|f| downward_file(f, path)));
    errs
}

/// A file of the downward API. Upstream's path does not name its index.
pub fn downward_file(f: &Value, path: &Path) -> FieldErrors {
    let mut errs = required(f, "path", path);
    errs.extend(non_reserved_path(f.text("path"), &path.child("path")));
    match (f.has("fieldRef"), f.has("resourceFieldRef")) {
        (true, both) => {
            errs.extend(field_ref(f.at("fieldRef"), &VOLUME_FIELDS, &path.child("fieldRef")));
            if both {
                let m = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errs.push(FieldError::invalid(path, "resource", m));
            }
        }
        (false, true) => {
            let p = path.child("resourceFieldRef");
            errs.extend(resource_field_ref(f.at("resourceFieldRef"), true, &p));
        }
        (false, false) => {
            errs.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required"));
        }
    }
    errs.extend(mode(f, "mode", path));
    errs.extend(user_field(f, "user", path));
    errs
}

fn image(v: &Value, path: &Path) -> FieldErrors {
    let mut errs = required(v, "reference", path);
    errs.extend(super::container::pull_policy(v.text("pullPolicy"), &path.child("pullPolicy")));
    errs
}

fn ephemeral(v: &Value, name: &str, pod_name: &str, path: &Path) -> FieldErrors {
    let (template, p) = (v.at("volumeClaimTemplate"), child(path, "ephemeral.volumeClaimTemplate"));
    let mut errs = Vec::new();
    if template.is_null() {
        errs.push(FieldError::required(&p, ""));
    } else {
        let meta = template.at("metadata");
        let mp = p.child("metadata");
        errs.extend(crate::metadata::annotations(meta.at("annotations"), &mp.child("annotations")));
        errs.extend(crate::metadata::labels(meta.at("labels"), &mp.child("labels")));
        for (k, v) in meta.entries("") {
            if !matches!(k, "annotations" | "labels") && !crate::access::is_empty(v) {
                errs.push(FieldError::forbidden(&mp.child(k), "cannot be set"));
            }
        }
        errs.extend(claim::claim_spec(template.at("spec"), &p.child("spec")));
    }
    if !pod_name.is_empty() && !name.is_empty() {
        let claim = format!("{pod_name}-{name}");
        let msgs = names::dns1123_subdomain(&claim).into_iter().map(|m| format!("PVC name {claim:?}: {m}"));
        errs.extend(invalid_each(&path.child("name"), name, msgs.collect()));
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn say(list: Value) -> Vec<String> {
        let list = list.as_array().cloned().unwrap_or_default();
        volumes(&list, "pod", &Path::new("v")).1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn pod_volumes() {
        let ok = json!([{"name": "a", "emptyDir": {}}, {"name": "b", "secret": {"secretName": "s", "defaultMode": 420}},
            {"name": "c", "hostPath": {"path": "/x", "type": ""}}, {"name": "d", "configMap": {"name": "c", "items": [{"key": "k", "path": "p"}]}}]);
        assert_eq!(say(ok), [""; 0]);
        let table = [
            (json!([{"name": "a"}]), "v[0]: Required value: must specify a volume type"),
            (
                json!([{"name": "a", "emptyDir": {}, "hostPath": {"path": "/"}}]),
                "v[0].hostPath: Forbidden: may not specify more than 1 volume type",
            ),
            (
                json!([{"name": "a", "emptyDir": {}}, {"name": "a", "emptyDir": {}}]),
                "v[1].name: Duplicate value: \"a\"",
            ),
            (json!([{"name": "a", "secret": {}}]), "v[0].secret.secretName: Required value"),
            (
                json!([{"name": "a", "hostPath": {"path": "/a/../b", "type": ""}}]),
                "v[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
            ),
            (
                json!([{"name": "a", "configMap": {"name": "c", "items": [{"key": "k", "path": "/p"}]}}]),
                "v[0].configMap.items[0].path: Invalid value: \"/p\": must be a relative path",
            ),
            (
                json!([{"name": "a", "secret": {"secretName": "s", "defaultMode": 9999}}]),
                "v[0].secret.defaultMode: Invalid value: 9999: must be a number between 0 and 0777 (octal), both inclusive",
            ),
            (
                json!([{"name": "a", "nfs": {"server": "s", "path": "p"}}]),
                "v[0].nfs.path: Invalid value: \"p\": must be an absolute path",
            ),
            (
                json!([{"name": "a", "downwardAPI": {"items": [{"path": "p"}]}}]),
                "v[0].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
            ),
            (
                json!([{"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}},
                    {"name": "p", "persistentVolumeClaim": {"claimName": "pod-e"}}]),
                "v[1].persistentVolumeClaim.claimName: Invalid value: \"pod-e\": must not reference a PVC that gets created for an ephemeral volume",
            ),
        ];
        for (v, want) in table {
            assert_eq!(say(v.clone()), [want], "{v}");
        }
    }
}
