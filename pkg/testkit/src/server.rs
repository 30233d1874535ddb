//! The in-process server.

use crate::AllowAll;
use axum::body::Body;
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use isopod_api::{UserInfo, user};
use isopod_apiserver::authorization::AuthorizerChain;
use isopod_apiserver::{ApiServer, ClientCertificate, Config};
use isopod_kinds::{bootstrap, table};
use isopod_pki::{CertAuthority, Leaf, Usage, tls};
use isopod_store::memory::MemoryStore;
use isopod_store::{Options, Store};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

/// An API server on the memory store, with every built-in kind and the system's namespaces.
pub struct TestServer {
    pub server: Arc<ApiServer>,
    pub store: Arc<dyn Store>,
}

/// A response, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    /// `Null` when the body is not JSON.
    pub json: Value,
    pub text: String,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts with a changed configuration.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Options::default()));
        Self::start_on(store, change).await
    }

    /// Starts on a store that is there already: a restart, or a second server.
    pub async fn start_on(store: Arc<dyn Store>, change: impl FnOnce(&mut Config)) -> Self {
        let mut config =
            Config::new(store.clone(), table::builtin(), AuthorizerChain::only("allow-all", Arc::new(AllowAll)));
        config.bootstrap = bootstrap::objects(std::slice::from_ref(&config.service_cidr));
        config.authenticators = vec![Arc::new(ClientCertificate)];
        // Endpoints may not be loopback addresses: one for documentation (RFC 5737).
        config.advertise_address = [192, 0, 2, 1].into();
        change(&mut config);
        let server = ApiServer::new(config).await.expect("an API server starts on an empty store");
        server.bootstrap().await.expect("the bootstrap objects are valid");
        TestServer { server, store }
    }

    /// A client of a user in these groups.
    pub fn client(&self, name: &str, groups: &[&str]) -> kube::Client {
        isopod_client::in_process(self.server.service(), UserInfo::new(name, groups))
    }

    pub fn admin(&self) -> kube::Client {
        self.client("admin", &[user::SYSTEM_MASTERS])
    }

    /// Sends a request as an administrator and reads the response to its end.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.open(request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            json: serde_json::from_slice(&bytes).unwrap_or_default(),
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    /// Sends a request as an administrator; the response is still open.
    pub async fn open(&self, mut request: Request<Body>) -> http::Response<Body> {
        request.extensions_mut().insert(UserInfo::new("admin", &[user::SYSTEM_MASTERS]));
        match self.server.service().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    pub async fn get(&self, uri: &str) -> Answer {
        self.call(Method::GET, uri, &Value::Null).await
    }

    pub async fn post(&self, uri: &str, body: Value) -> Answer {
        self.call(Method::POST, uri, &body).await
    }

    pub async fn put(&self, uri: &str, body: Value) -> Answer {
        self.call(Method::PUT, uri, &body).await
    }

    pub async fn delete(&self, uri: &str) -> Answer {
        self.call(Method::DELETE, uri, &Value::Null).await
    }

    /// `content_type`: which patch.
    pub async fn patch(&self, uri: &str, content_type: &str, body: Value) -> Answer {
        let request = Request::patch(uri).header("content-type", content_type).body(Body::from(body.to_string()));
        self.send(request.expect("the test's request is well formed")).await
    }

    async fn call(&self, method: Method, uri: &str, body: &Value) -> Answer {
        let bytes = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(uri).header("content-type", "application/json").body(bytes);
        self.send(request.expect("the test's request is well formed")).await
    }

    /// Listens on a free port of the loopback with TLS; dropping the answer ends it.
    pub async fn listen(&self) -> Listening {
        tls::install_provider();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ca = CertAuthority::load_or_create(dir.path(), "test-ca").expect("a test CA");
        let leaf = |common_name, organizations, usage| Leaf {
            common_name,
            organizations,
            dns_names: vec!["localhost".into()],
            ips: vec![[127, 0, 0, 1].into()],
            usage,
        };
        let serving = ca.issue(&leaf("test", &[], Usage::Server)).expect("a serving certificate");
        let admin = ca.issue(&leaf("admin", &[user::SYSTEM_MASTERS], Usage::Client)).expect("a client certificate");
        let config = tls::server("test", &serving, &ca.cert_pem).expect("a TLS configuration");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port on the loopback");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let url = format!("https://127.0.0.1:{port}");
        let kubeconfig = dir.path().join("kubeconfig");
        let text = isopod_pki::kubeconfig("test", &url, &ca.cert_pem, &admin);
        std::fs::write(&kubeconfig, text).expect("the temporary directory is writable");
        let stop = CancellationToken::new();
        tokio::spawn(self.server.clone().serve(listener, Arc::new(config), stop.clone()));
        Listening { url, kubeconfig, _dir: dir, _stop: stop.drop_guard() }
    }
}

/// A TLS listener and the kubeconfig of its administrator.
pub struct Listening {
    pub url: String,
    pub kubeconfig: PathBuf,
    _dir: tempfile::TempDir,
    _stop: DropGuard,
}
