//! A KMS plugin in the test's process, behind a real socket.

use super::plugin::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusResponse};
use super::*;
use hyper::body::{Body as _, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Seals by reversing the bytes: what is tested is who is asked what.
#[derive(Default)]
struct Service {
    key: Mutex<String>,
    healthz: Mutex<String>,
    decrypted: AtomicUsize,
    encrypted: AtomicUsize,
}

impl Service {
    fn answer(&self, method: &str, request: &[u8]) -> Vec<u8> {
        let key_id = self.key.lock().clone();
        let reversed = |b: &[u8]| b.iter().rev().copied().collect::<Vec<u8>>();
        match method.rsplit('/').next().unwrap() {
            "Status" => {
                let healthz = self.healthz.lock().clone();
                StatusResponse { version: "v2".into(), healthz, key_id }.encode_to_vec()
            }
            "Encrypt" => {
                self.encrypted.fetch_add(1, Ordering::SeqCst);
                let read = EncryptRequest::decode(request).unwrap();
                let annotations = BTreeMap::from([("kek.example.com".to_owned(), key_id.clone().into_bytes())]);
                EncryptResponse { ciphertext: reversed(&read.plaintext), key_id, annotations }.encode_to_vec()
            }
            "Decrypt" => {
                self.decrypted.fetch_add(1, Ordering::SeqCst);
                let read = DecryptRequest::decode(request).unwrap();
                assert_eq!(read.annotations["kek.example.com"], read.key_id.as_bytes());
                DecryptResponse { plaintext: reversed(&read.ciphertext) }.encode_to_vec()
            }
            other => panic!("{other} is not a method"),
        }
    }
}

/// A message and the trailers behind it.
struct Answer(Vec<Frame<Bytes>>);

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(self.0.pop().map(Ok))
    }
}

async fn all(mut body: Incoming) -> Vec<u8> {
    let mut read = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
        read.extend(frame.unwrap().into_data().into_iter().flatten());
    }
    read
}

fn serve(socket: &Path, service: Arc<Service>) -> tokio::task::JoinHandle<()> {
    let _ = std::fs::remove_file(socket);
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            connections.spawn(async move {
                let handler = service_fn(move |request: http::Request<Incoming>| {
                    let service = service.clone();
                    async move {
                        let method = request.uri().path().to_owned();
                        let read = all(request.into_body()).await;
                        let message = service.answer(&method, &read[5..]);
                        let mut framed = vec![0];
                        framed.extend((message.len() as u32).to_be_bytes());
                        framed.extend(message);
                        let trailers =
                            http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                        let body = Answer(vec![Frame::trailers(trailers), Frame::data(framed.into())]);
                        let answer = http::Response::builder().header("content-type", "application/grpc").body(body);
                        Ok::<_, Infallible>(answer.unwrap())
                    }
                });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), handler)
                    .await;
            });
        }
    })
}

fn service() -> Arc<Service> {
    let made = Service::default();
    *made.key.lock() = "k1".into();
    *made.healthz.lock() = "ok".into();
    Arc::new(made)
}

const PLACE: &[u8] = b"/registry/secrets/default/a";

async fn start(socket: &Path) -> Arc<Kms> {
    let metrics = Arc::new(PluginMetrics::new("apiserver-x"));
    Kms::start("test".into(), socket.into(), Duration::from_secs(3), metrics).await
}

#[tokio::test]
async fn the_plugin_is_asked_for_a_seed_and_not_for_every_value() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, service) = (dir.path().join("kms.sock"), service());
    let server = serve(&socket, service.clone());
    let kms = start(&socket).await;
    assert_eq!(kms.unhealthy(), None);
    let mut sealed = Vec::new();
    kms.seal(b"plain", PLACE, &mut sealed).unwrap();
    for _ in 0..5 {
        assert_eq!(kms.open(&sealed, PLACE).await.unwrap(), (b"plain".to_vec(), false));
    }
    assert!(kms.open(&sealed, b"/registry/secrets/default/b").await.is_err());
    assert_eq!((service.encrypted.load(Ordering::SeqCst), service.decrypted.load(Ordering::SeqCst)), (1, 0));

    // After a restart the plugin is asked once for what the last one wrote; its seed is another, its key the same.
    let again = start(&socket).await;
    for _ in 0..5 {
        assert_eq!(again.open(&sealed, PLACE).await.unwrap(), (b"plain".to_vec(), false));
    }
    assert_eq!((service.encrypted.load(Ordering::SeqCst), service.decrypted.load(Ordering::SeqCst)), (2, 1));
    server.abort();
}

#[tokio::test]
async fn another_key_of_the_plugin_makes_the_old_values_stale() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, service) = (dir.path().join("kms.sock"), service());
    let server = serve(&socket, service.clone());
    let kms = start(&socket).await;
    let mut old = Vec::new();
    kms.seal(b"plain", PLACE, &mut old).unwrap();
    *service.key.lock() = "k2".into();
    assert!(kms.check().await);
    assert_eq!(kms.open(&old, PLACE).await.unwrap(), (b"plain".to_vec(), true));
    let mut new = Vec::new();
    kms.seal(b"plain", PLACE, &mut new).unwrap();
    assert_eq!(kms.open(&new, PLACE).await.unwrap(), (b"plain".to_vec(), false));
    server.abort();
}

#[tokio::test]
async fn a_plugin_that_is_away_is_told_and_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, service) = (dir.path().join("kms.sock"), service());
    let kms = start(&socket).await;
    let why = kms.seal(b"plain", PLACE, &mut Vec::new()).unwrap_err().to_string();
    assert!(why.contains("has given no key yet") && why.contains("cannot connect"), "{why}");
    let server = serve(&socket, service.clone());
    assert!(kms.check().await);
    let mut sealed = Vec::new();
    kms.seal(b"plain", PLACE, &mut sealed).unwrap();
    // It goes: what is known can be read and, for a while, written.
    server.abort();
    let _ = server.await;
    std::fs::remove_file(&socket).unwrap();
    assert!(!kms.check().await);
    assert!(kms.unhealthy().is_some());
    assert!(kms.open(&sealed, PLACE).await.is_ok() && kms.seal(b"x", PLACE, &mut Vec::new()).is_ok());
    // And comes back.
    let server = serve(&socket, service.clone());
    assert!(kms.check().await);
    *service.healthz.lock() = "the HSM is on fire".into();
    assert!(!kms.check().await);
    assert_eq!(kms.unhealthy().unwrap(), "got unexpected healthz status: the HSM is on fire");
    server.abort();
}

#[tokio::test]
async fn a_key_that_nobody_confirms_writes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, service) = (dir.path().join("kms.sock"), service());
    let server = serve(&socket, service.clone());
    let kms = start(&socket).await;
    let mut sealed = Vec::new();
    kms.seal(b"plain", PLACE, &mut sealed).unwrap();
    let current = kms.current.load_full().unwrap();
    let long_ago = Instant::now().checked_sub(WRITE_TTL + Duration::from_secs(1)).unwrap();
    let expired = Current {
        seed: current.seed.clone(),
        cipher: current.cipher.clone(),
        head: current.head.clone(),
        confirmed: long_ago,
    };
    kms.current.store(Some(Arc::new(expired)));
    assert!(matches!(kms.seal(b"x", PLACE, &mut Vec::new()), Err(KmsError::Expired { .. })));
    assert!(kms.open(&sealed, PLACE).await.is_ok(), "reading goes on");
    assert!(kms.check().await, "the same key, confirmed anew");
    assert!(kms.seal(b"x", PLACE, &mut Vec::new()).is_ok());
    assert_eq!(service.encrypted.load(Ordering::SeqCst), 1);
    server.abort();
}

#[tokio::test]
async fn what_the_plugin_is_asked_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, service) = (dir.path().join("kms.sock"), service());
    let server = serve(&socket, service.clone());
    let (first, kms) = (start(&socket).await, start(&socket).await);
    let mut sealed = Vec::new();
    first.seal(b"plain", PLACE, &mut sealed).unwrap();
    for _ in 0..3 {
        kms.open(&sealed, PLACE).await.unwrap();
    }
    *service.key.lock() = String::new();
    assert!(!kms.check().await);
    *service.key.lock() = "k".repeat(1025);
    assert!(!kms.check().await);
    server.abort();
    let _ = server.await;
    std::fs::remove_file(&socket).unwrap();
    assert!(!kms.check().await);
    let (mut registry, mut page) = (prometheus_client::registry::Registry::default(), String::new());
    kms.metrics.register(&mut registry);
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    let method = |name: &str| format!("provider_name=\"test\",method_name=\"/v2.KeyManagementService/{name}\"");
    for (name, labels, value) in [
        ("kms_operations_latency_seconds_count", format!("{},grpc_status_code=\"OK\"", method("Status")), 3),
        ("kms_operations_latency_seconds_count", format!("{},grpc_status_code=\"Unavailable\"", method("Status")), 1),
        ("kms_operations_latency_seconds_count", format!("{},grpc_status_code=\"OK\"", method("Encrypt")), 1),
        ("kms_operations_latency_seconds_count", format!("{},grpc_status_code=\"OK\"", method("Decrypt")), 1),
        ("invalid_key_id_from_status_total", "provider_name=\"test\",error=\"empty\"".into(), 1),
        ("invalid_key_id_from_status_total", "provider_name=\"test\",error=\"too_long\"".into(), 1),
        // Its own, and that of the other one.
        ("dek_source_cache_size", "provider_name=\"test\"".into(), 2),
    ] {
        let line = format!("apiserver_envelope_encryption_{name}{{{labels}}} {value}\n");
        assert!(page.contains(&line), "{line} in {page}");
    }
    let used = page.lines().find(|l| l.contains("key_id_hash_total{transformation_type=\"from_storage\"")).unwrap();
    assert!(used.ends_with("} 3"), "{used}");
}
