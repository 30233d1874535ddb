//! From text to an [`Expression`], by the grammar of `cel-go/parser/gen/CEL.g4`.

use super::Fault;
use super::lexer::{Kind, Token, tokens};

/// An expression as far as names matter.
#[derive(Debug)]
pub(super) enum Expression {
    Name {
        name: String,
        at: usize,
    },
    /// `at` is where the dot stands.
    Field {
        of: Box<Expression>,
        name: String,
        at: usize,
    },
    Call {
        on: Option<Box<Expression>>,
        name: String,
        arguments: Vec<Expression>,
    },
    /// Anything else: operators, literals, lists, maps, messages.
    Parts(Vec<Expression>),
}

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
            Expression::Parts(vec![first, yes, self.expression()?])
        } else {
            first
        };
        self.depth -= 1;
        Ok(whole)
    }

    fn operators(&mut self, level: usize) -> Parsed {
        let Some(marks) = OPERATORS.get(level) else { return self.unary() };
        let mut parts = vec![self.operators(level + 1)?];
        while marks.iter().any(|m| self.takes(m)) {
            parts.push(self.operators(level + 1)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expression::Parts(parts) })
    }

    fn unary(&mut self) -> Parsed {
        let mark = if self.peek().is("!") { "!" } else { "-" };
        while self.takes(mark) {}
        let mut operand = self.primary()?;
        loop {
            let at = self.peek().at;
            operand = if self.takes(".") {
                self.member(operand, at)?
            } else if self.takes("[") {
                self.takes("?");
                let index = self.expression()?;
                self.expect("]")?;
                Expression::Parts(vec![operand, index])
            } else if self.peek().is("{") && is_path(&operand) {
                self.take();
                Expression::Parts(self.entries("}", Self::field_entry)?)
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
                let arguments = self.entries(")", |p| Ok(vec![p.expression()?]))?;
                Ok(Expression::Call { on: Some(Box::new(of)), name: t.text, arguments })
            }
            Kind::Identifier => Ok(Expression::Field { of: Box::new(of), name: t.text, at }),
            // Names in backquotes are no fields of schemas that could be looked up as they stand.
            Kind::Quoted => Ok(Expression::Parts(vec![of])),
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
                    // What stands in parentheses is no path any more.
                    Ok(Expression::Parts(vec![inner]))
                }
                "[" => Ok(Expression::Parts(self.entries("]", Self::optional_entry)?)),
                "{" => Ok(Expression::Parts(self.entries("}", Self::map_entry)?)),
                _ => match self.peek().kind {
                    Kind::Identifier => {
                        let t = self.take();
                        self.named(t)
                    }
                    _ => Err(self.unexpected("IDENTIFIER", self.after().kind == Kind::Identifier)),
                },
            },
            _ => Ok(Expression::Parts(Vec::new())),
        }
    }

    fn named(&mut self, t: Token) -> Parsed {
        if RESERVED.contains(&t.text.as_str()) {
            return Err(Fault { at: t.at, message: format!("reserved identifier: {}", t.text) });
        }
        if self.takes("(") {
            let arguments = self.entries(")", |p| Ok(vec![p.expression()?]))?;
            return Ok(Expression::Call { on: None, name: t.text, arguments });
        }
        Ok(Expression::Name { name: t.text, at: t.at })
    }

    /// Entries between commas, up to `close`; lists, maps and messages may end in a comma.
    fn entries(
        &mut self,
        close: &str,
        entry: impl Fn(&mut Self) -> Result<Vec<Expression>, Fault>,
    ) -> Result<Vec<Expression>, Fault> {
        let mut all = Vec::new();
        while !self.peek().is(close) {
            all.extend(entry(self)?);
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

    fn optional_entry(&mut self) -> Result<Vec<Expression>, Fault> {
        self.takes("?");
        Ok(vec![self.expression()?])
    }

    fn map_entry(&mut self) -> Result<Vec<Expression>, Fault> {
        let mut entry = self.optional_entry()?;
        self.expect(":")?;
        entry.push(self.expression()?);
        Ok(entry)
    }

    fn field_entry(&mut self) -> Result<Vec<Expression>, Fault> {
        self.takes("?");
        if !matches!(self.peek().kind, Kind::Identifier | Kind::Quoted) {
            return Err(self.unexpected("{IDENTIFIER, ESC_IDENTIFIER}", self.after().kind == Kind::Identifier));
        }
        self.take();
        self.expect(":")?;
        Ok(vec![self.expression()?])
    }
}

/// `a.b.c`, which may be the name of a message.
pub(super) fn is_path(e: &Expression) -> bool {
    match e {
        Expression::Name { .. } => true,
        Expression::Field { of, .. } => is_path(of),
        _ => false,
    }
}
