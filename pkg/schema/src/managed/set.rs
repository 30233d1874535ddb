//! Sets of paths, as trees. A node may be a member itself, have members below it, or both.
//!
//! Invariants: nodes are sorted and unique; there is no node that is neither a member nor has members below it.

use super::path::{Path, PathElement, text};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    pub(super) nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub element: PathElement,
    pub member: bool,
    pub children: Set,
}

impl Node {
    fn keep(self) -> Option<Node> {
        (self.member || !self.children.is_empty()).then_some(self)
    }
}

impl Set {
    /// A set of paths of field names.
    pub fn of(paths: &[&[&str]]) -> Set {
        let mut set = Set::default();
        for path in paths {
            set.insert(path.iter().map(|p| PathElement::field(p)));
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Adds one path; the empty one, which stands for the whole object, is not kept.
    pub fn insert(&mut self, path: impl IntoIterator<Item = PathElement>) {
        let mut path = path.into_iter();
        let Some(first) = path.next() else { return };
        let at = self.place(first);
        let mut node = &mut self.nodes[at];
        for element in path {
            let at = node.children.place(element);
            node = &mut node.children.nodes[at];
        }
        node.member = true;
    }

    /// The index of an element's node, which is made if need be.
    fn place(&mut self, element: PathElement) -> usize {
        match self.nodes.binary_search_by(|n| n.element.cmp(&element)) {
            Ok(at) => at,
            Err(at) => {
                self.nodes.insert(at, Node { element, member: false, children: Set::default() });
                at
            }
        }
    }

    /// Adds what a walk found at a child. Walks come in order as a rule, which costs no search.
    pub(super) fn add(&mut self, element: PathElement, member: bool, children: Set) {
        if member || !children.is_empty() {
            self.put(Node { element, member, children });
        }
    }

    fn put(&mut self, new: Node) {
        if self.nodes.last().is_none_or(|last| last.element < new.element) {
            return self.nodes.push(new);
        }
        match self.nodes.binary_search_by(|n| n.element.cmp(&new.element)) {
            Err(at) => self.nodes.insert(at, new),
            Ok(at) => {
                self.nodes[at].member |= new.member;
                self.nodes[at].children.absorb(new.children);
            }
        }
    }

    /// The union in place.
    pub(super) fn absorb(&mut self, other: Set) {
        if self.is_empty() {
            *self = other;
        } else {
            other.nodes.into_iter().for_each(|node| self.put(node));
        }
    }

    /// The difference in place; `all`: with what lies below the members of `other`.
    pub(super) fn subtract(&mut self, other: &Set, all: bool) {
        for taken in &other.nodes {
            let Ok(at) = self.nodes.binary_search_by(|n| n.element.cmp(&taken.element)) else { continue };
            let node = &mut self.nodes[at];
            node.member &= !taken.member;
            if taken.member && all {
                node.children = Set::default();
            } else {
                node.children.subtract(&taken.children, all);
            }
            if !node.member && node.children.is_empty() {
                self.nodes.remove(at);
            }
        }
    }

    pub(super) fn node(&self, element: &PathElement) -> Option<&Node> {
        let at = self.nodes.binary_search_by(|n| n.element.cmp(element)).ok()?;
        self.nodes.get(at)
    }

    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.node(last).is_some_and(|n| n.member),
            [first, rest @ ..] => self.node(first).is_some_and(|n| n.children.has(rest)),
        }
    }

    pub fn union(&self, other: &Set) -> Set {
        let mut set = self.clone();
        set.absorb(other.clone());
        set
    }

    pub fn intersection(&self, other: &Set) -> Set {
        let both = self.nodes.iter().filter_map(|node| {
            let same = other.node(&node.element)?;
            let children = node.children.intersection(&same.children);
            Node { element: node.element.clone(), member: node.member && same.member, children }.keep()
        });
        Set { nodes: both.collect() }
    }

    /// Without the members of `other`; what lies below a member of `other` stays.
    pub fn difference(&self, other: &Set) -> Set {
        let mut set = self.clone();
        set.subtract(other, false);
        set
    }

    /// Without the members of `other` and all that lies below them.
    pub fn recursive_difference(&self, other: &Set) -> Set {
        let mut set = self.clone();
        set.subtract(other, true);
        set
    }

    /// All members, those of a level before what lies below them.
    pub fn paths(&self) -> Vec<Path> {
        self.paths_within(&mut usize::MAX.clone())
    }

    /// As many of [`Self::paths`] as have not more elements together than are `left`.
    pub(super) fn paths_within(&self, left: &mut usize) -> Vec<Path> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), left, &mut out);
        out
    }

    fn collect(&self, prefix: &mut Path, left: &mut usize, out: &mut Vec<Path>) {
        for node in self.nodes.iter().filter(|n| n.member) {
            let Some(rest) = left.checked_sub(prefix.len() + 1) else { return };
            *left = rest;
            out.push(prefix.iter().chain([&node.element]).cloned().collect());
        }
        for node in &self.nodes {
            prefix.push(node.element.clone());
            node.children.collect(prefix, left, out);
            prefix.pop();
        }
    }
}

impl std::fmt::Display for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines: Vec<String> = self.paths().iter().map(|p| text(p)).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Which fields a request can change at all: a write through `status` does not own what it says about `spec`.
#[derive(Clone, Debug, Default)]
pub enum Filter {
    #[default]
    All,
    /// All but these and what lies below them.
    Without(Set),
    /// These alone, and what lies below them. `*` stands for any element.
    Only(&'static [&'static [&'static str]]),
}

impl Filter {
    /// Whether nothing at or below a path of field names can be owned.
    pub fn excludes(&self, path: &[&str]) -> bool {
        let Filter::Without(set) = self else { return false };
        let path: Path = path.iter().map(|p| PathElement::field(p)).collect();
        (1..=path.len()).any(|n| set.has(&path[..n]))
    }

    pub(super) fn apply(&self, mut set: Set) -> Set {
        match self {
            Filter::All => {}
            Filter::Without(excluded) => set.subtract(excluded, true),
            Filter::Only(patterns) => set = only(&set, patterns),
        }
        set
    }
}

fn only(set: &Set, patterns: &[&'static [&'static str]]) -> Set {
    let fits = |pattern: &&&'static [&'static str], element: &PathElement| {
        pattern.first().is_some_and(|p| *p == "*" || matches!(element, PathElement::Field(name) if **name == **p))
    };
    let nodes = set.nodes.iter().filter_map(|node| {
        let below: Vec<&'static [&'static str]> =
            patterns.iter().filter(|p| fits(p, &node.element)).map(|p| &p[1..]).collect();
        let children =
            if below.iter().any(|p| p.is_empty()) { node.children.clone() } else { only(&node.children, &below) };
        Node { element: node.element.clone(), member: node.member && !below.is_empty(), children }.keep()
    });
    Set { nodes: nodes.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(text: serde_json::Value) -> Set {
        Set::from_json(&text).unwrap()
    }

    #[test]
    fn algebra() {
        let a = set(json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}, "f:d": {}}));
        let b = set(json!({"f:a": {"f:b": {}}, "f:d": {}, "f:e": {}}));
        for (got, want) in [
            (a.union(&b), json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}, "f:d": {}, "f:e": {}})),
            (a.intersection(&b), json!({"f:a": {"f:b": {}}, "f:d": {}})),
            (a.difference(&b), json!({"f:a": {".": {}, "f:c": {}}})),
            (b.difference(&a), json!({"f:e": {}})),
            (a.difference(&set(json!({"f:a": {}}))), json!({"f:a": {"f:b": {}, "f:c": {}}, "f:d": {}})),
            (a.recursive_difference(&set(json!({"f:a": {}}))), json!({"f:d": {}})),
            (a.recursive_difference(&b), json!({"f:a": {".": {}, "f:c": {}}})),
        ] {
            assert_eq!(got.to_json(), want);
        }
        assert_eq!(a.to_string(), ".a\n.d\n.a.b\n.a.c");
    }

    #[test]
    fn filters() {
        let pod = set(json!({
            "f:metadata": {"f:labels": {"f:a": {}}},
            "f:spec": {".": {}, "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:resources": {"f:limits": {}}}}},
            "f:status": {"f:phase": {}},
        }));
        let resize: &[&[&str]] = &[&["spec", "containers", "*", "resources"]];
        assert_eq!(
            Filter::Only(resize).apply(pod.clone()).to_json(),
            json!({"f:spec": {".": {}, "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:resources": {"f:limits": {}}}}}})
        );
        let spec = Filter::Without(Set::of(&[&["spec"], &["metadata", "labels"]]));
        assert_eq!(spec.apply(pod).to_json(), json!({"f:status": {"f:phase": {}}}));
    }
}
