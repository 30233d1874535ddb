//! The API server as a whole: its state, its service for in-process callers, and its listener.

use crate::admission::resource_quota::Turns;
use crate::admission::{self, Row};
use crate::aggregation::{self, Aggregation};
use crate::allocate::cidr::Cidr;
use crate::allocate::{kubernetes_service, peers, repair};
use crate::cache::Hub;
use crate::config::Config;
use crate::conversion::Conversions;
use crate::definitions::{self, Definitions};
use crate::fairness::{self, Fairness, Gauges, InFlight};
use crate::metrics::Metrics;
use crate::objects::SharedLease;
use crate::parsed::Parsed;
use crate::pipeline::{self, Intent};
use crate::registry::Registry;
use crate::stages::{Stage, Stages};
use crate::tunnel::{NodeDialer, Tunnels};
use crate::{callout, chain, compaction, connection, identity, legacy_tokens};
use arc_swap::ArcSwap;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::Request;
use isopod_api::Status;
use isopod_store::StoreError;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long running requests may take after the server was told to stop.
const GRACE: Duration = Duration::from_secs(5);
/// How long the datastore may take to take in that the server ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why an API server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot read the datastore")]
    Store(#[source] StoreError),
    #[error("cannot read the custom resource definitions")]
    Definitions(#[source] Status),
    #[error("--service-cidr")]
    Cidr(#[source] crate::allocate::cidr::InvalidCidr),
}

/// See the crate's documentation.
pub struct ApiServer {
    pub config: Config,
    pub(crate) registry: ArcSwap<Registry>,
    pub(crate) definitions: Definitions,
    pub(crate) conversions: Conversions,
    pub(crate) callouts: Arc<callout::Pool>,
    pub(crate) aggregation: Arc<Aggregation>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) admission: Vec<Row>,
    pub(crate) service_cidr: Cidr,
    pub(crate) metrics: Metrics,
    pub(crate) lease: SharedLease,
    pub(crate) parsed: Parsed,
    /// Writes that quotas are charged with.
    pub(crate) turns: Turns,
    pub(crate) tunnels: Arc<Tunnels>,
    /// What [`ApiServer::bootstrap`] is to create; nobody needs it after that.
    founding: Mutex<Vec<Value>>,
    pub(crate) bootstrapped: AtomicBool,
    pub(crate) stages: Stages,
    pub(crate) started: Timestamp,
    /// Ends watches and tunnels.
    pub(crate) stop: CancellationToken,
    /// What tells others, after that, that this server is no more.
    pub(crate) farewells: TaskTracker,
    /// `None`: it is switched off, and `in_flight` limits the requests.
    pub(crate) fairness: Option<Arc<Fairness>>,
    pub(crate) in_flight: InFlight,
    pub(crate) gauges: Gauges,
}

impl ApiServer {
    /// Starts the caches. Requests are served from now on through [`ApiServer::service`]; [`ApiServer::bootstrap`] makes
    /// `/readyz` true.
    pub async fn new(mut config: Config) -> Result<Arc<Self>, StartError> {
        let service_cidr = config.service_cidr.parse().map_err(StartError::Cidr)?;
        let hub = Hub::start(config.store.clone()).await.map_err(StartError::Store)?;
        let registry = Registry::new(config.kinds.iter().cloned());
        if let Some(access) = &config.access {
            access.start(config.store.clone(), &hub, &registry).await.map_err(StartError::Store)?;
        }
        let metrics = Metrics::new(&config, &hub);
        let (reading, mutating) = (config.max_requests_in_flight, config.max_mutating_requests_in_flight);
        let server = Arc::new(ApiServer {
            registry: ArcSwap::from_pointee(registry),
            definitions: Definitions::default(),
            conversions: Conversions::default(),
            callouts: Arc::default(),
            aggregation: Arc::default(),
            hub,
            admission: admission::all::all(),
            service_cidr,
            metrics,
            lease: SharedLease::default(),
            parsed: Parsed::default(),
            turns: Turns::default(),
            tunnels: Arc::default(),
            founding: Mutex::new(std::mem::take(&mut config.bootstrap)),
            bootstrapped: AtomicBool::new(false),
            stages: Stages::default(),
            started: config.clock.now(),
            stop: CancellationToken::new(),
            farewells: TaskTracker::new(),
            fairness: config.priority_and_fairness.then(|| Arc::new(Fairness::new(reading + mutating))),
            in_flight: InFlight::new(reading, mutating),
            gauges: Gauges::default(),
            config,
        });
        server.stages.done(Stage::Caches);
        definitions::start(&server).await.map_err(StartError::Definitions)?;
        server.stages.done(Stage::Definitions);
        compaction::start(&server);
        peers::start(&server);
        fairness::start(&server);
        server.stages.done(Stage::Fairness);
        Ok(server)
    }

    /// Creates what a cluster needs to have: the configured objects and the `kubernetes` service.
    pub async fn bootstrap(self: &Arc<Self>) -> Result<(), Status> {
        // Namespaces first; the others wait for one commit of the store together, not each for its own.
        let founding = std::mem::take(&mut *self.founding.lock());
        let (namespaces, others): (Vec<&Value>, Vec<&Value>) = founding.iter().partition(|o| o["kind"] == "Namespace");
        for (objects, stage) in [(namespaces, Stage::Namespaces), (others, Stage::Founding)] {
            let creates = futures::stream::iter(objects.into_iter().map(|o| self.bootstrap_object(o)));
            creates.buffer_unordered(64).try_collect::<()>().await?;
            self.stages.done(stage);
        }
        fairness::ensure(self).await?;
        self.stages.done(Stage::Flows);
        kubernetes_service::reconcile(self).await?;
        self.stages.done(Stage::Service);
        let (aggregated, (), (), ()) = tokio::join!(
            aggregation::start(self),
            identity::start(self),
            legacy_tokens::start(self),
            repair::start(self),
        );
        aggregated?;
        if let Some(access) = &self.config.access {
            access.wait(self.hub.fresh().await?).await;
        }
        self.stages.done(Stage::Rights);
        self.bootstrapped.store(true, Ordering::Release);
        Ok(())
    }

    async fn bootstrap_object(&self, object: &Value) -> Result<(), Status> {
        let Some(intent) = self.own_intent(object) else {
            tracing::warn!(kind = %object["kind"], "no such kind is served: not created");
            return Ok(());
        };
        match pipeline::create(self, &intent, object).await {
            Err(e) if e.reason != "AlreadyExists" => {
                // An address that it has itself is refused before its name is looked at.
                let kind = &intent.kind;
                if self.read(&kind.gvk.group, &kind.resource, &intent.namespace, &intent.name).await?.is_some() {
                    return Ok(());
                }
                tracing::error!(kind = %object["kind"], name = %object["metadata"]["name"], error = %e, "bootstrap");
                Err(e)
            }
            _ => Ok(()),
        }
    }

    /// What the server itself writes, as `system:apiserver`.
    pub(crate) fn own_intent(&self, object: &Value) -> Option<Intent> {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let kind = self.registry.load().kind(&text(&object["apiVersion"]), &text(&object["kind"]))?.clone();
        let namespace = if kind.namespaced { text(&object["metadata"]["namespace"]) } else { String::new() };
        Some(self.intent(&kind, &namespace, &text(&object["metadata"]["name"])))
    }

    /// The kinds that are served now.
    pub fn registry(&self) -> Arc<Registry> {
        self.registry.load_full()
    }

    /// Reaches addresses on nodes.
    pub fn dialer(&self) -> Arc<dyn NodeDialer> {
        self.tunnels.clone()
    }

    /// The nodes' tunnels; an in-process node attaches a pipe here.
    pub fn tunnels(&self) -> Arc<Tunnels> {
        self.tunnels.clone()
    }

    /// Ends watches, so that their responses end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// After [`ApiServer::stop`]: returns when the others know that this server is no more, or cannot be told.
    pub async fn farewell(&self) {
        self.farewells.close();
        if tokio::time::timeout(FAREWELL, self.farewells.wait()).await.is_err() {
            tracing::debug!("the datastore does not take in that this server ends");
        }
    }

    /// The service for in-process callers: a `UserInfo` in a request's extensions is the caller's identity.
    pub fn service(self: &Arc<Self>) -> Service {
        Service(self.clone())
    }

    /// Serves TLS until `shutdown`, then lets running requests end.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: CancellationToken,
    ) {
        let acceptor = TlsAcceptor::from(tls);
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection::serve(self.clone(), acceptor.clone(), stream, shutdown.clone()));
                }
                Err(e) => {
                    // Out of file descriptors, as a rule: connections that end give some back.
                    tracing::warn!(error = %e, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        self.stop();
        connections.close();
        let _ = tokio::time::timeout(GRACE, connections.wait()).await;
    }
}

/// The API server as a `tower::Service`, for callers in this process.
#[derive(Clone)]
pub struct Service(Arc<ApiServer>);

impl<B> tower::Service<Request<B>> for Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = self.0.clone();
        let request = request.map(Body::new);
        Box::pin(async move {
            let mut response = chain::serve(server, request).await;
            // Callers may keep this for long; they read nothing slowly.
            response.extensions_mut().remove::<fairness::Seated>();
            Ok(response)
        })
    }
}
