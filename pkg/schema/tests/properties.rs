//! Properties that hold for any input: no panic on arbitrary bytes, round trips, and laws of patches.

#![allow(clippy::unwrap_used)]

use isopod_api::Gvk;
use isopod_schema::types::{Node, Object};
use isopod_schema::{default, facts, json, patch, proto, validate};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::sync::Arc;

fn object(group: &str, kind: &str) -> Arc<Object> {
    facts::builtin().object_of(&Gvk::new(group, "v1", kind)).expect("built in")
}

fn kinds() -> impl Strategy<Value = Arc<Object>> {
    prop::sample::select(vec![
        ("", "Pod"),
        ("", "Service"),
        ("", "Secret"),
        ("", "Node"),
        ("apps", "Deployment"),
        ("batch", "CronJob"),
        ("networking.k8s.io", "NetworkPolicy"),
        ("apiextensions.k8s.io", "CustomResourceDefinition"),
        ("certificates.k8s.io", "CertificateSigningRequest"),
        ("resource.k8s.io", "ResourceSlice"),
    ])
    .prop_map(|(group, kind)| object(group, kind))
}

/// Any value of a schema, a few levels deep. Field choices come from `seed`, so that a failure shrinks.
fn generate(object: &Object, seed: &mut impl Iterator<Item = u8>, depth: usize) -> Value {
    let mut map = Map::new();
    for f in &object.fields {
        let roll = seed.next().unwrap_or(0);
        if f.tag != 0
            && roll % 3 == 1
            && let Some(v) = node(&f.node, seed, depth)
        {
            map.insert(f.name.clone(), v);
        }
    }
    Value::Object(map)
}

fn node(n: &Node, seed: &mut impl Iterator<Item = u8>, depth: usize) -> Option<Value> {
    let roll = i64::from(seed.next().unwrap_or(0));
    Some(match n {
        Node::Bool => Value::Bool(roll % 2 == 1),
        Node::Int32 => json!(roll * 8_000_000 - 1_000_000_000),
        Node::Int64 => json!(roll * 30_000_000_000_000_000 - 4_000_000_000_000_000_000),
        Node::Double => json!(roll as f64 / 8.0 - 4.0),
        Node::String => json!("x".repeat((roll % 5) as usize)),
        Node::Bytes => json!(["", "AA==", "aGVsbG8="][roll as usize % 3]),
        Node::Quantity => json!(["100m", "1Gi", "-5", "3e9", "0"][roll as usize % 5]),
        Node::IntOrString => [json!(roll - 100), json!("25%")][roll as usize % 2].clone(),
        Node::Time => json!(["2024-02-29T01:02:03Z", "1960-01-01T00:00:00Z"][roll as usize % 2]),
        Node::MicroTime => json!("2024-02-29T01:02:03.000456Z"),
        Node::Duration => json!("1h2m3.5s"),
        Node::Any => json!({"any": [roll, null, {"b": "c"}]}),
        Node::FieldsV1 => json!({"f:metadata": {}}),
        Node::SchemaOrBool(_) if roll % 2 == 0 => json!(true),
        Node::List(l) => Value::Array((0..roll % 3).filter_map(|_| node(&l.item, seed, depth)).collect()),
        Node::Map(m) => (0..roll % 3)
            .filter_map(|i| node(&m.value, seed, depth).map(|v| (format!("k{i}"), v)))
            .collect::<Map<_, _>>()
            .into(),
        Node::Object(o) | Node::SchemaOrBool(o) | Node::SchemaOrArray(o) | Node::SchemaOrStringArray(o) => {
            if depth == 0 {
                return None;
            }
            generate(o.get(), seed, depth - 1)
        }
        _ => return None,
    })
}

fn typed() -> impl Strategy<Value = (Arc<Object>, Value)> {
    (kinds(), prop::collection::vec(any::<u8>(), 0..600)).prop_map(|(object, bytes)| {
        let value = generate(&object, &mut bytes.into_iter(), 6);
        (object, value)
    })
}

/// Any JSON.
fn untyped() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-c$/]{0,4}".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        let key = prop_oneof![
            "[a-c]{1,2}",
            Just("metadata".to_owned()),
            Just("spec".to_owned()),
            Just("containers".to_owned()),
            Just("name".to_owned()),
            Just("finalizers".to_owned()),
            Just("$patch".to_owned()),
            Just("$retainKeys".to_owned()),
            Just("$setElementOrder/containers".to_owned()),
            Just("$deleteFromPrimitiveList/finalizers".to_owned())
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect()))
        ]
    })
}

/// The same JSON written as nobody does: keys backwards, spaces, and every other character escaped.
fn untidy(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            out.push_str("{ ");
            for (i, (k, v)) in map.iter().rev().enumerate() {
                out.push_str(if i > 0 { "\n, " } else { "" });
                untidy(&Value::String(k.clone()), out);
                out.push_str("\t: ");
                untidy(v, out);
            }
            out.push_str(" }");
        }
        Value::Array(items) => {
            out.push_str("[ ");
            for (i, v) in items.iter().enumerate() {
                out.push_str(if i > 0 { " , " } else { "" });
                untidy(v, out);
            }
            out.push(']');
        }
        Value::String(s) => {
            out.push('"');
            for (i, unit) in s.encode_utf16().enumerate() {
                match char::from_u32(unit.into()).filter(|c| c.is_ascii_alphanumeric() && i % 2 == 0) {
                    Some(c) => out.push(c),
                    None => out.push_str(&format!("\\u{unit:04x}")),
                }
            }
            out.push('"');
        }
        other => out.push_str(&other.to_string()),
    }
}

fn null_in_array(value: &Value, inside: bool) -> bool {
    match value {
        Value::Null => inside,
        Value::Array(items) => items.iter().any(|v| null_in_array(v, true)),
        Value::Object(map) => map.values().any(|v| null_in_array(v, inside)),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is read is the nearest double to what was written, by each reader: an update that does not touch a number keeps it.
    #[test]
    fn numbers_are_read_as_they_are(bits in any::<u64>(), digits in "[1-9][0-9]{0,40}", exponent in -330..330) {
        for text in [format!("{:?}", f64::from_bits(bits)), format!("{digits}e{exponent}"), format!("0.{digits}e{exponent}")] {
            let Some(want) = text.parse::<f64>().ok().filter(|f| f.is_finite()) else { continue };
            prop_assert_eq!(json::read(text.as_bytes()).unwrap().as_f64(), Some(want), "{}", text);
            prop_assert_eq!(json::parse(text.as_bytes()).unwrap().as_f64(), Some(want), "{}", text);
            let again = json::encode(&json::parse(text.as_bytes()).unwrap());
            prop_assert_eq!(json::read(&again).unwrap().as_f64(), Some(want), "{}", text);
        }
    }

    #[test]
    fn bytes_never_panic(object in kinds(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = json::decode(&bytes, &object);
        let _ = json::parse(&bytes);
        let _ = proto::decode(&bytes, &object);
        let _ = proto::Encoder::default().encode(&bytes, &object);
        let _ = proto::envelope::unwrap(&bytes);
        let mut framed = proto::envelope::PREFIX.to_vec();
        framed.extend_from_slice(&bytes);
        let _ = proto::envelope::open_builtin(&framed);
    }

    #[test]
    fn damaged_messages_never_panic((object, value) in typed(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = proto::encode(&value, &object);
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = proto::decode(&bytes, &object);
    }

    #[test]
    fn damaged_text_never_panics((object, value) in typed(), at in any::<prop::sample::Index>(), byte in prop::sample::select(&b"{}[]\",:\\n0 x"[..])) {
        let mut text = json::encode(&value);
        let at = at.index(text.len());
        let mut encoder = proto::Encoder::default();
        encoder.encode(&text[..at], &object);
        text[at] = byte;
        encoder.encode(&text, &object);
    }

    #[test]
    fn protobuf_of_json_in_any_form((object, value) in typed()) {
        let mut canonical = value;
        json::canonicalize(&mut canonical, &object);
        let mut text = String::new();
        untidy(&canonical, &mut text);
        let mut encoder = proto::Encoder::default();
        let bytes = encoder.encode(text.as_bytes(), &object).to_vec();
        prop_assert_eq!(&proto::decode(&bytes, &object).expect("our own bytes decode"), &canonical);
        // What was encoded before leaves nothing behind.
        let tidy = encoder.encode(&json::encode(&canonical), &object).to_vec();
        prop_assert_eq!(proto::encode(&canonical, &object), tidy);
    }

    #[test]
    fn any_json_never_panics(object in kinds(), value in untyped()) {
        let _ = proto::encode(&value, &object);
        let mut v = value.clone();
        json::canonicalize(&mut v, &object);
        default::apply(&mut v, &object);
        let _ = validate::lists(&v, &object);
        let _ = validate::against(&v, &value, Some(&validate::Correlated::new(&v, &value, &value)));
        let _ = json::decode_value(value, &object);
    }

    #[test]
    fn protobuf_round_trips((object, value) in typed()) {
        let mut canonical = value;
        json::canonicalize(&mut canonical, &object);
        let bytes = proto::encode(&canonical, &object);
        let back = proto::decode(&bytes, &object).expect("our own bytes decode");
        prop_assert_eq!(&back, &canonical);
        prop_assert_eq!(proto::encode(&back, &object), bytes);
    }

    #[test]
    fn json_round_trips_and_canonical_is_stable((object, value) in typed()) {
        let mut canonical = value;
        json::canonicalize(&mut canonical, &object);
        let decoded = json::decode(&json::encode(&canonical), &object).expect("decodes");
        prop_assert!(decoded.strict.is_empty(), "{:?}", decoded.strict);
        let mut again = decoded.value;
        json::canonicalize(&mut again, &object);
        prop_assert_eq!(again, canonical);
    }

    #[test]
    fn merge_patch_laws(original in untyped(), patch in untyped()) {
        // Nulls in arrays are kept or dropped depending on what stood there before (see the module).
        prop_assume!(!null_in_array(&patch, false));
        let once = patch::merge_patch(&original, &patch);
        prop_assert_eq!(patch::merge_patch(&once, &patch), once.clone());
        if original.is_object() {
            prop_assert_eq!(patch::merge_patch(&original, &json!({})), original);
        }
    }

    #[test]
    fn strategic_merge_of_nothing_changes_nothing((object, value) in typed()) {
        prop_assert_eq!(patch::strategic_merge(&value, &json!({}), &object).expect("applies"), value);
    }

    #[test]
    fn strategic_merge_never_panics(original in untyped(), patch in untyped()) {
        let _ = patch::strategic_merge(&original, &patch, &object("", "Pod"));
        let _ = patch::json_patch(&original, &patch);
    }

    #[test]
    fn add_then_remove_is_nothing(original in untyped(), value in untyped()) {
        prop_assume!(original.is_object() && original.get("zz").is_none());
        let patch = json!([{"op": "add", "path": "/zz", "value": value}, {"op": "test", "path": "/zz", "value": value}, {"op": "remove", "path": "/zz"}]);
        prop_assert_eq!(patch::json_patch(&original, &patch).expect("applies"), original);
    }
}
