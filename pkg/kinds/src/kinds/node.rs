//! Nodes. Unlike most kinds a node may be created with its status.

use crate::access::{Access, keep};
use crate::kind::Ctx;
use crate::metadata;
use crate::strategy::{STATELESS, Strategy};
use crate::validation::warnings;
use isopod_api::{FieldError, FieldErrors, Path, names};
use serde_json::Value;
use std::collections::BTreeSet;

pub const STRATEGY: Strategy = Strategy {
    fields: &["spec.unschedulable"],
    prepare_update,
    warnings: warnings::node,
    create,
    update,
    update_status: update,
    select: |o, p| if p == "spec.unschedulable" { o.flag(p).to_string() } else { crate::strategy::text_at(o, p) },
    ..STATELESS
};

fn prepare_update(ctx: &Ctx, new: &mut Value, old: &Value) {
    keep(new, old, if ctx.subresource == "status" { "spec" } else { "status" });
}

fn create(new: &Value) -> FieldErrors {
    // Upstream's path of taints starts at the metadata.
    let mut errs = taints(new.at("spec.taints"), &Path::new("metadata").child("taints"));
    errs.extend(pod_cidrs(new, &Path::new("spec")));
    errs
}

fn pod_cidrs(new: &Value, p: &Path) -> FieldErrors {
    let cidrs = new.texts("spec.podCIDRs");
    let p = p.child("podCIDRs");
    let mut errs: FieldErrors =
        cidrs.iter().enumerate().flat_map(|(i, c)| names::cidr_legacy(&p.index(i), c, &[])).collect();
    if cidrs.len() > 2 {
        errs.push(FieldError::invalid(
            &p,
            new.at("spec.podCIDRs").clone(),
            "may specify no more than one CIDR for each IP family",
        ));
    }
    if let [a, b] = cidrs[..]
        && a.contains(':') == b.contains(':')
    {
        let m = "may specify no more than one CIDR for each IP family";
        errs.push(FieldError::invalid(&p, new.at("spec.podCIDRs").clone(), m));
    }
    errs
}

/// Taints: a valid key, value and effect, no pair of key and effect twice.
fn taints(list: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, t) in list.list("").iter().enumerate() {
        let p = path.index(i);
        let (key, value, effect) = (t.text("key"), t.text("value"), t.text("effect"));
        errs.extend(metadata::label_name(key, &p.child("key")));
        let msgs = names::label_value(value);
        if !msgs.is_empty() {
            errs.push(FieldError::invalid(&p.child("value"), value, msgs.join(";")));
        }
        errs.extend(taint_effect(effect, false, &p.child("effect")));
        if !seen.insert((key, effect)) {
            let mut e = FieldError::duplicate(&p, Value::Null);
            // The path leads nowhere, so the internal struct is written here.
            let (key, value, effect) = (Value::from(key), Value::from(value), Value::from(effect));
            let added = t.at("timeAdded");
            e.shown = Some(format!(r#"{{"Key":{key},"Value":{value},"Effect":{effect},"TimeAdded":{added}}}"#));
            e.detail = "taints must be unique by key and effect pair".into();
            errs.push(e);
        }
    }
    errs
}

/// The effect of a taint or of a toleration.
pub(crate) fn taint_effect(effect: &str, may_be_empty: bool, path: &Path) -> FieldErrors {
    match effect {
        "" if may_be_empty => Vec::new(),
        "" => vec![FieldError::required(path, "")],
        "NoSchedule" | "PreferNoSchedule" | "NoExecute" => Vec::new(),
        other => vec![FieldError::not_supported(path, other, &["NoSchedule", "PreferNoSchedule", "NoExecute"])],
    }
}

fn update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    let p = Path::new("status").child("addresses");
    for (i, a) in new.list("status.addresses").iter().enumerate() {
        if !seen.insert((a.text("type"), a.text("address"))) {
            errs.push(FieldError::duplicate(&p.index(i), a.clone()));
        }
    }
    let cidrs = new.list("spec.podCIDRs");
    let had = old.list("spec.podCIDRs");
    if !had.is_empty() && cidrs != had {
        let m = "node updates may not change podCIDR except from \"\" to valid";
        errs.push(FieldError::forbidden(&Path::new("spec").child("podCIDRs"), m));
    }
    let (id, before) = (new.text("spec.providerID"), old.text("spec.providerID"));
    if !before.is_empty() && before != id {
        let m = if id.is_empty() { "field cannot be cleared once set" } else { "field cannot be modified once set" };
        errs.push(FieldError::invalid(&Path::new("spec").child("providerID"), Value::Null, m));
    }
    errs.extend(taints(new.at("spec.taints"), &Path::new("metadata").child("taints")));
    if new.text("spec.externalID") != old.text("spec.externalID") {
        errs.push(FieldError::forbidden(&Path::new("spec").child("externalID"), "may not be updated"));
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn taints_and_cidrs() {
        let node = json!({"spec": {"podCIDRs": ["10.0.0.0/24"], "taints": [
            {"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule"}, {"key": "b", "effect": "Odd"}, {"key": "c"}]}});
        let errs: Vec<String> = create(&node).iter().map(ToString::to_string).collect();
        assert_eq!(errs.len(), 3, "{errs:?}");
        assert_eq!(
            errs[1],
            "metadata.taints[2].effect: Unsupported value: \"Odd\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\""
        );
        assert_eq!(errs[2], "metadata.taints[3].effect: Required value");
        let errs =
            update(&json!({"spec": {"podCIDRs": ["10.0.1.0/24"]}}), &json!({"spec": {"podCIDRs": ["10.0.0.0/24"]}}));
        assert_eq!(
            errs[0].to_string(),
            "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"
        );
    }
}
