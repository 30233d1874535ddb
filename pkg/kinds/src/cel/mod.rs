//! Expressions in CEL: what their text tells ([`check`]: syntax, names, fields, types, and an
//! estimate of the cost), and what they come to ([`Program`]), within a budget.
//!
//! Invariant: what upstream accepts is accepted; what is wrong is told in the words of cel-go and its generated parser, the
//! first syntax error alone.

mod admission;
mod ast;
pub mod check;
mod constants;
mod costs;
mod declared;
mod eval;
mod functions;
mod lexer;
mod literal;
mod parser;
pub mod timing;
mod unordered;
mod value;

pub use admission::admission;
pub use declared::Declared;
pub use eval::{TOO_EXPENSIVE, Variables};
pub use unordered::Unordered;
pub use value::{Foreign, Key, Val};

/// An expression, ready to be evaluated.
pub struct Program {
    expression: ast::Expression,
    /// Where calls stand whose arguments' types leave open what they are, in order.
    open: Vec<usize>,
}

impl Program {
    /// The error is of the syntax.
    pub fn compile(text: &str) -> Result<Self, String> {
        let faulty = |f: Fault| format!("compilation failed: {}", display(text, &f));
        let expression = parser::parse(text).map_err(faulty)?;
        Ok(Program { expression: constants::folded(expression), open: Vec::new() })
    }

    /// For values of these types, as which it costs what it costs upstream; an expression that does not fit them can be
    /// evaluated all the same.
    pub fn compile_for(text: &str, environment: &check::Environment) -> Result<Self, String> {
        let program = Self::compile(text)?;
        let open = check::check(text, environment).map(|checked| checked.open_calls()).unwrap_or_default();
        Ok(Program { open, ..program })
    }

    /// Whether it speaks of a variable.
    pub fn uses(&self, variable: &str) -> bool {
        fn within(e: &ast::Expression, variable: &str) -> bool {
            matches!(e, ast::Expression::Name { name, .. } if name == variable)
                || e.parts().into_iter().any(|p| within(p, variable))
        }
        within(&self.expression, variable)
    }

    /// Evaluates it and takes what that cost from `budget`.
    pub fn run(&self, variables: &dyn Variables, budget: &mut u64) -> Result<Val, String> {
        let mut evaluator = eval::Evaluator::new(variables, &self.open, *budget);
        let result = evaluator.run(&self.expression).and_then(|value| evaluator.hand_over(value));
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

/// Where the text as a whole is wrong.
const NOWHERE: usize = usize::MAX;

/// The fault with its line and a mark below its place.
fn display(text: &str, fault: &Fault) -> String {
    if fault.at == NOWHERE {
        return format!("ERROR: <input>:-1:0: {}", fault.message);
    }
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
    fn what_is_accepted() {
        for text in [
            "x.a ? x.b[0] : x.?c.orValue('d') && !(e in ['a', \"b\"])",
            "x.all(y, y.startsWith('a') || y == r'\\d') && .5 > 0x1F && - 1 < --2 && !!true",
            "{'a': 1, ?'b': x.?b} == {} && [1, 2,].size() == 2 // a comment",
            "Object{spec: Object.spec{replicas: 3}}.spec.`a-b/c` == b'x' && b\"\"\"y\n\"\"\" == x",
        ] {
            assert!(parser::parse(text).is_ok(), "{text}");
        }
        assert!(parser::parse("").is_err());
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
            ("lists.range(1000001)", "lists.range: size 1000001 exceeds maximum allowed (1000000)"),
            ("[1, 2.0].sort()", "list elements must have the same type"),
            ("[2.5, double('NaN'), 1.5].sort()", "list elements must be comparable"),
            (
                "'%.65536f'.format([1.0])",
                "could not parse formatting clause: error while parsing precision: precision 65536 exceeds maximum allowed precision 65535",
            ),
            (
                "quantity('x1')",
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ] {
            assert_eq!(run(text).map(|v| format!("{v:?}")), Err(wanted.to_owned()), "{text}");
        }
    }

    /// Values whose parts are shared, and texts and lists that grow with each step.
    #[test]
    fn budgets_end_what_grows_too_large() {
        let chain = |first: &str, step: &str, n: usize| format!("optional.of({first}){}.value()", step.repeat(n));
        for text in [
            chain("[1]", ".optMap(x, [x, x])", 60),
            format!("{0} == {0}", chain("[1]", ".optMap(x, [x, x])", 60)),
            format!("'%s'.format([{}])", chain("[1]", ".optMap(x, [x, x])", 60)),
            chain("[1]", ".optMap(x, x + x)", 60),
            chain("'aaaaaaaaaa'", ".optMap(x, x.replace('a', 'aaaaaaaaaa'))", 60),
            chain("'aaaaaaaaaa'", ".optMap(x, [x, x].join(x))", 60),
            chain("'aaaaaaaaaa'", ".optMap(x, '%s%s'.format([x, x]))", 60),
            "lists.range(1000000).map(x, lists.range(1000000))".to_owned(),
        ] {
            let mut budget = 1_000_000;
            let result = Program::compile(&text).unwrap().run(&Given(json!({})), &mut budget);
            assert_eq!(result.unwrap_err().as_str(), eval::TOO_EXPENSIVE, "{text}");
        }
        let mut copied = "x".to_owned();
        (0..60).for_each(|_| copied.push_str(".optMap(y, [y])"));
        let environment =
            check::Environment::new(check::Library::Stored).variable("x", check::Type::optional(check::Type::Dyn));
        assert!(
            check::check(&copied, &environment).is_err_and(|e| e.contains("too large once its macros are expanded"))
        );
    }

    #[test]
    fn budgets_end_what_runs_too_long() {
        let list = (0..200).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
        let text = format!("[{list}].all(x, [{list}].all(y, [{list}].all(z, x + y + z >= 0)))");
        let mut budget = 1_000_000;
        let result = Program::compile(&text).unwrap().run(&Given(json!({})), &mut budget);
        assert_eq!((result.unwrap_err().as_str(), budget), (eval::TOO_EXPENSIVE, 0));
    }

    /// As upstream's parser counts. Code that is not optimized takes more of a stack than a test has.
    #[test]
    fn what_is_too_deep_or_too_long_is_refused() {
        let thread = std::thread::Builder::new().stack_size(16 << 20).spawn(depths);
        thread.unwrap().join().unwrap();
    }

    fn depths() {
        let repeated = |before: &str, n: usize, after: &str| format!("{}1{}", before.repeat(n), after.repeat(n));
        let limit = "ERROR: <input>:-1:0: expression recursion limit exceeded: 250";
        let faulty = |text: &str| parser::parse(text).map(|_| String::new()).unwrap_or_else(|f| display(text, &f));
        assert_eq!(faulty(&repeated("(", 249, ")")), "");
        assert_eq!(faulty(&repeated("(", 250, ")")), limit);
        assert_eq!(faulty(&repeated("[", 300, "]")), limit);
        let chain = |first: &str, more: &str, n: usize| format!("{first}{}", more.repeat(n));
        for more in [".a", "[0]", ".a(1)", "+a", "*a", "<a"] {
            assert_eq!(faulty(&chain("a", more, 240)), "", "{more}");
            assert_eq!(faulty(&chain("a", more, 300)), limit, "{more}");
            assert_eq!(faulty(&chain("a", more, 15_000)), limit, "{more}");
        }
        assert_eq!(faulty(&chain("a", "&&a", 20_000)), "");
        let both = format!("{}{}{}", "(a<a+".repeat(60), chain("a", ".a", 180), ")".repeat(60));
        assert_eq!(faulty(&both), "ERROR: <input>:-1:0: max recursion depth exceeded");
        let long = "1".repeat(100_001);
        let m = "ERROR: <input>:-1:0: expression code point size exceeds limit: size: 100001, limit 100000";
        assert_eq!(faulty(&long), m);
    }

    #[test]
    fn faults_are_marked() {
        let fault = |at: usize| Fault { at, message: "m".to_owned() };
        assert_eq!(display("", &fault(0)), "ERROR: <input>:1:0: m");
        assert_eq!(display("a", &fault(NOWHERE)), "ERROR: <input>:-1:0: m");
        assert_eq!(display("a\nbc", &fault(3)), "ERROR: <input>:2:2: m\n | bc\n | .^");
        assert_eq!(display("éx", &fault(1)), "ERROR: <input>:1:2: m\n | éx\n | ．^");
    }
}
