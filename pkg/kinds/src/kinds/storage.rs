//! The storage group: classes, attachments, CSI nodes and drivers.

use crate::access::{self, Access, same};
use crate::metadata::{fixed, immutable};
use crate::ownership;
use crate::strategy::{PLAIN, STATELESS, Strategy};
use crate::validation::check::{dns_subdomain, non_negative, one_of_if_set, qualified_name, supported};
use crate::validation::claim::inline_volume;
use crate::validation::plugins::{csi_driver_name, declared_driver_name};
use crate::validation::resources::non_negative_quantity;
use crate::validation::warnings;
use isopod_api::{FieldError, FieldErrors, Path};
use serde_json::Value;
use std::collections::BTreeSet;

pub fn strategy(kind: &str) -> Strategy {
    match kind {
        "StorageClass" => {
            Strategy { warnings: warnings::storage_class, create: class, update: class_update, ..STATELESS }
        }
        "VolumeAttributesClass" => Strategy {
            create: attributes_class,
            update: |new, old| {
                let fixed = ["driverName", "parameters"].into_iter().filter(|f| !same(new.at(f), old.at(f)));
                let mut errs: FieldErrors = fixed
                    .map(|f| FieldError::forbidden(&Path::new(f), format!("updates to {f} are forbidden.")))
                    .collect();
                errs.extend(attributes_class(new));
                errs
            },
            ..STATELESS
        },
        "VolumeAttachment" => Strategy {
            owned: ownership::status_alone,
            generation: false,
            unconditional_update: false,
            create: attachment,
            update: |new, old| {
                let mut errs = attachment(new);
                errs.extend(immutable(new, old, "spec", &Path::root()));
                errs
            },
            ..PLAIN
        },
        "CSINode" => Strategy {
            owned: ownership::status_alone,
            unconditional_update: false,
            resets_status: true,
            create: csi_node,
            update: csi_node_update,
            ..STATELESS
        },
        "CSIDriver" => Strategy {
            warnings: warnings::csi_driver,
            unconditional_update: false,
            // Counted by updates alone, so it is not set before the first.
            generation: false,
            prepare_update: |_, new, old| {
                let before = old.int_or("metadata.generation", 0);
                let now = before + i64::from(!same(new.at("spec"), old.at("spec")));
                if now > 0 {
                    access::set(new, "metadata.generation", now);
                }
            },
            create: driver,
            update: driver_update,
            ..PLAIN
        },
        "CSIStorageCapacity" => Strategy {
            unconditional_update: false,
            create: capacity,
            update: |new, old| {
                let mut errs = capacity(new);
                let fixed = ["nodeTopology", "storageClassName"];
                errs.extend(fixed.iter().flat_map(|f| immutable(new, old, f, &Path::root())));
                errs
            },
            ..STATELESS
        },
        _ => STATELESS,
    }
}

fn parameters(o: &Value, needed: bool) -> FieldErrors {
    let (all, p) = (o.entries("parameters"), Path::new("parameters"));
    if all.len() > 512 {
        return vec![FieldError::too_long(&p, 512)];
    }
    let mut errs = Vec::new();
    let mut size = 0;
    for (k, v) in &all {
        if k.is_empty() {
            errs.push(FieldError::invalid(&p, *k, "field can not be empty."));
        }
        size += k.len() + v.as_str().map_or(0, str::len);
    }
    if size > 256 * 1024 {
        errs.push(FieldError::too_long(&p, 256 * 1024));
    }
    if needed && all.is_empty() {
        errs.push(FieldError::required(&p, "must contain at least one key/value pair"));
    }
    errs
}

fn class(c: &Value) -> FieldErrors {
    let p = Path::new("provisioner");
    let mut errs = match c.text("provisioner") {
        "" => vec![FieldError::required(&p, "").declared()],
        name => qualified_name(&name.to_lowercase(), &p),
    };
    errs.extend(parameters(c, false));
    if !c.text("reclaimPolicy").is_empty() {
        errs.extend(supported(c.text("reclaimPolicy"), &["Delete", "Retain"], &Path::new("reclaimPolicy")));
    }
    let p = Path::new("volumeBindingMode");
    errs.extend(match c.at("volumeBindingMode").as_str() {
        None => vec![FieldError::required(&p, "")],
        Some(m) => supported(m, &["Immediate", "WaitForFirstConsumer"], &p),
    });
    errs.extend(topologies(c.list("allowedTopologies"), &Path::new("allowedTopologies")));
    errs
}

fn topologies(list: &[Value], path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    for (i, t) in list.iter().enumerate() {
        let p = path.index(i).child("matchLabelExpressions");
        let all = t.list("matchLabelExpressions");
        for (j, e) in all.iter().enumerate() {
            let p = p.index(j);
            let values = e.texts("values");
            if values.is_empty() {
                errs.push(FieldError::required(&p.child("values"), ""));
            }
            for (k, v) in values.iter().enumerate().filter(|(k, v)| values[..*k].contains(v)) {
                errs.push(FieldError::duplicate(&p.child("values").index(k), *v));
            }
            errs.extend(crate::metadata::label_name(e.text("key"), &p.child("key")));
            if all[..j].iter().any(|o| o.text("key") == e.text("key")) {
                errs.push(FieldError::duplicate(&p.child("key"), e.text("key")));
            }
        }
        // A term that says nothing counts as one that was there.
        if all.is_empty() || list[..i].iter().any(|o| same(o, t)) {
            errs.push(FieldError::duplicate(&p, ""));
        }
    }
    errs
}

fn class_update(new: &Value, old: &Value) -> FieldErrors {
    let fields = ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"];
    let mut errs = class(new);
    errs.extend(fields.iter().flat_map(|f| fixed(new, old, f, &Path::root())));
    errs
}

fn attributes_class(c: &Value) -> FieldErrors {
    let p = Path::new("driverName");
    let mut errs = match c.text("driverName") {
        "" => vec![FieldError::required(&p, "")],
        name => qualified_name(&name.to_lowercase(), &p),
    };
    errs.extend(parameters(c, true));
    errs
}

fn attachment(a: &Value) -> FieldErrors {
    let (spec, p) = (a.at("spec"), Path::new("spec"));
    let mut errs = declared_driver_name(spec.text("attacher"), &p.child("attacher"));
    let (source, sp) = (spec.at("source"), p.child("source"));
    let name = source.at("persistentVolumeName").as_str();
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (source.has("inlineVolumeSpec"), name) {
        (false, None) => errs.push(FieldError::required(&sp, ONE)),
        (true, Some(_)) => errs.push(FieldError::forbidden(&sp, ONE)),
        (false, Some("")) => {
            let m = "must specify non empty persistentVolumeName";
            errs.push(FieldError::required(&sp.child("persistentVolumeName"), m));
        }
        (true, None) => errs.extend(inline_volume(source.at("inlineVolumeSpec"), &sp.child("inlineVolumeSpec"))),
        _ => {}
    }
    errs.extend(dns_subdomain(spec.text("nodeName"), &p.child("nodeName")));
    if let Some(name) = name {
        errs.extend(dns_subdomain(name, &sp.child("persistentVolumeName")));
    }
    errs
}

fn csi_node(n: &Value) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, d) in n.list("spec.drivers").iter().enumerate() {
        let p = Path::new("spec").child("drivers").index(i);
        let (name, id) = (d.text("name"), d.text("nodeID"));
        errs.extend(csi_driver_name(name, &p.child("name")));
        if id.is_empty() {
            errs.push(FieldError::required(&p.child("nodeID"), ""));
        }
        if id.len() > 256 {
            errs.push(FieldError::invalid(&p.child("nodeID"), id, "must be 256 characters or less"));
        }
        errs.extend(non_negative(d, &["allocatable.count"], &p));
        if !seen.insert(name) {
            errs.push(FieldError::duplicate(&p.child("name"), name));
        }
        let keys = d.texts("topologyKeys");
        for (j, k) in keys.iter().enumerate() {
            if k.is_empty() {
                errs.push(FieldError::required(&p, ""));
            }
            if keys[..j].contains(k) {
                errs.push(FieldError::duplicate(&p, *k));
            }
            errs.extend(qualified_name(k, &p));
        }
    }
    errs
}

fn csi_node_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = csi_node(new);
    let bare = |d: &Value| {
        let mut d = d.clone();
        access::unset(&mut d, "allocatable");
        d
    };
    for o in old.list("spec.drivers") {
        let twin = new.list("spec.drivers").iter().find(|n| n.text("name") == o.text("name"));
        if let Some(n) = twin.map(bare).filter(|n| !same(n, &bare(o))) {
            errs.push(FieldError::invalid(&Path::new("spec").child("drivers"), n, crate::metadata::IMMUTABLE));
        }
    }
    errs
}

fn driver(d: &Value) -> FieldErrors {
    let (spec, p) = (d.at("spec"), Path::new("spec"));
    let mut errs = Vec::new();
    for (f, shown) in [
        ("attachRequired", "attachedRequired"),
        ("podInfoOnMount", "podInfoOnMount"),
        ("storageCapacity", "storageCapacity"),
    ] {
        if !spec.has(f) {
            errs.push(FieldError::required(&p.child(shown), ""));
        }
    }
    if spec.has("fsGroupPolicy") {
        errs.extend(one_of_if_set(spec, "fsGroupPolicy", &["File", "None", "ReadWriteOnceWithFSType"], &p));
    } else {
        errs.push(FieldError::required(&p.child("fsGroupPolicy"), ""));
    }
    let mut seen = BTreeSet::new();
    for (i, t) in spec.list("tokenRequests").iter().enumerate() {
        let p = p.child("tokenRequests").index(i);
        if !seen.insert(t.text("audience")) {
            errs.push(FieldError::duplicate(&p.child("audience"), t.text("audience")));
        }
        if let Some(n) = t.int("expirationSeconds") {
            let p = p.child("expirationSeconds");
            if n < 600 {
                errs.push(FieldError::invalid(&p, n, "may not specify a duration less than 10 minutes"));
            }
            if n > 1 << 32 {
                errs.push(FieldError::invalid(&p, n, "may not specify a duration larger than 2^32 seconds"));
            }
        }
    }
    for m in spec.texts("volumeLifecycleModes") {
        errs.extend(supported(m, &["Persistent", "Ephemeral"], &p.child("volumeLifecycleModes")));
    }
    if let Some(n) = spec.int("nodeAllocatableUpdatePeriodSeconds").filter(|n| *n < 10) {
        let m = "must be greater than or equal to 10 seconds";
        errs.push(FieldError::invalid(&p.child("nodeAllocatableUpdatePeriodSeconds"), n, m));
    }
    errs
}

fn driver_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = driver(new);
    let p = Path::new("spec");
    if !same(new.at("spec.attachRequired"), old.at("spec.attachRequired")) {
        let v = new.at("spec.attachRequired").clone();
        errs.push(FieldError::invalid(&p.child("attachedRequired"), v, crate::metadata::IMMUTABLE));
    }
    errs.extend(immutable(new.at("spec"), old.at("spec"), "volumeLifecycleModes", &p));
    errs
}

fn capacity(c: &Value) -> FieldErrors {
    let mut errs = dns_subdomain(c.text("storageClassName"), &Path::new("storageClassName"));
    for f in ["capacity", "maximumVolumeSize"] {
        if c.has(f) {
            errs.extend(non_negative_quantity(c.at(f), &Path::new(f)));
        }
    }
    errs.extend(crate::metadata::label_selector(c.at("nodeTopology"), &Path::new("nodeTopology")));
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn say(errs: FieldErrors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn classes_and_drivers() {
        let ok = json!({"provisioner": "isopod.io/local", "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer"});
        assert_eq!(say(class(&ok)), [""; 0]);
        assert_eq!(say(class(&json!({}))), ["provisioner: Required value", "volumeBindingMode: Required value"]);
        let mut other = ok.clone();
        other["provisioner"] = "x".into();
        assert_eq!(say(class_update(&other, &ok)), ["provisioner: Invalid value: null: field is immutable"]);
        assert_eq!(
            say(csi_node(&json!({"spec": {"drivers": [{"name": "a.b", "nodeID": ""}]}}))),
            ["spec.drivers[0].nodeID: Required value"]
        );
        assert_eq!(say(driver(&json!({"spec": {}}))).len(), 4);
        assert_eq!(say(attachment(&json!({"spec": {"attacher": "a", "nodeName": "n", "source": {}}}))).len(), 1);
    }
}
