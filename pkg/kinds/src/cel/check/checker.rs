//! The walk of the checker (`checker/checker.go`).

use super::environment::Environment;
use super::functions::{self, Overload};
use super::tree::{Fold, Id, Item, Pair, Tree, What};
use super::types::Type;
use super::unify::{Substitutions, most_general};
use super::{Checked, Fault};
use crate::cel::value::Val;
use std::collections::{BTreeSet, HashMap};
use std::slice::from_ref;

pub fn check(tree: Tree, environment: &Environment) -> Result<Checked, Vec<Fault>> {
    let root = tree.root;
    let mut checker = Checker {
        types: vec![Type::Error; tree.nodes.len()],
        tree,
        environment,
        locals: Vec::new(),
        known: Substitutions::default(),
        fresh: 0,
        overloads: HashMap::new(),
        references: BTreeSet::new(),
        faults: Vec::new(),
    };
    checker.visit(root);
    let Checker { tree, types, known, overloads, references, faults, .. } = checker;
    if !faults.is_empty() {
        return Err(faults);
    }
    let types = types.iter().map(|t| known.apply(t, true)).collect();
    Ok(Checked { tree, types, overloads, references })
}

struct Checker<'a> {
    tree: Tree,
    environment: &'a Environment,
    types: Vec<Type>,
    /// What comprehensions name, the innermost last.
    locals: Vec<(String, Type)>,
    known: Substitutions,
    /// How many parameters were made up so far.
    fresh: usize,
    overloads: HashMap<Id, Vec<&'static str>>,
    references: BTreeSet<String>,
    faults: Vec<Fault>,
}

impl Checker<'_> {
    fn fault(&mut self, at: usize, message: String) {
        self.faults.push(Fault { at, message });
    }

    fn at(&self, id: Id) -> usize {
        self.tree.nodes[id].at
    }

    fn undeclared(&mut self, at: usize, name: &str) -> Type {
        self.fault(at, format!("undeclared reference to '{name}' (in container '')"));
        Type::Error
    }

    fn mismatch(&mut self, at: usize, wanted: &Type, found: &Type) {
        self.fault(at, format!("expected type '{}' but found '{}'", wanted.shown(), found.shown()));
    }

    fn new_param(&mut self) -> Type {
        self.fresh += 1;
        Type::Param(format!("_var{}", self.fresh - 1).into())
    }

    fn fits(&mut self, from: &Type, to: &Type) -> bool {
        self.known.assign(from_ref(from), from_ref(to))
    }

    fn visit(&mut self, id: Id) {
        let t = match self.tree.what(id).clone() {
            What::Literal(value) => literal(&value),
            What::Name(name) => self.name(id, &name),
            What::Select { of, field, test } => {
                let t = match self.qualified(id, test) {
                    Some(t) => t,
                    None => self.field(id, of, &field, false),
                };
                let t = if test { Type::Bool } else { t };
                self.known.apply(&t, false)
            }
            What::Call { target, function, arguments } => self.call(id, target, &function, &arguments),
            What::List(items) => self.list(&items),
            What::Map(pairs) => self.map(&pairs),
            What::Message { name, fields } => self.message(id, &name, &fields),
            What::Fold(fold) => self.fold(&fold),
            What::Faulty => Type::Error,
        };
        self.types[id] = t;
    }

    fn local(&self, name: &str) -> Option<Type> {
        self.locals.iter().rev().find(|(n, _)| n == name).map(|(_, t)| t.clone())
    }

    fn name(&mut self, id: Id, name: &str) -> Type {
        if let Some(t) = self.local(name) {
            return t;
        }
        let global = name.trim_start_matches('.');
        match self.environment.global(global) {
            Some(t) => {
                self.references.insert(global.to_owned());
                if global != name && self.local(global).is_none() {
                    self.tree.nodes[id].what = What::Name(global.to_owned());
                }
                t
            }
            None => self.undeclared(self.at(id), name),
        }
    }

    /// `a.b` as one name that is declared.
    fn qualified(&mut self, id: Id, test: bool) -> Option<Type> {
        if test {
            return None;
        }
        let path = self.path(id)?;
        let first = path.split('.').next().unwrap_or_default();
        if !path.starts_with('.') && self.local(first).is_some() {
            return None;
        }
        let name = path.trim_start_matches('.').to_owned();
        let t = self.environment.global(&name)?;
        self.references.insert(name.clone());
        self.tree.nodes[id].what = What::Name(name);
        Some(t)
    }

    fn path(&self, id: Id) -> Option<String> {
        match self.tree.what(id) {
            What::Name(name) => Some(name.clone()),
            What::Select { of, field, test: false } => Some(format!("{}.{field}", self.path(*of)?)),
            _ => None,
        }
    }

    /// The type of a field of an operand; of an optional one, or if it is asked for so, it is an optional.
    fn field(&mut self, id: Id, of: Id, field: &str, optional: bool) -> Type {
        self.visit(of);
        let operand = self.known.apply(&self.types[of].clone(), false);
        let (inner, is_optional) = match operand.of_optional() {
            Some(inner) => (inner.clone(), true),
            None => (operand, false),
        };
        let t = match &inner {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(name) => self.field_of(self.at(id), name, field),
            Type::Param(_) => {
                self.fits(&Type::Dyn, &inner);
                Type::Dyn
            }
            Type::Dyn | Type::Any | Type::Error => Type::Dyn,
            other => {
                let message = format!("type '{}' does not support field selection", other.shown());
                self.fault(self.at(id), message);
                Type::Dyn
            }
        };
        if is_optional || optional { Type::optional(t) } else { t }
    }

    fn field_of(&mut self, at: usize, object: &str, field: &str) -> Type {
        if let Some(t) = self.environment.field(object, field) {
            return t;
        }
        let message = match self.environment.has_fields(object) {
            true => format!("undefined field '{field}'"),
            false => format!("unexpected failed resolution of '{object}'"),
        };
        self.fault(at, message);
        Type::Error
    }

    fn call(&mut self, id: Id, target: Option<Id>, function: &str, arguments: &[Id]) -> Type {
        if let ("_?._", [of, name]) = (function, arguments)
            && let What::Literal(Val::Text(field)) = self.tree.what(*name).clone()
        {
            self.types[*name] = Type::Text;
            let t = self.field(id, *of, &field, true);
            self.overloads.insert(id, vec!["select_optional_field"]);
            return self.known.apply(&t, false);
        }
        for argument in arguments {
            self.visit(*argument);
        }
        let at = self.at(id);
        let library = self.environment.library;
        let Some(target) = target else {
            let name = function.trim_start_matches('.');
            return match functions::overloads(name, library) {
                Some(overloads) => {
                    self.rename(id, None, name, arguments);
                    self.resolve(id, name, &overloads, None, arguments)
                }
                None => self.undeclared(at, function),
            };
        };
        // `math.greatest(…)` is a function with a long name.
        if let Some(path) = self.path(target) {
            let long = format!("{path}.{function}");
            let long = long.trim_start_matches('.');
            if let Some(overloads) = functions::overloads(long, library) {
                self.rename(id, None, long, arguments);
                return self.resolve(id, long, &overloads, None, arguments);
            }
        }
        self.visit(target);
        match functions::overloads(function, library) {
            Some(overloads) => self.resolve(id, function, &overloads, Some(target), arguments),
            None => self.undeclared(at, function),
        }
    }

    fn rename(&mut self, id: Id, target: Option<Id>, function: &str, arguments: &[Id]) {
        let (function, arguments) = (function.to_owned(), arguments.to_vec());
        self.tree.nodes[id].what = What::Call { target, function, arguments };
    }

    fn resolve(&mut self, id: Id, name: &str, all: &[&'static Overload], on: Option<Id>, arguments: &[Id]) -> Type {
        let given: Vec<Type> = on.iter().chain(arguments).map(|a| self.types[*a].clone()).collect();
        if let ("_&&_" | "_||_", [overload]) = (name, all) {
            return self.logical(id, overload.id, arguments, &given);
        }
        let mut result: Option<Type> = None;
        for overload in all.iter().filter(|o| o.member == on.is_some()) {
            let mut instance = Substitutions::default();
            for param in &overload.params {
                instance.add(param.clone(), self.new_param());
            }
            let wanted: Vec<Type> = overload.arguments.iter().map(|a| instance.apply(a, false)).collect();
            if !self.known.assign(&given, &wanted) {
                continue;
            }
            self.overloads.entry(id).or_default().push(overload.id);
            let made = self.known.apply(&instance.apply(&overload.result, false), false);
            result = Some(match result {
                None => made,
                Some(before) if before.is_dyn() || before == made => before,
                Some(_) => Type::Dyn,
            });
        }
        result.unwrap_or_else(|| {
            let given: Vec<String> = given.iter().map(|t| self.known.apply(t, true).shown()).collect();
            let signature = match (on, &given[..]) {
                (Some(_), [on, rest @ ..]) => format!("{on}.({})", rest.join(", ")),
                _ => format!("({})", given.join(", ")),
            };
            let message = format!("found no matching overload for '{name}' applied to '{signature}'");
            self.fault(self.at(id), message);
            Type::Error
        })
    }

    fn logical(&mut self, id: Id, overload: &'static str, arguments: &[Id], given: &[Type]) -> Type {
        let mut all_fit = true;
        for (argument, t) in arguments.iter().zip(given) {
            if !self.fits(t, &Type::Bool) {
                self.mismatch(self.at(*argument), &Type::Bool, t);
                all_fit = false;
            }
        }
        self.overloads.insert(id, vec![overload]);
        if all_fit { Type::Bool } else { Type::Error }
    }

    /// What is inside of an optional, where one is wanted.
    fn unwrapped(&mut self, id: Id, optional: bool) -> Type {
        let t = self.types[id].clone();
        if !optional {
            return t;
        }
        match t.of_optional() {
            Some(inner) => inner.clone(),
            None => {
                if !t.is_dyn() {
                    self.mismatch(self.at(id), &Type::optional(t.clone()), &t);
                }
                t
            }
        }
    }

    /// The type of both; different ones make a mixed list or map, whose elements can be anything.
    fn joined(&mut self, before: Option<Type>, t: Type) -> Type {
        let Some(before) = before else { return t };
        if self.fits(&before, &t) {
            return most_general(&before, &t).clone();
        }
        // `literals` tells of it, where it matters.
        Type::Dyn
    }

    fn list(&mut self, items: &[Item]) -> Type {
        let mut of = None;
        for item in items {
            self.visit(item.value);
            let t = self.unwrapped(item.value, item.optional);
            of = Some(self.joined(of, t));
        }
        Type::list(of.unwrap_or_else(|| self.new_param()))
    }

    fn map(&mut self, pairs: &[Pair<Id>]) -> Type {
        let (mut keys, mut values) = (None, None);
        for pair in pairs {
            self.visit(pair.key);
            keys = Some(self.joined(keys, self.types[pair.key].clone()));
            self.visit(pair.value);
            let t = self.unwrapped(pair.value, pair.optional);
            values = Some(self.joined(values, t));
        }
        let keys = keys.unwrap_or_else(|| self.new_param());
        Type::map(keys, values.unwrap_or_else(|| self.new_param()))
    }

    fn message(&mut self, id: Id, name: &str, fields: &[Pair<String>]) -> Type {
        let at = self.at(id);
        let name = name.trim_start_matches('.');
        let (t, object) = match self.environment.type_named(name) {
            None => return self.undeclared(at, name),
            Some(Type::Object(object)) => (Type::Object(object.clone()), object.to_string()),
            Some(t) if name.starts_with("google.protobuf.") => (t, name.to_owned()),
            Some(other) => {
                self.fault(at, format!("'{}' is not a message type", other.shown()));
                (Type::Error, name.to_owned())
            }
        };
        for f in fields {
            self.visit(f.value);
            let wanted = self.field_of(f.at, &object, &f.key);
            let given = self.unwrapped(f.value, f.optional);
            if !self.fits(&wanted, &given) {
                let (wanted, given) = (wanted.shown(), given.shown());
                let message =
                    format!("expected type of field '{}' is '{wanted}' but provided type is '{given}'", f.key);
                self.fault(f.at, message);
            }
        }
        t
    }

    fn fold(&mut self, f: &Fold) -> Type {
        self.visit(f.range);
        self.visit(f.init);
        let range = self.known.apply(&self.types[f.range].clone(), false);
        let accumulated = self.types[f.init].clone();
        let outside = self.locals.len();
        self.locals.push((f.accumulator.clone(), accumulated.clone()));
        let (first, second) = self.elements(f, &range);
        self.locals.push((f.var.clone(), first));
        if let Some(var2) = &f.var2 {
            self.locals.push((var2.clone(), second));
        }
        self.visit(f.condition);
        self.is_of(f.condition, &Type::Bool);
        self.visit(f.step);
        self.is_of(f.step, &accumulated);
        self.locals.truncate(outside + 1);
        self.visit(f.result);
        self.locals.truncate(outside);
        self.known.apply(&self.types[f.result].clone(), false)
    }

    /// The types of a comprehension's variables.
    fn elements(&mut self, f: &Fold, range: &Type) -> (Type, Type) {
        match range {
            Type::List(item) if f.var2.is_some() => (Type::Int, (**item).clone()),
            Type::List(item) => ((**item).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Any | Type::Error | Type::Param(_) => {
                self.fits(&Type::Dyn, range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{}' cannot be range of a comprehension (must be list, map, or dynamic)",
                    other.shown()
                );
                self.fault(self.at(f.range), message);
                (Type::Error, Type::Error)
            }
        }
    }

    fn is_of(&mut self, id: Id, wanted: &Type) {
        let found = self.types[id].clone();
        if !self.fits(wanted, &found) {
            self.mismatch(self.at(id), wanted, &found);
        }
    }
}

fn literal(value: &Val) -> Type {
    match value {
        Val::Null => Type::Null,
        Val::Bool(_) => Type::Bool,
        Val::Int(_) => Type::Int,
        Val::Uint(_) => Type::Uint,
        Val::Double(_) => Type::Double,
        Val::Text(_) => Type::Text,
        Val::Bytes(_) => Type::Bytes,
        _ => Type::Error,
    }
}
