//! What an answer was, for its event: read from the bytes that go out, and only at the level that records it.

use super::trail::End;
use crate::encode::meta_object;
use crate::encode::negotiate::{JSON, PROTOBUF, YAML};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header;
use http_body::{Body as _, Frame, SizeHint};
use isopod_api::{GroupVersion, Gvk};
use isopod_schema::{facts, proto};
use serde_json::{Value, json};
use std::io::Read;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The `Status` of an answer that is one though nothing failed.
#[derive(Clone)]
pub struct Shown(pub Value);

/// `responseStatus`: of a `Status` what has bounds, and the code.
pub fn bounded_status(status: &Value, code: u16) -> Value {
    let mut out = json!({"metadata": {}, "code": code});
    for key in ["status", "message", "reason", "details"] {
        if let Some(value) = status.get(key).filter(|v| !v.is_null() && **v != json!("")) {
            out[key] = value.clone();
        }
    }
    out
}

/// The owners of fields of an object, of a list's items and of a table's rows go.
pub fn drop_managed_fields(object: &mut Value) {
    let drop = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    drop(object);
    let array = |object: &mut Value, key: &str| object.get_mut(key).and_then(Value::as_array_mut).map(std::mem::take);
    if let Some(mut items) = array(object, "items") {
        items.iter_mut().for_each(drop);
        object["items"] = items.into();
    }
    if let Some(mut rows) = array(object, "rows") {
        rows.iter_mut().filter_map(|row| row.get_mut("object")).for_each(drop);
        object["rows"] = rows.into();
    }
}

/// The body of an answer, as far as it is out.
pub struct Kept {
    media: String,
    zipped: bool,
    bytes: Vec<u8>,
}

impl Kept {
    /// `None`: it is no object.
    pub fn of(response: &Response) -> Option<Self> {
        let text = |name| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let media = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_owned();
        let zipped = text(header::CONTENT_ENCODING) == "gzip";
        [JSON, YAML, PROTOBUF].contains(&media.as_str()).then(|| Kept { media, zipped, bytes: Vec::new() })
    }

    pub fn with(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The object as JSON on one line.
    pub fn object(self, without_managed_fields: bool) -> Option<String> {
        let bytes = match self.zipped {
            true => {
                let mut out = Vec::new();
                flate2::read::GzDecoder::new(&self.bytes[..]).read_to_end(&mut out).ok()?;
                out
            }
            false => self.bytes,
        };
        if self.media == JSON && !without_managed_fields {
            return String::from_utf8(bytes).ok().map(|text| super::event::compact(&text));
        }
        let mut object = match self.media.as_str() {
            JSON => isopod_schema::json::read(&bytes).ok()?,
            YAML => isopod_schema::yaml::parse(&bytes).ok()?.value,
            _ => of_protobuf(&bytes)?,
        };
        if without_managed_fields {
            drop_managed_fields(&mut object);
        }
        Some(object.to_string())
    }
}

fn of_protobuf(bytes: &[u8]) -> Option<Value> {
    let unknown = proto::envelope::unwrap(bytes).ok()?;
    let gv = GroupVersion::parse(&unknown.api_version)?;
    let schema = |kind: &str| {
        let known = facts::builtin().object_of(&Gvk::new(gv.group.clone(), gv.version.clone(), kind.to_owned()));
        known.or_else(|| meta_object(kind))
    };
    let mut value = match (schema(&unknown.kind), unknown.kind.strip_suffix("List")) {
        (Some(schema), _) => proto::decode(unknown.raw, &schema).ok()?,
        (None, Some(item)) => {
            let (item, meta) = (schema(item)?, meta_object("ListMeta")?);
            let (mut metadata, mut items) = (json!({}), Vec::new());
            for (field, bytes) in fields(unknown.raw)? {
                match field {
                    1 => metadata = proto::decode(bytes, &meta).ok()?,
                    _ => items.push(proto::decode(bytes, &item).ok()?),
                }
            }
            json!({"metadata": metadata, "items": items})
        }
        (None, None) => return None,
    };
    value["apiVersion"] = unknown.api_version.as_str().into();
    value["kind"] = unknown.kind.as_str().into();
    Some(value)
}

/// The length-delimited fields of a message that has no others.
fn fields(mut raw: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    fn varint(raw: &mut &[u8]) -> Option<u64> {
        let mut out = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = raw.split_first()?;
            *raw = rest;
            out |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(out);
            }
        }
        None
    }
    let mut all = Vec::new();
    while !raw.is_empty() {
        let tag = varint(&mut raw)?;
        let size = usize::try_from(varint(&mut raw)?).ok()?;
        let (bytes, rest) = (tag & 7 == 2).then(|| raw.split_at_checked(size)).flatten()?;
        all.push((tag >> 3, bytes));
        raw = rest;
    }
    Some(all)
}

/// A body whose end is told, also when nobody reads it to the end.
pub struct Followed {
    pub(super) body: Body,
    pub(super) end: End,
    pub(super) kept: Option<Kept>,
}

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(kept), Some(data)) = (&mut self.kept, frame.data_ref()) {
                    kept.bytes.extend_from_slice(data);
                }
            }
            _ => {
                let kept = self.kept.take();
                self.end.tell(kept);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let whole = self.body.is_end_stream();
        let kept = self.kept.take().filter(|_| whole);
        self.end.tell(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_schema::proto::wire::put_bytes;

    #[test]
    fn managed_fields_go_from_objects_lists_and_tables() {
        let object = json!({"metadata": {"name": "a", "managedFields": [1]}});
        let mut one = object.clone();
        drop_managed_fields(&mut one);
        assert_eq!(one, json!({"metadata": {"name": "a"}}));
        let mut list = json!({"items": [object], "rows": [{"object": object}]});
        drop_managed_fields(&mut list);
        assert_eq!(
            list,
            json!({"items": [{"metadata": {"name": "a"}}], "rows": [{"object": {"metadata": {"name": "a"}}}]})
        );
    }

    #[test]
    fn lists_are_read_from_protobuf() {
        let schema = facts::builtin().object_of(&Gvk::new("", "v1", "ConfigMap")).unwrap();
        let item = proto::encode(&json!({"metadata": {"name": "a"}, "data": {"b": "c"}}), &schema);
        let mut raw = Vec::new();
        put_bytes(&mut raw, 1, &proto::encode(&json!({"resourceVersion": "7"}), &meta_object("ListMeta").unwrap()));
        put_bytes(&mut raw, 2, &item);
        let bytes = proto::envelope::wrap("v1", "ConfigMapList", &raw);
        let list = of_protobuf(&bytes).unwrap();
        assert_eq!(list["kind"], "ConfigMapList");
        assert_eq!(list["metadata"]["resourceVersion"], "7");
        assert_eq!(list["items"][0]["data"]["b"], "c");
        assert!(of_protobuf(&bytes[..bytes.len() - 3]).is_none());
    }
}
