//! How Go prints values in field errors. Upstream marshals the offending value: a struct of the internal API has no tags,
//! so its fields show under Go's names and none is left out; versioned structs (those of `meta/v1`) show as their JSON, in
//! the order of the source.
//!
//! Invariant: only the shown value of an error changes, never whether there is one.

use isopod_api::{FieldErrors, Gvk};
use isopod_schema::types::{Field, Node, Object};
use serde_json::Value;

/// Puts errors into upstream's order and words: those that declarative rules give come last, and structs are shown as Go
/// marshals them. `schema` is the kind's.
pub fn finish(errors: FieldErrors, schema: &Object) -> FieldErrors {
    let (last, first): (Vec<_>, Vec<_>) = errors.into_iter().partition(|e| e.declared);
    let mut errors: FieldErrors = first.into_iter().chain(last).collect();
    if schema.custom {
        return errors;
    }
    for e in &mut errors {
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
        match find(schema, &field) {
            Some(node) => write(&mut out, &value, node, false),
            None => escape(&mut out, &value),
        }
        e.shown = Some(out);
    }
    errors
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
    object.name.starts_with("io.k8s.api.") || object.name.starts_with("io.k8s.kube-aggregator.")
}

fn write(out: &mut String, value: &Value, node: &Node, zero: bool) {
    match (node, value) {
        (Node::Object(o), Value::Object(_) | Value::Null) if is_internal(o.get()) => {
            if value.is_null() && !zero {
                return out.push_str("null");
            }
            list(out, '{', '}', o.get().fields.iter(), |out, f| {
                escape(out, &Value::from(go_name(&f.name)));
                out.push(':');
                field(out, value.get(&f.name).unwrap_or(&Value::Null), f);
            });
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
        (_, Value::Null) if zero => escape(out, &isopod_schema::json::zero(node)),
        _ => escape(out, value),
    }
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

/// Plain JSON as Go's encoder writes it.
fn escape(out: &mut String, value: &Value) {
    out.push_str(&isopod_schema::json::html_escaped(&value.to_string()));
}

/// Words that Go spells in capitals where they begin a name.
const INITIALISMS: [&str; 24] = [
    "api", "uid", "id", "ip", "url", "uri", "cidr", "csi", "nfs", "rbd", "fs", "fc", "gce", "aws", "tcp", "http",
    "dns", "tls", "ttl", "gid", "grpc", "iscsi", "json", "cel",
];

/// The Go name of a field: `apiVersion` is `APIVersion`, `cidrs` is `CIDRs`.
fn go_name(json: &str) -> String {
    let end = json.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(json.len());
    let (word, rest) = json.split_at(end);
    if INITIALISMS.contains(&word) {
        return format!("{}{rest}", word.to_uppercase());
    }
    if let Some(one) = word.strip_suffix('s').filter(|w| rest.is_empty() && INITIALISMS.contains(w)) {
        return format!("{}s", one.to_uppercase());
    }
    let mut chars = json.chars();
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
        let errors = finish(vec![FieldError::invalid(&Path::new(path), value, "")], &schema);
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
    fn declarative_errors_come_last() {
        let schema = facts::builtin().object_of(&Gvk::new("", "v1", "Pod")).expect("built in");
        let e = |p: &str| FieldError::required(&Path::new(p), "");
        let errors = finish(vec![e("spec").declared(), e("metadata")], &schema);
        assert_eq!((errors[0].field.as_str(), errors[1].field.as_str()), ("metadata", "spec"));
    }
}
