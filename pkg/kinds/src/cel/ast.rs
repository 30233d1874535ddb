//! Expressions, as the parser makes them and the evaluator walks them.

use super::value::Val;

#[derive(Clone, Debug)]
pub(super) enum Expression {
    /// `at`, here and below, is the character that cel-go says it stands at: of a call its parenthesis, of an operator its mark.
    Literal {
        value: Val,
        at: usize,
    },
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
        /// Where the name stands.
        name_at: usize,
    },
    /// `of[index]`, `of[?index]`.
    Index {
        of: Box<Expression>,
        index: Box<Expression>,
        optional: bool,
        at: usize,
    },
    Call {
        on: Option<Box<Expression>>,
        name: String,
        arguments: Vec<Expression>,
        at: usize,
    },
    /// One operator and its operand, or two.
    Operator {
        operator: Operator,
        operands: Vec<Expression>,
        at: usize,
    },
    /// Condition, then, else.
    Conditional {
        parts: Box<[Expression; 3]>,
        at: usize,
    },
    /// True: left out where it is an empty optional.
    List {
        items: Vec<(bool, Expression)>,
        at: usize,
    },
    Map {
        entries: Vec<Entry<Expression>>,
        at: usize,
    },
    /// `Type.name{field: value}`.
    Message {
        of: String,
        fields: Vec<Entry<String>>,
        at: usize,
    },
    /// What stood in parentheses: no path any more.
    Group(Box<Expression>),
}

/// An entry of a map or a field of a message; `at` is its colon.
#[derive(Clone, Debug)]
pub(super) struct Entry<K> {
    /// Left out where it is an empty optional.
    pub optional: bool,
    pub key: K,
    pub value: Expression,
    pub at: usize,
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
    /// cel-go's name of the function that it is.
    pub fn function(self) -> &'static str {
        match self {
            Operator::Or => "_||_",
            Operator::And => "_&&_",
            Operator::Less => "_<_",
            Operator::LessOrEqual => "_<=_",
            Operator::Greater => "_>_",
            Operator::GreaterOrEqual => "_>=_",
            Operator::Equal => "_==_",
            Operator::NotEqual => "_!=_",
            Operator::In => "@in",
            Operator::Add => "_+_",
            Operator::Subtract => "_-_",
            Operator::Multiply => "_*_",
            Operator::Divide => "_/_",
            Operator::Modulo => "_%_",
            Operator::Not => "!_",
            Operator::Negate => "-_",
        }
    }

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
            Expression::Literal { .. } | Expression::Name { .. } => Vec::new(),
            Expression::Field { of, .. } => vec![of],
            Expression::Index { of, index, .. } => vec![of, index],
            Expression::Call { on, arguments, .. } => on.iter().map(|on| &**on).chain(arguments).collect(),
            Expression::Operator { operands, .. } => operands.iter().collect(),
            Expression::Conditional { parts, .. } => parts.iter().collect(),
            Expression::List { items, .. } => items.iter().map(|(_, e)| e).collect(),
            Expression::Map { entries, .. } => entries.iter().flat_map(|e| [&e.key, &e.value]).collect(),
            Expression::Message { fields, .. } => fields.iter().map(|e| &e.value).collect(),
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
