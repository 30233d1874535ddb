//! The verbs over in-process requests: what a client sees of create, get, list, update, patch, delete.

#![allow(clippy::unwrap_used)]

use isopod_testkit::TestServer;
use serde_json::{Value, json};
use std::sync::Arc;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"n": name}}, "data": {"k": "v"}})
}

#[tokio::test]
async fn an_object_lives_and_dies() {
    let s = TestServer::start().await;
    let created = s.post(MAPS, map("a")).await;
    assert_eq!(created.code, 201, "{}", created.text);
    let meta = &created.json["metadata"];
    assert_eq!((&meta["namespace"], &created.json["data"]["k"]), (&json!("default"), &json!("v")));
    assert!(meta["uid"].is_string() && meta["creationTimestamp"].is_string() && meta["resourceVersion"].is_string());

    let got = s.get(&format!("{MAPS}/a")).await;
    assert_eq!((got.code, &got.json), (200, &created.json));
    let again = s.post(MAPS, map("a")).await;
    assert_eq!(again.code, 409);
    assert_eq!(again.json["message"], "configmaps \"a\" already exists");

    let mut changed = got.json.clone();
    changed["data"]["k"] = json!("w");
    let updated = s.put(&format!("{MAPS}/a"), changed.clone()).await;
    assert_eq!((updated.code, &updated.json["data"]["k"]), (200, &json!("w")));
    let stale = s.put(&format!("{MAPS}/a"), changed).await;
    assert_eq!((stale.code, &stale.json["reason"]), (409, &json!("Conflict")));
    let same = s.put(&format!("{MAPS}/a"), updated.json.clone()).await;
    assert_eq!(same.json, updated.json, "nothing changed, nothing written");

    let gone = s.delete(&format!("{MAPS}/a")).await;
    assert_eq!((gone.code, &gone.json["status"]), (200, &json!("Success")));
    assert_eq!(gone.json["details"]["uid"], meta["uid"]);
    let missing = s.get(&format!("{MAPS}/a")).await;
    assert_eq!(missing.code, 404);
    assert_eq!(missing.json["message"], "configmaps \"a\" not found");
}

#[tokio::test]
async fn names_are_generated() {
    let s = TestServer::start().await;
    let made = s.post(MAPS, json!({"metadata": {"generateName": "x-"}})).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let name = made.json["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("x-") && name.len() == 7, "{name}");
}

#[tokio::test]
async fn lists_select_and_page() {
    let s = TestServer::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        assert_eq!(s.post(MAPS, map(name)).await.code, 201);
    }
    let names = |v: &Value| -> Vec<String> {
        let items = v["items"].as_array().unwrap().iter();
        items.map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let all = s.get(MAPS).await;
    assert_eq!(all.json["kind"], "ConfigMapList");
    assert_eq!(names(&all.json), ["a", "b", "c", "d", "e"]);
    let some = s.get(&format!("{MAPS}?labelSelector=n%20in%20(a,c)")).await;
    assert_eq!(names(&some.json), ["a", "c"]);
    let one = s.get("/api/v1/configmaps?fieldSelector=metadata.name%3Dd").await;
    assert_eq!(names(&one.json), ["d"]);

    let first = s.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(
        (names(&first.json), &first.json["metadata"]["remainingItemCount"]),
        (vec!["a".into(), "b".into()], &json!(3))
    );
    // What happens now is not part of the list that was begun.
    s.delete(&format!("{MAPS}/c")).await;
    let token = first.json["metadata"]["continue"].as_str().unwrap();
    let second = s.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(names(&second.json), ["c", "d"]);
    assert_eq!(second.json["metadata"]["resourceVersion"], first.json["metadata"]["resourceVersion"]);
    let token = second.json["metadata"]["continue"].as_str().unwrap();
    // A token means the same to another server on the same store.
    let other = TestServer::start_on(s.store.clone(), |_| {}).await;
    let third = other.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(names(&third.json), ["e"]);
    assert!(third.json["metadata"]["continue"].is_null());

    let exact = s
        .get(&format!(
            "{MAPS}?resourceVersionMatch=Exact&resourceVersion={}",
            first.json["metadata"]["resourceVersion"].as_str().unwrap()
        ))
        .await;
    assert_eq!(names(&exact.json).len(), 5);
    let future = s.get(&format!("{MAPS}?resourceVersionMatch=Exact&resourceVersion=999999")).await;
    assert_eq!((future.code, &future.json["reason"]), (504, &json!("Timeout")));
}

/// Which revision a list shows, by `resourceVersion` and `resourceVersionMatch`.
#[tokio::test]
async fn lists_of_a_revision() {
    let s = TestServer::start().await;
    let version = |v: &Value| v["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    let first = version(&s.post(MAPS, map("a")).await.json);
    assert_eq!(s.post(MAPS, map("b")).await.code, 201);
    let changed = s.patch(&format!("{MAPS}/a"), "application/merge-patch+json", json!({"data": {"k": "w"}})).await;
    let second = version(&changed.json);
    assert_eq!(s.delete(&format!("{MAPS}/b")).await.code, 200);
    let newest = version(&s.get(MAPS).await.json);
    assert!(first < second && second < newest, "{first} {second} {newest}");

    let seen = |v: &Value| -> Vec<String> {
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let items = v["items"].as_array().unwrap().iter();
        items.map(|i| text(&i["metadata"]["name"]) + "=" + &text(&i["data"]["k"])).collect()
    };
    for (query, want, at) in [
        // Nothing said: what is acknowledged by now.
        (String::new(), vec!["a=w"], Some(newest)),
        // Any revision that is at hand, which here is the newest: the cache has been asked for it just now.
        ("resourceVersion=0".into(), vec!["a=w"], None),
        ("resourceVersion=0&resourceVersionMatch=NotOlderThan".into(), vec!["a=w"], None),
        // At least this one.
        (format!("resourceVersion={first}"), vec!["a=w"], None),
        (format!("resourceVersion={first}&resourceVersionMatch=NotOlderThan"), vec!["a=w"], None),
        (format!("resourceVersion={newest}&resourceVersionMatch=NotOlderThan"), vec!["a=w"], None),
        (format!("resourceVersion={first}&resourceVersionMatch=NotOlderThan&limit=5"), vec!["a=w"], None),
        // This one and no other, from the history and from the cache.
        (format!("resourceVersion={first}&resourceVersionMatch=Exact"), vec!["a=v"], Some(first)),
        (format!("resourceVersion={second}&resourceVersionMatch=Exact"), vec!["a=w", "b=v"], Some(second)),
        (format!("resourceVersion={newest}&resourceVersionMatch=Exact"), vec!["a=w"], Some(newest)),
        // A limit without a match has always meant the exact one.
        (format!("resourceVersion={second}&limit=5"), vec!["a=w", "b=v"], Some(second)),
        (format!("resourceVersion={second}&resourceVersionMatch=Exact&labelSelector=n%3Db"), vec!["b=v"], Some(second)),
    ] {
        let list = s.get(&format!("{MAPS}?{query}")).await;
        assert_eq!(list.code, 200, "{query}: {}", list.text);
        assert_eq!(seen(&list.json), want, "{query}");
        let shown = version(&list.json);
        assert!(at.map_or(shown >= newest, |at| shown == at), "{query}: {shown}");
    }
    // Pages of a revision that has passed.
    let page = s.get(&format!("{MAPS}?resourceVersion={second}&resourceVersionMatch=Exact&limit=1")).await;
    assert_eq!((seen(&page.json), version(&page.json)), (vec!["a=w".to_owned()], second));
    let rest = page.json["metadata"]["continue"].as_str().unwrap();
    let page = s.get(&format!("{MAPS}?limit=1&continue={rest}")).await;
    assert_eq!((seen(&page.json), version(&page.json)), (vec!["b=v".to_owned()], second));

    for (query, code, words) in [
        ("resourceVersion=999999&resourceVersionMatch=NotOlderThan", 504, "Too large resource version"),
        (
            "resourceVersion=0&resourceVersionMatch=Exact",
            422,
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        (
            "resourceVersionMatch=NotOlderThan",
            422,
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        ("resourceVersion=1&resourceVersionMatch=Newest", 422, "supported values: \"Exact\", \"NotOlderThan\", \"\""),
    ] {
        let refused = s.get(&format!("{MAPS}?{query}")).await;
        assert_eq!(refused.code, code, "{query}: {}", refused.text);
        assert!(refused.json["message"].as_str().unwrap().contains(words), "{query}: {}", refused.text);
    }
}

#[tokio::test]
async fn bad_selectors_and_options_are_refused() {
    let s = TestServer::start().await;
    let check = |query: &'static str, code: u16, text: &'static str| {
        let s = &s;
        async move {
            let answer = s.get(&format!("{MAPS}?{query}")).await;
            assert_eq!(answer.code, code, "{query}: {}", answer.text);
            let message = answer.json["message"].as_str().unwrap();
            assert!(message.contains(text), "{query}: {message}");
        }
    };
    check("labelSelector=%3Dx", 400, "found '=', expected: !, identifier, or 'end of string'").await;
    check(
        "fieldSelector=spec.x%3Dy",
        400,
        "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
    )
    .await;
    check("resourceVersionMatch=Exact", 422, "resourceVersionMatch is forbidden unless resourceVersion is provided")
        .await;
    check("continue=x", 400, "continue key is not valid").await;
    check("sendInitialEvents=true", 422, "sendInitialEvents is forbidden for list").await;
}

#[tokio::test]
async fn patches() {
    let s = TestServer::start().await;
    s.post(MAPS, map("a")).await;
    let uri = format!("{MAPS}/a");
    let merged = s.patch(&uri, "application/merge-patch+json", json!({"data": {"k": null, "m": "1"}})).await;
    assert_eq!((merged.code, &merged.json["data"]), (200, &json!({"m": "1"})), "{}", merged.text);
    let ops = json!([{"op": "test", "path": "/data/m", "value": "1"}, {"op": "add", "path": "/data/j", "value": "2"}]);
    let json_patched = s.patch(&uri, "application/json-patch+json", ops).await;
    assert_eq!(json_patched.json["data"], json!({"m": "1", "j": "2"}), "{}", json_patched.text);
    let strategic =
        s.patch(&uri, "application/strategic-merge-patch+json", json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(strategic.json["metadata"]["labels"], json!({"n": "a", "x": "y"}), "{}", strategic.text);
    let other = s.patch(&uri, "application/apply-patch+cbor", json!({})).await;
    assert_eq!((other.code, &other.json["reason"]), (415, &json!("UnsupportedMediaType")));
}

#[tokio::test]
async fn field_validation_and_dry_run() {
    let s = TestServer::start().await;
    let mut odd = map("a");
    odd["dat"] = json!({});
    let strict = s.post(&format!("{MAPS}?fieldValidation=Strict"), odd.clone()).await;
    assert_eq!(strict.code, 400, "{}", strict.text);
    assert_eq!(
        strict.json["message"],
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dat\""
    );
    let warned = s.post(&format!("{MAPS}?dryRun=All"), odd).await;
    assert_eq!(warned.code, 201, "{}", warned.text);
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"dat\\\"\"");
    assert_eq!(s.get(&format!("{MAPS}/a")).await.code, 404, "a dry run writes nothing");
    let bad = s.post(&format!("{MAPS}?dryRun=Some"), map("a")).await;
    assert_eq!(bad.code, 422);
    assert_eq!(
        bad.json["message"],
        "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"Some\"]: supported values: \"All\""
    );
}

#[tokio::test]
async fn finalizers_and_propagation_hold_an_object() {
    let s = TestServer::start().await;
    let mut held = map("a");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    s.post(MAPS, held).await;
    let uri = format!("{MAPS}/a");
    let marked = s.delete(&uri).await;
    assert_eq!(marked.code, 200);
    assert!(marked.json["metadata"]["deletionTimestamp"].is_string(), "{}", marked.text);
    let freed = s.patch(&uri, "application/merge-patch+json", json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(freed.code, 200, "{}", freed.text);
    assert_eq!(s.get(&uri).await.code, 404);

    s.post(MAPS, map("b")).await;
    let foreground = s.delete(&format!("{MAPS}/b?propagationPolicy=Foreground")).await;
    assert_eq!(foreground.json["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    s.post(MAPS, map("c")).await;
    let many = s.delete(&format!("{MAPS}?labelSelector=n%3Dc")).await;
    assert_eq!((many.code, many.json["items"].as_array().unwrap().len()), (200, 1), "{}", many.text);
    assert_eq!(s.get(&format!("{MAPS}/c")).await.code, 404);
}

#[tokio::test]
async fn wrong_requests_get_upstreams_status() {
    let s = TestServer::start().await;
    let no_kind = s.get("/api/v1/nothings").await;
    assert_eq!(
        (no_kind.code, &no_kind.json["message"]),
        (404, &json!("the server could not find the requested resource"))
    );
    let no_namespace = s.post("/api/v1/namespaces/nowhere/configmaps", map("a")).await;
    assert_eq!((no_namespace.code, &no_namespace.json["message"]), (404, &json!("namespaces \"nowhere\" not found")));
    let other_kind = s.post(MAPS, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}})).await;
    assert_eq!((other_kind.code, &other_kind.json["reason"]), (400, &json!("BadRequest")));
    let big = s.post(MAPS, json!({"metadata": {"name": "x"}, "data": {"k": "x".repeat(4 << 20)}})).await;
    assert_eq!((big.code, &big.json["reason"]), (413, &json!("RequestEntityTooLarge")));
    let protected = s.delete("/api/v1/namespaces/default").await;
    assert_eq!(protected.code, 403);
    assert_eq!(protected.json["message"], "namespaces \"default\" is forbidden: this namespace may not be deleted");
}

/// A graceful delete without grace marks the pod and removes it; a status that is written between the two removes it too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_succeeds_whatever_is_written_meanwhile() {
    const PODS: &str = "/api/v1/namespaces/default/pods";
    let s = Arc::new(TestServer::start().await);
    let account = json!({"metadata": {"name": "default"}});
    assert_eq!(s.post("/api/v1/namespaces/default/serviceaccounts", account).await.code, 201);
    for round in 0..50 {
        let name = format!("p{round}");
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        assert_eq!(s.post(PODS, pod).await.code, 201);
        let status = format!("{PODS}/{name}/status");
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (s, status) = (s.clone(), status.clone());
                tokio::spawn(async move {
                    for n in 0..1000 {
                        let reason = json!({"status": {"reason": format!("{writer}-{n}")}});
                        if s.patch(&status, "application/merge-patch+json", reason).await.code == 404 {
                            return;
                        }
                    }
                })
            })
            .collect();
        let deleted = s.delete(&format!("{PODS}/{name}?gracePeriodSeconds=0")).await;
        for writer in writers {
            writer.await.unwrap();
        }
        assert_eq!(deleted.code, 200, "{}", deleted.text);
    }
}
