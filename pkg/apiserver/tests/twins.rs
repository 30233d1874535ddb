//! A built-in kind and a custom resource with its schema go through every verb: but for their group, all answers are the same.
//!
//! What differs between the two upstream as well is left out or evened out, each with its reason: strategic merges, which
//! custom resources do not know; words about values that are wrong, which come from code here and from a schema there; names,
//! which some built-in kinds do not look at; where an object lies in the store, which errors tell; what Go's structs show
//! without being told.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use isopod_testkit::TestServer;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// A kind and what its objects say in this test.
struct Pair {
    group: &'static str,
    twin: &'static str,
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    short: &'static str,
    /// Of the definition's version.
    schema: Value,
    /// `jsonPath` of each column of the table that is not the name, by its name. Without any, tables are not compared.
    columns: &'static [(&'static str, &'static str, &'static str)],
    spec: Value,
    changed: Value,
    applied: Value,
    /// Through the subresource, one after another; `None`: there is none.
    statuses: Option<[Value; 2]>,
    /// A field of the spec, and another one that an update lacks.
    drops: (&'static str, Value),
    /// A number where text belongs is refused in words of its own; a field that is not known in the same.
    typo: Value,
}

fn network_policies() -> Pair {
    let selector = selector();
    let atomic = |items: Value| json!({"type": "array", "x-kubernetes-list-type": "atomic", "items": items});
    let peer = json!({"type": "object", "properties": {"podSelector": selector}});
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "podSelector": selector,
        "policyTypes": atomic(json!({"type": "string"})),
        "ingress": atomic(json!({"type": "object", "properties": {"from": atomic(peer)}})),
    }}}});
    Pair {
        group: "networking.k8s.io",
        twin: "twin.example.com",
        plural: "networkpolicies",
        singular: "networkpolicy",
        kind: "NetworkPolicy",
        short: "netpol",
        schema,
        columns: &[],
        spec: json!({"podSelector": {"matchLabels": {"a": "b"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"c": "d"}}}]}]}),
        changed: json!({"podSelector": {"matchLabels": {"a": "b"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"c": "d"}}}]}]}),
        applied: json!({"podSelector": {"matchLabels": {"z": "z"}}}),
        statuses: None,
        drops: ("ingress", Value::Null),
        typo: json!({"podSelector": {"matchLabels": {"a": "b"}}, "policyTypes": ["Ingress"], "typo": 1}),
    }
}

fn disruption_budgets() -> Pair {
    let condition = json!({"type": "object", "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {"type": {"type": "string"}, "status": {"type": "string"}, "reason": {"type": "string"},
            "message": {"type": "string"}, "lastTransitionTime": {"type": "string", "format": "date-time"},
            "observedGeneration": {"type": "integer", "format": "int64"}}});
    let count = json!({"type": "integer", "format": "int32", "default": 0});
    let either = json!({"x-kubernetes-int-or-string": true});
    // Go's struct has zeros where nothing was said.
    let zeros = json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"minAvailable": either, "maxUnavailable": either,
            "selector": selector(), "unhealthyPodEvictionPolicy": {"type": "string"}}},
        "status": {"type": "object", "default": zeros, "properties": {
            "conditions": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "items": condition},
            "currentHealthy": count, "desiredHealthy": count, "disruptionsAllowed": count, "expectedPods": count,
            "disruptedPods": {"type": "object", "additionalProperties": {"type": "string", "format": "date-time"}},
            "observedGeneration": {"type": "integer", "format": "int64"}}}}});
    let ready = |status: &str| {
        json!({"type": "DisruptionAllowed", "status": status, "reason": "SufficientPods", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    Pair {
        group: "policy",
        twin: "policy.twin.example.com",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        kind: "PodDisruptionBudget",
        short: "pdb",
        schema,
        columns: &[
            ("Min Available", "string", ".spec.minAvailable"),
            ("Max Unavailable", "string", ".spec.maxUnavailable"),
            ("Allowed Disruptions", "integer", ".status.disruptionsAllowed"),
            ("Age", "date", ".metadata.creationTimestamp"),
        ],
        spec: json!({"minAvailable": "30%", "selector": {"matchLabels": {"a": "b"}}}),
        changed: json!({"minAvailable": 2, "selector": {"matchLabels": {"a": "b"}}, "unhealthyPodEvictionPolicy": "AlwaysAllow"}),
        applied: json!({"minAvailable": 3, "selector": {"matchLabels": {"z": "z"}}}),
        statuses: Some([
            json!({"currentHealthy": 1, "desiredHealthy": 2, "disruptionsAllowed": 3, "expectedPods": 4,
                "observedGeneration": 1, "conditions": [ready("True")]}),
            json!({"currentHealthy": 5, "desiredHealthy": 2, "disruptionsAllowed": 3, "expectedPods": 4,
                "conditions": [ready("False")], "disruptedPods": {"p": "2026-01-01T00:00:00Z"}}),
        ]),
        drops: ("unhealthyPodEvictionPolicy", Value::Null),
        typo: json!({"minAvailable": 1, "typo": 1}),
    }
}

fn selector() -> Value {
    let expression = json!({"type": "object", "required": ["key", "operator"], "properties": {"key": {"type": "string"},
        "operator": {"type": "string"}, "values": {"type": "array", "x-kubernetes-list-type": "atomic", "items": {"type": "string"}}}});
    json!({"type": "object", "x-kubernetes-map-type": "atomic", "properties": {
        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
        "matchExpressions": {"type": "array", "x-kubernetes-list-type": "atomic", "items": expression}}})
}

impl Pair {
    /// `described`: the built-in table's columns, whose descriptions the twin's have too.
    fn definition(&self, described: &Value) -> Value {
        let of = |name: &str| {
            let mut all = described.as_array().into_iter().flatten();
            all.find(|c| c["name"] == name).map_or(Value::Null, |c| c["description"].clone())
        };
        let columns: Vec<Value> = self
            .columns
            .iter()
            .map(|(name, ty, path)| json!({"name": name, "type": ty, "jsonPath": path, "description": of(name)}))
            .collect();
        let mut version =
            json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": self.schema}});
        if !columns.is_empty() {
            version["additionalPrinterColumns"] = columns.into();
        }
        if self.statuses.is_some() {
            version["subresources"] = json!({"status": {}});
        }
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{}.{}", self.plural, self.twin)},
            "spec": {"group": self.twin, "scope": "Namespaced",
                "names": {"plural": self.plural, "singular": self.singular, "kind": self.kind,
                    "listKind": format!("{}List", self.kind), "shortNames": [self.short]},
                "versions": [version]}})
    }
}

/// What the server chooses itself is named in the order of its appearance; the twin's group becomes the built-in one's.
struct Neutral {
    groups: (&'static str, &'static str),
    names: HashMap<String, String>,
}

impl Neutral {
    fn text(&mut self, text: &str) -> String {
        let (built_in, twin) = self.groups;
        let text = text.replace(twin, built_in);
        match serde_json::from_str::<Value>(&text) {
            Ok(mut value) => {
                self.value(&mut value, "");
                value.to_string()
            }
            Err(_) => text,
        }
    }

    /// Text with the names of what the server chose.
    fn words(&self, text: &str) -> String {
        let inside = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let words = text.split_inclusive(|c| !inside(c)).map(|piece| {
            let word = piece.trim_end_matches(|c| !inside(c));
            self.names.get(word).map_or(piece.to_owned(), |name| piece.replace(word, name))
        });
        words.collect()
    }

    fn object(&mut self, map: &mut Map<String, Value>, key: &str) {
        // A typed list says the type of its items once.
        if key == "items" {
            map.remove("apiVersion");
            map.remove("kind");
        }
        // An untyped one says that there is no more.
        if map.get("continue").is_some_and(|token| token == "") {
            map.remove("continue");
        }
        // Go's struct is there before it is written, so nobody owns it as such.
        if key == "f:spec" || key == "f:status" {
            map.remove(".");
        }
        // Built-in tables show a time and what is not there as text.
        if map.get("name").is_some_and(|name| name == "Age") {
            map.insert("type".into(), "date".into());
        }
        map.iter_mut().for_each(|(k, v)| self.value(v, k));
        map.retain(|k, v| !(k == "f:spec" || k == "f:status") || *v != json!({}));
    }

    fn value(&mut self, value: &mut Value, key: &str) {
        match value {
            Value::Object(map) => self.object(map, key),
            Value::Array(cells) if key == "cells" => {
                // The last one is the age.
                cells.pop();
                cells.iter_mut().filter(|c| *c == "N/A").for_each(|c| *c = Value::Null);
            }
            Value::Array(items) => items.iter_mut().for_each(|v| self.value(v, key)),
            Value::String(s) if ["uid", "resourceVersion", "continue"].contains(&key) => {
                let next = format!("{key} {}", self.names.len());
                *s = self.names.entry(s.clone()).or_insert(next).clone();
            }
            Value::String(s) if ["creationTimestamp", "time", "deletionTimestamp"].contains(&key) => s.clear(),
            // Errors quote what the client sent.
            Value::String(s) if key == "message" => *s = self.words(s),
            // A column that is not described is, where a definition states it.
            Value::String(s) if key == "description" && s.starts_with("Custom resource definition column") => s.clear(),
            _ => {}
        }
    }
}

struct Side<'a> {
    server: &'a TestServer,
    pair: &'a Pair,
    group: &'static str,
    neutral: Neutral,
    shown: Vec<String>,
}

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const META: &str = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
const METAS: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";

impl Side<'_> {
    fn url(&self, rest: &str) -> String {
        format!("/apis/{}/v1/namespaces/default/{}{rest}", self.group, self.pair.plural)
    }

    fn object(&self, name: &str, spec: &Value) -> Value {
        json!({"apiVersion": format!("{}/v1", self.group), "kind": self.pair.kind,
            "metadata": {"name": name, "labels": {"app": name}}, "spec": spec})
    }

    /// Sends a request, and keeps what is shown of its answer.
    async fn send(&mut self, method: &str, rest: &str, content_type: &str, accept: &str, body: &Value) -> Value {
        let bytes = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(self.url(rest)).header("user-agent", "twins/1");
        let request = request.header("content-type", content_type).header("accept", accept).body(bytes).unwrap();
        let answer = self.server.send(request).await;
        let warnings: Vec<_> = answer.headers.get_all("warning").iter().collect();
        let text = self.neutral.text(&answer.text);
        let rest = self.neutral.words(rest);
        self.shown.push(format!("{method} {rest} {} {warnings:?} {text}", answer.code));
        answer.json
    }

    async fn get(&mut self, rest: &str, accept: &str) -> Value {
        self.send("GET", rest, JSON, accept, &Value::Null).await
    }

    async fn post(&mut self, rest: &str, body: &Value) -> Value {
        self.send("POST", rest, JSON, JSON, body).await
    }

    async fn patch(&mut self, rest: &str, content_type: &str, body: &Value) -> Value {
        self.send("PATCH", rest, content_type, JSON, body).await
    }

    async fn delete(&mut self, rest: &str, options: &Value) -> Value {
        self.send("DELETE", rest, JSON, JSON, options).await
    }

    async fn creates(&mut self) -> Value {
        let pair = self.pair;
        let mut first = Value::Null;
        for name in ["a", "b", "c", "a", "d"] {
            let object = self.object(name, &pair.spec);
            let made = self.post("", &object).await;
            first = if first.is_null() { made } else { first };
        }
        let plain = json!({"apiVersion": format!("{}/v1", self.group), "kind": pair.kind, "metadata": {"name": "dry"}, "spec": pair.spec});
        self.post("?dryRun=All", &plain).await;
        self.post("?fieldManager=somebody&pretty=true&dryRun=All", &plain).await;
        for validation in ["Strict", "Warn", "Ignore"] {
            let typo = self.object("typo", &pair.typo);
            self.post(&format!("?fieldValidation={validation}&dryRun=All"), &typo).await;
        }
        self.post("?fieldValidation=Loose", &plain).await;
        let mut wrong = plain.clone();
        wrong["metadata"] = json!({"name": "w", "namespace": "other"});
        self.post("", &wrong).await;
        wrong["metadata"] = json!({"name": "w", "resourceVersion": "7"});
        self.post("", &wrong).await;
        wrong["metadata"] = json!({"labels": {"a": "b"}});
        self.post("", &wrong).await;
        wrong["metadata"] = json!({"name": "w", "labels": {"not valid!": "b"}, "annotations": {"/": ""}});
        self.post("", &wrong).await;
        first
    }

    async fn reads(&mut self) {
        for (rest, accept) in [
            ("/a", JSON),
            ("/missing", JSON),
            ("/a", META),
            ("/a?resourceVersion=0", JSON),
            ("", JSON),
            ("", METAS),
            ("?labelSelector=app%3Db", JSON),
            ("?labelSelector=app+in+(b,c),app", JSON),
            ("?labelSelector=app%3D%3D%3Db", JSON),
            ("?fieldSelector=metadata.name%3Dc", JSON),
            ("?fieldSelector=metadata.namespace%3Ddefault,metadata.name!%3Dc", JSON),
            ("?fieldSelector=spec.x%3Dc", JSON),
            ("?resourceVersionMatch=Exact", JSON),
            ("?limit=x", JSON),
        ] {
            self.get(rest, accept).await;
        }
        if !self.pair.columns.is_empty() {
            for rest in ["/a", "", "?includeObject=Object", "?includeObject=None"] {
                self.get(rest, TABLE).await;
            }
        }
        let page = self.get("?limit=2", JSON).await;
        let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
        self.get(&format!("?limit=2&continue={token}"), JSON).await;
        let revision = page["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        self.get(&format!("?resourceVersion={revision}&resourceVersionMatch=Exact"), JSON).await;
        self.get(&format!("?resourceVersion={revision}&resourceVersionMatch=NotOlderThan"), JSON).await;
    }

    async fn updates(&mut self, first: &Value) {
        let pair = self.pair;
        let mut changed = first.clone();
        changed["spec"] = pair.changed.clone();
        self.send("PUT", "/a?dryRun=All", JSON, JSON, &changed).await;
        self.send("PUT", "/a", JSON, JSON, &changed).await;
        // Its revision is no longer the newest.
        self.send("PUT", "/a", JSON, JSON, &changed).await;
        self.send("PUT", "/b", JSON, JSON, &changed).await;
        let mut lacks = self.get("/a", JSON).await;
        lacks["spec"][pair.drops.0] = pair.drops.1.clone();
        lacks["metadata"]["labels"] = Value::Null;
        self.send("PUT", "/a", JSON, JSON, &lacks).await;
        let same = self.get("/a", JSON).await;
        self.send("PUT", "/a", JSON, JSON, &same).await;
    }

    async fn patches(&mut self) {
        let pair = self.pair;
        let field = pair.spec.as_object().unwrap().keys().next().unwrap();
        self.patch("/a", MERGE, &json!({"metadata": {"annotations": {"k": "v"}}})).await;
        self.patch("/a?dryRun=All", MERGE, &json!({"metadata": {"annotations": {"k": null}}})).await;
        self.patch("/a", MERGE, &json!({"spec": {(pair.drops.0): null}})).await;
        self.patch("/a", MERGE, &json!({})).await;
        self.patch("/missing", MERGE, &json!({"spec": {}})).await;
        self.patch("/a", MERGE, &json!([])).await;
        self.patch("/a", MERGE, &json!({"metadata": {"resourceVersion": "1"}})).await;
        self.patch("/a", MERGE, &json!({"spec": {"typo": 1}})).await;
        let operations = json!([{"op": "test", "path": "/metadata/name", "value": "a"},
            {"op": "add", "path": "/metadata/labels", "value": {"x": "y"}},
            {"op": "copy", "from": format!("/spec/{field}"), "path": "/spec/copied"}, {"op": "remove", "path": "/spec/copied"}]);
        self.patch("/a", JSON_PATCH, &operations).await;
        self.patch("/a", JSON_PATCH, &json!([{"op": "test", "path": "/metadata/name", "value": "b"}])).await;
        self.patch("/a", JSON_PATCH, &json!([{"op": "remove", "path": "/spec/nothing"}])).await;
        self.patch("/a", JSON_PATCH, &json!({"op": "remove"})).await;
    }

    async fn applies(&mut self) {
        let pair = self.pair;
        let applied = self.object("a", &pair.applied);
        self.patch("/a", APPLY, &applied).await;
        self.patch("/a?fieldManager=m", APPLY, &applied).await;
        self.patch("/a?fieldManager=m&force=true&dryRun=All", APPLY, &applied).await;
        self.patch("/a?fieldManager=m&force=true", APPLY, &applied).await;
        self.patch("/a?fieldManager=m&force=true", APPLY, &applied).await;
        self.patch("/a?fieldManager=other", APPLY, &applied).await;
        self.patch("/a?fieldManager=other", APPLY, &self.object("a", &json!({}))).await;
        let new = self.object("new", &pair.changed);
        self.patch("/new?fieldManager=m", APPLY, &new).await;
        self.patch("/new?fieldManager=m", APPLY, &self.object("elsewhere", &pair.changed)).await;
        let typo = self.object("new", &pair.typo);
        self.patch("/new?fieldManager=m&fieldValidation=Strict", APPLY, &typo).await;
    }

    async fn status(&mut self) {
        let Some([first, second]) = &self.pair.statuses else { return };
        let mut live = self.get("/a/status", JSON).await;
        live["status"] = first.clone();
        // Labels would get through to the built-in kind's object alone.
        live["spec"] = self.pair.applied.clone();
        self.send("PUT", "/a/status?dryRun=All", JSON, JSON, &live).await;
        self.send("PUT", "/a/status", JSON, JSON, &live).await;
        self.send("PUT", "/a/status", JSON, JSON, &live).await;
        self.patch(
            "/a/status",
            MERGE,
            &json!({"status": {"observedGeneration": 9}, "spec": {(self.pair.drops.0): null}}),
        )
        .await;
        self.patch(
            "/a/status",
            JSON_PATCH,
            &json!([{"op": "replace", "path": "/status/conditions/0/message", "value": "m"}]),
        )
        .await;
        // As are its labels.
        let mut applied = self.object("a", &json!({}));
        applied.as_object_mut().unwrap().remove("spec");
        applied["metadata"] = json!({"name": "a"});
        applied["status"] = second.clone();
        self.patch("/a/status?fieldManager=s", APPLY, &applied).await;
        self.patch("/a/status?fieldManager=s&force=true", APPLY, &applied).await;
        // The object itself does not take it.
        self.patch("/a", MERGE, &json!({"status": {"currentHealthy": 77}})).await;
        self.get("/a", JSON).await;
        self.get("/missing/status", JSON).await;
        self.post("/a/status", &applied).await;
    }

    async fn deletes(&mut self) {
        self.patch("/b", MERGE, &json!({"metadata": {"finalizers": ["example.com/f"]}})).await;
        self.delete("/b", &Value::Null).await;
        self.delete("/b", &Value::Null).await;
        let late = self.object("b", &self.pair.spec);
        self.post("", &late).await;
        self.patch("/b", MERGE, &json!({"metadata": {"finalizers": ["example.com/f", "example.com/g"]}})).await;
        self.patch("/b", MERGE, &json!({"metadata": {"finalizers": null}})).await;
        self.delete("/a?dryRun=All", &Value::Null).await;
        let options = |more: Value| {
            let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
            options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            options
        };
        self.delete("/a", &options(json!({"preconditions": {"uid": "another"}}))).await;
        self.delete("/a", &options(json!({"preconditions": {"resourceVersion": "1"}}))).await;
        self.delete("/a", &options(json!({"propagationPolicy": "Sideways"}))).await;
        self.delete("/a", &options(json!({"propagationPolicy": "Foreground"}))).await;
        self.get("/a", JSON).await;
        self.patch("/a", MERGE, &json!({"metadata": {"finalizers": null}})).await;
        self.delete("/a", &Value::Null).await;
        self.delete("/d", &options(json!({"propagationPolicy": "Background", "gracePeriodSeconds": 5}))).await;
        self.delete("?labelSelector=app%3Dc&dryRun=All", &Value::Null).await;
        self.delete("?labelSelector=app%3Dc", &Value::Null).await;
        self.get("", JSON).await;
        self.delete("", &Value::Null).await;
        self.get("", JSON).await;
    }

    /// The events of that life, from its first object on.
    async fn watches(&mut self, first: &Value) {
        let after = first["metadata"]["resourceVersion"].as_str().unwrap();
        for rest in [
            format!("?watch=1&timeoutSeconds=1&resourceVersion={after}"),
            format!("?watch=1&timeoutSeconds=1&resourceVersion={after}&labelSelector=app%3Db"),
            format!("?watch=1&timeoutSeconds=1&resourceVersion={after}&fieldSelector=metadata.name%3Dnew"),
            "?watch=1&timeoutSeconds=1&resourceVersion=x".to_owned(),
        ] {
            let request = Request::get(self.url(&rest)).body(Body::empty()).unwrap();
            let bytes = self.server.open(request).await.into_body().collect().await.unwrap().to_bytes();
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            for line in text.lines() {
                let line = self.neutral.text(line);
                self.shown.push(line);
            }
        }
    }
}

/// All answers of a life, in order.
async fn life(server: &TestServer, pair: &Pair, group: &'static str) -> Vec<String> {
    let neutral = Neutral { groups: (pair.group, pair.twin), names: HashMap::new() };
    let mut side = Side { server, pair, group, neutral, shown: Vec::new() };
    let first = side.creates().await;
    side.reads().await;
    side.updates(&first).await;
    side.patches().await;
    side.applies().await;
    side.status().await;
    if !pair.columns.is_empty() {
        side.get("", TABLE).await;
    }
    side.deletes().await;
    side.watches(&first).await;
    side.shown
}

/// Waits until the server has written all that it writes about a definition, so that its revisions lie before those of both
/// lives: the definition's status, and the `APIService` of its group.
async fn established(server: &TestServer, group: &str) {
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?watch=1".to_owned();
    let services =
        format!("/apis/apiregistration.k8s.io/v1/apiservices?watch=1&fieldSelector=metadata.name%3Dv1.{group}");
    for (uri, wanted) in [(definitions, "InitialNamesAccepted"), (services, "\"Available\"")] {
        let mut body = server.open(Request::get(uri).body(Body::empty()).unwrap()).await.into_body();
        let mut seen = String::new();
        while !seen.contains(wanted) {
            let frame = body.frame().await.expect("the watch goes on").unwrap();
            seen.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap()));
        }
    }
}

async fn check(pair: Pair, answers: usize) {
    let server = TestServer::start().await;
    let table = format!("/apis/{}/v1/namespaces/default/{}", pair.group, pair.plural);
    let table = server.send(Request::get(table).header("accept", TABLE).body(Body::empty()).unwrap()).await;
    let definition = pair.definition(&table.json["columnDefinitions"]);
    let made = server.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    assert_eq!(made.code, 201, "{}", made.text);
    established(&server, pair.twin).await;
    let (built_in, twin) = (life(&server, &pair, pair.group).await, life(&server, &pair, pair.twin).await);
    let differ: Vec<String> =
        built_in.iter().zip(&twin).filter(|(a, b)| a != b).map(|(a, b)| format!("{a}\n{b}\n")).collect();
    assert!(
        differ.is_empty(),
        "{} of {}, the built-in kind's first:\n{}",
        differ.len(),
        built_in.len(),
        differ.join("\n")
    );
    assert_eq!(built_in.len(), twin.len());
    assert!(built_in.len() > answers, "{}", built_in.len());
}

#[tokio::test]
async fn a_custom_resource_is_served_as_a_built_in_one() {
    check(network_policies(), 100).await;
}

#[tokio::test]
async fn a_custom_resource_with_status_and_columns_is_served_as_a_built_in_one() {
    check(disruption_budgets(), 110).await;
}
