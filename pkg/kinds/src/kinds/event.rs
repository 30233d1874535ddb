//! Events: one stored form (core/v1), served as core/v1 and as events.k8s.io/v1.

use crate::access::{Access, set};
use crate::strategy::{STATELESS, Strategy};
use isopod_api::{FieldError, FieldErrors, Path, names};
use serde_json::{Value, json};

const BASE: Strategy = Strategy { create_on_update: true, ..STATELESS };

pub const CORE: Strategy = Strategy {
    fields: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    select,
    create: validate,
    update: |new, _| validate(new),
    ..BASE
};

pub const NEW: Strategy = Strategy {
    fields: &[
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "regarding.apiVersion",
        "regarding.resourceVersion",
        "regarding.fieldPath",
        "reason",
        "reportingController",
        "type",
    ],
    select,
    create: validate_new,
    update: validate_new_update,
    to_storage,
    from_storage,
    ..BASE
};

/// Names of the same fields: core/v1, events.k8s.io/v1.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(obj: &mut Value, api_version: &str, pairs: impl Iterator<Item = (&'static str, &'static str)>) {
    let Value::Object(map) = obj else { return };
    for (from, to) in pairs {
        if let Some(v) = map.remove(from) {
            map.insert(to.to_owned(), v);
        }
    }
    set(obj, "apiVersion", api_version);
}

fn to_storage(obj: &mut Value) {
    rename(obj, "v1", RENAMED.into_iter().map(|(core, new)| (new, core)));
    // Go's core type holds these by value.
    for (field, zero) in [
        ("involvedObject", json!({})),
        ("source", json!({})),
        ("firstTimestamp", Value::Null),
        ("lastTimestamp", Value::Null),
        ("reportingComponent", "".into()),
        ("reportingInstance", "".into()),
    ] {
        if obj.get(field).is_none() {
            set(obj, field, zero);
        }
    }
}

fn from_storage(obj: &mut Value) {
    rename(obj, "events.k8s.io/v1", RENAMED.into_iter());
    for f in ["deprecatedSource", "regarding"] {
        if obj.get(f).is_none() {
            set(obj, f, json!({}));
        }
    }
    if let Value::Object(map) = obj {
        map.retain(|k, v| !(k.starts_with("deprecated") && (v.is_null() || *v == json!(0)) || v == ""));
    }
    for f in ["deprecatedFirstTimestamp", "deprecatedLastTimestamp", "eventTime"] {
        if obj.get(f).is_none() {
            set(obj, f, Value::Null);
        }
    }
}

/// A field by the name of either group, from an object of either form.
fn select(obj: &Value, path: &str) -> String {
    let (head, rest) = path.split_once('.').unwrap_or((path, ""));
    let twin = RENAMED.iter().find(|(a, b)| *a == head || *b == head);
    let heads = twin.map_or([head, head], |(a, b)| [a, b]);
    for h in heads {
        let v = obj.at(h).at(rest);
        let text = match (path, v) {
            ("source", v) => v.text("component"),
            (_, v) => v.as_str().unwrap_or(""),
        };
        if !text.is_empty() {
            return text.to_owned();
        }
    }
    // `source` falls back to the reporter.
    if path == "source" { obj.text("reportingComponent").to_owned() } else { String::new() }
}

/// The namespace of a namespaced object's event is the object's; a cluster object's is `default` or `kube-system`.
fn namespace_matches(event: &Value) -> FieldErrors {
    let involved = if event.has("regarding") { "regarding" } else { "involvedObject" };
    let (of_object, own) = (event.at(involved).text("namespace"), event.text("metadata.namespace"));
    let p = Path::new("involvedObject").child("namespace");
    if of_object.is_empty() {
        if !matches!(own, "default" | "kube-system" | "") {
            return vec![FieldError::invalid(&p, of_object, "does not match event.namespace")];
        }
    } else if of_object != own {
        return vec![FieldError::invalid(&p, of_object, "does not match event.namespace")];
    }
    Vec::new()
}

fn validate(event: &Value) -> FieldErrors {
    let mut errs = Vec::new();
    // An event with an eventTime keeps the rules of the newer group.
    if event.has("eventTime") {
        errs.extend(namespace_matches(event));
        errs.extend(new_rules(event, "reportingComponent", "message"));
    } else {
        errs.extend(namespace_matches(event));
    }
    let ns = event.text("metadata.namespace");
    errs.extend(names::dns1123_subdomain(ns).into_iter().map(|m| FieldError::invalid(&Path::new("namespace"), ns, m)));
    errs
}

fn new_rules(event: &Value, controller: &str, note: &str) -> FieldErrors {
    let mut errs = Vec::new();
    let p = Path::new("reportingController");
    let name = event.text(controller);
    if name.is_empty() {
        errs.push(FieldError::required(&p, ""));
    }
    errs.extend(names::qualified_name(name).into_iter().map(|m| FieldError::invalid(&p, name, m)));
    let limits =
        [("reportingInstance", "reportingInstance", 128), ("action", "action", 128), ("reason", "reason", 128)];
    for (field, shown, max) in limits {
        let (v, p) = (event.text(field), Path::new(shown));
        if v.is_empty() {
            errs.push(FieldError::required(&p, ""));
        }
        if v.len() > max {
            let m = format!("can have at most {max} characters");
            errs.push(FieldError::invalid(&p, v, m));
        }
    }
    if event.text(note).len() > 1024 {
        errs.push(FieldError::invalid(&Path::new("message"), "", "can have at most 1024 characters"));
    }
    errs
}

fn validate_new(event: &Value) -> FieldErrors {
    let mut errs = namespace_matches(event);
    if !event.has("eventTime") {
        errs.push(FieldError::required(&Path::new("eventTime"), ""));
    }
    let kind = event.text("type");
    if !matches!(kind, "Normal" | "Warning") {
        let m = format!("has invalid value: {kind}");
        errs.push(FieldError::invalid(&Path::new("type"), "", m));
    }
    for (field, shown) in [("deprecatedFirstTimestamp", "firstTimestamp"), ("deprecatedLastTimestamp", "lastTimestamp")]
    {
        if event.has(field) {
            errs.push(FieldError::invalid(&Path::new(shown), "", "needs to be unset"));
        }
    }
    errs.extend(new_rules(event, "reportingController", "note"));
    errs
}

/// Of an events.k8s.io event only the series and the metadata change.
fn validate_new_update(new: &Value, old: &Value) -> FieldErrors {
    let fixed = [
        "regarding",
        "reason",
        "note",
        "deprecatedSource",
        "deprecatedFirstTimestamp",
        "deprecatedLastTimestamp",
        "deprecatedCount",
        "type",
        "action",
        "related",
        "reportingController",
        "reportingInstance",
        "eventTime",
    ];
    fixed.iter().flat_map(|f| crate::metadata::immutable(new, old, f, &Path::root())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let new = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "n"},
            "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "k8s.io/x", "reportingInstance": "x-1",
            "action": "a", "reason": "r", "note": "hello", "type": "Normal",
            "regarding": {"kind": "Pod", "name": "p", "namespace": "n"}, "deprecatedSource": {},
            "deprecatedFirstTimestamp": null, "deprecatedLastTimestamp": null,
        });
        let mut v = new.clone();
        to_storage(&mut v);
        assert_eq!((v.text("message"), v.text("apiVersion"), v.text("involvedObject.name")), ("hello", "v1", "p"));
        for field in ["involvedObject.name", "regarding.name"] {
            assert_eq!((select(&v, field), select(&new, field)), ("p".into(), "p".into()));
        }
        assert_eq!(select(&v, "reportingController"), "k8s.io/x");
        assert!(validate(&v).is_empty(), "{:?}", validate(&v));
        from_storage(&mut v);
        assert_eq!(v, new);
        assert!(validate_new(&v).is_empty(), "{:?}", validate_new(&v));
    }

    #[test]
    fn an_event_stands_in_its_objects_namespace() {
        let e = json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "b"}});
        let errs = validate(&e);
        assert_eq!(
            errs[0].to_string(),
            "involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"
        );
        let e = json!({"metadata": {"namespace": "default"}, "involvedObject": {"kind": "Node"}});
        assert!(validate(&e).is_empty());
    }
}
