//! What evaluating an expression may cost, at the least and at the most (`checker/cost.go`). Upstream refuses rules by these
//! numbers, so they are its numbers.

mod calls;
mod range;

pub use range::Range;

use super::Checked;
use super::tree::{Fold, Id, What};
use super::types::Type;
use crate::cel::value::Val;
use std::collections::HashMap;

/// How large values can be that an expression takes from outside.
pub trait Sizes {
    /// The most elements or characters that the value at this path can have: names of fields, `@items`, `@keys`, `@values`.
    /// `None`: nothing is known.
    fn most(&self, path: &[String]) -> Option<u64>;
}

/// Nothing is known.
pub struct Unbounded;

impl Sizes for Unbounded {
    fn most(&self, _: &[String]) -> Option<u64> {
        None
    }
}

pub fn estimate(checked: &Checked, sizes: &dyn Sizes) -> Range {
    let mut estimator = Estimator {
        checked,
        outside: sizes,
        paths: HashMap::new(),
        locals: Vec::new(),
        sizes: HashMap::new(),
        entries: HashMap::new(),
    };
    estimator.cost(checked.tree.root)
}

type Path = Vec<String>;

/// Sizes of the keys and values of a list or map.
#[derive(Clone, Copy)]
struct Entries {
    of_list: bool,
    key: Range,
    value: Range,
}

#[derive(Clone)]
struct Local {
    name: String,
    path: Path,
    size: Option<Range>,
    entries: Option<Entries>,
}

/// A value for the estimate of a call.
struct Given<'a> {
    /// `None`: a list's element, which is no node.
    id: Option<Id>,
    path: Path,
    of: &'a Type,
    computed: Option<Range>,
}

/// The cost of a call, and how large its result is if that is known.
struct Estimate {
    cost: Range,
    size: Option<Range>,
}

struct Estimator<'a> {
    checked: &'a Checked,
    outside: &'a dyn Sizes,
    paths: HashMap<Id, Path>,
    locals: Vec<Local>,
    sizes: HashMap<Id, Range>,
    entries: HashMap<Id, Entries>,
}

impl<'a> Estimator<'a> {
    fn what(&self, id: Id) -> &'a What {
        self.checked.tree.what(id)
    }

    fn type_of(&self, id: Id) -> &'a Type {
        &self.checked.types[id]
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|l| l.name == name)
    }

    fn cost(&mut self, id: Id) -> Range {
        match self.what(id) {
            What::Literal(_) | What::Faulty => Range::of(0),
            What::Name(name) => {
                let path = self.local(name).map_or_else(|| vec![name.clone()], |l| l.path.clone());
                self.paths.insert(id, path);
                Range::of(1)
            }
            // Asking whether a field is there costs nothing by itself.
            What::Select { of, test: true, .. } => self.cost(*of),
            What::Select { of, field, .. } => {
                let mut sum = self.cost(*of);
                if matches!(self.type_of(*of), Type::Map(..) | Type::Object(_) | Type::Param(_)) {
                    sum = sum.plus(Range::of(1));
                }
                let path = self.path_below(*of, field);
                self.paths.insert(id, path);
                sum
            }
            What::Call { target, function, arguments } => self.call(id, *target, function, arguments),
            What::List(items) => {
                let all: Vec<Id> = items.iter().map(|i| i.value).collect();
                let (sum, value) = self.elements(&all);
                self.entries.insert(id, Entries { of_list: true, key: Range::of(1), value });
                sum.plus(Range::of(10))
            }
            What::Map(pairs) => {
                let (keys, key) = self.elements(&pairs.iter().map(|p| p.key).collect::<Vec<_>>());
                let (values, value) = self.elements(&pairs.iter().map(|p| p.value).collect::<Vec<_>>());
                self.entries.insert(id, Entries { of_list: false, key, value });
                keys.plus(values).plus(Range::of(30))
            }
            What::Message { fields, .. } => {
                let all = fields.iter().map(|f| self.cost(f.value));
                all.fold(Range::of(0), Range::plus).plus(Range::of(40))
            }
            What::Fold(fold) if self.binds(fold) => self.bind(id, fold),
            What::Fold(fold) => self.fold(id, fold),
        }
    }

    /// The cost of all of them, and what sizes they have.
    fn elements(&mut self, all: &[Id]) -> (Range, Range) {
        let mut size = Range { min: if all.is_empty() { 0 } else { u64::MAX }, max: 0 };
        let mut sum = Range::of(0);
        for id in all {
            sum = sum.plus(self.cost(*id));
            size = size.union(self.size_or_unknown(*id));
        }
        (sum, size)
    }

    fn path(&self, id: Id) -> Path {
        if let What::Name(name) = self.what(id)
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&id).cloned().unwrap_or_default()
    }

    fn path_below(&self, id: Id, step: &str) -> Path {
        let mut path = self.path(id);
        path.push(step.to_owned());
        path
    }

    /// A name for a value.
    fn binds(&self, f: &Fold) -> bool {
        matches!(self.what(f.range), What::List(items) if items.is_empty())
            && matches!(self.what(f.condition), What::Literal(Val::Bool(false)))
    }

    fn push(&mut self, name: &str, path: Path, size: Option<Range>, entries: Option<Entries>) {
        self.locals.push(Local { name: name.to_owned(), path, size, entries });
    }

    fn push_value(&mut self, name: &str, id: Id) {
        let (path, entries) = (self.path(id), self.entries_of(id));
        let size = self.size(id);
        self.push(name, path, size, entries);
    }

    fn bind(&mut self, id: Id, f: &Fold) -> Range {
        let mut sum = self.cost(f.range).plus(self.cost(f.init));
        self.push_value(&f.accumulator, f.init);
        sum = sum.plus(self.cost(f.result));
        self.locals.pop();
        self.copy_sizes(id, f.result);
        sum
    }

    fn fold(&mut self, id: Id, f: &Fold) -> Range {
        let mut sum = self.cost(f.range).plus(self.cost(f.init));
        self.push_value(&f.accumulator, f.init);
        let outside = self.locals.len();
        self.push_elements(f);
        let each = self.cost(f.condition).plus(self.cost(f.step));
        self.locals.truncate(outside);
        sum = sum.plus(self.cost(f.result));
        self.locals.pop();
        let count = self.size_or_unknown(f.range);
        sum = sum.plus(count.multiply(each));
        match self.what(f.init) {
            What::Literal(_) => {
                if let Some(size) = self.size(f.init) {
                    self.sizes.insert(id, size);
                }
            }
            What::List(_) | What::Map(_) => {
                self.sizes.insert(id, count);
                if let Some(entries) = self.entries_of(f.step) {
                    self.entries.insert(id, entries);
                }
            }
            _ => {}
        }
        sum
    }

    fn push_elements(&mut self, f: &Fold) {
        let entries = self.entries_of(f.range);
        let of_list = entries.map_or(matches!(self.type_of(f.range), Type::List(_)), |e| e.of_list);
        let (key, value) = if of_list { ("@indices", "@items") } else { ("@keys", "@values") };
        // In upstream the paths of both are one slice of Go if there is room in it: then the key's is that of the value.
        let length = self.path(f.range).len();
        let one_slice = f.var2.is_some() && length > 0 && !length.is_power_of_two();
        let key = (self.path_below(f.range, if one_slice { value } else { key }), entries.map(|e| e.key));
        let value = (self.path_below(f.range, value), entries.map(|e| e.value));
        match &f.var2 {
            Some(var2) => {
                self.push(&f.var, key.0, key.1, None);
                self.push(var2, value.0, value.1, None);
            }
            None => {
                let (path, size) = if of_list { value } else { key };
                self.push(&f.var, path, size, None);
            }
        }
    }

    fn size_or_unknown(&mut self, id: Id) -> Range {
        self.size(id).unwrap_or(Range::UNKNOWN)
    }

    fn copy_sizes(&mut self, to: Id, from: Id) {
        if let Some(size) = self.size(from) {
            self.sizes.insert(to, size);
        }
        if let Some(entries) = self.entries_of(from) {
            self.entries.insert(to, entries);
        }
    }

    fn size(&mut self, id: Id) -> Option<Range> {
        if let Some(size) = self.sizes.get(&id) {
            return Some(*size);
        }
        if let Some(size) = own_size(self.what(id)) {
            return Some(size);
        }
        let path = self.path(id);
        if let Some(size) = self.size_outside(&path) {
            self.sizes.insert(id, size);
            return Some(size);
        }
        if is_scalar(self.type_of(id)) {
            return Some(Range::of(1));
        }
        match self.what(id) {
            What::Name(name) => self.local(name).and_then(|l| l.size),
            _ => None,
        }
    }

    fn size_outside(&self, path: &[String]) -> Option<Range> {
        (!path.is_empty()).then(|| self.outside.most(path)).flatten().map(|max| Range { min: 0, max })
    }

    fn entries_of(&self, id: Id) -> Option<Entries> {
        if let Some(entries) = self.entries.get(&id) {
            return Some(*entries);
        }
        match self.what(id) {
            What::Name(name) => self.local(name).and_then(|l| l.entries),
            _ => None,
        }
    }

    fn given(&mut self, id: Id) -> Given<'a> {
        let mut path = self.path(id);
        // What macros gather is at no path.
        if path.first().is_some_and(|p| p == super::tree::RESULT) {
            path.clear();
        }
        Given { id: Some(id), path, of: self.type_of(id), computed: self.size(id) }
    }

    fn call(&mut self, id: Id, target: Option<Id>, function: &str, arguments: &[Id]) -> Range {
        if let ("dyn", [argument]) = (function, arguments) {
            let cost = self.cost(*argument);
            self.copy_sizes(id, *argument);
            return cost.plus(Range::of(1));
        }
        let mut costs = Vec::new();
        let mut given = Vec::new();
        for argument in arguments {
            costs.push(self.cost(*argument));
            given.push(self.given(*argument));
        }
        let Some(overloads) = self.checked.overloads.get(&id) else { return Range::of(0) };
        let (sum, target) = match target {
            Some(target) => (self.cost(target), Some(self.given(target))),
            None => (Range::of(0), None),
        };
        let mut total = Range { min: u64::MAX, max: 0 };
        let mut size: Option<Range> = None;
        for overload in overloads {
            let estimate = self.call_cost(id, function, overload, target.as_ref(), &given, &costs);
            total = total.union(estimate.cost);
            if let Some(made) = estimate.size {
                size = Some(size.map_or(made, |s| s.union(made)));
            }
            if let ("index_list" | "index_map", [of, ..]) = (*overload, arguments) {
                size = self.entries_of(*of).map(|e| e.value);
                let path = self.path_below(*of, if *overload == "index_list" { "@items" } else { "@values" });
                self.paths.insert(id, path);
            }
            if size.is_none() {
                size = self.size(id);
            }
        }
        if let Some(size) = size {
            self.sizes.insert(id, size);
        }
        sum.plus(total)
    }
}

fn own_size(what: &What) -> Option<Range> {
    Some(Range::of(match what {
        What::Literal(Val::Text(t)) => t.chars().count() as u64,
        What::Literal(Val::Bytes(b)) => b.len() as u64,
        What::Literal(_) => 1,
        What::List(items) => items.len() as u64,
        What::Map(pairs) => pairs.len() as u64,
        _ => return None,
    }))
}

fn is_scalar(t: &Type) -> bool {
    match t {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        Type::Wrapper(of) => is_scalar(of),
        _ => t.of_optional().is_some_and(is_scalar),
    }
}
