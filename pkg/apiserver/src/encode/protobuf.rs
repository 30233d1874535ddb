//! Objects and lists in protobuf, made from cached JSON while they are sent.
//!
//! A list's length stands at its beginning. So each item's is found first: the beginning of the list is held meanwhile, the other
//! items are made again when they are sent if their entries have no room to keep them. Memory is bounded whatever is listed.

use crate::cache::entry::Entry;
use crate::encode::body::{self, Chunks, List};
use crate::encode::negotiate::{Form, Shape};
use crate::encode::{differs, json_bytes, meta_object, partial, served, to_json};
use axum::response::Response;
use bytes::Bytes;
use isopod_kinds::Kind;
use isopod_schema::proto::{self, Encoder, envelope, wire};
use isopod_schema::types::Object;
use std::sync::Arc;

/// So much of a list is held while the length of the rest is found.
const AT_HAND: usize = 1 << 20;
/// After so many bytes it is another request's turn.
const TURN: usize = 256 << 10;

/// An entry's body in a form, in its envelope.
pub fn object(kind: &Kind, body: &Bytes, form: &Form) -> Bytes {
    let mut encoder = Encoder::default();
    let raw = message(&mut encoder, kind, form, &schema(kind, form), body);
    let (api_version, name) = match form.shape {
        Shape::Metadata => (form.meta_version().to_owned(), "PartialObjectMetadata"),
        _ => (kind.gvk.api_version(), kind.gvk.kind.as_str()),
    };
    envelope::wrap(&api_version, name, raw).into()
}

/// As [`object`], of a whole entry: its message is kept.
pub fn entry(kind: &Arc<Kind>, entry: &Entry, form: &Form) -> Bytes {
    let mut items = Items::new(kind, form);
    if !items.remembers {
        return object(kind, &entry.body, form);
    }
    items.message(entry, |message| envelope::wrap(&kind.gvk.api_version(), &kind.gvk.kind, message).into())
}

/// The response of a list. All lists are alike: `metadata` is field 1, `items` is field 2.
pub async fn list(kind: &Arc<Kind>, list: List, form: &Form) -> Response {
    let mut items = Items::new(kind, form);
    let meta = meta_object("ListMeta").map(|o| proto::encode(&list.meta(kind, form), &o)).unwrap_or_default();
    let mut first = Vec::with_capacity(4096);
    wire::put_bytes(&mut first, 1, &meta);
    let mut entries = list.entries.into_iter();
    let mut turn = Turn::default();
    while first.len() < AT_HAND
        && let Some(entry) = entries.next()
    {
        items.put(&entry, &mut first);
        turn.took(entry.body.len()).await;
    }
    let mut length = first.len();
    for entry in entries.as_slice() {
        length += items.length(entry);
        turn.took(entry.body.len()).await;
    }
    let (api_version, name) = match form.shape {
        Shape::Metadata => (form.meta_version().to_owned(), "PartialObjectMetadataList"),
        _ => (kind.gvk.api_version(), kind.list_kind.as_str()),
    };
    if entries.as_slice().is_empty() {
        return body::response(200, form, envelope::wrap(&api_version, name, &first).into());
    }
    let mut head = envelope::head(&api_version, name, length);
    head.append(&mut first);
    let length = head.len() + length + envelope::TAIL.len();
    let chunks = Chunks::new(head, entries, b"", envelope::TAIL.into(), move |entry: &Entry, out: &mut Vec<u8>| {
        items.put(entry, out)
    });
    body::stream(chunks, length, form)
}

/// What of a kind's objects a form shows.
fn schema(kind: &Kind, form: &Form) -> Arc<Object> {
    let metadata = (form.shape == Shape::Metadata).then(|| meta_object("PartialObjectMetadata")).flatten();
    metadata.unwrap_or_else(|| kind.schema.clone())
}

/// The message of an entry's body.
fn message<'a>(encoder: &'a mut Encoder, kind: &Kind, form: &Form, schema: &Object, body: &Bytes) -> &'a [u8] {
    let hides = form.shape == Shape::Metadata && !kind.hooks.internal_annotations().is_empty();
    if hides {
        return encoder.encode(&to_json(&partial(kind, &served(kind, body), form)), schema);
    }
    // What a schema does not have is not written: neither the type nor, of metadata, all the rest.
    encoder.encode(&json_bytes(kind, body), schema)
}

/// The items of a list, one after the other.
struct Items {
    kind: Arc<Kind>,
    form: Form,
    schema: Arc<Object>,
    encoder: Encoder,
    /// Lengths are those that entries remember.
    remembers: bool,
}

impl Items {
    fn new(kind: &Arc<Kind>, form: &Form) -> Self {
        let remembers = form.shape == Shape::Object && !differs(kind);
        Items {
            kind: kind.clone(),
            form: form.clone(),
            schema: schema(kind, form),
            encoder: Encoder::default(),
            remembers,
        }
    }

    /// The message of an entry, to be used at once.
    fn message<T>(&mut self, entry: &Entry, used: impl FnOnce(&[u8]) -> T) -> T {
        if let Some(kept) = entry.message.kept().filter(|_| self.remembers) {
            return used(&kept);
        }
        let message = message(&mut self.encoder, &self.kind, &self.form, &self.schema, &entry.body);
        if self.remembers {
            entry.message.remember(message);
        }
        used(message)
    }

    /// Writes the item's field.
    fn put(&mut self, entry: &Entry, out: &mut Vec<u8>) {
        self.message(entry, |message| wire::put_bytes(out, 2, message));
    }

    /// The length of the item's field.
    fn length(&mut self, entry: &Entry) -> usize {
        let known = entry.message.length().filter(|_| self.remembers);
        wire::field_length(2, known.unwrap_or_else(|| self.message(entry, <[u8]>::len)))
    }
}

/// Lets other requests on when enough was done for one.
#[derive(Default)]
struct Turn(usize);

impl Turn {
    async fn took(&mut self, bytes: usize) {
        self.0 += bytes;
        if self.0 >= TURN {
            self.0 = 0;
            tokio::task::yield_now().await;
        }
    }
}
