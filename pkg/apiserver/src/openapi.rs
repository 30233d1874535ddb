//! `/openapi/v2` and `/openapi/v3`: the documents of the kinds that are served at this moment, made for each request (clients
//! keep them by hash) and away from the threads that serve others.

use crate::ApiServer;
use crate::aggregation::{Converted, Swagger};
use crate::encode::body::gzip;
use crate::encode::negotiate::takes_gzip;
use crate::request::Query;
use axum::body::Body;
use axum::response::Response;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use isopod_api::Status;
use isopod_openapi::{Answer, Elsewhere, Part};
use std::sync::Arc;

/// A document that is asked for by its hash never changes.
const ONE_YEAR: i64 = 365 * 24;

pub async fn serve(server: &ApiServer, path: &str, query: &Query, headers: &HeaderMap) -> Result<Response, Status> {
    let registry = server.registry.load_full();
    // As upstream, the one document of all kinds is compressed; clients keep the others by their hash.
    let zipped = path == "/openapi/v2";
    let zip = zipped && takes_gzip(headers);
    let (path, hash) = (path.to_owned(), query.get("hash").unwrap_or_default().to_owned());
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let elsewhere = elsewhere(server, &path);
    let make = move || {
        let mut answer = isopod_openapi::answer(registry.all(), &elsewhere.borrowed(), &path, &hash, &accept)?;
        if zip {
            answer.body = gzip(&answer.body).to_vec();
        }
        Some(answer)
    };
    let made = tokio::task::spawn_blocking(make).await;
    // Upstream's answer to a group version that is not there has no body.
    let Some(answer) = made.map_err(Status::internal)? else {
        let mut nothing = Response::new(Body::empty());
        *nothing.status_mut() = StatusCode::NOT_FOUND;
        nothing.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        return Ok(nothing);
    };
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()) == Some(&quoted(&answer.etag));
    let mut out = response(answer, known, server.config.clock.now());
    if zipped {
        out.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        if zip && out.status() == StatusCode::OK {
            out.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
    }
    Ok(out)
}

/// What is said of what servers elsewhere serve: their v2 documents, the URLs of those of v3, and what stands for these.
#[derive(Default)]
struct Told {
    swagger: Vec<(String, Arc<Swagger>)>,
    urls: Vec<(String, String)>,
    converted: Vec<(String, Arc<Converted>)>,
}

impl Told {
    fn borrowed(&self) -> Elsewhere<'_> {
        Elsewhere {
            swagger: self.swagger.iter().map(|(path, s)| Part { path, etag: &s.etag, document: &s.document }).collect(),
            urls: &self.urls,
            converted: self
                .converted
                .iter()
                .map(|(path, c)| isopod_openapi::Converted { path, hash: &c.hash, document: &c.document })
                .collect(),
        }
    }
}

fn elsewhere(server: &ApiServer, path: &str) -> Told {
    let table = server.aggregation.table.load();
    let remote = table.remote();
    match path {
        "/openapi/v2" => Told { swagger: remote.iter().filter_map(|s| s.swagger()).collect(), ..Told::default() },
        "/openapi/v3" => {
            let urls = remote.iter().flat_map(|s| s.openapi_v3().iter().cloned().collect::<Vec<_>>()).collect();
            let converted = remote.iter().filter_map(|s| s.converted()).collect();
            Told { urls, converted, ..Told::default() }
        }
        path => {
            let converted = remote.iter().filter_map(|s| s.converted());
            let asked_for = |(of, _): &(String, _)| path.strip_prefix("/openapi/v3/") == Some(of.as_str());
            Told { converted: converted.filter(asked_for).collect(), ..Told::default() }
        }
    }
}

fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

fn response(answer: Answer, known: bool, now: jiff::Timestamp) -> Response {
    let unchanged = known && answer.status == 200;
    let mut fields = Vec::new();
    // The index comes in one form only.
    if !answer.etag.is_empty() || answer.status == 406 {
        fields.push((header::VARY, "Accept".to_owned()));
    }
    if answer.status != 406 {
        fields.push((header::CONTENT_TYPE, answer.content_type.to_owned()));
    }
    if !answer.etag.is_empty() {
        fields.push((header::ETAG, quoted(&answer.etag)));
    }
    if !answer.immutable {
        fields.push((header::CACHE_CONTROL, "no-cache, private".to_owned()));
    } else {
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
