//! The aggregation layer: an APIService leads a group version to a server behind a service (upstream's kube-aggregator). To
//! clients it looks as if everything were served here: requests, discovery, OpenAPI.
//!
//! Invariants:
//! - Where a group version is served is a function of the APIServices in the cache ([`Table`]), made anew when these change.
//! - One task follows the APIServices and looks after those of what is served here; one for each server elsewhere tells whether
//!   it answers. They take no hint but the objects.
//! - A server that does not answer holds nobody up: what it said of itself last is told on, marked as stale.

mod autoregister;
mod availability;
mod documents;
pub mod front_proxy;
pub mod groups;
mod proxy;
mod remote;
mod trust;

use crate::ApiServer;
use crate::cache::entry::Filter;
use crate::cache::resource::Entries;
use crate::encode::served;
use crate::exposition::Page;
use crate::request::RequestInfo;
use crate::stages::Stage;
use arc_swap::ArcSwap;
use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use isopod_api::{Status, UserInfo};
use isopod_kinds::Kind;
use isopod_kinds::access::Access;
use parking_lot::Mutex;
use remote::Remote;
use rustls::client::ResolvesClientCert;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use documents::{Converted, Swagger};
pub use front_proxy::{FrontProxy, RequestHeaders};

/// When to write again what could not be written.
const AGAIN: Duration = Duration::from_secs(1);

/// How this server and servers behind it know one another.
#[derive(Clone, Default)]
pub struct Settings {
    /// What it shows to them: the certificate of a front proxy.
    pub identity: Option<Arc<dyn ResolvesClientCert>>,
    /// What they may trust, published for them in `kube-system/extension-apiserver-authentication`: the CA of clients.
    pub client_ca_pem: String,
    /// And what front proxies say, with their CA.
    pub request_headers: Option<RequestHeaders>,
}

/// An APIService.
pub struct ApiService {
    pub name: String,
    pub group: String,
    pub version: String,
    pub group_priority: i64,
    pub version_priority: i64,
    /// Where it leads, if not here.
    remote: Option<Arc<Remote>>,
    available: bool,
}

impl ApiService {
    fn new(object: &Value, remote: Option<Arc<Remote>>) -> Self {
        let available = object.list("status.conditions").iter().find(|c| c.text("type") == "Available");
        ApiService {
            name: object.text("metadata.name").to_owned(),
            group: object.text("spec.group").to_owned(),
            version: object.text("spec.version").to_owned(),
            group_priority: object.int_or("spec.groupPriorityMinimum", 0),
            version_priority: object.int_or("spec.versionPriority", 0),
            remote,
            available: available.is_some_and(|c| c.text("status") == "True"),
        }
    }

    /// The version's entry of aggregated discovery, if it is served elsewhere.
    pub fn discovery(&self) -> Option<Value> {
        Some(self.remote.as_ref()?.documents.discovery(&self.version))
    }

    /// Its OpenAPI v2 document, and below which path it counts.
    pub fn swagger(&self) -> Option<(String, Arc<Swagger>)> {
        let remote = self.remote.as_ref()?;
        Some((remote.path(), remote.documents.swagger()?))
    }

    /// Paths and URLs of its OpenAPI v3 documents.
    pub fn openapi_v3(&self) -> Arc<Vec<(String, String)>> {
        self.remote.as_ref().map(|r| r.documents.v3()).unwrap_or_default()
    }

    /// Its OpenAPI v3 document, where this server makes it, with its path in the index.
    pub fn converted(&self) -> Option<(String, Arc<Converted>)> {
        let remote = self.remote.as_ref()?;
        Some((remote.path().trim_start_matches('/').to_owned(), remote.documents.converted()?))
    }

    pub fn is_remote(&self) -> bool {
        self.remote.is_some()
    }
}

/// The APIServices that there are.
#[derive(Default)]
pub struct Table {
    by_version: HashMap<(String, String), ApiService>,
    remote: bool,
}

impl Table {
    fn new(all: impl Iterator<Item = ApiService>) -> Self {
        let by_version: HashMap<_, _> = all.map(|s| ((s.group.clone(), s.version.clone()), s)).collect();
        let remote = by_version.values().any(ApiService::is_remote);
        Table { by_version, remote }
    }

    pub fn get(&self, group: &str, version: &str) -> Option<&ApiService> {
        self.by_version.get(&(group.to_owned(), version.to_owned()))
    }

    pub fn all(&self) -> impl Iterator<Item = &ApiService> {
        self.by_version.values()
    }

    /// Those that are served elsewhere, by name.
    pub fn remote(&self) -> Vec<&ApiService> {
        let mut all: Vec<&ApiService> = self.by_version.values().filter(|s| s.is_remote()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The APIService that leads a path elsewhere.
    fn leads(&self, path: &str) -> Option<&ApiService> {
        if !self.remote {
            return None;
        }
        let mut parts = path.trim_start_matches('/').split('/');
        let found = match (parts.next()?, parts.next(), parts.next()) {
            ("api", _, _) => self.get("", "v1"),
            ("apis", Some(group), Some(version)) => self.get(group, version),
            // The document of a version comes from who serves it, unless it tells nothing in v3.
            ("openapi", Some("v3"), Some("apis")) => {
                self.get(parts.next()?, parts.next()?).filter(|s| s.converted().is_none())
            }
            _ => None,
        };
        found.filter(|s| s.is_remote())
    }
}

/// The state of the layer.
#[derive(Default)]
pub struct Aggregation {
    pub(crate) table: ArcSwap<Table>,
    seen: Mutex<Seen>,
    /// What is served here has changed.
    pub(crate) registry_changed: Notify,
}

#[derive(Default)]
struct Seen {
    entries: Entries,
    objects: BTreeMap<String, Arc<Value>>,
}

/// Looks after the APIServices of what is served here, then follows all of them until the server stops.
pub async fn start(server: &Arc<ApiServer>) -> Result<(), Status> {
    let mut progress = autoregister::Progress::default();
    if let Some(kind) = kind(server) {
        let (cache, _) = server.hub.fresh_cache(&kind).await?;
        take_in(server, &kind, &cache.snapshot().entries);
        autoregister::act(server, &mut progress, &objects(server)).await;
        tokio::spawn(follow(Arc::downgrade(server), progress));
    }
    server.stages.done(Stage::ApiServices);
    if !server.config.aggregation.client_ca_pem.is_empty() {
        trust::publish(server).await?;
        tokio::spawn(trust::keep(Arc::downgrade(server)));
    }
    server.stages.done(Stage::Trust);
    Ok(())
}

/// The kind of APIServices.
fn kind(server: &ApiServer) -> Option<Arc<Kind>> {
    server.registry.load().resource("apiregistration.k8s.io", "apiservices").cloned()
}

fn objects(server: &ApiServer) -> BTreeMap<String, Arc<Value>> {
    server.aggregation.seen.lock().objects.clone()
}

/// Makes the table anew if the APIServices have changed.
fn take_in(server: &ApiServer, kind: &Kind, entries: &Entries) {
    let mut seen = server.aggregation.seen.lock();
    if seen.entries.ptr_eq(entries) && !entries.is_empty() {
        return;
    }
    let old = server.aggregation.table.load();
    let identity = server.config.aggregation.identity.as_ref();
    let objects: BTreeMap<String, Arc<Value>> =
        entries.iter().map(|(name, entry)| (name.to_string(), Arc::new(served(kind, &entry.body)))).collect();
    let known = |object: &Value| {
        let spec = object.at("spec");
        let before = old.get(spec.text("group"), spec.text("version")).and_then(|s| s.remote.clone());
        before.filter(|r| r.spec == *spec).or_else(|| Remote::new(spec, identity).map(Arc::new))
    };
    let table = Table::new(objects.values().map(|object| ApiService::new(object, known(object))));
    server.aggregation.table.store(Arc::new(table));
    *seen = Seen { entries: entries.clone(), objects };
}

/// The task that follows one server elsewhere; dropping it ends the task.
struct Followed {
    remote: Arc<Remote>,
    _stop: DropGuard,
}

async fn follow(weak: Weak<ApiServer>, mut progress: autoregister::Progress) {
    let mut followed: BTreeMap<String, Followed> = BTreeMap::new();
    loop {
        let Some(server) = weak.upgrade() else { return };
        let stop = server.stop.clone();
        let Some(kind) = kind(&server) else { return };
        let Ok(cache) = server.hub.cache(&kind).await else {
            // The store is away.
            drop(server);
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => continue,
                () = stop.cancelled() => return,
            }
        };
        let (mut changes, snapshot) = cache.subscribe_with_snapshot(Filter::default());
        take_in(&server, &kind, &snapshot.entries);
        let mut behind = act(&server, &mut progress, &mut followed).await;
        let aggregation = server.aggregation.clone();
        drop(server);
        loop {
            let again = if behind { AGAIN } else { Duration::MAX };
            let ended = tokio::select! {
                news = tokio::time::timeout(again, changes.recv()) => matches!(news, Ok(None)),
                () = aggregation.registry_changed.notified() => false,
                () = stop.cancelled() => return,
            };
            // The cache starts anew.
            if ended {
                break;
            }
            while changes.try_recv().is_ok() {}
            let Some(server) = weak.upgrade() else { return };
            take_in(&server, &kind, &cache.snapshot().entries);
            behind = act(&server, &mut progress, &mut followed).await;
        }
    }
}

/// Does what the APIServices ask for. True: something could not be written.
async fn act(
    server: &Arc<ApiServer>,
    progress: &mut autoregister::Progress,
    followed: &mut BTreeMap<String, Followed>,
) -> bool {
    let table = server.aggregation.table.load_full();
    followed.retain(|name, f| {
        table.all().any(|s| s.name == *name && s.remote.as_ref().is_some_and(|r| Arc::ptr_eq(r, &f.remote)))
    });
    for service in table.all() {
        let Some(remote) = service.remote.as_ref().filter(|_| !followed.contains_key(&service.name)) else { continue };
        let stop = CancellationToken::new();
        let watch = availability::watch(Arc::downgrade(server), service.name.clone(), remote.clone(), stop.clone());
        tokio::spawn(watch);
        followed.insert(service.name.clone(), Followed { remote: remote.clone(), _stop: stop.drop_guard() });
    }
    let objects = objects(server);
    let mut behind = autoregister::act(server, progress, &objects).await;
    for (name, object) in objects.iter().filter(|(_, o)| !o.at("spec.service").is_object()) {
        let local = ("True", "Local", "Local APIServices are always available".to_owned());
        let said = object.list("status.conditions").iter().any(|c| {
            c.text("type") == "Available"
                && (c.text("status"), c.text("reason")) == (local.0, local.1)
                && c.text("message") == local.2
        });
        if !said && let Err(e) = availability::write(server, name, object.at("spec"), &local).await {
            tracing::warn!(name, error = %e, "cannot write the status of an APIService");
            behind = true;
        }
    }
    behind
}

/// Which APIServices are not available.
pub fn metrics(server: &ApiServer, page: &mut Page) {
    let help = "[ALPHA] Gauge of APIServices which are marked as unavailable broken down by APIService name.";
    let mut family = page.family("aggregator_unavailable_apiservice", help, "gauge");
    for service in server.aggregation.table.load().all() {
        family.value(&[("name", &service.name)], f64::from(u8::from(!service.available)));
    }
}

/// Where a request goes that is not served here.
pub enum Elsewhere {
    Unavailable,
    Remote(Arc<Remote>),
}

/// Whether a request is served elsewhere.
pub fn elsewhere(server: &ApiServer, info: &RequestInfo) -> Option<Elsewhere> {
    let table = server.aggregation.table.load();
    let service = table.leads(&info.path)?;
    let remote = service.remote.clone()?;
    Some(if service.available { Elsewhere::Remote(remote) } else { Elsewhere::Unavailable })
}

impl Elsewhere {
    pub async fn serve(
        self,
        server: &ApiServer,
        info: &RequestInfo,
        parts: Parts,
        user: &UserInfo,
        body: Body,
    ) -> Response {
        match self {
            Elsewhere::Unavailable => proxy::unavailable(),
            Elsewhere::Remote(remote) => proxy::serve(server, &remote, info, parts, user, body).await,
        }
    }
}
