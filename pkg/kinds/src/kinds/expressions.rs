//! Expressions of admission: what each of them may speak of.

use crate::access::Access;
use crate::cel::{Scope, check};
use isopod_api::{FieldError, Path};
use serde_json::Value;

/// The surroundings of an expression.
#[derive(Clone)]
pub(super) struct Surroundings {
    params: bool,
    /// The fields of `variables`, of a policy that has some.
    variables: Option<Vec<String>>,
}

impl Surroundings {
    /// Of match conditions: a webhook's have no parameters, a policy's have no variables.
    pub fn of_conditions(parent: &Value) -> Self {
        Surroundings { params: parent.has("paramKind"), variables: None }
    }

    /// Of the variable at `index`, which knows those before it, or of what comes after all variables. Policies that mutate
    /// have `variables` even if there are none.
    pub fn of_policy(spec: &Value, index: usize, mutates: bool) -> Self {
        let all = spec.list("variables");
        let made = all.iter().take(index).filter(|v| !v.text("expression").trim().is_empty());
        let names: Vec<String> = made.map(|v| v.text("name").to_owned()).collect();
        Surroundings { params: spec.has("paramKind"), variables: (mutates || !all.is_empty()).then_some(names) }
    }

    /// What is wrong with an expression; `shown` is the value that the error shows.
    pub fn fault(&self, text: &str, shown: &str, authorizer: bool, path: &Path) -> Option<FieldError> {
        let mut roots = vec!["object", "oldObject", "namespaceObject", "request"];
        roots.extend(self.params.then_some("params"));
        roots.extend(authorizer.then_some("authorizer"));
        let scope = Scope { roots, variables: self.variables.clone(), ..Scope::default() };
        check(text, &scope).map(|m| FieldError::invalid(path, shown, m))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_expressions_may_speak_of() {
        let spec = json!({"paramKind": {}, "variables": [{"name": "a", "expression": "1"}, {"name": "b", "expression": ""},
            {"name": "c", "expression": "1"}]});
        let fits =
            |s: &Surroundings, text: &str, authorizer| s.fault(text, text, authorizer, &Path::new("x")).is_none();
        let second = Surroundings::of_policy(&spec, 1, false);
        assert!(fits(&second, "variables.a + params.x", false) && !fits(&second, "variables.c", false));
        let after = Surroundings::of_policy(&spec, 3, false);
        assert!(fits(&after, "variables.a + variables.c", false) && !fits(&after, "variables.b", false));
        assert!(fits(&after, "authorizer.allowed()", true) && !fits(&after, "authorizer", false));
        let bare = json!({});
        assert!(!fits(&Surroundings::of_policy(&bare, 0, false), "variables", false));
        assert!(fits(&Surroundings::of_policy(&bare, 0, true), "variables", false));
        let conditions = Surroundings::of_conditions(&bare);
        assert!(fits(&conditions, "object.a == request.b", true) && !fits(&conditions, "params.x", true));
    }
}
