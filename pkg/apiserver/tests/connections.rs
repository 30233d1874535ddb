//! Which connections the server ends, over TLS.

#![allow(clippy::unwrap_used)]

use base64::Engine;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use isopod_pki::{Identity, tls};
use isopod_testkit::{Listening, TestServer};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// An HTTP/2 connection, and when it has ended.
struct Connection {
    requests: SendRequest<Empty<Bytes>>,
    end: JoinHandle<()>,
}

impl Connection {
    /// Of the administrator, or of somebody without credentials.
    async fn open(listening: &Listening, as_admin: bool) -> Self {
        let text = std::fs::read_to_string(&listening.kubeconfig).unwrap();
        let kubeconfig: Value = serde_yaml_ng::from_str(&text).unwrap();
        let pem = |data: &Value| {
            let bytes = base64::engine::general_purpose::STANDARD.decode(data.as_str().unwrap()).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        let ca = pem(&kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"]);
        let user = &kubeconfig["users"][0]["user"];
        let admin =
            Identity { cert_pem: pem(&user["client-certificate-data"]), key_pem: pem(&user["client-key-data"]) };
        let config = tls::client("test", as_admin.then_some(&admin), &ca, &["h2"]).unwrap();
        let address = listening.url.strip_prefix("https://").unwrap();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        let io = TokioIo::new(stream);
        let (requests, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let end = tokio::spawn(async move { connection.await.unwrap() });
        Connection { requests, end }
    }

    async fn get(&mut self, path: &str) -> u16 {
        let request = Request::get(format!("https://localhost{path}")).body(Empty::new()).unwrap();
        self.requests.ready().await.unwrap();
        let answer = self.requests.send_request(request).await.unwrap();
        let code = answer.status().as_u16();
        answer.into_body().collect().await.unwrap();
        code
    }

    /// Whether the server ends it.
    async fn ends(self) -> bool {
        let Connection { requests: _kept, end } = self;
        tokio::time::timeout(Duration::from_secs(1), end).await.is_ok_and(|ended| ended.is_ok())
    }
}

#[tokio::test]
async fn who_is_nobody_has_a_connection_for_one_request() {
    let server = TestServer::start_with(|c| c.anonymous_auth = true).await;
    let listening = server.listen().await;
    let mut nobody = Connection::open(&listening, false).await;
    assert_eq!(nobody.get("/version").await, 403);
    assert!(nobody.ends().await);
    let mut admin = Connection::open(&listening, true).await;
    assert_eq!((admin.get("/version").await, admin.get("/version").await), (200, 200));
    assert!(!admin.ends().await);

    let closed = TestServer::start_with(|c| c.anonymous_auth = false).await;
    let listening = closed.listen().await;
    let mut nobody = Connection::open(&listening, false).await;
    assert_eq!(nobody.get("/version").await, 401);
    assert!(nobody.ends().await);
}

#[tokio::test]
async fn some_are_sent_to_other_servers() {
    let server = TestServer::start_with(|c| c.goaway_chance = 1.0).await;
    let listening = server.listen().await;
    let mut admin = Connection::open(&listening, true).await;
    assert_eq!(admin.get("/version").await, 200);
    assert!(admin.ends().await);
}
