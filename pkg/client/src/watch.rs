//! Reading collections: paged lists, and watches cut into events from the stream's bytes. What the objects are decoded to is
//! the caller's business: none of this is compiled again for each type.

use crate::calls::{raw, status_of};
use crate::resource::Query;
use crate::{Error, ListScope, Resource, decode};
use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, header};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// Objects a page: bounds the memory of one answer.
const PAGE: &str = "500";

const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;q=0.9";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;q=0.9";

/// Takes the objects of a list, one after another.
pub(crate) trait Sink: Send {
    fn add(&mut self, object: &[u8]) -> Result<(), serde_json::Error>;
    /// The list starts again.
    fn clear(&mut self);
}

/// Objects of one type.
pub(crate) struct Items<T>(pub Vec<T>);

impl<T> Default for Items<T> {
    fn default() -> Self {
        Items(Vec::new())
    }
}

impl<T: DeserializeOwned + Send> Sink for Items<T> {
    fn add(&mut self, object: &[u8]) -> Result<(), serde_json::Error> {
        self.0.push(decode::from_slice(object)?);
        Ok(())
    }
    fn clear(&mut self) {
        self.0.clear();
    }
}

#[derive(Deserialize)]
struct Page<'a> {
    metadata: PageMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    token: String,
}

/// Lists everything in `scope` and returns the revision that it is from. When a continue token expires under way, the list
/// starts again in one piece.
pub(crate) async fn list(
    client: &Client,
    resource: &Resource,
    scope: &ListScope,
    metadata_only: bool,
    sink: &mut dyn Sink,
) -> Result<String, Error> {
    let accept = if metadata_only { METADATA_LIST } else { "application/json" };
    let path = resource.collection(&scope.namespace);
    let (mut token, mut limit) = (String::new(), PAGE);
    loop {
        let query = Query::default().scope(scope).set("limit", limit).set("continue", &token).on(&path);
        let bytes = match raw(client, Method::GET, &query, accept, None).await {
            Err(e) if e.is_expired() && !token.is_empty() => {
                sink.clear();
                token.clear();
                limit = "";
                continue;
            }
            other => other?,
        };
        let broken = |source| Error::Decode { what: query.clone(), source };
        let page: Page<'_> = serde_json::from_slice(&bytes).map_err(broken)?;
        for item in page.items.unwrap_or_default() {
            sink.add(item.get().as_bytes()).map_err(broken)?;
        }
        token = page.metadata.token;
        if token.is_empty() {
            return Ok(page.metadata.resource_version);
        }
    }
}

/// One event of a watch, its object as it came.
#[derive(Debug)]
pub(crate) enum Event {
    Applied(Bytes),
    Deleted(Bytes),
    /// Everything up to this revision has been seen.
    Bookmark(String),
}

/// An open watch.
pub(crate) struct Stream {
    what: String,
    body: Body,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no newline.
    searched: usize,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct BookmarkObject {
    metadata: PageMeta,
}

/// Opens a watch from `resource_version` on that the server ends after `timeout_seconds`.
pub(crate) async fn watch(
    client: &Client,
    resource: &Resource,
    scope: &ListScope,
    resource_version: &str,
    timeout_seconds: u64,
    metadata_only: bool,
) -> Result<Stream, Error> {
    let path = Query::default()
        .set("watch", "true")
        .set("allowWatchBookmarks", "true")
        .set("resourceVersion", resource_version)
        .set("timeoutSeconds", &timeout_seconds.to_string())
        .scope(scope)
        .on(&resource.collection(&scope.namespace));
    let request = Request::get(&path)
        .header(header::ACCEPT, if metadata_only { METADATA } else { "application/json" })
        .body(Body::empty())
        .map_err(|source| Error::Request { path: path.clone(), source })?;
    let response = client.send(request).await.map_err(Error::Transport)?;
    let code = response.status();
    if !code.is_success() {
        let bytes = response.into_body().collect_bytes().await.map_err(Error::Transport)?;
        return Err(Error::Status(status_of(code, &bytes)));
    }
    Ok(Stream { what: path, body: response.into_body(), buffer: BytesMut::new(), searched: 0 })
}

impl Stream {
    /// The next event; `None` when the server ended the watch in order. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(self.searched + at);
                self.buffer.advance(1);
                self.searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return self.decode(&line.freeze()).map(Some);
            }
            self.searched = self.buffer.len();
            match self.body.frame().await {
                None if self.buffer.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                // The last event may come without its newline.
                None => {
                    let line = self.buffer.split().freeze();
                    self.searched = 0;
                    let cut_off = |e| match e {
                        Error::Decode { .. } => Error::CutOff { what: self.what.clone() },
                        other => other,
                    };
                    return self.decode(&line).map(Some).map_err(cut_off);
                }
                Some(frame) => {
                    if let Ok(data) = frame.map_err(Error::Transport)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    fn decode(&self, line: &Bytes) -> Result<Event, Error> {
        let broken = |source| Error::Decode { what: self.what.clone(), source };
        let wire: Wire<'_> = serde_json::from_slice(line).map_err(broken)?;
        let object = wire.object.get();
        Ok(match wire.kind {
            "ADDED" | "MODIFIED" => Event::Applied(line.slice_ref(object.as_bytes())),
            "DELETED" => Event::Deleted(line.slice_ref(object.as_bytes())),
            "BOOKMARK" => {
                let b: BookmarkObject = serde_json::from_str(object).map_err(broken)?;
                Event::Bookmark(b.metadata.resource_version)
            }
            _ => return Err(Error::Status(status_of(http::StatusCode::INTERNAL_SERVER_ERROR, object.as_bytes()))),
        })
    }

    /// What is watched, for errors.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }
}
