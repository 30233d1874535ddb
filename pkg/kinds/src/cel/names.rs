//! The names of an expression that nothing declares.

use super::Fault;
use super::ast::Expression;
use crate::access::Access;
use serde_json::Value;

/// What an expression may speak of.
#[derive(Clone, Default)]
pub struct Scope<'a> {
    /// Variables of any type.
    pub roots: Vec<&'static str>,
    /// The fields of `variables`, where an expression has it.
    pub variables: Option<Vec<String>>,
    /// The schema of `self` and `oldSelf`.
    pub of_self: Option<&'a Value>,
    /// `self` is a whole resource.
    pub root_object: bool,
}

/// Types, and what the names of types and functions begin with.
const TYPES: [&str; 17] = [
    "bool",
    "bytes",
    "cel",
    "double",
    "duration",
    "dyn",
    "google",
    "int",
    "kubernetes",
    "list",
    "map",
    "net",
    "null_type",
    "optional_type",
    "string",
    "timestamp",
    "type",
];
/// Macros that give a name to what they look at.
const ONE_NAME: [&str; 6] = ["map", "filter", "sortBy", "optMap", "optFlatMap", "exists_one"];
const ONE_OR_TWO: [&str; 3] = ["all", "exists", "existsOne"];
const TWO_NAMES: [&str; 3] = ["transformList", "transformMap", "transformMapEntry"];

/// All of them, in the order of the text.
pub(super) fn unknown(expression: &Expression, scope: &Scope) -> Vec<Fault> {
    let mut walk = Walk { scope, bound: Vec::new(), faults: Vec::new() };
    walk.visit(expression);
    walk.faults.sort_by_key(|f| f.at);
    walk.faults
}

struct Walk<'a> {
    scope: &'a Scope<'a>,
    /// Names that macros gave.
    bound: Vec<String>,
    faults: Vec<Fault>,
}

impl Walk<'_> {
    fn is_declared(&self, name: &str) -> bool {
        self.scope.roots.contains(&name)
            || name == "variables" && self.scope.variables.is_some()
            || name == "uint"
            || TYPES.contains(&name)
            || self.bound.iter().any(|b| b == name)
    }

    fn visit(&mut self, e: &Expression) {
        match e {
            Expression::Name { name, at } if !self.is_declared(name) => {
                self.faults
                    .push(Fault { at: *at, message: format!("undeclared reference to '{name}' (in container '')") });
            }
            Expression::Name { .. } => {}
            Expression::Field { of, name, at, quoted: false, .. } => {
                if self.lacks(of, name) {
                    self.faults.push(Fault { at: *at, message: format!("undefined field '{name}'") });
                } else {
                    self.visit(of);
                }
            }
            Expression::Call { on, name, arguments } => self.call(on.as_deref(), name, arguments),
            _ => e.parts().into_iter().for_each(|p| self.visit(p)),
        }
    }

    fn call(&mut self, on: Option<&Expression>, name: &str, arguments: &[Expression]) {
        // `math.greatest` is the name of a function, not a variable's method.
        let namespaced = on.is_some_and(|on| on.path().is_some() && !root(on).is_some_and(|r| self.is_declared(r)));
        if let Some(on) = on.filter(|_| !namespaced) {
            self.visit(on);
        }
        let binds = match (name, arguments.len()) {
            ("bind", 3) if on.and_then(root) == Some("cel") => 1,
            _ if on.is_none() => 0,
            (name, _) if ONE_NAME.contains(&name) && arguments.len() > 1 => 1,
            (name, 2) if ONE_OR_TWO.contains(&name) => 1,
            (name, 3) if ONE_OR_TWO.contains(&name) => 2,
            ("exists_one", 3) => 2,
            (name, _) if TWO_NAMES.contains(&name) => 2,
            _ => 0,
        };
        let before = self.bound.len();
        let names = arguments.iter().take(binds).filter_map(|a| match a {
            Expression::Name { name, .. } => Some(name.clone()),
            _ => None,
        });
        self.bound.extend(names.collect::<Vec<_>>());
        arguments.iter().for_each(|a| self.visit(a));
        self.bound.truncate(before);
    }

    /// Whether it is known that `of` has no such field.
    fn lacks(&self, of: &Expression, field: &str) -> bool {
        if let (Expression::Name { name, .. }, Some(variables)) = (of, &self.scope.variables)
            && name == "variables"
        {
            return !variables.iter().any(|v| v == field);
        }
        // Names with odd characters are written in other ones.
        !field.contains("__") && self.schema(of).is_some_and(|s| s.closed && !s.has(field))
    }

    fn schema<'s>(&'s self, e: &Expression) -> Option<Typed<'s>> {
        match e {
            Expression::Name { name, .. }
                if matches!(name.as_str(), "self" | "oldSelf") && !self.bound.contains(name) =>
            {
                Some(Typed::of(self.scope.of_self?, self.scope.root_object))
            }
            Expression::Field { of, name, .. } => {
                let parent = self.schema(of)?;
                let next = parent.schema.entry("properties", name);
                // Of a resource's own metadata the schema says little.
                let own = parent.resource && matches!(name.as_str(), "metadata" | "kind" | "apiVersion");
                (parent.closed && !own && next.is_object()).then(|| Typed::of(next, false))
            }
            _ => None,
        }
    }
}

/// The name that a path begins with.
fn root(e: &Expression) -> Option<&str> {
    match e {
        Expression::Name { name, .. } => Some(name),
        Expression::Field { of, .. } => root(of),
        _ => None,
    }
}

struct Typed<'a> {
    schema: &'a Value,
    /// Its fields are those of the schema and no others.
    closed: bool,
    /// It has `apiVersion`, `kind` and `metadata`.
    resource: bool,
}

impl<'a> Typed<'a> {
    fn of(schema: &'a Value, root: bool) -> Self {
        let open =
            ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"].iter().any(|f| schema.flag(f));
        let closed = schema.text("type") == "object" && !open && !schema.has("additionalProperties");
        Typed { schema, closed, resource: root || schema.flag("x-kubernetes-embedded-resource") }
    }

    fn has(&self, field: &str) -> bool {
        !self.schema.entry("properties", field).is_null()
            || self.resource && matches!(field, "metadata" | "kind" | "apiVersion")
    }
}
