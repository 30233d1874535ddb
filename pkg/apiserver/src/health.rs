//! `/healthz`, `/livez`, `/readyz`, their single checks, `?verbose` and `?exclude`, in upstream's words.

use crate::ApiServer;
use crate::request::Query;
use crate::stages::HOOKS;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use std::sync::Arc;
use std::time::Duration;

/// How long the caches may take to get to where the store is.
const CACHES: Duration = Duration::from_secs(2);

/// `--etcd-healthcheck-timeout`.
const DATASTORE: Duration = Duration::from_secs(2);

const READY: &str = "/readyz";
const ENDPOINTS: [&str; 3] = ["/healthz", "/livez", READY];

/// A server whose certificate is over is started again: only that is what its liveness says.
const CERTIFICATE: &str = "loopback-serving-certificate";

/// Of the plugins that seal what is stored, where there may be some.
const PLUGINS: &str = "kms-providers";

/// The checks of an endpoint, in upstream's order.
fn checks(server: &ApiServer, endpoint: &'static str) -> impl Iterator<Item = &'static str> {
    let (first, last): (&[&str], &[&str]) = match endpoint {
        READY => (&["ping", "log", "etcd", "etcd-readiness", "informer-sync"], &["shutdown"]),
        _ => (&["ping", "log", CERTIFICATE, "etcd"], &[]),
    };
    let fair = server.fairness.is_some();
    let hooks = HOOKS.iter().map(|(name, _)| *name).filter(move |name| fair || !name.contains("priority-and-fairness"));
    let plugins = server.config.sealed.as_ref().is_some_and(|s| s.encryption().may_have_plugins());
    first.iter().copied().chain(hooks).chain(last.iter().copied()).chain(plugins.then_some(PLUGINS))
}

/// All paths of health.
pub fn paths(server: &ApiServer) -> Vec<String> {
    let of = |endpoint: &'static str| checks(server, endpoint).map(move |check| format!("{endpoint}/{check}"));
    ENDPOINTS.into_iter().flat_map(|e| std::iter::once(e.to_owned()).chain(of(e))).collect()
}

async fn passes(server: &ApiServer, check: &str) -> bool {
    match check {
        "etcd" | "etcd-readiness" => {
            matches!(tokio::time::timeout(DATASTORE, server.config.store.revisions()).await, Ok(Ok(_)))
        }
        // Reads are served from the caches: they must get to where the store is now.
        "informer-sync" => matches!(tokio::time::timeout(CACHES, server.hub.fresh()).await, Ok(Ok(_))),
        PLUGINS => server.config.sealed.as_ref().is_none_or(|s| s.encryption().is_well()),
        CERTIFICATE => {
            let now = server.config.clock.now().as_second();
            server.config.certificate_expires.as_ref().is_none_or(|expires| now < expires())
        }
        "shutdown" => !server.stop.is_cancelled(),
        check => match HOOKS.iter().find(|(hook, _)| *hook == check) {
            Some((_, stage)) => server.stages.is_done(*stage),
            None => true,
        },
    }
}

/// The same, for the record.
async fn checked(server: &ApiServer, check: &'static str, endpoint: &'static str) -> bool {
    let passes = passes(server, check).await;
    server.metrics.checks.checked(check, endpoint.trim_start_matches('/'), passes);
    passes
}

/// All checks of an endpoint.
pub async fn all(server: &Arc<ApiServer>, endpoint: &'static str, query: &Query) -> Response {
    let name = endpoint.trim_start_matches('/');
    let excluded: Vec<&str> = query.all("exclude").collect();
    let (mut lines, mut failed) = (String::new(), Vec::new());
    for check in checks(server, endpoint) {
        if excluded.contains(&check) {
            lines.push_str(&format!("[+]{check} excluded: ok\n"));
        } else if checked(server, check, endpoint).await {
            lines.push_str(&format!("[+]{check} ok\n"));
        } else {
            lines.push_str(&format!("[-]{check} failed: reason withheld\n"));
            failed.push(check);
        }
    }
    if !failed.is_empty() {
        return answer(500, format!("{lines}{name} check failed\n"));
    }
    if query.has("verbose") { answer(200, format!("{lines}{name} check passed\n")) } else { answer(200, "ok".into()) }
}

/// A single check: `/readyz/etcd`. `None`: no such path.
pub async fn one(server: &Arc<ApiServer>, path: &str) -> Option<Response> {
    let endpoint = ENDPOINTS.into_iter().find(|e| path.starts_with(&format!("{e}/")))?;
    let check = &path[endpoint.len() + 1..];
    let check = checks(server, endpoint).find(|c| *c == check)?;
    Some(match checked(server, check, endpoint).await {
        true => {
            let mut response = answer(200, "ok".into());
            response.headers_mut().remove(header::X_CONTENT_TYPE_OPTIONS);
            response
        }
        false => answer(500, "internal server error: reason withheld\n".into()),
    })
}

fn answer(code: u16, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}
