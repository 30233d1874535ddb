//! The listeners: TCP or unix sockets, with TLS or without; gRPC, and etcd's few pages over plain HTTP, on one port.

use crate::VERSION;
use crate::auth::CommonName;
use crate::metrics::Metrics;
use crate::pb::DESCRIPTORS;
use crate::pb::etcdserverpb as pb;
use crate::pb::v3electionpb::election_server::ElectionServer;
use crate::pb::v3lockpb::lock_server::LockServer;
use crate::service::{REQUEST_OVERHEAD, Service};
use crate::silence;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderValue, Request, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use isopod_base::errors::Chain;
use isopod_store::Alarm;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tower::ServiceExt;

/// A client that sends no handshake keeps nothing busy for longer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Nor does one that says nothing after it.
const SILENCE: Duration = Duration::from_secs(30);
/// How long running requests may take after the server was told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Where clients connect.
pub enum Listener {
    Tcp(TcpListener, Option<Arc<rustls::ServerConfig>>),
    Unix(UnixListener, Option<Arc<rustls::ServerConfig>>),
    /// Serves the pages alone, where who may look is not who may read the data.
    Pages(Box<Listener>),
}

#[derive(Clone)]
struct App {
    service: Service,
    metrics: Arc<Metrics>,
    router: Router,
}

/// Serves on all listeners until `shutdown`, then lets running requests end. The store stays open.
pub async fn serve(service: Service, listeners: Vec<Listener>, shutdown: CancellationToken) {
    let metrics = Arc::new(Metrics::default());
    let pages = pages(&service, &metrics);
    let everything = App { router: pages.clone().merge(api(&service)), service, metrics };
    let pages = App { router: pages, ..everything.clone() };
    let connections = TaskTracker::new();
    let accepting = listeners.into_iter().map(|listener| match listener {
        Listener::Pages(listener) => accept(*listener, &pages, &connections, &shutdown),
        listener => accept(listener, &everything, &connections, &shutdown),
    });
    futures::future::join_all(accepting).await;
    everything.service.stop();
    connections.close();
    let _ = tokio::time::timeout(GRACE, connections.wait()).await;
}

async fn accept(listener: Listener, app: &App, connections: &TaskTracker, shutdown: &CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, tls)) => {
                connections.spawn(connection(app.clone(), stream, tls, shutdown.clone()));
            }
            Err(e) => {
                // Out of file descriptors, as a rule: connections that end give some back.
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    async fn accept(&self) -> std::io::Result<(Box<dyn Stream>, Option<TlsAcceptor>)> {
        let (stream, tls): (Box<dyn Stream>, _) = match self {
            Listener::Tcp(listener, tls) => {
                let (stream, _) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                (Box::new(stream), tls)
            }
            Listener::Unix(listener, tls) => (Box::new(listener.accept().await?.0), tls),
            Listener::Pages(listener) => return Box::pin(listener.accept()).await,
        };
        Ok((stream, tls.clone().map(TlsAcceptor::from)))
    }
}

async fn connection(app: App, stream: Box<dyn Stream>, tls: Option<TlsAcceptor>, shutdown: CancellationToken) {
    let mut common_name = None;
    let stream: Box<dyn Stream> = match tls {
        None => stream,
        Some(acceptor) => match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                common_name = client_name(stream.get_ref().1);
                Box::new(stream)
            }
            Ok(Err(e)) => return tracing::debug!(error = %Chain(&e), "TLS handshake"),
            Err(_) => return,
        },
    };
    let config = app.service.config.clone();
    let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        let app = app.clone();
        if let Some(name) = &common_name {
            request.extensions_mut().insert(name.clone());
        }
        async move { Ok::<_, Infallible>(answer(app, request.map(Body::new)).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(TokioTimer::new())
        // One connection of an API server carries a stream for each of its watches.
        .max_concurrent_streams(config.max_concurrent_streams)
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout);
    let (stream, silence) = silence::listening(stream);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(e) = ended {
                tracing::debug!(error = %e, "connection");
            }
        }
        () = silence.outlasts(SILENCE) => {}
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Whom the certificate that a client showed, and that was verified, was made for.
fn client_name(connection: &rustls::ServerConnection) -> Option<CommonName> {
    let certificate = connection.peer_certificates()?.first()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok()).unwrap_or_default();
    Some(CommonName(name.into()))
}

async fn answer(app: App, request: Request<Body>) -> Response {
    let path = request.uri().path().to_owned();
    let Ok(mut response) = app.router.oneshot(request).await;
    let headers = response.headers();
    let grpc = headers.get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    // 12, unimplemented: what is not served is not counted either, for its names are the client's.
    if grpc && headers.get("grpc-status").is_none_or(|s| s != "12") {
        app.metrics.started(&path);
    }
    say_too_large(&mut response, app.service.config.max_request_bytes + REQUEST_OVERHEAD);
    response
}

/// gRPC's own limit has another code in Go's servers than in tonic, and clients look at the code.
fn say_too_large(response: &mut Response, limit: usize) {
    let headers = response.headers_mut();
    let too_large = headers.get("grpc-status").is_some_and(|s| s == "11")
        && headers
            .get("grpc-message")
            .is_some_and(|m| m.as_bytes().starts_with(b"Error,%20decoded%20message%20length"));
    if too_large {
        let text = format!("grpc:%20received%20message%20larger%20than%20max%20({limit})");
        headers.insert("grpc-status", HeaderValue::from_static("8"));
        if let Ok(text) = HeaderValue::try_from(text) {
            headers.insert("grpc-message", text);
        }
    }
}

fn api(service: &Service) -> Router {
    let limit = service.config.max_request_bytes + REQUEST_OVERHEAD;
    let s = || service.clone();
    let (_, health) = tonic_health::server::health_reporter();
    let mut routes = Routes::new(pb::kv_server::KvServer::new(s()).max_decoding_message_size(limit))
        .add_service(pb::watch_server::WatchServer::new(s()).max_decoding_message_size(limit))
        .add_service(pb::lease_server::LeaseServer::new(s()))
        .add_service(pb::cluster_server::ClusterServer::new(s()))
        .add_service(pb::maintenance_server::MaintenanceServer::new(s()))
        .add_service(pb::auth_server::AuthServer::new(s()))
        .add_service(LockServer::new(s()))
        .add_service(ElectionServer::new(s()))
        .add_service(health);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
        (Err(e), _) | (_, Err(e)) => tracing::error!(error = %e, "reflection is not served"),
    }
    routes.into_axum_router()
}

fn pages(service: &Service, metrics: &Arc<Metrics>) -> Router {
    Router::new()
        .route("/health", get(health_page))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready_page))
        .route("/version", get(version_page))
        .route("/metrics", get(metrics_page))
        .with_state((service.clone(), Arc::clone(metrics)))
}

type Shared = State<(Service, Arc<Metrics>)>;

/// Why clients should not come; `None`: they may.
async fn trouble(service: &Service) -> Option<String> {
    if let Some(alarm) = service.quota.alarms().first() {
        return Some(match alarm {
            Alarm::NoSpace => "ALARM NOSPACE".into(),
            Alarm::Corrupt => "ALARM CORRUPT".into(),
        });
    }
    service.revision().await.err().map(|e| e.message().to_owned())
}

fn json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn health_page(State((service, _)): Shared) -> Response {
    match trouble(&service).await {
        None => json(StatusCode::OK, r#"{"health":"true","reason":""}"#.into()),
        Some(why) => json(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(r#"{{"health":"false","reason":"{}"}}"#, why.replace(['"', '\\'], "'")),
        ),
    }
}

async fn ready_page(State((service, _)): Shared) -> Response {
    match trouble(&service).await {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn version_page() -> Response {
    json(StatusCode::OK, format!(r#"{{"etcdserver":"{VERSION}","etcdcluster":"{VERSION}","storage":"{VERSION}"}}"#))
}

async fn metrics_page(State((service, metrics)): Shared) -> Response {
    match metrics.text(&service).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(e) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", Chain(&e))).into_response(),
    }
}
