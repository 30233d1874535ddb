//! Expressions, as the parser makes them and the evaluator walks them.

use super::value::Val;

#[derive(Clone, Debug)]
pub(super) enum Expression {
    Literal(Val),
    Name {
        name: String,
        at: usize,
    },
    /// `of.name`, `of.?name`. `at` is where the dot stands.
    Field {
        of: Box<Expression>,
        name: String,
        optional: bool,
        /// The name stood in backquotes.
        quoted: bool,
        at: usize,
    },
    /// `of[index]`, `of[?index]`.
    Index {
        of: Box<Expression>,
        index: Box<Expression>,
        optional: bool,
    },
    Call {
        on: Option<Box<Expression>>,
        name: String,
        arguments: Vec<Expression>,
    },
    /// One operator and its operand, or two.
    Operator {
        operator: Operator,
        operands: Vec<Expression>,
    },
    /// Condition, then, else.
    Conditional(Box<[Expression; 3]>),
    /// True: left out where it is an empty optional.
    List(Vec<(bool, Expression)>),
    Map(Vec<(bool, Expression, Expression)>),
    /// `Type.name{field: value}`.
    Message {
        of: String,
        fields: Vec<(bool, String, Expression)>,
    },
    /// What stood in parentheses: no path any more.
    Group(Box<Expression>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Or,
    And,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Not,
    Negate,
}

impl Operator {
    /// Of two operands.
    pub fn of(mark: &str) -> Option<Self> {
        Some(match mark {
            "||" => Operator::Or,
            "&&" => Operator::And,
            "<" => Operator::Less,
            "<=" => Operator::LessOrEqual,
            ">" => Operator::Greater,
            ">=" => Operator::GreaterOrEqual,
            "==" => Operator::Equal,
            "!=" => Operator::NotEqual,
            "in" => Operator::In,
            "+" => Operator::Add,
            "-" => Operator::Subtract,
            "*" => Operator::Multiply,
            "/" => Operator::Divide,
            "%" => Operator::Modulo,
            _ => return None,
        })
    }
}

impl Expression {
    /// What it is made from.
    pub fn parts(&self) -> Vec<&Expression> {
        match self {
            Expression::Literal(_) | Expression::Name { .. } => Vec::new(),
            Expression::Field { of, .. } => vec![of],
            Expression::Index { of, index, .. } => vec![of, index],
            Expression::Call { on, arguments, .. } => on.iter().map(|on| &**on).chain(arguments).collect(),
            Expression::Operator { operands, .. } => operands.iter().collect(),
            Expression::Conditional(parts) => parts.iter().collect(),
            Expression::List(items) => items.iter().map(|(_, e)| e).collect(),
            Expression::Map(entries) => entries.iter().flat_map(|(_, k, v)| [k, v]).collect(),
            Expression::Message { fields, .. } => fields.iter().map(|(_, _, e)| e).collect(),
            Expression::Group(inner) => vec![inner],
        }
    }

    /// `a.b.c`, which may be the name of a type or a function.
    pub fn path(&self) -> Option<String> {
        match self {
            Expression::Name { name, .. } => Some(name.clone()),
            Expression::Field { of, name, optional: false, quoted: false, .. } => {
                Some(format!("{}.{name}", of.path()?))
            }
            _ => None,
        }
    }
}
