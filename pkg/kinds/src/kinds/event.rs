//! Events: one stored form (core/v1), served as core/v1 and as events.k8s.io/v1.

use crate::access::{Access, same, set};
use crate::metadata::{self, immutable};
use crate::strategy::{STATELESS, Strategy};
use isopod_api::{FieldError, FieldErrors, Path, names};
use serde_json::{Value, json};
use std::borrow::Cow;

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
    select_from: &SELECT_FROM,
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
    select_from: &SELECT_FROM,
    stored_field,
    create: validate_new,
    update: validate_new_update,
    to_storage,
    from_storage,
    ..BASE
};

/// Where [`select`] looks, under both names.
const SELECT_FROM: [&str; 8] = [
    "involvedObject",
    "regarding",
    "reason",
    "reportingComponent",
    "reportingController",
    "source",
    "deprecatedSource",
    "type",
];

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

/// A field by its name in core/v1, where it is stored.
fn stored_field(field: &str) -> Cow<'_, str> {
    let (head, rest) = field.split_once('.').map_or((field, None), |(head, rest)| (head, Some(rest)));
    match (RENAMED.iter().find(|(_, new)| *new == head), rest) {
        (Some((core, _)), Some(rest)) => format!("{core}.{rest}").into(),
        (Some((core, _)), None) => (*core).into(),
        (None, _) => field.into(),
    }
}

/// The namespace of a namespaced object's event is the object's; a cluster object's is `default`, or for newer events
/// `kube-system`.
fn namespace_matches(event: &Value, newer: bool) -> FieldErrors {
    let (of_object, own) = (event.text("involvedObject.namespace"), event.text("metadata.namespace"));
    let fits = match (newer, of_object) {
        (true, "") => matches!(own, "default" | "kube-system"),
        (true, _) => true,
        (false, "") => matches!(own, "default" | ""),
        (false, ns) => ns == own,
    };
    if fits {
        return Vec::new();
    }
    let p = Path::new("involvedObject").child("namespace");
    vec![FieldError::invalid(&p, of_object, "does not match event.namespace")]
}

/// The rules of both groups, about the stored form. `reporter` is what the group calls the reporting controller.
fn common_rules(event: &Value, reporter: &str) -> FieldErrors {
    // An event with an eventTime keeps the rules of the newer group.
    let newer = event.has("eventTime");
    let mut errs = namespace_matches(event, newer);
    if !newer {
        return errs;
    }
    let (p, name) = (Path::new(reporter), event.text("reportingComponent"));
    if name.is_empty() {
        errs.push(FieldError::required(&p, ""));
    }
    errs.extend(names::qualified_name(name).into_iter().map(|m| FieldError::invalid(&p, name, m)));
    for field in ["reportingInstance", "action", "reason"] {
        let (v, p) = (event.text(field), Path::new(field));
        if v.is_empty() {
            errs.push(FieldError::required(&p, ""));
        }
        if v.len() > 128 {
            errs.push(FieldError::invalid(&p, "", "can have at most 128 characters"));
        }
    }
    if event.text("message").len() > 1024 {
        errs.push(FieldError::invalid(&Path::new("message"), "", "can have at most 1024 characters"));
    }
    errs
}

fn validate(event: &Value) -> FieldErrors {
    common_rules(event, "reportingComponent")
}

/// Rules are about the stored form, and name its fields.
fn stored(event: &Value) -> Value {
    let mut v = event.clone();
    to_storage(&mut v);
    v
}

fn series(event: &Value) -> FieldErrors {
    let mut errs = Vec::new();
    if event.has("series") {
        if event.int_or("series.count", 0) < 2 {
            errs.push(FieldError::invalid(&Path::new("series.count"), "", "should be at least 2"));
        }
        if !event.has("series.lastObservedTime") {
            errs.push(FieldError::required(&Path::new("series.lastObservedTime"), ""));
        }
    }
    errs
}

fn validate_new(event: &Value) -> FieldErrors {
    let event = &stored(event);
    let mut errs = common_rules(event, "reportingController");
    let (meta, path) = (event.at("metadata"), Path::new("metadata"));
    errs.extend(metadata::create(meta, true, &names::name_is_dns_subdomain, &path));
    errs.extend(metadata::kube_finalizers(meta, &path));
    errs.extend(series(event));
    if !event.has("eventTime") {
        errs.push(FieldError::required(&Path::new("eventTime"), ""));
    }
    let kind = event.text("type");
    if !matches!(kind, "Normal" | "Warning") {
        errs.push(FieldError::invalid(&Path::new("type"), "", format!("has invalid value: {kind}")));
    }
    let source = event.at("source");
    let used = [
        ("firstTimestamp", event.has("firstTimestamp")),
        ("lastTimestamp", event.has("lastTimestamp")),
        ("count", event.int_or("count", 0) != 0),
        ("source", !source.is_empty_at("component") || !source.is_empty_at("host")),
    ];
    for (field, _) in used.iter().filter(|(_, used)| *used) {
        errs.push(FieldError::invalid(&Path::new(field), "", "needs to be unset"));
    }
    errs
}

/// Of an events.k8s.io event only the series and the metadata change.
fn validate_new_update(new: &Value, old: &Value) -> FieldErrors {
    let (new, old) = (&stored(new), &stored(old));
    let mut errs = common_rules(new, "reportingController");
    if !same(new.at("series"), old.at("series")) {
        errs.extend(series(new));
    }
    let fixed = [
        "involvedObject",
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "type",
        "eventTime",
        "action",
        "related",
    ];
    errs.extend(fixed.iter().flat_map(|f| immutable(new, old, f, &Path::root())));
    let reporter = immutable(new, old, "reportingComponent", &Path::root());
    errs.extend(reporter.into_iter().map(|e| FieldError { field: "reportingController".into(), ..e }));
    errs.extend(immutable(new, old, "reportingInstance", &Path::root()));
    for e in errs.iter_mut().filter(|e| e.field == "eventTime" && !new.has("eventTime")) {
        e.shown = Some("null".into());
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_selected_by_their_stored_names() {
        for (field, want) in [
            ("reportingController", "reportingComponent"),
            ("regarding.name", "involvedObject.name"),
            ("reason", "reason"),
            ("metadata.name", "metadata.name"),
        ] {
            assert_eq!(stored_field(field), want);
        }
    }

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
