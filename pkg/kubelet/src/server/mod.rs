//! The node's HTTPS endpoints: logs, exec, attach, port-forward, pods, statistics, metrics.
//!
//! Invariant: every path but `/healthz` asks who it is and whether the API server lets them; nothing is served without TLS.

mod auth;
mod logs;
mod stats;
mod streams;

use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use auth::{Gate, Peer};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::json;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What handlers share.
#[derive(Clone)]
pub(crate) struct Endpoints {
    kubelet: Arc<Kubelet>,
    gate: Arc<Gate>,
}

/// An answer in plain text, as upstream's kubelet gives its errors.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub StatusCode, pub String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}

impl Kubelet {
    /// The endpoints, with authentication and authorization in front.
    pub fn router(self: &Arc<Self>) -> Router {
        let state = Endpoints { kubelet: self.clone(), gate: Arc::new(Gate::new(self.shared.clone())) };
        let mut router = Router::new()
            .route("/pods", get(pods))
            .route("/stats/summary", get(stats::summary))
            .route("/metrics", get(stats::metrics))
            .route("/metrics/resource", get(stats::resource_metrics));
        if self.shared.cfg.enable_debugging_handlers {
            router = router
                .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::container_logs))
                .route("/run/{namespace}/{pod}/{container}", any(streams::run))
                .route("/exec/{namespace}/{pod}/{container}", any(streams::exec))
                .route("/exec/{namespace}/{pod}/{uid}/{container}", any(streams::exec))
                .route("/attach/{namespace}/{pod}/{container}", any(streams::attach))
                .route("/attach/{namespace}/{pod}/{uid}/{container}", any(streams::attach))
                .route("/portForward/{namespace}/{pod}", any(streams::port_forward))
                .route("/portForward/{namespace}/{pod}/{uid}", any(streams::port_forward));
        }
        router
            .layer(middleware::from_fn_with_state(state.clone(), guard))
            .route("/healthz", get(|| async { "ok" }))
            .with_state(state)
    }

    /// Serves the endpoints on `listener` until `stop`. `tls` must ask for client certificates of the API server's CA.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        stop: CancellationToken,
    ) {
        let router = self.router();
        // Upgrades need HTTP/1.1.
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        loop {
            let (tcp, from) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(a) => a,
                    Err(e) => {
                        // Out of descriptors, most likely: give the others time to end.
                        tracing::warn!(error = %e, "cannot accept a connection");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = stop.cancelled() => return,
            };
            let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
            tokio::spawn(async move {
                let tls = match acceptor.accept(tcp).await {
                    Ok(tls) => tls,
                    Err(e) => return tracing::debug!(%from, error = %e, "TLS handshake failed"),
                };
                let peer = Peer::of(tls.get_ref().1.peer_certificates());
                let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
                    request.extensions_mut().insert(peer.clone());
                    let mut router = router.clone();
                    async move { tower::Service::call(&mut router, request.map(Body::new)).await }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
                tokio::select! {
                    r = connection => if let Err(e) = r {
                        tracing::debug!(%from, error = %e, "connection ended");
                    },
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    /// The pod, as the API shows it to this node.
    pub(crate) fn find_pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, Refused> {
        let missing = || Refused(StatusCode::NOT_FOUND, format!("pod {:?} not found", format!("{namespace}/{name}")));
        self.pods.get(namespace, name).ok_or_else(missing)
    }

    pub(crate) fn find_container(&self, pod: &Pod, name: &str) -> Result<Container, Refused> {
        let missing = || {
            Refused(
                StatusCode::NOT_FOUND,
                format!("container {name} not found in pod {:?}", format!("{}/{}", pod.ns(), pod.pod_name())),
            )
        };
        pod.container(name).ok_or_else(missing)
    }
}

async fn guard(State(state): State<Endpoints>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match state.gate.check(&parts).await {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(refused) => {
            let challenge = refused.0 == StatusCode::UNAUTHORIZED;
            let mut r = refused.into_response();
            if challenge {
                r.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            }
            r
        }
    }
}

async fn pods(State(state): State<Endpoints>) -> Response {
    let items: Vec<Arc<Pod>> = state.kubelet.pods.list();
    let items: Vec<_> = items.iter().map(|p| &**p).collect();
    json_response(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

fn json_response(v: &serde_json::Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], v.to_string()).into_response()
}

/// An identity that may do everything.
#[cfg(test)]
pub(crate) fn admin() -> Peer {
    Peer::named("admin", &[isopod_api::user::SYSTEM_MASTERS])
}
