//! The kubelet as a whole, against an API in a map and a runtime in a map, under a clock that stands.

mod api;
mod runtime;

use crate::volumes::Mounter;
use crate::{Kubelet, KubeletConfig};
use api::Api;
use axum::body::Body;
use isopod_base::clock::Clock;
use isopod_base::supervisor::Supervisor;
use isopod_client::Informers;
use isopod_runtime::ContainerState;
use runtime::FakeRuntime;
use serde_json::{Value, json};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Mounts nothing: subpaths become links.
struct NoMounts;

impl Mounter for NoMounts {
    fn tmpfs(&self, _: &Path, _: Option<u64>) -> io::Result<()> {
        Ok(())
    }
    fn bind_subpath(&self, root: &Path, sub: &Path, target: &Path) -> io::Result<()> {
        std::fs::create_dir_all(target.parent().unwrap())?;
        std::os::unix::fs::symlink(root.join(sub), target)
    }
    fn is_mounted(&self, dir: &Path) -> io::Result<bool> {
        Ok(dir.is_symlink())
    }
    fn detach_below(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

struct Bench {
    api: Api,
    runtime: Arc<FakeRuntime>,
    clock: Clock,
    dir: tempfile::TempDir,
    kubelet: Arc<Kubelet>,
    parts: Supervisor,
}

impl Bench {
    async fn new() -> Bench {
        let clock = Clock::fake("2026-01-01T00:00:00Z".parse().unwrap());
        let runtime = FakeRuntime::new(clock.clone());
        runtime.image("img:1");
        Self::with(Api::default(), runtime, clock, tempfile::tempdir().unwrap()).await
    }

    async fn with(api: Api, runtime: Arc<FakeRuntime>, clock: Clock, dir: tempfile::TempDir) -> Bench {
        Self::configured(api, runtime, clock, dir, |_| {}).await
    }

    async fn configured(
        api: Api,
        runtime: Arc<FakeRuntime>,
        clock: Clock,
        dir: tempfile::TempDir,
        change: impl FnOnce(&mut KubeletConfig),
    ) -> Bench {
        let mut cfg = KubeletConfig {
            node_name: "n1".into(),
            node_ips: vec!["192.168.0.1".parse().unwrap()],
            root_dir: dir.path().join("kubelet"),
            pod_log_dir: dir.path().join("logs"),
            ..Default::default()
        };
        change(&mut cfg);
        let parts = Supervisor::new();
        let informers = Informers::with_clock(api.client(), clock.clone());
        let kubelet =
            Kubelet::start_with(cfg, &informers, runtime.clone(), clock.clone(), &parts, Arc::new(NoMounts)).await;
        Bench { api, runtime, clock, dir, kubelet: kubelet.unwrap(), parts }
    }

    /// Stops the kubelet and starts another after `meanwhile`.
    async fn restart(self, meanwhile: impl FnOnce(&Api, &FakeRuntime)) -> Bench {
        self.parts.shutdown().await;
        self.kubelet.stopped().await;
        meanwhile(&self.api, &self.runtime);
        Self::with(self.api, self.runtime, self.clock, self.dir).await
    }

    fn pod(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["nodeName"] = json!("n1");
        for list in ["containers", "initContainers"] {
            for c in spec[list].as_array_mut().into_iter().flatten() {
                if c["image"].is_null() {
                    c["image"] = json!("img:1");
                }
            }
        }
        let object =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "ns"}, "spec": spec});
        self.api.put("pods", object);
    }

    async fn until(&self, what: &str, name: &str, found: impl Fn(&Value) -> bool) {
        self.api.until(what, |api| api.get("pods", "ns", name).is_some_and(|p| found(&p["status"]))).await;
    }

    async fn until_said(&self, text: &str) {
        self.api.until(text, |api| api.messages().iter().any(|m| m.contains(text))).await;
    }
}

fn ready(s: &Value) -> bool {
    s["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

#[tokio::test]
async fn a_pod_runs_and_is_deleted() {
    let b = Bench::new().await;
    b.pod("web", json!({"containers": [{"name": "c", "lifecycle": {"preStop": {"exec": {"command": ["bye"]}}}}]}));
    b.until("ready", "web", |s| s["phase"] == "Running" && ready(s)).await;
    let status = b.api.get("pods", "ns", "web").unwrap()["status"].clone();
    assert_eq!((&status["podIP"], &status["hostIP"]), (&json!("10.42.0.5"), &json!("192.168.0.1")));
    assert_eq!(status["containerStatuses"][0]["imageID"], "img:1@sha256:0");
    b.until_said("Started: Container started").await;
    let dir = b.dir.path().join("kubelet/pods/uid-web");
    assert!(dir.join("etc-hosts").exists());
    b.api.delete_pod("web", 7);
    b.api.until("the object is gone", |api| api.get("pods", "ns", "web").is_none()).await;
    assert!(b.runtime.is_empty() && !dir.exists());
    assert!(b.runtime.calls().ends_with(&["exec bye".to_owned(), "stop c 7".to_owned()]));
    b.until_said("Killing: Stopping container c").await;
}

#[tokio::test]
async fn the_node_registers_and_keeps_its_lease() {
    let b = Bench::new().await;
    b.api.until("node and lease", |api| api.get("nodes", "", "n1").is_some() && !api.all("leases").is_empty()).await;
    let node = b.api.get("nodes", "", "n1").unwrap();
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    let conditions = node["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
}

#[tokio::test]
async fn the_node_is_ready_when_pods_can_have_a_network() {
    let b = Bench::new().await;
    let node_is = |status: &'static str, words: &'static str| {
        move |api: &Api| {
            let node = api.get("nodes", "", "n1").unwrap_or_default();
            let ready = node["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
            ready.is_some_and(|c| c["status"] == status && c["message"].as_str().is_some_and(|m| m.contains(words)))
        }
    };
    b.api.until("ready", node_is("True", "ready status")).await;
    b.runtime.network.send_replace(false);
    b.api.until("not ready", node_is("False", "container runtime network not ready")).await;
    b.runtime.network.send_replace(true);
    b.api.until("ready again", node_is("True", "ready status")).await;
}

#[tokio::test]
async fn a_restarted_node_is_ready_when_its_services_are() {
    let ready_is = |api: &Api, status: &str, words: &str| {
        let node = api.get("nodes", "", "n1").unwrap_or_default();
        let ready =
            node["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready").cloned();
        ready.is_some_and(|c| c["status"] == status && c["message"].as_str().is_some_and(|m| m.contains(words)))
    };
    let first = Bench::new().await;
    first.api.until("ready", |api| ready_is(api, "True", "")).await;
    first.parts.shutdown().await;
    first.kubelet.stopped().await;
    let mut node = first.api.get("nodes", "", "n1").unwrap();
    node["spec"]["podCIDR"] = json!("10.42.0.0/24");
    first.api.put("nodes", node);
    // The next one is up, its lease is renewed, and what the last one reported is no word of its own.
    first.clock.advance(Duration::from_secs(60));
    let before = first.api.all("leases");
    let services = tokio::sync::watch::Sender::new(Some("no table".to_owned()));
    let asked = services.subscribe();
    let Bench { api, runtime, clock, dir, .. } = first;
    let b = Bench::configured(api, runtime, clock, dir, |cfg| cfg.services = asked).await;
    b.api.until("a renewed lease", |api| api.all("leases") != before).await;
    assert!(tokio::time::timeout(Duration::ZERO, b.kubelet.reported()).await.is_err());
    assert!(ready_is(&b.api, "True", ""), "pods are not to be taken out of their services by a restart");
    services.send_replace(None);
    b.kubelet.reported().await;
    assert!(ready_is(&b.api, "True", ""));
    services.send_replace(Some("out of tables".to_owned()));
    b.api.until("not ready", |api| ready_is(api, "False", "out of tables")).await;
    services.send_replace(None);
    b.api.until("ready again", |api| ready_is(api, "True", "")).await;
}

#[tokio::test]
async fn a_crashing_container_backs_off() {
    let b = Bench::new().await;
    b.pod("crash", json!({"containers": [{"name": "c"}]}));
    b.until("running", "crash", |s| s["phase"] == "Running").await;
    b.runtime.exit("c", 1);
    b.until("restarted", "crash", |s| s["containerStatuses"][0]["restartCount"] == 1 && ready(s)).await;
    b.runtime.exit("c", 2);
    let waiting = |s: &Value| s["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    b.until("backs off", "crash", waiting).await;
    let c = b.api.get("pods", "ns", "crash").unwrap()["status"]["containerStatuses"][0].clone();
    assert_eq!(c["lastState"]["terminated"]["exitCode"], 2);
    let message = c["state"]["waiting"]["message"].as_str().unwrap();
    assert_eq!(message, "back-off 10s restarting failed container=c pod=crash_ns(uid-crash)");
    b.clock.advance(Duration::from_secs(10));
    b.until("restarted again", "crash", |s| s["containerStatuses"][0]["restartCount"] == 2 && ready(s)).await;
}

#[tokio::test]
async fn a_pod_that_runs_once_succeeds_or_fails() {
    let b = Bench::new().await;
    for (name, code, phase) in [("good", 0, "Succeeded"), ("bad", 3, "Failed")] {
        b.pod(
            name,
            json!({"restartPolicy": "Never", "containers": [{"name": name}],
            "initContainers": [{"name": format!("{name}-init")}]}),
        );
        b.api.until("init runs", |_| b.runtime.calls().contains(&format!("create {name}-init/0"))).await;
        b.until("init shown", name, |s| !s["initContainerStatuses"][0]["state"]["running"].is_null()).await;
        b.runtime.exit(&format!("{name}-init"), 0);
        b.until("running", name, |s| s["phase"] == "Running").await;
        b.runtime.exit(name, code);
        b.until(phase, name, |s| s["phase"] == phase).await;
    }
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_backs_off() {
    let b = Bench::new().await;
    b.pod("p", json!({"containers": [{"name": "c", "image": "bad:1"}]}));
    let reason = |s: &Value, r: &str| s["containerStatuses"][0]["state"]["waiting"]["reason"] == r;
    b.until("fails", "p", |s| reason(s, "ErrImagePull")).await;
    b.clock.advance(Duration::from_secs(3));
    b.until("backs off", "p", |s| reason(s, "ImagePullBackOff")).await;
    b.until_said("BackOff: Back-off pulling image \"bad:1\"").await;
    b.pod("q", json!({"containers": [{"name": "d", "image": "new:1"}]}));
    b.until("pulled", "q", ready).await;
    assert!(b.runtime.calls().contains(&"pull new:1".to_owned()));
}

#[tokio::test]
async fn a_silent_registry_holds_up_its_own_images_only() {
    let b = Bench::new().await;
    for i in 0..7 {
        b.pod(&format!("waits{i}"), json!({"containers": [{"name": "c", "image": format!("silent.example/i:{i}")}]}));
    }
    let silent = |b: &Bench| b.runtime.calls().iter().filter(|c| c.starts_with("pull silent")).count();
    b.api.until("its places are taken", |_| silent(&b) == 5).await;
    b.pod("p", json!({"containers": [{"name": "c", "image": "other.example/i:1"}]}));
    b.until("pulled", "p", ready).await;
    assert_eq!(silent(&b), 5);
}

#[tokio::test]
async fn a_running_pod_is_resized() {
    let b = Bench::new().await;
    let allocatable = |api: &Api| {
        let cpu = api.get("nodes", "", "n1")?["status"]["allocatable"]["cpu"].as_str()?.to_owned();
        isopod_api::quantity::Quantity::parse(&cpu).ok().map(|q| q.milli_value())
    };
    b.api.until("the node is there", |api| allocatable(api).is_some()).await;
    let all = allocatable(&b.api).unwrap();
    // The second pod leaves half a processor for the first one.
    let (second, fits, all) = (format!("{}m", all - 500), "400m", format!("{all}m"));
    let spec = |cpu: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
    b.pod("p", spec("200m"));
    b.pod("q", spec(&second));
    b.until("ready", "p", ready).await;
    b.until("ready", "q", ready).await;
    let resources = |s: &Value| {
        let c = &s["containerStatuses"][0];
        (c["allocatedResources"]["cpu"].clone(), c["resources"]["requests"]["cpu"].clone())
    };
    let has = |s: &Value, kind: &str| s["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == kind);
    let status = b.api.get("pods", "ns", "p").unwrap()["status"].clone();
    assert_eq!(resources(&status), (json!("200m"), json!("200m")));
    let resize = |cpu: &str| {
        let mut pod = b.api.get("pods", "ns", "p").unwrap();
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!(cpu);
        b.api.put("pods", pod);
    };
    resize(fits);
    b.until("resized", "p", |s| resources(s) == (json!(fits), json!(fits)) && !has(s, "PodResizeInProgress")).await;
    assert!(b.runtime.calls().contains(&"update c Some(409)".to_owned()), "{:?}", b.runtime.calls());
    b.until_said("ResizeCompleted: Pod resize completed").await;
    // There is no room for this one until the other is gone.
    resize(&all);
    b.until("deferred", "p", |s| has(s, "PodResizePending")).await;
    let status = b.api.get("pods", "ns", "p").unwrap()["status"].clone();
    assert_eq!(resources(&status), (json!(fits), json!(fits)));
    b.api.delete_pod("q", 0);
    b.until("room", "p", |s| resources(s) == (json!(all), json!(all)) && !has(s, "PodResizePending")).await;
}

#[tokio::test]
async fn volumes_and_environment_wait_for_their_objects() {
    let b = Bench::new().await;
    let spec = json!({
        "serviceAccountName": "sa",
        "volumes": [{"name": "cfg", "configMap": {"name": "m"}}, {"name": "tmp", "emptyDir": {}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
        "containers": [{"name": "c", "env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
            "volumeMounts": [{"name": "cfg", "mountPath": "/etc/cfg"}, {"name": "tmp", "mountPath": "/tmp", "subPath": "x"},
                {"name": "token", "mountPath": "/var/run/token"}]}]});
    b.pod("p", spec);
    b.until_said("MountVolume.SetUp failed for volume \"cfg\" : configmap \"m\" not found").await;
    let map = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "ns"}, "data": {"k": value}});
    b.api.put("configmaps", map("one"));
    b.until("ready", "p", ready).await;
    let c = b.runtime.container_named("c");
    assert_eq!(c.config.env.iter().find(|(k, _)| k == "K").unwrap().1, "one");
    let host = |at: &str| c.mounts.iter().find(|m| m.container_path == Path::new(at)).unwrap().host_path.clone();
    let file = host("/etc/cfg").join("k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
    let token = host("/var/run/token").join("token");
    assert_eq!(std::fs::read_to_string(&token).unwrap(), "token-1");
    assert!(host("/tmp").to_string_lossy().contains("volume-subpaths/tmp/c/1"));
    // A second volume's change shows that the first has been seen: the status follows the sync that wrote the files.
    b.api.put("configmaps", map("two"));
    shows(&file, "two").await;
    // A token is renewed at four fifths of its life, with nothing else to wake the pod's worker, and no sooner.
    b.clock.advance(Duration::from_secs(47 * 60));
    b.api.put("configmaps", map("three"));
    shows(&file, "three").await;
    assert_eq!(std::fs::read_to_string(&token).unwrap(), "token-1");
    b.clock.advance(Duration::from_secs(2 * 60));
    shows(&token, "token-2").await;
}

/// Waits until a file of a volume says this.
async fn shows(file: &Path, text: &str) {
    let changed = async {
        while std::fs::read_to_string(file).unwrap() != text {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), changed)
        .await
        .unwrap_or_else(|_| panic!("{} is not {text:?}", file.display()));
}

#[tokio::test]
async fn probes_decide_readiness_and_life() {
    let b = Bench::new().await;
    b.runtime.exec_answers("ready", 1);
    let probe = |cmd: &str| json!({"exec": {"command": [cmd]}, "failureThreshold": 1, "periodSeconds": 1});
    b.pod(
        "p",
        json!({"containers": [{"name": "c", "readinessProbe": probe("ready"), "livenessProbe": probe("alive")}]}),
    );
    b.until_said("Unhealthy: Readiness probe failed").await;
    b.until("runs, not ready", "p", |s| s["phase"] == "Running" && !ready(s)).await;
    b.runtime.exec_answers("ready", 0);
    b.clock.advance(Duration::from_secs(1));
    b.until("ready", "p", ready).await;
    b.runtime.exec_answers("alive", 1);
    b.clock.advance(Duration::from_secs(1));
    b.until("restarted", "p", |s| s["containerStatuses"][0]["restartCount"] == 1).await;
    b.until_said("Killing: Container c failed liveness probe, will be restarted").await;
}

#[tokio::test]
async fn a_restarted_kubelet_adopts_reports_and_cleans_up() {
    let b = Bench::new().await;
    for name in ["stays", "ends", "orphan"] {
        b.pod(name, json!({"restartPolicy": "Never", "containers": [{"name": name}]}));
        b.until("ready", name, ready).await;
    }
    let created = b.runtime.calls().len();
    let b = b
        .restart(|api, runtime| {
            runtime.exit("ends", 42);
            api.remove("pods", "ns", "orphan");
        })
        .await;
    b.until("its exit code", "ends", |s| s["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 42).await;
    b.until("failed", "ends", |s| s["phase"] == "Failed").await;
    let gone = async {
        while b.dir.path().join("kubelet/pods/uid-orphan").exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
    assert_eq!(b.runtime.container_named("stays").state, ContainerState::Running);
    assert!(b.runtime.calls()[created..].iter().all(|c| !c.starts_with("create")));
}

#[tokio::test]
async fn the_endpoints_ask_who_it_is() {
    let b = Bench::new().await;
    b.pod("p", json!({"containers": [{"name": "c"}]}));
    b.until("ready", "p", ready).await;
    let router = b.kubelet.router();
    let ask = |path: &str| http::Request::get(path).body(Body::empty()).unwrap();
    let send = |r| tower::ServiceExt::oneshot(router.clone(), r);
    assert_eq!(send(ask("/healthz")).await.unwrap().status(), 200);
    assert_eq!(send(ask("/pods")).await.unwrap().status(), 401);
    let as_admin = |path: &str| {
        let mut r = ask(path);
        r.extensions_mut().insert(crate::server::admin());
        r
    };
    let answer = send(as_admin("/containerLogs/ns/p/c?tailLines=1")).await.unwrap();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    assert_eq!(body, "hello from c\n");
    let missing = send(as_admin("/containerLogs/ns/none/c")).await.unwrap();
    assert_eq!(missing.status(), 404);
    let summary = send(as_admin("/stats/summary")).await.unwrap();
    let body = axum::body::to_bytes(summary.into_body(), 1 << 20).await.unwrap();
    let summary: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(summary["pods"][0]["containers"][0]["cpu"]["usageCoreNanoSeconds"], 5);
    assert_eq!(send(as_admin("/exec/ns/p/c?command=x&output=1")).await.unwrap().status(), 400);
}

#[tokio::test]
async fn exec_goes_through_tls_and_a_websocket() {
    use futures::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
    let b = Bench::new().await;
    b.pod("p", json!({"containers": [{"name": "c"}]}));
    b.until("ready", "p", ready).await;
    let pki = isopod_pki::ServerPki::load_or_create(&b.dir.path().join("tls"), &Default::default()).unwrap();
    let identity = pki.kubelet_serving("n1", vec![]).unwrap();
    let server = isopod_pki::tls::server("kubelet", &identity, &pki.client_ca.cert_pem).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(b.kubelet.clone().serve(listener, Arc::new(server), b.parts.token()));
    let connect = |identity: Option<&isopod_pki::Identity>| {
        let config = isopod_pki::tls::client("test", identity, &pki.server_ca.cert_pem, &["http/1.1"]).unwrap();
        async move {
            let tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
            let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
            tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
        }
    };
    let request = || {
        let mut r = "wss://localhost/exec/ns/p/c?command=cat&input=1&output=1".into_client_request().unwrap();
        r.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
        r
    };
    let refused = tokio_tungstenite::client_async(request(), connect(None).await).await.unwrap_err();
    assert!(refused.to_string().contains("401"), "{refused}");
    let (mut ws, _) =
        tokio_tungstenite::client_async(request(), connect(Some(&pki.kubelet_client)).await).await.unwrap();
    ws.send(Message::Binary(b"\x00hello".as_slice().into())).await.unwrap();
    ws.send(Message::Binary([255u8, 0].as_slice().into())).await.unwrap();
    let (mut out, mut status) = (Vec::new(), Vec::new());
    while let Some(Ok(m)) = ws.next().await {
        match m {
            Message::Binary(d) if d[0] == 1 => out.extend_from_slice(&d[1..]),
            Message::Binary(d) if d[0] == 3 => status.extend_from_slice(&d[1..]),
            _ => {}
        }
    }
    assert_eq!(out, b"hello");
    let status: Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "7");
    b.parts.token().cancel();
}
