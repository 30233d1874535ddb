//! Request bodies: read within a limit, decoded by content type against a schema, with upstream's errors.

use crate::encode::negotiate::{self, Media};
use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use isopod_api::{GroupVersion, Gvk, Status};
use isopod_schema::types::Object;
use isopod_schema::{json, proto, yaml};
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

/// Why what could be read is no object of the wanted type.
#[derive(Debug)]
pub enum Refusal {
    /// It cannot be decoded; upstream says into what in front of it.
    Undecodable(String),
    /// It is the same kind in another version.
    Version(String),
}

impl Refusal {
    /// The reason alone.
    pub fn why(self) -> String {
        match self {
            Refusal::Undecodable(why) | Refusal::Version(why) => why,
        }
    }

    /// The answer to a body that says it is a `kind` of `api_version`.
    fn status(self, api_version: &str, kind: &str, gvk: &Gvk) -> Status {
        match self {
            Refusal::Undecodable(why) => {
                let version = GroupVersion::parse(api_version).map_or_else(|| gvk.version.clone(), |gv| gv.version);
                let kind = if kind.is_empty() { &gvk.kind } else { kind };
                let m = format!("{kind} in version {version:?} cannot be handled as a {}: {why}", gvk.kind);
                Status::bad_request(m)
            }
            Refusal::Version(why) => Status::bad_request(why),
        }
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
    let media = negotiate::body_media(headers, schema.custom)?;
    if media == Media::Protobuf {
        let unknown = proto::envelope::unwrap(body).map_err(|e| unrecognized(gvk, &e, body))?;
        let (av, kind) = (unknown.api_version.as_str(), unknown.kind.as_str());
        let decoded = check_type(av, kind, gvk, schema).and_then(|()| {
            let value = proto::decode(unknown.raw, schema).map_err(|e| Refusal::Undecodable(e.to_string()))?;
            Ok(Decoded { value: typed(value, gvk), warnings: Vec::new() })
        });
        return decoded.map_err(|e| e.status(av, kind, gvk));
    }
    if media == Media::Json
        && let Some(decoded) = at_once(body, gvk, schema, validation)
    {
        return Ok(decoded);
    }
    let mut repeated = Vec::new();
    let parsed = match media {
        Media::Json => json::texts(body, &["apiVersion", "kind"]).map_err(|e| format!("{NO_TYPE}{e}")),
        _ => yaml::parse(body).map_err(|e| e.to_string()).map(|document| {
            repeated = document.repeated;
            document.value
        }),
    };
    let parsed = parsed.map_err(|e| unrecognized(gvk, &e, body))?;
    let (av, kind) = stated_type(&parsed, schema).map_err(|e| unrecognized(gvk, &e, body))?;
    if schema.custom {
        complete(&av, &kind, body).map_err(|e| unrecognized(gvk, &e, body))?;
    }
    let decoded = check_type(&av, &kind, gvk, schema).and_then(|()| {
        let decoded = match media {
            // From the bytes: fields that stand twice are seen only there.
            Media::Json => json::decode(body, schema),
            _ => json::decode_value(parsed, schema),
        };
        finish(decoded, repeated, gvk, schema, validation)
    });
    decoded.map_err(|e| e.status(&av, &kind, gvk))
}

/// Decodes what is clearly a `gvk` in one pass; `None`: not so, or there is something to say about it.
fn at_once(body: &[u8], gvk: &Gvk, schema: &Object, validation: FieldValidation) -> Option<Decoded> {
    let decoded = json::decode(body, schema).ok()?;
    let states = |key: &str, wanted: &str| decoded.value.get(key).and_then(Value::as_str) == Some(wanted);
    let clear = states("kind", &gvk.kind) && states("apiVersion", &gvk.api_version()) && decoded.strict.is_empty();
    clear.then(|| finish(Ok(decoded), Vec::new(), gvk, schema, validation).ok()).flatten()
}

/// Decodes a value that is parsed already, the result of an apply for example.
pub fn value(value: Value, gvk: &Gvk, schema: &Object, validation: FieldValidation) -> Result<Decoded, Status> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (av, kind) = (text("apiVersion"), text("kind"));
    parsed(value, gvk, schema, validation).map_err(|e| e.status(&av, &kind, gvk))
}

/// As [`value`], for callers that answer in words of their own.
pub fn parsed(value: Value, gvk: &Gvk, schema: &Object, validation: FieldValidation) -> Result<Decoded, Refusal> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    check_type(text("apiVersion"), text("kind"), gvk, schema)?;
    finish(json::decode_value(value, schema), Vec::new(), gvk, schema, validation)
}

/// A custom resource has to say what it is.
fn complete(api_version: &str, kind: &str, body: &[u8]) -> Result<(), String> {
    let missing = [("Kind", kind), ("apiVersion", api_version)].into_iter().find(|(_, v)| v.is_empty());
    match missing {
        Some((what, _)) => Err(format!("Object '{what}' is missing in '{}'", String::from_utf8_lossy(body))),
        None => Ok(()),
    }
}

pub fn typed(mut value: Value, gvk: &Gvk) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".into(), gvk.api_version().into());
        object.insert("kind".into(), gvk.kind.clone().into());
    }
    value
}

/// `repeated`: the keys of a text of YAML that stood twice.
fn finish(
    decoded: Result<json::Decoded, json::DecodeError>,
    repeated: Vec<String>,
    gvk: &Gvk,
    schema: &Object,
    validation: FieldValidation,
) -> Result<Decoded, Refusal> {
    let mut decoded = decoded.map_err(|e| Refusal::Undecodable(e.to_string()))?;
    // What a custom resource says it is its validation looks at.
    let value = if schema.custom { decoded.value } else { typed(decoded.value, gvk) };
    if schema.custom {
        // Metadata is looked at first, the rest is pruned as a whole.
        decoded.unknown.sort_by_key(|path| (!path.starts_with("metadata."), path.contains(".metadata."), path.clone()));
    }
    let duplicates = decoded.duplicate.iter().map(|f| format!("duplicate field {f:?}"));
    let unknown = decoded.unknown.iter().map(|f| format!("unknown field {f:?}"));
    // An error is one for all of them, a warning one for each.
    let mut found = match validation {
        FieldValidation::Strict => yaml::strictly(&repeated).into_iter().collect(),
        _ => repeated,
    };
    if schema.custom {
        found.extend(duplicates.chain(unknown))
    } else {
        found.extend(unknown.chain(duplicates))
    }
    match validation {
        FieldValidation::Strict if !found.is_empty() => {
            Err(Refusal::Undecodable(format!("strict decoding error: {}", found.join(", "))))
        }
        FieldValidation::Warn => Ok(Decoded { value, warnings: found }),
        _ => Ok(Decoded { value, warnings: Vec::new() }),
    }
}

/// How upstream begins to say that a text is no object.
pub const NO_TYPE: &str = "couldn't get version/kind; json parse error: ";

/// Parses text of either syntax.
pub fn parse_text(media: Media, body: &[u8]) -> Result<Value, String> {
    match media {
        Media::Yaml => yaml::parse(body).map(|document| document.value).map_err(|e| e.to_string()),
        _ => json::parse(body).map_err(|e| format!("{NO_TYPE}{e}")),
    }
}

/// The type that upstream looks for in a text before it decodes it, as Go shows it.
pub const TYPE_STRUCT: &str =
    r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

/// How Go says that a value does not fit into a type. Clients see the type's name.
pub fn unfit(value: &Value, go: &str) -> String {
    format!("json: cannot unmarshal {} into Go value of type {go}", go_noun(value))
}

/// JSON's sorts of values in Go's words.
pub fn go_noun(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::Null => "null",
    }
}

/// `apiVersion` and `kind` of a text. `null` is an empty object to Go, but for custom resources.
fn stated_type(parsed: &Value, schema: &Object) -> Result<(String, String), String> {
    if !(parsed.is_object() || (parsed.is_null() && !schema.custom)) {
        return Err(format!("{NO_TYPE}{}", unfit(parsed, TYPE_STRUCT)));
    }
    let text = |key: &str| match parsed.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(s)) => Ok(s.clone()),
        Some(v) => {
            Err(format!("{NO_TYPE}json: cannot unmarshal {} into Go struct field .{key} of type string", go_noun(v)))
        }
    };
    let (api_version, kind) = (text("apiVersion")?, text("kind")?);
    if !api_version.is_empty() && GroupVersion::parse(&api_version).is_none() {
        return Err(format!("unexpected GroupVersion string: {api_version}"));
    }
    Ok((api_version, kind))
}

/// Where upstream makes the table of its types, which its errors name.
const SCHEME: &str = "pkg/runtime/scheme.go:111";

/// A body that says what it is must be a `gvk`.
fn check_type(api_version: &str, kind: &str, gvk: &Gvk, schema: &Object) -> Result<(), Refusal> {
    let want = gvk.api_version();
    let version = if api_version.is_empty() { want.as_str() } else { api_version };
    let kind = if kind.is_empty() { gvk.kind.as_str() } else { kind };
    if (kind == gvk.kind || schema.custom) && version == want {
        return Ok(());
    }
    let gv = GroupVersion::parse(version).unwrap_or_else(|| GroupVersion::new("", ""));
    let stated = Gvk::new(&gv.group, &gv.version, kind);
    // Custom resources are whatever they say they are.
    if !schema.custom && isopod_schema::facts::builtin().object_of(&stated).is_none() {
        let why = format!("no kind {kind:?} is registered for version {version:?} in scheme {SCHEME:?}");
        return Err(Refusal::Undecodable(why));
    }
    if kind == gvk.kind || schema.custom {
        let why = "does not match the expected API version";
        return Err(Refusal::Version(format!("the API version in the data ({version}) {why} ({want})")));
    }
    let (from, to) = (format!("{}.{kind}", gv.version), isopod_kinds::golang::internal_type(gvk));
    Err(Refusal::Undecodable(format!("converting ({from}) to ({to}): unknown conversion")))
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
