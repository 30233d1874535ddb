//! The server's end of the nodes' tunnels. A node dials in and asks to upgrade; then the roles swap: the server speaks HTTP/2
//! as a client on that connection, and each `CONNECT host:port` is one byte stream to an address on the node's side. So nodes
//! behind NAT work, and a server needs no route to them.
//!
//! Invariant: one session a node; a newer one takes the place of the older.

use crate::ApiServer;
use crate::lasting::Lasting;
use async_trait::async_trait;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use isopod_api::{Status, UserInfo, user};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

pub const PATH: &str = "/v1/isopod/connect";
const PROTOCOL: &str = "isopod-tunnel";
const NODE: &str = "x-isopod-node";

/// A byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Reaches addresses on a node's side: its kubelet, its pods, service addresses.
#[async_trait]
pub trait NodeDialer: Send + Sync {
    /// `address`: `host:port`.
    async fn dial(&self, node: &str, address: &str) -> io::Result<Box<dyn Io>>;
    /// Names of the nodes that can be reached.
    fn nodes(&self) -> Vec<String>;
}

struct Session {
    id: u64,
    sender: SendRequest<Empty<Bytes>>,
}

/// The tunnels that are open.
#[derive(Default)]
pub struct Tunnels {
    sessions: RwLock<HashMap<String, Session>>,
    next: std::sync::atomic::AtomicU64,
}

impl Tunnels {
    /// Takes over a connection on which the node serves HTTP/2. It runs until the connection ends.
    pub async fn attach<T>(self: &Arc<Self>, node: &str, io: T) -> hyper::Result<()>
    where
        T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(15))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(io);
        let (sender, connection) = handshake.await?;
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.sessions.write().insert(node.to_owned(), Session { id, sender });
        tracing::info!(node, "tunnel open");
        let ended = connection.await;
        let mut sessions = self.sessions.write();
        if sessions.get(node).is_some_and(|s| s.id == id) {
            sessions.remove(node);
        }
        tracing::info!(node, "tunnel closed");
        ended
    }
}

#[async_trait]
impl NodeDialer for Tunnels {
    async fn dial(&self, node: &str, address: &str) -> io::Result<Box<dyn Io>> {
        let sender = self.sessions.read().get(node).map(|s| s.sender.clone());
        let mut sender = sender.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotConnected, format!("node {node:?} has no tunnel to this server"))
        })?;
        let request = Request::connect(address).body(Empty::new()).map_err(io::Error::other)?;
        sender.ready().await.map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        if response.status() != StatusCode::OK {
            let code = response.status();
            return Err(io::Error::other(format!("the node could not connect to {address}: {code}")));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }

    fn nodes(&self) -> Vec<String> {
        self.sessions.read().keys().cloned().collect()
    }
}

/// `GET /v1/isopod/connect`: a node opens its tunnel. Only the node itself may.
pub fn accept(server: &Arc<ApiServer>, mut request: Request<Body>, user: &UserInfo) -> Result<Response, Status> {
    let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let (node, upgrade) = (header(NODE), header("upgrade"));
    if !upgrade.eq_ignore_ascii_case(PROTOCOL) || node.is_empty() {
        return Err(Status::bad_request(format!("a tunnel needs the headers \"Upgrade: {PROTOCOL}\" and {NODE:?}")));
    }
    let is_node = user.name == format!("system:node:{node}") && user.in_group("system:nodes");
    if !is_node && !user.in_group(user::SYSTEM_MASTERS) {
        let m = format!("user {:?} may not open the tunnel of node {node:?}", user.name);
        return Err(Status::new(403, "Forbidden", m));
    }
    let upgraded = hyper::upgrade::on(&mut request);
    let tunnels = server.tunnels.clone();
    let stop = server.stop.clone();
    let mut response = Response::new(Body::empty());
    Lasting::run(&mut response, async move {
        let run = async {
            match upgraded.await {
                Ok(io) => tunnels.attach(&node, io).await,
                Err(e) => Err(e),
            }
        };
        tokio::select! {
            ended = run => if let Err(e) = ended {
                tracing::debug!(error = %e, "a tunnel ended");
            },
            () = stop.cancelled() => {}
        }
    });
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(response)
}
