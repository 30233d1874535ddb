//! The macros that name something or look at each element, as cel-go's folds evaluate what it makes of them.
//!
//! A fold goes on after an error: that is what has been gathered from then on, and the rounds that are left cost what they cost.

use super::{Bound, Evaluator, Result, is_too_expensive, no_overload};
use crate::cel::ast::Expression;
use crate::cel::value::{Key, Val};
use crate::cel::{costs, functions};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Index or key, and value.
type Item = (Val, Val);

impl<'a> Evaluator<'a> {
    /// Evaluates `body` with a name for something.
    pub(super) fn naming(&mut self, name: &'a Expression, what: Bound<'a>, body: &'a Expression) -> Result {
        self.bound.push((named(name)?, what));
        let result = self.run(body);
        self.bound.pop();
        result
    }

    /// `None`: it is no macro. `spent`: what the target has cost. `at`: where it stands.
    pub(super) fn fold(
        &mut self,
        target: &Result,
        spent: u64,
        name: &str,
        arguments: &'a [Expression],
        at: usize,
    ) -> Option<Result> {
        let on = match target {
            Ok(on) => on,
            // It is asked whether there is something before it is looked at.
            Err(e) if e != super::TOO_EXPENSIVE && matches!(name, "optMap" | "optFlatMap") => {
                return Some(self.pay(1).and_then(|()| target.clone()));
            }
            Err(_) if is_fold(name, arguments.len()) => return Some(target.clone()),
            Err(_) => return None,
        };
        Some(match (name, arguments) {
            ("optMap" | "optFlatMap", [x, body]) => self.optional_map(on, spent, name == "optFlatMap", x, body),
            ("all" | "exists", [x, test]) => self.decide(on, name == "exists", &[x], test),
            ("all" | "exists", [x, y, test]) => self.decide(on, name == "exists", &[x, y], test),
            ("exists_one" | "existsOne", [x, test]) => self.is_one(on, &[x], test),
            ("exists_one" | "existsOne", [x, y, test]) => self.is_one(on, &[x, y], test),
            ("filter", [x, test]) => self.transform(on, &[x], Some(test), None),
            ("map", [x, body]) => self.transform(on, &[x], None, Some(body)),
            ("map", [x, test, body]) => self.transform(on, &[x], Some(test), Some(body)),
            ("transformList", [x, y, body]) => self.transform(on, &[x, y], None, Some(body)),
            ("transformList", [x, y, test, body]) => self.transform(on, &[x, y], Some(test), Some(body)),
            ("transformMap" | "transformMapEntry", [x, y, body]) => {
                self.transform_map(on, name == "transformMapEntry", [x, y], None, body)
            }
            ("transformMap" | "transformMapEntry", [x, y, test, body]) => {
                self.transform_map(on, name == "transformMapEntry", [x, y], Some(test), body)
            }
            ("sortBy", [x, body]) => self.sort_by(on, x, body, self.is_open(at)),
            _ => return None,
        })
    }

    fn optional_map(
        &mut self,
        target: &Val,
        spent: u64,
        flat: bool,
        x: &'a Expression,
        body: &'a Expression,
    ) -> Result {
        let Val::Optional(inner) = target else { return Err(no_overload()) };
        // It is asked whether it has a value, and where that is used, for the value: the target stands twice in what is evaluated.
        self.pay(1 + u64::from(inner.is_none() || !flat))?;
        let Some(value) = inner else { return Ok(Val::Optional(None)) };
        let made = self.naming(x, Bound::Owed((**value).clone(), spent.saturating_add(1)), body)?;
        Ok(if flat { made } else { Val::some(made) })
    }

    /// One element, under one name or (with its index or key) two.
    fn each(&mut self, names: &[&'a Expression], item: &Item, keyed: bool, body: &'a Expression) -> Result {
        self.work(1)?;
        let (key, value) = item;
        match names {
            // Of a map, a single name stands for the key.
            [x] => self.naming(x, Bound::Value(if keyed { key.clone() } else { value.clone() }), body),
            [x, y] => {
                self.bound.push((named(x)?, Bound::Value(key.clone())));
                let result = self.naming(y, Bound::Value(value.clone()), body);
                self.bound.pop();
                result
            }
            _ => Err(no_overload()),
        }
    }

    /// Whether an element passes.
    fn passes(
        &mut self,
        names: &[&'a Expression],
        item: &Item,
        keyed: bool,
        test: Option<&'a Expression>,
    ) -> Result<bool> {
        let Some(test) = test else { return Ok(true) };
        match self.each(names, item, keyed, test)? {
            Val::Bool(passes) => Ok(passes),
            _ => Err(no_overload()),
        }
    }

    /// `all`, and (`decides`) `exists`: an element that decides wins over the errors of others.
    fn decide(&mut self, target: &Val, decides: bool, names: &[&'a Expression], test: &'a Expression) -> Result {
        let (items, keyed) = items(target)?;
        let again = costs::goes_on(decides);
        let mut failure = None;
        self.pay(costs::GATHERED)?;
        for (i, item) in items.iter().enumerate() {
            self.pay(again + costs::GATHERED)?;
            let passes = self.passes(names, item, keyed, Some(test));
            if is_too_expensive(&passes) {
                return passes.map(Val::Bool);
            }
            match passes {
                Ok(passes) if passes == decides => {
                    // Before the next element it is seen that it is decided.
                    self.pay(if i + 1 < items.len() { again } else { 0 })?;
                    return Ok(Val::Bool(decides));
                }
                Ok(_) => {}
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        failure.map_or(Ok(Val::Bool(!decides)), Err)
    }

    fn is_one(&mut self, target: &Val, names: &[&'a Expression], test: &'a Expression) -> Result {
        let (items, keyed) = items(target)?;
        let mut found = Ok(0);
        for item in &items {
            let passes = self.passes(names, item, keyed, Some(test));
            if is_too_expensive(&passes) {
                return passes.map(Val::Bool);
            }
            match passes {
                Ok(true) => {
                    self.pay(costs::GATHERED + 1)?;
                    found = found.map(|n| n + 1);
                }
                Ok(false) => {}
                Err(e) => found = Err(e),
            }
        }
        self.pay(costs::GATHERED + 1)?;
        found.map(|n| Val::Bool(n == 1))
    }

    fn transform(
        &mut self,
        target: &Val,
        names: &[&'a Expression],
        test: Option<&'a Expression>,
        body: Option<&'a Expression>,
    ) -> Result {
        let (items, keyed) = items(target)?;
        let mut gathered = Ok(Vec::new());
        for item in &items {
            match self.passes(names, item, keyed, test) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(e) if e == super::TOO_EXPENSIVE => return Err(e),
                Err(e) => {
                    gathered = Err(e);
                    continue;
                }
            }
            self.pay(costs::APPENDED + u64::from(body.is_none()))?;
            let made = match body {
                Some(body) => self.each(names, item, keyed, body),
                None if keyed => Ok(item.0.clone()),
                None => item.1.clone().sound(),
            };
            if is_too_expensive(&made) {
                return made;
            }
            gathered = gathered.and_then(|mut list| {
                list.push(made?);
                Ok(list)
            });
        }
        self.pay(costs::GATHERED)?;
        gathered.map(Val::list)
    }

    fn transform_map(
        &mut self,
        target: &Val,
        entries: bool,
        names: [&'a Expression; 2],
        test: Option<&'a Expression>,
        body: &'a Expression,
    ) -> Result {
        let (items, keyed) = items(target)?;
        let mut gathered = Ok(BTreeMap::new());
        for item in &items {
            match self.passes(&names, item, keyed, test) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(e) if e == super::TOO_EXPENSIVE => return Err(e),
                Err(e) => {
                    gathered = Err(e);
                    continue;
                }
            }
            self.pay(costs::GATHERED)?;
            let Ok(map) = &mut gathered else { continue };
            self.pay(if entries { 1 } else { 2 })?;
            let made = self.each(&names, item, keyed, body);
            if is_too_expensive(&made) {
                return made;
            }
            if let Err(e) = made.and_then(|made| insert(map, entries, &item.0, made)) {
                gathered = Err(e);
            }
        }
        self.pay(costs::GATHERED)?;
        gathered.map(|map| Val::Map(Arc::new(map)))
    }

    /// `open`: the types do not say what the keys are.
    fn sort_by(&mut self, target: &Val, x: &'a Expression, body: &'a Expression, open: bool) -> Result {
        let Val::List(list) = target else { return Err(no_overload()) };
        // The list has a name, by which it is taken for the keys and then sorted.
        self.pay(2)?;
        let Val::List(keys) = self.transform(target, &[x], None, Some(body))? else { return Err(no_overload()) };
        self.pay(if open { 1 } else { costs::comparing(keys.len(), keys.first()) })?;
        functions::orderly(keys.iter())?;
        let mut made: Vec<(&Val, &Val)> = keys.iter().zip(list.iter()).collect();
        made.sort_by(|a, b| a.0.order(b.0).unwrap_or(Ordering::Equal));
        Ok(Val::list(made.into_iter().map(|(_, value)| value.clone()).collect()))
    }
}

fn is_fold(name: &str, arguments: usize) -> bool {
    match name {
        "all" | "exists" | "exists_one" | "existsOne" | "map" => arguments == 2 || arguments == 3,
        "filter" | "sortBy" => arguments == 2,
        "transformList" | "transformMap" | "transformMapEntry" => arguments == 3 || arguments == 4,
        _ => false,
    }
}

/// `made`: the value under a key, or entries.
fn insert(map: &mut BTreeMap<Key, Val>, entries: bool, key: &Val, made: Val) -> Result<()> {
    let made = match made {
        Val::Map(made) if entries => made.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        _ if entries => return Err(no_overload()),
        value => vec![(Key::of(key).ok_or_else(no_overload)?, value)],
    };
    for (key, value) in made {
        let shown = key.clone();
        if map.insert(key, value).is_some() {
            return Err(format!("insert failed: key {} already exists", functions::display(&shown.value())));
        }
    }
    Ok(())
}

fn named(e: &Expression) -> Result<&str> {
    match e {
        Expression::Name { name, .. } => Ok(name),
        _ => Err("argument must be a simple name".into()),
    }
}

/// The elements, and whether they have keys.
fn items(target: &Val) -> Result<(Vec<Item>, bool)> {
    match target {
        Val::List(items) => Ok(((0..).zip(items.iter()).map(|(i, v)| (Val::Int(i), v.clone())).collect(), false)),
        Val::Map(map) => Ok((map.iter().map(|(k, v)| (k.value(), v.clone())).collect(), true)),
        _ => Err(no_overload()),
    }
}
