//! What a server behind an APIService says of itself: discovery and OpenAPI, kept until it says something else.

use super::remote::{Failure, Remote, identify};
use crate::ApiServer;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Limited};
use isopod_api::UserInfo;
use isopod_kinds::access::Access;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// A server that takes longer to tell its resources is taken for silent.
const DISCOVERY: Duration = Duration::from_secs(5);
const OPENAPI: Duration = Duration::from_secs(60);
/// The largest document that is read.
const MAX_DOCUMENT: usize = 64 << 20;

const ACCEPT: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
    application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

/// Whom the other server takes this one for, when it asks for itself.
pub fn asker() -> UserInfo {
    UserInfo { name: "system:kube-aggregator".into(), groups: vec!["system:masters".into()], ..Default::default() }
}

/// See the module.
#[derive(Default)]
pub struct Documents(Mutex<State>);

#[derive(Clone, Default)]
struct State {
    /// The version's entry of aggregated discovery, without its freshness.
    resources: Option<Value>,
    resources_etag: String,
    current: bool,
    swagger: Option<Arc<Swagger>>,
    /// Of the v3 documents that it serves itself: path and URL.
    v3: Arc<Vec<(String, String)>>,
    /// It serves none: what its v2 document says.
    converted: Option<Arc<Converted>>,
}

/// An OpenAPI v3 document that was made here.
pub struct Converted {
    pub hash: String,
    pub document: Value,
}

/// An OpenAPI v2 document and its tag.
pub struct Swagger {
    pub etag: String,
    pub document: Value,
}

struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn etag(&self) -> String {
        self.headers.get(header::ETAG).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    }
}

impl Documents {
    /// The version's entry of aggregated discovery: the last one that is known, and whether it is the current one.
    pub fn discovery(&self, version: &str) -> Value {
        let state = self.0.lock();
        let mut entry = state.resources.clone().unwrap_or_else(|| json!({"version": version}));
        entry["freshness"] = if state.current { "Current" } else { "Stale" }.into();
        entry
    }

    pub fn swagger(&self) -> Option<Arc<Swagger>> {
        self.0.lock().swagger.clone()
    }

    pub fn v3(&self) -> Arc<Vec<(String, String)>> {
        self.0.lock().v3.clone()
    }

    /// The v3 document that is served for it.
    pub fn converted(&self) -> Option<Arc<Converted>> {
        self.0.lock().converted.clone()
    }

    /// The server does not answer: what is known of it may be old.
    pub fn doubt(&self) {
        self.0.lock().current = false;
    }

    /// Asks for the resources again.
    pub async fn refresh_discovery(&self, server: &ApiServer, remote: &Remote) -> Result<(), Failure> {
        let etag = self.0.lock().resources_etag.clone();
        let answer = get(server, remote, "/apis", ACCEPT, &etag, DISCOVERY).await?;
        let content_type = answer.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (resources, etag) = match answer.code {
            304 => {
                self.0.lock().current = true;
                return Ok(());
            }
            200 if content_type.contains("as=APIGroupDiscoveryList") && content_type.contains("v=v2") => {
                (entry_of(&parse(&answer.body)?, remote), answer.etag())
            }
            // An old server, or one that tells this only to others: the document of the version alone.
            _ => {
                let path = remote.path();
                let answer = get(server, remote, &path, "application/json", "", DISCOVERY).await?;
                if answer.code != 200 {
                    return Err(Failure::Unreachable(format!(
                        "failed to download discovery for {path}: {}",
                        answer.code
                    )));
                }
                (from_list(&parse(&answer.body)?, &remote.version), String::new())
            }
        };
        let mut state = self.0.lock();
        (state.resources, state.resources_etag, state.current) = (Some(resources), etag, true);
        Ok(())
    }

    /// Asks for the OpenAPI documents again.
    pub async fn refresh_openapi(&self, server: &ApiServer, remote: &Remote) -> Result<(), Failure> {
        let answer = get(server, remote, "/openapi/v3", "application/json", "", OPENAPI).await?;
        let paths = if answer.code == 200 { v3_paths(&parse(&answer.body)?, remote) } else { Vec::new() };
        self.0.lock().v3 = Arc::new(paths);
        let only_v2 = answer.code == 404;
        let known = self.swagger().map(|s| s.etag.clone()).unwrap_or_default();
        let answer = get(server, remote, "/openapi/v2", "application/json", &known, OPENAPI).await?;
        match answer.code {
            304 => {}
            200 => {
                let etag = answer.etag();
                let body = answer.body;
                let made = tokio::task::spawn_blocking(move || serde_json::from_slice(&body)).await;
                let document = made.map_err(unreadable)?.map_err(unreadable)?;
                let mut state = self.0.lock();
                state.swagger = Some(Arc::new(Swagger { etag, document }));
                state.converted = None;
            }
            _ => self.0.lock().swagger = None,
        }
        self.convert(only_v2).await
    }

    async fn convert(&self, only_v2: bool) -> Result<(), Failure> {
        let (swagger, known) = (self.swagger().filter(|_| only_v2), self.converted());
        let converted = match (swagger, known) {
            (None, _) => None,
            (Some(_), Some(known)) => Some(known),
            (Some(swagger), None) => {
                let made = tokio::task::spawn_blocking(move || Converted::new(&swagger.document)).await;
                Some(Arc::new(made.map_err(unreadable)?))
            }
        };
        self.0.lock().converted = converted;
        Ok(())
    }
}

impl Converted {
    fn new(swagger: &Value) -> Self {
        let document = isopod_openapi::v3_of(swagger);
        Converted { hash: hex::encode_upper(Sha256::digest(document.to_string())), document }
    }
}

fn unreadable(e: impl std::fmt::Display) -> Failure {
    Failure::Unreachable(e.to_string())
}

fn parse(body: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(body).map_err(unreadable)
}

/// A document, asked for by this server itself.
async fn get(
    server: &ApiServer,
    remote: &Remote,
    path: &str,
    accept: &str,
    etag: &str,
    patience: Duration,
) -> Result<Answer, Failure> {
    let mut request = Request::get(path).header(header::ACCEPT, accept).header(header::HOST, remote.host());
    if !etag.is_empty() {
        request = request.header(header::IF_NONE_MATCH, etag);
    }
    let mut request = request.body(Body::empty()).map_err(unreadable)?;
    identify(request.headers_mut(), &asker());
    let read = async {
        let answer = remote.send(server, request, false).await?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MAX_DOCUMENT).collect().await.map_err(unreadable)?.to_bytes();
        Ok(Answer { code: parts.status.as_u16(), headers: parts.headers, body })
    };
    let slow = || Failure::Unreachable("request timed out".into());
    tokio::time::timeout(patience, read).await.map_err(|_| slow())?
}

/// The version's entry in a list of groups; an empty one if the server does not know it.
fn entry_of(list: &Value, remote: &Remote) -> Value {
    let group = list.list("items").iter().find(|g| g.text("metadata.name") == remote.group);
    let entry = group.and_then(|g| g.list("versions").iter().find(|v| v.text("version") == remote.version));
    let mut entry = entry.cloned().unwrap_or_else(|| json!({"version": remote.version}));
    // Old clients do not bear its absence.
    let named = |resource: &mut Value| {
        if resource["responseKind"].is_null() {
            resource["responseKind"] = json!({"group": "", "version": "", "kind": ""});
        }
    };
    for resource in entry.get_mut("resources").and_then(Value::as_array_mut).into_iter().flatten() {
        named(resource);
        resource.get_mut("subresources").and_then(Value::as_array_mut).into_iter().flatten().for_each(named);
    }
    entry
}

/// The entry from a version's own document, `APIResourceList`.
fn from_list(list: &Value, version: &str) -> Value {
    let mut resources: Vec<Map<String, Value>> = Vec::new();
    let response_kind =
        |r: &Value| json!({"group": r.text("group"), "version": r.text("version"), "kind": r.text("kind")});
    let new = |name: &str, r: &Value| {
        let scope = if r.flag("namespaced") { "Namespaced" } else { "Cluster" };
        Map::from_iter([("resource".to_owned(), json!(name)), ("scope".to_owned(), json!(scope))])
    };
    for r in list.list("resources") {
        let (name, sub) = r.text("name").split_once('/').unwrap_or((r.text("name"), ""));
        let at = resources.iter().position(|known| known["resource"] == name).unwrap_or_else(|| {
            resources.push(new(name, r));
            resources.len() - 1
        });
        let resource = &mut resources[at];
        if sub.is_empty() {
            resource.insert("responseKind".into(), response_kind(r));
            resource.insert("singularResource".into(), r["singularName"].clone());
            for key in ["verbs", "shortNames", "categories"] {
                if let Some(value) = r.get(key) {
                    resource.insert(key.into(), value.clone());
                }
            }
        } else {
            let entry = json!({"subresource": sub, "responseKind": response_kind(r), "verbs": r["verbs"]});
            let all = resource.entry("subresources").or_insert_with(|| json!([]));
            all.as_array_mut().into_iter().for_each(|all| all.push(entry.clone()));
        }
    }
    json!({"version": version, "resources": resources})
}

/// Of an index of v3 documents what is about this group version.
fn v3_paths(index: &Value, remote: &Remote) -> Vec<(String, String)> {
    let path = remote.path();
    let own = path.trim_start_matches('/');
    let url = index["paths"][own]["serverRelativeURL"].as_str();
    url.map(|url| vec![(own.to_owned(), url.to_owned())]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_versions_own_document_becomes_an_entry() {
        let list = json!({"kind": "APIResourceList", "groupVersion": "a.io/v1", "resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get", "list"],
             "shortNames": ["fl"]},
            {"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
        ]});
        let kind = json!({"group": "", "version": "", "kind": "Flunder"});
        let want = json!({"version": "v1", "resources": [{
            "resource": "flunders", "scope": "Namespaced", "singularResource": "flunder", "responseKind": kind,
            "verbs": ["get", "list"], "shortNames": ["fl"],
            "subresources": [{"subresource": "status", "responseKind": kind, "verbs": ["get"]}],
        }]});
        assert_eq!(from_list(&list, "v1"), want);
    }

    #[test]
    fn what_is_known_is_stale_until_it_is_asked_for() {
        let documents = Documents::default();
        assert_eq!(documents.discovery("v1"), json!({"version": "v1", "freshness": "Stale"}));
    }
}
