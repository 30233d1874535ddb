//! PATCH: JSON patch, merge patch and strategic merge patch against the newest object. Server-side apply is in `apply`.

use super::{Candidate, Made};
use crate::encode::decode::{self, Decoded, FieldValidation, Refusal, go_noun, unfit};
use http::HeaderMap;
use isopod_api::{FieldError, Gvk, Path, Status};
use isopod_kinds::Kind;
use isopod_schema::json;
use isopod_schema::patch::{self, Opened, PatchError};
use isopod_schema::types::Object;
use serde_json::{Value, json};
use std::sync::Arc;

const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
/// Upstream's limit of operations in one JSON patch.
const MAX_OPERATIONS: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    /// Server-side apply (KEP-555).
    Apply,
}

impl PatchType {
    /// Custom resources know no strategic merge.
    pub fn of(headers: &HeaderMap, kind: &Kind) -> Result<Self, Status> {
        let name = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        match name.split(';').next().unwrap_or_default().trim() {
            JSON_PATCH => Ok(Self::Json),
            MERGE_PATCH => Ok(Self::Merge),
            STRATEGIC if !kind.schema.custom => Ok(Self::Strategic),
            APPLY => Ok(Self::Apply),
            _ if kind.schema.custom => {
                let all = [JSON_PATCH, MERGE_PATCH, APPLY].join(", ");
                let m = "the body of the request was in an unknown format - accepted media types include";
                Err(Status::unsupported_media_type(format!("{m}: {all}")))
            }
            _ => Err(Status::unsupported_media_type("415: Unsupported Media Type").with_empty_details()),
        }
    }
}

/// A patch of an object of type `gvk`.
pub struct Patch {
    pub ty: PatchType,
    pub patch: Value,
    pub gvk: Gvk,
    pub schema: Arc<Object>,
    pub validation: FieldValidation,
    /// What a strict decoder finds in its text.
    strange: Vec<String>,
}

impl Patch {
    pub fn parse(
        ty: PatchType,
        body: &[u8],
        gvk: Gvk,
        schema: Arc<Object>,
        validation: FieldValidation,
    ) -> Result<Self, Status> {
        let patch = json::parse(body).map_err(|e| unreadable(&e, ty))?;
        let patch = match ty {
            PatchType::Json => operations(patch, validation),
            PatchType::Merge => merging(patch, validation),
            // Go takes null for no fields.
            _ if patch.is_null() => Ok(json!({})),
            _ => of_fields(patch),
        };
        let patch = patch.map_err(Status::bad_request)?;
        if let Some(n) = patch.as_array().map(Vec::len).filter(|n| *n > MAX_OPERATIONS) {
            let m = format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {n}");
            return Err(Status::request_entity_too_large(m));
        }
        let strange = match (validation, ty) {
            (FieldValidation::Ignore, _) => Vec::new(),
            (_, PatchType::Json) => {
                json::strange_operations(body).into_iter().map(|s| format!("json patch {s}")).collect()
            }
            _ => json::doubled_fields(body),
        };
        Ok(Patch { ty, patch, gvk, schema, validation, strange })
    }

    /// The patched object, decoded against the schema.
    pub fn apply(&self, current: &Value) -> Result<Made, Status> {
        let patched = match self.ty {
            PatchType::Json => patch::json_patch(current, &self.patch),
            PatchType::Merge => Ok(patch::merge_patch(current, &self.patch)),
            PatchType::Strategic => patch::strategic_merge(current, &self.patch, &self.schema),
            PatchType::Apply => Err(PatchError::Internal("an apply is no patch of a value".into())),
        };
        let patched = patched.map_err(|e| match e {
            PatchError::Malformed(m) => Status::bad_request(m),
            PatchError::Internal(m) => Status::new(500, "", m),
            PatchError::Unprocessable(_) => {
                Status::new(422, "Invalid", "the server rejected our request due to an error in our request")
                    .with_empty_details()
            }
        })?;
        let (changed, kept) = self.apart(&patched, current);
        let mut decoded = self.decode(changed).map_err(|why| {
            let text = match self.ty {
                PatchType::Json => patch::patched_text(&patched, &self.schema, &Opened::by_operations(&self.patch)),
                PatchType::Merge => patch::patched_text(&patched, &self.schema, &Opened::by_merge(&self.patch)),
                _ => json::go_text(&self.patch),
            };
            Status::invalid(&Gvk::new("", "", ""), "", &[FieldError::invalid(&Path::new("patch"), text, why)])
        })?;
        if let (Value::Object(object), Value::Object(patched)) = (&mut decoded.value, patched) {
            object.extend(patched.into_iter().filter(|(key, _)| kept.contains(key)));
        }
        Ok(Made { object: decoded.value, warnings: decoded.warnings, owned: false })
    }

    /// The patched object without the fields that are as they were, and their names: what was read from the store has been
    /// decoded before. A custom resource's schema may be newer than that.
    fn apart(&self, patched: &Value, current: &Value) -> (Value, Vec<String>) {
        let (Value::Object(patched), Value::Object(current), false) = (patched, current, self.schema.custom) else {
            return (patched.clone(), Vec::new());
        };
        let is_kept = |key: &str, value: &Value| {
            !matches!(key, "apiVersion" | "kind") && value.is_object() && current.get(key) == Some(value)
        };
        let (kept, changed): (Vec<_>, Vec<_>) = patched.iter().partition(|(key, value)| is_kept(key, value));
        let changed = changed.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        (Value::Object(changed), kept.into_iter().map(|(key, _)| key.clone()).collect())
    }

    /// The patched object with all that is strange about it and the patch; under strict validation that is why not.
    fn decode(&self, patched: Value) -> Result<Decoded, String> {
        if let Some(why) = self.is_no_object(&patched) {
            return Err(why);
        }
        let lenient = match self.validation {
            FieldValidation::Strict => FieldValidation::Warn,
            other => other,
        };
        let mut decoded = match self.ty {
            PatchType::Strategic => {
                // It goes into the struct without a look at what it says it is.
                let typed = decode::typed(patched, &self.gvk);
                let misfit = json::unconvertible(&typed, &self.schema);
                decode::parsed(typed, &self.gvk, &self.schema, lenient)
                    .map_err(|e| misfit.unwrap_or_else(|| e.why()))?
            }
            _ => decode::parsed(patched, &self.gvk, &self.schema, lenient).map_err(Refusal::why)?,
        };
        decoded.warnings.splice(..0, self.strange.iter().cloned());
        match self.validation {
            FieldValidation::Strict if !decoded.warnings.is_empty() => {
                Err(format!("strict decoding error: {}", decoded.warnings.join(", ")))
            }
            _ => Ok(decoded),
        }
    }

    /// Why a list that a merge patch put in an object's place has no type.
    fn is_no_object(&self, patched: &Value) -> Option<String> {
        let typed = self.schema.custom || self.ty == PatchType::Strategic || patched.is_object();
        (!typed).then(|| format!("{}{}", decode::NO_TYPE, unfit(patched, decode::TYPE_STRUCT)))
    }
}

impl Candidate for Patch {
    fn make(&self, current: Option<&Value>) -> Result<Made, Status> {
        self.apply(current.unwrap_or(&Value::Null))
    }
}

/// Why a text is no patch. One that is JSON has a number that is too large.
fn unreadable(why: &json::DecodeError, ty: PatchType) -> Status {
    let json::DecodeError::Type(why) = why else { return Status::bad_request("invalid JSON patch") };
    Status::bad_request(match ty {
        PatchType::Json => {
            let why = why.replacen("Go value of type", "Go struct field jsonPatchOp.value of type", 1);
            format!("error decoding patch: {why}")
        }
        PatchType::Merge => format!("error decoding patch: {why}"),
        _ => why.clone(),
    })
}

/// A JSON patch. What looks for unknown fields decodes it first, into a type of its own.
fn operations(patch: Value, validation: FieldValidation) -> Result<Value, String> {
    let Value::Array(operations) = &patch else {
        return match (patch.is_null(), validation) {
            (true, _) => Ok(json!([])),
            (_, FieldValidation::Ignore) => Err(unfit(&patch, "jsonpatch.Patch")),
            _ => Err(format!("error decoding patch: {}", unfit(&patch, "[]handlers.jsonPatchOp"))),
        };
    };
    if validation != FieldValidation::Ignore {
        for operation in operations.iter().filter(|o| !o.is_null()) {
            if !operation.is_object() {
                return Err(format!("error decoding patch: {}", unfit(operation, "handlers.jsonPatchOp")));
            }
            let mut texts = ["op", "from", "path"].into_iter().filter_map(|f| Some((f, operation.get(f)?)));
            if let Some((field, value)) = texts.find(|(_, v)| !v.is_string() && !v.is_null()) {
                let noun = go_noun(value);
                let m = format!("cannot unmarshal {noun} into Go struct field jsonPatchOp.{field} of type string");
                return Err(format!("error decoding patch: json: {m}"));
            }
        }
    }
    Ok(patch)
}

/// A merge patch. A list takes the object's place, and is no object then.
fn merging(patch: Value, validation: FieldValidation) -> Result<Value, String> {
    match (&patch, validation) {
        (Value::Object(_), _) | (Value::Array(_), FieldValidation::Ignore) => Ok(patch),
        (Value::Null, _) | (_, FieldValidation::Ignore) => Err("Invalid JSON Patch".into()),
        _ => of_fields(patch).map_err(|why| format!("error decoding patch: {why}")),
    }
}

/// `patch`, if it is an object.
fn of_fields(patch: Value) -> Result<Value, String> {
    if patch.is_object() { Ok(patch) } else { Err(unfit(&patch, "map[string]interface {}")) }
}
