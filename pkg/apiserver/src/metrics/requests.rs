//! Requests as upstream counts them (`apiserver/pkg/endpoints/metrics`).
//!
//! Invariant: clients cannot make new labels: groups, resources and subresources are told only of what is served here.

use super::body::Measured;
use crate::lasting::Lasting;
use crate::request::{Query, RequestInfo};
use crate::{ApiServer, health};
use axum::body::Body;
use axum::response::Response;
use futures::FutureExt;
use http::{Method, Request, StatusCode, header};
use isopod_kinds::Kind;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::{Duration, Instant};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    #[prometheus(flatten)]
    of: Labels,
    dry_run: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    #[prometheus(flatten)]
    of: Labels,
    dry_run: &'static str,
    code: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    #[prometheus(flatten)]
    of: Labels,
    code: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BodyLabels {
    group: String,
    resource: String,
    verb: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeprecatedLabels {
    group: String,
    version: String,
    resource: String,
    subresource: String,
    removed_release: String,
}

const COMPONENT: &str = "apiserver";
const DURATIONS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// Without waits for others.
const OWN_DURATIONS: [f64; 21] =
    [0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0];
const SIZES: [f64; 7] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Subresources that are connections.
const CONNECTIONS: [&str; 5] = ["log", "exec", "portforward", "attach", "proxy"];

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

pub struct RequestMetrics {
    requests: Family<RequestLabels, Counter>,
    durations: Histograms<DurationLabels>,
    own_durations: Histograms<Labels>,
    terminations: Family<CodeLabels, Counter>,
    bodies: Histograms<BodyLabels>,
    sizes: Histograms<Labels>,
    long_running: Family<Labels, Gauge>,
    deprecated: Family<DeprecatedLabels, Gauge>,
}

/// What became of a request, beside its answer.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// How long it has waited for others.
    pub elsewhere: Duration,
    /// The server has ended it to save itself.
    pub terminated: bool,
}

/// What of a request is not in its [`RequestInfo`].
pub struct Asked {
    method: Method,
    applies: bool,
    dry_run: &'static str,
    began: Instant,
}

impl Asked {
    pub fn of(request: &Request<Body>, query: &Query, began: Instant) -> Self {
        let apply = "application/apply-patch+yaml";
        let applies = request.headers().get(header::CONTENT_TYPE).is_some_and(|t| t == apply);
        let values: Vec<&str> = query.all("dryRun").collect();
        let dry_run = match &values[..] {
            [] => "",
            all if all.iter().all(|v| *v == "All") => "All",
            _ => "invalid",
        };
        Asked { method: request.method().clone(), applies, dry_run, began }
    }

    fn verb(&self, info: &RequestInfo, scope: &str) -> &'static str {
        if info.is_resource && CONNECTIONS.contains(&info.subresource.as_str()) {
            return "CONNECT";
        }
        match self.method.as_str() {
            "GET" if info.verb == "watch" => "WATCH",
            "GET" | "HEAD" if matches!(scope, "namespace" | "cluster") => "LIST",
            "GET" | "HEAD" => "GET",
            "PATCH" if self.applies => "APPLY",
            "PATCH" => "PATCH",
            "POST" => "POST",
            "PUT" => "PUT",
            "DELETE" => "DELETE",
            _ => "other",
        }
    }
}

fn scope(info: &RequestInfo) -> &'static str {
    match (info.is_resource, info.name.is_empty() && info.verb != "create", info.namespace.is_empty()) {
        (false, ..) => "",
        (true, false, _) => "resource",
        (true, true, false) => "namespace",
        (true, true, true) => "cluster",
    }
}

impl RequestMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let made = RequestMetrics {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATIONS)),
            own_durations: Family::new_with_constructor(|| Histogram::new(OWN_DURATIONS)),
            terminations: Family::default(),
            bodies: Family::new_with_constructor(|| Histogram::new((0..31).map(|n| f64::from(50_000 + n * 100_000)))),
            sizes: Family::new_with_constructor(|| Histogram::new(SIZES)),
            long_running: Family::default(),
            deprecated: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("apiserver");
        let help = "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, \
                    resource, scope, component, and HTTP response code";
        registry.register("request", help, made.requests.clone());
        let help = "[STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, \
                    resource, subresource, scope and component";
        registry.register("request_duration_seconds", help, made.durations.clone());
        let help = "[ALPHA] Response latency distribution (not counting webhook duration and priority & fairness queue wait \
                    times) in seconds for each verb, group, version, resource, subresource, scope and component.";
        registry.register("request_sli_duration_seconds", help, made.own_durations.clone());
        let help = "[ALPHA] Number of requests which apiserver terminated in self-defense.";
        registry.register("request_terminations", help, made.terminations.clone());
        let help = "[ALPHA] Apiserver request body size in bytes broken out by resource and verb.";
        registry.register("request_body_size_bytes", help, made.bodies.clone());
        let help = "[STABLE] Response size distribution in bytes for each group, version, verb, resource, subresource, \
                    scope and component";
        registry.register("response_sizes", help, made.sizes.clone());
        let help = "[STABLE] Gauge of all active long-running apiserver requests broken out by verb, group, version, \
                    resource, scope and component. Not all requests are tracked this way";
        registry.register("longrunning_requests", help, made.long_running.clone());
        let help = "[STABLE] Gauge of deprecated APIs that have been requested, broken out by API group, version, \
                    resource, subresource, and removed_release";
        registry.register("requested_deprecated_apis", help, made.deprecated.clone());
        made
    }

    /// Counts a request that is answered, and measures it when its answer is sent.
    pub fn answered(
        &self,
        server: &ApiServer,
        asked: &Asked,
        info: &RequestInfo,
        ended: Ended,
        response: Response,
    ) -> Response {
        let of = labels(server, asked, info);
        let code = response.status();
        if ended.terminated {
            let labels = CodeLabels { of: of.clone(), code: code.as_u16().into() };
            self.terminations.get_or_create(&labels).inc();
        }
        let labels = RequestLabels { of: of.clone(), dry_run: asked.dry_run, code: code.as_u16().into() };
        self.requests.get_or_create(&labels).inc();
        let sizes = matches!(of.verb, "GET" | "LIST" | "WATCH").then(|| self.sizes.get_or_create(&of).clone());
        let lasts = info.is_long_running() && (code.is_success() || code == StatusCode::SWITCHING_PROTOCOLS);
        let running = lasts.then(|| Running::new(self.long_running.get_or_create(&of).clone()));
        let own = asked.dry_run.is_empty().then(|| self.own_durations.get_or_create(&of).clone());
        let labels = DurationLabels { of, dry_run: asked.dry_run };
        let (durations, began) = (self.durations.get_or_create(&labels).clone(), asked.began);
        let ended = move |bytes| {
            let took = began.elapsed();
            durations.observe(took.as_secs_f64());
            if let Some(own) = own {
                own.observe(took.saturating_sub(ended.elsewhere).as_secs_f64());
            }
            if let Some(sizes) = sizes {
                sizes.observe(bytes as f64);
            }
            drop(running);
        };
        if let Some(connection) = Lasting::of(&response) {
            tokio::spawn(connection.ended().map(|()| ended(0)));
            return response;
        }
        Measured::over(response, ended)
    }

    /// A body that was read whole. `verb`: create, update, patch, delete or delete_collection.
    pub fn body(&self, kind: &Kind, verb: &'static str, bytes: usize) {
        let labels = BodyLabels { group: kind.gvk.group.clone(), resource: kind.resource.clone(), verb };
        self.bodies.get_or_create(&labels).observe(bytes as f64);
    }

    /// Somebody uses what is deprecated. `warning`: what is said about it.
    pub fn deprecated(&self, kind: &Kind, subresource: &str, warning: &str) {
        let removed = warning.split("unavailable in v").nth(1).and_then(|v| v.split('+').next()).unwrap_or_default();
        let labels = DeprecatedLabels {
            group: kind.gvk.group.clone(),
            version: kind.gvk.version.clone(),
            resource: kind.resource.clone(),
            subresource: subresource.to_owned(),
            removed_release: removed.to_owned(),
        };
        self.deprecated.get_or_create(&labels).set(1);
    }
}

/// A request that is running; it is none any more when this value is dropped.
struct Running(Gauge);

impl Running {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Running(gauge)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn labels(server: &ApiServer, asked: &Asked, info: &RequestInfo) -> Labels {
    let scope = scope(info);
    let verb = asked.verb(info, scope);
    if !info.is_resource {
        return match health::paths(server).contains(&info.path) {
            true => Labels { verb, subresource: info.path.clone(), ..Labels::default() },
            false => Labels { verb, component: COMPONENT, ..Labels::default() },
        };
    }
    let registry = server.registry.load();
    let Some(kind) = registry.get(&info.group, &info.version, &info.resource) else {
        return Labels { verb, scope, component: COMPONENT, ..Labels::default() };
    };
    let known = kind.subresources.iter().any(|s| s.name == info.subresource);
    Labels {
        verb,
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: if known { info.subresource.clone() } else { String::new() },
        scope,
        component: COMPONENT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_and_scopes_are_upstreams() {
        let check = |method: &str, uri: &str, kind: &str, want: (&str, &str, &str)| {
            let request = Request::builder().method(method).uri(uri).header("content-type", kind);
            let request = request.body(Body::empty()).unwrap();
            let query = Query::parse(request.uri().query());
            let info = RequestInfo::parse(request.method(), request.uri().path(), &query).unwrap();
            let (asked, scope) = (Asked::of(&request, &query, Instant::now()), scope(&info));
            assert_eq!((asked.verb(&info, scope), scope, asked.dry_run), want, "{method} {uri}");
        };
        let pods = "/api/v1/namespaces/a/pods";
        check("GET", pods, "", ("LIST", "namespace", ""));
        check("GET", "/api/v1/pods?watch=1", "", ("WATCH", "cluster", ""));
        check("GET", &format!("{pods}/b"), "", ("GET", "resource", ""));
        check("GET", &format!("{pods}/b/log"), "", ("CONNECT", "resource", ""));
        check("POST", &format!("{pods}?dryRun=All"), "", ("POST", "resource", "All"));
        check("PATCH", &format!("{pods}/b?dryRun=x"), "application/apply-patch+yaml", ("APPLY", "resource", "invalid"));
        check("PATCH", &format!("{pods}/b"), "application/json-patch+json", ("PATCH", "resource", ""));
        check("DELETE", pods, "", ("DELETE", "namespace", ""));
        check("BREW", "/pot", "", ("other", "", ""));
    }
}
