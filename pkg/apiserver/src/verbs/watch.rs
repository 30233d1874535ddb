//! WATCH: a stream of events over one response. Headers go out before the first event.
//!
//! Invariants: a watcher sees every change of its selection once and in order; a bookmark is sent only after all events up to
//! its revision; what cannot be told any more ends with an ERROR event that says 410.

use super::Call;
use super::list::Seen;
use crate::ApiServer;
use crate::cache::away;
use crate::cache::entry::{Entry, Filter};
use crate::cache::resource::{Cache, Change};
use crate::cache::watcher::{Delivery, EventType, History};
use crate::connection::Deadline;
use crate::conversion;
use crate::encode::negotiate::{Form, Media, Shape};
use crate::encode::{self, table, to_json};
use crate::fairness::Beginning;
use crate::lasting::Lasting;
use crate::metrics::Events;
use crate::options::ListOptions;
use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderValue, Request, header};
use isopod_api::Status;
use isopod_kinds::Kind;
use isopod_schema::proto;
use isopod_store::Revision;
use isopod_streaming::Refusal;
use isopod_streaming::messages::{self, Messages};
use isopod_streaming::negotiate::{Transport, transport};
use jiff::Timestamp;
use rand::Rng;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// How often a quiet watcher learns the revision that it has reached.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// Events that are there at the same time go out together.
const CHUNK: usize = 64 << 10;
/// Of the length in front of an event of protobuf.
const LENGTH: usize = 4;

pub async fn watch(server: &Arc<ApiServer>, mut call: Call) -> Result<Response, Status> {
    let form = call.form()?;
    if form.media == Media::Yaml {
        let m = "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
        return Err(Status::not_acceptable(m));
    }
    let options = ListOptions::parse(&call.query, true)?;
    let filter = call.filter()?;
    let kind = call.stored_kind(server);
    // Nothing said means the newest; 0 means what is there.
    let cache = match options.resource_version {
        None => server.hub.fresh_cache(&kind).await?.0,
        Some(_) => server.hub.cache(&kind).await?,
    };
    if form.media == Media::Protobuf {
        server.hub.keep_messages();
    }
    let mut encoder = Encoder { kind: call.kind.clone(), form: form.clone(), headers_sent: false, now: call.now };
    // With it goes the watch's seat.
    let beginning = call.parts.extensions.remove::<Beginning>();
    let socket = match transport(&call.parts.headers) {
        Some(Transport::WebSocket) => Some(accept(&mut call, &form)),
        _ => None,
    };
    let started = start(server, &call.kind, &cache, &filter, &options).await;
    let mut stream = match (started, &socket) {
        (Ok(started), _) => Stream::new(server, cache, filter, &options, started, encoder),
        (Err(status), None) if status.code != 503 => {
            let mut response = response(&form, Body::from(encoder.error(&status)));
            response.extensions_mut().insert(Deadline::soon());
            return Ok(response);
        }
        (Err(status), _) => return Err(status),
    };
    stream.single = socket.is_some();
    stream.beginning = beginning;
    // Who does not read does not see it end either.
    let deadline = Deadline(stream.end + server.config.request_timeout);
    // In a box: it goes from hand to hand with every frame.
    let stream = futures::stream::unfold(Box::new(stream), |mut s| async move {
        let frame = s.next().await?;
        Some((Ok::<_, Infallible>(frame), s))
    });
    match socket {
        None => {
            let mut response = response(&form, Body::from_stream(stream));
            response.extensions_mut().insert(deadline);
            Ok(response)
        }
        Some(Err(refusal)) => Ok(refusal.response()),
        Some(Ok((mut switching, messages))) => {
            let lengths = if form.media == Media::Protobuf { LENGTH } else { 0 };
            // A message has its own length.
            let events = stream.map(move |frame| frame.map(|f| f.slice(lengths.min(f.len())..)));
            Lasting::run(&mut switching, async move {
                if let Err(e) = messages.send(events).await {
                    tracing::debug!(error = %e, "a watch over a WebSocket ended");
                }
            });
            Ok(switching)
        }
    }
}

/// The answer to a client that wants its events as the messages of a WebSocket.
fn accept(call: &mut Call, form: &Form) -> Result<(Response, Messages), Refusal> {
    let mut request = Request::new(());
    *request.headers_mut() = call.parts.headers.clone();
    std::mem::swap(request.extensions_mut(), &mut call.parts.extensions);
    messages::accept_events(&mut request, form.media != Media::Protobuf)
}

fn response(form: &Form, body: Body) -> Response {
    let mut response = Response::new(body);
    let content_type = match form.media {
        Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => form.media.name(),
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// What a watch begins with.
struct Started {
    receiver: mpsc::Receiver<Delivery>,
    /// Existing objects, sent as ADDED.
    initial: VecDeque<Arc<Entry>>,
    /// Changes since the revision that the client knows.
    missed: VecDeque<Arc<Change>>,
    /// The revision of the initial objects, where the client wants to be told that it has them all.
    initial_end: Option<Revision>,
    revision: Revision,
}

async fn start(
    server: &ApiServer,
    kind: &Arc<Kind>,
    cache: &Arc<Cache>,
    filter: &Filter,
    options: &ListOptions,
) -> Result<Started, Status> {
    let seen = Seen::new(&cache.kind, kind);
    let version = options.resource_version;
    let from_state = match (options.send_initial_events, version) {
        (Some(initial), _) => initial,
        (None, v) => v.unwrap_or(0) == 0,
    };
    // A number means at least that. What follows a revision that is still to come is waited for by the watch itself.
    if let Some(v) = version.filter(|v| *v > 0 && from_state) {
        server.hub.wait_for_client(v).await?;
    }
    if from_state {
        // Looked at before the content: what comes in between is an event.
        let reached = server.hub.revision();
        let (receiver, snapshot) = cache.subscribe_with_snapshot(seen.of_changes(filter));
        if cache.is_expired() {
            return Err(away("the caches begin anew"));
        }
        let prefix = filter.key_prefix(&cache.kind);
        let under = snapshot
            .entries
            .range(Arc::<str>::from(prefix.as_str())..)
            .take_while(|(k, _)| k.starts_with(prefix.as_str()));
        let initial = seen.select(server, filter, under.map(|(_, e)| e)).await?.into();
        let revision = snapshot.revision.max(if version == Some(0) { 0 } else { reached });
        let wants_end = options.send_initial_events == Some(true) && options.bookmarks;
        let initial_end = wants_end.then_some(revision);
        return Ok(Started { receiver, initial, missed: VecDeque::new(), initial_end, revision });
    }
    let after = match version.unwrap_or(0) {
        0 => server.hub.revision(),
        v => v,
    };
    let changes = seen.of_changes(filter);
    let (receiver, history) = cache.subscribe(changes.clone(), after);
    let missed = match history {
        History::Ring(changes) => changes,
        History::Store { until } => cache.history(after, until, &changes).await?,
    };
    Ok(Started { receiver, initial: VecDeque::new(), missed: missed.into(), initial_end: None, revision: after })
}

/// A running watch.
struct Stream {
    server: Arc<ApiServer>,
    cache: Arc<Cache>,
    filter: Filter,
    started: Started,
    encoder: Encoder,
    /// `None`: the client wants no bookmarks.
    next_bookmark: Option<Instant>,
    bookmark_due: Option<Revision>,
    /// Changes are of other versions.
    converts: bool,
    end: Instant,
    timer: Pin<Box<Sleep>>,
    /// The server stops.
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Events do not leave together.
    single: bool,
    ended: bool,
    /// Its seat, until all is sent that was there at its start.
    beginning: Option<Beginning>,
    events: Events,
    /// When it began.
    began: Instant,
}

impl Stream {
    fn new(
        server: &Arc<ApiServer>,
        cache: Arc<Cache>,
        filter: Filter,
        options: &ListOptions,
        started: Started,
        encoder: Encoder,
    ) -> Self {
        let seconds = options.timeout_seconds.filter(|s| *s > 0);
        let least = server.config.min_request_timeout.as_secs();
        let seconds = seconds.unwrap_or_else(|| rand::rng().random_range(least..=2 * least));
        let now = Instant::now();
        let events = server.metrics.watches.events(&encoder.kind);
        let end = now + Duration::from_secs(seconds);
        let next_bookmark = options.bookmarks.then_some(now + BOOKMARKS);
        let timer = Box::pin(tokio::time::sleep_until(next_bookmark.unwrap_or(end).min(end)));
        Stream {
            server: server.clone(),
            converts: conversion::converts(&cache.kind),
            cache,
            filter,
            started,
            encoder,
            next_bookmark,
            bookmark_due: None,
            end,
            timer,
            stop: Box::pin(server.stop.clone().cancelled_owned()),
            single: false,
            ended: false,
            beginning: None,
            events,
            began: now,
        }
    }

    /// The next bytes; `None` ends the response.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Frames::default();
        loop {
            if out.len() >= CHUNK {
                return out.take();
            }
            if let Some(frame) = self.ready().await {
                self.events.sent(frame.len());
                if self.single {
                    return Some(frame);
                }
                out.push(frame);
                continue;
            }
            if let Some(bytes) = out.take() {
                return Some(bytes);
            }
            if self.ended {
                return None;
            }
            self.wait().await;
        }
    }

    /// A frame that needs no waiting.
    async fn ready(&mut self) -> Option<Bytes> {
        if let Some(entry) = self.started.initial.pop_front() {
            return Some(self.encoder.initial(&entry));
        }
        while let Some(change) = self.started.missed.pop_front() {
            if let Some(frame) = self.seen(&change).await {
                return Some(frame);
            }
        }
        if let Some(revision) = self.started.initial_end.take() {
            let in_namespace = !self.filter.namespace.is_empty();
            self.server.metrics.watches.listed(&self.encoder.kind, in_namespace, self.began.elapsed());
            return Some(self.encoder.bookmark(revision, true));
        }
        if let Some(beginning) = &self.beginning {
            beginning.over();
        }
        loop {
            match self.started.receiver.try_recv() {
                Ok((ty, change)) if !self.converts => return Some(self.encoder.change(ty, &change)),
                Ok((_, change)) => {
                    if let Some(frame) = self.seen(&change).await {
                        return Some(frame);
                    }
                }
                // Ended for being too slow, or the cache starts anew: the client comes again from where it was.
                // It may have missed something: there is no revision that it has certainly reached.
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    self.ended = true;
                    return None;
                }
                Err(mpsc::error::TryRecvError::Empty) => break,
            }
        }
        // Everything up to the bookmark's revision was queued before the revision was read.
        let revision = self.bookmark_due.take()?;
        Some(self.encoder.bookmark(revision.max(self.started.revision), false))
    }

    /// The frame of a change, if it is one for this watcher. One that cannot be converted ends the watch.
    async fn seen(&mut self, change: &Arc<Change>) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        match self.server.change_view(&self.encoder.kind, change).await {
            Ok(change) => {
                let kind = if self.converts { &self.encoder.kind } else { &self.cache.kind };
                change.seen_by(kind, &self.filter).map(|ty| self.encoder.change(ty, &change))
            }
            Err(status) => {
                self.ended = true;
                Some(self.encoder.error(&status))
            }
        }
    }

    async fn wait(&mut self) {
        tokio::select! {
            biased;
            received = self.started.receiver.recv() => match received {
                Some((_, change)) => self.started.missed.push_back(change),
                None => self.ended = true,
            },
            () = &mut self.stop => self.ended = true,
            () = &mut self.timer => {
                let now = Instant::now();
                self.ended = now >= self.end;
                if self.next_bookmark.is_some_and(|at| now >= at) {
                    self.bookmark_due = Some(self.server.hub.revision());
                    self.next_bookmark = Some(now + BOOKMARKS);
                }
                self.timer.as_mut().reset(self.next_bookmark.unwrap_or(self.end).min(self.end));
            }
        }
    }
}

/// Frames that leave together; a single one is not copied.
#[derive(Default)]
struct Frames {
    first: Option<Bytes>,
    more: BytesMut,
}

impl Frames {
    fn len(&self) -> usize {
        self.first.as_ref().map_or(0, Bytes::len) + self.more.len()
    }

    fn push(&mut self, frame: Bytes) {
        if self.first.is_none() && self.more.is_empty() {
            self.first = Some(frame);
            return;
        }
        if let Some(first) = self.first.take() {
            self.more.extend_from_slice(&first);
        }
        self.more.extend_from_slice(&frame);
    }

    fn take(&mut self) -> Option<Bytes> {
        let all = self.first.take().unwrap_or_else(|| self.more.split().freeze());
        (!all.is_empty()).then_some(all)
    }
}

/// Makes frames in the form that the client wants.
struct Encoder {
    kind: Arc<Kind>,
    form: Form,
    /// A table's columns come with the first event only.
    headers_sent: bool,
    now: Timestamp,
}

impl Encoder {
    /// A change's frame, shared with the other watchers of this form.
    fn change(&mut self, ty: EventType, change: &Change) -> Bytes {
        if matches!(self.form.shape, Shape::Table(_)) {
            // Ages are part of a row: rows are made when they are sent.
            self.now = Timestamp::now();
            return self.event(ty, &change.body(ty));
        }
        let version = u64::from(self.kind.gvk != self.kind.storage.gvk);
        let key = self.form.key().rotate_left(1) ^ version;
        let (kind, form, now) = (&self.kind, &self.form, self.now);
        change.encoded(ty, key, |body| frame(ty, &encode::entry(kind, &body, form, now), form))
    }

    /// An object that was there at the start.
    fn initial(&mut self, entry: &Entry) -> Bytes {
        if self.form.media != Media::Protobuf {
            return self.event(EventType::Added, &entry.body);
        }
        frame(EventType::Added, &encode::protobuf::entry(&self.kind, entry, &self.form), &self.form)
    }

    fn event(&mut self, ty: EventType, body: &Bytes) -> Bytes {
        let object = match self.form.shape {
            Shape::Table(_) => {
                let value = encode::served(&self.kind, body);
                let revision = value["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
                let mut table = table::table(&self.kind, &[value], &revision, &self.form, self.now);
                if std::mem::replace(&mut self.headers_sent, true) {
                    table["columnDefinitions"] = Value::Null;
                }
                to_json(&table)
            }
            _ => encode::entry(&self.kind, body, &self.form, self.now),
        };
        frame(ty, &object, &self.form)
    }

    /// `initial_end`: everything that was there at the start has been sent.
    fn bookmark(&mut self, revision: Revision, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let gvk = if self.form.shape == Shape::Object { &self.kind.gvk } else { &self.kind.storage.gvk };
        let mut object = json!({"kind": gvk.kind, "apiVersion": gvk.api_version(), "metadata": metadata});
        if self.form.shape == Shape::Object {
            // Go writes an empty object of the kind.
            self.kind.hooks.zero(&mut object);
            isopod_schema::json::canonicalize(&mut object, &self.kind.schema);
        }
        // A bookmark is no object of its kind: conversions do not apply.
        let bytes = match (self.form.media, self.form.shape) {
            (Media::Json, Shape::Object) => to_json(&object),
            (_, Shape::Object) => encode::value(&object, &self.form),
            _ => return self.event(EventType::Bookmark, &to_json(&object)),
        };
        frame(EventType::Bookmark, &bytes, &self.form)
    }

    fn error(&mut self, status: &Status) -> Bytes {
        let form = Form { shape: Shape::Object, ..self.form.clone() };
        frame(EventType::Error, &encode::value(&status.to_json(), &form), &form)
    }
}

/// One event on the wire: a line of JSON, or a length and a `WatchEvent` message.
fn frame(ty: EventType, object: &[u8], form: &Form) -> Bytes {
    if form.media == Media::Protobuf {
        return proto::watch_frame(ty.name(), object).into();
    }
    let mut out = Vec::with_capacity(object.len() + 48);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(ty.name().as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
    out.into()
}
