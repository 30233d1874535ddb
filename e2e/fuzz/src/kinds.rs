//! Objects of built-in kinds through all that is pure in the pipeline: defaults, validation, warnings, tables.

use crate::decoders::survives;
use isopod_api::UserInfo;
use isopod_kinds::{Ctx, Kind, metadata, table};
use isopod_schema::{default, json};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

static KINDS: LazyLock<HashMap<(String, String), Arc<Kind>>> =
    LazyLock::new(|| table::builtin().into_iter().map(|k| ((k.gvk.api_version(), k.gvk.kind.clone()), k)).collect());

/// An object of the kind that it names. Defaults of a defaulted object are none; nothing that is validated or shown panics.
pub fn object(data: &[u8]) {
    let Ok(value) = json::parse(data) else { return };
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let Some(kind) = KINDS.get(&(text("apiVersion"), text("kind"))) else { return };
    let Ok(decoded) = json::decode(data, &kind.schema) else { return };
    let mut object = decoded.value;
    json::canonicalize(&mut object, &kind.schema);
    let sent = object.clone();
    defaults(kind, &mut object);
    let mut twice = object.clone();
    defaults(kind, &mut twice);
    assert_eq!(twice, object, "{} is defaulted twice", kind.gvk);
    lives(kind, &mut object, &sent);
    survives(object, &kind.schema);
}

fn defaults(kind: &Kind, object: &mut Value) {
    default::apply(object, &kind.schema);
    isopod_kinds::defaults::apply(object, &kind.schema);
    kind.hooks.default(object);
    json::canonicalize(object, &kind.schema);
}

/// A create and an update of an object, as its kind sees them. `other` is another object of that kind.
pub fn lives(kind: &Kind, object: &mut Value, other: &Value) {
    let user = UserInfo::new("fuzz", &[]);
    let now = Timestamp::UNIX_EPOCH;
    for subresource in ["", "status"] {
        let ctx = Ctx { now, user: &user, subresource, dry_run: false };
        if subresource.is_empty() {
            kind.hooks.prepare_create(&ctx, object);
            json::canonicalize(object, &kind.schema);
            let _ = metadata::with_own_rules(kind, object, || kind.hooks.validate_create(&ctx, object));
            let _ = kind.hooks.warnings(&ctx, object, None);
        }
        let mut new = other.clone();
        kind.hooks.prepare_update(&ctx, &mut new, object);
        json::canonicalize(&mut new, &kind.schema);
        let _ = metadata::validate_update(kind, &new, object);
        let _ = kind.hooks.judge_update(&ctx, &new, object);
        let _ = kind.hooks.warnings(&ctx, &new, Some(object));
    }
    let cells = kind.columns.cells(object, now);
    assert_eq!(cells.len(), kind.columns.definitions().len(), "cells of {}", kind.gvk);
    // An object of another version than the kind's has none that could be asked for.
    let fields = kind.hooks.selectable(object).len();
    assert!(fields == kind.selectable.len() || kind.schema.custom && fields == 0, "{fields} fields of {}", kind.gvk);
    let _ = kind.hooks.graceful_delete(object, Some(i64::MIN));
    if let Some(scale) = kind.hooks.to_scale(object) {
        let mut scaled = object.clone();
        let _ = kind.hooks.apply_scale(&mut scaled, &scale);
    }
}
