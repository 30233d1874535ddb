//! Which transport and protocol a request asks for, the 101 response that agrees, and the refusals.

use axum::body::Body;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
const ACCEPTED_PROTOCOLS: &str = "x-accepted-stream-protocol-versions";

/// Why a request cannot be upgraded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("unable to upgrade: missing upgrade headers in request")]
    NotAnUpgrade,
    #[error("unable to upgrade: unable to negotiate protocol: client supports [{client}], server accepts [{server}]")]
    NoCommonProtocol { client: String, server: String },
    #[error("unable to upgrade: {0}")]
    BadHandshake(&'static str),
    #[error("{0}")]
    BadRequest(String),
}

impl Refusal {
    pub fn response(&self) -> Response<Body> {
        let mut r = Response::new(Body::from(format!("{self}\n")));
        *r.status_mut() = StatusCode::BAD_REQUEST;
        r.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if let Refusal::NoCommonProtocol { server, .. } = self {
            *r.status_mut() = StatusCode::FORBIDDEN;
            for name in server.split(' ') {
                if let Ok(v) = HeaderValue::from_str(name) {
                    r.headers_mut().append(ACCEPTED_PROTOCOLS, v);
                }
            }
        }
        r
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    WebSocket,
    Spdy,
}

/// The comma-separated values of all headers of this name.
fn values<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let all = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|v| v.split(',')).map(str::trim).filter(|v| !v.is_empty())
}

/// What the `Upgrade` header asks for; `None` when the request asks for no upgrade that we know.
pub fn transport(headers: &HeaderMap) -> Option<Transport> {
    if !values(headers, "connection").any(|v| v.eq_ignore_ascii_case("upgrade")) {
        return None;
    }
    values(headers, "upgrade").find_map(|v| {
        if v.eq_ignore_ascii_case("websocket") {
            Some(Transport::WebSocket)
        } else if v.eq_ignore_ascii_case("SPDY/3.1") {
            Some(Transport::Spdy)
        } else {
            None
        }
    })
}

/// The agreed protocol: the first of the client's that the server has. Empty when the client names none.
pub(crate) struct Agreed {
    pub transport: Transport,
    pub protocol: &'static str,
    pub response: Response<Body>,
    pub upgrade: hyper::upgrade::OnUpgrade,
}

/// `websocket` and `spdy`: the protocols that the server has over each.
pub(crate) fn agree<B>(
    request: &mut Request<B>,
    websocket: &'static [&'static str],
    spdy: &'static [&'static str],
) -> Result<Agreed, Refusal> {
    let headers = request.headers();
    let transport = transport(headers).ok_or(Refusal::NotAnUpgrade)?;
    let (asked_in, server) = match transport {
        Transport::WebSocket => (SEC_WEBSOCKET_PROTOCOL.as_str(), websocket),
        Transport::Spdy => (STREAM_PROTOCOL, spdy),
    };
    let client: Vec<&str> = values(headers, asked_in).filter(|p| !is_bearer(p)).collect();
    let protocol = match client.iter().find_map(|c| server.iter().find(|s| *s == c)) {
        Some(p) => *p,
        None if client.is_empty() => "",
        None => return Err(Refusal::NoCommonProtocol { client: client.join(" "), server: server.join(" ") }),
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = response.headers_mut();
    out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    match transport {
        Transport::WebSocket => {
            if values(headers, "sec-websocket-version").next() != Some("13") {
                return Err(Refusal::BadHandshake("Sec-WebSocket-Version must be 13"));
            }
            let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(Refusal::BadHandshake("Sec-WebSocket-Key is missing"))?;
            out.insert(UPGRADE, HeaderValue::from_static("websocket"));
            let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
            out.insert(
                SEC_WEBSOCKET_ACCEPT,
                accept.map_err(|_| Refusal::BadHandshake("Sec-WebSocket-Key is malformed"))?,
            );
            if !protocol.is_empty() {
                out.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
        Transport::Spdy => {
            out.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            if !protocol.is_empty() {
                out.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
    }
    let upgrade = hyper::upgrade::on(request);
    Ok(Agreed { transport, protocol, response, upgrade })
}

/// Browsers put their bearer token among the protocols; the authenticator reads it there.
fn is_bearer(protocol: &str) -> bool {
    protocol.starts_with("base64url.bearer.authorization.k8s.io.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut r = Request::new(());
        for (k, v) in headers {
            r.headers_mut().append(http::HeaderName::from_bytes(k.as_bytes()).unwrap(), v.parse().unwrap());
        }
        r
    }

    const WS: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io"];
    const SPDY: &[&str] = &["v4.channel.k8s.io", "v3.channel.k8s.io"];

    #[test]
    fn the_clients_first_choice_wins() {
        let mut r = request(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            (
                "sec-websocket-protocol",
                "base64url.bearer.authorization.k8s.io.abc, v4.channel.k8s.io,v5.channel.k8s.io",
            ),
        ]);
        let a = agree(&mut r, WS, SPDY).unwrap();
        assert_eq!((a.transport, a.protocol), (Transport::WebSocket, "v4.channel.k8s.io"));
        // RFC 6455, section 1.3 gives this answer to this key.
        assert_eq!(a.response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn spdy_offers_stand_in_repeated_headers() {
        let mut r = request(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v9.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io"),
        ]);
        let a = agree(&mut r, WS, SPDY).unwrap();
        assert_eq!(a.response.headers()["x-stream-protocol-version"], "v3.channel.k8s.io");
        assert_eq!(a.response.status(), 101);
    }

    #[test]
    fn refusals_say_what_is_served() {
        let mut r = request(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v9")]);
        let refusal = agree(&mut r, WS, SPDY).err().unwrap();
        assert_eq!(refusal.response().status(), 403);
        assert_eq!(refusal.response().headers().get_all(ACCEPTED_PROTOCOLS).iter().count(), 2);
        assert_eq!(agree(&mut request(&[]), WS, SPDY).err(), Some(Refusal::NotAnUpgrade));
    }
}
