//! The metrics that upstream promises to keep (STABLE, BETA) are here under their names, with their types and labels.

#![allow(clippy::unwrap_used)]

use axum::body::Body;
use futures::StreamExt;
use http::Request;
use isopod_api::UserInfo;
use isopod_testkit::TestServer;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use tower::ServiceExt;

/// Of an API server, as its sources of v1.37 register them: level, type, name, labels.
const UPSTREAM: &str = include_str!("upstream/metrics.txt");

/// What is not here. It may only shrink.
const MISSING: [&str; 6] = [
    // Only where a webhook or a policy was asked: see `admission/metrics.rs`.
    "apiserver_admission_webhook_admission_duration_seconds",
    "apiserver_validating_admission_policy_check_duration_seconds",
    "apiserver_validating_admission_policy_check_total",
    // There is one validation here, not two that could differ.
    "apiserver_validation_declarative_validation_mismatch_total",
    "apiserver_validation_declarative_validation_panic_total",
    // There are no gates.
    "kubernetes_feature_enabled",
];

/// These are there once their file was read again: see `authorization.rs` and `tokens.rs`.
const OF_FILES: &str = "_config_controller_";

#[derive(Default)]
struct Page {
    types: BTreeMap<String, String>,
    labels: BTreeMap<String, BTreeSet<String>>,
}

impl Page {
    fn read(&mut self, text: &str) {
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
                let twice = self.types.insert(name.to_owned(), kind.to_owned());
                assert_eq!(twice, None, "{name}");
            } else if let Some((series, _)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) {
                let (name, labels) = series.split_once('{').unwrap_or((series, ""));
                let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
                let family = family.filter(|f| self.types.contains_key(*f)).unwrap_or(name);
                let keys = labels.trim_end_matches('}').split("\",").filter_map(|l| l.split_once('='));
                let keys = keys.map(|(k, _)| k.to_owned()).filter(|k| k != "le");
                self.labels.entry(family.to_owned()).or_default().extend(keys);
            }
        }
    }
}

#[tokio::test]
async fn what_upstream_promises_is_here() {
    let s = TestServer::start().await;
    let map = json!({"metadata": {"name": "m"}});
    assert_eq!(s.post("/api/v1/namespaces/default/configmaps", map).await.code, 201);
    assert_eq!(s.get("/api/v1/componentstatuses").await.code, 200);
    assert_eq!(s.get("/readyz").await.code, 200);
    let watch = "/api/v1/namespaces/default/configmaps?watch=1&allowWatchBookmarks=1&sendInitialEvents=1&resourceVersionMatch=NotOlderThan";
    let open = s.open(Request::get(watch).body(Body::empty()).unwrap()).await;
    let mut frames = open.into_body().into_data_stream();
    frames.next().await.unwrap().unwrap();
    let text = s.get("/metrics").await.text;
    let mut page = Page::default();
    page.read(&text);
    page.read(&s.get("/metrics/slis").await.text);
    let running = "apiserver_longrunning_requests{verb=\"WATCH\",group=\"\",version=\"v1\",resource=\"configmaps\",\
                   subresource=\"\",scope=\"namespace\",component=\"apiserver\"} 1\n";
    assert!(text.contains(running), "{text}");
    let mut missing = Vec::new();
    for line in UPSTREAM.lines() {
        let [_, kind, name, labels] = line.splitn(4, ' ').chain([""]).collect::<Vec<_>>()[..4] else {
            panic!("{line}")
        };
        if name.contains(OF_FILES) {
            continue;
        }
        let wanted: BTreeSet<String> = labels.split(',').filter(|l| !l.is_empty()).map(str::to_owned).collect();
        match page.labels.get(name) {
            // Nothing has happened yet that it counts.
            None if page.types.get(name).map(String::as_str) == Some(kind) => {}
            None => missing.push(name),
            Some(found) => {
                assert_eq!(page.types.get(name).map(String::as_str), Some(kind), "{name}");
                assert_eq!(*found, wanted, "{name}");
            }
        }
    }
    missing.sort_unstable();
    let mut known = MISSING.to_vec();
    known.sort_unstable();
    assert_eq!(missing, known);
    for (name, value) in [
        (
            "apiserver_request_sli_duration_seconds_count{verb=\"POST\",group=\"\",version=\"v1\",resource=\"configmaps\",\
          subresource=\"\",scope=\"resource\",component=\"apiserver\"}",
            "1",
        ),
        (
            "apiserver_request_body_size_bytes_bucket{le=\"50000\",group=\"\",resource=\"configmaps\",verb=\"create\"}",
            "1",
        ),
        ("aggregator_unavailable_apiservice{name=\"v1.apps\"}", "0"),
    ] {
        assert!(text.contains(&format!("\n{name} {value}\n")), "{name} in {text}");
    }
    assert_eq!(page.types.get("process_resident_memory_bytes").map(String::as_str), Some("gauge"));
    drop(frames);
    let text = s.get("/metrics").await.text;
    assert!(text.contains(&running.replace(" 1\n", " 0\n")), "it has ended");
}

#[tokio::test]
async fn what_services_are_given_is_counted() {
    let s = TestServer::start().await;
    let services = "/api/v1/namespaces/default/services";
    let gauge = |page: &str, name: &str| -> f64 {
        let line = page.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name} in {page}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    let (used, free) =
        ("kube_apiserver_clusterip_allocator_allocated_ips{", "kube_apiserver_clusterip_allocator_available_ips{");
    let before = s.get("/metrics").await.text;
    let service = |name: &str, port: u16| json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}});
    for (name, port, code) in [("a", 0, 201), ("b", 30_080, 201), ("c", 30_080, 422), ("d", 80, 422)] {
        assert_eq!(s.post(services, service(name, port)).await.code, code, "{name}");
    }
    let dry = s.post(&format!("{services}?dryRun=All"), service("e", 0)).await;
    assert_eq!(dry.code, 201);
    let page = s.get("/metrics").await.text;
    for (name, value) in [
        ("kube_apiserver_nodeport_allocator_allocation_total{scope=\"dynamic\"}", 1.0),
        ("kube_apiserver_nodeport_allocator_allocation_total{scope=\"static\"}", 1.0),
        ("kube_apiserver_nodeport_allocator_allocation_errors_total{scope=\"static\"}", 2.0),
        ("kube_apiserver_nodeport_allocator_allocated_ports", 2.0),
        ("kube_apiserver_nodeport_allocator_available_ports", 2766.0),
        ("apiserver_nodeport_repair_reconcile_errors_total", 0.0),
    ] {
        assert_eq!(gauge(&page, name), value, "{name}");
    }
    assert_eq!((gauge(&page, used) - gauge(&before, used), gauge(&page, free) - gauge(&before, free)), (2.0, -2.0));
    let allocations: Vec<&str> = page
        .lines()
        .filter(|l| l.starts_with("kube_apiserver_clusterip_allocator_allocation_total{") && l.contains("dynamic"))
        .collect();
    assert!(matches!(&allocations[..], [one] if one.ends_with(" 4")), "{allocations:?}");
}

#[tokio::test]
async fn strangers_make_no_labels() {
    let s = TestServer::start().await;
    for path in ["/apis/made.up/v1/things", "/api/v1/namespaces/default/pods/x/invented", "/invented"] {
        let request = Request::get(path).extension(UserInfo::anonymous()).body(Body::empty()).unwrap();
        assert_eq!(s.server.service().oneshot(request).await.unwrap().status().as_u16(), 403, "{path}");
    }
    let text = s.get("/metrics").await.text;
    assert!(!text.contains("made.up") && !text.contains("invented"), "{text}");
    let refused = "authorization_attempts_total{result=\"no-opinion\"} 3\n";
    assert!(text.contains(refused), "{text}");
}

#[tokio::test]
async fn caches_and_lists_are_counted() {
    let s = TestServer::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    s.get(maps).await;
    for name in ["a", "b", "c"] {
        assert_eq!(s.post(maps, json!({"metadata": {"name": name}})).await.code, 201);
    }
    let value = |page: &str, name: &str, more: &str| -> f64 {
        let start = format!("{name}{{group=\"\",resource=\"configmaps\"{more}}} ");
        let line = page.lines().find(|l| l.starts_with(&start)).unwrap_or_else(|| panic!("{start} in {page}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    let (cached, indexed) = (",storage=\"watchcache\"", ",storage=\"watchcache\",index=\"\"");
    let before = s.get("/metrics").await.text;
    s.get(&format!("{maps}?limit=1")).await;
    s.get(&format!("{maps}?fieldSelector=metadata.name%3Da")).await;
    let page = s.get("/metrics").await.text;
    let more = |name: &str, labels: &str| value(&page, name, labels) - value(&before, name, labels);
    assert_eq!(more("apiserver_storage_list_total", indexed), 2.0);
    assert_eq!(more("apiserver_storage_list_returned_objects_total", cached), 2.0);
    // The next one tells that there is more; a name is looked up.
    assert_eq!(more("apiserver_storage_list_fetched_objects_total", indexed), 3.0);
    let received = value(&page, "apiserver_watch_cache_events_received_total", "");
    assert!(received >= 3.0);
    assert_eq!(value(&page, "apiserver_watch_cache_events_dispatched_total", ""), received);
    assert_eq!(value(&page, "apiserver_watch_cache_initializations_total", ""), 1.0);
    assert_eq!(value(&page, "apiserver_watch_cache_initialization_duration_seconds_count", ""), 1.0);
    let revision: f64 = s.get(maps).await.json["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(value(&page, "apiserver_watch_cache_resource_version", "") <= revision);
    assert!(value(&page, "apiserver_resource_size_estimate_bytes", "") > 0.0);
    assert!(page.contains("\napiserver_tls_handshake_errors_total 0\n"));
}

#[tokio::test]
async fn what_the_datastore_is_asked_is_counted() {
    let s = TestServer::start().await;
    let policies = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
    let one = format!("{policies}/a");
    let policy = json!({"metadata": {"name": "a"}, "spec": {"podSelector": {}}});
    let before = s.get("/metrics").await.text;
    let made = s.post(policies, policy.clone()).await;
    assert_eq!(made.code, 201);
    assert_eq!(s.post(policies, policy.clone()).await.code, 409);
    assert_eq!(s.get(&one).await.code, 200);
    let mut changed = made.json;
    changed["metadata"]["labels"] = json!({"a": "b"});
    assert_eq!(s.put(&one, changed).await.code, 200);
    assert_eq!(s.get(policies).await.code, 200);
    assert_eq!(s.get(policies).await.code, 200);
    assert_eq!(s.delete(&one).await.code, 200);
    let page = s.get("/metrics").await.text;
    for (operation, count) in [("create", 2), ("update", 1), ("delete", 1), ("list", 1)] {
        let labels = format!("{{operation=\"{operation}\",group=\"networking.k8s.io\",resource=\"networkpolicies\"}}");
        for name in ["etcd_requests_total", "etcd_request_duration_seconds_count"] {
            assert!(!before.contains(&format!("{name}{labels}")));
            assert!(page.contains(&format!("\n{name}{labels} {count}\n")), "{name} of {operation} in {page}");
        }
        assert!(!page.contains(&format!("etcd_request_errors_total{labels}")));
    }
    assert!(page.contains(
        "\netcd_requests_total{operation=\"get\",group=\"networking.k8s.io\",resource=\"networkpolicies\"} "
    ));
}
