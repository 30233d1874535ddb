//! API calls on one resource: get, list, create, update, patch, delete and subresources, with preconditions.
//!
//! Invariant: nothing is tried again here. Who calls knows whether a second try is safe.

use crate::resource::{Query, Resource};
use crate::watch::{Items, list};
use crate::{Error, ListScope, decode};
use http::{Method, Request, StatusCode, header};
use isopod_api::Status;
use kube::Client;
use kube::client::Body;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::pin::Pin;

/// Calls on one resource as one client. Cheap to clone.
#[derive(Clone)]
pub struct Calls {
    client: Client,
    resource: Resource,
}

/// How a patch is applied.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// RFC 7386.
    Merge(Value),
    Strategic(Value),
    /// RFC 6902.
    Json(Value),
    /// Server-side apply, over whoever owns the fields.
    Apply {
        manager: &'static str,
        object: Value,
    },
}

/// What must still be true of the object. `None` asks nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl Preconditions {
    pub fn uid(uid: impl Into<String>) -> Self {
        Preconditions { uid: Some(uid.into()), resource_version: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

impl Propagation {
    pub fn as_str(self) -> &'static str {
        match self {
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
            Propagation::Orphan => "Orphan",
        }
    }
}

/// Options of a delete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delete {
    pub preconditions: Preconditions,
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
}

impl Delete {
    pub fn body(&self) -> Value {
        let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        let p = &self.preconditions;
        if let Some(uid) = &p.uid {
            body["preconditions"]["uid"] = json!(uid);
        }
        if let Some(rv) = &p.resource_version {
            body["preconditions"]["resourceVersion"] = json!(rv);
        }
        if let Some(g) = self.grace_period_seconds {
            body["gracePeriodSeconds"] = json!(g);
        }
        if let Some(p) = self.propagation {
            body["propagationPolicy"] = json!(p.as_str());
        }
        body
    }
}

impl Calls {
    pub fn new(client: Client, resource: Resource) -> Self {
        Calls { client, resource }
    }
    pub fn resource(&self) -> &Resource {
        &self.resource
    }
    pub fn client(&self) -> &Client {
        &self.client
    }

    pub async fn get<T: DeserializeOwned>(&self, namespace: &str, name: &str) -> Result<T, Error> {
        call(&self.client, Method::GET, &self.resource.object(namespace, name), None).await
    }

    /// Reads a subresource: `scale`.
    pub async fn get_subresource<T: DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
    ) -> Result<T, Error> {
        let path = self.resource.subresource(namespace, name, subresource);
        call(&self.client, Method::GET, &path, None).await
    }

    /// As [`Calls::get`]; an object that does not exist is `None`.
    pub async fn find<T: DeserializeOwned>(&self, namespace: &str, name: &str) -> Result<Option<T>, Error> {
        match self.get(namespace, name).await {
            Ok(v) => Ok(Some(v)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All objects in `scope`, read page by page.
    pub async fn list<T: DeserializeOwned + Send>(&self, scope: &ListScope) -> Result<Vec<T>, Error> {
        let mut items = Items::default();
        list(&self.client, &self.resource, scope, false, &mut items).await?;
        Ok(items.0)
    }

    /// As [`Calls::list`], metadata only.
    pub async fn list_metadata(&self, scope: &ListScope) -> Result<Vec<crate::views::MetaOnly>, Error> {
        let mut items = Items::default();
        list(&self.client, &self.resource, scope, true, &mut items).await?;
        Ok(items.0)
    }

    /// The revision that a list of one object has; of no object in a namespace that cannot be.
    pub async fn revision(&self, namespace: &str) -> Result<String, Error> {
        let path = Query::default().set("limit", "1").on(&self.resource.collection(namespace));
        let list: Value = call(&self.client, Method::GET, &path, None).await?;
        Ok(list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned())
    }

    pub async fn create<T: DeserializeOwned>(&self, namespace: &str, object: &impl Serialize) -> Result<T, Error> {
        let path = self.resource.collection(namespace);
        call(&self.client, Method::POST, &path, Some(("application/json", encode(&path, object)?))).await
    }

    /// Replaces the object; `metadata.resourceVersion` in it, when set, must be the newest.
    pub async fn update<T: DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        object: &impl Serialize,
    ) -> Result<T, Error> {
        let path = self.path(namespace, name, subresource);
        call(&self.client, Method::PUT, &path, Some(("application/json", encode(&path, object)?))).await
    }

    /// Patches the object or its subresource. Preconditions of merge and strategic patches travel as `metadata.uid` and
    /// `metadata.resourceVersion`, those of JSON patches as `test` operations.
    pub async fn patch<T: DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        patch: Patch,
        preconditions: &Preconditions,
    ) -> Result<T, Error> {
        let mut path = self.path(namespace, name, subresource);
        if let Patch::Apply { manager, .. } = &patch {
            path = Query::default().set("fieldManager", manager).set("force", "true").on(&path);
        }
        let (content_type, body) = patch_body(patch, preconditions);
        call(&self.client, Method::PATCH, &path, Some((content_type, encode(&path, &body)?))).await
    }

    /// Reads the object, merges `change` into it (RFC 7386) and writes it back: what a patch does, for who may update but
    /// not patch. A lost race is run again unless `preconditions` name a revision; no change is no write.
    pub async fn modify(
        &self,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        change: &Value,
        preconditions: &Preconditions,
    ) -> Result<Value, Error> {
        const TRIES: usize = 5;
        let conflict = |why: String| Error::Status(Status::conflict(&self.resource.gvr, name, why));
        for attempt in 1.. {
            let present: Value = self.get(namespace, name).await?;
            for (field, wanted) in [("uid", &preconditions.uid), ("resourceVersion", &preconditions.resource_version)] {
                let is = present["metadata"][field].as_str().unwrap_or_default();
                if let Some(wanted) = wanted.as_ref().filter(|w| *w != is) {
                    return Err(conflict(format!(
                        "Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {is}"
                    )));
                }
            }
            let mut changed = present.clone();
            merge(&mut changed, change);
            if changed == present {
                return Ok(present);
            }
            match self.update(namespace, name, subresource, &changed).await {
                Err(e) if e.is_conflict() && preconditions.resource_version.is_none() && attempt < TRIES => {}
                other => return other,
            }
        }
        unreachable!("the last try returns")
    }

    /// Deletes the object and returns what the server answered: the object as it is now, or a `Status`.
    pub async fn delete(&self, namespace: &str, name: &str, options: &Delete) -> Result<Value, Error> {
        let path = self.resource.object(namespace, name);
        let body = encode(&path, &options.body())?;
        call(&self.client, Method::DELETE, &path, Some(("application/json", body))).await
    }

    /// Deletes every object in `scope`.
    pub async fn delete_collection(&self, scope: &ListScope, options: &Delete) -> Result<Value, Error> {
        let path = Query::default().scope(scope).on(&self.resource.collection(&scope.namespace));
        let body = encode(&path, &options.body())?;
        call(&self.client, Method::DELETE, &path, Some(("application/json", body))).await
    }

    /// Posts to a subresource: `binding`, `eviction`, `token`.
    pub async fn post<T: DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let path = self.resource.subresource(namespace, name, subresource);
        call(&self.client, Method::POST, &path, Some(("application/json", encode(&path, body)?))).await
    }

    /// Binds a pod to a node. `self` must be the calls of pods.
    pub async fn bind(&self, namespace: &str, name: &str, uid: &str, node: &str) -> Result<(), Error> {
        let body = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"namespace": namespace, "name": name, "uid": uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        self.post::<Value>(namespace, name, "binding", &body).await.map(drop)
    }

    /// Asks to evict a pod, minding disruption budgets. `self` must be the calls of pods.
    pub async fn evict(&self, namespace: &str, name: &str, options: &Delete) -> Result<(), Error> {
        let body = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"namespace": namespace, "name": name},
            "deleteOptions": options.body(),
        });
        self.post::<Value>(namespace, name, "eviction", &body).await.map(drop)
    }

    fn path(&self, namespace: &str, name: &str, subresource: Option<&str>) -> String {
        match subresource {
            Some(sub) => self.resource.subresource(namespace, name, sub),
            None => self.resource.object(namespace, name),
        }
    }
}

/// Applies a merge patch (RFC 7386).
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn encode(what: &str, body: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body).map_err(|source| Error::Encode { what: what.to_owned(), source })
}

fn patch_body(patch: Patch, preconditions: &Preconditions) -> (&'static str, Value) {
    let guards = [("uid", &preconditions.uid), ("resourceVersion", &preconditions.resource_version)];
    let in_metadata = |mut body: Value| {
        for (field, wanted) in guards {
            if let Some(wanted) = wanted {
                body["metadata"][field] = json!(wanted);
            }
        }
        body
    };
    match patch {
        Patch::Merge(body) => ("application/merge-patch+json", in_metadata(body)),
        Patch::Strategic(body) => ("application/strategic-merge-patch+json", in_metadata(body)),
        // JSON is YAML.
        Patch::Apply { object, .. } => ("application/apply-patch+yaml", in_metadata(object)),
        Patch::Json(body) => {
            let mut ops: Vec<Value> = guards
                .iter()
                .filter_map(|(field, wanted)| {
                    wanted.as_ref().map(|w| json!({"op": "test", "path": format!("/metadata/{field}"), "value": w}))
                })
                .collect();
            ops.extend(body.as_array().cloned().unwrap_or_default());
            ("application/json-patch+json", Value::Array(ops))
        }
    }
}

/// One call with any path; the answer's body as bytes. In a box: every typed call waits for it, and would hold a copy of it.
pub fn raw<'a>(
    client: &'a Client,
    method: Method,
    path: &'a str,
    accept: &'a str,
    body: Option<(&'a str, Vec<u8>)>,
) -> Pin<Box<dyn Future<Output = Result<bytes::Bytes, Error>> + Send + 'a>> {
    Box::pin(exchange(client, method, path, accept, body))
}

async fn exchange(
    client: &Client,
    method: Method,
    path: &str,
    accept: &str,
    body: Option<(&str, Vec<u8>)>,
) -> Result<bytes::Bytes, Error> {
    let mut request = Request::builder().method(method).uri(path).header(header::ACCEPT, accept);
    let mut bytes = Vec::new();
    if let Some((content_type, content)) = body {
        request = request.header(header::CONTENT_TYPE, content_type);
        bytes = content;
    }
    let request = request.body(Body::from(bytes)).map_err(|source| Error::Request { path: path.to_owned(), source })?;
    let response = client.send(request).await.map_err(Error::Transport)?;
    let code = response.status();
    let bytes = response.into_body().collect_bytes().await.map_err(Error::Transport)?;
    if code.is_success() { Ok(bytes) } else { Err(Error::Status(status_of(code, &bytes))) }
}

/// One call with any path, JSON out and in.
pub async fn call<T: DeserializeOwned>(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<(&str, Vec<u8>)>,
) -> Result<T, Error> {
    call_as(client, method, path, "application/json", body).await
}

/// As [`call`], asking for a form of the answer.
pub(crate) async fn call_as<T: DeserializeOwned>(
    client: &Client,
    method: Method,
    path: &str,
    accept: &str,
    body: Option<(&str, Vec<u8>)>,
) -> Result<T, Error> {
    let bytes = raw(client, method, path, accept, body).await?;
    decode::from_slice(&bytes).map_err(|source| Error::Decode { what: path.to_owned(), source })
}

/// The `Status` in an error response; a body that is none becomes the message.
pub(crate) fn status_of(code: StatusCode, body: &[u8]) -> Status {
    #[derive(serde::Deserialize)]
    struct Wire {
        kind: String,
        #[serde(default)]
        message: String,
        #[serde(default)]
        reason: String,
        #[serde(default)]
        code: u16,
        details: Option<isopod_api::status::Details>,
    }
    match serde_json::from_slice::<Wire>(body) {
        Ok(w) if w.kind == "Status" => {
            let code = if w.code == 0 { code.as_u16() } else { w.code };
            Status { code, reason: w.reason, message: w.message, details: w.details, continue_token: String::new() }
        }
        _ => {
            let text = String::from_utf8_lossy(&body[..body.len().min(1024)]);
            Status::new(code.as_u16(), code.canonical_reason().unwrap_or_default(), text.trim())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preconditions_travel_in_the_patch() {
        let pre = Preconditions { uid: Some("u".into()), resource_version: Some("7".into()) };
        let (_, merge) = patch_body(Patch::Merge(json!({"spec": {"x": 1}})), &pre);
        assert_eq!(merge, json!({"spec": {"x": 1}, "metadata": {"uid": "u", "resourceVersion": "7"}}));
        let (_, ops) = patch_body(Patch::Json(json!([{"op": "remove", "path": "/x"}])), &Preconditions::uid("u"));
        assert_eq!(ops, json!([{"op": "test", "path": "/metadata/uid", "value": "u"}, {"op": "remove", "path": "/x"}]));
    }

    #[test]
    fn a_status_is_read_from_an_error_body() {
        let body = br#"{"kind":"Status","code":409,"reason":"Conflict","message":"m","details":{"name":"x"}}"#;
        let s = status_of(StatusCode::CONFLICT, body);
        assert_eq!((s.code, s.reason.as_str(), s.message.as_str()), (409, "Conflict", "m"));
        let s = status_of(StatusCode::BAD_GATEWAY, b"upstream broke\n");
        assert_eq!((s.code, s.reason.as_str(), s.message.as_str()), (502, "Bad Gateway", "upstream broke"));
    }
}
