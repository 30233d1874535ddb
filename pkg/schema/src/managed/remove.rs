//! Taking fields and items out of a value, and what it means to own a struct's field whose children are owned.

use super::path::PathElement;
use super::set::{Node, Set};
use super::typed::{Shape, Type};
use serde_json::{Map, Value};

/// `value` without the members of `set`. What has nothing left is null.
pub fn remove(value: &Value, set: &Set, ty: Type) -> Value {
    match (ty.shape(value), value) {
        (Some(Shape::List(l)), Value::Array(items)) if !l.is_atomic() => {
            let kept: Vec<Value> = items
                .iter()
                .filter_map(|item| {
                    let node = l.element(item).ok().and_then(|e| set.node(&e));
                    without(item, node, l.item)
                })
                .collect();
            if kept.is_empty() { Value::Null } else { Value::Array(kept) }
        }
        (Some(Shape::Map(m)), Value::Object(map)) if !m.atomic => {
            let mut kept = Map::new();
            for (key, child) in map {
                let ty = m.child(key).0.unwrap_or(Type::Deduced);
                if let Some(left) = without(child, set.node(&PathElement::field(key)), ty) {
                    kept.insert(key.clone(), left);
                }
            }
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        (None | Some(Shape::Scalar(_)), scalar) => scalar.clone(),
        // A part of an atomic value is all of it.
        _ => Value::Null,
    }
}

fn without(value: &Value, node: Option<&Node>, ty: Type) -> Option<Value> {
    match node {
        None => Some(value.clone()),
        Some(node) if node.member => None,
        Some(node) => Some(remove(value, &node.children, ty)),
    }
}

/// `set` with every struct field whose children are members as a member too.
pub fn ensure_named(set: &Set, ty: Type) -> Set {
    let atom = ty.atom();
    let nodes = set.nodes.iter().map(|node| {
        let (below, named) = match &node.element {
            PathElement::Field(name) => atom.map.map_or((None, false), |m| m.child(name)),
            PathElement::Key(_) => (atom.list.map(|l| l.item), false),
            PathElement::Value(_) | PathElement::Index(_) => (None, false),
        };
        Node {
            element: node.element.clone(),
            member: node.member || (named && !node.children.is_empty()),
            children: ensure_named(&node.children, below.unwrap_or(Type::Deduced)),
        }
    });
    Set { nodes: nodes.collect() }
}

/// Whether there is something below what is one leaf now.
fn is_outdated(set: &Set, ty: Type) -> bool {
    let atom = ty.atom();
    set.nodes.iter().filter(|node| !node.children.is_empty()).any(|node| {
        let below = match &node.element {
            PathElement::Field(name) => atom.map.and_then(|m| m.child(name).0),
            _ => atom.list.map(|l| l.item),
        };
        let Some(below) = below else { return false };
        match below.atom().shape() {
            Some(Shape::Map(m)) if m.atomic => true,
            Some(Shape::List(l)) if l.is_atomic() => true,
            Some(Shape::Map(_) | Shape::List(_)) => is_outdated(&node.children, below),
            _ => false,
        }
    })
}

/// `set` after a change of its schema from granular to atomic: what has become one leaf is owned as one. `None`: as it was.
pub(super) fn reconcile(set: &Set, ty: Type) -> Option<Set> {
    is_outdated(set, ty).then(|| reconciled(set, ty))
}

fn reconciled(set: &Set, ty: Type) -> Set {
    let atom = ty.atom();
    let nodes = set.nodes.iter().map(|node| {
        let below = match &node.element {
            PathElement::Field(name) => atom.map.and_then(|m| m.child(name).0),
            _ => atom.list.map(|l| l.item),
        };
        let Some(below) = below.filter(|_| !node.children.is_empty()) else { return node.clone() };
        let leaf = match below.atom().shape() {
            Some(Shape::Map(m)) => m.atomic,
            Some(Shape::List(l)) => l.is_atomic(),
            _ => return node.clone(),
        };
        match leaf {
            true => Node { element: node.element.clone(), member: true, children: Set::default() },
            false => {
                Node { element: node.element.clone(), member: node.member, children: reconciled(&node.children, below) }
            }
        }
    });
    Set { nodes: nodes.collect() }
}
