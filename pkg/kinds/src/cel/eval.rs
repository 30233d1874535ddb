//! Evaluates expressions, within a budget.
//!
//! Invariants: what fails is an error with cel-go's words, never a panic; `&&` and `||` pass over an error where the other
//! side decides; a step costs what cel-go's tracker counts for it (`costs.rs`), so that what upstream stops stops here too. What
//! that counts as nothing and is work here (values whose parts are shared) has a bound of its own.

mod folds;

use super::ast::{Entry, Expression, Operator};
use super::value::{Key, Val};
use super::{costs, functions};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) type Result<T = Val> = std::result::Result<T, String>;

/// Where an expression finds what its names stand for.
pub trait Variables {
    /// `None`: there is no such variable.
    fn get(&self, name: &str) -> Option<Result<Val>>;
}

pub(super) struct Evaluator<'a> {
    variables: &'a dyn Variables,
    /// What macros have named, the innermost last.
    bound: Vec<(&'a str, Bound<'a>)>,
    /// Calls whose arguments' types leave open what they are: they cost nothing for the size of these.
    open: &'a [usize],
    /// What is left of the budget, as upstream counts it.
    left: u64,
    /// What is left of the work that may be done here for it.
    strength: u64,
}

/// What a name stands for. What it costs is paid where it is first used.
enum Bound<'a> {
    Value(Val),
    Owed(Val, u64),
    /// To be evaluated with the names that were there before it.
    Open(&'a Expression),
    Failed(String),
}

/// So much more may be worked than is counted.
const STRENGTH: u64 = 4;
/// And so much in any case.
const LEAST_STRENGTH: u64 = 4000;

pub const TOO_EXPENSIVE: &str = "operation cancelled: actual cost limit exceeded";

fn no_overload() -> String {
    "no such overload".to_owned()
}

impl<'a> Evaluator<'a> {
    pub fn new(variables: &'a dyn Variables, open: &'a [usize], budget: u64) -> Self {
        let strength = budget.saturating_mul(STRENGTH).saturating_add(LEAST_STRENGTH);
        Evaluator { variables, bound: Vec::new(), open, left: budget, strength }
    }

    /// Pays for what somebody will look at: the value that all comes to.
    pub fn hand_over(&mut self, value: Val) -> Result {
        self.work(functions::walked(&value).saturating_sub(1))?;
        Ok(value)
    }

    /// What is left of the budget: as upstream counts, unless much more was worked than that.
    pub fn left(&self) -> u64 {
        self.left.min(self.strength.div_ceil(STRENGTH))
    }

    fn pay(&mut self, cost: u64) -> Result<()> {
        self.left = match self.left.checked_sub(cost) {
            Some(left) => left,
            None => return self.exhausted(),
        };
        Ok(())
    }

    fn work(&mut self, much: u64) -> Result<()> {
        self.strength = match self.strength.checked_sub(much) {
            Some(left) => left,
            None => return self.exhausted(),
        };
        Ok(())
    }

    fn exhausted(&mut self) -> Result<()> {
        (self.left, self.strength) = (0, 0);
        Err(TOO_EXPENSIVE.to_owned())
    }

    /// A step that was paid too early, if one was since `before` was left.
    fn take_back(&mut self, before: u64) {
        self.left = before.min(self.left.saturating_add(1));
    }

    pub fn run(&mut self, e: &'a Expression) -> Result {
        match e {
            Expression::Literal { value, .. } => Ok(value.clone()),
            Expression::Group(inner) => self.run(inner),
            Expression::Name { name, .. } => self.name(name),
            Expression::Field { of, name, optional, .. } => self.field(e, of, name, *optional),
            Expression::Index { of, index, optional, .. } => {
                let value = self.start(of)?;
                if let Val::Optional(None) = value {
                    return self.step(of, &value, Ok(Val::Null), *optional);
                }
                let index = self.within(index);
                self.step(of, &value, index, *optional)
            }
            Expression::Conditional { parts, .. } => match self.run(&parts[0])? {
                Val::Bool(true) => self.within(&parts[1]),
                Val::Bool(false) => self.within(&parts[2]),
                _ => Err(no_overload()),
            },
            Expression::Operator { operator, operands, at } => self.operator(*operator, operands, *at),
            Expression::List { items, .. } => self.list(items),
            Expression::Map { entries, .. } => self.map(entries),
            Expression::Message { of, fields, .. } => self.message(of, fields),
            Expression::Call { on, name, arguments, at } => self.call(on.as_deref(), name, arguments, *at),
        }
    }

    /// What another attribute ends in or takes as an index: if it is one itself, it is reached with it in one step.
    fn within(&mut self, e: &'a Expression) -> Result {
        let before = self.left;
        let result = self.run(e);
        let costs_a_step = costs::is_attribute(e) && !costs::is_conditional(e);
        if costs_a_step && !is_too_expensive(&result) {
            self.take_back(before);
        }
        result
    }

    /// What an attribute starts from. One that starts from what is none is paid for even where there is nothing.
    fn start(&mut self, of: &'a Expression) -> Result {
        let value = self.run(of);
        if value.is_err() && !is_too_expensive(&value) && !costs::is_attribute(of) {
            self.pay(1)?;
        }
        value.map(Val::listed)
    }

    /// From a value to what is under an index or a name in it.
    fn step(&mut self, of: &'a Expression, value: &Val, index: Result, optional: bool) -> Result {
        if is_too_expensive(&index) {
            return index;
        }
        let found = index.and_then(|index| element(value, &index, optional));
        let asks = optional || matches!(value, Val::Optional(_));
        let is_there = !asks || matches!(found, Ok(Val::Optional(Some(_))));
        self.pay(u64::from(!costs::is_attribute(of)) + u64::from(is_there))?;
        found
    }

    fn is_bound(&self, name: &str) -> bool {
        let global = name.strip_prefix('.');
        global.is_none() && self.bound.iter().any(|(n, _)| *n == name)
            || self.variables.get(global.unwrap_or(name)).is_some()
    }

    fn find(&mut self, name: &str) -> Option<Result> {
        if let Some(global) = name.strip_prefix('.') {
            return self.variables.get(global);
        }
        match self.bound.iter().rposition(|(n, _)| *n == name) {
            Some(at) => Some(self.value_of(at)),
            None => self.variables.get(name),
        }
    }

    /// What the name at this place stands for.
    fn value_of(&mut self, at: usize) -> Result {
        let (name, bound) = &self.bound[at];
        let name = *name;
        match bound {
            Bound::Value(value) => return Ok(value.clone()),
            Bound::Failed(why) => return Err(why.clone()),
            Bound::Owed(value, cost) => {
                let (value, cost) = (value.clone(), *cost);
                self.bound[at] = (name, Bound::Value(value.clone()));
                self.pay(cost)?;
                return Ok(value);
            }
            Bound::Open(_) => {}
        }
        let later = self.bound.split_off(at + 1);
        let Some((_, Bound::Open(e))) = self.bound.pop() else { return Err(no_overload()) };
        let result = self.run(e);
        let known = match &result {
            Ok(value) => Bound::Value(value.clone()),
            Err(why) => Bound::Failed(why.clone()),
        };
        self.bound.push((name, known));
        self.bound.extend(later);
        result
    }

    fn name(&mut self, name: &str) -> Result {
        match self.find(name) {
            Some(value) => {
                self.pay(1)?;
                value?.sound()
            }
            // The checker knows these types by a short name, under which there is no value.
            None if matches!(name, "timestamp" | "duration") => Err(format!("reference to undefined type: {name}")),
            None => type_named(name.trim_start_matches('.'))
                .ok_or_else(|| format!("undeclared reference to '{name}' (in container '')")),
        }
    }

    fn field(&mut self, whole: &'a Expression, of: &'a Expression, name: &'a str, optional: bool) -> Result {
        // `google.protobuf.Timestamp` is the name of a type where nothing is called `google`.
        if let Some(path) = whole.path()
            && !self.is_bound(path.split('.').next().unwrap_or_default())
            && let Some(ty) = type_named(path.trim_start_matches('.'))
        {
            return Ok(ty);
        }
        let value = self.start(of)?;
        self.step(of, &value, Ok(Val::text(unescaped(name))), optional)
    }

    fn list(&mut self, items: &'a [(bool, Expression)]) -> Result {
        self.pay(costs::LIST)?;
        self.work(costs::LIST)?;
        let mut out = Vec::new();
        for (optional, item) in items {
            match (optional, self.run(item)?) {
                (true, Val::Optional(Some(value))) => out.push((*value).clone()),
                (true, Val::Optional(None)) => {}
                (_, value) => out.push(value),
            }
        }
        Ok(Val::list(out))
    }

    fn map(&mut self, entries: &'a [Entry<Expression>]) -> Result {
        self.pay(costs::MAP)?;
        self.work(costs::MAP)?;
        let mut out = BTreeMap::new();
        for Entry { optional, key, value, .. } in entries {
            let key = Key::of(&self.run(key)?).ok_or("unsupported key type")?;
            let value = match (optional, self.run(value)?) {
                (true, Val::Optional(Some(value))) => (*value).clone(),
                (true, Val::Optional(None)) => continue,
                (_, value) => value,
            };
            if out.insert(key, value).is_some() {
                return Err("duplicate key in map".into());
            }
        }
        Ok(Val::Map(Arc::new(out)))
    }

    fn message(&mut self, of: &str, fields: &'a [Entry<String>]) -> Result {
        self.pay(costs::MESSAGE)?;
        let mut out = BTreeMap::new();
        for Entry { optional, key: name, value, .. } in fields {
            let value = match (optional, self.run(value)?) {
                (true, Val::Optional(Some(value))) => (*value).clone(),
                (true, Val::Optional(None)) => continue,
                (_, value) => value,
            };
            out.insert(unescaped(name), value);
        }
        if let Some(well_known) = functions::well_known(of, &out) {
            return well_known;
        }
        Ok(Val::Message(of.into(), Arc::new(out)))
    }

    fn operator(&mut self, operator: Operator, operands: &'a [Expression], at: usize) -> Result {
        match operator {
            Operator::And => return self.either(operands, false),
            Operator::Or => return self.either(operands, true),
            // As if it were a set: nothing is counted.
            Operator::In if costs::is_set(operands.last()) => {
                let value = self.run(&operands[0])?.listed();
                let set = self.run(&operands[1])?;
                self.work(functions::operator_cost(operator, &[value.clone(), set.clone()]))?;
                return functions::operate(operator, &[value, set]);
            }
            _ => {}
        }
        let keeps_sets = matches!(operator, Operator::Equal | Operator::NotEqual | Operator::Add);
        let (values, failure) = self.values(None, operands, keeps_sets)?;
        self.pay(costs::operator(operator, &values, self.is_open(at)))?;
        if let Some(why) = failure {
            return Err(why);
        }
        self.work(functions::operator_cost(operator, &values))?;
        functions::operate(operator, &values)
    }

    fn is_open(&self, at: usize) -> bool {
        self.open.binary_search(&at).is_ok()
    }

    /// `||` (`decides` is true) and `&&`: a side that decides wins over an error of the other one.
    fn either(&mut self, operands: &'a [Expression], decides: bool) -> Result {
        let side = |value: Result| match value {
            Ok(Val::Bool(b)) => Ok(b),
            Ok(_) => Err(no_overload()),
            Err(e) => Err(e),
        };
        let left = side(self.run(&operands[0]));
        if left == Ok(decides) || is_too_expensive(&left) {
            return left.map(Val::Bool);
        }
        let right = side(self.run(&operands[1]));
        if is_too_expensive(&right) {
            return right.map(Val::Bool);
        }
        match (left, right) {
            (_, Ok(b)) if b == decides => Ok(Val::Bool(decides)),
            (Err(e), _) | (_, Err(e)) => Err(e),
            _ => Ok(Val::Bool(!decides)),
        }
    }

    fn call(&mut self, on: Option<&'a Expression>, name: &'a str, arguments: &'a [Expression], at: usize) -> Result {
        let name = name.trim_start_matches('.');
        if on.is_none() && name == "has" && arguments.len() == 1 {
            return self.has(&arguments[0]);
        }
        // `math.greatest(…)` is a function with a long name where nothing is called `math`.
        let prefix = on.and_then(Expression::path);
        let prefix = prefix.filter(|p| !self.is_bound(p.split('.').next().unwrap_or_default()));
        if let Some(prefix) = prefix {
            let long = format!("{}.{name}", prefix.trim_start_matches('.'));
            if long == "cel.bind" && arguments.len() == 3 {
                return self.naming(&arguments[0], Bound::Open(&arguments[1]), &arguments[2]);
            }
            return self.function(&long, arguments, at);
        }
        let Some(on) = on else { return self.function(name, arguments, at) };
        let before = self.left;
        let target = self.run(on).map(Val::listed);
        let spent = before.saturating_sub(self.left);
        if let Some(result) = self.fold(&target, spent, name, arguments, at) {
            return result;
        }
        if let (Ok(Val::Optional(inner)), "or" | "orValue", [other]) = (&target, name, arguments) {
            // The other one is looked at only where it is needed.
            return match inner {
                Some(_) if name == "or" => target,
                Some(value) => Ok((**value).clone()),
                None => Ok(self.run(other)?.listed()),
            };
        }
        if matches!(name, "or" | "orValue") && target.is_err() {
            return target;
        }
        self.method(target, name, arguments, at)
    }

    fn function(&mut self, name: &str, arguments: &'a [Expression], at: usize) -> Result {
        let (values, failure) = self.values(None, arguments, false)?;
        let all: Vec<&Val> = values.iter().collect();
        if failure.is_none() {
            self.work(functions::cost(name, None, &values))?;
        }
        let open = self.is_open(at);
        self.called(name, &all, open, failure, || functions::call(name, &values))
    }

    fn method(&mut self, target: Result, name: &str, arguments: &'a [Expression], at: usize) -> Result {
        let (values, failure) = self.values(Some(target), arguments, false)?;
        let (all, open) = (values.iter().collect::<Vec<_>>(), self.is_open(at));
        let Some((target, rest)) = values.split_first() else { return Err(no_overload()) };
        if failure.is_none() {
            self.work(functions::cost(name, Some(target), rest))?;
        }
        self.called(name, &all, open, failure, || match target {
            Val::Foreign(foreign) => foreign.call(name, rest),
            _ => functions::method(name, target, rest),
        })
    }

    /// Pays for a call and makes it. One whose arguments have failed is paid for too, if all of them were looked at.
    fn called(
        &mut self,
        name: &str,
        all: &[&Val],
        open: bool,
        failure: Option<String>,
        call: impl FnOnce() -> functions::Found,
    ) -> Result {
        let skipped = all.iter().any(|v| is_skipped(v));
        if !skipped {
            self.pay(costs::before(name, all, open))?;
        }
        let result = match failure {
            Some(why) => Err(why),
            None => call().unwrap_or_else(|| Err(no_overload())),
        };
        if !skipped {
            self.pay(costs::after(name, all, result.as_ref().ok(), open))?;
        }
        result
    }

    /// The arguments of a call, and the first error among them: of one or two both are looked at in any case, of more none
    /// after one that failed.
    fn values(
        &mut self,
        target: Option<Result>,
        arguments: &'a [Expression],
        keeps_sets: bool,
    ) -> Result<(Vec<Val>, Option<String>)> {
        let count = arguments.len() + usize::from(target.is_some());
        let (mut values, mut failure) = (Vec::with_capacity(count), None);
        let mut target = target;
        for i in 0..count {
            if failure.is_some() && count > 2 {
                values.push(skipped());
                continue;
            }
            let value = match target.take() {
                Some(value) => value,
                None => self.run(&arguments[i + arguments.len() - count]),
            };
            if is_too_expensive(&value) {
                return Err(TOO_EXPENSIVE.to_owned());
            }
            values.push(match value {
                Ok(value) if keeps_sets => value,
                Ok(value) => value.listed(),
                Err(why) => {
                    let failed = Val::Fault(why.as_str().into());
                    failure = failure.or(Some(why));
                    failed
                }
            });
        }
        Ok((values, failure))
    }

    /// `has(a.b)`: whether the field is there.
    fn has(&mut self, e: &'a Expression) -> Result {
        let Expression::Field { of, name, .. } = e else {
            return Err("invalid argument to has() macro".into());
        };
        let before = self.left;
        let value = self.run(of);
        if is_too_expensive(&value) {
            return value;
        }
        // The step itself is free; where it is not made, that to where it starts from is.
        match &value {
            Ok(Val::Optional(None)) | Err(_) if costs::is_attribute(of) => self.take_back(before),
            Ok(Val::Optional(None)) | Err(_) => {}
            Ok(_) => self.pay(u64::from(!costs::is_attribute(of)))?,
        }
        let of = match value? {
            Val::Optional(Some(inner)) => (*inner).clone(),
            Val::Optional(None) => return Ok(Val::Bool(false)),
            of => of,
        };
        match &of {
            Val::Map(map) => Ok(Val::Bool(map.contains_key(&Key::Text(unescaped(name).into())))),
            Val::Message(_, fields) => Ok(Val::Bool(fields.contains_key(&unescaped(name)))),
            Val::Foreign(foreign) => match foreign.field(&unescaped(name)) {
                Some(Err(e)) => Err(e),
                found => Ok(Val::Bool(found.is_some())),
            },
            _ => Err(no_overload()),
        }
    }
}

/// What ends the whole evaluation, whatever would pass over an error.
fn is_too_expensive<T>(result: &Result<T>) -> bool {
    matches!(result, Err(e) if e == TOO_EXPENSIVE)
}

/// An argument that nobody looked at, for one before it has failed.
fn skipped() -> Val {
    Val::Fault(Arc::from(""))
}

fn is_skipped(value: &Val) -> bool {
    matches!(value, Val::Fault(why) if why.is_empty())
}

/// `of[index]` or `of.index`; optional: an optional, empty where nothing is there.
fn element(of: &Val, index: &Val, optional: bool) -> Result {
    let of = match of {
        Val::Optional(None) => return Ok(Val::Optional(None)),
        Val::Optional(Some(inner)) => return element(inner, index, true),
        of => of,
    };
    let found = match of {
        Val::Map(map) => {
            let key = Key::of(index).ok_or_else(no_overload)?;
            map.get(&key).cloned().ok_or_else(|| format!("no such key: {}", functions::display(index)))
        }
        Val::Message(_, fields) => {
            let name = functions::display(index);
            fields.get(&name).cloned().ok_or_else(|| format!("no such key: {name}"))
        }
        Val::List(items) => {
            let at = match Key::of(index) {
                Some(Key::Int(i)) => i,
                _ => return Err(format!("unsupported index type '{}' in list", index.type_name())),
            };
            let found = usize::try_from(at).ok().and_then(|i| items.get(i)).cloned();
            found.ok_or_else(|| format!("index out of bounds: {at}"))
        }
        Val::Foreign(foreign) => {
            let name = functions::display(index);
            foreign.field(&name).unwrap_or_else(|| Err(format!("no such key: {name}")))
        }
        _ => Err(format!("no such key: {}", functions::display(index))),
    };
    match (optional, found.and_then(Val::sound)) {
        (true, Ok(value)) => Ok(Val::some(value)),
        (true, Err(_)) => Ok(Val::Optional(None)),
        (false, found) => found,
    }
}

/// The type of this name.
fn type_named(name: &str) -> Option<Val> {
    const TYPES: [&str; 13] = [
        "bool",
        "int",
        "uint",
        "double",
        "string",
        "bytes",
        "list",
        "map",
        "null_type",
        "type",
        "optional_type",
        "google.protobuf.Timestamp",
        "google.protobuf.Duration",
    ];
    TYPES.contains(&name).then(|| Val::Type(name.into()))
}

/// A field's name as it is in JSON: expressions write characters that no identifier has in other ones
/// (`apiserver/pkg/cel/escaping.go`).
fn unescaped(name: &str) -> String {
    if !name.contains("__") {
        return name.to_owned();
    }
    if let Some(word) = name.strip_prefix("__").and_then(|n| n.strip_suffix("__"))
        && !word.is_empty()
        && !matches!(word, "underscores" | "dot" | "dash" | "slash")
    {
        return word.to_owned();
    }
    let replaced = name.replace("__dot__", ".").replace("__dash__", "-").replace("__slash__", "/");
    replaced.replace("__underscores__", "__")
}
