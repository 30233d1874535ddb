//! Expressions in CEL: what their text tells ([`check`]: syntax, names that nothing declares, fields that a schema does not
//! have), and what they come to ([`Program`]), within a budget.
//!
//! Not here: types of expressions before they are evaluated, so that one which passes may still fail there.
//! Invariant: what upstream accepts is accepted; what is wrong is told in the words of cel-go and its generated parser, the
//! first syntax error alone.

mod ast;
mod eval;
mod functions;
mod lexer;
mod literal;
mod names;
mod parser;
mod unordered;
mod value;

pub use eval::{TOO_EXPENSIVE, Variables};
pub use names::Scope;
pub use unordered::Unordered;
pub use value::{Foreign, Key, Val};

/// An expression, ready to be evaluated.
pub struct Program(ast::Expression);

impl Program {
    /// The error is that of [`check`].
    pub fn compile(text: &str) -> Result<Self, String> {
        let faulty = |f: Fault| format!("compilation failed: {}", display(text, &f));
        parser::parse(text).map(Program).map_err(faulty)
    }

    /// Whether it speaks of a variable.
    pub fn uses(&self, variable: &str) -> bool {
        fn within(e: &ast::Expression, variable: &str) -> bool {
            matches!(e, ast::Expression::Name { name, .. } if name == variable)
                || e.parts().into_iter().any(|p| within(p, variable))
        }
        within(&self.0, variable)
    }

    /// Evaluates it and takes what that cost from `budget`.
    pub fn run(&self, variables: &dyn Variables, budget: &mut u64) -> Result<Val, String> {
        let mut evaluator = eval::Evaluator::new(variables, *budget);
        let result = evaluator.run(&self.0);
        *budget = evaluator.left();
        result
    }
}

/// Something wrong at a character of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    at: usize,
    message: String,
}

/// What is wrong with an expression.
pub fn check(text: &str, scope: &Scope) -> Option<String> {
    let faults = match parser::parse(text) {
        Ok(expression) => names::unknown(&expression, scope),
        Err(fault) => vec![fault],
    };
    let shown: Vec<String> = faults.iter().map(|f| display(text, f)).collect();
    (!shown.is_empty()).then(|| format!("compilation failed: {}", shown.join("\n")))
}

/// The fault with its line and a mark below its place.
fn display(text: &str, fault: &Fault) -> String {
    if text.is_empty() {
        return format!("ERROR: <input>:1:0: {}", fault.message);
    }
    let before: String = text.chars().take(fault.at).collect();
    let line = before.matches('\n').count();
    let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count());
    let snippet = text.split('\n').nth(line).unwrap_or_default().replace('\t', " ");
    let is_wide = |c: char| c.len_utf8() > 1;
    let dots: String = snippet.chars().take(column).map(|c| if is_wide(c) { '．' } else { '.' }).collect();
    let mark = if snippet.chars().nth(column).is_some_and(is_wide) { '＾' } else { '^' };
    format!("ERROR: <input>:{}:{}: {}\n | {snippet}\n | {dots}{mark}", line + 1, column + 1, fault.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const OPERAND: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

    fn faults(text: &str) -> Vec<String> {
        let variables = vec!["known".to_owned()];
        let scope = Scope { roots: vec!["object", "request"], variables: Some(variables), ..Scope::default() };
        match parser::parse(text) {
            Ok(e) => names::unknown(&e, &scope).into_iter().map(|f| format!("{}: {}", f.at, f.message)).collect(),
            Err(f) => vec![format!("{}: {}", f.at, f.message)],
        }
    }

    #[test]
    fn what_is_accepted() {
        for text in [
            "object.spec.replicas <= 5 && !(request.name in ['a', \"b\"])",
            "has(object.a) ? object.a[0] : object.?b.orValue('x')",
            "object.list.all(x, x.startsWith('a') || x == r'\\d') && object.m.exists(k, v, k == v)",
            "object.items.map(x, x > 1, x * 2).filter(y, y != 3u).size() > 0x1F",
            "cel.bind(n, object.name, n + n) == 'aa' && math.greatest(1, 2.5e3, -1) > .5",
            "variables.known == null && type(object) == string && b'x' != b\"\"\"y\n\"\"\"",
            "{'a': 1, ?'b': object.?b} == {} && [1, 2,].size() == 2 // a comment",
            "Object{spec: Object.spec{replicas: 3}}.spec.replicas == 3",
            "object.`a-b/c` == 1 && ip.isCanonical('::1') && google.protobuf.Timestamp == 1",
            "- 1 < --2 && !!true",
        ] {
            assert_eq!(faults(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn what_is_not() {
        let cases = [
            ("Not Valid!", "4: Syntax error: mismatched input 'Valid' expecting <EOF>".to_owned()),
            ("a b", "2: Syntax error: extraneous input 'b' expecting <EOF>".to_owned()),
            ("", format!("0: Syntax error: mismatched input '<EOF>' expecting {OPERAND}")),
            ("1 +", format!("3: Syntax error: mismatched input '<EOF>' expecting {OPERAND}")),
            ("(1", "2: Syntax error: missing ')' at '<EOF>'".to_owned()),
            ("1 # 2", "2: Syntax error: token recognition error at: '#'".to_owned()),
            ("'a", "0: Syntax error: token recognition error at: ''a'".to_owned()),
            ("while", "0: reserved identifier: while".to_owned()),
            ("-x", "1: undeclared reference to 'x' (in container '')".to_owned()),
            ("object.all(x, y)", "14: undeclared reference to 'y' (in container '')".to_owned()),
            ("'a' + variables.nm", "15: undefined field 'nm'".to_owned()),
        ];
        for (text, wanted) in cases {
            assert_eq!(faults(text), [wanted], "{text}");
        }
    }

    #[test]
    fn fields_of_schemas() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {}}},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "map": {"type": "object", "additionalProperties": {"type": "string"}}}});
        let scope = Scope { roots: vec!["self"], of_self: Some(&schema), ..Scope::default() };
        let told = |text: &str| check(text, &scope);
        for good in ["self.a.b", "self.open.x", "self.map.x", "has(self.a) && self.a__dash__b", "self.a.b.c"] {
            assert_eq!(told(good), None, "{good}");
        }
        assert_eq!(
            told("self.a.c == 1").as_deref(),
            Some("compilation failed: ERROR: <input>:1:7: undefined field 'c'\n | self.a.c == 1\n | ......^")
        );
        assert!(told("self.metadata.name").is_some());
        let root = Scope { root_object: true, ..scope };
        assert_eq!(check("self.metadata.name + self.kind", &root), None);
    }

    struct Given(serde_json::Value);

    impl Variables for Given {
        fn get(&self, name: &str) -> Option<Result<Val, String>> {
            self.0.get(name).map(|v| Ok(Val::from_json(v)))
        }
    }

    fn run(text: &str) -> Result<Val, String> {
        let given = json!({"object": {"a": 1, "s": "text", "l": [1, 2, 3], "m": {"x": "1", "y": "2"}, "n": null,
            "dashed-name": 7, "d": 2.5, "deep": {"er": {"x": true}}}, "none": null});
        Program::compile(text)?.run(&Given(given), &mut 10_000_000)
    }

    #[test]
    fn what_expressions_come_to() {
        for text in include_str!("true.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
            match run(text) {
                Ok(Val::Bool(true)) => {}
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_fails_says_why() {
        for (text, wanted) in [
            ("object.zzz", "no such key: zzz"),
            ("object.l[7]", "index out of bounds: 7"),
            ("1 / 0", "division by zero"),
            ("1 % 0", "modulus by zero"),
            ("9223372036854775807 + 1", "integer overflow"),
            ("0u - 1u", "unsigned integer overflow"),
            ("1 + 'a'", "no such overload"),
            ("!1", "no such overload"),
            ("'a'.nothing()", "no such overload"),
            ("object.s && true", "no such overload"),
            ("false || object.zzz", "no such key: zzz"),
            ("[1, 2].all(x, x > 'a')", "no such overload"),
            ("optional.none().value()", "optional.none() dereference"),
            (
                "quantity('x1')",
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ] {
            assert_eq!(run(text).map(|v| format!("{v:?}")), Err(wanted.to_owned()), "{text}");
        }
    }

    #[test]
    fn budgets_end_what_runs_too_long() {
        let list = (0..200).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
        let text = format!("[{list}].all(x, [{list}].all(y, [{list}].all(z, x + y + z >= 0)))");
        let mut budget = 1_000_000;
        let result = Program::compile(&text).unwrap().run(&Given(json!({})), &mut budget);
        assert_eq!((result.unwrap_err().as_str(), budget), (eval::TOO_EXPENSIVE, 0));
    }

    #[test]
    fn faults_are_marked() {
        let fault = |at: usize| Fault { at, message: "m".to_owned() };
        assert_eq!(display("", &fault(0)), "ERROR: <input>:1:0: m");
        assert_eq!(display("a\nbc", &fault(3)), "ERROR: <input>:2:2: m\n | bc\n | .^");
        assert_eq!(display("éx", &fault(1)), "ERROR: <input>:1:2: m\n | éx\n | ．^");
    }
}
