//! `FieldsV1`: a set of paths as JSON. `{}` is a member; `"."` is a member that has members below it.

use super::path::PathElement;
use super::set::{Node, Set};
use serde_json::{Map, Value};

impl Set {
    /// `FieldsV1`.
    pub fn to_json(&self) -> Value {
        Value::Object(self.nodes.iter().map(|n| (n.element.encode(), n.to_json())).collect())
    }

    /// Reads `FieldsV1`. Keys of an unknown kind are dropped.
    pub fn from_json(value: &Value) -> Result<Set, String> {
        match value {
            Value::Null => Ok(Set::default()),
            Value::Object(map) => Self::read(map),
            other => Err(format!("expected an object, got {other}")),
        }
    }

    fn read(map: &Map<String, Value>) -> Result<Set, String> {
        let mut set = Set { nodes: Vec::with_capacity(map.len()) };
        for (key, value) in map.iter().filter(|(k, _)| *k != ".") {
            let Some(element) = PathElement::decode(key)? else { continue };
            let Value::Object(below) = value else {
                return Err(format!("expected an object below {key:?}, got {value}"));
            };
            let children = Self::read(below)?;
            let member = children.is_empty() || below.contains_key(".");
            set.add(element, member, children);
        }
        Ok(set)
    }
}

impl Node {
    fn to_json(&self) -> Value {
        let Value::Object(mut map) = self.children.to_json() else { return Value::Null };
        if self.member && !map.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        Value::Object(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn read_and_written() {
        let fields = json!({
            "f:metadata": {"f:finalizers": {".": {}, "v:\"a/b\"": {}}},
            "f:spec": {"f:ports": {".": {}, "k:{\"port\":9,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {}}},
        });
        let set = Set::from_json(&fields).unwrap();
        assert_eq!(set.to_json(), fields);
        assert_eq!(
            set.to_string(),
            ".metadata.finalizers\n.metadata.finalizers[=\"a/b\"]\n.spec.ports\n.spec.ports[port=9,protocol=\"TCP\"]\n\
             .spec.ports[port=80,protocol=\"TCP\"]\n.spec.ports[port=9,protocol=\"TCP\"].port"
        );
        let unknown = Set::from_json(&json!({"f:a": {"x:b": {}}, "z:1": {"f:c": {}}})).unwrap();
        assert_eq!(unknown.to_json(), json!({"f:a": {}}));
        assert!(Set::from_json(&json!({})).unwrap().is_empty());
        for wrong in [json!([]), json!({"a": {}}), json!({"f:a": 1}), json!({"k:x": {}})] {
            assert!(Set::from_json(&wrong).is_err(), "{wrong}");
        }
    }
}
