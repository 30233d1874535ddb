//! One client's connection: TLS, HTTP/1 or 2 on it, and when it ends. Nobody keeps one without using it, however far it got.
//! With [`end_after`] a request is the last one that its connection begins: a GOAWAY is sent, those that run go on, and others come
//! over a new connection.

use crate::authn::{NotAfter, PeerCertificates};
use crate::{ApiServer, chain};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{Extensions, Request, Version};
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use isopod_api::UserInfo;
use isopod_base::errors::Chain;
use parking_lot::Mutex;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// A client that sends no handshake keeps nothing busy for longer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// All header fields of a request together, in bytes, as in Go's server: long selectors and many groups of an impersonated user.
const MAX_HEADERS: u32 = 1 << 20;
/// Over HTTP/1, where memory is set aside for each line before it is read.
const MAX_HEADER_LINES: usize = 1000;
/// Without a request, as upstream: what Go's clients keep a connection for.
const IDLE: Duration = Duration::from_secs(90);
/// How long a client may take to notice the end of a connection that it did not use.
const FAREWELL: Duration = Duration::from_secs(5);

/// Who is connected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub IpAddr);

/// What requests and their connection know of each other.
#[derive(Clone, Debug)]
pub(crate) struct Line(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    usage: Mutex<Use>,
    hang_up: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    /// Requests whose answers are not sent yet.
    running: usize,
    /// When that became none.
    since: Instant,
}

impl Line {
    fn new() -> Self {
        let usage = Mutex::new(Use { running: 0, since: Instant::now() });
        Line(Arc::new(Shared { usage, hang_up: CancellationToken::new() }))
    }

    fn busy(&self) -> Busy {
        self.0.usage.lock().running += 1;
        Busy(self.clone())
    }

    /// Returns when there was no request for `patience`.
    async fn idle(&self, patience: Duration) {
        loop {
            let usage = *self.0.usage.lock();
            let Some(until) = usage.rest(patience, Instant::now()) else { return };
            tokio::time::sleep_until(until).await;
        }
    }
}

impl Use {
    /// When it may have had no request for `patience`, if not now.
    fn rest(self, patience: Duration, now: Instant) -> Option<Instant> {
        let until = if self.running > 0 { now } else { self.since } + patience;
        (until > now).then_some(until)
    }
}

/// Over HTTP/2, where that is cheap to abuse (CVE-2023-44487) and hard to move to another server, this request's connection ends
/// when those that run on it have their answers.
pub(crate) fn end_after(version: Version, request: &Extensions) {
    if let Some(Line(shared)) = request.get::<Line>().filter(|_| version == Version::HTTP_2) {
        shared.hang_up.cancel();
    }
}

/// A request that has not got all of its answer.
struct Busy(Line);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut usage = self.0.0.usage.lock();
        usage.running -= 1;
        usage.since = Instant::now();
    }
}

/// The body of an answer, which keeps its connection busy.
struct Answer {
    body: Body,
    _busy: Busy,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Serves a client until it goes, its connection is to end, or `shutdown`.
pub(crate) async fn serve(
    server: Arc<ApiServer>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    shutdown: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let address = stream.peer_addr().ok().map(|a| PeerAddress(a.ip().to_canonical()));
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return tracing::debug!(error = %Chain(&e), "TLS handshake"),
        Err(_) => return,
    };
    let peer = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain = peer.iter().map(|c| c.clone().into_owned()).collect();
    let (peer, proxy) = match &server.config.front_proxy {
        Some(front_proxy) => front_proxy.tell_apart(chain),
        None => (PeerCertificates(chain), None),
    };
    let not_after = peer.0.first().and_then(|leaf| isopod_auth::certificate::not_after(leaf)).map(NotAfter);
    let line = Line::new();
    let service = {
        let line = line.clone();
        hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let mut request = request.map(Body::new);
            // Identity by extension is for in-process callers alone.
            request.extensions_mut().remove::<UserInfo>();
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(line.clone());
            if let Some(not_after) = not_after {
                request.extensions_mut().insert(not_after);
            }
            if let Some(address) = address {
                request.extensions_mut().insert(address);
            }
            if let Some(proxy) = &proxy {
                request.extensions_mut().insert(proxy.clone());
            }
            let (server, busy) = (server.clone(), line.busy());
            async move { Ok::<_, Infallible>(held(chain::serve(server, request).await, busy)) }
        })
    };
    let builder = builder();
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = shutdown.cancelled() => None,
        () = line.0.hang_up.cancelled() => None,
        () = line.idle(IDLE) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = line.idle(IDLE + FAREWELL) => return,
            }
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "connection");
    }
}

fn held(answer: Response, busy: Busy) -> Response {
    answer.map(|body| Body::new(Answer { body, _busy: busy }))
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(MAX_HEADERS as usize)
        .max_headers(MAX_HEADER_LINES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    builder
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body as _;

    #[test]
    fn a_line_is_idle_when_it_had_no_request_for_long_enough() {
        let (since, second) = (Instant::now(), Duration::from_secs(1));
        let after = |running, passed| Use { running, since }.rest(IDLE, since + passed).map(|until| until - since);
        assert_eq!(after(0, second), Some(IDLE), "the rest of it");
        assert_eq!(after(0, IDLE), None);
        assert_eq!(after(1, 1000 * second), Some(1000 * second + IDLE), "the request may end at once");
    }

    #[test]
    fn an_answer_holds_its_line_until_it_is_sent() {
        let line = Line::new();
        let running = || line.0.usage.lock().running;
        let answer = held(Response::new(Body::from("a")), line.busy());
        assert_eq!((running(), answer.body().size_hint().exact()), (1, Some(1)));
        drop(answer);
        assert_eq!(running(), 0);
    }
}
