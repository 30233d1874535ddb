//! The smallest strategic merge patch that brings a pod's status in the API to what the kubelet has. Pure.

use crate::conditions::OWNED;
use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// The fields of the status that the kubelet writes; others are left alone.
const FIELDS: [&str; 14] = [
    "observedGeneration",
    "phase",
    "conditions",
    "message",
    "reason",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "qosClass",
];

pub fn to_json(status: &PodStatus) -> Value {
    serde_json::to_value(status).unwrap_or_default()
}

/// `None`: nothing to write.
pub fn diff(old: &Value, new: &Value) -> Option<Value> {
    let mut out = Map::new();
    for field in FIELDS {
        let (before, after) = (&old[field], &new[field]);
        if before == after {
            continue;
        }
        let value = match field {
            "conditions" => match conditions(before, after) {
                Some(v) => v,
                None => continue,
            },
            // Merged by key: what is gone must be said to be gone.
            "podIPs" | "hostIPs" if after.is_array() && before.is_array() => {
                let mut list = vec![json!({"$patch": "replace"})];
                list.extend(after.as_array().cloned().unwrap_or_default());
                Value::Array(list)
            }
            _ => after.clone(),
        };
        out.insert(field.to_owned(), value);
    }
    (!out.is_empty()).then(|| json!({"status": out}))
}

/// The owned conditions that changed, with fields that went away as null.
fn conditions(before: &Value, after: &Value) -> Option<Value> {
    let find = |list: &Value, kind: &str| list.as_array().into_iter().flatten().find(|c| c["type"] == kind).cloned();
    let mut out = Vec::new();
    for kind in OWNED {
        let was = find(before, kind);
        let Some(mut now) = find(after, kind) else {
            if was.is_some() {
                out.push(json!({"$patch": "delete", "type": kind}));
            }
            continue;
        };
        let was = was.unwrap_or_default();
        // The API shows a null probe time where we have none.
        let bare = |v: &Value| {
            let mut v = v.clone();
            if let Some(m) = v.as_object_mut() {
                m.retain(|_, x| !x.is_null());
            }
            v
        };
        if bare(&now) == bare(&was) {
            continue;
        }
        for key in was.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null()).map(|(k, _)| k) {
            if now.get(key).is_none() {
                now[key] = Value::Null;
            }
        }
        out.push(now);
    }
    (!out.is_empty()).then_some(Value::Array(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_written() {
        let old = json!({"phase": "Pending", "podIPs": [{"ip": "1"}], "resize": "x", "conditions": [
            {"type": "Ready", "status": "False", "reason": "A", "lastProbeTime": null},
            {"type": "PodScheduled", "status": "True", "lastProbeTime": null},
            {"type": "PodResizePending", "status": "True"}, {"type": "other.io/x", "status": "True"}]});
        let new = json!({"phase": "Running", "podIPs": [{"ip": "2"}], "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]});
        let want = json!({"status": {"phase": "Running", "podIPs": [{"$patch": "replace"}, {"ip": "2"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": null},
            {"$patch": "delete", "type": "PodResizePending"}]}});
        assert_eq!(diff(&old, &new), Some(want));
        assert_eq!(diff(&new, &new), None);
        assert_eq!(diff(&json!({"reason": "x"}), &json!({})), Some(json!({"status": {"reason": null}})));
    }
}
