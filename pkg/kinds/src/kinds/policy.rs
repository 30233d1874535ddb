//! PodDisruptionBudgets, PriorityClasses and RuntimeClasses.

use crate::access::{Access, keep, set};
use crate::metadata::{conditions, immutable, label_selector, labels};
use crate::strategy::{PLAIN, STATELESS, Strategy};
use crate::validation::check::{
    at_most_100_percent, int_or_percent, invalid_each, non_negative, one_of, one_of_if_set, required,
};
use crate::validation::{resources, scheduling, warnings};
use isopod_api::{FieldError, FieldErrors, Path, names};
use serde_json::Value;

pub const DISRUPTION_BUDGET: Strategy = Strategy {
    unconditional_update: false,
    create: budget,
    update: |new, _| budget(new),
    update_status: |new, _| budget_status(new),
    ..PLAIN
};

pub const PRIORITY_CLASS: Strategy = Strategy {
    // It is 1 for good: updates do not count.
    prepare_create: |_, new| set(new, "metadata.generation", 1),
    prepare_update: |_, new, old| keep(new, old, "metadata.generation"),
    create: priority_class,
    update: priority_class_update,
    ..STATELESS
};

pub const RUNTIME_CLASS: Strategy = Strategy {
    create_on_update: true,
    unconditional_update: false,
    warnings: warnings::runtime_class,
    create: runtime_class,
    update: |new, old| immutable(new, old, "handler", &Path::root()),
    ..STATELESS
};

fn budget(b: &Value) -> FieldErrors {
    let (spec, p) = (b.at("spec"), Path::new("spec"));
    let mut errs = Vec::new();
    if spec.has("minAvailable") && spec.has("maxUnavailable") {
        let m = "minAvailable and maxUnavailable cannot be both set";
        errs.push(FieldError::invalid(&p, spec.clone(), m));
    }
    for f in ["minAvailable", "maxUnavailable"] {
        if spec.has(f) {
            errs.extend(int_or_percent(spec.at(f), &p.child(f)));
            errs.extend(at_most_100_percent(spec.at(f), &p.child(f)));
        }
    }
    errs.extend(label_selector(spec.at("selector"), &p.child("selector")));
    errs.extend(one_of_if_set(spec, "unhealthyPodEvictionPolicy", &["AlwaysAllow", "IfHealthyBudget"], &p));
    errs
}

fn budget_status(b: &Value) -> FieldErrors {
    let p = Path::new("status");
    let mut errs = conditions(b.at("status.conditions"), &p.child("conditions"));
    let counts = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
    errs.extend(non_negative(b.at("status"), &counts, &p));
    errs
}

/// Priorities above are the system's.
pub const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
const SYSTEM: [(&str, i64); 2] = [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

fn system_class_error(name: &str, value: i64, global: bool) -> Option<String> {
    match SYSTEM.iter().find(|(n, _)| *n == name) {
        None => Some(format!("{name} is not a known system priority class")),
        Some((_, v)) if *v != value => Some(format!("value of {name} PriorityClass must be {v}")),
        Some(_) if global => Some(format!("globalDefault of {name} PriorityClass must be false")),
        Some(_) => None,
    }
}

fn priority_class(c: &Value) -> FieldErrors {
    let (name, value) = (c.text("metadata.name"), c.int_or("value", 0));
    let mut errs = Vec::new();
    if name.starts_with("system-") {
        if let Some(why) = system_class_error(name, value, c.flag("globalDefault")) {
            let m =
                format!("priority class names with 'system-' prefix are reserved for system use only. error: {why}");
            errs.push(FieldError::forbidden(&Path::new("metadata").child("name"), m));
        }
    } else if value > HIGHEST_USER_PRIORITY {
        let m = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}");
        errs.push(FieldError::forbidden(&Path::new("value"), m));
    }
    if c.has("preemptionPolicy") {
        errs.extend(one_of(c, "preemptionPolicy", &["PreemptLowerPriority", "Never"], &Path::root()));
    }
    errs
}

fn priority_class_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errs = Vec::new();
    if new.int_or("value", 0) != old.int_or("value", 0) {
        errs.push(FieldError::forbidden(&Path::new("value"), "may not be changed in an update."));
    }
    errs.extend(immutable(new, old, "preemptionPolicy", &Path::root()));
    errs
}

fn runtime_class(c: &Value) -> FieldErrors {
    let mut errs = match c.text("handler") {
        "" => required(c, "handler", &Path::root()),
        h => invalid_each(&Path::new("handler"), h, names::in_bytes(names::dns1123_label(h))),
    };
    if c.has("overhead") {
        errs.extend(resources::overhead(c.at("overhead.podFixed"), &Path::new("overhead")));
    }
    let p = Path::new("scheduling");
    errs.extend(labels(c.at("scheduling.nodeSelector"), &p.child("nodeSelector")));
    let list = c.list("scheduling.tolerations");
    errs.extend(scheduling::tolerations(list, &p.child("tolerations")));
    let key = |t: &Value| ["key", "operator", "value", "effect"].map(|f| t.text(f).to_owned());
    for (i, t) in list.iter().enumerate() {
        if list[..i].iter().any(|o| key(o) == key(t)) {
            errs.push(FieldError::duplicate(&p.child("tolerations").index(i), t.clone()));
        }
    }
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
    fn budgets_and_priorities() {
        assert_eq!(say(budget(&json!({"spec": {"minAvailable": "50%"}}))), [""; 0]);
        assert_eq!(
            say(budget(&json!({"spec": {"maxUnavailable": "150%"}}))),
            ["spec.maxUnavailable: Invalid value: \"150%\": must not be greater than 100%"]
        );
        assert_eq!(
            say(priority_class(&json!({"metadata": {"name": "system-x"}, "value": 1}))),
            [
                "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-x is not a known system priority class"
            ]
        );
        assert_eq!(
            say(priority_class(&json!({"metadata": {"name": "x"}, "value": 2_000_000_000}))),
            ["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]
        );
        for o in crate::bootstrap::objects(&[]).iter().filter(|o| o["kind"] == "PriorityClass") {
            assert_eq!(say(priority_class(o)), [""; 0]);
        }
        assert_eq!(
            say(priority_class_update(&json!({"value": 1}), &json!({"value": 2}))),
            ["value: Forbidden: may not be changed in an update."]
        );
        assert_eq!(say(runtime_class(&json!({}))), ["handler: Required value"]);
    }
}
