//! Request bodies: read within a limit, decoded by content type against a schema, with upstream's errors.

use crate::encode::negotiate::{self, Media};
use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use isopod_api::{GroupVersion, Gvk, Status};
use isopod_schema::types::Object;
use isopod_schema::{json, proto};
use serde_json::Value;

/// `MaxRequestBodyBytes`.
pub const LIMIT: usize = 3 << 20;

/// What happens with unknown and duplicate fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// A decoded body and the warnings about it.
#[derive(Debug, Default)]
pub struct Decoded {
    pub value: Value,
    pub warnings: Vec<String>,
}

/// How much of a body that is too large is read and dropped, so that the client has sent it all and reads the answer.
const LINGER: usize = 16 << 20;

/// Reads a body of at most [`LIMIT`] bytes.
pub async fn read(mut body: Body) -> Result<Bytes, Status> {
    match Limited::new(&mut body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.downcast_ref::<LengthLimitError>().is_some() => {
            let mut dropped = 0;
            while dropped < LINGER
                && let Some(Ok(frame)) = body.frame().await
            {
                dropped += frame.data_ref().map_or(0, Bytes::len);
            }
            Err(Status::request_entity_too_large(format!("limit is {LIMIT}")))
        }
        Err(e) => Err(Status::bad_request(format!("cannot read the request's body: {e}"))),
    }
}

/// Decodes an object that should be a `gvk`; `apiVersion` and `kind` may be left out.
pub fn object(
    headers: &HeaderMap,
    body: &[u8],
    gvk: &Gvk,
    schema: &Object,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let media = negotiate::body_media(headers)?;
    let (value, unknown, duplicate) = match media {
        Media::Protobuf => {
            let unknown = proto::envelope::unwrap(body).map_err(|e| unrecognized(gvk, &e, body))?;
            let (av, kind) = (unknown.api_version.clone(), unknown.kind.clone());
            check_type(&av, &kind, gvk)?;
            let value = proto::decode(unknown.raw, schema).map_err(|e| cannot_be(&av, &kind, gvk, &e))?;
            (value, Vec::new(), Vec::new())
        }
        Media::Json | Media::Yaml => {
            let parsed = parse_text(media, body).map_err(|e| unrecognized(gvk, &e, body))?;
            let text = |key: &str| parsed.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (av, kind) = (text("apiVersion"), text("kind"));
            if !parsed.is_object() {
                let why = format!("{NO_TYPE}json: cannot unmarshal into Go value of type struct");
                return Err(unrecognized(gvk, &why, body));
            }
            check_type(&av, &kind, gvk)?;
            let decoded = match media {
                // From the bytes: fields that stand twice are seen only there.
                Media::Json => json::decode(body, schema),
                _ => json::decode_value(parsed, schema),
            };
            let decoded = decoded.map_err(|e| cannot_be(&av, &kind, gvk, &e))?;
            (decoded.value, decoded.unknown, decoded.duplicate)
        }
    };
    finish(value, unknown, duplicate, gvk, validation)
}

/// Decodes a value that is parsed already, the result of a patch for example.
pub fn value(value: Value, gvk: &Gvk, schema: &Object, validation: FieldValidation) -> Result<Decoded, Status> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (av, kind) = (text("apiVersion"), text("kind"));
    check_type(&av, &kind, gvk)?;
    let decoded = json::decode_value(value, schema).map_err(|e| cannot_be(&av, &kind, gvk, &e))?;
    finish(decoded.value, decoded.unknown, decoded.duplicate, gvk, validation)
}

fn finish(
    mut value: Value,
    unknown: Vec<String>,
    duplicate: Vec<String>,
    gvk: &Gvk,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".into(), gvk.api_version().into());
        object.insert("kind".into(), gvk.kind.clone().into());
    }
    let duplicates = duplicate.iter().map(|f| format!("duplicate field {f:?}"));
    let found: Vec<String> = unknown.iter().map(|f| format!("unknown field {f:?}")).chain(duplicates).collect();
    match validation {
        FieldValidation::Strict if !found.is_empty() => {
            let (kind, version) = (&gvk.kind, &gvk.version);
            let all = found.join(", ");
            let m =
                format!("{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {all}");
            Err(Status::bad_request(m))
        }
        FieldValidation::Warn => Ok(Decoded { value, warnings: found }),
        _ => Ok(Decoded { value, warnings: Vec::new() }),
    }
}

/// How upstream begins to say that a text is no object.
const NO_TYPE: &str = "couldn't get version/kind; json parse error: ";

/// Parses text of either syntax.
pub fn parse_text(media: Media, body: &[u8]) -> Result<Value, String> {
    match media {
        Media::Yaml => serde_yaml_ng::from_slice(body).map_err(|e| format!("yaml: {e}")),
        _ => serde_json::from_slice(body).map_err(|e| format!("{NO_TYPE}{e}")),
    }
}

fn check_type(api_version: &str, kind: &str, gvk: &Gvk) -> Result<(), Status> {
    let want = gvk.api_version();
    let version = if api_version.is_empty() { want.as_str() } else { api_version };
    let kind = if kind.is_empty() { gvk.kind.as_str() } else { kind };
    if kind == gvk.kind && version != want {
        return Err(Status::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({want})"
        )));
    }
    if kind != gvk.kind {
        let short = GroupVersion::parse(version).map(|gv| gv.version).unwrap_or_default();
        return Err(Status::bad_request(format!(
            "{kind} in version {short:?} cannot be handled as a {}: converting ({short}.{kind}) to ({}.{}): unknown conversion",
            gvk.kind, gvk.version, gvk.kind
        )));
    }
    Ok(())
}

fn cannot_be(api_version: &str, kind: &str, gvk: &Gvk, why: &dyn std::fmt::Display) -> Status {
    let version = GroupVersion::parse(api_version).map(|gv| gv.version).unwrap_or_else(|| gvk.version.clone());
    let kind = if kind.is_empty() { &gvk.kind } else { kind };
    Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {}: {why}", gvk.kind))
}

fn unrecognized(gvk: &Gvk, why: &dyn std::fmt::Display, body: &[u8]) -> Status {
    // Text where it looks like JSON, else its bytes, as upstream shows them.
    let start = &body[..body.len().min(30)];
    let shown = match body.first() {
        None => "<empty>".into(),
        Some(b'{') => String::from_utf8_lossy(start).into_owned(),
        Some(_) => hex::encode(start),
    };
    let shown = if body.len() > 30 { format!("{shown} ...") } else { shown };
    let m = format!("the object provided is unrecognized (must be of type {}): {why} ({shown})", gvk.kind);
    Status::bad_request(m)
}
