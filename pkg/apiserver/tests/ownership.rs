//! Ownership of fields against upstream: `upstream/ownership.json` holds requests in order and what kube-apiserver v1.37.2
//! answered to them. Entries are compared without their times (`"time": true` says that there is one) and in any order,
//! since upstream's depends on the second in which a request came.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use http::Request;
use isopod_testkit::{Answer, TestServer};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const RECORDED: &str = include_str!("upstream/ownership.json");
const VERBS: [(&str, &str, &str); 8] = [
    ("get", "GET", ""),
    ("post", "POST", "application/json"),
    ("put", "PUT", "application/json"),
    ("apply", "PATCH", "application/apply-patch+yaml"),
    ("cbor", "PATCH", "application/apply-patch+cbor"),
    ("merge", "PATCH", "application/merge-patch+json"),
    ("json", "PATCH", "application/json-patch+json"),
    ("strategic", "PATCH", "application/strategic-merge-patch+json"),
];
/// Times that the server sets.
const TIMES: [&str; 4] = ["lastTransitionTime", "lastUpdateTime", "lastPhaseTransitionTime", "lastProbeTime"];

async fn send(s: &TestServer, step: &Value) -> Answer {
    let (verb, method, media) = VERBS.into_iter().find(|(v, _, _)| step.get(v).is_some()).unwrap();
    let text = |key: &str| step[key].as_str().unwrap_or_default().to_owned();
    let mut query = text("query");
    if step["force"] == true {
        query.push_str("&force=true");
    }
    if step.get("manager").is_some() {
        query.push_str(&format!("&fieldManager={}", text("manager")));
    }
    let uri = format!("{}?{}", text(verb), query.trim_start_matches('&'));
    let body = if verb == "get" { Body::empty() } else { Body::from(step["body"].to_string()) };
    let agent = if step.get("agent").is_some() { text("agent") } else { "test/1".into() };
    let request = Request::builder().method(method).uri(uri).header("content-type", media).header("user-agent", agent);
    s.send(request.body(body).unwrap()).await
}

fn sorted(mut entries: Vec<Value>) -> Value {
    entries.sort_by_key(|e| {
        ["operation", "manager", "apiVersion", "subresource"].map(|k| e[k].as_str().map(str::to_owned))
    });
    entries.into()
}

fn owners(object: &Value) -> Value {
    let Some(entries) = object["metadata"]["managedFields"].as_array() else { return Value::Null };
    let without_time = |e: &Value| {
        let mut e = e.clone();
        e["time"] = e["time"].is_string().into();
        e
    };
    sorted(entries.iter().map(without_time).collect())
}

fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(object, |v, key| &v[key])
}

fn without_times(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let field = |(k, v): (&String, &Value)| {
                let shown = if TIMES.contains(&k.as_str()) && v.is_string() { json!("T") } else { without_times(v) };
                (k.clone(), shown)
            };
            map.iter().map(field).collect()
        }
        Value::Array(items) => items.iter().map(without_times).collect(),
        other => other.clone(),
    }
}

/// What differs from what upstream answered.
fn differences(step: &Value, answer: &Answer) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |what: &str, got: Value, want: &Value| {
        if got != *want {
            found.push(format!("{what}: {got}\n     upstream: {want}"));
        }
    };
    check("code", answer.code.into(), &step["code"]);
    if answer.json["kind"] == "Status" {
        for key in ["message", "reason"].into_iter().filter(|k| step.get(k).is_some()) {
            check(key, answer.json[key].as_str().unwrap_or_default().into(), &step[key]);
        }
        // A conflict's causes are the fields; upstream's order is that of a Go map.
        if let Some(causes) = step["causes"].as_array().filter(|_| step["code"] == 409) {
            let order = |causes: &[Value]| {
                let mut causes = causes.to_vec();
                causes.sort_by_key(Value::to_string);
                Value::from(causes)
            };
            let got = answer.json["details"]["causes"].as_array().cloned().unwrap_or_default();
            check("causes", order(&got), &order(causes));
        }
    } else {
        check("owners", owners(&answer.json), &step["owners"].as_array().map_or(Value::Null, |o| sorted(o.clone())));
        for (path, want) in step["see"].as_object().into_iter().flatten() {
            check(path, without_times(at(&answer.json, path)), &without_times(want));
        }
    }
    found
}

#[tokio::test]
async fn ownership_is_upstreams() {
    let s = TestServer::start().await;
    // Upstream's pods came without service accounts.
    let account = json!({"metadata": {"name": "default"}, "automountServiceAccountToken": false});
    s.post("/api/v1/namespaces/default/serviceaccounts", account).await;
    let scenarios: Vec<Value> = serde_json::from_str(RECORDED).unwrap();
    let mut failures = Vec::new();
    for scenario in &scenarios {
        let mut revisions: BTreeMap<String, Value> = BTreeMap::new();
        for (i, step) in scenario["steps"].as_array().unwrap().iter().enumerate() {
            let answer = send(&s, step).await;
            let mut found = differences(step, &answer);
            let (name, revision) = (&answer.json["metadata"]["name"], &answer.json["metadata"]["resourceVersion"]);
            let before = revisions.insert(name.to_string(), revision.clone());
            if step["unchanged"] == true && before.as_ref() != Some(revision) {
                found.push(format!("it was written: {before:?}, {revision}"));
            }
            failures.extend(found.into_iter().map(|f| format!("{} [{i}] {f}", scenario["name"])));
        }
    }
    assert!(failures.is_empty(), "{} differences\n{}", failures.len(), failures.join("\n"));
}
