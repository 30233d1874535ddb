//! Evaluates expressions, within a budget.
//!
//! Invariants: what fails is an error with cel-go's words, never a panic; `&&` and `||` pass over an error where the other
//! side decides; the cost of a step is cel-go's estimate, so that what upstream stops here stops too, more or less.

use super::ast::{Entry, Expression, Operator};
use super::functions;
use super::value::{Key, Val};
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
    bound: Vec<(&'a str, Val)>,
    left: u64,
}

pub const TOO_EXPENSIVE: &str = "operation cancelled: actual cost limit exceeded";

fn no_overload() -> String {
    "no such overload".to_owned()
}

impl<'a> Evaluator<'a> {
    pub fn new(variables: &'a dyn Variables, budget: u64) -> Self {
        Evaluator { variables, bound: Vec::new(), left: budget }
    }

    /// Pays for what somebody will look at: the value that all comes to.
    pub fn hand_over(&mut self, value: Val) -> Result {
        self.pay(functions::walked(&value).saturating_sub(1))?;
        Ok(value)
    }

    /// What is left of the budget.
    pub fn left(&self) -> u64 {
        self.left
    }

    fn pay(&mut self, cost: u64) -> Result<()> {
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(TOO_EXPENSIVE.to_owned())
            }
        }
    }

    pub fn run(&mut self, e: &'a Expression) -> Result {
        match e {
            Expression::Literal { value, .. } => Ok(value.clone()),
            Expression::Group(inner) => self.run(inner),
            Expression::Name { name, .. } => self.name(name),
            Expression::Field { of, name, optional, .. } => self.field(e, of, name, *optional),
            Expression::Index { of, index, optional, .. } => {
                let (of, index) = (self.run(of)?.listed(), self.run(index)?);
                self.pay(1)?;
                element(&of, &index, *optional)
            }
            Expression::Conditional { parts, .. } => match self.run(&parts[0])? {
                Val::Bool(true) => self.run(&parts[1]),
                Val::Bool(false) => self.run(&parts[2]),
                _ => Err(no_overload()),
            },
            Expression::Operator { operator, operands, .. } => self.operator(*operator, operands),
            Expression::List { items, .. } => self.list(items),
            Expression::Map { entries, .. } => self.map(entries),
            Expression::Message { of, fields, .. } => self.message(of, fields),
            Expression::Call { on, name, arguments, .. } => self.call(on.as_deref(), name, arguments),
        }
    }

    fn find(&self, name: &str) -> Option<Result> {
        if let Some(global) = name.strip_prefix('.') {
            return self.variables.get(global);
        }
        let bound = self.bound.iter().rev().find(|(n, _)| *n == name);
        bound.map(|(_, v)| Ok(v.clone())).or_else(|| self.variables.get(name))
    }

    fn name(&mut self, name: &str) -> Result {
        self.pay(1)?;
        match self.find(name) {
            Some(value) => value?.sound(),
            // The checker knows these types by a short name, under which there is no value.
            None if matches!(name, "timestamp" | "duration") => Err(format!("reference to undefined type: {name}")),
            None => type_named(name.trim_start_matches('.'))
                .ok_or_else(|| format!("undeclared reference to '{name}' (in container '')")),
        }
    }

    fn field(&mut self, whole: &'a Expression, of: &'a Expression, name: &'a str, optional: bool) -> Result {
        // `google.protobuf.Timestamp` is the name of a type where nothing is called `google`.
        if let Some(path) = whole.path()
            && self.find(path.split('.').next().unwrap_or_default()).is_none()
            && let Some(ty) = type_named(path.trim_start_matches('.'))
        {
            return Ok(ty);
        }
        let of = self.run(of)?.listed();
        self.pay(1)?;
        element(&of, &Val::text(unescaped(name)), optional)
    }

    fn list(&mut self, items: &'a [(bool, Expression)]) -> Result {
        self.pay(10)?;
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
        self.pay(30)?;
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
        self.pay(40)?;
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

    fn operator(&mut self, operator: Operator, operands: &'a [Expression]) -> Result {
        match operator {
            Operator::And => return self.either(operands, false),
            Operator::Or => return self.either(operands, true),
            _ => {}
        }
        let mut values = Vec::with_capacity(2);
        let keeps_sets = matches!(operator, Operator::Equal | Operator::NotEqual | Operator::Add);
        for operand in operands {
            let value = self.run(operand)?;
            values.push(if keeps_sets { value } else { value.listed() });
        }
        self.pay(functions::operator_cost(operator, &values))?;
        functions::operate(operator, &values)
    }

    /// `||` (`decides` is true) and `&&`: a side that decides wins over an error of the other one.
    fn either(&mut self, operands: &'a [Expression], decides: bool) -> Result {
        let side = |value: Result| match value {
            Ok(Val::Bool(b)) => Ok(b),
            Ok(_) => Err(no_overload()),
            Err(e) => Err(e),
        };
        let left = side(self.run(&operands[0]));
        if left == Ok(decides) {
            return Ok(Val::Bool(decides));
        }
        let right = side(self.run(&operands[1]));
        match (left, right) {
            (_, Ok(b)) if b == decides => Ok(Val::Bool(decides)),
            (Err(e), _) | (_, Err(e)) => Err(e),
            _ => Ok(Val::Bool(!decides)),
        }
    }

    fn call(&mut self, on: Option<&'a Expression>, name: &'a str, arguments: &'a [Expression]) -> Result {
        let name = name.trim_start_matches('.');
        if on.is_none() && name == "has" && arguments.len() == 1 {
            return self.has(&arguments[0]);
        }
        // `math.greatest(…)` is a function with a long name where nothing is called `math`.
        let prefix = on.and_then(Expression::path);
        let prefix = prefix.filter(|p| self.find(p.split('.').next().unwrap_or_default()).is_none());
        if let Some(prefix) = prefix {
            let long = format!("{}.{name}", prefix.trim_start_matches('.'));
            if long == "cel.bind" && arguments.len() == 3 {
                let value = self.run(&arguments[1])?;
                return self.with(&arguments[0], value, &arguments[2]);
            }
            let values = self.values(arguments)?;
            self.pay(functions::cost(&long, None, &values))?;
            return functions::call(&long, &values).unwrap_or_else(|| Err(no_overload()));
        }
        let Some(on) = on else {
            let values = self.values(arguments)?;
            self.pay(functions::cost(name, None, &values))?;
            return functions::call(name, &values).unwrap_or_else(|| Err(no_overload()));
        };
        let target = self.run(on)?.listed();
        if let Some(result) = self.comprehension(&target, name, arguments) {
            return result;
        }
        let values = self.values(arguments)?;
        self.pay(functions::cost(name, Some(&target), &values))?;
        if let Val::Foreign(foreign) = &target {
            return foreign.call(name, &values).unwrap_or_else(|| Err(no_overload()));
        }
        functions::method(name, &target, &values).unwrap_or_else(|| Err(no_overload()))
    }

    fn values(&mut self, arguments: &'a [Expression]) -> Result<Vec<Val>> {
        arguments.iter().map(|a| Ok(self.run(a)?.listed())).collect()
    }

    /// `has(a.b)`: whether the field is there.
    fn has(&mut self, e: &'a Expression) -> Result {
        let Expression::Field { of, name, .. } = e else {
            return Err("invalid argument to has() macro".into());
        };
        let of = self.run(of)?;
        self.pay(1)?;
        let of = match of {
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

    /// Evaluates `body` with a name for `value`.
    fn with(&mut self, name: &'a Expression, value: Val, body: &'a Expression) -> Result {
        self.bound.push((named(name)?, value));
        let result = self.run(body);
        self.bound.pop();
        result
    }

    fn with_two(&mut self, names: [&'a Expression; 2], values: [Val; 2], body: &'a Expression) -> Result {
        let [first, second] = values;
        self.bound.push((named(names[0])?, first));
        let result = self.with(names[1], second, body);
        self.bound.pop();
        result
    }

    /// The macros that look at each element. `None`: it is none of them.
    fn comprehension(&mut self, target: &Val, name: &str, arguments: &'a [Expression]) -> Option<Result> {
        match (name, arguments) {
            ("optMap" | "optFlatMap", [x, body]) => Some(self.optional_map(target, name == "optFlatMap", x, body)),
            ("all" | "exists" | "exists_one" | "existsOne", [x, test]) => Some(self.quantify(target, name, &[x], test)),
            ("all" | "exists" | "exists_one" | "existsOne", [x, y, test]) => {
                Some(self.quantify(target, name, &[x, y], test))
            }
            ("filter", [x, test]) => Some(self.transform(target, &[x], Some(test), None)),
            ("map", [x, body]) => Some(self.transform(target, &[x], None, Some(body))),
            ("map", [x, test, body]) => Some(self.transform(target, &[x], Some(test), Some(body))),
            ("transformList", [x, y, body]) => Some(self.transform(target, &[x, y], None, Some(body))),
            ("transformList", [x, y, test, body]) => Some(self.transform(target, &[x, y], Some(test), Some(body))),
            ("transformMap" | "transformMapEntry", [x, y, body]) => {
                Some(self.transform_map(target, name, [x, y], None, body))
            }
            ("transformMap" | "transformMapEntry", [x, y, test, body]) => {
                Some(self.transform_map(target, name, [x, y], Some(test), body))
            }
            ("sortBy", [x, body]) => Some(self.sort_by(target, x, body)),
            _ => None,
        }
    }

    fn optional_map(&mut self, target: &Val, flat: bool, x: &'a Expression, body: &'a Expression) -> Result {
        match target {
            Val::Optional(Some(value)) => {
                let made = self.with(x, (**value).clone(), body)?;
                Ok(if flat { made } else { Val::some(made) })
            }
            Val::Optional(None) => Ok(Val::Optional(None)),
            _ => Err(no_overload()),
        }
    }

    /// One element, under one name or (with its index or key) two.
    fn each(&mut self, names: &[&'a Expression], item: &(Val, Val), keyed: bool, body: &'a Expression) -> Result {
        self.pay(1)?;
        let (key, value) = item;
        if let Val::Fault(why) = value {
            return Err(why.to_string());
        }
        match names {
            // Of a map, a single name stands for the key.
            [x] => self.with(x, if keyed { key.clone() } else { value.clone() }, body),
            [x, y] => self.with_two([x, y], [key.clone(), value.clone()], body),
            _ => Err(no_overload()),
        }
    }

    fn quantify(&mut self, target: &Val, name: &str, names: &[&'a Expression], test: &'a Expression) -> Result {
        let (items, keyed) = items(target)?;
        let (mut failure, mut found) = (None, 0);
        for item in &items {
            let value = self.each(names, item, keyed, test);
            match (name, value) {
                ("all", Ok(Val::Bool(false))) => return Ok(Val::Bool(false)),
                ("exists", Ok(Val::Bool(true))) => return Ok(Val::Bool(true)),
                (_, Ok(Val::Bool(b))) => found += usize::from(b),
                ("exists_one" | "existsOne", Err(e)) => return Err(e),
                (_, Ok(_)) => failure = failure.or(Some(no_overload())),
                (_, Err(e)) if e == TOO_EXPENSIVE => return Err(e),
                (_, Err(e)) => failure = failure.or(Some(e)),
            }
        }
        match (failure, name) {
            (Some(e), _) => Err(e),
            (None, "all") => Ok(Val::Bool(true)),
            (None, "exists") => Ok(Val::Bool(false)),
            (None, _) => Ok(Val::Bool(found == 1)),
        }
    }

    fn transform(
        &mut self,
        target: &Val,
        names: &[&'a Expression],
        test: Option<&'a Expression>,
        body: Option<&'a Expression>,
    ) -> Result {
        let (items, keyed) = items(target)?;
        let mut out = Vec::new();
        for item in &items {
            if let Some(test) = test {
                match self.each(names, item, keyed, test)? {
                    Val::Bool(true) => {}
                    Val::Bool(false) => continue,
                    _ => return Err(no_overload()),
                }
            }
            out.push(match body {
                Some(body) => self.each(names, item, keyed, body)?,
                None if keyed => item.0.clone(),
                None => item.1.clone(),
            });
        }
        Ok(Val::list(out))
    }

    fn transform_map(
        &mut self,
        target: &Val,
        name: &str,
        names: [&'a Expression; 2],
        test: Option<&'a Expression>,
        body: &'a Expression,
    ) -> Result {
        let (items, keyed) = items(target)?;
        let mut out = BTreeMap::new();
        for item in &items {
            if let Some(test) = test {
                match self.each(&names, item, keyed, test)? {
                    Val::Bool(true) => {}
                    Val::Bool(false) => continue,
                    _ => return Err(no_overload()),
                }
            }
            let made = self.each(&names, item, keyed, body)?;
            let entries = match (name, made) {
                ("transformMap", value) => vec![(Key::of(&item.0).ok_or_else(no_overload)?, value)],
                (_, Val::Map(map)) => map.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
                _ => return Err(no_overload()),
            };
            for (key, value) in entries {
                let shown = key.clone();
                if out.insert(key, value).is_some() {
                    return Err(format!("insert failed: key {} already exists", functions::display(&shown.value())));
                }
            }
        }
        Ok(Val::Map(Arc::new(out)))
    }

    fn sort_by(&mut self, target: &Val, x: &'a Expression, body: &'a Expression) -> Result {
        let (items, keyed) = items(target)?;
        let mut made = Vec::new();
        for item in &items {
            made.push((self.each(&[x], item, keyed, body)?, item.1.clone()));
        }
        functions::orderly(made.iter().map(|(key, _)| key))?;
        made.sort_by(|a, b| a.0.order(&b.0).unwrap_or(std::cmp::Ordering::Equal));
        Ok(Val::list(made.into_iter().map(|(_, v)| v).collect()))
    }
}

fn named(e: &Expression) -> Result<&str> {
    match e {
        Expression::Name { name, .. } => Ok(name),
        _ => Err("argument must be a simple name".into()),
    }
}

/// Index or key, and value, of each element; whether they have keys.
fn items(target: &Val) -> Result<(Vec<(Val, Val)>, bool)> {
    match target {
        Val::List(items) => Ok(((0..).zip(items.iter()).map(|(i, v)| (Val::Int(i), v.clone())).collect(), false)),
        Val::Map(map) => Ok((map.iter().map(|(k, v)| (k.value(), v.clone())).collect(), true)),
        _ => Err(no_overload()),
    }
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
