//! From a client through the API server and a node's tunnel to its kubelet and its pods.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use isopod_apiserver::audit::{Audit, Batching, Log, Mode, Settings, Truncation};
use isopod_client::tunnel;
use isopod_pki::{CertAuthority, Leaf, Usage, tls};
use isopod_testkit::TestServer;
use kube::client::Body;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Answers with the path that it was asked for; upgrades echo a word, and last until the client ends them.
async fn kubelet(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let uri = request.uri().to_string();
    if !request.headers().contains_key("upgrade") {
        let code = if uri.contains("tailLines=0") { 400 } else { 200 };
        return Ok(Response::builder().status(code).body(Full::from(uri)).unwrap());
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        io.write_all(format!("{uri}\n").as_bytes()).await.unwrap();
        let mut word = [0; 4];
        io.read_exact(&mut word).await.unwrap();
        io.write_all(&word).await.unwrap();
        // Whether it ends with a farewell does not matter.
        let _ = io.read(&mut word).await;
    });
    let answer = Response::builder().status(101).header("connection", "Upgrade").header("upgrade", "websocket");
    Ok(answer.body(Full::default()).unwrap())
}

const POD_IP: &str = "10.9.8.7";

/// Pods are on this machine's loopback, whatever their address.
fn dial_here(authority: &str) -> tunnel::Dialing {
    let here = authority.replace(POD_IP, "127.0.0.1");
    Box::pin(async move {
        let stream = tokio::net::TcpStream::connect(here).await?;
        Ok(Box::new(stream) as Box<dyn tunnel::Stream>)
    })
}

/// Serves `kubelet` on a free port, with TLS if there is a configuration.
async fn serve(tls: Option<Arc<rustls::ServerConfig>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(kubelet);
                let http = hyper::server::conn::http1::Builder::new();
                let _ = match tls {
                    None => http.serve_connection(TokioIo::new(stream), service).with_upgrades().await,
                    Some(tls) => {
                        let stream = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await.unwrap();
                        http.serve_connection(TokioIo::new(stream), service).with_upgrades().await
                    }
                };
            });
        }
    });
    port
}

/// Records who executes what.
fn audit_to(log: &Path) -> Option<Arc<Audit>> {
    let policy = log.with_extension("yaml");
    let rules = "rules: [{level: Metadata, resources: [{group: '', resources: [pods/exec]}]}]";
    std::fs::write(&policy, format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}\n")).unwrap();
    let batching = Batching {
        buffer_size: 1,
        max_size: 1,
        max_wait: Duration::ZERO,
        throttle: false,
        throttle_qps: 0.0,
        throttle_burst: 0,
        concurrent: false,
    };
    let log = Log {
        path: log.to_owned(),
        format: "json".into(),
        max_age_days: 0,
        max_backups: 0,
        max_size_megabytes: 0,
        compress: false,
        version: "audit.k8s.io/v1".into(),
        mode: Mode::BlockingStrict,
        batching,
        truncation: Truncation { enabled: false, max_event_size: 1 << 20, max_batch_size: 1 << 20 },
    };
    Audit::open(&Settings { policy_file: Some(policy), log: Some(log), webhook: None }).unwrap()
}

/// The stages that were recorded, with the answer's code where there is one.
fn stages(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap();
    let events = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let shown = |e: Value| {
        let code = e["responseStatus"]["code"].as_u64().map(|c| format!(" {c}"));
        format!("{}{}", e["stage"].as_str().unwrap(), code.unwrap_or_default())
    };
    events.map(shown).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_exec_and_proxy_run_through_the_tunnel() {
    tls::install_provider();
    let dir = tempfile::tempdir().unwrap();
    let ca = CertAuthority::load_or_create(dir.path(), "kubelets").unwrap();
    let leaf =
        |name, usage| Leaf { common_name: name, organizations: &[], dns_names: vec!["n1".into()], ips: vec![], usage };
    let serving = ca.issue(&leaf("system:node:n1", Usage::Server)).unwrap();
    let client = ca.issue(&leaf("kube-apiserver", Usage::Client)).unwrap();
    let kubelet_tls = tls::client("kubelet", Some(&client), &ca.cert_pem, &["http/1.1"]).unwrap();
    let mut serving = tls::server("kubelet", &serving, &ca.cert_pem).unwrap();
    serving.alpn_protocols = vec![b"http/1.1".to_vec()];
    let recorded = dir.path().join("audit.log");
    let audit = audit_to(&recorded);
    let s = TestServer::start_with(|c| {
        c.kubelet_tls = Some(Arc::new(kubelet_tls));
        c.audit = audit;
    })
    .await;
    let (secure, plain) = (serve(Some(Arc::new(serving))).await, serve(None).await);

    let node =
        json!({"metadata": {"name": "n1"}, "status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": secure}}}});
    assert_eq!(s.post("/api/v1/nodes", node).await.code, 201);
    s.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod =
        json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(s.post(pods, pod).await.code, 201);
    let status = json!({"status": {"podIP": POD_IP}});
    s.patch(&format!("{pods}/a/status"), "application/merge-patch+json", status).await;
    let without = s.get(&format!("{pods}/a/log")).await;
    assert_eq!(without.code, 500);
    assert!(without.json["message"].as_str().unwrap().starts_with("error dialing backend: "), "{}", without.text);

    let at = s.listen().await;
    let client = isopod_client::tls(&at.kubeconfig, "test").await.unwrap();
    let stop = CancellationToken::new();
    let dial = Arc::new(dial_here as fn(&str) -> tunnel::Dialing);
    let agent = tokio::spawn(tunnel::run(client.clone(), "n1".into(), dial, stop.clone()));
    while s.server.dialer().nodes().is_empty() {
        tokio::task::yield_now().await;
    }
    let log = s.get(&format!("{pods}/a/log?follow=true&tailLines=5")).await;
    assert_eq!((log.code, log.text.as_str()), (200, "/containerLogs/default/a/c?follow=true&tailLines=5"));
    let refused = s.get(&format!("{pods}/a/log?tailLines=0")).await;
    assert_eq!((refused.code, &refused.json["reason"]), (400, &json!("BadRequest")), "{}", refused.text);
    let wrong = s.get(&format!("{pods}/a/log?container=x")).await;
    assert_eq!(wrong.json["message"], "container x is not valid for pod a");
    let proxied = s.get(&format!("{pods}/a:{plain}/proxy/hello?x=1")).await;
    assert_eq!((proxied.code, proxied.text.as_str()), (200, "/hello?x=1"));
    let tls = s.get(&format!("{pods}/https:a:{secure}/proxy/hello")).await;
    assert_eq!((tls.code, tls.text.as_str()), (200, "/hello"));
    let bare = s.get(&format!("{pods}/a:{plain}/proxy?x=1")).await;
    assert_eq!(bare.code, 301);
    let deleted = s.delete(&format!("{pods}/a:{plain}/proxy?x=1")).await;
    assert_eq!((deleted.code, deleted.text.as_str()), (200, "/?x=1"));
    let node = s.get("/api/v1/nodes/n1/proxy/stats/summary").await;
    assert_eq!(node.text, "/stats/summary");

    let exec = Request::get(format!("{pods}/a/exec?command=echo&command=a%20b&stdin=true&stdout=true"))
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(Body::empty());
    let response = client.send(exec.unwrap()).await.unwrap();
    assert_eq!(response.status(), 101);
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let want = "/exec/default/a/c?input=1&output=1&command=echo&command=a%20b\n";
    let mut line = vec![0; want.len()];
    io.read_exact(&mut line).await.unwrap();
    assert_eq!(String::from_utf8(line).unwrap(), want);
    io.write_all(b"ping").await.unwrap();
    let mut word = [0; 4];
    io.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"ping");
    let running = "apiserver_longrunning_requests{verb=\"CONNECT\",group=\"\",version=\"v1\",resource=\"pods\",subresource=\"exec\",\
                   scope=\"resource\",component=\"apiserver\"} ";
    assert!(s.get("/metrics").await.text.contains(&format!("{running}1\n")));
    assert_eq!(stages(&recorded), ["RequestReceived", "ResponseStarted 101"]);
    drop(io);
    // A connection that has ended says so soon.
    let over = async {
        let ended = format!("{running}0\n");
        while stages(&recorded).len() < 3 || !s.get("/metrics").await.text.contains(&ended) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), over).await.unwrap();
    assert_eq!(stages(&recorded)[2..], ["ResponseComplete 101"]);

    stop.cancel();
    let _ = agent.await;
}
