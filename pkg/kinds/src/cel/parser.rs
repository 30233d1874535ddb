//! From text to an [`Expression`], by the grammar of `cel-go/parser/gen/CEL.g4`.

use super::ast::{Entry, Expression, Operator};
use super::lexer::{Kind, Token, tokens};
use super::literal;
use super::{Fault, NOWHERE};

const OPERAND: &str =
    "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
/// Words that no name may be, besides those that are tokens.
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];
/// Operators of two operands, the loosest first.
const OPERATORS: [&[&str]; 5] =
    [&["||"], &["&&"], &["<", "<=", ">=", ">", "==", "!=", "in"], &["+", "-"], &["*", "/", "%"]];
/// The level of comparisons.
const COMPARISON: usize = 2;
/// Deeper nesting is refused, as upstream's parser does.
const MAX_DEPTH: usize = 250;
/// Longer texts are refused, in characters.
const MAX_LENGTH: usize = 100_000;

type Parsed = Result<Expression, Fault>;

pub(super) fn parse(text: &str) -> Parsed {
    let whole = |message: String| Fault { at: NOWHERE, message };
    let length = text.chars().count();
    if length > MAX_LENGTH {
        let m = format!("expression code point size exceeds limit: size: {length}, limit {MAX_LENGTH}");
        return Err(whole(m));
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0, depths: Depths::default() };
    let expression = parser.expression()?;
    match parser.peek() {
        t if t.kind == Kind::End && visits(&expression) > MAX_DEPTH => {
            Err(whole("max recursion depth exceeded".into()))
        }
        t if t.kind == Kind::End => Ok(expression),
        _ => Err(parser.unexpected("<EOF>", parser.after().kind == Kind::End)),
    }
}

/// How deep what upstream counts while it walks a parsed text lies in each other.
fn visits(e: &Expression) -> usize {
    let counts = match e {
        Expression::Conditional { .. } | Expression::Field { .. } | Expression::Index { .. } => true,
        Expression::Call { on, .. } => on.is_some(),
        Expression::Operator { operator, .. } => {
            !matches!(operator, Operator::And | Operator::Or | Operator::Not | Operator::Negate)
        }
        _ => false,
    };
    usize::from(counts) + e.parts().into_iter().map(visits).max().unwrap_or(0)
}

/// The rules of the grammar that contain themselves. A chain of operators or members counts as nesting: the rule for one more
/// begins with the same rule.
#[derive(Clone, Copy)]
enum Rule {
    Expression,
    Relation,
    Calculation,
    Member,
}

/// How often each rule is open.
type Depths = [usize; 4];

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    depths: Depths,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn after(&self) -> &Token {
        &self.tokens[(self.next + 1).min(self.tokens.len() - 1)]
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    /// Takes the mark if it comes next.
    fn takes(&mut self, mark: &str) -> bool {
        let is = self.peek().is(mark);
        self.next += usize::from(is);
        is
    }

    /// One token too much, or another than could stand here.
    fn unexpected(&self, wanted: &str, one_too_much: bool) -> Fault {
        let t = self.peek();
        let what = if one_too_much { "extraneous" } else { "mismatched" };
        Fault { at: t.at, message: format!("Syntax error: {what} input '{}' expecting {wanted}", t.text) }
    }

    fn expect(&mut self, mark: &str) -> Result<(), Fault> {
        if self.takes(mark) {
            return Ok(());
        }
        let t = self.peek();
        let closes = t.kind == Kind::End || matches!(t.text.as_str(), ")" | "]" | "}" | ",");
        if closes && !self.after().is(mark) {
            return Err(Fault { at: t.at, message: format!("Syntax error: missing '{mark}' at '{}'", t.text) });
        }
        Err(self.unexpected(&format!("'{mark}'"), self.after().is(mark)))
    }

    fn enter(&mut self, rule: Rule) -> Result<(), Fault> {
        self.depths[rule as usize] += 1;
        if self.depths[rule as usize] <= MAX_DEPTH {
            return Ok(());
        }
        Err(Fault { at: NOWHERE, message: format!("expression recursion limit exceeded: {MAX_DEPTH}") })
    }

    fn expression(&mut self) -> Parsed {
        let before = self.depths;
        self.enter(Rule::Expression)?;
        let mut whole = self.terms(0)?;
        let at = self.peek().at;
        if self.takes("?") {
            let yes = self.terms(0)?;
            self.expect_colon()?;
            whole = Expression::Conditional { parts: Box::new([whole, yes, self.expression()?]), at };
        }
        self.depths = before;
        Ok(whole)
    }

    /// Terms between `||` (0) or between `&&` (1), as the balanced tree that cel-go makes of them.
    fn terms(&mut self, level: usize) -> Parsed {
        let operator = if level == 0 { Operator::Or } else { Operator::And };
        let (mut terms, mut places) = (Vec::new(), Vec::new());
        loop {
            terms.push(if level == 0 { self.terms(1)? } else { self.relation()? });
            let at = self.peek().at;
            if !self.takes(OPERATORS[level][0]) {
                return Ok(balanced(operator, &mut terms.into_iter(), &places));
            }
            places.push(at);
        }
    }

    /// Comparisons, and what is calculated between them.
    fn relation(&mut self) -> Parsed {
        let before = self.depths;
        self.enter(Rule::Relation)?;
        self.enter(Rule::Calculation)?;
        let whole = self.binary(COMPARISON)?;
        self.depths = before;
        Ok(whole)
    }

    /// A chain of operators of `level` and of those that bind tighter. Each is one more of its rule, and so is what stands to its
    /// right.
    fn binary(&mut self, level: usize) -> Parsed {
        let begun = self.depths;
        let mut left = self.unary()?;
        loop {
            let at = self.peek().at;
            let mark = self.peek();
            let found = (level..OPERATORS.len()).find_map(|l| Some((l, *OPERATORS[l].iter().find(|m| mark.is(m))?)));
            let Some((at_level, mark)) = found else { return Ok(left) };
            self.next += 1;
            let compares = at_level == COMPARISON;
            let rule = if compares { Rule::Relation } else { Rule::Calculation };
            self.enter(rule)?;
            if compares {
                // What was calculated before is over.
                self.depths[Rule::Calculation as usize] = begun[Rule::Calculation as usize] - 1;
            }
            let before = self.depths;
            self.enter(rule)?;
            if compares {
                self.enter(Rule::Calculation)?;
            }
            let right = self.binary(at_level + 1)?;
            self.depths = before;
            let operator = Operator::of(mark).expect("the marks above are operators");
            left = Expression::Operator { operator, operands: vec![left, right], at };
        }
    }

    fn unary(&mut self) -> Parsed {
        let (mark, operator) = if self.peek().is("!") { ("!", Operator::Not) } else { ("-", Operator::Negate) };
        let at = self.peek().at;
        let mut times = 0;
        while self.takes(mark) {
            times += 1;
        }
        let before = self.depths;
        self.enter(Rule::Member)?;
        // One minus belongs to a number: the digits of the least integer alone are too large.
        let (operand, times) = if mark == "-" && times == 1 && matches!(self.peek().kind, Kind::Int | Kind::Float) {
            let t = self.take();
            let value = literal::negative(&Token { at, ..t })?;
            (Expression::Literal { value, at }, 0)
        } else {
            (self.primary()?, times)
        };
        let operand = self.members(operand)?;
        self.depths = before;
        Ok(prefixed(operator, times, operand, at))
    }

    /// Fields, elements and calls of an operand.
    fn members(&mut self, mut operand: Expression) -> Parsed {
        loop {
            let at = self.peek().at;
            if matches!(self.peek().text.as_str(), "." | "[") {
                self.enter(Rule::Member)?;
            }
            operand = if self.takes(".") {
                self.member(operand, at)?
            } else if self.takes("[") {
                let optional = self.takes("?");
                let index = self.expression()?;
                self.expect("]")?;
                Expression::Index { of: Box::new(operand), index: Box::new(index), optional, at }
            } else if let Some(of) = operand.path().filter(|_| self.peek().is("{")) {
                self.take();
                Expression::Message { of, fields: self.entries("}", Self::field_entry)?, at }
            } else {
                return Ok(operand);
            };
        }
    }

    /// What comes after a dot.
    fn member(&mut self, of: Expression, at: usize) -> Parsed {
        let optional = self.takes("?");
        let t = self.take();
        match t.kind {
            Kind::Identifier if self.peek().is("(") && !optional => {
                let at = self.take().at;
                let arguments = self.entries(")", Self::expression)?;
                Ok(Expression::Call { on: Some(Box::new(of)), name: t.text, arguments, at })
            }
            Kind::Identifier => {
                let (of, name_at) = (Box::new(of), t.at);
                Ok(Expression::Field { of, name: t.text, optional, quoted: false, at, name_at })
            }
            Kind::Quoted => {
                let name = t.text.trim_matches('`').to_owned();
                Ok(Expression::Field { of: Box::new(of), name, optional, quoted: true, at, name_at: t.at })
            }
            kind => {
                let text = if kind == Kind::End { "" } else { &t.text };
                Err(Fault { at: t.at, message: format!("Syntax error: no viable alternative at input '.{text}'") })
            }
        }
    }

    fn primary(&mut self) -> Parsed {
        if !self.peek().begins_operand() || self.peek().is("!") || self.peek().is("-") {
            return Err(self.unexpected(OPERAND, self.after().begins_operand()));
        }
        let t = self.take();
        match t.kind {
            Kind::Identifier => self.named("", t),
            Kind::Mark => match t.text.as_str() {
                "(" => {
                    let inner = self.expression()?;
                    self.expect(")")?;
                    Ok(Expression::Group(Box::new(inner)))
                }
                "[" => Ok(Expression::List { items: self.entries("]", Self::optional_entry)?, at: t.at }),
                "{" => Ok(Expression::Map { entries: self.entries("}", Self::map_entry)?, at: t.at }),
                _ => match self.peek().kind {
                    Kind::Identifier => {
                        let t = self.take();
                        self.named(".", t)
                    }
                    _ => Err(self.unexpected("IDENTIFIER", self.after().kind == Kind::Identifier)),
                },
            },
            _ => match literal::value(&t)? {
                Some(value) => Ok(Expression::Literal { value, at: t.at }),
                None => Err(self.unexpected(OPERAND, false)),
            },
        }
    }

    /// A name, or a call; `lead` is a dot that says that it is no name which a macro gave.
    fn named(&mut self, lead: &str, t: Token) -> Parsed {
        if RESERVED.contains(&t.text.as_str()) {
            return Err(Fault { at: t.at, message: format!("reserved identifier: {}", t.text) });
        }
        let name = format!("{lead}{}", t.text);
        let at = self.peek().at;
        if self.takes("(") {
            let arguments = self.entries(")", Self::expression)?;
            return Ok(Expression::Call { on: None, name, arguments, at });
        }
        Ok(Expression::Name { name, at: t.at })
    }

    /// Entries between commas, up to `close`; lists, maps and messages may end in a comma.
    fn entries<T>(&mut self, close: &str, entry: impl Fn(&mut Self) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
        let mut all = Vec::new();
        while !self.peek().is(close) {
            all.push(entry(self)?);
            if !self.takes(",") {
                break;
            }
            if close == ")" && self.peek().is(close) {
                return Err(self.unexpected(OPERAND, false));
            }
        }
        if close == ")" {
            self.expect(close)?;
        } else if !self.takes(close) {
            let t = self.after();
            return Err(self.unexpected(&format!("{{'{close}', ','}}"), t.is(close) || t.is(",")));
        }
        Ok(all)
    }

    /// A colon, before what must be an operand.
    fn expect_colon(&mut self) -> Result<(), Fault> {
        if self.takes(":") {
            return Ok(());
        }
        let t = self.peek();
        if t.begins_operand() {
            return Err(Fault { at: t.at, message: format!("Syntax error: missing ':' at '{}'", t.text) });
        }
        Err(self.unexpected("':'", self.after().is(":")))
    }

    fn optional_entry(&mut self) -> Result<(bool, Expression), Fault> {
        let optional = self.takes("?");
        Ok((optional, self.expression()?))
    }

    fn map_entry(&mut self) -> Result<Entry<Expression>, Fault> {
        let (optional, key) = self.optional_entry()?;
        let at = self.peek().at;
        self.expect_colon()?;
        Ok(Entry { optional, key, value: self.expression()?, at })
    }

    fn field_entry(&mut self) -> Result<Entry<String>, Fault> {
        let optional = self.takes("?");
        if !matches!(self.peek().kind, Kind::Identifier | Kind::Quoted) {
            return Err(self.unexpected("{IDENTIFIER, ESC_IDENTIFIER}", self.after().kind == Kind::Identifier));
        }
        let key = self.take().text.trim_matches('`').to_owned();
        let at = self.peek().at;
        self.expect_colon()?;
        Ok(Entry { optional, key, value: self.expression()?, at })
    }
}

/// The operand with an operator before it, so many times.
fn prefixed(operator: Operator, times: usize, operand: Expression, at: usize) -> Expression {
    // Two of them say nothing, to syntax and value alike.
    match times % 2 {
        0 => operand,
        _ => Expression::Operator { operator, operands: vec![operand], at },
    }
}

/// One more term than places, which are where the operators stand.
fn balanced(operator: Operator, terms: &mut impl Iterator<Item = Expression>, places: &[usize]) -> Expression {
    if places.is_empty() {
        return terms.next().expect("there is one more term than operators");
    }
    let middle = places.len() / 2;
    let left = balanced(operator, terms, &places[..middle]);
    let right = balanced(operator, terms, &places[middle + 1..]);
    Expression::Operator { operator, operands: vec![left, right], at: places[middle] }
}
