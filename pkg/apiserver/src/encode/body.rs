//! Response bodies: lists assembled from cached bytes in chunks, so that memory stays flat; gzip where it pays.

use crate::cache::entry::Entry;
use crate::encode::negotiate::{Form, Media, Shape};
use crate::encode::{json_bytes, partial, protobuf, served, splice, table, text, text_list, to_json};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderValue, StatusCode, header};
use isopod_kinds::Kind;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::io::Write;
use std::sync::Arc;

/// Smaller bodies are sent as they are: upstream's limit.
const GZIP_FROM: usize = 128 << 10;
const CHUNK: usize = 64 << 10;

/// What a list holds.
#[derive(Default)]
pub struct List {
    /// 0: the objects come from no store.
    pub revision: i64,
    pub continue_token: String,
    pub remaining: Option<u64>,
    pub entries: Vec<Arc<Entry>>,
}

impl List {
    pub fn meta(&self, kind: &Kind, form: &Form) -> Value {
        let mut meta = json!({});
        if self.revision > 0 {
            meta["resourceVersion"] = self.revision.to_string().into();
        }
        // Upstream's lists without a type of their own always say it.
        if !self.continue_token.is_empty() || kind.schema.custom && form.shape == Shape::Object {
            meta["continue"] = self.continue_token.clone().into();
        }
        if let Some(n) = self.remaining {
            meta["remainingItemCount"] = n.into();
        }
        meta
    }
}

/// A response with one body.
pub fn response(code: u16, form: &Form, bytes: Bytes) -> Response {
    let zip = form.gzip && bytes.len() >= GZIP_FROM;
    let body = if zip { gzip(&bytes) } else { bytes };
    finish(code, form, Body::from(body), zip)
}

fn finish(code: u16, form: &Form, body: Body, zipped: bool) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(form.media.name()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if zipped {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

/// Compressed, fast rather than small.
pub fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 6), Compression::new(1));
    // Writing into memory does not fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default().into()
}

/// The response of a list.
pub async fn list(kind: &Arc<Kind>, list: List, form: &Form, now: Timestamp) -> Response {
    match form.media {
        Media::Protobuf => protobuf::list(kind, list, form).await,
        Media::Json if !form.pretty => json_list(kind, list, form, now),
        _ => list_of_text(kind, list, form, now),
    }
}

/// The list in a form that is for people.
fn list_of_text(kind: &Arc<Kind>, mut list: List, form: &Form, now: Timestamp) -> Response {
    let (of_kind, of_form) = (kind.clone(), form.clone());
    let item = move |entry: &Entry| {
        let mut object = served(&of_kind, &entry.body);
        match of_form.shape {
            Shape::Object => {
                // Custom resources say theirs each.
                if !of_kind.schema.custom {
                    without_type(&mut object);
                }
                object
            }
            Shape::Table(_) => table::row(&of_kind, &object, &of_form, now),
            Shape::Metadata => partial(&of_kind, &object, &of_form),
        }
    };
    let (mut frame, items) = match form.shape {
        Shape::Object => (json!({"kind": kind.list_kind, "apiVersion": kind.gvk.api_version(), "items": []}), "items"),
        Shape::Table(_) => (table::table(kind, &[], "", form, now), "rows"),
        Shape::Metadata => {
            (json!({"kind": "PartialObjectMetadataList", "apiVersion": form.meta_version(), "items": []}), "items")
        }
    };
    frame["metadata"] = list.meta(kind, form);
    let size: usize = list.entries.iter().map(|e| e.body.len()).sum();
    if size > CHUNK {
        let entries = std::mem::take(&mut list.entries);
        return stream(text_list::chunks(frame, items, entries, form, item), size, form);
    }
    frame[items] = list.entries.iter().map(|e| item(e)).collect();
    response(200, form, text(&frame, form))
}

/// A list says the type of all its items.
fn without_type(object: &mut Value) {
    if let Some(object) = object.as_object_mut() {
        object.retain(|key, _| !matches!(key.as_str(), "apiVersion" | "kind"));
    }
}

/// The list in JSON.
fn json_list(kind: &Arc<Kind>, list: List, form: &Form, now: Timestamp) -> Response {
    let (kind_name, version, items) = match form.shape {
        Shape::Object => (kind.list_kind.clone(), kind.gvk.api_version(), "items"),
        Shape::Table(_) => ("Table".to_owned(), form.meta_version().to_owned(), "rows"),
        Shape::Metadata => ("PartialObjectMetadataList".to_owned(), form.meta_version().to_owned(), "items"),
    };
    let mut head =
        format!("{{\"kind\":\"{kind_name}\",\"apiVersion\":\"{version}\",\"metadata\":{}", list.meta(kind, form));
    if matches!(form.shape, Shape::Table(_)) {
        head.push_str(&format!(",\"columnDefinitions\":{}", table::columns(kind)));
    }
    head.push_str(&format!(",\"{items}\":["));

    let size: usize = list.entries.iter().map(|e| e.body.len()).sum();
    let (item_kind, item_form) = (kind.clone(), form.clone());
    let item = move |entry: &Entry, out: &mut Vec<u8>| match item_form.shape {
        Shape::Object => {
            let bytes = json_bytes(&item_kind, &entry.body);
            if item_kind.schema.custom {
                out.extend_from_slice(&bytes);
            } else if let Some((head, rest)) = splice::as_item(&bytes) {
                out.extend_from_slice(head);
                out.extend_from_slice(rest);
            } else {
                let mut value = served(&item_kind, &entry.body);
                without_type(&mut value);
                out.extend_from_slice(&to_json(&value));
            }
        }
        Shape::Table(_) => {
            let row = table::row(&item_kind, &served(&item_kind, &entry.body), &item_form, now);
            out.extend_from_slice(&to_json(&row));
        }
        Shape::Metadata => {
            out.extend_from_slice(&to_json(&partial(&item_kind, &served(&item_kind, &entry.body), &item_form)))
        }
    };
    stream(Chunks::new(head.into(), list.entries.into_iter(), b",", b"]}\n".into(), item), size, form)
}

/// The response of what is made while it is sent. `length`: about how long it becomes.
pub fn stream(chunks: impl Iterator<Item = Bytes> + Send + 'static, length: usize, form: &Form) -> Response {
    let zip = form.gzip && length >= GZIP_FROM;
    let sent = Ok::<_, std::convert::Infallible>;
    let body = if zip {
        Body::from_stream(futures::stream::iter(Zipped::new(chunks).map(sent)))
    } else {
        Body::from_stream(futures::stream::iter(chunks.map(sent)))
    };
    finish(200, form, body, zip)
}

/// A list in chunks of about [`CHUNK`] bytes: its head, its items with something between them, its tail.
pub struct Chunks<F> {
    /// What is to be sent next.
    next: Vec<u8>,
    entries: std::vec::IntoIter<Arc<Entry>>,
    /// In front of every item but the first.
    between: &'static [u8],
    tail: Option<Cow<'static, [u8]>>,
    first: bool,
    item: F,
}

impl<F: FnMut(&Entry, &mut Vec<u8>)> Chunks<F> {
    pub fn new(
        head: Vec<u8>,
        entries: std::vec::IntoIter<Arc<Entry>>,
        between: &'static [u8],
        tail: Cow<'static, [u8]>,
        item: F,
    ) -> Self {
        Chunks { next: head, entries, between, tail: Some(tail), first: true, item }
    }
}

impl<F: FnMut(&Entry, &mut Vec<u8>)> Iterator for Chunks<F> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.tail.as_ref()?;
        let mut out = std::mem::take(&mut self.next);
        if out.capacity() < CHUNK {
            out.reserve((CHUNK + (8 << 10)).min(4096 + self.entries.len() * 1024));
        }
        while out.len() < CHUNK {
            let Some(entry) = self.entries.next() else {
                out.extend_from_slice(&self.tail.take().unwrap_or_default());
                break;
            };
            if !std::mem::take(&mut self.first) {
                out.extend_from_slice(self.between);
            }
            (self.item)(&entry, &mut out);
        }
        Some(out.into())
    }
}

struct Zipped<I> {
    chunks: I,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl<I: Iterator<Item = Bytes>> Zipped<I> {
    fn new(chunks: I) -> Self {
        Zipped { chunks, encoder: Some(GzEncoder::new(Vec::new(), Compression::new(1))) }
    }
}

impl<I: Iterator<Item = Bytes>> Iterator for Zipped<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        loop {
            let encoder = self.encoder.as_mut()?;
            match self.chunks.next() {
                Some(chunk) => {
                    let _ = encoder.write_all(&chunk);
                    if encoder.get_ref().len() >= CHUNK / 4 {
                        return Some(std::mem::take(encoder.get_mut()).into());
                    }
                }
                None => return self.encoder.take().and_then(|e| e.finish().ok()).map(Bytes::from),
            }
        }
    }
}
