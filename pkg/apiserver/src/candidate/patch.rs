//! PATCH: JSON patch, merge patch and strategic merge patch against the newest object. Server-side apply is in `apply`.

use super::{Candidate, Made};
use crate::encode::decode::{self, Decoded, FieldValidation, Refusal};
use http::HeaderMap;
use isopod_api::{FieldError, Gvk, Path, Status};
use isopod_kinds::Kind;
use isopod_schema::json;
use isopod_schema::patch::{self, MAX_OPERATIONS, Opened, PatchError};
use isopod_schema::types::{Field, List, Node, Object, ObjectRef};
use serde_json::Value;
use std::sync::{Arc, LazyLock};

const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Go's name of the type that [`OPERATIONS`] is.
const OPERATIONS_TYPE: &str = "[]handlers.jsonPatchOp";
/// A JSON patch as upstream reads it to see whether it is strictly right.
static OPERATIONS: LazyLock<Node> = LazyLock::new(|| {
    let texts = ["op", "path", "from"].map(|name| Field::new(name, Node::String));
    let fields = texts.into_iter().chain([Field::new("value", Node::Any)]).collect();
    let operation = Object { name: "handlers.jsonPatchOp".into(), fields, ..Object::default() };
    Node::List(Arc::new(List::of(Node::Object(ObjectRef::new(Arc::new(operation))))))
});

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
    /// What stands twice in the patch's text, or is not known of an operation.
    pub strict: Vec<String>,
}

impl Patch {
    pub fn parse(
        ty: PatchType,
        body: &[u8],
        gvk: Gvk,
        schema: Arc<Object>,
        validation: FieldValidation,
    ) -> Result<Self, Status> {
        let lenient = validation == FieldValidation::Ignore;
        // Which of its decoders upstream asks depends on both.
        let wrong = |why: &dyn std::fmt::Display| match ty {
            PatchType::Json | PatchType::Merge if !lenient => {
                Status::bad_request(format!("error decoding patch: {why}"))
            }
            PatchType::Merge => Status::bad_request("Invalid JSON Patch"),
            _ => Status::bad_request(why.to_string()),
        };
        let (patch, mut strict) = json::parse_strict(body).map_err(|e| wrong(&e))?;
        if ty == PatchType::Json && !lenient {
            let about = json::list_errors(body, &OPERATIONS, OPERATIONS_TYPE).map_err(|e| wrong(&e))?;
            let inside: Vec<String> = strict.into_iter().filter(|told| !about.contains(told)).collect();
            strict = about.into_iter().chain(inside).map(|told| format!("json patch {told}")).collect();
        }
        // Go's names of the types: clients see them.
        let (fits, into) = match ty {
            PatchType::Json => (patch.is_array() || patch.is_null(), OPERATIONS_TYPE),
            _ => (patch.is_object(), "map[string]interface {}"),
        };
        if !fits {
            let what = match &patch {
                Value::Object(_) => "object",
                Value::Array(_) => "array",
                Value::String(_) => "string",
                Value::Bool(_) => "bool",
                Value::Number(_) => "number",
                Value::Null => "null",
            };
            return Err(wrong(&format!("json: cannot unmarshal {what} into Go value of type {into}")));
        }
        if let Some(n) = patch.as_array().map(Vec::len).filter(|n| *n > MAX_OPERATIONS) {
            let m = format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {n}");
            return Err(Status::request_entity_too_large(m));
        }
        Ok(Patch { ty, patch, gvk, schema, validation, strict })
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
        let decoded = self.decode(patched.clone()).map_err(|why| {
            let shown = match self.ty {
                PatchType::Json => patch::patched_text(&patched, &self.schema, &Opened::by_operations(&self.patch)),
                PatchType::Merge => patch::patched_text(&patched, &self.schema, &Opened::by_merge(&self.patch)),
                _ => patch::go_value(&self.patch),
            };
            let error = FieldError::invalid(&Path::new("patch"), shown, why);
            Status::invalid(&Gvk::new("", "", ""), "", &[error])
        })?;
        Ok(Made { object: decoded.value, warnings: decoded.warnings, owned: false })
    }

    /// The error is why it cannot be decoded, or what is not strictly right about it and about the patch.
    fn decode(&self, patched: Value) -> Result<Decoded, String> {
        let refuses = self.validation == FieldValidation::Strict && !self.strict.is_empty();
        let how = if refuses { FieldValidation::Warn } else { self.validation };
        let mut decoded = decode::parsed(patched, &self.gvk, &self.schema, how).map_err(Refusal::why)?;
        if self.validation == FieldValidation::Ignore {
            return Ok(decoded);
        }
        decoded.warnings = self.strict.iter().cloned().chain(decoded.warnings).collect();
        if refuses { Err(format!("strict decoding error: {}", decoded.warnings.join(", "))) } else { Ok(decoded) }
    }
}

impl Candidate for Patch {
    fn make(&self, current: Option<&Value>) -> Result<Made, Status> {
        self.apply(current.unwrap_or(&Value::Null))
    }
}
