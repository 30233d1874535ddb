//! Clients that each send their next request when the last one is answered.

use crate::Args;
use crate::cpu::Server;
use crate::target::Target;
use anyhow::bail;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Method;
use hyper::client::conn::http1::SendRequest;
use hyper::header::ACCEPT_ENCODING;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub async fn run(args: Arc<Args>, target: Arc<Target>) -> anyhow::Result<Value> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut connected = Vec::new();
    for _ in 0..args.clients {
        connected.push(target.connect().await?);
    }
    let (start, before) = (Instant::now(), Server(&args.pids).cpu()?);
    let clients: Vec<_> = connected
        .into_iter()
        .map(|sender| {
            let (args, target, next) = (Arc::clone(&args), Arc::clone(&target), Arc::clone(&next));
            tokio::spawn(async move { client(sender, &args, &target, &next).await })
        })
        .collect();
    let (mut took, mut read) = (Vec::new(), 0);
    for c in clients {
        let (t, r) = c.await??;
        took.extend(t);
        read += r;
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu = (Server(&args.pids).cpu()? - before).as_secs_f64();
    let per_second = took.len() as f64 / seconds;
    let more = json!({"seconds": seconds, "per_second": per_second, "bytes": read, "server_cpu_seconds": cpu});
    Ok(crate::report(&args, took, more))
}

async fn client(
    mut sender: SendRequest<Full<Bytes>>,
    args: &Args,
    target: &Target,
    next: &AtomicUsize,
) -> anyhow::Result<(Vec<Duration>, usize)> {
    let (mut took, mut read) = (Vec::new(), 0);
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= args.count {
            return Ok((took, read));
        }
        let (method, path, body) = request(args, n)?;
        let mut request = target.request(method, &path, "application/json", &args.accept, &body)?;
        request.headers_mut().insert(ACCEPT_ENCODING, args.accept_encoding.parse()?);
        let start = Instant::now();
        sender.ready().await?;
        let mut answer = sender.send_request(request).await?;
        let mut size = 0;
        while let Some(frame) = answer.frame().await {
            size += frame?.data_ref().map_or(0, Bytes::len);
        }
        took.push(start.elapsed());
        read += size;
        if !answer.status().is_success() {
            bail!("{path}: {}", answer.status());
        }
    }
}

/// One request: method, path and body.
fn request(args: &Args, n: usize) -> anyhow::Result<(Method, String, Value)> {
    let (ns, name) = (&args.namespace, format!("{}-{n}", args.prefix));
    let core = format!("/api/v1/namespaces/{ns}");
    let filler = "x".repeat(900);
    Ok(match args.work.as_str() {
        "create-configmaps" => {
            let body = json!({"metadata": {"name": name}, "data": {"filler": filler}});
            (Method::POST, format!("{core}/configmaps"), body)
        }
        "create-pods" => (Method::POST, format!("{core}/pods"), pod(&name)),
        "create-services" => {
            let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]});
            (Method::POST, format!("{core}/services"), json!({"metadata": {"name": name}, "spec": spec}))
        }
        "get-configmaps" => (Method::GET, format!("{core}/configmaps/{name}"), Value::Null),
        "list-pods" => (Method::GET, format!("{core}/pods"), Value::Null),
        "list-configmaps" => (Method::GET, format!("{core}/configmaps"), Value::Null),
        other => bail!("unknown work {other:?}"),
    })
}

/// About 4 kB, as a pod of a real app; it asks for a node that does not exist, so that it stays pending.
fn pod(name: &str) -> Value {
    let env: Vec<Value> = (0..30).map(|n| json!({"name": format!("SETTING_{n}"), "value": "v".repeat(60)})).collect();
    json!({"metadata": {"name": name, "labels": {"app": "load", "tier": "bench"}}, "spec": {
        "nodeSelector": {"bench": "none"},
        "containers": [{"name": "main", "image": "registry.test/app:v1", "env": env,
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}}}]}})
}
