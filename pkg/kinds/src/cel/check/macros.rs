//! Macros, written out as cel-go's parser writes them out (`parser/macro.go`, `ext/comprehensions.go`, `cel/library.go`).

use super::Library;
use super::tree::{Fold, Id, Item, RESULT, Tree, What};
use crate::cel::Fault;
use crate::cel::value::Val;

type Expanded = Result<Id, Fault>;

const UNUSED: &str = "#unused";
/// What macros once gathered in.
const OLD_RESULT: &str = "__result__";

/// `None`: it is no macro.
pub fn expand(t: &mut Tree, at: usize, target: Option<Id>, name: &str, arguments: &[Id]) -> Option<Expanded> {
    let Some(target) = target else {
        return match (name, arguments) {
            ("has", [of]) => Some(has(t, at, *of)),
            _ => None,
        };
    };
    let mut m = Macro { t, at, target };
    Some(match (name, arguments) {
        ("all" | "exists" | "exists_one", [x, test]) => {
            m.variable(*x, "argument must be a simple name").and_then(|x| m.quantifier(name, x, None, *test))
        }
        ("all" | "exists" | "exists_one" | "existsOne", [x, y, test]) => {
            m.variables(*x, *y).and_then(|(x, y)| m.quantifier(name, x, Some(y), *test))
        }
        ("map", [x, body]) => m.element(*x).map(|x| m.list(x, None, None, *body)),
        ("map", [x, test, body]) => m.element(*x).map(|x| m.list(x, None, Some(*test), *body)),
        ("filter", [x, test]) => m.element(*x).map(|name| m.list(name, None, Some(*test), *x)),
        ("transformList", [x, y, body]) => m.variables(*x, *y).map(|(x, y)| m.list(x, Some(y), None, *body)),
        ("transformList", [x, y, test, body]) => {
            m.variables(*x, *y).map(|(x, y)| m.list(x, Some(y), Some(*test), *body))
        }
        ("transformMap" | "transformMapEntry", [x, y, body]) => {
            m.variables(*x, *y).map(|(x, y)| m.map(name, x, y, None, *body))
        }
        ("transformMap" | "transformMapEntry", [x, y, test, body]) => {
            m.variables(*x, *y).map(|(x, y)| m.map(name, x, y, Some(*test), *body))
        }
        ("optMap" | "optFlatMap", [x, body]) => m.optional(name, *x, *body),
        ("sortBy", [x, body]) => m.sort_by(*x, *body),
        ("bind", [x, init, body]) => {
            let is_cel = matches!(m.t.what(target), What::Name(n) if n == "cel") && m.t.library == Library::Device;
            if !is_cel {
                return None;
            }
            let simple = m.simple(*x, "cel.bind() variable names must be simple identifiers");
            simple.map(|x| m.bind(x, *init, *body))
        }
        _ => return None,
    })
}

fn has(t: &mut Tree, at: usize, of: Id) -> Expanded {
    match t.what(of).clone() {
        What::Select { of, field, .. } => Ok(t.add(at, What::Select { of, field, test: true })),
        _ => Err(Fault { at: t.nodes[of].at, message: "invalid argument to has() macro".into() }),
    }
}

struct Macro<'a> {
    t: &'a mut Tree,
    at: usize,
    target: Id,
}

impl Macro<'_> {
    fn fault<T>(&self, id: Id, message: impl Into<String>) -> Result<T, Fault> {
        Err(Fault { at: self.t.nodes[id].at, message: message.into() })
    }

    fn simple(&self, id: Id, message: &str) -> Result<String, Fault> {
        match self.t.what(id) {
            What::Name(name) => Ok(name.clone()),
            _ => self.fault(id, message),
        }
    }

    fn variable(&self, id: Id, message: &str) -> Result<String, Fault> {
        let name = self.simple(id, message)?;
        if name == OLD_RESULT || name == RESULT {
            return self.fault(id, "iteration variable overwrites accumulator variable");
        }
        Ok(name)
    }

    fn element(&self, id: Id) -> Result<String, Fault> {
        self.variable(id, "argument is not an identifier")
    }

    fn variables(&self, x: Id, y: Id) -> Result<(String, String), Fault> {
        const SIMPLE: &str = "argument must be a simple name";
        let (first, second) = (self.simple(x, SIMPLE)?, self.simple(y, SIMPLE)?);
        if first == second {
            return self.fault(y, format!("duplicate variable name: {first}"));
        }
        Ok((self.variable(x, SIMPLE)?, self.variable(y, SIMPLE)?))
    }

    fn literal(&mut self, value: Val) -> Id {
        self.t.add(self.at, What::Literal(value))
    }

    fn name(&mut self, name: &str) -> Id {
        self.t.add(self.at, What::Name(name.to_owned()))
    }

    fn result(&mut self) -> Id {
        self.name(RESULT)
    }

    fn call(&mut self, function: &str, arguments: Vec<Id>) -> Id {
        self.t.call(self.at, function, arguments)
    }

    fn member(&mut self, function: &str, target: Id, arguments: Vec<Id>) -> Id {
        self.t.add(self.at, What::Call { target: Some(target), function: function.to_owned(), arguments })
    }

    fn new_list(&mut self, items: Vec<Id>) -> Id {
        let items = items.into_iter().map(|value| Item { optional: false, value }).collect();
        self.t.add(self.at, What::List(items))
    }

    fn fold(&mut self, names: (String, Option<String>), [init, condition, step, result]: [Id; 4]) -> Id {
        let (var, var2) = names;
        let fold = Fold { range: self.target, var, var2, accumulator: RESULT.into(), init, condition, step, result };
        self.t.add(self.at, What::Fold(Box::new(fold)))
    }

    fn quantifier(&mut self, name: &str, x: String, y: Option<String>, test: Id) -> Expanded {
        let parts = match name {
            "all" => {
                let init = self.literal(Val::Bool(true));
                let so_far = self.result();
                let condition = self.call("@not_strictly_false", vec![so_far]);
                let so_far = self.result();
                let step = self.call("_&&_", vec![so_far, test]);
                [init, condition, step, self.result()]
            }
            "exists" => {
                let init = self.literal(Val::Bool(false));
                let so_far = self.result();
                let not = self.call("!_", vec![so_far]);
                let condition = self.call("@not_strictly_false", vec![not]);
                let so_far = self.result();
                let step = self.call("_||_", vec![so_far, test]);
                [init, condition, step, self.result()]
            }
            _ => {
                let init = self.literal(Val::Int(0));
                let condition = self.literal(Val::Bool(true));
                let (so_far, one) = (self.result(), self.literal(Val::Int(1)));
                let more = self.call("_+_", vec![so_far, one]);
                let same = self.result();
                let step = self.call("_?_:_", vec![test, more, same]);
                let (so_far, one) = (self.result(), self.literal(Val::Int(1)));
                [init, condition, step, self.call("_==_", vec![so_far, one])]
            }
        };
        Ok(self.fold((x, y), parts))
    }

    /// The step where a test holds, else what there is so far.
    fn if_so(&mut self, test: Option<Id>, step: Id) -> Id {
        let Some(test) = test else { return step };
        let same = self.result();
        self.call("_?_:_", vec![test, step, same])
    }

    fn list(&mut self, x: String, y: Option<String>, test: Option<Id>, body: Id) -> Id {
        let init = self.new_list(Vec::new());
        let condition = self.literal(Val::Bool(true));
        let so_far = self.result();
        let one = self.new_list(vec![body]);
        let step = self.call("_+_", vec![so_far, one]);
        let step = self.if_so(test, step);
        let result = self.result();
        self.fold((x, y), [init, condition, step, result])
    }

    fn map(&mut self, name: &str, x: String, y: String, test: Option<Id>, body: Id) -> Id {
        let init = self.t.add(self.at, What::Map(Vec::new()));
        let condition = self.literal(Val::Bool(true));
        let so_far = self.result();
        let inserted = match name {
            "transformMap" => vec![so_far, self.name(&x), body],
            _ => vec![so_far, body],
        };
        let step = self.call("cel.@mapInsert", inserted);
        let step = self.if_so(test, step);
        let result = self.result();
        self.fold((x, Some(y)), [init, condition, step, result])
    }

    /// A name for a value: a comprehension over nothing.
    fn bind(&mut self, x: String, init: Id, result: Id) -> Id {
        let range = self.new_list(Vec::new());
        let condition = self.literal(Val::Bool(false));
        let step = self.name(&x);
        let fold = Fold { range, var: UNUSED.into(), var2: None, accumulator: x, init, condition, step, result };
        self.t.add(self.at, What::Fold(Box::new(fold)))
    }

    fn optional(&mut self, name: &str, x: Id, body: Id) -> Expanded {
        let x = self.simple(x, &format!("{name}() variable name must be a simple identifier"))?;
        let target = self.target;
        let there = self.member("hasValue", target, Vec::new());
        let copied = self.t.copy(target);
        let value = self.member("value", copied, Vec::new());
        let bound = self.bind(x, value, body);
        let some = if name == "optMap" { self.call("optional.of", vec![bound]) } else { bound };
        let none = self.call("optional.none", Vec::new());
        Ok(self.call("_?_:_", vec![there, some, none]))
    }

    fn sort_by(&mut self, x: Id, body: Id) -> Expanded {
        const INPUT: &str = "@__sortBy_input__";
        if !matches!(
            self.t.what(self.target),
            What::List(_) | What::Select { .. } | What::Name(_) | What::Fold(_) | What::Call { .. }
        ) {
            let message = "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
            return self.fault(self.target, message);
        }
        let x = self.element(x)?;
        let target = self.target;
        self.target = self.name(INPUT);
        let keys = self.list(x, None, None, body);
        let input = self.name(INPUT);
        let sorted = self.member("@sortByAssociatedKeys", input, vec![keys]);
        Ok(self.bind(INPUT.into(), target, sorted))
    }
}
