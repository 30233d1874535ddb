//! A schema as data: what Go's struct definitions and OpenAPI extensions say about a type.
//!
//! Invariant: built-in kinds (from `facts`) and custom resources (from their OpenAPI schema) are the same types, so that
//! every algorithm of this crate works on both.

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use serde_json::Value;
use std::hash::BuildHasher;
use std::sync::{Arc, LazyLock, OnceLock};

/// The type of one value.
#[derive(Clone, Debug)]
#[non_exhaustive]
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
    /// `JSONSchemaPropsOrBool`: a schema or a boolean.
    SchemaOrBool(ObjectRef),
    /// `JSONSchemaPropsOrArray`: a schema or a list of schemas.
    SchemaOrArray(ObjectRef),
    /// `JSONSchemaPropsOrStringArray`: a schema or a list of strings.
    SchemaOrStringArray(ObjectRef),
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
    /// The schema states the list type; else `Atomic` is only what its absence means.
    pub list_type_stated: bool,
    /// `x-kubernetes-list-map-keys`.
    pub map_keys: Vec<String>,
    /// `nullable` items of a CRD.
    pub nullable_items: bool,
    /// A named Go slice type that is a message of its own in protobuf, `{items = 1}` (`ExtraValue`).
    pub wrapped: bool,
}

impl List {
    pub fn of(item: Node) -> Self {
        List {
            item,
            list_type: ListType::Atomic,
            list_type_stated: false,
            map_keys: Vec::new(),
            nullable_items: false,
            wrapped: false,
        }
    }
}

#[derive(Debug)]
pub struct Map {
    pub value: Node,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
    /// `nullable` values of a CRD.
    pub nullable_values: bool,
}

impl Map {
    pub fn of(value: Node) -> Self {
        Map { value, atomic: false, nullable_values: false }
    }
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
    /// Go's `omitzero`: a struct value is left out of JSON too when all of it is zero.
    pub omit_zero: bool,
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
    /// `x-kubernetes-map-type: atomic` at this place, of an object whose definition does not say so.
    pub atomic: bool,
    /// `x-kubernetes-map-type: granular` at this place, of an object whose definition says atomic, or of a map.
    pub granular: bool,
    /// `x-kubernetes-list-type: atomic` of bytes: a string to all but OpenAPI's documents.
    pub atomic_bytes: bool,
    /// OpenAPI v3 shows a zero default (`""`, `0`, `{}`), which is no default.
    pub zero_default: bool,
    /// Names of the Go structs that are inlined on the way to the field (`VolumeSource`, `TypeMeta`), else empty: type
    /// errors show them.
    pub embedded: Box<str>,
    /// The name of the Go field where it is not the JSON name with a capital: structs of the internal API show under it.
    pub go_name: Option<Box<str>>,
    /// The name of Go's type where it is a named scalar or slice (`v1.RestartPolicy`): type errors show it.
    pub go_type: Option<Box<str>>,
    /// The values of Go's `+enum` type, of the field or its elements, as a list in JSON. OpenAPI shows them; whether
    /// others are refused is up to validation.
    pub allowed: Option<Box<str>>,
}

impl Field {
    /// An optional field with nothing special about it.
    pub fn new(name: impl Into<String>, node: Node) -> Self {
        Field {
            name: name.into(),
            node,
            pointer: false,
            omit_empty: true,
            omit_zero: false,
            required: false,
            tag: 0,
            inline_tags: Vec::new(),
            patch: PatchStrategy::default(),
            default: None,
            nullable: false,
            atomic: false,
            granular: false,
            atomic_bytes: false,
            zero_default: false,
            embedded: Box::default(),
            go_name: None,
            go_type: None,
            allowed: None,
        }
    }
}

impl Node {
    /// Whether there may be struct values in a value of the type.
    fn holds_structs(&self) -> bool {
        match self {
            Node::Object(_) | Node::SchemaOrBool(_) | Node::SchemaOrArray(_) | Node::SchemaOrStringArray(_) => true,
            Node::List(list) => list.item.holds_structs(),
            Node::Map(map) => map.value.holds_structs(),
            _ => false,
        }
    }
}

/// A struct: fields in the order of the Go source.
#[derive(Debug, Default)]
pub struct Object {
    /// OpenAPI's definition name: `io.k8s.api.core.v1.Container`. Empty for an anonymous object of a CRD.
    pub name: String,
    pub fields: Vec<Field>,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserve_unknown: bool,
    /// `x-kubernetes-embedded-resource`.
    pub embedded_resource: bool,
    /// A custom resource: absent stays absent and empty stays empty, where Go's structs would show zero values.
    pub custom: bool,
    /// Of a custom resource as a whole: its schema as the definition states it, which values are validated by and documents
    /// are made of.
    pub openapi: Option<Arc<Value>>,
    /// The fields in the order of protobuf, made on first use. Leave it at its default.
    pub proto_layout: OnceLock<crate::proto::Layout>,
    /// Of an object with many fields their places in `fields`, found by name, made on first use: the fields
    /// are final then. Leave it at its default.
    pub by_name: OnceLock<HashTable<u32>>,
    /// The places in `fields` of those that may hold structs, made on first use. Leave it at its default.
    pub structs: OnceLock<Box<[u32]>>,
    /// What fills in the defaults that the schema does not say, looked up by name on first use. Leave it at its default.
    pub overlay: OnceLock<Option<Overlay>>,
}

/// Changes a struct's value.
pub type Overlay = fn(&mut Value);

/// With so many fields looking at one after another is as fast as a search.
const FEW: usize = 8;

/// Seeded: nobody can choose names that meet.
static NAMES: LazyLock<RandomState> = LazyLock::new(RandomState::default);

impl Object {
    pub fn field(&self, json_name: &str) -> Option<&Field> {
        self.fields.get(self.position(json_name)?)
    }

    /// The fields that may hold structs. The fields are final from the first call on.
    pub fn with_structs(&self) -> impl Iterator<Item = &Field> {
        let structs = self.structs.get_or_init(|| {
            let places = (0..).zip(&self.fields).filter(|(_, f)| f.node.holds_structs());
            places.map(|(place, _)| place).collect()
        });
        structs.iter().map(|place| &self.fields[*place as usize])
    }

    /// Where the field stands in `fields`.
    pub fn position(&self, json_name: &str) -> Option<usize> {
        if self.fields.len() <= FEW {
            return self.fields.iter().position(|f| f.name == json_name);
        }
        let hash = |name: &str| NAMES.hash_one(name);
        let name = |place: &u32| self.fields[*place as usize].name.as_str();
        let table = self.by_name.get_or_init(|| {
            let mut table = HashTable::with_capacity(self.fields.len());
            for place in 0..self.fields.len() as u32 {
                table.insert_unique(hash(name(&place)), place, |place| hash(name(place)));
            }
            table
        });
        table.find(hash(json_name), |place| name(place) == json_name).map(|place| *place as usize)
    }

    /// The name of the Go struct: the last part of the definition's name.
    pub fn go_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// A reference to an [`Object`], resolved on first use so that types may be recursive and unused ones cost nothing.
#[derive(Clone)]
pub struct ObjectRef(Arc<Slot>);

struct Slot {
    cell: OnceLock<Arc<Object>>,
    /// Row of the built-in catalog that builds it.
    row: Option<u32>,
}

impl ObjectRef {
    /// A reference that is known already.
    pub fn new(object: Arc<Object>) -> Self {
        let r = Self::unset();
        r.set(object);
        r
    }

    /// A reference to be [`set`](Self::set) later, for recursive schemas.
    pub fn unset() -> Self {
        ObjectRef(Arc::new(Slot { cell: OnceLock::new(), row: None }))
    }

    /// Only the first call has an effect.
    pub fn set(&self, object: Arc<Object>) {
        let _ = self.0.cell.set(object);
    }

    pub(crate) fn builtin(row: u32) -> Self {
        ObjectRef(Arc::new(Slot { cell: OnceLock::new(), row: Some(row) }))
    }

    /// The object. One that was never set is an object that takes anything.
    pub fn get(&self) -> &Arc<Object> {
        self.0.cell.get_or_init(|| match self.0.row {
            Some(row) => crate::facts::build(row),
            None => Arc::new(Object { preserve_unknown: true, ..Object::default() }),
        })
    }
}

impl std::fmt::Debug for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ObjectRef({})", self.0.cell.get().map_or("unresolved", |o| &o.name))
    }
}
