//! Volume sources of storage systems, as pods and persistent volumes name them.

use super::check::{
    all_required, child, dns_label, dns_subdomain, in_range, invalid_each, no_backsteps, one_of_if_set, required,
};
use crate::access::Access;
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use regex::Regex;
use serde_json::Value;
use std::sync::LazyLock;

static IQN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"iqn\.\d{4}-\d{2}\.([[:alnum:]\-.]+)(:[^,;*&$|\s]+)$").expect("the pattern is a constant")
});

/// A source in a pod; `path` is the volume's.
pub fn in_pod(field: &str, v: &Value, name: &str, path: &Path) -> FieldErrors {
    let p = path.child(if field == "gcePersistentDisk" { "persistentDisk" } else { field });
    match field {
        "iscsi" => {
            let mut errs = iscsi(v, "must be valid format starting with iqn, eui, or naa", &p);
            if v.has("initiatorName") && name.len() + 1 + v.text("targetPortal").len() > 64 {
                errs.push(FieldError::invalid(&path.child("name"), name, ISCSI_TOO_LONG));
            }
            errs
        }
        "cinder" | "storageos" => {
            let mut errs = common(field, v, &p);
            errs.extend(secret_ref(v, &["name"], &p));
            errs
        }
        "csi" => csi_in_pod(v, &p),
        _ => common(field, v, &p),
    }
}

const ISCSI_TOO_LONG: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";

/// A source of a persistent volume; `path` is its spec's.
pub fn in_persistent_volume(field: &str, v: &Value, name: &str, path: &Path) -> FieldErrors {
    let p = path.child(if field == "gcePersistentDisk" { "persistentDisk" } else { field });
    match field {
        "hostPath" => super::volume::host_path(v, &p),
        "local" => {
            let mut errs = required(v, "path", &p);
            errs.extend(no_backsteps(v.text("path"), &p.child("path")));
            errs
        }
        "iscsi" => {
            let mut errs = iscsi(v, "must be valid format", &p);
            if v.has("initiatorName") && name.len() + 1 + v.text("targetPortal").len() > 64 {
                errs.push(FieldError::invalid(&p.child("targetportal"), v.text("targetPortal"), ISCSI_TOO_LONG));
            }
            errs.extend(secret_ref(v, &["name"], &p));
            errs
        }
        "cinder" | "storageos" => {
            let mut errs = common(field, v, &p);
            errs.extend(secret_ref(v, &["name", "namespace"], &p));
            errs
        }
        "glusterfs" => {
            let mut errs = common(field, v, &p);
            if let Some(ns) = v.at("endpointsNamespace").as_str() {
                let p = p.child("endpointsNamespace");
                if ns.is_empty() {
                    let m = "if the endpointnamespace is set, it must be a valid namespace name";
                    errs.push(FieldError::invalid(&p, ns, m));
                } else {
                    errs.extend(dns_label(ns, &p));
                }
            }
            errs
        }
        "azureFile" => {
            let mut errs = common(field, v, &p);
            if v.at("secretNamespace").as_str() == Some("") {
                errs.push(FieldError::required(&p.child("secretNamespace"), ""));
            }
            errs
        }
        "csi" => csi_in_persistent_volume(v, &p),
        _ => common(field, v, &p),
    }
}

/// What a source needs wherever it stands.
fn common(field: &str, v: &Value, p: &Path) -> FieldErrors {
    match field {
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            let mut errs = required(v, if field == "gcePersistentDisk" { "pdName" } else { "volumeID" }, p);
            if let Some(n) = v.int("partition").filter(|n| !(0..=255).contains(n)) {
                errs.push(FieldError::invalid(&p.child("partition"), n, "must be between 1 and 255, inclusive"));
            }
            errs
        }
        "nfs" => {
            let mut errs = all_required(v, &["server", "path"], p);
            if !v.text("path").starts_with('/') {
                errs.push(FieldError::invalid(&p.child("path"), v.text("path"), "must be an absolute path"));
            }
            errs
        }
        "glusterfs" => all_required(v, &["endpoints", "path"], p),
        "flocker" => flocker(v, p),
        "rbd" => all_required(v, &["monitors", "image"], p),
        "cinder" | "portworxVolume" => required(v, "volumeID", p),
        "cephfs" => required(v, "monitors", p),
        "quobyte" => quobyte(v, p),
        "fc" => fibre_channel(v, p),
        "flexVolume" => flex(v, p),
        "azureFile" => all_required(v, &["secretName", "shareName"], p),
        "azureDisk" => azure_disk(v, p),
        "vsphereVolume" => required(v, "volumePath", p),
        "photonPersistentDisk" => required(v, "pdID", p),
        "scaleIO" => all_required(v, &["gateway", "system", "volumeName"], p),
        "storageos" => {
            let mut errs = required(v, "volumeName", p);
            for f in ["volumeName", "volumeNamespace"] {
                if !v.text(f).is_empty() {
                    errs.extend(dns_label(v.text(f), &p.child(f)));
                }
            }
            errs
        }
        _ => Vec::new(),
    }
}

fn secret_ref(v: &Value, fields: &[&str], path: &Path) -> FieldErrors {
    if v.has("secretRef") { all_required(v.at("secretRef"), fields, &path.child("secretRef")) } else { Vec::new() }
}

fn flocker(v: &Value, path: &Path) -> FieldErrors {
    let (name, uuid) = (v.text("datasetName"), v.text("datasetUUID"));
    let mut errs = Vec::new();
    if name.is_empty() && uuid.is_empty() {
        errs.push(FieldError::required(path, "one of datasetName and datasetUUID is required"));
    }
    if !name.is_empty() && !uuid.is_empty() {
        let m = "datasetName and datasetUUID can not be specified simultaneously";
        errs.push(FieldError::invalid(path, "resource", m));
    }
    if name.contains('/') {
        errs.push(FieldError::invalid(&path.child("datasetName"), name, "must not contain '/'"));
    }
    errs
}

fn quobyte(v: &Value, path: &Path) -> FieldErrors {
    const PAIR: &str = "must be a host:port pair or multiple pairs separated by commas";
    let (registry, mut errs) = (v.text("registry"), Vec::new());
    if registry.is_empty() {
        errs.push(FieldError::required(&path.child("registry"), PAIR));
    } else if v.text("tenant").len() >= 65 {
        let m = "must be a UUID and may not exceed a length of 64 characters";
        errs.push(FieldError::required(&path.child("tenant"), m));
    } else {
        let bad = registry.split(',').filter(|pair| !pair.contains(':'));
        errs.extend(bad.map(|_| FieldError::invalid(&path.child("registry"), registry, PAIR)));
    }
    errs.extend(required(v, "volume", path));
    errs
}

fn fibre_channel(v: &Value, path: &Path) -> FieldErrors {
    let (wwns, wwids, p) = (v.list("targetWWNs"), v.list("wwids"), path.child("targetWWNs"));
    let mut errs = Vec::new();
    if wwns.is_empty() && wwids.is_empty() {
        errs.push(FieldError::required(&p, "must specify either targetWWNs or wwids, but not both"));
    }
    if !wwns.is_empty() && !wwids.is_empty() {
        let m = "targetWWNs and wwids can not be specified simultaneously";
        errs.push(FieldError::invalid(&p, v["targetWWNs"].clone(), m));
    }
    if !wwns.is_empty() {
        if v.has("lun") {
            errs.extend(in_range(v, "lun", 0, 255, path));
        } else {
            errs.push(FieldError::required(&path.child("lun"), "lun is required if targetWWNs is specified"));
        }
    }
    errs
}

fn flex(v: &Value, path: &Path) -> FieldErrors {
    let mut errs = required(v, "driver", path);
    for (k, _) in v.entries("options") {
        let namespace = format!(".{}", k.split_once('/').map_or(k, |(ns, _)| ns).to_lowercase());
        if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
            let m = "kubernetes.io and k8s.io namespaces are reserved";
            errs.push(FieldError::invalid(&path.child("options").key(k), k, m));
        }
    }
    errs
}

fn azure_disk(v: &Value, path: &Path) -> FieldErrors {
    let mut errs = all_required(v, &["diskName", "diskURI"], path);
    errs.extend(one_of_if_set(v, "cachingMode", &["None", "ReadOnly", "ReadWrite"], path));
    errs.extend(one_of_if_set(v, "kind", &["Dedicated", "Managed", "Shared"], path));
    let (uri, p) = (v.text("diskURI"), path.child("diskURI"));
    match v.at("kind").as_str() {
        Some("Managed") if !uri.starts_with("/subscriptions/") => {
            let form =
                "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
            errs.push(FieldError::not_supported(&p, uri, &[form]));
        }
        Some(kind) if kind != "Managed" && !uri.starts_with("https://") => {
            let form = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
            errs.push(FieldError::not_supported(&p, uri, &[form]));
        }
        _ => {}
    }
    errs
}

/// What is wrong with an iSCSI name, `None` where nothing is.
fn iscsi_name(name: &str, unknown: &'static str) -> Option<&'static str> {
    let rest_is = |prefix: &str, len: usize| {
        name.strip_prefix(prefix)
            .and_then(|r| r.get(1..))
            .is_some_and(|r| r.len() == len && r.bytes().all(|c| c.is_ascii_alphanumeric()))
    };
    if name.starts_with("iqn") {
        (!IQN.is_match(name)).then_some("must be valid format")
    } else if name.starts_with("eui") {
        (!rest_is("eui", 16)).then_some("must be valid format")
    } else if name.starts_with("naa") {
        (!rest_is("naa", 32)).then_some("must be valid format")
    } else {
        Some(unknown)
    }
}

fn iscsi(v: &Value, unknown: &'static str, path: &Path) -> FieldErrors {
    let mut errs = all_required(v, &["targetPortal", "iqn"], path);
    let iqn = v.text("iqn");
    if !iqn.is_empty() {
        errs.extend(iscsi_name(iqn, unknown).map(|m| FieldError::invalid(&path.child("iqn"), iqn, m)));
    }
    errs.extend(in_range(v, "lun", 0, 255, path));
    if (v.flag("chapAuthDiscovery") || v.flag("chapAuthSession")) && !v.has("secretRef") {
        errs.push(FieldError::required(&path.child("secretRef"), ""));
    }
    if let Some(name) = v.at("initiatorName").as_str() {
        let p = path.child("initiatorname");
        errs.extend(iscsi_name(name, unknown).map(|m| FieldError::invalid(&p, name, m)));
    }
    errs
}

pub fn csi_driver_name(name: &str, path: &Path) -> FieldErrors {
    if name.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let mut errs = Vec::new();
    if name.len() > 63 {
        errs.push(FieldError::too_long(path, 63));
    }
    errs.extend(invalid_each(path, name, names::dns1123_subdomain(&name.to_lowercase())));
    errs
}

/// The same as declarative rules have it.
pub fn declared_driver_name(name: &str, path: &Path) -> FieldErrors {
    if name.is_empty() {
        return vec![FieldError::required(path, "").declared()];
    }
    let mut errs = invalid_each(path, name, names::dns1123_subdomain_caseless(name));
    if name.chars().count() > 63 {
        errs.push(FieldError::too_long_characters(path, 63));
    }
    errs.into_iter().map(FieldError::declared).collect()
}

fn csi_in_pod(v: &Value, path: &Path) -> FieldErrors {
    let mut errs = csi_driver_name(v.text("driver"), &path.child("driver"));
    if v.has("nodePublishSecretRef") {
        match v.text("nodePublishSecretRef.name") {
            "" => errs.push(FieldError::required(&child(path, "nodePublishSecretRef.name"), "")),
            name => errs.extend(dns_subdomain(name, &path.child("name"))),
        }
    }
    errs
}

fn csi_in_persistent_volume(v: &Value, path: &Path) -> FieldErrors {
    let mut errs = csi_driver_name(v.text("driver"), &path.child("driver"));
    errs.extend(required(v, "volumeHandle", path));
    let refs =
        ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"];
    for f in refs.iter().filter(|f| v.has(f)) {
        let (r, p) = (v.at(f), path.child(f));
        errs.extend(match r.text("name") {
            "" => required(r, "name", &p),
            name => dns_subdomain(name, &p.child("name")),
        });
        errs.extend(match r.text("namespace") {
            "" => required(r, "namespace", &p),
            ns => dns_label(ns, &p.child("namespace")),
        });
    }
    errs
}
