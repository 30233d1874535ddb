//! What watchers see, and when: the time from a change to each of many watchers, and from a pod's creation to its start.

use crate::Args;
use crate::cpu::Server;
use crate::target::Target;
use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request};
use memchr::{memchr, memmem};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Watches that share a connection.
const STREAMS: usize = 100;
/// What takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(60);
const JSON: &str = "application/json";

/// Sends one request and reads the whole answer.
async fn send(sender: &mut http1::SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> anyhow::Result<()> {
    let what = format!("{} {}", request.method(), request.uri().path());
    sender.ready().await?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        bail!("{what}: {status} {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}

/// Opens a watch and gives each event, with the time of its arrival, to `seen`.
async fn watch(
    mut sender: http2::SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
    mut seen: impl FnMut(&[u8], Instant) + Send + 'static,
) -> anyhow::Result<()> {
    sender.ready().await?;
    let mut answer = sender.send_request(request).await?;
    if !answer.status().is_success() {
        bail!("watch: {}", answer.status());
    }
    tokio::spawn(async move {
        let mut rest = Vec::new();
        while let Some(Ok(frame)) = answer.frame().await {
            let now = Instant::now();
            rest.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
            while let Some(end) = memchr(b'\n', &rest) {
                seen(&rest[..end], now);
                rest.drain(..=end);
            }
        }
    });
    Ok(())
}

/// Changes one object again and again, each time when every watcher has seen the last change.
pub async fn changes(args: Arc<Args>, target: Arc<Target>) -> anyhow::Result<Value> {
    let maps = format!("/api/v1/namespaces/{}/configmaps", args.namespace);
    let name = format!("{}-watched", args.prefix);
    let mut sender = target.connect().await?;
    let body = json!({"metadata": {"name": name}, "data": {"filler": "x".repeat(900), "tick": "start"}});
    send(&mut sender, target.request(Method::POST, &maps, JSON, JSON, &body)?).await?;
    let (tx, mut rx) = mpsc::unbounded_channel::<Instant>();
    let path =
        format!("{maps}?watch=1&fieldSelector=metadata.name%3D{name}&allowWatchBookmarks=true&timeoutSeconds=3000");
    let mut shared = target.connect_shared().await?;
    for n in 0..args.watchers {
        if n % STREAMS == 0 && n > 0 {
            shared = target.connect_shared().await?;
        }
        let tx = tx.clone();
        let seen = move |event: &[u8], at| {
            let is_change = memmem::find(event, b"\"tick\":\"t").is_some();
            if is_change {
                let _ = tx.send(at);
            }
        };
        watch(shared.clone(), target.request(Method::GET, &path, JSON, JSON, &Value::Null)?, seen).await?;
    }
    let mut took = Vec::with_capacity(args.watchers * args.count);
    let before = Server(&args.pids).cpu()?;
    for tick in 0..args.count {
        let patch = json!({"data": {"tick": format!("t{tick}")}});
        let change =
            target.request(Method::PATCH, &format!("{maps}/{name}"), "application/merge-patch+json", JSON, &patch)?;
        let start = Instant::now();
        send(&mut sender, change).await?;
        for seen in 0..args.watchers {
            let at = tokio::time::timeout(PATIENCE, rx.recv()).await.ok().flatten();
            let at = at.with_context(|| format!("change {tick} reached {seen} of {} watchers", args.watchers))?;
            took.push(at - start);
        }
    }
    let cpu = (Server(&args.pids).cpu()? - before).as_secs_f64();
    send(&mut sender, target.request(Method::DELETE, &format!("{maps}/{name}"), JSON, JSON, &Value::Null)?).await?;
    Ok(crate::report(&args, took, json!({"watchers": args.watchers, "server_cpu_seconds": cpu})))
}

/// Starts pods, one after the other: from the request that creates one until a watcher sees it running.
pub async fn pods(args: Arc<Args>, target: Arc<Target>) -> anyhow::Result<Value> {
    let pods = format!("/api/v1/namespaces/{}/pods", args.namespace);
    let (tx, mut rx) = mpsc::unbounded_channel::<(String, String, Instant)>();
    let seen = move |event: &[u8], at| {
        let Ok(event) = serde_json::from_slice::<Value>(event) else { return };
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let phase = match event["type"].as_str() {
            Some("DELETED") => "gone",
            _ => event["object"]["status"]["phase"].as_str().unwrap_or_default(),
        };
        let _ = tx.send((name, phase.to_owned(), at));
    };
    let path = format!("{pods}?watch=1&timeoutSeconds=3000");
    watch(target.connect_shared().await?, target.request(Method::GET, &path, JSON, JSON, &Value::Null)?, seen).await?;
    let mut sender = target.connect().await?;
    let mut took = Vec::new();
    for n in 0..args.count {
        let name = format!("{}-{n}", args.prefix);
        let body = json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": args.image, "command": ["sleep", "100000"]}]}});
        let start = Instant::now();
        send(&mut sender, target.request(Method::POST, &pods, JSON, JSON, &body)?).await?;
        for phase in ["Running", "gone"] {
            loop {
                let event = tokio::time::timeout(PATIENCE, rx.recv()).await.ok().flatten();
                let (who, is, at) = event.with_context(|| format!("pod {name} did not become {phase}"))?;
                if who == name && is == phase {
                    if phase == "Running" {
                        took.push(at - start);
                        let path = format!("{pods}/{name}?gracePeriodSeconds=0");
                        send(&mut sender, target.request(Method::DELETE, &path, JSON, JSON, &Value::Null)?).await?;
                    }
                    break;
                }
            }
        }
    }
    Ok(crate::report(&args, took, json!({})))
}
