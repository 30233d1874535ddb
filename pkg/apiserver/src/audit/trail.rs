//! What is known of one request for its audit events. It is handed through the chain; without a policy it is empty, and
//! every call on it does nothing.

use super::event::{AuthenticationMetadata, Event, Level, ObjectReference, Stage, compact};
use super::latency::{Latencies, Layer};
use super::policy::Verdict;
use super::{Audit, LevelLabels, answer};
use crate::connection::PeerAddress;
use crate::lasting::Lasting;
use crate::pipeline::apply_defaults;
use axum::body::Body;
use axum::response::Response;
use http::HeaderMap;
use http::request::Parts;
use http_body::Body as _;
use http_body_util::BodyExt;
use isopod_api::{Status, UserInfo, time};
use isopod_auth::{Attributes, review};
use isopod_kinds::Kind;
use isopod_schema::json;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

const MAX_USER_AGENT: usize = 1024;

/// See the module.
#[derive(Clone, Default)]
pub struct Trail(Option<Arc<Record>>);

struct Record {
    audit: Arc<Audit>,
    /// What the policy says, once the user is known.
    verdict: OnceLock<Verdict>,
    event: Mutex<Event>,
    began: Instant,
    latencies: Mutex<Latencies>,
}

impl Trail {
    /// The trail of a request that has just come in.
    pub fn begin(audit: Option<&Arc<Audit>>, id: &str, received: Timestamp) -> Self {
        Trail(audit.map(|audit| {
            let event = Event {
                id: id.to_owned(),
                request_received_timestamp: time::format_micro(received),
                ..Event::default()
            };
            Arc::new(Record {
                audit: audit.clone(),
                verdict: OnceLock::new(),
                event: Mutex::new(event),
                began: Instant::now(),
                latencies: Mutex::default(),
            })
        }))
    }

    /// The record, if anything of the request is to be recorded as far as is known.
    fn record(&self) -> Option<&Arc<Record>> {
        self.0.as_ref().filter(|r| r.verdict.get().is_none_or(|v| v.level > Level::None))
    }

    fn level(&self) -> Level {
        self.0.as_ref().and_then(|r| r.verdict.get()).map_or(Level::None, |v| v.level)
    }

    /// Whether the policy wants events of this request.
    pub fn is_recorded(&self) -> bool {
        self.level() > Level::None
    }

    /// So long the request was in a layer.
    pub fn took(&self, layer: Layer, took: Duration) {
        layer.count_elsewhere(took);
        if let Some(record) = self.record() {
            record.latencies.lock().add(layer, took);
        }
    }

    /// Measures how long `work` of a layer takes.
    pub async fn timed<T>(&self, layer: Layer, work: impl Future<Output = T>) -> T {
        if self.record().is_none() && !layer.is_elsewhere() {
            return work.await;
        }
        let began = Instant::now();
        let done = work.await;
        self.took(layer, began.elapsed());
        done
    }

    /// Asks the policy, now that the user is known.
    pub fn judge(&self, attributes: &Attributes, parts: &Parts) {
        let Some(record) = &self.0 else { return };
        let verdict = record.audit.policy.judge(attributes);
        let level = verdict.level;
        record.audit.counters.levels.get_or_create(&LevelLabels { level: level.name() }).inc();
        if record.verdict.set(verdict).is_err() || level == Level::None {
            return;
        }
        let mut event = record.event.lock();
        event.level = level;
        event.verb.clone_from(&attributes.verb);
        event.request_uri = parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        event.user_agent = user_agent(&parts.headers);
        event.source_ips = source_ips(&parts.headers, parts.extensions.get::<PeerAddress>().map(|p| p.0));
        event.user = review::user_json(&attributes.user);
        event.object_ref = attributes.is_resource.then(|| ObjectReference {
            resource: attributes.resource.clone(),
            namespace: attributes.namespace.clone(),
            name: attributes.name.clone(),
            api_group: attributes.group.clone(),
            api_version: attributes.version.clone(),
            subresource: attributes.subresource.clone(),
            ..Default::default()
        });
    }

    /// Records that the request has come in. 500 where a log that must not miss anything misses it.
    pub async fn received(&self) -> Result<(), Status> {
        match self.record() {
            Some(record) if !record.stage(Stage::RequestReceived).await => {
                record.audit.counters.rejected.inc();
                Err(Status::internal("failed to store audit event"))
            }
            _ => Ok(()),
        }
    }

    pub fn impersonated(&self, user: &UserInfo, constraint: &str) {
        let Some(record) = self.record() else { return };
        let mut event = record.event.lock();
        event.impersonated_user = Some(review::user_json(user));
        if !constraint.is_empty() {
            event.authentication_metadata =
                Some(AuthenticationMetadata { impersonation_constraint: constraint.to_owned() });
        }
    }

    /// Adds an annotation. One that is there already stays as it is.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        let Some(record) = self.record() else { return };
        let (key, value) = (key.into(), value.into());
        let mut event = record.event.lock();
        let kept = event.annotations.entry(key).or_insert_with(|| value.clone());
        if *kept != value {
            tracing::warn!(audit_id = event.id, value, "an audit annotation is there already with another value");
        }
    }

    /// As [`Trail::annotate`], of what shows a part of the request's object.
    pub fn annotate_body(&self, key: impl Into<String>, value: impl FnOnce() -> String) {
        if self.level() >= Level::Request {
            self.annotate(key, value());
        }
    }

    /// The object that the client sent, as it was decoded.
    pub fn request_object(&self, kind: &Kind, sent: &Value) {
        let Some(record) = self.record() else { return };
        let body = (self.level() >= Level::Request).then(|| {
            let mut object = sent.clone();
            apply_defaults(kind, &mut object);
            json::canonicalize(&mut object, &kind.schema);
            if record.omits_managed_fields() {
                answer::drop_managed_fields(&mut object);
            }
            raw(&object.to_string())
        });
        record.object(&sent["metadata"], body.flatten());
    }

    /// Anything else that the client sent as an object: options of a delete, the object of a subresource.
    pub fn request_value(&self, sent: &Value) {
        let Some(record) = self.record() else { return };
        let body = (self.level() >= Level::Request).then(|| raw(&sent.to_string()));
        record.object(&sent["metadata"], body.flatten());
    }

    /// The patch that the client sent, which may be YAML.
    pub fn request_patch(&self, patch: &[u8]) {
        let Some(record) = self.record().filter(|_| self.level() >= Level::Request) else { return };
        let text = std::str::from_utf8(patch).unwrap_or_default();
        let as_json = || isopod_schema::yaml::parse(patch).ok().and_then(|read| raw(&read.value.to_string()));
        record.event.lock().request_object = raw(&compact(text)).or_else(as_json);
    }

    /// The request ends: its last events, some of them when the last byte of the answer is out. `failure`: the `Status`
    /// that the answer is.
    pub async fn finish(self, mut response: Response, failure: Option<&Status>, ends: Ends) -> Response {
        let Some(record) = self.record().filter(|_| self.is_recorded()).cloned() else { return response };
        let code = response.status().as_u16();
        let shown = response.extensions_mut().remove::<answer::Shown>();
        let status = failure.map(Status::to_json).or(shown.map(|s| s.0)).unwrap_or_else(|| json!({}));
        record.event.lock().response_status = Some(answer::bounded_status(&status, code));
        match ends {
            Ends::Panicked => {
                record.stage(Stage::Panic).await;
                return response;
            }
            Ends::Unauthenticated => {
                record.stage(Stage::ResponseStarted).await;
                return response;
            }
            Ends::Late => {
                record.stage(Stage::ResponseStarted).await;
            }
            Ends::Soon => {}
        }
        if let Some(lasting) = Lasting::of(&response) {
            record.follow(lasting);
            return response;
        }
        let wanted = self.level() == Level::RequestResponse && ends == Ends::Soon;
        let kept = wanted.then(|| answer::Kept::of(&response)).flatten();
        if response.body().size_hint().exact().is_none() {
            let end = End::of(record, ends == Ends::Soon);
            return response.map(|body| Body::new(answer::Followed { body, end, kept }));
        }
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        record.complete(kept.map(|k| k.with(&bytes))).await;
        Response::from_parts(parts, Body::from(bytes))
    }
}

/// When the last event of a request is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    Soon,
    /// It is a watch or a stream.
    Late,
    Unauthenticated,
    Panicked,
}

impl Record {
    fn omits_managed_fields(&self) -> bool {
        self.verdict.get().is_some_and(|v| v.omit_managed_fields)
    }

    /// What an object tells of itself, where the request's path does not.
    fn object(&self, metadata: &Value, body: Option<Box<RawValue>>) {
        let mut event = self.event.lock();
        let reference = event.object_ref.get_or_insert_default();
        let fill = |field: &mut String, key: &str| {
            if field.is_empty() {
                metadata[key].as_str().unwrap_or_default().clone_into(field);
            }
        };
        fill(&mut reference.namespace, "namespace");
        fill(&mut reference.name, "name");
        fill(&mut reference.uid, "uid");
        fill(&mut reference.resource_version, "resourceVersion");
        if body.is_some() {
            event.request_object = body;
        }
    }

    /// True: kept, or not wanted.
    async fn stage(&self, stage: Stage) -> bool {
        if self.verdict.get().is_some_and(|v| v.omit_stages.contains(&stage)) {
            return true;
        }
        let event = {
            let mut event = self.event.lock();
            event.stage = stage;
            event.stage_timestamp = match stage {
                Stage::RequestReceived => event.request_received_timestamp.clone(),
                _ => time::format_micro(Timestamp::now()),
            };
            Arc::new(event.clone())
        };
        self.audit.record(event).await
    }

    /// Completes the record when a connection ends, or the server's log is closed.
    fn follow(self: Arc<Self>, connection: Lasting) {
        self.audit.ending.clone().spawn(async move {
            tokio::select! {
                () = connection.ended() => {}
                () = self.audit.closing.cancelled() => {}
            }
            self.complete(None).await;
        });
    }

    async fn complete(&self, answer: Option<answer::Kept>) {
        if let Some(object) = answer.and_then(|a| a.object(self.omits_managed_fields())) {
            self.event.lock().response_object = raw(&object);
        }
        for (key, value) in self.latencies.lock().annotations(self.began.elapsed()) {
            self.event.lock().annotations.entry(key).or_insert(value);
        }
        self.stage(Stage::ResponseComplete).await;
    }
}

/// Tells the end of an answer, from where nothing can be waited for.
pub(super) struct End(Option<Arc<dyn Fn(Option<answer::Kept>) + Send + Sync>>);

impl End {
    /// `measured`: until then the answer is written.
    fn of(record: Arc<Record>, measured: bool) -> Self {
        let began = Instant::now();
        End(Some(Arc::new(move |kept| {
            let record = record.clone();
            if measured {
                record.latencies.lock().add(Layer::Serialization, began.elapsed());
            }
            record.audit.ending.clone().spawn(async move { record.complete(kept).await });
        })))
    }

    /// Once.
    pub(super) fn tell(&mut self, kept: Option<answer::Kept>) {
        if let Some(tell) = self.0.take() {
            tell(kept);
        }
    }
}

fn raw(text: &str) -> Option<Box<RawValue>> {
    RawValue::from_string(text.to_owned()).ok()
}

fn user_agent(headers: &HeaderMap) -> String {
    let agent = headers.get(http::header::USER_AGENT).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let mut agent = agent.unwrap_or_default();
    if agent.len() > MAX_USER_AGENT {
        let end = (0..=MAX_USER_AGENT).rev().find(|i| agent.is_char_boundary(*i)).unwrap_or(0);
        agent.truncate(end);
        agent.push_str("...TRUNCATED");
    }
    agent
}

/// The client's address as proxies tell it, and that of who is connected.
fn source_ips(headers: &HeaderMap, peer: Option<IpAddr>) -> Vec<String> {
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut ips: Vec<IpAddr> = header("x-forwarded-for").split(',').filter_map(|ip| ip.trim().parse().ok()).collect();
    if let Ok(real) = header("x-real-ip").trim().parse::<IpAddr>()
        && !ips.contains(&real)
    {
        ips.push(real);
    }
    if let Some(peer) = peer.filter(|p| ips.last() != Some(p)) {
        ips.push(peer);
    }
    ips.iter().map(IpAddr::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn addresses_of_proxies_come_before_the_peers() {
        let mut headers = HeaderMap::new();
        let peer = Some("10.0.0.9".parse().unwrap());
        assert_eq!(source_ips(&headers, peer), ["10.0.0.9"]);
        assert!(source_ips(&headers, None).is_empty());
        headers.insert("x-forwarded-for", HeaderValue::from_static("1.2.3.4, nonsense, 10.0.0.9"));
        headers.insert("x-real-ip", HeaderValue::from_static("1.2.3.4"));
        assert_eq!(source_ips(&headers, peer), ["1.2.3.4", "10.0.0.9"]);
    }

    #[test]
    fn long_user_agents_are_cut() {
        let mut headers = HeaderMap::new();
        headers.insert("user-agent", HeaderValue::from_str(&"a".repeat(2000)).unwrap());
        let cut = user_agent(&headers);
        assert!(cut.len() == 1024 + "...TRUNCATED".len() && cut.ends_with("...TRUNCATED"));
    }
}
