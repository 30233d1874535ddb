//! Schemas as OpenAPI shows them.

use crate::descriptions::Descriptions;
use crate::structural;
use crate::swagger::SHARED_PARAMETER;
use isopod_kinds::Kind;
use isopod_schema::facts;
use isopod_schema::types::{Field, ListType, Node, Object};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

pub const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";
const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const VERSION_INFO: &str = "io.k8s.apimachinery.pkg.version.Info";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flavor {
    V2,
    V3,
}

/// Makes definitions by name.
pub struct Definitions {
    flavor: Flavor,
    descriptions: Descriptions,
    /// `x-kubernetes-group-version-kind` of each definition that stands for kinds.
    gvks: HashMap<String, BTreeSet<(String, String, String)>>,
    /// Some kind can be watched, which its paths do not show.
    watchable: bool,
    /// Custom resources and their lists, by definition name.
    custom: HashMap<String, Custom>,
}

struct Custom {
    kind: Arc<Kind>,
    list: bool,
}

/// The definition's name of a kind: from its schema, or, for a custom resource, upstream's form of group, version and kind.
pub fn definition_name(kind: &Kind) -> String {
    if !kind.schema.custom && !kind.schema.name.is_empty() {
        return kind.schema.name.clone();
    }
    let mut parts: Vec<&str> = kind.gvk.group.split('.').rev().collect();
    parts.extend([kind.gvk.version.as_str(), kind.gvk.kind.as_str()]);
    parts.join(".")
}

/// The definition's name of a kind's list.
pub fn list_definition_name(kind: &Kind) -> String {
    let name = definition_name(kind);
    match name.rsplit_once('.') {
        Some((package, _)) if kind.schema.custom => format!("{package}.{}", kind.list_kind),
        _ => format!("{name}List"),
    }
}

/// `apps/v1` → (`apps`, `v1`).
fn split(api_version: &str) -> (String, String) {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    (group.to_owned(), version.to_owned())
}

/// Kinds of every group version.
const SHARED: [&str; 2] = ["DeleteOptions", "WatchEvent"];

/// Group versions that upstream v1.37 knows without serving them by default. Of these, documents show but what all have in common.
const UNSERVED: &[(&str, &[&str])] = &[
    ("admission.k8s.io", &["v1", "v1beta1"]),
    ("admissionregistration.k8s.io", &["v1alpha1", "v1beta1"]),
    ("apiextensions.k8s.io", &["v1beta1"]),
    ("apiregistration.k8s.io", &["v1beta1"]),
    ("apps", &["v1beta1", "v1beta2"]),
    ("authentication.k8s.io", &["v1alpha1", "v1beta1"]),
    ("authorization.k8s.io", &["v1beta1"]),
    ("batch", &["v1beta1"]),
    ("certificates.k8s.io", &["v1alpha1", "v1beta1"]),
    ("coordination.k8s.io", &["v1alpha2", "v1beta1"]),
    ("discovery.k8s.io", &["v1beta1"]),
    ("events.k8s.io", &["v1beta1"]),
    ("extensions", &["v1beta1"]),
    ("flowcontrol.apiserver.k8s.io", &["v1beta1", "v1beta2", "v1beta3"]),
    ("imagepolicy.k8s.io", &["v1alpha1"]),
    ("internal.apiserver.k8s.io", &["v1alpha1"]),
    ("lifecycle.k8s.io", &["v1alpha1"]),
    ("networking.k8s.io", &["v1beta1"]),
    ("node.k8s.io", &["v1alpha1", "v1beta1"]),
    ("policy", &["v1beta1"]),
    ("rbac.authorization.k8s.io", &["v1alpha1", "v1beta1"]),
    ("resource.k8s.io", &["v1alpha3", "v1beta1", "v1beta2"]),
    ("scheduling.k8s.io", &["v1alpha3", "v1beta1"]),
    ("storage.k8s.io", &["v1alpha1", "v1beta1"]),
    ("storagemigration.k8s.io", &["v1beta1"]),
];

impl Definitions {
    /// `kinds` are those that the document is about.
    pub fn new(kinds: &[Arc<Kind>], flavor: Flavor, descriptions: Descriptions) -> Self {
        let mut gvks: HashMap<String, BTreeSet<(String, String, String)>> = HashMap::new();
        let mut add = |definition: String, gv: (String, String), kind: &str| {
            gvks.entry(definition).or_default().insert((gv.0, gv.1, kind.to_owned()));
        };
        for (api_version, kind, definition) in facts::builtin().gvks() {
            add(definition.to_owned(), split(api_version), kind);
        }
        let mut custom = HashMap::new();
        let unserved = if matches!(flavor, Flavor::V2) { UNSERVED } else { &[] };
        for (group, versions) in unserved {
            for version in *versions {
                for shared in SHARED {
                    add(format!("{META}{shared}"), ((*group).to_owned(), (*version).to_owned()), shared);
                }
            }
        }
        for kind in kinds {
            let gv = (kind.gvk.group.clone(), kind.gvk.version.clone());
            for shared in SHARED {
                add(format!("{META}{shared}"), gv.clone(), shared);
            }
            if kind.schema.custom {
                let (name, list) = (definition_name(kind), list_definition_name(kind));
                add(name.clone(), gv.clone(), &kind.gvk.kind);
                add(list.clone(), gv, &kind.list_kind);
                custom.insert(list, Custom { kind: kind.clone(), list: true });
                custom.insert(name, Custom { kind: kind.clone(), list: false });
            }
        }
        let watchable = kinds.iter().any(|k| k.verbs.iter().any(|v| v == "watch"));
        Definitions { flavor, descriptions, gvks, watchable, custom }
    }

    /// Every definition that `root` refers to, and those that these refer to.
    pub fn reachable(&self, root: &Value) -> Value {
        let mut out = BTreeMap::new();
        let mut queue = BTreeSet::new();
        references(root, &mut queue);
        if self.watchable {
            queue.insert(format!("{META}WatchEvent"));
        }
        while let Some(name) = queue.pop_first() {
            if out.contains_key(&name) {
                continue;
            }
            let definition = self.definition(&name);
            references(&definition, &mut queue);
            out.insert(name, definition);
        }
        Value::Object(out.into_iter().collect())
    }

    fn reference(&self, name: &str) -> Value {
        match self.flavor {
            Flavor::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Flavor::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    fn definition(&self, name: &str) -> Value {
        let mut out = match (self.custom.get(name), self.special(name)) {
            (Some(custom), _) if custom.list => self.custom_list(&custom.kind),
            (Some(custom), _) => self.custom(&custom.kind),
            (_, Some(special)) => special,
            _ => match facts::builtin().object(name) {
                Some(object) => self.object(&object),
                None => Map::new(),
            },
        };
        if let Some(text) = self.descriptions.definition(name) {
            out.entry("description").or_insert(Value::String(text));
        }
        if let Some(gvks) = self.gvks.get(name) {
            let list = gvks.iter().map(|(g, v, k)| json!({"group": g, "version": v, "kind": k})).collect();
            out.insert("x-kubernetes-group-version-kind".to_owned(), Value::Array(list));
        }
        Value::Object(out)
    }

    /// Definitions that are no structs in JSON.
    fn special(&self, name: &str) -> Option<Map<String, Value>> {
        let v3 = self.flavor == Flavor::V3;
        let value = match name {
            QUANTITY if v3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            QUANTITY => json!({"type": "string"}),
            INT_OR_STRING if v3 => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            INT_OR_STRING => json!({"format": "int-or-string", "type": "string"}),
            RAW_EXTENSION => json!({"type": "object"}),
            VERSION_INFO => self.version_info(),
            _ => match (name.strip_prefix(META), name.strip_prefix(EXTENSIONS)) {
                (Some("Time" | "MicroTime"), _) => json!({"format": "date-time", "type": "string"}),
                (Some("Duration"), _) => json!({"type": "string"}),
                (Some("FieldsV1" | "Patch"), _) => json!({"type": "object"}),
                (
                    _,
                    Some("JSON" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray"),
                ) => json!({}),
                _ => return None,
            },
        };
        value.as_object().cloned()
    }

    /// `/version` answers with it; it is no API type.
    fn version_info(&self) -> Value {
        let optional = ["emulationMajor", "emulationMinor", "minCompatibilityMajor", "minCompatibilityMinor"];
        let needed = [
            "major",
            "minor",
            "gitVersion",
            "gitCommit",
            "gitTreeState",
            "buildDate",
            "goVersion",
            "compiler",
            "platform",
        ];
        let mut properties = Map::new();
        for name in optional.iter().chain(&needed) {
            let mut property = json!({"type": "string"});
            if self.flavor == Flavor::V3 && needed.contains(name) {
                property["default"] = json!("");
            }
            if let Some(text) = self.descriptions.field(VERSION_INFO, name) {
                property["description"] = text.into();
            }
            properties.insert((*name).to_owned(), property);
        }
        json!({"type": "object", "properties": properties, "required": needed})
    }

    fn object(&self, object: &Object) -> Map<String, Value> {
        let mut out = Map::new();
        out.insert("type".to_owned(), json!("object"));
        let properties: Map<String, Value> =
            object.fields.iter().map(|f| (f.name.clone(), self.property(object, f))).collect();
        if !properties.is_empty() {
            out.insert("properties".to_owned(), Value::Object(properties));
        }
        required(&mut out, object);
        if object.atomic {
            out.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
        }
        if let Some(unions) = facts::builtin().unions(&object.name).and_then(|t| serde_json::from_str(t).ok()) {
            out.insert("x-kubernetes-unions".to_owned(), unions);
        }
        out
    }

    fn property(&self, object: &Object, f: &Field) -> Value {
        let mut out = match self.node(&f.node, f.go_type.as_deref()) {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        let description = self.descriptions.field(&object.name, &f.name);
        let default = self.default(f);
        if let Some(values) = f.allowed.as_deref().and_then(|t| serde_json::from_str(t).ok()) {
            innermost(&mut out).insert("enum".to_owned(), values);
        }
        let described = description.is_some() || (matches!(f.node, Node::Any) && !is_json(f.go_type.as_deref()));
        // v3 allows no siblings of a reference.
        if self.flavor == Flavor::V3 && out.contains_key("$ref") && (described || default.is_some()) {
            out = [("allOf".to_owned(), Value::Array(vec![Value::Object(out)]))].into_iter().collect();
        }
        if let Some(text) = description {
            out.insert("description".to_owned(), Value::String(text));
        }
        if let Some(default) = default {
            out.insert("default".to_owned(), default);
        }
        if f.atomic {
            out.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
        }
        if f.granular {
            out.insert("x-kubernetes-map-type".to_owned(), json!("granular"));
        }
        if f.atomic_bytes {
            out.insert("x-kubernetes-list-type".to_owned(), json!("atomic"));
        }
        patch_strategy(&mut out, f);
        Value::Object(out)
    }

    /// Only v3 shows defaults, of which most are zero values.
    fn default(&self, f: &Field) -> Option<Value> {
        if self.flavor == Flavor::V2 {
            return None;
        }
        if !f.zero_default {
            return f.default.clone();
        }
        Some(match &f.node {
            Node::String | Node::Bytes => json!(""),
            Node::Bool => json!(false),
            Node::Int32 | Node::Int64 | Node::Double => json!(0),
            _ => json!({}),
        })
    }

    /// The schema of a value. `go` is the name of its Go type, which tells the kinds of "any JSON" apart.
    fn node(&self, node: &Node, go: Option<&str>) -> Value {
        let meta = |name: &str| self.reference(&format!("{META}{name}"));
        let extension = |name: &str| self.reference(&format!("{EXTENSIONS}{name}"));
        match node {
            Node::Bool => json!({"type": "boolean"}),
            Node::Int32 => json!({"type": "integer", "format": "int32"}),
            Node::Int64 => json!({"type": "integer", "format": "int64"}),
            Node::Double => json!({"type": "number", "format": "double"}),
            Node::String => json!({"type": "string"}),
            Node::Bytes => json!({"type": "string", "format": "byte"}),
            Node::Quantity => self.reference(QUANTITY),
            Node::IntOrString => self.reference(INT_OR_STRING),
            Node::Time => meta("Time"),
            Node::MicroTime => meta("MicroTime"),
            Node::Duration => meta("Duration"),
            Node::FieldsV1 => meta("FieldsV1"),
            Node::Any if is_json(go) => extension("JSON"),
            Node::Any if go.is_some_and(|g| g.contains("interface")) => json!({}),
            Node::Any => self.reference(RAW_EXTENSION),
            Node::Object(o) => self.reference(&o.get().name),
            Node::SchemaOrBool(_) => extension("JSONSchemaPropsOrBool"),
            Node::SchemaOrArray(_) => extension("JSONSchemaPropsOrArray"),
            Node::SchemaOrStringArray(_) => extension("JSONSchemaPropsOrStringArray"),
            Node::List(list) => {
                let mut out = json!({"type": "array", "items": self.node(&list.item, go)});
                list_type(&mut out, node);
                out
            }
            Node::Map(m) => {
                let mut out = json!({"type": "object", "additionalProperties": self.node(&m.value, None)});
                if m.atomic {
                    out["x-kubernetes-map-type"] = json!("atomic");
                }
                out
            }
            _ => json!({}),
        }
    }

    /// A custom resource's schema, as its definition states it; v2 cannot say all of it.
    fn custom(&self, kind: &Kind) -> Map<String, Value> {
        let stated = kind.schema.openapi.as_deref().and_then(Value::as_object);
        let v2 = self.flavor == Flavor::V2;
        let mut out = match stated {
            Some(raw) if !(v2 && kind.schema.preserve_unknown) => {
                let mut out = raw.clone();
                self.publish(&mut out);
                self.with_type(&mut out);
                out
            }
            // Whoever validates by it would refuse what it does not name: it names nothing.
            _ => [("type".to_owned(), json!("object"))].into_iter().collect(),
        };
        selectable(&mut out, kind);
        out
    }

    fn publish(&self, schema: &mut Map<String, Value>) {
        structural::unfold(schema);
        if self.flavor == Flavor::V2 {
            structural::swagger(schema);
        }
        for inner in structural::inner(schema) {
            self.publish(inner);
        }
        let flag = |key: &str| schema.get(key) == Some(&json!(true));
        let open = self.flavor == Flavor::V2 && flag("x-kubernetes-preserve-unknown-fields");
        if flag("x-kubernetes-embedded-resource") && !open {
            self.with_type(schema);
            structural::require(schema, &["kind", "apiVersion"]);
        }
    }

    /// What every resource has.
    fn with_type(&self, schema: &mut Map<String, Value>) {
        let about = self.descriptions.field(SOME_KIND, "metadata");
        let metadata = self.described(self.reference(&format!("{META}ObjectMeta")), about);
        let mut properties = self.type_meta();
        properties.insert("metadata".to_owned(), metadata);
        if let Some(own) = schema.entry("properties").or_insert_with(|| json!({})).as_object_mut() {
            own.append(&mut properties);
        }
    }

    /// A reference, with words about what it is here.
    fn described(&self, mut reference: Value, about: Option<String>) -> Value {
        if let Some(text) = about {
            // v3 allows no siblings of a reference.
            if self.flavor == Flavor::V3 {
                reference = json!({"allOf": [reference]});
            }
            reference["description"] = text.into();
        }
        reference
    }

    fn type_meta(&self) -> Map<String, Value> {
        let field = |name: &str| {
            let mut schema = json!({"type": "string"});
            if let Some(text) = self.descriptions.field(SOME_KIND, name) {
                schema["description"] = text.into();
            }
            (name.to_owned(), schema)
        };
        ["apiVersion", "kind"].into_iter().map(field).collect()
    }

    fn custom_list(&self, kind: &Kind) -> Map<String, Value> {
        let mut properties = self.type_meta();
        let about = self.descriptions.field(SOME_LIST, "metadata");
        properties.insert("metadata".to_owned(), self.described(self.reference(&format!("{META}ListMeta")), about));
        let more = "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";
        let about = format!("List of {}. More info: {more}", kind.resource);
        let items = json!({"type": "array", "items": self.reference(&definition_name(kind)), "description": about});
        properties.insert("items".to_owned(), items);
        let description = format!("{} is a list of {}", kind.list_kind, kind.gvk.kind);
        let list =
            json!({"type": "object", "required": ["items"], "properties": properties, "description": description});
        let mut out = list.as_object().cloned().unwrap_or_default();
        selectable(&mut out, kind);
        out
    }
}

/// A kind whose type fields are described as all kinds' are.
const SOME_KIND: &str = "io.k8s.api.core.v1.Pod";
/// And a list whose metadata are.
const SOME_LIST: &str = "io.k8s.api.core.v1.PodList";

fn selectable(out: &mut Map<String, Value>, kind: &Kind) {
    if !kind.selectable.is_empty() {
        let fields: Vec<Value> = kind.selectable.iter().map(|f| json!({"fieldPath": f})).collect();
        out.insert("x-kubernetes-selectable-fields".to_owned(), Value::Array(fields));
    }
}

/// Is this Go's type for any JSON in the schema of a CRD?
fn is_json(go: Option<&str>) -> bool {
    go.is_some_and(|g| g.ends_with(".JSON"))
}

/// The schema of the elements of a list or a map, however deep; else the schema itself.
fn innermost(schema: &mut Map<String, Value>) -> &mut Map<String, Value> {
    let key = ["items", "additionalProperties"].into_iter().find(|k| schema.get(*k).is_some_and(Value::is_object));
    match key {
        Some(key) => innermost(schema[key].as_object_mut().expect("it was found to be an object")),
        None => schema,
    }
}

fn required(out: &mut Map<String, Value>, object: &Object) {
    let names: Vec<&str> = object.fields.iter().filter(|f| f.required).map(|f| f.name.as_str()).collect();
    if !names.is_empty() {
        out.insert("required".to_owned(), json!(names));
    }
}

fn list_type(out: &mut Value, node: &Node) {
    let Node::List(list) = node else { return };
    let name = match list.list_type {
        ListType::Map => "map",
        ListType::Set => "set",
        ListType::Atomic if list.list_type_stated => "atomic",
        ListType::Atomic => return,
    };
    out["x-kubernetes-list-type"] = json!(name);
    if !list.map_keys.is_empty() {
        out["x-kubernetes-list-map-keys"] = json!(list.map_keys);
    }
}

fn patch_strategy(out: &mut Map<String, Value>, f: &Field) {
    let words: Vec<&str> =
        [(f.patch.merge, "merge"), (f.patch.replace, "replace"), (f.patch.retain_keys, "retainKeys")]
            .into_iter()
            .filter_map(|(on, word)| on.then_some(word))
            .collect();
    if !words.is_empty() {
        out.insert("x-kubernetes-patch-strategy".to_owned(), json!(words.join(",")));
    }
    if !f.patch.merge_key.is_empty() {
        out.insert("x-kubernetes-patch-merge-key".to_owned(), json!(f.patch.merge_key));
    }
}

/// Collects the names of definitions that a value refers to.
fn references(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get("$ref")
                && !target.starts_with(SHARED_PARAMETER)
                && let Some((_, name)) = target.rsplit_once('/')
            {
                into.insert(name.to_owned());
            }
            map.values().for_each(|v| references(v, into));
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, into)),
        _ => {}
    }
}
