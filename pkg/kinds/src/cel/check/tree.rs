//! What the checker looks at: an expression whose macros are written out, as cel-go's parser does while it parses. Nodes stand
//! in one list, so that types and sizes can stand beside them.

use super::Library;
use super::macros;
use crate::cel::Fault;
use crate::cel::ast::Expression;
use crate::cel::value::Val;

pub type Id = usize;

#[derive(Clone, Debug)]
pub struct Node {
    pub at: usize,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Literal(Val),
    Name(String),
    Select {
        of: Id,
        field: String,
        test: bool,
    },
    Call {
        target: Option<Id>,
        function: String,
        arguments: Vec<Id>,
    },
    List(Vec<Item>),
    Map(Vec<Pair<Id>>),
    Message {
        name: String,
        fields: Vec<Pair<String>>,
    },
    Fold(Box<Fold>),
    /// What a macro could not be made of; its fault is told.
    Faulty,
}

#[derive(Clone, Copy, Debug)]
pub struct Item {
    pub optional: bool,
    pub value: Id,
}

#[derive(Clone, Debug)]
pub struct Pair<K> {
    pub at: usize,
    pub optional: bool,
    pub key: K,
    pub value: Id,
}

/// A comprehension.
#[derive(Clone, Debug)]
pub struct Fold {
    pub range: Id,
    pub var: String,
    pub var2: Option<String>,
    pub accumulator: String,
    pub init: Id,
    pub condition: Id,
    pub step: Id,
    pub result: Id,
}

/// More nodes than any text needs whose macros do not copy what they are called on again and again (`optMap`).
const MAX_NODES: usize = 400_000;

/// The name that no expression can write, for what macros gather.
pub const RESULT: &str = "@result";

pub struct Tree {
    pub nodes: Vec<Node>,
    pub root: Id,
    pub(super) library: Library,
    pub(super) faults: Vec<Fault>,
}

impl Tree {
    /// The faults are those of macros.
    pub fn new(expression: &Expression, library: Library) -> Result<Self, Vec<Fault>> {
        let mut tree = Tree { nodes: Vec::new(), root: 0, library, faults: Vec::new() };
        tree.root = tree.grow(expression);
        if tree.faults.is_empty() { Ok(tree) } else { Err(tree.faults) }
    }

    pub fn what(&self, id: Id) -> &What {
        &self.nodes[id].what
    }

    /// What a node is made from.
    pub fn parts(&self, id: Id) -> Vec<Id> {
        match self.what(id) {
            What::Literal(_) | What::Name(_) | What::Faulty => Vec::new(),
            What::Select { of, .. } => vec![*of],
            What::Call { target, arguments, .. } => target.iter().chain(arguments).copied().collect(),
            What::List(items) => items.iter().map(|i| i.value).collect(),
            What::Map(pairs) => pairs.iter().flat_map(|p| [p.key, p.value]).collect(),
            What::Message { fields, .. } => fields.iter().map(|f| f.value).collect(),
            What::Fold(f) => vec![f.range, f.init, f.condition, f.step, f.result],
        }
    }

    pub fn add(&mut self, at: usize, what: What) -> Id {
        self.nodes.push(Node { at, what });
        self.nodes.len() - 1
    }

    pub fn call(&mut self, at: usize, function: &str, arguments: Vec<Id>) -> Id {
        self.add(at, What::Call { target: None, function: function.to_owned(), arguments })
    }

    fn grow_all<'a>(&mut self, all: impl IntoIterator<Item = &'a Expression>) -> Vec<Id> {
        all.into_iter().map(|e| self.grow(e)).collect()
    }

    fn grow(&mut self, e: &Expression) -> Id {
        match e {
            Expression::Literal { value, at } => self.add(*at, What::Literal(value.clone())),
            Expression::Name { name, at } => self.add(*at, What::Name(name.clone())),
            Expression::Field { of, name, optional, at, name_at, .. } => {
                let of = self.grow(of);
                if !optional {
                    return self.add(*at, What::Select { of, field: name.clone(), test: false });
                }
                let field = self.add(*name_at, What::Literal(Val::text(name.as_str())));
                self.call(*at, "_?._", vec![of, field])
            }
            Expression::Index { of, index, optional, at } => {
                let arguments = self.grow_all([&**of, &**index]);
                self.call(*at, if *optional { "_[?_]" } else { "_[_]" }, arguments)
            }
            Expression::Operator { operator, operands, at } => {
                let arguments = self.grow_all(operands);
                self.call(*at, operator.function(), arguments)
            }
            Expression::Conditional { parts, at } => {
                let arguments = self.grow_all(parts.iter());
                self.call(*at, "_?_:_", arguments)
            }
            Expression::List { items, at } => {
                let item = |(optional, e): &(bool, Expression)| Item { optional: *optional, value: self.grow(e) };
                let items = items.iter().map(item).collect();
                self.add(*at, What::List(items))
            }
            Expression::Map { entries, at } => {
                let mut pairs = Vec::new();
                for e in entries {
                    let (key, value) = (self.grow(&e.key), self.grow(&e.value));
                    pairs.push(Pair { at: e.at, optional: e.optional, key, value });
                }
                self.add(*at, What::Map(pairs))
            }
            Expression::Message { of, fields, at } => {
                let mut pairs = Vec::new();
                for e in fields {
                    let value = self.grow(&e.value);
                    pairs.push(Pair { at: e.at, optional: e.optional, key: e.key.clone(), value });
                }
                self.add(*at, What::Message { name: of.clone(), fields: pairs })
            }
            Expression::Call { on, name, arguments, at } => {
                let target = on.as_ref().map(|on| self.grow(on));
                let arguments = self.grow_all(arguments);
                match macros::expand(self, *at, target, name, &arguments) {
                    Some(Ok(made)) => made,
                    Some(Err(fault)) => {
                        self.faults.push(fault);
                        self.add(*at, What::Faulty)
                    }
                    None => self.add(*at, What::Call { target, function: name.clone(), arguments }),
                }
            }
            Expression::Group(inner) => self.grow(inner),
        }
    }

    /// The same once more, as nodes of their own. Where that is too much it is a fault.
    pub fn copy(&mut self, id: Id) -> Id {
        let Node { at, what } = self.nodes[id].clone();
        if self.nodes.len() >= MAX_NODES {
            if self.faults.is_empty() {
                self.faults
                    .push(Fault { at, message: "the expression is too large once its macros are expanded".into() });
            }
            return self.add(at, What::Faulty);
        }
        let copied = match what {
            What::Select { of, field, test } => What::Select { of: self.copy(of), field, test },
            What::Call { target, function, arguments } => What::Call {
                target: target.map(|t| self.copy(t)),
                function,
                arguments: arguments.into_iter().map(|a| self.copy(a)).collect(),
            },
            What::List(items) => {
                What::List(items.into_iter().map(|i| Item { value: self.copy(i.value), ..i }).collect())
            }
            What::Map(pairs) => What::Map(
                pairs.into_iter().map(|p| Pair { key: self.copy(p.key), value: self.copy(p.value), ..p }).collect(),
            ),
            What::Message { name, fields } => What::Message {
                name,
                fields: fields.into_iter().map(|p| Pair { value: self.copy(p.value), ..p }).collect(),
            },
            What::Fold(f) => What::Fold(Box::new(Fold {
                range: self.copy(f.range),
                init: self.copy(f.init),
                condition: self.copy(f.condition),
                step: self.copy(f.step),
                result: self.copy(f.result),
                ..*f
            })),
            simple => simple,
        };
        self.add(at, copied)
    }
}
