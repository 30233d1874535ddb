//! What differs between two values of one type: the paths that were removed, modified and added. One walk over both.

use super::path::{PathElement, equal};
use super::set::{Filter, Set};
use super::typed::{ListShape, MapShape, Shape, Type};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    pub removed: Set,
    pub modified: Set,
    pub added: Set,
}

impl Comparison {
    pub(super) fn filter(self, filter: &Filter) -> Self {
        Comparison {
            removed: filter.apply(self.removed),
            modified: filter.apply(self.modified),
            added: filter.apply(self.added),
        }
    }
}

/// What happened to a place itself, as opposed to what lies below it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    Removed,
    Modified,
    Added,
}

/// From `old` to `new`.
pub fn compare(old: &Value, new: &Value, ty: Type) -> Comparison {
    let mut out = Comparison::default();
    walk(Some(old), Some(new), ty, 0, &mut out);
    out
}

/// So deep values are compared as a whole before they are walked: most of what a write leaves alone is found by then, and looking at
/// the rest at every level would take the square of its depth.
const SHALLOW: usize = 16;

/// Compares two values, of which one may be absent; says what happened to the place itself.
fn walk(old: Option<&Value>, new: Option<&Value>, ty: Type, depth: usize, out: &mut Comparison) -> Change {
    // What a write leaves alone is most of an object.
    if depth < SHALLOW && old == new {
        return Change::None;
    }
    let atom = ty.atom();
    let (before, after) = (atom.deduce(old), atom.deduce(new));
    let shape = match (old, new) {
        (_, None) => before.shape(),
        (None, _) => after.shape(),
        _ if before.same(&after) => after.shape(),
        _ => {
            // It changed its shape: both are walked, and the new one decides about the place.
            let first = before.shape().and_then(|s| inside(old, new, s, depth, out));
            let second = after.shape().and_then(|s| inside(old, new, s, depth, out));
            return second.or(first).unwrap_or(Change::None);
        }
    };
    match shape.and_then(|s| inside(old, new, s, depth, out)) {
        Some(leaf) => leaf,
        None if old.is_none() => Change::Added,
        None if new.is_none() => Change::Removed,
        None => Change::None,
    }
}

/// Walks by one shape. `Some`: it is a leaf.
fn inside(
    old: Option<&Value>,
    new: Option<&Value>,
    shape: Shape,
    depth: usize,
    out: &mut Comparison,
) -> Option<Change> {
    match shape {
        Shape::Scalar(_) => Some(leaf(old, new)),
        Shape::Map(m) => {
            let (a, b) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
            if m.atomic || (a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty)) {
                return Some(leaf(old, new));
            }
            fields(a, b, m, depth + 1, out);
            None
        }
        Shape::List(l) => {
            let (a, b) = (old.and_then(Value::as_array), new.and_then(Value::as_array));
            if l.is_atomic() || (a.is_none_or(Vec::is_empty) && b.is_none_or(Vec::is_empty)) {
                return Some(leaf(old, new));
            }
            items(a.map_or(&[][..], Vec::as_slice), b.map_or(&[][..], Vec::as_slice), l, depth + 1, out);
            None
        }
    }
}

fn leaf(old: Option<&Value>, new: Option<&Value>) -> Change {
    match (old, new) {
        (None, _) => Change::Added,
        (_, None) => Change::Removed,
        (Some(a), Some(b)) if equal(a, b) => Change::None,
        _ => Change::Modified,
    }
}

fn fields(
    old: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
    shape: MapShape,
    depth: usize,
    out: &mut Comparison,
) {
    let empty = Map::new();
    let (old, new) = (old.unwrap_or(&empty), new.unwrap_or(&empty));
    let mut child = |key: &str, a: Option<&Value>, b: Option<&Value>| {
        let ty = shape.child(key).0.unwrap_or(Type::Deduced);
        let mut below = Comparison::default();
        let change = walk(a, b, ty, depth, &mut below);
        place(out, || PathElement::field(key), change, below);
    };
    for (key, a) in old {
        child(key, Some(a), new.get(key));
    }
    for (key, b) in new.iter().filter(|(k, _)| !old.contains_key(*k)) {
        child(key, None, Some(b));
    }
}

/// Puts what was found at a child in its place; most children are unchanged, and those cost no name.
fn place(out: &mut Comparison, element: impl Fn() -> PathElement, change: Change, below: Comparison) {
    let put = |set: &mut Set, member: bool, children: Set| {
        if member || !children.is_empty() {
            set.add(element(), member, children);
        }
    };
    put(&mut out.removed, change == Change::Removed, below.removed);
    put(&mut out.modified, change == Change::Modified, below.modified);
    put(&mut out.added, change == Change::Added, below.added);
}

fn items(old: &[Value], new: &[Value], shape: ListShape, depth: usize, out: &mut Comparison) {
    // In the order of sets, which then take each element at their end.
    let mut all: BTreeMap<PathElement, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    let (before, after) = (old.iter().map(|i| (i, true)), new.iter().map(|i| (i, false)));
    for (item, is_old) in before.chain(after) {
        let Ok(element) = shape.element(item) else { continue };
        let (before, after) = all.entry(element).or_default();
        if is_old { before.push(item) } else { after.push(item) }
    }
    for (element, (before, after)) in all {
        let mut below = Comparison::default();
        let mut single = |a: Option<&Value>, b: Option<&Value>| walk(a, b, shape.item, depth, &mut below);
        // Items that stand more than once are compared as one leaf.
        let change = match (before.len(), after.len()) {
            (0 | 1, 0 | 1) => single(before.first().copied(), after.first().copied()),
            (0 | 1, _) => {
                if let [only] = before[..] {
                    let change = single(Some(only), None);
                    place(out, || element.clone(), change, std::mem::take(&mut below));
                }
                Change::Added
            }
            (_, 0 | 1) => {
                if let [only] = after[..] {
                    let change = single(None, Some(only));
                    place(out, || element.clone(), change, std::mem::take(&mut below));
                }
                Change::Removed
            }
            _ if before.len() == after.len() && before.iter().zip(&after).all(|(a, b)| equal(a, b)) => Change::None,
            _ => Change::Modified,
        };
        place(out, || element.clone(), change, below);
    }
}
