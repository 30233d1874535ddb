//! A schema as data: what Go's struct definitions and OpenAPI extensions say about a type.

use serde_json::Value;
use std::sync::{Arc, OnceLock};

/// The type of one value.
#[derive(Clone, Debug)]
pub enum Node {
    Bool,
    Int32,
    Int64,
    /// Go's float64 (protobuf double).
    Double,
    String,
    /// `[]byte`: base64 in JSON.
    Bytes,
    /// `resource.Quantity`: a string in its canonical form.
    Quantity,
    IntOrString,
    /// `metav1.Time`.
    Time,
    MicroTime,
    /// `metav1.Duration`: Go's `1h2m3s`.
    Duration,
    /// `runtime.RawExtension`, `JSON`: any JSON value, kept as it is.
    Any,
    /// `metav1.FieldsV1`.
    FieldsV1,
    List(Arc<List>),
    /// Keys are always strings.
    Map(Arc<Map>),
    /// By name, so that recursive types work; resolved once.
    Object(ObjectRef),
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map,
}

#[derive(Debug)]
pub struct List {
    pub item: Node,
    pub list_type: ListType,
    /// `x-kubernetes-list-map-keys`.
    pub map_keys: Vec<String>,
    /// `nullable` items of a CRD.
    pub nullable_items: bool,
}

#[derive(Debug)]
pub struct Map {
    pub value: Node,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
}

/// `patchStrategy` and `patchMergeKey` of strategic merge patch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
    pub merge_key: String,
}

#[derive(Debug)]
pub struct Field {
    /// Name in JSON.
    pub name: String,
    pub node: Node,
    /// Go holds a pointer: absent and zero differ.
    pub pointer: bool,
    /// Go leaves a zero value out of JSON. A struct value (not a pointer) without it shows as `{}`.
    pub omit_empty: bool,
    /// OpenAPI says required.
    pub required: bool,
    /// Protobuf field number; 0: not in protobuf.
    pub tag: u32,
    /// Where the Go struct inlines another one in JSON which is a message of its own in protobuf (`Volume.volumeSource`),
    /// the path of protobuf tags that leads to the message which holds this field; else empty.
    pub inline_tags: Vec<u32>,
    pub patch: PatchStrategy,
    /// A default from the schema (`+default`, or a CRD's).
    pub default: Option<Value>,
    pub nullable: bool,
}

/// A struct: fields in the order of the Go source.
#[derive(Debug, Default)]
pub struct Object {
    /// OpenAPI's definition name: `io.k8s.api.core.v1.Container`.
    pub name: String,
    pub fields: Vec<Field>,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserve_unknown: bool,
    /// `x-kubernetes-embedded-resource`.
    pub embedded_resource: bool,
    /// For unions and CRDs: further constraints, interpreted by the validator (`minimum`, `pattern`, `enum` …).
    pub constraints: Option<Value>,
}

/// A reference to an [`Object`], resolved on first use so that types may be recursive.
#[derive(Clone, Debug)]
pub struct ObjectRef(pub Arc<OnceLock<Arc<Object>>>);

impl Object {
    pub fn field(&self, json_name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == json_name)
    }
}
