//! `matchConditions` of authorization webhooks: which requests they are asked about (`apiserver/pkg/authorization/cel`).

use isopod_auth::aggregate_text;
use isopod_kinds::cel::check::{self, Environment, Library, Objects, Type};
use isopod_kinds::cel::{Program, Val, Variables};
use serde_json::Value;
use std::sync::{Arc, LazyLock};

/// What one expression may cost: upstream's limit for such expressions.
const BUDGET: u64 = 1_000_000;

/// An expression of type bool about the request.
struct Condition {
    text: String,
    program: Program,
}

/// They all must hold.
#[derive(Default)]
pub struct Conditions(Vec<Condition>);

impl Conditions {
    /// From expressions that are valid.
    pub fn new<'a>(expressions: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let condition = |text: &str| Ok(Condition { text: text.to_owned(), program: compile(text)? });
        expressions.into_iter().map(condition).collect::<Result<_, String>>().map(Conditions)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold for a request as [`super::review::described`] shows it. One that does not hold decides, whatever went
    /// wrong with others.
    pub fn hold(&self, request: &Value) -> Result<bool, String> {
        let request = Request(Val::from_json(request));
        let mut errors = Vec::new();
        for Condition { text, program } in &self.0 {
            match program.run(&request, &mut BUDGET.clone()) {
                Ok(Val::Bool(true)) => {}
                Ok(Val::Bool(false)) => return Ok(false),
                Ok(other) => errors.push(format!(
                    "cel evaluation error: expression '{text}' eval result type should be bool but got {}",
                    other.type_name()
                )),
                Err(e) => errors.push(format!("cel evaluation error: expression '{text}' resulted in error: {e}")),
            }
        }
        if errors.is_empty() { Ok(true) } else { Err(aggregate_text(&errors)) }
    }
}

struct Request(Val);

impl Variables for Request {
    fn get(&self, name: &str) -> Option<Result<Val, String>> {
        (name == "request").then(|| Ok(self.0.clone()))
    }
}

/// The error is upstream's.
pub fn compile(text: &str) -> Result<Program, String> {
    let checked = check::check(text, &ENVIRONMENT).map_err(|e| format!("compilation failed: {e}"))?;
    match checked.result() {
        Type::Bool => Program::compile_for(text, &ENVIRONMENT),
        other => Err(format!("must evaluate to bool but got {other}")),
    }
}

static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| {
    let review = Type::object("kubernetes.SubjectAccessReviewSpec");
    Environment::new(Library::Stored).objects(Arc::new(types())).variable("request", review)
});

fn types() -> Objects {
    let text = || Type::Text;
    let texts = || Type::list(Type::Text);
    let object = |name: &str| Type::object(&format!("kubernetes.{name}"));
    let requirements = || ("requirements", Type::list(object("SelectorRequirement")));
    let all: [(&str, Vec<(&str, Type)>); 6] = [
        ("SelectorRequirement", vec![("key", text()), ("operator", text()), ("values", texts())]),
        ("FieldSelectorAttributes", vec![("rawSelector", text()), requirements()]),
        ("LabelSelectorAttributes", vec![("rawSelector", text()), requirements()]),
        ("NonResourceAttributes", vec![("path", text()), ("verb", text())]),
        (
            "ResourceAttributes",
            vec![
                ("namespace", text()),
                ("verb", text()),
                ("group", text()),
                ("version", text()),
                ("resource", text()),
                ("subresource", text()),
                ("name", text()),
                ("fieldSelector", object("FieldSelectorAttributes")),
                ("labelSelector", object("LabelSelectorAttributes")),
            ],
        ),
        (
            "SubjectAccessReviewSpec",
            vec![
                ("resourceAttributes", object("ResourceAttributes")),
                ("nonResourceAttributes", object("NonResourceAttributes")),
                ("user", text()),
                ("groups", texts()),
                ("extra", Type::map(Type::Text, texts())),
                ("uid", text()),
            ],
        ),
    ];
    let fields = |of: Vec<(&str, Type)>| of.into_iter().map(|(name, t)| (name.to_owned(), t)).collect();
    all.into_iter().map(|(name, of)| (format!("kubernetes.{name}"), fields(of))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_are_checked_when_they_are_read() {
        for good in [
            "request.user == 'a'",
            "has(request.resourceAttributes) && request.resourceAttributes.namespace == 'kube-system'",
            "!('system:serviceaccounts:kube-system' in request.groups)",
            "request.extra['x'].exists(v, v == 'y')",
            "request.?resourceAttributes.?fieldSelector.requirements.orValue([]).all(r, r.key != 'a')",
        ] {
            assert!(compile(good).is_ok(), "{good}: {:?}", compile(good).err());
        }
        for (bad, want) in [
            ("request.user", "must evaluate to bool but got string"),
            ("dyn(true)", "must evaluate to bool but got dyn"),
            ("request.username == 'a'", "compilation failed: ERROR: <input>:1:8: undefined field 'username'\n"),
            ("object.x", "compilation failed: ERROR: <input>:1:1: undeclared reference to 'object'"),
            ("request.user ==", "compilation failed: ERROR: <input>:1:16: Syntax error"),
        ] {
            let why = compile(bad).err().unwrap();
            assert!(why.starts_with(want), "{bad}: {why}");
        }
    }

    #[test]
    fn one_that_does_not_hold_decides() {
        let request = json!({"user": "a", "groups": ["g"], "nonResourceAttributes": {"path": "/x", "verb": "get"}});
        let hold = |conditions: &[&str]| Conditions::new(conditions.iter().copied()).unwrap().hold(&request);
        let (yes, no, broken) =
            ("request.user == 'a'", "request.user == 'b'", "request.resourceAttributes.verb == 'x'");
        assert_eq!(hold(&[]), Ok(true));
        assert_eq!(hold(&[yes]), Ok(true));
        assert_eq!(hold(&[yes, no]), Ok(false));
        assert_eq!(hold(&[broken, no]), Ok(false));
        let why = "cel evaluation error: expression 'request.resourceAttributes.verb == 'x'' resulted in error: \
                   no such key: resourceAttributes";
        assert_eq!(hold(&[yes, broken]), Err(why.to_owned()));
    }
}
