//! StorageVersionMigrations: they name a resource, and say once how it ended.

use crate::access::Access;
use crate::metadata::{conditions, immutable};
use crate::ownership;
use crate::strategy::{PLAIN, Strategy};
use isopod_api::{FieldError, FieldErrors, Path, names};
use serde_json::Value;

pub const STRATEGY: Strategy = Strategy {
    owned: ownership::status_alone,
    generation: false,
    unconditional_update: false,
    create: migration,
    update: |new, old| {
        let mut errs = migration(new);
        errs.extend(immutable(new, old, "spec", &Path::root()));
        errs
    },
    update_status: status,
    ..PLAIN
};

fn migration(m: &Value) -> FieldErrors {
    let (of, p) = (m.at("spec.resource"), Path::new("spec").child("resource"));
    let mut errs = Vec::new();
    let mut check = |field: &str, wrong: Vec<String>| {
        if !wrong.is_empty() {
            errs.push(FieldError::invalid(&p.child(field), of.text(field), wrong.join(",")));
        }
    };
    match of.text("group") {
        "" => {}
        group => check("group", names::dns1123_subdomain(group)),
    }
    match of.text("resource") {
        "" => errs.insert(0, FieldError::required(&p.child("resource"), "resource is required to be set")),
        resource => {
            check("resource", names::dns1035_label(resource));
            // The resource is looked at before its group.
            errs.reverse();
        }
    }
    errs
}

fn is_true(m: &Value, condition: &str) -> bool {
    m.list("status.conditions").iter().any(|c| c.text("type") == condition && c.text("status") == "True")
}

fn status(new: &Value, old: &Value) -> FieldErrors {
    let p = Path::new("status");
    let (conds, version) = (p.child("conditions"), p.child("resourceVersion"));
    let mut errs = conditions(new.at("status.conditions"), &conds);
    let before = old.text("status.resourceVersion");
    if !before.is_empty() && before != new.text("status.resourceVersion") {
        errs.push(FieldError::invalid(&version, new.text("status.resourceVersion"), crate::metadata::IMMUTABLE));
    }
    let mut refuse = |why: &str| errs.push(FieldError::invalid(&conds, new.at("status.conditions").clone(), why));
    if is_true(new, "Succeeded") && is_true(new, "Failed") {
        refuse("Both success and failed conditions cannot be true at the same time");
    }
    for (condition, name) in [("Succeeded", "Success"), ("Failed", "Failed")] {
        if is_true(old, condition) && !is_true(new, condition) {
            refuse(&format!("{name} condition cannot be set to false once it is true"));
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resources() {
        let say = |group: &str, resource: &str| -> Vec<String> {
            let m = json!({"spec": {"resource": {"group": group, "resource": resource}}});
            migration(&m).iter().map(|e| format!("{} {}", e.field, e.kind.reason())).collect()
        };
        assert_eq!(say("apps", "deployments"), [""; 0]);
        assert_eq!(say("", ""), ["spec.resource.resource FieldValueRequired"]);
        assert_eq!(
            say("Not Valid!", "Not Valid!"),
            ["spec.resource.resource FieldValueInvalid", "spec.resource.group FieldValueInvalid"]
        );
        let ended = |s: &str| {
            json!({"status": {"conditions": [{"type": "Succeeded", "status": s, "reason": "r",
            "lastTransitionTime": "t"}]}})
        };
        assert_eq!(status(&ended("False"), &ended("True")).len(), 1);
    }
}
