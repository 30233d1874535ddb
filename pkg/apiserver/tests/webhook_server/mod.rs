//! A webhook server: what it was asked is kept, what it answers is given.

use base64::Engine;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// The whole answer to a whole question at a path.
type Answer = Arc<dyn Fn(&str, &Value) -> Value + Send + Sync>;

/// The name under which it is called where a service leads to it.
const SERVICE_HOST: &str = "hook.default.svc";

pub struct WebhookServer {
    pub url: String,
    /// `caBundle` of who is to trust it.
    pub ca: String,
    /// Path and question.
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    connections: Arc<AtomicUsize>,
}

impl WebhookServer {
    pub async fn start(answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static) -> Self {
        let answer: Answer = Arc::new(answer);
        isopod_pki::tls::install_provider();
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), SERVICE_HOST.to_owned()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = WebhookServer {
            url: format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port()),
            ca: base64::engine::general_purpose::STANDARD.encode(made.cert.pem()),
            asked: Arc::default(),
            connections: Arc::default(),
        };
        let (asked, connections) = (server.asked.clone(), server.connections.clone());
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                let (acceptor, asked, answer) = (acceptor.clone(), asked.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let serve = service_fn(move |request| respond(request, answer.clone(), asked.clone()));
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve).await;
                });
            }
        });
        server
    }

    /// What it was asked since the last time that somebody wanted to know.
    pub fn taken(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// How many connections were made to it.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn respond(
    request: Request<Incoming>,
    answer: Answer,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let question: Value = serde_json::from_slice(&body).unwrap();
    let said = answer(&path, &question);
    asked.lock().unwrap().push((path, question));
    Ok(Response::new(Full::new(said.to_string().into())))
}
