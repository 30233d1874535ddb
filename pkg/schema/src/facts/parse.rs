//! The notation of the committed tables.
//!
//! `types.tsv` has a line for each definition and below it, indented by a tab, one for each field: JSON name, type,
//! protobuf number, flags, attributes. Types: `s` string, `b` bool, `i` int32, `l` int64, `d` double, `B` bytes,
//! `Q` quantity, `I` int or string, `T` time, `M` microtime, `U` duration, `F` fields, `A` any JSON, `@name` definition, `[t` list,
//! `<t` list that is a message in protobuf, `%t` map, `?b ?a ?s` a schema or a bool, an array, a string array.
//! Flags: `p` pointer, `e` omitempty, `z` omitzero, `r` required, `0` OpenAPI shows a zero default.

use super::KindFact;
use crate::types::{Field, List, ListType, Map, Node, Object, ObjectRef, PatchStrategy};
use isopod_api::{GroupVersion, Gvk};
use std::sync::Arc;

pub(super) const TYPES: &str = include_str!("../../facts/types.tsv");
pub(super) const GVKS: &str = include_str!("../../facts/gvks.tsv");
pub(super) const KINDS: &str = include_str!("../../facts/kinds.tsv");

/// Rows of a table without its comments, split into columns.
pub(super) fn rows(table: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    table.lines().filter(|l| !l.starts_with('#')).map(|l| l.split('\t').collect())
}

/// The definitions of `types.tsv`: each its own line and those of its fields.
pub(super) fn definitions(table: &'static str) -> impl Iterator<Item = &'static str> {
    let mut rest = table;
    std::iter::from_fn(move || {
        while rest.starts_with('#') {
            rest = rest.split_once('\n').map_or("", |(_, tail)| tail);
        }
        if rest.is_empty() {
            return None;
        }
        let bytes = rest.as_bytes();
        let end = (1..bytes.len()).find(|i| bytes[i - 1] == b'\n' && bytes[*i] != b'\t').unwrap_or(bytes.len());
        let (definition, tail) = rest.split_at(end);
        rest = tail;
        Some(definition)
    })
}

pub(super) fn definition_name(text: &'static str) -> &'static str {
    let line = text.lines().next().unwrap_or_default();
    line.split('\t').next().unwrap_or_default()
}

/// An attribute of a definition's own line: its value, empty for one without value.
pub(super) fn definition_attribute(text: &'static str, key: &str) -> Option<&'static str> {
    let line = text.lines().next()?;
    line.split('\t').skip(1).find_map(|a| match a.split_once('=') {
        Some((k, v)) => (k == key).then_some(v),
        None => (a == key).then_some(""),
    })
}

/// How a definition is found by name.
type Resolve<'a> = &'a dyn Fn(&str) -> ObjectRef;

pub(super) fn object(text: &'static str, resolve: Resolve) -> Object {
    Object {
        name: definition_name(text).to_owned(),
        atomic: definition_attribute(text, "atomic").is_some(),
        fields: text.lines().skip(1).filter_map(|l| field(l, resolve)).collect(),
        ..Object::default()
    }
}

/// Attributes of a field that belong to its list or map.
#[derive(Default)]
struct Shape {
    list: Option<ListType>,
    keys: Vec<String>,
    atomic_map: bool,
}

fn field(line: &'static str, resolve: Resolve) -> Option<Field> {
    let mut columns = line.split('\t').skip(1);
    let (name, code, tag, flags) = (columns.next()?, columns.next()?, columns.next()?, columns.next()?);
    let mut f = Field::new(name, Node::Any);
    f.tag = tag.parse().unwrap_or(0);
    f.pointer = flags.contains('p');
    f.omit_empty = flags.contains('e');
    f.omit_zero = flags.contains('z');
    f.required = flags.contains('r');
    f.zero_default = flags.contains('0');
    let mut shape = Shape::default();
    for (key, value) in columns.filter_map(|a| a.split_once('=')) {
        attribute(&mut f, &mut shape, key, value);
    }
    f.atomic = shape.atomic_map && code.starts_with('@');
    f.atomic_bytes = shape.list.is_some() && code == "B";
    f.node = node(code, &mut shape, resolve);
    Some(f)
}

fn attribute(f: &mut Field, shape: &mut Shape, key: &str, value: &'static str) {
    match key {
        "inline" => f.inline_tags = value.split(',').filter_map(|n| n.parse().ok()).collect(),
        "embedded" => f.embedded = value.into(),
        "field" => f.go_name = Some(value.into()),
        "go" => f.go_type = Some(value.into()),
        "enum" => f.allowed = Some(value.into()),
        "patch" => {
            for word in value.split(',') {
                match word {
                    "merge" => f.patch.merge = true,
                    "replace" => f.patch.replace = true,
                    "retainKeys" => f.patch.retain_keys = true,
                    _ => {}
                }
            }
        }
        "mergekey" => f.patch = PatchStrategy { merge_key: value.to_owned(), ..std::mem::take(&mut f.patch) },
        "list" => {
            shape.list = Some(match value {
                "map" => ListType::Map,
                "set" => ListType::Set,
                _ => ListType::Atomic,
            });
        }
        "keys" => shape.keys = value.split(',').map(str::to_owned).collect(),
        "map" => {
            shape.atomic_map = value == "atomic";
            f.granular = value == "granular";
        }
        "default" => f.default = serde_json::from_str(value).ok(),
        _ => {}
    }
}

/// Reads the notation of a type. Only the outermost list or map takes the attributes in `shape`.
fn node(code: &str, shape: &mut Shape, resolve: Resolve) -> Node {
    let (first, rest) = code.split_at(1);
    match first {
        "b" => Node::Bool,
        "i" => Node::Int32,
        "l" => Node::Int64,
        "d" => Node::Double,
        "s" => Node::String,
        "B" => Node::Bytes,
        "Q" => Node::Quantity,
        "I" => Node::IntOrString,
        "T" => Node::Time,
        "M" => Node::MicroTime,
        "U" => Node::Duration,
        "F" => Node::FieldsV1,
        "@" => Node::Object(resolve(rest)),
        "[" | "<" => {
            let shape = std::mem::take(shape);
            Node::List(Arc::new(List {
                list_type: shape.list.unwrap_or_default(),
                list_type_stated: shape.list.is_some(),
                map_keys: shape.keys,
                wrapped: first == "<",
                ..List::of(node(rest, &mut Shape::default(), resolve))
            }))
        }
        "%" => {
            let atomic = std::mem::take(&mut shape.atomic_map);
            Node::Map(Arc::new(Map { atomic, ..Map::of(node(rest, &mut Shape::default(), resolve)) }))
        }
        "?" => {
            let (kind, name) = rest.split_at(1);
            match kind {
                "b" => Node::SchemaOrBool(resolve(name)),
                "a" => Node::SchemaOrArray(resolve(name)),
                _ => Node::SchemaOrStringArray(resolve(name)),
            }
        }
        _ => Node::Any,
    }
}

fn words(list: &str) -> Vec<String> {
    list.split(',').filter(|w| !w.is_empty()).map(str::to_owned).collect()
}

/// Reads `kinds.tsv`; `schema` finds a definition.
pub(super) fn kinds(table: &'static str, schema: &dyn Fn(&str) -> Option<Arc<Object>>) -> Vec<KindFact> {
    let mut out: Vec<KindFact> = Vec::new();
    for row in rows(table) {
        match row.as_slice() {
            ["", name, gv, kind, verbs] => {
                let gvk = GroupVersion::parse(gv).map(|gv| Gvk::new(gv.group, gv.version, *kind));
                if let Some(parent) = out.last_mut() {
                    parent.subresources.push(((*name).to_owned(), gvk, words(verbs)));
                }
            }
            [gv, resource, kind, singular, scope, list_kind, verbs, short_names, categories, definition] => {
                let (Some(gv), Some(schema)) = (GroupVersion::parse(gv), schema(definition)) else { continue };
                out.push(KindFact {
                    gvk: Gvk::new(gv.group, gv.version, *kind),
                    resource: (*resource).to_owned(),
                    singular: (*singular).to_owned(),
                    short_names: words(short_names),
                    categories: words(categories),
                    namespaced: *scope == "Namespaced",
                    verbs: words(verbs),
                    subresources: Vec::new(),
                    list_kind: (*list_kind).to_owned(),
                    schema,
                });
            }
            _ => {}
        }
    }
    out
}
