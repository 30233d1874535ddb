//! Some fields of a JSON object, read without making values of the rest: the index of a cache needs a dozen of the hundreds of
//! values of a pod.
//!
//! Invariants: all of the text is looked at, so what is no JSON is found; what is not asked for is not in the result.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Error, Map, Value};
use std::fmt;

/// The fields at these paths (`spec.nodeName`), within the objects that they lie in. What is above a path and no object
/// reads as null.
pub fn read<'a>(json: &[u8], paths: impl IntoIterator<Item = &'a str>) -> Result<Value, Error> {
    let wanted: Vec<&str> = paths.into_iter().collect();
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = Parts { wanted: &wanted }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// What is wanted of one object: paths from there on.
struct Parts<'a> {
    wanted: &'a [&'a str],
}

impl<'de> DeserializeSeed<'de> for Parts<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Parts<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let below: Vec<&str> = self.wanted.iter().filter_map(|path| below(path, &key)).collect();
            if below.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else if below.contains(&"") {
                out.insert(key, map.next_value()?);
            } else {
                out.insert(key, map.next_value_seed(Parts { wanted: &below })?);
            }
        }
        Ok(Value::Object(out))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// What follows `key` in a path that begins with it.
fn below<'a>(path: &'a str, key: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(key)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('.') }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_asked_for() {
        let object = json!({"metadata": {"labels": {"a": "b"}, "name": "x"}, "spec": {"node": "n", "nodeName": "m", "list": [{"a": 1}]},
            "status": 5, "list": [1], "text": "t", "none": null, "yes": true, "half": 0.5, "below": -1});
        let paths = [
            "metadata.labels",
            "spec.nodeName",
            "status.phase",
            "list.x",
            "spec.list",
            "text.x",
            "none.x",
            "yes.x",
            "half.x",
            "below.x",
            "gone",
        ];
        assert_eq!(
            read(object.to_string().as_bytes(), paths).unwrap(),
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"nodeName": "m", "list": [{"a": 1}]}, "status": null, "list": null,
                "text": null, "none": null, "yes": null, "half": null, "below": null})
        );
        for broken in ["{", "{\"a\":}", "{} {}", "{\"a\":[1,]}"] {
            assert!(read(broken.as_bytes(), ["b"]).is_err(), "{broken}");
        }
    }
}
