//! From text to an [`Expression`], by the grammar of `cel-go/parser/gen/CEL.g4`.

use super::Fault;
use super::ast::{Expression, Operator};
use super::lexer::{Kind, Token, tokens};
use super::literal;
use super::value::Val;

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
/// Deeper nesting is refused, as upstream's parser does.
const MAX_DEPTH: usize = 250;

type Parsed = Result<Expression, Fault>;

pub(super) fn parse(text: &str) -> Parsed {
    let mut parser = Parser { tokens: tokens(text)?, next: 0, depth: 0 };
    let expression = parser.expression()?;
    match parser.peek() {
        t if t.kind == Kind::End => Ok(expression),
        _ => Err(parser.unexpected("<EOF>", parser.after().kind == Kind::End)),
    }
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    depth: usize,
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

    fn expression(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let message = format!("expression recursion limit exceeded: {MAX_DEPTH}");
            return Err(Fault { at: self.peek().at, message });
        }
        let first = self.operators(0)?;
        let whole = if self.takes("?") {
            let yes = self.operators(0)?;
            self.expect(":")?;
            Expression::Conditional(Box::new([first, yes, self.expression()?]))
        } else {
            first
        };
        self.depth -= 1;
        Ok(whole)
    }

    fn operators(&mut self, level: usize) -> Parsed {
        let Some(marks) = OPERATORS.get(level) else { return self.unary() };
        let mut left = self.operators(level + 1)?;
        while let Some(mark) = marks.iter().find(|m| self.takes(m)) {
            let right = self.operators(level + 1)?;
            let operator = Operator::of(mark).expect("the marks above are operators");
            left = Expression::Operator { operator, operands: vec![left, right] };
        }
        Ok(left)
    }

    fn unary(&mut self) -> Parsed {
        let (mark, operator) = if self.peek().is("!") { ("!", Operator::Not) } else { ("-", Operator::Negate) };
        let mut times = 0;
        while self.takes(mark) {
            times += 1;
        }
        // The least integer is one literal: its digits alone are too large.
        if mark == "-" && times > 0 && self.peek().kind == Kind::Int {
            let t = self.peek().clone();
            if let Some(number) = literal::integer(&t.text, true) {
                self.take();
                let operand = self.members(Expression::Literal(Val::Int(number)))?;
                return Ok(prefixed(operator, times - 1, operand));
            }
        }
        let operand = self.primary()?;
        let operand = self.members(operand)?;
        Ok(prefixed(operator, times, operand))
    }

    /// Fields, elements and calls of an operand.
    fn members(&mut self, mut operand: Expression) -> Parsed {
        loop {
            let at = self.peek().at;
            operand = if self.takes(".") {
                self.member(operand, at)?
            } else if self.takes("[") {
                let optional = self.takes("?");
                let index = self.expression()?;
                self.expect("]")?;
                Expression::Index { of: Box::new(operand), index: Box::new(index), optional }
            } else if let Some(of) = operand.path().filter(|_| self.peek().is("{")) {
                self.take();
                Expression::Message { of, fields: self.entries("}", Self::field_entry)? }
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
                self.take();
                let arguments = self.entries(")", Self::expression)?;
                Ok(Expression::Call { on: Some(Box::new(of)), name: t.text, arguments })
            }
            Kind::Identifier => Ok(Expression::Field { of: Box::new(of), name: t.text, optional, quoted: false, at }),
            Kind::Quoted => {
                let name = t.text.trim_matches('`').to_owned();
                Ok(Expression::Field { of: Box::new(of), name, optional, quoted: true, at })
            }
            _ => {
                Err(Fault { at: t.at, message: format!("Syntax error: no viable alternative at input '.{}'", t.text) })
            }
        }
    }

    fn primary(&mut self) -> Parsed {
        if !self.peek().begins_operand() || self.peek().is("!") || self.peek().is("-") {
            return Err(self.unexpected(OPERAND, self.after().begins_operand()));
        }
        let t = self.take();
        match t.kind {
            Kind::Identifier => self.named(t),
            Kind::Mark => match t.text.as_str() {
                "(" => {
                    let inner = self.expression()?;
                    self.expect(")")?;
                    Ok(Expression::Group(Box::new(inner)))
                }
                "[" => Ok(Expression::List(self.entries("]", Self::optional_entry)?)),
                "{" => Ok(Expression::Map(self.entries("}", Self::map_entry)?)),
                _ => match self.peek().kind {
                    Kind::Identifier => {
                        let t = self.take();
                        self.named(t)
                    }
                    _ => Err(self.unexpected("IDENTIFIER", self.after().kind == Kind::Identifier)),
                },
            },
            _ => match literal::value(&t)? {
                Some(value) => Ok(Expression::Literal(value)),
                None => Err(self.unexpected(OPERAND, false)),
            },
        }
    }

    fn named(&mut self, t: Token) -> Parsed {
        if RESERVED.contains(&t.text.as_str()) {
            return Err(Fault { at: t.at, message: format!("reserved identifier: {}", t.text) });
        }
        if self.takes("(") {
            let arguments = self.entries(")", Self::expression)?;
            return Ok(Expression::Call { on: None, name: t.text, arguments });
        }
        Ok(Expression::Name { name: t.text, at: t.at })
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
        self.expect(close)?;
        Ok(all)
    }

    fn optional_entry(&mut self) -> Result<(bool, Expression), Fault> {
        let optional = self.takes("?");
        Ok((optional, self.expression()?))
    }

    fn map_entry(&mut self) -> Result<(bool, Expression, Expression), Fault> {
        let (optional, key) = self.optional_entry()?;
        self.expect(":")?;
        Ok((optional, key, self.expression()?))
    }

    fn field_entry(&mut self) -> Result<(bool, String, Expression), Fault> {
        let optional = self.takes("?");
        if !matches!(self.peek().kind, Kind::Identifier | Kind::Quoted) {
            return Err(self.unexpected("{IDENTIFIER, ESC_IDENTIFIER}", self.after().kind == Kind::Identifier));
        }
        let name = self.take().text.trim_matches('`').to_owned();
        self.expect(":")?;
        Ok((optional, name, self.expression()?))
    }
}

/// The operand with an operator before it, so many times.
fn prefixed(operator: Operator, times: usize, operand: Expression) -> Expression {
    // Two of them say nothing, to syntax and value alike.
    match times % 2 {
        0 => operand,
        _ => Expression::Operator { operator, operands: vec![operand] },
    }
}
