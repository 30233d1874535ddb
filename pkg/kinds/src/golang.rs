//! How Go prints values in field errors. Upstream marshals the offending value: a struct of the internal API has no tags,
//! so its fields show under Go's names and none is left out; versioned structs (those of `meta/v1`) show as their JSON, in
//! the order of the source.
//!
//! Invariant: only the shown value of an error changes, never whether there is one.

use crate::access::{self, Access};
use isopod_api::{Difference, FieldErrors, Gvk};
use isopod_schema::types::{Field, List, Node, Object, ObjectRef};
use serde_json::Value;
use std::sync::Arc;

/// Puts errors into upstream's order and words: those that declarative rules give come last, and structs are shown as Go
/// marshals them. `schema` is the kind's, `sent` the object as the client sent it: what it sent empty shows as empty.
pub fn finish(errors: FieldErrors, schema: &Object, sent: &Value) -> FieldErrors {
    let (last, first): (Vec<_>, Vec<_>) = errors.into_iter().partition(|e| e.declared);
    let mut errors: FieldErrors = first.into_iter().chain(last).collect();
    if schema.custom {
        return errors;
    }
    // What hand-written and declarative rules both say is said once, of the kinds that have both.
    if schema.name.starts_with("io.k8s.api.") {
        let mut seen: FieldErrors = Vec::new();
        errors.retain(|e| {
            let is_new = !seen.contains(e);
            seen.extend(is_new.then(|| e.clone()));
            is_new
        });
    }
    for e in &mut errors {
        if let Some(change) = e.difference.take() {
            let text = diff(&change, at(sent, &e.field));
            e.detail.push_str(&text);
            continue;
        }
        if e.shown.as_deref() == Some("null") {
            // Declarative rules show no value at all.
            let field = e.value_of.as_deref().unwrap_or(&e.field);
            let is_collection = matches!(find(schema, field), Some(Node::List(_) | Node::Map(_) | Node::Bytes));
            let empty = at(sent, field).filter(|v| is_collection && !e.declared && !v.is_null() && access::is_empty(v));
            e.shown = empty.map(Value::to_string).or_else(|| Some("null".to_owned()));
            continue;
        }
        let Some(shown) = e.shown.as_deref().filter(|s| s.starts_with(['{', '['])) else { continue };
        // What a validator wrote in Go's names is left as it is.
        if shown.chars().find(|c| c.is_alphabetic()).is_some_and(char::is_uppercase) {
            continue;
        }
        let Ok(value) = serde_json::from_str::<Value>(shown) else { continue };
        let mut out = String::new();
        // Events of the newer group are validated in their stored form.
        let newer = schema.field("regarding").is_some();
        let field = if newer { e.field.replace("involvedObject", "regarding") } else { e.field.clone() };
        // Some paths of upstream's begin at the spec.
        match find(schema, &field).or_else(|| find(schema, &format!("spec.{field}"))) {
            Some(node) if e.declared => versioned(&mut out, &value, node),
            Some(node) => write(&mut out, &value, node, false),
            None => escape(&mut out, &value),
        }
        e.shown = Some(out);
    }
    errors
}

/// The value at the path of an error.
fn at<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    let mut value = object;
    for part in path.split('.') {
        let (name, indexes) = part.find('[').map_or((part, ""), |i| part.split_at(i));
        value = value.get(name)?;
        for index in indexes.split(['[', ']']).filter(|i| !i.is_empty()) {
            value = if value.is_array() { value.get(index.parse::<usize>().ok()?)? } else { value.get(index)? };
        }
    }
    Some(value)
}

/// The type at the path of an error: `spec.ports[0].port`, `spec.limits[cpu]`.
fn find<'a>(schema: &'a Object, path: &str) -> Option<&'a Node> {
    let mut object = schema;
    let mut node: Option<&Node> = None;
    for part in path.split('.') {
        let (name, indexes) = part.find('[').map_or((part, ""), |i| part.split_at(i));
        if let Some(n) = node {
            object = match n {
                Node::Object(o) => o.get(),
                _ => return None,
            };
        }
        node = Some(&object.field(name)?.node);
        for _ in indexes.matches('[') {
            node = Some(match node? {
                Node::List(l) => &l.item,
                Node::Map(m) => &m.value,
                _ => return None,
            });
        }
    }
    node
}

/// A kind's internal type in Go: `core.Pod`, `rbac.Role`. Events of either group are the core group's.
pub fn internal_type(gvk: &Gvk) -> String {
    let package = match gvk.group.as_str() {
        "" | "events.k8s.io" => "core",
        "internal.apiserver.k8s.io" => "apiserverinternal",
        group => group.split('.').next().unwrap_or_default(),
    };
    format!("{package}.{}", gvk.kind)
}

/// Types of `meta/v1` are one and the same inside and outside.
fn is_internal(object: &Object) -> bool {
    ["io.k8s.api.", "io.k8s.kube-aggregator.", "io.k8s.apiextensions-apiserver."]
        .iter()
        .any(|p| object.name.starts_with(p))
}

fn write(out: &mut String, value: &Value, node: &Node, zero: bool) {
    match (node, value) {
        (Node::Object(o), Value::Object(_) | Value::Null) if is_internal(o.get()) => {
            if value.is_null() && !zero {
                return out.push_str("null");
            }
            internal(out, value, in_go_order(o.get()).into_iter());
        }
        (Node::Object(o), Value::Object(map)) => {
            let known = o.get().fields.iter().filter(|f| map.contains_key(&f.name));
            list(out, '{', '}', known, |out, f| {
                escape(out, &Value::from(f.name.as_str()));
                out.push(':');
                write(out, &map[&f.name], &f.node, false);
            });
        }
        (Node::List(l), Value::Array(items)) => {
            list(out, '[', ']', items.iter(), |out, v| write(out, v, &l.item, true));
        }
        (Node::Map(m), Value::Object(map)) => {
            list(out, '{', '}', map.iter(), |out, (k, v)| {
                escape(out, &Value::from(k.as_str()));
                out.push(':');
                write(out, v, &m.value, true);
            });
        }
        (Node::SchemaOrBool(o), v) => {
            out.push_str(&format!("{{\"Allows\":{},\"Schema\":", *v != Value::Bool(false)));
            write(out, if v.is_object() { v } else { &Value::Null }, &Node::Object(o.clone()), false);
            out.push('}');
        }
        (Node::SchemaOrArray(o), v) => alternatives(out, v, o, "JSONSchemas"),
        (Node::SchemaOrStringArray(o), v) => alternatives(out, v, o, "Property"),
        (_, Value::Null) if zero => escape(out, &isopod_schema::json::zero(node)),
        _ => escape(out, value),
    }
}

/// An internal struct, of these fields. What has a name of its own outside is inlined inside: the metadata's fields stand
/// among the others, and the type is not said.
fn internal<'f>(out: &mut String, value: &Value, fields: impl Iterator<Item = &'f Field>) {
    let mut parts: Vec<String> = Vec::new();
    for f in fields.filter(|f| &*f.embedded != "TypeMeta") {
        let (mut part, inner) = (String::new(), value.get(&f.name).unwrap_or(&Value::Null));
        if matches!(f.go_name.as_deref(), Some("ObjectMeta" | "ListMeta")) {
            write(&mut part, inner, &f.node, false);
            let inside = part.strip_prefix('{').and_then(|p| p.strip_suffix('}')).filter(|p| !p.is_empty());
            parts.extend(inside.map(str::to_owned));
            continue;
        }
        escape(&mut part, &Value::from(go_name(f)));
        part.push(':');
        field(&mut part, inner, f);
        parts.push(part);
    }
    out.push('{');
    out.push_str(&parts.join(","));
    out.push('}');
}

/// What has changed, line by line. `sent` is what the client sent in the place of the new value.
fn diff(change: &Difference, sent: Option<&Value>) -> String {
    let Some(object) = isopod_schema::facts::builtin().object(change.definition) else { return String::new() };
    let mut new = change.new.clone();
    if let Some(sent) = sent {
        restore_empty(&mut new, sent, &object);
    }
    let text = |value: &Value| {
        let mut out = String::new();
        let shows = |f: &&Field| change.inlined.is_empty() || *f.embedded == *change.inlined;
        internal(&mut out, value, object.fields.iter().filter(shows));
        indented(&out)
    };
    crate::diff::unified(&text(&change.old), &text(&new))
}

/// Puts lists and maps back that a client sent empty: they are not stored, but upstream shows them.
fn restore_empty(value: &mut Value, sent: &Value, object: &Object) {
    for f in &object.fields {
        let Some(given) = sent.get(&f.name).filter(|v| !v.is_null()) else { continue };
        match (&f.node, value.get_mut(&f.name)) {
            (Node::List(_) | Node::Map(_), None) if access::is_empty(given) => value[&f.name] = given.clone(),
            (Node::Object(o), Some(inner)) => restore_empty(inner, given, o.get()),
            (Node::List(l), Some(Value::Array(items))) => {
                if let (Node::Object(o), Some(all)) = (&l.item, given.as_array().filter(|g| g.len() == items.len())) {
                    items.iter_mut().zip(all).for_each(|(item, given)| restore_empty(item, given, o.get()));
                }
            }
            _ => {}
        }
    }
}

/// Compact JSON with a line for each value, one space a level, as Go indents it.
fn indented(compact: &str) -> String {
    let mut out = String::with_capacity(compact.len() * 2);
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    let mut chars = compact.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', depth));
    };
    while let Some(c) = chars.next() {
        match c {
            _ if quoted => {
                out.push(c);
                quoted = escaped || c != '"';
                escaped = c == '\\' && !escaped;
            }
            '{' | '[' => {
                out.push(c);
                if let Some(close) = chars.next_if(|n| matches!(n, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c => {
                quoted = c == '"';
                out.push(c);
            }
        }
    }
    out
}

/// Declarative rules look at the versioned struct: its JSON, in the order of the source.
fn versioned(out: &mut String, value: &Value, node: &Node) {
    match (node, value) {
        (Node::Object(o), Value::Object(map)) => {
            let known = o.get().fields.iter().filter(|f| map.contains_key(&f.name));
            list(out, '{', '}', known, |out, f| {
                escape(out, &Value::from(f.name.as_str()));
                out.push(':');
                versioned(out, &map[&f.name], &f.node);
            });
        }
        (Node::List(l), Value::Array(items)) => list(out, '[', ']', items.iter(), |out, v| versioned(out, v, &l.item)),
        (Node::Map(m), Value::Object(map)) => {
            list(out, '{', '}', map.iter(), |out, (k, v)| {
                escape(out, &Value::from(k.as_str()));
                out.push(':');
                versioned(out, v, &m.value);
            });
        }
        _ => escape(out, value),
    }
}

/// A schema or a list: a struct with a field for either.
fn alternatives(out: &mut String, value: &Value, schema: &ObjectRef, list: &str) {
    let (one, many) = if value.is_array() { (&Value::Null, value) } else { (value, &Value::Null) };
    let schema = Node::Object(schema.clone());
    out.push_str("{\"Schema\":");
    write(out, one, &schema, false);
    out.push_str(&format!(",\"{list}\":"));
    write(out, many, &Node::List(Arc::new(List::of(schema))), false);
    out.push('}');
}

/// The fields as the internal struct has them, which is not always the order of the versioned one.
fn in_go_order(object: &Object) -> Vec<&Field> {
    let mut fields: Vec<&Field> = object.fields.iter().collect();
    let at = |name: &str| object.fields.iter().position(|f| f.name == name);
    if object.name.ends_with(".JSONSchemaProps")
        && let (Some(from), Some(to)) = (at("nullable"), at("format"))
    {
        let nullable = fields.remove(from);
        fields.insert(to, nullable);
    }
    fields
}

/// A field of an internal struct: absent means Go's zero value, `null` for pointers, lists and maps.
fn field(out: &mut String, value: &Value, f: &Field) {
    let nil = f.pointer || matches!(f.node, Node::List(_) | Node::Map(_) | Node::Bytes);
    if value.is_null() && nil { out.push_str("null") } else { write(out, value, &f.node, !f.pointer) }
}

fn list<I: Iterator>(out: &mut String, open: char, close: char, items: I, each: impl Fn(&mut String, I::Item)) {
    out.push(open);
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(',');
        }
        each(out, item);
    }
    out.push(close);
}

/// A `LabelSelector` as its `String` method prints it.
pub fn label_selector(selector: &Value) -> String {
    let labels: String = selector.entries("matchLabels").iter().map(|(k, v)| format!("{k}: {},", v.text(""))).collect();
    let rules: String = selector.list("matchExpressions").iter().map(label_requirement).collect();
    let (labels, rules) = (format!("map[string]string{{{labels}}}"), format!("[]LabelSelectorRequirement{{{rules}}}"));
    format!("&LabelSelector{{MatchLabels:{labels},MatchExpressions:{rules},}}")
}

fn label_requirement(rule: &Value) -> String {
    let values = rule.texts("values").join(" ");
    let (key, operator) = (rule.text("key"), rule.text("operator"));
    format!("LabelSelectorRequirement{{Key:{key},Operator:{operator},Values:[{values}],}},")
}

/// Plain JSON as Go's encoder writes it.
fn escape(out: &mut String, value: &Value) {
    out.push_str(&isopod_schema::json::html_escaped(&value.to_string()));
}

/// The Go name of a field: `name` is `Name`, and the facts know the others.
fn go_name(field: &Field) -> String {
    if let Some(name) = &field.go_name {
        return name.to_string();
    }
    let mut chars = field.name.chars();
    chars.next().map_or_else(String::new, |c| c.to_ascii_uppercase().to_string() + chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_api::{FieldError, Gvk, Path};
    use isopod_schema::facts;
    use serde_json::json;

    fn shown(gvk: &Gvk, path: &str, value: Value) -> String {
        let schema = facts::builtin().object_of(gvk).expect("built in");
        let errors = finish(vec![FieldError::invalid(&Path::new(path), value, "")], &schema, &Value::Null);
        errors[0].shown.clone().expect("it was shown before")
    }

    #[test]
    fn structs_show_as_go_marshals_them() {
        let binding = Gvk::new("rbac.authorization.k8s.io", "v1", "RoleBinding");
        let role = json!({"kind": "", "apiGroup": "rbac.authorization.k8s.io"});
        assert_eq!(shown(&binding, "roleRef", role), r#"{"APIGroup":"rbac.authorization.k8s.io","Kind":"","Name":""}"#);
        let cidr = Gvk::new("networking.k8s.io", "v1", "ServiceCIDR");
        assert_eq!(shown(&cidr, "spec", json!({"cidrs": ["a<b"]})), r#"{"CIDRs":["a\u003cb"]}"#);
        let owner = json!([{"apiVersion": "v1", "controller": true, "kind": "Pod", "name": "a", "uid": "1"}]);
        assert_eq!(
            shown(&cidr, "metadata.ownerReferences", owner),
            r#"[{"apiVersion":"v1","kind":"Pod","name":"a","uid":"1","controller":true}]"#
        );
    }

    #[test]
    fn what_was_sent_empty_shows_as_empty() {
        let schema = facts::builtin().object_of(&Gvk::new("", "v1", "Pod")).expect("built in");
        let sent = json!({"spec": {"nodeSelector": {}, "affinity": {}, "containers": [{"args": []}]}});
        for (path, want) in [
            ("spec.nodeSelector", "{}"),
            ("spec.containers[0].args", "[]"),
            ("spec.tolerations", "null"),
            ("spec.affinity", "null"),
        ] {
            let errors = finish(vec![FieldError::invalid(&Path::new(path), Value::Null, "")], &schema, &sent);
            assert_eq!(errors[0].shown.as_deref(), Some(want), "{path}");
        }
        let of_another =
            FieldError::invalid(&Path::new("spec"), Value::Null, "").showing(&Path::new("spec.nodeSelector"));
        assert_eq!(finish(vec![of_another], &schema, &sent)[0].shown.as_deref(), Some("{}"));
    }

    #[test]
    fn selectors() {
        let rule = json!({"key": "c", "operator": "In", "values": ["d", "e"]});
        let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [rule]});
        assert_eq!(
            label_selector(&selector),
            "&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{LabelSelectorRequirement{Key:c,Operator:In,Values:[d e],},},}"
        );
    }

    #[test]
    fn templates_and_schemas() {
        let template = Gvk::new("resource.k8s.io", "v1", "ResourceClaimTemplate");
        let spec = json!({"metadata": {"labels": {"a": "b"}}, "spec": {}});
        let wanted = r#"{"labels":{"a":"b"},"Spec":{"Devices":{"Requests":null,"Constraints":null,"Config":null}}}"#;
        assert_eq!(shown(&template, "spec", spec), wanted);
        let definition = Gvk::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let schema = json!({"type": "object", "additionalProperties": false, "x-kubernetes-list-map-keys": ["a"],
            "items": {"type": "string"}});
        let text = shown(&definition, "spec.versions[0].schema.openAPIV3Schema", schema);
        for part in [
            r#"{"ID":"","Schema":"","Ref":null,"Description":"","Type":"object","Nullable":false,"#,
            r#""Items":{"Schema":{"ID":"","#,
            r#"},"JSONSchemas":null},"AllOf":null"#,
            r#""AdditionalProperties":{"Allows":false,"Schema":null}"#,
            r#""XListMapKeys":["a"],"XListType":null"#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn declarative_errors_show_the_version() {
        let claim = facts::builtin().object_of(&Gvk::new("resource.k8s.io", "v1", "ResourceClaim")).expect("built in");
        let request = json!({"exactly": {"count": 1, "deviceClassName": "c"}, "name": "r"});
        let e = FieldError::duplicate(&Path::new("spec.devices.requests[1]"), request).declared();
        let wanted = r#"{"name":"r","exactly":{"deviceClassName":"c","count":1}}"#;
        assert_eq!(finish(vec![e], &claim, &Value::Null)[0].shown.as_deref(), Some(wanted));
    }

    #[test]
    fn declarative_errors_come_last() {
        let schema = facts::builtin().object_of(&Gvk::new("", "v1", "Pod")).expect("built in");
        let e = |p: &str| FieldError::required(&Path::new(p), "");
        let errors = finish(vec![e("spec").declared(), e("metadata")], &schema, &Value::Null);
        assert_eq!((errors[0].field.as_str(), errors[1].field.as_str()), ("metadata", "spec"));
    }

    #[test]
    fn differences_show_line_by_line() {
        let old = json!({"name": "a", "image": "x", "securityContext": {"seLinuxOptions": {"level": "s0"}}});
        let mut new = old.clone();
        new["image"] = json!("y\\\",{");
        let change = |old: &Value, new: &Value, definition, inlined| Difference {
            old: old.clone(),
            new: new.clone(),
            definition,
            inlined,
        };
        let container = "io.k8s.api.core.v1.Container";
        assert_eq!(
            diff(&change(&old, &new, container, ""), None),
            "@@ -1,6 +1,6 @@\n {\n  \"Name\": \"a\",\n- \"Image\": \"x\",\n+ \"Image\": \"y\\\\\\\",{\",\n  \"Command\": null,\n  \"Args\": null,\n  \"WorkingDir\": \"\",\n"
        );
        let sent = json!({"name": "a", "image": "x", "command": []});
        assert_eq!(
            diff(&change(&old, &old, container, ""), Some(&sent)),
            "@@ -1,7 +1,7 @@\n {\n  \"Name\": \"a\",\n  \"Image\": \"x\",\n- \"Command\": null,\n+ \"Command\": [],\n  \"Args\": null,\n  \"WorkingDir\": \"\",\n  \"Ports\": null,\n"
        );
        let volume = |name: &str| json!({"csi": {"driver": name}, "accessModes": ["x"]});
        let spec = "io.k8s.api.core.v1.PersistentVolumeSpec";
        let shown = diff(&change(&volume("a"), &volume("b"), spec, "PersistentVolumeSource"), None);
        assert!(shown.contains("  \"CSI\": {\n-  \"Driver\": \"a\",\n+  \"Driver\": \"b\",\n"), "{shown}");
        let mut template = String::new();
        let of_template = Node::Object(isopod_schema::types::ObjectRef::new(
            facts::builtin().object("io.k8s.api.core.v1.EphemeralVolumeSource").expect("built in"),
        ));
        let volume = json!({"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {}}});
        write(&mut template, &volume, &of_template, false);
        assert!(
            template.starts_with(r#"{"VolumeClaimTemplate":{"labels":{"a":"b"},"Spec":{"AccessModes":null"#),
            "{template}"
        );
    }
}
