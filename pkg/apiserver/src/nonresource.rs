//! Paths that are no resources: discovery, health, version, metrics, OpenAPI, token keys, the nodes' tunnel.

use crate::encode::body::response;
use crate::encode::negotiate::{self, Form};
use crate::encode::to_json;
use crate::request::{Query, RequestInfo};
use crate::{ApiServer, chain, definitions, discovery, fairness, health, openapi, tunnel, zpages};
use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use isopod_api::{Status, UserInfo};
use serde_json::json;
use std::sync::Arc;

pub async fn serve(
    server: &Arc<ApiServer>,
    info: &RequestInfo,
    query: &Query,
    request: Request<Body>,
    user: UserInfo,
) -> Result<Response, Status> {
    let path = info.path.as_str();
    if path == tunnel::PATH {
        return tunnel::accept(server, request, &user);
    }
    let headers = request.headers();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let path = routed(path);
    match path {
        "/version" => {
            document(reads, headers, "application/json")?;
            let form = Form { pretty: true, ..Default::default() };
            Ok(response(200, &form, crate::encode::text(&version(), &form)))
        }
        "/healthz" => Ok(health::all(server, "/healthz", query).await),
        "/livez" => Ok(health::all(server, "/livez", query).await),
        "/readyz" => Ok(health::all(server, "/readyz", query).await),
        zpages::STATUSZ | zpages::FLAGZ => Ok(zpages::serve(server, path, query, headers)?.unwrap_or_else(not_found)),
        "/metrics/slis" => Ok(text("text/plain; version=0.0.4; charset=utf-8", server.metrics.checks.text())),
        "/metrics" => Ok(text("text/plain; version=0.0.4; charset=utf-8", server.metrics.text(server).await)),
        "/openid/v1/jwks" => {
            let tokens = server.config.tokens.as_ref().ok_or_else(chain::no_such_path)?;
            document(reads, headers, "application/jwk-set+json")?;
            Ok(public(text("application/jwk-set+json", tokens.jwks().to_string())))
        }
        "/.well-known/openid-configuration" => {
            let tokens = server.config.tokens.as_ref().ok_or_else(chain::no_such_path)?;
            document(reads, headers, "application/json")?;
            let host = std::net::SocketAddr::new(server.config.advertise_address, server.config.port);
            let keys = tokens.discovery(&format!("https://{host}/openid/v1/jwks"));
            Ok(public(text("application/json", keys.to_string())))
        }
        // Upstream writes this one as JSON whatever is asked for.
        "/" => {
            let paths = json!({"paths": discovery::paths(server)});
            Ok(response(200, &Form::default(), to_json(&paths)))
        }
        _ if matches!(path, "/openapi/v2" | "/openapi/v3") || path.starts_with("/openapi/v3/") => {
            definitions::fresh(server).await?;
            openapi::serve(server, path, query, headers).await
        }
        _ if path == "/api" || path == "/apis" || path.starts_with("/api/") || path.starts_with("/apis/") => {
            definitions::fresh(server).await?;
            discovery::serve(server, path, reads, headers, query)
        }
        _ if path.starts_with("/debug/api_priority_and_fairness/") => {
            let fairness = server.fairness.as_ref();
            let page = fairness.and_then(|f| fairness::dump(f, &server.config.clock, path, query));
            Ok(page.map_or_else(not_found, |page| text("text/plain; charset=utf-8", page)))
        }
        _ => match health::one(server, path).await {
            Some(response) => Ok(response),
            None => Ok(not_found()),
        },
    }
}

/// What upstream's router serves is found with slashes at its end too, of which `/apis` takes one; nothing else is.
fn routed(path: &str) -> &str {
    let bare = path.trim_end_matches('/');
    let documents = ["/version", "/openid/v1/jwks", "/.well-known/openid-configuration", "/api"];
    let found = documents.contains(&bare)
        || ["/api/", "/apis/"].iter().any(|below| bare.starts_with(below))
        || (bare == "/apis" && path.len() <= bare.len() + 1);
    if found { bare } else { path }
}

/// A document that is read only, and in one form.
fn document(reads: bool, headers: &HeaderMap, media: &str) -> Result<(), Status> {
    if !reads {
        return Err(crate::verbs::not_allowed());
    }
    negotiate::acceptable(headers, &[media])
}

/// What everybody may keep for an hour: the keys of tokens.
fn public(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

/// A path that nothing is registered for: Go's own answer, which is no `Status`.
pub fn not_found() -> Response {
    let mut response = text("text/plain; charset=utf-8", "404 page not found\n");
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A plain body of a given type.
pub fn text(content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// `GET /version`.
pub fn version() -> serde_json::Value {
    let platform = match std::env::consts::ARCH {
        "x86_64" => "linux/amd64",
        "aarch64" => "linux/arm64",
        other => other,
    };
    json!({
        "major": "1", "minor": "37", "emulationMajor": "1", "emulationMinor": "37",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "36", "gitVersion": "v1.37.0+isopod",
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none",
        "compiler": "rustc", "platform": platform,
    })
}
