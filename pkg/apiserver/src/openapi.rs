//! `/openapi/v2` and `/openapi/v3`: the documents of the kinds that are served at this moment, made for each request (clients
//! keep them by hash) and away from the threads that serve others.

use crate::ApiServer;
use crate::request::Query;
use axum::body::Body;
use axum::response::Response;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use isopod_api::Status;
use isopod_openapi::Answer;

/// A document that is asked for by its hash never changes.
const ONE_YEAR: i64 = 365 * 24;

pub async fn serve(server: &ApiServer, path: &str, query: &Query, headers: &HeaderMap) -> Result<Response, Status> {
    let registry = server.registry.load_full();
    let (path, hash) = (path.to_owned(), query.get("hash").unwrap_or_default().to_owned());
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let made = tokio::task::spawn_blocking(move || isopod_openapi::answer(registry.all(), &path, &hash, &accept)).await;
    let answer = made.map_err(Status::internal)?.ok_or_else(Status::no_such_path)?;
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()) == Some(&quoted(&answer.etag));
    Ok(response(answer, known, server.config.clock.now()))
}

fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

fn response(answer: Answer, known: bool, now: jiff::Timestamp) -> Response {
    let unchanged = known && answer.status == 200;
    let mut fields = vec![(header::CONTENT_TYPE, answer.content_type.to_owned()), (header::VARY, "Accept".to_owned())];
    if !answer.etag.is_empty() {
        fields.push((header::ETAG, quoted(&answer.etag)));
    }
    if answer.immutable {
        let expires = now + jiff::SignedDuration::from_hours(ONE_YEAR);
        fields.push((header::CACHE_CONTROL, "public, immutable".to_owned()));
        fields.push((header::EXPIRES, expires.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()));
    }
    fields.extend(answer.location.map(|l| (header::LOCATION, l)));
    let mut out = Response::new(if unchanged { Body::empty() } else { Body::from(answer.body) });
    *out.status_mut() = if unchanged {
        StatusCode::NOT_MODIFIED
    } else {
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK)
    };
    let insert = |(name, value): (HeaderName, String)| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            out.headers_mut().insert(name, value);
        }
    };
    fields.into_iter().for_each(insert);
    out
}
