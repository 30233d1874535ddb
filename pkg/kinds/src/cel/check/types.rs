//! Types of expressions, as cel-go's checker has them (`common/types`, `checker/format.go`).

use std::fmt;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    Dyn,
    /// Of what is wrong already; it fits everywhere, so that one mistake is told once.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Timestamp,
    Duration,
    Any,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    /// A type of a library, maybe with parameters: `optional_type(int)`, `net.IP`.
    Opaque(Arc<str>, Arc<[Type]>),
    /// An object with fields, by the name under which an environment declares it.
    Object(Arc<str>),
    /// The type of a type.
    Type(Option<Arc<Type>>),
    /// A type that stands for another one.
    Param(Arc<str>),
    /// A scalar that may be null (`google.protobuf.Int64Value`).
    Wrapper(Arc<Type>),
}

const OPTIONAL: &str = "optional_type";

impl Type {
    pub fn list(item: Type) -> Self {
        Type::List(Arc::new(item))
    }

    pub fn map(key: Type, value: Type) -> Self {
        Type::Map(Arc::new(key), Arc::new(value))
    }

    pub fn optional(value: Type) -> Self {
        Type::Opaque(OPTIONAL.into(), Arc::new([value]))
    }

    pub fn object(name: &str) -> Self {
        Type::Object(name.into())
    }

    /// Of a variable that comes to it (`convertCelTypeToDeclType`): what fields objects have is forgotten.
    #[must_use]
    pub fn of_variable(&self) -> Type {
        match self {
            Type::Bool | Type::Bytes | Type::Double | Type::Duration | Type::Int | Type::Null => self.clone(),
            Type::Text | Type::Timestamp | Type::Uint | Type::Any => self.clone(),
            Type::List(item) => Type::list(item.of_variable()),
            Type::Map(key, value) => Type::map(key.of_variable(), value.of_variable()),
            _ => Type::Dyn,
        }
    }

    /// The type inside of an optional.
    pub fn of_optional(&self) -> Option<&Type> {
        match self {
            Type::Opaque(name, parts) if &**name == OPTIONAL => parts.first(),
            _ => None,
        }
    }

    pub(super) fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Any)
    }

    /// The name that values of it have when they are evaluated.
    pub(super) fn name(&self) -> &str {
        match self {
            Type::Dyn => "dyn",
            Type::Error => "error",
            Type::Null => "null_type",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::Text => "string",
            Type::Bytes => "bytes",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::Duration => "google.protobuf.Duration",
            Type::Any => "google.protobuf.Any",
            Type::List(_) => "list",
            Type::Map(..) => "map",
            Type::Opaque(name, _) | Type::Object(name) | Type::Param(name) => name,
            Type::Type(_) => "type",
            Type::Wrapper(inner) => inner.name(),
        }
    }

    pub(super) fn parts(&self) -> Vec<&Type> {
        match self {
            Type::List(item) => vec![item],
            Type::Map(key, value) => vec![key, value],
            Type::Opaque(_, parts) => parts.iter().collect(),
            Type::Type(Some(of)) => vec![of],
            _ => Vec::new(),
        }
    }

    /// As errors of the checker show it.
    pub(super) fn shown(&self) -> String {
        match self {
            Type::Any => "any".into(),
            Type::Duration => "duration".into(),
            Type::Error => "!error!".into(),
            Type::Null => "null".into(),
            Type::Timestamp => "timestamp".into(),
            _ => self.written(Type::shown),
        }
    }

    fn written(&self, part: impl Fn(&Type) -> String) -> String {
        match self {
            Type::Wrapper(inner) => format!("wrapper({})", inner.name()),
            _ if self.parts().is_empty() => self.name().to_owned(),
            _ => format!("{}({})", self.name(), self.parts().into_iter().map(part).collect::<Vec<_>>().join(", ")),
        }
    }

    /// Whether they are the same but for the names of parameters.
    pub(super) fn is_equivalent(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Param(_), Type::Param(_)) => true,
            _ => {
                let (own, others) = (self.parts(), other.parts());
                std::mem::discriminant(self) == std::mem::discriminant(other)
                    && self.name() == other.name()
                    && own.len() == others.len()
                    && own.iter().zip(others).all(|(a, b)| a.is_equivalent(b))
            }
        }
    }
}

/// As what an expression must evaluate to is told.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Param(name) => write!(f, "<{name}>"),
            _ => f.write_str(&self.written(Type::to_string)),
        }
    }
}

/// A type as `functions.txt` spells it: `map(K,V)`, `@kubernetes.Quantity` for an object. What starts with a capital is a
/// parameter.
pub(super) fn parse(text: &str) -> Type {
    let (name, inner) = match text.split_once('(') {
        Some((name, rest)) => (name, rest.strip_suffix(')').unwrap_or(rest)),
        None => (text, ""),
    };
    let parts: Vec<Type> = split(inner).into_iter().map(parse).collect();
    match (name, &parts[..]) {
        ("dyn", _) => Type::Dyn,
        ("any" | "google.protobuf.Any", _) => Type::Any,
        ("null_type", _) => Type::Null,
        ("bool", _) => Type::Bool,
        ("int", _) => Type::Int,
        ("uint", _) => Type::Uint,
        ("double", _) => Type::Double,
        ("string", _) => Type::Text,
        ("bytes", _) => Type::Bytes,
        ("timestamp", _) => Type::Timestamp,
        ("duration", _) => Type::Duration,
        ("list", [item]) => Type::list(item.clone()),
        ("map", [key, value]) => Type::map(key.clone(), value.clone()),
        ("type", [of]) => Type::Type(Some(Arc::new(of.clone()))),
        ("type", []) => Type::Type(None),
        (name, _) if name.starts_with('@') => Type::object(&name[1..]),
        (name, []) if name.starts_with(|c: char| c.is_ascii_uppercase()) => Type::Param(name.into()),
        (name, _) => Type::Opaque(name.into(), parts.into()),
    }
}

/// At the commas that stand in no parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    if from < text.len() {
        parts.push(&text[from..]);
    }
    parts
}
