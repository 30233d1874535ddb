//! A schema as server-side apply sees it: of every place, whether it is a scalar, a list (atomic, a set or a map by keys)
//! or a map (atomic or granular), and which fields a value mentions.
//!
//! Invariant: a type is a view of `types`; nothing is built or copied.

use super::path::PathElement;
use super::set::Set;
use crate::json::zero;
use crate::types::{Field, ListType, Node, Object};
use serde_json::Value;

/// The type of a place.
#[derive(Clone, Copy, Debug)]
pub enum Type<'a> {
    Object(&'a Object),
    /// A place of this node; the field that it is the type of may override map types. `custom`: of a custom resource.
    Node {
        node: &'a Node,
        field: Option<&'a Field>,
        custom: bool,
    },
    /// No schema: maps are granular, lists atomic.
    Deduced,
    /// No schema, and all of it is one leaf.
    Untyped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    Number,
    String,
    Bool,
    Any,
}

#[derive(Clone, Copy)]
pub(super) struct ListShape<'a> {
    pub list_type: ListType,
    pub keys: &'a [String],
    pub item: Type<'a>,
}

#[derive(Clone, Copy)]
pub(super) struct MapShape<'a> {
    pub atomic: bool,
    /// Of a struct.
    pub fields: Option<&'a Object>,
    /// The type of keys that are no fields; `None`: there may be none.
    pub value: Option<Type<'a>>,
}

impl<'a> MapShape<'a> {
    /// The type of a key, and whether it is a field of a struct.
    pub fn child(&self, key: &str) -> (Option<Type<'a>>, bool) {
        match self.fields.and_then(|o| o.field(key).map(|f| (o, f))) {
            Some((o, f)) => (Some(Type::Node { node: &f.node, field: Some(f), custom: o.custom }), true),
            None => (self.value, false),
        }
    }
}

/// Which shapes a place may have. Most have one.
#[derive(Clone, Copy, Default)]
pub(super) struct Atom<'a> {
    pub scalar: Option<Scalar>,
    pub list: Option<ListShape<'a>>,
    pub map: Option<MapShape<'a>>,
}

/// The one shape by which a value is walked.
pub(super) enum Shape<'a> {
    Map(MapShape<'a>),
    Scalar(Scalar),
    List(ListShape<'a>),
}

impl<'a> Type<'a> {
    /// What the kind says, for the object as a whole.
    pub fn of(object: &'a Object) -> Self {
        Type::Object(object)
    }

    pub(super) fn atom(self) -> Atom<'a> {
        match self {
            Type::Object(o) => Atom::map(o.atomic, o),
            Type::Deduced => Atom::any(MapShape { atomic: false, fields: None, value: Some(Type::Deduced) }),
            Type::Untyped => Atom::any(MapShape { atomic: true, fields: None, value: Some(Type::Untyped) }),
            Type::Node { node, field, custom } => Self::node_atom(node, field, custom),
        }
    }

    fn node_atom(node: &'a Node, field: Option<&Field>, custom: bool) -> Atom<'a> {
        let scalar = |s| Atom { scalar: Some(s), ..Atom::default() };
        match node {
            Node::Bool => scalar(Scalar::Bool),
            Node::Int32 | Node::Int64 | Node::Double => scalar(Scalar::Number),
            Node::String | Node::Bytes | Node::Duration => scalar(Scalar::String),
            Node::Quantity | Node::Time | Node::MicroTime => scalar(Scalar::Any),
            Node::Any if !custom => Type::Untyped.atom(),
            Node::Any
            | Node::IntOrString
            | Node::SchemaOrBool(_)
            | Node::SchemaOrArray(_)
            | Node::SchemaOrStringArray(_) => Type::Deduced.atom(),
            Node::FieldsV1 => Atom { scalar: None, list: None, ..Type::Deduced.atom() },
            Node::Object(o) => {
                let o = o.get();
                let atomic = field.is_some_and(|f| f.atomic) || (o.atomic && !field.is_some_and(|f| f.granular));
                Atom::map(atomic, o)
            }
            Node::Map(m) => {
                let value = Some(Type::Node { node: &m.value, field: None, custom });
                Atom { map: Some(MapShape { atomic: m.atomic, fields: None, value }), ..Atom::default() }
            }
            Node::List(l) => {
                let item = Type::Node { node: &l.item, field: None, custom };
                let list = ListShape { list_type: l.list_type, keys: &l.map_keys, item };
                Atom { list: Some(list), ..Atom::default() }
            }
        }
    }

    /// The shape by which `value` is walked.
    pub(super) fn shape(self, value: &Value) -> Option<Shape<'a>> {
        self.atom().deduce(Some(value)).shape()
    }
}

impl<'a> Atom<'a> {
    fn map(atomic: bool, o: &'a Object) -> Self {
        let value = (o.preserve_unknown || o.fields.is_empty()).then_some(Type::Deduced);
        Atom { map: Some(MapShape { atomic, fields: Some(o), value }), ..Atom::default() }
    }

    fn any(map: MapShape<'a>) -> Self {
        let list = ListShape { list_type: ListType::Atomic, keys: &[], item: Type::Untyped };
        Atom { scalar: Some(Scalar::Any), list: Some(list), map: Some(map) }
    }

    /// Only the shape that the value has, if it may have it.
    pub fn deduce(self, value: Option<&Value>) -> Self {
        let only = Atom::default();
        match value {
            Some(Value::Number(_) | Value::String(_) | Value::Bool(_)) if self.scalar.is_some() => {
                Atom { scalar: self.scalar, ..only }
            }
            Some(Value::Array(_)) if self.list.is_some() => Atom { list: self.list, ..only },
            Some(Value::Object(_)) if self.map.is_some() => Atom { map: self.map, ..only },
            _ => self,
        }
    }

    /// Two deductions of one place that came out the same.
    pub fn same(&self, other: &Self) -> bool {
        let has = |a: &Self| (a.scalar.is_some(), a.list.is_some(), a.map.is_some());
        has(self) == has(other)
    }

    pub fn shape(self) -> Option<Shape<'a>> {
        let map = self.map.map(Shape::Map);
        map.or_else(|| self.scalar.map(Shape::Scalar)).or_else(|| self.list.map(Shape::List))
    }
}

impl ListShape<'_> {
    pub fn is_atomic(&self) -> bool {
        self.list_type == ListType::Atomic
    }

    /// How an item of a set or map list is named.
    pub fn element(&self, item: &Value) -> Result<PathElement, String> {
        if self.list_type == ListType::Map && !self.keys.is_empty() { self.by_keys(item) } else { by_value(item) }
    }

    fn by_keys(&self, item: &Value) -> Result<PathElement, String> {
        let map = match item {
            Value::Object(map) => map,
            Value::Null => return Err("associative list with keys may not have a null element".into()),
            _ => return Err("associative list with keys may not have non-map elements".into()),
        };
        let key = |k: &String| map.get(k).cloned().or_else(|| self.default_of(k)).map(|v| (k.as_str().into(), v));
        let fields: Vec<(Box<str>, Value)> = self.keys.iter().filter_map(key).collect();
        if fields.is_empty() {
            let keys: Vec<String> = self.keys.iter().map(|k| format!("{k:?}")).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                keys.join(" ")
            ));
        }
        Ok(PathElement::key(fields))
    }

    /// What OpenAPI shows as the default of a key, zero values among it.
    fn default_of(&self, key: &str) -> Option<Value> {
        let field = self.item.atom().map?.fields?.field(key)?;
        field.default.clone().or_else(|| field.zero_default.then(|| zero(&field.node)))
    }
}

fn by_value(item: &Value) -> Result<PathElement, String> {
    match item {
        Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
        Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
        Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
        scalar => Ok(PathElement::Value(scalar.clone())),
    }
}

/// Every leaf and every list item that a value mentions.
pub fn to_set(value: &Value, ty: Type) -> Set {
    let mut set = Set::default();
    collect(value, ty, &mut set);
    set
}

/// Collects what lies below a value; says whether the value itself is a leaf.
fn collect(value: &Value, ty: Type, out: &mut Set) -> bool {
    match (ty.shape(value), value) {
        (None | Some(Shape::Scalar(_)), _) => true,
        (Some(Shape::Map(m)), _) if m.atomic => true,
        (Some(Shape::List(l)), _) if l.is_atomic() => true,
        (Some(Shape::Map(m)), Value::Object(map)) => {
            for (key, child) in map {
                let (ty, declared) = m.child(key);
                let mut below = Set::default();
                let leaf = collect(child, ty.unwrap_or(Type::Deduced), &mut below);
                let empty = child.is_null() || child.as_object().is_some_and(serde_json::Map::is_empty);
                out.add(PathElement::field(key), leaf || empty || !declared, below);
            }
            false
        }
        (Some(Shape::List(l)), Value::Array(items)) => {
            collect_items(items, l, out);
            false
        }
        _ => false,
    }
}

/// Items that stand more than once are owned as a whole.
fn collect_items(items: &[Value], list: ListShape, out: &mut Set) {
    let elements: Vec<Option<PathElement>> = items.iter().map(|i| list.element(i).ok()).collect();
    let mut sorted: Vec<&PathElement> = elements.iter().flatten().collect();
    sorted.sort();
    let twice = |e: &PathElement| {
        let first = sorted.partition_point(|other| *other < e);
        sorted.get(first + 1).is_some_and(|next| *next == e)
    };
    for (item, element) in items.iter().zip(&elements) {
        let Some(element) = element else { continue };
        let mut below = Set::default();
        if !twice(element) {
            collect(item, list.item, &mut below);
        }
        out.add(element.clone(), true, below);
    }
}
