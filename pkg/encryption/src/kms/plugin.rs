//! A KMS plugin's gRPC service (`k8s.io/kms/apis/v2/api.proto`) on its Unix socket: one connection, made anew when it has ended.

use super::metrics::PluginMetrics;
use http::Uri;
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tonic::Code;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic_prost::ProstCodec;

#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("cannot connect to {0}")]
    Connect(PathBuf, #[source] io::Error),
    #[error("{0} does not speak HTTP/2")]
    Http2(PathBuf, #[source] hyper::Error),
    #[error("it does not answer within {0:?}")]
    Timeout(Duration),
    #[error("rpc error: code = {:?} desc = {}", .0.code(), .0.message())]
    Refused(tonic::Status),
}

impl PluginError {
    /// As gRPC's libraries in Go call it.
    pub fn code(&self) -> String {
        match self {
            PluginError::Connect(..) | PluginError::Http2(..) => "Unavailable".to_owned(),
            PluginError::Timeout(_) => "DeadlineExceeded".to_owned(),
            // It did not say so itself: the connection broke.
            PluginError::Refused(status) if status.source().is_some() => "Unavailable".to_owned(),
            PluginError::Refused(status) => match status.code() {
                Code::Ok => "OK".to_owned(),
                Code::Cancelled => "Canceled".to_owned(),
                code => format!("{code:?}"),
            },
        }
    }
}

/// A seed as the plugin has sealed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    pub ciphertext: Vec<u8>,
    pub key_id: String,
    pub annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
pub struct StatusResponse {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub healthz: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
}

/// The connection as tonic wants it.
#[derive(Clone)]
struct Connection(SendRequest<Body>);

impl GrpcService<Body> for Connection {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Incoming>, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

pub struct Plugin {
    name: String,
    metrics: Arc<PluginMetrics>,
    socket: PathBuf,
    timeout: Duration,
    connection: tokio::sync::Mutex<Option<Connection>>,
}

impl Plugin {
    pub fn new(name: String, socket: PathBuf, timeout: Duration, metrics: Arc<PluginMetrics>) -> Self {
        Plugin { name, metrics, socket, timeout, connection: tokio::sync::Mutex::default() }
    }

    pub async fn status(&self) -> Result<StatusResponse, PluginError> {
        self.ask("/v2.KeyManagementService/Status", StatusRequest {}).await
    }

    pub async fn encrypt(&self, plain: &[u8]) -> Result<Seed, PluginError> {
        let request = EncryptRequest { plaintext: plain.to_vec(), uid: uid() };
        let answer: EncryptResponse = self.ask("/v2.KeyManagementService/Encrypt", request).await?;
        Ok(Seed { ciphertext: answer.ciphertext, key_id: answer.key_id, annotations: answer.annotations })
    }

    pub async fn decrypt(&self, seed: &Seed) -> Result<Vec<u8>, PluginError> {
        let Seed { ciphertext, key_id, annotations } = seed.clone();
        let request = DecryptRequest { ciphertext, uid: uid(), key_id, annotations };
        let answer: DecryptResponse = self.ask("/v2.KeyManagementService/Decrypt", request).await?;
        Ok(answer.plaintext)
    }

    async fn ask<Q, A>(&self, method: &'static str, request: Q) -> Result<A, PluginError>
    where
        Q: Message + Default + Clone + 'static,
        A: Message + Default + 'static,
    {
        let asked = async {
            let mut client = Grpc::with_origin(self.connected().await?, Uri::from_static("http://localhost"));
            client.ready().await.map_err(|e| PluginError::Http2(self.socket.clone(), e))?;
            let codec = ProstCodec::<Q, A>::default();
            let answer = client.unary(tonic::Request::new(request), PathAndQuery::from_static(method), codec).await;
            Ok(answer.map_err(PluginError::Refused)?.into_inner())
        };
        let began = Instant::now();
        let answer = tokio::time::timeout(self.timeout, asked).await;
        let answer = answer.unwrap_or(Err(PluginError::Timeout(self.timeout)));
        self.metrics.called(&self.name, method, &answer, began.elapsed());
        answer
    }

    async fn connected(&self) -> Result<Connection, PluginError> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_ref().filter(|c| !c.0.is_closed()) {
            return Ok(connection.clone());
        }
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|e| PluginError::Connect(self.socket.clone(), e))?;
        let made = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = made.map_err(|e| PluginError::Http2(self.socket.clone(), e))?;
        // It ends with its last sender, or with the plugin; who asks next is told by `is_closed`.
        tokio::spawn(connection);
        Ok(kept.insert(Connection(sender)).clone())
    }
}

fn uid() -> String {
    uuid::Uuid::new_v4().to_string()
}
