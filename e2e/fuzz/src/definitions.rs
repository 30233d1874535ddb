//! Definitions of custom resources, and objects of the kinds that they make.

use crate::decoders::survives;
use crate::{kinds, parts};
use isopod_kinds::custom;
use isopod_schema::{default, json};
use serde_json::{Value, json};

/// What a definition says wrongly counts as not said: its kinds work, whatever object comes.
pub fn definition(data: &[u8]) {
    let all = parts(data);
    let Ok(mut definition) = json::parse(all[0]) else { return };
    if !definition["spec"]["names"].is_object() {
        return;
    }
    definition["status"] = json!({"acceptedNames": definition["spec"]["names"]});
    let objects: Vec<&[u8]> = all[1..].iter().copied().take(2).collect();
    for kind in custom::kinds(&definition) {
        let read: Vec<Value> =
            objects.iter().filter_map(|o| json::decode(o, &kind.schema).ok()).map(|d| d.value).collect();
        let Some(first) = read.first().filter(|o| o.is_object()) else { continue };
        let mut object = first.clone();
        default::apply(&mut object, &kind.schema);
        json::canonicalize(&mut object, &kind.schema);
        let mut twice = object.clone();
        default::apply(&mut twice, &kind.schema);
        json::canonicalize(&mut twice, &kind.schema);
        assert_eq!(twice, object, "defaulted twice");
        survives(object.clone(), &kind.schema);
        let other = read.get(1).filter(|o| o.is_object()).unwrap_or(first).clone();
        kinds::lives(&kind, &mut object, &other);
        let _ = kind.hooks.on_read(&json::encode(&object));
    }
}
