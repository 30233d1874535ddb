//! Values of expressions: made from JSON by its schema, compared as CEL compares, told as JSON.
//!
//! Invariant: cheap to clone; nothing in a value changes.

use super::unordered::Unordered;
use isopod_api::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub enum Val {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<[Val]>),
    /// A list of a custom resource that is a set or a map.
    Unordered(Arc<Unordered>),
    Map(Arc<BTreeMap<Key, Val>>),
    Timestamp(Timestamp),
    Duration(SignedDuration),
    Type(Arc<str>),
    Optional(Option<Arc<Val>>),
    Quantity(Arc<Quantity>),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Url(Arc<str>),
    Version(Arc<Version>),
    Format(&'static str),
    /// An object that an expression makes: its type and its fields.
    Message(Arc<str>, Arc<BTreeMap<String, Val>>),
    /// A value with methods that the place of evaluation provides, as `authorizer`.
    Foreign(Arc<dyn Foreign>),
    /// What has no value of its schema's type: whoever reads it fails with this.
    Fault(Arc<str>),
}

/// A value that is not CEL's own.
pub trait Foreign: Send + Sync + std::fmt::Debug {
    fn type_name(&self) -> &'static str;
    /// `None`: there is no such field.
    fn field(&self, _name: &str) -> Option<Result<Val, String>> {
        None
    }
    /// `None`: there is no such method.
    fn call(&self, name: &str, arguments: &[Val]) -> Option<Result<Val, String>>;
}

/// The key of a map. Numbers of different types that are equal are one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Text(Arc<str>),
}

/// A semantic version (semver.org, 2.0.0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub numbers: [u64; 3],
    pub prerelease: Vec<String>,
    pub build: String,
}

impl Version {
    fn order(&self, other: &Self) -> Ordering {
        let by_numbers = self.numbers.cmp(&other.numbers);
        by_numbers.then_with(|| match (self.prerelease.is_empty(), other.prerelease.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            _ => {
                let number = |s: &String| s.parse::<u64>().ok();
                for (a, b) in self.prerelease.iter().zip(&other.prerelease) {
                    let order = match (number(a), number(b)) {
                        (Some(a), Some(b)) => a.cmp(&b),
                        (Some(_), None) => Ordering::Less,
                        (None, Some(_)) => Ordering::Greater,
                        _ => a.cmp(b),
                    };
                    if order != Ordering::Equal {
                        return order;
                    }
                }
                self.prerelease.len().cmp(&other.prerelease.len())
            }
        })
    }
}

impl Key {
    pub fn of(value: &Val) -> Option<Self> {
        Some(match value {
            Val::Bool(b) => Key::Bool(*b),
            Val::Int(i) => Key::Int(*i),
            Val::Uint(u) => i64::try_from(*u).map_or(Key::Uint(*u), Key::Int),
            Val::Double(d) if d.fract() == 0.0 && d.abs() < 9e18 => Key::Int(*d as i64),
            Val::Text(t) => Key::Text(t.clone()),
            _ => return None,
        })
    }

    pub fn value(&self) -> Val {
        match self {
            Key::Bool(b) => Val::Bool(*b),
            Key::Int(i) => Val::Int(*i),
            Key::Uint(u) => Val::Uint(*u),
            Key::Text(t) => Val::Text(t.clone()),
        }
    }

    fn text(&self) -> String {
        match self {
            Key::Bool(b) => b.to_string(),
            Key::Int(i) => i.to_string(),
            Key::Uint(u) => u.to_string(),
            Key::Text(t) => t.to_string(),
        }
    }
}

impl Val {
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Val::Text(text.into())
    }

    pub fn list(items: Vec<Val>) -> Self {
        Val::List(items.into())
    }

    pub fn some(value: Val) -> Self {
        Val::Optional(Some(Arc::new(value)))
    }

    /// The name of its type.
    pub fn type_name(&self) -> &str {
        match self {
            Val::Null => "null_type",
            Val::Bool(_) => "bool",
            Val::Int(_) => "int",
            Val::Uint(_) => "uint",
            Val::Double(_) => "double",
            Val::Text(_) => "string",
            Val::Bytes(_) => "bytes",
            Val::List(_) | Val::Unordered(_) => "list",
            Val::Map(_) => "map",
            Val::Timestamp(_) => "google.protobuf.Timestamp",
            Val::Duration(_) => "google.protobuf.Duration",
            Val::Type(_) => "type",
            Val::Optional(_) => "optional_type",
            Val::Quantity(_) => "kubernetes.Quantity",
            Val::Ip(_) => "net.IP",
            Val::Cidr(..) => "net.CIDR",
            Val::Url(_) => "kubernetes.URL",
            Val::Version(_) => "kubernetes.Semver",
            Val::Format(_) => "kubernetes.NamedFormat",
            Val::Message(name, _) => name,
            Val::Foreign(f) => f.type_name(),
            Val::Fault(_) => "error",
        }
    }

    /// As JSON has it, without a schema.
    pub fn from_json(value: &Value) -> Self {
        match value {
            Value::Null => Val::Null,
            Value::Bool(b) => Val::Bool(*b),
            Value::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(i), _) => Val::Int(i),
                (None, Some(u)) => Val::Uint(u),
                _ => Val::Double(n.as_f64().unwrap_or_default()),
            },
            Value::String(s) => Val::text(s.as_str()),
            Value::Array(items) => Val::List(items.iter().map(Val::from_json).collect()),
            Value::Object(map) => Val::map(map.iter().map(|(k, v)| (k.as_str(), Val::from_json(v)))),
        }
    }

    pub fn map<'a>(entries: impl Iterator<Item = (&'a str, Val)>) -> Self {
        Val::Map(Arc::new(entries.map(|(k, v)| (Key::Text(k.into()), v)).collect()))
    }

    /// As JSON, where it has a form there.
    pub fn to_json(&self) -> Result<Value, String> {
        let none = || Err(format!("unsupported conversion of {} to JSON", self.type_name()));
        Ok(match self {
            Val::Null => Value::Null,
            Val::Bool(b) => json!(b),
            Val::Int(i) => json!(i),
            Val::Uint(u) => json!(u),
            Val::Double(d) => json!(d),
            Val::Text(t) => json!(&**t),
            Val::Bytes(b) => json!(super::functions::base64(b)),
            Val::List(items) => Value::Array(items.iter().map(Val::to_json).collect::<Result<_, _>>()?),
            Val::Unordered(list) => return Val::List(list.items.clone()).to_json(),
            Val::Map(map) => {
                let entries = map.iter().map(|(k, v)| Ok((k.text(), v.to_json()?)));
                Value::Object(entries.collect::<Result<_, String>>()?)
            }
            Val::Message(_, fields) => {
                let entries = fields.iter().map(|(k, v)| Ok((k.clone(), v.to_json()?)));
                Value::Object(entries.collect::<Result<_, String>>()?)
            }
            Val::Optional(Some(value)) => value.to_json()?,
            Val::Optional(None) => Value::Null,
            Val::Timestamp(_) | Val::Duration(_) => json!(super::functions::display(self)),
            Val::Quantity(q) => json!(q.to_string()),
            Val::Ip(ip) => json!(ip.to_string()),
            Val::Url(u) => json!(&**u),
            _ => return none(),
        })
    }

    /// CEL's `==`: numbers by value, lists and maps by what is in them; other types never equal each other.
    pub fn equals(&self, other: &Val) -> bool {
        match (self, other) {
            (Val::Null, Val::Null) => true,
            (Val::Bool(a), Val::Bool(b)) => a == b,
            (Val::Text(a), Val::Text(b)) => a == b,
            (Val::Bytes(a), Val::Bytes(b)) => a == b,
            (Val::Unordered(a), Val::List(b)) => a.equals(b),
            (Val::Unordered(a), Val::Unordered(b)) => a.equals(&b.items),
            (a @ Val::List(_), Val::Unordered(b)) => a.equals(&Val::List(b.items.clone())),
            (Val::List(a), Val::List(b)) => a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b)),
            (Val::Map(a), Val::Map(b)) => {
                a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| v.equals(w)))
            }
            (Val::Type(a), Val::Type(b)) => a == b,
            (Val::Optional(a), Val::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (a, b) => a.is_none() && b.is_none(),
            },
            (Val::Ip(a), Val::Ip(b)) => a == b,
            (Val::Cidr(a, n), Val::Cidr(b, m)) => a == b && n == m,
            (Val::Url(a), Val::Url(b)) => a == b,
            (Val::Format(a), Val::Format(b)) => a == b,
            (Val::Message(a, f), Val::Message(b, g)) => {
                a == b && f.len() == g.len() && f.iter().all(|(k, v)| g.get(k).is_some_and(|w| v.equals(w)))
            }
            _ => self.order(other) == Some(Ordering::Equal),
        }
    }

    /// CEL's `<`. `None`: they cannot be compared.
    pub fn order(&self, other: &Val) -> Option<Ordering> {
        match (self, other) {
            (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
            (Val::Text(a), Val::Text(b)) => Some(a.cmp(b)),
            (Val::Bytes(a), Val::Bytes(b)) => Some(a.cmp(b)),
            (Val::Timestamp(a), Val::Timestamp(b)) => Some(a.cmp(b)),
            (Val::Duration(a), Val::Duration(b)) => Some(a.cmp(b)),
            (Val::Quantity(a), Val::Quantity(b)) => Some(a.cmp(b)),
            (Val::Version(a), Val::Version(b)) => Some(a.order(b)),
            (Val::Int(a), Val::Int(b)) => Some(a.cmp(b)),
            (Val::Uint(a), Val::Uint(b)) => Some(a.cmp(b)),
            (Val::Int(a), Val::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Val::Uint(a), Val::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Val::Double(a), b) => a.partial_cmp(&b.number()?),
            (a, Val::Double(b)) => a.number()?.partial_cmp(b),
            _ => None,
        }
    }

    /// A number, as the nearest double.
    pub fn number(&self) -> Option<f64> {
        match self {
            Val::Int(i) => Some(*i as f64),
            Val::Uint(u) => Some(*u as f64),
            Val::Double(d) => Some(*d),
            _ => None,
        }
    }
}

impl Val {
    /// The same without what its schema says about a list's order.
    pub(super) fn listed(self) -> Self {
        match self {
            Val::Unordered(list) => Val::List(list.items.clone()),
            other => other,
        }
    }

    /// The value, or why there is none.
    pub(super) fn sound(self) -> Result<Self, String> {
        match self {
            Val::Fault(why) => Err(why.to_string()),
            value => Ok(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_equal_across_types() {
        assert!(Val::Int(1).equals(&Val::Double(1.0)) && Val::Uint(1).equals(&Val::Int(1)));
        assert!(!Val::Int(-1).equals(&Val::Uint(u64::MAX)) && !Val::Int(1).equals(&Val::text("1")));
        assert!(!Val::Double(f64::NAN).equals(&Val::Double(f64::NAN)));
        assert_eq!(Key::of(&Val::Uint(1)), Key::of(&Val::Double(1.0)));
        assert_eq!(Val::Int(i64::MAX).order(&Val::Uint(u64::MAX)), Some(Ordering::Less));
    }

    #[test]
    fn json_round_trips() {
        let value = json!({"a": [1, -2, 2.5, "x", null, true], "b": {}});
        assert_eq!(Val::from_json(&value).to_json().unwrap(), value);
    }
}
