//! `additionalPrinterColumns`: the columns that a definition states (`tableconvertor`).

use super::jsonpath::{self, JsonPath};
use crate::access::Access;
use crate::columns::since;
use jiff::Timestamp;
use serde_json::{Value, json};

/// A column that a definition states.
#[derive(Clone)]
pub struct CustomColumn {
    name: String,
    kind: String,
    format: String,
    description: String,
    priority: i64,
    path: JsonPath,
}

/// The columns after the name: those stated, or the age where there are none. After one with a path that is none, no more follow.
pub fn of(stated: &[Value]) -> Vec<CustomColumn> {
    if stated.is_empty() {
        let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
            "description": "Time since the object was made"});
        return column(&age).into_iter().collect();
    }
    stated.iter().map_while(column).collect()
}

fn column(stated: &Value) -> Option<CustomColumn> {
    let text = |key: &str| stated.text(key).to_owned();
    let path = stated.text("jsonPath");
    let description = match stated.text("description") {
        "" => format!("Custom resource definition column (in JSONPath format): {path}"),
        said => said.to_owned(),
    };
    Some(CustomColumn {
        name: text("name"),
        kind: text("type"),
        format: text("format"),
        description,
        priority: stated.int_or("priority", 0),
        path: JsonPath::parse(path)?,
    })
}

impl CustomColumn {
    /// Its `TableColumnDefinition`.
    pub fn definition(&self) -> Value {
        json!({"name": self.name, "type": self.kind, "format": self.format, "description": self.description,
            "priority": self.priority})
    }

    /// The cell: the first value at the path, null where it has another type.
    pub fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let Some(value) = self.path.find(object).into_iter().next() else { return Value::Null };
        match (self.kind.as_str(), value) {
            ("string", value) => jsonpath::printed(value).into(),
            (_, Value::Null) => Value::Null,
            ("integer", Value::Number(n)) => n.as_i64().or_else(|| n.as_f64().map(|x| x as i64)).into(),
            ("number", Value::Number(n)) => whole(n.as_f64().unwrap_or_default()),
            ("boolean", Value::Bool(b)) => (*b).into(),
            ("date", Value::String(s)) => match isopod_api::time::parse(s) {
                Some(_) => since(s, now).into(),
                None if s.is_empty() || s == "null" => "<unknown>".into(),
                None => "<invalid>".into(),
            },
            _ => Value::Null,
        }
    }
}

/// Go writes a float without a fraction as an integer.
fn whole(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 9e15 { Value::from(x as i64) } else { Value::from(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells() {
        let object = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"n": 3, "x": 1.5, "b": true, "s": "t", "l": [1], "when": "x"}});
        let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
        for (kind, path, want) in [
            ("integer", ".spec.n", json!(3)),
            ("integer", ".spec.s", Value::Null),
            ("number", ".spec.x", json!(1.5)),
            ("number", ".spec.n", json!(3)),
            ("boolean", ".spec.b", json!(true)),
            ("string", ".spec.l", json!("[1]")),
            ("string", ".spec.n", json!("3")),
            ("string", ".spec.none", Value::Null),
            ("date", ".metadata.creationTimestamp", json!("5m")),
            ("date", ".spec.when", json!("<invalid>")),
        ] {
            let made = of(&[json!({"name": "C", "type": kind, "jsonPath": path})]);
            assert_eq!(made[0].cell(&object, now), want, "{kind} {path}");
        }
        assert_eq!(of(&[])[0].cell(&object, now), "5m");
        assert!(of(&[json!({"name": "C", "jsonPath": "x"})]).is_empty());
    }
}
