//! Connections to webhook servers that wait for the next call: a call to a server that was called before costs one round trip.
//!
//! Invariants: a connection of HTTP/1.1 is lent to one call at a time, one of HTTP/2 to all; whoever gets a connection trusts
//! the certificates that it was made with; what has waited for [`IDLE`] is closed.

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// How long a connection waits for a call, and how many to one server wait at most.
const IDLE: Duration = Duration::from_secs(90);
const IDLE_PER_SERVER: usize = 25;

/// A connection that can take a call.
pub enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Many(http2::SendRequest<Full<Bytes>>),
}

/// Why a call has no answer.
pub enum Unanswered {
    /// The connection was closed before the request left: it may be sent again.
    Unsent,
    Failed(String),
}

impl Sender {
    /// Speaks HTTP over a connection, in the version that was agreed on.
    pub async fn new<S>(stream: S, http2: bool) -> Result<Self, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        let told = |e: hyper::Error| e.to_string();
        if http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30));
            let (sender, connection) = builder.handshake(io).await.map_err(told)?;
            tokio::spawn(connection);
            return Ok(Sender::Many(sender));
        }
        let (sender, connection) = http1::handshake(io).await.map_err(told)?;
        // It ends when the sender is dropped.
        tokio::spawn(connection);
        Ok(Sender::One(sender))
    }

    fn is_open(&self) -> bool {
        match self {
            Sender::One(sender) => !sender.is_closed(),
            Sender::Many(sender) => !sender.is_closed(),
        }
    }

    /// Posts a body; `path` with its query.
    pub async fn post(
        &mut self,
        authority: &str,
        path: &str,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let wrong = |e: &dyn std::fmt::Display| Unanswered::Failed(e.to_string());
        let uri = match self {
            Sender::One(_) => path.to_owned(),
            Sender::Many(_) => format!("https://{authority}{path}"),
        };
        *request.uri_mut() = uri.parse().map_err(|e| wrong(&e))?;
        let sent = match self {
            Sender::One(sender) => {
                let host = http::HeaderValue::from_str(authority).map_err(|e| wrong(&e))?;
                request.headers_mut().insert(header::HOST, host);
                sender.ready().await.map_err(|_| Unanswered::Unsent)?;
                sender.try_send_request(request).await
            }
            Sender::Many(sender) => {
                sender.ready().await.map_err(|_| Unanswered::Unsent)?;
                sender.try_send_request(request).await
            }
        };
        sent.map_err(|mut e| match e.take_message() {
            Some(_) => Unanswered::Unsent,
            None if e.error().is_incomplete_message() => Unanswered::Failed("EOF".to_owned()),
            None => wrong(e.error()),
        })
    }
}

/// Of one server, and of one set of certificates that are trusted there.
type Key = (String, [u8; 32]);

struct Waiting {
    sender: Sender,
    since: Instant,
}

/// All connections that wait.
#[derive(Default)]
pub struct Pool(Mutex<HashMap<Key, Vec<Waiting>>>);

impl Pool {
    /// The connection that was used last, if one waits.
    pub fn take(&self, key: &Key) -> Option<Sender> {
        let mut all = self.0.lock();
        let waiting = all.get_mut(key)?;
        waiting.retain(|w| w.sender.is_open());
        let shared = waiting.iter_mut().find_map(|w| match &w.sender {
            Sender::Many(sender) => {
                w.since = Instant::now();
                Some(Sender::Many(sender.clone()))
            }
            Sender::One(_) => None,
        });
        shared.or_else(|| waiting.pop().map(|w| w.sender))
    }

    /// Keeps a connection for the next call.
    pub fn give(self: &Arc<Self>, key: &Key, sender: Sender) {
        let mut all = self.0.lock();
        let is_first = all.is_empty();
        let waiting = all.entry(key.clone()).or_default();
        // All calls share one of HTTP/2.
        let shared = waiting.iter().any(|w| matches!(w.sender, Sender::Many(_)));
        if sender.is_open() && !shared && waiting.len() < IDLE_PER_SERVER {
            waiting.push(Waiting { sender, since: Instant::now() });
        }
        if is_first {
            tokio::spawn(close_idle(Arc::downgrade(self)));
        }
    }

    /// Closes what has waited for too long. False: nothing waits any more.
    fn prune(&self) -> bool {
        let mut all = self.0.lock();
        all.retain(|_, waiting| {
            waiting.retain(|w| w.sender.is_open() && w.since.elapsed() < IDLE);
            !waiting.is_empty()
        });
        !all.is_empty()
    }
}

async fn close_idle(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(IDLE / 2).await;
        if !pool.upgrade().is_some_and(|p| p.prune()) {
            return;
        }
    }
}
