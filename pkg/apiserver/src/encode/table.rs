//! Server-side tables (`kubectl get`): the kind's columns applied to objects.

use crate::encode::included;
use crate::encode::negotiate::{Form, Shape};
use isopod_kinds::Kind;
use jiff::Timestamp;
use serde_json::{Value, json};

/// `columnDefinitions`.
pub fn columns(kind: &Kind) -> Value {
    kind.columns.definitions().into()
}

/// One row.
pub fn row(kind: &Kind, object: &Value, form: &Form, now: Timestamp) -> Value {
    let shown = isopod_kinds::columns::table_row(kind, object, now);
    let mut row = json!({"cells": shown.cells});
    if !shown.conditions.is_empty() {
        row["conditions"] = shown.conditions.into();
    }
    if let Shape::Table(include) = form.shape {
        row["object"] = included(kind, object, form, include).unwrap_or(Value::Null);
    }
    row
}

/// A whole table.
pub fn table(kind: &Kind, objects: &[Value], revision: &str, form: &Form, now: Timestamp) -> Value {
    let rows: Vec<Value> = objects.iter().map(|o| row(kind, o, form, now)).collect();
    json!({
        "kind": "Table", "apiVersion": form.meta_version(), "metadata": {"resourceVersion": revision},
        "columnDefinitions": columns(kind), "rows": rows,
    })
}
