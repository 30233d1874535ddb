//! Expressions of admission: what each of them may speak of, and what it must come to
//! (`apiserver/pkg/admission/plugin/cel/compile.go`, `composition.go`).

use crate::access::Access;
use crate::cel::admission;
use crate::cel::check::{Environment, Library, Objects, Type, check};
use isopod_api::{FieldError, Path};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The name of the type of `variables`.
const VARIABLES: &str = "kubernetes.variables";

/// The surroundings of an expression.
#[derive(Clone)]
pub(super) struct Surroundings {
    params: bool,
    /// It makes objects or patches.
    mutates: bool,
    /// The fields of `variables`, of a policy that has some.
    variables: Option<BTreeMap<String, Type>>,
}

/// What an expression must come to. Empty: anything.
pub(super) type Wanted = [Type];

impl Surroundings {
    /// Of match conditions: a webhook's have no parameters, a policy's have no variables.
    pub fn of_conditions(parent: &Value) -> Self {
        Surroundings { params: parent.has("paramKind"), mutates: false, variables: None }
    }

    /// Of the first variable, which knows none; [`define`](Self::define) adds them one after another. Policies that mutate
    /// have `variables` even if there are none.
    pub fn of_policy(spec: &Value, mutates: bool) -> Self {
        let variables = (mutates || !spec.list("variables").is_empty()).then(BTreeMap::new);
        Surroundings { params: spec.has("paramKind"), mutates: false, variables }
    }

    /// Those of what comes after all variables.
    pub fn after_variables(spec: &Value, mutates: bool) -> Self {
        let mut around = Self::of_policy(spec, mutates);
        spec.list("variables").iter().for_each(|v| around.define(v));
        around.mutates = mutates;
        around
    }

    /// Makes a variable known, of the type that its expression comes to.
    pub fn define(&mut self, variable: &Value) {
        let text = variable.text("expression");
        if text.trim().is_empty() {
            return;
        }
        let t = check(text, &self.environment(true)).map_or(Type::Dyn, |c| c.result().of_variable());
        self.variables.get_or_insert_default().insert(variable.text("name").to_owned(), t);
    }

    fn environment(&self, authorizer: bool) -> Environment {
        let library = if self.mutates { Library::Patch } else { Library::New };
        let environment = admission(library, self.params, authorizer);
        match &self.variables {
            Some(fields) => environment
                .objects(Arc::new(Objects::from([(VARIABLES.to_owned(), fields.clone())])))
                .variable("variables", Type::object(VARIABLES)),
            None => environment,
        }
    }

    /// What is wrong with an expression; `shown` is the value that the error shows.
    pub fn fault(&self, text: &str, shown: &str, authorizer: bool, wanted: &Wanted, path: &Path) -> Option<FieldError> {
        let why = match check(text, &self.environment(authorizer)) {
            Err(e) => format!("compilation failed: {e}"),
            Ok(c) if wanted.is_empty() || wanted.contains(c.result()) => return None,
            Ok(c) => match wanted {
                [one] => format!("must evaluate to {one} but got {}", c.result()),
                all => {
                    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
                    format!("must evaluate to one of [{}] but got {}", all.join(" "), c.result())
                }
            },
        };
        Some(FieldError::invalid(path, shown, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_expressions_may_speak_of() {
        let spec = json!({"paramKind": {}, "variables": [{"name": "a", "expression": "1"}, {"name": "b", "expression": ""},
            {"name": "c", "expression": "'x'"}]});
        let fits =
            |s: &Surroundings, text: &str, authorizer| s.fault(text, text, authorizer, &[], &Path::new("x")).is_none();
        let mut second = Surroundings::of_policy(&spec, false);
        second.define(&spec["variables"][0]);
        assert!(fits(&second, "variables.a + params.x", false) && !fits(&second, "variables.c", false));
        let after = Surroundings::after_variables(&spec, false);
        assert!(fits(&after, "variables.a == 1 && variables.c == ''", false) && !fits(&after, "variables.b", false));
        assert!(!fits(&after, "variables.a == variables.c", false));
        assert!(
            fits(&after, "authorizer.path('/').check('get').allowed()", true) && !fits(&after, "authorizer", false)
        );
        let bare = json!({});
        assert!(!fits(&Surroundings::of_policy(&bare, false), "variables", false));
        assert!(fits(&Surroundings::of_policy(&bare, true), "variables", false));
        let conditions = Surroundings::of_conditions(&bare);
        assert!(fits(&conditions, "object.a == request.name", true) && !fits(&conditions, "params.x", true));
        assert!(
            !fits(&conditions, "Object{}", true) && fits(&Surroundings::after_variables(&bare, true), "Object{}", true)
        );
    }

    #[test]
    fn variables_forget_the_fields_of_objects() {
        let variables = json!([{"name": "u", "expression": "request.userInfo"}, {"name": "g", "expression": "request.userInfo.groups"}]);
        let around = Surroundings::after_variables(&json!({"variables": variables}), false);
        let fits = |text: &str| around.fault(text, text, false, &[], &Path::new("x")).is_none();
        assert!(fits("variables.u.whatever == 1") && fits("variables.g[0] == 'a'"));
        assert!(!fits("variables.g[0] == 1") && !fits("request.userInfo.whatever == 1"));
    }

    #[test]
    fn what_expressions_must_come_to() {
        let around = Surroundings::of_conditions(&json!({}));
        let told = |wanted: &Wanted| around.fault("1", "1", true, wanted, &Path::new("x")).map(|e| e.detail);
        assert_eq!(told(&[Type::Int]), None);
        assert_eq!(told(&[Type::Bool]).as_deref(), Some("must evaluate to bool but got int"));
        let several = told(&[Type::Text, Type::Null]);
        assert_eq!(several.as_deref(), Some("must evaluate to one of [string null_type] but got int"));
    }
}
