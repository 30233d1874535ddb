//! An API server in a map: get, list, watch, create, patch, delete; enough for a kubelet.

use axum::body::{Body as Answer, Bytes};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::watch;

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, Value>,
    log: Vec<(u64, &'static str, Key, Value)>,
    /// Events as they were made: under a clock that stands their names are alike.
    said: Vec<String>,
    /// How many tokens were asked for.
    tokens: u32,
}

/// resource, namespace, name.
type Key = (String, String, String);

#[derive(Clone)]
pub struct Api(Arc<(Mutex<State>, watch::Sender<u64>)>);

struct Target {
    resource: String,
    namespace: String,
    name: String,
    sub: String,
}

fn target(path: &str) -> Target {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let rest = if parts[0] == "api" { &parts[2..] } else { &parts[3..] };
    let (namespace, rest) = if rest[0] == "namespaces" && rest.len() > 2 { (rest[1], &rest[2..]) } else { ("", rest) };
    let at = |i: usize| rest.get(i).copied().unwrap_or_default().to_owned();
    Target { resource: at(0), namespace: namespace.to_owned(), name: at(1), sub: at(2) }
}

fn query(uri: &http::Uri, name: &str) -> String {
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|p| p.split_once('='));
    let found = pairs.into_iter().find(|(k, _)| *k == name).map(|(_, v)| v.to_owned());
    found.unwrap_or_default().replace("%3D", "=").replace("%2C", ",")
}

fn selected(object: &Value, t: &Target, key: &Key, selector: &str) -> bool {
    let field = selector.split_once('=').is_none_or(|(path, want)| {
        let mut v = object;
        path.split('.').for_each(|p| v = &v[p]);
        v == want
    });
    key.0 == t.resource && (t.namespace.is_empty() || t.namespace == key.1) && field
}

/// What the kubelet's patches need of strategic merge.
fn merge(old: &mut Value, patch: &Value, field: &str) {
    match patch {
        Value::Object(p) => {
            if !old.is_object() {
                *old = json!({});
            }
            for (k, v) in p {
                if v.is_null() {
                    old.as_object_mut().unwrap().remove(k);
                } else {
                    merge(&mut old[k], v, k);
                }
            }
        }
        Value::Array(items) if field == "conditions" => {
            let list = old.as_array().cloned().unwrap_or_default();
            let mut list: Vec<Value> = list;
            for item in items {
                if item["$patch"] == "delete" {
                    list.retain(|c| c["type"] != item["type"]);
                    continue;
                }
                match list.iter_mut().find(|c| c["type"] == item["type"]) {
                    Some(c) => merge(c, item, ""),
                    None => list.push(item.clone()),
                }
            }
            *old = list.into();
        }
        Value::Array(items) => *old = items.iter().filter(|i| i.get("$patch").is_none()).cloned().collect(),
        _ => *old = patch.clone(),
    }
}

fn answer(code: StatusCode, v: &Value) -> Response<Answer> {
    Response::builder().status(code).header("content-type", "application/json").body(v.to_string().into()).unwrap()
}

fn failure(code: u16, reason: &str) -> Response<Answer> {
    let v = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason});
    answer(StatusCode::from_u16(code).unwrap(), &v)
}

impl Default for Api {
    fn default() -> Self {
        Api(Arc::new((Mutex::default(), watch::Sender::new(0))))
    }
}

impl Api {
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |r: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(r).await) }
        });
        isopod_client::in_process(service, isopod_api::UserInfo::new("system:node:n1", &["system:nodes"]))
    }

    pub fn put(&self, resource: &str, object: Value) {
        let text = |f: &str| object["metadata"][f].as_str().unwrap_or_default().to_owned();
        self.write("ADDED", (resource.to_owned(), text("namespace"), text("name")), object);
    }

    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.0.0.lock().objects.get(&(resource.into(), namespace.into(), name.into())).cloned()
    }

    pub fn all(&self, resource: &str) -> Vec<Value> {
        self.0.0.lock().objects.iter().filter(|(k, _)| k.0 == resource).map(|(_, v)| v.clone()).collect()
    }

    /// Marks a pod as deleted, as the API server does on a graceful delete.
    pub fn delete_pod(&self, name: &str, grace: i64) {
        let mut pod = self.get("pods", "ns", name).unwrap();
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:30Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.write("MODIFIED", ("pods".into(), "ns".into(), name.into()), pod);
    }

    pub fn remove(&self, resource: &str, namespace: &str, name: &str) {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let mut state = self.0.0.lock();
        let Some(object) = state.objects.remove(&key) else { return };
        state.revision += 1;
        let revision = state.revision;
        state.log.push((revision, "DELETED", key, object));
        drop(state);
        self.0.1.send_replace(revision);
    }

    /// Waits until `found` says yes of the objects.
    pub async fn until(&self, what: &str, mut found: impl FnMut(&Api) -> bool) {
        let mut changes = self.0.1.subscribe();
        let wait = async {
            while !found(self) {
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.is_err() {
            panic!("never: {what}; pods: {:#?}; events: {:#?}", self.all("pods"), self.messages());
        }
    }

    /// `reason: message` of every event.
    pub fn messages(&self) -> Vec<String> {
        self.0.0.lock().said.clone()
    }

    fn write(&self, kind: &'static str, key: Key, mut object: Value) {
        let mut state = self.0.0.lock();
        state.revision += 1;
        let revision = state.revision;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", key.2));
        }
        state.objects.insert(key.clone(), object.clone());
        state.log.push((revision, kind, key, object));
        drop(state);
        self.0.1.send_replace(revision);
    }

    async fn serve(&self, request: Request<Body>) -> Response<Answer> {
        let (parts, body) = request.into_parts();
        let t = target(parts.uri.path());
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let key = (t.resource.clone(), t.namespace.clone(), t.name.clone());
        match parts.method {
            Method::GET if t.name.is_empty() && query(&parts.uri, "watch") == "true" => self.watch(t, &parts.uri),
            Method::GET if t.name.is_empty() => {
                let state = self.0.0.lock();
                let selector = query(&parts.uri, "fieldSelector");
                let items: Vec<&Value> =
                    state.objects.iter().filter(|(k, v)| selected(v, &t, k, &selector)).map(|(_, v)| v).collect();
                let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": state.revision.to_string()}, "items": items});
                answer(StatusCode::OK, &list)
            }
            Method::GET => match self.0.0.lock().objects.get(&key) {
                Some(v) => answer(StatusCode::OK, v),
                None => failure(404, "NotFound"),
            },
            Method::POST if t.sub == "token" => {
                let mut state = self.0.0.lock();
                state.tokens += 1;
                let n = state.tokens;
                // The first is good for an hour from the day's begin, each later one for an hour more.
                let status =
                    json!({"token": format!("token-{n}"), "expirationTimestamp": format!("2026-01-01T{n:02}:00:00Z")});
                answer(StatusCode::CREATED, &json!({"status": status}))
            }
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                if t.resource == "events" {
                    let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
                    self.0.0.lock().said.push(format!("{}: {}", text("reason"), text("message")));
                }
                if t.resource != "events" && self.get(&t.resource, &t.namespace, &name).is_some() {
                    return failure(409, "AlreadyExists");
                }
                if !name.is_empty() {
                    self.write("ADDED", (t.resource, t.namespace, name), body.clone());
                }
                answer(StatusCode::CREATED, &body)
            }
            Method::PATCH => {
                let Some(mut object) = self.get(&key.0, &key.1, &key.2) else {
                    return failure(404, "NotFound");
                };
                let uid = &body["metadata"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return failure(409, "Conflict");
                }
                merge(&mut object, &body, "");
                self.write("MODIFIED", key, object.clone());
                answer(StatusCode::OK, &object)
            }
            Method::DELETE => {
                self.remove(&key.0, &key.1, &key.2);
                answer(StatusCode::OK, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    fn watch(&self, t: Target, uri: &http::Uri) -> Response<Answer> {
        let since: u64 = query(uri, "resourceVersion").parse().unwrap_or(0);
        let selector = query(uri, "fieldSelector");
        let changes = self.0.1.subscribe();
        let stream = futures::stream::unfold(
            (self.clone(), changes, since, t, selector),
            |(api, mut changes, since, t, selector)| async move {
                loop {
                    changes.borrow_and_update();
                    let (mut out, mut last) = (String::new(), since);
                    for (revision, kind, key, object) in api.0.0.lock().log.iter().filter(|l| l.0 > since) {
                        last = *revision;
                        if selected(object, &t, key, &selector) {
                            out.push_str(&json!({"type": kind, "object": object}).to_string());
                            out.push('\n');
                        }
                    }
                    if !out.is_empty() {
                        return Some((Ok::<_, Infallible>(Bytes::from(out)), (api, changes, last, t, selector)));
                    }
                    changes.changed().await.ok()?;
                }
            },
        );
        Response::new(Answer::from_stream(stream))
    }
}
