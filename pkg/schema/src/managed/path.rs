//! Path elements: how a child of a value is named, in text (error messages) and as a key of `FieldsV1`.
//!
//! Invariant: elements have a total order, that of structured-merge-diff; numbers compare by value, so `1` and `1.0` are one.

use serde::Serialize;
use serde_json::{Number, Value};
use std::cmp::Ordering;
use std::fmt;

/// The name of a child.
#[derive(Clone, Debug)]
pub enum PathElement {
    /// A field of a struct or a key of a map.
    Field(Box<str>),
    /// An item of a map list by the values of its keys, sorted by name.
    Key(Box<[(Box<str>, Value)]>),
    /// An item of a set list by its value.
    Value(Value),
    /// An item of an atomic list.
    Index(i64),
}

/// From the object down to one of its fields.
pub type Path = Vec<PathElement>;

impl PathElement {
    pub fn field(name: &str) -> Self {
        PathElement::Field(name.into())
    }

    pub fn key(mut fields: Vec<(Box<str>, Value)>) -> Self {
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        PathElement::Key(fields.into())
    }

    /// The key in `FieldsV1`: `f:name`, `k:{"name":"x"}`, `v:"x"`, `i:0`.
    pub fn encode(&self) -> String {
        match self {
            PathElement::Field(name) => ["f:", name].concat(),
            PathElement::Key(fields) => {
                let mut text = String::from("k:{");
                for (i, (name, value)) in fields.iter().enumerate() {
                    if i > 0 {
                        text.push(',');
                    }
                    text.push_str(&go_json(&**name));
                    text.push(':');
                    text.push_str(&go_json(value));
                }
                text.push('}');
                text
            }
            PathElement::Value(v) => format!("v:{}", go_json(v)),
            PathElement::Index(i) => format!("i:{i}"),
        }
    }

    /// Reads a key of `FieldsV1`. `None`: of a kind that is not known, which a later version may write.
    pub fn decode(text: &str) -> Result<Option<Self>, String> {
        if text.len() < 2 {
            return Err("key must be 2 characters long:".into());
        }
        let Some((kind, rest)) = text.split_once(':').filter(|(k, _)| k.len() == 1) else {
            return Err(format!("missing colon: {text}"));
        };
        let json = || serde_json::from_str::<Value>(rest).map_err(|e| e.to_string());
        Ok(Some(match kind {
            "f" => PathElement::field(rest),
            "v" => PathElement::Value(json()?),
            "k" => match json()? {
                Value::Object(map) => PathElement::Key(map.into_iter().map(|(k, v)| (k.into(), v)).collect()),
                other => return Err(format!("a key must be an object, not {other}")),
            },
            "i" => PathElement::Index(rest.parse().map_err(|e| format!("{e}: {rest}"))?),
            _ => return Ok(None),
        }))
    }

    fn rank(&self) -> u8 {
        match self {
            PathElement::Field(_) => 0,
            PathElement::Key(_) => 1,
            PathElement::Value(_) => 2,
            PathElement::Index(_) => 3,
        }
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (PathElement::Field(a), PathElement::Field(b)) => a.cmp(b),
            (PathElement::Key(a), PathElement::Key(b)) => {
                let pairs = a.iter().zip(b.iter());
                let differs =
                    pairs.map(|(x, y)| x.0.cmp(&y.0).then_with(|| compare_values(&x.1, &y.1))).find(|o| o.is_ne());
                differs.unwrap_or_else(|| a.len().cmp(&b.len()))
            }
            (PathElement::Value(a), PathElement::Value(b)) => compare_values(a, b),
            (PathElement::Index(a), PathElement::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for PathElement {}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathElement::Field(name) => write!(f, ".{name}"),
            PathElement::Key(fields) => {
                f.write_str("[")?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    write!(f, "{comma}{name}={value}")?;
                }
                f.write_str("]")
            }
            PathElement::Value(value) => write!(f, "[={value}]"),
            PathElement::Index(i) => write!(f, "[{i}]"),
        }
    }
}

/// A path as text: `.spec.containers[name="web"].image`.
pub(super) fn text(path: &[PathElement]) -> String {
    path.iter().map(PathElement::to_string).collect()
}

/// JSON as Go's encoder writes it, with `<`, `>` and `&` escaped. In JSON they stand in strings only.
pub(super) fn go_json(value: &(impl Serialize + ?Sized)) -> String {
    let text = serde_json::to_string(value).expect("a JSON value always encodes");
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return text;
    }
    text.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

fn kind(value: &Value) -> u8 {
    match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    }
}

/// A total order of values.
pub(super) fn compare_values(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare_numbers(a, b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let differs = a.iter().zip(b).map(|(x, y)| compare_values(x, y)).find(|o| o.is_ne());
            differs.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => {
            let pairs = a.iter().zip(b);
            let differs = pairs.map(|(x, y)| x.0.cmp(y.0).then_with(|| compare_values(x.1, y.1))).find(|o| o.is_ne());
            differs.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        _ => kind(a).cmp(&kind(b)),
    }
}

fn compare_numbers(a: &Number, b: &Number) -> Ordering {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.as_f64().unwrap_or(f64::MAX).total_cmp(&b.as_f64().unwrap_or(f64::MAX)),
    }
}

/// Equality of values with numbers by value.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    compare_values(a, b).is_eq()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_of_fields_v1() {
        for (key, text) in [
            ("f:app.kubernetes.io/name", ".app.kubernetes.io/name"),
            (r#"k:{"containerPort":80,"protocol":"TCP"}"#, r#"[containerPort=80,protocol="TCP"]"#),
            (r#"v:"kubernetes.io/pvc-protection""#, r#"[="kubernetes.io/pvc-protection"]"#),
            ("i:3", "[3]"),
            (r#"k:{"name":"a\u003cb"}"#, r#"[name="a<b"]"#),
        ] {
            let element = PathElement::decode(key).unwrap().unwrap();
            assert_eq!((element.encode().as_str(), element.to_string().as_str()), (key, text));
        }
        assert_eq!(PathElement::decode("x:y"), Ok(None));
        for wrong in ["f", "name", "i:x", "k:[]", "v:"] {
            assert!(PathElement::decode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn elements_have_an_order() {
        let sorted = [
            PathElement::field("a"),
            PathElement::field("b"),
            PathElement::key(vec![("port".into(), json!(9))]),
            PathElement::key(vec![("port".into(), json!(9)), ("protocol".into(), json!("TCP"))]),
            PathElement::key(vec![("port".into(), json!(80))]),
            PathElement::Value(json!(2.5)),
            PathElement::Value(json!("a")),
            PathElement::Value(json!(true)),
            PathElement::Index(0),
        ];
        assert!(sorted.is_sorted());
        assert_eq!(PathElement::Value(json!(1)), PathElement::Value(json!(1.0)));
    }
}
