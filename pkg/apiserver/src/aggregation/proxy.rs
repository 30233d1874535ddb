//! Passes a request on to the server that an APIService names, and what comes back to the client: bodies as they come, upgrades
//! as bytes. Errors are worded, and plain text, as kube-aggregator's are.

use super::remote::{Failure, HOP, Remote, identify};
use crate::ApiServer;
use crate::lasting::Lasting;
use crate::nonresource::text;
use crate::request::{RequestInfo, escape_path, percent_decode};
use crate::subresources::node::{is_upgrade, with_query};
use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use isopod_api::UserInfo;
use std::time::Duration;

/// Discovery is cheap: a server that does not answer by then does not hold up clients.
const DISCOVERY: Duration = Duration::from_secs(5);

/// Pages are for this server's origin; what the other server grants to others is not its to grant.
const CORS: [header::HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];

pub async fn serve(
    server: &ApiServer,
    remote: &Remote,
    info: &RequestInfo,
    parts: Parts,
    user: &UserInfo,
    body: Body,
) -> Response {
    if let Some(wrong) = remote.wrong() {
        return refusal(StatusCode::INTERNAL_SERVER_ERROR, wrong);
    }
    let upgrade = is_upgrade(&parts.headers);
    let mut request = match prepare(remote, parts, user, body, upgrade) {
        Ok(request) => request,
        Err(e) => return refusal(StatusCode::BAD_REQUEST, &e),
    };
    let client = hyper::upgrade::on(&mut request);
    let sent = remote.send(server, request, upgrade);
    let discovers = !info.is_resource && info.path.trim_matches('/').split('/').count() == 3;
    let answer = if discovers && !upgrade {
        tokio::time::timeout(DISCOVERY, sent)
            .await
            .unwrap_or_else(|_| Err(Failure::Unreachable("context deadline exceeded".into())))
    } else {
        sent.await
    };
    match answer {
        Ok(answer) if upgrade => take_over(answer, client),
        Ok(answer) => pass_on(answer),
        Err(Failure::Unresolved(why)) => {
            tracing::debug!(service = remote.name, namespace = remote.namespace, why, "an APIService leads nowhere");
            unavailable()
        }
        Err(Failure::Unreachable(why)) if upgrade => refusal(StatusCode::SERVICE_UNAVAILABLE, &why),
        Err(Failure::Unreachable(why)) => {
            refusal(StatusCode::SERVICE_UNAVAILABLE, &format!("error trying to reach service: {why}"))
        }
    }
}

/// What clients of an APIService that is not available are told.
pub fn unavailable() -> Response {
    refusal(StatusCode::SERVICE_UNAVAILABLE, "service unavailable")
}

/// Go's plain error.
fn refusal(code: StatusCode, why: &str) -> Response {
    let mut response = text("text/plain; charset=utf-8", format!("{why}\n"));
    *response.status_mut() = code;
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The request as the other server gets it.
fn prepare(
    remote: &Remote,
    mut parts: Parts,
    user: &UserInfo,
    body: Body,
    upgrade: bool,
) -> Result<Request<Body>, String> {
    if !parts.headers.contains_key(header::HOST)
        && let Some(host) = parts.uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok())
    {
        parts.headers.insert(header::HOST, host);
    }
    // What was decided on is what is sent: an escaped slash goes on as the slash that it was taken for.
    let path = escape_path(&percent_decode(parts.uri.path()));
    parts.uri = with_query(&path, parts.uri.query()).parse::<Uri>().map_err(|e| e.to_string())?;
    if !upgrade {
        drop_hop(&mut parts.headers);
    }
    identify(&mut parts.headers, user);
    for (name, value) in [
        ("x-forwarded-uri", path),
        ("x-forwarded-host", format!("{}:{}", remote.host(), remote.port)),
        ("x-forwarded-proto", "https".into()),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            parts.headers.insert(name, value);
        }
    }
    Ok(Request::from_parts(parts, body))
}

/// Removes what is about one connection only, with what `Connection` names.
fn drop_hop(headers: &mut HeaderMap) {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .collect();
    named.iter().for_each(|name| drop(headers.remove(name.as_str())));
    // `trailers` alone is about the request too.
    let trailers = headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    if !trailers {
        headers.remove(header::TE);
    }
    for name in HOP.iter().chain([&header::CONNECTION, &header::UPGRADE]) {
        headers.remove(name);
    }
}

fn pass_on(answer: http::Response<Incoming>) -> Response {
    if answer.status().is_redirection() && answer.headers().contains_key(header::LOCATION) {
        let why = "the backend attempted to redirect this request, which is not permitted";
        let mut response = text("text/plain; charset=utf-8", why);
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        return response;
    }
    let mut answer = answer.map(Body::new);
    drop_hop(answer.headers_mut());
    for name in CORS {
        answer.headers_mut().remove(name);
    }
    // That it came over another version of HTTP is no matter of the client's.
    *answer.version_mut() = http::Version::default();
    answer
}

/// The answer to a request that asked for another protocol: once both sides have switched, bytes flow through unread.
fn take_over(mut answer: http::Response<Incoming>, client: hyper::upgrade::OnUpgrade) -> Response {
    let code = answer.status();
    if code != StatusCode::SWITCHING_PROTOCOLS {
        if code.as_u16() >= 400 {
            return pass_on(answer);
        }
        let why = format!("invalid upgrade response: status code {}", code.as_u16());
        return refusal(StatusCode::SERVICE_UNAVAILABLE, &why);
    }
    let other = hyper::upgrade::on(&mut answer);
    Lasting::run(&mut answer, async move {
        if let (Ok(client), Ok(other)) = tokio::join!(client, other) {
            let (mut client, mut other) = (TokioIo::new(client), TokioIo::new(other));
            let _ = tokio::io::copy_bidirectional(&mut client, &mut other).await;
        }
    });
    answer.map(|_| Body::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_connection_are_not_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        drop_hop(&mut headers);
        let left: Vec<&str> = headers.keys().map(|k| k.as_str()).collect();
        assert_eq!(left, ["accept"]);
    }
}
