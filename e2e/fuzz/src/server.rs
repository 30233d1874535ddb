//! A whole server in this process: requests with any method, path, headers and body. It never panics, never answers 500 (but
//! where upstream does), and what it refuses it refuses with a `Status`.

use crate::parts;
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderName, HeaderValue, Method, Request, Uri, response};
use http_body_util::BodyExt;
use isopod_testkit::TestServer;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::time::Duration;
use tokio::runtime::Runtime;

/// A server serves so many inputs: its memory keeps what they make.
const INPUTS: usize = 500;
/// So many requests of one input are sent.
const REQUESTS: usize = 6;
/// A watch is read for so long. The clock waits for nobody.
const WATCHED: Duration = Duration::from_secs(2);

struct World {
    server: TestServer,
    inputs: usize,
    runtime: Runtime,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.expect("a runtime of one thread needs nothing");
        let server = runtime.block_on(async {
            let server = TestServer::start().await;
            for name in ["a", "b"] {
                let object =
                    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}});
                let made = server.post("/api/v1/namespaces/default/configmaps", object).await;
                assert_eq!(made.code, 201, "{}", made.text);
            }
            server
        });
        World { server, inputs: 0, runtime }
    }
}

/// Lends the server of this thread.
fn with_world<T>(work: impl FnOnce(&World) -> T) -> T {
    WORLD.with_borrow_mut(|slot| {
        if slot.as_ref().is_some_and(|w| w.inputs >= INPUTS) {
            *slot = None;
        }
        let world = slot.get_or_insert_with(World::new);
        world.inputs += 1;
        work(world)
    })
}

/// An answer, as far as it was read.
struct Answer {
    head: response::Parts,
    body: Vec<u8>,
    complete: bool,
}

impl World {
    fn send(&self, request: Request<Body>) -> Answer {
        self.runtime.block_on(async {
            let (head, mut body) = self.server.open(request).await.into_parts();
            let mut read = Vec::new();
            let all = async {
                while let Some(frame) = body.frame().await {
                    let Ok(frame) = frame else { return };
                    frame.data_ref().inspect(|data| read.extend_from_slice(data));
                }
            };
            let complete = tokio::time::timeout(WATCHED, all).await.is_ok();
            Answer { head, body: read, complete }
        })
    }
}

impl Answer {
    fn is(&self, media: &str) -> bool {
        let stated = self.head.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        stated.split(';').next() == Some(media)
    }

    fn json(&self) -> Option<Value> {
        if self.is("application/json") { serde_json::from_slice(&self.body).ok() } else { None }
    }

    /// What holds for the answer to any request.
    fn judge(&self, request: &str, head_only: bool) {
        let code = self.head.status.as_u16();
        let shown = || format!("{request}\nis answered with {code}: {}", String::from_utf8_lossy(&self.body));
        let value = self.json();
        let status = value.as_ref().filter(|v| v["kind"] == "Status");
        // Where upstream itself answers 500, it has no reason to give, or it is of a scale without replicas
        // (`apiextensions-apiserver/pkg/registry/customresource/etcd.go`).
        let reason = status.map(|s| s["reason"].as_str().unwrap_or_default());
        let scale = status.and_then(|s| s["message"].as_str()).is_some_and(|m| m.contains("the spec replicas field"));
        let upstreams = reason == Some("") || scale;
        assert!(code != 500 || upstreams, "{}", shown());
        if self.is("application/json") && self.complete && !head_only && !self.body.is_empty() {
            assert!(value.is_some() || code < 300, "no JSON: {}", shown());
        }
        if code >= 400 && self.is("application/json") && !head_only {
            let status = status.unwrap_or_else(|| panic!("no Status: {}", shown()));
            assert_eq!((&status["status"], &status["code"]), (&json!("Failure"), &json!(code)), "{}", shown());
        }
    }
}

/// A request as text: method and target, headers, an empty line, the body.
fn parsed(text: &[u8]) -> Option<(Request<Body>, String)> {
    let (head, body) = match text.windows(2).position(|w| w == b"\n\n") {
        Some(at) => (&text[..at], &text[at + 2..]),
        None => (text, &[][..]),
    };
    let mut lines = head.split(|c| *c == b'\n');
    let first = lines.next()?;
    let space = first.iter().position(|c| *c == b' ')?;
    let method = Method::from_bytes(&first[..space]).ok()?;
    let uri = Uri::try_from(&first[space + 1..]).ok().filter(|u| u.path().starts_with('/') && u.scheme().is_none())?;
    let mut request = Request::builder().method(method).uri(uri);
    for line in lines {
        let colon = line.iter().position(|c| *c == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        request = request.header(name, value);
    }
    let shown = String::from_utf8_lossy(head).into_owned();
    Some((request.body(Body::from(body.to_vec())).ok()?, shown))
}

/// A few requests, one after another.
pub fn requests(data: &[u8]) {
    let all: Vec<_> = parts(data).into_iter().take(REQUESTS).filter_map(parsed).collect();
    if all.is_empty() {
        return;
    }
    with_world(|world| {
        for (request, shown) in all {
            let head_only = request.method() == Method::HEAD;
            world.send(request).judge(&shown, head_only);
        }
    });
}

fn post(media: &str, accept: &str, body: &[u8]) -> Request<Body> {
    let request = Request::post("/api/v1/namespaces/default/configmaps?dryRun=All");
    let request = request.header("content-type", media).header("accept", accept);
    request.body(Body::from(body.to_vec())).expect("the request is well formed")
}

/// A body in YAML. What is accepted is answered alike in both languages, and accepted in the other one too.
pub fn yaml(data: &[u8]) {
    with_world(|world| {
        let (yaml, json) = ("application/yaml", "application/json");
        let as_json = world.send(post(yaml, json, data));
        as_json.judge("a POST of YAML", false);
        let as_yaml = world.send(post(yaml, yaml, data));
        as_yaml.judge("a POST of YAML that wants YAML", false);
        assert_eq!(as_json.head.status, as_yaml.head.status);
        let Some(made) = as_json.json().filter(|_| as_json.head.status == 201) else { return };
        let text = String::from_utf8_lossy(&as_yaml.body).into_owned();
        let read: Value = serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{e} in\n{text}"));
        let said = |v: &Value| {
            json!({"metadata": {"name": v["metadata"]["name"], "labels": v["metadata"]["labels"],
            "annotations": v["metadata"]["annotations"]}, "data": v["data"], "binaryData": v["binaryData"], "immutable": v["immutable"]})
        };
        assert_eq!(said(&read), said(&made), "{text}");
        let mut again = said(&made);
        again["apiVersion"] = "v1".into();
        again["kind"] = "ConfigMap".into();
        let sent = world.send(post(json, json, again.to_string().as_bytes()));
        assert_eq!(sent.head.status, 201, "{again}");
        assert_eq!(sent.json().map(|v| said(&v)), Some(said(&made)));
    });
}

/// A token of a list that was not given out, as text and as what its text encodes.
pub fn continue_token(data: &[u8]) {
    let escaped: String = data.iter().map(|c| format!("%{c:02x}")).collect();
    with_world(|world| {
        for token in [URL_SAFE_NO_PAD.encode(data), escaped] {
            let uri = format!("/api/v1/namespaces/default/configmaps?limit=1&continue={token}");
            let Ok(request) = Request::get(uri).body(Body::empty()) else { continue };
            let answer = world.send(request);
            answer.judge("a list with a token", false);
            if answer.head.status == 200 {
                let list = answer.json().expect("a list is JSON");
                let items = list["items"].as_array().map_or(0, Vec::len);
                assert!(items <= 1, "{list}");
            }
        }
    });
}
