//! A load generator for `make bench`: creates, gets or lists objects over TLS, a connection for each client, and prints one
//! JSON object with rate and latencies. It works on any Kubernetes API server that a kubeconfig with a client certificate
//! names, so that two servers can be compared.

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use isopod_pki::{Identity, tls};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    #[arg(long)]
    kubeconfig: PathBuf,
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Requests in all
    #[arg(long, default_value_t = 1000)]
    count: usize,
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Objects are called PREFIX-N
    #[arg(long, default_value = "load")]
    prefix: String,
    /// Accept header of reads
    #[arg(long, default_value = "application/json")]
    accept: String,
    /// create-configmaps, create-pods, create-services, get-configmaps, list-pods, list-configmaps
    work: String,
}

struct Target {
    host: String,
    port: u16,
    tls: tokio_rustls::TlsConnector,
}

fn target(args: &Args) -> anyhow::Result<Target> {
    let text = std::fs::read_to_string(&args.kubeconfig)?;
    let config: Value = serde_yaml_ng::from_str(&text)?;
    let text = |v: &Value| -> anyhow::Result<String> {
        Ok(String::from_utf8(STANDARD.decode(v.as_str().context("a field of the kubeconfig is missing")?)?)?)
    };
    let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
    let identity =
        Identity { cert_pem: text(&user["client-certificate-data"])?, key_pem: text(&user["client-key-data"])? };
    let ca = text(&cluster["certificate-authority-data"])?;
    let server = cluster["server"].as_str().and_then(|s| s.strip_prefix("https://")).context("no https server")?;
    let (host, port) = server.rsplit_once(':').context("no port in the server's address")?;
    let client = tls::client("load", Some(&identity), &ca, &["http/1.1"])?;
    Ok(Target { host: host.into(), port: port.trim_end_matches('/').parse()?, tls: Arc::new(client).into() })
}

async fn connect(target: &Target) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let tcp = tokio::net::TcpStream::connect((target.host.as_str(), target.port)).await?;
    tcp.set_nodelay(true)?;
    let name = rustls::pki_types::ServerName::try_from(target.host.clone())?;
    let (sender, connection) = handshake(TokioIo::new(target.tls.connect(name, tcp).await?)).await?;
    tokio::spawn(connection);
    Ok(sender)
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
            let body = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
            (Method::POST, format!("{core}/services"), body)
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

async fn client(args: &Args, target: &Target, next: &AtomicUsize) -> anyhow::Result<(Vec<Duration>, usize)> {
    let mut sender = connect(target).await?;
    let (mut took, mut read) = (Vec::new(), 0);
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= args.count {
            return Ok((took, read));
        }
        let (method, path, body) = request(args, n)?;
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let request = Request::builder()
            .method(method)
            .uri(&path)
            .header("Host", &target.host)
            .header("Accept", &args.accept)
            .header("Content-Type", "application/json")
            .body(Full::new(body))?;
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

fn main() -> anyhow::Result<()> {
    let args = Arc::new(Args::parse());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let target = Arc::new(target(&args)?);
        let next = Arc::new(AtomicUsize::new(0));
        let start = Instant::now();
        let clients: Vec<_> = (0..args.clients)
            .map(|_| {
                let (args, target, next) = (Arc::clone(&args), Arc::clone(&target), Arc::clone(&next));
                tokio::spawn(async move { client(&args, &target, &next).await })
            })
            .collect();
        let (mut took, mut read) = (Vec::new(), 0);
        for c in clients {
            let (t, r) = c.await??;
            took.extend(t);
            read += r;
        }
        let seconds = start.elapsed().as_secs_f64();
        took.sort();
        let at = |q: f64| took.get((took.len() as f64 * q) as usize).map_or(0.0, |d| d.as_secs_f64() * 1000.0);
        println!(
            "{}",
            json!({"work": args.work, "clients": args.clients, "count": took.len(), "seconds": seconds,
                "per_second": took.len() as f64 / seconds, "p50_ms": at(0.5), "p99_ms": at(0.99), "bytes": read})
        );
        Ok(())
    })
}
