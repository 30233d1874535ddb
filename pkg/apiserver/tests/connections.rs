//! Which connections the server ends, over TLS.

#![allow(clippy::unwrap_used)]

use base64::Engine;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use isopod_apiserver::Config;
use isopod_base::clock::Clock;
use isopod_pki::{Identity, tls};
use isopod_testkit::{Listening, TestServer};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;

/// An HTTP/2 connection, and when it has ended.
struct Connection {
    requests: SendRequest<Empty<Bytes>>,
    end: JoinHandle<()>,
}

impl Connection {
    /// Of the administrator, or of somebody without credentials.
    async fn open(listening: &Listening, as_admin: bool) -> Self {
        let io = TokioIo::new(connect(listening, as_admin, "h2").await);
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(1 << 16).initial_connection_window_size(1 << 20);
        let (requests, connection) = builder.handshake(io).await.unwrap();
        let end = tokio::spawn(async move { connection.await.unwrap() });
        Connection { requests, end }
    }
    async fn get(&mut self, path: &str) -> u16 {
        let answer = self.begin(path, "admin").await;
        let code = answer.status().as_u16();
        answer.into_body().collect().await.unwrap();
        code
    }

    /// An answer whose body nobody has read yet.
    async fn begin(&mut self, path: &str, user: &str) -> Response<Incoming> {
        let mut request = Request::get(format!("https://localhost{path}"));
        if user != "admin" {
            request = request.header("impersonate-user", user);
        }
        self.requests.ready().await.unwrap();
        self.requests.send_request(request.body(Empty::new()).unwrap()).await.unwrap()
    }

    /// Whether the server ends it.
    async fn ends(self) -> bool {
        let Connection { requests: _kept, end } = self;
        tokio::time::timeout(Duration::from_secs(1), end).await.is_ok_and(|ended| ended.is_ok())
    }
}

/// A TLS connection to speak this over.
async fn connect(listening: &Listening, as_admin: bool, protocol: &str) -> TlsStream<TcpStream> {
    let text = std::fs::read_to_string(&listening.kubeconfig).unwrap();
    let kubeconfig: Value = serde_yaml_ng::from_str(&text).unwrap();
    let pem = |data: &Value| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(data.as_str().unwrap()).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    let ca = pem(&kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"]);
    let user = &kubeconfig["users"][0]["user"];
    let admin = Identity { cert_pem: pem(&user["client-certificate-data"]), key_pem: pem(&user["client-key-data"]) };
    let config = tls::client("test", as_admin.then_some(&admin), &ca, &[protocol]).unwrap();
    let address = listening.url.strip_prefix("https://").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()
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
async fn a_certificate_is_good_until_its_end_on_an_open_connection_too() {
    let clock = Clock::fake(Timestamp::now());
    let of_server = clock.clone();
    let server = TestServer::start_with(|c| c.clock = of_server).await;
    let listening = server.listen().await;
    let mut admin = Connection::open(&listening, true).await;
    assert_eq!(admin.get("/version").await, 200);
    clock.advance(Duration::from_secs(20 * 365 * 86_400));
    assert_eq!(admin.get("/version").await, 401);
    assert!(admin.ends().await);
}

#[tokio::test]
async fn some_are_sent_to_other_servers() {
    let server = TestServer::start_with(|c| c.goaway_chance = 1.0).await;
    let listening = server.listen().await;
    let mut admin = Connection::open(&listening, true).await;
    assert_eq!(admin.get("/version").await, 200);
    assert!(admin.ends().await);
}

const MAPS: &str = "/api/v1/configmaps";
const PATIENCE: Duration = Duration::from_secs(1);

/// A server with a list that is larger than what a connection takes without its client.
async fn with_a_long_list(change: impl FnOnce(&mut Config)) -> TestServer {
    let server = TestServer::start_with(|c| {
        c.request_timeout = PATIENCE;
        change(c);
    })
    .await;
    for n in 0..40 {
        let map = json!({"metadata": {"name": format!("m{n}")}, "data": {"text": "x".repeat(500_000)}});
        assert_eq!(server.post("/api/v1/namespaces/default/configmaps", map).await.code, 201);
    }
    server
}

#[tokio::test]
async fn who_does_not_take_an_answer_in_time_loses_its_stream_alone() {
    let server = with_a_long_list(|_| {}).await;
    let listening = server.listen().await;
    let mut admin = Connection::open(&listening, true).await;
    let unread = admin.begin(MAPS, "admin").await;
    assert_eq!(unread.status(), 200);
    tokio::time::sleep(PATIENCE + Duration::from_millis(300)).await;
    assert_eq!(admin.get("/version").await, 200, "the others go on");
    assert!(unread.into_body().collect().await.is_err(), "it was reset");
}

#[tokio::test]
async fn who_does_not_take_an_answer_in_time_loses_its_connection_over_http1() {
    let server = with_a_long_list(|_| {}).await;
    let listening = server.listen().await;
    let mut stream = connect(&listening, true, "http/1.1").await;
    stream.write_all(format!("GET {MAPS} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    tokio::time::sleep(PATIENCE + Duration::from_millis(500)).await;
    let (mut read, began) = (Vec::new(), Instant::now());
    let _ = stream.read_to_end(&mut read).await;
    assert!(began.elapsed() < Duration::from_secs(5), "nothing more comes");
    assert!(read.starts_with(b"HTTP/1.1 200") && !read.ends_with(b"0\r\n\r\n"), "{} bytes", read.len());
}

#[tokio::test]
async fn a_request_has_its_seat_until_its_answer_is_taken() {
    let server = with_a_long_list(|c| {
        c.priority_and_fairness = false;
        (c.max_requests_in_flight, c.max_mutating_requests_in_flight) = (1, 1);
    })
    .await;
    let listening = server.listen().await;
    let mut client = Connection::open(&listening, true).await;
    let unread = client.begin(MAPS, "joe").await;
    assert_eq!(unread.status(), 200);
    assert_eq!(client.begin("/api/v1/nodes", "joe").await.status(), 429);
    tokio::time::sleep(PATIENCE + Duration::from_millis(300)).await;
    assert_eq!(client.begin("/api/v1/nodes", "joe").await.status(), 200);
    drop(unread);
}
