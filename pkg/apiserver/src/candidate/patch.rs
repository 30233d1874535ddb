//! PATCH: JSON patch, merge patch and strategic merge patch against the newest object. Server-side apply is in `apply`.

use super::{Candidate, Made};
use crate::encode::decode::{self, FieldValidation};
use http::HeaderMap;
use isopod_api::{FieldError, Gvk, Path, Status};
use isopod_kinds::Kind;
use isopod_schema::patch::{self, Opened, PatchError};
use isopod_schema::types::Object;
use serde_json::Value;
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
}

impl Patch {
    pub fn parse(
        ty: PatchType,
        body: &[u8],
        gvk: Gvk,
        schema: Arc<Object>,
        validation: FieldValidation,
    ) -> Result<Self, Status> {
        // kubectl sends patches as JSON; YAML is a superset that upstream accepts as well.
        let patch: Value = match serde_json::from_slice(body) {
            Ok(patch) => patch,
            Err(e) => serde_yaml_ng::from_slice(body)
                .map_err(|_| Status::bad_request(format!("error decoding patch: {e}")))?,
        };
        // Go's names of the types: clients see them.
        let (fits, into) = match ty {
            PatchType::Json => (patch.is_array(), "[]handlers.jsonPatchOp"),
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
            let m = format!("error decoding patch: json: cannot unmarshal {what} into Go value of type {into}");
            return Err(Status::bad_request(m));
        }
        if let Some(n) = patch.as_array().map(Vec::len).filter(|n| *n > MAX_OPERATIONS) {
            let m = format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {n}");
            return Err(Status::request_entity_too_large(m));
        }
        Ok(Patch { ty, patch, gvk, schema, validation })
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
        let opened = match self.ty {
            PatchType::Json => Opened::by_operations(&self.patch),
            PatchType::Merge => Opened::by_merge(&self.patch),
            _ => {
                let decoded = decode::value(patched, &self.gvk, &self.schema, self.validation)?;
                return Ok(Made { object: decoded.value, warnings: decoded.warnings, owned: false });
            }
        };
        let decoded = decode::parsed(patched.clone(), &self.gvk, &self.schema, self.validation);
        let decoded = decoded.map_err(|e| {
            let text = patch::patched_text(&patched, &self.schema, &opened);
            let error = FieldError::invalid(&Path::new("patch"), text, e.why());
            Status::invalid(&Gvk::new("", "", ""), "", &[error])
        })?;
        Ok(Made { object: decoded.value, warnings: decoded.warnings, owned: false })
    }
}

impl Candidate for Patch {
    fn make(&self, current: Option<&Value>) -> Result<Made, Status> {
        self.apply(current.unwrap_or(&Value::Null))
    }
}
