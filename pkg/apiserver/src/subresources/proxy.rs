//! `proxy` of pods, services and nodes: any HTTP request goes on to the server that is meant, and what comes back is made fit
//! for a client that knows this server only (apimachinery `util/proxy`).

use super::links::Links;
use super::node::{self, Security, Target};
use crate::ApiServer;
use crate::objects;
use crate::request::escape_path;
use crate::services::{self, Endpoint};
use crate::verbs::Call;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::{DeflateDecoder, GzDecoder};
use flate2::write::{DeflateEncoder, GzEncoder};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use isopod_api::Status;
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::sync::Arc;

/// Pages are for this server's origin; what the proxied server grants to others is not its to grant.
const CORS: [header::HeaderName; 4] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
];

/// `[scheme:]name[:port]`.
#[derive(Debug, PartialEq, Eq)]
struct Id<'a> {
    secure: bool,
    name: &'a str,
    port: &'a str,
}

impl<'a> Id<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, name, port) = match text.split(':').collect::<Vec<_>>()[..] {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => return None,
        };
        let known = matches!(scheme, "" | "http" | "https") && !name.is_empty();
        known.then_some(Id { secure: scheme == "https", name, port })
    }

    fn security(&self) -> Security {
        if self.secure { Security::AnyCertificate } else { Security::Plain }
    }

    fn target(&self, node: &str, ip: &str, port: &str, path: String) -> Target {
        let port = match (port, self.secure) {
            ("", false) => "80",
            ("", true) => "443",
            (port, _) => port,
        };
        Target { node: node.to_owned(), address: join(ip, port), security: self.security(), path }
    }
}

fn join(ip: &str, port: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// A path without `.`, `..` and double slashes (Go's `path.Clean`, for absolute paths).
pub fn clean_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The path that the proxied server is asked for. Empty: the request named none, not even its root.
fn path_beyond(rest: &str, request_path: &str) -> String {
    let cleaned = if rest.is_empty() { String::new() } else { escape_path(&clean_path(rest)) };
    if request_path.ends_with('/') && !cleaned.ends_with('/') { format!("{cleaned}/") } else { cleaned }
}

/// The first segments of a path.
fn prefix(path: &str, segments: usize) -> &str {
    path.match_indices('/').nth(segments).map_or(path, |(end, _)| &path[..end])
}

pub async fn serve(server: &ApiServer, call: Call, body: Body) -> Result<Response, Status> {
    let resource = call.info.resource.trim_end_matches('s');
    let invalid = || Status::bad_request(format!("invalid {resource} request {:?}", call.info.name));
    let id = Id::parse(&call.info.name).ok_or_else(invalid)?;
    let request_path = call.info.path.as_str();
    let path = path_beyond(&call.info.rest, request_path);
    let target = match resource {
        "pod" => pod(server, &call, &id, &path).await?,
        "service" => service(server, &call, &id, &path).await?,
        "node" => node(server, &call, &id, &path).await?,
        _ => return Err(Status::no_such_path()),
    };
    let upgrade = node::is_upgrade(&call.parts.headers);
    if path.is_empty() && !upgrade && matches!(call.parts.method, Method::GET | Method::HEAD) {
        return redirect(&node::with_query(&format!("{}/", escape_path(request_path)), call.parts.uri.query()));
    }
    let prefix = escape_path(prefix(request_path, if call.info.scoped { 7 } else { 5 }));
    let links = Links { prefix, host: target.address.clone(), client_host: client_host(&call) };
    let mut parts = call.parts;
    if let Ok(host) = HeaderValue::from_str(&links.client_host) {
        parts.headers.insert(header::HOST, host);
    }
    if let Ok(uri) = HeaderValue::from_str(&format!("{}{path}", links.prefix)) {
        parts.headers.insert("x-forwarded-uri", uri);
    }
    // Go's client asks for the root where the URL has no path.
    let asked = if path.is_empty() { "/" } else { &path };
    let target = Target { path: node::with_query(asked, parts.uri.query()), ..target };
    let answer = node::forward(server, &target, Request::from_parts(parts, body)).await.map_err(unreachable)?;
    if upgrade { Ok(answer) } else { translate(answer, &links).await }
}

fn unreachable(status: Status) -> Status {
    let why = status.message.replacen("error dialing backend: ", "", 1);
    Status::service_unavailable(format!("error trying to reach service: {why}"))
}

fn redirect(location: &str) -> Result<Response, Status> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let location = HeaderValue::from_str(location).map_err(|e| Status::bad_request(e.to_string()))?;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// This server's name in the client's request.
fn client_host(call: &Call) -> String {
    let named = call.parts.headers.get(header::HOST).and_then(|v| v.to_str().ok());
    let named = named.or_else(|| call.parts.uri.authority().map(|a| a.as_str()));
    named.unwrap_or_default().to_owned()
}

async fn read(server: &ApiServer, call: &Call, name: &str) -> Result<Arc<Value>, Status> {
    objects::check_key(&call.kind, &call.info.namespace, name)?;
    let object = server.read("", &call.info.resource, &call.info.namespace, name).await?;
    object.ok_or_else(|| Status::not_found(&call.kind.gvr(), name))
}

/// Nobody reaches what a machine serves to itself only.
fn is_reachable(ip: &str) -> bool {
    match ip.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => {
            !(ip.is_unspecified() || ip.is_broadcast() || ip.is_loopback() || ip.is_multicast() || ip.is_link_local())
        }
        Ok(IpAddr::V6(ip)) => {
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local())
        }
        Err(_) => false,
    }
}

async fn pod(server: &ApiServer, call: &Call, id: &Id<'_>, path: &str) -> Result<Target, Status> {
    let pod = read(server, call, id.name).await?;
    let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
    if !is_reachable(ip) {
        return Err(Status::bad_request("address not allowed"));
    }
    let mut containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let first = containers.find_map(|c| c["ports"][0]["containerPort"].as_u64()).map(|p| p.to_string());
    let port = if id.port.is_empty() { first.unwrap_or_default() } else { id.port.to_owned() };
    Ok(id.target(pod["spec"]["nodeName"].as_str().unwrap_or_default(), ip, &port, path.to_owned()))
}

async fn node(server: &ApiServer, call: &Call, id: &Id<'_>, path: &str) -> Result<Target, Status> {
    let node = read(server, call, id.name).await?;
    let kubelet = node::kubelet_port(&node).to_string();
    if id.port.is_empty() || id.port == kubelet {
        let address = format!("127.0.0.1:{kubelet}");
        return Ok(Target { node: id.name.to_owned(), address, security: Security::Kubelet, path: path.to_owned() });
    }
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let internal = addresses.filter(|a| a["type"] == "InternalIP").find_map(|a| a["address"].as_str());
    let ip = internal.filter(|ip| is_reachable(ip)).ok_or_else(|| Status::bad_request("address not allowed"))?;
    Ok(id.target(id.name, ip, id.port, path.to_owned()))
}

/// A ready endpoint of the service, on the node where it runs.
async fn service(server: &ApiServer, call: &Call, id: &Id<'_>, path: &str) -> Result<Target, Status> {
    let mut port = id.port.to_owned();
    if let Ok(number) = id.port.parse::<i64>() {
        let service = read(server, call, id.name).await?;
        let none = || Status::service_unavailable(format!("no service port {number} found for service {:?}", id.name));
        port = services::port_name(&service, number).ok_or_else(none)?;
    }
    // What is no pod could lead anywhere.
    match services::endpoint(server, &call.info.namespace, id.name, &port).await? {
        Some(Endpoint { node: Some(node), ip, port }) => Ok(id.target(&node, &ip, &port.to_string(), path.to_owned())),
        _ => Err(Status::service_unavailable(format!("no endpoints available for service {:?}", id.name))),
    }
}

/// The answer for the client: its links lead through the proxy.
async fn translate(mut answer: Response, links: &Links) -> Result<Response, Status> {
    for name in CORS {
        answer.headers_mut().remove(name);
    }
    let text = |headers: &HeaderMap, name| {
        headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let location = text(answer.headers(), header::LOCATION);
    if !location.is_empty() {
        if let Ok(location) = HeaderValue::from_str(&links.rewrite(&location)) {
            answer.headers_mut().insert(header::LOCATION, location);
        }
        return Ok(answer);
    }
    let content_type = text(answer.headers(), header::CONTENT_TYPE);
    let encoding = text(answer.headers(), header::CONTENT_ENCODING);
    let html = content_type.split(';').next().unwrap_or_default().trim() == "text/html";
    if !html || !matches!(encoding.as_str(), "" | "gzip" | "deflate") {
        return Ok(answer);
    }
    let (mut parts, body) = answer.into_parts();
    let page = body.collect().await.map_err(|e| Status::internal(e.to_string()))?.to_bytes();
    if !page.is_empty() {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    let page = rewrite_page(&page, &encoding, links).map_err(|e| Status::internal(e.to_string()))?;
    Ok(Response::from_parts(parts, Body::from(page)))
}

fn rewrite_page(page: &[u8], encoding: &str, links: &Links) -> io::Result<Bytes> {
    if page.is_empty() {
        // The answer to HEAD.
        return Ok(Bytes::new());
    }
    let mut plain = Vec::new();
    match encoding {
        "gzip" => {
            GzDecoder::new(page).read_to_end(&mut plain)?;
            let mut out = GzEncoder::new(Vec::new(), Compression::default());
            out.write_all(&links.rewrite_html(&plain))?;
            out.finish().map(Bytes::from)
        }
        "deflate" => {
            DeflateDecoder::new(page).read_to_end(&mut plain)?;
            let mut out = DeflateEncoder::new(Vec::new(), Compression::best());
            out.write_all(&links.rewrite_html(&plain))?;
            out.finish().map(Bytes::from)
        }
        _ => Ok(links.rewrite_html(page).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_scheme_and_port() {
        for (text, want) in [
            ("a", Some((false, "a", ""))),
            ("a:web", Some((false, "a", "web"))),
            ("https:a:443", Some((true, "a", "443"))),
            ("http:a:", Some((false, "a", ""))),
            ("ftp:a:21", None),
            (":80", None),
            ("a:b:c:d", None),
        ] {
            assert_eq!(Id::parse(text), want.map(|(secure, name, port)| Id { secure, name, port }), "{text}");
        }
    }

    #[test]
    fn paths_beyond_the_proxy() {
        for (rest, request, want) in [
            ("", "/x/proxy", ""),
            ("", "/x/proxy/", "/"),
            ("a/b", "/x/proxy/a/b", "/a/b"),
            ("a/b/", "/x/proxy/a/b/", "/a/b/"),
            ("a//../b c?", "/x/proxy/a//../b%20c%3F", "/b%20c%3F"),
            ("../../etc", "/x/proxy/../../etc", "/etc"),
        ] {
            assert_eq!(path_beyond(rest, request), want, "{request}");
        }
    }

    #[test]
    fn compressed_pages_are_rewritten_too() {
        let links = Links { prefix: "/p".into(), host: String::new(), client_host: String::new() };
        let mut zipped = GzEncoder::new(Vec::new(), Compression::fast());
        zipped.write_all(b"<a href=/x>").unwrap();
        let page = rewrite_page(&zipped.finish().unwrap(), "gzip", &links).unwrap();
        let mut plain = String::new();
        GzDecoder::new(&page[..]).read_to_string(&mut plain).unwrap();
        assert_eq!(plain, "<a href=/p/x>");
    }

    #[test]
    fn addresses_of_the_machine_itself_are_not_reached() {
        for (ip, want) in [
            ("10.0.0.1", true),
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("", false),
            ("fe80::1", false),
            ("fd00::1", true),
        ] {
            assert_eq!(is_reachable(ip), want, "{ip}");
        }
    }
}
